/*
 * batch: the plan of a step written down as the back end wants it, and what its result means.
 *
 * Rows stand as backend.h asks: decode rows, then prefill rows, each by (adapter set, sequence,
 * position). Neighbours that share an adapter at one scale share its segment, whatever else they
 * use. Owns the arrays of a step and the records of the steps in flight; everything is allocated in
 * open. Worker thread only.
 */
#ifndef LIBCORE_ENGINE_BATCH_H
#define LIBCORE_ENGINE_BATCH_H

#include "libcore/backend.h"
#include "libcore/engine/scheduler.h"

enum { BATCH_IN_FLIGHT = 2 }; // records; the back end takes two steps

/* What one logit row of a step is for. */
struct batch_logit {
    struct sequence *seq;
    bool sampled;      // a token of the answer; else the score of a prompt token
    uint32_t position; // of the token
};

/* Rows of one adapter in a step, for the trace; "" is the base. */
struct batch_group {
    char content_id[DIGEST_HEX_CHARS + 1];
    uint32_t n_rows;
};

struct step_record {
    uint64_t number, ticket, begin_ns;
    bool failed; // the step before it failed: its result is worth nothing
    uint32_t n_rows, n_decode_rows, n_prefill_rows, n_sequences, n_logits, n_groups;
    struct sequence **sequences;
    struct batch_logit *logits;
    struct batch_group *groups; // NULL without a trace
    uint64_t n_preemptions;     // of this plan
    uint32_t n_kv_pages;        // referenced when it was submitted
};

struct batch;

int batch_open(struct batch **out, const struct step_limits *limits, bool with_groups,
               struct err *err);
void batch_free(struct batch *b);

/* Writes the step that the running sequences' plan_rows describe into the arrays (borrowed by the
 * returned step until the next call) and into the record of step `number`. */
const struct step *batch_build(struct batch *b, const struct scheduler *s, uint64_t number,
                               struct step_record **record);
/* The step was submitted: moves its sequences on. */
void batch_submitted(struct batch *b, struct scheduler *s, struct step_record *r);

#endif
