/*
 * row_norms: out[i] = sum over columns of (W + s B A)[row0 + i]^2, float64 sums. A CTA a row; of an
 * embedding, whose rows are those of E^T, a CTA a dimension.
 */
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/launch.h"

using namespace lora;

namespace
{

constexpr int THREADS = 256;

__global__ void row_norms_kernel(const bf16 *w, uint32_t row0, uint32_t n_rows, uint32_t n_cols,
                                 int transposed, const float *a, const float *b, uint32_t rank,
                                 float scale, double *out)
{
    __shared__ double part[THREADS];
    uint32_t i = blockIdx.x, n = transposed ? n_rows : n_cols;
    double sum = 0;
    for (uint32_t j = threadIdx.x; j < n; j += THREADS) {
        float delta = 0;
        for (uint32_t k = 0; k < rank; k++)
            delta += b[(size_t)i * rank + k] * a[(size_t)k * n + j];
        size_t at = transposed ? (size_t)j * n_cols + i : (size_t)(row0 + i) * n_cols + j;
        double v = (double)__bfloat162float(w[at]) + (double)(scale * delta);
        sum += v * v;
    }
    part[threadIdx.x] = sum;
    __syncthreads();
    for (int k = THREADS / 2; k; k >>= 1) {
        if (threadIdx.x < k)
            part[threadIdx.x] += part[threadIdx.x + k];
        __syncthreads();
    }
    if (threadIdx.x == 0)
        out[i] = part[0];
}

} // namespace

extern "C" int cu_row_norms(const void *w, uint32_t row0, uint32_t n, uint32_t n_rows,
                            uint32_t n_cols, int transposed, const float *a, const float *b,
                            uint32_t rank, float scale, double *out, cudaStream_t stream)
{
    return launch_plain(row_norms_kernel, dim3(n), dim3(THREADS), stream, (const bf16 *)w, row0,
                        n_rows, n_cols, transposed, a, b, rank, scale, out);
}
