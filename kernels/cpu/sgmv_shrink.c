/*
 * sgmv_shrink: v_jp[row, i] = sum_k A_jp[i, k] x[row, k] for every segment j and module p.
 * v lies as [segment][module][row of the segment][rank]. The threads share out (segment, module,
 * four rows of A): an adapter's A is read once a step.
 */
#include <string.h>

#include "kernels/cpu/cpu_impl.h"
#include "libcore/base/sys.h"

enum { RANK_BLOCK = 4 };

struct shrink_run {
    struct device_model *m;
    struct cpu_rows rows;
    uint32_t layer;
    enum site site;
    const float *x;
};

/* Floats of v that the step's segments need at a site; fills v_first. */
static size_t layout(struct device_model *m, const struct cpu_rows *rows, uint32_t layer,
                     enum site site, size_t *n_blocks)
{
    size_t at = 0;
    *n_blocks = 0;
    for (uint32_t j = 0; j < rows->n_segments; j++) {
        unsigned n;
        const struct cpu_part *p = cpu_slot_parts(m, rows->segments[j].slot, layer, site, &n);
        for (unsigned i = 0; i < n && i < CPU_SITE_PARTS; i++) {
            m->v_first[j * CPU_SITE_PARTS + i] = at;
            at += (size_t)rows->segments[j].n_rows * p[i].rank;
            *n_blocks += (p[i].rank + RANK_BLOCK - 1) / RANK_BLOCK;
        }
    }
    return at;
}

/* Ranks [i0, i0 + n) of one part over the rows of its segment. */
static void shrink_block(const struct shrink_run *r, uint32_t segment, unsigned part,
                         const struct cpu_part *p, uint32_t i0, uint32_t n)
{
    const struct step_segment *g = &r->rows.segments[segment];
    float *v = r->m->v + r->m->v_first[segment * CPU_SITE_PARTS + part];
    for (uint32_t i = i0; i < i0 + n;) {
        uint32_t run;
        const char *a = cpu_piece_at(&p->a, i, &run);
        if (run > i0 + n - i)
            run = i0 + n - i;
        r->m->isa->dots(p->a_dtype, a, p->a.unit, run, p->d_in, r->x + (size_t)g->row0 * p->d_in,
                        p->d_in, g->n_rows, v + i, p->rank);
        i += run;
    }
}

static void shrink_blocks(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    const struct shrink_run *r = arg;
    (void)thread_idx;
    size_t at = 0;
    for (uint32_t j = 0; j < r->rows.n_segments && at < end; j++) {
        unsigned n;
        const struct cpu_part *p =
            cpu_slot_parts(r->m, r->rows.segments[j].slot, r->layer, r->site, &n);
        for (unsigned i = 0; i < n && i < CPU_SITE_PARTS; i++) {
            size_t blocks = (p[i].rank + RANK_BLOCK - 1) / RANK_BLOCK;
            size_t first = at > begin ? at : begin, last = at + blocks < end ? at + blocks : end;
            if (first < last) {
                uint32_t i0 = (uint32_t)(first - at) * RANK_BLOCK;
                uint32_t i1 = (uint32_t)(last - at) * RANK_BLOCK;
                shrink_block(r, j, i, &p[i], i0, (i1 < p[i].rank ? i1 : p[i].rank) - i0);
            }
            at += blocks;
        }
    }
}

/* v grows to the largest step seen; a step as large as before allocates nothing. */
static int reserve(struct device_model *m, size_t n)
{
    if (n <= m->v_floats)
        return 0;
    sys_free(m->v);
    m->v = sys_malloc(n * sizeof *m->v);
    m->v_floats = m->v ? n : 0;
    return m->v ? 0 : ERR_NO_MEMORY;
}

int cpu_sgmv_shrink(struct op_context *c, const struct op_step *s, uint32_t layer, enum site site,
                    enum op_space space, const void *x)
{
    struct device_model *m = cpu_context(c);
    struct shrink_run r = {m, cpu_rows_of(s, space), layer, site, x};
    size_t n_blocks;
    int rc = reserve(m, layout(m, &r.rows, layer, site, &n_blocks));
    if (rc == 0)
        worker_pool_run(m->pool, n_blocks, 1, shrink_blocks, &r);
    return rc;
}
