/*
 * common: the few PTX instructions that the kernels are made of, and programmatic dependent launch.
 * Fragment layouts are those of mma.m16n8k16 (PTX ISA, "Matrix fragments for mma.m16n8k16"):
 * lane = 4 g + t; A rows g and g+8, columns 2t, 2t+1 and 2t+8, 2t+9; B rows (k) likewise, column g;
 * D rows g and g+8, columns 2t and 2t+1.
 */
#ifndef KERNELS_CUDA_COMMON_CUH
#define KERNELS_CUDA_COMMON_CUH

#include <atomic>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;

namespace lora
{

/* Lets the next kernel of the chain start its prologue; what it reads from us it reads after
 * pdl_wait. */
__device__ __forceinline__ void pdl_launch_dependents()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* Until *count has come to `enough`: a hint when it is time for something, so not for ever. By one
 * thread, which looks again after `pause` nanoseconds. */
__device__ __forceinline__ void await_count(const uint32_t *count, uint32_t enough, uint32_t pause)
{
#pragma unroll 1
    for (int i = 0; i < 1000 && *(const volatile uint32_t *)count < enough; i++)
        __nanosleep(pause);
}

/* Everything that earlier kernels of the chain wrote is visible after this. */
__device__ __forceinline__ void pdl_wait()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* 16 bytes, global to shared, past L1; src_bytes < 16 fills the rest with zeros. */
__device__ __forceinline__ void cp_async_16(uint32_t dst, const void *src, uint32_t src_bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src),
                 "r"(src_bytes)
                 : "memory");
}

/* 4 bytes, through L1; 0 src_bytes: zeros. */
__device__ __forceinline__ void cp_async_4(uint32_t dst, const void *src, uint32_t src_bytes)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(dst), "l"(src), "r"(src_bytes)
                 : "memory");
}

/* For what is read once: the first to leave L2, so that what is read again stays there. */
__device__ __forceinline__ uint64_t read_once_policy()
{
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

/* cp_async_16 for a stream that is read once, with 256 bytes into L2. */
__device__ __forceinline__ void cp_async_16_stream(uint32_t dst, const void *src,
                                                   uint32_t src_bytes)
{
    asm volatile(
        "cp.async.cg.shared.global.L2::cache_hint.L2::256B [%0], [%1], 16, %2, %3;" ::"r"(dst),
        "l"(src), "r"(src_bytes), "l"(read_once_policy())
        : "memory");
}

/* ---- mbarriers: phases of a stage in shared memory; parity is that of the phase waited for ----
 */

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, uint32_t count)
{
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier)
{
    asm volatile("{ .reg .b64 t; mbarrier.arrive.shared.b64 t, [%0]; }" ::"r"(barrier) : "memory");
}

/* Arrives when all cp.async of this thread so far have. */
__device__ __forceinline__ void mbarrier_arrive_copies(uint32_t barrier)
{
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, uint32_t parity)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("{ .reg .pred p;\n"
                 "W%=: mbarrier.try_wait.parity.shared.b64 p, [%0], %1;\n"
                 "@!p bra W%=; }" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
#else
    asm volatile("{ .reg .pred p;\n"
                 "W%=: mbarrier.test_wait.parity.shared.b64 p, [%0], %1;\n"
                 "@!p bra W%=; }" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
#endif
}

/* 16 bytes that are read once. */
__device__ __forceinline__ uint4 load_stream_16(const void *p)
{
    uint4 v;
    asm volatile("ld.global.L2::cache_hint.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4], %5;"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p), "l"(read_once_policy())
                 : "memory");
    return v;
}

/* A line of 128 bytes into L2; only a hint. Next to a kernel that streams weights, many small bulk
 * prefetches hold up what is asked for behind them; these do not. */
__device__ __forceinline__ void prefetch_line(const void *p)
{
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

/* Asks for bytes (a multiple of 16, from an aligned address on) to be in L2 soon; only a hint. */
__device__ __forceinline__ void prefetch_l2(const void *p, uint32_t bytes)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes) : "memory");
#endif
}

/* ---- clusters, of compute capability 9.0 on: all threads arrive, then wait for all others ---- */

__device__ __forceinline__ void cluster_arrive()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

