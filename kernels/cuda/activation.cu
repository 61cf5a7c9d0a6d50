/*
 * activation: act[T, d_ff] = f(gate) * up of a completed gate_up projection, in bf16.
 * A CTA has 32 gates and their 32 ups of 64 tokens; up to CU_SMALL_ROWS rows, 64 gates and ups of 8
 * to 32 tokens, a warp 16 of each.
 */
#include "kernels/cuda/expand.cuh"

using namespace lora;

namespace
{

constexpr int TILES = 4, WIDTH = 32;
constexpr uint32_t SMALL_OUT = COMPLETE_THREADS / 32 * 16; // gates of a CTA of the small kernel

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

template <int NT, int KINDS>
__global__ void __launch_bounds__(COMPLETE_THREADS)
    activation_small_kernel(const cu_expand e, uint32_t d_ff, int gelu, bf16 *act)
{
    using C = Completer<NT, 2, KINDS>;
    __shared__ typename C::Shared sm;
    pdl_launch_dependents();
    uint32_t t0 = blockIdx.y * C::TOKENS, warp = threadIdx.x / 32;
    uint32_t gate0 = blockIdx.x * SMALL_OUT + warp * 16;
    uint32_t o[2] = {gate0 < d_ff ? gate0 : e.n, gate0 < d_ff ? d_ff + gate0 : e.n};
    C c(e, sm, t0);
    c.prepare(o);
    pdl_wait();
    float y[2][NT][4];
    c.begin_v();
    c.load_base(0, y[0]);
    c.load_base(1, y[1]);
    c.complete(y);
#pragma unroll
    for (int n = 0; n < NT; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t t = t0 + c.token_of(n, i), at = gate0 + c.output_of(i);
            if (t >= e.t || at >= d_ff)
                continue;
            float gate = y[0][n][i], f = gelu ? gelu_tanh(gate) : silu(gate);
            act[(size_t)t * d_ff + at] = __float2bfloat16(f * y[1][n][i]);
        }
    }
}

template <int NT>
int launch_small(const cu_expand *e, uint32_t d_ff, int gelu, bf16 *act, cudaStream_t stream)
{
    dim3 grid((d_ff + SMALL_OUT - 1) / SMALL_OUT, (e->t + NT * 8 - 1) / (NT * 8));
    auto kernel = e->kinds == 0   ? activation_small_kernel<NT, 0>
                  : e->kinds == 1 ? activation_small_kernel<NT, 1>
                                  : activation_small_kernel<NT, 2>;
    return launch_pdl(kernel, grid, dim3(COMPLETE_THREADS), 0, stream, *e, d_ff, gelu, act);
}

} // namespace

extern "C" int cu_activation(const struct cu_expand *e, uint32_t d_ff, int gelu, void *act,
                             cudaStream_t stream)
{
    // As many tokens a CTA as let all CTAs stand beside the GEMM at once.
    if (e->t <= 8)
        return launch_small<1>(e, d_ff, gelu, (bf16 *)act, stream);
    if (e->t <= 16)
        return launch_small<2>(e, d_ff, gelu, (bf16 *)act, stream);
    if (e->t <= CU_SMALL_ROWS)
        return launch_small<4>(e, d_ff, gelu, (bf16 *)act, stream);
    dim3 grid((d_ff + WIDTH - 1) / WIDTH, (e->t + 63) / 64);
    auto kernel = e->kinds == 0   ? activation_kernel<8, 0>
                  : e->kinds == 1 ? activation_kernel<8, 1>
                                  : activation_kernel<8, 2>;
    return launch_pdl(kernel, grid, dim3(EXPAND_THREADS), 0, stream, *e, d_ff, gelu, (bf16 *)act);
}
