#include <assert.h>
#include <time.h>

#include "libcore/base/log.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"
#include "libcore/engine/engine_impl.h"

/*
 * One turn of the worker: take what callers left, move the adapters on, plan and submit step n + 1,
 * then take the result of step n. So the plan knows of n only who is in it: a token that n samples
 * is written ~j, and a sequence that n turns out to end has one row too many in n + 1, whose result
 * is dropped. The device runs steps in order, so pages that the end of a sequence frees may be
 * given to another at once: it writes after the row too many. Chunks and slots go to other adapters
 * only when no step in flight can touch them.
 */

// How long the worker sleeps when only a copy on the device, or room being made, goes on.
static const long POLL_NS = 200000;

// ---- events -------------------------------------------------------------------------------------

static void deliver(struct engine *e, struct sequence *s, const struct engine_event *event)
{
    e->delivered = true;
    if (s->on_event)
        s->on_event(s->user, event);
}

/* The caller can no longer find it; its memory goes when no step in flight holds a row of it. */
static void unlist(struct engine *e, struct sequence *s)
{
    pthread_mutex_lock(&e->mutex);
    struct sequence **at = &e->ids[s->id % ENGINE_ID_BUCKETS];
    while (*at != s)
        at = &(*at)->next_id;
    *at = s->next_id;
    for (at = &e->cancels; *at; at = &(*at)->next_cancel) {
        if (*at == s) {
            *at = s->next_cancel;
            break;
        }
    }
    e->n_queued -= !s->admitted;
    if (--e->n_live == 0)
        pthread_cond_broadcast(&e->idle);
    pthread_mutex_unlock(&e->mutex);
}

static void finish(struct engine *e, struct sequence *s, enum engine_finish why, int32_t stop_id,
                   const struct err *err)
{
    if (s->state == SEQUENCE_QUEUED)
        scheduler_add(e->scheduler, s); // so that there is one way out
    scheduler_remove(e->scheduler, s);
    struct engine_event event = {.type = ENGINE_EVENT_FINISHED,
                                 .request_id = s->id,
                                 .finish = why,
                                 .stop_id = stop_id,
                                 .error = why == ENGINE_FINISH_ERROR ? err : NULL,
                                 .n_prompt = s->n_prompt,
                                 .n_cached = s->n_cached,
                                 .n_generated = s->n_tokens - s->n_prompt,
                                 .n_preempted = s->n_preempted,
                                 .queued_ns = s->queued_ns,
                                 .admitted_ns = s->admitted_ns,
                                 .first_token_ns = s->first_token_ns,
                                 .finished_ns = thread_now_ns(),
                                 .adapter_wait_ns = s->adapter_wait_ns};
    e->counts.n_finished += why == ENGINE_FINISH_STOP || why == ENGINE_FINISH_LENGTH;
    e->counts.n_cancelled += why == ENGINE_FINISH_CANCELLED;
    e->counts.n_failed += why == ENGINE_FINISH_ERROR;
    deliver(e, s, &event);
    unlist(e, s);
    if (s->n_inflight == 0)
        sequence_free(s);
}

// ---- results ------------------------------------------------------------------------------------

static struct engine_event token_event(const struct sequence *s, enum engine_event_type type,
                                       uint32_t position, const struct step_result *result,
                                       uint32_t j)
{
    uint32_t n_top = s->sampling.n_top > 0 ? (uint32_t)s->sampling.n_top : 0;
    return (struct engine_event){
        .type = type,
        .request_id = s->id,
        .token = result->ids[j],
        .position = position,
        .logprob = result->logprobs[j],
        .rank = result->ranks ? result->ranks[j] : 0,
        .n_top = n_top,
        .top_ids = n_top ? result->top_ids + (size_t)j * BACKEND_MAX_TOP : NULL,
        .top_logprobs = n_top ? result->top_logprobs + (size_t)j * BACKEND_MAX_TOP : NULL,
        .stop_id = -1};
}

