/* common: the primitives of kernels/cuda/common.cuh in plain C++. */
#ifndef KERNELS_CUDA_COMMON_CUH
#define KERNELS_CUDA_COMMON_CUH

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef __nv_bfloat16 bf16;

namespace lora
{

inline void pdl_launch_dependents() {}
inline void pdl_wait() {}
/* What a kernel before counts has been counted. */
inline void await_count(const uint32_t *, uint32_t, uint32_t) {}

inline uint32_t shared_address(const void *p)
{
    size_t at = (size_t)((const uint8_t *)p - emu_shared);
    if (at >= 232448) {
        fprintf(stderr, "emulate: not an address of dynamic shared memory\n");
        abort();
    }
    return (uint32_t)at;
}

inline void cp_async_16(uint32_t dst, const void *src, uint32_t src_bytes)
{
    if (dst % 16 || dst + 16 > 232448) {
        fprintf(stderr, "emulate: cp.async to %u\n", dst);
        abort();
    }
    memset(emu_shared + dst, 0, 16);
    if (src_bytes && (uintptr_t)src % 16) {
        fprintf(stderr, "emulate: cp.async from an unaligned address\n");
        abort();
    }
    memcpy(emu_shared + dst, src, src_bytes);
}
inline void cp_async_16_stream(uint32_t dst, const void *src, uint32_t src_bytes)
{
    cp_async_16(dst, src, src_bytes);
}
/* Every thread of a block waits equally often, so a wait is a barrier of the block. */
inline void mbarrier_init(uint32_t, uint32_t) {}
inline void mbarrier_arrive(uint32_t) {}
inline void mbarrier_arrive_copies(uint32_t) {}
inline void mbarrier_wait(uint32_t, uint32_t) { __syncthreads(); }
inline uint4 load_stream_16(const void *p)
{
    if ((uintptr_t)p % 16) {
        fprintf(stderr, "emulate: a load of 16 bytes from an unaligned address\n");
        abort();
    }
    return *(const uint4 *)p;
}
inline void prefetch_line(const void *) {}
inline void prefetch_l2(const void *p, uint32_t bytes)
{
    if ((uintptr_t)p % 16 || bytes % 16) {
        fprintf(stderr, "emulate: a prefetch of %u bytes from %p\n", bytes, p);
        abort();
    }
}
/* No clusters here. */
inline bool cluster_supported() { return false; }
inline void cluster_arrive() {}
inline void cluster_wait() {}
inline void store_to_cta(uint32_t, uint32_t, float) { abort(); }
inline void cp_async_commit() {}
template <int N> inline void cp_async_wait() {}

inline void emu_matrices(uint32_t *r, int n, uint32_t address, bool transposed)
{
    const uint8_t *s = emu_warp(&address, sizeof address);
    int lane = emu_self->lane;
    for (int i = 0; i < n; i++) {
        uint16_t v[2];
        for (int h = 0; h < 2; h++) {
            int row = transposed ? lane % 4 * 2 + h : lane / 4;
            int col = transposed ? lane / 4 : lane % 4 * 2 + h;
            uint32_t at = emu_lane<uint32_t>(s, i * 8 + row);
            if (at % 16 || at + 16 > 232448) {
                fprintf(stderr, "emulate: ldmatrix from %u\n", at);
                abort();
            }
            memcpy(&v[h], emu_shared + at + col * 2, 2);
        }
        r[i] = (uint32_t)v[0] | (uint32_t)v[1] << 16;
    }
}
inline void ldmatrix_x4(uint32_t r[4], uint32_t address) { emu_matrices(r, 4, address, false); }
inline void ldmatrix_x2(uint32_t r[2], uint32_t address) { emu_matrices(r, 2, address, false); }
inline void ldmatrix_x4_trans(uint32_t r[4], uint32_t address) { emu_matrices(r, 4, address, true); }
inline void ldmatrix_x2_trans(uint32_t r[2], uint32_t address) { emu_matrices(r, 2, address, true); }

inline void emu_movmatrix(uint32_t *to, uint32_t v)
{
    const uint8_t *s = emu_warp(&v, sizeof v);
    uint16_t h[2];
    for (int i = 0; i < 2; i++) {
        int row = emu_self->lane % 4 * 2 + i, col = emu_self->lane / 4;
        h[i] = (uint16_t)(emu_lane<uint32_t>(s, row * 4 + col / 2) >> col % 2 * 16);
    }
    *to = (uint32_t)h[0] | (uint32_t)h[1] << 16;
}

inline float emu_half(uint32_t v, int i)
{
    return __uint_as_float(i ? v & 0xffff0000u : v << 16);
}
inline void mma_16816(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const uint8_t *s = emu_warp(mine, sizeof mine);
    int g = emu_self->lane / 4, t = emu_self->lane % 4;
    for (int k = 0; k < 16; k++) {
        int from = k % 8 / 2, high = k / 8, half = k % 2;
        uint32_t x[6], y[6], z[6];
        memcpy(x, s + (g * 4 + from) * EMU_SLOT, sizeof x);
        memcpy(y, s + (t * 8 + from) * EMU_SLOT, sizeof y);
        memcpy(z, s + (t * 8 + 4 + from) * EMU_SLOT, sizeof z);
        float low = emu_half(x[2 * high], half), up = emu_half(x[2 * high + 1], half);
        float b0 = emu_half(y[4 + high], half), b1 = emu_half(z[4 + high], half);
        d[0] += low * b0;
        d[1] += low * b1;
        d[2] += up * b0;
        d[3] += up * b1;
    }
}
inline void mma_1688(float d[4], const uint32_t a[2], uint32_t b)
{
    uint32_t a4[4] = {a[0], a[1], 0, 0}, b2[2] = {b, 0};
    mma_16816(d, a4, b2);
}

inline uint32_t pack_bf16(float low, float high)
{
    return (uint32_t)__float2bfloat16(low).bits | (uint32_t)__float2bfloat16(high).bits << 16;
}
inline float2 unpack_bf16(uint32_t v)
{
    return make_float2(emu_half(v, 0), emu_half(v, 1));
}
inline float exp2_approx(float v) { return exp2f(v); }
inline float warp_sum(float v)
{
    for (int i = 16; i; i >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, i);
    return v;
}
inline float warp_max(float v)
{
    for (int i = 16; i; i >>= 1)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, i));
    return v;
}

