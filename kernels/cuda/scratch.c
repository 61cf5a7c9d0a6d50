/* Device memory beside the weights: activations, plans, tables of slots, the pool. */
#include <string.h>

#include "kernels/cuda/cuda_impl.h"
#include "libcore/base/sys.h"

enum { V_COLUMNS = 3072 }; // qkv of one adapter of rank 1024

static uint32_t max_u32(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* Planes of y that a tile may have: an even cut gives at most 2 + CTAs / tiles. */
static uint32_t planes_of(uint32_t n, uint32_t k, uint32_t block_rows, uint32_t block_k)
{
    uint32_t tiles = (n + block_rows - 1) / block_rows, blocks = (k + block_k - 1) / block_k;
    uint32_t planes = 4 + CU_MAX_CTAS / tiles;
    return planes < blocks ? planes : blocks;
}

/* The widest output of a small-M GEMM. */
static uint64_t plane_floats(const struct model_config *c)
{
    uint64_t most = 0;
    static const enum site sites[] = {SITE_QKV, SITE_O, SITE_GATE_UP, SITE_DOWN, SITE_HEAD};
    for (size_t i = 0; i < sizeof sites / sizeof sites[0]; i++) {
        uint32_t n, k;
        cuda_site_shape(c, sites[i], &n, &k);
        for (uint32_t t = 1; t <= CU_SMALL_ROWS; t += CU_SMALL_ROWS - 1) {
            uint32_t block_rows, block_k;
            cu_block_shape(t, &block_rows, &block_k);
            uint64_t floats =
                (uint64_t)planes_of(n, k, block_rows, block_k) * n * (t == 1 ? 16 : CU_SMALL_ROWS);
            most = floats > most ? floats : most;
        }
    }
    return most;
}

struct wanted {
    void *to; // address of the pointer
    uint64_t bytes;
};

/* Everything, in one list, so that sizes and allocations cannot differ. m may be NULL. */
static size_t list_wanted(struct device_model *m, const struct model_config *c,
                          const struct step_limits *l, struct wanted *w)
{
    static struct device_model none;
    struct device_model *d = m ? m : &none;
    uint64_t rows = l->max_rows, logits = l->max_logit_rows,
             n_sites = c->n_layers * CUDA_LAYER_SITES + 1;
    uint64_t q_dim = (uint64_t)c->n_heads * c->head_dim, kv = (uint64_t)c->n_kv_heads * c->head_dim;
    uint64_t wide = 2ull * c->d_ff > q_dim + 2 * kv ? 2ull * c->d_ff : q_dim + 2 * kv;
    wide = wide > c->d_model ? wide : c->d_model;
    uint64_t v_rows = rows > 1024 ? rows : 1024;
    uint64_t max_vocab = c->vocab_size + LIMIT_ADDED_TOKENS;
    uint64_t tiles =
        (c->vocab_size + 63) / 64 > wide / 64 + 1 ? (c->vocab_size + 63) / 64 : wide / 64 + 1;
    size_t n = 0;
#define WANT(field, size) w[n++] = (struct wanted){&d->field, (size)}
    WANT(x, rows * c->d_model * 4);
    WANT(post, c->post_norms ? rows * c->d_model * 4 : 4);
    WANT(y, plane_floats(c) * 4);
    WANT(y16, rows > CU_SMALL_ROWS ? rows * wide * 2 : 4);
    WANT(h, rows * c->d_model * 2);
    WANT(q, rows * q_dim * 2);
    WANT(attn, rows * q_dim * 2);
    WANT(act, rows * c->d_ff * 2);
    WANT(head_h, logits * c->d_model * 2);
    WANT(logits, logits * max_vocab * 4);
    WANT(changed, logits * max_vocab * 4);
    WANT(counts_scratch, logits * max_vocab * 4);
    WANT(v, v_rows * V_COLUMNS * 4);
    WANT(v16, v_rows * V_COLUMNS * 2);
    WANT(v_ready, (rows + 127) / 128 * 2 * CU_PREFILL_SHARES * 4);
    WANT(trig, 2 * rows * c->rotary_dim * 4);
    WANT(partial, (uint64_t)CUDA_MAX_SPLIT * l->max_sequences * c->n_heads * (c->head_dim + 2) * 4);
    WANT(arrived, (uint64_t)l->max_sequences * c->n_kv_heads * 4);
    WANT(ss, (uint64_t)CU_SMALL_ROWS * cu_ss_parts(c->d_model) * 4);
    WANT(inv_freq, 4 * c->rotary_dim / 2 * 4);
    WANT(rope_scales, 4 * 4);
    WANT(asked, n_sites * 4);
    WANT(workspace, CUDA_WORKSPACE_BYTES);
    WANT(sites, l->max_slots * n_sites * sizeof(struct cu_site));
    WANT(embeds, l->max_slots * sizeof(struct cu_embed_part));
    WANT(norm_table, l->max_slots * ((uint64_t)c->n_layers * NORM_COUNT + 1) * sizeof(float *));
    for (int i = 0; i < 3; i++) {
        WANT(plans[i], n_sites * sizeof(struct cu_plan));
        WANT(planes[i], n_sites * tiles);
        WANT(plan_items[i], 2 * n_sites * sizeof(struct cu_plan_site));
    }
#undef WANT
    return n;
}

enum { MAX_WANTED = 64 };

uint64_t cuda_scratch_bytes(const struct model_config *c, const struct step_limits *l)
{
    struct wanted w[MAX_WANTED];
    size_t n = list_wanted(NULL, c, l, w);
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += w[i].bytes;
    return sum + cuda_moe_bytes(c, l);
}

static int open_rope(struct device_model *m, struct err *err)
{
    const struct model_config *c = m->config;
    uint32_t half = c->rotary_dim / 2;
    bool two = false;
    for (uint32_t i = 0; i < c->n_layers; i++)
        two |= c->layers[i].rope_idx == 1;
    m->n_ropes = two ? 2 : 1;
    m->n_regimes = 2;
    float *table = sys_calloc(4 * half + 1, sizeof *table), scales[4] = {0};
    if (!table)
        return err_set(err, ERR_NO_MEMORY, "no memory for the rotary tables");
    for (unsigned i = 0; i < m->n_ropes * 2; i++) {
        unsigned regime = c->rope[i / 2].type == ROPE_LONGROPE ? i % 2 : 0;
        config_rope_table(c, i / 2, regime, table + i * half, &scales[i]);
    }
    int rc =
        cuda_check(cudaMemcpy(m->inv_freq, table, 4 * half * sizeof *table, cudaMemcpyHostToDevice),
                   "copying rotary tables", err);
    if (rc == 0)
        rc = cuda_check(cudaMemcpy(m->rope_scales, scales, sizeof scales, cudaMemcpyHostToDevice),
                        "copying rotary tables", err);
    sys_free(table);
    return rc;
}

/* Items of plan set `set` (0, 1: no adapters, t <= 16 or more; 2: with adapters; 3: without the
 * base's weights; of 2 and 3 the second half of the items is for t > 16). */
static int fill_plan_items(struct device_model *m, int set, struct err *err)
{
    const struct model_config *c = m->config;
    uint32_t n_sites = c->n_layers * CUDA_LAYER_SITES + 1;
    static const enum site of[] = {SITE_QKV, SITE_O, SITE_GATE_UP, SITE_DOWN};
    struct cu_plan_site *items = sys_calloc(2 * n_sites, sizeof *items);
    if (!items)
        return err_set(err, ERR_NO_MEMORY, "no memory for plans");
    for (uint32_t i = 0; i < 2 * n_sites; i++) {
        uint32_t site = i % n_sites, wide = set < 2 ? (uint32_t)set : i / n_sites;
        struct cu_plan_site *p = &items[i];
        cuda_site_shape(c, site + 1 == n_sites ? SITE_HEAD : of[site % CUDA_LAYER_SITES], &p->n,
                        &p->k);
        cu_block_shape(wide ? CU_SMALL_ROWS : 1, &p->block_rows, &p->block_k);
        p->n_ctas = (uint32_t)m->be->n_sms;
        p->chunk_blocks = cu_chunk_blocks(p->k);
        p->max_planes = planes_of(p->n, p->k, p->block_rows, p->block_k);
        p->n = set == 3 ? 0 : p->n;
        p->sites = set >= 2 ? m->sites + site : NULL;
        p->site_stride = m->site_stride;
        p->plan = m->plans[set] + site;
        p->planes = m->planes[set] + (size_t)site * m->planes_stride;
    }
    int rc = cuda_check(
        cudaMemcpy(m->plan_items[set], items, 2 * n_sites * sizeof *items, cudaMemcpyHostToDevice),
        "copying plans", err);
    sys_free(items);
    return rc;
}

static int open_plans(struct device_model *m, struct err *err)
{
    int rc = 0;
    for (int set = 0; rc == 0 && set < 3; set++) {
        rc = fill_plan_items(m, set, err);
        if (rc == 0 && set < 2)
            rc =
                cuda_check(cu_plan_step(m->plan_items[set], m->site_stride, NULL, NULL, m->compute),
                           "planning", err);
    }
    return rc ? rc : cuda_check(cudaStreamSynchronize(m->compute), "planning", err);
}

/* No tile of outputs has a plane: what completes the products reads none. */
int cuda_only_a_open(struct device_model *m, struct err *err)
{
    size_t n = m->site_stride, planes = n * m->planes_stride;
    int rc = (int)cudaMalloc((void **)&m->plans[3], n * sizeof *m->plans[3]);
    rc = rc ? rc : (int)cudaMalloc((void **)&m->planes[3], planes);
    rc = rc ? rc : (int)cudaMalloc((void **)&m->plan_items[3], 2 * n * sizeof *m->plan_items[3]);
    rc = rc ? rc : (int)cudaMemset(m->planes[3], 0, planes);
    rc = cuda_check(rc, "memory for plans", err);
    return rc ? rc : fill_plan_items(m, 3, err);
}

void cuda_only_a_close(struct device_model *m)
{
    cudaFree(m->plans[3]);
    cudaFree(m->planes[3]);
    cudaFree(m->plan_items[3]);
    m->plans[3] = NULL;
    m->planes[3] = NULL;
    m->plan_items[3] = NULL;
}

int cuda_scratch_open(struct device_model *m, struct err *err)
{
    const struct model_config *c = m->config;
    struct wanted w[MAX_WANTED];
    size_t n = list_wanted(m, c, &m->limits, w);
    for (size_t i = 0; i < n; i++) {
        int rc =
            cuda_check(cudaMalloc((void **)w[i].to, w[i].bytes), "memory for activations", err);
        if (rc == 0)
            rc = cuda_check(cudaMemset(*(void **)w[i].to, 0, w[i].bytes), "clearing memory", err);
        if (rc)
            return rc;
    }
    uint32_t q = c->n_heads * c->head_dim + 2 * c->n_kv_heads * c->head_dim;
    uint32_t wide = max_u32(max_u32(2 * c->d_ff, q), c->d_model) / 64 + 1,
             head = (c->vocab_size + 63) / 64;
    m->planes_stride = max_u32(wide, head);
    m->site_stride = c->n_layers * CUDA_LAYER_SITES + 1;
    m->norm_stride = c->n_layers * NORM_COUNT + 1;
    m->max_vocab = c->vocab_size + LIMIT_ADDED_TOKENS;
    uint64_t v_rows = m->limits.max_rows > 1024 ? m->limits.max_rows : 1024;
    m->v_floats = v_rows * V_COLUMNS;
    uint32_t k_max = max_u32(c->d_ff, max_u32(c->d_model, c->n_heads * c->head_dim));
    uint32_t planes =
        ((k_max + CU_TILE_K - 1) / CU_TILE_K + cu_chunk_blocks(k_max) - 1) / cu_chunk_blocks(k_max);
    uint32_t planes_8 = (8192 / CU_TILE_K) / 8; // of the widest K with short chunks
    m->v_width_small = (uint32_t)(m->v_floats / CU_SMALL_ROWS / max_u32(planes, planes_8)) & ~15u;
    m->page_bytes =
        (uint64_t)c->n_layers * 2 * c->n_kv_heads * m->limits.page_tokens * c->head_dim * 2;
    if (m->page_bytes > BACKEND_CHUNK_BYTES)
        return err_set(err, ERR_LIMIT,
                       "page of %u tokens takes %llu bytes, a chunk holds %d: choose fewer "
                       "tokens",
                       m->limits.page_tokens, (unsigned long long)m->page_bytes,
                       BACKEND_CHUNK_BYTES);
    m->pages_per_chunk = (uint32_t)(BACKEND_CHUNK_BYTES / m->page_bytes);
    int rc = open_rope(m, err);
    rc = rc ? rc : cuda_moe_open(m, err);
    return rc ? rc : open_plans(m, err);
}

void cuda_scratch_free(struct device_model *m)
{
    struct wanted w[MAX_WANTED];
    size_t n = list_wanted(m, m->config, &m->limits, w);
    for (size_t i = 0; i < n; i++)
        cudaFree(*(void **)w[i].to);
    cuda_moe_free(m);
}

int cuda_pool_open(struct backend *be, struct device_model *m, uint32_t n_chunks, struct err *err)
{
    cuda_pool_free(be, m);
    int rc = cuda_choose(be, err);
    if (rc == 0)
        rc = cuda_check(cudaMalloc((void **)&m->pool, (size_t)n_chunks * BACKEND_CHUNK_BYTES),
                        "memory for the pool", err);
    if (rc == 0)
        m->n_chunks = n_chunks;
    return rc;
}

void cuda_pool_free(struct backend *be, struct device_model *m)
{
    (void)cuda_choose(be, NULL);
    cudaFree(m->pool);
    m->pool = NULL;
    m->n_chunks = 0;
}

uint64_t cuda_page_bytes(struct backend *be, const struct device_model *m)
{
    (void)be;
    return m->page_bytes;
}
