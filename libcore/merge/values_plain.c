/* The loops of values for any processor. fmaf() is exact wherever it is computed. */
#include <math.h>
#include <string.h>

#define VECTOR       struct plain_vector
#define KERNEL_NAME  "plain"
#define KERNEL_TABLE const struct values_kernels values_plain

struct plain_vector {
    float x[16];
};

static inline VECTOR vector_zero(void)
{
    VECTOR v = {{0}};
    return v;
}

static inline VECTOR vector_load(const float *p)
{
    VECTOR v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void vector_store(float *p, VECTOR v)
{
    memcpy(p, &v, sizeof v);
}

static inline VECTOR vector_splat(float f)
{
    VECTOR v;
    for (int i = 0; i < 16; i++)
        v.x[i] = f;
    return v;
}

static inline VECTOR vector_add(VECTOR a, VECTOR b)
{
    for (int i = 0; i < 16; i++)
        a.x[i] += b.x[i];
    return a;
}

static inline VECTOR vector_fma(VECTOR a, VECTOR b, VECTOR c)
{
    for (int i = 0; i < 16; i++)
        c.x[i] = fmaf(a.x[i], b.x[i], c.x[i]);
    return c;
}

#include "libcore/merge/values_kernel.h"
