/*
 * gemm_prefill: y[T, N] = x[T, K] W^T + sum over adapters of v B^T for many rows, on sm_90a.
 *
 * A persistent CTA takes tiles of 128 rows x BN outputs. One thread feeds a ring of k-blocks of 64
 * through the copy engine; two warpgroups of 64 rows each multiply (wgmma, m64 x BN). Two CTAs of a
 * cluster have the rows one below the other and share W: each loads half a block for both. Tiles go
 * down the rows of a group first, so that x of the group and a few columns of W stay in L2.
 *
 * Adapters: after a tile's last k-block come items of 16 ranks: v of the rows of one segment (zeros
 * in the other rows) and B of one module for the tile's outputs (zeros outside the module).
 * Three warps beside the copying thread gather them while the tile is multiplied, through a ring of
 * their own; an item without data ends a tile. The sum is rounded once, y is written once.
 *
 * CU_SILU and CU_GELU: a tile has the gates of BN / 2 columns and their ups, and writes
 * f(gate) up [T, N / 2].
 */
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/launch.h"

using namespace lora;

namespace
{

constexpr int BM = 128, BK = 64, THREADS = 384, EXTRA = 2, LOADERS = 96;

template <int BN> struct Shape {
    static constexpr int HALF = BN / 2;
    static constexpr int X_BYTES = BM * BK * 2, W_BYTES = BN * BK * 2;
    static constexpr int STAGE = X_BYTES + W_BYTES, STAGES = 4 * 48 * 1024 / STAGE;
    static constexpr int V_BYTES = BM * 32, ITEM = V_BYTES + BN * 32;
    static constexpr int ITEMS_AT = STAGES * STAGE, BARRIERS_AT = ITEMS_AT + EXTRA * ITEM;
    static constexpr int BYTES = BARRIERS_AT + 256 + 1024; // the ring begins at a multiple of 1024
};

struct Args {
    cu_prefill g;
    uint32_t n_rows_of_tiles, n_tiles; // of clusters
    uint32_t group;                    // rows of tiles that come one after the other
    float linear, cubic;               // of the activation
};

struct Place {
    uint32_t row0, tile; // first row of the cluster's tile, tile of outputs
};

template <int BN, int CLUSTER, bool GLU, bool LORA> struct Product {
    using S = Shape<BN>;
    const Args &a;
    uint32_t ring, rank, warp, lane;

    __device__ Product(const Args &a_, uint32_t ring_)
        : a(a_), ring(ring_), rank(CLUSTER > 1 ? cluster_rank() : 0), warp(threadIdx.x / 32),
          lane(threadIdx.x % 32)
    {
    }

    __device__ uint32_t full(uint32_t s) const
    {
        return ring + S::BARRIERS_AT + s * 8;
    }
    __device__ uint32_t empty(uint32_t s) const
    {
        return full(S::STAGES + s);
    }
    __device__ uint32_t item_full(uint32_t s) const
    {
        return full(2 * S::STAGES + s);
    }
    __device__ uint32_t item_empty(uint32_t s) const
    {
        return full(2 * S::STAGES + EXTRA + s);
    }
    __device__ uint32_t item(uint32_t s) const
    {
        return ring + S::ITEMS_AT + s * S::ITEM;
    }
    /* What an item is: 0 the tile's end. */
    __device__ uint32_t item_kind(uint32_t s) const
    {
        return full(2 * S::STAGES + 2 * EXTRA) + s * 4;
    }

    __device__ void init() const
    {
        if (threadIdx.x == 0) {
            for (uint32_t s = 0; s < S::STAGES; s++) {
                barrier_init(full(s), 1);
                barrier_init(empty(s), CLUSTER * 8);
            }
            for (uint32_t s = 0; s < EXTRA; s++) {
                barrier_init(item_full(s), LOADERS);
                barrier_init(item_empty(s), 8);
            }
            barrier_init_done();
        }
        if (CLUSTER > 1)
            cluster_sync();
        __syncthreads();
    }

    __device__ uint32_t first_tile() const
    {
        return blockIdx.x / CLUSTER;
    }
    __device__ uint32_t tile_step() const
    {
        return gridDim.x / CLUSTER;
    }

    __device__ Place place(uint32_t i) const
    {
        uint32_t per = a.group, n = a.n_tiles / a.n_rows_of_tiles, group = i / (per * n);
        uint32_t rows = min(per, a.n_rows_of_tiles - group * per), at = i - group * per * n;
        return {(group * per + at % rows) * (BM * CLUSTER), at / rows};
    }

    /* First row of W of a half of the tile. */
    __device__ uint32_t w_row(uint32_t tile, uint32_t half) const
    {
        return GLU ? half * (a.g.n / 2) + tile * S::HALF : tile * BN + half * S::HALF;
    }

    // ---- one thread: k-blocks

    __device__ void copy(const CUtensorMap *x_map, const CUtensorMap *w_map) const
    {
        uint32_t s = 0, parity = 0, blocks = (a.g.k + BK - 1) / BK;
        for (uint32_t i = first_tile(); i < a.n_tiles; i += tile_step()) {
            Place p = place(i);
            for (uint32_t b = 0; b < blocks; b++) {
                barrier_wait(empty(s), parity ^ 1);
                barrier_expect(full(s), S::STAGE);
                uint32_t to = ring + s * S::STAGE;
                tma_load(to, x_map, full(s), b * BK, p.row0 + rank * BM);
                to += S::X_BYTES;
                if (CLUSTER > 1) {
                    tma_load_all(to + rank * (S::W_BYTES / 2), w_map, full(s), b * BK,
                                 w_row(p.tile, rank), (uint16_t)((1 << CLUSTER) - 1));
                } else {
                    tma_load(to, w_map, full(s), b * BK, w_row(p.tile, 0));
                    tma_load(to + S::W_BYTES / 2, w_map, full(s), b * BK, w_row(p.tile, 1));
                }
                if (++s == S::STAGES) {
                    s = 0;
                    parity ^= 1;
                }
            }
        }
    }

    // ---- three warps: items

    struct Items {
        uint32_t issued, done; // since the kernel's begin
    };

    /* Hands over what was issued but for the last `left` items. */
    template <int left> __device__ void hand_over(Items &it) const
    {
        cp_async_wait<left>();
        fence_async_proxy();
        for (; it.done + left < it.issued; it.done++)
            barrier_arrive(item_full(it.done % EXTRA));
    }

    /* The next place, when it is free. */
    __device__ uint32_t next_slot(const Items &it, uint32_t kind) const
    {
        uint32_t s = it.issued % EXTRA;
        barrier_wait(item_empty(s), (it.issued / EXTRA & 1) ^ 1);
        if (threadIdx.x == 32)
            asm volatile("st.shared.u32 [%0], %1;" ::"r"(item_kind(s)), "r"(kind) : "memory");
        return s;
    }

    __device__ void gather_v(uint32_t to, const cu_segment &g, uint32_t column, uint32_t row0) const
    {
        const bf16 *from = (const bf16 *)a.g.v16 + column;
        for (uint32_t i = threadIdx.x - 32; i < BM * 2; i += LOADERS) {
            uint32_t row = i / 2, t = row0 + row, c = i % 2;
            bool in = t >= g.row0 && t < g.row0 + g.n_rows;
            cp_async_16(to + (row / 8 * 2 + c) * 128 + row % 8 * 16,
                        from + (in ? (size_t)t * a.g.v_width + c * 8 : 0), in ? 16 : 0);
        }
    }

    /* Ranks k … of a module. A piece: 16 outputs x 8 ranks, 8 bytes a lane in memory (expand.cuh).
     */
    __device__ void gather_b(uint32_t to, const cu_part &p, uint32_t k, uint32_t tile) const
    {
        for (uint32_t i = warp - 1; i < BN / 16 * 2; i += LOADERS / 32) {
            uint32_t row = i / 2 * 16, rank0 = k + i % 2 * 8;
            uint32_t local = w_row(tile, row / S::HALF) + row % S::HALF - p.out0;
            bool in = local < p.n_out && rank0 < p.rank8;
            const uint8_t *src = (const uint8_t *)a.g.v16;
            if (in)
                src = (const uint8_t *)p.b[local / CU_B_BLOCK] +
                      (size_t)(local % CU_B_BLOCK / 16) * p.rank8 * 32 + rank0 * 32 + lane * 8;
            uint32_t dst = to + (i / 2 * 4 + i % 2) * 128 + lane * 4;
            cp_async_4(dst, src, in ? 4 : 0);
            cp_async_4(dst + 256, src + 4, in ? 4 : 0);
        }
    }

    __device__ bool touches(const cu_part &p, uint32_t row) const
    {
        return row + S::HALF > p.out0 && row < p.out0 + p.n_out;
    }

    __device__ void gather_segment(Items &it, const cu_segment &g, uint32_t column, uint32_t row0,
                                   uint32_t tile) const
    {
        const cu_site &site = a.g.sites[(size_t)g.slot * a.g.site_stride];
        for (uint32_t i = 0; i < site.n_parts; i++) {
            const cu_part &p = site.parts[i];
            if (!p.rank || !(touches(p, w_row(tile, 0)) || touches(p, w_row(tile, 1))))
                continue;
            for (uint32_t k = 0; k < p.rank; k += 16) {
                uint32_t to = item(next_slot(it, 1));
                gather_v(to, g, column + p.col16 + k, row0);
                gather_b(to + S::V_BYTES, p, k, tile);
                cp_async_commit();
                it.issued++;
                hand_over<1>(it);
            }
        }
    }

    /* This CTA's share of the next site's A, so that its shrink does not wait for memory. */
    __device__ void fetch_next(uint32_t n) const
    {
        uint32_t at = blockIdx.x * LOADERS + threadIdx.x - 32, step = gridDim.x * LOADERS;
        uint32_t lines = a.g.next_k / 4; // of 128 bytes in 16 rows
        for (uint32_t j = 0; j < n; j++) {
            const cu_site &site = a.g.sites[(size_t)a.g.segments[j].slot * a.g.site_stride + 1];
            for (uint32_t i = at; i < site.n_groups * lines; i += step)
                asm volatile("prefetch.global.L2 [%0];" ::"l"((const uint8_t *)site.a[i / lines] +
                                                              i % lines * 128));
        }
    }

    __device__ void gather_all() const
    {
        Items it = {0, 0};
        uint32_t n = *a.g.n_segments;
        for (uint32_t i = first_tile(); i < a.n_tiles; i += tile_step()) {
            Place p = place(i);
            if (a.g.next_k && i + tile_step() >= a.n_tiles)
                fetch_next(n);
            uint32_t row0 = p.row0 + rank * BM;
            for (uint32_t j0 = 0; j0 < n; j0 += 32) {
                cu_segment g = {};
                if (j0 + lane < n)
                    g = a.g.segments[j0 + lane];
                uint32_t hits =
                    __ballot_sync(0xffffffffu, g.row0 < row0 + BM && g.row0 + g.n_rows > row0);
                for (; hits; hits &= hits - 1) {
                    uint32_t j = j0 + __ffs(hits) - 1;
                    gather_segment(it, a.g.segments[j], a.g.columns[j], row0, p.tile);
                }
            }
            hand_over<0>(it); // or the end could wait for a place that is never freed
            next_slot(it, 0);
            it.issued++;
            hand_over<0>(it);
        }
    }

    // ---- two warpgroups: products

    __device__ void release(uint32_t s) const
    {
        if (CLUSTER > 1) {
            if (lane < CLUSTER)
                barrier_arrive_at(empty(s), lane);
        } else if (lane == 0) {
            barrier_arrive(empty(s));
        }
    }

    __device__ void multiply_block(float *acc, uint32_t s, uint32_t group, bool first) const
    {
        uint64_t x = swizzled_tile(ring + s * S::STAGE + group * (64 * BK * 2));
        uint64_t w = swizzled_tile(ring + s * S::STAGE + S::X_BYTES);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < BK / 16; k++)
            Wgmma<BN>::run(acc, x + 2 * k, w + 2 * k, k > 0 || !first);
        wgmma_commit();
    }

