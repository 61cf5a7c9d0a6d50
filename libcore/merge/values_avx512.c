/* The loops of values with AVX-512; reached only after the processor was asked. */
#include "libcore/merge/values_impl.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#include <immintrin.h>

#define VECTOR       __m512
#define KERNEL_NAME  "avx512"
#define KERNEL_TABLE static const struct values_kernels table

static inline VECTOR vector_zero(void)
{
    return _mm512_setzero_ps();
}

static inline VECTOR vector_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

static inline void vector_store(float *p, VECTOR v)
{
    _mm512_storeu_ps(p, v);
}

static inline VECTOR vector_splat(float f)
{
    return _mm512_set1_ps(f);
}

static inline VECTOR vector_add(VECTOR a, VECTOR b)
{
    return _mm512_add_ps(a, b);
}

static inline VECTOR vector_fma(VECTOR a, VECTOR b, VECTOR c)
{
    return _mm512_fmadd_ps(a, b, c);
}

#include "libcore/merge/values_kernel.h"

const struct values_kernels *const values_avx512 = &table;
#else
const struct values_kernels *const values_avx512 = NULL;
#endif
