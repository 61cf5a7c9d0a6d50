/* What others see of the pool: its tiers and counts (any thread), and what an entry is (worker). */
#include <string.h>

#include "libcore/engine/adapter_pool_impl.h"

static enum engine_tier tier_of(const struct adapter_entry *e)
{
    if (e->device == DEVICE_READY)
        return ENGINE_TIER_DEVICE;
    if (e->device != DEVICE_NONE || e->host == HOST_LOADING)
        return ENGINE_TIER_LOADING;
    return e->host == HOST_READY ? ENGINE_TIER_HOST : ENGINE_TIER_DISK;
}

size_t adapter_pool_list(struct adapter_pool *p, struct engine_adapter_info *out, size_t max)
{
    size_t n = 0;
    pthread_mutex_lock(&p->mutex);
    for (uint32_t i = 0; i < POOL_BUCKETS; i++) {
        for (struct adapter_entry *e = p->buckets[i]; e; e = e->next_in_bucket) {
            if (e->forgotten && e->n_running + e->n_waiting == 0)
                continue;
            if (n++ >= max)
                continue;
            struct engine_adapter_info *info = &out[n - 1];
            *info = (struct engine_adapter_info){.tier = tier_of(e),
                                                 .host_bytes = e->host_bytes,
                                                 .device_bytes = e->device_bytes,
                                                 .rank = e->rank,
                                                 .n_running = e->n_running,
                                                 .n_waiting = e->n_waiting,
                                                 .pinned = e->pinned,
                                                 .n_tokens = atomic_load(&e->n_tokens)};
            memcpy(info->content_id, e->content_id, sizeof info->content_id);
        }
    }
    pthread_mutex_unlock(&p->mutex);
    return n;
}

void adapter_pool_stats(struct adapter_pool *p, struct engine_stats *out)
{
    pthread_mutex_lock(&p->mutex);
    out->n_waiting_for_adapter = 0;
    for (struct adapter_entry *e = p->wanted; e; e = e->next_wanted)
        out->n_waiting_for_adapter += e->n_waiting;
    out->n_device_adapters = p->n_device;
    out->n_host_adapters = p->n_host;
    out->device_adapter_bytes = p->device_bytes;
    out->host_adapter_bytes = p->host_bytes;
    memcpy(out->loads, p->loads_done, sizeof out->loads);
    memcpy(out->load_bytes, p->load_bytes, sizeof out->load_bytes);
    memcpy(out->load_ns, p->load_ns, sizeof out->load_ns);
    memcpy(out->evictions, p->evictions, sizeof out->evictions);
    out->load_failures = p->load_failures;
    out->hits = p->hits;
    out->misses = p->misses;
    pthread_mutex_unlock(&p->mutex);
}

uint32_t adapter_pool_n_vocab(struct adapter_pool *p, const char *content_id)
{
    pthread_mutex_lock(&p->mutex);
    const struct adapter_entry *e = adapter_pool_find(p, content_id);
    uint32_t n = e && e->known ? e->n_vocab : 0;
    pthread_mutex_unlock(&p->mutex);
    return n;
}

bool adapter_pool_kinds_known(struct adapter_pool *p, const struct adapter_entry *e,
                              unsigned *kinds)
{
    pthread_mutex_lock(&p->mutex);
    bool known = e->known;
    *kinds = e->kinds;
    pthread_mutex_unlock(&p->mutex);
    return known;
}

bool adapter_pool_is_ready(const struct adapter_entry *e)
{
    return e->device == DEVICE_READY;
}

bool adapter_pool_lacks_room(const struct adapter_entry *e)
{
    return e->lacks_room;
}

bool adapter_pool_is_draining(const struct adapter_entry *e)
{
    return e->draining;
}

uint32_t adapter_pool_n_running(const struct adapter_entry *e)
{
    return e->n_running;
}

uint32_t adapter_pool_n_distinct(const struct adapter_pool *p)
{
    return p->n_distinct;
}

uint32_t adapter_pool_slot(const struct adapter_entry *e)
{
    return e->slot;
}

unsigned adapter_pool_kinds(const struct adapter_entry *e)
{
    return e->kinds;
}

const char *adapter_pool_id(const struct adapter_entry *e)
{
    return e->content_id;
}

uint64_t adapter_pool_ready_ns(const struct adapter_entry *e)
{
    return e->ready_ns;
}

struct fair_client *adapter_pool_client(struct adapter_entry *e)
{
    return &e->client;
}

const struct err *adapter_pool_error(const struct adapter_entry *e)
{
    return e->failed ? &e->error : NULL;
}

bool adapter_pool_polling(const struct adapter_pool *p)
{
    return p->polling;
}
