/*
 * object: the files of one adapter or base, wherever they lie.
 */
#ifndef STORE_OBJECT_H
#define STORE_OBJECT_H

#include "store/manifest.h"

/* A folder in which every file of the manifest is found under its own name: links to blobs, in the
 * cache. *folder is the caller's. ERR_NOT_FOUND when a blob is missing, ERR_CORRUPT for its size.
 */
int object_link_folder(const struct store *s, const json_t *manifest, char **folder,
                       struct err *err);
/* Whether the files of a base by reference are as they were at import (size, mtime). ERR_REFUSED
 * names the first that changed, ERR_NOT_FOUND the first that is gone. */
int object_check_reference(const json_t *manifest, struct err *err);
bool object_is_reference(const json_t *manifest);

/* The adapter behind a manifest, read from its blobs and checked: its content id must be the
 * manifest's. *out is the caller's, to free with adapter_free(). n_threads: for hashing. */
int object_read_adapter(const struct store *s, const json_t *manifest, unsigned n_threads,
                        struct adapter **out, struct err *err);

#endif
