#include <assert.h>

#include "libcore/base/log.h"
#include "libcore/base/sys.h"
#include "libcore/engine/adapter_pool_impl.h"

/*
 * Room on the device: free chunks, chunks of idle KV pages, chunks of adapters that may go.
 * An adapter may go when nothing runs with it, no step in flight reads it, it is not pinned, and
 * nobody waits for it - or somebody waits, but it drains for a request that has waited longer.
 */
struct room {
    uint64_t chunks, bytes, slots; // free, and what eviction would give
    uint64_t spare;                // chunks of idle KV pages; SPARE_UNKNOWN: not counted yet
};

static const uint64_t SPARE_UNKNOWN = UINT64_MAX;

static bool evictable(const struct adapter_entry *e)
{
    return e->device == DEVICE_READY && !e->pinned && !e->urgent && e->n_running == 0 &&
           e->last_step <= e->pool->completed_step && (e->n_waiting == 0 || e->draining);
}

static struct room room_with(const struct adapter_pool *p,
                             bool (*may_go)(const struct adapter_entry *e))
{
    struct room r = {.chunks = device_pool_n_owned(p->opt.chunks, POOL_FREE),
                     .bytes = p->opt.device_bytes - p->device_bytes,
                     .spare = SPARE_UNKNOWN};
    if (p->device_bytes > p->opt.device_bytes)
        r.bytes = 0; // a replacement turned out larger than it said
    for (uint32_t i = 0; i < p->opt.max_slots; i++) {
        const struct adapter_entry *e = p->slots[i];
        if (e && !may_go(e))
            continue;
        r.slots++;
        if (e) {
            r.chunks += e->n_chunks;
            r.bytes += e->device_bytes;
        }
    }
    return r;
}

static bool room_is_enough(const struct adapter_pool *p, struct room *r, uint64_t n_chunks,
                           uint64_t n_bytes, uint64_t n_slots)
{
    if (r->slots < n_slots || r->bytes < n_bytes)
        return false;
    if (r->chunks >= n_chunks)
        return true;
    if (r->spare == SPARE_UNKNOWN)
        r->spare = p->opt.n_spare_chunks(p->opt.user);
    return r->chunks + r->spare >= n_chunks;
}

// ---- leaving the device -------------------------------------------------------------------------

void adapter_place_unload(struct adapter_entry *e)
{
    struct adapter_pool *p = e->pool;
    if (e->device == DEVICE_NONE)
        return;
    const struct backend_ops *ops = p->opt.be->ops;
    ops->adapter_unload(p->opt.be, p->opt.model, e->slot);
    for (uint32_t i = 0; i < e->n_replacements; i++)
        ops->replacement_free(p->opt.be, e->replacements[i].weight);
    sys_free(e->replacements);
    e->replacements = NULL;
    e->n_replacements = 0;
    for (uint32_t i = 0; i < e->n_chunks; i++)
        device_pool_give(p->opt.chunks, POOL_ADAPTER, e->chunks[i]);
    p->slots[e->slot] = NULL;
    p->device_bytes -= e->device_bytes;
    p->n_device -= e->device == DEVICE_READY;
    e->slot = NO_SLOT;
    e->n_chunks = 0;
    e->device_bytes = 0;
    e->device = DEVICE_NONE;
}

/* Those that nobody waits for go before those that drain. */
static struct adapter_entry *choose_victim(struct adapter_pool *p)
{
    struct adapter_entry *best = NULL;
    for (uint32_t i = 0; i < p->opt.max_slots; i++) {
        struct adapter_entry *e = p->slots[i];
        if (!e || !evictable(e))
            continue;
        bool better = !best || (e->n_waiting == 0 && best->n_waiting > 0);
        if (!better && (e->n_waiting == 0) == (best->n_waiting == 0))
            better = adapter_entry_worth(e, true) < adapter_entry_worth(best, true);
        if (better)
            best = e;
    }
    return best;
}

