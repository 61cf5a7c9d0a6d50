/*
 * expand: how every kernel that takes a GEMM's output completes it:
 *     y = g * (sum of planes + sum_j s_j B_j v_j) + b + s_j b_Bj
 * for 8 * NTB tokens by up to TILES tiles of 16 outputs, left in shared memory for the epilogue.
 *
 * B lies in fragment order: per 16 outputs, per 8 of the rank, 256 bytes (lane: rows g and g+8 of
 * columns 2t, 2t+1), so a warp reads it with two 8-byte loads a lane. v was left by the GEMM
 * (planes, summed here) or by shrink (one plane). What does not depend on the kernel before (the
 * segment list, B itself into L2) is fetched before griddepcontrol.wait.
 *
 * KINDS: 0 no adapters, 1 additive ones, 2 all (gains and biases by a row's owner).
 */
#ifndef KERNELS_CUDA_EXPAND_CUH
#define KERNELS_CUDA_EXPAND_CUH

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/launch.h"

namespace lora
{

constexpr int EXPAND_THREADS = 128;
constexpr int EXPAND_WARPS = EXPAND_THREADS / 32;
constexpr int EXPAND_RANK = 64;  // columns of v held at once
constexpr int EXPAND_LIST = 512; // segments that touch a block of tokens

template <int NTB, int TILES> struct ExpandShared {
    static constexpr int TOKENS = NTB * 8;
    static constexpr int V_STRIDE = EXPAND_RANK + 8;
    static constexpr int Y_STRIDE = TILES * 16 + 4;
    float y[TOKENS * Y_STRIDE];
    bf16 v[TOKENS * V_STRIDE];
    uint16_t list[EXPAND_LIST];
    uint32_t n_list;
};

/* One block's work; `out_of(tile)` gives the first output of each of its tiles. */
template <int NTB, int TILES, int KINDS, typename OutOf> struct Expander {
    using Shared = ExpandShared<NTB, TILES>;
    const cu_expand &e;
    Shared &sm;
    OutOf out_of;
    uint32_t t0, n_tiles;
    int tid, warp, lane;
    static constexpr int MINE = (TILES + EXPAND_WARPS - 1) / EXPAND_WARPS;
    float acc[MINE][NTB][4];

    __device__ Expander(const cu_expand &e_, Shared &sm_, OutOf out_of_, uint32_t t0_, uint32_t n)
        : e(e_), sm(sm_), out_of(out_of_), t0(t0_), n_tiles(n)
    {
        tid = threadIdx.x;
        warp = tid / 32;
        lane = tid % 32;
    }

    __device__ const cu_site &site_of(const cu_segment &s) const
    {
        return e.sites[(size_t)s.slot * e.site_stride];
    }

    /* The segments that touch [t0, t0 + tokens), in order; by warp 0. */
    __device__ void list_segments()
    {
        uint32_t n = 0, total = *e.n_segments, end = t0 + NTB * 8;
        for (uint32_t i0 = 0; i0 < total; i0 += 32) {
            uint32_t i = i0 + lane;
            bool touches = false;
            if (i < total) {
                cu_segment s = e.segments[i];
                touches = s.row0 < end && s.row0 + s.n_rows > t0 && site_of(s).n_parts;
            }
            uint32_t mask = __ballot_sync(0xffffffffu, touches);
            uint32_t at = n + __popc(mask & ((1u << lane) - 1));
            if (touches && at < EXPAND_LIST)
                sm.list[at] = (uint16_t)i;
            n += __popc(mask);
        }
        if (lane == 0)
            sm.n_list = min(n, (uint32_t)EXPAND_LIST);
    }

    __device__ const uint8_t *b_tile(const cu_part &p, uint32_t out) const
    {
        uint32_t local = out - p.out0;
        return (const uint8_t *)p.b[local / CU_B_BLOCK] +
               (size_t)(local % CU_B_BLOCK / 16) * (p.rank8 / 8) * 256;
    }

    __device__ static bool has(const cu_part &p, uint32_t out)
    {
        return p.rank && out >= p.out0 && out < p.out0 + p.n_out;
    }

    __device__ void prefetch_b() const
    {
        for (uint32_t i = 0; i < sm.n_list; i++) {
            const cu_site &site = site_of(e.segments[sm.list[i]]);
            for (uint32_t k = 0; k < site.n_parts; k++) {
                const cu_part &p = site.parts[k];
                uint32_t lines = p.rank8 / 8 * 2; // of 128 bytes in a tile
                for (uint32_t j = tid; j < n_tiles * lines; j += EXPAND_THREADS) {
                    uint32_t out = out_of(j / lines);
                    if (has(p, out))
                        asm volatile(
                            "prefetch.global.L2 [%0];" ::"l"(b_tile(p, out) + j % lines * 128));
                }
            }
        }
    }

    /* Before the wait. */
    __device__ void prepare()
    {
        if (KINDS == 0)
            return;
        if (warp == 0)
            list_segments();
        __syncthreads();
        prefetch_b();
    }

    /* The GEMM's output. */
    __device__ void load_base()
    {
#pragma unroll
        for (int m = 0; m < MINE; m++) {
            uint32_t tile = warp + m * EXPAND_WARPS;
#pragma unroll
            for (int n = 0; n < NTB; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    uint32_t t = t0 + n * 8 + lane % 4 * 2 + (i & 1);
                    uint32_t out = tile < n_tiles ? out_of(tile) + lane / 4 + (i >> 1) * 8 : e.n;
                    acc[m][n][i] = t < e.t && out < e.n ? base_value(t, out) : 0.f;
                }
            }
        }
    }

