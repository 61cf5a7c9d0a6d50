/*
 * cuda_impl: what the C files of the CUDA back end share. Private to kernels/cuda.
 *
 * Weights and A, B are bf16, norms, biases and gains float32, keys and values bf16; the residual
 * stream is float32, the inputs of matrix products bf16, every sum float32.
 *
 * Two ways through a step (ARCHITECTURE, "The CUDA back end"): up to CU_SMALL_ROWS rows, gemm_small
 * with the adapters' A inside, and consumers that apply B, gains and biases; beyond, cuBLASLt,
 * shrink and expand_add, and consumers that apply gains and biases. Decode steps are recorded once
 * a (row bucket, kinds) and replayed.
 */
#ifndef KERNELS_CUDA_CUDA_IMPL_H
#define KERNELS_CUDA_CUDA_IMPL_H

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdatomic.h>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/launch_moe.h"
#include "kernels/loaded.h"
#include "kernels/segment_order.h"
#include "libcore/backend.h"
#include "libcore/base/limits.h"

enum {
    CUDA_LAYOUT_VERSION = 3,
    CUDA_IN_FLIGHT = 2,
    CUDA_LAYER_SITES = 4,             // qkv, o, gate_up, down
    CUDA_MOE_SITES = 3,               // router, experts' gate_up, down
    CUDA_STAGING_BLOCKS = 16,         // two for each of eight loading threads
    CUDA_WIDE_HEAD_BYTES = 128 << 10, // shared memory of attention over heads of more than 128
    CUDA_STAGING_BYTES = 8 << 20,
    CUDA_WORKSPACE_BYTES = 64 << 20,
    CUDA_MAX_GRAPHS = 64,
    CUDA_MAX_SPLIT = 16,
};

struct cuda_backend {
    struct backend base;           // first
    int device, n_sms, capability; // capability: 90 for 9.0
    uint32_t shared_bytes;         // of shared memory that a block may have
    char name[96];
    bool no_graphs, deterministic;
    char *cache_dir; // or NULL
    cublasLtHandle_t lt;
};

struct cuda_matrix {
    void *data; // bf16 [n_rows, n_cols], device
    uint32_t n_rows, n_cols;
};

struct cuda_layer {
    struct cuda_matrix sites[CUDA_LAYER_SITES];
    float *bias[CUDA_LAYER_SITES]; // device, NULL: none
    float *norms[NORM_COUNT];      // device, NULL: none
    struct cuda_matrix router;     // of a mixture of experts
    struct cuda_matrix experts[2]; // gate_up, down: one expert's rows after the other's
};

struct device_weight {
    struct cuda_matrix matrix;
    float *vector; // device
    uint32_t n;
};

/* What the host must know of a slot: weights that it replaces whole. */
struct cuda_replaced {
    enum site site;
    uint32_t layer, row0;
    const struct device_weight *full; // or rows:
    uint32_t n_rows;
    const void *const *rows; // device pointers to bf16 rows, device array
    const uint32_t *row_ids; // device
};

struct cuda_slot {
    _Atomic int state; // enum adapter_state
    unsigned kinds;
    uint64_t key;                      // segment_key()
    uint32_t width;                    // columns of v: the widest site's stacked ranks
    uint32_t width16;                  // the same with every module's rank rounded up to 16
    uint32_t groups[CUDA_LAYER_SITES]; // n_groups of a site, in the layer that has most
    uint32_t vocab, embed_rows;        // 0, or the rows of its own head and embedding
    struct cuda_replaced *replaced;
    uint32_t n_replaced;
    cudaEvent_t loaded;
    bool loading;
};

/* A pinned block on its way to the device. */
struct cuda_staging {
    void *host;
    cudaEvent_t done;
    bool busy;
    uint64_t last; // when it was taken, counted
};

/* Where the arrays of a step's description lie in the meta buffer; a function of the buckets. */
struct cuda_layout {
    size_t counts, tokens, sequence, position, owner, sequences, logit_rows, head_owner, segments,
        head_segments, columns, head_columns, sampling, pages;
};

