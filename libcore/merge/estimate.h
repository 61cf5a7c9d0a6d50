/*
 * estimate: how long a planned merge will compute on this machine, from a few milliseconds of the
 * real arithmetic on made-up numbers.
 */
#ifndef LIBCORE_MERGE_ESTIMATE_H
#define LIBCORE_MERGE_ESTIMATE_H

#include "libcore/merge/plan.h"

/* Seconds of all n_threads (0: all processors) together; negative when memory is out. */
double estimate_compute_seconds(const struct merge_plan *p, unsigned n_threads);

#endif
