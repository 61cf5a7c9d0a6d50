/*
 * safetensors: the strict reader of one .safetensors file, mapped and never copied.
 *
 * Owns the mapping and the table of tensors; the tensors are views that live as long as the handle.
 * Checks, before anything is handed out, every rule of the reference reader (safetensors 0.8
 * src/tensor.rs) and what that one lets pass: duplicate keys, unknown or missing keys in an entry,
 * a header that does not begin with '{', raw control characters, lone surrogates. Values are not
 * looked at (NaN is the adapter reader's business); a misaligned payload only warns.
 * Pickle, zip, GGUF and Git LFS pointer files are recognised and refused by name.
 * Thread rule: immutable once open, any thread may read.
 */
#ifndef LIBCORE_FORMAT_SAFETENSORS_H
#define LIBCORE_FORMAT_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/err.h"
#include "libcore/tensor/tensor.h"

struct safetensors;

struct safetensors_entry {
    const char *name;    // UTF-8, no NUL inside
    struct tensor value; // view of the mapping; data is never NULL, not even for zero bytes
    uint64_t begin, end; // bytes from the start of the payload
};

struct safetensors_metadata {
    const char *key, *value;
};

/*
 * Maps and checks `path`. On success *out is the caller's, to free with safetensors_free().
 * max_header_bytes: 0 for the reference's own bound (LIMIT_SAFETENSORS_HEADER_BYTES).
 * Returns 0, ERR_CORRUPT (the file breaks the format: "file:tensor: what"), ERR_REFUSED (more
 * dimensions than LIMIT_TENSOR_DIMS), ERR_LIMIT (header beyond max_header_bytes), ERR_NOT_FOUND,
 * ERR_IO, ERR_NO_MEMORY.
 */
int safetensors_open(struct safetensors **out, const char *path, uint64_t max_header_bytes,
                     struct err *err);
/* The same over bytes that the caller keeps alive; `where` names them in errors. */
int safetensors_open_memory(struct safetensors **out, const void *data, size_t size,
                            const char *where, uint64_t max_header_bytes, struct err *err);
/* A header alone, with its length before it: of a file whose payload of payload_bytes is elsewhere.
 * The tensors' data are NULL. */
int safetensors_open_header(struct safetensors **out, const void *data, size_t size,
                            uint64_t payload_bytes, const char *where, struct err *err);
void safetensors_free(struct safetensors *s);

/* Entries sorted by name (bytes). */
size_t safetensors_count(const struct safetensors *s);
const struct safetensors_entry *safetensors_at(const struct safetensors *s, size_t i);
const struct safetensors_entry *safetensors_find(const struct safetensors *s, const char *name);

/* __metadata__, sorted by key. */
size_t safetensors_n_metadata(const struct safetensors *s);
const struct safetensors_metadata *safetensors_metadata_at(const struct safetensors *s, size_t i);
const char *safetensors_metadata(const struct safetensors *s, const char *key); // NULL: not there

const char *safetensors_path(const struct safetensors *s);
uint64_t safetensors_file_bytes(const struct safetensors *s);
uint64_t safetensors_data_offset(const struct safetensors *s); // of the payload in the file
/* "payload is not aligned …" or NULL: what to tell the user that is no error. */
const char *safetensors_warning(const struct safetensors *s);

/* What the first bytes of a file say it is: "pickle", "zip (a PyTorch .bin)", … or NULL. */
const char *safetensors_foreign_magic(const void *data, size_t size);

#endif
