#include "libcore/engine/adapter_pool.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/engine/adapter_pool_impl.h"

// How fast an adapter's past hits lose weight under EVICTION_COST.
static const double HALF_LIFE_NS = 60e9;

// ---- open, free ---------------------------------------------------------------------------------

static void set_pack_key(struct adapter_pool *p)
{
    struct backend_info info;
    const struct backend_ops *ops = p->opt.be->ops;
    // DoRA's gains are in the image, so without the base's identity a pack may not be kept
    if (!p->opt.base_fingerprint || !p->opt.base_fingerprint[0] || !p->opt.source ||
        !p->opt.source->ops->pack_size || ops->info(p->opt.be, &info, NULL))
        return;
    snprintf(p->pack_key, sizeof p->pack_key, "%.128s-%s-v%u-%s", p->opt.base_fingerprint,
             ops->name, ops->pack_layout_version,
             info.adapter_dtype == DTYPE_NONE ? "file" : dtype_name(info.adapter_dtype));
}

int adapter_pool_open(struct adapter_pool **out, const struct adapter_pool_options *opt,
                      struct err *err)
{
    *out = NULL;
    struct adapter_pool *p = sys_calloc(1, sizeof *p);
    if (!p)
        return err_set(err, ERR_NO_MEMORY, "adapter pool: no memory");
    p->opt = *opt;
    pthread_mutex_init(&p->mutex, NULL);
    int rc = 0;
    p->slots = sys_calloc(opt->max_slots, sizeof *p->slots);
    if (!p->slots)
        rc = err_set(err, ERR_NO_MEMORY, "adapter pool: no memory for %u slots", opt->max_slots);
    // uploads have a thread of their own, so that none waits behind a slow disk
    if (rc == 0)
        rc = job_queue_open(&p->loads, opt->n_loader_threads ? opt->n_loader_threads : 2,
                            LIMIT_QUEUED_REQUESTS, "adapter-load", err);
    if (rc == 0)
        rc = job_queue_open(&p->uploads, 1, opt->max_slots ? opt->max_slots : 1, "adapter-up", err);
    if (rc) {
        adapter_pool_free(p);
        return rc;
    }
    set_pack_key(p);
    *out = p;
    return 0;
}

void adapter_pool_stop(struct adapter_pool *p)
{
    pthread_mutex_lock(&p->mutex);
    p->stopped = true;
    pthread_mutex_unlock(&p->mutex);
}

static void entry_free(struct adapter_entry *e)
{
    adapter_place_unload(e);
    adapter_load_drop_host(e);
    sys_free(e->chunks);
    sys_free(e);
}

void adapter_pool_free(struct adapter_pool *p)
{
    if (!p)
        return;
    adapter_pool_stop(p);
    job_queue_free(p->loads);
    job_queue_free(p->uploads);
    for (uint32_t i = 0; i < POOL_BUCKETS; i++) {
        while (p->buckets[i]) {
            struct adapter_entry *e = p->buckets[i];
            p->buckets[i] = e->next_in_bucket;
            entry_free(e);
        }
    }
    pthread_mutex_destroy(&p->mutex);
    sys_free(p->slots);
    sys_free(p);
}

// ---- the table ----------------------------------------------------------------------------------

static struct adapter_entry **bucket_of(struct adapter_pool *p, const char *content_id)
{
    uint32_t h = 2166136261u;
    for (const char *c = content_id; *c; c++)
        h = (h ^ (uint8_t)*c) * 16777619u;
    return &p->buckets[h % POOL_BUCKETS];
}

struct adapter_entry *adapter_pool_find(struct adapter_pool *p, const char *content_id)
{
    struct adapter_entry *e = *bucket_of(p, content_id);
    while (e && strcmp(e->content_id, content_id) != 0)
        e = e->next_in_bucket;
    return e;
}

