/*
 * launch: what the C side of the CUDA back end calls; one function a kernel, and the structs that
 * lie in device memory. Every launcher queues on `stream`, returns 0 or a cudaError_t, and may be
 * recorded into a graph: nothing but device memory changes from step to step.
 *
 * Shapes: T rows (tokens) of a step, K inputs, N outputs of a site; weights bf16 row-major [N, K].
 */
#ifndef KERNELS_CUDA_LAUNCH_H
#define KERNELS_CUDA_LAUNCH_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    CU_MAX_CTAS = 192,     // multiprocessors of the largest card thought of
    CU_MAX_SEGMENTS = 512, // of a step that takes the small-M path
    CU_SMALL_ROWS = 64,    // up to here the own GEMM, beyond cuBLASLt
    CU_TILE_K = 128,       // unit in which chunks of A count inputs
    CU_MAX_PARTS = 4,      // modules side by side in one site
    CU_B_BLOCK = 512,      // outputs of B that lie in one piece
};

/* A segment as the device reads it. */
struct cu_segment {
    uint32_t row0, n_rows;
    uint32_t slot;
    float scale;
};

/* One module of an adapter in a site. */
struct cu_part {
    uint32_t col0;  // first column among the site's stacked A rows
    uint32_t rank;  // 0: no A and B, only gain or bias
    uint32_t rank8; // rank rounded up to 8: B is padded to it
    uint32_t out0;  // first output
    uint32_t n_out;
    uint32_t col16;         // col0 with the ranks before it rounded up to 16: columns of v16
    float scale;            // alpha / r
    const void *const *b;   // B in fragment order, one pointer per CU_B_BLOCK outputs
    const float *gain;      // [n_out] or NULL
    const float *bias;      // [n_out] replaces the base's, or NULL
    const float *lora_bias; // [n_out] or NULL
};

/* What a slot holds for one (layer, site); n_parts 0: nothing. */
struct cu_site {
    uint32_t n_rows;   // stacked A rows: sum of ranks
    uint32_t n_groups; // of 16 rows
    uint32_t n_parts;
    uint32_t flags;
    const void *const *a; // [n_groups]: 16 rows of A, bf16 row-major [.., K]
    struct cu_part parts[CU_MAX_PARTS];
};

/* How a small-M GEMM is spread: made by cu_plan for every (layer, site) of a step. */
struct cu_plan {
    uint32_t n_chunks;                    // of A
    uint32_t start[CU_MAX_CTAS + 1];      // k-blocks of base weights before each CTA's
    uint32_t prefix[CU_MAX_SEGMENTS + 1]; // A chunks before each segment's
};

struct cu_gemm {
    const void *w; // [N, K]
    const void *x; // [T, K] bf16
    float *y;      // planes [.][T, N]
    uint32_t t, n, k;
    uint32_t n_ctas;
    const struct cu_plan *plan;
    /* LoRA's part: NULL segments for none */
    const struct cu_segment *segments;
    const struct cu_site *sites; // [slot * site_stride]: this (layer, site) of each slot
    uint32_t site_stride;
    uint32_t n_segments_max;
    const uint32_t *n_segments; // in device memory
    const uint32_t *columns;    // [segment]: first column of its s
    float *s;                   // planes [.][T, s_width]: A x of every segment
    uint32_t s_width;
    uint32_t chunk_blocks; // k-blocks of one A chunk, power of two
    /* Counts of CTAs that have asked for their last bytes, zeroed by cu_begin: its own, and that of
     * the GEMM before it in the step, or NULL. */
    uint32_t *asked;
    const uint32_t *asked_before;
};
int cu_gemm_small(const struct cu_gemm *g, cudaStream_t stream);
/* How many CU_TILE_K a chunk of A has for K inputs; planes of s are ceil(K / CU_TILE_K / that). */
uint32_t cu_chunk_blocks(uint32_t k);
/* Outputs and inputs of one block of base weights (16 KB) in a step of t rows. */
void cu_block_shape(uint32_t t, uint32_t *rows, uint32_t *k);

/* One (layer, site) to be planned. */
struct cu_plan_site {
    uint32_t n, k;
    uint32_t block_rows, block_k; // cu_block_shape()
    uint32_t n_ctas, chunk_blocks;
    const struct cu_site *sites; // [slot * site_stride], or NULL: no adapter touches it
    uint32_t site_stride;
    struct cu_plan *plan;
    uint8_t *planes;     // [ceil(n / block_rows)]: planes of y that a tile has
    uint32_t max_planes; // that y has room for
};
/* Fills plan and planes of `n_items` sites and columns[] (one site's columns serve all: they count
 * from the widest site). First kernel of a step; runs alone. */
int cu_plan_step(const struct cu_plan_site *items, uint32_t n_items,
                 const struct cu_segment *segments, const uint32_t *n_segments,
                 cudaStream_t stream);

