#include "libcore/tensor/tensor.h"

#include <stdio.h>

uint64_t tensor_n_values(const struct tensor *t)
{
    uint64_t n = 1;
    for (uint32_t i = 0; i < t->n_dims; i++)
        n *= t->shape[i];
    return n;
}

uint64_t tensor_n_bytes(const struct tensor *t)
{
    return (tensor_n_values(t) * dtype_bits(t->dtype) + 7) / 8;
}

bool tensor_has_shape(const struct tensor *t, uint32_t n_dims, const uint64_t *shape)
{
    if (t->n_dims != n_dims)
        return false;
    for (uint32_t i = 0; i < n_dims; i++) {
        if (t->shape[i] != shape[i])
            return false;
    }
    return true;
}

bool tensor_same_shape(const struct tensor *a, const struct tensor *b)
{
    return tensor_has_shape(a, b->n_dims, b->shape);
}

const char *tensor_shape_text(const struct tensor *t, char *buf, size_t n)
{
    size_t len = 0;
    for (uint32_t i = 0; i < t->n_dims && len < n; i++)
        len += (size_t)snprintf(buf + len, n - len, "%s%llu", i ? ", " : "[",
                                (unsigned long long)t->shape[i]);
    if (len < n)
        snprintf(buf + len, n - len, "%s", t->n_dims ? "]" : "[]");
    return buf;
}

const void *tensor_row(const struct tensor *t, uint64_t i)
{
    uint64_t row_bits = dtype_bits(t->dtype);
    for (uint32_t d = 1; d < t->n_dims; d++)
        row_bits *= t->shape[d];
    return (const char *)t->data + i * row_bits / 8;
}
