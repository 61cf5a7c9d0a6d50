#include "libcore/engine/engine.h"

#include <assert.h>
#include <string.h>
#include <time.h>

#include "libcore/base/sys.h"
#include "libcore/base/thread.h"
#include "libcore/engine/engine_impl.h"

// ---- open ---------------------------------------------------------------------------------------

static uint32_t at_most(uint32_t wanted, uint32_t bound)
{
    return wanted == 0 || wanted > bound ? bound : wanted;
}

static int check_options(struct engine *e, struct err *err)
{
    struct engine_options *o = &e->opt;
    const struct step_limits *l = &o->limits;
    if (l->page_tokens == 0 || (l->page_tokens & (l->page_tokens - 1)))
        return err_set(err, ERR_LIMIT, "engine: page_tokens is %u, wanted a power of two",
                       l->page_tokens);
    if (!l->max_rows || !l->max_sequences || !l->max_logit_rows || !l->max_pages)
        return err_set(err, ERR_LIMIT, "engine: a limit of the step is 0");
    if (o->source && (!l->max_slots || l->max_segments < 2))
        return err_set(err, ERR_LIMIT,
                       "engine: adapters want slots and segments, limits have %u "
                       "and %u",
                       l->max_slots, l->max_segments);
    o->max_step_tokens = at_most(o->max_step_tokens, l->max_rows);
    o->max_running = at_most(o->max_running, l->max_sequences);
    // every running sequence has a row and a logit row in every step
    o->max_running = at_most(o->max_running, l->max_logit_rows);
    o->max_running = at_most(o->max_running, o->max_step_tokens);
    o->max_step_adapters = at_most(o->max_step_adapters, l->max_slots);
    o->max_queued = at_most(o->max_queued, LIMIT_QUEUED_REQUESTS);
    o->context_length = at_most(o->context_length, o->config->max_positions);
    return 0;
}

static bool give_chunk(void *user)
{
    return kv_cache_give_chunk(((struct engine *)user)->kv);
}

static uint32_t n_spare_chunks(void *user)
{
    return kv_cache_n_spare_chunks(((struct engine *)user)->kv);
}

static void on_forgotten(void *user, const char *content_id)
{
    prefix_cache_drop_adapter(((struct engine *)user)->prefix, content_id);
}

static void on_evict(void *user, uint32_t page)
{
    prefix_cache_evicted(((struct engine *)user)->prefix, page);
}

static int open_memory(struct engine *e, struct err *err)
{
    struct engine_options *o = &e->opt;
    uint64_t n_chunks = o->pool_bytes / BACKEND_CHUNK_BYTES;
    if (n_chunks == 0 || n_chunks > UINT32_MAX)
        return err_set(err, ERR_LIMIT, "engine: a pool of %llu bytes, wanted %d or more",
                       (unsigned long long)o->pool_bytes, BACKEND_CHUNK_BYTES);
    int rc = device_pool_open(&e->chunks, (uint32_t)n_chunks, err);
    if (rc)
        return rc;
    struct kv_cache_options kv = {.pool = e->chunks,
                                  .page_bytes = o->be->ops->page_bytes(o->be, o->model),
                                  .max_pages = o->max_kv_pages,
                                  .on_evict = on_evict,
                                  .user = e};
    rc = kv_cache_open(&e->kv, &kv, err);
    if (rc)
        return rc;
    uint32_t n_pages = (uint32_t)n_chunks * kv_cache_pages_per_chunk(e->kv);
    rc = prefix_cache_open(&e->prefix, e->kv, n_pages, o->limits.page_tokens, err);
    if (rc)
        return rc;
    rc = o->be->ops->pool_open(o->be, o->model, (uint32_t)n_chunks, err);
    e->pool_opened = rc == 0;
    return rc;
}

/* How the pool is shared: a part is left to adapters (what the option says, else a quarter), which
 * bounds how long a sequence may be; and the chunks of the longest sequence are left to KV, so that
 * adapters can never lock out the last one. Returns the bytes that adapters may take. */
