/*
 * plan_impl: between the rooms of plan.
 *   plan.c          adapters, the order of things      plan_tensors.c   what happens to each tensor
 *   plan_layout.c   shards: headers and places         plan_float8.c    8-bit weights, their scales
 */
#ifndef LIBCORE_MERGE_PLAN_IMPL_H
#define LIBCORE_MERGE_PLAN_IMPL_H

#include "libcore/merge/plan.h"

struct planner {
    struct merge_plan *p;
    const struct merge_options *opt;
    bool survey;
    struct err *err; // never NULL
};

/* Refuses: 0 in a survey (noted), else ERR_REFUSED. */
int plan_refuse(struct planner *k, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int plan_warn(struct planner *k, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int plan_no_memory(struct planner *k);
const char *plan_adapter_name(const struct merge_plan *p, size_t adapter_idx);

int plan_tensors(struct planner *k);
/* After the tensors: finds scales, marks what is converted or dropped. */
int plan_float8(struct planner *k);
int plan_layout(struct planner *k);

#endif