    __device__ void multiply_items(float (&acc)[BN / 2], uint32_t group, uint32_t &items) const
    {
        for (;; items++) {
            uint32_t s = items % EXTRA, kind;
            barrier_wait(item_full(s), items / EXTRA & 1);
            asm volatile("ld.shared.u32 %0, [%1];" : "=r"(kind) : "r"(item_kind(s)) : "memory");
            kind = __shfl_sync(0xffffffffu, kind, 0);
            if (kind) {
                uint64_t v = plain_tile(item(s) + group * (64 * 32));
                uint64_t b = plain_tile(item(s) + S::V_BYTES);
                wgmma_fence();
                Wgmma<BN>::run(acc, v, b, 1);
                wgmma_commit();
                wgmma_wait<0>();
            }
            if (lane == 0)
                barrier_arrive(item_empty(s));
            if (!kind)
                break;
        }
        items++;
        wgmma_hold(acc);
    }

    __device__ void multiply_all() const
    {
        uint32_t s = 0, parity = 0, items = 0, blocks = (a.g.k + BK - 1) / BK;
        uint32_t group = warp / 4 - 1;
        float acc[BN / 2];
        for (uint32_t i = first_tile(); i < a.n_tiles; i += tile_step()) {
            uint32_t before = 0;
            for (uint32_t b = 0; b < blocks; b++) {
                barrier_wait(full(s), parity);
                multiply_block(acc, s, group, b == 0);
                if (b > 0) {
                    wgmma_wait<1>();
                    release(before);
                }
                before = s;
                if (++s == S::STAGES) {
                    s = 0;
                    parity ^= 1;
                }
            }
            wgmma_wait<0>();
            wgmma_hold(acc);
            release(before);
            if (LORA)
                multiply_items(acc, group, items);
            store(acc, place(i), group);
        }
    }

