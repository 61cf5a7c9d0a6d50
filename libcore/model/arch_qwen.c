#include "libcore/model/arch.h"

/* Without layer_types, layers from max_window_layers on slide when use_sliding_window is set. */
static void read_windows(struct model_config *c, struct config_reader *r)
{
    bool slides = config_bool(r, "use_sliding_window", false);
    uint32_t window = slides ? config_u32(r, "sliding_window", 4096) : 0;
    uint32_t first = config_u32(r, "max_window_layers", 28);
    config_set_windows(c, r, window);
    if (json_is_array(json_object_get(r->root, "layer_types")))
        return;
    for (uint32_t i = 0; i < c->n_layers && i < first; i++)
        c->layers[i].window = 0;
}

static void read_qwen2(struct model_config *c, struct config_reader *r)
{
    c->qkv_bias = true;
    read_windows(c, r);
}

const struct arch_entry arch_qwen2 = {
    .arch = ARCH_QWEN2,
    .class_name = "Qwen2ForCausalLM",
    .model_type = "qwen2",
    .read = read_qwen2,
};

static void read_qwen3(struct model_config *c, struct config_reader *r)
{
    c->qkv_bias = c->o_bias = config_bool(r, "attention_bias", false);
    c->qk_norm = true;
    read_windows(c, r);
}

const struct arch_entry arch_qwen3 = {
    .arch = ARCH_QWEN3,
    .class_name = "Qwen3ForCausalLM",
    .model_type = "qwen3",
    .read = read_qwen3,
};

static bool listed(const json_t *list, uint32_t value)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        if (json_integer_value(json_array_get(list, i)) == (json_int_t)value)
            return true;
    }
    return false;
}

static void read_qwen3_moe(struct model_config *c, struct config_reader *r)
{
    read_qwen3(c, r);
    c->n_experts = config_u32(r, "num_experts", config_u32(r, "num_local_experts", 128));
    c->n_experts_used = config_u32(r, "num_experts_per_tok", 8);
    c->d_expert = config_u32(r, "moe_intermediate_size", 768);
    c->norm_topk = config_bool(r, "norm_topk_prob", false);
    uint32_t every = config_u32(r, "decoder_sparse_step", 1);
    const json_t *dense = json_object_get(r->root, "mlp_only_layers");
    for (uint32_t i = 0; i < c->n_layers; i++)
        c->layers[i].moe = c->n_experts && every && (i + 1) % every == 0 && !listed(dense, i);
}

const struct arch_entry arch_qwen3_moe = {
    .arch = ARCH_QWEN3_MOE,
    .class_name = "Qwen3MoeForCausalLM",
    .model_type = "qwen3_moe",
    .expert_block = "mlp",
    .read = read_qwen3_moe,
};
