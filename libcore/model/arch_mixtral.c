#include "libcore/model/arch.h"

static void read_mixtral(struct model_config *c, struct config_reader *r)
{
    c->n_experts = config_u32(r, "num_local_experts", 8);
    c->n_experts_used = config_u32(r, "num_experts_per_tok", 2);
    c->d_expert = c->d_ff;
    c->norm_topk = true;
    config_set_windows(c, r, config_u32(r, "sliding_window", 0));
    for (uint32_t i = 0; i < c->n_layers; i++)
        c->layers[i].moe = true;
}

const struct arch_entry arch_mixtral = {
    .arch = ARCH_MIXTRAL,
    .class_name = "MixtralForCausalLM",
    .model_type = "mixtral",
    .expert_block = "block_sparse_moe",
    .read = read_mixtral,
};
