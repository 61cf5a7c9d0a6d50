/*
 * shrink_grouped: v[place, .] = scale * A_e x of every segment, for rows grouped by expert e, or
 * all rows as one group (--deterministic).
 *
 * A CTA has up to 64 places of a tile, every fourth group of 16 rows of A and a share of the
 * segments that meet the tile. k is cut into sixteen slices, each one chain straight from global
 * memory into fragments (A on the MMA's M side), added in the order of the slices: what a place
 * gets depends on K alone, whatever the tile. Up to 16 places sixteen warps take a slice each,
 * beyond that eight take two. Bytes: A_e of a tile's adapters, x once a group. The product that
 * takes v runs beside it.
 *
 * H100 (2026-11-28), --deterministic, Llama-3.1-8B, 8 adapters in 8 rows: 35.4 ms a step with the
 * segments one after the other in eight slices (10.7 without adapters).
 */
#include "kernels/cuda/grouped.cuh"
#include "kernels/cuda/shrink.cuh"

using namespace lora;

namespace
{

constexpr int SLICES = 16, GRID_GROUPS = 4, MAX_TOKENS = 64, MAX_SHARES = 16;

template <int NT> struct Shape {
    static constexpr int WARPS = NT <= 2 ? 16 : 8, THREADS = WARPS * 32;
    static constexpr int VALUES = NT * 8 * 16; // of v in a group
    static constexpr int PER = (VALUES + THREADS - 1) / THREADS;
};

template <int NT> struct Worker {
    using S = Shape<NT>;
    const cu_grouped &g;
    GroupedShared<S::THREADS> &sm;
    float *red; // [warp][token][16]
    cu_tile tile;
    int tid, warp, lane;

    __device__ Worker(const cu_grouped &g_, GroupedShared<S::THREADS> &sm_, float *red_)
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

    /* One slice of 16 rows of A against the tile's places. */
    __device__ void multiply(const uint8_t *a, uint32_t n_a, uint32_t slice, float acc[NT][4]) const
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
        uint32_t steps = (g.k + 15) / 16, per = (steps + SLICES - 1) / SLICES;
        uint32_t end = min((slice + 1) * per, steps);
#pragma unroll(NT <= 2 ? 8 : 4)
        for (uint32_t s = slice * per; s < end; s++) {
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

    /* Adds what the warps' slices give to this thread's values. */
    __device__ void add_slices(const float acc[NT][4], float sums[S::PER])
    {
#pragma unroll
        for (int n = 0; n < NT; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++)
                red[(warp * NT * 8 + n * 8 + lane % 4 * 2 + (e & 1)) * 16 + lane / 4 +
                    (e >> 1) * 8] = acc[n][e];
        }
        __syncthreads();
#pragma unroll
        for (int p = 0; p < S::PER; p++) {
            int i = p * S::THREADS + tid;
#pragma unroll
            for (int w = 0; w < S::WARPS; w++)
                sums[p] += i < S::VALUES ? red[w * S::VALUES + i] : 0.f;
        }
        __syncthreads();
    }

    __device__ void run_group(const GroupedItem &it, const cu_site &site, float scale,
                              uint32_t group)
    {
        float sums[S::PER] = {};
        const uint8_t *a = (const uint8_t *)site.a[tile.group * site.n_groups + group];
#pragma unroll 1
        for (int slice = warp; slice < SLICES; slice += S::WARPS) {
            float acc[NT][4];
            multiply(a, min(16u, site.n_rows - group * 16), slice, acc);
            add_slices(acc, sums);
        }
#pragma unroll
        for (int p = 0; p < S::PER; p++) {
            uint32_t i = p * S::THREADS + tid, token = i / 16, row = group * 16 + i % 16;
            if (i >= S::VALUES || token < it.first || token >= it.last || row >= site.n_rows)
                continue;
            bf16 *v =
                (bf16 *)g.v + (size_t)(tile.first + token) * g.v_width + g.columns[it.segment];
            if (g.v_padded)
                store_v16(site, row, sums[p], scale, v);
            else
                v[row] = __float2bfloat16(sums[p] * scale_of(site, scale, row));
        }
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
        uint32_t n_segments = *g.n_segments, shares = gridDim.y / GRID_GROUPS;
        uint32_t share = blockIdx.y / GRID_GROUPS, group0 = blockIdx.y % GRID_GROUPS;
        for (uint32_t i0 = 0; i0 < n_segments; i0 += S::THREADS) {
            uint32_t n = list_segments(g, tile.n, i0, sm);
            for (uint32_t i = share; i < n; i += shares) {
                GroupedItem it = sm.items[i];
                cu_segment s = g.segments[it.segment];
                const cu_site &site = g.sites[(size_t)s.slot * g.site_stride];
                for (uint32_t group = group0; group < site.n_groups; group += GRID_GROUPS)
                    run_group(it, site, s.scale, group);
            }
        }
    }
};

template <int NT>
__global__ void __launch_bounds__(Shape<NT>::THREADS, NT <= 2 ? 1 : 2)
    shrink_kernel(const cu_grouped g)
{
    __shared__ GroupedShared<Shape<NT>::THREADS> sm;
    __shared__ float red[Shape<NT>::WARPS * Shape<NT>::VALUES];
    pdl_wait();
    pdl_launch_dependents(); // not before: the product that follows reads what this waited for
    Worker<NT> worker(g, sm, red);
    worker.run();
}

/* CTAs that share the segments of a tile: many where there are few tiles. */
uint32_t shares_of(const cu_grouped *g)
{
    uint32_t n = 128 / g->tile_bound;
    uint32_t most = g->tiles ? 4 : g->tile < MAX_SHARES ? g->tile : MAX_SHARES; // of experts: few
    return n < 1 ? 1 : n > most ? most : n;
}

template <int NT> int launch(const cu_grouped *g, cudaStream_t stream)
{
    dim3 grid(g->tile_bound, GRID_GROUPS * shares_of(g), g->tile > MAX_TOKENS ? 2 : 1);
    return launch_pdl(shrink_kernel<NT>, grid, dim3(Shape<NT>::THREADS), 0, stream, *g);
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
