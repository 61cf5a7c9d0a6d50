/*
 * The forward pass: which kernels a step queues, in order. It may be recorded: with the same rows,
 * logits and kinds it makes the same calls with the same arguments, but for replacements.
 *
 * A layer of decoding rows: qkv GEMM -> attention (completes qkv, writes keys and values) -> o GEMM
 * -> residual -> gate_up GEMM -> activation -> down GEMM -> residual. The residuals leave x w and
 * sums of squares: norms are finished by what completes the GEMM behind them. Rows of prompts go
 * through rope and their own attention; steps of more than CU_SMALL_ROWS rows, and norms after a
 * projection, through norm kernels. Adapters add no launch up to CU_SMALL_ROWS rows (A rides in the
 * GEMMs, B in what completes them), beyond it a shrink and an expand_add a site (forward_large.c).
 */
#include "kernels/cuda/cuda_impl.h"

/* A row space: the step's rows, or its logit rows. */
struct space {
    struct cu_rows r;
    const uint32_t *columns;
    const struct step_segment *host_segments;
    uint32_t n_host_segments;
    const struct cuda_list *shrink;
};

static const void *meta_at(const struct cuda_run *run, size_t offset)
{
    return run->meta + offset;
}

static struct space rows_space(const struct device_model *m, const struct cuda_run *run)
{
    const struct cuda_layout *at = &run->at;
    const struct cuda_counts *counts = meta_at(run, at->counts);
    return (struct space){.r = {.t = run->rows,
                                .n_rows = &counts->n_rows,
                                .n_sequences = &counts->n_sequences,
                                .tokens = m->tokens,
                                .sequence = meta_at(run, at->sequence),
                                .position = meta_at(run, at->position),
                                .sequences = meta_at(run, at->sequences),
                                .segments = run->kinds ? meta_at(run, at->segments) : NULL,
                                .n_segments = &counts->n_segments,
                                .owner = meta_at(run, at->owner)},
                          .columns = meta_at(run, at->columns),
                          .host_segments = run->step ? run->step->segments : NULL,
                          .n_host_segments = run->step ? run->step->n_segments : 0,
                          .shrink = &run->shrink};
}

static struct space head_space(const struct device_model *m, const struct cuda_run *run)
{
    struct space s = rows_space(m, run);
    const struct cuda_counts *counts = meta_at(run, run->at.counts);
    s.r.t = run->logits;
    s.r.n_rows = &counts->n_logit_rows;
    s.r.segments = run->kinds ? meta_at(run, run->at.head_segments) : NULL;
    s.r.n_segments = &counts->n_head_segments;
    s.r.owner = meta_at(run, run->at.head_owner);
    s.columns = meta_at(run, run->at.head_columns);
    s.host_segments = run->step ? run->step->head_segments : NULL;
    s.n_host_segments = run->step ? run->step->n_head_segments : 0;
    s.shrink = &run->head_shrink;
    return s;
}

/* The plans of a step of t rows: set, and the site's index in it. */
static int plan_set(const struct cuda_run *run, uint32_t t)
{
    return run->only_a ? 3 : run->kinds ? 2 : t > 16;
}

static int plan(struct device_model *m, const struct cuda_run *run, const struct space *rows,
                const struct space *head)
{
    uint32_t n_layer_sites = m->site_stride - 1;
    const struct cu_plan_site *items = m->plan_items[run->only_a ? 3 : 2];
    if (!run->kinds)
        return 0;
    if (run->rows <= CU_SMALL_ROWS)
        CUDA_TRY(cu_plan_step(items + (run->rows > 16 ? m->site_stride : 0), n_layer_sites,
                              rows->r.segments, rows->r.n_segments, m->compute));
    if (run->logits && run->logits <= CU_SMALL_ROWS)
        CUDA_TRY(cu_plan_step(items + (run->logits > 16 ? m->site_stride : 0) + n_layer_sites, 1,
                              head->r.segments, head->r.n_segments, m->compute));
    return 0;
}

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static int replace_rows(struct device_model *m, const struct space *s, uint32_t layer,
                        enum site site, const void *x, uint32_t k, const struct cu_expand *e)
{
    for (uint32_t i = 0; i < s->n_host_segments; i++) {
        const struct cuda_slot *slot = &m->slots[s->host_segments[i].slot];
        for (uint32_t j = 0; j < slot->n_replaced; j++) {
            const struct cuda_replaced *p = &slot->replaced[j];
            if (p->site != site || (site != SITE_HEAD && p->layer != layer))
                continue;
            struct cu_replace r = {.x = x,
                                   .w = p->full ? p->full->matrix.data : NULL,
                                   .w_rows = p->rows,
                                   .out_ids = p->row_ids,
                                   .n_out =
                                       p->full ? min_u32(p->full->matrix.n_rows, e->n) : p->n_rows,
                                   .out0 = p->row0,
                                   .k = k,
                                   .row0 = s->host_segments[i].row0,
                                   .n_rows = s->host_segments[i].n_rows,
                                   .y = *e};
            CUDA_TRY(cu_replace_rows(&r, m->compute));
        }
    }
    return 0;
}

