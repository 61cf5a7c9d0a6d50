/*
 * engine: requests in, tokens out. Continuous batching, chunked prefill, paged KV with prefix
 * cache, preemption by recomputation, adapters loaded beside the running batch, fairness by
 * adapter.
 *
 * Owns one worker thread, the KV cache, the device pool, the adapter tiers and the prefix cache.
 * Borrows the back end, the model and the adapter source. Knows no names, no text and no HTTP: an
 * adapter is a content id, a prompt is ids.
 * Thread rule: every function here may be called from any thread. Events are delivered on the
 * engine's worker thread: a handler copies and returns, it never blocks and never calls the engine.
 */
#ifndef LIBCORE_ENGINE_ENGINE_H
#define LIBCORE_ENGINE_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "libcore/adapter_source.h"
#include "libcore/backend.h"

enum eviction_policy { EVICTION_LRU, EVICTION_FIFO, EVICTION_COST };

struct engine_options {
    struct backend *be;
    struct device_model *model;
    const struct model_config *config;
    const struct model_modules *modules;
    struct step_limits limits;     // as given to model_open
    struct adapter_source *source; // NULL: base only
    const char *base_fingerprint;  // part of pack keys; "" without
    uint64_t pool_bytes;           // KV pages and adapters together
    uint64_t adapter_bytes;        // cap of adapters within the pool; 0: no cap but the pool
    uint64_t host_cache_bytes;     // cap of packed images in host memory
    uint32_t max_kv_pages;         // 0: what the pool holds
    uint32_t max_step_tokens;      // <= limits.max_rows
    uint32_t max_running;          // sequences, <= limits.max_sequences
    uint32_t max_step_adapters;    // distinct adapters in one step; 0: as many as fit
    uint32_t max_host_adapters;    // 0: by bytes alone
    uint32_t max_queued;
    uint32_t context_length;   // prompt + answer
    uint32_t n_loader_threads; // 0: 2
    enum eviction_policy eviction;
    bool no_prefix_cache;
    FILE *trace; // NULL, or one JSON line a step (docs/SERVING.md); borrowed
    /* Called on the worker thread after the events of a step were delivered: wake the output
     * thread. */
    void (*on_step)(void *user);
    void *user;
};

struct engine_adapter_use {
    const char *content_id;
    float scale; // other than 1, or several uses: only for additive kinds, else ERR_REFUSED
};

enum engine_finish {
    ENGINE_FINISH_STOP,   // an end id or a stop id
    ENGINE_FINISH_LENGTH, // max_new_tokens or the context
    ENGINE_FINISH_CANCELLED,
    ENGINE_FINISH_ERROR
};

enum engine_event_type { ENGINE_EVENT_PROMPT, ENGINE_EVENT_TOKEN, ENGINE_EVENT_FINISHED };

struct engine_event {
    enum engine_event_type type;
    uint64_t request_id;
    /* TOKEN: one generated id; PROMPT: the log-probability of prompt position `position` (1 …
     * n_prompt - 1) given what precedes it. An end id is delivered as a token too when
     * include_stop_token is set. */
    int32_t token;
    uint32_t position;
    float logprob;
    int32_t rank;
    uint32_t n_top;
    const int32_t *top_ids;
    const float *top_logprobs;
    /* FINISHED */
    enum engine_finish finish;
    int32_t stop_id;         // the id that stopped it, or -1
    const struct err *error; // finish == ERROR
    uint32_t n_prompt, n_cached, n_preempted;
    uint32_t n_generated; // sampled tokens, the one that stopped it included
    uint64_t queued_ns, admitted_ns, first_token_ns, finished_ns; // monotonic
    uint64_t adapter_wait_ns;                                     // of which waiting for adapters
};

