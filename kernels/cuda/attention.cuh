/*
 * attention: what the decode and the prefill kernel share: addresses of keys and values in the
 * pages and the shared-memory tiles that they are copied to.
 */
#ifndef KERNELS_CUDA_ATTENTION_CUH
#define KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/launch.h"

namespace lora
{

/* Offset in the pool of the key row of `position` of a sequence; the value row lies
 * n_kv_heads * page_tokens rows further. */
__device__ __forceinline__ uint64_t key_offset(const cu_pages &p, const cu_heads &h,
                                               const cu_sequence &s, uint32_t kv_head,
                                               uint32_t position)
{
    uint32_t page = p.table[s.page0 + (position >> (__ffs(p.page_tokens) - 1))];
    uint32_t row =
        (h.layer * 2 * h.n_kv_heads + kv_head) * p.page_tokens + (position & (p.page_tokens - 1));
    uint32_t chunk = (uint32_t)(page * p.chunk_inverse >> 40);
    return (uint64_t)chunk * (2u << 20) +
           (page - chunk * p.pages_per_chunk) * (uint32_t)p.page_bytes + row * h.head_dim * 2;
}

__device__ __forceinline__ uint64_t value_distance(const cu_pages &p, const cu_heads &h)
{
    return (uint64_t)h.n_kv_heads * p.page_tokens * h.head_dim * 2;
}

/* Piece c (16 bytes) of row r in a tile whose rows are HD values. */
template <int HD> __device__ __forceinline__ uint32_t tile_address(uint32_t base, int r, int c)
{
    return base + r * (HD * 2) + ((c ^ (r & 7)) << 4);
}

/* cap tanh(v / cap) */
__device__ __forceinline__ float soft_cap(float v, float cap)
{
    return cap > 0 ? cap - __fdividef(2 * cap, 1.f + __expf(__fdividef(2 * v, cap))) : v;
}

} // namespace lora

#endif
