/*
 * adapter: the canonical form of one LoRA adapter, whatever file it came from.
 *
 * Per module of the base: A[r,in], B[out,r], scale (float64, exact alpha/r or alpha/sqrt(r)), and
 * optionally a DoRA magnitude, biases, replaced rows (trainable tokens) or a full replacement
 * (modules_to_save). Tensors keep the file's dtype; they are views of memory that the adapter's
 * backing owns. Immutable once built, so any thread may read it.
 *
 *   y = g * (W x + sum s B A x) + b       g = magnitude / ||W + s B A||_row, 1 without DoRA
 *   embedding: E' = E + s (B A)^T,        A[r, vocab], B[dim, r]
 *   experts:   A[E*r, in] (expert slowest), B[out, r*E] (expert fastest), PEFT's target_parameters
 * Source of the formulas: PEFT 0.21 tuners/lora/layer.py, variants.py.
 */
#ifndef LIBCORE_ADAPTER_ADAPTER_H
#define LIBCORE_ADAPTER_ADAPTER_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/arena.h"
#include "libcore/base/digest.h"
#include "libcore/base/err.h"
#include "libcore/tensor/tensor.h"

/* What an adapter does, as a bit set; a back end's supports() is asked with it. */
enum adapter_kind {
    ADAPTER_LORA = 1 << 0,      // A and B on linear modules
    ADAPTER_DORA = 1 << 1,      // magnitude
    ADAPTER_LORA_BIAS = 1 << 2, // B has a bias: s * b_B is added
    ADAPTER_BIAS = 1 << 3,      // base biases are replaced (bias = all | lora_only)
    ADAPTER_EMBED = 1 << 4,     // A and B on the token embedding
    ADAPTER_HEAD = 1 << 5,      // A and B on lm_head
    ADAPTER_TOKENS = 1 << 6,    // rows of the embedding (and of a tied head) are replaced
    ADAPTER_FULL = 1 << 7,      // whole weights are replaced (modules_to_save)
    ADAPTER_EXPERTS = 1 << 8,   // A and B on fused MoE experts
};
/* Kinds whose effect is a sum, so that scales other than 1 and several at once are defined. */
#define ADAPTER_ADDITIVE                                                                           \
    (ADAPTER_LORA | ADAPTER_LORA_BIAS | ADAPTER_EMBED | ADAPTER_HEAD | ADAPTER_EXPERTS)

struct adapter_module {
    const char *name; // of the base's module: "model.layers.0.self_attn.q_proj", no PEFT prefix
    const char *parameter;   // "weight", or for experts "gate_up_proj" | "down_proj"
    bool embedding;          // A[r, vocab], B[dim, r]
    bool transposed;         // fan_in_fan_out: the base stores [in, out]; A and B are as ever
    uint32_t n_experts;      // 0: not an expert parameter
    uint32_t rank;           // 0: no A and B (only bias, rows or full)
    double alpha;            // as configured for this module
    double scale;            // alpha / rank or alpha / sqrt(rank), exact in float64
    struct tensor a, b;      // absent when rank is 0
    struct tensor magnitude; // [out] (embedding: [dim])
    struct tensor lora_bias; // [out]
    struct tensor bias;      // [out], replaces the base's bias
    struct tensor full;      // replaces the base's weight (may have more rows: added tokens)
    bool full_is_base;       // full is the base's own weight as the trainer had it (PEFT saves the
                             // base_layer of a targeted embedding); dropped when it equals the base
    struct tensor rows;      // [n_rows, dim], replace rows row_ids of the weight
    const uint32_t *row_ids; // ascending, distinct
    uint32_t n_rows;
};

/* One tensor as the file has it; the content id is made of these. */
struct adapter_tensor {
    const char *name; // the file's own name
    struct tensor value;
    struct digest payload; // sha256 of its bytes; zero until content_id_compute() ran
    bool payload_known;    // it was set by who saw the bytes go by: not to be hashed again
};

struct adapter {
    const char *name;               // what the file or folder calls it; may be NULL
    const char *base_name;          // base_model_name_or_path, may be NULL
    const char *format;             // "peft", "kohya", …
    unsigned kinds;                 // enum adapter_kind bits
    uint32_t max_rank, min_rank;    // over modules with rank > 0
    uint64_t n_parameters;          // values in all tensors
    bool ensure_weight_tying;       // in a tied base, lm_head follows the embedding's adapter
    struct adapter_module *modules; // sorted by name, then parameter
    size_t n_modules;
    struct adapter_tensor *tensors; // sorted by name
    size_t n_tensors;
    json_t *config;                        // the configuration as read; owned
    json_t *warnings;                      // array of strings for the user; owned
    char content_id[DIGEST_HEX_CHARS + 1]; // "" until content_id_compute() ran
    struct arena arena;                    // names, tables
    void *backing;                         // what the tensors lie in; freed by adapter_free
    void (*backing_free)(void *backing);
};

/* An empty adapter to be filled by a format reader. */
int adapter_open(struct adapter **out, struct err *err);
void adapter_free(struct adapter *a);

/* Finds a module by name and parameter (NULL: "weight"); NULL when it is not there. */
const struct adapter_module *adapter_find(const struct adapter *a, const char *name,
                                          const char *parameter);

/* Sorts modules and tensors, sets kinds, ranks and n_parameters. Readers call it last. */
void adapter_finish(struct adapter *a);

/* The kinds of one module. */
unsigned adapter_module_kinds(const struct adapter_module *m);

/* Adds a line to a->warnings. 0 or ERR_NO_MEMORY. */
int adapter_warn(struct adapter *a, struct err *err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* "LoRA", "DoRA + lm_head": for people. Into buf (64 bytes hold every usual one), returned. */
const char *adapter_kinds_text(unsigned kinds, char *buf, size_t n);

#endif
