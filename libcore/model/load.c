#include "libcore/model/load.h"

#include <pthread.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/base/thread.h"
#include "libcore/model/weight_file.h"

struct loader {
    struct backend *be;
    struct device_model *dm;
    const struct checkpoint *ckpt; // NULL: dummy
    const struct model_config *config;
    const struct model_modules *modules;
    const struct model_load_options *opt;
    uint64_t seed;
    struct weight_files files; // open when the back end reads for itself
    pthread_mutex_t lock;      // of what follows
    size_t next, n;
    uint64_t done, total;
    size_t n_checked;
    struct err *err;
    int rc;
};

// ---- sharing out
// ---------------------------------------------------------------------------------

static bool take_next(struct loader *l, size_t *idx)
{
    pthread_mutex_lock(&l->lock);
    bool have = l->rc == 0 && l->next < l->n;
    if (have)
        *idx = l->next++;
    pthread_mutex_unlock(&l->lock);
    return have;
}

static void report(struct loader *l, int rc, const struct err *e, uint64_t bytes)
{
    pthread_mutex_lock(&l->lock);
    if (rc != 0 && l->rc == 0) {
        l->rc = rc;
        if (l->err)
            *l->err = *e;
    }
    l->done += bytes;
    if (rc == 0 && l->opt && l->opt->progress)
        l->opt->progress(l->opt->user, l->done, l->total);
    pthread_mutex_unlock(&l->lock);
}

enum { MIN_THREADS = 2, MAX_THREADS = 8 };

static unsigned choose_threads(const struct model_load_options *opt)
{
    unsigned n = opt && opt->n_threads ? opt->n_threads : thread_n_processors();
    if (opt && opt->n_threads)
        return n;
    return n < MIN_THREADS ? MIN_THREADS : n > MAX_THREADS ? MAX_THREADS : n;
}

static int run(struct loader *l, void (*body)(void *, size_t, size_t, unsigned), struct err *err)
{
    struct worker_pool *pool;
    uint64_t begin = thread_now_ns();
    int rc = worker_pool_open(&pool, choose_threads(l->opt), err);
    if (rc != 0)
        return rc;
    l->err = err;
    unsigned n_threads = worker_pool_size(pool);
    pthread_mutex_init(&l->lock, NULL);
    worker_pool_run(pool, n_threads, 1, body, l);
    worker_pool_free(pool);
    pthread_mutex_destroy(&l->lock);
    rc = l->rc ? l->rc : l->be->ops->model_ready(l->be, l->dm, err);
    if (l->opt && l->opt->stats)
        *l->opt->stats =
            (struct model_load_stats){.bytes = l->done,
                                      .seconds = (double)(thread_now_ns() - begin) * 1e-9,
                                      .n_threads = n_threads,
                                      .n_tensors = l->n,
                                      .n_checked = l->n_checked};
    return rc;
}

// ---- a checkpoint
// --------------------------------------------------------------------------------

static int check_shape(const struct checkpoint_tensor *t, const struct model_module *mod,
                       const struct weight_place *place, uint32_t n_rows, uint32_t n_cols,
                       const char *folder, struct err *err)
{
    uint64_t want[3] = {mod->n_experts, n_rows, n_cols};
    bool all_experts = mod->n_experts > 0 && place->expert < 0;
    const uint64_t *shape = all_experts ? want : want + 1;
    uint32_t n_dims = (all_experts ? 1 : 0) + (n_cols ? 2 : 1);
    if (tensor_has_shape(&t->value, n_dims, shape))
        return 0;
    struct tensor wanted = {.n_dims = n_dims};
    memcpy(wanted.shape, shape, n_dims * sizeof *shape);
    char got_text[96], want_text[96];
    return err_set(err, ERR_CORRUPT, "%s:%s: shape %s, want %s", folder, t->name,
                   tensor_shape_text(&t->value, got_text, sizeof got_text),
                   tensor_shape_text(&wanted, want_text, sizeof want_text));
}

static int read_next(void *user, void *to, size_t n, struct err *err)
{
    return weight_stream_read(user, to, n, err);
}

/* The back end takes the bytes as it likes; what it leaves unread is its own mistake. */
static int read_weight(struct loader *l, const struct checkpoint_tensor *t,
                       const struct weight_place *place, const struct digest *want, struct err *err)
{
    struct weight_stream stream;
    struct tensor shape = t->value;
    shape.data = NULL;
    int rc = weight_stream_open(&stream, &l->files, t, want, err);
    const struct weight_source from = {read_next, &stream};
    if (rc == 0)
        rc = l->be->ops->weight_read(l->be, l->dm, place, &shape, &from, err);
    if (rc == 0)
        rc = weight_stream_check(&stream, err);
    weight_stream_close(&stream);
    return rc;
}