/* What completes a GEMM's output (expand.cuh): y = g (sum of planes + B v) + b. */
struct cu_expand {
    uint32_t t, n;
    const float *y;        // planes [.][T, N], or NULL
    const void *y16;       // bf16 [T, N] of a large GEMM, or NULL
    const uint8_t *planes; // of the plan; NULL: one plane
    uint32_t block_rows;
    const uint32_t *asked; // of the GEMM, or NULL: from `enough` on it is time to fetch B
    uint32_t enough;
    const float *bias;                 // the base's [N], or NULL
    const struct cu_segment *segments; // NULL: no adapters
    const uint32_t *n_segments;
    const uint32_t *columns; // [segment]
    const int32_t *owner;    // [T] index of the segment that may replace things, or -1
    const struct cu_site *sites;
    uint32_t site_stride;
    const float *v;  // planes [.][T, v_width], or NULL with
    const void *v16; // bf16 [T, v_width], scaled already, modules at their col16; both NULL: y has
                     // B v in it
    uint32_t v_planes, v_width;
    int kinds; // 0 none, 1 additive, 2 all
    /* The GEMM was given x w instead of norm(x): y is to be multiplied by 1 / rms of the row, of
     * which ss[T][n_ss] has the squares' sums in parts (NULL: it was given what it should). */
    const float *ss;
    uint32_t n_ss;
    float ss_scale, eps; // 1 / D
};

/* Addresses of KV pages. */
struct cu_pages {
    uint8_t *pool;
    uint64_t page_bytes;
    uint32_t pages_per_chunk, page_tokens; // page_tokens: a power of two
    const uint32_t *table;                 // the step's page ids
    uint32_t n_chunks;                     // of the pool
    /* ceil(2^40 / pages_per_chunk): a page's chunk is page * this >> 40, exact as long as n_chunks
     * * pages_per_chunk^2 < 2^40. */
    uint64_t chunk_inverse;
};

/* A sequence as the device reads it: struct step_sequence. */
struct cu_sequence {
    uint32_t row0, n_rows, position0, page0, n_pages, rope_regime;
};

/* The rows of a step; all in device memory but the bounds. */
struct cu_rows {
    uint32_t t;             // bound: rows of the bucket
    const uint32_t *n_rows; // real count
    const uint32_t *n_sequences;
    const int32_t *tokens;    // resolved by cu_begin
    const uint32_t *sequence; // [T]
    const uint32_t *position; // [T]
    const struct cu_sequence *sequences;
    const struct cu_segment *segments; // NULL: no adapters
    const uint32_t *n_segments;
    const int32_t *owner;
};

/* Shapes of attention in one layer. */
struct cu_heads {
    uint32_t n_heads, n_kv_heads, head_dim, rotary_dim;
    uint32_t layer, n_layers, window; // window 0: all
    float scale, softcap;
};

/* asked[n_asked] = 0; tokens[i] = literal, or prev_ids[j] where it is ~j; cos and sin of every
 * row's position: trig[rope][T][rotary_dim] (cos then sin), rope < n_ropes;
 * inv_freq[rope][regime][rotary_dim / 2].
 */
int cu_begin(const struct cu_rows *r, uint32_t *asked, uint32_t n_asked, const int32_t *literal,
             int32_t *tokens, const int32_t *prev_ids, uint32_t n_ropes, uint32_t n_regimes,
             uint32_t rotary_dim, const float *inv_freq, const float *scales, float *trig,
             cudaStream_t stream);

/* What a slot brings to the embedding. */
struct cu_embed_part {
    const void *full; // [full_rows, D] bf16, replaces E; NULL: none
    uint32_t full_rows, n_rows, rank, a_rows;
    const uint32_t *row_ids; // ascending
    const void *const *rows; // [n_rows] pointers to bf16 [D]
    const void *const *a;    // bf16 [.., rank]: one pointer per 1024 tokens
    const void *const *b;    // bf16 [.., rank]: one pointer per CU_B_BLOCK dimensions
    const float *gain;       // [D]
    float scale;
};
/* x[T, D] float32 */
int cu_embed(const struct cu_rows *r, const void *e, uint32_t vocab, uint32_t d, float scale,
             const struct cu_embed_part *slots, int kinds, float *x, cudaStream_t stream);

/* Norm weights that slots replace: [slot * stride]; an entry is NULL where it does not. */
struct cu_norm {
    const float *w; // [D]
    const float *const *replaced;
    uint32_t stride;
    float eps;
    float plus; // 1 when weights are stored minus one
};
/* Per row of x[., D]: x += norm(y) w_post when y is given; then h = norm(x) w in bf16.
 * rows: NULL, or h's row i is made of x's row rows[i]. n_bound rows; real count *n_rows. */
