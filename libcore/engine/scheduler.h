/*
 * scheduler: who runs, and how many rows each gets in the next step.
 *
 * Decode rows first, then prefill chunks of running sequences (oldest first), then admissions in
 * the order of fair.h, all within max_step_tokens. When KV pages run out the newest running
 * sequence of the lowest priority gives its pages up and is computed again later. A sequence is
 * admitted when its adapters are on the device, the step may hold them, and its pages are there;
 * one that a full cache has held up for long makes the adapters that got most drain for it. Owns
 * the waiting and running sets, not the sequences. Worker thread only; allocates in open alone.
 */
#ifndef LIBCORE_ENGINE_SCHEDULER_H
#define LIBCORE_ENGINE_SCHEDULER_H

#include "libcore/engine/adapter_pool.h"
#include "libcore/engine/kv_cache.h"
#include "libcore/engine/prefix_cache.h"
#include "libcore/engine/sequence.h"

struct scheduler;

/* Steps that others may pass a request which waits for room among the adapters. */
enum { SCHEDULER_BYPASS_STEPS = 64 };

struct scheduler_options {
    struct adapter_pool *adapters; // all borrowed
    struct kv_cache *kv;
    struct prefix_cache *prefix;
    bool no_prefix_cache;
    struct step_limits limits;
    uint32_t max_step_tokens, max_running, max_step_adapters;
    /* Ends a waiting request that can never run; calls scheduler_remove(). */
    void (*fail)(void *user, struct sequence *s, const struct err *err);
    void *user;
};

struct scheduler_stats {
    uint64_t n_preemptions, n_first_admissions, prefix_queries_tokens, prefix_hit_tokens;
    uint32_t n_running, n_waiting;
};

int scheduler_open(struct scheduler **out, const struct scheduler_options *opt, struct err *err);
void scheduler_free(struct scheduler *s);

void scheduler_add(struct scheduler *s, struct sequence *seq); // becomes WAITING
/* Takes a waiting or running sequence out and gives back its pages and adapters; becomes DONE. */
void scheduler_remove(struct scheduler *s, struct sequence *seq);
/* Sets plan_rows of every running sequence for step number `step` (1, 2, …); returns their sum.
 * in_flight: whether a submitted step's result is still to come. */
uint32_t scheduler_plan(struct scheduler *s, uint64_t step, bool in_flight);
/* Calls visit for each waiting sequence; visit may remove the one it is given. */
void scheduler_each_waiting(struct scheduler *s, void (*visit)(void *user, struct sequence *seq),
                            void *user);

/* Whether room is being made for somebody: adapter_pool_service() has more to do at once. */
bool scheduler_is_urgent(const struct scheduler *s);
/* Running sequences in row order: by adapter set, then age. Valid until the next change. */
struct sequence *const *scheduler_running(const struct scheduler *s, uint32_t *n);
/* The planned step was submitted: charges clients, makes full pages known. */
void scheduler_submitted(struct scheduler *s, struct sequence *seq, uint64_t step);
/* Tokens of seq became known: makes pages known that are full now. */
void scheduler_note_tokens(struct scheduler *s, struct sequence *seq);
void scheduler_stats(const struct scheduler *s, struct scheduler_stats *out);

#endif