/* Finds or makes the entry; one that was to be forgotten is remembered again. */
static struct adapter_entry *find_or_add(struct adapter_pool *p, const char *content_id,
                                         struct err *err)
{
    struct adapter_entry *e = adapter_pool_find(p, content_id);
    if (e) {
        p->n_forgotten -= e->forgotten;
        e->forgotten = false;
        return e;
    }
    if (strlen(content_id) != DIGEST_HEX_CHARS) {
        err_set(err, ERR_USAGE, "\"%.80s\" is no content id", content_id);
        return NULL;
    }
    e = sys_calloc(1, sizeof *e);
    if (!e) {
        err_set(err, ERR_NO_MEMORY, "no memory for adapter %s", content_id);
        return NULL;
    }
    memcpy(e->content_id, content_id, sizeof e->content_id);
    e->pool = p;
    e->slot = NO_SLOT;
    struct adapter_entry **bucket = bucket_of(p, content_id);
    e->next_in_bucket = *bucket;
    *bucket = e;
    p->n_entries++;
    return e;
}

/* An unused entry may still be wanted by a hint or a pin whose load failed, or be named urgent. */
static void leave_lists(struct adapter_entry *e)
{
    struct adapter_pool *p = e->pool;
    e->prefetch = e->pinned = false;
    adapter_entry_update_wanted(e);
    for (uint32_t i = 0; i < p->n_urgent; i++) {
        if (p->urgent[i] == e)
            p->urgent[i--] = p->urgent[--p->n_urgent];
    }
}

/* Worker, with the mutex: what is forgotten and unused leaves every tier. */
static void sweep_forgotten(struct adapter_pool *p)
{
    for (uint32_t i = 0; i < POOL_BUCKETS; i++) {
        struct adapter_entry **at = &p->buckets[i];
        while (*at) {
            struct adapter_entry *e = *at;
            bool busy = e->n_running || e->n_waiting || e->host == HOST_LOADING || e->failed ||
                        e->device == DEVICE_UPLOADING || e->device == DEVICE_POLLING ||
                        e->last_step > p->completed_step;
            if (!e->forgotten || busy) {
                at = &e->next_in_bucket;
                continue;
            }
            leave_lists(e);
            *at = e->next_in_bucket;
            p->n_entries--;
            p->n_forgotten--;
            if (p->opt.on_forgotten)
                p->opt.on_forgotten(p->opt.user, e->content_id);
            entry_free(e);
        }
    }
}

// ---- wanting ------------------------------------------------------------------------------------

bool adapter_entry_is_wanted(const struct adapter_entry *e)
{
    return e->n_waiting || e->n_running || e->prefetch || e->pinned;
}

void adapter_entry_update_wanted(struct adapter_entry *e)
{
    struct adapter_pool *p = e->pool;
    bool pending = e->device == DEVICE_UPLOADING || e->device == DEVICE_POLLING;
    bool want = pending || (e->device == DEVICE_NONE && adapter_entry_is_wanted(e));
    if (want == e->in_wanted)
        return;
    e->in_wanted = want;
    if (want) {
        e->wanted_ns = thread_now_ns();
        e->next_wanted = NULL;
        e->prev_wanted = p->wanted_last;
        *(p->wanted_last ? &p->wanted_last->next_wanted : &p->wanted) = e;
        p->wanted_last = e;
        return;
    }
    *(e->prev_wanted ? &e->prev_wanted->next_wanted : &p->wanted) = e->next_wanted;
    *(e->next_wanted ? &e->next_wanted->prev_wanted : &p->wanted_last) = e->prev_wanted;
}

uint64_t adapter_entry_device_need(const struct adapter_entry *e)
{
    return (uint64_t)adapter_entry_chunk_need(e) * BACKEND_CHUNK_BYTES + e->replacement_bytes;
}

uint32_t adapter_entry_chunk_need(const struct adapter_entry *e)
{
    return (uint32_t)((e->image_bytes + BACKEND_CHUNK_BYTES - 1) / BACKEND_CHUNK_BYTES);
}

double adapter_entry_worth(const struct adapter_entry *e, bool on_device)
{
    switch (e->pool->opt.eviction) {
    case EVICTION_FIFO:
        return (double)(on_device ? e->placed_tick : e->host_placed_tick);
    case EVICTION_COST: {
        double rate = e->rate * exp2(-(double)(thread_now_ns() - e->rate_ns) / HALF_LIFE_NS);
        double reload_ns = (double)e->upload_ns * on_device;
        if (!on_device || e->host != HOST_READY)
            reload_ns += (double)e->load_ns;
        double bytes = (double)(on_device ? e->device_bytes : e->host_bytes);
        return rate * reload_ns / (bytes > 0 ? bytes : 1);
    }
    case EVICTION_LRU:
        break;
    }
    return (double)(on_device ? e->device_tick : e->host_tick);
}