    __device__ float base_value(uint32_t t, uint32_t out) const
    {
        size_t at = (size_t)t * e.n + out;
        if (e.y16)
            return __bfloat162float(((const bf16 *)e.y16)[at]);
        uint32_t planes = e.planes ? e.planes[out / e.block_rows] : 1;
        float sum = e.y[at];
        for (uint32_t p = 1; p < planes; p++)
            sum += e.y[p * ((size_t)e.t * e.n) + at];
        return sum;
    }

    /* v of segment s, part p, rank columns r0…, scaled, into sm.v; rows of other segments stay. */
    __device__ void stage_v(const cu_segment &s, uint32_t column, const cu_part &p, uint32_t r0)
    {
        uint32_t first = max(s.row0, t0), last = min(min(s.row0 + s.n_rows, t0 + NTB * 8), e.t);
        uint32_t width = min(p.rank - r0, (uint32_t)EXPAND_RANK), padded = (width + 15) & ~15u;
        float scale = s.scale * p.scale;
        for (uint32_t i = tid; first < last && i < (last - first) * padded; i += EXPAND_THREADS) {
            uint32_t t = first + i / padded, c = i % padded;
            float sum = 0;
            if (c < width) {
                const float *v = e.v + (size_t)t * e.v_width + column + p.col0 + r0 + c;
                for (uint32_t k = 0; k < e.v_planes; k++)
                    sum += v[k * ((size_t)e.t * e.v_width)];
            }
            sm.v[(t - t0) * Shared::V_STRIDE + c] = __float2bfloat16(sum * scale);
        }
    }

    __device__ void multiply(const cu_segment &s, const cu_part &p, uint32_t r0)
    {
        uint32_t width = min(p.rank8 - r0, (uint32_t)EXPAND_RANK);
        uint32_t first = max(s.row0, t0) - t0, last = min(s.row0 + s.n_rows, t0 + NTB * 8) - t0;
#pragma unroll
        for (int m = 0; m < MINE; m++) {
            uint32_t tile = warp + m * EXPAND_WARPS;
            if (tile >= n_tiles || !has(p, out_of(tile)))
                continue;
            const uint8_t *b = b_tile(p, out_of(tile)) + r0 / 8 * 256 + lane * 8;
            uint2 a[EXPAND_RANK / 8];
#pragma unroll
            for (int k = 0; k < EXPAND_RANK / 8; k++)
                a[k] = k * 8 < (int)width ? __ldg((const uint2 *)(b + k * 256)) : make_uint2(0, 0);
#pragma unroll
            for (int n = 0; n < NTB; n++) {
                if (n * 8 + 8 <= (int)first || n * 8 >= (int)last)
                    continue;
                int row = n * 8 + lane / 4;
                bool in = row >= (int)first && row < (int)last;
                const uint32_t *v = (const uint32_t *)(sm.v + row * Shared::V_STRIDE) + lane % 4;
#pragma unroll
                for (int k = 0; k < EXPAND_RANK / 16; k++) {
                    if (k * 16 >= (int)width)
                        break;
                    uint32_t w[4] = {a[2 * k].x, a[2 * k].y, a[2 * k + 1].x, a[2 * k + 1].y};
                    uint32_t x[2] = {in ? v[k * 8] : 0, in ? v[k * 8 + 4] : 0};
                    mma_16816(acc[m][n], w, x);
                }
            }
        }
    }

