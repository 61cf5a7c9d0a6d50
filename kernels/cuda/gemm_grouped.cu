/*
 * gemm_grouped: y[place] = W_e x + B_e v for rows grouped by expert e, in one launch; also the
 * product of --deterministic, as one group.
 *
 * A CTA has up to 64 places of one group (tokens, on the MMA's N side) and BM weight rows (its M
 * side), all of K: weights of a group that has places are read once a tile, and the tiles of a
 * group at the same outputs run side by side, so that the second finds them in L2. No sum is split,
 * neither over CTAs nor over warps: every output is one chain of m16n8k16 over rising k, then the
 * adapters in the order of the segments, so the bits depend neither on the tile nor on what else is
 * in the step. The grid is a bound; the tiles are counted in device memory.
 *
 * Adapters' B (fragment order, as expand.cuh reads it) is added in registers before the store. With
 * SILU or GELU a warp holds 16 gates and their 16 ups, so the activation needs no pass of its own.
 *
 * Not measured yet. Bytes: the weights of the groups present, x once for BM outputs (from L2), y.
 */
#include "kernels/cuda/grouped.cuh"

using namespace lora;

namespace
{

template <int WARPS, int MT, int NT> struct Shape {
    static constexpr int THREADS = WARPS * 32, BM = WARPS * MT * 16, BN = NT * 8;
    static constexpr int SUBS = BM >= 128 ? 1 : 2; // of 64 inputs, in a stage
    static constexpr int W_SUB = BM * 128, X_SUB = BN * 128;
    static constexpr int STAGE = SUBS * (W_SUB + X_SUB);
    static constexpr int STAGES = BM == 32 ? 6 : 4;
    static constexpr int BYTES = STAGES * STAGE;
};

__device__ __forceinline__ uint32_t swizzled(uint32_t base, int r, int c)
{
    return base + r * 128 + ((c ^ (r & 7)) << 4);
}

__device__ float silu(float v)
{
    return v / (1.f + __expf(-v));
}

__device__ float gelu_tanh(float v)
{
    return 0.5f * v * (1.f + tanhf(0.7978845608028654f * (v + 0.044715f * v * v * v)));
}

template <int WARPS, int MT, int NT, bool GATED> struct Worker {
    using S = Shape<WARPS, MT, NT>;
    using Shared = GroupedShared<S::THREADS>;
    const cu_grouped &g;
    Shared &sm;
    cu_tile tile;
    const uint8_t *w;
    uint32_t ring, out0, n_out, n_steps; // outputs of a gate when GATED
    int tid, warp, lane;
    float acc[MT][NT][4];

    __device__ Worker(const cu_grouped &g_, Shared &sm_, uint32_t ring_)
        : g(g_), sm(sm_), ring(ring_)
    {
        tid = threadIdx.x;
        warp = tid / 32;
        lane = tid % 32;
        n_out = GATED ? g.n / 2 : g.n;
        out0 = blockIdx.y * (GATED ? S::BM / 2 : S::BM);
        n_steps = (g.k + S::SUBS * 64 - 1) / (S::SUBS * 64);
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int n = 0; n < NT; n++)
                acc[m][n][0] = acc[m][n][1] = acc[m][n][2] = acc[m][n][3] = 0;
        }
    }

    /* First output of a warp's tile m; n_out or more: none. GATED: tile 1 is the ups of tile 0. */
    __device__ uint32_t out_of(int warp_idx, int m) const
    {
        return out0 + (GATED ? warp_idx : warp_idx * MT + m) * 16;
    }

    __device__ uint32_t stage(uint32_t i) const
    {
        return ring + i % S::STAGES * S::STAGE;
    }

    __device__ void load_w(uint32_t i) const
    {
        constexpr int PIECES = S::SUBS * 8, PER = S::BM * PIECES / S::THREADS;
        uint32_t k0 = i * S::SUBS * 64, dst = stage(i);
        int c = tid % PIECES;
#pragma unroll
        for (int it = 0; it < PER; it++) {
            int r = it * (S::THREADS / PIECES) + tid / PIECES;
            uint32_t out = out_of(r / (MT * 16), r / 16 % MT) + r % 16;
            bool in = out < n_out && k0 + c * 8 < g.k;
            size_t row = out + (GATED && r / 16 % MT ? n_out : 0);
            const uint8_t *src = w + (in ? (row * g.k + k0 + c * 8) * 2 : 0);
            cp_async_16_stream(swizzled(dst + c / 8 * S::W_SUB, r, c % 8), src, in ? 16 : 0);
        }
    }

    __device__ void load_x(uint32_t i) const
    {
        constexpr int PIECES = S::SUBS * 8, ALL = S::BN * PIECES;
        uint32_t k0 = i * S::SUBS * 64, dst = stage(i) + S::SUBS * S::W_SUB;
#pragma unroll
        for (int it = 0; it < (ALL + S::THREADS - 1) / S::THREADS; it++) {
            int p = it * S::THREADS + tid;
            if (ALL % S::THREADS && p >= ALL)
                break;
            int r = p / PIECES, c = p % PIECES;
            uint32_t row = sm.x_row[r], k = k0 + c * 8;
            bool in = row != NO_ROW && k < g.k;
            const uint8_t *src = (const uint8_t *)g.x + (in ? ((size_t)row * g.k + k) * 2 : 0);
            cp_async_16(swizzled(dst + c / 8 * S::X_SUB, r, c % 8), src, in ? 16 : 0);
        }
    }

    __device__ void load_b(uint32_t xs, int k16, uint32_t b[NT][2]) const
    {
        if constexpr (NT == 1) {
            ldmatrix_x2(b[0], swizzled(xs, lane & 7, k16 * 2 + ((lane >> 3) & 1)));
        } else {
#pragma unroll
            for (int p = 0; p < NT / 2; p++) {
                uint32_t r[4];
                ldmatrix_x4(r, swizzled(xs, p * 16 + (lane >> 4) * 8 + (lane & 7),
                                        k16 * 2 + ((lane >> 3) & 1)));
                b[2 * p][0] = r[0];
                b[2 * p][1] = r[1];
                b[2 * p + 1][0] = r[2];
                b[2 * p + 1][1] = r[3];
            }
        }
    }

    __device__ void compute(uint32_t i)
    {
#pragma unroll
        for (int sub = 0; sub < S::SUBS; sub++) {
            uint32_t ws = stage(i) + sub * S::W_SUB;
            uint32_t xs = stage(i) + S::SUBS * S::W_SUB + sub * S::X_SUB;
#pragma unroll
            for (int k = 0; k < 4; k++) {
                uint32_t a[MT][4], b[NT][2];
#pragma unroll
                for (int m = 0; m < MT; m++)
                    ldmatrix_x4(a[m], swizzled(ws, (warp * MT + m) * 16 + (lane & 15),
                                               k * 2 + (lane >> 4)));
                load_b(xs, k, b);
#pragma unroll
                for (int m = 0; m < MT; m++) {
#pragma unroll
                    for (int n = 0; n < NT; n++)
                        mma_16816(acc[m][n], a[m], b[n]);
                }
            }
        }
    }

    /* ---- adapters ---- */

    __device__ uint32_t v_pair(const cu_part &p, const GroupedItem &it, int n, uint32_t col) const
    {
        uint32_t token = n * 8 + lane / 4;
        if (token < it.first || token >= it.last || col >= p.rank)
            return 0;
        const bf16 *v = (const bf16 *)g.v + (size_t)(tile.first + token) * g.v_width +
                        g.columns[it.segment] + p.col0 + col;
        uint32_t low = __bfloat16_as_ushort(v[0]);
        return col + 1 < p.rank ? low | (uint32_t)__bfloat16_as_ushort(v[1]) << 16 : low;
    }

    __device__ void add_item(const GroupedItem &it)
    {
        const cu_site &site = g.sites[(size_t)g.segments[it.segment].slot * g.site_stride];
#pragma unroll
        for (int m = 0; m < MT; m++) {
            uint32_t out = out_of(warp, m);
            if (out >= n_out)
                continue;
            out += GATED && m ? n_out : 0;
            for (uint32_t i = 0; i < site.n_parts; i++) {
                const cu_part &p = site.parts[i];
                uint32_t local = out - p.out0, blocks = (p.n_out + CU_B_BLOCK - 1) / CU_B_BLOCK;
                if (!p.rank || out < p.out0 || local >= p.n_out)
                    continue;
                const uint8_t *b = (const uint8_t *)p.b[tile.group * blocks + local / CU_B_BLOCK] +
                                   (size_t)(local % CU_B_BLOCK / 16) * p.rank8 * 32 + lane * 8;
                for (uint32_t k = 0; k < p.rank8; k += 16) {
                    uint2 low = __ldg((const uint2 *)(b + k * 32)), high = make_uint2(0, 0);
                    if (k + 8 < p.rank8)
                        high = __ldg((const uint2 *)(b + k * 32 + 256));
                    uint32_t a[4] = {low.x, low.y, high.x, high.y};
#pragma unroll
                    for (int n = 0; n < NT; n++) {
                        if (n * 8 + 8 <= it.first || n * 8 >= it.last)
                            continue;
                        uint32_t x[2] = {v_pair(p, it, n, k + lane % 4 * 2),
                                         v_pair(p, it, n, k + lane % 4 * 2 + 8)};
                        mma_16816(acc[m][n], a, x);
                    }
                }
            }
        }
    }

    __device__ void add_adapters()
    {
        uint32_t n_segments = *g.n_segments;
        for (uint32_t i0 = 0; i0 < n_segments; i0 += S::THREADS) {
            uint32_t n = list_segments(g, tile.n, i0, sm);
            for (uint32_t i = 0; i < n; i++)
                add_item(sm.items[i]);
        }
    }

    /* ---- the end ---- */

    __device__ void store(int kind, void *y) const
    {
#pragma unroll
        for (int m = 0; m < (GATED ? 1 : MT); m++) {
#pragma unroll
            for (int n = 0; n < NT; n++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    uint32_t token = n * 8 + lane % 4 * 2 + (e & 1);
                    uint32_t out = out_of(warp, m) + lane / 4 + (e >> 1) * 8;
                    if (token >= tile.n || out >= n_out)
                        continue;
                    size_t at = (size_t)(tile.first + token) * n_out + out;
                    float v = acc[m][n][e];
                    if (GATED)
                        v = (kind == CU_STORE_GELU ? gelu_tanh(v) : silu(v)) * acc[MT - 1][n][e];
                    if (kind == CU_STORE_F32)
                        ((float *)y)[at] = v;
                    else
                        ((bf16 *)y)[at] = __float2bfloat16(v);
                }
            }
        }
    }

    __device__ void run(int kind, void *y)
    {
        bool early = !g.tiles; // one group: its weights do not depend on the kernel before
        w = (const uint8_t *)g.w;
        for (uint32_t i = 0; early && i < S::STAGES - 1 && i < n_steps; i++)
            load_w(i);
        pdl_wait();
        tile = tile_of(g, blockIdx.x);
        if (tile.n == 0) {
            cp_async_commit();
            cp_async_wait<0>();
            return;
        }
        w += (size_t)tile.group * g.n * g.k * 2;
        list_places(g, tile, sm);
        __syncthreads();
        for (uint32_t i = 0; i < S::STAGES - 1; i++) {
            if (i < n_steps && !early)
                load_w(i);
            if (i < n_steps)
                load_x(i);
            cp_async_commit();
        }
        for (uint32_t i = 0; i < n_steps; i++) {
            cp_async_wait<S::STAGES - 2>();
            __syncthreads();
            if (i + S::STAGES - 1 < n_steps) {
                load_w(i + S::STAGES - 1);
                load_x(i + S::STAGES - 1);
            }
            cp_async_commit();
            compute(i);
        }
        if (g.segments)
            add_adapters();
        store(kind, y);
    }
};

