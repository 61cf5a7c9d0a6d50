#include "libcore/format/peft.h"
#include "tests/unit/libcore/format/peft_make.h"

static void expect(const char *what, const char *overrides, const struct make_tensor *tensors,
                   int code, const char *word, const char *hint)
{
    struct adapter *a;
    struct err err = {0};
    int rc = peft_read(&a, make_adapter(overrides, tensors), NULL, &err);
    EXPECT_MSG(rc == code, "%s: %d, want %d: %s", what, rc, code, err.msg);
    EXPECT_MSG(!word || strstr(err.msg, word), "%s: \"%s\" lacks \"%s\"", what, err.msg, word);
    EXPECT_MSG(!hint || strstr(err.msg, hint), "%s: \"%s\" lacks \"%s\"", what, err.msg, hint);
    EXPECT((rc == 0) == (a != NULL));
    adapter_free(a);
}

TEST(sound_configuration_is_read)
{
    expect("plain", NULL, NULL, 0, NULL, NULL);
}

/* One mutated field for each item of the list of refusals. */
TEST(every_refused_field_is_named_with_a_way_out)
{
    static const struct {
        const char *overrides, *field, *hint;
    } rows[] = {
        {"{\"init_lora_weights\":\"pissa\"}", ":init_lora_weights: pissa",
         "path_initial_model_for_weight_conversion"},
        {"{\"init_lora_weights\":\"pissa_niter_16\"}", ":init_lora_weights: pissa_niter_16", NULL},
        {"{\"init_lora_weights\":\"olora\"}", ":init_lora_weights: olora", NULL},
        {"{\"init_lora_weights\":\"corda\"}", ":init_lora_weights: corda", NULL},
        {"{\"init_lora_weights\":\"lora_ga\"}", ":init_lora_weights: lora_ga", NULL},
        {"{\"init_lora_weights\":\"loftq\",\"loftq_config\":{\"loftq_bits\":4}}",
         ":init_lora_weights: loftq", NULL},
        {"{\"init_lora_weights\":\"brand_new\"}", ":init_lora_weights: \"brand_new\"", NULL},
        {"{\"alora_invocation_tokens\":[1,2]}", ":alora_invocation_tokens:", "plain LoRA"},
        {"{\"use_qalora\":true}", ":use_qalora:", "use_qalora=False"},
        {"{\"use_bdlora\":{\"nblocks\":2}}", ":use_bdlora:", "expand"},
        {"{\"kasa_config\":{\"beta\":1}}", ":kasa_config:", "merge it with PEFT"},
        {"{\"arrow_config\":{\"top_k\":3}}", ":arrow_config:", "task adapters"},
        {"{\"layer_replication\":[[0,4],[2,5]]}", ":layer_replication:", "save that model"},
        {"{\"peft_type\":\"IA3\"}", ":peft_type: IA3", "LORA"},
        {"{\"peft_type\":\"ADALORA\"}", ":peft_type: ADALORA", "convert"},
        {"{\"peft_type\":null}", ":peft_type: missing", NULL},
        {"{\"r\":0}", ":r: 0", "positive"},
        {"{\"r\":-1}", ":r: -1", "positive"},
        {"{\"r\":1025}", ":r: 1025", "1024"},
        {"{\"r\":\"8\"}", ":r: ", "type"},
        {"{\"r\":8.5}", ":r: ", "type"},
        {"{\"use_dora\":true,\"target_parameters\":[\"gate_up_proj\"]}",
         ":use_dora:", "target_parameters"},
        {"{\"use_dora\":true,\"lora_bias\":true}", ":lora_bias:", NULL},
        {"{\"lora_bias\":true,\"target_parameters\":[\"gate_up_proj\"]}", ":lora_bias:", NULL},
        {"{\"bias\":\"some\"}", ":bias: \"some\"", NULL},
        {"{\"new_feature\":1}", ":new_feature: unknown", "--ignore-field new_feature"},
        {"{\"new_feature\":{\"a\":false}}", ":new_feature: unknown", NULL},
        {"{\"enable_lora\":[true,false]}", ":enable_lora:", NULL},
        {"{\"target_modules\":[1]}", ":target_modules:", "strings"},
        {"{\"layers_to_transform\":[\"1\"]}", ":layers_to_transform:", "whole numbers"},
        {"{\"rank_pattern\":{\"q_proj\":\"8\"}}", ":rank_pattern:", "a number is wanted"},
        {"{\"rank_pattern\":{\"q_proj\":4.5}}", ":rank_pattern:", "no whole rank"},
        {"{\"rank_pattern\":{\"q_proj\":0}}", Q ".lora_A.weight: rank 0", "positive"},
        {"{\"rank_pattern\":{\"q_proj\":2000}}", "rank 2000", "1024"},
        {"{\"rank_pattern\":{\"q_proj\":8}}", Q ".lora_A.weight: the configuration gives rank 8",
         "the tensor has 4"},
        {"{\"r\":8}", "the configuration gives rank 8", "rank_pattern"},
        {"{\"rank_pattern\":{\"q_proj(\":4}}", ":rank_pattern: pattern \"q_proj(\"", NULL},
        {"{\"alpha_pattern\":{\"(?R)\":4}}", ":alpha_pattern:", "Python's re does not have"},
        {"{\"alpha_pattern\":{\"\\\\Qx\":4}}", ":alpha_pattern:", "Python's re does not have"},
        {"{\"alpha_pattern\":{\"([a-z_.0-9]+)+[A-Z]\":4}}", ":alpha_pattern:", "too costly"},
        {"{\"target_modules\":\"(q_proj\"}", ":target_modules: pattern", NULL},
        {"{\"use_dora\":true}", "use_dora, but the module has no lora_magnitude_vector", NULL},
        {"{\"lora_bias\":true}", "no lora_B.bias", NULL},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        expect(rows[i].overrides, rows[i].overrides, NULL, ERR_REFUSED, rows[i].field,
               rows[i].hint);
}

TEST(harmless_fields_pass)
{
    static const char *const rows[] = {
        "{\"init_lora_weights\":\"gaussian\"}",
        "{\"init_lora_weights\":\"eva\",\"eva_config\":{\"rho\":2.0}}",
        "{\"init_lora_weights\":\"orthogonal\"}",
        "{\"init_lora_weights\":\"mica\"}",
        "{\"init_lora_weights\":false}",
        "{\"lora_dropout\":0.05}",
        "{\"megatron_config\":{\"a\":1}}",
        "{\"velora_config\":{\"num_groups\":4}}",
        "{\"monteclora_config\":{\"num_samples\":8}}",
        "{\"new_feature\":null}",
        "{\"new_feature\":false}",
        "{\"new_feature\":[]}",
        "{\"new_feature\":{}}",
        "{\"use_qalora\":false,\"qalora_group_size\":16}",
        "{\"auto_mapping\":{\"base_model_class\":\"X\",\"unsloth_fixed\":true}}",
        "{\"lora_alpha\":16.0}",
        "{\"layers_to_transform\":0}",
        "{\"target_modules\":\"all-linear\"}",
        "{\"target_modules\":null}",
        "{\"bias\":\"all\"}",
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        expect(rows[i], rows[i], NULL, 0, NULL, NULL);
}

TEST(ignored_field_is_recorded)
{
    static const char *const names[] = {"new_feature", "kasa_config"};
    struct peft_options opt = {.ignore_fields = names, .n_ignore_fields = 2};
    struct adapter *a;
    struct err err = {0};
    const char *path = make_adapter("{\"new_feature\":1,\"kasa_config\":{\"x\":1}}", NULL);
    CHECK_OK(peft_read(&a, path, &opt, &err), err);
    CHECK_INT(json_array_size(a->warnings), 2);
    EXPECT(strstr(json_string_value(json_array_get(a->warnings, 0)), "was ignored"));
    adapter_free(a);
}

#define ROW(...)                                                                                   \
    (const struct make_tensor[])                                                                   \
    {                                                                                              \
        __VA_ARGS__,                                                                               \
        {                                                                                          \
            NULL, 0, 0, 0                                                                          \
        }                                                                                          \
    }
#define GOOD_Q                                                                                     \
    {Q ".lora_A.weight", 4, 8, 0},                                                                 \
    {                                                                                              \
        Q ".lora_B.weight", 6, 4, 0                                                                \
    }

TEST(every_tensor_has_a_meaning_or_is_refused)
{
    expect("A alone", NULL, ROW(GOOD_Q, {V ".lora_A.weight", 4, 8, 0}), ERR_REFUSED,
           V ".lora_A.weight: B of the same module is missing", NULL);
    expect("B alone", NULL, ROW({Q ".lora_B.weight", 6, 4, 0}), ERR_REFUSED, "A of the same", NULL);
    expect("ranks differ", NULL, ROW({Q ".lora_A.weight", 4, 8, 0}, {Q ".lora_B.weight", 6, 2, 0}),
           ERR_REFUSED, "rank 2, but A has rank 4", NULL);
    expect("KaSA", NULL, ROW(GOOD_Q, {Q ".lora_diag", 4, 0, 0}), ERR_REFUSED, Q ".lora_diag: KaSA",
           "merge");
    expect("Arrow", NULL, ROW(GOOD_Q, {Q ".lora_arrow.weight", 4, 4, 0}), ERR_REFUSED, "Arrow",
           NULL);
    expect("unknown kind", NULL, ROW(GOOD_Q, {Q ".lora_new.weight", 4, 4, 0}), ERR_REFUSED,
           Q ".lora_new.weight: a kind of LoRA tensor", NULL);
    expect("stranger", NULL, ROW(GOOD_Q, {"something.else", 4, 4, 0}), ERR_REFUSED,
           ":something.else: no tensor that PEFT writes", NULL);
    expect("no dot", NULL, ROW(GOOD_Q, {"stranger", 4, 4, 0}), ERR_REFUSED, ":stranger: no tensor",
           NULL);
    expect("full without modules_to_save", NULL, ROW(GOOD_Q, {V ".weight", 2, 8, 0}), ERR_REFUSED,
           V ".weight: a whole weight", "modules_to_save");
    expect("full and LoRA", "{\"modules_to_save\":[\"q_proj\"]}",
           ROW(GOOD_Q, {Q ".weight", 6, 8, 0}), ERR_REFUSED,
           "modules_to_save covers a module that has A and B", NULL);
    expect("magnitude without use_dora", NULL, ROW(GOOD_Q, {Q ".lora_magnitude_vector", 6, 0, 0}),
           ERR_REFUSED, "use_dora is not set", NULL);
    expect("magnitude's shape", "{\"use_dora\":true}",
           ROW(GOOD_Q, {Q ".lora_magnitude_vector", 5, 0, 0}), ERR_REFUSED, "wanted [6], got [5]",
           NULL);
    expect("lora_bias not set", NULL, ROW(GOOD_Q, {Q ".lora_B.bias", 6, 0, 0}), ERR_REFUSED,
           "lora_bias is not set", NULL);
    expect("bias of A", NULL, ROW(GOOD_Q, {Q ".lora_A.bias", 4, 0, 0}), ERR_REFUSED,
           "a bias where PEFT has none", NULL);
    expect("integers", NULL,
           ROW({Q ".lora_A.weight", 4, 8, DTYPE_I8}, {Q ".lora_B.weight", 6, 4, 0}), ERR_REFUSED,
           "I8 is no type of weights", NULL);
    expect("shards", NULL, ROW({Q ".lora_A.weight", 32, 0, 0}, {Q ".lora_B.weight", 6, 4, 0}),
           ERR_REFUSED, "were the shards gathered", NULL);
    expect("one module twice", NULL,
           ROW(GOOD_Q, {"base_model.model._orig_mod.model.layers.0."
                        "self_attn.q_proj.lora_A.weight",
                        4, 8, 0}),
           ERR_REFUSED, "means the same as", NULL);
    expect("tokens without ids", NULL,
           ROW(GOOD_Q, {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
                        3, 8, 0}),
           ERR_REFUSED, "trainable_token_indices has no ids", NULL);
    expect("tokens counted", "{\"trainable_token_indices\":[1,2]}",
           ROW(GOOD_Q, {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
                        3, 8, 0}),
           ERR_REFUSED, "3 rows, but trainable_token_indices lists 2 ids", NULL);
    expect("token twice", "{\"trainable_token_indices\":{\"embed_tokens\":[1,2,1]}}",
           ROW(GOOD_Q, {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
                        3, 8, 0}),
           ERR_REFUSED, "token 1 is listed twice", NULL);
    expect("nothing", NULL,
           ROW({"base_model.model.model.layers.0.self_attn.q_proj."
                "original_module.weight",
                4, 4, 0}),
           ERR_REFUSED, "no tensor of an adapter", NULL);
}

TEST(convolutions_are_refused)
{
    const char *folder = make_adapter(NULL, NULL);
    char path[4400];
    struct err err = {0};
    struct safetensors_writer *w;
    uint64_t a[4] = {4, 8, 3, 3}, b[4] = {6, 4, 1, 1};
    static const float zeros[4 * 8 * 9];
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", folder);
    CHECK_OK(safetensors_writer_open(&w, path, &err), err);
    CHECK_OK(safetensors_writer_declare(w, Q ".lora_A.weight", DTYPE_F32, 4, a, &err), err);
    CHECK_OK(safetensors_writer_declare(w, Q ".lora_B.weight", DTYPE_F32, 4, b, &err), err);
    CHECK_OK(safetensors_writer_begin(w, &err), err);
    CHECK_OK(safetensors_writer_put(w, Q ".lora_A.weight", 0, zeros, sizeof zeros, &err), err);
    CHECK_OK(safetensors_writer_put(w, Q ".lora_B.weight", 0, zeros, 24 * 4, &err), err);
    CHECK_OK(safetensors_writer_finish(w, &err), err);
    safetensors_writer_free(w);
    struct adapter *adapter;
    CHECK_CODE(peft_read(&adapter, folder, NULL, &err), ERR_REFUSED, err);
    EXPECT(strstr(err.msg, "convolutions are not computed"));
}

/* Overwrites a value in the weights, which lie at the file's end. */
static void poke(const char *folder, size_t from_end, const void *bytes, size_t n)
{
    char path[4400];
    char *data;
    size_t size;
    struct err err = {0};
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", folder);
    CHECK_OK(file_read(path, 1 << 20, &data, &size, &err), err);
    memcpy(data + size - from_end, bytes, n);
    CHECK_OK(file_write_atomic(path, data, size, &err), err);
    sys_free(data);
}

TEST(nan_and_inf_are_corrupt_and_found_by_index)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < 3; i++) {
        struct adapter *a;
        struct err err = {0};
        const char *folder = make_adapter(NULL, NULL);
        poke(folder, 3 * sizeof(float), &bad[i], sizeof(float)); // v_proj's B is last: 8 values
        CHECK_CODE(peft_read(&a, folder, NULL, &err), ERR_CORRUPT, err);
        EXPECT_MSG(strstr(err.msg, V ".lora_B.weight: NaN or Inf at index 5"), "%s", err.msg);
        struct peft_options opt = {.skip_values = true};
        CHECK_OK(peft_read(&a, folder, &opt, &err), err);
        adapter_free(a);
    }
}

