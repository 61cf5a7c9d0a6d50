/*
 * complete: how the consumers of a decode step finish a GEMM's output,
 *     y = g * r (sum of planes + sum_j s_j B_j v_j) + b + s_j b_Bj,
 * r is 1 / rms of the token's row where the GEMM was given x w instead of the normalised row
 * (residual.cu), else 1. Which adapters touch the tokens, where their B lies, and what ends a
 * value; completer.cuh does it for the tiles of a CTA, attention_row.cuh for the heads of a row.
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
    uint32_t n = e.v ? *e.n_segments : 0;
    if (threadIdx.x == 0)
        found = Segments{n, 0, 0};
    __syncthreads();
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
        cu_segment s = e.segments[i];
        uint32_t rows = site_of(e, s).n_rows;
        if (s.row0 >= t1 || s.row0 + s.n_rows <= t0 || !rows)
            continue;
        atomicMin(&found.first, i);
        atomicMax(&found.last, i + 1);
        atomicMax(&found.width, e.columns[i] + rows);
    }
    __syncthreads();
    return Segments{found.first, max(found.first, found.last), found.width};
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
#pragma unroll 1
    for (uint32_t k = 0; k < site.n_parts; k++) {
        const cu_part &p = site.parts[k];
        uint32_t local = out - p.out0;
        if (!p.rank || out < p.out0 || local >= p.n_out)
            continue;
        item.b = (const uint8_t *)p.b[local / CU_B_BLOCK] +
                 (size_t)(local % CU_B_BLOCK / 16) * p.rank8 * 32;
        item.column = e.columns[i] + (e.v16 ? p.col16 : p.col0);
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

/* 1 / rms of TOKENS rows from t0 on, by THREADS threads. */
template <int TOKENS, int THREADS = COMPLETE_THREADS>
__device__ __forceinline__ void load_rms(const cu_expand &e, uint32_t t0, float *r)
{
    constexpr int EACH = THREADS / TOKENS < 32 ? THREADS / TOKENS : 32;
    uint32_t t = t0 + threadIdx.x / EACH;
    if (threadIdx.x / EACH >= TOKENS)
        return;
    const float *row = e.ss + (size_t)min(t, e.t - 1) * e.n_ss;
    float sum = 0;
#pragma unroll 2
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

} // namespace lora

#endif
