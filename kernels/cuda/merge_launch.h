/*
 * merge_launch: launchers of what `lora merge` computes on the card (merge_delta.cu, sums64.cu,
 * matmul.cu). Each queues on `stream` and returns 0 or a cudaError_t. All pointers are of device
 * memory.
 */
#ifndef KERNELS_CUDA_MERGE_LAUNCH_H
#define KERNELS_CUDA_MERGE_LAUNCH_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* struct merge_sums, merge_matrix and merge_rows of backend.h, in device memory. */
struct cu_merge_sums {
    float base2, delta2, lost2;
    uint32_t n_changed;
};

struct cu_merge {
    int is_bf16; // else f16
    uint32_t n_rows, n_cols, rank;
    const float *right, *norms;
    const float *left, *windows;
    const double *left_exact, *left_norms;
    const uint16_t *w;
    uint16_t *out;
    struct cu_merge_sums *sums;
};
int cu_merge_delta(const struct cu_merge *m, cudaStream_t stream);

/* out[n_rows, n_cols] = left[n_rows, rank] right[rank, n_cols] in float64, k rising. */
int cu_sums64(const double *left, const double *right, double *out, uint32_t n_rows,
              uint32_t n_cols, uint32_t rank, cudaStream_t stream);

/* c[m, n] (+)= scale * a[m, k] b[k, n], float32; every sum runs over k in rising order. */
int cu_matmul(const float *a, const float *b, float *c, uint32_t m, uint32_t n, uint32_t k,
              float scale, int add, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
