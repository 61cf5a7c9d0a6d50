/*
 * gguf: the strict reader of one GGUF file (versions 2 and 3, little-endian), over bytes in memory.
 * Checks before anything is handed out: lengths, types, duplicate keys and names, alignment, and
 * that every tensor lies within the file without overlap. Shapes are given as the rest of the
 * project has them, outermost dimension first (GGUF writes them the other way round).
 * Thread rule: immutable once open.
 */
#ifndef LIBCORE_FORMAT_GGUF_H
#define LIBCORE_FORMAT_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/err.h"
#include "libcore/tensor/tensor.h"

struct gguf;

enum { GGUF_TYPE_F32 = 0, GGUF_TYPE_F16 = 1, GGUF_TYPE_Q8_0 = 8, GGUF_TYPE_BF16 = 30 };
enum { GGUF_Q8_0_VALUES = 32, GGUF_Q8_0_BYTES = 34 }; // an f16 scale, then 32 signed bytes

struct gguf_tensor {
    const char *name;
    uint32_t type; // of ggml
    uint32_t n_dims;
    uint64_t shape[LIMIT_TENSOR_DIMS];
    const void *data;
    uint64_t n_bytes;
};

/* data is borrowed; `where` (borrowed) names it in errors. ERR_CORRUPT; ERR_REFUSED: a version,
 * byte order or number type that is not read; ERR_NO_MEMORY. */
int gguf_open_memory(struct gguf **out, const void *data, size_t size, const char *where,
                     struct err *err);
void gguf_free(struct gguf *g);

/* Values by key; NULL or false when the key is not there or of another type. */
const char *gguf_text(const struct gguf *g, const char *key);
bool gguf_number(const struct gguf *g, const char *key, double *out); // any number type
bool gguf_has(const struct gguf *g, const char *key);

size_t gguf_count(const struct gguf *g); // tensors, sorted by name
const struct gguf_tensor *gguf_at(const struct gguf *g, size_t i);

#endif
