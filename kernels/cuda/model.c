/* The weights of a model on the card and what an adapter replaces whole. */
#include <string.h>

#include "kernels/cuda/cuda_impl.h"
#include "libcore/base/sys.h"

void cuda_site_shape(const struct model_config *c, enum site site, uint32_t *n_rows,
                     uint32_t *n_cols)
{
    uint32_t q_dim = c->n_heads * c->head_dim, kv_dim = c->n_kv_heads * c->head_dim;
    *n_rows = c->d_model;
    *n_cols = c->d_model;
    if (site == SITE_QKV) {
        *n_rows = q_dim + 2 * kv_dim;
    } else if (site == SITE_O) {
        *n_cols = q_dim;
    } else if (site == SITE_GATE_UP) {
        *n_rows = 2 * c->d_ff;
    } else if (site == SITE_DOWN) {
        *n_cols = c->d_ff;
    } else if (site == SITE_ROUTER) {
        *n_rows = c->n_experts;
    } else if (site == SITE_EXPERTS_GATE_UP) {
        *n_rows = 2 * c->d_expert;
    } else if (site == SITE_EXPERTS_DOWN) {
        *n_cols = c->d_expert;
    } else {
        *n_rows = c->vocab_size;
    }
}

int cuda_layer_site(enum site site)
{
    static const int of[SITE_COUNT] = {
        [SITE_EMBED] = -1,           [SITE_QKV] = 0,           [SITE_O] = 1,
        [SITE_GATE_UP] = 2,          [SITE_DOWN] = 3,          [SITE_ROUTER] = -1,
        [SITE_EXPERTS_GATE_UP] = -1, [SITE_EXPERTS_DOWN] = -1, [SITE_HEAD] = -1};
    return of[site];
}

static const enum site layer_sites[CUDA_LAYER_SITES] = {SITE_QKV, SITE_O, SITE_GATE_UP, SITE_DOWN};

static int allocate_matrix(struct cuda_matrix *m, uint32_t n_rows, uint32_t n_cols, struct err *err)
{
    m->n_rows = n_rows;
    m->n_cols = n_cols;
    return cuda_check(cudaMalloc(&m->data, (size_t)n_rows * n_cols * 2), "memory for weights", err);
}

/* Sites of a layer that have a matrix of their own: with experts, only those of attention. */
static int dense_sites(const struct model_config *c, uint32_t layer)
{
    return c->layers[layer].moe ? 2 : CUDA_LAYER_SITES;
}

static int allocate_layer(struct device_model *m, uint32_t layer, struct err *err)
{
    const struct model_config *c = m->config;
    struct cuda_layer *l = &m->layers[layer];
    uint32_t rows, cols;
    int rc = 0;
    for (int s = 0; rc == 0 && s < dense_sites(c, layer); s++) {
        cuda_site_shape(c, layer_sites[s], &rows, &cols);
        rc = allocate_matrix(&l->sites[s], rows, cols, err);
    }
    if (rc || !c->layers[layer].moe)
        return rc;
    rc = allocate_matrix(&l->router, c->n_experts, c->d_model, err);
    for (int i = 0; rc == 0 && i < 2; i++) {
        cuda_site_shape(c, i ? SITE_EXPERTS_DOWN : SITE_EXPERTS_GATE_UP, &rows, &cols);
        rc = allocate_matrix(&l->experts[i], c->n_experts * rows, cols, err);
    }
    return rc;
}

static int allocate_weights(struct device_model *m, struct err *err)
{
    const struct model_config *c = m->config;
    int rc = allocate_matrix(&m->embed, c->vocab_size, c->d_model, err);
    if (rc == 0 && c->tied_embeddings)
        m->head = m->embed;
    else if (rc == 0)
        rc = allocate_matrix(&m->head, c->vocab_size, c->d_model, err);
    for (uint32_t i = 0; rc == 0 && i < c->n_layers; i++)
        rc = allocate_layer(m, i, err);
    return rc;
}

static int open_staging(struct device_model *m, struct err *err)
{
    for (int i = 0; i < CUDA_STAGING_BLOCKS; i++) {
        int rc =
            cuda_check(cudaHostAlloc(&m->staging[i].host, CUDA_STAGING_BYTES, cudaHostAllocDefault),
                       "pinned memory", err);
        if (rc == 0)
            rc = cuda_check(cudaEventCreateWithFlags(&m->staging[i].done, cudaEventDisableTiming),
                            "an event", err);
        if (rc)
            return rc;
    }
    return 0;
}