template <int WARPS, int MT, int NT, bool GATED>
__global__ void __launch_bounds__(WARPS * 32, 2) gemm_kernel(const cu_grouped g, int kind, void *y)
{
    extern __shared__ __align__(128) uint8_t smem[];
    __shared__ GroupedShared<WARPS * 32> sm;
    pdl_launch_dependents();
    Worker<WARPS, MT, NT, GATED> worker(g, sm, shared_address(smem));
    worker.run(kind, y);
}

template <int WARPS, int MT, int NT, bool GATED>
int launch(const cu_grouped *g, int kind, void *y, cudaStream_t stream)
{
    using S = Shape<WARPS, MT, NT>;
    static bool ready[16];
    cudaError_t e = allow_shared(gemm_kernel<WARPS, MT, NT, GATED>, S::BYTES, ready);
    if (e != cudaSuccess)
        return e;
    uint32_t n_out = GATED ? g->n / 2 : g->n, rows = GATED ? S::BM / 2 : S::BM;
    return launch_pdl(gemm_kernel<WARPS, MT, NT, GATED>,
                      dim3(g->tile_bound, (n_out + rows - 1) / rows), dim3(S::THREADS), S::BYTES,
                      stream, *g, kind, y);
}

template <int NT> int launch_plain(const cu_grouped *g, int kind, void *y, cudaStream_t stream)
{
    if constexpr (NT > 2)
        return launch<4, 2, NT, false>(g, kind, y, stream);
    else if (g->n <= 8192) // more CTAs where there are few outputs
        return launch<2, 1, NT, false>(g, kind, y, stream);
    else
        return launch<4, 1, NT, false>(g, kind, y, stream);
}

template <int NT> int launch_kind(const cu_grouped *g, int kind, void *y, cudaStream_t stream)
{
    if (kind == CU_STORE_SILU || kind == CU_STORE_GELU)
        return launch<4, 2, NT, true>(g, kind, y, stream);
    return launch_plain<NT>(g, kind, y, stream);
}

} // namespace

extern "C" int cu_grouped_gemm(const struct cu_grouped *g, enum cu_store store, void *y,
                               cudaStream_t stream)
{
    if (g->tile_bound == 0)
        return 0;
    switch (g->tile) {
    case 8:
        return launch_kind<1>(g, store, y, stream);
    case 16:
        return launch_kind<2>(g, store, y, stream);
    case 32:
        return launch_kind<4>(g, store, y, stream);
    case 64:
        return launch_kind<8>(g, store, y, stream);
    default:
        return cudaErrorInvalidValue;
    }
}