static bool evict_one(struct adapter_pool *p)
{
    struct adapter_entry *e = choose_victim(p);
    if (!e)
        return false;
    log_debug("adapter_place", "evicted id=%.12s waiting=%u", e->content_id, e->n_waiting);
    adapter_place_unload(e);
    e->draining = false;
    p->evictions[1]++;
    adapter_entry_update_wanted(e);
    return true;
}

bool adapter_pool_evict_idle(struct adapter_pool *p)
{
    pthread_mutex_lock(&p->mutex);
    struct adapter_entry *e = choose_victim(p);
    bool done = e && e->n_waiting == 0 && evict_one(p);
    pthread_mutex_unlock(&p->mutex);
    return done;
}

uint32_t adapter_pool_n_idle_chunks(struct adapter_pool *p)
{
    uint32_t n = 0;
    pthread_mutex_lock(&p->mutex);
    for (uint32_t i = 0; i < p->opt.max_slots; i++) {
        const struct adapter_entry *e = p->slots[i];
        if (e && evictable(e) && e->n_waiting == 0)
            n += e->n_chunks;
    }
    pthread_mutex_unlock(&p->mutex);
    return n;
}

// ---- coming to the device -----------------------------------------------------------------------

static uint32_t free_slot(const struct adapter_pool *p)
{
    for (uint32_t i = 0; i < p->opt.max_slots; i++) {
        if (!p->slots[i])
            return i;
    }
    return NO_SLOT;
}

static void make_place(struct adapter_pool *p, uint32_t n_chunks, uint64_t n_bytes)
{
    while (free_slot(p) == NO_SLOT || p->device_bytes + n_bytes > p->opt.device_bytes) {
        if (!evict_one(p))
            return;
    }
    while (device_pool_n_owned(p->opt.chunks, POOL_FREE) < n_chunks) {
        if (!p->opt.give_chunk(p->opt.user) && !evict_one(p))
            return;
    }
}

/* Slot and chunks for it, then the upload; false: there is no room now. */
static bool place(struct adapter_entry *e, struct room *room)
{
    struct adapter_pool *p = e->pool;
    uint32_t n_chunks = adapter_entry_chunk_need(e);
    uint64_t n_bytes = adapter_entry_device_need(e);
    if (!room_is_enough(p, room, n_chunks, n_bytes, 1))
        return false;
    make_place(p, n_chunks, n_bytes);
    uint32_t slot = free_slot(p);
    if (slot == NO_SLOT || device_pool_n_settled(p->opt.chunks) < n_chunks ||
        p->device_bytes + n_bytes > p->opt.device_bytes)
        return false;
    for (uint32_t i = 0; i < n_chunks; i++)
        device_pool_take(p->opt.chunks, POOL_ADAPTER, &e->chunks[i]);
    e->n_chunks = n_chunks;
    e->slot = slot;
    e->device_bytes = n_bytes;
    p->slots[slot] = e;
    p->device_bytes += n_bytes;
    e->placed_tick = e->device_tick = ++p->tick;
    e->device = DEVICE_UPLOADING;
    bool queued = adapter_upload_start(e);
    assert(queued); // the queue holds max_slots jobs
    (void)queued;
    return true;
}

static void fail(struct adapter_entry *e)
{
    if (e->load_error.code == 0)
        err_set(&e->load_error, ERR_DEVICE, "adapter %.12s: the copy to the device failed",
                e->content_id);
    log_warn("adapter_place", "load failed id=%.12s reason=\"%s\"", e->content_id,
             e->load_error.msg);
    e->error = e->load_error;
    e->failed = true;
    err_clear(&e->load_error);
    if (e->device != DEVICE_NONE) {
        adapter_place_unload(e);
        e->pool->load_failures++;
    }
    e->prefetch = e->pinned = false;
    adapter_entry_update_wanted(e);
}

