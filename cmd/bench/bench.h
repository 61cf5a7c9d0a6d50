/*
 * bench: what the measurements of `lora bench` share: a synthetic base and synthetic adapters of a
 * given shape on a back end, driven through the port without the engine, and the byte model.
 * Weights and adapters are random numbers; the times do not depend on them.
 * Every measurement interleaves its cases in one process, so that a ratio compares like with like.
 */
#ifndef CMD_BENCH_BENCH_H
#define CMD_BENCH_BENCH_H

#include <jansson.h>
#include <stdbool.h>

#include "libcore/backend.h"

enum { BENCH_MAX_CASES = 8, BENCH_MAX_SLOTS = 512, BENCH_MAX_RANKS = 8, BENCH_MAX_ROUNDS = 64 };

struct bench_options {
    const char *device;
    const char *shape; // of bench_shapes()
    uint32_t ranks[BENCH_MAX_RANKS];
    uint32_t n_ranks;    // slot i has rank ranks[i % n_ranks]
    uint32_t n_adapters; // slots that are filled
    uint32_t max_rows, max_sequences;
    uint32_t context; // tokens that a sequence's pages hold, less one
    unsigned n_threads;
    bool no_graphs, deterministic;
    bool bare; // no room for adapters at all: the base as it is without LoRA
};

/* One synthetic adapter in the back end's layout, host_alloc memory. */
struct bench_image {
    void *data;
    uint64_t bytes;
    uint32_t n_chunks;
    uint64_t ab_bytes; // A and B as the device reads them
};

struct bench_model {
    struct backend *be;
    struct device_model *dm;
    struct model_config config;
    struct model_modules *modules;
    struct step_limits limits;
    struct bench_options opt;
    char device[128];
    uint32_t pages_per_chunk, n_pages;
    struct bench_image images[BENCH_MAX_RANKS];
    uint32_t first_adapter_chunk;
    double read_bytes_s;   // measured read bandwidth of the device, 0: not known
    uint64_t weight_bytes; // read by a step: layers and head
    uint64_t layer_bytes;  // of one layer's matrices
    uint64_t kv_bytes_token;
};

/* ---- bench_model.c ---- */
/* Opens all of it; ranks and slots as in opt. Frees with bench_close(), also after an error. */
int bench_open(struct bench_model *b, const struct bench_options *opt, struct err *err);
void bench_close(struct bench_model *b);
const char *bench_shapes(void); // "llama-3.1-8b, …"

/* ---- bench_adapters.c ---- */
int bench_make_images(struct bench_model *b, struct err *err);
void bench_free_images(struct bench_model *b);
uint32_t bench_adapter_chunks(const struct bench_model *b); // of all slots
const struct bench_image *bench_image(const struct bench_model *b, uint32_t slot);
/* Starts to load a slot's adapter and waits until it is there; seconds may be NULL. */
int bench_load_slot(struct bench_model *b, uint32_t slot, double *seconds, struct err *err);
/* A and B of the first n slots. */
uint64_t bench_ab_bytes(const struct bench_model *b, uint32_t n);

/* ---- bench_mix.c: how rows are spread over adapters ---- */
enum bench_mix_kind { BENCH_NONE, BENCH_IDENTICAL, BENCH_UNIFORM, BENCH_DISTINCT, BENCH_ZIPF };
struct bench_mix {
    enum bench_mix_kind kind;
    uint32_t n; // of BENCH_UNIFORM
};
enum { BENCH_MIX_NAME = 24 };
/* "none", "identical", "uniform:N", "distinct", "zipf"; comma-separated, none first and always. */
int bench_parse_mixes(const char *text, struct bench_mix *out, uint32_t *n, struct err *err);
void bench_mix_name(const struct bench_mix *m, char *buf);
/* counts[i]: how many of n_rows rows use adapter i of n_adapters; gives how many are used at all,
 * which are the first ones. zipf: exponent 1, drawn with a fixed seed. */
uint32_t bench_mix_counts(const struct bench_mix *m, uint32_t n_rows, uint32_t n_adapters,
                          uint32_t *counts);

