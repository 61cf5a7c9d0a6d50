#include <stdio.h>
#include <stdlib.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/peft.h"
#include "libcore/model/bind.h"
#include "tests/lib/test.h"
#include "tests/unit/libcore/format/peft_make.h"

struct base {
    struct model_config config;
    struct model_modules *modules;
    struct checkpoint *checkpoint;
};

static bool open_base(struct base *b, const char *folder)
{
    struct err err = {0};
    memset(b, 0, sizeof *b);
    if (config_read(&b->config, folder, &err) || modules_open(&b->modules, &b->config, &err) ||
        checkpoint_open(&b->checkpoint, folder, &err)) {
        test_fail(__FILE__, __LINE__, "%s: %s", folder, err.msg);
        return false;
    }
    return true;
}

static void close_base(struct base *b)
{
    checkpoint_free(b->checkpoint);
    modules_free(b->modules);
    config_release(&b->config);
}

struct outcome {
    unsigned kinds, kinds_kept; // before and after saved base layers were dropped
    uint32_t n_vocab;
    size_t n_parts, n_parts_kept, n_warnings;
};

static struct outcome bind_path(const struct base *b, const char *path)
{
    struct outcome o = {0};
    struct adapter *a;
    struct bound_adapter *bound = NULL;
    struct err err = {0};
    if (peft_read(&a, path, NULL, &err) || bind_adapter(&bound, a, b->modules, &b->config, &err)) {
        test_fail(__FILE__, __LINE__, "%s: %s", path, err.msg);
        adapter_free(a);
        return o;
    }
    o.kinds = bound->kinds;
    o.n_parts = bound->n_parts;
    o.n_vocab = bound->n_vocab;
    o.n_warnings = json_array_size(bound->warnings);
    if (bind_drop_saved_base(bound, b->modules, b->checkpoint, &err) != 0)
        test_fail(__FILE__, __LINE__, "%s: %s", path, err.msg);
    o.kinds_kept = bound->kinds;
    o.n_parts_kept = bound->n_parts;
    bound_free(bound);
    adapter_free(a);
    return o;
}

static size_t bind_folder(const char *base_folder, const char *adapters)
{
    struct base b;
    char **names = NULL;
    size_t n = 0;
    struct err err = {0};
    if (!open_base(&b, base_folder) || file_list(adapters, &names, &n, &err) != 0)
        return 0;
    for (size_t i = 0; i < n; i++) {
        char *path = file_join(adapters, names[i]);
        struct outcome o = bind_path(&b, path);
        EXPECT_MSG(o.n_warnings == 0, "%s: %zu warnings", path, o.n_warnings);
        sys_free(path);
    }
    file_free_names(names, n);
    close_base(&b);
    return n;
}

TEST(every_tinytalk_adapter_binds)
{
    char base[4200], adapters[4200];
    snprintf(base, sizeof base, "%s/examples/tinytalk/base", test_root());
    snprintf(adapters, sizeof adapters, "%s/examples/tinytalk/adapters", test_root());
    EXPECT_INT(bind_folder(base, adapters), 8);
}

TEST(every_fixture_binds_to_its_base)
{
    static const char *const bases[] = {
        "kinds/llama-tied", "kinds/llama-untied", "kinds/qwen2-bias", "archs/llama31-tied",
        "archs/mistral",    "archs/qwen2",        "archs/qwen3",      "archs/gemma3",
        "archs/phi3",       "archs/mixtral",      "archs/qwen3moe"};
    const char *fixtures = test_fixtures();
    size_t total = 0;
    if (!fixtures) {
        test_skip("no fixtures beside the checkout");
        return;
    }
    for (size_t i = 0; i < sizeof bases / sizeof *bases; i++) {
        char base[4400], adapters[4500];
        snprintf(base, sizeof base, "%s/%s", fixtures, bases[i]);
        snprintf(adapters, sizeof adapters, "%s/adapters", base);
        total += bind_folder(base, adapters);
    }
    EXPECT_INT(total, 45 + 22);
}

