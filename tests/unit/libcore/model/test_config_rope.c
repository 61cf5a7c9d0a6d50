/*
 * config_rope_table() against transformers' modeling_rope_utils.py: tests/golden/long/rope.json,
 * made by make_long.py beside it. Every rope type that is computed here.
 */
#include <string.h>

#include "libcore/model/config.h"
#include "tests/lib/test.h"

enum { N_FREQUENCIES = 8, REACH = 4096 };

/* The config.json that make_long.py gave transformers for that row. */
static json_t *config_of(const char *name, const json_t *row)
{
    bool longrope = strncmp(name, "longrope", 8) == 0;
    json_t *root =
        json_pack("{s:s, s:[s], s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:O}", "model_type",
                  longrope ? "phi3" : "llama", "architectures",
                  longrope ? "Phi3ForCausalLM" : "LlamaForCausalLM", "vocab_size", 256,
                  "hidden_size", 64, "intermediate_size", 128, "num_hidden_layers", 2,
                  "num_attention_heads", 4, "num_key_value_heads", 2, "max_position_embeddings",
                  REACH, "rope_theta", 10000.0, "rope_scaling", json_object_get(row, "rope"));
    if (longrope)
        json_object_set_new(root, "original_max_position_embeddings", json_integer(512));
    return root;
}

static void check_row(const char *name, const json_t *row)
{
    struct model_config c;
    struct err err = {0};
    json_t *root = config_of(name, row);
    CHECK_OK(config_from_json(&c, root, name, &err), err);
    CHECK_INT(c.rotary_dim, 2 * N_FREQUENCIES);
    unsigned regime = config_rope_regime(&c, strcmp(name, "longrope-short") == 0 ? 256 : REACH);
    float f[N_FREQUENCIES], scale;
    config_rope_table(&c, 0, regime, f, &scale);
    const json_t *want = json_object_get(row, "inv_freq");
    CHECK_INT(json_array_size(want), N_FREQUENCIES);
    for (size_t i = 0; i < N_FREQUENCIES; i++) {
        double w = json_number_value(json_array_get(want, i));
        EXPECT_MSG(fabs(f[i] - w) <= 1e-6 * w, "%s: inv_freq[%zu] is %.9g, want %.9g", name, i,
                   f[i], w);
    }
    double w = json_number_value(json_object_get(row, "attention_factor"));
    EXPECT_MSG(fabs(scale - w) <= 1e-6 * w, "%s: attention factor %.9g, want %.9g", name, scale, w);
    json_decref(root);
    config_release(&c);
}

TEST(rope_tables_are_those_of_transformers)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/tests/golden/long/rope.json", test_root());
    json_t *rows = json_load_file(path, 0, NULL);
    CHECK_INT(json_object_size(rows), 7);
    const char *name;
    json_t *row;
    json_object_foreach(rows, name, row) check_row(name, row);
    json_decref(rows);
}