static uint64_t share_pool(struct engine *e)
{
    const struct step_limits *l = &e->opt.limits;
    uint64_t n_chunks = device_pool_n_chunks(e->chunks);
    uint64_t per_chunk = kv_cache_pages_per_chunk(e->kv);
    uint64_t reserved = 0;
    if (e->opt.source)
        reserved = e->opt.adapter_bytes
                       ? (e->opt.adapter_bytes + BACKEND_CHUNK_BYTES - 1) / BACKEND_CHUNK_BYTES
                       : n_chunks / 4;
    if (reserved >= n_chunks)
        reserved = n_chunks - 1;
    uint64_t pages = (n_chunks - reserved) * per_chunk;
    if (pages > kv_cache_n_pages(e->kv))
        pages = kv_cache_n_pages(e->kv);
    if (pages > l->max_pages)
        pages = l->max_pages;
    uint64_t tokens = pages * l->page_tokens;
    if (tokens > e->opt.context_length)
        tokens = e->opt.context_length;
    e->sequence_limits = (struct sequence_limits){.vocab_size = e->opt.config->vocab_size,
                                                  .max_tokens = (uint32_t)tokens,
                                                  .page_tokens = l->page_tokens};
    pages = (tokens + l->page_tokens - 1) / l->page_tokens;
    uint64_t kv_chunks = (pages + per_chunk - 1) / per_chunk;
    uint64_t bytes = (n_chunks - kv_chunks) * BACKEND_CHUNK_BYTES;
    return e->opt.adapter_bytes && e->opt.adapter_bytes < bytes ? e->opt.adapter_bytes : bytes;
}

static int open_parts(struct engine *e, struct err *err)
{
    struct engine_options *o = &e->opt;
    struct adapter_pool_options ap = {.be = o->be,
                                      .model = o->model,
                                      .config = o->config,
                                      .modules = o->modules,
                                      .source = o->source,
                                      .base_fingerprint = o->base_fingerprint,
                                      .chunks = e->chunks,
                                      .device_bytes = share_pool(e),
                                      .host_bytes = o->host_cache_bytes,
                                      .max_host_adapters = o->max_host_adapters,
                                      .max_slots = o->limits.max_slots,
                                      .n_loader_threads = o->n_loader_threads,
                                      .eviction = o->eviction,
                                      .give_chunk = give_chunk,
                                      .n_spare_chunks = n_spare_chunks,
                                      .on_forgotten = on_forgotten,
                                      .wake = engine_wake,
                                      .user = e};
    int rc = adapter_pool_open(&e->adapters, &ap, err);
    if (rc)
        return rc;
    rc = engine_open_scheduler(e, err);
    return rc ? rc : batch_open(&e->batch, &o->limits, o->trace != NULL, err);
}

int engine_open(struct engine **out, const struct engine_options *opt, struct err *err)
{
    *out = NULL;
    struct engine *e = sys_calloc(1, sizeof *e);
    if (!e)
        return err_set(err, ERR_NO_MEMORY, "engine: no memory");
    e->opt = *opt;
    pthread_mutex_init(&e->mutex, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&e->work, &attr);
    pthread_cond_init(&e->idle, &attr);
    pthread_condattr_destroy(&attr);
    int rc = check_options(e, err);
    if (rc == 0)
        rc = open_memory(e, err);
    if (rc == 0)
        rc = open_parts(e, err);
    if (rc == 0) {
        int failed = pthread_create(&e->worker, NULL, engine_worker_main, e);
        e->worker_started = failed == 0;
        if (failed)
            rc = err_set_errno(err, failed, "engine: cannot start its thread");
    }
    if (rc) {
        engine_free(e);
        return rc;
    }
    *out = e;
    return 0;
}

