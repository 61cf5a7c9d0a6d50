/*
 * backend: the port to a device that computes. The joint that everything turns on.
 *
 * A back end owns weights, adapters and KV pages in its own layout and runs whole steps. The engine
 * knows none of that: it hands over canonical tensors and describes a step once. How a step is cut
 * into wide sites and kernels lies behind the port (kernels/sites.h: embed, attn_in, attention,
 * attn_out, mlp_in, mlp_out, moe, head, sample; a back end overrides a site when fusion pays).
 *
 * What a step means, for a row x of a site with weight W (all arithmetic float32 or better):
 *     y = g * (W x + sum_j s_j B_j A_j x) + b        then the residual
 * over the segments j that cover the row: s_j = segment scale * module scale, g the DoRA gain (1
 * without), b the base's bias, replaced where the adapter replaces it, plus s_j b_Bj (lora_bias).
 * No base bias before g. Norm weights, whole matrices and embedding rows may be replaced per
 * segment. A row-parallel site reduces across devices before g, b and residual.
 *
 * Pool: one device allocation cut into chunks of BACKEND_CHUNK_BYTES, the only memory for KV pages
 * and adapters; chunk i lies at pool base + i * BACKEND_CHUNK_BYTES. libcore/engine/device_pool.h
 * decides who gets which.
 *
 * Thread rule: info, supports, host_alloc, host_free, weight_load, weight_read, replacement_load,
 * adapter_pack_size, adapter_pack, adapter_load and the math table may be called from loader
 * threads beside a running step; the rest only from the engine's worker thread. No globals:
 * any number of back ends may be open. A device error is a returned error, never an exit.
 */
#ifndef LIBCORE_BACKEND_H
#define LIBCORE_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/err.h"
#include "libcore/model/bind.h"
#include "libcore/model/config.h"
#include "libcore/model/module.h"
#include "libcore/tensor/tensor.h"

enum { BACKEND_ABI = 2, BACKEND_CHUNK_BYTES = 2 << 20, BACKEND_MAX_TOP = 20 };

struct backend;       // one open device (or device group)
struct device_model;  // the weights of one base on it
struct device_weight; // a whole weight that an adapter brings (modules_to_save)
struct op_access;     // kernels/ops.h

struct backend_options {
    const char *device;    // "cpu", "cuda:0"
    unsigned n_threads;    // CPU: 0 = all that the process may use
    bool deterministic;    // order of summation independent of the batch
    bool no_graphs;        // CUDA: launch kernel by kernel (for comparison)
    const char *cache_dir; // tuning results; NULL: none
};

struct backend_info {
    char name[16];   // "cpu", "cuda"
    char device[96]; // "AMD EPYC, 2 threads, avx512_bf16", "NVIDIA H100 80GB HBM3"
    uint64_t memory_total, memory_free; // bytes of device memory
    enum dtype adapter_dtype; // what adapters are stored as; DTYPE_NONE: as the file has them
    enum dtype weight_dtype;  // likewise for base matrices
    enum dtype kv_dtype;
    unsigned n_devices;
};

/* Bounds of every step, known before the model is opened so that nothing is allocated later. */
struct step_limits {
    uint32_t max_rows; // tokens in a step
    uint32_t max_sequences;
    uint32_t max_logit_rows;
    uint32_t max_segments;
    uint32_t max_slots;   // adapters on the device at once
    uint32_t max_pages;   // page table entries in a step, all sequences together
    uint32_t page_tokens; // power of two
};

/* Rows [row0, row0 + n_rows) use the adapter in `slot` at `scale`. Ranges may overlap. */
struct step_segment {
    uint32_t row0, n_rows;
    uint32_t slot;
    float scale;
};

/* A sequence's rows in this step are consecutive tokens at positions position0, position0 + 1, …;
 * the rows before are in its pages. Its keys and values after the step: position0 + n_rows. */
struct step_sequence {
    uint32_t row0, n_rows;
    uint32_t position0;
    uint32_t page0, n_pages; // its page table: step.pages[page0 … page0 + n_pages)
    uint32_t rope_regime;    // config_rope_regime()
};

struct token_bias {
    int32_t token;
    float bias; // added to the logit; -INFINITY forbids
};

/* How one logit row is sampled. Order, as in vLLM: logit_bias, repetition, frequency and presence
 * penalties, then (temperature > 0) temperature, min_p, top_k, top_p, draw. temperature 0: the
 * largest logit, the lowest id among equals. The draw is a function of (seed, counter) and the
 * logits alone. Log-probabilities are of the raw logits (log softmax before all of the above). */