    // ---- output

    /* Both are gate sigmoid(.) up: of gate, or of 1.6 (gate + 0.045 gate^3), which is the tanh
     * form. */
    __device__ float combine(float gate, float up) const
    {
        float x = gate * (a.linear + a.cubic * gate * gate);
        return __fdividef(gate, 1.f + __expf(-x)) * up;
    }

    __device__ uint32_t pair(const float *acc, int i) const
    {
        if (GLU)
            return pack_bf16(combine(acc[i], acc[i + BN / 4]),
                             combine(acc[i + 1], acc[i + 1 + BN / 4]));
        return pack_bf16(acc[i], acc[i + 1]);
    }

    __device__ void store(const float (&acc)[BN / 2], Place p, uint32_t group) const
    {
        constexpr int WIDTH = GLU ? BN / 2 : BN;
        uint32_t width = GLU ? a.g.n / 2 : a.g.n;
        uint32_t row = p.row0 + rank * BM + group * 64 + warp % 4 * 16 + lane / 4;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint32_t t = row + h * 8;
            bf16 *to = (bf16 *)a.g.y + (size_t)t * width;
#pragma unroll
            for (int j = 0; j < WIDTH / 8; j += 4) {
                uint32_t w[4], column = p.tile * WIDTH + (j + lane % 4) * 8;
#pragma unroll
                for (int i = 0; i < 4; i++)
                    w[i] = pair(acc, (j + i) * 4 + h * 2);
                uint4 v = exchange_columns(lane, w);
                if (t < a.g.t && column < width)
                    *(uint4 *)(to + column) = v;
            }
        }
    }
};

