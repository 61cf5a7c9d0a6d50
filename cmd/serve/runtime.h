/*
 * runtime: everything below the words: a base found, read, planned, loaded and driven by an engine.
 * `lora serve` and `lora run` stand on it. Opened in three steps, so that a server may listen (and
 * a
 * --check may print) before the weights are there.
 * Thread rule: the steps on one thread; afterwards all fields are read-only.
 */
#ifndef CMD_SERVE_RUNTIME_H
#define CMD_SERVE_RUNTIME_H

#include "cmd/base_ref.h"
#include "cmd/serve/options.h"
#include "cmd/serve/text_kit.h"
#include "libcore/engine/engine.h"
#include "libcore/format/generation_config.h"
#include "libcore/model/load.h"
#include "store/store.h"

/* Where the memory goes, in bytes. */
struct plan {
    uint64_t memory_total, memory_free; // of the device
    uint64_t budget;                    // what is used at most
    uint64_t weights, scratch, pool, host_cache;
    uint64_t adapter_cap; // within the pool; 0: none
    uint64_t token_bytes; // of the KV cache
    uint32_t page_tokens;
};

/* Where the time until the first token went. */
struct runtime_times {
    uint64_t begin_ns;               // runtime_open began
    double read_s;                   // the base's folder, configuration, tokenizer
    double device_s;                 // opening the device
    double model_s;                  // memory on it
    struct model_load_stats weights; // bytes, seconds, threads, digests compared
    double start_s;                  // the engine: pool, tiers
};

struct runtime {
    struct model_options opt;
    const char *store_path; // borrowed; NULL: no store
    char *cache_folder;     // or NULL
    struct base_ref base;
    bool has_config;
    struct model_config config;
    struct model_modules *modules;
    struct checkpoint *checkpoint; // stays mapped: adapters are compared with it (modules->base)
    struct generation_config generation;
    struct text_kit *kit; // NULL: no folder (dummy weights)
    struct backend *be;
    struct backend_info info;
    char device_note[256];
    struct step_limits limits;
    struct plan plan;
    uint32_t context_length;
    struct adapter_source *source;
    struct lease *lease; // the base
    json_t *digests;     // of the base's tensors, or NULL
    char *kernel_cache;  // folder of what the device measured, or NULL
    struct runtime_times times;
    struct device_model *model;
    struct engine *engine;
    FILE *trace;
};

/* Finds and reads; opens the device; plans. Nothing large is allocated. */
int runtime_open(struct runtime **out, const struct model_options *opt, const char *store_path,
                 struct err *err);
/* The weights. */
int runtime_load(struct runtime *rt, void (*progress)(void *user, uint64_t done, uint64_t total),
                 void *user, struct err *err);
/* The engine; on_step as in engine_options. */
int runtime_start(struct runtime *rt, void (*on_step)(void *user), void *user, struct err *err);
/* Ends the engine alone (cancels what runs). */
void runtime_stop(struct runtime *rt);
void runtime_close(struct runtime *rt); // NULL is fine

#endif
