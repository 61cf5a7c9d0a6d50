/*
 * kv_cache: the paged key/value memory of one engine: which page belongs to whom.
 * Pages are carved from chunks of the device pool: page p lies in chunk p / pages_per_chunk. A page
 * is free, referenced (by one or more sequences) or idle (referenced by none, its content kept by
 * the prefix cache until somebody needs the room, oldest first). A chunk without used pages goes
 * back to the pool at once. Knows no tokens and no scheduling policy.
 * Allocates everything in open. Not thread-safe: only the engine's worker thread calls it.
 */
#ifndef LIBCORE_ENGINE_KV_CACHE_H
#define LIBCORE_ENGINE_KV_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "libcore/base/err.h"
#include "libcore/engine/device_pool.h"

enum { KV_NO_PAGE = UINT32_MAX };

struct kv_cache_options {
    struct device_pool *pool; // borrowed
    uint64_t page_bytes;      // 1 … BACKEND_CHUNK_BYTES
    uint32_t max_pages;       // cap of used pages (referenced and idle); 0: what the pool holds
    /* An idle page is taken away: forget what you know of it. */
    void (*on_evict)(void *user, uint32_t page);
    void *user;
};

struct kv_cache;

int kv_cache_open(struct kv_cache **out, const struct kv_cache_options *opt, struct err *err);
void kv_cache_free(struct kv_cache *c);

/* One page with one reference: a free one, else one of a new chunk, else the page that has been
 * idle for longest. False: none; make room and ask again. */
bool kv_cache_take(struct kv_cache *c, uint32_t *page);
void kv_cache_ref(struct kv_cache *c, uint32_t page); // also wakes an idle page
/* The last reference makes the page idle when it is kept, else free. */
void kv_cache_unref(struct kv_cache *c, uint32_t page);
/* Whether the page's content is wanted beyond its references. keep = false frees an idle page. */
void kv_cache_keep(struct kv_cache *c, uint32_t page, bool keep);

/* Gives the chunk that costs the fewest idle pages back to the pool; false when every chunk has
 * referenced pages. */
bool kv_cache_give_chunk(struct kv_cache *c);
uint32_t kv_cache_n_spare_chunks(const struct kv_cache *c); // without referenced pages

uint32_t kv_cache_pages_per_chunk(const struct kv_cache *c);
uint32_t kv_cache_n_pages(const struct kv_cache *c);      // the cap
uint32_t kv_cache_n_referenced(const struct kv_cache *c); // pages
uint32_t kv_cache_n_idle(const struct kv_cache *c);
uint32_t kv_cache_n_available(const struct kv_cache *c); // takes that would succeed now
uint32_t kv_cache_refs(const struct kv_cache *c, uint32_t page);

#endif
