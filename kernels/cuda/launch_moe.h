/*
 * launch_moe: products whose rows are grouped (experts), or whose order of summation does not
 * depend on the batch (--deterministic); the same kernels do both. See launch.h for what launchers
 * are.
 *
 * A place is a row of a product: one of the step's rows, or a row at one of its experts. Places of
 * a group lie side by side, by rising row; a tile is up to `tile` of them. Every sum over k goes in
 * steps of 16 from the first input to the last, whatever the tile, the places and the neighbours.
 */
#ifndef KERNELS_CUDA_LAUNCH_MOE_H
#define KERNELS_CUDA_LAUNCH_MOE_H

#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    CU_MAX_TILE = 128,
    CU_MAX_EXPERTS = 512,    // a thread each
    CU_MAX_EXPERTS_USED = 16 // by one row
};

struct cu_tile {
    uint32_t group, first, n; // places [first, first + n)
};

enum cu_store { CU_STORE_F32, CU_STORE_BF16, CU_STORE_SILU, CU_STORE_GELU };

struct cu_grouped {
    const void *w;         // [groups][N, K] bf16
    const void *x;         // [., K] bf16
    const uint32_t *x_row; // [places] row of x, or NULL: the place's own
    uint32_t n, k;
    /* Tiles: listed on the device, or NULL: one group of *n_rows places. */
    const struct cu_tile *tiles;
    const uint32_t *n_tiles; // of them
    const uint32_t *n_rows;
    uint32_t tile_bound, tile; // tiles launched; places of one: 8, 16, 32, 64, 128
    /* Adapters, NULL segments for none: sites[slot * site_stride]; of group e, A's pieces are
     * a[e n_groups + …] and B's b[e blocks + …] (blocks of CU_B_BLOCK outputs). */
    const struct cu_segment *segments;
    const uint32_t *n_segments;
    const uint32_t *columns;
    const struct cu_site *sites;
    uint32_t site_stride;
    const uint32_t *row; // [places] row of the step, or NULL: the place's own
    void *v;             // [places, v_width] bf16: scale A x
    uint32_t v_width;
    int v_padded; // modules begin at their col16, with zeros up to the next, not at their col0
};
/* y[place] = W_e x + B_e v, [places, N] float32 or bf16; CU_STORE_SILU and _GELU:
 * f(first half) * second half, [places, N / 2] bf16. N (or its half) in steps of 16. */
int cu_grouped_gemm(const struct cu_grouped *g, enum cu_store store, void *y, cudaStream_t stream);
/* v of every place and segment. */
int cu_grouped_shrink(const struct cu_grouped *g, cudaStream_t stream);

/* Attention whose sums depend on a row's keys alone. Blocks of CU_QUERY_ROWS rows of sequences, as
 * for cu_attention_prefill; n_parts 0. Or the first n_blocks rows, one a block, whose keys have at
 * most n_parts parts of CU_PART_KEYS; a->partial holds n_parts * n_blocks rows. */
enum { CU_PART_KEYS = 128 };
int cu_attention_fixed(const struct cu_attention *a, const struct cu_rows *r,
                       const uint32_t *block_sequence, const uint32_t *block_row, uint32_t n_blocks,
                       uint32_t n_parts, cudaStream_t stream);

/* Which experts a step's rows go to. */
struct cu_route {
    const float *logits; // [T, n_experts]: W x, with B A x
    uint32_t t;          // bound of
    const uint32_t *n_rows;
    uint32_t n_experts, n_used;
    int norm_topk;
    uint32_t tile;
    /* kinds 2: gains and biases of the router's adapters */
    int kinds;
    const struct cu_segment *segments;
    const uint32_t *n_segments;
    const int32_t *owner;
    const struct cu_site *sites;
    uint32_t site_stride;
    /* results */
    uint32_t *chosen, *place; // [T, n_used]
    float *weight;            // [T, n_used]
    uint32_t *place_row;      // [T * n_used]
    struct cu_tile *tiles;
    uint32_t *n_tiles;
    uint32_t *counts; // [ceil(T / CU_ROUTE_ROWS), n_experts] scratch
};
enum { CU_ROUTE_ROWS = 64 };
int cu_route_rows(const struct cu_route *r, cudaStream_t stream);
/* Tiles that t rows may need. */
uint32_t cu_route_tiles(uint32_t t, uint32_t n_experts, uint32_t n_used, uint32_t tile);

/* out[row, D] float32 = sum over its experts i of weight[row, i] y[place[row, i], D]. */
int cu_moe_combine(const void *y, const uint32_t *place, const float *weight,
                   const uint32_t *n_rows, uint32_t t, uint32_t n_used, uint32_t d, float *out,
                   cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
