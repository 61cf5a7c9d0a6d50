/*
 * factors: the pairs A[r, in], B[out, r] of one module as float64 columns, and new pairs from
 * singular triples. Experts: A[E r, in] (expert slowest), B[out, r E] (expert fastest).
 * Thread rule: re-entrant.
 */
#ifndef LIBCORE_MERGE_FACTORS_H
#define LIBCORE_MERGE_FACTORS_H

#include "libcore/adapter/builder.h"
#include "libcore/merge/svd.h"

/* L [d_out, r] = factor * B of one expert (0 where there are none), columns. */
void factors_left(const struct adapter_module *m, uint32_t expert, double factor, double *left);
/* R [d_in, r] = A^T, columns: that is A's rows. */
void factors_right(const struct adapter_module *m, uint32_t expert, double *right);

/* A new pair in float32, room for `cap` ranks, `rank` of them used by the expert that has most. */
struct factors {
    uint32_t n_experts; // 0: no experts
    uint32_t d_out, d_in, cap, rank;
    float *a, *b; // sys_malloc's, in the layout above with r = cap; factors_compact() makes it rank
};
/* Zeros. ERR_NO_MEMORY. */
int factors_open(struct factors *f, uint32_t n_experts, uint32_t d_out, uint32_t d_in, uint32_t cap,
                 struct err *err);
void factors_release(struct factors *f);
/* Triples [0, k) as B = u sqrt(s), A = sqrt(s) v^T. */
void factors_put(struct factors *f, uint32_t expert, const struct svd *d, size_t k);
/* Moves the values so that r = rank; a rank of 0 becomes 1 (a pair of zeros: a module that was
 * asked for stays). */
void factors_compact(struct factors *f);
/* Into m: a, b, rank, alpha = rank, scale = 1; the builder takes the memory. */
int factors_take(struct factors *f, struct adapter_builder *b, struct adapter_module *m,
                 struct err *err);

#endif