static void expect_path(const char *path, int code, const char *word)
{
    struct adapter *a;
    struct err err = {0};
    int rc = peft_read(&a, path, NULL, &err);
    EXPECT_MSG(rc == code && strstr(err.msg, word), "%s: %d: %s", path, rc, err.msg);
    adapter_free(a);
}

TEST(broken_files_are_named)
{
    char path[4500];
    struct err err = {0};
    const char *folder = make_adapter(NULL, NULL);
    snprintf(path, sizeof path, "%s/adapter_config.json", folder);
    CHECK_OK(file_write_atomic(path, "{\"r\":8,", 7, &err), err);
    expect_path(folder, ERR_CORRUPT, "adapter_config.json: line 1");
    CHECK_OK(file_write_atomic(path, "{\"r\":8,\"r\":4}", 13, &err), err);
    expect_path(folder, ERR_CORRUPT, "duplicate");
    CHECK_OK(file_write_atomic(path, "[]", 2, &err), err);
    expect_path(folder, ERR_CORRUPT, "an object is wanted");
    folder = make_adapter(NULL, NULL);
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", folder);
    CHECK_OK(file_write_atomic(path, "\x80\x02}q\x00.", 6, &err), err);
    expect_path(folder, ERR_CORRUPT, "at least 8");
    CHECK_OK(file_write_atomic(path, "PK\003\004aaaaaaaaaaaa", 16, &err), err);
    expect_path(folder, ERR_CORRUPT, "zip");
}

