/*
 * sums64: out = L R in float64 for what float32 sums cannot decide, every sum one chain of
 * fused multiply-adds over k in rising order: the bits of cpu/merge_delta.c's cpu_sums.
 *
 * L[n_rows, rank], R[rank, n_cols]. A CTA of 256 threads makes 8 rows of 512 columns, a thread 2
 * neighbouring columns of all 8 rows: an element of R is loaded once for 8 products, L comes from
 * shared memory, 32 of k at a time. 8 bytes a value go back to the host, which is the bound.
 */
#include <cuda_runtime.h>

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/merge_launch.h"

namespace
{

constexpr uint32_t ROWS = 8, THREADS = 256, SLICE = 32, COLUMNS = 2 * THREADS;

__global__ void __launch_bounds__(THREADS)
    sums64_kernel(const double *left, const double *right, double *out, uint32_t n_rows,
                  uint32_t n_cols, uint32_t rank)
{
    __shared__ double l[SLICE][ROWS];
    uint32_t row0 = blockIdx.y * ROWS, j = blockIdx.x * COLUMNS + threadIdx.x;
    bool first = j < n_cols, second = j + THREADS < n_cols;
    double sum[ROWS][2] = {};
    for (uint32_t k0 = 0; k0 < rank; k0 += SLICE) {
        uint32_t n = min(SLICE, rank - k0);
        __syncthreads();
        uint32_t i = threadIdx.x / SLICE, k = threadIdx.x % SLICE; // ROWS * SLICE threads
        l[k][i] = row0 + i < n_rows && k < n ? left[(size_t)(row0 + i) * rank + k0 + k] : 0;
        __syncthreads();
        for (uint32_t x = 0; x < n; x++) {
            const double *r = right + (size_t)(k0 + x) * n_cols + j;
            double r0 = first ? r[0] : 0, r1 = second ? r[THREADS] : 0;
#pragma unroll
            for (uint32_t y = 0; y < ROWS; y++) {
                sum[y][0] = __fma_rn(l[x][y], r0, sum[y][0]);
                sum[y][1] = __fma_rn(l[x][y], r1, sum[y][1]);
            }
        }
    }
#pragma unroll
    for (uint32_t y = 0; y < ROWS; y++) {
        double *to = out + (size_t)(row0 + y) * n_cols + j;
        if (row0 + y < n_rows && first)
            to[0] = sum[y][0];
        if (row0 + y < n_rows && second)
            to[THREADS] = sum[y][1];
    }
}

static_assert(ROWS * SLICE == THREADS, "each thread loads one value of L");

} // namespace

extern "C" int cu_sums64(const double *left, const double *right, double *out, uint32_t n_rows,
                         uint32_t n_cols, uint32_t rank, cudaStream_t stream)
{
    dim3 grid((n_cols + COLUMNS - 1) / COLUMNS, (n_rows + ROWS - 1) / ROWS);
    if (!n_rows || !n_cols)
        return 0;
    return lora::launch_plain(sums64_kernel, grid, dim3(THREADS), stream, left, right, out, n_rows,
                              n_cols, rank);
}
