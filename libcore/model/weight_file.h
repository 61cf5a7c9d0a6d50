/*
 * weight_file: the bytes of a checkpoint's tensors read in order, by as many threads as like, into
 * memory that the reader chooses (a back end's pinned blocks), with a hash beside the reads where a
 * digest is recorded. Never maps; the page cache holds what was read, this module nothing.
 * Thread rule: one weight_files for all threads, a stream belongs to one.
 */
#ifndef LIBCORE_MODEL_WEIGHT_FILE_H
#define LIBCORE_MODEL_WEIGHT_FILE_H

#include "libcore/base/digest.h"
#include "libcore/format/checkpoint.h"

struct weight_files {
    const struct checkpoint *ckpt; // borrowed
    int *fds;                      // one a shard
    size_t n;
};

/* Opens every shard for reading. ERR_IO, ERR_NOT_FOUND, ERR_CORRUPT (a shard is no longer as long
 * as when it was opened). Close with weight_files_close(), also after an error. */
int weight_files_open(struct weight_files *f, const struct checkpoint *ckpt, struct err *err);
void weight_files_close(struct weight_files *f);

struct weight_stream {
    const char *path; // of the shard
    int fd;
    uint64_t at, end; // in the file
    struct digest_state *hash;
    const struct digest *want; // borrowed; NULL: not checked
};

/* The bytes of a tensor. want: its digest, or NULL. Close with weight_stream_close(). */
int weight_stream_open(struct weight_stream *s, const struct weight_files *f,
                       const struct checkpoint_tensor *t, const struct digest *want,
                       struct err *err);
/* The next n bytes; ERR_IO, ERR_INTERNAL beyond the end. */
int weight_stream_read(struct weight_stream *s, void *to, size_t n, struct err *err);
/* After the last byte: ERR_CORRUPT when the digest is another one. */
int weight_stream_check(struct weight_stream *s, struct err *err);
void weight_stream_close(struct weight_stream *s);

#endif
