/*
 * norm: per row, x += norm(y) w_post where a post norm is given, then h = norm(x) w in bf16.
 * norm(v) = v / sqrt(mean(v^2) + eps). One CTA a row; x stays in registers between the passes.
 * Bytes: x (and y) read once, x written where it changes, h written.
 */
#include "kernels/cuda/norm.cuh"

using namespace lora;

namespace
{

constexpr int THREADS = 256, MAX_PER_THREAD = 32; // d <= 8192 in registers

struct Args {
    cu_rows r;
    const uint32_t *rows;
    float *x;
    const float *y;
    uint32_t d;
    cu_norm post, norm;
    bf16 *h;
};

__device__ float block_sum(float v)
{
    __shared__ float part[THREADS / 32];
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0;
#pragma unroll
    for (int i = 0; i < THREADS / 32; i++)
        v += part[i];
    return v;
}

template <int PER> __global__ void __launch_bounds__(THREADS) norm_kernel(const Args a)
{
    pdl_launch_dependents();
    uint32_t i = blockIdx.x;
    const float *w = a.norm.w;
    float wv[PER];
    if (a.h && !a.norm.replaced) { // before the wait: it does not depend on the kernel before
#pragma unroll
        for (int k = 0; k < PER; k++)
            wv[k] = k * THREADS + threadIdx.x < a.d ? w[k * THREADS + threadIdx.x] : 0;
    }
    pdl_wait();
    uint32_t row = a.rows ? a.rows[i] : i;
    float *x = a.x + (size_t)row * a.d;
    float v[PER], sum = 0;
#pragma unroll
    for (int k = 0; k < PER; k++)
        v[k] = k * THREADS + threadIdx.x < a.d ? x[k * THREADS + threadIdx.x] : 0;
    if (a.y) {
        const float *y = a.y + (size_t)row * a.d, *wp = norm_weights(a.post, a.r, row);
        float u[PER];
#pragma unroll
        for (int k = 0; k < PER; k++) {
            u[k] = k * THREADS + threadIdx.x < a.d ? y[k * THREADS + threadIdx.x] : 0;
            sum += u[k] * u[k];
        }
        float scale = rsqrtf(block_sum(sum) / a.d + a.post.eps);
        sum = 0;
#pragma unroll
        for (int k = 0; k < PER; k++) {
            uint32_t j = k * THREADS + threadIdx.x;
            if (j >= a.d)
                continue;
            v[k] += u[k] * scale * (wp[j] + a.post.plus);
            x[j] = v[k];
        }
    }
    if (!a.h)
        return;
#pragma unroll
    for (int k = 0; k < PER; k++)
        sum += v[k] * v[k];
    float scale = rsqrtf(block_sum(sum) / a.d + a.norm.eps);
    // The head's rows are counted among logit rows, so owners of `row` are looked up by i.
    const float *own = a.norm.replaced ? norm_weights(a.norm, a.r, i) : nullptr;
#pragma unroll
    for (int k = 0; k < PER; k++) {
        uint32_t j = k * THREADS + threadIdx.x;
        if (j >= a.d)
            continue;
        float g = (a.norm.replaced ? own[j] : wv[k]) + a.norm.plus;
        a.h[(size_t)i * a.d + j] = __float2bfloat16(v[k] * scale * g);
    }
}

} // namespace

extern "C" int cu_norm_rows(const struct cu_rows *r, uint32_t n_bound, const uint32_t *rows,
                            float *x, const float *y, uint32_t d, const struct cu_norm *post,
                            const struct cu_norm *norm, void *h, cudaStream_t stream)
{
    Args a = {*r, rows, x, y, d, {}, {}, (bf16 *)h};
    if (post)
        a.post = *post;
    if (norm)
        a.norm = *norm;
    dim3 grid(n_bound), block(THREADS);
    if (d <= 4 * THREADS)
        return launch_pdl(norm_kernel<4>, grid, block, 0, stream, a);
    if (d <= 16 * THREADS)
        return launch_pdl(norm_kernel<16>, grid, block, 0, stream, a);
    if (d <= MAX_PER_THREAD * THREADS)
        return launch_pdl(norm_kernel<MAX_PER_THREAD>, grid, block, 0, stream, a);
    return cudaErrorInvalidValue;
}