/* The GEMM of a site and the adapters' v; *e says how a consumer completes it. */
static int linear(struct device_model *m, const struct cuda_run *run, const struct space *s,
                  uint32_t layer, enum site site, const void *x, struct cu_expand *e)
{
    uint32_t n, k, t = s->r.t, ls = (uint32_t)cuda_layer_site(site);
    uint32_t idx = site == SITE_HEAD ? m->site_stride - 1 : layer * CUDA_LAYER_SITES + ls;
    const void *w = site == SITE_HEAD ? m->head.data : m->layers[layer].sites[ls].data;
    // Where rows of logits lie further apart than the product's, it goes beside them first.
    float *head_y = run->stride == m->config->vocab_size ? m->logits : m->changed;
    cuda_site_shape(m->config, site, &n, &k);
    *e = (struct cu_expand){.t = t,
                            .n = n,
                            .bias = site == SITE_HEAD ? NULL : m->layers[layer].bias[ls],
                            .segments = s->r.segments,
                            .n_segments = s->r.n_segments,
                            .columns = s->columns,
                            .owner = s->r.owner,
                            .sites = m->sites + idx,
                            .site_stride = m->site_stride,
                            .v = m->v,
                            .kinds = run->kinds};
    struct cu_gemm g = {.w = w,
                        .x = x,
                        .t = t,
                        .n = n,
                        .k = k,
                        .segments = s->r.segments,
                        .sites = m->sites + idx,
                        .site_stride = m->site_stride,
                        .n_segments = s->r.n_segments,
                        .columns = s->columns,
                        .s = m->v,
                        .chunk_blocks = cu_chunk_blocks(k)};
    if (m->be->deterministic) {
        struct cuda_fixed f = {.w = w,
                               .x = x,
                               .k = k,
                               .v_width = run->v_width,
                               .n_real =
                                   site == SITE_HEAD ? run->step->n_logit_rows : run->step->n_rows,
                               .n_rows = s->r.n_rows,
                               .wide = site == SITE_HEAD ? head_y : NULL};
        CUDA_TRY(cuda_linear_fixed(m, &f, e));
    } else if (t <= CU_SMALL_ROWS) {
        int set = plan_set(run, t);
        uint32_t block_k;
        cu_block_shape(t, &e->block_rows, &block_k);
        e->y = g.y = m->y;
        e->planes = m->planes[set] + (size_t)idx * m->planes_stride;
        e->v_planes = ((k + CU_TILE_K - 1) / CU_TILE_K + g.chunk_blocks - 1) / g.chunk_blocks;
        e->v_width = g.s_width = m->v_width_small;
        g.plan = m->plans[set] + idx;
        g.n_ctas = (uint32_t)m->be->n_sms;
        e->asked = g.asked = m->asked + idx;
        e->enough = g.n_ctas / 2;
        g.asked_before = m->asked_before;
        m->asked_before = g.asked;
        CUDA_TRY(cu_gemm_small(&g, m->compute));
    } else {
        m->asked_before = NULL;
        CUDA_TRY(
            cuda_linear_large(m, run, s->shrink, site, &g, site == SITE_HEAD ? head_y : NULL, e));
    }
    if (run->replaces)
        CUDA_TRY(replace_rows(m, s, layer, site, x, k, e));
    return t > CU_SMALL_ROWS ? cuda_add_adapters(m, run, site, e) : 0;
}

