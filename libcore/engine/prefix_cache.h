/*
 * prefix_cache: which full KV pages hold which tokens, so that a later sequence of the same space
 * shares them without copying.
 *
 * A space is everything besides the tokens that shapes keys and values: content ids and scales of
 * the adapters, rope regime, the tenant's salt. Within a space a page is known by the page before
 * it and its own tokens; a hit compares both, never only hashes. One entry a page, all allocated in
 * open; a space is allocated by whoever makes the sequence.
 * Not thread-safe, but for prefix_space_open() and prefix_space_free().
 */
#ifndef LIBCORE_ENGINE_PREFIX_CACHE_H
#define LIBCORE_ENGINE_PREFIX_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/digest.h"
#include "libcore/base/err.h"
#include "libcore/engine/kv_cache.h"

struct prefix_cache;
struct prefix_space;

struct prefix_adapter {
    const char *content_id; // 64 hex digits
    float scale;
};

/* `adapters` in one fixed order (by content id); salt may be NULL. */
int prefix_space_open(struct prefix_space **out, const struct prefix_adapter *adapters, size_t n,
                      unsigned rope_regime, const char *salt, struct err *err);
void prefix_space_free(struct prefix_space *s); // one that was never interned

/* page_tokens: a power of two; kv is borrowed. Its on_evict must lead to prefix_cache_evicted(). */
int prefix_cache_open(struct prefix_cache **out, struct kv_cache *kv, uint32_t n_pages,
                      uint32_t page_tokens, struct err *err);
void prefix_cache_free(struct prefix_cache *c);
void prefix_cache_evicted(struct prefix_cache *c, uint32_t page);

/* Takes the space and returns the one to use instead (equal spaces become one), with a reference
 * that prefix_cache_release() gives back. */
struct prefix_space *prefix_cache_intern(struct prefix_cache *c, struct prefix_space *s);
void prefix_cache_release(struct prefix_cache *c, struct prefix_space *s);
uint64_t prefix_space_root(const struct prefix_space *s); // the chain before the first page

/* Finds the longest run of known pages for the first max_pages pages of `tokens`, takes a reference
 * of each into pages[], moves *chain from the root to the last one. Returns how many. */
uint32_t prefix_cache_match(struct prefix_cache *c, const struct prefix_space *s,
                            const int32_t *tokens, uint32_t max_pages, uint32_t *pages,
                            uint64_t *chain);
/* Makes a full page known that follows `chain`; returns the chain after it. When the same content
 * is known already by another page, that one stays the known one. */
uint64_t prefix_cache_insert(struct prefix_cache *c, struct prefix_space *s, uint64_t chain,
                             const int32_t *tokens, uint32_t page);

void prefix_cache_flush(struct prefix_cache *c);
/* Forgets every page of a space with that adapter. */
void prefix_cache_drop_adapter(struct prefix_cache *c, const char *content_id);
uint32_t prefix_cache_n_known(const struct prefix_cache *c); // pages

#endif
