/*
 * --deterministic: a row's sums are the same alone and in any batch, in any chunk of its prompt.
 *
 * Every step is launched as one of many rows (the consumers then are the same kernels whatever the
 * rows: cuda_fixed_rows); products and shrinks are those of launch_moe.h, whose sums depend on the
 * shape alone; attention adds keys in parts at fixed positions, for rows of decode as of prefill.
 * Nothing is recorded: a step costs its launches.
 */
#include "kernels/cuda/cuda_impl.h"

struct step_limits cuda_fixed_limits(const struct cuda_backend *be, const struct step_limits *l)
{
    struct step_limits raised = *l;
    raised.max_rows = cuda_fixed_rows(be, l->max_rows);
    raised.max_logit_rows = cuda_fixed_rows(be, l->max_logit_rows);
    return raised;
}

uint32_t cuda_fixed_rows(const struct cuda_backend *be, uint32_t n)
{
    return be->deterministic && n && n <= CU_SMALL_ROWS ? CU_SMALL_ROWS + 1 : n;
}

int cuda_linear_fixed(struct device_model *m, const struct cuda_fixed *f, struct cu_expand *e)
{
    uint32_t n = f->n_real, tile = n <= 8    ? 8
                                   : n <= 16 ? 16
                                   : n <= 32 ? 32
                                   : n <= 64 ? 64
                                             : CU_MAX_TILE;
    struct cu_grouped g = {.w = f->w,
                           .x = f->x,
                           .n = e->n,
                           .k = f->k,
                           .n_rows = f->n_rows,
                           .tile = tile,
                           .tile_bound = (n + tile - 1) / tile,
                           .segments = e->segments,
                           .n_segments = e->n_segments,
                           .columns = e->columns,
                           .sites = e->sites,
                           .site_stride = e->site_stride,
                           .v = m->v16,
                           .v_width = f->v_width,
                           .v_padded = 1};
    int rc = 0;
    if (g.segments && g.v_width) {
        e->v16 = m->v16;
        e->v_width = f->v_width;
        rc = cu_grouped_shrink(&g, m->compute);
    }
    g.segments = NULL; // B is added behind the product
    e->y = f->wide;
    e->y16 = f->wide ? NULL : m->y16;
    return rc ? rc
              : cu_grouped_gemm(&g, f->wide ? CU_STORE_F32 : CU_STORE_BF16,
                                f->wide ? (void *)f->wide : m->y16, m->compute);
}

/* Rows of decode part by part when the scratch holds their parts, else like the others: the bits
 * are the same. */
int cuda_attention_fixed(struct device_model *m, const struct cuda_run *run,
                         const struct cu_attention *a, const struct cu_rows *r)
{
    const struct step *step = run->step;
    uint32_t n = step->n_decode_rows, n_parts = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t parts = step->sequences[i].position0 / CU_PART_KEYS + 1;
        n_parts = parts > n_parts ? parts : n_parts;
    }
    if ((uint64_t)n * n_parts > (uint64_t)CUDA_MAX_SPLIT * m->limits.max_sequences)
        n_parts = n = 0;
    int rc = cu_attention_fixed(a, r, run->blocks.segment, run->blocks.row, n, n_parts, m->compute);
    return rc ? rc
              : cu_attention_fixed(a, r, run->blocks.segment + n, run->blocks.row + n,
                                   run->blocks.n - n, 0, m->compute);
}
