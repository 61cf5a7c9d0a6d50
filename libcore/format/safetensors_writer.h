/*
 * safetensors_writer: writes one canonical .safetensors file, tensor by tensor.
 *
 * Declare every tensor, begin(), put() payloads in any order and from any thread, finish(). The
 * same declarations and payloads give the same bytes: tensors lie by dtype (widest first, as the
 * reference writer orders them), then name; metadata is sorted by key; the header is padded with
 * spaces to a multiple of 8. The file appears at its path by rename, complete and synced.
 * Thread rule: put() may be called from several threads at once; the rest belongs to one.
 */
#ifndef LIBCORE_FORMAT_SAFETENSORS_WRITER_H
#define LIBCORE_FORMAT_SAFETENSORS_WRITER_H

#include <stddef.h>
#include <stdint.h>

#include "libcore/base/err.h"
#include "libcore/tensor/tensor.h"

struct safetensors_writer;

int safetensors_writer_open(struct safetensors_writer **out, const char *path, struct err *err);
/* An unfinished file is removed. */
void safetensors_writer_free(struct safetensors_writer *w);

/* ERR_EXISTS: the key or name is declared already. Before begin() only. */
int safetensors_writer_metadata(struct safetensors_writer *w, const char *key, const char *value,
                                struct err *err);
int safetensors_writer_declare(struct safetensors_writer *w, const char *name, enum dtype dtype,
                               uint32_t n_dims, const uint64_t *shape, struct err *err);

/* Bytes that the file will have; after the last declaration. */
uint64_t safetensors_writer_file_bytes(struct safetensors_writer *w);

/* Writes the header into a temporary file beside the path and makes it as long as it will be. */
int safetensors_writer_begin(struct safetensors_writer *w, struct err *err);
/* Bytes [offset, offset + size) of a tensor. Each byte is to be put exactly once; finish() counts.
 */
int safetensors_writer_put(struct safetensors_writer *w, const char *name, uint64_t offset,
                           const void *data, uint64_t size, struct err *err);
/* Sync, rename to the path, sync of the folder. ERR_INTERNAL when bytes are missing. */
int safetensors_writer_finish(struct safetensors_writer *w, struct err *err);

#endif
