/*
 * shrink_grouped: v[place, .] = scale * A_e x of every segment, for rows grouped by expert e, or
 * all rows as one group (--deterministic).
 *
 * A CTA has up to 64 places of a tile and every fourth group of 16 rows of A; its eight warps take
 * equal stretches of k, straight from global memory into fragments (A on the MMA's M side), summed
 * in shared memory in the order of the warps: what a place gets depends on K alone. Bytes: A_e of a
 * tile's adapters, x once a group. The product that takes v runs beside it.
 */
#include "kernels/cuda/grouped.cuh"

using namespace lora;

namespace
{

constexpr int WARPS = 8, THREADS = WARPS * 32, GRID_GROUPS = 4, MAX_TOKENS = 64;

template <int NT> struct Worker {
    const cu_grouped &g;
    GroupedShared<THREADS> &sm;
    float *red; // [warp][token][16]
    cu_tile tile;
    int tid, warp, lane;
    float acc[NT][4];

    __device__ Worker(const cu_grouped &g_, GroupedShared<THREADS> &sm_, float *red_)
        : g(g_), sm(sm_), red(red_)
    {
        tid = threadIdx.x;
        warp = tid / 32;
        lane = tid % 32;
    }

    __device__ uint32_t pair_at(const uint8_t *row, uint32_t k) const
    {
        return row && k < g.k ? __ldg((const uint32_t *)(row + (size_t)k * 2)) : 0;
    }

    __device__ void multiply(const uint8_t *a, uint32_t n_a)
    {
        const uint8_t *low = lane / 4 < (int)n_a ? a + (size_t)(lane / 4) * g.k * 2 : nullptr;
        const uint8_t *high =
            lane / 4 + 8 < (int)n_a ? a + (size_t)(lane / 4 + 8) * g.k * 2 : nullptr;
        const uint8_t *x[NT];
#pragma unroll
        for (int n = 0; n < NT; n++) {
            uint32_t row = sm.x_row[n * 8 + lane / 4];
            x[n] = row == NO_ROW ? nullptr : (const uint8_t *)g.x + (size_t)row * g.k * 2;
            acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0;
        }
        uint32_t steps = (g.k + 15) / 16, per = (steps + WARPS - 1) / WARPS;
        uint32_t end = min((warp + 1) * per, steps);
#pragma unroll(NT <= 2 ? 8 : 4)
        for (uint32_t s = warp * per; s < end; s++) {
            uint32_t k = s * 16 + lane % 4 * 2;
            uint32_t w[4] = {pair_at(low, k), pair_at(high, k), pair_at(low, k + 8),
                             pair_at(high, k + 8)};
#pragma unroll
            for (int n = 0; n < NT; n++) {
                uint32_t b[2] = {pair_at(x[n], k), pair_at(x[n], k + 8)};
                mma_16816(acc[n], w, b);
            }
        }
    }

    __device__ float scale_of(const cu_site &site, float scale, uint32_t row) const
    {
        for (uint32_t i = 0; i < site.n_parts; i++) {
            if (row >= site.parts[i].col0 && row < site.parts[i].col0 + site.parts[i].rank)
                return site.parts[i].scale * scale;
        }
        return 0;
    }

    __device__ void store(const GroupedItem &it, const cu_site &site, float scale, uint32_t group)
    {
#pragma unroll
        for (int n = 0; n < NT; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++)
                red[(warp * NT * 8 + n * 8 + lane % 4 * 2 + (e & 1)) * 16 + lane / 4 +
                    (e >> 1) * 8] = acc[n][e];
        }
        __syncthreads();
        for (uint32_t i = tid; i < NT * 8 * 16; i += THREADS) {
            uint32_t token = i / 16, row = group * 16 + i % 16;
            if (token < it.first || token >= it.last || row >= site.n_rows)
                continue;
            float sum = 0;
#pragma unroll
            for (int w = 0; w < WARPS; w++)
                sum += red[w * NT * 128 + i];
            ((bf16 *)g.v)[(size_t)(tile.first + token) * g.v_width + g.columns[it.segment] + row] =
                __float2bfloat16(sum * scale_of(site, scale, row));
        }
        __syncthreads();
    }

    __device__ void run()
    {
        tile = tile_of(g, blockIdx.x);
        uint32_t begin = blockIdx.z * MAX_TOKENS; // of a tile of 128
        tile.first += begin;
        tile.n = tile.n > begin ? min(tile.n - begin, (uint32_t)MAX_TOKENS) : 0;
        if (tile.n == 0)
            return;
        list_places(g, tile, sm);
        __syncthreads();
        uint32_t n_segments = *g.n_segments;
        for (uint32_t i0 = 0; i0 < n_segments; i0 += THREADS) {
            uint32_t n = list_segments(g, tile.n, i0, sm);
            for (uint32_t i = 0; i < n; i++) {
                GroupedItem it = sm.items[i];
                cu_segment s = g.segments[it.segment];
                const cu_site &site = g.sites[(size_t)s.slot * g.site_stride];
                for (uint32_t group = blockIdx.y; group < site.n_groups; group += GRID_GROUPS) {
                    multiply((const uint8_t *)site.a[tile.group * site.n_groups + group],
                             min(16u, site.n_rows - group * 16));
                    store(it, site, s.scale, group);
                }
            }
        }
    }
};

template <int NT> __global__ void __launch_bounds__(THREADS, 2) shrink_kernel(const cu_grouped g)
{
    __shared__ GroupedShared<THREADS> sm;
    __shared__ float red[WARPS * NT * 8 * 16];
    pdl_wait();
    pdl_launch_dependents(); // not before: the product that follows reads what this waited for
    Worker<NT> worker(g, sm, red);
    worker.run();
}

template <int NT> int launch(const cu_grouped *g, cudaStream_t stream)
{
    return launch_pdl(shrink_kernel<NT>,
                      dim3(g->tile_bound, GRID_GROUPS, g->tile > MAX_TOKENS ? 2 : 1), dim3(THREADS),
                      0, stream, *g);
}

} // namespace

extern "C" int cu_grouped_shrink(const struct cu_grouped *g, cudaStream_t stream)
{
    if (g->tile_bound == 0 || !g->segments)
        return 0;
    switch (g->tile) {
    case 8:
        return launch<1>(g, stream);
    case 16:
        return launch<2>(g, stream);
    case 32:
        return launch<4>(g, stream);
    case 64:
    case CU_MAX_TILE:
        return launch<8>(g, stream);
    default:
        return cudaErrorInvalidValue;
    }
}