static void take_score(struct engine *e, struct sequence *s, const struct batch_logit *logit,
                       const struct step_result *result, uint32_t j)
{
    struct engine_event event = token_event(s, ENGINE_EVENT_PROMPT, logit->position, result, j);
    deliver(e, s, &event);
    if (s->max_new == 0 && logit->position + 1 == s->n_prompt)
        finish(e, s, ENGINE_FINISH_LENGTH, -1, NULL);
}

static void take_token(struct engine *e, struct sequence *s, const struct step_result *result,
                       uint32_t j)
{
    int32_t token = result->ids[j];
    struct engine_event event = token_event(s, ENGINE_EVENT_TOKEN, s->n_tokens, result, j);
    s->n_pending--;
    s->tokens[s->n_tokens++] = token;
    uint32_t n_generated = s->n_tokens - s->n_prompt;
    if (n_generated == 1)
        s->first_token_ns = thread_now_ns();
    bool stops = n_generated > s->min_new && sequence_is_stop(s, token);
    if (!stops || s->include_stop)
        deliver(e, s, &event);
    if (stops)
        finish(e, s, ENGINE_FINISH_STOP, token, NULL);
    else if (n_generated == s->max_new)
        finish(e, s, ENGINE_FINISH_LENGTH, -1, NULL);
    else
        scheduler_note_tokens(e->scheduler, s);
}

static void take_result(struct engine *e, const struct step_record *r,
                        const struct step_result *result)
{
    for (uint32_t j = 0; j < r->n_logits; j++) {
        struct sequence *s = r->logits[j].seq;
        if (s->state == SEQUENCE_DONE)
            continue; // it overran its end, or was cancelled
        if (r->logits[j].sampled)
            take_token(e, s, result, j);
        else
            take_score(e, s, &r->logits[j], result, j);
    }
}

/* Pages hold nobody knows what now: whoever runs ends with the error, the prefix cache is emptied.
 */
static void fail_running(struct engine *e, const struct err *err)
{
    log_error("engine", "step failed reason=\"%s\"", err->msg);
    uint32_t n;
    struct sequence *const *running = scheduler_running(e->scheduler, &n);
    while (n > 0) {
        finish(e, running[n - 1], ENGINE_FINISH_ERROR, -1, err);
        running = scheduler_running(e->scheduler, &n);
    }
    prefix_cache_flush(e->prefix);
    for (uint32_t i = 0; i < e->n_in_flight; i++)
        e->in_flight[i]->failed = true;
}

/* A preempted sequence waits for a token that will not come now. */
static void fail_pending(struct engine *e, const struct step_record *r, const struct err *err)
{
    for (uint32_t j = 0; j < r->n_logits; j++) {
        struct sequence *s = r->logits[j].seq;
        if (s->state != SEQUENCE_DONE)
            finish(e, s, ENGINE_FINISH_ERROR, -1, err);
    }
}

static void end_step(struct step_record *r)
{
    for (uint32_t i = 0; i < r->n_sequences; i++) {
        struct sequence *s = r->sequences[i];
        if (--s->n_inflight == 0 && s->state == SEQUENCE_DONE)
            sequence_free(s);
    }
}

/* Waits for the oldest step in flight. */
static void complete_step(struct engine *e)
{
    struct step_record *r = e->in_flight[0];
    struct step_result result;
    struct err err = {0};
    int rc = e->opt.be->ops->step_result(e->opt.be, e->opt.model, r->ticket, &result, &err);
    e->in_flight[0] = e->in_flight[1];
    e->n_in_flight--;
    e->n_completed = r->number;
    device_pool_note_steps(e->chunks, e->n_submitted, e->n_completed);
    uint64_t now = thread_now_ns();
    if (rc) {
        fail_running(e, &err);
        fail_pending(e, r, &err);
    } else if (r->failed) {
        err_set(&err, ERR_DEVICE, "the step before this one failed");
        fail_pending(e, r, &err);
    } else {
        take_result(e, r, &result);
    }
    trace_step(e->opt.trace, r, now);
    e->counts.n_steps++;
    e->counts.n_decode_tokens += r->n_decode_rows;
    e->counts.n_prefill_tokens += r->n_prefill_rows;
    e->counts.step_ns += now - r->begin_ns;
    e->counts.last_step_rows = r->n_rows;
    end_step(r);
}

