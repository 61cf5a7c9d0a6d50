/* The loops of values with AVX2 and FMA; reached only after the processor was asked. */
#include "libcore/merge/values_impl.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>

#define VECTOR       struct avx2_vector
#define KERNEL_NAME  "avx2"
#define KERNEL_TABLE static const struct values_kernels table

struct avx2_vector {
    __m256 low, high;
};

static inline VECTOR vector_zero(void)
{
    return (VECTOR){_mm256_setzero_ps(), _mm256_setzero_ps()};
}

static inline VECTOR vector_load(const float *p)
{
    return (VECTOR){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}

static inline void vector_store(float *p, VECTOR v)
{
    _mm256_storeu_ps(p, v.low);
    _mm256_storeu_ps(p + 8, v.high);
}

static inline VECTOR vector_splat(float f)
{
    return (VECTOR){_mm256_set1_ps(f), _mm256_set1_ps(f)};
}

static inline VECTOR vector_add(VECTOR a, VECTOR b)
{
    return (VECTOR){_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}

static inline VECTOR vector_fma(VECTOR a, VECTOR b, VECTOR c)
{
    return (VECTOR){_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}

#include "libcore/merge/values_kernel.h"

const struct values_kernels *const values_avx2 = &table;
#else
const struct values_kernels *const values_avx2 = NULL;
#endif