int cu_norm_rows(const struct cu_rows *r, uint32_t n_bound, const uint32_t *rows, float *x,
                 const float *y, uint32_t d, const struct cu_norm *post, const struct cu_norm *norm,
                 void *h, cudaStream_t stream);

/* q[T, n_heads, head_dim] bf16; keys and values to the pages. Rows before *n_decode_rows
 * (NULL: 0) are left to cu_attention_decode. */
int cu_rope_write(const struct cu_expand *e, const struct cu_rows *r, const struct cu_heads *h,
                  const struct cu_norm *q_norm, const struct cu_norm *k_norm, const float *trig,
                  const struct cu_pages *pages, const uint32_t *n_decode_rows, void *q,
                  cudaStream_t stream);
/* x[T, N] += y, or out[T, N] = y when out is given. This, cu_rope_write and cu_activation, beyond
 * CU_SMALL_ROWS rows: B v is in y. */
int cu_residual(const struct cu_expand *e, float *x, float *out, cudaStream_t stream);
/* Up to CU_SMALL_ROWS rows: x += y, h = x w in bf16 and ss[T][cu_ss_parts(N)], sums of x^2: the
 * next GEMM takes h, its consumer divides by the rms. */
int cu_residual_norm(const struct cu_expand *e, const struct cu_rows *r, const struct cu_norm *norm,
                     float *x, void *h, float *ss, cudaStream_t stream);
uint32_t cu_ss_parts(uint32_t n);
/* act[T, d_ff] bf16 = f(gate) up; gelu: tanh form, else silu. */
int cu_activation(const struct cu_expand *e, uint32_t d_ff, int gelu, void *act,
                  cudaStream_t stream);

/* between_large: the same for many rows whose y16 is complete but for the base's bias (kinds 0);
 * norms not replaced, head_dim 64, 128 or 256 and rotated whole, widths multiples of 8. */
int cu_rope_write_large(const struct cu_expand *e, const struct cu_rows *r,
                        const struct cu_heads *h, const struct cu_norm *q_norm,
                        const struct cu_norm *k_norm, const float *trig,
                        const struct cu_pages *pages, void *q, cudaStream_t stream);
/* x += y, then h = norm(x) in bf16 when norm is given; N <= 8192. */
int cu_residual_norm_large(const struct cu_expand *e, float *x, const struct cu_norm *norm, void *h,
                           cudaStream_t stream);
int cu_activation_large(const struct cu_expand *e, uint32_t d_ff, int gelu, void *act,
                        cudaStream_t stream);

/* out[T, n_heads * head_dim] bf16. Decode rows are one a sequence and stand first. */
struct cu_attention {
    struct cu_heads heads;
    struct cu_pages pages;
    const void *q; // prefill: cu_rope_write's
    void *out;
    /* decode: completes qkv, rotates, writes the row's key and value */
    struct cu_norm q_norm, k_norm;
    const float *trig;
    float *partial;    // [row][kv head][n_split][heads of a kv head][head_dim + 2]
    uint32_t *arrived; // [row][kv head], zero between launches
    uint32_t n_split;
    uint32_t n_sms; // multiprocessors
};
/* A qkv without y: queries are taken from a->q, and keys and values are in the pages already. */
int cu_attention_decode(const struct cu_attention *a, const struct cu_expand *qkv,
                        const struct cu_rows *r, const uint32_t *n_decode_rows, uint32_t bound,
                        cudaStream_t stream);
/* Rows of sequences [first, n_sequences) with n_blocks blocks of CU_QUERY_ROWS rows in all. */
enum { CU_QUERY_ROWS = 64 };
int cu_attention_prefill(const struct cu_attention *a, const struct cu_rows *r,
                         const uint32_t *block_sequence, const uint32_t *block_row,
                         uint32_t n_blocks, cudaStream_t stream);

/* The same on Hopper, blocks of CU_HOPPER_ROWS rows; for heads and pages that it takes. */
enum { CU_HOPPER_ROWS = 128 };
int cu_attention_hopper_takes(uint32_t head_dim, uint32_t page_tokens);
int cu_attention_hopper(const struct cu_attention *a, const struct cu_rows *r,
                        const uint32_t *block_sequence, const uint32_t *block_row,
                        uint32_t n_blocks, cudaStream_t stream);

/* v16[T, s_width] = scale x A^T in bf16 for T > CU_SMALL_ROWS, by way of n_planes of g->s; items of
 * at most cu_shrink_rows(T) rows of a segment. */
enum { CU_SHRINK_ROWS = 64, CU_SHRINK_FEW_ITEMS = 32 }; // items of T rows: T / 64, or at most 32
uint32_t cu_shrink_rows(uint32_t t);
int cu_shrink(const struct cu_gemm *g, const uint32_t *item_segment, const uint32_t *item_row,
              uint32_t n_items, uint32_t n_planes, void *v16, cudaStream_t stream);

