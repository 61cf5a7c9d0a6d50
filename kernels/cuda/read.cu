/*
 * read: nothing but reading, for the read bandwidth that floors are made of.
 */
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/launch.h"

namespace
{

__global__ void __launch_bounds__(512) read_kernel(const uint4 *p, uint64_t n, uint4 *never)
{
    uint4 sum = make_uint4(0, 0, 0, 0);
    uint64_t i = blockIdx.x * (uint64_t)blockDim.x + threadIdx.x,
             step = (uint64_t)gridDim.x * blockDim.x;
    for (; i + 3 * step < n; i += 4 * step) {
        uint4 v[4];
#pragma unroll
        for (int k = 0; k < 4; k++)
            v[k] = __ldcs(p + i + k * step);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            sum.x ^= v[k].x;
            sum.y ^= v[k].y;
            sum.z ^= v[k].z;
            sum.w ^= v[k].w;
        }
    }
    if (sum.x == 0x12345 && sum.y == 0x54321) // so that the loads are not dropped
        *never = sum;
}

} // namespace

extern "C" int cu_read(const void *p, uint64_t n, cudaStream_t stream)
{
    return lora::launch_plain(read_kernel, dim3(1056), dim3(512), stream, (const uint4 *)p,
                              n / 16, (uint4 *)p);
}
