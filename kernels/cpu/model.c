/* The weights of a model on the CPU, its pool, and what an adapter replaces whole. */
#include <string.h>
#include <sys/mman.h>

#include "kernels/cpu/cpu_impl.h"
#include "libcore/base/limits.h"
#include "libcore/base/sys.h"

void cpu_site_shape(const struct model_config *c, enum site site, uint32_t *n_rows,
                    uint32_t *n_cols)
{
    uint32_t q_dim = c->n_heads * c->head_dim, kv_dim = c->n_kv_heads * c->head_dim;
    *n_cols = c->d_model;
    switch (site) {
    case SITE_QKV:
        *n_rows = q_dim + 2 * kv_dim;
        return;
    case SITE_O:
        *n_rows = c->d_model;
        *n_cols = q_dim;
        return;
    case SITE_GATE_UP:
        *n_rows = 2 * c->d_ff;
        return;
    case SITE_DOWN:
        *n_rows = c->d_model;
        *n_cols = c->d_ff;
        return;
    case SITE_ROUTER:
        *n_rows = c->n_experts;
        return;
    case SITE_EXPERTS_GATE_UP:
        *n_rows = 2 * c->d_expert;
        return;
    case SITE_EXPERTS_DOWN:
        *n_rows = c->d_model;
        *n_cols = c->d_expert;
        return;
    default:
        *n_rows = c->vocab_size;
        return;
    }
}

const struct cpu_matrix *cpu_site_matrix(const struct device_model *m, uint32_t layer,
                                         enum site site)
{
    if (site == SITE_HEAD)
        return m->config->tied_embeddings ? &m->embed : &m->head;
    return site == SITE_EMBED ? &m->embed : &m->layers[layer].sites[site];
}

static void shape_matrix(const struct model_config *c, enum site site, struct cpu_matrix *m)
{
    m->panels = site != SITE_EMBED || c->tied_embeddings;
    cpu_site_shape(c, site, &m->n_rows, &m->n_cols);
}

static int open_layer(struct device_model *m, uint32_t layer, struct err *err)
{
    const struct model_config *c = m->config;
    struct cpu_layer *l = &m->layers[layer];
    for (int site = SITE_QKV; site <= SITE_ROUTER; site++)
        shape_matrix(c, (enum site)site, &l->sites[site]);
    if (!c->layers[layer].moe)
        return 0;
    for (int i = 0; i < 2; i++) {
        l->experts[i] = sys_calloc(c->n_experts, sizeof *l->experts[i]);
        if (!l->experts[i])
            return err_set(err, ERR_NO_MEMORY, "no memory for %u experts", c->n_experts);
        for (uint32_t e = 0; e < c->n_experts; e++)
            shape_matrix(c, i == 0 ? SITE_EXPERTS_GATE_UP : SITE_EXPERTS_DOWN, &l->experts[i][e]);
    }
    return 0;
}

static int open_rope(struct device_model *m, struct err *err)
{
    const struct model_config *c = m->config;
    bool two = false;
    for (uint32_t i = 0; i < c->n_layers; i++)
        two |= c->layers[i].rope_idx == 1;
    m->n_ropes = two ? 2 : 1;
    m->n_regimes = 2;
    for (unsigned rope = 0; rope < m->n_ropes; rope++) {
        for (unsigned regime = 0; regime < m->n_regimes; regime++) {
            float *table = sys_calloc(c->rotary_dim / 2 + 1, sizeof *table);
            if (!table)
                return err_set(err, ERR_NO_MEMORY, "no memory for the rotary tables");
            m->inv_freq[rope][regime] = table;
            if (regime == 0 || c->rope[rope].type == ROPE_LONGROPE)
                config_rope_table(c, rope, regime, table, &m->rope_scale[rope][regime]);
        }
    }
    return 0;
}

static uint64_t page_bytes_of(const struct model_config *c, const struct step_limits *l)
{
    return (uint64_t)c->n_layers * 2 * c->n_kv_heads * l->page_tokens * c->head_dim * 4;
}

static int check_limits(const struct model_config *c, const struct step_limits *l, struct err *err)
{
    if (l->max_rows == 0 || l->max_sequences == 0 || l->max_logit_rows == 0 || l->page_tokens == 0)
        return err_set(err, ERR_LIMIT,
                       "step limits: rows, sequences, logit rows and page tokens "
                       "must not be 0");
    if (l->max_rows > LIMIT_STEP_TOKENS || l->max_sequences > LIMIT_SEQUENCES)
        return err_set(err, ERR_LIMIT, "step limits: %u rows and %u sequences, at most %d and %d",
                       l->max_rows, l->max_sequences, LIMIT_STEP_TOKENS, LIMIT_SEQUENCES);
    if (page_bytes_of(c, l) > BACKEND_CHUNK_BYTES)
        return err_set(err, ERR_LIMIT,
                       "page of %u tokens takes %llu bytes, a chunk holds %d: choose fewer tokens",
                       l->page_tokens, (unsigned long long)page_bytes_of(c, l),
                       BACKEND_CHUNK_BYTES);
    return 0;
}

