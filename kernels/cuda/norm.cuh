/* norm: which weights a row is normed with. */
#ifndef KERNELS_CUDA_NORM_CUH
#define KERNELS_CUDA_NORM_CUH

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/launch.h"

namespace lora
{

/* The base's, or those of the adapter that owns the row. */
__device__ inline const float *norm_weights(const cu_norm &n, const cu_rows &rows, uint32_t t)
{
    if (!n.replaced || !rows.segments)
        return n.w;
    int owner = rows.owner[t];
    const float *own =
        owner < 0 ? nullptr : n.replaced[(size_t)rows.segments[owner].slot * n.stride];
    return own ? own : n.w;
}

/* One head of one token, in shared memory, by one warp. */
__device__ inline void normalise_head(float *y, const float *w, const cu_norm &n, uint32_t head_dim,
                                      int lane)
{
    float sum = 0;
#pragma unroll 1
    for (uint32_t i = lane; i < head_dim; i += 32)
        sum += y[i] * y[i];
    float r = rsqrtf(warp_sum(sum) / head_dim + n.eps);
#pragma unroll 1
    for (uint32_t i = lane; i < head_dim; i += 32)
        y[i] *= r * (w[i] + n.plus);
    __syncwarp();
}

} // namespace lora

#endif
