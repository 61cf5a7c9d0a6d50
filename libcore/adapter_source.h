/*
 * adapter_source: the port to whoever keeps adapters. "Give me the adapter with this content id."
 * The engine reaches disk through this alone; the store implements it, tests plug in memory.
 * Thread rule: every operation may be called from several loader threads at once.
 */
#ifndef LIBCORE_ADAPTER_SOURCE_H
#define LIBCORE_ADAPTER_SOURCE_H

#include "libcore/adapter/adapter.h"

struct adapter_source;

struct adapter_source_ops {
    /* Reads and verifies (digests) the adapter; *out is the caller's, to free with adapter_free().
     * ERR_NOT_FOUND, ERR_CORRUPT, ERR_REFUSED, ERR_IO. */
    int (*get)(struct adapter_source *s, const char *content_id, struct adapter **out,
               struct err *err);

    /* Packs: a back end's own image of an adapter, kept by (content id, key). key names base
     * fingerprint, back end, layout version and dtype. Optional (NULL): nothing is kept.
     * pack_size: ERR_NOT_FOUND when there is none. pack_read fills dst (exactly *size bytes) and
     * verifies the pack's own digest. pack_write failing is no error for the caller's purpose. */
    int (*pack_size)(struct adapter_source *s, const char *content_id, const char *key,
                     uint64_t *size, struct err *err);
    int (*pack_read)(struct adapter_source *s, const char *content_id, const char *key, void *dst,
                     uint64_t size, struct err *err);
    int (*pack_write)(struct adapter_source *s, const char *content_id, const char *key,
                      const void *data, uint64_t size, struct err *err);
    void (*close)(struct adapter_source *s);
};

/* Implementations put this first in their own struct. */
struct adapter_source {
    const struct adapter_source_ops *ops;
};

#endif
