/*
 * values_impl: between the rooms of values.
 *   values.c         preparing, what has no pairs     values_exact.c   the value that was in doubt
 *   values_narrow.c  blocks by float32 sums           values_wide.c    blocks by float64 sums
 *   values_device.c  the same on a device            values_float8.c   8-bit floats and scales
 *   values_kernel.h  the loops, compiled once an instruction set by values_{plain,avx2,avx512}.c
 * All loops say fused multiply-add where they mean it and are compiled without contraction, so that
 * every instruction set gives the same bits.
 */
#ifndef LIBCORE_MERGE_VALUES_IMPL_H
#define LIBCORE_MERGE_VALUES_IMPL_H

#include "libcore/merge/values.h"

enum { // the order of sums is the same on a device (libcore/backend.h)
    VALUES_PANEL = MERGE_PANEL,
    VALUES_TERMS = MERGE_TERMS,
    VALUES_CHUNK = MERGE_CHUNK, // columns that are finished at once
    VALUES_LANES = MERGE_LANES,
    VALUES_ROWS = 6,    // rows of L that share a panel's loads
    VALUES_GROUP = 192, // rows whose left halves are converted at once
};

/* Sums of one chunk. */
struct values_sums {
    float base2, delta2, lost2;
    uint32_t n_changed;
};

struct values_kernels {
    const char *name;
    /* delta[i * VALUES_CHUNK + j] = sum over k of left[i * rank + k] * R[k, j], for n_rows <=
     * VALUES_ROWS rows and n_panels panels; panel p of R is packed[p * rank * VALUES_PANEL + k *
     * VALUES_PANEL + j]. */
    void (*deltas)(const float *left, size_t n_rows, size_t rank, const float *packed,
                   size_t n_panels, float *delta);
    /* sum[j] = sum over k of left[k] * right[k * stride + j] in float64. */
    void (*sums64)(const double *left, size_t rank, const double *right, size_t stride, size_t n,
                   double *sum);
    void (*load_bf16)(const uint16_t *src, float *dst, size_t n);
    void (*load_f16)(const uint16_t *src, float *dst, size_t n);
    /* v = w + delta; slack = window * norms[j] + what the additions themselves may be off. */
    void (*add)(const float *w, const float *delta, const float *norms, float window, size_t n,
                float *v, float *slack);
    /* v = (float)exact, with the slack that this cast costs on top of slack64. */
    void (*narrow)(const double *exact, const double *slack64, size_t n, float *v, float *slack);
    /* out: v rounded; unsure: not 0 where v - slack and v + slack round apart or are not finite.
     * Returns the or of all of unsure. */
    uint16_t (*round_bf16)(const float *v, const float *slack, size_t n, uint16_t *out,
                           uint16_t *unsure);
    uint16_t (*round_f16)(const float *v, const float *slack, size_t n, uint16_t *out,
                          uint16_t *unsure);
    uint32_t (*round_f32)(const double *v, const double *slack, size_t n, uint32_t *out,
                          uint32_t *unsure);
    void (*load_e4m3)(const uint8_t *src, double *dst, size_t n);
    void (*load_e5m2)(const uint8_t *src, double *dst, size_t n);
    /* The largest of *peak and |v[j]|; false: one of them is no number. */
    bool (*peak64)(const double *v, size_t n, double *peak);
    /* v = (float)(exact * inverse), with the slack of that. */
    void (*narrow_scaled)(const double *exact, const double *slack64, double inverse, size_t n,
                          float *v, float *slack);
    uint8_t (*round_e4m3)(const float *v, const float *slack, size_t n, uint8_t *out,
                          uint8_t *unsure);
    uint8_t (*round_e5m2)(const float *v, const float *slack, size_t n, uint8_t *out,
                          uint8_t *unsure);
    /* w, delta: as they were; now: the stored values. base2 is of `old`, NULL: 0. */
    void (*stats)(const float *old, const float *delta, const float *now, size_t n,
                  struct values_sums *out);
    /* v[j] = gain[j * step] * (w[j] + delta[j]); slack likewise; float64. */
    void (*gain64)(const double *w, const double *delta, const double *gain, size_t step,
                   const double *norms, double window, size_t n, double *v, double *slack);
    double (*squares64)(const double *w, const double *delta, size_t n);
};
extern const struct values_kernels values_plain;
extern const struct values_kernels *const values_avx2; // NULL: not built for this machine
extern const struct values_kernels *const values_avx512;

struct values {
    struct values_matrix m;
    const struct values_kernels *k;
    bool wide;   // float64 sums: f32 results, DoRA, float64 inputs
    size_t rank; // of all pairs together
    size_t n_panels;
    float *packed;   // [n_panels][rank][VALUES_PANEL]; not wide
    float *norms;    // [n_panels * VALUES_PANEL] column norms of R, rounded up; not wide
    double *right;   // [rank][stride]; wide
    double *norms64; // [stride]
    size_t stride;
    struct device_merge *on_device;     // NULL: computed here
    struct device_sums *sums_on_device; // wide; NULL: computed here
};