static struct cu_norm norm_of(const struct device_model *m, const struct cuda_run *run,
                              uint32_t layer, enum norm norm)
{
    const struct model_config *c = m->config;
    uint32_t at =
        norm == NORM_FINAL ? c->n_layers * NORM_COUNT : layer * NORM_COUNT + (uint32_t)norm;
    return (struct cu_norm){.w = norm == NORM_FINAL ? m->final_norm : m->layers[layer].norms[norm],
                            .replaced = run->replaces ? m->norm_table + at : NULL,
                            .stride = m->norm_stride,
                            .eps = (float)c->rms_eps,
                            .plus = c->norm_plus_one ? 1.f : 0.f};
}

static struct cu_pages pages_of(const struct device_model *m, const struct cuda_run *run)
{
    return (struct cu_pages){m->pool,
                             m->page_bytes,
                             m->pages_per_chunk,
                             m->limits.page_tokens,
                             meta_at(run, run->at.pages),
                             m->n_chunks,
                             ((1ull << 40) + m->pages_per_chunk - 1) / m->pages_per_chunk};
}

/* A layer's attention but for the heads, which single ops choose. */
static struct cu_attention attention_of(const struct device_model *m, const struct cuda_run *run,
                                        const struct cu_heads *heads)
{
    // A CTA a multiprocessor, as long as there is one for every row's every head.
    uint32_t ctas = heads->n_kv_heads * (run->n_decode ? run->n_decode : 1);
    uint32_t splits = (uint32_t)m->be->n_sms / ctas > 1 ? (uint32_t)m->be->n_sms / ctas : 1;
    return (struct cu_attention){.heads = *heads,
                                 .pages = pages_of(m, run),
                                 .q = m->q,
                                 .out = m->attn,
                                 .partial = m->partial,
                                 .arrived = m->arrived,
                                 .n_split = splits < CUDA_MAX_SPLIT ? splits : CUDA_MAX_SPLIT,
                                 .n_sms = (uint32_t)m->be->n_sms};
}

/* Rows that decode complete their own part of qkv. */
static int attention(struct device_model *m, const struct cuda_run *run, const struct space *s,
                     const struct cu_attention *a, const struct cu_expand *qkv)
{
    const struct cuda_counts *counts = meta_at(run, run->at.counts);
    if (m->be->deterministic)
        return cuda_attention_fixed(m, run, a, &s->r);
    if (run->n_decode)
        CUDA_TRY(
            cu_attention_decode(a, qkv, &s->r, &counts->n_decode_rows, run->n_decode, m->compute));
    if (m->query_rows == CU_HOPPER_ROWS)
        return cu_attention_hopper(a, &s->r, run->blocks.segment, run->blocks.row, run->blocks.n,
                                   m->compute);
    return cu_attention_prefill(a, &s->r, run->blocks.segment, run->blocks.row, run->blocks.n,
                                m->compute);
}

/* Completes q, k and v of the rows that do not decode. */
static int rope(struct device_model *m, const struct cuda_run *run, const struct space *s,
                const struct cu_attention *a, const struct cu_expand *qkv)
{
    const struct model_config *c = m->config;
    const struct cuda_counts *counts = meta_at(run, run->at.counts);
    if (run->n_decode == run->rows)
        return 0;
    if (cuda_complete(m, run, qkv) && c->rotary_dim == c->head_dim &&
        (c->head_dim == 64 || c->head_dim == 128 || c->head_dim == 256))
        return cu_rope_write_large(qkv, &s->r, &a->heads, &a->q_norm, &a->k_norm, a->trig,
                                   &a->pages, m->q, m->compute);
    return cu_rope_write(qkv, &s->r, &a->heads, &a->q_norm, &a->k_norm, a->trig, &a->pages,
                         run->n_decode ? &counts->n_decode_rows : NULL, m->q, m->compute);
}

