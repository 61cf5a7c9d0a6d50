/*
 * device_pool: who owns which chunk of the device pool.
 * Chunks of BACKEND_CHUNK_BYTES are the only allocator for KV pages and adapters. Owns the ledger,
 * not the memory (the back end has that).
 * A chunk that KV gives back may still be touched by steps in flight. The next step may have it at
 * once, as steps run in order; an adapter, which is copied beside the steps, only when those have
 * ended.
 * Not thread-safe: only the engine's worker thread calls it.
 */
#ifndef LIBCORE_ENGINE_DEVICE_POOL_H
#define LIBCORE_ENGINE_DEVICE_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "libcore/base/err.h"

enum pool_owner { POOL_FREE, POOL_KV, POOL_ADAPTER, POOL_OWNERS };

struct device_pool;

int device_pool_open(struct device_pool **out, uint32_t n_chunks, struct err *err);
void device_pool_free(struct device_pool *p);

/* How many steps were submitted, and how many of them have ended. */
void device_pool_note_steps(struct device_pool *p, uint64_t n_submitted, uint64_t n_ended);
/* Gives one free chunk to `owner`; false when there is none that it may have now. */
bool device_pool_take(struct device_pool *p, enum pool_owner owner, uint32_t *chunk);
/* Takes a chunk back from the owner that has it. */
void device_pool_give(struct device_pool *p, enum pool_owner owner, uint32_t chunk);

uint32_t device_pool_n_chunks(const struct device_pool *p);
uint32_t device_pool_n_settled(const struct device_pool *p); // free ones that adapters may have
uint32_t device_pool_n_owned(const struct device_pool *p, enum pool_owner owner);
enum pool_owner device_pool_owner(const struct device_pool *p, uint32_t chunk);

#endif
