/*
 * sequence: one request on its way through the engine, from submit to its FINISHED event.
 *
 * Tokens are known (prompt, then what was sampled and seen) or pending (sampled by a step in
 * flight). Positions below n_computed have their keys and values in pages, or will have them when
 * the submitted steps are done. One block of memory, allocated by the submitting thread; afterwards
 * only the worker thread touches it, but for the fields that engine.c guards by its own lock.
 */
#ifndef LIBCORE_ENGINE_SEQUENCE_H
#define LIBCORE_ENGINE_SEQUENCE_H

#include "libcore/engine/engine.h"
#include "libcore/engine/fair.h"
#include "libcore/engine/prefix_cache.h"

struct adapter_entry;

enum sequence_state {
    SEQUENCE_QUEUED,  // in the engine's inbox
    SEQUENCE_WAITING, // in the fair queue: never admitted, or preempted
    SEQUENCE_RUNNING,
    SEQUENCE_DONE // its FINISHED event is out; lives on only for steps in flight
};

struct sequence_use {
    const char *content_id; // borrowed from the request until the entry is known
    struct adapter_entry *entry;
    float scale;
    uint32_t slot; // valid while running
};

struct sequence_limits {
    uint32_t vocab_size;
    uint32_t max_tokens; // prompt and answer: context and KV pages allow no more
    uint32_t page_tokens;
};

struct sequence {
    uint64_t id;
    enum sequence_state state;
    void (*on_event)(void *user, const struct engine_event *event);
    void *user;

    // ---- the request ----
    int32_t *tokens; // prompt, then the answer so far
    uint32_t n_prompt, max_new, min_new;
    int32_t *stop_ids;
    uint32_t n_stop;
    bool include_stop, prompt_logprobs;
    struct token_bias *bias; // the request's n_bias, then -INFINITY for each stop id
    uint32_t n_bias;
    struct sample_params sampling;
    uint32_t rope_regime;
    struct sequence_use uses[LIMIT_ADAPTERS_PER_REQUEST]; // by content id; while running by slot
    uint32_t n_uses;
    int32_t priority;
    struct fair_item fair;

    // ---- progress ----
    uint32_t n_tokens;    // known
    uint32_t n_pending;   // sampled by steps in flight: 0, 1, and 2 between a submit and a result
    uint32_t n_computed;  // positions scheduled
    uint32_t n_scored;    // prompt positions whose log-probability is scheduled or reported
    uint32_t n_charged;   // tokens that the client's virtual time has been charged for
    uint32_t n_inflight;  // steps in flight that hold a row of it
    uint32_t pending_row; // logit row of the newest pending token in the last submitted step
    uint32_t n_cached, n_preempted;
    bool admitted;

    // ---- KV ----
    struct prefix_space *space;
    bool space_interned;
    uint32_t *pages; // room for max_tokens
    uint32_t n_pages, n_known_pages;
    uint64_t chain; // of the prefix cache, after n_known_pages pages

    // ---- the plan of the next step ----
    uint32_t plan_rows;
    bool rejected;           // cancelled before the worker saw it
    uint64_t preempted_plan; // the plan in which it lost its pages
    uint64_t blocked_step;   // first step at which it was held up by a full cache; 0: it was not
    uint32_t blocked_pages;  // pages it wanted when it was held up last

    uint64_t queued_ns, admitted_ns, first_token_ns, adapter_wait_ns;

    // ---- guarded by the engine's lock ----
    struct sequence *next_inbox, *next_cancel, *next_id;
    bool cancelled;
};

/* Checks the request and copies all of it; adapters are not looked up. ERR_LIMIT, ERR_USAGE,
 * ERR_REFUSED, ERR_NO_MEMORY. `config` gives the rope regime. */
int sequence_open(struct sequence **out, const struct engine_request *r,
                  const struct sequence_limits *limits, const struct model_config *config,
                  struct err *err);
void sequence_free(struct sequence *s); // a space that was interned is the prefix cache's

/* Tokens that may still be sampled beyond those known and pending. */
uint32_t sequence_n_left(const struct sequence *s);
/* Rows that must run before the next token can be sampled (or the prompt is scored). */
uint32_t sequence_n_todo(const struct sequence *s);
bool sequence_is_stop(const struct sequence *s, int32_t token);
/* The same adapters at the same scales. */
bool sequence_same_set(const struct sequence *a, const struct sequence *b);
/* How a is ordered among the rows of a step: by adapter set (slots, scales), then by age. */
int sequence_compare_rows(const struct sequence *a, const struct sequence *b);

#endif