struct engine_request {
    const int32_t *prompt; // copied
    size_t n_prompt;
    const struct engine_adapter_use *adapters; // copied
    size_t n_adapters;
    uint32_t max_new_tokens; // 0: only with prompt_logprobs
    uint32_t min_new_tokens; // stop ids are forbidden before
    const int32_t *stop_ids; // end ids and the request's own; copied
    size_t n_stop_ids;
    bool include_stop_token;
    bool prompt_logprobs; // PROMPT events (then no prefix hit is used)
    struct sample_params
        sampling;           // history, pending, counter, target are the engine's; bias is copied
    int32_t priority;       // larger first; 0
    const char *cache_salt; // NULL, or a tenant's own prefix-cache space
    void (*on_event)(void *user, const struct engine_event *event);
    void *user;
};

struct engine;

int engine_open(struct engine **out, const struct engine_options *opt, struct err *err);
/* Cancels what runs, joins the threads. */
void engine_free(struct engine *e);
/* No new requests (ERR_BUSY); waits for the running ones at most deadline_ms. 0 or ERR_TIMEOUT. */
int engine_drain(struct engine *e, uint64_t deadline_ms, struct err *err);

/* Queues a request. ERR_BUSY (queue full, draining), ERR_LIMIT (prompt too long: message as for the
 * client), ERR_USAGE (id outside the vocabulary), ERR_REFUSED (scale or mix of a non-additive
 * kind). After 0 exactly one FINISHED event follows; it may come before this returns. */
int engine_submit(struct engine *e, const struct engine_request *request, uint64_t *request_id,
                  struct err *err);
/* Ends a request within two steps; FINISHED (CANCELLED) follows. Unknown ids are ignored. */
void engine_cancel(struct engine *e, uint64_t request_id);

/* ---- adapters ---- */
enum engine_tier { ENGINE_TIER_DISK, ENGINE_TIER_HOST, ENGINE_TIER_DEVICE, ENGINE_TIER_LOADING };

struct engine_adapter_info {
    char content_id[DIGEST_HEX_CHARS + 1];
    enum engine_tier tier;
    uint64_t host_bytes, device_bytes;
    uint32_t rank;
    uint32_t n_running, n_waiting; // requests
    bool pinned;
    uint64_t n_tokens; // generated and prefilled for it
};

/* Binds an adapter against the model and asks the back end: 0, or why not. Loads nothing. */
int engine_adapter_check(struct engine *e, const struct adapter *a, struct err *err);
/* Makes the engine know what kinds a content id has, so that submit can refuse mixes; idempotent.
 */
int engine_adapter_register(struct engine *e, const struct adapter *a, struct err *err);
/* Starts a load to the device ahead of requests; with pin it stays there until unpinned. A pin that
 * cannot fit is ERR_LIMIT. */
int engine_adapter_prefetch(struct engine *e, const char *content_id, bool pin, struct err *err);
void engine_adapter_unpin(struct engine *e, const char *content_id);
/* Forgets it: running requests finish with it, then it leaves every tier and its prefix pages go.
 */
void engine_adapter_forget(struct engine *e, const char *content_id);
/* Fills at most max entries of what is known; returns how many there are. */
size_t engine_adapters(struct engine *e, struct engine_adapter_info *out, size_t max);

void engine_flush_prefix_cache(struct engine *e);

struct engine_stats {
    uint64_t n_steps, n_prefill_tokens, n_decode_tokens, n_finished, n_failed, n_cancelled;
    uint64_t n_preemptions, prefix_queries_tokens, prefix_hit_tokens;
    uint32_t n_running, n_waiting, n_waiting_for_adapter;
    uint32_t kv_pages_total, kv_pages_used, page_tokens; // used: referenced by running sequences
    uint32_t n_device_adapters, n_host_adapters, max_step_adapters;
    uint64_t device_adapter_bytes, host_adapter_bytes, pool_bytes;
    /* adapter tiers: [0] disk to host, [1] host to device */
    uint64_t loads[2], load_bytes[2], load_ns[2], load_failures, hits, misses, evictions[2];
    uint64_t step_ns, last_step_rows;
};
void engine_stats(struct engine *e, struct engine_stats *out);

#endif
