/*
 * shrink: v = x A^T of every segment of a step with many rows (T > CU_SMALL_ROWS).
 *
 * A work item is 64 tokens of one segment (the host lists them) x a split of k; it reads x once for
 * all the ranks of its adapter, up to 64 at a time. A stands on the MMA's M side, tokens on its N
 * side; what of the 8 warps the ranks do not need goes to a split of k, summed in shared memory.
 * The splits of an item are one cluster on Hopper, which sums through its shared memory; elsewhere
 * they write planes, which a second kernel sums. Either way in a fixed order.
 */
#include "kernels/cuda/shrink.cuh"

using namespace lora;

namespace
{

constexpr int THREADS = 256, TOKENS = 64, STEP_K = 128, STAGES = 3, REDUCE_ROWS = 8;
constexpr int X_STAGE = TOKENS * STEP_K * 2, A_STAGE = 64 * STEP_K * 2;
constexpr int BYTES = STAGES * (X_STAGE + A_STAGE);

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ void cluster_sync()
{
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

/* From the shared memory of a CTA of the cluster. */
__device__ __forceinline__ float cluster_load(uint32_t address, uint32_t cta)
{
    float v;
    asm volatile("{\n.reg .b32 remote;\n"
                 "mapa.shared::cluster.u32 remote, %1, %2;\n"
                 "ld.shared::cluster.f32 %0, [remote];\n}"
                 : "=f"(v)
                 : "r"(address), "r"(cta)
                 : "memory");
    return v;
}
#endif

__device__ __forceinline__ uint32_t address(uint32_t base, int r, int c)
{
    return base + r * (STEP_K * 2) + ((c ^ (r & 7)) << 4);
}

struct Item {
    uint32_t row0, n_rows, column, group0, n_groups;
    const cu_site *site;
    uint32_t k0, k1;
};

struct Tile {
    const cu_gemm &g;
    Item it;
    uint32_t ring;
    int tid, warp, lane;

    __device__ void load(uint32_t i) const
    {
        uint32_t xs = ring + i % STAGES * (X_STAGE + A_STAGE), as = xs + X_STAGE;
        uint32_t k0 = it.k0 + i * STEP_K;
        for (int p = tid; p < TOKENS * 16; p += THREADS) {
            int r = p / 16, c = p % 16;
            uint32_t k = k0 + c * 8;
            bool in = r < (int)it.n_rows && k < it.k1;
            const uint8_t *src =
                (const uint8_t *)g.x + (in ? ((size_t)(it.row0 + r) * g.k + k) * 2 : 0);
            cp_async_16(address(xs, r, c), src, in ? 16 : 0);
        }
        for (int p = tid; p < (int)it.n_groups * 256; p += THREADS) {
            int r = p / 16, c = p % 16;
            uint32_t k = k0 + c * 8, group = it.group0 + r / 16;
            bool in = group * 16 + r % 16 < it.site->n_rows && k < it.k1;
            const uint8_t *src =
                (const uint8_t *)it.site->a[group] + (in ? ((size_t)(r % 16) * g.k + k) * 2 : 0);
            cp_async_16(address(as, r, c), src, in ? 16 : 0);
        }
    }

    /* Warp: token half, group, split of the stage's eight steps of 16. */
    __device__ void compute(uint32_t i, uint32_t groups, float acc[4][4]) const
    {
        uint32_t xs = ring + i % STAGES * (X_STAGE + A_STAGE), as = xs + X_STAGE;
        uint32_t half = warp & 1, group = (warp >> 1) % groups, split = (warp >> 1) / groups;
        uint32_t n_split = 4 / groups, steps = 8 / n_split;
        if (group >= it.n_groups)
            return;
        for (uint32_t k = split * steps; k < (split + 1) * steps; k++) {
            uint32_t a[4], b[4];
            ldmatrix_x4(a, address(as, group * 16 + (lane & 15), k * 2 + (lane >> 4)));
#pragma unroll
            for (int n = 0; n < 2; n++) {
                ldmatrix_x4(b, address(xs, half * 32 + n * 16 + (lane >> 4) * 8 + (lane & 7),
                                       k * 2 + ((lane >> 3) & 1)));
                mma_16816(acc[2 * n], a, b);
                mma_16816(acc[2 * n + 1], a, b + 2);
            }
        }
    }

    /* red: [split][token][rank of 64]; then its sums over the warps' splits, [token][rank] at sums
     */
    __device__ void sum_warps(uint32_t groups, float acc[4][4], float *red, float *sums) const
    {
        uint32_t half = warp & 1, group = (warp >> 1) % groups, split = (warp >> 1) / groups;
#pragma unroll
        for (int n = 0; n < 4; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                uint32_t t = half * 32 + n * 8 + lane % 4 * 2 + (e & 1);
                uint32_t r = group * 16 + lane / 4 + (e >> 1) * 8;
                red[(split * TOKENS + t) * 65 + r] = acc[n][e];
            }
        }
        __syncthreads();
        uint32_t n = ranks(), n_split = 4 / groups;
        for (uint32_t p = tid; p < it.n_rows * n; p += THREADS) {
            uint32_t t = p / n, r = p % n;
            float sum = 0;
            for (uint32_t s = 0; s < n_split; s++)
                sum += red[(s * TOKENS + t) * 65 + r];
            sums[t * 64 + r] = sum;
        }
        __syncthreads();
    }

    /* Of this pass. */
    __device__ uint32_t ranks() const
    {
        return min(it.n_groups * 16, it.site->n_rows - it.group0 * 16);
    }

    __device__ void store_plane(const float *sums) const
    {
        float *v = g.s + (size_t)blockIdx.y * g.t * g.s_width;
        uint32_t n = ranks();
        for (uint32_t p = tid; p < it.n_rows * n; p += THREADS) {
            uint32_t t = p / n, r = p % n;
            v[(size_t)(it.row0 + t) * g.s_width + it.column + it.group0 * 16 + r] =
                sums[t * 64 + r];
        }
    }

    /* Every CTA of the cluster finishes a part of the item. */
    __device__ void store_cluster(const float *sums, float scale, bf16 *v16) const
    {
#if __CUDA_ARCH__ >= 900
        uint32_t n = ranks(), address = shared_address(sums);
        cluster_sync();
        for (uint32_t p = blockIdx.y * THREADS + tid; p < it.n_rows * n; p += gridDim.y * THREADS) {
            uint32_t t = p / n, r = p % n;
            float sum = 0;
            for (uint32_t c = 0; c < gridDim.y; c++)
                sum += cluster_load(address + (t * 64 + r) * 4, c);
            store_v16(*it.site, it.group0 * 16 + r, sum, scale,
                      v16 + (size_t)(it.row0 + t) * g.s_width + it.column);
        }
        cluster_sync();
#endif
    }

    __device__ void run(uint8_t *smem, float scale, bf16 *v16)
    {
        uint32_t groups = it.n_groups > 2 ? 4 : it.n_groups;
        uint32_t n = (it.k1 - it.k0 + STEP_K - 1) / STEP_K;
        float acc[4][4] = {};
        for (uint32_t i = 0; i < STAGES - 1; i++) {
            if (i < n)
                load(i);
            cp_async_commit();
        }
        for (uint32_t i = 0; i < n; i++) {
            cp_async_wait<STAGES - 2>();
            __syncthreads();
            if (i + STAGES - 1 < n)
                load(i + STAGES - 1);
            cp_async_commit();
            compute(i, groups, acc);
        }
        cp_async_wait<0>();
        __syncthreads();
        float *sums = (float *)smem + 4 * TOKENS * 65;
        sum_warps(groups, acc, (float *)smem, sums);
        if (v16)
            store_cluster(sums, scale, v16);
        else
            store_plane(sums);
        __syncthreads();
    }
};

__global__ void __launch_bounds__(THREADS)
    shrink_kernel(const cu_gemm g, const uint32_t *item_segment, const uint32_t *item_row,
                  bf16 *v16)
{
    extern __shared__ __align__(128) uint8_t smem[];
    pdl_launch_dependents();
    pdl_wait();
    cu_segment s = g.segments[item_segment[blockIdx.x]];
    const cu_site *site = &g.sites[(size_t)s.slot * g.site_stride];
    uint32_t row = item_row[blockIdx.x];
    uint32_t steps = (g.k + STEP_K - 1) / STEP_K, per = (steps + gridDim.y - 1) / gridDim.y;
    Item it = {s.row0 + row,
               min(s.n_rows - row, (uint32_t)TOKENS),
               g.columns[item_segment[blockIdx.x]],
               0,
               0,
               site,
               min(blockIdx.y * per * STEP_K, g.k),
               min((blockIdx.y + 1) * per * STEP_K, g.k)};
    Tile tile = {g,
                 it,
                 shared_address(smem),
                 (int)threadIdx.x,
                 (int)threadIdx.x / 32,
                 (int)threadIdx.x % 32};
    for (uint32_t group = 0; group < site->n_groups; group += 4) {
        tile.it.group0 = group;
        tile.it.n_groups = min(4u, site->n_groups - group);
        tile.run(smem, s.scale, v16);
    }
}

/* The sum of planes; a CTA has 8 rows of an item. */
__global__ void __launch_bounds__(THREADS)
    reduce_kernel(const cu_gemm g, const uint32_t *item_segment, const uint32_t *item_row,
                  uint32_t n_planes, bf16 *v16)
{
    pdl_launch_dependents();
    uint32_t idx = item_segment[blockIdx.x], row = item_row[blockIdx.x];
    cu_segment s = g.segments[idx];
    const cu_site &site = g.sites[(size_t)s.slot * g.site_stride];
    row += blockIdx.y * REDUCE_ROWS;
    uint32_t left = s.n_rows > row ? s.n_rows - row : 0, n = site.n_rows;
    uint32_t n_rows = min(left, (uint32_t)REDUCE_ROWS);
    pdl_wait();
    for (uint32_t i = threadIdx.x; i < n_rows * n; i += THREADS) {
        uint32_t c = i % n;
        size_t at = (size_t)(s.row0 + row + i / n) * g.s_width + g.columns[idx] + c;
        float sum = 0, v[8];
#pragma unroll
        for (int p = 0; p < 8; p++) // cu_shrink makes at most eight planes
            v[p] = p < (int)n_planes ? __ldcg(g.s + p * ((size_t)g.t * g.s_width) + at) : 0.f;
#pragma unroll
        for (int p = 0; p < 8; p++)
            sum += v[p];
        store_v16(site, c, sum, s.scale, v16 + at - c);
    }
}

} // namespace