struct cu_heads cuda_heads(const struct device_model *m, uint32_t layer)
{
    const struct model_config *c = m->config;
    return (struct cu_heads){.n_heads = c->n_heads,
                             .n_kv_heads = c->n_kv_heads,
                             .head_dim = c->head_dim,
                             .rotary_dim = c->rotary_dim,
                             .layer = layer,
                             .n_layers = c->n_layers,
                             .window = c->layers[layer].window,
                             .scale = (float)c->attention_scale,
                             .softcap = (float)c->attention_softcap};
}

/* From the qkv projection to what the o projection takes. */
static int attend(struct device_model *m, const struct cuda_run *run, const struct space *s,
                  uint32_t layer, const struct cu_expand *qkv)
{
    const struct model_config *c = m->config;
    struct cu_heads heads = cuda_heads(m, layer);
    struct cu_attention a = attention_of(m, run, &heads);
    if (c->qk_norm) {
        a.q_norm = norm_of(m, run, layer, NORM_Q);
        a.k_norm = norm_of(m, run, layer, NORM_K);
    }
    a.trig = m->trig + (size_t)c->layers[layer].rope_idx * run->rows * c->rotary_dim;
    CUDA_TRY(rope(m, run, s, &a, qkv));
    return attention(m, run, s, &a, qkv);
}

/* Whether a norm is begun by the residual before it and finished by the GEMM's consumer. */
static bool folds_norm(const struct device_model *m, const struct cuda_run *run)
{
    return run->rows <= CU_SMALL_ROWS && !m->config->post_norms;
}

/* The output of a GEMM that was given x w. */
static void unnormed(const struct device_model *m, struct cu_expand *e)
{
    e->ss = m->ss;
    e->n_ss = cu_ss_parts(m->config->d_model);
    e->ss_scale = 1.0f / (float)m->config->d_model;
    e->eps = (float)m->config->rms_eps;
}

/* x += y (through the post norm where there is one), then h = the next norm of x; next NULL: no h.
 */
static int end_residual(struct device_model *m, const struct cuda_run *run, const struct space *s,
                        const struct cu_expand *e, uint32_t layer, enum norm post,
                        const struct cu_norm *next, bool fold)
{
    uint32_t d = m->config->d_model;
    if (next && fold)
        return cu_residual_norm(e, &s->r, next, m->x, m->h, m->ss, m->compute);
    struct cu_norm after = norm_of(m, run, layer, post);
    bool has_post = m->config->post_norms;
    if (cuda_complete(m, run, e) && !has_post && d <= 8192)
        return cu_residual_norm_large(e, m->x, next, m->h, m->compute);
    CUDA_TRY(cu_residual(e, m->x, has_post ? m->post : NULL, m->compute));
    if (!has_post && !next)
        return 0;
    return cu_norm_rows(&s->r, s->r.t, NULL, m->x, has_post ? m->post : NULL, d,
                        has_post ? &after : NULL, next, next ? m->h : NULL, m->compute);
}

static int layer_forward(struct device_model *m, const struct cuda_run *run, const struct space *s,
                         uint32_t layer)
{
    const struct model_config *c = m->config;
    struct cu_norm mlp = norm_of(m, run, layer, NORM_MLP), next;
    bool last = layer + 1 == c->n_layers, fold = folds_norm(m, run), moe = c->layers[layer].moe;
    if (!last)
        next = norm_of(m, run, layer + 1, NORM_ATTN);
    struct cu_expand e;
    CUDA_TRY(linear(m, run, s, layer, SITE_QKV, m->h, &e));
    if (fold && layer > 0)
        unnormed(m, &e);
    CUDA_TRY(attend(m, run, s, layer, &e));
    CUDA_TRY(linear(m, run, s, layer, SITE_O, m->attn, &e));
    CUDA_TRY(end_residual(m, run, s, &e, layer, NORM_ATTN_POST, &mlp, fold && !moe));
    if (moe) {
        m->asked_before = NULL;
        CUDA_TRY(cuda_moe_forward(m, run, &s->r, s->columns, layer, &e));
    } else {
        int gelu = c->activation == ACTIVATION_GELU_TANH;
        CUDA_TRY(linear(m, run, s, layer, SITE_GATE_UP, m->h, &e));
        if (fold)
            unnormed(m, &e);
        if (cuda_complete(m, run, &e) && e.y16 != m->act && c->d_ff % 8 == 0)
            CUDA_TRY(cu_activation_large(&e, c->d_ff, gelu, m->act, m->compute));
        else if (e.y16 != m->act) // else the product has done it
            CUDA_TRY(cu_activation(&e, c->d_ff, gelu, m->act, m->compute));
        CUDA_TRY(linear(m, run, s, layer, SITE_DOWN, m->act, &e));
    }
    return end_residual(m, run, s, &e, layer, NORM_MLP_POST, last ? NULL : &next, fold);
}