struct sample_params {
    float temperature, top_p, min_p;
    int32_t top_k;                                                 // <= 0: off
    float repetition_penalty, presence_penalty, frequency_penalty; // off: 1, 0, 0
    uint64_t seed, counter; // counter: index of the token in the answer
    const struct token_bias *bias;
    uint32_t n_bias;
    const int32_t *history; // prompt then answer so far; only read when a penalty is on
    uint32_t n_history, n_prompt;
    int32_t pending; // -1, or the answer's newest token is what logit row `pending` of the previous
                     // step sampled
    int32_t n_top;   // log-probabilities of the n_top most probable ids, 0…BACKEND_MAX_TOP
    int32_t target;  // -1, or report this id's log-probability and sample nothing
};

/*
 * One step. Everything is borrowed until step_submit() returns. Rows: decode rows first, then
 * prefill rows, each group sorted by (adapter set, sequence, position).
 */
struct step {
    uint32_t n_rows;
    /* A literal id >= 0, or ~j: what logit row j of the previous step sampled, read on the device.
     */
    const int32_t *tokens;
    const struct step_sequence *sequences;
    uint32_t n_sequences;
    uint32_t n_decode_rows; // rows of sequences with n_rows 1 that stand first
    const uint32_t *pages;  // page ids: page p lies in chunk p / pages_per_chunk
    uint32_t n_pages;
    const struct step_segment *segments; // over rows; sorted by (row0, slot)
    uint32_t n_segments;
    unsigned kinds;             // union of the slots' adapter kinds; 0: base only
    const uint32_t *logit_rows; // row indices, ascending
    uint32_t n_logit_rows;
    const struct step_segment *head_segments; // over logit rows
    uint32_t n_head_segments;
    const struct sample_params *sampling; // n_logit_rows
    uint32_t weight_set;                  // 0: the base; others: merged variants
    float *logits_out; // NULL, or host memory [n_logit_rows, vocab] filled by step_result()
};

/* Per logit row; arrays are the back end's, valid until the next step_result(). */
struct step_result {
    uint32_t n_rows;
    const int32_t *ids;    // sampled; the target where one was given
    const float *logprobs; // of ids
    const int32_t *ranks;  // 1 + how many ids have a larger raw logit (0: not computed, n_top 0)
    const int32_t
        *top_ids; // [n_rows, BACKEND_MAX_TOP], n_top of them valid, by falling probability
    const float *top_logprobs;
};

enum adapter_state { ADAPTER_EMPTY, ADAPTER_LOADING, ADAPTER_READY, ADAPTER_FAILED };

/* The bytes of a weight in the order of the file, each to be read once. */
struct weight_source {
    int (*read)(void *user, void *to, size_t n, struct err *err); // the next n bytes
    void *user;
};

/* A replacement handle and the part it stands for. */
struct adapter_replacement {
    const struct bound_part *part;
    struct device_weight *weight;
};

// ---- the second table
// -----------------------------------------------------------------------------

enum {
    MERGE_PANEL = 32,  // columns of R that lie together
    MERGE_TERMS = 16,  // products that one float32 sum runs over
    MERGE_CHUNK = 512, // columns that one merge_sums is of
    MERGE_LANES = 16,  // partial sums of the statistics
};

/* What a merge adds to one matrix: W + L R. */
struct merge_matrix {
    enum dtype dtype; // of W and of the result: DTYPE_BF16 or DTYPE_F16
    size_t n_cols, rank;
    const float *right; // R[rank, n_cols] in panels: [ceil(n_cols / 32)][rank][32], zeros beyond
    const float *norms; // [n_cols rounded up to 32] norms of R's columns, rounded up
};

/* Of one row's MERGE_CHUNK columns, in float32: column j of the chunk adds to lane j % MERGE_LANES,
 * in rising order, then the lanes are added up in order. */
struct merge_sums {
    float base2, delta2, lost2; // W^2, (L R)^2, ((result - W) - L R)^2
    uint32_t n_changed;         // results whose bits differ from W's; MERGE_OPEN: see merge_delta
};
#define MERGE_OPEN UINT32_MAX