int cpu_model_open(struct backend *base, const struct model_config *config,
                   const struct model_modules *modules, const struct step_limits *limits,
                   struct device_model **out, struct err *err)
{
    struct cpu_backend *be = (struct cpu_backend *)base;
    *out = NULL;
    int rc = check_limits(config, limits, err);
    if (rc != 0)
        return rc;
    struct device_model *m = sys_calloc(1, sizeof *m);
    if (!m)
        return err_set(err, ERR_NO_MEMORY, "no memory for a model");
    m->be = be;
    m->isa = be->isa;
    m->config = config;
    m->modules = modules;
    m->limits = *limits;
    m->kv_dim = config->n_kv_heads * config->head_dim;
    m->qkv_rows = config->n_heads * config->head_dim + 2 * m->kv_dim;
    m->max_vocab = config->vocab_size + LIMIT_ADDED_TOKENS;
    m->vocab_stride = (m->max_vocab + 15) / 16 * 16;
    m->page_bytes = page_bytes_of(config, limits);
    m->pages_per_chunk = (uint32_t)(BACKEND_CHUNK_BYTES / m->page_bytes);
    pthread_rwlock_init(&m->load_lock, NULL);
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->changed, NULL);
    shape_matrix(config, SITE_EMBED, &m->embed);
    shape_matrix(config, SITE_HEAD, &m->head);
    m->layers = sys_calloc(config->n_layers, sizeof *m->layers);
    m->slots = sys_calloc(limits->max_slots + 1, sizeof *m->slots);
    if (!m->layers || !m->slots)
        rc = err_set(err, ERR_NO_MEMORY, "no memory for a model of %u layers", config->n_layers);
    if (rc == 0)
        rc = loaded_init(&m->loaded, modules, err);
    for (uint32_t i = 0; rc == 0 && i < config->n_layers; i++)
        rc = open_layer(m, i, err);
    if (rc == 0)
        rc = open_rope(m, err);
    if (rc == 0)
        rc = worker_pool_open(&m->pool, be->n_threads, err);
    if (rc == 0)
        rc = cpu_scratch_open(m, err);
    if (rc == 0)
        rc = cpu_steps_open(m, err);
    if (rc != 0) {
        cpu_model_free(base, m);
        return rc;
    }
    *out = m;
    return 0;
}

static void release_layer(const struct model_config *c, struct cpu_layer *l)
{
    for (int i = 0; i < SITE_COUNT; i++) {
        cpu_matrix_release(&l->sites[i]);
        sys_free(l->bias[i]);
    }
    for (int i = 0; i < NORM_COUNT; i++)
        sys_free(l->norms[i]);
    for (int i = 0; i < 2; i++) {
        for (uint32_t e = 0; l->experts[i] && e < c->n_experts; e++)
            cpu_matrix_release(&l->experts[i][e]);
        sys_free(l->experts[i]);
    }
}

void cpu_model_free(struct backend *be, struct device_model *m)
{
    if (!m)
        return;
    cpu_steps_free(m);
    for (uint32_t i = 0; m->slots && i < m->limits.max_slots; i++)
        cpu_adapter_unload(be, m, i);
    cpu_pool_free(be, m);
    cpu_scratch_free(m);
    for (uint32_t i = 0; m->layers && i < m->config->n_layers; i++)
        release_layer(m->config, &m->layers[i]);
    cpu_matrix_release(&m->embed);
    cpu_matrix_release(&m->head);
    for (int i = 0; i < 4; i++)
        sys_free(m->inv_freq[i / 2][i % 2]);
    worker_pool_free(m->pool);
    pthread_rwlock_destroy(&m->load_lock);
    pthread_mutex_destroy(&m->lock);
    pthread_cond_destroy(&m->changed);
    sys_free(m->final_norm);
    loaded_release(&m->loaded);
    sys_free(m->slots);
    sys_free(m->layers);
    sys_free(m);
}

static uint64_t site_bytes(const struct model_config *c, enum site site, enum dtype t)
{
    struct cpu_matrix m = {0};
    shape_matrix(c, site, &m);
    return ((uint64_t)m.n_rows + ISA_PANEL - 1) / ISA_PANEL * isa_panel_bytes(t, m.n_cols);
}