void engine_free(struct engine *e)
{
    if (!e)
        return;
    if (e->worker_started) {
        pthread_mutex_lock(&e->mutex);
        e->stop = e->draining = true;
        pthread_mutex_unlock(&e->mutex);
        engine_wake(e);
        pthread_join(e->worker, NULL);
    }
    adapter_pool_free(e->adapters);
    batch_free(e->batch);
    scheduler_free(e->scheduler);
    prefix_cache_free(e->prefix);
    kv_cache_free(e->kv);
    device_pool_free(e->chunks);
    if (e->pool_opened)
        e->opt.be->ops->pool_free(e->opt.be, e->opt.model);
    pthread_cond_destroy(&e->work);
    pthread_cond_destroy(&e->idle);
    pthread_mutex_destroy(&e->mutex);
    sys_free(e);
}

void engine_wake(void *user)
{
    struct engine *e = user;
    pthread_mutex_lock(&e->mutex);
    e->awake = true;
    pthread_cond_signal(&e->work);
    pthread_mutex_unlock(&e->mutex);
}

static struct timespec deadline_after(uint64_t ms)
{
    uint64_t ns = thread_now_ns() + ms * 1000000u;
    return (struct timespec){.tv_sec = (time_t)(ns / 1000000000u),
                             .tv_nsec = (long)(ns % 1000000000u)};
}

int engine_drain(struct engine *e, uint64_t deadline_ms, struct err *err)
{
    struct timespec deadline = deadline_after(deadline_ms);
    int rc = 0;
    pthread_mutex_lock(&e->mutex);
    e->draining = true;
    while (e->n_live > 0 && rc == 0) {
        if (pthread_cond_timedwait(&e->idle, &e->mutex, &deadline) != 0 && e->n_live > 0)
            rc = err_set(err, ERR_TIMEOUT, "%u requests still run after %llu ms", e->n_live,
                         (unsigned long long)deadline_ms);
    }
    pthread_mutex_unlock(&e->mutex);
    return rc;
}

// ---- requests -----------------------------------------------------------------------------------

static void release_uses(struct engine *e, struct sequence *s, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        adapter_pool_release(e->adapters, s->uses[i].entry, false);
}

/* Whether scale and mix are defined for the kinds, as far as these are known already. */
static int check_kinds(struct engine *e, const struct sequence *s, struct err *err)
{
    for (uint32_t i = 0; i < s->n_uses; i++) {
        unsigned kinds;
        bool plain = s->n_uses == 1 && s->uses[i].scale == 1;
        if (plain || !adapter_pool_kinds_known(e->adapters, s->uses[i].entry, &kinds) ||
            !(kinds & ~(unsigned)ADAPTER_ADDITIVE))
            continue;
        return err_set(err, ERR_REFUSED,
                       s->n_uses > 1 ? "several adapters in one request need adapters that only "
                                       "add; %.12s does more (DoRA or replaced weights)"
                                     : "a scale other than 1 needs an adapter that only adds; "
                                       "%.12s does more (DoRA or replaced weights)",
                       s->uses[i].content_id);
    }
    return 0;
}

static int find_adapters(struct engine *e, struct sequence *s, struct err *err)
{
    if (s->n_uses && !e->opt.source)
        return err_set(err, ERR_REFUSED, "this engine serves the base model only");
    if (s->n_uses > e->opt.max_step_adapters)
        return err_set(err, ERR_LIMIT, "%u adapters in one request, a step holds %u", s->n_uses,
                       e->opt.max_step_adapters);
    if (2 * s->n_uses > e->opt.limits.max_segments)
        return err_set(err, ERR_LIMIT, "%u adapters in one request, a step holds %u segments",
                       s->n_uses, e->opt.limits.max_segments);
    for (uint32_t i = 0; i < s->n_uses; i++) {
        struct sequence_use *use = &s->uses[i];
        int rc = adapter_pool_want(e->adapters, use->content_id, &use->entry, err);
        if (rc) {
            release_uses(e, s, i);
            return rc;
        }
        use->content_id = adapter_pool_id(use->entry);
    }
    int rc = check_kinds(e, s, err);
    if (rc)
        release_uses(e, s, s->n_uses);
    return rc;
}

