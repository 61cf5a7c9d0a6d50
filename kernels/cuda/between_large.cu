/*
 * between_large: what stands between the products of a step of many rows, where y is complete in
 * bf16 (what adapters add is in it already): rotation and KV write, residual and norm,
 * activation. All of them move bytes and little else: 16 bytes a load, whole rows, every load of a
 * thread before its first use. Bytes a row: qkv 2 (N + N), residual and norm 12 d (y in L2) + 2 d,
 * activation 6 d_ff.
 */
#include "kernels/cuda/activated.cuh"
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/packed.cuh"

using namespace lora;

namespace
{

constexpr int THREADS = 256;

__device__ __forceinline__ void load8(const float *p, float f[8])
{
    *(float4 *)f = *(const float4 *)p;
    *(float4 *)(f + 4) = *(const float4 *)(p + 4);
}

__device__ __forceinline__ void add8(const float *p, float f[8])
{
    if (!p)
        return;
    float b[8];
    load8(p, b);
#pragma unroll
    for (int i = 0; i < 8; i++)
        f[i] += b[i];
}

// ---- x += y, h = norm(x) w: a CTA a row

template <int PER>
__global__ void __launch_bounds__(THREADS)
    residual_norm_kernel(const bf16 *y, const float *bias, float *x, uint32_t d, const cu_norm norm,
                         bf16 *h)
{
    __shared__ float part[THREADS / 32];
    pdl_launch_dependents();
    size_t row = (size_t)blockIdx.x * d;
    float v[PER][8], w[PER][8], sum = 0;
    uint4 in[PER];
    if (h) { // what the kernel before does not write
#pragma unroll
        for (int k = 0; k < PER; k++) {
            uint32_t c = (k * THREADS + threadIdx.x) * 8;
            if (c < d)
                load8(norm.w + c, w[k]);
        }
    }
    pdl_wait();
#pragma unroll
    for (int k = 0; k < PER; k++) {
        uint32_t c = (k * THREADS + threadIdx.x) * 8;
        if (c >= d)
            continue;
        in[k] = *(const uint4 *)(y + row + c);
        load8(x + row + c, v[k]);
    }
#pragma unroll
    for (int k = 0; k < PER; k++) {
        uint32_t c = (k * THREADS + threadIdx.x) * 8;
        if (c >= d)
            continue;
        float f[8];
        unpack8(in[k], f);
        add8(bias ? bias + c : nullptr, f);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            v[k][i] += f[i];
            sum += v[k][i] * v[k][i];
        }
        *(float4 *)(x + row + c) = *(const float4 *)v[k];
        *(float4 *)(x + row + c + 4) = *(const float4 *)(v[k] + 4);
    }
    if (!h)
        return;
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
#pragma unroll
    for (int i = 0; i < THREADS / 32; i++)
        sum += part[i];
    float scale = rsqrtf(sum / d + norm.eps);
#pragma unroll
    for (int k = 0; k < PER; k++) {
        uint32_t c = (k * THREADS + threadIdx.x) * 8;
        if (c >= d)
            continue;
#pragma unroll
        for (int i = 0; i < 8; i++)
            v[k][i] *= scale * (w[k][i] + norm.plus);
        *(uint4 *)(h + row + c) = pack8(v[k]);
    }
}

// ---- rotation: a thread has 8 columns of a head and the 8 that they are rotated with

struct Rope {
    const bf16 *y;
    const float *bias, *trig;
    cu_rows rows;
    cu_heads heads;
    cu_norm q_norm, k_norm;
    cu_pages pages;
    bf16 *q;
    uint32_t n; // columns of y
};

/* Where row t's key or value of a head goes. */
__device__ bf16 *kv_row(const Rope &a, uint32_t t, uint32_t kv_head, bool key)
{
    const cu_sequence &s = a.rows.sequences[a.rows.sequence[t]];
    uint64_t at = key_offset(a.pages, a.heads, s, kv_head, a.rows.position[t]);
    return (bf16 *)(a.pages.pool + at + (key ? 0 : value_distance(a.pages, a.heads)));
}

/* Per-head norm; LANES threads have a head. */
template <int LANES>
__device__ void normalise(const cu_norm &n, uint32_t c, float low[8], float high[8])
{
    float sum = 0, w[8];
#pragma unroll
    for (int i = 0; i < 8; i++)
        sum += low[i] * low[i] + high[i] * high[i];
#pragma unroll
    for (int i = LANES / 2; i; i >>= 1)
        sum += __shfl_xor_sync(0xffffffffu, sum, i);
    float r = rsqrtf(sum / (LANES * 16) + n.eps);
    load8(n.w + c, w);
#pragma unroll
    for (int i = 0; i < 8; i++)
        low[i] *= r * (w[i] + n.plus);
    load8(n.w + c + LANES * 8, w);
#pragma unroll
    for (int i = 0; i < 8; i++)
        high[i] *= r * (w[i] + n.plus);
}

