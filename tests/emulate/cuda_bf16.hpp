/* cuda_bf16: the type and the conversions that the kernels use. */
#ifndef TESTS_EMULATE_CUDA_BF16_H
#define TESTS_EMULATE_CUDA_BF16_H

#include <cuda_runtime.h>

struct __nv_bfloat16 {
    uint16_t bits;
};
struct __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

static inline float __bfloat162float(__nv_bfloat16 v)
{
    return __uint_as_float((uint32_t)v.bits << 16);
}
static inline __nv_bfloat16 __float2bfloat16(float f)
{
    uint32_t b = __float_as_uint(f);
    if (f != f)
        return {(uint16_t)(b >> 16 | 0x40)};
    return {(uint16_t)((b + 0x7fff + (b >> 16 & 1)) >> 16)};
}
static inline __nv_bfloat16 __float2bfloat16_rn(float f)
{
    return __float2bfloat16(f);
}
static inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 v)
{
    return v.bits;
}
static inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t v)
{
    return {v};
}
static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y)
{
    return {__float2bfloat16(x), __float2bfloat16(y)};
}
static inline float2 __bfloat1622float2(__nv_bfloat162 v)
{
    return make_float2(__bfloat162float(v.x), __bfloat162float(v.y));
}

#endif