static void arrived(struct adapter_entry *e)
{
    struct adapter_pool *p = e->pool;
    e->ready_ns = thread_now_ns();
    e->upload_ns = e->ready_ns - e->upload_begin_ns;
    e->device = DEVICE_READY;
    e->prefetch = false;
    p->n_device++;
    p->loads_done[1]++;
    p->load_bytes[1] += e->device_bytes;
    p->load_ns[1] += e->upload_ns;
    p->n_host_gains++;
    adapter_entry_update_wanted(e);
    if (p->host_bytes > p->opt.host_bytes) // it was let in although it is larger than the cache
        adapter_load_drop_host(e);
}

static void poll_upload(struct adapter_entry *e)
{
    struct adapter_pool *p = e->pool;
    if (e->device == DEVICE_UPLOADING) {
        if (!e->upload_done)
            return;
        if (e->upload_rc) {
            fail(e);
            return;
        }
        e->device = DEVICE_POLLING;
    }
    switch (p->opt.be->ops->adapter_poll(p->opt.be, p->opt.model, e->slot)) {
    case ADAPTER_READY:
        arrived(e);
        break;
    case ADAPTER_LOADING:
        p->polling = true;
        break;
    default:
        fail(e);
    }
}

/* One wanted adapter a step on. `blocked`: an urgent one lacks room, nobody else is placed. */
static void service(struct adapter_entry *e, struct room *room, bool *blocked)
{
    struct adapter_pool *p = e->pool;
    e->lacks_room = false;
    if (e->load_error.code && e->device == DEVICE_NONE) {
        fail(e);
    } else if (e->device != DEVICE_NONE) {
        poll_upload(e);
    } else if (e->host == HOST_NONE) {
        if (!e->failed && (!p->host_full || e->urgent))
            p->host_full |= !adapter_load_start(e);
    } else if (e->host == HOST_READY) {
        if (adapter_entry_device_need(e) > p->opt.device_bytes) {
            err_set(&e->load_error, ERR_LIMIT,
                    "adapter %.12s needs %llu bytes on the device, the adapter memory is %llu",
                    e->content_id, (unsigned long long)adapter_entry_device_need(e),
                    (unsigned long long)p->opt.device_bytes);
            fail(e);
        } else if ((*blocked && !e->urgent) || !place(e, room)) {
            e->lacks_room = true;
            *blocked |= e->urgent;
        } else {
            *room = room_with(p, evictable);
        }
    }
}

static bool service_some(struct adapter_pool *p, bool waited_for, struct room *room, bool *blocked)
{
    bool failed = false;
    struct adapter_entry *next;
    for (struct adapter_entry *e = p->wanted; e; e = next) {
        next = e->next_wanted;
        if (!e->urgent && (e->n_waiting > 0) == waited_for)
            service(e, room, blocked);
        failed |= e->failed;
    }
    return failed;
}

bool adapter_place_service(struct adapter_pool *p)
{
    bool blocked = false, failed = false;
    p->polling = p->host_full = false;
    struct room room = room_with(p, evictable);
    for (uint32_t i = 0; i < p->n_urgent; i++) {
        if (p->urgent[i]->in_wanted)
            service(p->urgent[i], &room, &blocked);
    }
    // those that requests wait for, then hints
    failed |= service_some(p, true, &room, &blocked);
    failed |= service_some(p, false, &room, &blocked);
    for (uint32_t i = 0; i < p->n_urgent; i++)
        failed |= p->urgent[i]->failed;
    return failed;
}

// ---- room for a request that has waited too long ------------------------------------------------

static bool may_drain(const struct adapter_entry *e)
{
    return e->device == DEVICE_READY && !e->pinned && !e->urgent && !e->draining;
}

static bool goes_soon(const struct adapter_entry *e)
{
    return e->draining || evictable(e);
}

