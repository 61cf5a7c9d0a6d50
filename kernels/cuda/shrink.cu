/*
 * shrink: v = x A^T of every segment of a step with many rows (T > CU_SMALL_ROWS).
 *
 * A work item is 16 or 64 tokens of one segment (the host lists them: cu_shrink_rows) x a split of
 * k. A stands on the MMA's M side, tokens on its N side. Both go from global memory straight into
 * fragments: a lane takes 16 bytes of a row, eight inputs, and the products see the inputs in the
 * order in which they lie in the lanes. A warp has 16 tokens and, of its item's pieces of 32
 * inputs, every eighth (of 64 tokens: every second, its A by way of L1 with the warps of the other
 * tokens); up to 48 ranks of the adapter at a time. It asks for as many pieces at once as it has
 * registers for: for few rows that is all of them, A before griddepcontrol.wait.
 *
 * The splits of an item are one cluster on Hopper, where each CTA sends its sums to those that end
 * them; elsewhere they write planes, which a second kernel adds. Either way in a fixed order.
 * Bytes: A once an item, x once every 48 ranks.
 */
#include "kernels/cuda/packed.cuh"
#include "kernels/cuda/shrink.cuh"

using namespace lora;

namespace
{

constexpr int WARPS = 8, THREADS = WARPS * 32;
constexpr int TOKENS = 16, NT = TOKENS / 8; // of a warp
constexpr uint32_t PIECE = 32;              // inputs
constexpr int GROUPS = 3;                   // of 16 ranks at a time
constexpr int STRIDE = GROUPS * 16 + 4;     // floats between tokens of sums, free of bank conflicts
constexpr int REDUCE_ROWS = 8;
constexpr uint32_t FEW_ROWS = 512;                        // fewer: items of 16 tokens
constexpr uint32_t ROWS = TOKENS, MANY_ROWS = 4 * TOKENS; // of an item
static_assert(MANY_ROWS == CU_SHRINK_ROWS, "as the lists are made");

/* What a CTA has, in shared memory: registers are for A and x. */
struct Item {
    cu_site site;
    uint32_t row0, n_rows, column;
    float scale;
    uint32_t begin, end; // pieces of the split
};

struct Shrinker {
    const cu_gemm &g;
    const Item &it;
    bf16 *v16;      // NULL: planes
    uint32_t shift; // 1 << shift groups of 16 tokens, shared out over the warps
    float *red;     // shared [warp][token][STRIDE], then [split][sums that this CTA ends]
    uint32_t warp, lane;

    /* Groups [group0, group0 + G) of A by this warp's tokens and pieces. Ranks and tokens that
     * there are not are others, whose sums nobody looks at; of inputs that there are not, A is
     * zero. */
    template <int G> __device__ void multiply(uint32_t group0, float acc[G][NT][4])
    {
        constexpr int AT_ONCE = G == 1 ? 7 : 2; // pieces
        uint32_t step = (WARPS >> shift) * PIECE;
        uint32_t token = (warp & ((1u << shift) - 1)) * TOKENS + lane / 4;
        uint32_t k0 = (it.begin + (warp >> shift)) * PIECE, k = k0 + lane % 4 * 8;
        uint32_t k_end = min(it.end * PIECE, g.k);
        const bf16 *a_row[G][2], *x_row[NT];
#pragma unroll
        for (int i = 0; i < G * 2; i++) {
            uint32_t row = min(lane / 4 + i % 2 * 8, it.site.n_rows - (group0 + i / 2) * 16 - 1);
            a_row[i / 2][i % 2] = (const bf16 *)it.site.a[group0 + i / 2] + (size_t)row * g.k;
        }
#pragma unroll
        for (int n = 0; n < NT; n++)
            x_row[n] =
                (const bf16 *)g.x + (size_t)(it.row0 + min(token + n * 8, it.n_rows - 1)) * g.k;
#pragma unroll 1
        do {
            uint4 a[AT_ONCE][G][2];
#pragma unroll
            for (int c = 0; c < AT_ONCE; c++) {
#pragma unroll
                for (int i = 0; i < G * 2; i++)
                    a[c][i / 2][i % 2] = k + c * step < k_end
                                             ? load_stream_16(a_row[i / 2][i % 2] + k + c * step)
                                             : make_uint4(0, 0, 0, 0);
            }
            if (group0 == 0 && k0 == (it.begin + (warp >> shift)) * PIECE)
                pdl_wait();
#pragma unroll
            for (int c = 0; c < AT_ONCE; c++) {
                uint4 x[NT];
#pragma unroll
                for (int n = 0; n < NT; n++)
                    x[n] = *(const uint4 *)(x_row[n] + (k + c * step < k_end ? k + c * step : 0));
#pragma unroll
                for (int i = 0; i < G; i++)
                    multiply_piece(a[c][i], x, acc[i]);
            }
            k0 += AT_ONCE * step;
            k += AT_ONCE * step;
        } while (k0 < k_end); // the same for all lanes
    }

