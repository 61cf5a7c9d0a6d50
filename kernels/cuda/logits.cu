/*
 * logits: the head's completed output in float32, and rows of any output that an adapter's own
 * weights replace (modules_to_save, trainable tokens under a tied head).
 */
#include "kernels/cuda/expand.cuh"

using namespace lora;

namespace
{

constexpr int TILES = 4;

template <int NTB, int KINDS>
__global__ void __launch_bounds__(EXPAND_THREADS)
    logits_kernel(const cu_expand e, float *logits, uint32_t stride)
{
    __shared__ ExpandShared<NTB, TILES> sm;
    uint32_t t0 = blockIdx.y * NTB * 8, out0 = blockIdx.x * TILES * 16;
    auto out_of = [=](uint32_t i) { return out0 + i * 16; };
    Expander<NTB, TILES, KINDS, true, decltype(out_of)> y(e, sm, out_of, t0, TILES);
    y.run();
    constexpr int PAIRS = TILES * 8;
    for (int i = threadIdx.x; i < NTB * 8 * PAIRS; i += EXPAND_THREADS) {
        uint32_t t = t0 + i / PAIRS, o = i % PAIRS * 2;
        if (t >= e.t || out0 + o >= e.n)
            continue;
        float2 v = y.pair(t, out0 + o, o);
        float *to = logits + (size_t)t * stride + out0 + o;
        to[0] = v.x;
        if (out0 + o + 1 < e.n)
            to[1] = v.y;
    }
}

template <int NTB>
int launch(const cu_expand *e, float *logits, uint32_t stride, cudaStream_t stream)
{
    dim3 grid((e->n + TILES * 16 - 1) / (TILES * 16), (e->t + NTB * 8 - 1) / (NTB * 8));
    auto kernel = e->kinds == 0   ? logits_kernel<NTB, 0>
                  : e->kinds == 1 ? logits_kernel<NTB, 1>
                                  : logits_kernel<NTB, 2>;
    return launch_pdl(kernel, grid, dim3(EXPAND_THREADS), 0, stream, *e, logits, stride);
}

/* A warp an output; the segment's rows one after another. */
__global__ void replace_kernel(const cu_replace r)
{
    pdl_launch_dependents();
    pdl_wait();
    uint32_t i = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (i >= r.n_out)
        return;
    const bf16 *w = r.w ? (const bf16 *)r.w + (size_t)i * r.k : (const bf16 *)r.w_rows[i];
    uint32_t out = r.out_ids ? r.out_ids[i] : r.out0 + i;
    uint32_t planes = r.y.planes ? r.y.planes[out / r.y.block_rows] : 1;
    for (uint32_t t = r.row0; t < r.row0 + r.n_rows; t++) {
        const bf16 *x = (const bf16 *)r.x + (size_t)t * r.k;
        float sum = 0;
        for (uint32_t k = lane; k < r.k; k += 32)
            sum += __bfloat162float(w[k]) * __bfloat162float(x[k]);
        sum = warp_sum(sum);
        size_t at = (size_t)t * r.y.n + out;
        if (lane == 0 && r.y.y16)
            ((bf16 *)r.y.y16)[at] = __float2bfloat16(sum);
        for (uint32_t p = lane; !r.y.y16 && p < planes; p += 32)
            ((float *)r.y.y)[p * ((size_t)r.y.t * r.y.n) + at] = p == 0 ? sum : 0.f;
    }
}

} // namespace

extern "C" int cu_logits(const struct cu_expand *e, float *logits, uint32_t stride,
                         cudaStream_t stream)
{
    if (e->t <= 8)
        return launch<1>(e, logits, stride, stream);
    if (e->t <= CU_SMALL_ROWS)
        return launch<2>(e, logits, stride, stream);
    return launch<8>(e, logits, stride, stream);
}

extern "C" int cu_replace_rows(const struct cu_replace *r, cudaStream_t stream)
{
    if (r->n_out == 0 || r->n_rows == 0)
        return 0;
    return launch_pdl(replace_kernel, dim3((r->n_out + 7) / 8), dim3(256), 0, stream, *r);
}