template <int BN, int CLUSTER, bool GLU, bool LORA>
__global__ void __launch_bounds__(THREADS, 1)
    prefill_kernel(const __grid_constant__ CUtensorMap x_map,
                   const __grid_constant__ CUtensorMap w_map, const __grid_constant__ Args a)
{
    extern __shared__ uint8_t smem[];
    Product<BN, CLUSTER, GLU, LORA> p(a, (shared_address(smem) + 1023) & ~1023u);
    if (threadIdx.x == 0) {
        tma_prefetch(&x_map);
        tma_prefetch(&w_map);
    }
    p.init();
    pdl_launch_dependents();
    if (p.warp < 4) {
        registers_down<56>();
        if (p.warp == 0 && p.lane == 0) {
            pdl_wait();
            p.copy(&x_map, &w_map);
        }
        if (LORA && p.warp > 0) {
            pdl_wait();
            p.gather_all();
        }
    } else {
        registers_up<224>();
        p.multiply_all();
    }
    if (CLUSTER > 1) { // the other CTA may still write here
        __syncwarp();
        cluster_sync();
    }
}

/* bf16 [rows, k] in boxes of box_rows x 64. */
int describe(CUtensorMap *map, const void *data, uint32_t rows, uint32_t k, uint32_t box_rows)
{
    uint64_t dims[2] = {k, rows}, pitch[1] = {2ull * k};
    uint32_t box[2] = {BK, box_rows};
    return describe_tensor(map, data, 2, dims, pitch, box);
}

