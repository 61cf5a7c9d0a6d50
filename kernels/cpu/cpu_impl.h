/*
 * cpu_impl: what the files of the CPU back end share. Private to kernels/cpu.
 *
 * Activations are float32, row-major. Base matrices keep the checkpoint's type (BF16, F16 or F32,
 * wider ones are F32) in panels (isa/isa.h); norms, biases, gains and replaced rows are float32;
 * A and B keep the adapter's type. Keys and values are float32:
 * page = [layer]([kv head][head_dim][token] of keys, [kv head][token][head_dim] of values).
 */
#ifndef KERNELS_CPU_CPU_IMPL_H
#define KERNELS_CPU_CPU_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "kernels/cpu/isa/isa.h"
#include "kernels/loaded.h"
#include "kernels/ops.h"
#include "kernels/segment_order.h"
#include "kernels/sites.h"
#include "libcore/base/thread.h"

enum {
    CPU_LAYOUT_VERSION = 3,
    CPU_IN_FLIGHT = 2,
    CPU_SITE_PARTS = 3,
    CPU_ALIGN = 64,
    CPU_PACK_ROWS = 4 * ISA_UNIT_ROWS
};

struct cpu_backend {
    struct backend base; // first
    const struct isa_table *isa;
    unsigned n_threads;
    char device[96];
    struct worker_pool *math_pool; // of the math table, under math_lock
    pthread_mutex_t math_lock;
};

/* A whole matrix. data is NULL until the first row is loaded (its type is that row's). */
struct cpu_matrix {
    enum dtype dtype;
    bool panels; // else row-major (an embedding that is no head)
    uint32_t n_rows, n_cols;
    void *data;
};

int cpu_matrix_allocate(struct cpu_matrix *m, enum dtype t, struct err *err);
void cpu_matrix_release(struct cpu_matrix *m);
/* Writes rows of src (any float type, [n, n_cols]) from row0 on; the matrix becomes F32 when src is
 * wider than it. */
int cpu_matrix_load(struct cpu_matrix *m, uint32_t row0, const struct tensor *src, struct err *err);
void cpu_matrix_row(const struct isa_table *isa, const struct cpu_matrix *m, uint32_t row,
                    float *dst);
/* The type a matrix has that holds values of type t without loss; NONE: not a type for weights. */
enum dtype cpu_matrix_dtype(enum dtype t);

/* A replaced weight (modules_to_save): a matrix, a norm or a bias. */
struct device_weight {
    struct cpu_matrix matrix;
    float *vector;
    uint32_t n;
};

struct cpu_layer {
    struct cpu_matrix sites[SITE_COUNT]; // experts: in `experts`
    struct cpu_matrix *experts[2];       // gate_up, down: n_experts each
    float *bias[SITE_COUNT];             // NULL: none
    float *norms[NORM_COUNT];            // NULL: none
};

/* A run of equal units (rows of A, panels of B) in the chunks of a slot: a unit never straddles two
 * chunks. Unit u < n_first lies at first + u * unit, the rest `per_chunk` a chunk from rest[0]. */
struct cpu_piece {
    char *first;
    char *const *rest;
    uint32_t n_first, per_chunk, n_units;
    size_t unit;
};

/* Address of unit u, and how many units from it on lie side by side. */
static inline char *cpu_piece_at(const struct cpu_piece *p, uint32_t u, uint32_t *n_run)
{
    if (u < p->n_first) {
        *n_run = p->n_first - u;
        return p->first + u * p->unit;
    }
    uint32_t r = u - p->n_first, left = p->n_units - u;
    *n_run = p->per_chunk - r % p->per_chunk;
    if (*n_run > left)
        *n_run = left;
    return p->rest[r / p->per_chunk] + r % p->per_chunk * p->unit;
}