    __device__ static void multiply_piece(const uint4 a[2], const uint4 x[NT], float acc[NT][4])
    {
#pragma unroll
        for (int w = 0; w < 4; w += 2) {
            uint32_t ranks[4] = {word(a[0], w), word(a[1], w), word(a[0], w + 1),
                                 word(a[1], w + 1)};
#pragma unroll
            for (int n = 0; n < NT; n++) {
                uint32_t tokens[2] = {word(x[n], w), word(x[n], w + 1)};
                mma_16816(acc[n], ranks, tokens);
            }
        }
    }

    /* The warp's sums to shared memory. */
    template <int G> __device__ void run(uint32_t group0)
    {
        float acc[G][NT][4] = {};
        multiply<G>(group0, acc);
#pragma unroll
        for (int i = 0; i < G * NT * 4; i++) {
            uint32_t token = i / 4 % NT * 8 + lane % 4 * 2 + i % 2;
            uint32_t rank = i / (4 * NT) * 16 + lane / 4 + i / 2 % 2 * 8;
            red[(warp * TOKENS + token) * STRIDE + rank] = acc[i / (4 * NT)][i / 4 % NT][i % 4];
        }
    }

    /* Over the warps. */
    __device__ float sum_of(uint32_t token, uint32_t rank) const
    {
        float sum = 0;
        for (uint32_t w = token / TOKENS; w < WARPS; w += 1u << shift)
            sum += red[(w * TOKENS + token % TOKENS) * STRIDE + rank];
        return sum;
    }

    /* The n ranks of a pass, from rank0 on. */
    __device__ void store_plane(uint32_t rank0, uint32_t n) const
    {
        float *v = g.s + (size_t)blockIdx.y * g.t * g.s_width + it.column + rank0;
        for (uint32_t p = threadIdx.x; p < it.n_rows * n; p += THREADS)
            v[(size_t)(it.row0 + p / n) * g.s_width + p % n] = sum_of(p / n, p % n);
    }

    /* All CTAs of the cluster have begun, or read what they were sent before. */
    __device__ void store_cluster(uint32_t rank0, uint32_t n) const
    {
        uint32_t splits = gridDim.y, split = blockIdx.y;
        uint32_t all = it.n_rows * n, own = (all + splits - 1) / splits;
        const float *got = red + WARPS * TOKENS * STRIDE;
        uint32_t mine = shared_address(got + split * own);
        cluster_wait();
        for (uint32_t p = threadIdx.x; p < all; p += THREADS)
            store_to_cta(mine + p % own * 4, p / own, sum_of(p / n, p % n));
        cluster_arrive();
        cluster_wait();
        for (uint32_t i = threadIdx.x; i < own && split * own + i < all; i += THREADS) {
            uint32_t p = split * own + i;
            float sum = 0;
            for (uint32_t s = 0; s < splits; s++)
                sum += got[s * own + i];
            store_v16(it.site, rank0 + p % n, sum, it.scale,
                      v16 + (size_t)(it.row0 + p / n) * g.s_width + it.column);
        }
    }

