/*
 * activation: act[T, d_ff] = f(gate) * up of a completed gate_up projection, in bf16.
 * A CTA has 32 gates and their 32 ups of 64 tokens; up to CU_SMALL_ROWS rows, 64 gates and ups of 8
 * tokens or 128 of 16, a warp 16 of each.
 */
#include "kernels/cuda/activated.cuh"
#include "kernels/cuda/completer.cuh"
#include "kernels/cuda/expand.cuh"

using namespace lora;

namespace
{

constexpr int THREADS = 128, TOKENS = 64, WIDTH = 32;

/* Many rows. */
template <int KINDS>
__global__ void __launch_bounds__(THREADS)
    activation_kernel(const cu_expand e, uint32_t d_ff, int gelu, bf16 *act)
{
    uint32_t t0 = blockIdx.y * TOKENS, out0 = blockIdx.x * WIDTH;
    Completed<KINDS> y{e};
    pdl_launch_dependents();
    pdl_wait();
    constexpr int PAIRS = WIDTH / 2, MINE = TOKENS * PAIRS / THREADS;
    uint32_t v[MINE];
#pragma unroll
    for (int k = 0; k < MINE; k++) { // all loads before the first store
        int i = k * THREADS + threadIdx.x;
        uint32_t t = t0 + i / PAIRS, o = i % PAIRS * 2;
        v[k] = 0;
        if (t >= e.t || out0 + o >= d_ff)
            continue;
        float2 gate = y.pair(t, out0 + o), up = y.pair(t, d_ff + out0 + o);
        gate.x = activated(gate.x, gelu);
        gate.y = activated(gate.y, gelu);
        v[k] = pack_bf16(gate.x * up.x, gate.y * up.y);
    }
#pragma unroll
    for (int k = 0; k < MINE; k++) {
        int i = k * THREADS + threadIdx.x;
        uint32_t t = t0 + i / PAIRS, o = i % PAIRS * 2;
        if (t < e.t && out0 + o < d_ff)
            ((uint32_t *)act)[((size_t)t * d_ff + out0 + o) / 2] = v[k];
    }
}

/* Gates of a CTA of the small kernel. */
template <int WARPS> constexpr uint32_t SMALL_OUT = WARPS * 16;

template <int NT, int WARPS, int KINDS>
__global__ void __maxnreg__(NT == 1 ? 128 : 80) // two CTAs fit beside one of gemm_small
    activation_small_kernel(const __grid_constant__ cu_expand e, uint32_t d_ff, int gelu, bf16 *act)
{
    extern __shared__ __align__(128) uint8_t smem[];
    using C = Completer<NT, 2, KINDS, WARPS>;
    pdl_launch_dependents();
    uint32_t t0 = blockIdx.y * C::TOKENS, warp = threadIdx.x / 32;
    uint32_t gate0 = blockIdx.x * SMALL_OUT<WARPS> + warp * 16;
    uint32_t o[2] = {gate0 < d_ff ? gate0 : e.n, gate0 < d_ff ? d_ff + gate0 : e.n};
    C c(e, smem, t0);
    c.prepare(o);
    pdl_wait();
    float y[2][NT][4];
    c.load(y);
    c.complete(y);
#pragma unroll
    for (int n = 0; n < NT; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t t = t0 + c.token_of(n, i), at = gate0 + c.output_of(i);
            if (t >= e.t || at >= d_ff)
                continue;
            act[(size_t)t * d_ff + at] = __float2bfloat16(activated(y[0][n][i], gelu) * y[1][n][i]);
        }
    }
}

template <int NT, int WARPS, int KINDS>
int launch_kind(const cu_expand *e, uint32_t d_ff, int gelu, bf16 *act, cudaStream_t stream)
{
    constexpr uint32_t OUT = SMALL_OUT<WARPS>;
    dim3 grid((d_ff + OUT - 1) / OUT, (e->t + NT * 8 - 1) / (NT * 8));
    return launch_pdl(activation_small_kernel<NT, WARPS, KINDS>, grid, dim3(WARPS * 32),
                      Completer<NT, 2, KINDS, WARPS>::BYTES, stream, *e, d_ff, gelu, act);
}

template <int NT, int WARPS>
int launch_small(const cu_expand *e, uint32_t d_ff, int gelu, bf16 *act, cudaStream_t stream)
{
    return e->kinds == 0   ? launch_kind<NT, WARPS, 0>(e, d_ff, gelu, act, stream)
           : e->kinds == 1 ? launch_kind<NT, WARPS, 1>(e, d_ff, gelu, act, stream)
                           : launch_kind<NT, WARPS, 2>(e, d_ff, gelu, act, stream);
}

} // namespace

extern "C" int cu_activation(const struct cu_expand *e, uint32_t d_ff, int gelu, void *act,
                             cudaStream_t stream)
{
    // So that all CTAs of 32 tokens stand beside the GEMM at once.
    if (e->t <= 8)
        return launch_small<1, 4>(e, d_ff, gelu, (bf16 *)act, stream);
    if (e->t <= CU_SMALL_ROWS)
        return launch_small<2, 8>(e, d_ff, gelu, (bf16 *)act, stream);
    if (e->kinds == 1)
        return cudaErrorInvalidValue;
    dim3 grid((d_ff + WIDTH - 1) / WIDTH, (e->t + TOKENS - 1) / TOKENS);
    auto kernel = e->kinds == 0 ? activation_kernel<0> : activation_kernel<2>;
    return launch_pdl(kernel, grid, dim3(THREADS), 0, stream, *e, d_ff, gelu, (bf16 *)act);
}
