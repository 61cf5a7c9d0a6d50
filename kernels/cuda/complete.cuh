/*
 * complete: how the consumers of a decode step finish a GEMM's output,
 *     y = g * r (sum of planes + sum_j s_j B_j v_j) + b + s_j b_Bj,
 * in the layout of the MMA's result: a warp has tiles of 16 outputs (M) of 8 tokens (N), a lane
 * outputs lane / 4 and + 8 of tokens 2 (lane % 4) and + 1 of each. r is 1 / rms of the token's row
 * where the GEMM was given x w instead of the normalised row (residual.cu), else 1.
 *
 * Little shared memory and no barrier without adapters: these kernels stand beside a GEMM that has
 * nearly all of a multiprocessor's. Which adapters touch the tokens, their B's addresses and the
 * first of their B are fetched before griddepcontrol.wait. v's planes are summed once a CTA.
 */
#ifndef KERNELS_CUDA_COMPLETE_CUH
#define KERNELS_CUDA_COMPLETE_CUH

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/launch.h"

namespace lora
{

constexpr int COMPLETE_THREADS = 128;
constexpr uint32_t COMPLETE_COLUMNS = 64; // of v in shared memory at a time

__device__ __forceinline__ const cu_site &site_of(const cu_expand &e, const cu_segment &s)
{
    return e.sites[(size_t)s.slot * e.site_stride];
}

/* g y + b + s b_B of one value (kinds that are not additive). */
static __device__ __noinline__ float finish_value(const cu_expand &e, float y, uint32_t t,
                                                  uint32_t out)
{
    float b = e.bias ? e.bias[out] : 0.f;
    int owner = e.owner[t];
    if (owner >= 0) {
        const cu_site &site = site_of(e, e.segments[owner]);
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
    for (uint32_t i = 0, n = *e.n_segments; i < n; i++) {
        cu_segment s = e.segments[i];
        if (t < s.row0 || t >= s.row0 + s.n_rows)
            continue;
        const cu_site &site = site_of(e, s);
        for (uint32_t k = 0; k < site.n_parts; k++) {
            const cu_part &p = site.parts[k];
            if (p.lora_bias && out >= p.out0 && out < p.out0 + p.n_out)
                y += s.scale * p.scale * p.lora_bias[out - p.out0];
        }
    }
    return y;
}

/* The base's and the adapters' biases, and gains. */
template <int KINDS>
__device__ __forceinline__ float finish(const cu_expand &e, float y, uint32_t t, uint32_t out)
{
    if (KINDS == 2)
        return finish_value(e, y, t, out);
    return e.bias ? y + e.bias[out] : y;
}

/* Segments that touch some tokens: all of them are in [first, last); their v ends before `width`.
 */
struct Segments {
    uint32_t first, last, width;
};

/* By all threads of the CTA. */
__device__ inline Segments find_segments(const cu_expand &e, uint32_t t0, uint32_t t1)
{
    __shared__ Segments found;
    uint32_t n = *e.n_segments;
    if (threadIdx.x == 0)
        found = Segments{n, 0, 0};
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
        cu_segment s = e.segments[i];
        uint32_t rows = site_of(e, s).n_rows;
        if (s.row0 >= t1 || s.row0 + s.n_rows <= t0 || !rows)
            continue;
        atomicMin(&found.first, i);
        atomicMax(&found.last, i + 1);
        const cu_part &end = site_of(e, s).parts[site_of(e, s).n_parts - 1];
        atomicMax(&found.width, e.columns[i] + (e.v_padded ? end.col16 + end.rank : rows));
    }
    __syncthreads();
    return Segments{found.first, max(found.first, found.last), found.width};
}

/* A column of A x of one token: planes summed. */
__device__ __forceinline__ float v_value(const cu_expand &e, uint32_t t, uint32_t column)
{
    if (e.v16)
        return __bfloat162float(((const bf16 *)e.v16)[(size_t)t * e.v_width + column]);
    const float *v = e.v + (size_t)t * e.v_width + column;
    float sum = 0;
    for (uint32_t p = 0; p < e.v_planes; p += 8, v += 8 * (size_t)e.t * e.v_width) {
        float part[8];
#pragma unroll
        for (int k = 0; k < 8; k++)
            part[k] = p + k < e.v_planes ? __ldcg(v + k * ((size_t)e.t * e.v_width)) : 0.f;
#pragma unroll
        for (int k = 0; k < 8; k++)
            sum += part[k];
    }
    return sum;
}

/* What one segment brings to 16 outputs. */
struct CompleteItem {
    const uint8_t *b; // fragments of these outputs
    uint32_t column;  // of v
    uint32_t rows;    // tokens of the CTA's: first | last << 16; 0: nothing
    uint32_t rank;    // rank | rank8 << 16
    float scale;
};

/* Segment i at outputs [out, out + 16). */
__device__ inline CompleteItem complete_item(const cu_expand &e, uint32_t i, uint32_t out,
                                             uint32_t t0, uint32_t t1)
{
    CompleteItem item = {};
    cu_segment s = e.segments[i];
    if (s.row0 >= t1 || s.row0 + s.n_rows <= t0 || out >= e.n)
        return item;
    const cu_site &site = site_of(e, s);
    for (uint32_t k = 0; k < site.n_parts; k++) {
        const cu_part &p = site.parts[k];
        uint32_t local = out - p.out0;
        if (!p.rank || out < p.out0 || local >= p.n_out)
            continue;
        item.b = (const uint8_t *)p.b[local / CU_B_BLOCK] +
                 (size_t)(local % CU_B_BLOCK / 16) * p.rank8 * 32;
        item.column = e.columns[i] + (e.v_padded ? p.col16 : p.col0);
        item.rows = (max(s.row0, t0) - t0) | (min(s.row0 + s.n_rows, t1) - t0) << 16;
        item.rank = p.rank | p.rank8 << 16;
        item.scale = (e.v16 ? 1.f : s.scale * p.scale);
        break;
    }
    return item;
}

__device__ __forceinline__ CompleteItem item_of_lane(const CompleteItem &mine, int lane)
{
    CompleteItem it;
    it.b = (const uint8_t *)__shfl_sync(0xffffffffu, (unsigned long long)mine.b, lane);
    it.column = __shfl_sync(0xffffffffu, mine.column, lane);
    it.rows = __shfl_sync(0xffffffffu, mine.rows, lane);
    it.rank = __shfl_sync(0xffffffffu, mine.rank, lane);
    it.scale = __shfl_sync(0xffffffffu, mine.scale, lane);
    return it;
}

/* 1 / rms of TOKENS rows from t0 on, by COMPLETE_THREADS threads. */
template <int TOKENS>
__device__ __forceinline__ void load_rms(const cu_expand &e, uint32_t t0, float *r)
{
    constexpr int EACH = COMPLETE_THREADS / TOKENS;
    uint32_t t = t0 + threadIdx.x / EACH;
    const float *row = e.ss + (size_t)min(t, e.t - 1) * e.n_ss;
    float sum = 0;
#pragma unroll 4
    for (uint32_t i = threadIdx.x % EACH * 4; i < e.n_ss; i += EACH * 4) {
        float4 v = __ldcg((const float4 *)(row + i));
        sum += v.x + v.y + (v.z + v.w);
    }
#pragma unroll
    for (int i = EACH / 2; i; i >>= 1)
        sum += __shfl_xor_sync(0xffffffffu, sum, i);
    if (threadIdx.x % EACH == 0)
        r[threadIdx.x / EACH] = rsqrtf(sum * e.ss_scale + e.eps);
}

/* NT tiles of 8 tokens. */
template <int NT> struct CompleteShared {
    static constexpr int TOKENS = NT * 8, STRIDE = COMPLETE_COLUMNS + 4;
    alignas(16) float v[TOKENS * STRIDE];
    float r[TOKENS];
};

/* 16 rank columns of B at 16 outputs. */
__device__ __forceinline__ void load_b16(const uint8_t *b, uint32_t k, uint32_t rank8, int lane,
                                         uint32_t w[4])
{
    const uint8_t *at = b + k * 32 + lane * 8;
    uint2 low = __ldg((const uint2 *)at), high = make_uint2(0, 0);
    if (k + 8 < rank8)
        high = __ldg((const uint2 *)(at + 256));
    w[0] = low.x;
    w[1] = low.y;
    w[2] = high.x;
    w[3] = high.y;
}

/* A CTA's 8 NT tokens from t0 on; each warp completes TILES tiles of 16 outputs. */
template <int NT, int TILES, int KINDS> struct Completer {
    static constexpr int TOKENS = NT * 8;
    static constexpr int AHEAD = 4; // items whose B is on its way at once
    static constexpr bool EARLY_V = NT == 1;
    using Shared = CompleteShared<NT>;

    const cu_expand &e;
    Shared &sm;
    uint32_t t0, t1;
    int tid, lane;
    Segments segments;
    uint32_t out[TILES], planes[TILES];
    CompleteItem item[TILES];
    uint32_t b[TILES][AHEAD][4];
    float4 early_v[4];

    __device__ Completer(const cu_expand &e_, Shared &sm_, uint32_t t0_)
        : e(e_), sm(sm_), t0(t0_), t1(min(t0_ + TOKENS, e_.t)), tid(threadIdx.x),
          lane(threadIdx.x % 32), segments{0, 0, 0}
    {
    }

    /* Token, from t0 on, and output, from the tile's first on, of value i of token tile n. */
    __device__ uint32_t token_of(int n, int i) const
    {
        return n * 8 + lane % 4 * 2 + (i & 1);
    }
    __device__ uint32_t output_of(int i) const
    {
        return lane / 4 + (i >> 1) * 8;
    }

    /* Before the wait; o[k]: first output of this warp's tile k, e.n or more for none. */
    __device__ void prepare(const uint32_t o[TILES])
    {
        if (KINDS != 0)
            segments = find_segments(e, t0, t1);
#pragma unroll
        for (int k = 0; k < TILES; k++) {
            out[k] = o[k];
            planes[k] = o[k] < e.n && e.planes ? e.planes[o[k] / e.block_rows] : 1;
            if (KINDS != 0 && segments.first < segments.last) {
                item[k] = item_at(segments.first + lane, o[k]);
                fetch(k, __ballot_sync(0xffffffffu, item[k].rows != 0));
            }
        }
    }

    __device__ CompleteItem item_at(uint32_t i, uint32_t o) const
    {
        return i < segments.last ? complete_item(e, i, o, t0, t1) : CompleteItem{};
    }

    /* B of the first AHEAD items of tile k in `mask`, at their first 16 columns. */
    __device__ void fetch(int k, uint32_t mask)
    {
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            if (mask) {
                CompleteItem it = item_of_lane(item[k], __ffs(mask) - 1);
                load_b16(it.b, 0, it.rank >> 16, lane, b[k][a]);
            }
            mask &= mask - 1;
        }
    }

