/*
 * config: a base model's architecture, normalised from config.json of transformers 4 or 5.
 * Plain data after config_read(); free of file names. Refuses by field name what is not computed.
 */
#ifndef LIBCORE_MODEL_CONFIG_H
#define LIBCORE_MODEL_CONFIG_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "libcore/base/arena.h"
#include "libcore/base/err.h"
#include "libcore/tensor/dtype.h"

enum arch {
    ARCH_LLAMA,
    ARCH_MISTRAL,
    ARCH_QWEN2,
    ARCH_QWEN3,
    ARCH_GEMMA3,
    ARCH_PHI3,
    ARCH_MIXTRAL,
    ARCH_QWEN3_MOE,
    ARCH_COUNT
};

enum activation { ACTIVATION_SILU, ACTIVATION_GELU_TANH };

enum rope_type { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN, ROPE_LONGROPE };

struct rope_config {
    enum rope_type type;
    double theta;
    double factor;                                       // linear, llama3, yarn
    double low_freq_factor, high_freq_factor;            // llama3
    uint32_t original_max_positions;                     // llama3, yarn, longrope
    double beta_fast, beta_slow, mscale, mscale_all_dim; // yarn
    bool yarn_truncate;
    double attention_factor; // yarn, longrope: multiplies cos and sin; 0: by the formula
    const double *short_factor, *long_factor; // longrope: rotary_dim / 2 values each
};

struct layer_config {
    uint32_t window;  // sliding window in tokens, the token itself counted; 0: full attention
    uint8_t rope_idx; // which of model_config.rope
    bool moe;         // experts instead of gate_up and down
};

struct model_config {
    enum arch arch;
    const char *arch_name;  // "LlamaForCausalLM"
    const char *model_type; // "llama"
    enum dtype dtype;       // of the checkpoint's weights as declared
    uint32_t vocab_size, d_model, n_layers, n_heads, n_kv_heads, head_dim, d_ff, max_positions;
    uint32_t rotary_dim; // head_dim * partial_rotary_factor
    double rms_eps;
    enum activation activation;
    struct rope_config rope[2]; // [0] global, [1] gemma3's local
    double attention_scale;     // multiplies q k^T
    double embed_scale; // multiplies embeddings; 1, gemma3: sqrt(d_model) as transformers rounds it
    double logit_softcap, attention_softcap; // 0: none
    bool tied_embeddings;
    bool qkv_bias, o_bias, mlp_bias;
    bool qk_norm;                  // RMSNorm over head_dim of q and k before rope
    bool post_norms;               // gemma3: norms after o and down, before the residual
    bool norm_plus_one;            // gemma3: norm weights are stored minus one
    bool fused_qkv, fused_gate_up; // phi3: one module each
    uint32_t n_experts, n_experts_used, d_expert;
    bool norm_topk;              // router probabilities renormalised over the chosen ones
    struct layer_config *layers; // n_layers
    int32_t bos_id, pad_id;      // -1: none
    int32_t *eos_ids;            // of config.json
    uint32_t n_eos;
    struct arena arena;
};

/* Fills *out from a parsed config.json; `where` names the file in errors. ERR_REFUSED by field name
 * for what is not computed, ERR_CORRUPT for what contradicts itself. Release with config_release().
 */
int config_from_json(struct model_config *out, const json_t *config, const char *where,
                     struct err *err);
int config_read(struct model_config *out, const char *folder, struct err *err);
void config_release(struct model_config *c);

/* Inverse frequencies of rope[rope_idx] for positions of a sequence in `regime` (longrope: 0 short,
 * 1 long; others 0): inv_freq holds rotary_dim / 2 values; *scale multiplies cos and sin. */
void config_rope_table(const struct model_config *c, unsigned rope_idx, unsigned regime,
                       float *inv_freq, float *scale);
/* The regime of a sequence that may reach n_positions. */
unsigned config_rope_regime(const struct model_config *c, uint32_t n_positions);

const char *config_arch_name(enum arch a);

#endif
