/*
 * safetensors_stream: what is to be known of a .safetensors file, learnt while its bytes go by
 * once: its digest, each tensor's digest, and whether the values are numbers. Holds the header and
 * nothing of the payload, so that memory stays flat whatever the size.
 * Any file may go through it; one that is no safetensors, or breaks a rule of the format, or has a
 * header beyond SAFETENSORS_STREAM_HEADER_BYTES, has its digest and no tensors: it is the reader
 * (safetensors.h) that says why.
 * Thread rule: belongs to one thread at a time; immutable once finished.
 */
#ifndef LIBCORE_FORMAT_SAFETENSORS_STREAM_H
#define LIBCORE_FORMAT_SAFETENSORS_STREAM_H

#include "libcore/base/digest.h"
#include "libcore/format/safetensors.h"

enum { SAFETENSORS_STREAM_HEADER_BYTES = 32 << 20 };

struct safetensors_stream;

struct safetensors_part {
    const struct safetensors_entry *entry; // value.data is not set
    struct digest payload;
    bool finite; // no NaN and no Inf; true for types that are no floats
};

/* file_bytes: what is going to come. */
int safetensors_stream_open(struct safetensors_stream **out, uint64_t file_bytes, struct err *err);
void safetensors_stream_free(struct safetensors_stream *s);
/* Before the first byte: values are not looked at, `finite` says true. */
void safetensors_stream_skip_values(struct safetensors_stream *s);
int safetensors_stream_update(struct safetensors_stream *s, const void *data, size_t n,
                              struct err *err);
/* After the last byte; gives the file's digest. */
int safetensors_stream_finish(struct safetensors_stream *s, struct digest *file, struct err *err);

/* Sorted by name, as safetensors_at(); NULL and 0 when the file has no tensors to speak of, or is
 * not finished. */
const struct safetensors_part *safetensors_stream_parts(const struct safetensors_stream *s,
                                                        size_t *n);
const struct safetensors_part *safetensors_stream_find(const struct safetensors_stream *s,
                                                       const char *name);

/* A whole file, in blocks. *out is the caller's. */
int safetensors_stream_file(struct safetensors_stream **out, const char *path, bool skip_values,
                            struct digest *file, struct err *err);

#endif