int cuda_model_open(struct backend *base, const struct model_config *config,
                    const struct model_modules *modules, const struct step_limits *limits,
                    struct device_model **out, struct err *err)
{
    struct cuda_backend *be = (struct cuda_backend *)base;
    *out = NULL;
    if (!limits->max_rows || !limits->max_sequences || !limits->max_logit_rows ||
        !limits->page_tokens)
        return err_set(err, ERR_LIMIT,
                       "step limits: rows, sequences, logit rows and page tokens must "
                       "not be 0");
    int rc = cuda_choose(base, err);
    struct device_model *m = rc ? NULL : sys_calloc(1, sizeof *m);
    if (!m)
        return rc ? rc : err_set(err, ERR_NO_MEMORY, "no memory for a model");
    m->be = be;
    m->config = config;
    m->modules = modules;
    m->limits = cuda_fixed_limits(be, limits);
    pthread_mutex_init(&m->staging_lock, NULL);
    pthread_mutex_init(&m->load_lock, NULL);
    pthread_cond_init(&m->staging_free, NULL);
    m->layers = sys_calloc(config->n_layers, sizeof *m->layers);
    m->slots = sys_calloc(limits->max_slots + 1, sizeof *m->slots);
    if (!m->layers || !m->slots)
        rc = err_set(err, ERR_NO_MEMORY, "no memory for a model of %u layers", config->n_layers);
    if (rc == 0)
        rc = loaded_init(&m->loaded, modules, err);
    if (rc == 0)
        rc = cuda_check(cudaStreamCreateWithFlags(&m->compute, cudaStreamNonBlocking), "a stream",
                        err);
    if (rc == 0)
        rc =
            cuda_check(cudaStreamCreateWithFlags(&m->copy, cudaStreamNonBlocking), "a stream", err);
    if (rc == 0)
        rc = open_staging(m, err);
    if (rc == 0)
        rc = allocate_weights(m, err);
    if (rc == 0)
        rc = cuda_scratch_open(m, err);
    if (rc == 0)
        rc = lt_open(m, err);
    if (rc == 0)
        rc = cuda_steps_open(m, err);
    if (rc != 0) {
        cuda_model_free(base, m);
        return rc;
    }
    *out = m;
    return 0;
}

static void free_layer(struct cuda_layer *l)
{
    for (int i = 0; i < CUDA_LAYER_SITES; i++) {
        cudaFree(l->sites[i].data);
        cudaFree(l->bias[i]);
    }
    for (int i = 0; i < NORM_COUNT; i++)
        cudaFree(l->norms[i]);
    cudaFree(l->router.data);
    cudaFree(l->experts[0].data);
    cudaFree(l->experts[1].data);
}

void cuda_model_free(struct backend *be, struct device_model *m)
{
    if (!m)
        return;
    (void)cuda_choose(be, NULL); // a card that is lost frees nothing, the host's memory goes anyway
    cudaDeviceSynchronize();
    cuda_steps_free(m);
    for (uint32_t i = 0; m->slots && i < m->limits.max_slots; i++)
        cuda_adapter_unload(be, m, i);
    cuda_pool_free(be, m);
    lt_free(m);
    cuda_scratch_free(m);
    for (uint32_t i = 0; m->layers && i < m->config->n_layers; i++)
        free_layer(&m->layers[i]);
    if (!m->config->tied_embeddings)
        cudaFree(m->head.data);
    cudaFree(m->embed.data);
    cudaFree(m->final_norm);
    for (int i = 0; i < CUDA_STAGING_BLOCKS; i++) {
        if (m->staging[i].done)
            cudaEventDestroy(m->staging[i].done);
        cudaFreeHost(m->staging[i].host);
    }
    if (m->compute)
        cudaStreamDestroy(m->compute);
    if (m->copy)
        cudaStreamDestroy(m->copy);
    pthread_mutex_destroy(&m->staging_lock);
    pthread_mutex_destroy(&m->load_lock);
    pthread_cond_destroy(&m->staging_free);
    loaded_release(&m->loaded);
    sys_free(m->slots);
    sys_free(m->layers);
    sys_free(m);
}

