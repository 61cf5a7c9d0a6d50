/*
 * plan: how this step's small-M GEMMs are spread over the multiprocessors.
 *
 * Per (layer, site): chunks of A are dealt out one by one (chunk i to CTA i mod G); the base
 * weights' k-blocks, on one line, are cut so that every CTA has the same cost, chunks counted. One
 * CTA an item. Costs are in quarters of a base block (16 KB): 16 weight rows x 128 inputs.
 */
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/launch.h"

namespace
{

constexpr int THREADS = 256;
constexpr uint32_t FIRST_COST = 20; // of a CTA's first chunk, in quarters of a block

/* Chunks before each segment's, into the plan; the sum is returned to all threads. */
__device__ uint32_t count_chunks(const cu_plan_site &p, const cu_segment *segments, uint32_t n)
{
    __shared__ uint32_t counts[CU_MAX_SEGMENTS], sum;
    uint32_t planes = ((p.k + CU_TILE_K - 1) / CU_TILE_K + p.chunk_blocks - 1) / p.chunk_blocks;
    n = p.sites ? min(n, (uint32_t)CU_MAX_SEGMENTS) : 0;
    for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
        cu_segment g = segments[i];
        counts[i] =
            p.sites[(size_t)g.slot * p.site_stride].n_groups * planes * ((g.n_rows + 15) / 16);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t total = 0;
        for (uint32_t i = 0; i < n; i++) {
            p.plan->prefix[i] = total;
            total += counts[i];
        }
        p.plan->prefix[n] = total;
        p.plan->n_chunks = sum = total;
    }
    __syncthreads();
    return sum;
}

/* Cuts the line of blocks; `balanced` takes the chunks into account. */
__device__ void cut(const cu_plan_site &p, uint32_t total, uint32_t n_chunks, bool balanced,
                    uint32_t *start)
{
    // A stage of A has less in it than a block, so its fixed costs weigh more; a CTA's first chunk
    // waits for code and descriptions that the others do not.
    uint32_t chunk_cost = balanced ? p.chunk_blocks + 3 : 0;
    uint32_t first_cost = balanced ? FIRST_COST : 0;
    uint32_t whole = n_chunks / p.n_ctas, extra = n_chunks % p.n_ctas;
    uint32_t have = min(n_chunks, p.n_ctas); // CTAs with chunks: the first ones
    for (uint32_t c = threadIdx.x; c <= p.n_ctas; c += THREADS) {
        uint64_t sum = 4ull * total + (uint64_t)chunk_cost * n_chunks + (uint64_t)first_cost * have;
        uint64_t cost = c * sum / p.n_ctas;
        uint64_t spent = (uint64_t)chunk_cost * ((uint64_t)c * whole + min(c, extra)) +
                         (uint64_t)first_cost * min(c, have);
        uint64_t left = cost > spent ? (cost - spent) / 4 : 0;
        start[c] = c == p.n_ctas ? total : (uint32_t)min(left, (uint64_t)total);
        p.plan->start[c] = start[c];
    }
    __syncthreads();
}

/* Counts the CTAs that work on each tile; whether all counts fit max_planes. */
__device__ bool count_planes(const cu_plan_site &p, uint32_t n_tiles, uint32_t kblocks,
                             const uint32_t *start)
{
    bool fits = true;
    for (uint32_t tile = threadIdx.x; tile < n_tiles; tile += THREADS) {
        uint32_t begin = tile * kblocks, end = begin + kblocks, low = 0, high = p.n_ctas;
        while (high - low > 1) { // the last CTA that starts at or before begin
            uint32_t mid = (low + high) / 2;
            if (start[mid] <= begin)
                low = mid;
            else
                high = mid;
        }
        uint32_t planes = 0;
        for (uint32_t c = low; c < p.n_ctas && start[c] < end; c++)
            planes += start[c + 1] > start[c] && start[c + 1] > begin;
        p.planes[tile] = (uint8_t)planes;
        fits &= planes <= p.max_planes;
    }
    return __syncthreads_and(fits);
}

__global__ void plan_kernel(const cu_plan_site *items, const cu_segment *segments,
                            const uint32_t *n_segments)
{
    __shared__ uint32_t start[CU_MAX_CTAS + 1];
    const cu_plan_site p = items[blockIdx.x];
    uint32_t n_chunks = count_chunks(p, segments, n_segments ? *n_segments : 0);
    uint32_t kblocks = (p.k + p.block_k - 1) / p.block_k;
    uint32_t n_tiles = (p.n + p.block_rows - 1) / p.block_rows, total = n_tiles * kblocks;
    cut(p, total, n_chunks, true, start);
    if (count_planes(p, n_tiles, kblocks, start))
        return;
    // So much of A that a tile's blocks are spread too thin: an even cut has few planes.
    cut(p, total, n_chunks, false, start);
    count_planes(p, n_tiles, kblocks, start);
}

} // namespace

extern "C" int cu_plan_step(const struct cu_plan_site *items, uint32_t n_items,
                            const struct cu_segment *segments, const uint32_t *n_segments,
                            cudaStream_t stream)
{
    return lora::launch_plain(plan_kernel, dim3(n_items), dim3(THREADS), stream, items, segments,
                              n_segments);
}
