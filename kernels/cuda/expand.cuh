/*
 * expand: how a kernel that takes a GEMM's output completes it:
 *     y = g * (sum of planes + sum_j s_j B_j v_j) + b + s_j b_Bj
 * for 8 * NTB tokens by up to TILES tiles of 16 outputs: rotation in steps with prompts and logits,
 * and what has no kernel of its own for what it is given (completer.cuh, attention_row.cuh,
 * between_large.cu). In steps of more than CU_SMALL_ROWS rows expand_add.cu has added B v to all
 * but logits: there SUMS is false, or Completed is enough.
 *
 * A warp has whole tiles of 16 outputs and goes over the segments alone: B from global memory in
 * fragment order (per 16 outputs, per 8 of the rank, 256 bytes; lane: rows g and g+8 of columns 2t,
 * 2t+1), v from global memory straight into fragments. What does not depend on the kernel before
 * (which segments touch the block, their B into L2) is fetched before griddepcontrol.wait. The sums
 * go to shared memory; the epilogue adds them to the GEMM's output, which it reads in rows.
 *
 * v is float32 planes after gemm_small, bf16 and scaled after shrink.
 * KINDS: 0 no adapters, 1 additive ones, 2 all (gains and biases by a row's owner).
 */
#ifndef KERNELS_CUDA_EXPAND_CUH
#define KERNELS_CUDA_EXPAND_CUH

#include "kernels/cuda/complete.cuh"

namespace lora
{

constexpr int EXPAND_THREADS = 128;
constexpr int EXPAND_WARPS = EXPAND_THREADS / 32;

/* Outputs two at a time: planes summed, and what ends a value whose B v has been added. */
template <int KINDS> struct Completed {
    const cu_expand &e;

    /* Where an odd vocabulary leaves rows unaligned. */
    __device__ float base_value(size_t at, uint32_t out) const
    {
        if (e.y16)
            return __bfloat162float(((const bf16 *)e.y16)[at]);
        uint32_t planes = e.planes ? e.planes[out / e.block_rows] : 1;
        float sum = e.y[at];
        for (uint32_t p = 1; p < planes; p++)
            sum += e.y[p * ((size_t)e.t * e.n) + at];
        return sum;
    }

    /* Of token t, output `out` (even). */
    __device__ float2 base_pair(uint32_t t, uint32_t out) const
    {
        size_t at = (size_t)t * e.n + out;
        if (e.n & 1)
            return make_float2(base_value(at, out),
                               out + 1 < e.n ? base_value(at + 1, out + 1) : 0.f);
        if (e.y16)
            return unpack_bf16(((const uint32_t *)e.y16)[at / 2]);
        uint32_t planes = e.planes ? e.planes[out / e.block_rows] : 1;
        const float *y = e.y + at;
        size_t plane = (size_t)e.t * e.n;
        float2 sum = make_float2(0, 0);
        for (uint32_t p = 0; p < planes; p += 4, y += 4 * plane) { // four loads in flight
            float2 v[4];
#pragma unroll
            for (int k = 0; k < 4; k++)
                v[k] = p + k < planes ? __ldcg((const float2 *)(y + k * plane)) : make_float2(0, 0);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                sum.x += v[k].x;
                sum.y += v[k].y;
            }
        }
        return sum;
    }

    __device__ float2 finished(float2 y, uint32_t t, uint32_t out) const
    {
        bool both = out + 1 < e.n;
        if (KINDS == 2)
            return make_float2(finish_value(e, y.x, t, out),
                               both ? finish_value(e, y.y, t, out + 1) : 0.f);
        if (e.bias) {
            y.x += e.bias[out];
            y.y += both ? e.bias[out + 1] : 0.f;
        }
        return y;
    }

    __device__ float2 pair(uint32_t t, uint32_t out) const
    {
        return finished(base_pair(t, out), t, out);
    }
};

/* What one segment brings to one tile of outputs. */
struct ExpandItem {
    const uint8_t *b;     // the tile's first fragment
    uint32_t column;      // of v
    uint16_t first, last; // tokens, from the block's first
    uint16_t rank, rank8;
    float scale;
};

