/*
 * cache: cache/ of a store: what can be made again. Packs (a back end's image of an adapter) as
 * cache/packs/<content id>/<hash of key>, each with its own digest; folders of links
 * to an object's blobs under the files' own names as cache/objects/<id>/. Compiled
 * vocabularies in cache/tokenizer/ are cmd's; they count, and go, like packs. Downloads that broke
 * off lie in cache/partial/. Safe to delete at any
 * time, also while others use it. Thread rule: every function may be called from any thread; none
 * needs the store's lock.
 */
#ifndef STORE_CACHE_H
#define STORE_CACHE_H

#include "store/id_set.h"

/* Packs written beyond this make room by removing the least recently read. */
#define CACHE_CAP_BYTES ((uint64_t)16 << 30)

/* root: the store's folder. ERR_NOT_FOUND when there is no such pack, ERR_CORRUPT when it is
 * spoiled (it is removed then). */
int cache_pack_size(const char *root, const char *content_id, const char *key, uint64_t *size,
                    struct err *err);
int cache_pack_read(const char *root, const char *content_id, const char *key, void *dst,
                    uint64_t size, struct err *err);
int cache_pack_write(const char *root, const char *content_id, const char *key, const void *data,
                     uint64_t size, uint64_t cap_bytes, struct err *err);

/* cache/objects/<id>/ with a link `name` to `target` for each file; *folder is the caller's. */
struct cache_link {
    const char *name, *target;
};
int cache_link_folder(const char *root, const char *id, const struct cache_link *links,
                      size_t n_links, char **folder, struct err *err);

/* cache/partial/<digest>: a download that broke off, for the next try to go on with; the folder is
 * made. The caller's; NULL with err set. */
char *cache_partial_path(const char *root, const char *digest, struct err *err);

/* Removes what belongs to no object of `keep`, and packs beyond cap_bytes (0: all of them), and
 * downloads that nobody has gone on with for a week. */
int cache_sweep(struct store *s, struct id_set *keep, uint64_t cap_bytes, bool dry_run,
                void (*removed)(void *arg, const char *name, uint64_t bytes), void *arg,
                struct err *err);

#endif