static int too_large(const struct adapter_entry *e, struct err *err)
{
    return err_set(err, ERR_LIMIT,
                   "adapter %.12s needs %llu bytes on the device, the adapter "
                   "memory is %llu",
                   e->content_id, (unsigned long long)adapter_entry_device_need(e),
                   (unsigned long long)e->pool->opt.device_bytes);
}

static void count_use(struct adapter_entry *e)
{
    uint64_t now = thread_now_ns();
    e->rate = e->rate * exp2(-(double)(now - e->rate_ns) / HALF_LIFE_NS) + 1;
    e->rate_ns = now;
    e->host_tick = ++e->pool->tick;
    if (e->device == DEVICE_READY)
        e->pool->hits++;
    else
        e->pool->misses++;
}

/* Begins the load at once, unless others wait for host memory already. */
static void start_load(struct adapter_entry *e)
{
    if (e->host == HOST_NONE && e->device == DEVICE_NONE && e->load_error.code == 0 &&
        !e->pool->host_full && !adapter_load_start(e))
        e->pool->host_full = true;
}

int adapter_pool_want(struct adapter_pool *p, const char *content_id, struct adapter_entry **out,
                      struct err *err)
{
    struct err local = {0};
    int rc = 0;
    *out = NULL;
    pthread_mutex_lock(&p->mutex);
    struct adapter_entry *e = find_or_add(p, content_id, &local);
    if (!e)
        rc = local.code;
    else if (e->sized && adapter_entry_device_need(e) > p->opt.device_bytes)
        rc = too_large(e, &local);
    if (rc == 0) {
        e->n_waiting++;
        count_use(e);
        adapter_entry_update_wanted(e);
        start_load(e);
        *out = e;
    }
    pthread_mutex_unlock(&p->mutex);
    return rc ? err_set(err, rc, "%s", local.msg) : 0;
}

void adapter_pool_start(struct adapter_pool *p, struct adapter_entry *e)
{
    pthread_mutex_lock(&p->mutex);
    assert(e->n_waiting > 0 && e->device == DEVICE_READY);
    e->n_waiting--;
    p->n_distinct += e->n_running++ == 0;
    e->device_tick = ++p->tick;
    e->prefetch = false;
    pthread_mutex_unlock(&p->mutex);
}

static void stop_running(struct adapter_entry *e)
{
    assert(e->n_running > 0);
    e->pool->n_distinct -= --e->n_running == 0;
}

void adapter_pool_pause(struct adapter_pool *p, struct adapter_entry *e)
{
    pthread_mutex_lock(&p->mutex);
    stop_running(e);
    e->n_waiting++;
    pthread_mutex_unlock(&p->mutex);
}

void adapter_pool_release(struct adapter_pool *p, struct adapter_entry *e, bool was_running)
{
    pthread_mutex_lock(&p->mutex);
    if (was_running) {
        stop_running(e);
    } else {
        assert(e->n_waiting > 0);
        e->n_waiting--;
    }
    adapter_entry_update_wanted(e);
    pthread_mutex_unlock(&p->mutex);
}

// ---- registering, pinning, forgetting -----------------------------------------------------------

static int describe(struct adapter_pool *p, const struct adapter *a, struct adapter_traits *traits,
                    struct err *err)
{
    struct bound_adapter *bound = NULL;
    int rc = bind_adapter(&bound, a, p->opt.modules, p->opt.config, err);
    if (rc == 0)
        rc = adapter_load_describe(p, bound, traits, err);
    bound_free(bound);
    return rc;
}

int adapter_pool_check(struct adapter_pool *p, const struct adapter *a, struct err *err)
{
    struct adapter_traits traits;
    return describe(p, a, &traits, err);
}

int adapter_pool_register(struct adapter_pool *p, const struct adapter *a, struct err *err)
{
    struct adapter_traits traits;
    int rc = describe(p, a, &traits, err);
    if (rc)
        return rc;
    struct err local = {0};
    pthread_mutex_lock(&p->mutex);
    struct adapter_entry *e = find_or_add(p, a->content_id, &local);
    if (e) {
        e->registered = true;
        if (!e->known)
            adapter_load_set_traits(e, &traits);
    }
    pthread_mutex_unlock(&p->mutex);
    return e ? 0 : err_set(err, local.code, "%s", local.msg);
}