// ---- a step -------------------------------------------------------------------------------------

/* Whether something was done: a step is on its way, or it failed and took its sequences along. */
static bool submit_step(struct engine *e)
{
    uint64_t number = e->n_submitted + 1;
    if (scheduler_plan(e->scheduler, number, e->n_in_flight > 0) == 0)
        return false;
    struct step_record *r;
    struct err err = {0};
    const struct step *step = batch_build(e->batch, e->scheduler, number, &r);
    struct scheduler_stats stats;
    scheduler_stats(e->scheduler, &stats);
    r->n_preemptions = stats.n_preemptions - e->n_preemptions_seen;
    e->n_preemptions_seen = stats.n_preemptions;
    r->n_kv_pages = kv_cache_n_referenced(e->kv);
    r->begin_ns = thread_now_ns();
    if (e->opt.be->ops->step_submit(e->opt.be, e->opt.model, step, &r->ticket, &err)) {
        fail_running(e, &err);
        return true;
    }
    e->n_submitted = number;
    device_pool_note_steps(e->chunks, e->n_submitted, e->n_completed);
    e->in_flight[e->n_in_flight++] = r;
    batch_submitted(e->batch, e->scheduler, r);
    return true;
}

// ---- what callers left --------------------------------------------------------------------------

static void fail_waiting(void *user, struct sequence *s)
{
    struct engine *e = user;
    for (uint32_t i = 0; i < s->n_uses; i++) {
        const struct err *err = adapter_pool_error(s->uses[i].entry);
        if (err) {
            struct err copy = *err; // the entry may go with its last request
            finish(e, s, ENGINE_FINISH_ERROR, -1, &copy);
            return;
        }
    }
}

static void accept(struct engine *e, struct sequence *s)
{
    scheduler_add(e->scheduler, s);
    if (s->max_new == 0 && s->n_prompt == 1) // nothing precedes its only token
        finish(e, s, ENGINE_FINISH_LENGTH, -1, NULL);
}

static void take_inbox(struct engine *e)
{
    pthread_mutex_lock(&e->mutex);
    struct sequence *inbox = e->inbox, *cancels = e->cancels;
    bool flush = e->flush_prefix;
    e->inbox = e->inbox_last = e->cancels = NULL;
    e->flush_prefix = e->awake = false;
    pthread_mutex_unlock(&e->mutex);
    if (flush)
        prefix_cache_flush(e->prefix);
    struct sequence *next;
    // first the inbox, so that whoever is cancelled is known to the scheduler; the end of one
    // sequence touches no other, so both lists stay whole
    for (struct sequence *s = cancels; s; s = s->next_cancel)
        s->rejected = true;
    for (struct sequence *s = inbox; s; s = next) {
        next = s->next_inbox;
        if (!s->rejected)
            accept(e, s);
    }
    for (struct sequence *s = cancels; s; s = next) {
        next = s->next_cancel;
        finish(e, s, ENGINE_FINISH_CANCELLED, -1, NULL);
    }
}

static void service_adapters(struct engine *e)
{
    // again after failures: what the failed ones held may be what others wait for
    while (adapter_pool_service(e->adapters, e->n_completed)) {
        scheduler_each_waiting(e->scheduler, fail_waiting, e);
        adapter_pool_clear_errors(e->adapters);
    }
}