/* The one to give way: idle before running, then whoever got most. */
static struct adapter_entry *choose_drain(struct adapter_pool *p, bool only_running)
{
    struct adapter_entry *best = NULL;
    for (uint32_t i = 0; i < p->opt.max_slots; i++) {
        struct adapter_entry *e = p->slots[i];
        if (!e || !may_drain(e) || (only_running && e->n_running == 0))
            continue;
        bool idle = e->n_running == 0, best_idle = best && best->n_running == 0;
        if (!best || (idle && !best_idle) ||
            (idle == best_idle && e->client.vtime > best->client.vtime))
            best = e;
    }
    return best;
}

static void end_urgency(struct adapter_pool *p)
{
    for (uint32_t i = 0; i < p->opt.max_slots; i++) {
        if (p->slots[i])
            p->slots[i]->draining = false;
    }
    for (uint32_t i = 0; i < p->n_urgent; i++)
        p->urgent[i]->urgent = false;
    p->n_urgent = 0;
}

static void need_of(struct adapter_entry **urgent, uint32_t n, uint64_t *n_chunks,
                    uint64_t *n_bytes, uint64_t *n_slots, bool absent_only)
{
    *n_chunks = *n_bytes = *n_slots = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (absent_only && urgent[i]->device != DEVICE_NONE)
            continue;
        *n_chunks += urgent[i]->sized ? adapter_entry_chunk_need(urgent[i]) : 0;
        *n_bytes += urgent[i]->sized ? adapter_entry_device_need(urgent[i]) : 0;
        *n_slots += 1;
    }
}

static bool is_urgent_set(const struct adapter_pool *p, struct adapter_entry **urgent, uint32_t n)
{
    if (n != p->n_urgent)
        return false;
    for (uint32_t i = 0; i < n; i++) {
        if (p->urgent[i] != urgent[i])
            return false;
    }
    return true;
}

static void begin_urgency(struct adapter_pool *p, struct adapter_entry **urgent, uint32_t n)
{
    if (is_urgent_set(p, urgent, n))
        return; // those that drain for it already go on draining
    end_urgency(p);
    for (uint32_t i = 0; i < n; i++) {
        p->urgent[p->n_urgent++] = urgent[i];
        urgent[i]->urgent = true;
    }
}

/* Lets adapters with running requests drain until n_distinct of them do. */
static void drain_running(struct adapter_pool *p, uint32_t n_distinct)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->opt.max_slots; i++)
        n += p->slots[i] && p->slots[i]->draining && p->slots[i]->n_running;
    for (; n < n_distinct; n++) {
        struct adapter_entry *e = choose_drain(p, true);
        if (!e)
            return;
        e->draining = true;
    }
}

bool adapter_pool_make_room(struct adapter_pool *p, struct adapter_entry **urgent, uint32_t n,
                            uint32_t n_distinct)
{
    pthread_mutex_lock(&p->mutex);
    begin_urgency(p, urgent, n);
    drain_running(p, n_distinct);
    uint64_t n_chunks, n_bytes, n_slots;
    need_of(urgent, n, &n_chunks, &n_bytes, &n_slots, true);
    bool enough = n_slots == 0;
    while (!enough) {
        struct room room = room_with(p, goes_soon);
        enough = room_is_enough(p, &room, n_chunks, n_bytes, n_slots);
        struct adapter_entry *e = enough ? NULL : choose_drain(p, false);
        if (!e)
            break;
        e->draining = true;
    }
    pthread_mutex_unlock(&p->mutex);
    return enough;
}

bool adapter_pool_never_fits(struct adapter_pool *p, struct adapter_entry **urgent, uint32_t n)
{
    uint64_t n_chunks, n_bytes, n_slots;
    pthread_mutex_lock(&p->mutex);
    need_of(urgent, n, &n_chunks, &n_bytes, &n_slots, false);
    bool never = n_bytes > p->opt.device_bytes || n_slots > p->opt.max_slots;
    pthread_mutex_unlock(&p->mutex);
    return never;
}