/* Whether one more pin leaves every pinned adapter its place at the same time. */
static int check_pin(struct adapter_pool *p, const struct adapter_entry *e, struct err *err)
{
    uint64_t bytes = e->sized ? adapter_entry_device_need(e) : 0;
    uint32_t n = 1;
    for (uint32_t i = 0; i < POOL_BUCKETS; i++) {
        for (struct adapter_entry *o = p->buckets[i]; o; o = o->next_in_bucket) {
            if (!o->pinned || o == e)
                continue;
            n++;
            bytes += adapter_entry_device_need(o);
        }
    }
    if (bytes > p->opt.device_bytes)
        return err_set(err, ERR_LIMIT,
                       "the pinned adapters would need %llu bytes, the adapter "
                       "memory is %llu",
                       (unsigned long long)bytes, (unsigned long long)p->opt.device_bytes);
    if (n > p->opt.max_slots)
        return err_set(err, ERR_LIMIT, "%u adapters would be pinned, the device has %u slots", n,
                       p->opt.max_slots);
    return 0;
}

int adapter_pool_prefetch(struct adapter_pool *p, const char *content_id, bool pin, struct err *err)
{
    struct err local = {0};
    int rc = 0;
    pthread_mutex_lock(&p->mutex);
    struct adapter_entry *e = find_or_add(p, content_id, &local);
    if (!e)
        rc = local.code;
    else if (e->sized && adapter_entry_device_need(e) > p->opt.device_bytes)
        rc = too_large(e, &local);
    else if (pin)
        rc = check_pin(p, e, &local);
    if (rc == 0) {
        e->pinned |= pin;
        e->prefetch = e->device == DEVICE_NONE;
        adapter_entry_update_wanted(e);
        start_load(e);
    }
    pthread_mutex_unlock(&p->mutex);
    p->opt.wake(p->opt.user);
    return rc ? err_set(err, rc, "%s", local.msg) : 0;
}

void adapter_pool_unpin(struct adapter_pool *p, const char *content_id)
{
    pthread_mutex_lock(&p->mutex);
    struct adapter_entry *e = adapter_pool_find(p, content_id);
    if (e) {
        e->pinned = false;
        adapter_entry_update_wanted(e);
    }
    pthread_mutex_unlock(&p->mutex);
    p->opt.wake(p->opt.user);
}

void adapter_pool_forget(struct adapter_pool *p, const char *content_id)
{
    pthread_mutex_lock(&p->mutex);
    struct adapter_entry *e = adapter_pool_find(p, content_id);
    if (e && !e->forgotten) {
        e->forgotten = true;
        p->n_forgotten++;
        e->registered = e->pinned = e->prefetch = false;
        adapter_entry_update_wanted(e);
    }
    pthread_mutex_unlock(&p->mutex);
    p->opt.wake(p->opt.user);
}

// ---- steps, errors -----------------------------------------------------------------------------

void adapter_pool_used(struct adapter_entry *e, uint64_t step, uint32_t n_tokens)
{
    e->last_step = step;
    atomic_fetch_add_explicit(&e->n_tokens, n_tokens, memory_order_relaxed);
}

void adapter_pool_clear_errors(struct adapter_pool *p)
{
    pthread_mutex_lock(&p->mutex);
    for (uint32_t i = 0; i < POOL_BUCKETS; i++) {
        for (struct adapter_entry *e = p->buckets[i]; e; e = e->next_in_bucket) {
            if (!e->failed)
                continue;
            e->failed = false;
            if (!e->registered && !e->forgotten) { // nobody will say that it may go
                e->forgotten = true;
                p->n_forgotten++;
            }
        }
    }
    if (p->n_forgotten)
        sweep_forgotten(p);
    pthread_mutex_unlock(&p->mutex);
}

bool adapter_pool_service(struct adapter_pool *p, uint64_t completed_step)
{
    pthread_mutex_lock(&p->mutex);
    p->completed_step = completed_step;
    bool failed = false;
    uint64_t n_gains;
    do { // again when what was done late made host room for what stands early in the list
        n_gains = p->n_host_gains;
        failed |= adapter_place_service(p);
        if (p->n_forgotten)
            sweep_forgotten(p);
    } while (p->host_full && p->n_host_gains != n_gains);
    pthread_mutex_unlock(&p->mutex);
    return failed;
}