static void publish_stats(struct engine *e)
{
    struct scheduler_stats s;
    scheduler_stats(e->scheduler, &s);
    struct engine_stats *c = &e->counts;
    c->n_preemptions = s.n_preemptions;
    c->prefix_queries_tokens = s.prefix_queries_tokens;
    c->prefix_hit_tokens = s.prefix_hit_tokens;
    c->n_running = s.n_running;
    c->kv_pages_total = kv_cache_n_pages(e->kv);
    c->kv_pages_used = kv_cache_n_referenced(e->kv);
    c->page_tokens = e->opt.limits.page_tokens;
    c->max_step_adapters = e->opt.max_step_adapters;
    c->pool_bytes = (uint64_t)device_pool_n_chunks(e->chunks) * BACKEND_CHUNK_BYTES;
    pthread_mutex_lock(&e->mutex);
    e->stats = *c;
    e->n_queued -= s.n_first_admissions - e->n_admissions_seen;
    pthread_mutex_unlock(&e->mutex);
    e->n_admissions_seen = s.n_first_admissions;
    if (e->delivered && e->opt.on_step)
        e->opt.on_step(e->opt.user);
    e->delivered = false;
}

/* Until somebody calls engine_wake(), or for a moment when something goes on that calls nobody. */
static bool wait_for_work(struct engine *e)
{
    bool poll = adapter_pool_polling(e->adapters) || scheduler_is_urgent(e->scheduler) ||
                e->counts.n_running > 0;
    uint64_t ns = thread_now_ns() + (uint64_t)POLL_NS;
    struct timespec soon = {.tv_sec = (time_t)(ns / 1000000000u),
                            .tv_nsec = (long)(ns % 1000000000u)};
    pthread_mutex_lock(&e->mutex);
    while (!e->awake && !e->stop) {
        if (!poll)
            pthread_cond_wait(&e->work, &e->mutex);
        else if (pthread_cond_timedwait(&e->work, &e->mutex, &soon) != 0)
            break;
    }
    bool stop = e->stop;
    pthread_mutex_unlock(&e->mutex);
    return !stop;
}

static void cancel_waiting(void *user, struct sequence *s)
{
    finish(user, s, ENGINE_FINISH_CANCELLED, -1, NULL);
}

static void shut_down(struct engine *e)
{
    adapter_pool_stop(e->adapters);
    take_inbox(e);
    scheduler_each_waiting(e->scheduler, cancel_waiting, e);
    uint32_t n;
    struct sequence *const *running = scheduler_running(e->scheduler, &n);
    while (n > 0) {
        finish(e, running[n - 1], ENGINE_FINISH_CANCELLED, -1, NULL);
        running = scheduler_running(e->scheduler, &n);
    }
    while (e->n_in_flight > 0)
        complete_step(e);
    adapter_pool_service(e->adapters, e->n_completed);
    publish_stats(e);
}

static bool should_stop(struct engine *e)
{
    pthread_mutex_lock(&e->mutex);
    bool stop = e->stop;
    pthread_mutex_unlock(&e->mutex);
    return stop;
}

void *engine_worker_main(void *arg)
{
    struct engine *e = arg;
    while (!should_stop(e)) {
        take_inbox(e);
        service_adapters(e);
        uint64_t n_failed = e->counts.n_failed;
        bool moved = submit_step(e) || e->counts.n_failed != n_failed;
        if (e->n_in_flight == BATCH_IN_FLIGHT || (!moved && e->n_in_flight)) {
            complete_step(e);
            moved = true;
        }
        publish_stats(e);
        if (!moved && !wait_for_work(e))
            break;
    }
    shut_down(e);
    return NULL;
}

// ---- what the scheduler is given ----------------------------------------------------------------

static void fail_one(void *user, struct sequence *s, const struct err *err)
{
    finish(user, s, ENGINE_FINISH_ERROR, -1, err);
}

int engine_open_scheduler(struct engine *e, struct err *err)
{
    const struct engine_options *o = &e->opt;
    struct scheduler_options opt = {.adapters = e->adapters,
                                    .kv = e->kv,
                                    .prefix = e->prefix,
                                    .no_prefix_cache = o->no_prefix_cache,
                                    .limits = o->limits,
                                    .max_step_tokens = o->max_step_tokens,
                                    .max_running = o->max_running,
                                    .max_step_adapters = o->max_step_adapters,
                                    .fail = fail_one,
                                    .user = e};
    return scheduler_open(&e->scheduler, &opt, err);
}
