/*
 * gemm_grouped: y[place] = W_e x + B_e v for rows grouped by expert e, in one launch; also the
 * product of --deterministic, as one group.
 *
 * A CTA has up to 128 places of one group (tokens, on the MMA's N side) and BM weight rows (its M
 * side), all of K: weights of a group that has places are read once a tile, and the tiles of a
 * group at the same outputs run side by side, so that the second finds them in L2. No sum is split,
 * neither over CTAs nor over warps: every output is one chain of m16n8k16 over rising k, then the
 * adapters in the order of the segments, so the bits depend neither on the tile nor on what else is
 * in the step. The grid is a bound; the tiles are counted in device memory.
 *
 * Adapters' B (fragment order, as expand.cuh reads it) is added in registers before the store: this
 * kernel runs beside the shrink that makes v, which it awaits only there. With SILU or GELU a warp
 * holds gates and their ups, so the activation needs no pass of its own. Outputs go through shared
 * memory, to be stored 16 bytes at a time.
 *
 * Bytes: the weights of the groups present, x once for BM outputs (from L2), y.
 * H100 (2026-11-28), a layer of Qwen3-30B-A3B: gate_up and down read the experts present at 2174
 * and 1968 GB/s for one row, 2806 and 2805 for 8, 3005 and 2848 for 64; the layer takes 880 us at
 * 2048 rows, 1240 with one adapter. With tiles of 64, stores of 2 bytes and no product beside the
 * shrink it took 949 and 1392, and one row with an adapter 77.0 us instead of 68.5. Mixtral-8x7B:
 * 2757 and 2555 GB/s for one row, 286 TFLOP/s at 2048 (248 before).
 */
#include "kernels/cuda/grouped.cuh"

using namespace lora;

namespace
{

/* WM x WN warps (outputs x tokens), each of MT x NT MMA tiles. */
template <int WM, int WN, int MT, int NT> struct Shape {
    static constexpr int WARPS = WM * WN, THREADS = WARPS * 32;
    static constexpr int BM = WM * MT * 16, BN = WN * NT * 8;
    static constexpr int SUBS = BM >= 128 ? 1 : 2; // of 64 inputs, in a stage
    static constexpr int W_SUB = BM * 128, X_SUB = BN * 128;
    static constexpr int STAGE = SUBS * (W_SUB + X_SUB);
    static constexpr int STAGES = BM == 32 ? 6 : BN == 128 ? 3 : 4;
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

template <int WM, int WN, int MT, int NT, bool GATED> struct Worker {
    using S = Shape<WM, WN, MT, NT>;
    using Shared = GroupedShared<S::THREADS>;
    static constexpr int PIECES = S::SUBS * 8; // of 16 bytes, in a row of a stage
    static constexpr int W_PER = S::BM * PIECES / S::THREADS;
    static constexpr int X_ALL = S::BN * PIECES, X_PER = (X_ALL + S::THREADS - 1) / S::THREADS;
    static constexpr int OUTS = GATED ? S::BM / 2 : S::BM; // stored
    static constexpr int V_COLS = 64;                      // of v in shared memory at once

    const cu_grouped &g;
    Shared &sm;
    uint8_t *smem;
    cu_tile tile;
    const uint8_t *w;
    uint32_t ring, out0, n_out, n_steps; // outputs of a gate when GATED
    uint32_t n_listed;                   // segments in sm.items
    int tid, warp_m, warp_n, lane;
    float acc[MT][NT][4];

    __device__ Worker(const cu_grouped &g_, Shared &sm_, uint8_t *smem_)
        : g(g_), sm(sm_), smem(smem_), n_listed(0)
    {
        ring = shared_address(smem);
        tid = threadIdx.x;
        warp_m = tid / 32 % WM;
        warp_n = tid / 32 / WM;
        lane = tid % 32;
        n_out = GATED ? g.n / 2 : g.n;
        out0 = blockIdx.y * OUTS;
        n_steps = (g.k + S::SUBS * 64 - 1) / (S::SUBS * 64);
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int n = 0; n < NT; n++)
                acc[m][n][0] = acc[m][n][1] = acc[m][n][2] = acc[m][n][3] = 0;
        }
    }

    /* First output of tile m of a row of warps; n_out or more: none. GATED: the second half of the
     * tiles are the ups of the first. */
    __device__ uint32_t out_of(int warp, int m) const
    {
        return out0 + (GATED ? warp * (MT / 2) + m % (MT / 2) : warp * MT + m) * 16;
    }

