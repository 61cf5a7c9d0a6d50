/*
 * blob: the files of a store by the sha256 of their bytes, blobs/sha256/ab/<hex>, read-only.
 * What is hashed is always what the store's own copy holds, never the source that somebody may be
 * writing to.
 */
#ifndef STORE_BLOB_H
#define STORE_BLOB_H

#include "libcore/format/safetensors_stream.h"
#include "store/store_impl.h"

/* blobs/sha256/ab/<hex> as an absolute path; NULL when memory is out. */
char *blob_path(const struct store *s, const char *digest, struct err *err);

/* ---- one file on its way in ---- */

struct blob_copy;

/*
 * Starts copying `from` (links followed) to the new file `to` (in a work folder) on a thread of its
 * own, and hashing what is written on another; returns at once (a small file is there by then).
 * on_bytes (or NULL) hears from the copying thread; a non-zero return ends the copy with that code.
 * skip_values: nobody asks whether they are numbers.
 * Free with blob_copy_free(), which waits for the threads.
 */
int blob_copy_open(struct blob_copy **out, const char *from, const char *to, bool skip_values,
                   int (*on_bytes)(void *arg, uint64_t bytes), void *arg, struct err *err);
uint64_t blob_copy_size(const struct blob_copy *c); // bytes of the source when it was opened
/* Waits until the file is whole, hashed, read-only and synced. May be called again. */
int blob_copy_finish(struct blob_copy *c, struct digest *digest, struct err *err);
/* After blob_copy_finish(): what was learnt of its tensors; borrowed. */
const struct safetensors_stream *blob_copy_weights(const struct blob_copy *c);
void blob_copy_free(struct blob_copy *c);

/* ---- in the store, under its lock ---- */

/* Renames the finished file into its place and syncs the folder; what was there is replaced, so
 * that a spoiled blob heals. */
int blob_publish(struct store *s, const char *tmp, const char *digest, struct err *err);

enum blob_check {
    BLOB_CHECK_SIZE,   // it is there and has the size
    BLOB_CHECK_DIGEST, // and all bytes hash to its name
};
/* ERR_NOT_FOUND, ERR_CORRUPT (wanted and got), ERR_IO. Needs no lock. */
int blob_check(const struct store *s, const char *digest, uint64_t size, enum blob_check how,
               struct err *err);

/* Every file under blobs/: its digest's text, size and mtime. name is what stands there, also when
 * it is no digest. */
struct blob_stat {
    const char *folder; // "ab"
    const char *name;
    uint64_t size;
    int64_t mtime_ns;
};
int blob_each(struct store *s, int (*row)(void *arg, const struct blob_stat *b), void *arg,
              struct err *err);

#endif