/* Ids that the largest vocabulary among the request's adapters has. */
static uint32_t vocab_of(struct engine *e, const struct engine_request *r)
{
    uint32_t n = e->opt.config->vocab_size;
    for (size_t i = 0; i < r->n_adapters; i++) {
        uint32_t own = adapter_pool_n_vocab(e->adapters, r->adapters[i].content_id);
        n = own > n ? own : n;
    }
    return n;
}

static int enqueue(struct engine *e, struct sequence *s, uint64_t *request_id, struct err *err)
{
    int rc = 0;
    pthread_mutex_lock(&e->mutex);
    if (e->draining) {
        rc = err_set(err, ERR_BUSY, "the engine is shutting down");
    } else if (e->n_queued >= e->opt.max_queued) {
        rc = err_set(err, ERR_BUSY, "%u requests are waiting already", e->n_queued);
    } else {
        s->id = ++e->last_id;
        if (request_id)
            *request_id = s->id;
        s->queued_ns = thread_now_ns();
        struct sequence **bucket = &e->ids[s->id % ENGINE_ID_BUCKETS];
        s->next_id = *bucket;
        *bucket = s;
        *(e->inbox ? &e->inbox_last->next_inbox : &e->inbox) = s;
        e->inbox_last = s;
        e->n_live++;
        e->n_queued++;
        e->awake = true;
        pthread_cond_signal(&e->work);
    }
    pthread_mutex_unlock(&e->mutex);
    return rc;
}

int engine_submit(struct engine *e, const struct engine_request *request, uint64_t *request_id,
                  struct err *err)
{
    struct sequence *s = NULL;
    struct sequence_limits limits = e->sequence_limits;
    limits.vocab_size = vocab_of(e, request);
    int rc = sequence_open(&s, request, &limits, e->opt.config, err);
    if (rc)
        return rc;
    rc = find_adapters(e, s, err);
    if (rc == 0) {
        rc = enqueue(e, s, request_id, err);
        if (rc)
            release_uses(e, s, s->n_uses);
    }
    if (rc)
        sequence_free(s);
    return rc;
}

void engine_cancel(struct engine *e, uint64_t request_id)
{
    pthread_mutex_lock(&e->mutex);
    struct sequence *s = e->ids[request_id % ENGINE_ID_BUCKETS];
    while (s && s->id != request_id)
        s = s->next_id;
    if (s && !s->cancelled) {
        s->cancelled = true;
        s->next_cancel = e->cancels;
        e->cancels = s;
        e->awake = true;
        pthread_cond_signal(&e->work);
    }
    pthread_mutex_unlock(&e->mutex);
}

// ---- adapters, caches, numbers ------------------------------------------------------------------

int engine_adapter_check(struct engine *e, const struct adapter *a, struct err *err)
{
    return adapter_pool_check(e->adapters, a, err);
}

int engine_adapter_register(struct engine *e, const struct adapter *a, struct err *err)
{
    return adapter_pool_register(e->adapters, a, err);
}

int engine_adapter_prefetch(struct engine *e, const char *content_id, bool pin, struct err *err)
{
    return adapter_pool_prefetch(e->adapters, content_id, pin, err);
}

void engine_adapter_unpin(struct engine *e, const char *content_id)
{
    adapter_pool_unpin(e->adapters, content_id);
}

void engine_adapter_forget(struct engine *e, const char *content_id)
{
    adapter_pool_forget(e->adapters, content_id);
}

size_t engine_adapters(struct engine *e, struct engine_adapter_info *out, size_t max)
{
    return adapter_pool_list(e->adapters, out, max);
}

void engine_flush_prefix_cache(struct engine *e)
{
    pthread_mutex_lock(&e->mutex);
    e->flush_prefix = true;
    e->awake = true;
    pthread_cond_signal(&e->work);
    pthread_mutex_unlock(&e->mutex);
}

void engine_stats(struct engine *e, struct engine_stats *out)
{
    pthread_mutex_lock(&e->mutex);
    *out = e->stats;
    out->n_waiting = e->n_live > e->stats.n_running ? e->n_live - e->stats.n_running : 0;
    pthread_mutex_unlock(&e->mutex);
    adapter_pool_stats(e->adapters, out);
}