int cuda_model_bytes(struct backend *be, const struct model_config *c,
                     const struct step_limits *limits, uint64_t *weights, uint64_t *scratch,
                     struct err *err)
{
    (void)err;
    struct step_limits raised = cuda_fixed_limits((struct cuda_backend *)be, limits);
    uint64_t n = (uint64_t)c->vocab_size * c->d_model * (c->tied_embeddings ? 1 : 2);
    for (uint32_t i = 0; i < c->n_layers; i++) {
        for (int s = 0; s < dense_sites(c, i); s++) {
            uint32_t rows, cols;
            cuda_site_shape(c, layer_sites[s], &rows, &cols);
            n += (uint64_t)rows * cols;
        }
        if (c->layers[i].moe)
            n += (uint64_t)c->n_experts * c->d_model * (1 + 3ull * c->d_expert);
    }
    *weights = n * 2;
    *scratch = cuda_scratch_bytes(c, &raised);
    return 0;
}

// ---- loading: read or convert into a pinned block, copy, go on with the next block

bool cuda_to_bf16(const struct tensor *src, uint64_t first, uint64_t n, uint16_t *dst)
{
    size_t bytes = dtype_bits(src->dtype) / 8;
    const char *from = (const char *)src->data + first * bytes;
    if (src->dtype == DTYPE_BF16) {
        memcpy(dst, from, n * 2);
        return true;
    }
    float block[1024];
    for (uint64_t i = 0; i < n; i += 1024) {
        size_t k = n - i < 1024 ? (size_t)(n - i) : 1024;
        if (!dtype_to_f32(src->dtype, from + i * bytes, block, k) ||
            !dtype_from_f32(DTYPE_BF16, block, dst + i, k))
            return false;
    }
    return true;
}

/* A block that nobody fills, better one whose copy is over. */
static struct cuda_staging *find_staging(struct device_model *m)
{
    struct cuda_staging *found = NULL;
    for (int i = 0; i < CUDA_STAGING_BLOCKS; i++) {
        struct cuda_staging *s = &m->staging[i];
        if (s->busy)
            continue;
        if (cudaEventQuery(s->done) == cudaSuccess)
            return s;
        if (!found || s->last < found->last)
            found = s;
    }
    return found;
}

static struct cuda_staging *take_staging(struct device_model *m)
{
    struct cuda_staging *s;
    pthread_mutex_lock(&m->staging_lock);
    while (!(s = find_staging(m)))
        pthread_cond_wait(&m->staging_free, &m->staging_lock);
    s->busy = true;
    s->last = ++m->n_staged;
    pthread_mutex_unlock(&m->staging_lock);
    cudaEventSynchronize(s->done);
    return s;
}

static void give_staging(struct device_model *m, struct cuda_staging *s)
{
    pthread_mutex_lock(&m->staging_lock);
    s->busy = false;
    pthread_cond_signal(&m->staging_free);
    pthread_mutex_unlock(&m->staging_lock);
}

/* The next k values of src, from memory or from its file, as bf16 in a pinned block. */
static int fill_staging(const struct tensor *src, const struct weight_source *from, uint64_t at,
                        uint64_t k, uint16_t *to, void *unconverted, struct err *err)
{
    size_t bytes = dtype_bits(src->dtype) / 8;
    bool as_is = src->dtype == DTYPE_BF16;
    struct tensor piece = *src;
    int rc = from ? from->read(from->user, as_is ? (void *)to : unconverted, k * bytes, err) : 0;
    if (rc || (from && as_is))
        return rc;
    if (from) {
        piece.data = unconverted;
        at = 0;
    }
    if (cuda_to_bf16(&piece, at, k, to))
        return 0;
    return err_set(err, ERR_REFUSED, "weights of type %s are not computed on cuda",
                   dtype_name(src->dtype));
}

