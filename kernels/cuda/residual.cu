/*
 * residual: x[T, N] += y of a completed o or down projection (or y alone, where a norm comes
 * between). Up to CU_SMALL_ROWS rows the norm that follows is begun here: h = x w for the next GEMM
 * and the sums of x^2, by which its consumer divides (complete.cuh): a kernel less in the chain,
 * and none that has one multiprocessor a row. Bytes: the planes of y and x once each way.
 */
#include "kernels/cuda/completer.cuh"
#include "kernels/cuda/expand.cuh"
#include "kernels/cuda/norm.cuh"

using namespace lora;

namespace
{

constexpr int THREADS = 128, TOKENS = 64, WIDTH = 64;

/* Many rows: a CTA has WIDTH outputs of TOKENS tokens. */
template <int KINDS>
__global__ void __launch_bounds__(THREADS) residual_kernel(const cu_expand e, float *x, float *out)
{
    uint32_t t0 = blockIdx.y * TOKENS, out0 = blockIdx.x * WIDTH;
    Completed<KINDS> y{e};
    pdl_launch_dependents();
    pdl_wait();
    constexpr int PAIRS = WIDTH / 2, MINE = TOKENS * PAIRS / THREADS;
    float *dst = out ? out : x;
    float2 v[MINE];
#pragma unroll
    for (int k = 0; k < MINE; k++) { // all loads before the first store
        int i = k * THREADS + threadIdx.x;
        uint32_t t = t0 + i / PAIRS, o = i % PAIRS * 2;
        v[k] = make_float2(0, 0);
        if (t >= e.t || out0 + o >= e.n)
            continue;
        v[k] = y.pair(t, out0 + o);
        if (!out) {
            float2 old = __ldcg((const float2 *)(x + (size_t)t * e.n + out0 + o));
            v[k].x += old.x;
            v[k].y += old.y;
        }
    }
#pragma unroll
    for (int k = 0; k < MINE; k++) {
        int i = k * THREADS + threadIdx.x;
        uint32_t t = t0 + i / PAIRS, o = i % PAIRS * 2;
        if (t < e.t && out0 + o < e.n)
            *(float2 *)(dst + (size_t)t * e.n + out0 + o) = v[k];
    }
}

struct NextNorm {
    cu_rows rows;
    cu_norm norm;
    bf16 *h;
    float *ss;
};

/* A CTA of the small kernel: a warp has a tile of outputs. */
constexpr int WARPS = 4;
constexpr uint32_t SMALL_OUT = WARPS * 16;

/* x += y (or out = y), the row's part of the sum of squares, and h; 8 NT tokens a CTA. */
template <int NT, int KINDS>
__global__ void __maxnreg__(96) residual_small_kernel(const __grid_constant__ cu_expand e, float *x,
                                                      float *out, const NextNorm next)
{
    extern __shared__ __align__(128) uint8_t smem[];
    using C = Completer<NT, 1, KINDS, WARPS>;
    __shared__ float squares[WARPS][C::TOKENS];
    pdl_launch_dependents();
    uint32_t t0 = blockIdx.y * C::TOKENS, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t o[1] = {blockIdx.x * SMALL_OUT + warp * 16};
    C c(e, smem, t0);
    c.prepare(o);
    pdl_wait();
    float y[1][NT][4], old[NT][4];
#pragma unroll
    for (int n = 0; n < NT; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t t = t0 + c.token_of(n, i), at = o[0] + c.output_of(i);
            bool in = !out && t < e.t && at < e.n;
            old[n][i] = in ? __ldcg(x + (size_t)t * e.n + at) : 0.f;
        }
    }
    c.load(y);
    c.complete(y);
#pragma unroll
    for (int n = 0; n < NT; n++) {
        float sum[2] = {0, 0};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t t = t0 + c.token_of(n, i), column = o[0] + c.output_of(i);
            if (t >= e.t || column >= e.n)
                continue;
            size_t at = (size_t)t * e.n + column;
            float v = y[0][n][i] + old[n][i];
            (out ? out : x)[at] = v;
            sum[i & 1] += v * v;
            if (next.h) {
                const float *w = norm_weights(next.norm, next.rows, t);
                next.h[at] = __float2bfloat16(v * (w[column] + next.norm.plus));
            }
        }
#pragma unroll
        for (int k = 0; k < 2; k++) {
#pragma unroll
            for (int i = 4; i < 32; i <<= 1)
                sum[k] += __shfl_xor_sync(0xffffffffu, sum[k], i);
            if (lane < 4)
                squares[warp][n * 8 + lane * 2 + k] = sum[k];
        }
    }
    if (!next.h)
        return;
    __syncthreads();
    uint32_t t = t0 + threadIdx.x;
    if (threadIdx.x < C::TOKENS && t < e.t) {
        float all = 0;
        for (int w = 0; w < WARPS; w++)
            all += squares[w][threadIdx.x];
        next.ss[(size_t)t * ((gridDim.x + 3) & ~3u) + blockIdx.x] = all;
    }
}

template <int NT, int KINDS>
int launch_kind(const cu_expand *e, float *x, float *out, const NextNorm &next, cudaStream_t stream)
{
    dim3 grid((e->n + SMALL_OUT - 1) / SMALL_OUT, (e->t + NT * 8 - 1) / (NT * 8));
    return launch_pdl(residual_small_kernel<NT, KINDS>, grid, dim3(WARPS * 32),
                      Completer<NT, 1, KINDS, WARPS>::BYTES, stream, *e, x, out, next);
}

template <int NT>
int launch_tokens(const cu_expand *e, float *x, float *out, const NextNorm &next,
                  cudaStream_t stream)
{
    return e->kinds == 0   ? launch_kind<NT, 0>(e, x, out, next, stream)
           : e->kinds == 1 ? launch_kind<NT, 1>(e, x, out, next, stream)
                           : launch_kind<NT, 2>(e, x, out, next, stream);
}

/* As many tokens a CTA as leave about two CTAs a multiprocessor: all stand beside the GEMM. */
int launch_small(const cu_expand *e, float *x, float *out, const NextNorm &next,
                 cudaStream_t stream)
{
    return e->t <= 32 ? launch_tokens<1>(e, x, out, next, stream)
                      : launch_tokens<2>(e, x, out, next, stream);
}

} // namespace

extern "C" uint32_t cu_ss_parts(uint32_t n)
{
    return ((n + SMALL_OUT - 1) / SMALL_OUT + 3) & ~3u;
}

extern "C" int cu_residual_norm(const struct cu_expand *e, const struct cu_rows *r,
                                const struct cu_norm *norm, float *x, void *h, float *ss,
                                cudaStream_t stream)
{
    return launch_small(e, x, nullptr, NextNorm{*r, *norm, (bf16 *)h, ss}, stream);
}

extern "C" int cu_residual(const struct cu_expand *e, float *x, float *out, cudaStream_t stream)
{
    if (e->t <= CU_SMALL_ROWS)
        return launch_small(e, x, out, NextNorm{}, stream);
    if (e->kinds == 1)
        return cudaErrorInvalidValue;
    dim3 grid((e->n + WIDTH - 1) / WIDTH, (e->t + TOKENS - 1) / TOKENS);
    auto kernel = e->kinds == 0 ? residual_kernel<0> : residual_kernel<2>;
    return launch_pdl(kernel, grid, dim3(THREADS), 0, stream, *e, x, out);
}
