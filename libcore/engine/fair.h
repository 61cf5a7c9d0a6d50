/*
 * fair: who is admitted next. Waiting sequences stand in a line for each client; a client is an
 * adapter, or the base, or nobody's mix of several adapters.
 *
 * Order: a higher class first, then the client with the least virtual time, then the older request.
 *   class = priority + steps waited / FAIR_AGE_STEPS     so that nobody waits for ever
 *   virtual time grows with the tokens computed for a client (prefilled 1, generated 2), and starts
 *   at the clock (the virtual time of the client admitted last) when a client comes back, so that
 *   idle time saves up nothing: S-LoRA's "fairness in serving" (VTC) with start tags as in SFQ.
 * Owns no sequence. Not thread-safe: only the engine's worker thread calls it.
 */
#ifndef LIBCORE_ENGINE_FAIR_H
#define LIBCORE_ENGINE_FAIR_H

#include <stdbool.h>
#include <stdint.h>

struct sequence;

enum { FAIR_AGE_STEPS = 1024, FAIR_PREFILL_COST = 1, FAIR_DECODE_COST = 2 };

struct fair_client {
    uint64_t vtime;
    uint32_t n_waiting, n_running;
    struct sequence *first, *last;   // by fair_key, then age
    struct fair_client *prev, *next; // clients with waiting sequences
    uint64_t skipped_round;
};

struct fair_queue {
    struct fair_client *clients;
    uint64_t clock;
    uint64_t round;
    uint32_t n_waiting;
};

/* What a sequence carries; see sequence.h. */
struct fair_item {
    struct fair_client *client;
    struct sequence *prev, *next;
    int64_t key; // arrival step - priority * FAIR_AGE_STEPS: smaller goes first, at any time
};

void fair_add(struct fair_queue *q, struct sequence *s);
void fair_remove(struct fair_queue *q, struct sequence *s);
/* Starts a round: no client is skipped. */
void fair_begin(struct fair_queue *q);
/* The first client by the order above that is not skipped in this round; NULL: none is left. */
struct fair_client *fair_next(struct fair_queue *q, uint64_t now_step);
void fair_skip(struct fair_queue *q, struct fair_client *client);
/* Note that a sequence of the client was admitted. */
void fair_admitted(struct fair_queue *q, struct fair_client *client);
/* Whether a goes before b, whoever their clients are. */
bool fair_before(const struct sequence *a, const struct sequence *b);

#endif
