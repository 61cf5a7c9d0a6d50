/*
 * grouped: what the kernels over grouped rows share: the places of a tile and the segments that
 * touch it.
 */
#ifndef KERNELS_CUDA_GROUPED_CUH
#define KERNELS_CUDA_GROUPED_CUH

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/launch_moe.h"

namespace lora
{

constexpr uint32_t NO_ROW = 0xffffffffu;

/* A segment that touches the tile: tokens [first, last) of it. */
struct GroupedItem {
    uint32_t segment;
    uint16_t first, last;
};

template <int THREADS> struct GroupedShared {
    uint32_t x_row[CU_MAX_TILE], row[CU_MAX_TILE]; // NO_ROW beyond the tile's places
    uint32_t n_warp[THREADS / 32];
    GroupedItem items[THREADS];
};

__device__ __forceinline__ cu_tile tile_of(const cu_grouped &g, uint32_t idx)
{
    if (g.tiles)
        return idx < __ldcg(g.n_tiles)
                   ? cu_tile{__ldcg(&g.tiles[idx].group), __ldcg(&g.tiles[idx].first),
                             __ldcg(&g.tiles[idx].n)}
                   : cu_tile{0, 0, 0};
    uint32_t n = __ldcg(g.n_rows), first = idx * g.tile;
    return cu_tile{0, first, first < n ? min(n - first, g.tile) : 0};
}

template <int THREADS>
__device__ void list_places(const cu_grouped &g, const cu_tile &tile, GroupedShared<THREADS> &sm)
{
    for (uint32_t i = threadIdx.x; i < CU_MAX_TILE; i += THREADS) {
        uint32_t place = tile.first + i;
        bool in = i < tile.n;
        sm.x_row[i] = !in ? NO_ROW : g.x_row ? __ldcg(g.x_row + place) : place;
        sm.row[i] = !in ? NO_ROW : g.row ? __ldcg(g.row + place) : place;
    }
}

/* Tokens of the tile whose row is below `row`: rows ascend. */
template <int THREADS>
__device__ uint32_t tokens_below(const GroupedShared<THREADS> &sm, uint32_t n, uint32_t row)
{
    uint32_t low = 0, high = n;
    while (low < high) {
        uint32_t mid = (low + high) / 2;
        if (sm.row[mid] < row)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* Items of segments [i0, i0 + THREADS), in order; returns how many. For all threads at once. */
template <int THREADS>
__device__ uint32_t list_segments(const cu_grouped &g, uint32_t n_tokens, uint32_t i0,
                                  GroupedShared<THREADS> &sm)
{
    uint32_t i = i0 + threadIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    GroupedItem item = {i, 0, 0};
    if (i < *g.n_segments) {
        cu_segment s = g.segments[i];
        if (g.sites[(size_t)s.slot * g.site_stride].n_rows) {
            item.first = (uint16_t)tokens_below(sm, n_tokens, s.row0);
            item.last = (uint16_t)tokens_below(sm, n_tokens, s.row0 + s.n_rows);
        }
    }
    uint32_t mask = __ballot_sync(0xffffffffu, item.first < item.last);
    __syncthreads(); // the items of the round before are done with
    if (lane == 0)
        sm.n_warp[warp] = __popc(mask);
    __syncthreads();
    uint32_t at = __popc(mask & ((1u << lane) - 1)), n = 0;
#pragma unroll
    for (uint32_t w = 0; w < THREADS / 32; w++) {
        at += w < warp ? sm.n_warp[w] : 0;
        n += sm.n_warp[w];
    }
    if (item.first < item.last)
        sm.items[at] = item;
    __syncthreads();
    return n;
}

} // namespace lora

#endif
