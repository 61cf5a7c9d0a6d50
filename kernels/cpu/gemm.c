/*
 * gemm: y[row, n] = sum_k W[n, k] x[row, k]; rows whose owner replaces a module's matrix
 * (modules_to_save) are computed again with theirs, and under a tied head the logits of replaced
 * rows (trainable tokens).
 * Versions: panels of 32 outputs, one stream over the weights whatever the number of rows; the
 * threads share out the panels. Bytes: W once, y once, x once a group of four panels.
 */
#include "kernels/cpu/cpu_impl.h"

enum { SHARED_VALUES = 32768, MANY_PANELS = 64 };

struct gemm_run {
    struct device_model *m;
    const struct cpu_matrix *w;
    const float *x;
    float *y;
    size_t ldx, ldy, n_rows;
};

static void gemm_panels(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    const struct gemm_run *r = arg;
    (void)thread_idx;
    r->m->isa->gemm(r->w->dtype, r->w->data, r->w->n_rows, r->w->n_cols, begin, end, r->x, r->ldx,
                    r->n_rows, r->y, r->ldy, false);
}

static void pack_rows(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    const struct gemm_run *r = arg;
    (void)thread_idx;
    r->m->isa->pack(r->w->dtype, r->w->n_cols, r->x, r->ldx, r->n_rows, begin, end, r->m->packed);
}

static void packed_panels(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    const struct gemm_run *r = arg;
    (void)thread_idx;
    r->m->isa->gemm_packed(r->w->dtype, r->w->data, r->w->n_rows, r->w->n_cols, begin, end,
                           r->m->packed, r->n_rows, r->y, r->ldy, false);
}

/* With few panels a thread, packing the activations in every thread would cost as much as the
 * product; they are packed once then, for a pause of all threads more. */
static void run_matrix(struct gemm_run *r)
{
    size_t n_panels = (r->w->n_rows + ISA_PANEL - 1) / ISA_PANEL;
    size_t n_threads = worker_pool_size(r->m->pool), n_rows = r->n_rows;
    if (n_threads == 1 || n_rows * r->w->n_cols < SHARED_VALUES ||
        n_panels >= n_threads * MANY_PANELS) {
        worker_pool_run(r->m->pool, n_panels, 1, gemm_panels, r);
        return;
    }
    for (size_t row = 0; row < n_rows; row += CPU_PACK_ROWS) {
        struct gemm_run part = *r;
        part.n_rows = n_rows - row < CPU_PACK_ROWS ? n_rows - row : CPU_PACK_ROWS;
        part.x += row * r->ldx;
        part.y += row * r->ldy;
        worker_pool_run(r->m->pool, isa_units(part.n_rows, r->w->n_cols), 1, pack_rows, &part);
        worker_pool_run(r->m->pool, n_panels, 1, packed_panels, &part);
    }
}

/* The rows of one owner. */
static void replaced_rows(struct gemm_run r, const struct step_segment *g, const struct cpu_part *p)
{
    float *y = r.y + g->row0 * r.ldy + p->row0;
    const float *x = r.x + g->row0 * r.ldx;
    if (p->full && p->full->matrix.data) {
        struct gemm_run full = {r.m, &p->full->matrix, x, y, r.ldx, r.ldy, g->n_rows};
        run_matrix(&full);
    }
    uint32_t run;
    for (uint32_t i = 0; i < p->n_rows; i++) {
        const char *a = cpu_piece_at(&p->rows, i, &run);
        r.m->isa->dots(DTYPE_F32, a, 0, 1, r.ldx, x, r.ldx, g->n_rows, y + p->row_ids[i], r.ldy);
    }
}

int cpu_gemm(struct op_context *c, const struct op_step *s, uint32_t layer, enum site site,
             enum op_space space, const void *x, void *y)
{
    struct device_model *m = cpu_context(c);
    struct cpu_rows rows = cpu_rows_of(s, space);
    struct gemm_run r = {.m = m,
                         .w = cpu_site_matrix(m, layer, site),
                         .x = x,
                         .y = y,
                         .ldy = cpu_out_stride(m, site),
                         .n_rows = rows.n_rows};
    r.ldx = r.w->n_cols;
    run_matrix(&r);
    if (!(s->kinds & (ADAPTER_FULL | ADAPTER_TOKENS)))
        return 0;
    for (uint32_t j = 0; j < rows.n_segments; j++) {
        unsigned n;
        const struct cpu_part *p = cpu_slot_parts(m, rows.segments[j].slot, layer, site, &n);
        for (unsigned i = 0; i < n; i++)
            replaced_rows(r, &rows.segments[j], &p[i]);
    }
    return 0;
}
