/*
 * ops: the plain operations that the default sites (sites.h) are composed of, one table a back end.
 * The C loops in kernels/cpu/ specify them; tests/ops checks every back end against references.
 *
 * What an op may assume, so that a device can record a forward pass once and replay it:
 *   - Everything that changes from step to step lies in device memory at addresses that are fixed
 *     for the model's life (struct op_step's tables), written before the first op of the step.
 *   - A call's host arguments depend only on the layer, the site and the step's key: (row_bucket,
 *     logit_bucket, kinds, weight_set). The bounds of a launch come from the buckets, the real
 *     counts from op_step.counts; rows beyond the real count are neither read nor written.
 *   - Weights are named by (layer, site | norm), and found through the model and the weight set.
 *     What an adapter brings is found through op_step's segments and the slots' device tables.
 *   - Calls of one context run in order (a stream); a call may return before its work is done.
 *
 * Activations are opaque: their type is the back end's (CPU: float32, row-major, no padding).
 * Accumulation is float32 or better everywhere. `space` chooses the rows: all rows of the step, or
 * its logit rows (the head's activations).
 *
 * Returns: 0 or a negative enum err_code when the launch fails; ops set no message of their own
 * beyond the context's (the back end adds it).
 */
#ifndef KERNELS_OPS_H
#define KERNELS_OPS_H

#include <stdint.h>

#include "libcore/backend.h"

struct op_context; // a back end's stream with its model, pool and scratch

enum op_space { OP_ROWS, OP_LOGIT_ROWS };

/* Device memory. */
struct op_counts {
    uint32_t n_rows, n_decode_rows, n_sequences, n_segments, n_logit_rows, n_head_segments;
};

/* The segments over one row space. */
struct op_segments {
    const struct step_segment *items; // device; overlapping ranges allowed
    /* device [rows]: index of the segment whose adapter may replace things on this row (norms,
     * biases, gains, rows, whole weights), -1: none. Such kinds never overlap. */
    const int32_t *owner;
};

struct op_step {
    /* The key, host memory. */
    uint32_t row_bucket, logit_bucket; // upper bounds of n_rows and n_logit_rows
    unsigned kinds;                    // 0: no adapter ops are called at all
    uint32_t weight_set;
    /* Device memory. */
    const struct op_counts *counts;
    const int32_t *tokens;        // [rows] literal ids; ~j: see `begin`
    const uint32_t *row_sequence; // [rows] index into sequences
    const uint32_t *row_position; // [rows]
    const struct step_sequence *sequences;
    const uint32_t *pages;
    const uint32_t *logit_rows; // [logit rows]
    struct op_segments rows, logits;
};

struct op_table {
    /* First op of a step: replaces ~j tokens by what logit row j of the previous step sampled and
     * fills the tables of cos and sin of the rows' positions, one for each rope of the model. */
    int (*begin)(struct op_context *c, const struct op_step *s);

    /* x[rows, d_model] = embed_scale * g * (E[token] + sum_j s_j (B_j A_j)^T[token]), E's rows
     * replaced where the owner's adapter replaces rows or the matrix. Overwrites x. */
    int (*embed)(struct op_context *c, const struct op_step *s, void *x);

    /* h = x / sqrt(mean(x^2) + eps) * w over d_model; w of (layer, norm) or the owner's. h may be
     * x. NORM_Q and NORM_K: `x` is the output of SITE_QKV, every head's part normalised in place
     * over head_dim (h is not used). */
    int (*rms_norm)(struct op_context *c, const struct op_step *s, uint32_t layer, enum norm norm,
                    enum op_space space, const void *x, void *h);

    /* y[rows, d_out] = x[rows, d_in] W^T for the site's W; rows whose owner replaces a module's
     * matrix use that for its part of the output. Overwrites y. No bias. */
    int (*gemm)(struct op_context *c, const struct op_step *s, uint32_t layer, enum site site,
                enum op_space space, const void *x, void *y);

    /* For every segment j and module p of the site that its adapter has:
     * v_jp[row, r] = sum_k A_jp[r, k] x[row, k]. v is the context's own scratch: the expand (or
     * the experts) of the same site follows before the next shrink. Skipped when no additive kind
     * is in s->kinds. */
    int (*sgmv_shrink)(struct op_context *c, const struct op_step *s, uint32_t layer,
                       enum site site, enum op_space space, const void *x);
    /* y[row, row0_p …] += segment scale * module scale * B_jp v_jp. Adds, in the order of the
     * segments. */
    int (*sgmv_expand)(struct op_context *c, const struct op_step *s, uint32_t layer,
                       enum site site, enum op_space space, void *y);

