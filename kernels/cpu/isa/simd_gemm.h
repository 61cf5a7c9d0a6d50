/*
 * simd_gemm: the product over panels, for one instruction set. A part of simd.h.
 *
 * A block of M activation rows times V vectors of outputs keeps M * V sums in registers; for every
 * k it loads V vectors of weights once and broadcasts M activations, which were packed to lie side
 * by side. Few rows take several panels at once, so that there are enough independent sums to hide
 * the latency of the multiply-add. 48 rows pass while a block of 1024 k of the weights is in the
 * caches, so up to 48 rows read the weights from memory once. CPU time of one core of an AMD EPYC
 * (Zen 5), 2048 x 4096 bf16: AVX-512 250 GFLOP/s from 8 rows on, AVX2 112, plain 36; one row 73, 74
 * and 32 GB/s out of the L3. alone with: -DISA_WIDTH=4 -D'ISA_BLOCKS(X)=X(1, 8)'
 */
#ifndef KERNELS_CPU_ISA_SIMD_GEMM_H
#define KERNELS_CPU_ISA_SIMD_GEMM_H

#include "kernels/cpu/isa/simd.h"

INLINE void load_sums(vf *acc, const float *y, int n, bool add)
{
    UNROLL for (int i = 0; i < n; i++) acc[i] = add ? load(y + i * W) : (vf){0};
}

/*
 * One pass: M rows of packed activations, x[k][M], over V vectors of outputs (a part of a panel, or
 * whole panels `stride` bytes apart), n_steps k (16-bit types: pairs of k). Only the first `rows`
 * rows are read from and written to y.
 */
#define DEFINE_BLOCK(M, V)                                                                         \
    INLINE void block_##M##x##V(enum dtype t, const char *w, size_t stride, size_t n_steps,        \
                                const float *x, size_t rows, float *y, size_t ldy, bool add)       \
    {                                                                                              \
        vf acc[M][V];                                                                              \
        UNROLL for (int m = 0; m < (M); m++)                                                       \
            load_sums(acc[m], y + m * ldy, (V), add && m < (int)rows);                             \
        for (size_t i = 0; i < n_steps; i++, w += ISA_PANEL * 4) {                                 \
            vu v[V];                                                                               \
            UNROLL for (int n = 0; n < (V); n++) memcpy(                                           \
                &v[n], w + n / PANEL_VECTORS * stride + n % PANEL_VECTORS * W * 4, sizeof v[n]);   \
            vf part[V];                                                                            \
            UNROLL for (int n = 0; n < (V); n++) part[n] =                                         \
                t == DTYPE_F32 ? (vf)v[n] : pair_even(t, v[n]);                                    \
            UNROLL for (int m = 0; m < (M); m++)                                                   \
            {                                                                                      \
                vf xm = splat(x[m]);                                                               \
                UNROLL for (int n = 0; n < (V); n++) acc[m][n] += part[n] * xm;                    \
            }                                                                                      \
            x += (M);                                                                              \
            if (t == DTYPE_F32)                                                                    \
                continue;                                                                          \
            UNROLL for (int n = 0; n < (V); n++) part[n] = pair_odd(t, v[n]);                      \
            UNROLL for (int m = 0; m < (M); m++)                                                   \
            {                                                                                      \
                vf xm = splat(x[m]);                                                               \
                UNROLL for (int n = 0; n < (V); n++) acc[m][n] += part[n] * xm;                    \
            }                                                                                      \
            x += (M);                                                                              \
        }                                                                                          \
        UNROLL for (int m = 0; m < (M); m++)                                                       \
        {                                                                                          \
            if (m < (int)rows)                                                                     \
                UNROLL for (int n = 0; n < (V); n++) store(y + m * ldy + n * W, acc[m][n]);        \
        }                                                                                          \
    }                                                                                              \
    static void run_##M##x##V(enum dtype t, const char *w, size_t stride, size_t n_steps,          \
                              const float *x, size_t rows, float *y, size_t ldy, bool add)         \
    {                                                                                              \
        if (t == DTYPE_BF16)                                                                       \
            block_##M##x##V(DTYPE_BF16, w, stride, n_steps, x, rows, y, ldy, add);                 \
        else if (t == DTYPE_F16)                                                                   \
            block_##M##x##V(DTYPE_F16, w, stride, n_steps, x, rows, y, ldy, add);                  \
        else                                                                                       \
            block_##M##x##V(DTYPE_F32, w, stride, n_steps, x, rows, y, ldy, add);                  \
    }

ISA_BLOCKS(DEFINE_BLOCK)

struct block {
    unsigned rows, vectors; // vectors divide a panel's or are whole panels'
    void (*run)(enum dtype t, const char *w, size_t stride, size_t n_steps, const float *x,
                size_t rows, float *y, size_t ldy, bool add);
};

#define BLOCK_ENTRY(M, V) {M, V, run_##M##x##V},
/* By rising rows, then falling vectors; every row count has an entry of at most one panel. */
static const struct block blocks[] = {ISA_BLOCKS(BLOCK_ENTRY)};
enum { N_BLOCKS = sizeof blocks / sizeof blocks[0] };

/* The block for n_rows: the smallest that holds them, else the largest. */
static const struct block *find_block(size_t n_rows, size_t n_vectors)
{
    size_t rows = blocks[N_BLOCKS - 1].rows;
    for (int i = N_BLOCKS - 1; i >= 0; i--)
        rows = blocks[i].rows >= n_rows ? blocks[i].rows : rows;
    int i = 0;
    while (blocks[i].rows != rows || blocks[i].vectors > n_vectors)
        i++;
    return &blocks[i];
}

/* Activations of some rows and some k, in blocks of rows, each as [k][rows of the block]. */
struct packed_rows {
    size_t n_rows, n_k; // n_k: even where weights come in pairs
    float x[ROW_CHUNK * K_BLOCK];
};