struct merge_rows {
    size_t n_rows;
    const float *left;        // L[n_rows, rank], factors and weights in it
    const double *left_exact; // the same before it was rounded to float32
    const double *left_norms; // [n_rows], rounded up
    const float *windows;     // [n_rows] bound of the float32 sums' error / norm of R's column
    const void *w;            // [n_rows, n_cols]; host_alloc memory is fastest
    void *out;                // likewise; not w
    struct merge_sums *sums;  // [n_rows, ceil(n_cols / MERGE_CHUNK)]
};

/* The right half of float64 sums: R[rank, n_cols], rows `stride` apart. */
struct merge_right {
    size_t n_cols, rank, stride;
    const double *right;
};

struct device_merge; // a merge_matrix on the device
struct device_sums;  // a merge_right on the device
struct merge_lane;   // what one thread computes with: buffers, a stream

/* Second table, optional slots: mathematics for merge, DoRA and pre-merging. Host pointers in and
 * out. */
struct backend_math {
    /* out[i] = sum over columns of (W + scale B A)[i]^2 for the rows of `part`'s target on `m`, in
     * float64; a part without A and B gives ||W||. Embeddings: W is E^T (rows are dim). */
    int (*row_norms)(struct backend *be, struct device_model *m, const struct bound_part *part,
                     double *out, struct err *err);
    /* c[m,n] (+)= scale * a[m,k] b[k,n], float32 row-major, fixed order over k. */
    int (*matmul)(struct backend *be, const float *a, const float *b, float *c, size_t m, size_t n,
                  size_t k, float scale, bool add, struct err *err);
    /* Copies what m points to; any thread's lane may use it until it is closed. */
    int (*merge_open)(struct backend *be, const struct merge_matrix *m, struct device_merge **out,
                      struct err *err);
    void (*merge_close)(struct backend *be, struct device_merge *m);
    int (*merge_lane_open)(struct backend *be, struct merge_lane **out, struct err *err);
    void (*merge_lane_close)(struct backend *be, struct merge_lane *lane);
    /* out = W + L R, each value the real sum rounded once, the same bits on every device: a float32
     * sum (fused multiply-adds over MERGE_TERMS products in order, their sums added in order) where
     * the whole window of its error rounds to one value, else a float64 sum judged likewise. Where
     * that leaves a value open too (or one is not finite), its chunk's sums say MERGE_OPEN and the
     * chunk of out is undefined: the caller computes it. */
    int (*merge_delta)(struct backend *be, const struct device_merge *m, struct merge_lane *lane,
                       const struct merge_rows *rows, struct err *err);
    /* For what float32 sums cannot decide: float32 and 8-bit weights, DoRA. As merge_open. */
    int (*sums_open)(struct backend *be, const struct merge_right *r, struct device_sums **out,
                     struct err *err);
    void (*sums_close)(struct backend *be, struct device_sums *s);
    /* sums[n_rows, n_cols] = L R for L[n_rows, rank], float64, every sum one chain of fused
     * multiply-adds over k in rising order. */
    int (*sums)(struct backend *be, const struct device_sums *s, struct merge_lane *lane,
                const double *left, size_t n_rows, double *sums, struct err *err);
};

struct backend_ops {
    uint32_t abi;                 // BACKEND_ABI
    const char *name;             // "cpu", "cuda"
    uint32_t pack_layout_version; // part of the pack cache's key

    int (*open)(struct backend **out, const struct backend_options *opt, struct err *err);
    void (*close)(struct backend *be); // everything else must be freed before
    int (*info)(struct backend *be, struct backend_info *out, struct err *err);

    /* Before anything is loaded: 0, or ERR_REFUSED naming the feature, dtype or kind. */
    int (*supports)(struct backend *be, const struct model_config *config, unsigned adapter_kinds,
                    struct err *err);

    /* Host memory that the device can copy from at full speed (pinned). */
    void *(*host_alloc)(struct backend *be, size_t n);
    void (*host_free)(struct backend *be, void *p);

