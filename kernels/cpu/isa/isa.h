/*
 * isa: the inner loops of the CPU back end, compiled once for every instruction set from one source
 * (simd.h) and chosen at run time by what the processor and the system say (never assumed).
 *
 * Panels. A matrix [n_out, k] that is read whole at every step lies in panels of ISA_PANEL output
 * rows: a panel holds, for k = 0, 1, …, its 32 values side by side; 16-bit types hold two k at a
 * time, [k / 2][32][2] (an odd k and missing rows are padded with zeros). So one pass over a panel
 * is one stream of memory whatever the number of activation rows, and the order of summation of
 * every output is k = 0, 1, 2, … with one accumulator: results do not depend on the batch, on the
 * number of threads or on the instruction set (but for fused multiply-add).
 *
 * All functions: thread-safe, allocate nothing; float32 sums.
 */
#ifndef KERNELS_CPU_ISA_ISA_H
#define KERNELS_CPU_ISA_ISA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/tensor/dtype.h"

enum {
    ISA_PANEL = 32,
    ISA_ATTEND_QUERIES = 16,
    ISA_ATTEND_KEYS = 64,
    // Packed activations: a unit is up to 48 rows by 1024 k, in whatever form the product likes.
    ISA_UNIT_ROWS = 48,
    ISA_UNIT_K = 1024,
    ISA_UNIT_BYTES = ISA_UNIT_ROWS * ISA_UNIT_K * 4 + 256
};

/*
 * One block of keys of one key/value head against some queries; see isa_table.attend. The keys lie
 * in pieces of `piece` (a power of two; pages, or parts of one): piece i holds its keys as
 * [head_dim][.], `k_stride` floats from one d to the next, and its values as [piece][head_dim].
 */
struct isa_attend {
    const float *q; // [head_dim][ISA_ATTEND_QUERIES], scaled already; 0 beyond n_queries
    const float *k[ISA_ATTEND_KEYS], *v[ISA_ATTEND_KEYS];
    size_t k_stride;
    unsigned piece, n_queries, n_keys, head_dim;
    const int *first, *last; // per query: which keys of the block it sees, [first, last)
    float softcap;           // 0: none
    float *out;              // [n_queries rounded up to 4, head_dim]: running weighted sum
    float *max, *sum;        // per query: running maximum and sum of weights
    float *buffer;           // scratch [ISA_ATTEND_KEYS, head_dim]
};

struct isa_table {
    const char *name; // "plain", "avx2", "avx512", "amx"

    /* y[row, n] (+)= sum_k w[n, k] x[row, k], k > 0, for the panels [panel0, panel1) of a matrix of
     * n_out rows at `w`; t is F32, BF16 or F16. y and x are row-major with strides in floats; y
     * points to output 0. */
    void (*gemm)(enum dtype t, const void *w, size_t n_out, size_t k, size_t panel0, size_t panel1,
                 const float *x, size_t ldx, size_t n_rows, float *y, size_t ldy, bool add);
    /* The same in two steps, so that several threads share one packing: pack() writes the units
     * [unit0, unit1) of isa_units(n_rows, k) at `units` (64-byte aligned, ISA_UNIT_BYTES each),
     * gemm_packed() reads them all. The same bits as gemm(). */
    void (*pack)(enum dtype t, size_t k, const float *x, size_t ldx, size_t n_rows, size_t unit0,
                 size_t unit1, void *units);
    void (*gemm_packed)(enum dtype t, const void *w, size_t n_out, size_t k, size_t panel0,
                        size_t panel1, const void *units, size_t n_rows, float *y, size_t ldy,
                        bool add);
    /* out[row * ldo + i] = sum_k a[i, k] x[row, k] for n_a rows of `a`, row-major, `a_stride` bytes
     * apart. */
    void (*dots)(enum dtype t, const void *a, size_t a_stride, size_t n_a, size_t k, const float *x,
                 size_t ldx, size_t n_rows, float *out, size_t ldo);
    void (*to_f32)(enum dtype t, const void *src, float *dst, size_t n);
    /* y = x / sqrt(mean(x^2) + eps) * w */
    void (*rms_norm)(const float *x, const float *w, float *y, size_t n, float eps);
    void (*silu_mul)(const float *gate, const float *up, float *out, size_t n);
    void (*gelu_tanh_mul)(const float *gate, const float *up, float *out, size_t n);
    void (*add)(float *y, const float *x, size_t n);           // y += x
    void (*axpy)(float *y, const float *x, float a, size_t n); // y += a x
    void (*gain_bias)(float *y, const float *g, const float *b,
                      size_t n); // y = g y + b, NULL: none
    /* Online softmax over one block of keys: adds to out, max and sum (start: 0, -INFINITY, 0).
     * A query that sees no key of the block is left bit for bit. */
    void (*attend)(const struct isa_attend *a);
    /* Rotates the two halves of `n_half` values: (a, b) -> (a c - b s, b c + a s). */
    void (*rotate)(float *a, float *b, const float *c, const float *s, size_t n_half);
    float (*max)(const float *x, size_t n);
    double (*sum_exp)(const float *x, float max, size_t n); // sum of exp(x - max)
    /* sums[i] += sum over k in [k0, k0 + n_k) of (w[i, k] + scale * delta[k - k0, i])^2 for the 32
     * rows of one panel; k0 is even, delta [n_k][ISA_PANEL] or NULL. */
    void (*add_squares)(enum dtype t, const void *panel, size_t k0, size_t n_k, const float *delta,
                        float scale, double *sums);
};

/* Bytes of one panel of a matrix with k columns. */
static inline size_t isa_panel_bytes(enum dtype t, size_t k)
{
    return t == DTYPE_F32 ? k * ISA_PANEL * 4 : (k + 1) / 2 * ISA_PANEL * 4;
}

static inline size_t isa_units(size_t n_rows, size_t k)
{
    return (n_rows + ISA_UNIT_ROWS - 1) / ISA_UNIT_ROWS * ((k + ISA_UNIT_K - 1) / ISA_UNIT_K);
}

/* The part of the activations that a unit holds. */
struct isa_unit {
    size_t row, n_rows, k, n_k;
};

static inline struct isa_unit isa_unit_at(size_t n_rows, size_t k, size_t unit)
{
    size_t n_blocks = (k + ISA_UNIT_K - 1) / ISA_UNIT_K;
    struct isa_unit u = {.row = unit / n_blocks * ISA_UNIT_ROWS, .k = unit % n_blocks * ISA_UNIT_K};
    u.n_rows = n_rows - u.row < ISA_UNIT_ROWS ? n_rows - u.row : ISA_UNIT_ROWS;
    u.n_k = k - u.k < ISA_UNIT_K ? k - u.k : ISA_UNIT_K;
    return u;
}

/* Writes row-major values of type t (rows `stride` bytes apart) as rows [row0, row0 + n_rows) of
 * panels at `w`, whose padding was zeroed before. */
void isa_pack_rows(enum dtype t, void *w, size_t k, size_t row0, size_t n_rows, const void *src,
                   size_t stride);
/* The inverse for one row, as float32. */
void isa_unpack_row(enum dtype t, const void *w, size_t k, size_t row, float *dst);

/* The best table for this processor; `wanted` (a name) chooses a lower one. NULL
 * when `wanted` does not exist or cannot run here. */
const struct isa_table *isa_select(const char *wanted);

extern const struct isa_table isa_plain;
#if defined(__x86_64__)
extern const struct isa_table isa_avx2, isa_avx512, isa_amx;
#endif

#endif