    /* How many listed segments from i on have disjoint rows, so that their v fit side by side. */
    __device__ uint32_t run_length(uint32_t i) const
    {
        uint32_t n = 0, end = 0;
        for (; i + n < sm.n_list; n++) {
            cu_segment s = e.segments[sm.list[i + n]];
            if (n && s.row0 < end)
                break;
            end = s.row0 + s.n_rows;
        }
        return n;
    }

    __device__ void expand()
    {
        for (uint32_t i = 0; i < sm.n_list;) {
            uint32_t run = run_length(i);
            for (uint32_t part = 0; part < CU_MAX_PARTS; part++)
                expand_run(i, run, part);
            i += run;
        }
    }

    __device__ const cu_part *part_of(uint32_t i, uint32_t part, uint32_t r0, cu_segment *s) const
    {
        *s = e.segments[sm.list[i]];
        const cu_site &site = site_of(*s);
        if (part >= site.n_parts || site.parts[part].rank <= r0)
            return nullptr;
        const cu_part *p = &site.parts[part];
        uint32_t low = out_of(0), high = out_of(n_tiles - 1) + 16;
        return p->out0 < high && p->out0 + p->n_out > low ? p : nullptr;
    }

    __device__ void expand_run(uint32_t i0, uint32_t n, uint32_t part)
    {
        for (uint32_t r0 = 0;; r0 += EXPAND_RANK) {
            bool any = false;
            cu_segment s;
            for (uint32_t i = i0; i < i0 + n; i++) {
                const cu_part *p = part_of(i, part, r0, &s);
                if (!p)
                    continue;
                any = true;
                stage_v(s, e.columns[sm.list[i]], *p, r0);
            }
            if (!any)
                return;
            __syncthreads();
            for (uint32_t i = i0; i < i0 + n; i++) {
                const cu_part *p = part_of(i, part, r0, &s);
                if (p)
                    multiply(s, *p, r0);
            }
            __syncthreads();
        }
    }

    /* y = g y + b + s b_B of one value. */
    __device__ float finish(float y, uint32_t t, uint32_t out) const
    {
        float b = e.bias ? e.bias[out] : 0.f;
        if (KINDS < 2)
            return y + b;
        int owner = e.owner[t];
        if (owner >= 0) {
            const cu_site &site = site_of(e.segments[owner]);
            for (uint32_t k = 0; k < site.n_parts; k++) {
                const cu_part &p = site.parts[k];
                if (out < p.out0 || out >= p.out0 + p.n_out)
                    continue;
                if (p.gain)
                    y *= p.gain[out - p.out0];
                if (p.bias)
                    b = p.bias[out - p.out0];
            }
        }
        y += b;
        for (uint32_t i = 0; i < sm.n_list; i++) {
            cu_segment s = e.segments[sm.list[i]];
            if (t < s.row0 || t >= s.row0 + s.n_rows)
                continue;
            const cu_site &site = site_of(s);
            for (uint32_t k = 0; k < site.n_parts; k++) {
                const cu_part &p = site.parts[k];
                if (p.lora_bias && out >= p.out0 && out < p.out0 + p.n_out)
                    y += s.scale * p.scale * p.lora_bias[out - p.out0];
            }
        }
        return y;
    }

    __device__ void store()
    {
#pragma unroll
        for (int m = 0; m < MINE; m++) {
            uint32_t tile = warp + m * EXPAND_WARPS;
            if (tile >= n_tiles)
                continue;
#pragma unroll
            for (int n = 0; n < NTB; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    uint32_t t = n * 8 + lane % 4 * 2 + (i & 1), r = lane / 4 + (i >> 1) * 8;
                    uint32_t out = out_of(tile) + r;
                    float y = t0 + t < e.t && out < e.n ? finish(acc[m][n][i], t0 + t, out) : 0.f;
                    sm.y[t * Shared::Y_STRIDE + tile * 16 + r] = y;
                }
            }
        }
    }

    /* After this sm.y[token * Y_STRIDE + tile * 16 + output] is complete. */
    __device__ void run()
    {
        pdl_launch_dependents();
        prepare();
        pdl_wait();
        load_base();
        if (KINDS != 0)
            expand();
        store();
        __syncthreads();
    }
};

template <int NTB, int TILES, int KINDS, typename OutOf>
__device__ __forceinline__ void expand_block(const cu_expand &e, ExpandShared<NTB, TILES> &sm,
                                             uint32_t t0, uint32_t n_tiles, OutOf out_of)
{
    Expander<NTB, TILES, KINDS, OutOf> x(e, sm, out_of, t0, n_tiles);
    x.run();
}

} // namespace lora

#endif
