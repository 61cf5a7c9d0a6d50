/*
 * embed: x[T, D] = scale * g * (E[token] + s (B A)^T[token]), E's rows replaced where the owner of
 * the row replaces rows or the whole matrix. One CTA a row.
 */
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/launch.h"

using namespace lora;

namespace
{

constexpr int THREADS = 256;

struct Args {
    cu_rows r;
    const bf16 *e;
    uint32_t vocab, d;
    float scale;
    const cu_embed_part *slots;
    float *x;
};

__device__ const bf16 *replaced_row(const cu_embed_part &p, uint32_t token, uint32_t d)
{
    uint32_t low = 0, high = p.n_rows;
    while (low < high) {
        uint32_t mid = (low + high) / 2;
        if (p.row_ids[mid] == token)
            return (const bf16 *)p.rows[mid];
        if (p.row_ids[mid] < token)
            low = mid + 1;
        else
            high = mid;
    }
    if (p.full && token < p.full_rows)
        return (const bf16 *)p.full + (size_t)token * d;
    return nullptr;
}

/* Whether a segment of row t has anything to add to the embedding: seldom. By all threads. */
__device__ bool adapter_touches(const Args &a, uint32_t t)
{
    bool touches = false;
    for (uint32_t j = threadIdx.x; j < *a.r.n_segments; j += THREADS) {
        cu_segment s = a.r.segments[j];
        bool mine = t >= s.row0 && t < s.row0 + s.n_rows;
        touches |= mine && (a.slots[s.slot].rank || a.slots[s.slot].gain);
    }
    return __syncthreads_or(touches);
}

template <int KINDS> __global__ void __launch_bounds__(THREADS) embed_kernel(const Args a)
{
    pdl_launch_dependents();
    pdl_wait();
    uint32_t t = blockIdx.x;
    uint32_t token = (uint32_t)a.r.tokens[t];
    float *x = a.x + (size_t)t * a.d;
    const bf16 *row = a.e + (size_t)min(token, a.vocab - 1) * a.d;
    int owner = KINDS == 2 ? a.r.owner[t] : -1;
    if (owner >= 0) {
        const bf16 *own = replaced_row(a.slots[a.r.segments[owner].slot], token, a.d);
        row = own ? own : row;
    }
    uint32_t n_segments = KINDS && adapter_touches(a, t) ? *a.r.n_segments : 0;
    for (uint32_t i = threadIdx.x; i < a.d; i += THREADS) {
        float v = __bfloat162float(row[i]);
        for (uint32_t j = 0; j < n_segments; j++) {
            cu_segment s = a.r.segments[j];
            if (t < s.row0 || t >= s.row0 + s.n_rows)
                continue;
            const cu_embed_part &p = a.slots[s.slot];
            if (p.rank && token < p.a_rows) {
                const bf16 *va = (const bf16 *)p.a[token / 1024] + (size_t)(token % 1024) * p.rank;
                const bf16 *vb =
                    (const bf16 *)p.b[i / CU_B_BLOCK] + (size_t)(i % CU_B_BLOCK) * p.rank;
                float sum = 0;
                for (uint32_t k = 0; k < p.rank; k++)
                    sum += __bfloat162float(va[k]) * __bfloat162float(vb[k]);
                v += s.scale * p.scale * sum;
            }
            if (p.gain)
                v *= p.gain[i];
        }
        x[i] = v * a.scale;
    }
}

} // namespace

extern "C" int cu_embed(const struct cu_rows *r, const void *e, uint32_t vocab, uint32_t d,
                        float scale, const struct cu_embed_part *slots, int kinds, float *x,
                        cudaStream_t stream)
{
    Args a = {*r, (const bf16 *)e, vocab, d, scale, slots, x};
    auto kernel = kinds == 0 ? embed_kernel<0> : kinds == 1 ? embed_kernel<1> : embed_kernel<2>;
    return launch_pdl(kernel, dim3(r->t), dim3(THREADS), 0, stream, a);
}