/* ---- bench_steps.c ---- */
/* A step that is ready to be submitted, again and again. */
struct bench_plan {
    struct step step;
    int32_t *tokens[2]; // literal, and "what the previous step sampled"
    struct step_sequence *sequences;
    uint32_t *pages, *logit_rows;
    struct step_segment *segments, *head_segments;
    struct sample_params *sampling;
    uint32_t n_distinct; // adapters of the mix that was set
};
/* n_sequences of `rows` rows each from `position0` on. Frees with bench_plan_release(), also after
 * an error. */
int bench_plan_make(struct bench_model *b, struct bench_plan *p, uint32_t n_sequences,
                    uint32_t rows, uint32_t position0, struct err *err);
void bench_plan_release(struct bench_plan *p);
int bench_plan_mix(struct bench_model *b, struct bench_plan *p, const struct bench_mix *mix,
                   struct err *err);
/* All rows use `slot`; -1: none. */
void bench_plan_slot(struct bench_plan *p, int slot);
/* `steps` steps, two in flight; seconds a step. */
int bench_run(struct bench_model *b, struct bench_plan *p, uint32_t steps, double *seconds,
              struct err *err);
double bench_median(double *v, uint32_t n); // sorts v

struct bench_times {
    double seconds[BENCH_MAX_CASES]; // medians over the rounds
    double ratio[BENCH_MAX_CASES];   // medians of the rounds' ratios to the first mix
    uint32_t distinct[BENCH_MAX_CASES];
};
/* A step of `n_sequences` decoding sequences with `context` tokens behind them, two in flight. */
int bench_decode(struct bench_model *b, uint32_t n_sequences, uint32_t context,
                 const struct bench_mix *mixes, uint32_t n_mixes, uint32_t rounds, uint32_t steps,
                 struct bench_times *out, struct err *err);
/* One step of `n_tokens` prefilled tokens, cut into sequences of at most the context. */
int bench_prefill(struct bench_model *b, uint32_t n_tokens, const struct bench_mix *mixes,
                  uint32_t n_mixes, uint32_t rounds, uint32_t steps, struct bench_times *out,
                  struct err *err);
/* Seconds from adapter_load to READY of one adapter, host to device: the median of `rounds`. */
int bench_load(struct bench_model *b, uint32_t rounds, double *out, struct err *err);
/* Seconds that the bytes of a decode step take at the measured bandwidth; 0: not known. */
double bench_floor(const struct bench_model *b, uint32_t n_adapters, uint64_t context_tokens);

/* ---- bench_layer.c ---- */
struct bench_layer_times {
    double base, both; // seconds of one layer's four sites, without and with adapters
    double alone;      // of A and B alone; 0: the back end cannot run them alone
    double floor;      // of A, B, and the activations that they read and write, by bytes
    double ab_floor;   // of A and B only
    uint32_t distinct;
};
/* The four products of a layer, every layer of the model behind the other so that none lies in a
 * cache, n_rows rows. */
int bench_layer(struct bench_model *b, uint32_t n_rows, const struct bench_mix *mixes,
                uint32_t n_mixes, uint32_t rounds, struct bench_layer_times *out, struct err *err);

/* ---- bench_traffic.c ---- */
struct bench_switch_times {
    double none, resident, loaded; // tokens a second
    double resident_ratio, loaded_ratio;
};
/* One request in flight: n_prompt tokens, then n_new; no adapter, another resident one each, one
 * that is copied from the host before each. Medians of interleaved rounds of n_requests. */
int bench_switch(struct bench_model *b, uint32_t n_prompt, uint32_t n_new, uint32_t n_requests,
                 uint32_t rounds, struct bench_switch_times *out, struct err *err);
struct bench_offline_times {
    double prefill, decode; // seconds
    double predicted;       // seconds of all of it by the byte model; 0: not known
    uint32_t distinct;
};
/* n_sequences requests that are all there at the start: their prompts in steps of max_rows tokens,
 * then n_new steps of one token each. without: the same without adapters, whose prefill stands in
 * the prediction (NULL: this is it). */
int bench_offline(struct bench_model *b, uint32_t n_sequences, uint32_t n_prompt, uint32_t n_new,
                  uint32_t n_adapters, const struct bench_offline_times *without,
                  struct bench_offline_times *out, struct err *err);

#endif
