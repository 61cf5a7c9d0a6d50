/*
 * plan: limits and budgets from the model's shape, the device's memory and the options.
 */
#ifndef CMD_SERVE_PLAN_H
#define CMD_SERVE_PLAN_H

#include "cmd/serve/runtime.h"

/* Fills rt->limits, rt->context_length and rt->plan. ERR_LIMIT: the weights do not fit, with what
 * is missing. */
int plan_make(struct runtime *rt, struct err *err);
uint64_t plan_kv_tokens(const struct runtime *rt); // that fit when no adapter is resident

#endif
