/* fake_backend's own: shared by fake_backend.c (the device), fake_model.c (what it computes)
 * and fake_source.c (adapters, the rig).
 */
#ifndef TESTS_LIB_FAKE_IMPL_H
#define TESTS_LIB_FAKE_IMPL_H

#include <pthread.h>

#include "tests/lib/fake_backend.h"

enum { FAKE_STEPS = 3, FAKE_MAX_BIAS = 1 << 14, FAKE_BLOCK_BYTES = 1 << 18, FAKE_MAX_CHUNKS = 8 };

struct fake_step { // a deep copy, and its result
    struct step step;
    int32_t *tokens;
    struct step_sequence *sequences;
    uint32_t *pages, *logit_rows;
    struct step_segment *segments, *head_segments;
    struct sample_params *sampling;
    struct token_bias *bias;
    uint64_t *history;
    int32_t *ids, *ranks, *top_ids;
    float *logprobs, *top_logprobs;
};

struct fake_slot {
    atomic_int state; // enum adapter_state
    uint64_t size;
    uint32_t chunks[FAKE_MAX_CHUNKS];
    uint64_t weight;
    uint32_t polls_left;
    int n_steps; // submitted, result not taken; under the mutex
};

struct device_weight {
    uint64_t signature;
};

struct fake {
    struct backend base;
    struct fake_options opt;
    struct step_limits limits;
    uint8_t *pool;
    uint32_t n_chunks;
    struct fake_slot *slots;
    struct fake_step steps[FAKE_STEPS];
    uint64_t *effects; // by row of the step that runs
    int32_t *previous; // sampled by the step before
    uint32_t n_previous;
    pthread_mutex_t mutex;
    pthread_cond_t work, done;
    pthread_t thread;
    bool stop;
    uint64_t n_submitted, n_done, n_taken;
    unsigned n_violations;
    char violation[ERR_MSG_BYTES];
    atomic_uint fail_submit, fail_result, fail_upload, n_weights, n_images;
};

struct fake *fake_new(const struct fake_options *opt, const struct step_limits *limits);
void fake_delete(struct fake *f);
uint64_t fake_hash_text(const char *text);

// fake_model.c: what the "model" is made of
uint64_t fake_mix(uint64_t h, uint64_t v);
uint64_t fake_effect(uint64_t signature, float scale); // of an adapter, on a row or a logit row
uint64_t fake_row_value(int32_t token, uint32_t position, uint32_t regime, uint64_t effects);
/* fold: everything visible; history: what the penalties read, 0 without. */
int32_t fake_draw(uint64_t fold, uint64_t history, const struct sample_params *p);
float fake_score_of(uint64_t fold, int32_t token);
bool fake_reads_history(const struct sample_params *p);

#endif
