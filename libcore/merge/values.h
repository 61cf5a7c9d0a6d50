/*
 * values: the arithmetic of a merge, one matrix at a time:
 *
 *     W'[i,j] = round_once( g * (W[i,j] + sum_t f_t sum_k L_t[i,k] R_t[k,j]) )
 *
 * with f_t = weight * scale (float64), g = 1, or DoRA's gain m[i] / ||(W + f L R)[i,:]|| (by row;
 * an embedding's by column), itself a float64 number. Every stored value is the real number on the
 * right rounded once, to nearest, ties to even: a float32 (float64) sum decides where it can, which
 * is where the whole window of its rounding error rounds to one value; what lies too near to the
 * middle of two values is summed again in float64, and if need be in twice float64. So the bytes
 * depend on nothing else: not on threads, blocks, instruction sets or the order of additions. A
 * zero that stays zero keeps its sign. 8-bit floats stand for themselves times the scale of their
 * block, on either side. Thread rule: a struct values is immutable once prepared;
 * every thread has its own scratch.
 */
#ifndef LIBCORE_MERGE_VALUES_H
#define LIBCORE_MERGE_VALUES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/err.h"
#include "libcore/backend.h"
#include "libcore/tensor/tensor.h"

/* One adapter's pair on this matrix, as strided views of its tensors: element (i, k) of L is value
 * number offset + i * row + k * col of `tensor`. */
struct values_view {
    const struct tensor *tensor; // borrowed; F64, F32, F16, BF16 or F8
    size_t offset, row, col;
};
struct values_pair {
    struct values_view left, right; // L[n_rows, rank], R[rank, n_cols]
    uint32_t rank;
    double factor; // weight * scale
};

/* Scales of 8-bit floats: of (i, j), values[i / block_rows * n_cols + j / block_cols]. */
struct values_scales {
    size_t block_rows, block_cols, n_cols;
    const double *values; // borrowed; each is read after the block it is of was asked for
};

struct values_matrix {
    enum dtype dtype;        // of what is stored: BF16, F16, F32, F64, F8_E4M3, F8_E5M2
    enum dtype source_dtype; // of the blocks' W
    size_t n_rows, n_cols;
    const struct values_pair *pairs; // in the order of content ids; borrowed
    size_t n_pairs;
    const struct tensor *magnitude; // NULL, or DoRA's m; the matrix then has one pair
    bool by_column;                 // m is for columns: column_gains
    const double *column_gains;     // [n_cols], borrowed; only with by_column
    enum dtype base_dtype;          // of the blocks' `base`; DTYPE_NONE: as stored
    const struct values_scales *source_scales, *base_scales, *stored_scales; // NULL: 1
    struct backend *device; // NULL: here. Else its merge_delta makes 16-bit results without gains,
                            // and of all others its `sums` the sums; the bits are the same
};

/* Of some rows. Sums are over values, in a fixed order inside a block. */
struct values_stats {
    uint64_t n_values;
    uint64_t n_changed; // stored bits differ from the base's
    double base2;       // sum of squares of the base
    double delta2;      // of what was to be added
    double lost2;       // of what was to be added less what was: the rounding
};
void values_stats_add(struct values_stats *to, const struct values_stats *from);

struct values;
struct values_scratch;

/* Packs R and its column norms. The pairs' tensors must outlive *out, which is the caller's, to
 * free with values_free(). ERR_NO_MEMORY, ERR_REFUSED (a type that is no float). */
int values_prepare(struct values **out, const struct values_matrix *m, struct err *err);
void values_free(struct values *v);
/* Bytes that values_prepare() takes for such a matrix. */
uint64_t values_prepared_bytes(const struct values_matrix *m);

int values_scratch_open(struct values_scratch **out, struct err *err);
void values_scratch_free(struct values_scratch *s);

struct values_block {
    size_t row0, n_rows;
    const void *source;      // the W of the formula, [n_rows, n_cols] of source_dtype
    enum dtype source_dtype; // the matrix's, where there is one
    const void *base; // what the statistics compare with: [n_rows, n_cols] of the stored type (the
                      // matrix's base_dtype), or NULL: there was nothing (added rows)
    void *out;        // [n_rows, n_cols] of the stored type; may be `base` or `source` itself when
                      // those have the stored type, and begin before them when theirs is smaller
                      // and both end together
    struct values_stats *stats; // overwritten
    /* Of 8-bit floats, or NULL: as values_peaks(), in the same pass; then a value that does not fit
     * its scale is no error, and the block is to be made again at another one. */
    double *peaks;
    size_t first_peak_row;
};
/* ERR_REFUSED: a value that the stored type cannot hold; ERR_CORRUPT: a source that is not finite;
 * the message has "[row, column]" and no name. ERR_NO_MEMORY. */
int values_block(const struct values *v, struct values_scratch *s, const struct values_block *b,
                 struct err *err);

/* The same without any pair: source rounded to the stored type. For replaced weights and rows. */
int values_replace(enum dtype dtype, size_t n_rows, size_t n_cols, const struct values_block *b,
                   struct err *err);

/* A vector: out = round_once(source + sum_t f_t x_t), each x_t of n values (biases). */
struct values_vector {
    const struct tensor *tensor;
    double factor;
};
int values_vector(enum dtype dtype, size_t n, const struct values_vector *terms, size_t n_terms,
                  const struct values_block *b, struct err *err);

/* For gains by column: adds (W + f L R)[i,j]^2 of the rows to sums[n_cols], row after row. */
int values_add_column_squares(const struct values *v, struct values_scratch *s, size_t row0,
                              size_t n_rows, const void *source, double *sums, struct err *err);

/* For new scales: the largest |g (W + f L R)| of the block's rows in each block of the matrix's
 * stored_scales, into peaks, where it is larger than what is there. peaks begins with the scales'
 * row first_row. float64 sums, the same on every instruction set. */
int values_peaks(const struct values *v, struct values_scratch *s, const struct values_block *b,
                 double *peaks, size_t first_row, struct err *err);

/* The instruction sets that this processor has, plain first; for tests. values_use() takes one by
 * name (NULL: the best) for what is prepared afterwards; false: not here. */
size_t values_kernel_names(const char **names, size_t max);
bool values_use(const char *name);

#endif
