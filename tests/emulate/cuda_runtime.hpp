/*
 * cuda_runtime: CUDA C++ for a compiler that has none. Every thread of a block is a fiber; they
 * meet at barriers and in the operations of a warp. Blocks run one after another.
 */
#ifndef TESTS_EMULATE_CUDA_RUNTIME_H
#define TESTS_EMULATE_CUDA_RUNTIME_H

#include <cuda_runtime_api.h>
#include <functional>
#include <math.h>
#include <string.h>

#define __global__       static
#define __device__
#define __host__
#define __forceinline__  inline
#define __noinline__
#define __shared__       static
#define __constant__     static
#define __align__(n)     alignas(n)
#define __restrict__
#define __launch_bounds__(...)
#define __maxnreg__(n)
#define __grid_constant__
#define __CUDA_ARCH__ 890

struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct uint2 {
    unsigned x, y;
};
struct uint3 {
    unsigned x, y, z;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct emu_thread {
    uint3 tid;
    int warp, lane;
};
extern emu_thread *emu_self;
extern dim3 emu_block_idx, emu_block_dim, emu_grid_dim;
extern uint8_t emu_shared[];
#define threadIdx (emu_self->tid)
#define blockIdx  emu_block_idx
#define blockDim  emu_block_dim
#define gridDim   emu_grid_dim

/* Deposits n bytes of this lane; returns the 32 deposits, EMU_SLOT bytes apart. */
enum { EMU_SLOT = 64 };
const uint8_t *emu_warp(const void *mine, size_t n);
/* Barrier of the block; the sum of v over its threads. */
unsigned long long emu_block(unsigned long long v);
unsigned emu_block_and(unsigned v);
unsigned emu_alive_mask();
/* Refuses a stream of another card than the thread's current one, as CUDA does. */
void emu_run(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
             std::function<void()> body);

static inline uint8_t *emu_dynamic_shared() { return emu_shared; }
static inline void __syncthreads() { emu_block(0); }
static inline int __syncthreads_or(int v) { return emu_block(v != 0) != 0; }
static inline int __syncthreads_count(int v) { return (int)emu_block(v != 0); }
static inline int __syncthreads_and(int v) { return emu_block(v == 0) == 0; }
static inline void __syncwarp(unsigned = 0xffffffffu)
{
    char c = 0;
    emu_warp(&c, 1);
}
template <typename T> static inline T emu_lane(const uint8_t *s, int lane)
{
    T v;
    memcpy(&v, s + lane * EMU_SLOT, sizeof v);
    return v;
}
template <typename T> static inline T __shfl_sync(unsigned, T v, int lane)
{
    return emu_lane<T>(emu_warp(&v, sizeof v), lane & 31);
}
template <typename T> static inline T __shfl_xor_sync(unsigned, T v, int mask)
{
    return emu_lane<T>(emu_warp(&v, sizeof v), emu_self->lane ^ mask);
}
template <typename T> static inline T __shfl_up_sync(unsigned, T v, int d)
{
    const uint8_t *s = emu_warp(&v, sizeof v);
    return emu_self->lane < d ? v : emu_lane<T>(s, emu_self->lane - d);
}
template <typename T> static inline T __shfl_down_sync(unsigned, T v, int d)
{
    const uint8_t *s = emu_warp(&v, sizeof v);
    return emu_self->lane + d > 31 ? v : emu_lane<T>(s, emu_self->lane + d);
}
static inline unsigned __ballot_sync(unsigned, int v)
{
    int b = v != 0;
    const uint8_t *s = emu_warp(&b, sizeof b);
    unsigned m = 0;
    for (int i = 0; i < 32; i++)
        m |= (emu_alive_mask() >> i & 1 ? (unsigned)emu_lane<int>(s, i) : 0u) << i;
    return m;
}
static inline int __any_sync(unsigned m, int v) { return __ballot_sync(m, v) != 0; }
static inline int __all_sync(unsigned m, int v) { return __ballot_sync(m, !v) == 0; }
static inline unsigned __activemask() { return 0xffffffffu; }
static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline int __ffs(unsigned v) { return __builtin_ffs((int)v); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
static inline int __clz(unsigned v) { return v ? __builtin_clz(v) : 32; }
static inline void __nanosleep(unsigned) {}
static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline float __uint_as_float(uint32_t v)
{
    float f;
    memcpy(&f, &v, 4);
    return f;
}
static inline uint32_t __float_as_uint(float f)
{
    uint32_t v;
    memcpy(&v, &f, 4);
    return v;
}
static inline float __int_as_float(int v) { return __uint_as_float((uint32_t)v); }
static inline int __float_as_int(float v) { return (int)__float_as_uint(v); }
#define __expf expf
static inline float __fdividef(float a, float b) { return a / b; }
static inline float rsqrtf(float v) { return 1.0f / sqrtf(v); }
static inline float __frcp_rn(float v) { return 1.0f / v; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __double2float_rz(double v)
{
    float f = (float)v;
    return fabs((double)f) > fabs(v) ? nextafterf(f, 0.0f) : f;
}
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
template <typename T> static inline T __ldg(const T *p) { return *p; }
template <typename T> static inline T __ldcg(const T *p) { return *p; }
template <typename T> static inline T __ldcs(const T *p) { return *p; }
template <typename T> static inline T __ldca(const T *p) { return *p; }
template <typename T> static inline void __stcg(T *p, T v) { *p = v; }
template <typename T> static inline void __stcs(T *p, T v) { *p = v; }
template <typename T, typename U> static inline T atomicAdd(T *p, U v)
{
    T old = *p;
    *p = (T)(old + v);
    return old;
}
template <typename T, typename U> static inline T atomicOr(T *p, U v)
{
    T old = *p;
    *p = (T)(old | v);
    return old;
}
template <typename T, typename U> static inline T atomicMin(T *p, U v)
{
    T old = *p;
    *p = old < (T)v ? old : (T)v;
    return old;
}
template <typename T, typename U> static inline T atomicMax(T *p, U v)
{
    T old = *p;
    *p = old > (T)v ? old : (T)v;
    return old;
}
static inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline unsigned long long min(unsigned long long a, unsigned long long b) { return a < b ? a : b; }
static inline uint64_t min(uint64_t a, uint64_t b) { return a < b ? a : b; }
static inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline uint64_t max(uint64_t a, uint64_t b) { return a > b ? a : b; }

#endif
