/*
 * shrink: where the sums of x A^T go.
 */
#ifndef KERNELS_CUDA_SHRINK_CUH
#define KERNELS_CUDA_SHRINK_CUH

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/launch.h"

namespace lora
{

/* Row c of a site's stacked A as its column of v16, and the zeros up to the next module's. */
__device__ __forceinline__ void store_v16(const cu_site &site, uint32_t c, float sum, float scale,
                                          bf16 *v)
{
    for (uint32_t k = 0; k < site.n_parts; k++) {
        const cu_part &p = site.parts[k];
        uint32_t r = c - p.col0;
        if (r >= p.rank)
            continue;
        v[p.col16 + r] = __float2bfloat16(sum * p.scale * scale);
        for (uint32_t pad = p.rank; r + 1 == p.rank && pad % 16; pad++)
            v[p.col16 + pad] = __float2bfloat16(0.f);
    }
}

} // namespace lora

#endif
