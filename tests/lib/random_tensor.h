/*
 * random_tensor: numbers in (-1, 1) and tensors of them, the same in every run.
 */
#ifndef TESTS_LIB_RANDOM_TENSOR_H
#define TESTS_LIB_RANDOM_TENSOR_H

#include <stdint.h>

#include "libcore/base/sys.h"
#include "libcore/tensor/tensor.h"

static inline double random_uniform_number(void)
{
    static uint64_t state = 88172645463325252u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (double)(int64_t)state * 0x1p-63;
}

/* [rows, cols] of numbers in (-size, size); the data is the caller's, to sys_free(). */
static inline struct tensor random_tensor(enum dtype t, size_t rows, size_t cols, double size)
{
    struct tensor x = {.dtype = t, .n_dims = 2, .shape = {rows, cols}};
    size_t n = rows * cols, bytes = dtype_bits(t) / 8;
    char *data = sys_malloc(n * bytes + 1);
    for (size_t i = 0; i < n; i++) {
        double v = random_uniform_number() * size;
        dtype_from_f64(t, &v, data + i * bytes, 1);
    }
    x.data = data;
    return x;
}

#endif
