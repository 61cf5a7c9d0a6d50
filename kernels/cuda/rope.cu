/*
 * rope: completes the qkv projection: B v, biases, per-head norms of q and k, rotation (halves, as
 * transformers' rotate_half, of the first rotary_dim), q to its buffer, k and v to the pages.
 * A CTA has one head of 8, 16 or 64 tokens, of 8 in steps of few rows, where B v is still to be
 * added. Rows that decode are attention_decode's.
 * Page: [layer][k, v][kv head][token][head_dim] bf16.
 */
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/expand.cuh"
#include "kernels/cuda/norm.cuh"

using namespace lora;

namespace
{

struct Args {
    cu_rows rows;
    cu_heads heads;
    cu_norm q_norm, k_norm;
    const float *trig;
    cu_pages pages;
    bf16 *q;
    const uint32_t *n_decode_rows;
};

/* Where row t's key or value of a head goes. */
__device__ bf16 *kv_row(const Args &a, uint32_t t, uint32_t kv_head, bool key)
{
    const cu_sequence &s = a.rows.sequences[a.rows.sequence[t]];
    uint64_t at = key_offset(a.pages, a.heads, s, kv_head, a.rows.position[t]);
    return (bf16 *)(a.pages.pool + at + (key ? 0 : value_distance(a.pages, a.heads)));
}

template <int NTB, int TILES, int KINDS>
__global__ void __launch_bounds__(EXPAND_THREADS) rope_kernel(const cu_expand e, const Args a)
{
    __shared__ ExpandShared<NTB, TILES> sm;
    const cu_heads &h = a.heads;
    uint32_t t0 = blockIdx.y * NTB * 8, head = blockIdx.x, hd = h.head_dim;
    auto out_of = [=](uint32_t i) { return head * hd + i * 16; };
    __shared__ bf16 *rows_to[NTB * 8];
    bool is_q = head < h.n_heads, is_k = !is_q && head < h.n_heads + h.n_kv_heads;
    uint32_t n_rows = *a.rows.n_rows, n_decode = a.n_decode_rows ? *a.n_decode_rows : 0;
    if (t0 + NTB * 8 <= n_decode)
        return;
    if (threadIdx.x < NTB * 8 && t0 + threadIdx.x < n_rows) // known before the wait
        rows_to[threadIdx.x] =
            is_q ? a.q + ((size_t)(t0 + threadIdx.x) * h.n_heads + head) * hd
                 : kv_row(a, t0 + threadIdx.x, (head - h.n_heads) % h.n_kv_heads, is_k);
    Expander<NTB, TILES, KINDS, NTB == 1, decltype(out_of)> x(e, sm, out_of, t0, hd / 16);
    x.run();
    __shared__ float rms[8];
    if (NTB == 1 && e.ss) { // a small step
        load_rms<8>(e, t0, rms);
        __syncthreads();
        x.r = rms;
    }
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < NTB * 8 * (hd / 2); i += EXPAND_THREADS) {
        uint32_t t = t0 + i / (hd / 2), o = i % (hd / 2) * 2;
        if (t >= n_rows)
            break;
        float2 v = x.pair(t, head * hd + o, o);
        float *to = sm.y + (t - t0) * sm.Y_STRIDE + o;
        to[0] = v.x;
        to[1] = v.y;
    }
    __syncthreads();
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t half = h.rotary_dim / 2;
    for (uint32_t i = warp; i < NTB * 8; i += EXPAND_WARPS) {
        uint32_t t = t0 + i;
        if (t >= n_rows || t < n_decode)
            continue;
        float *y = sm.y + i * sm.Y_STRIDE;
        const cu_norm &n = is_q ? a.q_norm : a.k_norm;
        if ((is_q || is_k) && n.w)
            normalise_head(y, norm_weights(n, a.rows, t), n, hd, lane);
        const float *trig = a.trig + (size_t)t * h.rotary_dim;
        for (uint32_t j = lane; j < hd; j += 32) {
            float v = y[j];
            if ((is_q || is_k) && j < half)
                v = y[j] * trig[j] - y[j + half] * trig[half + j];
            else if ((is_q || is_k) && j < 2 * half)
                v = y[j] * trig[j - half] + y[j - half] * trig[j];
            rows_to[i][j] = __float2bfloat16(v);
        }
    }
}

template <int NTB, int TILES> int launch(const cu_expand *e, const Args &a, cudaStream_t stream)
{
    dim3 grid(a.heads.n_heads + 2 * a.heads.n_kv_heads, (e->t + NTB * 8 - 1) / (NTB * 8));
    auto kernel = e->kinds == 0 ? rope_kernel<NTB, TILES, 0> : rope_kernel<NTB, TILES, 2>;
    if (e->kinds == 1 && NTB > 1)
        return cudaErrorInvalidValue;
    if constexpr (NTB == 1)
        kernel = e->kinds == 1 ? rope_kernel<NTB, TILES, 1> : kernel;
    return launch_pdl(kernel, grid, dim3(EXPAND_THREADS), 0, stream, *e, a);
}

template <int NTB> int launch_width(const cu_expand *e, const Args &a, cudaStream_t stream)
{
    return a.heads.head_dim <= 128 ? launch<NTB, 8>(e, a, stream) : launch<NTB, 16>(e, a, stream);
}

} // namespace

extern "C" int cu_rope_write(const struct cu_expand *e, const struct cu_rows *r,
                             const struct cu_heads *h, const struct cu_norm *q_norm,
                             const struct cu_norm *k_norm, const float *trig,
                             const struct cu_pages *pages, const uint32_t *n_decode_rows, void *q,
                             cudaStream_t stream)
{
    Args a = {*r, *h, *q_norm, *k_norm, trig, *pages, (bf16 *)q, n_decode_rows};
    if (e->t <= CU_SMALL_ROWS)
        return launch_width<1>(e, a, stream);
    if (h->head_dim > 128)
        return launch_width<2>(e, a, stream);
    return launch<8, 8>(e, a, stream);
}