/* To shared memory of another CTA of the cluster. */
__device__ __forceinline__ void store_to_cta(uint32_t address, uint32_t cta, float v)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("{ .reg .b32 remote;\n"
                 "mapa.shared::cluster.u32 remote, %0, %1;\n"
                 "st.shared::cluster.f32 [remote], %2; }" ::"r"(address),
                 "r"(cta), "f"(v)
                 : "memory");
#endif
}

__device__ __forceinline__ void cp_async_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N> __device__ __forceinline__ void cp_async_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

__device__ __forceinline__ void ldmatrix_x4(uint32_t r[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

__device__ __forceinline__ void ldmatrix_x2(uint32_t r[2], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address));
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t r[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

/* d += a b, bf16 inputs, float32 sums */
__device__ __forceinline__ void mma_16816(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void mma_1688(float d[4], const uint32_t a[2], uint32_t b)
{
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b));
}

__device__ __forceinline__ uint32_t pack_bf16(float low, float high)
{
    __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t *>(&v);
}

__device__ __forceinline__ float2 unpack_bf16(uint32_t v)
{
    return __bfloat1622float2(*reinterpret_cast<__nv_bfloat162 *>(&v));
}

/* 2^v; 0 where that is denormal. */
__device__ __forceinline__ float exp2_approx(float v)
{
    float to;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(to) : "f"(v));
    return to;
}

__device__ __forceinline__ float warp_sum(float v)
{
#pragma unroll
    for (int i = 16; i; i >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, i);
    return v;
}

__device__ __forceinline__ float warp_max(float v)
{
#pragma unroll
    for (int i = 16; i; i >>= 1)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, i));
    return v;
}

/* The devices on which a kernel was told its shared memory; any thread may ask. */
struct Allowed {
    static constexpr int DEVICES = 64; // one beyond them is told at every launch
    std::atomic<bool> on[DEVICES];
};

/* Lets a kernel have that much dynamic shared memory, once a device; `allowed` is the kernel's own.
 */
template <typename Kernel>
inline cudaError_t allow_shared(Kernel *kernel, int bytes, Allowed &allowed)
{
    int device = 0;
    cudaError_t e = cudaGetDevice(&device);
    bool noted = device < Allowed::DEVICES;
    if (e != cudaSuccess || (noted && allowed.on[device].load(std::memory_order_acquire)))
        return e;
    e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (e == cudaSuccess)
        e = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                 cudaSharedmemCarveoutMaxShared);
    if (noted && e == cudaSuccess)
        allowed.on[device].store(true, std::memory_order_release);
    return e;
}

/* Of the current device; 0 where it cannot be told. */
inline int device_attribute(cudaDeviceAttr which)
{
    int device = 0, value = 0;
    bool known = cudaGetDevice(&device) == cudaSuccess &&
                 cudaDeviceGetAttribute(&value, which, device) == cudaSuccess;
    return known ? value : 0;
}

/* Whether the current device has clusters. */
inline bool cluster_supported()
{
    return device_attribute(cudaDevAttrClusterLaunch) != 0;
}

/* Launches behind what was queued before. What it returns is its own error, not the thread's last
 * one (cudaGetLastError), which may be another card's: memory that there was not, say. */
template <typename... Params, typename... Args>
inline cudaError_t launch_plain(void (*kernel)(Params...), dim3 grid, dim3 block,
                                cudaStream_t stream, Args... args)
{
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, Params(args)...);
}

/* The same with programmatic dependency on what was queued before where there is such (from 9.0 on),
 * in clusters of that shape: of one CTA where there are none. */
template <typename... Params, typename... Args>
inline cudaError_t launch_pdl_cluster(void (*kernel)(Params...), dim3 grid, dim3 block,
                                      size_t shared_bytes, cudaStream_t stream, dim3 cluster,
                                      Args... args)
{
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    cudaLaunchAttribute attributes[2];
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = cluster.x;
    attributes[1].val.clusterDim.y = cluster.y;
    attributes[1].val.clusterDim.z = cluster.z;
    config.attrs = attributes;
    if (device_attribute(cudaDevAttrComputeCapabilityMajor) >= 9)
        config.numAttrs = cluster.x * cluster.y * cluster.z > 1 ? 2 : 1;
    return cudaLaunchKernelEx(&config, kernel, Params(args)...);
}

template <typename... Params, typename... Args>
inline cudaError_t launch_pdl(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                              cudaStream_t stream, Args... args)
{
    return launch_pdl_cluster(kernel, grid, block, shared_bytes, stream, dim3(1, 1, 1), args...);
}

} // namespace lora

#endif
