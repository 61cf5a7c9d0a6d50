#include <math.h>

#include "libcore/model/arch.h"

/* Sliding layers use the local rope; every sixth layer (sliding_window_pattern) attends fully. */
static void read_layers(struct model_config *c, struct config_reader *r)
{
    uint32_t window = config_u32(r, "sliding_window", 4096);
    config_set_windows(c, r, window);
    if (!json_is_array(json_object_get(r->root, "layer_types"))) {
        uint32_t pattern =
            config_u32(r, "sliding_window_pattern", config_u32(r, "_sliding_window_pattern", 6));
        for (uint32_t i = 0; i < c->n_layers; i++)
            c->layers[i].window = pattern && (i + 1) % pattern == 0 ? 0 : window;
    }
    for (uint32_t i = 0; i < c->n_layers; i++)
        c->layers[i].rope_idx = c->layers[i].window ? 1 : 0;
}

static void read_gemma3(struct model_config *c, struct config_reader *r)
{
    c->qkv_bias = c->o_bias = config_bool(r, "attention_bias", false);
    c->qk_norm = c->post_norms = c->norm_plus_one = true;
    c->embed_scale = sqrt((double)c->d_model);
    c->attention_scale = 1.0 / sqrt(config_number(r, "query_pre_attn_scalar", 256));
    c->logit_softcap = config_number(r, "final_logit_softcapping", 0);
    c->attention_softcap = config_number(r, "attn_logit_softcapping", 0);
    if (!json_is_string(json_object_get(r->root, "hidden_activation")) &&
        !json_is_string(json_object_get(r->root, "hidden_act")))
        c->activation = ACTIVATION_GELU_TANH;
    if (config_bool(r, "use_bidirectional_attention", false))
        config_fail(r, ERR_REFUSED, "%s: use_bidirectional_attention is not computed here",
                    r->where);
    const json_t *ropes = json_object_get(r->root, "rope_parameters");
    double local = config_number(r, "rope_local_base_freq", 10000);
    config_read_rope(c, r, json_object_get(ropes, "sliding_attention"), local, &c->rope[1]);
    read_layers(c, r);
}

const struct arch_entry arch_gemma3 = {
    .arch = ARCH_GEMMA3,
    .class_name = "Gemma3ForCausalLM",
    .model_type = "gemma3_text",
    .alias = "Gemma3ForConditionalGeneration",
    .read = read_gemma3,
};