struct values_scratch {
    void *left;         // [VALUES_GROUP][rank] float, or [rank] double
    double *exact_left; // [VALUES_GROUP][rank], narrow
    size_t left_bytes, exact_left_bytes;
    double *row;            // [n_cols] sums of one row, wide
    const double *row_sums; // of the row in hand: `row`, or one that the device made
    size_t row_n;
    float window[VALUES_GROUP];
    double left_norm[VALUES_GROUP];
    float delta[VALUES_ROWS * VALUES_CHUNK];
    float w[VALUES_CHUNK], v[VALUES_CHUNK], slack[VALUES_CHUNK], old[VALUES_CHUNK],
        now[VALUES_CHUNK];
    double w64[VALUES_CHUNK], v64[VALUES_CHUNK], slack64[VALUES_CHUNK];
    uint32_t bits[VALUES_CHUNK], unsure[VALUES_CHUNK];
    uint16_t bits16[VALUES_CHUNK], unsure16[VALUES_CHUNK];
    uint8_t bits8[VALUES_CHUNK], unsure8[VALUES_CHUNK];
    // on a device
    struct backend *device; // whose lane and memory these are
    struct merge_lane *lane;
    void *device_out; // what a group of rows became
    size_t device_out_bytes;
    struct merge_sums *sums;
    size_t n_sums;
    double *group_left, group_norms[VALUES_GROUP]; // wide: left halves of some rows
    size_t group_left_bytes;
};

size_t values_padded(size_t n_cols); // to whole panels
int values_reserve(struct values_scratch *s, const struct values *v, struct err *err);
const void *values_ptr(enum dtype t, const void *data, size_t idx);
void values_load(const struct values_kernels *k, enum dtype t, const void *src, float *dst,
                 size_t n);
bool values_finite_bits(enum dtype t, uint64_t bits);
int values_not_finite(const struct values_matrix *m, size_t i, size_t j, double w, struct err *err);
/* One value in doubt: its bits, or what is wrong with it. */
int values_settle(const struct values *v, size_t i, size_t j, double w, double gain, uint64_t *bits,
                  struct err *err);
/* Counts n values from number idx on of the block, and puts them into its `out`. */
void values_store(const struct values_block *b, enum dtype t, size_t idx, const void *bits,
                  const double *wanted, size_t n);
int values_block_narrow(const struct values *v, struct values_scratch *s,
                        const struct values_block *b, struct err *err);
/* Left halves of n_rows <= VALUES_GROUP rows from row0 on, into the scratch, with their windows. */
void values_load_left(const struct values *v, struct values_scratch *s, size_t row0, size_t n_rows);
/* n <= VALUES_CHUNK values of the block's row i (the group's i_group) whose deltas are there. */
int values_finish_narrow(const struct values *v, struct values_scratch *s,
                         const struct values_block *b, size_t i, size_t i_group, size_t j0,
                         size_t n, float *delta, struct err *err);
int values_device_open(struct values *v, struct err *err);
void values_device_close(struct values *v);
void values_device_release(struct values_scratch *s);
/* Whether the device can make this block; it was prepared for one. */
bool values_on_device(const struct values *v, const struct values_block *b);
int values_block_device(const struct values *v, struct values_scratch *s,
                        const struct values_block *b, struct err *err);
/* As dtype_to_f64(). */
void values_load64(const struct values_kernels *k, enum dtype t, const void *src, double *dst,
                   size_t n);
/* x[j] *= the scale of (row, j0 + j); NULL scales: nothing. */
void values_scale(const struct values_scales *sc, size_t row, size_t j0, size_t n, double *x);
double values_scale_at(const struct values_scales *sc, size_t row, size_t j);
/* Rounds s->v64 +- s->slack64 to 8-bit floats in s->bits8. s->w64 and gains are for what is in
 * doubt. */
int values_round_float8(const struct values *v, struct values_scratch *s,
                        const struct values_block *b, size_t i, size_t j0, size_t n,
                        const double *gain, size_t step, struct err *err);
/* values_store() of a matrix in which scales play a part; row: within the block. */
void values_store_scaled(const struct values *v, const struct values_block *b, size_t row,
                         size_t j0, const void *bits, const double *wanted, size_t n);
/* The row's sums into s->row, its W of the chunk into s->w64 and the results of n columns into
 * s->v64 and s->slack64. */
/* One row of L in float64, factors in it; returns its norm, rounded up. */
double values_left_row(const struct values *v, size_t row, double *left);
/* The sums of n_rows <= VALUES_GROUP rows on the device; *sums [n_rows, n_cols] is the scratch's.
 */
int values_device_sums(const struct values *v, struct values_scratch *s, size_t row0, size_t n_rows,
                       const double **sums, struct err *err);
double values_window(const struct values *v, double norm);
double values_sum_row(const struct values *v, struct values_scratch *s, size_t row);
void values_load_chunk(const struct values *v, struct values_scratch *s,
                       const struct values_block *b, size_t i, size_t j0, size_t n);
int values_row_gain(const struct values *v, struct values_scratch *s, const struct values_block *b,
                    size_t i, double *gain, struct err *err);
int values_block_wide(const struct values *v, struct values_scratch *s,
                      const struct values_block *b, struct err *err);

/* Reads one value of a view's tensor, exactly. */
double values_get(const struct tensor *t, size_t idx);

/* The correctly rounded value of (i, j): its stored bits, in the low bits. `w` is W[i,j], `gain` 1
 * without DoRA. */
uint64_t values_exact(const struct values_matrix *m, size_t i, size_t j, double w, double gain);
/* The same for w + sum of n products x[t] * y[t]. */
uint64_t values_exact_sum(enum dtype dtype, double w, const double *x, const double *y, size_t n);

#endif