template <int LANES> __global__ void __launch_bounds__(THREADS) rope_kernel(const Rope a)
{
    constexpr uint32_t HD = LANES * 16, HALF = HD / 2;
    pdl_launch_dependents();
    uint32_t heads = a.heads.n_heads + 2 * a.heads.n_kv_heads;
    uint32_t i = blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
    uint32_t t = i / heads, head = i % heads, c = threadIdx.x % LANES * 8;
    bool in = t < *a.rows.n_rows;
    bool is_q = head < a.heads.n_heads, is_k = !is_q && head < a.heads.n_heads + a.heads.n_kv_heads;
    bf16 *to = nullptr;
    if (in)
        to = is_q ? a.q + ((size_t)t * a.heads.n_heads + head) * HD
                  : kv_row(a, t, (head - a.heads.n_heads) % a.heads.n_kv_heads, is_k);
    pdl_wait();
    uint4 l = {}, h = {};
    float low[8], high[8], cs[8], sn[8];
    if (in) {
        const bf16 *from = a.y + (size_t)t * a.n + head * HD + c;
        l = *(const uint4 *)from;
        h = *(const uint4 *)(from + HALF);
    }
    if (in && (is_q || is_k)) {
        load8(a.trig + (size_t)t * HD + c, cs);
        load8(a.trig + (size_t)t * HD + HALF + c, sn);
    }
    unpack8(l, low);
    unpack8(h, high);
    if (a.bias) {
        add8(a.bias + head * HD + c, low);
        add8(a.bias + head * HD + HALF + c, high);
    }
    if (a.q_norm.w) { // heads of one warp differ in kind: all take part in the sums
        float nl[8], nh[8];
#pragma unroll
        for (int k = 0; k < 8; k++) {
            nl[k] = low[k];
            nh[k] = high[k];
        }
        normalise<LANES>(is_q ? a.q_norm : a.k_norm, c, nl, nh);
#pragma unroll
        for (int k = 0; k < 8 && (is_q || is_k); k++) {
            low[k] = nl[k];
            high[k] = nh[k];
        }
    }
    if (!in)
        return;
    if (is_q || is_k) {
#pragma unroll
        for (int k = 0; k < 8; k++) {
            float x = low[k], y = high[k];
            low[k] = x * cs[k] - y * sn[k];
            high[k] = y * cs[k] + x * sn[k];
        }
    }
    *(uint4 *)(to + c) = pack8(low);
    *(uint4 *)(to + HALF + c) = pack8(high);
}

// ---- activation

__global__ void __launch_bounds__(THREADS)
    activation_kernel(const bf16 *y, const float *bias, uint32_t d_ff, int gelu, bf16 *act)
{
    pdl_launch_dependents();
    pdl_wait();
    const bf16 *from = y + (size_t)blockIdx.y * 2 * d_ff;
    bf16 *to = act + (size_t)blockIdx.y * d_ff;
    uint32_t c0 = (blockIdx.x * THREADS * 2 + threadIdx.x) * 8;
    uint4 g[2], u[2];
#pragma unroll
    for (int k = 0; k < 2; k++) {
        uint32_t c = c0 + k * THREADS * 8;
        if (c < d_ff) {
            g[k] = *(const uint4 *)(from + c);
            u[k] = *(const uint4 *)(from + d_ff + c);
        }
    }
#pragma unroll
    for (int k = 0; k < 2; k++) {
        uint32_t c = c0 + k * THREADS * 8;
        if (c >= d_ff)
            continue;
        float gate[8], up[8];
        unpack8(g[k], gate);
        unpack8(u[k], up);
        add8(bias ? bias + c : nullptr, gate);
        add8(bias ? bias + d_ff + c : nullptr, up);
#pragma unroll
        for (int i = 0; i < 8; i++)
            gate[i] = activated(gate[i], gelu) * up[i];
        *(uint4 *)(to + c) = pack8(gate);
    }
}

bool plain(const cu_expand *e)
{
    return e->y16 && e->kinds == 0 && e->n % 8 == 0;
}

} // namespace

extern "C" int cu_residual_norm_large(const struct cu_expand *e, float *x,
                                      const struct cu_norm *norm, void *h, cudaStream_t stream)
{
    if (!plain(e) || (norm && norm->replaced))
        return cudaErrorInvalidValue;
    dim3 grid(e->t), block(THREADS);
    cu_norm n = norm ? *norm : cu_norm{};
    auto kernel = e->n <= THREADS * 8    ? residual_norm_kernel<1>
                  : e->n <= THREADS * 16 ? residual_norm_kernel<2>
                  : e->n <= THREADS * 32 ? residual_norm_kernel<4>
                                         : nullptr;
    if (!kernel)
        return cudaErrorInvalidValue;
    return launch_pdl(kernel, grid, block, 0, stream, (const bf16 *)e->y16, e->bias, x, e->n, n,
                      norm ? (bf16 *)h : nullptr);
}

extern "C" int cu_rope_write_large(const struct cu_expand *e, const struct cu_rows *r,
                                   const struct cu_heads *h, const struct cu_norm *q_norm,
                                   const struct cu_norm *k_norm, const float *trig,
                                   const struct cu_pages *pages, void *q, cudaStream_t stream)
{
    uint32_t hd = h->head_dim;
    if (!plain(e) || h->rotary_dim != hd || q_norm->replaced ||
        (hd != 64 && hd != 128 && hd != 256))
        return cudaErrorInvalidValue;
    Rope a = {
        (const bf16 *)e->y16, e->bias, trig, *r, *h, *q_norm, *k_norm, *pages, (bf16 *)q, e->n};
    uint32_t heads = e->t * (h->n_heads + 2 * h->n_kv_heads), per = THREADS / (hd / 16);
    auto kernel = hd == 64 ? rope_kernel<4> : hd == 128 ? rope_kernel<8> : rope_kernel<16>;
    return launch_pdl(kernel, dim3((heads + per - 1) / per), dim3(THREADS), 0, stream, a);
}

extern "C" int cu_activation_large(const struct cu_expand *e, uint32_t d_ff, int gelu, void *act,
                                   cudaStream_t stream)
{
    if (!plain(e) || d_ff % 8)
        return cudaErrorInvalidValue;
    dim3 grid((d_ff + THREADS * 16 - 1) / (THREADS * 16), e->t);
    return launch_pdl(activation_kernel, grid, dim3(THREADS), 0, stream, (const bf16 *)e->y16,
                      e->bias, d_ff, gelu, (bf16 *)act);
}