/* gemm_prefill: y = x W^T, with adapters + v B^T, on Hopper (compute capability 9.0), any T.
 * CU_STORE: y bf16 [T, N]; else N / 2 gates and ups, y bf16 [T, N / 2] = f(gate) up.
 * N a multiple of 16 (32 with gates), K of 8, first outputs of modules of 16. */
enum {
    CU_PREFILL_GROUPS = 4, // of 16 ranks
    CU_PREFILL_SHARES = 8,
};
enum cu_epilogue { CU_STORE, CU_SILU, CU_GELU };
struct cu_prefill {
    const void *w, *x; // bf16 [N, K], [T, K]
    void *y;
    uint32_t t, n, k, n_ctas;
    enum cu_epilogue epilogue;
    const struct cu_segment *segments; // NULL: no adapters
    const struct cu_site *sites;
    uint32_t site_stride;
    const uint32_t *n_segments;
    const uint32_t *columns; // [segment]: first column of its v, a multiple of 16
    void *v16;               // bf16 [T, v_width], scaled; ranks rounded up to 16 with zeros
    uint32_t v_width;        // a multiple of 16
    uint32_t next_k;         // inputs of the site behind `sites`, whose A is fetched into L2
    /* NULL: v16 is given. Else it is computed here, for adapters that bring at most
     * CU_PREFILL_GROUPS n_groups to any 64 rows from a multiple of 64 on: */
    float *planes; // [max_planes][T, v_width]
    uint32_t max_planes;
    uint32_t *ready; // [ceil(T / 128)][2 CU_PREFILL_SHARES] words that no launch before set to
    uint32_t epoch;
    uint32_t tile; // outputs of a tile: 128, 256; 0: whichever is faster
};
int cu_gemm_prefill(const struct cu_prefill *g, cudaStream_t stream);

/* y16[T, N] += B v16 of so many segments in place (CU_STORE), or act[T, N / 2] bf16 = f(gate) up of
 * that sum. N a multiple of 16 (32 with gates, and no bias), first outputs of modules of 16. */
int cu_expand_add(const struct cu_expand *e, uint32_t n_segments, enum cu_epilogue epilogue,
                  void *act, cudaStream_t stream);
/* x[T, N] += B v16: of an o or down projection whose product need not have been made yet. */
int cu_expand_residual(const struct cu_expand *e, uint32_t n_segments, float *x,
                       cudaStream_t stream);

/* Rows [row0, row0 + n_rows) of y at outputs out_ids[i] (NULL: out0 + i) become x w_i^T. */
struct cu_replace {
    const void *x; // [T, K] bf16
    const void *w; // [n_out, K] bf16, or NULL with
    const void *const *w_rows;
    const uint32_t *out_ids;
    uint32_t n_out, out0, k, row0, n_rows;
    struct cu_expand y;
};
int cu_replace_rows(const struct cu_replace *r, cudaStream_t stream);

/* logits[T, N] float32, `stride` apart, = the completed output of the head. */
int cu_logits(const struct cu_expand *e, float *logits, uint32_t stride, cudaStream_t stream);

/* One logit row's sampling, as the device reads it. */
struct cu_sample {
    float temperature, top_p, min_p;
    int32_t top_k;
    float repetition, presence, frequency;
    uint32_t n_bias, bias0; // into biases
    uint32_t n_history, history0, n_prompt;
    int32_t pending, n_top, target;
    uint32_t vocab;
    uint64_t seed, counter;
};
struct cu_token_bias {
    int32_t token;
    float bias;
};
struct cu_sampler {
    const struct cu_sample *params;
    const struct cu_token_bias *biases;
    const int32_t *history;
    const int32_t *prev_ids;
    const uint32_t *n_rows;
    uint32_t bound, stride; // rows; floats between rows of logits
    float softcap;
    float *logits;    // raw, soft-capped in place
    float *changed;   // [bound, stride] scratch
    uint32_t *counts; // [bound, stride] scratch
    int32_t *ids, *ranks, *top_ids;
    float *logprobs, *top_logprobs;
};
int cu_sample_rows(const struct cu_sampler *s, cudaStream_t stream);

/* out[i] = ||(W + scale B A)[row0 + i]||^2 for i < n, W[n_rows, n_cols]; transposed: of columns i.
 */
int cu_row_norms(const void *w, uint32_t row0, uint32_t n, uint32_t n_rows, uint32_t n_cols,
                 int transposed, const float *a, const float *b, uint32_t rank, float scale,
                 double *out, cudaStream_t stream);

/* Reads n bytes and does nothing with them. */
int cu_read(const void *p, uint64_t n, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