static int copy_bf16(struct device_model *m, void *to, const struct tensor *src,
                     const struct weight_source *from, struct err *err)
{
    uint64_t n = tensor_n_values(src), per = CUDA_STAGING_BYTES / 2;
    void *unconverted = NULL;
    int rc = cuda_choose(&m->be->base, err);
    if (rc == 0 && from && src->dtype != DTYPE_BF16 &&
        !(unconverted = sys_malloc((n < per ? n : per) * (dtype_bits(src->dtype) / 8) + 1)))
        rc = err_set(err, ERR_NO_MEMORY, "no memory to convert weights");
    for (uint64_t at = 0; rc == 0 && at < n; at += per) {
        uint64_t k = n - at < per ? n - at : per;
        struct cuda_staging *s = take_staging(m);
        rc = fill_staging(src, from, at, k, s->host, unconverted, err);
        if (rc == 0)
            rc = cuda_check(cudaMemcpyAsync((char *)to + at * 2, s->host, k * 2,
                                            cudaMemcpyHostToDevice, m->copy),
                            "copying weights", err);
        if (rc == 0)
            rc = cuda_check(cudaEventRecord(s->done, m->copy), "an event", err);
        give_staging(m, s);
    }
    sys_free(unconverted);
    return rc;
}

int cuda_load_vector(struct device_model *m, float **to, uint32_t n_all, uint32_t row0,
                     const struct tensor *src, struct err *err)
{
    uint64_t n = tensor_n_values(src);
    if (row0 + n > n_all)
        return err_set(err, ERR_INTERNAL, "weight_load: vector does not fit its place");
    float *host = sys_malloc(n * sizeof *host + 1);
    if (!host)
        return err_set(err, ERR_NO_MEMORY, "no memory for a vector of %u", n_all);
    int rc = cuda_choose(&m->be->base, err);
    if (rc == 0 && !dtype_to_f32(src->dtype, src->data, host, n))
        rc = err_set(err, ERR_REFUSED, "weights of type %s are not computed on cuda",
                     dtype_name(src->dtype));
    pthread_mutex_lock(&m->load_lock);
    if (rc == 0 && !*to)
        rc = cuda_check(cudaMalloc((void **)to, n_all * sizeof **to), "memory for a vector", err);
    pthread_mutex_unlock(&m->load_lock);
    if (rc == 0)
        rc = cuda_check(cudaMemcpy(*to + row0, host, n * sizeof *host, cudaMemcpyHostToDevice),
                        "copying a vector", err);
    sys_free(host);
    return rc;
}

struct cuda_matrix *cuda_site_matrix(struct device_model *m, enum site site, uint32_t layer)
{
    struct cuda_layer *l = &m->layers[layer];
    int s = cuda_layer_site(site);
    if (s >= 0)
        return &l->sites[s];
    if (site == SITE_EXPERTS_GATE_UP || site == SITE_EXPERTS_DOWN)
        return &l->experts[site == SITE_EXPERTS_DOWN];
    return site == SITE_ROUTER ? &l->router : site == SITE_EMBED ? &m->embed : &m->head;
}

/* A matrix or rows of one; experts: one of them or rows of it, or all at once in three dimensions.
 */
static int load_matrix(struct device_model *m, const struct weight_place *p,
                       const struct tensor *src, const struct weight_source *from, struct err *err)
{
    struct cuda_matrix *to = cuda_site_matrix(m, p->site, p->layer);
    uint32_t rows, cols, at = p->row0;
    cuda_site_shape(m->config, p->site, &rows, &cols);
    bool all = src->n_dims == 3;
    uint64_t n_rows = all ? src->shape[0] * src->shape[1] : src->shape[0];
    if (p->expert > 0)
        at += (uint32_t)p->expert * rows;
    if (!to->data || src->n_dims < 2 || src->n_dims > 3 || src->shape[src->n_dims - 1] != cols ||
        (all && (n_rows != to->n_rows || at != 0)) || n_rows + at > to->n_rows)
        return err_set(err, ERR_INTERNAL, "weight_load: shape does not fit its place");
    return copy_bf16(m, (char *)to->data + (size_t)at * cols * 2, src, from, err);
}

static int load_small(struct device_model *m, const struct weight_place *p,
                      const struct tensor *src, struct err *err)
{
    struct cuda_layer *l = &m->layers[p->layer];
    uint32_t rows = (uint32_t)tensor_n_values(src), cols;
    if (p->kind == WEIGHT_BIAS) {
        cuda_site_shape(m->config, p->site, &rows, &cols);
        return cuda_load_vector(m, &l->bias[cuda_layer_site(p->site)], rows, p->row0, src, err);
    }
    float **to = p->norm == NORM_FINAL ? &m->final_norm : &l->norms[p->norm];
    return cuda_load_vector(m, to, rows, 0, src, err);
}