/* Host mirror of what kernels read as counts. */
struct cuda_counts {
    uint32_t n_rows, n_decode_rows, n_sequences, n_segments, n_logit_rows, n_head_segments;
};

struct cuda_flight {
    uint8_t *meta;    // pinned
    uint8_t *results; // pinned
    uint8_t *extra;   // pinned: biases, history, prefill lists
    cudaEvent_t done;
    uint32_t n_logit_rows, logit_bucket;
    bool wants_top;
};

struct cuda_graph {
    uint32_t rows;
    int kinds;
    cudaGraphExec_t exec;
};

/* Work lists of a step with many rows; device addresses. */
struct cuda_list {
    const uint32_t *segment, *row; // or sequence, row
    uint32_t n;
};

/* One step as the launching code sees it. */
struct cuda_run {
    uint32_t rows, logits; // what is launched: buckets when recorded
    uint32_t n_decode;     // rows (a bound when recorded)
    int kinds;             // 0 none, 1 additive, 2 all
    bool replaces;         // whole weights or rows: never recorded
    bool single;           // one op alone: nothing of the next one in it
    bool only_a;           // products without the base's weights: A of the adapters (plan set 3)
    const uint8_t *meta;   // device, laid out by `at`
    struct cuda_layout at;
    const struct step *step; // NULL when recorded
    struct cuda_list shrink, head_shrink, blocks;
    uint32_t v_width;                  // columns of v in a step with many rows
    uint32_t groups[CUDA_LAYER_SITES]; // n_groups that 64 rows of it have in a site, at most
    uint32_t stride; // floats between rows of logits: more where adapters bring tokens
};

/* Buffers of the mixtures of experts, device; a layer uses them alone. */
struct cuda_moe {
    struct cu_site *sites; // [slot][stride]
    uint32_t stride;       // n_layers * CUDA_MOE_SITES
    size_t v_values;       // that v holds
    uint32_t *chosen, *place, *place_row, *counts, *n_tiles;
    float *router, *weight, *out;
    struct cu_tile *tiles;
    void *act, *y, *v;
};

struct device_model {
    struct cuda_backend *be;
    const struct model_config *config;   // borrowed
    const struct model_modules *modules; // borrowed
    struct step_limits limits;
    cudaStream_t compute, copy;
    // weights
    struct cuda_matrix embed, head; // head.data is embed's when tied
    struct cuda_layer *layers;
    float *final_norm;
    struct loaded loaded;
    struct cuda_staging staging[CUDA_STAGING_BLOCKS];
    uint64_t n_staged;
    pthread_mutex_t staging_lock;
    pthread_cond_t staging_free;
    // pool
    uint8_t *pool;
    uint32_t n_chunks, pages_per_chunk;
    uint64_t page_bytes;
    // slots
    struct cuda_slot *slots;
    struct cu_site *sites;        // device [slot][site_stride]
    uint32_t site_stride;         // n_layers * CUDA_LAYER_SITES + 1 (head last)
    struct cu_embed_part *embeds; // device [slot]
    const float **norm_table;     // device [slot][norm_stride]
    uint32_t norm_stride;         // n_layers * NORM_COUNT + 1 (final last)
    pthread_mutex_t load_lock;
    // plans: [0], [1] without adapters for t <= 16 and above, [2] of the step, [3] of its A alone
    // (cuda_only_a_open)
    struct cu_plan *plans[4];
    uint8_t *planes[4];
    struct cu_plan_site *plan_items[4]; // device
    uint32_t planes_stride;
    // activations, device
    float *x, *y, *post, *v, *trig, *logits, *changed, *partial, *ss;
    uint32_t *arrived;
    uint32_t *counts_scratch;
    uint32_t *asked;              // device [site_stride]: cu_gemm.asked
    const uint32_t *asked_before; // of the last small GEMM queued, NULL at a step's start
    void *h, *q, *attn, *act, *head_h, *y16, *v16;
    uint32_t *v_ready, v_epoch; // of gemm_prefill; v_epoch: of its last launch
    size_t v_floats, y_floats;
    uint32_t v_width_small;
    uint32_t max_vocab;            // of the base and any adapter
    float *inv_freq, *rope_scales; // device
    uint32_t n_ropes, n_regimes;
    void *workspace;
    // steps
    uint8_t *meta, *extra, *results; // device
    size_t meta_bytes, extra_bytes, results_bytes;
    size_t max_biases, max_history, max_items, max_blocks; // what `extra` holds, in this order
    uint32_t query_rows; // of a block of the prefill's attention: CU_QUERY_ROWS or CU_HOPPER_ROWS
    int32_t *tokens;     // device, resolved
    int32_t *prev_ids;   // device
    struct cuda_moe moe;
    struct cuda_flight flights[CUDA_IN_FLIGHT];
    struct cuda_graph graphs[CUDA_MAX_GRAPHS];
    uint32_t n_graphs;
    uint64_t n_submitted, n_fetched;
    // results handed out
    int32_t *ids, *ranks, *top_ids;
    float *logprobs, *top_logprobs;
    struct lt_cache *lt_cache;
};

