/*
 * tensor: a typed, row-major, contiguous view of memory that somebody else owns.
 */
#ifndef LIBCORE_TENSOR_TENSOR_H
#define LIBCORE_TENSOR_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/err.h"
#include "libcore/base/limits.h"
#include "libcore/tensor/dtype.h"

struct tensor {
    enum dtype dtype;
    uint32_t n_dims; // 0: a scalar, or no tensor at all when data is NULL
    uint64_t shape[LIMIT_TENSOR_DIMS];
    const void *data; // borrowed; NULL: absent
};

static inline bool tensor_present(const struct tensor *t)
{
    return t->data != NULL;
}

uint64_t tensor_n_values(const struct tensor *t);
uint64_t tensor_n_bytes(const struct tensor *t);
bool tensor_same_shape(const struct tensor *a, const struct tensor *b);
bool tensor_has_shape(const struct tensor *t, uint32_t n_dims, const uint64_t *shape);
/* "[4096, 16]" into buf; returns buf. */
const char *tensor_shape_text(const struct tensor *t, char *buf, size_t n);
/* Row i of a tensor seen as [shape[0], rest]. */
const void *tensor_row(const struct tensor *t, uint64_t i);

#endif