/* What one adapter brings to one module, as the kernels read it. */
struct cpu_part {
    enum weight_kind kind;
    enum site site;
    enum norm norm;
    uint32_t layer, row0, d_out, d_in, rank, n_experts;
    float scale;
    enum dtype a_dtype, b_dtype;
    struct cpu_piece
        a; // [rank][d_in] (experts: [E * rank][d_in]; embedding: [vocab][rank] float32)
    struct cpu_piece b;                   // panels of [d_out, rank] (experts: E times)
    const float *gain, *bias, *lora_bias; // [d_out] or NULL
    const uint32_t *row_ids;              // ascending; NULL: none
    struct cpu_piece rows;                // [n_rows][dim] float32
    uint32_t n_rows;
    const struct device_weight *full;
};

struct cpu_slot {
    _Atomic int state; // enum adapter_state
    uint64_t key;      // segment_key()
    unsigned kinds;
    uint32_t n_parts;
    struct cpu_part *parts;
    uint32_t *site_first; // [n_layers * SITE_COUNT]: index + 1 into parts, 0: none
    uint8_t *site_n;
    const struct device_weight **norms; // [n_layers * NORM_COUNT]
    char **chunks;
};

/* The results of one step. */
struct cpu_results {
    int32_t *ids, *ranks, *top_ids;
    float *logprobs, *top_logprobs;
    uint32_t n_rows;
};

struct cpu_sample {
    struct sample_params p; // bias and history point into the step's own copies
};

/* A submitted step: the copy of its description and its op_step. */
struct cpu_step {
    struct op_step view;
    struct op_counts counts;
    int32_t *tokens;
    uint32_t *row_sequence, *row_position;
    struct step_sequence *sequences;
    uint32_t *pages, *logit_rows;
    struct step_segment *segments, *head_segments;
    int32_t *owner, *head_owner;
    struct sample_params *sampling;
    struct token_bias *biases;
    int32_t *history;
    float *logits_out;
    struct cpu_results results;
    uint64_t ticket;
    bool done;
    struct err error;
};

/* Also the op_context. */
struct device_model {
    struct cpu_backend *be;
    const struct model_config *config;   // borrowed
    const struct model_modules *modules; // borrowed
    struct loaded loaded;
    struct step_limits limits;
    const struct isa_table *isa;
    struct worker_pool *pool; // used by the compute thread alone
    // weights
    struct cpu_matrix embed, head; // head.data is embed's when tied
    struct cpu_layer *layers;
    float *final_norm;
    pthread_rwlock_t load_lock; // written when a matrix is allocated or changes its type
    float *inv_freq[2][2], rope_scale[2][2]; // [rope][regime]
    unsigned n_ropes, n_regimes;
    uint32_t qkv_rows, kv_dim, vocab_stride, max_vocab;
    // pool
    char *chunks;
    uint32_t n_chunks, pages_per_chunk;
    uint64_t page_bytes;
    struct cpu_slot *slots; // max_slots
    // scratch
    struct site_run run;
    void *packed; // activations of up to CPU_PACK_ROWS rows, packed for all threads
    float *trig;  // [rope][row][cos rotary_dim/2, sin rotary_dim/2]
    float *v;     // shrunk rows: see cpu_shrink_layout
    size_t v_floats;
    size_t *v_first;       // [segments * CPU_SITE_PARTS]: where a part's rows begin in v
    uint32_t *seq_first;   // [sequences + 1]: attention's work items
    float *thread_scratch; // per thread
    size_t thread_floats;
    int32_t *prev_ids; // what the previous step sampled
    uint32_t n_prev_ids;
    struct cpu_moe *moe;
    // steps
    struct cpu_step steps[CPU_IN_FLIGHT];
    size_t max_history, max_biases;
    struct cpu_results result; // handed out by step_result
    pthread_t thread;
    bool thread_started, stop;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t n_submitted, n_computed, n_fetched;
};

/* ---- model.c ---- */
int cpu_model_open(struct backend *be, const struct model_config *config,
                   const struct model_modules *modules, const struct step_limits *limits,
                   struct device_model **out, struct err *err);