/* 0, or ERR_DEVICE with the driver's word. */
int cuda_check(int code, const char *what, struct err *err);
/* Makes the back end's card the calling thread's current one. Every slot of the tables that reaches
 * CUDA begins with it: any thread may call, after it used another card or none (a call on none
 * makes a context on card 0). */
int cuda_choose(struct backend *be, struct err *err);

/* ---- model.c ---- */
int cuda_model_open(struct backend *be, const struct model_config *config,
                    const struct model_modules *modules, const struct step_limits *limits,
                    struct device_model **out, struct err *err);
void cuda_model_free(struct backend *be, struct device_model *m);
int cuda_model_bytes(struct backend *be, const struct model_config *config,
                     const struct step_limits *limits, uint64_t *weights, uint64_t *scratch,
                     struct err *err);
int cuda_weight_load(struct backend *be, struct device_model *m, const struct weight_place *place,
                     const struct tensor *src, struct err *err);
int cuda_weight_read(struct backend *be, struct device_model *m, const struct weight_place *place,
                     const struct tensor *src, const struct weight_source *from, struct err *err);
int cuda_model_ready(struct backend *be, struct device_model *m, struct err *err);
int cuda_replacement_load(struct backend *be, struct device_model *m, const struct bound_part *part,
                          struct device_weight **out, uint64_t *n_bytes, struct err *err);
void cuda_replacement_free(struct backend *be, struct device_weight *w);
/* Rows and columns of a site's matrix. */
void cuda_site_shape(const struct model_config *c, enum site site, uint32_t *n_rows,
                     uint32_t *n_cols);
/* Where a site's weights lie; experts: all of them. */
struct cuda_matrix *cuda_site_matrix(struct device_model *m, enum site site, uint32_t layer);
/* 0…3 for the sites of a layer, -1 for the others. */
int cuda_layer_site(enum site site);
/* n values of src from `first` on as bf16 (or float32) in host memory. */
bool cuda_to_bf16(const struct tensor *src, uint64_t first, uint64_t n, uint16_t *dst);
/* A device copy of n float32 values of src, plus `plus`. */
int cuda_load_vector(struct device_model *m, float **to, uint32_t n_all, uint32_t row0,
                     const struct tensor *src, struct err *err);

/* ---- scratch.c ---- */
int cuda_scratch_open(struct device_model *m, struct err *err);
void cuda_scratch_free(struct device_model *m);
/* Room for steps with only_a, while sessions of single ops are open. */
int cuda_only_a_open(struct device_model *m, struct err *err);
void cuda_only_a_close(struct device_model *m);
uint64_t cuda_scratch_bytes(const struct model_config *c, const struct step_limits *l);
int cuda_pool_open(struct backend *be, struct device_model *m, uint32_t n_chunks, struct err *err);
void cuda_pool_free(struct backend *be, struct device_model *m);
uint64_t cuda_page_bytes(struct backend *be, const struct device_model *m);

/* ---- adapter_image.c ---- */
int cuda_adapter_pack_size(struct backend *be, const struct device_model *m,
                           const struct bound_adapter *b, uint64_t *size, struct err *err);
