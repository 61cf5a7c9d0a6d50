#include "libcore/model/config.h"

#include "tests/lib/test.h"

static int read_text(struct model_config *c, const char *text, struct err *err)
{
    json_t *root = json_loads(text, 0, NULL);
    int code = config_from_json(c, root, "config.json", err);
    json_decref(root);
    return code;
}

#define LLAMA                                                                                      \
    "\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"vocab_size\":320,"        \
    "\"hidden_size\":64,\"intermediate_size\":144,\"num_hidden_layers\":2,"                        \
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"max_position_embeddings\":256"

TEST(a_llama_file_gives_its_shapes)
{
    struct model_config c;
    struct err err = {0};
    CHECK_OK(read_text(&c, "{" LLAMA ",\"rope_theta\":500000.0,\"eos_token_id\":[1,7]}", &err),
             err);
    EXPECT_INT(c.arch, ARCH_LLAMA);
    EXPECT_INT(c.head_dim, 16);
    EXPECT_INT(c.rotary_dim, 16);
    EXPECT_INT(c.n_eos, 2);
    EXPECT_INT(c.eos_ids[1], 7);
    EXPECT_NEAR(c.rope[0].theta, 500000.0, 0);
    EXPECT_NEAR(c.attention_scale, 0.25, 0);
    EXPECT(!c.tied_embeddings);
    config_release(&c);
}

static void refused(const char *text, int code, const char *word)
{
    struct model_config c;
    struct err err = {0};
    CHECK_CODE(read_text(&c, text, &err), code, err);
    EXPECT_MSG(strstr(err.msg, word), "\"%s\" does not name %s", err.msg, word);
}

TEST(what_is_not_computed_is_refused_by_name)
{
    refused("{\"architectures\":[\"GPT2LMHeadModel\"]}", ERR_REFUSED, "GPT2LMHeadModel");
    refused("{" LLAMA ",\"quantization_config\":{\"quant_method\":\"gptq\"}}", ERR_REFUSED, "gptq");
    refused("{" LLAMA ",\"hidden_act\":\"relu2\"}", ERR_REFUSED, "relu2");
    refused("{" LLAMA ",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2.0}}", ERR_REFUSED,
            "dynamic");
    refused("{" LLAMA ",\"torch_dtype\":\"int4\"}", ERR_REFUSED, "int4");
}

TEST(what_contradicts_itself_is_corrupt)
{
    refused("{" LLAMA ",\"num_key_value_heads\":3}", ERR_CORRUPT, "num_key_value_heads");
    refused("{" LLAMA ",\"rms_norm_eps\":\"x\"}", ERR_CORRUPT, "rms_norm_eps");
    refused("{" LLAMA ",\"hidden_size\":0}", ERR_CORRUPT, "hidden_size");
    refused("[]", ERR_CORRUPT, "object");
}

/* Values of transformers 5.17 modeling_rope_utils.py for theta 10000, dim 16 (see the formulas). */
TEST(llama3_rope_keeps_high_and_divides_low_frequencies)
{
    struct model_config c;
    struct err err = {0};
    CHECK_OK(read_text(&c,
                       "{" LLAMA ",\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":"
                       "\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
                       "\"original_max_position_embeddings\":64}}",
                       &err),
             err);
    float f[8], scale;
    config_rope_table(&c, 0, 0, f, &scale);
    EXPECT_NEAR(scale, 1, 0);
    EXPECT_NEAR(f[0], 1, 1e-7);
    EXPECT_NEAR(f[7] * 8, pow(500000.0, -14.0 / 16), 1e-9);
    config_release(&c);
}
