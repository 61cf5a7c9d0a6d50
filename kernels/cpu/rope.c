/*
 * rope_write: rotates q and k by the tables of `begin` (halves, as transformers' rotate_half; only
 * the first rotary_dim of a head) and writes k and v to the pages.
 */
#include <string.h>

#include "kernels/cpu/cpu_impl.h"

struct rope_run {
    struct device_model *m;
    const struct op_step *s;
    uint32_t layer;
    float *qkv;
};

/* The page of a position. */
static float *page_at(const struct rope_run *r, const struct step_sequence *seq, uint32_t position)
{
    const struct device_model *m = r->m;
    uint32_t page = r->s->pages[seq->page0 + position / m->limits.page_tokens];
    char *at = m->chunks + (uint64_t)(page / m->pages_per_chunk) * BACKEND_CHUNK_BYTES +
               (page % m->pages_per_chunk) * m->page_bytes;
    return (float *)(void *)at;
}

/* Keys of a page lie as [head_dim][token], values as [token][head_dim]. */
static void write_row(const struct rope_run *r, size_t row, const float *k, const float *v)
{
    const struct model_config *c = r->m->config;
    const struct step_sequence *seq = &r->s->sequences[r->s->row_sequence[row]];
    uint32_t position = r->s->row_position[row], tokens = r->m->limits.page_tokens;
    size_t hd = c->head_dim, head_floats = hd * tokens, t = position % tokens;
    float *keys = page_at(r, seq, position) + (size_t)r->layer * 2 * c->n_kv_heads * head_floats;
    float *values = keys + c->n_kv_heads * head_floats;
    for (uint32_t h = 0; h < c->n_kv_heads; h++) {
        for (uint32_t d = 0; d < hd; d++)
            keys[h * head_floats + d * tokens + t] = k[h * hd + d];
        memcpy(values + h * head_floats + t * hd, v + h * hd, hd * sizeof *v);
    }
}

static void rope_rows(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    const struct rope_run *r = arg;
    const struct device_model *m = r->m;
    const struct model_config *c = m->config;
    (void)thread_idx;
    uint32_t half = c->rotary_dim / 2, hd = c->head_dim;
    unsigned rope = c->layers[r->layer].rope_idx;
    for (size_t row = begin; row < end; row++) {
        const float *cosines = m->trig + ((size_t)rope * m->limits.max_rows + row) * 2 * half;
        float *q = r->qkv + row * m->qkv_rows;
        for (uint32_t h = 0; h < c->n_heads + c->n_kv_heads; h++)
            m->isa->rotate(q + h * hd, q + h * hd + half, cosines, cosines + half, half);
        const float *k = q + (size_t)c->n_heads * hd, *v = k + m->kv_dim;
        write_row(r, row, k, v);
    }
}

int cpu_rope_write(struct op_context *c, const struct op_step *s, uint32_t layer, void *qkv)
{
    struct rope_run r = {cpu_context(c), s, layer, qkv};
    worker_pool_run(r.m->pool, s->counts->n_rows, 2, rope_rows, &r);
    return 0;
}