inline int device_attribute(cudaDeviceAttr which)
{
    int device = 0, value = 0;
    cudaGetDevice(&device);
    return cudaDeviceGetAttribute(&value, which, device) == cudaSuccess ? value : 0;
}

struct Allowed {};
template <typename Kernel> inline cudaError_t allow_shared(Kernel *, int bytes, Allowed &)
{
    return bytes <= device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) ? cudaSuccess
                                                                              : cudaErrorInvalidValue;
}
template <typename... Params, typename... Args>
inline cudaError_t launch_pdl(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                              cudaStream_t stream, Args... args)
{
    emu_run(grid, block, shared_bytes, stream, [=] { kernel(Params(args)...); });
    return cudaSuccess;
}
template <typename... Params, typename... Args>
inline cudaError_t launch_plain(void (*kernel)(Params...), dim3 grid, dim3 block,
                                cudaStream_t stream, Args... args)
{
    return launch_pdl(kernel, grid, block, 0, stream, args...);
}

template <typename... Params, typename... Args>
inline cudaError_t launch_pdl_cluster(void (*kernel)(Params...), dim3 grid, dim3 block,
                                      size_t shared_bytes, cudaStream_t stream, dim3,
                                      Args... args)
{
    return launch_pdl(kernel, grid, block, shared_bytes, stream, args...);
}

} // namespace lora

#endif
