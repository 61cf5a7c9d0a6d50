#include "libcore/model/arch.h"

static void read_llama(struct model_config *c, struct config_reader *r)
{
    c->qkv_bias = c->o_bias = config_bool(r, "attention_bias", false);
    c->mlp_bias = config_bool(r, "mlp_bias", false);
}

const struct arch_entry arch_llama = {
    .arch = ARCH_LLAMA,
    .class_name = "LlamaForCausalLM",
    .model_type = "llama",
    .read = read_llama,
};

/* A file without the field means transformers' default of 4096; null means full attention. */
static void read_mistral(struct model_config *c, struct config_reader *r)
{
    uint32_t fallback = json_object_get(r->root, "sliding_window") ? 0 : 4096;
    config_set_windows(c, r, config_u32(r, "sliding_window", fallback));
}

const struct arch_entry arch_mistral = {
    .arch = ARCH_MISTRAL,
    .class_name = "MistralForCausalLM",
    .model_type = "mistral",
    .read = read_mistral,
};