    /* The planes' sum at this lane's values of tile k. */
    __device__ void load_base(int k, float y[NT][4]) const
    {
        size_t plane = (size_t)e.t * e.n;
        const float *from = e.y + (size_t)(t0 + lane % 4 * 2) * e.n + out[k] + lane / 4;
#pragma unroll
        for (int n = 0; n < NT; n++)
            y[n][0] = y[n][1] = y[n][2] = y[n][3] = 0;
        for (uint32_t p = 0; p < planes[k]; p += 2) {
            float v[2][NT][4];
#pragma unroll
            for (int h = 0; h < 2; h++) {
#pragma unroll
                for (int n = 0; n < NT; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        bool in = p + h < planes[k] && t0 + token_of(n, i) < e.t &&
                                  out[k] + output_of(i) < e.n;
                        const float *at = from + (p + h) * plane +
                                          (uint32_t)(n * 8 + (i & 1)) * e.n + (i >> 1) * 8;
                        v[h][n][i] = in ? __ldcg(at) : 0.f;
                    }
                }
            }
#pragma unroll
            for (int n = 0; n < NT; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++)
                    y[n][i] += v[0][n][i] + v[1][n][i];
            }
        }
    }

    /* Planes [p, p + 4) of four columns of v of a token; zeros where there are none. */
    __device__ void load_v(uint32_t w, int n, uint32_t p, float4 v[4]) const
    {
        uint32_t c = tid % 16 * 4, t = t0 + n * 8 + tid / 16;
        size_t plane = (size_t)e.t * e.v_width;
        bool in = t < e.t && w + c < segments.width;
        const float *from = e.v + (in ? (size_t)t * e.v_width + w + c : 0);
#pragma unroll
        for (int i = 0; i < 4; i++)
            v[i] = in && p + i < e.v_planes ? __ldcg((const float4 *)(from + (p + i) * plane))
                                            : make_float4(0, 0, 0, 0);
    }

    /* After the wait, before load_base: so that all loads fly together. */
    __device__ void begin_v()
    {
        if (KINDS != 0 && EARLY_V && segments.width)
            load_v(0, 0, 0, early_v);
    }

    /* Columns [w, w + COMPLETE_COLUMNS) of v, to shared memory. */
    __device__ void share_v(uint32_t w)
    {
        uint32_t c = tid % 16 * 4;
#pragma unroll
        for (int n = 0; n < NT; n++) {
            float4 sum = make_float4(0, 0, 0, 0);
            for (uint32_t p = 0; p < e.v_planes; p += 4) {
                float4 v[4] = {early_v[0], early_v[1], early_v[2], early_v[3]};
                if (!EARLY_V || w || p)
                    load_v(w, n, p, v);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    sum.x += v[i].x;
                    sum.y += v[i].y;
                    sum.z += v[i].z;
                    sum.w += v[i].w;
                }
            }
            *(float4 *)(sm.v + (n * 8 + tid / 16) * Shared::STRIDE + c) = sum;
        }
    }

    /* acc += B v at 16 columns of the rank from k on, as far as they lie in the window at w. */
    __device__ void multiply(const CompleteItem &it, uint32_t w, uint32_t k, const uint32_t b16[4],
                             float acc[NT][4]) const
    {
        uint32_t begin = it.rows & 0xffff, end = it.rows >> 16, rank = it.rank & 0xffff;
        uint32_t c = k + lane % 4 * 2, at = it.column + c - w;
        float scale[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t j = (i & 1) + (i >> 1) * 8;
            scale[i] = c + j < rank && at + j < COMPLETE_COLUMNS ? it.scale : 0.f;
        }
#pragma unroll
        for (int n = 0; n < NT; n++) {
            if (n * 8 >= (int)end || n * 8 + 8 <= (int)begin)
                continue;
            uint32_t token = n * 8 + lane / 4, x[2] = {0, 0};
            const float *v = sm.v + token * Shared::STRIDE;
            if (token >= begin && token < end) {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    float low = scale[2 * h] != 0.f ? v[at + h * 8] : 0.f;
                    float high = scale[2 * h + 1] != 0.f ? v[at + h * 8 + 1] : 0.f;
                    x[h] = pack_bf16(low * scale[2 * h], high * scale[2 * h + 1]);
                }
            }
            mma_16816(acc[n], b16, x);
        }
    }

    /* Adds what the items of tile k in `mask` bring; `ready`: the first ones' B is there. */
    __device__ void add_items(int k, uint32_t mask, bool ready, uint32_t w, float acc[NT][4])
    {
        while (mask) {
            if (!ready)
                fetch(k, mask);
            ready = false;
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                if (mask) {
                    CompleteItem it = item_of_lane(item[k], __ffs(mask) - 1);
#pragma unroll 1
                    for (uint32_t r = 0; r < it.rank >> 16; r += 16) {
                        if (r)
                            load_b16(it.b, r, it.rank >> 16, lane, b[k][a]);
                        if (it.column + r + 16 > w && it.column + r < w + COMPLETE_COLUMNS)
                            multiply(it, w, r, b[k][a], acc);
                    }
                }
                mask &= mask - 1;
            }
        }
    }

    /* y: the planes' sums in, completed values out. After the wait, by all threads of the CTA. */
    __device__ void complete(float y[TILES][NT][4])
    {
        if (e.ss)
            load_rms<TOKENS>(e, t0, sm.r);
        for (uint32_t w = 0; KINDS != 0 && w < segments.width; w += COMPLETE_COLUMNS) {
            if (w)
                __syncthreads();
            share_v(w);
            __syncthreads();
#pragma unroll
            for (int k = 0; k < TILES; k++) {
                for (uint32_t i0 = segments.first; i0 < segments.last; i0 += 32) {
                    bool ready = w == 0 && i0 == segments.first;
                    if (!ready)
                        item[k] = item_at(i0 + lane, out[k]);
                    add_items(k, __ballot_sync(0xffffffffu, item[k].rows != 0), ready, w, y[k]);
                }
            }
        }
        if (e.ss && (KINDS == 0 || segments.width == 0))
            __syncthreads();
#pragma unroll
        for (int k = 0; k < TILES; k++) {
#pragma unroll
            for (int n = 0; n < NT; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    uint32_t token = token_of(n, i), o = out[k] + output_of(i);
                    if (e.ss)
                        y[k][n][i] *= sm.r[token];
                    if (t0 + token < e.t && o < e.n)
                        y[k][n][i] = finish<KINDS>(e, y[k][n][i], t0 + token, o);
                }
            }
        }
    }
};

} // namespace lora

#endif