void cpu_model_free(struct backend *be, struct device_model *m);
int cpu_model_bytes(struct backend *be, const struct model_config *config,
                    const struct step_limits *limits, uint64_t *weights, uint64_t *scratch,
                    struct err *err);
int cpu_weight_load(struct backend *be, struct device_model *m, const struct weight_place *place,
                    const struct tensor *src, struct err *err);
int cpu_model_ready(struct backend *be, struct device_model *m, struct err *err);
int cpu_replacement_load(struct backend *be, struct device_model *m, const struct bound_part *part,
                         struct device_weight **out, uint64_t *n_bytes, struct err *err);
void cpu_replacement_free(struct backend *be, struct device_weight *w);
int cpu_pool_open(struct backend *be, struct device_model *m, uint32_t n_chunks, struct err *err);
void cpu_pool_free(struct backend *be, struct device_model *m);
uint64_t cpu_page_bytes(struct backend *be, const struct device_model *m);
/* Rows and columns of a site's whole matrix (of one expert for the expert sites). */
void cpu_site_shape(const struct model_config *c, enum site site, uint32_t *n_rows,
                    uint32_t *n_cols);
/* The matrix of a site of the base. */
const struct cpu_matrix *cpu_site_matrix(const struct device_model *m, uint32_t layer,
                                         enum site site);

/* ---- scratch.c ---- */
int cpu_scratch_open(struct device_model *m, struct err *err);
void cpu_scratch_free(struct device_model *m);
uint64_t cpu_scratch_bytes(const struct model_config *c, const struct step_limits *l,
                           unsigned n_threads);

/* ---- moe.c ---- */
int cpu_moe_open(struct device_model *m, struct err *err);
void cpu_moe_free(struct device_model *m);
uint64_t cpu_moe_floats(const struct model_config *c, uint64_t rows);

/* ---- adapter.c ---- */
int cpu_adapter_pack_size(struct backend *be, const struct device_model *m,
                          const struct bound_adapter *b, uint64_t *size, struct err *err);
int cpu_adapter_pack(struct backend *be, const struct device_model *m,
                     const struct bound_adapter *b, void *image, uint64_t size, struct err *err);
int cpu_adapter_load(struct backend *be, struct device_model *m, uint32_t slot, const void *image,
                     uint64_t size, const uint32_t *chunks, uint32_t n_chunks,
                     const struct adapter_replacement *replacements, uint32_t n_replacements,
                     struct err *err);
enum adapter_state cpu_adapter_poll(struct backend *be, struct device_model *m, uint32_t slot);
void cpu_adapter_unload(struct backend *be, struct device_model *m, uint32_t slot);

/* The parts of a slot at a site; n of them, by row0. */
static inline const struct cpu_part *cpu_slot_parts(const struct device_model *m, uint32_t slot,
                                                    uint32_t layer, enum site site, unsigned *n)
{
    const struct cpu_slot *s = &m->slots[slot];
    uint32_t at = layer * SITE_COUNT + (uint32_t)site;
    *n = s->site_n[at];
    return *n ? s->parts + s->site_first[at] - 1 : NULL;
}

/* The rows of a space and its segments. */
struct cpu_rows {
    uint32_t n_rows, n_segments;
    const struct step_segment *segments;
    const int32_t *owner;
};

static inline struct cpu_rows cpu_rows_of(const struct op_step *s, enum op_space space)
{
    if (space == OP_ROWS)
        return (struct cpu_rows){s->counts->n_rows, s->counts->n_segments, s->rows.items,
                                 s->rows.owner};
    return (struct cpu_rows){s->counts->n_logit_rows, s->counts->n_head_segments, s->logits.items,
                             s->logits.owner};
}

