/*
 * module: every weight of a base model by name, and where it belongs in the computation.
 * Made from the configuration alone (arch_*.c: one table entry an architecture); checkpoint
 * tensors, adapter modules and back ends meet here.
 *
 * A site is one wide matrix product of the forward pass; modules that share it lie side by side
 * along the output: q, k, v in SITE_QKV, gate and up in SITE_GATE_UP. row0 is a module's first
 * output row.
 */
#ifndef LIBCORE_MODEL_MODULE_H
#define LIBCORE_MODEL_MODULE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/model/config.h"

struct checkpoint;

enum site {
    SITE_EMBED,           // [vocab, d_model], a gather
    SITE_QKV,             // [(n_heads + 2 n_kv_heads) head_dim, d_model], rows q then k then v
    SITE_O,               // [d_model, n_heads head_dim]
    SITE_GATE_UP,         // [2 d_ff, d_model], rows gate then up
    SITE_DOWN,            // [d_model, d_ff]
    SITE_ROUTER,          // [n_experts, d_model]
    SITE_EXPERTS_GATE_UP, // [n_experts, 2 d_expert, d_model]
    SITE_EXPERTS_DOWN,    // [n_experts, d_model, d_expert]
    SITE_HEAD,            // [vocab, d_model]
    SITE_COUNT
};

enum norm {
    NORM_ATTN, // before qkv
    NORM_Q,    // per head, after qkv
    NORM_K,
    NORM_ATTN_POST, // gemma3: after o
    NORM_MLP,       // before gate_up (also before the router)
    NORM_MLP_POST,  // gemma3: after down
    NORM_FINAL,     // before the head; layer 0
    NORM_COUNT
};

enum weight_kind { WEIGHT_MATRIX, WEIGHT_BIAS, WEIGHT_NORM };

/* Where a tensor belongs. layer is 0 for embed, head and the final norm. */
struct weight_place {
    enum weight_kind kind;
    enum site site; // matrix and bias
    enum norm norm; // norm
    uint32_t layer;
    uint32_t row0;  // first output row within the site
    int32_t expert; // -1: all experts at once, or no experts
};

struct model_module {
    const char *name;      // "model.layers.0.self_attn.q_proj"; canonical (transformers 5) spelling
    const char *parameter; // "weight"; experts: "gate_up_proj", "down_proj"
    struct weight_place place; // kind WEIGHT_MATRIX or WEIGHT_NORM
    uint32_t d_out, d_in;      // norm: d_out values, d_in 0
    uint32_t n_experts;        // experts: the tensor is [n_experts, d_out, d_in]; else 0
    bool has_bias;             // the base has "<name>.bias"
    bool tied;                 // lm_head of a tied model: no tensor of its own
};

struct model_modules {
    struct model_module *items; // in the order of the computation
    size_t n;
    const struct model_module **by_name; // sorted by name, then parameter
    const struct model_config *config;   // borrowed
    /* The base's own tensors, borrowed, when somebody keeps them mapped; else NULL. bind_adapter()
     * compares what an adapter saved along with it and drops what is the same. */
    const struct checkpoint *base;
    struct arena arena;
};

/* config is borrowed and must outlive the modules. */
int modules_open(struct model_modules **out, const struct model_config *config, struct err *err);
void modules_free(struct model_modules *m);
/* By canonical name and parameter (NULL: "weight"), or NULL. */
const struct model_module *modules_find(const struct model_modules *m, const char *name,
                                        const char *parameter);

/* Finds what a checkpoint's tensor name means: older layouts ("language_model.model.", missing
 * "model.", per-expert names experts.N.w1/w2/w3 or gate_proj/up_proj/down_proj) are mapped to the
 * canonical one. Gives the place (bias: kind WEIGHT_BIAS; one expert: expert >= 0, row0 for gate or
 * up) and the rows and columns wanted (1-D: n_cols 0). ERR_NOT_FOUND: no weight of this model. */
int modules_place_tensor(const struct model_modules *m, const char *tensor_name,
                         const struct model_module **module, struct weight_place *place,
                         uint32_t *n_rows, uint32_t *n_cols, struct err *err);

/* Whether a tensor that place_tensor does not know may be left alone: rotary tables of old Llama
 * files, the vision half of a multimodal checkpoint. */
bool modules_tensor_is_inert(const char *tensor_name);

/* The canonical spelling of a tensor or module name ("language_model.model.x" gives "model.x"),
 * into buf, which is returned. */
const char *modules_canonical_name(const struct model_modules *m, const char *name, char *buf,
                                   size_t n);

/* A name nearest to a wrong one, for hints; NULL when none is near. */
const char *modules_nearest(const struct model_modules *m, const char *name);

#endif
