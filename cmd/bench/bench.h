/*
 * bench: what the measurements of `lora bench` share: a synthetic base and synthetic adapters of a
 * given shape on a back end, driven through the port without the engine, and the byte model.
 * Weights and adapters are random numbers; the times do not depend on them.
 */
#ifndef CMD_BENCH_BENCH_H
#define CMD_BENCH_BENCH_H

#include <jansson.h>
#include <stdbool.h>

#include "libcore/backend.h"

enum { BENCH_MAX_CASES = 8, BENCH_MAX_SLOTS = 512 };

struct bench_options {
    const char *device;
    const char *shape; // of bench_shapes()
    uint32_t rank;
    uint32_t n_adapters; // slots that are filled
    uint32_t max_rows, max_sequences, context;
    unsigned n_threads;
    bool no_graphs;
};

struct bench_model {
    struct backend *be;
    struct device_model *dm;
    struct model_config config;
    struct model_modules *modules;
    struct step_limits limits;
    struct bench_options opt;
    uint32_t pages_per_chunk, n_pages;
    void *image; // of the one synthetic adapter, host_alloc memory
    uint64_t image_bytes;
    uint32_t image_chunks, first_adapter_chunk;
    double read_bytes_s;    // measured read bandwidth of the device, 0: not known
    uint64_t weight_bytes;  // read by a step: layers and head
    uint64_t adapter_bytes; // A and B of one adapter as the device reads them
    uint64_t kv_bytes_token;
};

/* Opens all of it; ranks and slots as in opt. Frees with bench_close(), also after an error. */
int bench_open(struct bench_model *b, const struct bench_options *opt, struct err *err);
void bench_close(struct bench_model *b);
const char *bench_shapes(void); // "llama-3.1-8b, …"

/* How rows are spread over adapters. */
struct bench_mix {
    const char *name;
    uint32_t n_adapters; // 0: none; row i of n uses adapter i * n_adapters / n
};

/* Seconds a step of `n_sequences` decoding sequences with `context` tokens behind them takes: the
 * median over `rounds` of interleaved runs of `steps` steps each, two steps in flight. out[i] is of
 * mixes[i]; ratio[i] the median of the rounds' ratios to mixes[0]. */
int bench_decode(struct bench_model *b, uint32_t n_sequences, uint32_t context,
                 const struct bench_mix *mixes, uint32_t n_mixes, uint32_t rounds, uint32_t steps,
                 double *out, double *ratio, struct err *err);
/* The same for one step of `n_tokens` prefilled tokens, cut into sequences of at most `context`. */
int bench_prefill(struct bench_model *b, uint32_t n_tokens, const struct bench_mix *mixes,
                  uint32_t n_mixes, uint32_t rounds, uint32_t steps, double *out, double *ratio,
                  struct err *err);
/* Seconds from adapter_load to READY of one adapter, host to device: the median of `rounds`. */
int bench_load(struct bench_model *b, uint32_t rounds, double *out, struct err *err);

/* Seconds that the bytes of a step take at the measured bandwidth; 0: not known. */
double bench_floor(const struct bench_model *b, uint32_t n_adapters, uint64_t context_tokens);

#endif
