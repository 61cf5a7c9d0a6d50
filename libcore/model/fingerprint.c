#include "libcore/model/fingerprint.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"
#include "libcore/model/float8.h"

enum { SAMPLES = 16, SAMPLE_BYTES = 4096 };

/* A checkpoint tensor and where it belongs; several make one weight when experts lie one by one. */
struct piece {
    const struct model_module *module;
    bool bias;
    uint64_t offset; // bytes into the canonical weight
    const struct checkpoint_tensor *tensor;
};

/* Samples are read with pread, not through the mapping: a fault in a cold mapping reads ahead, and
 * 4,600 samples would then read a good part of the file. */
struct files {
    const struct checkpoint *c;
    int *fds; // one a shard, -1: not open
};

/* ---- pieces ---- */

static int compare_pieces(const void *a, const void *b)
{
    const struct piece *x = a, *y = b;
    int order = strcmp(x->module->name, y->module->name);
    if (!order)
        order = strcmp(x->module->parameter, y->module->parameter);
    if (!order)
        order = (int)x->bias - (int)y->bias;
    if (order)
        return order;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Whether the tensor's shape is n_rows x n_cols (1-D: n_cols 0), or that of all experts. */
static bool shape_fits(const struct tensor *t, const struct piece *p, int32_t expert,
                       uint32_t n_rows, uint32_t n_cols)
{
    if (!p->bias && p->module->n_experts && expert < 0) {
        uint64_t all[LIMIT_TENSOR_DIMS] = {p->module->n_experts, p->module->d_out, p->module->d_in};
        return tensor_has_shape(t, 3, all);
    }
    uint64_t shape[LIMIT_TENSOR_DIMS] = {n_rows, n_cols};
    return tensor_has_shape(t, n_cols ? 2 : 1, shape);
}

/* Fills *p from a tensor; *use is false for what is no weight of the model, or a tied head. */
static int place(const struct model_modules *m, const struct checkpoint_tensor *t, struct piece *p,
                 bool *use, struct err *err)
{
    struct weight_place where;
    uint32_t n_rows, n_cols;
    *use = false;
    int rc = modules_place_tensor(m, t->name, &p->module, &where, &n_rows, &n_cols, err);
    if (rc == ERR_NOT_FOUND) // what a checkpoint has beside the model is no part of its identity
        return 0;
    if (rc || p->module->tied)
        return rc;
    p->tensor = t;
    p->bias = where.kind == WEIGHT_BIAS;
    p->offset = 0;
    if (where.expert >= 0 && !p->bias) {
        uint64_t row = (uint64_t)p->module->d_in * dtype_bits(t->value.dtype) / 8;
        p->offset = ((uint64_t)where.expert * p->module->d_out + where.row0) * row;
    }
    if (!shape_fits(&t->value, p, where.expert, n_rows, n_cols)) {
        char got[96];
        return err_set(err, ERR_REFUSED, "%s: %s, the configuration wants [%u, %u]", t->name,
                       tensor_shape_text(&t->value, got, sizeof got), n_rows, n_cols);
    }
    *use = true;
    return 0;
}

static int collect(const struct checkpoint *c, const struct model_modules *m, struct piece **out,
                   size_t *n, struct err *err)
{
    struct piece *pieces = sys_reallocarray(NULL, checkpoint_count(c) + 1, sizeof *pieces);
    *out = pieces;
    *n = 0;
    if (!pieces)
        return err_set(err, ERR_NO_MEMORY, "fingerprint: no memory");
    for (size_t i = 0; i < checkpoint_count(c); i++) {
        bool use;
        int rc = place(m, checkpoint_at(c, i), &pieces[*n], &use, err);
        if (rc)
            return rc;
        *n += use;
    }
    qsort(pieces, *n, sizeof *pieces, compare_pieces);
    return 0;
}

/* ---- one weight ---- */

static int open_files(struct files *f, const struct checkpoint *c, struct err *err)
{
    size_t n = checkpoint_n_shards(c);
    f->c = c;
    f->fds = sys_reallocarray(NULL, n + 1, sizeof *f->fds);
    if (!f->fds)
        return err_set(err, ERR_NO_MEMORY, "fingerprint: no memory");
    for (size_t i = 0; i < n; i++)
        f->fds[i] = -1;
    for (size_t i = 0; i < n; i++) {
        const char *path = safetensors_path(checkpoint_shard(c, i));
        f->fds[i] = sys_open(path, O_RDONLY, 0);
        if (f->fds[i] < 0)
            return err_set_errno(err, errno, "%s: cannot open", path);
    }
    return 0;
}

static void close_files(struct files *f)
{
    for (size_t i = 0; f->fds && i < checkpoint_n_shards(f->c); i++) {
        if (f->fds[i] >= 0)
            sys_close(f->fds[i]);
    }
    sys_free(f->fds);
}

/* Bytes [offset, offset + n) of a checkpoint tensor into the hash. */
static int hash_bytes(struct digest_state *s, const struct files *f,
                      const struct checkpoint_tensor *t, uint64_t offset, uint64_t n,
                      struct err *err)
{
    const struct safetensors *shard = checkpoint_shard(f->c, t->shard_idx);
    const struct safetensors_entry *e = safetensors_find(shard, t->name);
    uint64_t at = safetensors_data_offset(shard) + e->begin + offset;
    unsigned char buf[SAMPLE_BYTES];
    for (int rc; n; at += sizeof buf) {
        size_t take = n < sizeof buf ? (size_t)n : sizeof buf;
        rc = file_pread_all(f->fds[t->shard_idx], buf, take, at, safetensors_path(shard), err);
        if (!rc)
            rc = digest_update(s, buf, take, err);
        if (rc)
            return rc;
        n -= take;
    }
    return 0;
}

/* Bytes [offset, offset + n) of the weight that the pieces make up together. */
static int hash_range(struct digest_state *s, const struct files *f, const struct piece *pieces,
                      size_t n_pieces, uint64_t offset, uint64_t n, struct err *err)
{
    for (size_t i = 0; i < n_pieces && n; i++) {
        uint64_t begin = pieces[i].offset, size = tensor_n_bytes(&pieces[i].tensor->value);
        if (offset < begin || offset >= begin + size)
            continue;
        uint64_t take = begin + size - offset < n ? begin + size - offset : n;
        int rc = hash_bytes(s, f, pieces[i].tensor, offset - begin, take, err);
        if (rc)
            return rc;
        offset += take;
        n -= take;
    }
    return n ? err_set(err, ERR_INTERNAL, "fingerprint: %s has a hole", pieces->module->name) : 0;
}

static int hash_weight(const struct files *f, const struct piece *pieces, size_t n_pieces,
                       uint64_t total, struct digest *out, struct err *err)
{
    struct digest_state *s;
    int rc = digest_open(&s, err);
    if (rc)
        return rc;
    if (pieces->tensor->value.n_dims == 1 || total <= SAMPLES * SAMPLE_BYTES) {
        rc = hash_range(s, f, pieces, n_pieces, 0, total, err);
    } else {
        for (uint64_t i = 0; i < SAMPLES && !rc; i++)
            rc = hash_range(s, f, pieces, n_pieces, (total - SAMPLE_BYTES) * i / (SAMPLES - 1),
                            SAMPLE_BYTES, err);
    }
    if (!rc)
        rc = digest_final(s, out, err);
    digest_free(s);
    return rc;
}

/* The pieces must tile the weight, in one type. */
static int check_tiling(const struct piece *pieces, size_t n_pieces, uint64_t total,
                        struct err *err)
{
    uint64_t at = 0;
    for (size_t i = 0; i < n_pieces; i++) {
        const struct checkpoint_tensor *t = pieces[i].tensor;
        if (t->value.dtype != pieces->tensor->value.dtype || pieces[i].offset != at)
            return err_set(err, ERR_REFUSED,
                           "%s: a part of %s is missing, doubled or of another "
                           "type",
                           t->name, pieces->module->name);
        at += tensor_n_bytes(&t->value);
    }
    if (at == total)
        return 0;
    return err_set(err, ERR_REFUSED, "%s.%s: parts of it are missing in the checkpoint",
                   pieces->module->name, pieces->module->parameter);
}

static int add_weight(struct strbuf *sb, const struct files *f, const struct piece *pieces,
                      size_t n_pieces, struct err *err)
{
    const struct model_module *m = pieces->module;
    enum dtype dtype = pieces->tensor->value.dtype;
    uint64_t n = m->d_out;
    if (!pieces->bias)
        n *= (m->d_in ? (uint64_t)m->d_in : 1) * (m->n_experts ? m->n_experts : 1);
    uint64_t total = n * dtype_bits(dtype) / 8;
    struct digest d;
    char hex[DIGEST_HEX_CHARS + 1];
    int rc = check_tiling(pieces, n_pieces, total, err);
    if (!rc)
        rc = hash_weight(f, pieces, n_pieces, total, &d, err);
    if (rc)
        return rc;
    digest_hex(&d, hex);
    strbuf_addf(sb, "tensor %s.%s %s [", m->name, pieces->bias ? "bias" : m->parameter,
                dtype_name(dtype));
    if (!pieces->bias && m->n_experts)
        strbuf_addf(sb, "%u,", m->n_experts);
    strbuf_addf(sb, "%u", m->d_out);
    if (!pieces->bias && m->d_in)
        strbuf_addf(sb, ",%u", m->d_in);
    strbuf_addf(sb, "] %s\n", hex);
    return 0;
}

/* ---- the record ---- */

static void add_rope(struct strbuf *sb, const struct model_config *c, const struct rope_config *r)
{
    strbuf_addf(sb, "rope %d %.17g %.17g %.17g %.17g %u %.17g %.17g %.17g %.17g %.17g %d",
                (int)r->type, r->theta, r->factor, r->low_freq_factor, r->high_freq_factor,
                r->original_max_positions, r->beta_fast, r->beta_slow, r->mscale, r->mscale_all_dim,
                r->attention_factor, r->yarn_truncate);
    for (uint32_t i = 0; r->short_factor && i < c->rotary_dim / 2; i++)
        strbuf_addf(sb, " %.17g %.17g", r->short_factor[i], r->long_factor[i]);
    strbuf_addc(sb, '\n');
}

static void add_config(struct strbuf *sb, const struct model_config *c)
{
    strbuf_addf(sb,
                "config %s vocab=%u d_model=%u layers=%u heads=%u kv_heads=%u head_dim=%u d_ff=%u "
                "rotary=%u eps=%.17g act=%d attention_scale=%.17g embed_scale=%.17g softcap=%.17g,"
                "%.17g tied=%d bias=%d%d%d qk_norm=%d post_norms=%d norm_plus_one=%d experts=%u,%u,"
                "%u,%d\n",
                config_arch_name(c->arch), c->vocab_size, c->d_model, c->n_layers, c->n_heads,
                c->n_kv_heads, c->head_dim, c->d_ff, c->rotary_dim, c->rms_eps, (int)c->activation,
                c->attention_scale, c->embed_scale, c->logit_softcap, c->attention_softcap,
                c->tied_embeddings, c->qkv_bias, c->o_bias, c->mlp_bias, c->qk_norm, c->post_norms,
                c->norm_plus_one, c->n_experts, c->n_experts_used, c->d_expert, c->norm_topk);
    add_rope(sb, c, &c->rope[0]);
    add_rope(sb, c, &c->rope[1]);
    for (uint32_t i = 0; i < c->n_layers; i++)
        strbuf_addf(sb, "%s%u/%u/%d", i ? " " : "layers ", c->layers[i].window,
                    c->layers[i].rope_idx, c->layers[i].moe);
    strbuf_addc(sb, '\n');
}

static bool same_weight(const struct piece *a, const struct piece *b)
{
    return a->module == b->module && a->bias == b->bias;
}

/* Every weight that the model needs must have been met. */
static int check_complete(const struct model_modules *m, size_t n_weights, const struct piece *p,
                          size_t n, struct err *err)
{
    size_t wanted = 0;
    for (size_t i = 0; i < m->n; i++)
        wanted += m->items[i].tied ? 0 : 1U + m->items[i].has_bias;
    if (wanted == n_weights)
        return 0;
    for (size_t i = 0; i < m->n; i++) {
        const struct model_module *item = &m->items[i];
        bool weight = item->tied, bias = item->tied || !item->has_bias;
        for (size_t k = 0; k < n; k++) {
            weight |= p[k].module == item && !p[k].bias;
            bias |= p[k].module == item && p[k].bias;
        }
        if (!weight || !bias)
            return err_set(err, ERR_REFUSED, "%s.%s: the checkpoint has no such tensor", item->name,
                           weight ? "bias" : item->parameter);
    }
    return err_set(err, ERR_INTERNAL, "fingerprint: %zu weights, wanted %zu", n_weights, wanted);
}

int fingerprint_compute(const struct checkpoint *c, const struct model_modules *m,
                        const struct model_config *config, char hex[DIGEST_HEX_CHARS + 1],
                        struct err *err)
{
    struct piece *pieces;
    size_t n, n_weights = 0;
    struct strbuf sb;
    struct digest d;
    strbuf_init(&sb);
    strbuf_adds(&sb, "lora-base-fingerprint 1\n");
    add_config(&sb, config);
    struct files files = {0};
    int rc = collect(c, m, &pieces, &n, err);
    if (!rc)
        rc = open_files(&files, c, err);
    for (size_t begin = 0, end; !rc && begin < n; begin = end, n_weights++) {
        end = begin + 1;
        while (end < n && same_weight(&pieces[begin], &pieces[end]))
            end++;
        rc = add_weight(&sb, &files, pieces + begin, end - begin, err);
    }
    if (!rc)
        rc = check_complete(m, n_weights, pieces, n, err);
    if (!rc && sb.failed)
        rc = err_set(err, ERR_NO_MEMORY, "fingerprint: no memory");
    if (!rc)
        rc = digest_buffer(sb.data, sb.len, &d, err);
    if (!rc)
        digest_hex(&d, hex);
    strbuf_release(&sb);
    close_files(&files);
    sys_free(pieces);
    return rc;
}

int fingerprint_of_folder(const char *folder, char hex[DIGEST_HEX_CHARS + 1], struct err *err)
{
    struct model_config config;
    struct model_modules *m = NULL;
    struct checkpoint *c = NULL;
    struct float8_config float8;
    int rc = config_read_stored(&config, &float8, folder, err);
    if (rc)
        return rc;
    rc = modules_open(&m, &config, err);
    if (!rc)
        rc = checkpoint_open(&c, folder, err);
    if (!rc)
        rc = fingerprint_compute(c, m, &config, hex, err);
    checkpoint_free(c);
    modules_free(m);
    config_release(&config);
    return rc;
}

/* ---- digests of everything ---- */

struct digest_job {
    const struct checkpoint *c;
    struct digest *out;
    struct err *errs; // one a thread
};

static void digest_tensors(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    struct digest_job *job = arg;
    struct err *err = &job->errs[thread_idx];
    for (size_t i = begin; i < end && !err->code; i++) {
        const struct tensor *t = &checkpoint_at(job->c, i)->value;
        digest_buffer(t->data, tensor_n_bytes(t), &job->out[i], err);
    }
}

int fingerprint_tensors(const struct checkpoint *c, unsigned n_threads, struct digest *out,
                        struct err *err)
{
    struct worker_pool *pool;
    int rc = worker_pool_open(&pool, n_threads, err);
    if (rc)
        return rc;
    unsigned n = worker_pool_size(pool);
    struct digest_job job = {c, out, sys_calloc(n, sizeof(struct err))};
    if (!job.errs)
        rc = err_set(err, ERR_NO_MEMORY, "fingerprint: no memory");
    else
        worker_pool_run(pool, checkpoint_count(c), 1, digest_tensors, &job);
    for (unsigned i = 0; job.errs && i < n && !rc; i++) {
        rc = job.errs[i].code;
        if (rc && err)
            *err = job.errs[i];
    }
    worker_pool_free(pool);
    sys_free(job.errs);
    return rc;
}
