/*
 * explain_impl: between the rooms of explain.
 *   explain.c   several adapters     explain_pair.c   factors of one module, two adapters compared
 */
#ifndef LIBCORE_MERGE_EXPLAIN_IMPL_H
#define LIBCORE_MERGE_EXPLAIN_IMPL_H

#include "libcore/merge/explain.h"

/* One module's factors as float64; r 0: it has none. */
struct factors {
    double *a, *b; // A[n * r, in], B[out, r * n] as the adapter has them
    size_t r, n, in, out;
    double scale;
};

int explain_load(struct factors *f, const struct adapter_module *m, struct err *err);
void explain_release(struct factors *f);
bool explain_same_shape(const struct factors *x, const struct factors *y);
/* Rows k and l of the two A of expert e. */
double explain_a_dot(const struct factors *x, const struct factors *y, size_t e, size_t k,
                     size_t l);
/* g[k, l] = sum over outputs of B1[o, k] B2[o, l] of expert e. */
void explain_b_gram(const struct factors *x, const struct factors *y, size_t e, double *g);
/* <D1, D2>; g: scratch of r1 * r2. */
double explain_factors_dot(const struct factors *x, const struct factors *y, double *g);
double explain_cosine(double dot, double a2, double b2); // 0 when one is nothing
int explain_shapes_differ(const struct adapter_module *m, struct err *err);
int explain_no_memory(struct err *err);

#endif
