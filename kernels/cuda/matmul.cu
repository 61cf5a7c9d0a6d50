/*
 * matmul: c[m, n] (+)= scale * a[m, k] b[k, n] in float32, every sum one chain of fused
 * multiply-adds over k in rising order, so that the bits do not depend on tiles. A CTA of 256
 * threads makes 64 x 64 outputs, a thread 4 x 4, k in slices of 16 through shared memory. For
 * pre-merging and checks; nothing that a token waits for.
 */
#include <cuda_runtime.h>

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/merge_launch.h"

namespace
{

constexpr uint32_t TILE = 64, SLICE = 16, THREADS = 256, EACH = 4;

__global__ void __launch_bounds__(THREADS)
    matmul_kernel(const float *a, const float *b, float *c, uint32_t m, uint32_t n, uint32_t k,
                  float scale, int add)
{
    __shared__ float left[SLICE][TILE + 1], right[SLICE][TILE];
    uint32_t i0 = blockIdx.y * TILE, j0 = blockIdx.x * TILE;
    uint32_t ti = threadIdx.x / 16, tj = threadIdx.x % 16;
    float sum[EACH][EACH] = {};
    for (uint32_t k0 = 0; k0 < k; k0 += SLICE) {
        __syncthreads();
        for (uint32_t t = threadIdx.x; t < TILE * SLICE; t += THREADS) {
            uint32_t i = t / SLICE, x = t % SLICE, y = t / TILE, j = t % TILE;
            left[x][i] = i0 + i < m && k0 + x < k ? a[(size_t)(i0 + i) * k + k0 + x] : 0;
            right[y][j] = j0 + j < n && k0 + y < k ? b[(size_t)(k0 + y) * n + j0 + j] : 0;
        }
        __syncthreads();
        for (uint32_t x = 0; x < min(SLICE, k - k0); x++) {
#pragma unroll
            for (uint32_t i = 0; i < EACH; i++) {
#pragma unroll
                for (uint32_t j = 0; j < EACH; j++)
                    sum[i][j] = __fmaf_rn(left[x][ti * EACH + i], right[x][tj + 16 * j], sum[i][j]);
            }
        }
    }
    for (uint32_t i = 0; i < EACH; i++) {
        for (uint32_t j = 0; j < EACH; j++) {
            uint32_t row = i0 + ti * EACH + i, col = j0 + tj + 16 * j;
            if (row >= m || col >= n)
                continue;
            float *to = &c[(size_t)row * n + col];
            *to = __fmaf_rn(scale, sum[i][j], add ? *to : 0);
        }
    }
}

} // namespace

extern "C" int cu_matmul(const float *a, const float *b, float *c, uint32_t m, uint32_t n,
                         uint32_t k, float scale, int add, cudaStream_t stream)
{
    dim3 grid((n + TILE - 1) / TILE, (m + TILE - 1) / TILE);
    if (!m || !n)
        return 0;
    return lora::launch_plain(matmul_kernel, grid, dim3(THREADS), stream, a, b, c, m, n, k, scale,
                              add);
}
