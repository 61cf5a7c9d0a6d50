/*
 * residual: x[T, N] += y of a completed o or down projection (or y alone, where a norm comes
 * between). A CTA has 64 outputs of 8, 16 or 64 tokens. Bytes: the planes of y and x once each way.
 */
#include "kernels/cuda/expand.cuh"

using namespace lora;

namespace
{

constexpr int TILES = 4;

template <int NTB, int KINDS>
__global__ void __launch_bounds__(EXPAND_THREADS)
    residual_kernel(const cu_expand e, float *x, float *out)
{
    __shared__ ExpandShared<NTB, TILES> sm;
    uint32_t t0 = blockIdx.y * NTB * 8, out0 = blockIdx.x * TILES * 16;
    auto out_of = [=](uint32_t i) { return out0 + i * 16; };
    Expander<NTB, TILES, KINDS, decltype(out_of)> y(e, sm, out_of, t0, TILES);
    y.run();
    constexpr int PAIRS = TILES * 8, MINE = NTB * 8 * PAIRS / EXPAND_THREADS;
    float *dst = out ? out : x;
    float2 v[MINE];
#pragma unroll
    for (int k = 0; k < MINE; k++) { // all loads before the first store
        int i = k * EXPAND_THREADS + threadIdx.x;
        uint32_t t = t0 + i / PAIRS, o = i % PAIRS * 2;
        v[k] = make_float2(0, 0);
        if (t >= e.t || out0 + o >= e.n)
            continue;
        v[k] = y.pair(t, out0 + o, o);
        if (!out) {
            float2 old = __ldcg((const float2 *)(x + (size_t)t * e.n + out0 + o));
            v[k].x += old.x;
            v[k].y += old.y;
        }
    }
#pragma unroll
    for (int k = 0; k < MINE; k++) {
        int i = k * EXPAND_THREADS + threadIdx.x;
        uint32_t t = t0 + i / PAIRS, o = i % PAIRS * 2;
        if (t < e.t && out0 + o < e.n)
            *(float2 *)(dst + (size_t)t * e.n + out0 + o) = v[k];
    }
}

template <int NTB> int launch(const cu_expand *e, float *x, float *out, cudaStream_t stream)
{
    dim3 grid((e->n + TILES * 16 - 1) / (TILES * 16), (e->t + NTB * 8 - 1) / (NTB * 8));
    auto kernel = e->kinds == 0   ? residual_kernel<NTB, 0>
                  : e->kinds == 1 ? residual_kernel<NTB, 1>
                                  : residual_kernel<NTB, 2>;
    return launch_pdl(kernel, grid, dim3(EXPAND_THREADS), 0, stream, *e, x, out);
}

} // namespace

extern "C" int cu_residual(const struct cu_expand *e, float *x, float *out, cudaStream_t stream)
{
    if (e->t <= 8)
        return launch<1>(e, x, out, stream);
    if (e->t <= CU_SMALL_ROWS)
        return launch<2>(e, x, out, stream);
    return launch<8>(e, x, out, stream);
}