static int sample(struct device_model *m, const struct cuda_run *run, const struct space *head)
{
    uint32_t n = run->logits;
    uint8_t *r = m->results;
    struct cu_sampler s = {
        .params = meta_at(run, run->at.sampling),
        .biases = (const struct cu_token_bias *)(const void *)m->extra,
        .history = (const int32_t *)(const void *)(m->extra +
                                                   m->max_biases * sizeof(struct cu_token_bias)),
        .prev_ids = m->prev_ids,
        .n_rows = head->r.n_rows,
        .bound = n,
        .stride = run->stride,
        .softcap = (float)m->config->logit_softcap,
        .logits = m->logits,
        .changed = m->changed,
        .counts = m->counts_scratch,
        .ids = (int32_t *)(void *)r,
        .ranks = (int32_t *)(void *)(r + 4ull * n),
        .logprobs = (float *)(void *)(r + 8ull * n),
        .top_ids = (int32_t *)(void *)(r + 12ull * n),
        .top_logprobs = (float *)(void *)(r + (12ull + 4 * BACKEND_MAX_TOP) * n)};
    CUDA_TRY(cu_sample_rows(&s, m->compute));
    return cudaMemcpyAsync(m->prev_ids, s.ids, 4ull * n, cudaMemcpyDeviceToDevice, m->compute);
}

/* Logits of the tokens that adapters add to the vocabulary, behind the base's. */
static int added_logits(struct device_model *m, const struct cuda_run *run,
                        const struct space *head)
{
    uint32_t vocab = m->config->vocab_size, d = m->config->d_model;
    for (uint32_t i = 0; i < head->n_host_segments; i++) {
        const struct step_segment *s = &head->host_segments[i];
        const struct cuda_slot *slot = &m->slots[s->slot];
        for (uint32_t j = 0; j < slot->n_replaced; j++) {
            const struct cuda_replaced *p = &slot->replaced[j];
            if (p->site != SITE_HEAD || !p->full || p->full->matrix.n_rows <= vocab)
                continue;
            struct cu_replace r = {.x = m->head_h,
                                   .w = (const uint16_t *)p->full->matrix.data + (size_t)vocab * d,
                                   .n_out = p->full->matrix.n_rows - vocab,
                                   .out0 = vocab,
                                   .k = d,
                                   .row0 = s->row0,
                                   .n_rows = s->n_rows,
                                   .y = {.t = run->logits, .n = run->stride, .y = m->logits}};
            CUDA_TRY(cu_replace_rows(&r, m->compute));
        }
    }
    return 0;
}

static int head_forward(struct device_model *m, const struct cuda_run *run,
                        const struct space *head)
{
    struct cu_norm final = norm_of(m, run, 0, NORM_FINAL);
    struct cu_expand e;
    CUDA_TRY(cu_norm_rows(&head->r, run->logits, meta_at(run, run->at.logit_rows), m->x, NULL,
                          m->config->d_model, NULL, &final, m->head_h, m->compute));
    CUDA_TRY(linear(m, run, head, 0, SITE_HEAD, m->head_h, &e));
    CUDA_TRY(cu_logits(&e, m->logits, run->stride, m->compute));
    if (run->stride > m->config->vocab_size)
        CUDA_TRY(added_logits(m, run, head));
    return sample(m, run, head);
}