TEST(safetensors_under_the_name_of_a_pickle_are_refused)
{
    char path[4500], bin[4500];
    const char *folder = make_adapter(NULL, NULL);
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", folder);
    snprintf(bin, sizeof bin, "%s/adapter_model.bin", folder);
    CHECK(rename(path, bin) == 0);
    EXPECT(peft_looks_like(folder));
    expect_path(folder, ERR_CORRUPT, "adapter_model.bin: pickle");
    expect_path(bin, ERR_CORRUPT, "hostile");
    CHECK(remove(bin) == 0);
    expect_path(folder, ERR_NOT_FOUND, "adapter_model.safetensors");
    expect_path("/nowhere/at/all", ERR_NOT_FOUND, "no such file");
    expect_path(test_tmp(), ERR_NOT_FOUND, "several adapters");
}

/* docs/FORMATS.md and the table say the same of every field. */
TEST(documented_fields_are_the_known_ones)
{
    static const char *const roles[] = {"numeric |", "inert |", "refused |"};
    char path[4400], row[200];
    char *text;
    size_t size, n, n_rows = 0;
    struct err err = {0};
    snprintf(path, sizeof path, "%s/docs/FORMATS.md", test_root());
    CHECK_OK(file_read(path, 1 << 20, &text, &size, &err), err);
    const struct peft_field *table = peft_field_table(&n);
    for (size_t i = 0; i < n; i++) {
        snprintf(row, sizeof row, "\n| `%s` | %s ", table[i].name, roles[table[i].role]);
        EXPECT_MSG(strstr(text, row), "docs/FORMATS.md lacks \"%s\"", row + 1);
    }
    for (const char *p = text; (p = strstr(p, "\n| `")); p++) {
        const char *cell = strstr(p, "` | ");
        for (size_t r = 0; cell && r < 3; r++)
            n_rows += strncmp(cell + 4, roles[r], strlen(roles[r])) == 0;
    }
    EXPECT_INT(n_rows, n);
    sys_free(text);
}