template <int NTB, int TILES> struct ExpandShared {
    static constexpr int TOKENS = NTB * 8;
    static constexpr int Y_STRIDE = TILES * 16 + 4;
    float y[TOKENS * Y_STRIDE];
    ExpandItem items[EXPAND_WARPS][32];
};

template <int NTB, int TILES, int KINDS, bool SUMS, typename OutOf> struct Expander {
    static constexpr bool ADDS = SUMS && KINDS != 0;
    using Shared = ExpandShared<NTB, TILES>;
    const cu_expand &e;
    Shared &sm;
    OutOf out_of;
    uint32_t t0, n_tiles;
    int tid, warp, lane;
    bool changed;             // sm.y holds sums
    const float *r = nullptr; // shared [tokens]: 1 / rms, where e.ss is given

    __device__ Expander(const cu_expand &e_, Shared &sm_, OutOf out_of_, uint32_t t0_, uint32_t n)
        : e(e_), sm(sm_), out_of(out_of_), t0(t0_), n_tiles(n), changed(false)
    {
        tid = threadIdx.x;
        warp = tid / 32;
        lane = tid % 32;
    }

    /* The item of segment i for the tile at `out`; false: none. */
    __device__ bool make_item(uint32_t i, uint32_t out, ExpandItem *item) const
    {
        cu_segment s = e.segments[i];
        uint32_t end = t0 + NTB * 8;
        if (s.row0 >= end || s.row0 + s.n_rows <= t0)
            return false;
        const cu_site &site = site_of(e, s);
        for (uint32_t k = 0; k < site.n_parts; k++) {
            const cu_part &p = site.parts[k];
            uint32_t local = out - p.out0;
            if (!p.rank || out < p.out0 || local >= p.n_out)
                continue;
            item->b = (const uint8_t *)p.b[local / CU_B_BLOCK] +
                      (size_t)(local % CU_B_BLOCK / 16) * p.rank8 * 32;
            item->column = e.columns[i] + (e.v16 ? p.col16 : p.col0);
            item->first = (uint16_t)(max(s.row0, t0) - t0);
            item->last = (uint16_t)(min(s.row0 + s.n_rows, end) - t0);
            item->rank = (uint16_t)p.rank;
            item->rank8 = (uint16_t)p.rank8;
            item->scale = s.scale * p.scale;
            return true;
        }
        return false;
    }

    /* Items of segments [i0, i0 + 32) for the tile, in order, into this warp's list. */
    __device__ uint32_t list_items(uint32_t i0, uint32_t n_segments, uint32_t out)
    {
        ExpandItem item;
        bool has = i0 + lane < n_segments && make_item(i0 + lane, out, &item);
        uint32_t mask = __ballot_sync(0xffffffffu, has);
        __syncwarp();
        if (has)
            sm.items[warp][__popc(mask & ((1u << lane) - 1))] = item;
        __syncwarp();
        return __popc(mask);
    }

    __device__ void prefetch(uint32_t n) const
    {
        for (uint32_t i = 0; i < n; i++) {
            const ExpandItem &it = sm.items[warp][i];
            if (lane * 128 < it.rank8 * 32)
                asm volatile("prefetch.global.L2 [%0];" ::"l"(it.b + lane * 128));
        }
    }

    /* v of token n * 8 + lane / 4, columns k + 2 (lane % 4) … of the fragment, as bf16 pairs. */
    __device__ void load_v(const ExpandItem &it, int n, uint32_t k, uint32_t x[2]) const
    {
        uint32_t row = n * 8 + lane / 4, t = t0 + row, c = k + lane % 4 * 2;
        bool in = row >= it.first && row < it.last;
        x[0] = x[1] = 0;
        if (!in)
            return;
        if (e.v16) {
            const bf16 *v = (const bf16 *)e.v16 + (size_t)t * e.v_width + it.column;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                uint32_t at = c + h * 8;
                if (at + 1 < it.rank)
                    x[h] = (uint32_t)__bfloat16_as_ushort(v[at]) |
                           (uint32_t)__bfloat16_as_ushort(v[at + 1]) << 16;
                else if (at < it.rank)
                    x[h] = __bfloat16_as_ushort(v[at]);
            }
            return;
        }
        const float *v = e.v + (size_t)t * e.v_width + it.column;
        size_t plane = (size_t)e.t * e.v_width;
        float sum[4] = {0, 0, 0, 0};
        for (uint32_t p = 0; p < e.v_planes; p++, v += plane) {
#pragma unroll
            for (int h = 0; h < 4; h++) {
                uint32_t at = c + (h & 1) + (h >> 1) * 8;
                sum[h] += at < it.rank ? v[at] : 0.f;
            }
        }
        x[0] = pack_bf16(sum[0] * it.scale, sum[1] * it.scale);
        x[1] = pack_bf16(sum[2] * it.scale, sum[3] * it.scale);
    }

    __device__ void multiply(const ExpandItem &it, float acc[NTB][4]) const
    {
        for (uint32_t k = 0; k < it.rank8; k += 16) {
            const uint8_t *b = it.b + k * 32 + lane * 8;
            uint2 low = __ldg((const uint2 *)b), high = make_uint2(0, 0);
            if (k + 8 < it.rank8)
                high = __ldg((const uint2 *)(b + 256));
            uint32_t w[4] = {low.x, low.y, high.x, high.y};
#pragma unroll
            for (int n = 0; n < NTB; n++) {
                if (n * 8 + 8 <= it.first || n * 8 >= it.last)
                    continue;
                uint32_t x[2];
                load_v(it, n, k, x);
                mma_16816(acc[n], w, x);
            }
        }
    }

    __device__ void store(uint32_t tile, const float acc[NTB][4])
    {
#pragma unroll
        for (int n = 0; n < NTB; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                sm.y[(n * 8 + lane % 4 * 2 + (i & 1)) * Shared::Y_STRIDE + tile * 16 + lane / 4 +
                     (i >> 1) * 8] = acc[n][i];
        }
    }

    /* Tiles of this warp; `ready` items of its first tile and 32 segments are listed already. */
    __device__ void sum_tiles(uint32_t n_segments, uint32_t ready)
    {
        for (uint32_t tile = warp; tile < n_tiles; tile += EXPAND_WARPS) {
            float acc[NTB][4] = {};
            for (uint32_t i0 = 0; i0 < n_segments; i0 += 32) {
                uint32_t n = tile == (uint32_t)warp && i0 == 0
                                 ? ready
                                 : list_items(i0, n_segments, out_of(tile));
#pragma unroll 2
                for (uint32_t i = 0; i < n; i++)
                    multiply(sm.items[warp][i], acc);
            }
            store(tile, acc);
        }
    }

    /* Whether a segment with a part in this site touches the block. */
    __device__ bool any_segment(uint32_t n_segments) const
    {
        bool touches = false;
        for (uint32_t i = tid; i < n_segments; i += EXPAND_THREADS) {
            cu_segment s = e.segments[i];
            touches |= s.row0 < t0 + NTB * 8 && s.row0 + s.n_rows > t0 && site_of(e, s).n_groups;
        }
        return __syncthreads_or(touches);
    }

    __device__ void run()
    {
        pdl_launch_dependents();
        uint32_t n_segments = 0, ready = 0;
        if (ADDS) {
            n_segments = e.v || e.v16 ? *e.n_segments : 0;
            changed = any_segment(n_segments);
            if (changed && (uint32_t)warp < n_tiles) {
                ready = list_items(0, n_segments, out_of(warp));
                prefetch(ready);
            }
        }
        pdl_wait();
        if (ADDS && changed) {
            sum_tiles(n_segments, ready);
            __syncthreads();
        }
    }

    /* Token t of the step, output `out` (even), column of sm.y. */
    __device__ float2 pair(uint32_t t, uint32_t out, uint32_t column) const
    {
        Completed<KINDS> base{e};
        float2 y = base.base_pair(t, out);
        if (ADDS && changed) {
            const float *sum = sm.y + (t - t0) * Shared::Y_STRIDE + column;
            y.x += sum[0];
            y.y += sum[1];
        }
        if (r) {
            y.x *= r[t - t0];
            y.y *= r[t - t0];
        }
        return base.finished(y, t, out);
    }
};

} // namespace lora

#endif