extern "C" int cu_shrink(const struct cu_gemm *g, const uint32_t *item_segment,
                         const uint32_t *item_row, uint32_t n_items, uint32_t n_planes, void *v16,
                         cudaStream_t stream)
{
    if (n_items == 0)
        return 0;
    static_assert(BYTES >= 4 * TOKENS * 65 * 4 + TOKENS * 64 * 4, "the sums lie in the ring");
    static Allowed allowed;
    cudaError_t e = allow_shared(shrink_kernel, BYTES, allowed);
    if (e != cudaSuccess)
        return e;
    if (cluster_supported()) {
        while (n_planes & (n_planes - 1)) // a cluster has 1, 2, 4 or 8 CTAs
            n_planes--;
        return launch_pdl_cluster(shrink_kernel, dim3(n_items, n_planes), dim3(THREADS), BYTES,
                                  stream, dim3(1, n_planes, 1), *g, item_segment, item_row,
                                  (bf16 *)v16);
    }
    e = launch_pdl(shrink_kernel, dim3(n_items, n_planes), dim3(THREADS), BYTES, stream, *g,
                   item_segment, item_row, (bf16 *)NULL);
    if (e != cudaSuccess)
        return e;
    return launch_pdl(reduce_kernel, dim3(n_items, TOKENS / REDUCE_ROWS), dim3(THREADS), 0, stream,
                      *g, item_segment, item_row, n_planes, (bf16 *)v16);
}