/* ---- step.c ---- */
int cpu_steps_open(struct device_model *m, struct err *err);
void cpu_steps_free(struct device_model *m);
int cpu_step_submit(struct backend *be, struct device_model *m, const struct step *step,
                    uint64_t *ticket, struct err *err);
int cpu_step_result(struct backend *be, struct device_model *m, uint64_t ticket,
                    struct step_result *out, struct err *err);

/* Checks and copies a step into the next place without submitting it: for op_access. */
int cpu_step_prepare(struct device_model *m, const struct step *step, struct cpu_step **out,
                     struct err *err);

/* ---- one file an op ---- */
int cpu_begin(struct op_context *c, const struct op_step *s);
int cpu_embed(struct op_context *c, const struct op_step *s, void *x);
int cpu_rms_norm(struct op_context *c, const struct op_step *s, uint32_t layer, enum norm norm,
                 enum op_space space, const void *x, void *h);
int cpu_gemm(struct op_context *c, const struct op_step *s, uint32_t layer, enum site site,
             enum op_space space, const void *x, void *y);
int cpu_sgmv_shrink(struct op_context *c, const struct op_step *s, uint32_t layer, enum site site,
                    enum op_space space, const void *x);
int cpu_sgmv_expand(struct op_context *c, const struct op_step *s, uint32_t layer, enum site site,
                    enum op_space space, void *y);
int cpu_gain_bias(struct op_context *c, const struct op_step *s, uint32_t layer, enum site site,
                  enum op_space space, void *y);
int cpu_rope_write(struct op_context *c, const struct op_step *s, uint32_t layer, void *qkv);
int cpu_attention(struct op_context *c, const struct op_step *s, uint32_t layer, const void *qkv,
                  void *out);
int cpu_activation(struct op_context *c, const struct op_step *s, const void *gate_up, void *out);
int cpu_residual(struct op_context *c, const struct op_step *s, void *x, const void *y);
int cpu_moe(struct op_context *c, const struct op_step *s, uint32_t layer, const void *h, void *y);
int cpu_gather(struct op_context *c, const struct op_step *s, const void *x, void *h);
int cpu_sample(struct op_context *c, const struct op_step *s, void *logits);

/* The op_context of the CPU is its model. */
static inline struct device_model *cpu_context(struct op_context *c)
{
    return (struct device_model *)(void *)c;
}

/* Floats between two rows of a site's output. */
static inline size_t cpu_out_stride(const struct device_model *m, enum site site)
{
    uint32_t rows, cols;
    if (site == SITE_HEAD)
        return m->vocab_stride;
    cpu_site_shape(m->config, site, &rows, &cols);
    return rows;
}

extern const struct op_table cpu_ops;
extern const struct op_access cpu_op_access;
extern const struct backend_math cpu_math;

/* ---- merge_delta.c: slots of that table (backend.h) ---- */
int cpu_merge_open(struct backend *be, const struct merge_matrix *m, struct device_merge **out,
                   struct err *err);
void cpu_merge_close(struct backend *be, struct device_merge *m);
int cpu_merge_lane_open(struct backend *be, struct merge_lane **out, struct err *err);
void cpu_merge_lane_close(struct backend *be, struct merge_lane *lane);
int cpu_merge_delta(struct backend *be, const struct device_merge *m, struct merge_lane *lane,
                    const struct merge_rows *rows, struct err *err);
int cpu_sums_open(struct backend *be, const struct merge_right *r, struct device_sums **out,
                  struct err *err);
void cpu_sums_close(struct backend *be, struct device_sums *s);
int cpu_sums(struct backend *be, const struct device_sums *s, struct merge_lane *lane,
             const double *left, size_t n_rows, double *sums, struct err *err);

/* Bytes a second that the pool's threads read of a buffer beyond every cache; 0: no memory. */
double cpu_read_bandwidth(const struct isa_table *isa, struct worker_pool *pool);
int cpu_backend_read_bandwidth(struct backend *be, double *bytes_per_s, struct err *err);

#endif