int cuda_forward(struct device_model *m, const struct cuda_run *run)
{
    const struct model_config *c = m->config;
    struct space rows = rows_space(m, run), head = head_space(m, run);
    struct cu_norm first = norm_of(m, run, 0, NORM_ATTN);
    m->asked_before = NULL;
    CUDA_TRY(plan(m, run, &rows, &head));
    CUDA_TRY(cu_begin(&rows.r, m->asked, m->site_stride, meta_at(run, run->at.tokens), m->tokens,
                      m->prev_ids, m->n_ropes, m->n_regimes, c->rotary_dim, m->inv_freq,
                      m->rope_scales, m->trig, m->compute));
    CUDA_TRY(cu_embed(&rows.r, m->embed.data, c->vocab_size, c->d_model, (float)c->embed_scale,
                      m->embeds, run->kinds, m->x, m->compute));
    CUDA_TRY(cu_norm_rows(&rows.r, run->rows, NULL, m->x, NULL, c->d_model, NULL, &first, m->h,
                          m->compute));
    for (uint32_t layer = 0; layer < c->n_layers; layer++)
        CUDA_TRY(layer_forward(m, run, &rows, layer));
    return run->logits ? head_forward(m, run, &head) : 0;
}

// ---- single ops, for access.c: the same calls, one at a time

static struct space space_of(const struct device_model *m, const struct cuda_run *run, bool head)
{
    return head ? head_space(m, run) : rows_space(m, run);
}

int cuda_op_begin(struct device_model *m, const struct cuda_run *run)
{
    struct space rows = rows_space(m, run), head = head_space(m, run);
    CUDA_TRY(plan(m, run, &rows, &head));
    return cu_begin(&rows.r, m->asked, m->site_stride, meta_at(run, run->at.tokens), m->tokens,
                    m->prev_ids, m->n_ropes, m->n_regimes, m->config->rotary_dim, m->inv_freq,
                    m->rope_scales, m->trig, m->compute);
}

int cuda_op_embed(struct device_model *m, const struct cuda_run *run, float *x)
{
    const struct model_config *c = m->config;
    struct space rows = rows_space(m, run);
    return cu_embed(&rows.r, m->embed.data, c->vocab_size, c->d_model, (float)c->embed_scale,
                    m->embeds, run->kinds, x, m->compute);
}

int cuda_op_linear(struct device_model *m, const struct cuda_run *run, bool head, uint32_t layer,
                   enum site site, const void *x, struct cu_expand *e)
{
    struct space s = space_of(m, run, head);
    struct cuda_run alone = *run;
    alone.single = true;
    m->asked_before = NULL;
    return linear(m, &alone, &s, layer, site, x, e);
}

int cuda_op_norm(struct device_model *m, const struct cuda_run *run, bool head, uint32_t layer,
                 enum norm norm, float *x, void *h)
{
    struct space s = space_of(m, run, head);
    struct cu_norm n = norm_of(m, run, layer, norm);
    return cu_norm_rows(&s.r, s.r.t, NULL, x, NULL, m->config->d_model, NULL, &n, h, m->compute);
}

int cuda_op_rope(struct device_model *m, const struct cuda_run *run, const struct cu_heads *heads,
                 const float *qkv, uint32_t width, const enum norm *q_norm, const float *trig,
                 const struct cu_pages *pages)
{
    struct space s = rows_space(m, run);
    struct cu_norm none = {0}, q = q_norm ? norm_of(m, run, heads->layer, *q_norm) : none;
    struct cu_expand e = {.t = s.r.t, .n = width, .y = qkv};
    struct cu_pages own = pages_of(m, run);
    return cu_rope_write(&e, &s.r, heads, &q, &none, trig, pages ? pages : &own, NULL, m->q,
                         m->compute);
}

int cuda_op_attention(struct device_model *m, const struct cuda_run *run,
                      const struct cu_heads *heads)
{
    struct space s = rows_space(m, run);
    struct cu_attention a = attention_of(m, run, heads);
    struct cu_expand given = {0}; // q is in its buffer, keys and values in the pages
    return attention(m, run, &s, &a, &given);
}

int cuda_op_moe(struct device_model *m, const struct cuda_run *run, uint32_t layer,
                struct cu_expand *e)
{
    struct space s = rows_space(m, run);
    return cuda_moe_forward(m, run, &s.r, s.columns, layer, e);
}

int cuda_op_sample(struct device_model *m, const struct cuda_run *run)
{
    struct space head = head_space(m, run);
    return sample(m, run, &head);
}