    __device__ bool is_up(int m) const
    {
        return GATED && m >= MT / 2;
    }

    __device__ uint32_t stage(uint32_t i) const
    {
        return ring + i % S::STAGES * S::STAGE;
    }

    __device__ void load_w(uint32_t i) const
    {
        uint32_t k0 = i * S::SUBS * 64, dst = stage(i);
        int c = tid % PIECES;
#pragma unroll
        for (int it = 0; it < W_PER; it++) {
            int r = it * (S::THREADS / PIECES) + tid / PIECES, m = r / 16 % MT;
            uint32_t out = out_of(r / (MT * 16), m) + r % 16;
            bool in = out < n_out && k0 + c * 8 < g.k;
            size_t row = out + (is_up(m) ? n_out : 0);
            const uint8_t *src = w + (in ? (row * g.k + k0 + c * 8) * 2 : 0);
            cp_async_16_stream(swizzled(dst + c / 8 * S::W_SUB, r, c % 8), src, in ? 16 : 0);
        }
    }

    __device__ void load_x(uint32_t i) const
    {
        uint32_t k0 = i * S::SUBS * 64, dst = stage(i) + S::SUBS * S::W_SUB;
#pragma unroll
        for (int it = 0; it < X_PER; it++) {
            int p = it * S::THREADS + tid;
            if (X_ALL % S::THREADS && p >= X_ALL)
                break;
            int r = p / PIECES, c = p % PIECES;
            uint32_t row = sm.x_row[r], k = k0 + c * 8;
            bool in = row != NO_ROW && k < g.k;
            const uint8_t *src = (const uint8_t *)g.x + (in ? ((size_t)row * g.k + k) * 2 : 0);
            cp_async_16(swizzled(dst + c / 8 * S::X_SUB, r, c % 8), src, in ? 16 : 0);
        }
    }

