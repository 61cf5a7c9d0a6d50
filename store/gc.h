/*
 * gc: removes what no name and no live lease holds.
 *
 * Kept: every object that a name points at; every id of a live lease; the work folder of a live
 * lease; blobs and manifests that no object has, while they are younger than the grace period (an
 * import that was killed may be looked at; an import that runs publishes under the same lock that
 * gc holds, so it cannot be met half-way). An object that lost its last name goes at once. The
 * index forgets first, then manifests go, then blobs: a kill in between leaves only what the next
 * gc takes.
 */
#ifndef STORE_GC_H
#define STORE_GC_H

#include "store/store.h"

enum { GC_GRACE_SECONDS = 3600 };

struct gc_options {
    bool dry_run;       // says what would go, removes nothing
    uint64_t grace_s;   // GC_GRACE_SECONDS unless told otherwise
    uint64_t cache_cap; // bytes that cache/ may keep, least recently used go first; 0: all of it
};

enum gc_what { GC_OBJECT, GC_MANIFEST, GC_BLOB, GC_TEMPORARY, GC_CACHE };

struct gc_report {
    uint64_t n_objects, n_blobs, n_temporaries; // removed, or to be removed
    uint64_t bytes;                             // of files
    uint64_t n_leased;                          // nameless objects that a lease keeps
    uint64_t n_young;                           // files within the grace period
};

/* removed (or NULL) hears of every piece. ERR_LOCKED, ERR_IO, ERR_CORRUPT. */
int store_gc(struct store *s, const struct gc_options *opt, struct gc_report *report,
             void (*removed)(void *arg, enum gc_what what, const char *name, uint64_t bytes),
             void *arg, struct err *err);

#endif
