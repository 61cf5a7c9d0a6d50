/* rig: an engine over the fake back end, and requests whose events are collected and checked. */
#ifndef TESTS_UNIT_LIBCORE_ENGINE_RIG_H
#define TESTS_UNIT_LIBCORE_ENGINE_RIG_H

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "libcore/base/thread.h"
#include "libcore/engine/engine.h"
#include "tests/lib/fake_backend.h"
#include "tests/lib/test.h"

enum { RIG_MAX_TOKENS = 1024 };

struct rig {
    struct fake_rig fake;
    struct engine *engine;
    struct step_limits limits;
    struct engine_options opt;
};

/* Small enough that everything happens, large enough that nothing must. */
static inline struct rig rig_defaults(void)
{
    struct rig r = {.limits = {.max_rows = 64,
                               .max_sequences = 32,
                               .max_logit_rows = 64,
                               .max_segments = 128,
                               .max_slots = 16,
                               .max_pages = 2048,
                               .page_tokens = 4}};
    r.opt = (struct engine_options){.pool_bytes = 64ull * BACKEND_CHUNK_BYTES,
                                    .host_cache_bytes = 64ull * BACKEND_CHUNK_BYTES,
                                    .base_fingerprint = "",
                                    .context_length = 512};
    return r;
}

static inline int rig_open(struct rig *r, const struct fake_options *fake, struct err *err)
{
    int rc = fake_open(&r->fake, fake, &r->limits, err);
    if (rc)
        return rc;
    r->opt.be = r->fake.be;
    r->opt.model = r->fake.model;
    r->opt.config = &r->fake.config;
    r->opt.modules = r->fake.modules;
    r->opt.source = r->fake.source;
    r->opt.limits = r->limits;
    return engine_open(&r->engine, &r->opt, err);
}

/* Closes all of it and checks that nothing was lost and no rule was broken. */
static inline void rig_close(struct rig *r)
{
    char first[ERR_MSG_BYTES];
    engine_free(r->engine);
    EXPECT_INT(fake_n_slots(&r->fake), 0);
    EXPECT_INT(fake_n_weights(&r->fake), 0);
    EXPECT_INT(fake_n_images(&r->fake), 0);
    unsigned n = fake_violations(&r->fake, first, sizeof first);
    EXPECT_MSG(n == 0, "%u violations, the first: %s", n, first);
    fake_close(&r->fake);
}

/* One request and what came of it. */
struct job {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    struct engine_request request;
    struct fake_use uses[LIMIT_ADAPTERS_PER_REQUEST];
    struct engine_adapter_use adapters[LIMIT_ADAPTERS_PER_REQUEST];
    char ids[LIMIT_ADAPTERS_PER_REQUEST][DIGEST_HEX_CHARS + 1];
    size_t n_uses;
    int32_t prompt[RIG_MAX_TOKENS];
    uint32_t max_tokens; // prompt and answer, by context and KV pages; 0: no bound that matters
    uint64_t id;
    int32_t tokens[RIG_MAX_TOKENS];
    unsigned n_tokens, n_finished, n_scores, n_wrong_scores;
    struct engine_event end;
    struct err error;
};

static inline void job_event(void *user, const struct engine_event *event)
{
    struct job *j = user;
    pthread_mutex_lock(&j->mutex);
    if (event->type == ENGINE_EVENT_TOKEN && j->n_tokens < RIG_MAX_TOKENS) {
        j->tokens[j->n_tokens++] = event->token;
    } else if (event->type == ENGINE_EVENT_PROMPT) {
        float want = fake_score(&j->request, j->uses, j->n_uses, event->position);
        j->n_scores++;
        j->n_wrong_scores += event->logprob != want || event->position != j->n_scores ||
                             event->token != j->prompt[event->position];
    } else if (event->type == ENGINE_EVENT_FINISHED) {
        j->n_finished++;
        j->end = *event;
        if (event->error)
            j->error = *event->error;
        pthread_cond_signal(&j->cond);
    }
    pthread_mutex_unlock(&j->mutex);
}

