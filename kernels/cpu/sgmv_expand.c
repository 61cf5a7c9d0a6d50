/*
 * sgmv_expand: y[row, row0_p + n] += segment scale * module scale * sum_i B_jp[n, i] v_jp[row, i].
 * The threads share out the panels of the widest module, so that overlapping segments add to an
 * output one after the other, in the order of the segments. v is scaled in place first.
 */
#include "kernels/cpu/cpu_impl.h"

struct expand_run {
    struct device_model *m;
    struct cpu_rows rows;
    uint32_t layer;
    enum site site;
    float *y;
    size_t ldy;
};

/* Panels [begin, end) of a part, as far as it has them. */
static void expand_part(const struct expand_run *r, uint32_t segment, unsigned part,
                        const struct cpu_part *p, uint32_t begin, uint32_t end)
{
    const struct step_segment *g = &r->rows.segments[segment];
    const float *v = r->m->v + r->m->v_first[segment * CPU_SITE_PARTS + part];
    float *y = r->y + g->row0 * r->ldy + p->row0;
    if (end > p->b.n_units)
        end = p->b.n_units;
    for (uint32_t u = begin; u < end;) {
        uint32_t run;
        const void *panels = cpu_piece_at(&p->b, u, &run);
        if (run > end - u)
            run = end - u;
        r->m->isa->gemm(p->b_dtype, panels, p->d_out - u * ISA_PANEL, p->rank, 0, run, v, p->rank,
                        g->n_rows, y + u * ISA_PANEL, r->ldy, true);
        u += run;
    }
}

static void expand_panels(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    const struct expand_run *r = arg;
    (void)thread_idx;
    for (uint32_t j = 0; j < r->rows.n_segments; j++) {
        unsigned n;
        const struct cpu_part *p =
            cpu_slot_parts(r->m, r->rows.segments[j].slot, r->layer, r->site, &n);
        for (unsigned i = 0; i < n && i < CPU_SITE_PARTS; i++) {
            if (p[i].rank > 0)
                expand_part(r, j, i, &p[i], (uint32_t)begin, (uint32_t)end);
        }
    }
}

int cpu_sgmv_expand(struct op_context *c, const struct op_step *s, uint32_t layer, enum site site,
                    enum op_space space, void *y)
{
    struct device_model *m = cpu_context(c);
    struct expand_run r = {m, cpu_rows_of(s, space), layer, site, y, cpu_out_stride(m, site)};
    uint32_t n_panels = 0;
    for (uint32_t j = 0; j < r.rows.n_segments; j++) {
        const struct step_segment *g = &r.rows.segments[j];
        unsigned n;
        const struct cpu_part *p = cpu_slot_parts(m, g->slot, layer, site, &n);
        for (unsigned i = 0; i < n && i < CPU_SITE_PARTS; i++) {
            float *v = m->v + m->v_first[j * CPU_SITE_PARTS + i];
            for (size_t k = 0; k < (size_t)g->n_rows * p[i].rank; k++)
                v[k] *= g->scale * p[i].scale;
            if (p[i].b.n_units > n_panels)
                n_panels = p[i].b.n_units;
        }
    }
    worker_pool_run(m->pool, n_panels, 1, expand_panels, &r);
    return 0;
}
