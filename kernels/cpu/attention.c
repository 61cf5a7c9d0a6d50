/*
 * attention: out = softmax(scale q k^T) v over the pages of each sequence, causal, windowed.
 *
 * A work item is (sequence, key/value head, up to 16 queries): the query heads that share the
 * key/value head, for as many rows as fit, so a key is read once for all of them. Keys come in
 * blocks of 64 that do not depend on the queries, with a running maximum and sum; what a query does
 * not see leaves it bit for bit. So a row's result does not depend on how its prompt was cut into
 * steps. Threads take items one by one. Bytes: keys and values of the context once for decode rows,
 * and once for 16 queries in prefill.
 */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu_impl.h"

struct attention_run {
    struct device_model *m;
    const struct op_step *s;
    uint32_t layer;
    const float *qkv;
    float *out;
    uint32_t heads;       // query heads in an item
    uint32_t head_blocks; // items for the query heads of one key/value head
    uint32_t rows;        // rows in an item
    atomic_uint next;
};

struct item {
    const struct step_sequence *seq;
    uint32_t row0, n_rows;   // of the step
    uint32_t position0;      // of row0
    uint32_t head0, n_heads; // query heads
    uint32_t kv_head;
};

static struct item find_item(const struct attention_run *r, uint32_t idx)
{
    const uint32_t *first = r->m->seq_first;
    uint32_t low = 0, high = r->s->counts->n_sequences;
    while (high - low > 1) {
        uint32_t mid = low + (high - low) / 2;
        if (first[mid] <= idx)
            low = mid;
        else
            high = mid;
    }
    const struct model_config *c = r->m->config;
    const struct step_sequence *seq = &r->s->sequences[low];
    uint32_t group = c->n_heads / c->n_kv_heads, in_seq = idx - first[low];
    uint32_t head_block = in_seq % r->head_blocks, rest = in_seq / r->head_blocks;
    uint32_t kv_head = rest % c->n_kv_heads, block = rest / c->n_kv_heads;
    struct item it = {.seq = seq, .kv_head = kv_head};
    it.row0 = seq->row0 + block * r->rows;
    it.n_rows = seq->row0 + seq->n_rows - it.row0;
    if (it.n_rows > r->rows)
        it.n_rows = r->rows;
    it.position0 = seq->position0 + block * r->rows;
    it.head0 = kv_head * group + head_block * r->heads;
    it.n_heads = (kv_head + 1) * group - it.head0;
    if (it.n_heads > r->heads)
        it.n_heads = r->heads;
    return it;
}

/* The pieces of the block of keys that begins at key0. */
static void find_pieces(const struct attention_run *r, const struct item *it, uint32_t key0,
                        struct isa_attend *a)
{
    const struct device_model *m = r->m;
    uint32_t tokens = m->limits.page_tokens, n_kv = m->config->n_kv_heads;
    size_t head_floats = (size_t)tokens * m->config->head_dim;
    for (uint32_t i = 0; i * a->piece < a->n_keys; i++) {
        uint32_t position = key0 + i * a->piece, in_page = position % tokens;
        uint32_t page = r->s->pages[it->seq->page0 + position / tokens];
        const char *at = m->chunks + (uint64_t)(page / m->pages_per_chunk) * BACKEND_CHUNK_BYTES +
                         (page % m->pages_per_chunk) * m->page_bytes;
        const float *keys = (const float *)(const void *)at +
                            ((size_t)r->layer * 2 * n_kv + it->kv_head) * head_floats;
        a->k[i] = keys + in_page;
        a->v[i] = keys + n_kv * head_floats + (size_t)in_page * m->config->head_dim;
    }
}

static void set_bounds(const struct item *it, uint32_t window, uint32_t key0, uint32_t n_keys,
                       int *first, int *last)
{
    for (uint32_t row = 0; row < it->n_rows; row++) {
        int64_t position = (int64_t)it->position0 + row;
        int64_t end = position + 1 - key0;
        int64_t begin = window ? position - window + 1 - key0 : 0;
        for (uint32_t h = 0; h < it->n_heads; h++) {
            last[row * it->n_heads + h] = (int)(end < 0 ? 0 : end > n_keys ? n_keys : end);
            first[row * it->n_heads + h] = (int)(begin < 0 ? 0 : begin > n_keys ? n_keys : begin);
        }
    }
}

