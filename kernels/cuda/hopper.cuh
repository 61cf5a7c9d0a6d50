/*
 * hopper: barriers in shared memory, the copy engine (TMA) and warpgroup products (wgmma) of
 * sm_90a. Included only by files that are compiled for sm_90a alone.
 *
 * Tiles that wgmma reads: rows of 64 bf16 (128 bytes), swizzled by 128 bytes as the copy engine
 * writes them.
 */
#ifndef KERNELS_CUDA_HOPPER_CUH
#define KERNELS_CUDA_HOPPER_CUH

#include <cuda.h>
#include <stdio.h>

#include "kernels/cuda/common.cuh"

namespace lora
{

// ---- barriers

__device__ __forceinline__ void barrier_init(uint32_t bar, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals) : "memory");
}

/* What was initialised is seen by the cluster and by the copy engine. */
__device__ __forceinline__ void barrier_init_done()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_expect(uint32_t bar, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

__device__ __forceinline__ bool barrier_try(uint32_t bar, uint32_t parity)
{
    uint32_t done;
    asm volatile("{\n.reg .pred p;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(bar), "r"(parity)
                 : "memory");
    return done != 0;
}

/* The same without waiting at all: barrier_try may sleep for a while. */
__device__ __forceinline__ bool barrier_test(uint32_t bar, uint32_t parity)
{
    uint32_t done;
    asm volatile("{\n.reg .pred p;\n"
                 "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(bar), "r"(parity)
                 : "memory");
    return done != 0;
}

/* Waits until done() is true. With LORA_BOUNDED_WAITS one that takes two seconds is reported and
 * ends the kernel. */
template <typename Done>
__device__ __forceinline__ void wait_until(Done done, uint32_t what, uint32_t want)
{
#ifdef LORA_BOUNDED_WAITS
    uint64_t begin, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
    do {
        if (done())
            return;
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    } while (now - begin < 2000000000ull);
    printf("stuck: cta %d thread %d waits at %u for %u\n", (int)blockIdx.x, (int)threadIdx.x, what,
           want);
    __trap();
#else
    while (!done()) {
    }
#endif
}

/* Until the phase of that parity is over. */
__device__ __forceinline__ void barrier_wait(uint32_t bar, uint32_t parity)
{
    wait_until([=] { return barrier_try(bar, parity); }, bar, parity);
}

/* Ordinary writes to shared memory before it are seen by wgmma and the copy engine after it. */
__device__ __forceinline__ void fence_async_proxy()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

template <int N> __device__ __forceinline__ void registers_down()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N> __device__ __forceinline__ void registers_up()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// ---- the copy engine

__device__ __forceinline__ void tma_prefetch(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* A box of a two-dimensional tensor at (column, row); counts its bytes on `bar`. */
__device__ __forceinline__ void tma_load(uint32_t dst, const CUtensorMap *map, uint32_t bar,
                                         uint32_t column, uint32_t row)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4}], [%2];" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(column), "r"(row)
                 : "memory");
}

/* A box of a five-dimensional tensor. */
__device__ __forceinline__ void tma_load_5d(uint32_t dst, const CUtensorMap *map, uint32_t bar,
                                            uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3,
                                            uint32_t c4)
{
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
                 : "memory");
}

/* A box of a three-dimensional tensor. */
__device__ __forceinline__ void tma_load_3d(uint32_t dst, const CUtensorMap *map, uint32_t bar,
                                            uint32_t c0, uint32_t c1, uint32_t c2)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2)
                 : "memory");
}

// ---- products

__device__ __forceinline__ void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int N> __device__ __forceinline__ void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/* Keeps the compiler from moving uses of accumulators over a wait. */
template <int N> __device__ __forceinline__ void wgmma_hold(float (&d)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(d[i])::"memory");
}

/* Rows of 128 bytes, swizzled; a step of 16 in k adds 2. */
__device__ __forceinline__ uint64_t swizzled_tile(uint32_t address)
{
    return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)1 << 16 | (uint64_t)64 << 32 |
           (uint64_t)1 << 62;
}

/* The same tile as the other operand: its rows are k, its 64 columns n; n goes on `next` bytes
 * further; a step of 16 in k adds 128. */
__device__ __forceinline__ uint64_t turned_tile(uint32_t address, uint32_t next)
{
    return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)(next >> 4) << 16 | (uint64_t)64 << 32 |
           (uint64_t)1 << 62;
}

#define LORA_F4(i)  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define LORA_F16(i) LORA_F4(i), LORA_F4(i + 4), LORA_F4(i + 8), LORA_F4(i + 12)
#define LORA_F64(i) LORA_F16(i), LORA_F16(i + 16), LORA_F16(i + 32), LORA_F16(i + 48)

/* d[64 x N] = a[64 x 16] b[N x 16]^T + (add ? d : 0); N / 2 accumulators a thread. */
template <int N> struct Wgmma;

