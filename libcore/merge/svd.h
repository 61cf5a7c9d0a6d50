/*
 * svd: singular values of what adapters are made of, in float64: of a product of two thin factors
 * (QR of both, then a small core: the product is never made), of a dense matrix, and of a large
 * matrix that is only seen in tiles of rows.
 *
 * Matrices named `columns` lie column after column: value (i, j) of [m, n] at j * m + i.
 * Every result depends on its input alone, whatever pool helps. Thread rule: re-entrant.
 */
#ifndef LIBCORE_MERGE_SVD_H
#define LIBCORE_MERGE_SVD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/err.h"

enum {
    /* Up to this many rows or columns (the fewer), a matrix is decomposed exactly: one-sided Jacobi
     * takes about a second there, and its time grows with the cube. */
    SVD_EXACT_MAX = 320,
    SVD_MAX_THREADS = 256, // of a pool that helps
};

/* M [m, n] = sum_j s[j] u_j v_j^T, s descending. */
struct svd {
    size_t m, n, k;    // k triples are given
    double *u, *s, *v; // columns: u [m, k], v [n, k]
    double noise;      // what lies below it is rounding of the arithmetic
    double total2;     // ||M||_F^2, of all of it
    bool exact;        // Jacobi; else by subspace iteration
    double residual;   // not exact: sqrt(sum_j ||M v_j - s_j u_j||^2) / ||M||_F over the triples
};
void svd_release(struct svd *d);

/* How much of it: */
struct svd_want {
    uint32_t rank; // at most this many triples; 0: as many as `energy` takes
    double energy; // in (0, 1]: the fewest that hold this share of total2; 0: `rank` alone decides
    uint64_t seed; // of the test vectors
};
/* The number of triples of d that `want` asks for (those too small for float64 never count). */
size_t svd_choose(const struct svd *d, const struct svd_want *want);
/* sum of s[j]^2 for j < k. */
double svd_kept2(const struct svd *d, size_t k);

/* Orthonormal columns in place of a's, [m, n], and a = q r with r [n, n] upper triangular, columns.
 * Gram-Schmidt with every projection done twice. A column that depends on those before it becomes
 * zero, in r too. */
void svd_orthogonalise(double *a, size_t m, size_t n, double *r);

/* All of a's triples, a [m, n] in columns; destroyed. */
int svd_dense(struct svd *out, double *a, size_t m, size_t n, struct err *err);

/* Of L R^T with L [m, r] and R [n, r] in columns; both are destroyed. min(m, n, r) triples, unless
 * r is beyond SVD_EXACT_MAX: then what `want` asks for. */
int svd_product(struct svd *out, double *left, size_t m, double *right, size_t n, size_t r,
                const struct svd_want *want, struct err *err);

/* A matrix seen in tiles of rows; the same rows are the same numbers each time. */
struct svd_source {
    size_t m, n;
    void *arg;
    /* Rows [row0, row0 + n_rows) into out[n_rows, n], row by row. thread_idx: of the pool's ranges,
     * which ask side by side; 0 without a pool. */
    int (*rows)(void *arg, size_t row0, size_t n_rows, double *out, unsigned thread_idx,
                struct err *err);
    struct worker_pool *pool; // borrowed; NULL: the caller's thread alone
};

/*
 * The leading triples that `want` asks for. Small matrices exactly. Others by block subspace
 * iteration (Halko, Martinsson, Tropp 2011, algorithm 4.4), repeated until the energy held stops
 * growing; the residual is measured in a last pass. Memory: the vectors, one tile, and matrices of
 * up to 64 M values, which are read once and kept (those of more than 8 M values in float32);
 * larger ones are read again for each pass. ERR_NO_MEMORY, or what rows() returns.
 */
int svd_of_source(struct svd *out, const struct svd_source *source, const struct svd_want *want,
                  struct err *err);

#endif