/* Queries, scaled and lying as [head_dim][16]. */
static void load_queries(const struct attention_run *r, const struct item *it, float *q)
{
    const struct model_config *c = r->m->config;
    float scale = (float)c->attention_scale;
    memset(q, 0, (size_t)ISA_ATTEND_QUERIES * c->head_dim * sizeof *q);
    for (uint32_t i = 0; i < it->n_rows * it->n_heads; i++) {
        size_t row = it->row0 + i / it->n_heads, head = it->head0 + i % it->n_heads;
        const float *from = r->qkv + row * r->m->qkv_rows + head * c->head_dim;
        for (uint32_t d = 0; d < c->head_dim; d++)
            q[d * ISA_ATTEND_QUERIES + i] = from[d] * scale;
    }
}

static void store_outputs(const struct attention_run *r, const struct item *it, const float *out,
                          const float *sum)
{
    const struct model_config *c = r->m->config;
    for (uint32_t i = 0; i < it->n_rows * it->n_heads; i++) {
        size_t row = it->row0 + i / it->n_heads, head = it->head0 + i % it->n_heads;
        float *to = r->out + (row * c->n_heads + head) * c->head_dim;
        for (uint32_t d = 0; d < c->head_dim; d++)
            to[d] = out[i * c->head_dim + d] / sum[i];
    }
}

static void attend_item(const struct attention_run *r, const struct item *it, float *scratch)
{
    const struct device_model *m = r->m;
    const struct model_config *c = m->config;
    uint32_t hd = c->head_dim, tokens = m->limits.page_tokens;
    uint32_t window = c->layers[r->layer].window;
    float max[ISA_ATTEND_QUERIES], sum[ISA_ATTEND_QUERIES] = {0};
    int first[ISA_ATTEND_QUERIES], last[ISA_ATTEND_QUERIES];
    struct isa_attend a = {.q = scratch,
                           .k_stride = tokens,
                           .piece = tokens < ISA_ATTEND_KEYS ? tokens : ISA_ATTEND_KEYS,
                           .n_queries = it->n_rows * it->n_heads,
                           .head_dim = hd,
                           .first = first,
                           .last = last,
                           .softcap = (float)c->attention_softcap,
                           .out = scratch + (size_t)ISA_ATTEND_QUERIES * hd,
                           .max = max,
                           .sum = sum,
                           .buffer = scratch + 2 * (size_t)ISA_ATTEND_QUERIES * hd};
    load_queries(r, it, scratch);
    memset(a.out, 0, (size_t)ISA_ATTEND_QUERIES * hd * sizeof *a.out);
    for (uint32_t i = 0; i < a.n_queries; i++)
        max[i] = -INFINITY;
    uint32_t end = it->position0 + it->n_rows, begin = 0;
    if (window && it->position0 + 1 > window)
        begin = (it->position0 + 1 - window) / ISA_ATTEND_KEYS * ISA_ATTEND_KEYS;
    for (uint32_t key0 = begin; key0 < end; key0 += ISA_ATTEND_KEYS) {
        a.n_keys = end - key0 < ISA_ATTEND_KEYS ? end - key0 : ISA_ATTEND_KEYS;
        find_pieces(r, it, key0, &a);
        set_bounds(it, window, key0, a.n_keys, first, last);
        m->isa->attend(&a);
    }
    store_outputs(r, it, a.out, sum);
}

static void attend_items(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    struct attention_run *r = arg;
    (void)begin;
    (void)end;
    uint32_t n_items = r->m->seq_first[r->s->counts->n_sequences];
    for (;;) {
        uint32_t idx = atomic_fetch_add_explicit(&r->next, 1, memory_order_relaxed);
        if (idx >= n_items)
            return;
        struct item it = find_item(r, idx);
        attend_item(r, &it, r->m->thread_scratch + thread_idx * r->m->thread_floats);
    }
}

int cpu_attention(struct op_context *ctx, const struct op_step *s, uint32_t layer, const void *qkv,
                  void *out)
{
    struct device_model *m = cpu_context(ctx);
    const struct model_config *c = m->config;
    uint32_t group = c->n_heads / c->n_kv_heads;
    struct attention_run r = {.m = m, .s = s, .layer = layer, .qkv = qkv, .out = out};
    r.heads = group < ISA_ATTEND_QUERIES ? group : ISA_ATTEND_QUERIES;
    r.head_blocks = (group + r.heads - 1) / r.heads;
    r.rows = ISA_ATTEND_QUERIES / r.heads;
    uint32_t at = 0;
    for (uint32_t i = 0; i < s->counts->n_sequences; i++) {
        m->seq_first[i] = at;
        at += (s->sequences[i].n_rows + r.rows - 1) / r.rows * c->n_kv_heads * r.head_blocks;
    }
    m->seq_first[s->counts->n_sequences] = at;
    atomic_init(&r.next, 0);
    size_t n_threads = worker_pool_size(m->pool);
    worker_pool_run(m->pool, n_threads < at ? n_threads : at, 1, attend_items, &r);
    return 0;
}