    /* y = g * y + b: gains of the owner, the base's bias or the owner's in its place, then + scale
     * * b_B of every segment. Called when the base has biases at the site or s->kinds has
     * ADAPTER_DORA, ADAPTER_LORA_BIAS or ADAPTER_BIAS. */
    int (*gain_bias)(struct op_context *c, const struct op_step *s, uint32_t layer, enum site site,
                     enum op_space space, void *y);

    /* Rotates q (in place) and k by their positions and writes k and v of every row to the pages
     * of its sequence. qkv[rows, (n_heads + 2 n_kv_heads) head_dim]. */
    int (*rope_write)(struct op_context *c, const struct op_step *s, uint32_t layer, void *qkv);

    /* out[rows, n_heads head_dim] = softmax(scale * q k^T, soft-capped, causal and windowed) v over
     * the sequence's pages up to and including the row's own position. Decode rows are the first
     * n_decode_rows; the rest are prefill rows. */
    int (*attention)(struct op_context *c, const struct op_step *s, uint32_t layer, const void *qkv,
                     void *out);

    /* out[rows, d_ff] = act(gate) * up; gate_up[rows, 2 d_ff] holds gate then up. */
    int (*activation)(struct op_context *c, const struct op_step *s, const void *gate_up,
                      void *out);

    int (*residual)(struct op_context *c, const struct op_step *s, void *x,
                    const void *y); // x[rows, d_model] += y

    /* y[rows, d_model] = sum over the chosen experts e of p_e * down_e(act(gate_up_e h)), router
     * SITE_ROUTER on h (softmax over all, the largest n_experts_used, renormalised when norm_topk),
     * with the adapters' expert parts. Overwrites y. NULL: no MoE on this device. */
    int (*moe)(struct op_context *c, const struct op_step *s, uint32_t layer, const void *h,
               void *y);

    /* h[logit rows, d_model] = x[logit_rows[i]]. */
    int (*gather)(struct op_context *c, const struct op_step *s, const void *x, void *h);

    /* Samples every logit row (sample_params, backend.h) from logits[logit rows, vocab], after
     * the soft cap of the model; writes ids, log-probabilities, ranks and tops where step_result()
     * finds them, and the ids where the next step's `begin` does. Rows of replaced tokens under a
     * tied head are corrected by `gemm` of SITE_HEAD. */
    int (*sample)(struct op_context *c, const struct op_step *s, void *logits);
};

/*
 * How tests/ops reaches a back end's ops one by one (backend_ops.op_access; NULL: it cannot). A
 * session borrows an open model with its pool; no step of it may be in flight. Buffers hold
 * activations in the back end's own type; values cross as float32.
 */
struct op_session;

struct op_access {
    int (*open)(struct backend *be, struct device_model *m, struct op_session **out,
                struct err *err);
    void (*close)(struct op_session *s);
    const struct op_table *(*ops)(struct op_session *s);
    struct op_context *(*context)(struct op_session *s);
    /* Puts a step's tables into device memory, as step_submit does, and starts nothing. *view is
     * valid until the next call. */
    int (*prepare)(struct op_session *s, const struct step *step, const struct op_step **view,
                   struct err *err);
    /* What `sample` wrote for the prepared step. */
    int (*results)(struct op_session *s, struct step_result *out, struct err *err);
    void *(*alloc)(struct op_session *s, size_t n_values); // activations; NULL: no memory
    void (*free)(struct op_session *s, void *buffer);
    /* n values from `at` on; read waits for the ops before it. */
    int (*write)(struct op_session *s, void *buffer, size_t at, const float *values, size_t n);
    int (*read)(struct op_session *s, const void *buffer, size_t at, float *values, size_t n);
    void (*wait)(struct op_session *s);
    size_t (*logits_stride)(struct op_session *s); // values between two rows of logits
    double (*epsilon)(struct op_session *s);       // half a unit in the last place of activations
    /* Bytes a second that a plain read of memory beyond every cache reaches now. */
    double (*read_bandwidth)(struct op_session *s);
    /* Optional: seconds that the four sites of one layer (qkv, o, gate_up, down) take for the
     * prepared step, without norms and attention; every layer of the model runs behind the other,
     * so that none lies in a cache. base: the products W x; adapters: A and B of the segments.
     * ERR_REFUSED: adapters alone, where they cannot be run so. */
    int (*layer_seconds)(struct op_session *s, bool base, bool adapters, double *seconds,
                         struct err *err);
};

/*
 * The draw, the same on every back end up to rounding of log: among the ids that top_k, top_p and
 * min_p left, the largest of l_i / temperature + G_i, where G_i = -log(-log(u_i)), u_i = (n_i +
 * 0.5) / 2^32 and n_i is word i % 4 of philox4x32 (libcore/base/philox.h) with key (seed low, seed
 * high) and counter (i / 4, 0, counter low, counter high). Equal sums: the lowest id. This is the
 * Gumbel-max form of drawing from the softmax; it needs no order of summation.
 */

#endif
