/*
 * explain: how adapters stand to each other, in factored form; the products B A are never made
 * whole. With D = s B A:
 *     <D1, D2> = s1 s2 sum (A1 A2^T) o (B1^T B2)
 * and the singular values of a weighted sum are those of the R x R core of the stacked factors
 * (R: sum of the ranks). Sign conflicts are counted on sampled rows. What has no factors (whole
 * weights, replaced rows and biases) is named, not measured; DoRA's magnitudes are not in the
 * numbers. Thread rule: re-entrant; works on its own threads.
 */
#ifndef LIBCORE_MERGE_EXPLAIN_H
#define LIBCORE_MERGE_EXPLAIN_H

#include <jansson.h>

#include "libcore/merge/plan.h"

/* <D1, D2> of two modules of one shape; 0 where one has no factors. ERR_REFUSED: shapes differ. */
int explain_dot(const struct adapter_module *a, const struct adapter_module *b, double *dot,
                struct err *err);

/* What `merge --explain --json` prints, without "schema" (docs/SCRIPTING.md). names[n]: for people.
 * *out is the caller's. ERR_REFUSED: two adapters have one module in different shapes. */
int explain_adapters(json_t **out, const struct merge_adapter *adapters, const char *const *names,
                     size_t n, struct err *err);

/* What `diff --json` prints: modules of either, cosine, energies. */
int explain_difference(json_t **out, const struct adapter *a, const struct adapter *b,
                       struct err *err);

#endif
