/*
 * svd_impl: between the rooms of svd.
 *   svd.c   QR, Jacobi, products, small matrices      svd_subspace.c   the leading part of large
 * ones
 */
#ifndef LIBCORE_MERGE_SVD_IMPL_H
#define LIBCORE_MERGE_SVD_IMPL_H

#include "libcore/merge/svd.h"

int svd_no_memory(struct err *err);
double *svd_alloc(size_t m, size_t n); // zeros; NULL when memory is out
double svd_dot(const double *x, const double *y, size_t n);
/* out [m, k] = q [m, r] x [r, k], all in columns. */
void svd_multiply(const double *q, size_t m, const double *x, size_t r, size_t k, double *out);
/* a [n, n] = x s v^T: x in place of a, all in columns. */
void svd_jacobi(double *a, size_t n, double *v, double *s);

#endif