template <> struct Wgmma<16> {
    static __device__ __forceinline__ void run(float *d, uint64_t a, uint64_t b, int add)
    {
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %10, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {"
                     "%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, p, 1, 1, 0, 0;\n}"
                     : LORA_F4(0), LORA_F4(4)
                     : "l"(a), "l"(b), "r"(add));
    }
};

template <> struct Wgmma<32> {
    static __device__ __forceinline__ void run(float *d, uint64_t a, uint64_t b, int add)
    {
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
                     "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
                     "%16, %17, p, 1, 1, 0, 0;\n}"
                     : LORA_F16(0)
                     : "l"(a), "l"(b), "r"(add));
    }
};

template <> struct Wgmma<64> {
    static __device__ __forceinline__ void run(float *d, uint64_t a, uint64_t b, int add)
    {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
            "%32, %33, p, 1, 1, 0, 0;\n}"
            : LORA_F16(0), LORA_F16(16)
            : "l"(a), "l"(b), "r"(add));
    }
};

template <> struct Wgmma<128> {
    static __device__ __forceinline__ void run(float *d, uint64_t a, uint64_t b, int add)
    {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
            "%64, %65, p, 1, 1, 0, 0;\n}"
            : LORA_F64(0)
            : "l"(a), "l"(b), "r"(add));
    }
};

template <> struct Wgmma<256> {
    static __device__ __forceinline__ void run(float *d, uint64_t a, uint64_t b, int add)
    {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
            "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
            "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
            "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "
            "%111, "
            "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, "
            "%126, %127}, "
            "%128, %129, p, 1, 1, 0, 0;\n}"
            : LORA_F64(0), LORA_F64(64)
            : "l"(a), "l"(b), "r"(add));
    }
};

/* d[64 x N] += a[64 x 16] b[16 x N]; a in registers (as the accumulators of a product lie, in
 * pairs), b a turned tile. */
template <int N> struct WgmmaTurned;

template <> struct WgmmaTurned<64> {
    static __device__ __forceinline__ void run(float *d, const uint32_t a[4], uint64_t b)
    {
        asm volatile(
            "{\n"
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
            "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n}"
            : LORA_F16(0), LORA_F16(16)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    }
};

template <> struct WgmmaTurned<128> {
    static __device__ __forceinline__ void run(float *d, const uint32_t a[4], uint64_t b)
    {
        asm volatile(
            "{\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
            "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n}"
            : LORA_F64(0)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    }
};

// ---- host

typedef CUresult (*encode_fn)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                              const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                              const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                              CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

inline encode_fn find_encode()
{
    void *f = nullptr;
    cudaDriverEntryPointQueryResult found;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault,
                                         &found) != cudaSuccess ||
        found != cudaDriverEntryPointSuccess)
        return nullptr;
    return (encode_fn)f;
}

/* A bf16 tensor, innermost dimension first (pitch: bytes of the others), in boxes whose rows are
 * 128 bytes, swizzled; zeros where a box goes beyond it. */
inline int describe_tensor(CUtensorMap *map, const void *data, uint32_t n_dims,
                           const uint64_t *dims, const uint64_t *pitch, const uint32_t *box)
{
    static const encode_fn encode = find_encode();
    const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
    cuuint64_t d[5], p[5];
    if (!encode)
        return cudaErrorNotSupported;
    for (uint32_t i = 0; i < n_dims; i++) {
        d[i] = dims[i];
        p[i] = i + 1 < n_dims ? pitch[i] : 0;
    }
    CUresult r = encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, n_dims, (void *)data, d, p, box,
                        steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return r == CUDA_SUCCESS ? 0 : cudaErrorInvalidValue;
}

// ---- output

/* A thread has columns 8 j + 2 (lane % 4) of two rows; four threads exchange theirs, so that
 * each has 8 columns of j + lane % 4. */
__device__ __forceinline__ uint4 exchange_columns(int lane, const uint32_t w[4])
{
    bool odd = lane & 1, high = lane & 2;
    uint32_t r0 = __shfl_xor_sync(0xffffffffu, odd ? w[0] : w[1], 1);
    uint32_t r1 = __shfl_xor_sync(0xffffffffu, odd ? w[2] : w[3], 1);
    uint32_t x0 = odd ? r0 : w[0], x1 = odd ? w[1] : r0;
    uint32_t y0 = odd ? r1 : w[2], y1 = odd ? w[3] : r1;
    uint32_t s0 = __shfl_xor_sync(0xffffffffu, high ? x0 : y0, 2);
    uint32_t s1 = __shfl_xor_sync(0xffffffffu, high ? x1 : y1, 2);
    return high ? make_uint4(s0, s1, y0, y1) : make_uint4(x0, x1, s0, s1);
}

} // namespace lora

#endif