/* From the mapped file, whose pages need not stay ours. */
static int copy_weight(struct loader *l, const struct checkpoint_tensor *t,
                       const struct weight_place *place, const struct digest *want, struct err *err)
{
    struct digest got;
    size_t n = tensor_n_bytes(&t->value);
    int rc = want ? digest_buffer(t->value.data, n, &got, err) : 0;
    if (rc == 0 && want && !digest_equal(&got, want))
        rc = err_set(err, ERR_CORRUPT, "its digest is not the recorded one");
    if (rc == 0)
        rc = l->be->ops->weight_load(l->be, l->dm, place, &t->value, err);
    sys_forget_pages(t->value.data, n);
    return rc;
}

static int place_weight(struct loader *l, const struct checkpoint_tensor *t,
                        const struct weight_place *place, struct err *err)
{
    struct digest want;
    bool check = l->opt && l->opt->digest_of && l->opt->digest_of(l->opt->digests, t->name, &want);
    int rc = l->be->ops->weight_read ? read_weight(l, t, place, check ? &want : NULL, err)
                                     : copy_weight(l, t, place, check ? &want : NULL, err);
    if (rc == 0 && check) {
        pthread_mutex_lock(&l->lock);
        l->n_checked++;
        pthread_mutex_unlock(&l->lock);
    }
    return rc;
}

static int load_tensor(struct loader *l, const struct checkpoint_tensor *t, struct err *err)
{
    const char *folder = checkpoint_folder(l->ckpt);
    const struct model_module *mod;
    struct weight_place place;
    uint32_t n_rows, n_cols;
    if (modules_place_tensor(l->modules, t->name, &mod, &place, &n_rows, &n_cols, NULL) != 0) {
        if (modules_tensor_is_inert(t->name))
            return 0;
        const char *near = modules_nearest(l->modules, t->name);
        return err_set(err, ERR_REFUSED, "%s:%s: no weight of this %s model%s%s", folder, t->name,
                       l->config->model_type, near ? "; nearest: " : "", near ? near : "");
    }
    if (mod->tied)
        return 0;
    int rc = check_shape(t, mod, &place, n_rows, n_cols, folder, err);
    if (rc != 0)
        return rc;
    rc = place_weight(l, t, &place, err);
    return rc ? err_prefix(err, "%s:%s", folder, t->name) : 0;
}

static void load_tensors(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    struct loader *l = arg;
    size_t idx;
    (void)begin;
    (void)end;
    (void)thread_idx;
    while (take_next(l, &idx)) {
        const struct checkpoint_tensor *t = checkpoint_at(l->ckpt, idx);
        struct err e = {0};
        int rc = load_tensor(l, t, &e);
        report(l, rc, &e, tensor_n_bytes(&t->value));
    }
}

int model_load(struct backend *be, struct device_model *dm, const struct checkpoint *ckpt,
               const struct model_config *config, const struct model_modules *modules,
               const struct model_load_options *opt, struct err *err)
{
    struct loader l = {.be = be,
                       .dm = dm,
                       .ckpt = ckpt,
                       .config = config,
                       .modules = modules,
                       .opt = opt,
                       .n = checkpoint_count(ckpt),
                       .total = checkpoint_weight_bytes(ckpt)};
    int rc = be->ops->weight_read ? weight_files_open(&l.files, ckpt, err) : 0;
    if (rc == 0)
        rc = run(&l, load_tensors, err);
    if (rc == ERR_CORRUPT && l.rc == 0 && l.done)
        err_prefix(err, "%s", checkpoint_folder(ckpt)); // model_ready names the weight alone
    if (be->ops->weight_read)
        weight_files_close(&l.files);
    return rc;
}

// ---- made up
// -------------------------------------------------------------------------------------

enum { DUMMY_ROWS = 64 };