uint32_t group_rows = 2048;

template <int BN, int CLUSTER, bool GLU, bool LORA>
int launch(const cu_prefill *g, cudaStream_t stream)
{
    using S = Shape<BN>;
    auto kernel = prefill_kernel<BN, CLUSTER, GLU, LORA>;
    static bool ready[16];
    CUtensorMap x_map, w_map;
    int rc = describe(&x_map, g->x, g->t, g->k, BM);
    rc = rc ? rc : describe(&w_map, g->w, g->n, g->k, S::HALF);
    rc = rc ? rc : (int)allow_shared(kernel, S::BYTES, ready);
    if (rc)
        return rc;
    uint32_t rows = (g->t + BM * CLUSTER - 1) / (BM * CLUSTER);
    uint32_t width = GLU ? S::HALF : BN, n = GLU ? g->n / 2 : g->n;
    Args a = {*g, rows, rows * ((n + width - 1) / width), group_rows / (BM * CLUSTER), 1.f, 0.f};
    if (g->epilogue == CU_GELU) {
        a.linear = 2 * 0.7978845608028654f;
        a.cubic = a.linear * 0.044715f;
    }
    uint32_t clusters = g->n_ctas / CLUSTER;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((clusters < a.n_tiles ? clusters : a.n_tiles) * CLUSTER);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = S::BYTES;
    config.stream = stream;
    cudaLaunchAttribute attributes[2];
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = CLUSTER;
    attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    config.attrs = attributes;
    config.numAttrs = CLUSTER > 1 ? 2 : 1;
    return cudaLaunchKernelEx(&config, kernel, x_map, w_map, a);
}

template <int BN, int CLUSTER> int launch_as(const cu_prefill *g, cudaStream_t stream)
{
    if (g->epilogue == CU_STORE)
        return g->segments ? launch<BN, CLUSTER, false, true>(g, stream)
                           : launch<BN, CLUSTER, false, false>(g, stream);
    return g->segments ? launch<BN, CLUSTER, true, true>(g, stream)
                       : launch<BN, CLUSTER, true, false>(g, stream);
}

} // namespace

extern "C" int cu_gemm_prefill(const struct cu_prefill *g, cudaStream_t stream)
{
    if (g->k % 8 || g->n % 16 || (g->epilogue != CU_STORE && g->n % 32))
        return cudaErrorInvalidValue;
    uint32_t rows = (g->t + BM - 1) / BM;
    auto waves = [&](uint32_t width) {
        return (rows * ((g->n + width - 1) / width) + g->n_ctas - 1) / g->n_ctas;
    };
    // Narrow tiles cost 0.62 of a wide one, not 0.5.
    int tile = g->tile ? g->tile : waves(256) * 100 <= waves(128) * 62 ? 4 : 1;
    if (tile == 1)
        return launch_as<128, 1>(g, stream);
    if (tile == 2)
        return launch_as<128, 2>(g, stream);
    if (tile == 4)
        return launch_as<256, 1>(g, stream);
    return launch_as<256, 2>(g, stream);
}
