/*
 * gain_bias: y = g y + b. g (DoRA) and a replaced b come from the row's owner; then every segment
 * adds segment scale * module scale * b_B (lora_bias).
 */
#include "kernels/cpu/cpu_impl.h"

struct bias_run {
    struct device_model *m;
    struct cpu_rows rows;
    uint32_t layer;
    enum site site;
    unsigned kinds;
    const float *bias;
    float *y;
    size_t ldy;
    uint32_t width;
};

static void owned_row(const struct bias_run *r, float *y, uint32_t slot)
{
    unsigned n;
    const struct cpu_part *p = cpu_slot_parts(r->m, slot, r->layer, r->site, &n);
    uint32_t done = 0;
    for (unsigned i = 0; i < n; i++) {
        if (!p[i].gain && !p[i].bias)
            continue;
        if (r->bias && p[i].row0 > done)
            r->m->isa->add(y + done, r->bias + done, p[i].row0 - done);
        const float *b = p[i].bias ? p[i].bias : r->bias ? r->bias + p[i].row0 : NULL;
        r->m->isa->gain_bias(y + p[i].row0, p[i].gain, b, p[i].d_out);
        done = p[i].row0 + p[i].d_out;
    }
    if (r->bias && r->width > done)
        r->m->isa->add(y + done, r->bias + done, r->width - done);
}

static void add_lora_biases(const struct bias_run *r, float *y, size_t row)
{
    for (uint32_t j = 0; j < r->rows.n_segments; j++) {
        const struct step_segment *g = &r->rows.segments[j];
        if (row < g->row0 || row >= g->row0 + g->n_rows)
            continue;
        unsigned n;
        const struct cpu_part *p = cpu_slot_parts(r->m, g->slot, r->layer, r->site, &n);
        for (unsigned i = 0; i < n; i++) {
            if (p[i].lora_bias)
                r->m->isa->axpy(y + p[i].row0, p[i].lora_bias, g->scale * p[i].scale, p[i].d_out);
        }
    }
}

static void bias_rows(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    const struct bias_run *r = arg;
    (void)thread_idx;
    for (size_t row = begin; row < end; row++) {
        float *y = r->y + row * r->ldy;
        int32_t owner = r->rows.owner[row];
        if (owner >= 0 && (r->kinds & (ADAPTER_DORA | ADAPTER_BIAS)))
            owned_row(r, y, r->rows.segments[owner].slot);
        else if (r->bias)
            r->m->isa->add(y, r->bias, r->width);
        if (r->kinds & ADAPTER_LORA_BIAS)
            add_lora_biases(r, y, row);
    }
}

int cpu_gain_bias(struct op_context *c, const struct op_step *s, uint32_t layer, enum site site,
                  enum op_space space, void *y)
{
    struct device_model *m = cpu_context(c);
    struct bias_run r = {.m = m,
                         .rows = cpu_rows_of(s, space),
                         .layer = layer,
                         .site = site,
                         .kinds = s->kinds,
                         .bias = site == SITE_HEAD ? NULL : m->layers[layer].bias[site],
                         .y = y,
                         .ldy = cpu_out_stride(m, site)};
    uint32_t cols;
    cpu_site_shape(m->config, site, &r.width, &cols);
    worker_pool_run(m->pool, r.rows.n_rows, 1, bias_rows, &r);
    return 0;
}