    /* ---- weights ---- */
    /* Allocates everything that depends on the shapes and limits: weights, scratch, results. */
    int (*model_open)(struct backend *be, const struct model_config *config,
                      const struct model_modules *modules, const struct step_limits *limits,
                      struct device_model **out, struct err *err);
    void (*model_free)(struct backend *be, struct device_model *m);
    /* Bytes that model_open would take for weights and for the rest. */
    int (*model_bytes)(struct backend *be, const struct model_config *config,
                       const struct step_limits *limits, uint64_t *weights, uint64_t *scratch,
                       struct err *err);
    /* Copies src (its own dtype; a matrix, a part of it from place.row0, a bias, a norm, one expert
     * or all) to its place, rounding to the back end's weight dtype. src is borrowed for the call.
     */
    int (*weight_load)(struct backend *be, struct device_model *m, const struct weight_place *place,
                       const struct tensor *src, struct err *err);
    /* Optional: as weight_load, but src->data is NULL and the bytes come through `from`, so that
     * they are read straight into memory that the device copies from. Called by several loader
     * threads at once, each for a tensor of its own. NULL: weight_load gets a mapped view. */
    int (*weight_read)(struct backend *be, struct device_model *m, const struct weight_place *place,
                       const struct tensor *src, const struct weight_source *from, struct err *err);
    /* After the last weight_load: waits for copies, packs; ERR_CORRUPT names a weight never loaded.
     * A tied head needs no weight of its own. */
    int (*model_ready)(struct backend *be, struct device_model *m, struct err *err);

    /* A whole weight of an adapter (part->module->full), outside the pool; bytes in *n_bytes. */
    int (*replacement_load)(struct backend *be, struct device_model *m,
                            const struct bound_part *part, struct device_weight **out,
                            uint64_t *n_bytes, struct err *err);
    void (*replacement_free)(struct backend *be, struct device_weight *w);

    /* ---- pool, KV ---- */
    int (*pool_open)(struct backend *be, struct device_model *m, uint32_t n_chunks,
                     struct err *err);
    void (*pool_free)(struct backend *be, struct device_model *m);
    /* Bytes of one KV page of limits.page_tokens tokens, all layers; at most one chunk. */
    uint64_t (*page_bytes)(struct backend *be, const struct device_model *m);

    /* ---- adapters ---- */
    /* Pure: size and content of the image of an adapter in the back end's own layout. The image is
     * loaded into ceil(size / chunk) chunks, chunk by chunk; no datum that a kernel reads as one
     * piece straddles two chunks. Gains must be set. Full replacements are not in it. */
    int (*adapter_pack_size)(struct backend *be, const struct device_model *m,
                             const struct bound_adapter *b, uint64_t *size, struct err *err);
    int (*adapter_pack)(struct backend *be, const struct device_model *m,
                        const struct bound_adapter *b, void *image, uint64_t size, struct err *err);
    /* Starts to copy an image (host_alloc memory, borrowed until the slot is READY or FAILED) into
     * `chunks` and to fill slot's table; may return before it is done. */
    int (*adapter_load)(struct backend *be, struct device_model *m, uint32_t slot,
                        const void *image, uint64_t size, const uint32_t *chunks, uint32_t n_chunks,
                        const struct adapter_replacement *replacements, uint32_t n_replacements,
                        struct err *err);
    enum adapter_state (*adapter_poll)(struct backend *be, struct device_model *m, uint32_t slot);
    /* No submitted step may still use the slot. */
    void (*adapter_unload)(struct backend *be, struct device_model *m, uint32_t slot);

    /* ---- steps ---- */
    /* Checks and copies the description, starts the step, returns its ticket (1, 2, …). At most two
     * are in flight; a third waits for the first to be computed, and is ERR_INTERNAL when the first
     * one's result was not fetched. */
    int (*step_submit)(struct backend *be, struct device_model *m, const struct step *step,
                       uint64_t *ticket, struct err *err);
    /* Waits for the ticket, in order. */
    int (*step_result)(struct backend *be, struct device_model *m, uint64_t ticket,
                       struct step_result *out, struct err *err);

    /* Optional: bytes a second that the device reads from its own memory, measured now (some tens
     * of milliseconds). For the byte model of `lora bench`. */
    int (*read_bandwidth)(struct backend *be, double *bytes_per_s, struct err *err);

    const struct backend_math *math;   // may be NULL
    const struct op_access *op_access; // kernels/ops.h: for tests of single ops; may be NULL
};

/* Every back end's struct starts with this. */
struct backend {
    const struct backend_ops *ops;
};

/* Checks a step against the limits (counts, ranges, order); ERR_INTERNAL names the field. Back ends
 * call it first in step_submit. */
int backend_check_step(const struct step *step, const struct step_limits *limits,
                       uint32_t vocab_size, struct err *err);

/* Fills part->gain of every DoRA part: magnitude / sqrt(row_norms). ERR_REFUSED without math. */
int backend_set_gains(struct backend *be, struct device_model *m, struct bound_adapter *b,
                      struct err *err);

#endif
