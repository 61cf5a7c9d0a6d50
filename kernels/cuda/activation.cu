/*
 * activation: act[T, d_ff] = f(gate) * up of a completed gate_up projection, in bf16.
 * A CTA has 32 gates and their 32 ups of 8, 16 or 64 tokens.
 */
#include "kernels/cuda/expand.cuh"

using namespace lora;

namespace
{

constexpr int TILES = 4, WIDTH = 32;

__device__ float silu(float v)
{
    return v / (1.f + __expf(-v));
}

/* 0.5 v (1 + tanh(sqrt(2 / pi) (v + 0.044715 v^3))) */
__device__ float gelu_tanh(float v)
{
    return 0.5f * v * (1.f + tanhf(0.7978845608028654f * (v + 0.044715f * v * v * v)));
}

template <int NTB, int KINDS>
__global__ void __launch_bounds__(EXPAND_THREADS)
    activation_kernel(const cu_expand e, uint32_t d_ff, int gelu, bf16 *act)
{
    __shared__ ExpandShared<NTB, TILES> sm;
    uint32_t t0 = blockIdx.y * NTB * 8, out0 = blockIdx.x * WIDTH;
    auto out_of = [=](uint32_t i) {
        uint32_t o = out0 + i % 2 * 16;
        return o >= d_ff ? e.n : i < 2 ? o : d_ff + o;
    };
    Expander<NTB, TILES, KINDS, decltype(out_of)> y(e, sm, out_of, t0, TILES);
    y.run();
    constexpr int PAIRS = WIDTH / 2, MINE = NTB * 8 * PAIRS / EXPAND_THREADS;
    uint32_t v[MINE];
#pragma unroll
    for (int k = 0; k < MINE; k++) { // all loads before the first store
        int i = k * EXPAND_THREADS + threadIdx.x;
        uint32_t t = t0 + i / PAIRS, o = i % PAIRS * 2;
        v[k] = 0;
        if (t >= e.t || out0 + o >= d_ff)
            continue;
        float2 gate = y.pair(t, out0 + o, o), up = y.pair(t, d_ff + out0 + o, WIDTH + o);
        gate.x = gelu ? gelu_tanh(gate.x) : silu(gate.x);
        gate.y = gelu ? gelu_tanh(gate.y) : silu(gate.y);
        v[k] = pack_bf16(gate.x * up.x, gate.y * up.y);
    }
#pragma unroll
    for (int k = 0; k < MINE; k++) {
        int i = k * EXPAND_THREADS + threadIdx.x;
        uint32_t t = t0 + i / PAIRS, o = i % PAIRS * 2;
        if (t < e.t && out0 + o < d_ff)
            ((uint32_t *)act)[((size_t)t * d_ff + out0 + o) / 2] = v[k];
    }
}

template <int NTB>
int launch(const cu_expand *e, uint32_t d_ff, int gelu, bf16 *act, cudaStream_t stream)
{
    dim3 grid((d_ff + WIDTH - 1) / WIDTH, (e->t + NTB * 8 - 1) / (NTB * 8));
    auto kernel = e->kinds == 0   ? activation_kernel<NTB, 0>
                  : e->kinds == 1 ? activation_kernel<NTB, 1>
                                  : activation_kernel<NTB, 2>;
    return launch_pdl(kernel, grid, dim3(EXPAND_THREADS), 0, stream, *e, d_ff, gelu, act);
}

} // namespace

extern "C" int cu_activation(const struct cu_expand *e, uint32_t d_ff, int gelu, void *act,
                             cudaStream_t stream)
{
    if (e->t <= 8)
        return launch<1>(e, d_ff, gelu, (bf16 *)act, stream);
    if (e->t <= CU_SMALL_ROWS)
        return launch<2>(e, d_ff, gelu, (bf16 *)act, stream);
    return launch<8>(e, d_ff, gelu, (bf16 *)act, stream);
}