static uint64_t mix(uint64_t *state)
{
    uint64_t z = *state += 0x9E3779B97F4A7C15u; // splitmix64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* Close enough to a normal for weights: the sum of four uniforms of 16 bits, sigma 0.02. */
static float dummy_value(uint64_t *state)
{
    uint64_t r = mix(state);
    int32_t sum = (int32_t)(r & 0xFFFF) + (int32_t)(r >> 16 & 0xFFFF) +
                  (int32_t)(r >> 32 & 0xFFFF) + (int32_t)(r >> 48);
    return (float)(sum - 131070) * (0.02f / 37837.0f);
}

static int dummy_vector(struct loader *l, const struct weight_place *place, uint32_t n, float value,
                        struct err *err)
{
    float *v = sys_malloc(n * sizeof *v);
    if (!v)
        return err_set(err, ERR_NO_MEMORY, "no memory for %u values", n);
    for (uint32_t i = 0; i < n; i++)
        v[i] = value;
    struct tensor t = {.dtype = DTYPE_F32, .n_dims = 1, .shape = {n}, .data = v};
    int rc = l->be->ops->weight_load(l->be, l->dm, place, &t, err);
    sys_free(v);
    return rc;
}

/* One module's matrix (of one expert), 64 rows at a time. */
static int dummy_matrix(struct loader *l, const struct model_module *mod, struct weight_place place,
                        uint64_t state, struct err *err)
{
    enum dtype t = l->config->dtype;
    size_t n = (size_t)DUMMY_ROWS * mod->d_in;
    float *values = sys_malloc(n * sizeof *values);
    void *stored = sys_malloc(n * sizeof *values);
    int rc = values && stored ? 0 : err_set(err, ERR_NO_MEMORY, "no memory for made-up weights");
    for (uint32_t row = 0; rc == 0 && row < mod->d_out; row += DUMMY_ROWS) {
        uint32_t rows = mod->d_out - row < DUMMY_ROWS ? mod->d_out - row : DUMMY_ROWS;
        for (size_t i = 0; i < (size_t)rows * mod->d_in; i++)
            values[i] = dummy_value(&state);
        struct tensor src = {.dtype = t, .n_dims = 2, .shape = {rows, mod->d_in}, .data = stored};
        if (!dtype_from_f32(t, values, stored, (size_t)rows * mod->d_in))
            rc = err_set(err, ERR_REFUSED, "dtype: no made-up weights of type %s", dtype_name(t));
        else
            rc = l->be->ops->weight_load(l->be, l->dm, &place, &src, err);
        place.row0 += rows;
    }
    sys_free(values);
    sys_free(stored);
    return rc;
}

static int dummy_module(struct loader *l, size_t idx, struct err *err)
{
    const struct model_module *mod = &l->modules->items[idx];
    struct weight_place place = mod->place;
    uint64_t state = l->seed + idx * 0x1000003u;
    if (mod->tied)
        return 0;
    if (place.kind == WEIGHT_NORM)
        return dummy_vector(l, &place, mod->d_out, l->config->norm_plus_one ? 0.0f : 1.0f, err);
    int rc = 0;
    for (uint32_t e = 0; rc == 0 && e < (mod->n_experts ? mod->n_experts : 1); e++) {
        place.expert = mod->n_experts ? (int32_t)e : -1;
        uint64_t expert_state = mix(&state);
        rc = dummy_matrix(l, mod, place, expert_state, err);
    }
    place.kind = WEIGHT_BIAS;
    if (rc == 0 && mod->has_bias)
        rc = dummy_vector(l, &place, mod->d_out, 0, err);
    return rc;
}

static uint64_t module_bytes(const struct model_config *c, const struct model_module *mod)
{
    uint64_t n = (uint64_t)mod->d_out * (mod->d_in ? mod->d_in : 1);
    return mod->tied ? 0 : n * (mod->n_experts ? mod->n_experts : 1) * (dtype_bits(c->dtype) / 8);
}

static void dummy_modules(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    struct loader *l = arg;
    size_t idx;
    (void)begin;
    (void)end;
    (void)thread_idx;
    while (take_next(l, &idx)) {
        struct err e = {0};
        int rc = dummy_module(l, idx, &e);
        report(l, rc, &e, module_bytes(l->config, &l->modules->items[idx]));
    }
}

int model_load_dummy(struct backend *be, struct device_model *dm, const struct model_config *config,
                     const struct model_modules *modules, uint64_t seed,
                     const struct model_load_options *opt, struct err *err)
{
    struct loader l = {.be = be,
                       .dm = dm,
                       .config = config,
                       .modules = modules,
                       .opt = opt,
                       .seed = seed,
                       .n = modules->n};
    for (size_t i = 0; i < modules->n; i++)
        l.total += module_bytes(config, &modules->items[i]);
    return run(&l, dummy_modules, err);
}