    __device__ void run_all()
    {
        if (!it.site.n_groups) {
            pdl_wait(); // who depends on this kernel depends on those before it
            return;
        }
        if (v16)
            cluster_arrive();
#pragma unroll 1
        for (uint32_t group = 0; group < it.site.n_groups; group += GROUPS) {
            uint32_t left = it.site.n_groups - group;
            if (left == 1)
                run<1>(group);
            else if (left == 2)
                run<2>(group);
            else
                run<3>(group);
            __syncthreads();
            uint32_t n = min(it.site.n_rows - group * 16, (uint32_t)GROUPS * 16);
            if (v16)
                store_cluster(group * 16, n);
            else
                store_plane(group * 16, n);
            if (group + GROUPS >= it.site.n_groups)
                return;
            if (v16)
                cluster_arrive();
            else
                __syncthreads();
        }
    }
};

__global__ void __launch_bounds__(THREADS, 2)
    shrink_kernel(const __grid_constant__ cu_gemm g, const uint32_t *item_segment,
                  const uint32_t *item_row, uint32_t shift, bf16 *v16)
{
    extern __shared__ __align__(128) uint8_t smem[];
    __shared__ Item it;
    pdl_launch_dependents();
    uint32_t idx = item_segment[blockIdx.x], row = item_row[blockIdx.x];
    cu_segment s = g.segments[idx];
    const cu_site *site = &g.sites[(size_t)s.slot * g.site_stride];
    if (threadIdx.x < sizeof *site / 4)
        ((uint32_t *)&it.site)[threadIdx.x] = ((const uint32_t *)site)[threadIdx.x];
    if (threadIdx.x == 0) {
        uint32_t pieces = (g.k + PIECE - 1) / PIECE, per = (pieces + gridDim.y - 1) / gridDim.y;
        it.row0 = s.row0 + row;
        it.n_rows = min(s.n_rows - row, (uint32_t)TOKENS << shift);
        it.column = g.columns[idx];
        it.scale = s.scale;
        it.begin = min(blockIdx.y * per, pieces);
        it.end = min((blockIdx.y + 1) * per, pieces);
    }
    __syncthreads();
    Shrinker worker = {g, it, v16, shift, (float *)smem, threadIdx.x / 32, threadIdx.x % 32};
    worker.run_all();
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

extern "C" uint32_t cu_shrink_rows(uint32_t t)
{
    return t < FEW_ROWS ? ROWS : MANY_ROWS;
}

extern "C" int cu_shrink(const struct cu_gemm *g, const uint32_t *item_segment,
                         const uint32_t *item_row, uint32_t n_items, uint32_t n_planes, void *v16,
                         cudaStream_t stream)
{
    if (n_items == 0)
        return 0;
    constexpr uint32_t SUMS = WARPS * TOKENS * STRIDE, SENT = GROUPS * 16; // a token
    uint32_t rows = cu_shrink_rows(g->t);
    static Allowed allowed;
    cudaError_t e = allow_shared(shrink_kernel, (SUMS + SENT * MANY_ROWS + 8) * 4, allowed);
    if (e != cudaSuccess)
        return e;
    bool clusters = cluster_supported();
    while (clusters && n_planes & (n_planes - 1)) // a cluster has 1, 2, 4 or 8 CTAs
        n_planes--;
    uint32_t bytes = (SUMS + (clusters ? SENT * rows + 8 : 0)) * 4; // each of 8 CTAs may round up
    e = launch_pdl_cluster(shrink_kernel, dim3(n_items, n_planes), dim3(THREADS), bytes, stream,
                           dim3(1, clusters ? n_planes : 1, 1), *g, item_segment, item_row,
                           rows == MANY_ROWS ? 2u : 0u, clusters ? (bf16 *)v16 : (bf16 *)NULL);
    if (e != cudaSuccess || clusters)
        return e;
    return launch_pdl(reduce_kernel, dim3(n_items, rows / REDUCE_ROWS), dim3(THREADS), 0, stream,
                      *g, item_segment, item_row, n_planes, (bf16 *)v16);
}
