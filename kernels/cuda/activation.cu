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
    expand_block<NTB, TILES, KINDS>(e, sm, t0, TILES, [=](uint32_t i) {
        uint32_t o = out0 + i % 2 * 16;
        return o >= d_ff ? e.n : i < 2 ? o : d_ff + o;
    });
    for (int i = threadIdx.x; i < NTB * 8 * WIDTH; i += EXPAND_THREADS) {
        uint32_t t = t0 + i / WIDTH, o = i % WIDTH;
        if (t >= e.t || out0 + o >= d_ff)
            continue;
        const float *y = sm.y + (t - t0) * sm.Y_STRIDE + o;
        float gate = gelu ? gelu_tanh(y[0]) : silu(y[0]);
        act[(size_t)t * d_ff + out0 + o] = __float2bfloat16(gate * y[WIDTH]);
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