int cuda_adapter_pack(struct backend *be, const struct device_model *m,
                      const struct bound_adapter *b, void *image, uint64_t size, struct err *err);
/* ---- adapter.c ---- */
int cuda_adapter_load(struct backend *be, struct device_model *m, uint32_t slot, const void *image,
                      uint64_t size, const uint32_t *chunks, uint32_t n_chunks,
                      const struct adapter_replacement *replacements, uint32_t n_replacements,
                      struct err *err);
enum adapter_state cuda_adapter_poll(struct backend *be, struct device_model *m, uint32_t slot);
void cuda_adapter_unload(struct backend *be, struct device_model *m, uint32_t slot);

/* ---- step.c ---- */
int cuda_steps_open(struct device_model *m, struct err *err);
void cuda_steps_free(struct device_model *m);
int cuda_step_submit(struct backend *be, struct device_model *m, const struct step *step,
                     uint64_t *ticket, struct err *err);
int cuda_step_result(struct backend *be, struct device_model *m, uint64_t ticket,
                     struct step_result *out, struct err *err);

/* Passes a cudaError_t upward. */
#define CUDA_TRY(call)                                                                             \
    do {                                                                                           \
        int rc_ = (call);                                                                          \
        if (rc_)                                                                                   \
            return rc_;                                                                            \
    } while (0)

/* ---- forward.c: queues (or records) a whole step; 0 or a cudaError_t ---- */
int cuda_forward(struct device_model *m, const struct cuda_run *run);
/* The shapes of a layer's attention. */
struct cu_heads cuda_heads(const struct device_model *m, uint32_t layer);

/* ---- forward_moe.c ---- */
/* 0…2 for the sites of a mixture of experts, -1 for the others. */
int cuda_moe_site(enum site site);
uint64_t cuda_moe_bytes(const struct model_config *c, const struct step_limits *l);
int cuda_moe_open(struct device_model *m, struct err *err);
void cuda_moe_free(struct device_model *m);
/* Whether v holds a step of so many rows whose adapters need v_width columns. */
bool cuda_moe_fits(const struct device_model *m, uint32_t rows, uint32_t v_width);
/* The experts' part of a layer on m->h; *out is what the residual takes. */
int cuda_moe_forward(struct device_model *m, const struct cuda_run *run, const struct cu_rows *r,
                     const uint32_t *columns, uint32_t layer, struct cu_expand *out);

/* ---- forward_fixed.c: --deterministic ---- */
/* Rows that a step of n is launched with, and limits that allow them; n otherwise. */
uint32_t cuda_fixed_rows(const struct cuda_backend *be, uint32_t n);
struct step_limits cuda_fixed_limits(const struct cuda_backend *be, const struct step_limits *l);
/* A product whose sums depend on its shape alone: y16, or float32 at `wide`, and v16. *e has its
 * shape and adapters already. */
struct cuda_fixed {
    const void *w, *x;
    uint32_t k, v_width;
    uint32_t n_real;        // rows of the step, and
    const uint32_t *n_rows; // the same on the device
    float *wide;
};
int cuda_attention_fixed(struct device_model *m, const struct cuda_run *run,
                         const struct cu_attention *a, const struct cu_rows *r);
int cuda_linear_fixed(struct device_model *m, const struct cuda_fixed *f, struct cu_expand *e);

/* ---- single ops (access.c): of a step that is prepared but not run; parts of step.c, forward.c
 * ---- */
int cuda_step_prepare(struct device_model *m, const struct step *step, struct cuda_run *run,
                      struct err *err);
int cuda_step_results(struct device_model *m, const struct cuda_run *run, struct step_result *out,
                      struct err *err);
int cuda_op_begin(struct device_model *m, const struct cuda_run *run);
int cuda_op_embed(struct device_model *m, const struct cuda_run *run, float *x);
/* The product of a site and the adapters' v; *e completes it. */
int cuda_op_linear(struct device_model *m, const struct cuda_run *run, bool head, uint32_t layer,
                   enum site site, const void *x, struct cu_expand *e);