TEST(saved_base_layers_that_equal_the_base_are_dropped)
{
    struct base b;
    char path[4400];
    snprintf(path, sizeof path, "%s/examples/tinytalk/base", test_root());
    if (!open_base(&b, path))
        return;
    snprintf(path, sizeof path, "%s/examples/tinytalk/adapters/first-lora", test_root());
    struct outcome o = bind_path(&b, path);
    EXPECT(o.kinds & ADAPTER_FULL);
    EXPECT_INT(o.kinds_kept, ADAPTER_LORA | ADAPTER_EMBED | ADAPTER_HEAD);
    EXPECT_INT(o.n_parts_kept, 6 * 2 + 2);
    b.modules->base = b.checkpoint; // then binding does it by itself
    EXPECT_INT(bind_path(&b, path).kinds, o.kinds_kept);
    snprintf(path, sizeof path, "%s/examples/tinytalk/adapters/last-lora", test_root());
    o = bind_path(&b, path);
    EXPECT_INT(o.kinds_kept, ADAPTER_LORA | ADAPTER_FULL); // modules_to_save stays
    close_base(&b);
}

/* ---- a small base from JSON, and adapters mutated against it ---- */

static const char small_config[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":8,"
    "\"intermediate_size\":12,\"num_hidden_layers\":2,\"num_attention_heads\":2,"
    "\"num_key_value_heads\":1,\"vocab_size\":16,\"rms_norm_eps\":1e-5,\"hidden_act\":\"silu\","
    "\"max_position_embeddings\":64,\"rope_theta\":10000.0,\"torch_dtype\":\"float32\"}";

static bool small_base(struct base *b, const char *overrides)
{
    struct err err = {0};
    json_t *c = json_loads(small_config, 0, NULL), *over = json_loads(overrides, 0, NULL);
    memset(b, 0, sizeof *b);
    json_object_update(c, over);
    int rc = config_from_json(&b->config, c, "config.json", &err);
    if (!rc)
        rc = modules_open(&b->modules, &b->config, &err);
    if (rc)
        test_fail(__FILE__, __LINE__, "%s", err.msg);
    json_decref(c);
    json_decref(over);
    return rc == 0;
}

#define L(i, rest) "base_model.model.model.layers." #i "." rest
#define PAIR(n, in, out)                                                                           \
    {n ".lora_A.weight", 4, in, 0},                                                                \
    {                                                                                              \
        n ".lora_B.weight", out, 4, 0                                                              \
    }
#define QV(i) PAIR(L(i, "self_attn.q_proj"), 8, 8), PAIR(L(i, "self_attn.v_proj"), 8, 4)
#define ROW(...)                                                                                   \
    (const struct make_tensor[])                                                                   \
    {                                                                                              \
        __VA_ARGS__,                                                                               \
        {                                                                                          \
            NULL, 0, 0, 0                                                                          \
        }                                                                                          \
    }
#define EMBED "base_model.model.model.embed_tokens"
#define HEAD  "base_model.model.lm_head"

/* Binds, and hands the result over when it must succeed. */
static struct bound_adapter *bind_made(const char *base_overrides, const char *overrides,
                                       const struct make_tensor *tensors, int code,
                                       const char *word, struct base *b, struct adapter **a)
{
    struct bound_adapter *bound = NULL;
    struct err err = {0};
    if (!small_base(b, base_overrides))
        return NULL;
    int rc = peft_read(a, make_adapter(overrides, tensors), NULL, &err);
    EXPECT_MSG(rc == 0, "%s: %s", overrides, err.msg);
    if (rc)
        return NULL;
    rc = bind_adapter(&bound, *a, b->modules, &b->config, &err);
    EXPECT_MSG(rc == code, "%s: %d, want %d: %s", overrides, rc, code, err.msg);
    EXPECT_MSG(!rc || !word || strstr(err.msg, word), "\"%s\" lacks \"%s\"", err.msg, word);
    return bound;
}

static void refuse(const char *base_overrides, const char *overrides,
                   const struct make_tensor *tensors, const char *word)
{
    struct base b = {0};
    struct adapter *a = NULL;
    struct bound_adapter *bound =
        bind_made(base_overrides, overrides, tensors, ERR_REFUSED, word, &b, &a);
    EXPECT(bound == NULL);
    bound_free(bound);
    adapter_free(a);
    close_base(&b);
}

TEST(every_mismatch_with_the_base_is_refused_by_name)
{
    refuse("{}", "{}", ROW(QV(0)), "model.layers.1.self_attn.q_proj: target_modules means this");
    refuse("{}", "{}", ROW(QV(0), PAIR(L(1, "self_attn.q_proj"), 8, 8)),
           "model.layers.1.self_attn.v_proj: target_modules means");
    refuse("{}", "{}", ROW(QV(0), QV(1), QV(2)), "model.layers.2.self_attn.q_proj: no module");
    refuse("{}", "{\"target_modules\":null}", ROW(PAIR(L(0, "self_attn.q_prj"), 8, 8)),
           "nearest is model.layers.0.self_attn.q_proj");
    refuse("{}", "{\"target_modules\":null}", ROW(PAIR(L(0, "self_attn.q_proj"), 16, 8)),
           "lora_A: the base wants [4, 8], the adapter has [4, 16]");
    refuse("{}", "{\"target_modules\":null}", ROW(PAIR(L(0, "self_attn.q_proj"), 8, 9)),
           "lora_B: the base wants [8, 4], the adapter has [9, 4]");
    refuse("{}", "{\"layers_to_transform\":[0]}", ROW(QV(0), QV(1)),
           "model.layers.1.self_attn.q_proj: has lora_A and lora_B, but the configuration");
    refuse("{}", "{\"exclude_modules\":[\"v_proj\"]}", ROW(QV(0), QV(1)), "v_proj: has lora_A");
    refuse("{}", "{\"target_modules\":[\"q_proj\"]}", ROW(QV(0), QV(1)), "v_proj: has lora_A");
    refuse("{}", "{\"target_modules\":\"all-linear\"}", ROW(QV(0), QV(1)),
           "k_proj: target_modules means");
    refuse("{}", "{\"target_modules\":null}", ROW(PAIR(L(0, "input_layernorm"), 8, 8)),
           "A and B on a norm");
    refuse("{}", "{\"target_modules\":null}", ROW(PAIR(EMBED, 8, 16)),
           "the base has an embedding here");
    refuse("{}", "{\"target_modules\":null}",
           ROW({L(0, "self_attn.q_proj.lora_embedding_A"), 4, 8, 0},
               {L(0, "self_attn.q_proj.lora_embedding_B"), 8, 4, 0}),
           "no embedding here");
    refuse("{}", "{\"bias\":\"all\"}", ROW(QV(0), QV(1), {L(0, "self_attn.k_proj.bias"), 4, 0, 0}),
           "a bias, but the base has none");
    refuse("{\"attention_bias\":true}", "{\"bias\":\"all\"}",
           ROW(QV(0), QV(1), {L(0, "self_attn.k_proj.bias"), 5, 0, 0}), "bias: the base wants [4]");
    refuse("{}", "{\"modules_to_save\":[\"lm_head\"]}", ROW(QV(0), QV(1)),
           "lm_head: modules_to_save means this");
    refuse("{}", "{\"modules_to_save\":[\"lm_head\"]}",
           ROW(QV(0), QV(1), {HEAD ".weight", 16, 9, 0}),
           "weight: the base wants [16, 8], the adapter has [16, 9]");
    refuse("{}", "{\"modules_to_save\":[\"lm_head\"]}",
           ROW(QV(0), QV(1), {HEAD ".weight", 15, 8, 0}), "the adapter has [15, 8]");
    refuse("{}", "{\"modules_to_save\":[\"score\"]}",
           ROW(QV(0), QV(1), {"base_model.model.score.weight", 2, 8, 0}), "score: no module");
    refuse("{}", "{\"trainable_token_indices\":[3,16]}",
           ROW(QV(0), QV(1), {EMBED ".token_adapter.trainable_tokens_delta", 2, 8, 0}),
           "token 16, but the base has 16 rows");
}

TEST(target_entry_that_means_nothing_warns)
{
    struct base b = {0};
    struct adapter *a = NULL;
    struct bound_adapter *bound =
        bind_made("{}", "{\"target_modules\":[\"q_proj\",\"v_proj\",\"c_attn\"]}",
                  ROW(QV(0), QV(1)), 0, NULL, &b, &a);
    CHECK(bound);
    CHECK_INT(json_array_size(bound->warnings), 1);
    EXPECT(strstr(json_string_value(json_array_get(bound->warnings, 0)), "c_attn"));
    for (size_t i = 1; i < bound->n_parts; i++)
        EXPECT(bound->parts[i - 1].target < bound->parts[i].target); // order of the computation
    bound_free(bound);
    adapter_free(a);
    close_base(&b);
}

/* Patterns see the names of the model that was trained; the base here is its language half. */
TEST(adapter_of_a_multimodal_model_binds)
{
#define M(i, rest) "base_model.model.model.language_model.layers." #i "." rest
    struct base b = {0};
    struct adapter *a = NULL;
    struct bound_adapter *bound =
        bind_made("{}",
                  "{\"target_modules\":\".*language_model.*q_proj\","
                  "\"alpha_pattern\":{\"^model.language_model.layers.1.self_attn.q_proj\":2}}",
                  ROW(PAIR(M(0, "self_attn.q_proj"), 8, 8), PAIR(M(1, "self_attn.q_proj"), 8, 8)),
                  0, NULL, &b, &a);
    CHECK(bound && bound->n_parts == 2);
    EXPECT_STR(bound->parts[1].target->name, "model.layers.1.self_attn.q_proj");
    EXPECT_NEAR(bound->parts[0].module->scale, 2, 0);
    EXPECT_NEAR(bound->parts[1].module->scale, 0.5, 0);
    EXPECT_INT(json_array_size(bound->warnings), 1);
    bound_free(bound);
    adapter_free(a);
    close_base(&b);
}

TEST(fan_in_fan_out_on_a_linear_base_is_turned_off)
{
    struct base b = {0};
    struct adapter *a = NULL;
    struct bound_adapter *bound =
        bind_made("{}", "{\"fan_in_fan_out\":true}", ROW(QV(0), QV(1)), 0, NULL, &b, &a);
    CHECK(bound && a->modules[0].transposed);
    EXPECT(!bound->parts[0].module->transposed);
    EXPECT_INT(json_array_size(bound->warnings), 1);
    bound_free(bound);
    adapter_free(a);
    close_base(&b);
}

TEST(added_tokens_need_both_ends)
{
    struct base b = {0};
    struct adapter *a = NULL;
    const char *saved = "{\"modules_to_save\":[\"lm_head\",\"embed_tokens\"]}";
    struct bound_adapter *bound = bind_made(
        "{}", saved, ROW(QV(0), QV(1), {HEAD ".weight", 18, 8, 0}, {EMBED ".weight", 18, 8, 0}), 0,
        NULL, &b, &a);
    CHECK(bound);
    EXPECT_INT(bound->n_vocab, 18);
    bound_free(bound);
    adapter_free(a);
    close_base(&b);
    refuse("{}", saved, ROW(QV(0), QV(1), {HEAD ".weight", 16, 8, 0}, {EMBED ".weight", 18, 8, 0}),
           "the adapter must bring both");
    refuse("{}", "{}", ROW(QV(0), QV(1), {EMBED ".weight", 18, 8, 0}), "lm_head: 16 rows");
}

/* ---- tied ends ---- */

#define TIED "{\"tie_word_embeddings\":true}"
#define EMBED_FACTORS                                                                              \
    {EMBED ".lora_embedding_A", 4, 16, 0},                                                         \
    {                                                                                              \
        EMBED ".lora_embedding_B", 8, 4, 0                                                         \
    }

static const struct bound_part *part_of(const struct bound_adapter *b, const char *name)
{
    for (size_t i = 0; b && i < b->n_parts; i++) {
        if (strcmp(b->parts[i].target->name, name) == 0)
            return &b->parts[i];
    }
    return NULL;
}

TEST(tied_head_follows_the_embedding_only_when_asked)
{
    static const char *const configs[] = {
        "{\"target_modules\":[\"embed_tokens\"]}",
        "{\"target_modules\":[\"embed_tokens\"],\"ensure_weight_tying\":true}"};
    for (size_t tie = 0; tie < 2; tie++) {
        struct base b = {0};
        struct adapter *a = NULL;
        struct bound_adapter *bound =
            bind_made(TIED, configs[tie], ROW(EMBED_FACTORS), 0, NULL, &b, &a);
        CHECK(bound);
        const struct bound_part *head = part_of(bound, "lm_head"),
                                *embed = part_of(bound, "model.embed_tokens");
        CHECK(embed && !head == !tie);
        if (head) { // A_head[i][j] = B_embed[j][i]
            const float *eb = embed->module->b.data, *ha = head->module->a.data;
            EXPECT_NEAR(head->module->scale, 2.0, 0);
            EXPECT_INT(head->module->b.shape[0], 16);
            for (size_t i = 0; i < 4; i++) {
                for (size_t j = 0; j < 8; j++)
                    EXPECT(ha[i * 8 + j] == eb[j * 4 + i]);
            }
        }
        bound_free(bound);
        adapter_free(a);
        close_base(&b);
    }
}

TEST(saved_base_layer_of_a_tied_base_is_shared)
{
    struct base b = {0};
    struct adapter *a = NULL;
    struct bound_adapter *bound =
        bind_made(TIED, "{\"target_modules\":[\"embed_tokens\"]}",
                  ROW(EMBED_FACTORS, {EMBED ".base_layer.weight", 16, 8, 0}), 0, NULL, &b, &a);
    CHECK(bound);
    const struct bound_part *head = part_of(bound, "lm_head");
    CHECK(head && tensor_present(&head->module->full) && head->module->rank == 0);
    EXPECT(head->module->full.data == part_of(bound, "model.embed_tokens")->module->full.data);
    bound_free(bound);
    adapter_free(a);
    close_base(&b);
    bound = bind_made(TIED, "{\"modules_to_save\":[\"embed_tokens\"]}",
                      ROW(QV(0), QV(1), {EMBED ".weight", 16, 8, 0}), 0, NULL, &b, &a);
    CHECK(bound);
    EXPECT(!part_of(bound, "lm_head")); // a copy of its own, as in PEFT
    bound_free(bound);
    adapter_free(a);
    close_base(&b);
    refuse(TIED, "{\"trainable_token_indices\":{\"lm_head\":[1]}}",
           ROW(QV(0), QV(1), {HEAD ".token_adapter.trainable_tokens_delta", 1, 8, 0}),
           "tokens of its own in a base with tied embeddings");
}

/* ---- experts ---- */

#define MOE                                                                                        \
    "{\"architectures\":[\"MixtralForCausalLM\"],\"model_type\":\"mixtral\",\"num_local_"          \
    "experts\":2,"                                                                                 \
    "\"num_experts_per_tok\":1}"
#define EXPERTS(i) L(i, "mlp.experts")

/* Delta of expert e: [out][in] = sum_r B[out][r E + e] A[e r][in], without the scale. */
static double delta(const struct adapter_module *m, size_t e, size_t o, size_t i)
{
    const float *a = m->a.data, *b = m->b.data;
    size_t n = m->n_experts * m->rank, in = (size_t)m->a.shape[1];
    double sum = 0;
    for (size_t r = 0; r < m->rank; r++)
        sum += (double)b[o * n + r * m->n_experts + e] * a[(e * m->rank + r) * in + i];
    return sum;
}

TEST(experts_stored_the_other_way_round_are_turned)
{
    static const char config[] = "{\"target_modules\":[],\"target_parameters\":[\"down_proj\"]}";
    struct base b = {0};
    struct adapter *a = NULL; // down_proj of the base: [2, 8, 12]; A came out over 8, B over 12
    struct bound_adapter *bound = bind_made(
        MOE, config,
        ROW({EXPERTS(0) ".lora_A.weight", 8, 8, 0}, {EXPERTS(0) ".lora_B.weight", 12, 8, 0},
            {EXPERTS(1) ".lora_A.weight", 8, 12, 0}, {EXPERTS(1) ".lora_B.weight", 8, 8, 0}),
        0, NULL, &b, &a);
    CHECK(bound && bound->n_parts == 2);
    const struct adapter_module *from = adapter_find(a, "model.layers.0.mlp.experts", "down_proj");
    const struct adapter_module *to = bound->parts[0].module;
    CHECK(from && to != from && to->a.shape[1] == 12 && to->b.shape[0] == 8);
    EXPECT(bound->parts[1].module == adapter_find(a, "model.layers.1.mlp.experts", "down_proj"));
    for (size_t e = 0; e < 2; e++) {
        for (size_t o = 0; o < 8; o++) {
            for (size_t i = 0; i < 12; i++)
                EXPECT_NEAR(delta(to, e, o, i), delta(from, e, i, o), 1e-9);
        }
    }
    bound_free(bound);
    adapter_free(a);
    close_base(&b);
    refuse(MOE, config,
           ROW({EXPERTS(0) ".lora_A.weight", 12, 12, 0}, {EXPERTS(0) ".lora_B.weight", 8, 12, 0}),
           "the base has 2 experts, the adapter 3");
    refuse(MOE, config,
           ROW({EXPERTS(0) ".lora_A.weight", 8, 12, 0}, {EXPERTS(0) ".lora_B.weight", 8, 8, 0}),
           "model.layers.1.mlp.experts: target_parameters means down_proj");
}

TEST(single_experts_of_older_checkpoints_bind)
{
#define W(i, e, w) L(i, "block_sparse_moe.experts." #e "." w)
#define EXPERT(i, e)                                                                               \
    PAIR(W(i, e, "w1"), 8, 12), PAIR(W(i, e, "w3"), 8, 12), PAIR(W(i, e, "w2"), 12, 8)
    struct base b = {0};
    struct adapter *a = NULL;
    struct bound_adapter *bound =
        bind_made(MOE, "{\"target_modules\":[\"w1\",\"w2\",\"w3\"]}",
                  ROW(EXPERT(0, 0), EXPERT(0, 1), EXPERT(1, 0), EXPERT(1, 1)), 0, NULL, &b, &a);
    CHECK(bound);
    EXPECT_INT(bound->n_parts, 4);
    EXPECT_INT(json_array_size(bound->warnings), 0);
    EXPECT_INT(bound->kinds, ADAPTER_EXPERTS);
    bound_free(bound);
    adapter_free(a);
    close_base(&b);
}

TEST(every_failed_allocation_of_bind_is_an_error_and_no_leak)
{
    struct base b = {0};
    struct adapter *a = NULL;
    struct bound_adapter *bound =
        bind_made(TIED,
                  "{\"target_modules\":[\"embed_tokens\"],\"ensure_weight_tying\":true,"
                  "\"fan_in_fan_out\":true}",
                  ROW(EMBED_FACTORS, {EMBED ".base_layer.weight", 16, 8, 0}), 0, NULL, &b, &a);
    bound_free(bound);
    for (uint64_t n = 1; n < 1000; n++) {
        struct err err = {0};
        sys_fault(SYS_FAULT_FAIL, SYS_FAULT_MEM, n);
        int rc = bind_adapter(&bound, a, b.modules, &b.config, &err);
        bool hit = sys_fault_hit();
        sys_fault(SYS_FAULT_OFF, 0, 0);
        bound_free(bound);
        EXPECT_MSG(rc == (hit ? ERR_NO_MEMORY : 0), "allocation %llu: %d: %s",
                   (unsigned long long)n, rc, err.msg);
        if (!hit)
            break;
    }
    adapter_free(a);
    close_base(&b);
}
