/*
 * activated: the activation of a gate.
 */
#ifndef KERNELS_CUDA_ACTIVATED_CUH
#define KERNELS_CUDA_ACTIVATED_CUH

#include "kernels/cuda/common.cuh"

namespace lora
{

/* silu: v / (1 + exp(-v)). gelu's tanh form, 0.5 v (1 + tanh(u)) with u = sqrt(2 / pi) (v +
 * 0.044715 v^3), is v / (1 + exp(-2 u)). */
__device__ __forceinline__ float activated(float v, int gelu)
{
    float z = gelu ? 1.5957691216057308f * (v + 0.044715f * v * v * v) : v;
    return __fdividef(v, 1.f + __expf(-z));
}

} // namespace lora

#endif