/* A norm or a bias whose bytes are still in the file. */
static int read_small(struct device_model *m, const struct weight_place *p,
                      const struct tensor *src, const struct weight_source *from, struct err *err)
{
    size_t n = tensor_n_bytes(src);
    void *bytes = sys_malloc(n + 1);
    struct tensor whole = *src;
    whole.data = bytes;
    int rc = bytes ? from->read(from->user, bytes, n, err)
                   : err_set(err, ERR_NO_MEMORY, "no memory for a vector of %zu bytes", n);
    rc = rc ? rc : load_small(m, p, &whole, err);
    sys_free(bytes);
    return rc;
}

int cuda_weight_read(struct backend *be, struct device_model *m, const struct weight_place *p,
                     const struct tensor *src, const struct weight_source *from, struct err *err)
{
    (void)be;
    if (p->layer >= m->config->n_layers)
        return err_set(err, ERR_INTERNAL, "weight_load: layer %u of %u", p->layer,
                       m->config->n_layers);
    int rc = p->kind == WEIGHT_MATRIX ? load_matrix(m, p, src, from, err)
             : from                   ? read_small(m, p, src, from, err)
                                      : load_small(m, p, src, err);
    if (rc == 0)
        loaded_note(&m->loaded, p, src);
    return rc;
}

int cuda_weight_load(struct backend *be, struct device_model *m, const struct weight_place *p,
                     const struct tensor *src, struct err *err)
{
    return cuda_weight_read(be, m, p, src, NULL, err);
}

int cuda_model_ready(struct backend *be, struct device_model *m, struct err *err)
{
    int rc = loaded_check(&m->loaded, err);
    rc = rc ? rc : cuda_choose(be, err);
    rc = rc ? rc : cuda_check(cudaStreamSynchronize(m->copy), "loading weights", err);
    return rc ? rc : lt_tune(m, err);
}

// ---- replacements

int cuda_replacement_load(struct backend *be, struct device_model *m, const struct bound_part *part,
                          struct device_weight **out, uint64_t *n_bytes, struct err *err)
{
    const struct tensor *full = &part->module->full;
    *out = NULL;
    *n_bytes = 0;
    if (full->n_dims < 1 || full->n_dims > 2)
        return err_set(err, ERR_REFUSED, "%s: a replacement with %u dimensions", part->module->name,
                       full->n_dims);
    const struct model_module *target = part->target;
    bool grows = target->place.kind == WEIGHT_MATRIX &&
                 (target->place.site == SITE_EMBED || target->place.site == SITE_HEAD);
    uint64_t most = grows ? m->max_vocab : target->d_out;
    if (full->shape[0] < target->d_out || full->shape[0] > most ||
        (full->n_dims == 2 ? full->shape[1] : 0) != target->d_in)
        return err_set(err, ERR_REFUSED, "%s: a replacement of %llu rows, want %u to %llu",
                       part->module->name, (unsigned long long)full->shape[0], target->d_out,
                       (unsigned long long)most);
    struct device_weight *w = sys_calloc(1, sizeof *w);
    if (!w)
        return err_set(err, ERR_NO_MEMORY, "no memory for a replacement");
    int rc = cuda_choose(be, err);
    if (rc == 0 && full->n_dims == 1) {
        w->n = (uint32_t)full->shape[0];
        rc = cuda_load_vector(m, &w->vector, w->n, 0, full, err);
        *n_bytes = w->n * sizeof *w->vector;
    } else if (rc == 0) {
        rc = allocate_matrix(&w->matrix, (uint32_t)full->shape[0], (uint32_t)full->shape[1], err);
        if (rc == 0)
            rc = copy_bf16(m, w->matrix.data, full, NULL, err);
        if (rc == 0)
            rc = cuda_check(cudaStreamSynchronize(m->copy), "loading a replacement", err);
        *n_bytes = (uint64_t)w->matrix.n_rows * w->matrix.n_cols * 2;
    }
    if (rc != 0) {
        cuda_replacement_free(be, w);
        return rc;
    }
    *out = w;
    return 0;
}

void cuda_replacement_free(struct backend *be, struct device_weight *w)
{
    if (!w)
        return;
    (void)cuda_choose(be, NULL);
    cudaFree(w->matrix.data);
    cudaFree(w->vector);
    sys_free(w);
}