int cuda_op_norm(struct device_model *m, const struct cuda_run *run, bool head, uint32_t layer,
                 enum norm norm, float *x, void *h);
/* Heads of qkv[rows, width] to m->q and the pages (NULL: the model's). q_norm: NULL, or the norm of
 * the query heads. */
int cuda_op_rope(struct device_model *m, const struct cuda_run *run, const struct cu_heads *heads,
                 const float *qkv, uint32_t width, const enum norm *q_norm, const float *trig,
                 const struct cu_pages *pages);
int cuda_op_attention(struct device_model *m, const struct cuda_run *run,
                      const struct cu_heads *heads);
/* The experts' part of a layer on m->h. */
int cuda_op_moe(struct device_model *m, const struct cuda_run *run, uint32_t layer,
                struct cu_expand *e);
int cuda_op_sample(struct device_model *m, const struct cuda_run *run);

/* ---- access.c ---- */
extern const struct op_access cuda_op_access;

/* ---- access_layer.c: the time of a layer (op_access.layer_seconds) ---- */
int cuda_layer_seconds(struct device_model *m, const struct cuda_run *run, bool base, bool adapters,
                       double *seconds, struct err *err);
/* Where the products of a site take their input from. */
void *cuda_site_input(struct device_model *m, enum site site);

/* ---- forward_large.c: steps of more than CU_SMALL_ROWS rows ---- */
/* Fills run->groups: how many groups of ranks 64 rows of the step have at most, by site. */
void cuda_count_groups(const struct device_model *m, const struct step *s, struct cuda_run *run);
/* v of the rows' adapters and the site's product (float32 at `wide`, or y16); *e says what is left
 * to its consumer: y16 is m->act when the activation is done, too. */
int cuda_linear_large(struct device_model *m, const struct cuda_run *run,
                      const struct cuda_list *items, enum site site, struct cu_gemm *g, float *wide,
                      struct cu_expand *e);
/* Adds B v to y16; what is left of *e is gains and biases, without kinds 2 nothing:
 * y16 is m->act when the activation is done, too. */
int cuda_add_adapters(struct device_model *m, const struct cuda_run *run, enum site site,
                      struct cu_expand *e);
/* Whether y16 lacks nothing but the base's bias, as between_large takes it. */
bool cuda_complete(const struct device_model *m, const struct cuda_run *run,
                   const struct cu_expand *e);

/* ---- gemm_large.c: y[T, N] = x[T, K] W^T through cuBLASLt ---- */
int lt_open(struct device_model *m, struct err *err);
void lt_free(struct device_model *m);
/* With a cache folder: chooses for every shape and bucket of rows that the cache lacks. */
int lt_tune(struct device_model *m, struct err *err);
/* y is bf16, or float32 with `wide`. */
int lt_gemm(struct device_model *m, const void *w, const void *x, void *y, uint32_t t, uint32_t n,
            uint32_t k, bool wide, cudaStream_t stream);

/* ---- math.c ---- */
extern const struct backend_math cuda_math;

/* ---- merge.c: slots of that table (backend.h) ---- */
int cuda_merge_open(struct backend *be, const struct merge_matrix *m, struct device_merge **out,
                    struct err *err);
void cuda_merge_close(struct backend *be, struct device_merge *m);
int cuda_merge_lane_open(struct backend *be, struct merge_lane **out, struct err *err);
void cuda_merge_lane_close(struct backend *be, struct merge_lane *lane);
int cuda_merge_delta(struct backend *be, const struct device_merge *m, struct merge_lane *lane,
                     const struct merge_rows *rows, struct err *err);
int cuda_sums_open(struct backend *be, const struct merge_right *r, struct device_sums **out,
                   struct err *err);
void cuda_sums_close(struct backend *be, struct device_sums *s);
int cuda_sums(struct backend *be, const struct device_sums *s, struct merge_lane *lane,
              const double *left, size_t n_rows, double *sums, struct err *err);
int cuda_matmul(struct backend *be, const float *a, const float *b, float *c, size_t m, size_t n,
                size_t k, float scale, bool add, struct err *err);

#endif