int cpu_model_bytes(struct backend *be, const struct model_config *c,
                    const struct step_limits *limits, uint64_t *weights, uint64_t *scratch,
                    struct err *err)
{
    (void)err;
    enum dtype t = cpu_matrix_dtype(c->dtype);
    if (t == DTYPE_NONE)
        t = DTYPE_F32;
    *weights = site_bytes(c, SITE_EMBED, t);
    if (!c->tied_embeddings)
        *weights += site_bytes(c, SITE_HEAD, t);
    for (uint32_t i = 0; i < c->n_layers; i++) {
        *weights += site_bytes(c, SITE_QKV, t) + site_bytes(c, SITE_O, t);
        if (c->layers[i].moe)
            *weights += site_bytes(c, SITE_ROUTER, t) +
                        c->n_experts * (site_bytes(c, SITE_EXPERTS_GATE_UP, t) +
                                        site_bytes(c, SITE_EXPERTS_DOWN, t));
        else
            *weights += site_bytes(c, SITE_GATE_UP, t) + site_bytes(c, SITE_DOWN, t);
    }
    *scratch = cpu_scratch_bytes(c, limits, ((struct cpu_backend *)be)->n_threads);
    return 0;
}

// ---- loading
// -------------------------------------------------------------------------------------

static struct cpu_matrix *place_matrix(struct device_model *m, const struct weight_place *p,
                                       uint32_t expert)
{
    struct cpu_layer *l = &m->layers[p->layer];
    switch (p->site) {
    case SITE_EMBED:
        return &m->embed;
    case SITE_HEAD:
        return &m->head;
    case SITE_EXPERTS_GATE_UP:
    case SITE_EXPERTS_DOWN:
        return l->experts[0] ? &l->experts[p->site == SITE_EXPERTS_DOWN][expert] : NULL;
    default:
        return &l->sites[p->site];
    }
}

static int load_rows(struct device_model *m, struct cpu_matrix *to, uint32_t row0,
                     const struct tensor *src, struct err *err)
{
    if (!to || src->n_dims != 2 || src->shape[1] != to->n_cols || src->shape[0] + row0 > to->n_rows)
        return err_set(err, ERR_INTERNAL, "weight_load: shape does not fit its place");
    enum dtype t = cpu_matrix_dtype(src->dtype);
    if (t == DTYPE_NONE)
        return err_set(err, ERR_REFUSED, "weights of type %s are not computed here",
                       dtype_name(src->dtype));
    int rc = 0;
    pthread_rwlock_rdlock(&m->load_lock);
    if (!to->data || src->dtype != to->dtype) {
        pthread_rwlock_unlock(&m->load_lock);
        pthread_rwlock_wrlock(&m->load_lock);
        if (!to->data)
            rc = cpu_matrix_allocate(to, t, err);
    }
    if (rc == 0)
        rc = cpu_matrix_load(to, row0, src, err);
    pthread_rwlock_unlock(&m->load_lock);
    return rc;
}