/* A greedy request for at most n_new tokens; the prompt is a function of seed. */
static inline void job_init(struct job *j, unsigned seed, uint32_t n_prompt, uint32_t n_new)
{
    memset(j, 0, sizeof *j);
    pthread_mutex_init(&j->mutex, NULL);
    pthread_cond_init(&j->cond, NULL);
    for (uint32_t i = 0; i < n_prompt; i++)
        j->prompt[i] =
            (int32_t)((seed * 2654435761u + i * (seed % 7 + 1) * 40503u) >> 7) % FAKE_VOCAB;
    for (uint32_t i = 0; i < n_prompt; i++)
        j->prompt[i] = j->prompt[i] < 0 ? -j->prompt[i] : j->prompt[i];
    j->request = (struct engine_request){
        .prompt = j->prompt,
        .n_prompt = n_prompt,
        .max_new_tokens = n_new,
        .include_stop_token = true,
        .sampling = {.top_p = 1, .repetition_penalty = 1, .target = -1, .pending = -1},
        .on_event = job_event,
        .user = j};
}

static inline void job_use(struct job *j, unsigned number, float scale)
{
    size_t i = j->n_uses++;
    fake_content_id(number, j->ids[i]);
    j->uses[i] = (struct fake_use){number, scale};
    j->adapters[i] = (struct engine_adapter_use){j->ids[i], scale};
    j->request.adapters = j->adapters;
    j->request.n_adapters = j->n_uses;
}

static inline int job_submit(struct rig *r, struct job *j, struct err *err)
{
    return engine_submit(r->engine, &j->request, &j->id, err);
}

/* Waits for the end; false after five minutes: the machine may be busy. */
static inline bool job_wait(struct job *j)
{
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += 300;
    pthread_mutex_lock(&j->mutex);
    int rc = 0;
    while (j->n_finished == 0 && rc == 0)
        rc = pthread_cond_timedwait(&j->cond, &j->mutex, &deadline);
    bool done = j->n_finished == 1;
    pthread_mutex_unlock(&j->mutex);
    return done;
}

/* The answer is the one that the definition of the fake's model gives. */
static inline bool job_is_right(struct job *j)
{
    int32_t want[RIG_MAX_TOKENS];
    bool stopped;
    size_t max = j->request.max_new_tokens;
    if (j->max_tokens && max > j->max_tokens - j->request.n_prompt)
        max = j->max_tokens - j->request.n_prompt;
    size_t n = fake_answer(&j->request, j->uses, j->n_uses, want, max, &stopped);
    enum engine_finish finish = stopped ? ENGINE_FINISH_STOP : ENGINE_FINISH_LENGTH;
    return j->n_finished == 1 && j->end.finish == finish && j->n_tokens == n &&
           j->end.n_generated == n && memcmp(want, j->tokens, n * sizeof *want) == 0;
}

#define CHECK_JOB(j)                                                                               \
    do {                                                                                           \
        CHECK_MSG(job_wait(j), "no end");                                                          \
        CHECK_MSG(job_is_right(j), "wrong answer: finish %d, %u tokens, error \"%s\"",             \
                  (j)->end.finish, (j)->n_tokens, (j)->error.msg);                                 \
    } while (0)

__attribute__((unused)) static const struct fake_options PLAIN = {.pages_per_chunk = 16};
__attribute__((unused)) static const struct fake_options SLOW = {
    .pages_per_chunk = 16, .threaded = true, .step_us = 200};
__attribute__((unused)) static const struct fake_options THREADED = {.pages_per_chunk = 16,
                                                                     .threaded = true};

static inline struct job *jobs_alloc(unsigned n)
{
    struct job *jobs = calloc(n, sizeof *jobs);
    if (!jobs)
        abort();
    return jobs;
}

static inline uint32_t n_tokens_of(struct job *j)
{
    pthread_mutex_lock(&j->mutex);
    uint32_t n = j->n_tokens;
    pthread_mutex_unlock(&j->mutex);
    return n;
}

static inline void wait_for_tokens(struct job *j, uint32_t n)
{
    while (n_tokens_of(j) < n)
        usleep(100);
}

/* A request for one adapter, answered rightly. */
static inline void serve_one(struct rig *r, unsigned adapter)
{
    static struct job j;
    struct err err = {0};
    job_init(&j, adapter, 5, 10);
    job_use(&j, adapter, 1);
    CHECK_OK(job_submit(r, &j, &err), err);
    CHECK_JOB(&j);
}

#endif
