/*
 * blend: the element-by-element part of the combination methods, on tensors that are seen in tiles
 * of rows: prune each term, let signs vote, add up.
 *
 *   prune      keep   magnitude  the largest int(density * n) values of the tensor by |x|
 *                     random     each with probability density
 *                     della      each with a probability that rises with the rank of |x| in its row
 *                                from density - epsilon to density + epsilon
 *                     outliers   int(density * n) values below the int(gamma * n) largest
 *              then rescale what is kept: by 1 / probability, or so that sum |x| is as before
 *   vote       ties   the sign of the sum at each place; only values of that sign count
 *   add up     sum of w x over what counts, divided by 1, by how many count, or by their weights
 *
 * Thresholds are exact: a histogram over the upper 16 bits of |x| (float32), one over the lower 16
 * bits inside the bin that holds the threshold; equal values are kept from the lowest index on.
 * Values are float32, sums float64. The result depends on the input and the seed alone.
 * Thread rule: immutable once prepared; every caller of blend_rows() has its own scratch.
 */
#ifndef LIBCORE_MERGE_BLEND_H
#define LIBCORE_MERGE_BLEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/err.h"

enum blend_prune { BLEND_ALL, BLEND_MAGNITUDE, BLEND_RANDOM, BLEND_DELLA, BLEND_OUTLIERS };
enum blend_rescale { BLEND_KEEP_SCALE, BLEND_BY_PROBABILITY, BLEND_BY_L1 };
enum blend_vote {
    BLEND_NO_VOTE,
    BLEND_VOTE_WEIGHTED, // sign of sum w x; a term agrees by the sign of w x
    BLEND_VOTE_PLAIN,    // sign of the float32 sum of x; by the sign of x (PEFT)
};
enum blend_divisor { BLEND_BY_ONE, BLEND_BY_COUNT, BLEND_BY_WEIGHTS };

struct blend_rule {
    enum blend_prune prune;
    enum blend_rescale rescale;
    enum blend_vote vote;
    enum blend_divisor divisor;
    bool at_least_one;              // magnitude: never prunes everything (mergekit)
    double density, epsilon, gamma; // density >= 1: nothing is pruned
    uint64_t seed;
};

struct blend_source {
    size_t n_rows, n_cols, n_terms;
    const double *weights;   // [n_terms]
    const uint64_t *streams; // [n_terms] of random numbers
    void *arg;
    /* Rows [row0, row0 + n) of one term into out[n, n_cols]; the same each time. thread_idx: of the
     * pool's ranges, which ask side by side. */
    void (*rows)(void *arg, size_t term, size_t row0, size_t n, float *out, unsigned thread_idx);
    struct worker_pool *pool; // borrowed; NULL: the caller's thread alone
};

struct blend;

/* Finds thresholds and scales: up to three passes over each term. source and its arrays are
 * borrowed. ERR_NO_MEMORY. */
int blend_prepare(struct blend **out, const struct blend_source *source,
                  const struct blend_rule *rule, struct err *err);
void blend_free(struct blend *b);

/* Floats of scratch for tiles of n_rows. */
size_t blend_scratch_floats(const struct blend *b, size_t n_rows);
/* Rows of the result into out[n_rows, n_cols]. ERR_NO_MEMORY. */
int blend_rows(const struct blend *b, size_t row0, size_t n_rows, float *scratch, double *out,
               unsigned thread_idx, struct err *err);

#endif