static int load_matrix(struct device_model *m, const struct weight_place *place,
                       const struct tensor *src, struct err *err)
{
    if (src->n_dims != 3)
        return load_rows(m, place_matrix(m, place, place->expert < 0 ? 0 : (uint32_t)place->expert),
                         place->row0, src, err);
    struct tensor one = *src;
    one.n_dims = 2;
    one.shape[0] = src->shape[1];
    one.shape[1] = src->shape[2];
    if (src->shape[0] != m->config->n_experts)
        return err_set(err, ERR_INTERNAL, "weight_load: not all experts");
    for (uint32_t e = 0; e < m->config->n_experts; e++) {
        one.data = tensor_row(src, e);
        int rc = load_rows(m, place_matrix(m, place, e), place->row0, &one, err);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* A vector in float32 at *to + row0, allocated (zeroed) when it is not there yet. */
static int load_vector(struct device_model *m, float **to, uint32_t n_all, uint32_t row0,
                       const struct tensor *src, float plus, struct err *err)
{
    uint64_t n = tensor_n_values(src);
    if (row0 + n > n_all)
        return err_set(err, ERR_INTERNAL, "weight_load: vector does not fit its place");
    pthread_rwlock_wrlock(&m->load_lock);
    if (!*to)
        *to = sys_calloc(n_all, sizeof **to);
    float *v = *to;
    pthread_rwlock_unlock(&m->load_lock);
    if (!v)
        return err_set(err, ERR_NO_MEMORY, "no memory for a vector of %u", n_all);
    if (!dtype_to_f32(src->dtype, src->data, v + row0, n))
        return err_set(err, ERR_REFUSED, "weights of type %s are not computed here",
                       dtype_name(src->dtype));
    for (uint64_t i = 0; plus != 0 && i < n; i++)
        v[row0 + i] += plus;
    return 0;
}

static float norm_plus(const struct model_config *c)
{
    return c->norm_plus_one ? 1.0f : 0.0f;
}

int cpu_weight_load(struct backend *be, struct device_model *m, const struct weight_place *place,
                    const struct tensor *src, struct err *err)
{
    (void)be;
    const struct model_config *c = m->config;
    uint32_t rows, cols;
    int rc;
    if (place->layer >= c->n_layers)
        return err_set(err, ERR_INTERNAL, "weight_load: layer %u of %u", place->layer, c->n_layers);
    if (place->kind == WEIGHT_MATRIX) {
        rc = load_matrix(m, place, src, err);
    } else if (place->kind == WEIGHT_BIAS) {
        cpu_site_shape(c, place->site, &rows, &cols);
        rc = load_vector(m, &m->layers[place->layer].bias[place->site], rows, place->row0, src, 0,
                         err);
    } else {
        float **to = place->norm == NORM_FINAL ? &m->final_norm
                                               : &m->layers[place->layer].norms[place->norm];
        rc = load_vector(m, to, (uint32_t)tensor_n_values(src), 0, src, norm_plus(c), err);
    }
    if (rc == 0)
        loaded_note(&m->loaded, place, src);
    return rc;
}

int cpu_model_ready(struct backend *be, struct device_model *m, struct err *err)
{
    (void)be;
    return loaded_check(&m->loaded, err);
}

// ---- replacements
// --------------------------------------------------------------------------------

int cpu_replacement_load(struct backend *be, struct device_model *m, const struct bound_part *part,
                         struct device_weight **out, uint64_t *n_bytes, struct err *err)
{
    const struct tensor *full = &part->module->full;
    enum dtype t = cpu_matrix_dtype(full->dtype);
    *out = NULL;
    *n_bytes = 0;
    if (t == DTYPE_NONE || full->n_dims < 1 || full->n_dims > 2)
        return err_set(err, ERR_REFUSED, "%s: a replacement of type %s with %u dimensions",
                       part->module->name, dtype_name(full->dtype), full->n_dims);
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
    int rc;
    if (full->n_dims == 1) {
        w->n = (uint32_t)full->shape[0];
        rc = load_vector(m, &w->vector, w->n, 0, full, norm_plus(m->config), err);
        *n_bytes = w->n * sizeof *w->vector;
    } else {
        w->matrix = (struct cpu_matrix){.panels = part->target->place.site != SITE_EMBED,
                                        .n_rows = (uint32_t)full->shape[0],
                                        .n_cols = (uint32_t)full->shape[1]};
        rc = cpu_matrix_allocate(&w->matrix, t, err);
        if (rc == 0)
            rc = cpu_matrix_load(&w->matrix, 0, full, err);
        *n_bytes = tensor_n_bytes(full);
    }
    if (rc != 0) {
        cpu_replacement_free(be, w);
        return rc;
    }
    *out = w;
    return 0;
}

void cpu_replacement_free(struct backend *be, struct device_weight *w)
{
    (void)be;
    if (!w)
        return;
    cpu_matrix_release(&w->matrix);
    sys_free(w->vector);
    sys_free(w);
}

// ---- pool
// ----------------------------------------------------------------------------------------

static const size_t POPULATE_BYTES = (size_t)1 << 30;

int cpu_pool_open(struct backend *be, struct device_model *m, uint32_t n_chunks, struct err *err)
{
    cpu_pool_free(be, m);
    m->chunks = sys_aligned_alloc(BACKEND_CHUNK_BYTES, (size_t)n_chunks * BACKEND_CHUNK_BYTES);
    if (!m->chunks)
        return err_set(err, ERR_NO_MEMORY, "no memory for a pool of %u chunks of 2 MiB", n_chunks);
    m->n_chunks = n_chunks;
    /* What is promised is there from the start: a server's memory does not grow as its pages fill.
     * Beyond the bound it would cost seconds, and the pages come as they are first used. */
#ifdef MADV_POPULATE_WRITE
    size_t size = (size_t)n_chunks * BACKEND_CHUNK_BYTES;
    if (size <= POPULATE_BYTES)
        (void)madvise(m->chunks, size, MADV_POPULATE_WRITE);
#endif
    return 0;
}

void cpu_pool_free(struct backend *be, struct device_model *m)
{
    (void)be;
    sys_free(m->chunks);
    m->chunks = NULL;
    m->n_chunks = 0;
}

uint64_t cpu_page_bytes(struct backend *be, const struct device_model *m)
{
    (void)be;
    return m->page_bytes;
}
