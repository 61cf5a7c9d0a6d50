/*
 * check: is a merged folder what its plan says? Read back from disk and derived again, by plain
 * float64 loops that share nothing with the code that merged.
 */
#ifndef LIBCORE_MERGE_CHECK_H
#define LIBCORE_MERGE_CHECK_H

#include "libcore/merge/plan.h"

struct merge_check_result {
    uint64_t n_values; // of changed tensors, each compared
    uint64_t n_equal;  // other tensors, bit-equal to the base's
    double delta2;     // sum of squares of the delta that the plan says
    double off2;       // of what the file's delta is off it: the rounding
};

/* ERR_CORRUPT ("file:tensor[row, column]: wanted, got"): a value is not one of the nearest to
 * base plus delta, an untouched tensor differs, or a tensor is missing or of another shape. */
int merge_check(const struct merge_plan *p, const char *folder, struct merge_check_result *out,
                struct err *err);

#endif
