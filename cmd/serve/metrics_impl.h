/*
 * metrics_impl: what metrics.c (counting) and metrics_render.c (the page) share.
 */
#ifndef CMD_SERVE_METRICS_IMPL_H
#define CMD_SERVE_METRICS_IMPL_H

#include <pthread.h>

#include "cmd/serve/metrics.h"
#include "libcore/base/limits.h"

enum { METRICS_N_BOUNDS = 20 };
extern const double metrics_second_bounds[METRICS_N_BOUNDS];
extern const double metrics_token_bounds[METRICS_N_BOUNDS];

struct histogram {
    uint64_t counts[METRICS_N_BOUNDS + 1]; // each bucket alone; the last: beyond all bounds
    uint64_t n;
    double sum;
};

struct adapter_counter {
    char label[LIMIT_NAME_BYTES + 1]; // "": the base
    uint64_t n_requests, n_failed, n_prompt_tokens, n_tokens, minute_tokens;
};

struct metrics {
    pthread_mutex_t mutex;
    struct adapter_counter adapters[METRICS_MAX_ADAPTERS];
    unsigned n_adapters;
    uint64_t by_end[5]; // enum choice_end
    uint64_t by_status[6];
    uint64_t n_prompt_tokens, n_cached_tokens, n_tokens;
    struct histogram ttft, tpot, e2e, queue, prefill, decode, inference, adapter_wait;
    struct histogram prompt_tokens, answer_tokens;
    uint64_t minute_began_ns;
    char hot[LIMIT_NAME_BYTES + 1];
    unsigned hot_minutes;
};

#endif