    /* This warp's tokens at 16 inputs (or columns of v) of a tile whose rows are 128 bytes. */
    __device__ void load_b(uint32_t xs, int k16, uint32_t b[NT][2]) const
    {
        int row0 = warp_n * NT * 8;
        if constexpr (NT == 1) {
            ldmatrix_x2(b[0], swizzled(xs, row0 + (lane & 7), k16 * 2 + ((lane >> 3) & 1)));
        } else {
#pragma unroll
            for (int p = 0; p < NT / 2; p++) {
                uint32_t r[4];
                ldmatrix_x4(r, swizzled(xs, row0 + p * 16 + (lane >> 4) * 8 + (lane & 7),
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
                    ldmatrix_x4(a[m], swizzled(ws, (warp_m * MT + m) * 16 + (lane & 15),
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

    /* B of the warp's tile m in a part: 16 outputs; NULL: the part has none there. */
    __device__ const uint8_t *part_b(const cu_part &p, int m) const
    {
        uint32_t out = out_of(warp_m, m);
        if (out >= n_out || !p.rank)
            return nullptr;
        out += is_up(m) ? n_out : 0;
        uint32_t local = out - p.out0, blocks = (p.n_out + CU_B_BLOCK - 1) / CU_B_BLOCK;
        if (out < p.out0 || local >= p.n_out)
            return nullptr;
        return (const uint8_t *)p.b[tile.group * blocks + local / CU_B_BLOCK] +
               (size_t)(local % CU_B_BLOCK / 16) * p.rank8 * 32;
    }

    __device__ const cu_site &site_of(const GroupedItem &it) const
    {
        return g.sites[(size_t)g.segments[it.segment].slot * g.site_stride];
    }

    /* B of the first segments into L2 while the products run. */
    __device__ void prefetch() const
    {
        for (uint32_t i = 0; i < min(n_listed, 4u); i++) {
            const cu_site &site = site_of(sm.items[i]);
            for (uint32_t k = 0; k < site.n_parts; k++) {
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    const uint8_t *b = part_b(site.parts[k], m);
                    if (b && warp_n == 0 && lane * 128 < site.parts[k].rank8 * 32)
                        asm volatile("prefetch.global.L2 [%0];" ::"l"(b + lane * 128));
                }
            }
        }
    }

    /* v of the item's tokens, columns [k0, k0 + V_COLS) of the part, zeros elsewhere. */
    __device__ void stage_v(const GroupedItem &it, const cu_part &p, uint32_t k0)
    {
        const bf16 *v = (const bf16 *)g.v + (size_t)tile.first * g.v_width + g.columns[it.segment] +
                        p.col0 + k0;
        uint32_t cols = min((p.rank - k0 + 15) / 16 * 16, (uint32_t)V_COLS);
        __syncthreads();
        for (uint32_t i = tid; i < S::BN * (V_COLS / 2); i += S::THREADS) {
            uint32_t token = i / (V_COLS / 2), c = i % (V_COLS / 2) * 2, pair = 0;
            if (c >= cols)
                continue;
            if (token >= it.first && token < it.last && k0 + c < p.rank) {
                const bf16 *from = v + (size_t)token * g.v_width + c;
                pair = __bfloat16_as_ushort(from[0]);
                if (k0 + c + 1 < p.rank)
                    pair |= (uint32_t)__bfloat16_as_ushort(from[1]) << 16;
            }
            *(uint32_t *)(smem + swizzled(0, token, c / 8) + c % 8 * 2) = pair;
        }
        __syncthreads();
    }

    __device__ void add_part(const cu_part &p, uint32_t k0)
    {
#pragma unroll
        for (int k16 = 0; k16 < V_COLS / 16; k16++) {
            uint32_t k = k0 + k16 * 16, b[NT][2];
            if (k >= p.rank8)
                break;
            load_b(ring, k16, b);
#pragma unroll
            for (int m = 0; m < MT; m++) {
                const uint8_t *from = part_b(p, m);
                if (!from)
                    continue;
                from += k * 32 + lane * 8;
                uint2 low = __ldg((const uint2 *)from), high = make_uint2(0, 0);
                if (k + 8 < p.rank8)
                    high = __ldg((const uint2 *)(from + 256));
                uint32_t a[4] = {low.x, low.y, high.x, high.y};
#pragma unroll
                for (int n = 0; n < NT; n++)
                    mma_16816(acc[m][n], a, b[n]);
            }
        }
    }

    __device__ void add_items()
    {
        for (uint32_t i = 0; i < n_listed; i++) {
            GroupedItem it = sm.items[i];
            const cu_site &site = site_of(it);
            for (uint32_t k = 0; k < site.n_parts; k++) {
                const cu_part &p = site.parts[k];
                bool meets = p.rank && p.out0 < g.n &&
                             (GATED || (p.out0 < out0 + OUTS && p.out0 + p.n_out > out0));
                for (uint32_t k0 = 0; meets && k0 < p.rank; k0 += V_COLS) {
                    stage_v(it, p, k0);
                    add_part(p, k0);
                }
            }
        }
    }

    /* ---- the end ---- */

    /* Outputs into shared memory, a token a row, then out in rows. */
    template <typename T> __device__ void store(int kind, T *y)
    {
        constexpr int STRIDE = OUTS * (int)sizeof(T) + 16, PER = 16 / (int)sizeof(T);
        __syncthreads();
#pragma unroll
        for (int m = 0; m < (GATED ? MT / 2 : MT); m++) {
#pragma unroll
            for (int n = 0; n < NT; n++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    uint32_t token = (warp_n * NT + n) * 8 + lane % 4 * 2 + (e & 1);
                    uint32_t out = out_of(warp_m, m) - out0 + lane / 4 + (e >> 1) * 8;
                    float v = acc[m][n][e];
                    if constexpr (GATED)
                        v = (kind == CU_STORE_GELU ? gelu_tanh(v) : silu(v)) *
                            acc[m + MT / 2][n][e];
                    T *to = (T *)(smem + token * STRIDE) + out;
                    if constexpr (sizeof(T) == 4)
                        *to = v;
                    else
                        *to = __float2bfloat16(v);
                }
            }
        }
        __syncthreads();
        bool whole = n_out % PER == 0;
        for (uint32_t i = tid; i < tile.n * (OUTS / PER); i += S::THREADS) {
            uint32_t token = i / (OUTS / PER), at = i % (OUTS / PER) * PER;
            const T *from = (const T *)(smem + token * STRIDE) + at;
            T *to = y + (size_t)(tile.first + token) * n_out + out0 + at;
            if (whole && out0 + at < n_out) {
                *(uint4 *)to = *(const uint4 *)from;
                continue;
            }
            for (uint32_t k = 0; k < PER && out0 + at + k < n_out; k++)
                to[k] = from[k];
        }
    }

    /* Places and, when they fit one round, segments of the tile. False: there is no such tile. */
    __device__ bool find_tile()
    {
        tile = tile_of(g, blockIdx.x);
        if (tile.n == 0)
            return false;
        w = (const uint8_t *)g.w + (size_t)tile.group * g.n * g.k * 2;
        list_places(g, tile, sm);
        __syncthreads();
        return true;
    }

    __device__ void multiply(bool loaded)
    {
        for (uint32_t i = 0; i < S::STAGES - 1; i++) {
            if (i < n_steps && !loaded)
                load_w(i);
            if (i < n_steps)
                load_x(i);
            cp_async_commit();
        }
        if (g.segments) {
            n_listed = list_segments(g, tile.n, 0, sm);
            prefetch();
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
    }

    __device__ void run(int kind, void *y)
    {
        // One group: its weights do not depend on the kernel before. With adapters that is the
        // shrink, which began after everything else that is read here was there.
        bool early = !g.tiles && !g.segments;
        w = (const uint8_t *)g.w;
        for (uint32_t i = 0; early && i < S::STAGES - 1 && i < n_steps; i++)
            load_w(i);
        if (!g.segments)
            pdl_wait();
        if (!find_tile()) {
            cp_async_commit();
            cp_async_wait<0>();
            if (g.segments)
                pdl_wait();
            return;
        }
        multiply(early);
        if (g.segments) {
            pdl_wait();
            add_items();
            for (uint32_t i0 = S::THREADS; i0 < *g.n_segments; i0 += S::THREADS) {
                n_listed = list_segments(g, tile.n, i0, sm);
                add_items();
            }
        }
        if (kind == CU_STORE_F32)
            store(kind, (float *)y);
        else
            store(kind, (bf16 *)y);
    }
};

template <int WM, int WN, int MT, int NT, bool GATED>
__global__ void __launch_bounds__(WM *WN * 32, 2) gemm_kernel(const cu_grouped g, int kind, void *y)
{
    extern __shared__ __align__(128) uint8_t smem[];
    __shared__ GroupedShared<WM * WN * 32> sm;
    pdl_launch_dependents();
    Worker<WM, WN, MT, NT, GATED> worker(g, sm, smem);
    worker.run(kind, y);
}

template <int WM, int WN, int MT, int NT, bool GATED>
int launch(const cu_grouped *g, int kind, void *y, cudaStream_t stream)
{
    using S = Shape<WM, WN, MT, NT>;
    static_assert(S::BYTES >= S::BN * ((GATED ? S::BM / 2 : S::BM) * 4 + 16), "outputs fit");
    static Allowed allowed;
    cudaError_t e = allow_shared(gemm_kernel<WM, WN, MT, NT, GATED>, S::BYTES, allowed);
    if (e != cudaSuccess)
        return e;
    uint32_t n_out = GATED ? g->n / 2 : g->n, outs = GATED ? S::BM / 2 : S::BM;
    return launch_pdl(gemm_kernel<WM, WN, MT, NT, GATED>,
                      dim3(g->tile_bound, (n_out + outs - 1) / outs), dim3(S::THREADS), S::BYTES,
                      stream, *g, kind, y);
}

template <int NT> int launch_kind(const cu_grouped *g, int kind, void *y, cudaStream_t stream)
{
    if (kind == CU_STORE_SILU || kind == CU_STORE_GELU)
        return launch<4, 1, 2, NT, true>(g, kind, y, stream);
    if constexpr (NT > 2)
        return launch<4, 1, 2, NT, false>(g, kind, y, stream);
    else if (g->n <= 8192) // more CTAs where there are few outputs
        return launch<2, 1, 1, NT, false>(g, kind, y, stream);
    else
        return launch<4, 1, 1, NT, false>(g, kind, y, stream);
}

int launch_wide(const cu_grouped *g, int kind, void *y, cudaStream_t stream)
{
    if (kind == CU_STORE_SILU || kind == CU_STORE_GELU)
        return launch<2, 2, 4, 8, true>(g, kind, y, stream);
    return launch<2, 2, 4, 8, false>(g, kind, y, stream);
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
    case CU_MAX_TILE:
        return launch_wide(g, store, y, stream);
    default:
        return cudaErrorInvalidValue;
    }
}