static void pack_x(struct packed_rows *p, const float *x, size_t ldx, size_t n_rows, size_t n_k)
{
    p->n_rows = n_rows;
    p->n_k = (n_k + 1) / 2 * 2;
    float *to = p->x;
    for (size_t row = 0; row < n_rows;) {
        size_t m = find_block(n_rows - row, PANEL_VECTORS)->rows;
        size_t rows = n_rows - row < m ? n_rows - row : m;
        if (rows < m || n_k < p->n_k)
            memset(to, 0, m * p->n_k * sizeof *to);
        const float *from = x + row * ldx;
        for (size_t k = 0; k < n_k; k++) {
            for (size_t r = 0; r < rows; r++)
                to[k * m + r] = from[r * ldx + k];
        }
        to += m * p->n_k;
        row += rows;
    }
}

/* The packed rows over `n_panels` panels at one block of k, as many panels at a time as the first
 * block of rows takes. */
static void run_panels(enum dtype t, const char *w, size_t stride, size_t n_panels, size_t n_k,
                       const struct packed_rows *p, float *y, size_t ldy, bool add)
{
    size_t n_steps = t == DTYPE_F32 ? n_k : p->n_k / 2;
    for (size_t panel = 0; panel < n_panels;) {
        size_t vectors = find_block(p->n_rows, (n_panels - panel) * PANEL_VECTORS)->vectors;
        vectors = vectors < PANEL_VECTORS ? PANEL_VECTORS : vectors;
        const float *x = p->x;
        for (size_t row = 0; row < p->n_rows;) {
            const struct block *b = find_block(p->n_rows - row, vectors);
            size_t rows = p->n_rows - row < b->rows ? p->n_rows - row : b->rows;
            for (size_t v = 0; v < vectors; v += b->vectors)
                b->run(t, w + (panel + v / PANEL_VECTORS) * stride + v % PANEL_VECTORS * W * 4,
                       stride, n_steps, x, rows, y + row * ldy + panel * ISA_PANEL + v * W, ldy,
                       add);
            x += b->rows * p->n_k;
            row += rows;
        }
        panel += vectors / PANEL_VECTORS;
    }
}

/* The last panel when n_out is no multiple of 32: through a small buffer. */
static void run_edge(enum dtype t, const char *w, size_t stride, size_t n_k,
                     const struct packed_rows *p, float *y, size_t ldy, size_t n_valid, bool add)
{
    float part[ROW_CHUNK * ISA_PANEL];
    if (add) {
        memset(part, 0, sizeof part);
        for (size_t r = 0; r < p->n_rows; r++)
            memcpy(part + r * ISA_PANEL, y + r * ldy, n_valid * sizeof *y);
    }
    run_panels(t, w, stride, 1, n_k, p, part, ISA_PANEL, add);
    for (size_t r = 0; r < p->n_rows; r++)
        memcpy(y + r * ldy, part + r * ISA_PANEL, n_valid * sizeof *y);
}

/* One unit over the panels [panel0, panel1). */
static void run_unit(enum dtype t, const void *weights, size_t n_out, size_t k, size_t panel0,
                     size_t panel1, const struct packed_rows *p, struct isa_unit u, float *y,
                     size_t ldy, bool add)
{
    size_t stride = isa_panel_bytes(t, k);
    size_t whole = n_out / ISA_PANEL < panel1 ? n_out / ISA_PANEL : panel1;
    const char *w = (const char *)weights + isa_panel_bytes(t, u.k);
    y += u.row * ldy;
    add |= u.k > 0;
    if (panel0 < whole)
        run_panels(t, w + panel0 * stride, stride, whole - panel0, u.n_k, p, y + panel0 * ISA_PANEL,
                   ldy, add);
    if (whole < panel1)
        run_edge(t, w + whole * stride, stride, u.n_k, p, y + whole * ISA_PANEL, ldy,
                 n_out - whole * ISA_PANEL, add);
}

static void gemm(enum dtype t, const void *weights, size_t n_out, size_t k, size_t panel0,
                 size_t panel1, const float *x, size_t ldx, size_t n_rows, float *y, size_t ldy,
                 bool add)
{
    struct packed_rows p;
    for (size_t i = 0; i < isa_units(n_rows, k); i++) {
        struct isa_unit u = isa_unit_at(n_rows, k, i);
        pack_x(&p, x + u.row * ldx + u.k, ldx, u.n_rows, u.n_k);
        run_unit(t, weights, n_out, k, panel0, panel1, &p, u, y, ldy, add);
    }
}

_Static_assert(sizeof(struct packed_rows) <= ISA_UNIT_BYTES, "a unit holds packed rows");

static void pack_units(enum dtype t, size_t k, const float *x, size_t ldx, size_t n_rows,
                       size_t unit0, size_t unit1, void *units)
{
    (void)t;
    for (size_t i = unit0; i < unit1; i++) {
        struct isa_unit u = isa_unit_at(n_rows, k, i);
        void *to = (char *)units + i * ISA_UNIT_BYTES;
        pack_x(to, x + u.row * ldx + u.k, ldx, u.n_rows, u.n_k);
    }
}

static void gemm_packed(enum dtype t, const void *weights, size_t n_out, size_t k, size_t panel0,
                        size_t panel1, const void *units, size_t n_rows, float *y, size_t ldy,
                        bool add)
{
    for (size_t i = 0; i < isa_units(n_rows, k); i++) {
        const void *p = (const char *)units + i * ISA_UNIT_BYTES;
        run_unit(t, weights, n_out, k, panel0, panel1, p, isa_unit_at(n_rows, k, i), y, ldy, add);
    }
}

#endif
