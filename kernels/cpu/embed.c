/*
 * embed: x[row] = embed_scale * g * (E[token] + sum_j s_j B_j A_j[:, token]), and `begin`, which
 * makes a step's tokens and rotary tables ready.
 * Bytes: one row of E (of A: r values) a token, and B of every adapter that has one.
 */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu_impl.h"

// ---- begin
// ---------------------------------------------------------------------------------------

static void trig_rows(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    struct {
        struct device_model *m;
        const struct op_step *s;
    } *a = arg;
    (void)thread_idx;
    struct device_model *m = a->m;
    uint32_t half = m->config->rotary_dim / 2;
    for (size_t row = begin; row < end; row++) {
        const struct step_sequence *seq = &a->s->sequences[a->s->row_sequence[row]];
        for (unsigned rope = 0; rope < m->n_ropes; rope++) {
            unsigned regime = m->config->rope[rope].type == ROPE_LONGROPE ? seq->rope_regime : 0;
            const float *inv_freq = m->inv_freq[rope][regime];
            float scale = m->rope_scale[rope][regime];
            float *to = m->trig + ((size_t)rope * m->limits.max_rows + row) * 2 * half;
            float position = (float)a->s->row_position[row];
            for (uint32_t i = 0; i < half; i++) {
                // The product is rounded to float32 as in transformers; its cosine is exact.
                float angle = position * inv_freq[i];
                to[i] = (float)cos((double)angle) * scale;
                to[half + i] = (float)sin((double)angle) * scale;
            }
        }
    }
}

int cpu_begin(struct op_context *c, const struct op_step *s)
{
    struct device_model *m = cpu_context(c);
    int32_t *tokens = (int32_t *)(uintptr_t)s->tokens; // the step's own copy
    for (uint32_t i = 0; i < s->counts->n_rows; i++) {
        if (tokens[i] >= 0)
            continue;
        uint32_t j = (uint32_t)~tokens[i];
        tokens[i] = j < m->n_prev_ids ? m->prev_ids[j] : 0;
    }
    struct {
        struct device_model *m;
        const struct op_step *s;
    } arg = {m, s};
    worker_pool_run(m->pool, s->counts->n_rows, 4, trig_rows, &arg);
    return 0;
}

// ---- embed
// ---------------------------------------------------------------------------------------

struct embed_run {
    struct device_model *m;
    const struct op_step *s;
    float *x;
};

/* Index of `id` among a part's replaced rows, or -1. */
static int64_t find_row(const struct cpu_part *p, uint32_t id)
{
    uint32_t low = 0, high = p->n_rows;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (p->row_ids[mid] < id)
            low = mid + 1;
        else
            high = mid;
    }
    return low < p->n_rows && p->row_ids[low] == id ? (int64_t)low : -1;
}

static void base_row(const struct embed_run *r, uint32_t row, uint32_t token, float *x)
{
    struct device_model *m = r->m;
    const struct cpu_matrix *e = &m->embed;
    int32_t owner = r->s->rows.owner[row];
    unsigned n = 0;
    const struct cpu_part *p =
        owner < 0 ? NULL : cpu_slot_parts(m, r->s->rows.items[owner].slot, 0, SITE_EMBED, &n);
    for (unsigned i = 0; i < n; i++) {
        if (p[i].full)
            e = &p[i].full->matrix;
    }
    cpu_matrix_row(m->isa, e, token < e->n_rows ? token : 0, x);
    for (unsigned i = 0; i < n; i++) {
        int64_t at = p[i].n_rows ? find_row(&p[i], token) : -1;
        uint32_t run;
        if (at >= 0)
            memcpy(x, cpu_piece_at(&p[i].rows, (uint32_t)at, &run), e->n_cols * sizeof *x);
    }
}

/* x += s B A[:, token] of one part. */
static void add_low_rank(const struct embed_run *r, const struct cpu_part *p, uint32_t token,
                         float scale, float *v, float *x)
{
    if (p->rank == 0 || token >= p->a.n_units)
        return;
    uint32_t run, n_panels = p->b.n_units;
    r->m->isa->to_f32(p->a_dtype, cpu_piece_at(&p->a, token, &run), v, p->rank);
    for (uint32_t i = 0; i < p->rank; i++)
        v[i] *= scale * p->scale;
    for (uint32_t u = 0; u < n_panels; u += run) {
        const void *panels = cpu_piece_at(&p->b, u, &run);
        r->m->isa->gemm(p->b_dtype, panels, p->d_out - u * ISA_PANEL, p->rank, 0, run, v, p->rank,
                        1, x + u * ISA_PANEL, p->d_out, true);
    }
}

static void embed_rows(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    const struct embed_run *r = arg;
    struct device_model *m = r->m;
    const struct op_step *s = r->s;
    uint32_t d = m->config->d_model;
    float *v = m->thread_scratch + thread_idx * m->thread_floats;
    float embed_scale = (float)m->config->embed_scale;
    for (size_t row = begin; row < end; row++) {
        float *x = r->x + row * d;
        uint32_t token = (uint32_t)s->tokens[row];
        base_row(r, (uint32_t)row, token, x);
        for (uint32_t j = 0; j < s->counts->n_segments && (s->kinds & ADAPTER_EMBED); j++) {
            const struct step_segment *g = &s->rows.items[j];
            if (row < g->row0 || row >= g->row0 + g->n_rows)
                continue;
            unsigned n;
            const struct cpu_part *p = cpu_slot_parts(m, g->slot, 0, SITE_EMBED, &n);
            for (unsigned i = 0; i < n; i++) {
                add_low_rank(r, &p[i], token, g->scale, v, x);
                if (p[i].gain)
                    m->isa->gain_bias(x, p[i].gain, NULL, d);
            }
        }
        for (uint32_t i = 0; embed_scale != 1.0f && i < d; i++)
            x[i] *= embed_scale;
    }
}

int cpu_embed(struct op_context *c, const struct op_step *s, void *x)
{
    struct embed_run r = {cpu_context(c), s, x};
    worker_pool_run(r.m->pool, s->counts->n_rows, 1, embed_rows, &r);
    return 0;
}
