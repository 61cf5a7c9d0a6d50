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
    expand_block<NTB, TILES, KINDS>(e, sm, t0, TILES, [=](uint32_t i) { return out0 + i * 16; });
    for (int i = threadIdx.x; i < NTB * 8 * TILES * 16; i += EXPAND_THREADS) {
        uint32_t t = t0 + i / (TILES * 16), o = i % (TILES * 16);
        if (t >= e.t || out0 + o >= e.n)
            continue;
        float y = sm.y[(t - t0) * sm.Y_STRIDE + o];
        size_t at = (size_t)t * e.n + out0 + o;
        if (out)
            out[at] = y;
        else
            x[at] += y;
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
