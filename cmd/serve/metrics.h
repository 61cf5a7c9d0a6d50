/*
 * metrics: what Prometheus reads: lora_* of our own, vllm:* with the meaning of the Gateway API
 * Inference Extension's text, sglang:* gauges.
 * Counters of adapters are bounded: the first METRICS_MAX_ADAPTERS names have their own, the others
 * share "_other". Thread-safe.
 */
#ifndef CMD_SERVE_METRICS_H
#define CMD_SERVE_METRICS_H

#include <stdint.h>

#include "libcore/base/err.h"
#include "libcore/base/strbuf.h"
#include "libcore/engine/engine.h"

enum { METRICS_MAX_ADAPTERS = 512 };

struct metrics;
struct generation;
struct names;

int metrics_open(struct metrics **out, struct err *err);
void metrics_free(struct metrics *m);

/* A generation is over: counts it, its tokens, its times. */
void metrics_count_generation(struct metrics *m, const struct generation *g);
void metrics_count_http(struct metrics *m, unsigned status);

/* Tokens of one adapter ("" for the base), for the watch on hot adapters. */
void metrics_count_tokens(struct metrics *m, const char *label, uint64_t n_tokens);
/* Called a few times a second: closes a minute when it is over. When one adapter had most of the
 * tokens for some minutes in a row, a log line says so, once. */
void metrics_tick(struct metrics *m);
void metrics_tick_at(struct metrics *m, uint64_t now_ns);
/* The hot adapter's label into buf, or "". */
void metrics_hot_adapter(struct metrics *m, char *buf, size_t n);

struct metrics_view {
    struct names *names;
    struct engine *engine;
    const char *model_name;
    uint64_t context_length;
};
/* The whole page. */
void metrics_render(struct metrics *m, const struct metrics_view *view, struct strbuf *out);

#endif
