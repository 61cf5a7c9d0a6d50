/*
 * begin: a step's tokens (those that the previous step sampled are read on the device), the
 * cosines and sines of every row's position, for all layers at once, and the counters by which its
 * GEMMs follow each other (gemm_small.cu) at zero.
 */
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/launch.h"

using namespace lora;

namespace
{

__global__ void begin_kernel(cu_rows r, uint32_t *asked, uint32_t n_asked, const int32_t *literal,
                             int32_t *tokens, const int32_t *prev_ids, uint32_t n_ropes,
                             uint32_t n_regimes, uint32_t rotary_dim, const float *inv_freq,
                             const float *scales, float *trig)
{
    pdl_launch_dependents();
    pdl_wait();
    uint32_t t = blockIdx.x, half = rotary_dim / 2;
    for (uint32_t i = threadIdx.x; t == 0 && i < n_asked; i += blockDim.x)
        asked[i] = 0;
    if (t >= *r.n_rows) {
        if (threadIdx.x == 0)
            tokens[t] = 0;
        return;
    }
    if (threadIdx.x == 0)
        tokens[t] = literal[t] >= 0 ? literal[t] : prev_ids[~literal[t]];
    uint32_t regime = min(r.sequences[r.sequence[t]].rope_regime, n_regimes - 1);
    float position = (float)r.position[t];
    for (uint32_t i = threadIdx.x; i < n_ropes * half; i += blockDim.x) {
        uint32_t rope = i / half, j = i % half, at = rope * n_regimes + regime;
        float s, c;
        sincosf(position * inv_freq[(size_t)at * half + j], &s, &c);
        float *to = trig + ((size_t)rope * r.t + t) * rotary_dim;
        to[j] = c * scales[at];
        to[half + j] = s * scales[at];
    }
}

} // namespace

extern "C" int cu_begin(const struct cu_rows *r, uint32_t *asked, uint32_t n_asked,
                        const int32_t *literal, int32_t *tokens, const int32_t *prev_ids,
                        uint32_t n_ropes, uint32_t n_regimes, uint32_t rotary_dim,
                        const float *inv_freq, const float *scales, float *trig,
                        cudaStream_t stream)
{
    return launch_pdl(begin_kernel, dim3(r->t), dim3(64), 0, stream, *r, asked, n_asked, literal,
                      tokens, prev_ids, n_ropes, n_regimes, rotary_dim, inv_freq, scales, trig);
}
