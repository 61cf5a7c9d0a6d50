#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "libcore/adapter/content_id.h"
#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/peft.h"
#include "tests/lib/test.h"
#include "tests/unit/libcore/format/peft_make.h"

static struct adapter *read_at(const char *fmt, const char *a, const char *b)
{
    static char path[9000];
    struct adapter *out;
    struct err err = {0};
    snprintf(path, sizeof path, fmt, a, b);
    if (peft_read(&out, path, NULL, &err) != 0)
        test_fail(__FILE__, __LINE__, "%s: %s", path, err.msg);
    return out;
}

/* Reads every adapter of folder/adapters. */
static size_t read_all(const char *folder)
{
    char adapters[4400];
    char **names;
    size_t n;
    struct err err = {0};
    snprintf(adapters, sizeof adapters, "%s/adapters", folder);
    if (file_list(adapters, &names, &n, &err) != 0) {
        test_fail(__FILE__, __LINE__, "%s", err.msg);
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        struct adapter *a = read_at("%s/%s", adapters, names[i]);
        if (a) {
            EXPECT_STR(a->name, names[i]);
            EXPECT(a->n_modules > 0 && a->n_parameters > 0);
        }
        adapter_free(a);
    }
    file_free_names(names, n);
    return n;
}

TEST(every_fixture_is_read)
{
    char path[4300];
    const char *fixtures = test_fixtures();
    if (!fixtures) {
        test_skip("no fixtures beside the checkout");
        return;
    }
    static const char *const groups[] = {"kinds", "archs"};
    size_t total = 0;
    for (size_t g = 0; g < 2; g++) {
        char **names;
        size_t n;
        struct err err = {0};
        snprintf(path, sizeof path, "%s/%s", fixtures, groups[g]);
        CHECK_OK(file_list(path, &names, &n, &err), err);
        for (size_t i = 0; i < n; i++) {
            snprintf(path, sizeof path, "%s/%s/%s", fixtures, groups[g], names[i]);
            if (file_is_folder(path))
                total += read_all(path);
        }
        file_free_names(names, n);
    }
    EXPECT_INT(total, 45 + 22);
}

TEST(refused_fixtures_say_the_field)
{
    const char *fixtures = test_fixtures();
    if (!fixtures) {
        test_skip("no fixtures beside the checkout");
        return;
    }
    static const char *const bases[] = {"llama-tied", "llama-untied", "qwen2-bias"};
    for (size_t i = 0; i < 3; i++) {
        char path[4300];
        struct adapter *a;
        struct err err = {0};
        snprintf(path, sizeof path, "%s/kinds/%s/refuse/pissa-raw", fixtures, bases[i]);
        CHECK_CODE(peft_read(&a, path, NULL, &err), ERR_REFUSED, err);
        EXPECT(a == NULL && strstr(err.msg, "init_lora_weights: pissa"));
    }
}

/* ---- what is read, exactly ---- */

static const char *fixture(const char *relative)
{
    static char path[4400];
    const char *fixtures = test_fixtures();
    if (!fixtures) {
        test_skip("no fixtures beside the checkout");
        return NULL;
    }
    snprintf(path, sizeof path, "%s/%s", fixtures, relative);
    return path;
}

static struct adapter *open_fixture(const char *relative)
{
    struct adapter *a = NULL;
    struct err err = {0};
    const char *path = fixture(relative);
    if (path && peft_read(&a, path, NULL, &err) != 0)
        test_fail(__FILE__, __LINE__, "%s", err.msg);
    return a;
}

#define LAYER(i, rest) "model.layers." #i "." rest

static void expect_scale(const struct adapter *a, const char *module, uint32_t rank, double scale)
{
    const struct adapter_module *m = adapter_find(a, module, NULL);
    EXPECT_MSG(m && m->rank == rank && m->scale == scale, "%s: rank %u scale %.17g", module,
               m ? m->rank : 0, m ? m->scale : 0);
}

TEST(patterns_take_the_first_key_that_matches)
{
    struct adapter *a = open_fixture("kinds/llama-untied/adapters/patterns");
    if (!a)
        return;
    expect_scale(a, LAYER(0, "self_attn.q_proj"), 8, 8.0 / 8);
    expect_scale(a, LAYER(1, "self_attn.q_proj"), 4, 8.0 / 4);
    expect_scale(a, LAYER(0, "mlp.up_proj"), 2, 32.0 / 2);
    expect_scale(a, LAYER(1, "self_attn.v_proj"), 6, 5.0 / 6);
    expect_scale(a, LAYER(2, "self_attn.v_proj"), 6, 5.0 / 6);
    expect_scale(a, LAYER(3, "self_attn.v_proj"), 4, 8.0 / 4);
    EXPECT_INT(a->max_rank, 8);
    EXPECT_INT(a->min_rank, 2);
    adapter_free(a);
    a = open_fixture("kinds/llama-untied/adapters/patterns-rslora");
    expect_scale(a, LAYER(0, "self_attn.q_proj"), 4, 8.0 / 2);
    expect_scale(a, LAYER(0, "self_attn.v_proj"), 16, 4.0 / 4);
    adapter_free(a);
}

TEST(kinds_are_told)
{
    static const struct {
        const char *path;
        unsigned kinds;
    } rows[] = {
        {"kinds/llama-untied/adapters/r1", ADAPTER_LORA},
        {"kinds/llama-untied/adapters/dora-rslora", ADAPTER_LORA | ADAPTER_DORA},
        {"kinds/llama-untied/adapters/embed", ADAPTER_LORA | ADAPTER_EMBED | ADAPTER_FULL},
        {"kinds/llama-untied/adapters/head", ADAPTER_LORA | ADAPTER_HEAD | ADAPTER_FULL},
        {"kinds/llama-untied/adapters/saved", ADAPTER_LORA | ADAPTER_FULL},
        {"kinds/llama-untied/adapters/saved-norm", ADAPTER_LORA | ADAPTER_FULL},
        {"kinds/llama-untied/adapters/tokens", ADAPTER_LORA | ADAPTER_TOKENS},
        {"kinds/qwen2-bias/adapters/lora-bias", ADAPTER_LORA | ADAPTER_LORA_BIAS},
        {"kinds/qwen2-bias/adapters/bias-lora-only", ADAPTER_LORA | ADAPTER_BIAS},
        {"kinds/qwen2-bias/adapters/bias-all", ADAPTER_LORA | ADAPTER_BIAS},
        {"archs/mixtral/adapters/plain", ADAPTER_LORA | ADAPTER_EXPERTS},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct adapter *a = open_fixture(rows[i].path);
        if (!a)
            return;
        EXPECT_MSG(a->kinds == rows[i].kinds, "%s: kinds %#x, want %#x", rows[i].path, a->kinds,
                   rows[i].kinds);
        adapter_free(a);
    }
}

TEST(saved_base_layers_are_told_from_modules_to_save)
{
    struct adapter *a = open_fixture("kinds/llama-tied/adapters/embed");
    if (!a)
        return;
    const struct adapter_module *m = adapter_find(a, "model.embed_tokens", NULL);
    CHECK(m && m->embedding && m->rank == 4 && tensor_present(&m->full));
    EXPECT(m->full_is_base);
    EXPECT_INT(m->a.shape[1], 320);
    adapter_free(a);
    a = open_fixture("kinds/llama-tied/adapters/saved");
    m = adapter_find(a, "lm_head", NULL);
    CHECK(m && tensor_present(&m->full));
    EXPECT(!m->full_is_base && m->rank == 0);
    adapter_free(a);
}

TEST(fused_experts_are_told_apart_by_shape)
{
    struct adapter *a = open_fixture("archs/mixtral/adapters/plain");
    if (!a)
        return;
    const struct adapter_module *gate_up = adapter_find(a, LAYER(0, "mlp.experts"), "gate_up_proj");
    const struct adapter_module *down = adapter_find(a, LAYER(0, "mlp.experts"), "down_proj");
    CHECK(gate_up && down);
    EXPECT_INT(gate_up->n_experts, 4);
    EXPECT_INT(gate_up->rank, 16);
    EXPECT_NEAR(gate_up->scale, 2.0, 0);
    EXPECT_INT(gate_up->b.shape[0], 320);
    EXPECT_INT(down->rank, 8);
    EXPECT_INT(down->a.shape[1], 160);
    EXPECT(adapter_find(a, LAYER(0, "mlp.gate"), NULL) != NULL);
    adapter_free(a);
}

TEST(single_experts_are_fused_exactly)
{
#define EX(e, w) "base_model.model.model.layers.0.block_sparse_moe.experts." #e "." w
#define PAIR(e, w, in, out)                                                                        \
    {EX(e, w) ".lora_A.weight", 4, in, 0},                                                         \
    {                                                                                              \
        EX(e, w) ".lora_B.weight", out, 4, 0                                                       \
    }
    static const struct make_tensor tensors[] = {
        PAIR(0, "w1", 8, 6), PAIR(0, "w3", 8, 6), PAIR(0, "w2", 6, 8), PAIR(1, "w1", 8, 6),
        PAIR(1, "w3", 8, 6), PAIR(1, "w2", 6, 8), {NULL, 0, 0, 0}};
    struct adapter *a;
    struct err err = {0};
    const char *path = make_adapter("{\"target_modules\":[\"w1\",\"w2\",\"w3\"]}", tensors);
    CHECK_OK(peft_read(&a, path, NULL, &err), err);
    CHECK_INT(a->n_modules, 2);
    const char *block = "model.layers.0.block_sparse_moe.experts";
    const struct adapter_module *m = adapter_find(a, block, "gate_up_proj");
    CHECK(m && m->n_experts == 2 && m->rank == 8 && m->scale == 2.0);
    CHECK(m->a.shape[0] == 16 && m->a.shape[1] == 8 && m->b.shape[0] == 12 && m->b.shape[1] == 16);
    const float *fa = m->a.data, *fb = m->b.data;
    for (size_t t = 0; t < a->n_tensors; t++) {
        const char *name = a->tensors[t].name;
        const float *f = a->tensors[t].value.data;
        size_t e = strstr(name, "experts.1") ? 1 : 0, up = strstr(name, ".w3.") ? 1 : 0;
        if (strstr(name, ".w2."))
            continue;
        if (strstr(name, "lora_A")) { // A: expert slowest, gate above up
            EXPECT(memcmp(fa + (e * 8 + up * 4) * 8, f, 4 * 8 * sizeof *f) == 0);
            continue;
        }
        for (size_t o = 0; o < 6; o++) { // B: block-diagonal, expert fastest
            for (size_t k = 0; k < 4; k++) {
                EXPECT(fb[(up * 6 + o) * 16 + (up * 4 + k) * 2 + e] == f[o * 4 + k]);
                EXPECT(fb[(up * 6 + o) * 16 + ((1 - up) * 4 + k) * 2 + e] == 0);
            }
        }
    }
    adapter_free(a);
}

TEST(single_experts_must_be_complete_and_alike)
{
    static const struct make_tensor missing[] = {
        PAIR(0, "w1", 8, 6), PAIR(0, "w2", 6, 8), PAIR(1, "w1", 8, 6), {NULL, 0, 0, 0}};
    static const struct make_tensor gap[] = {
        PAIR(0, "w1", 8, 6), PAIR(2, "w1", 8, 6), {NULL, 0, 0, 0}};
    static const struct make_tensor far[] = {
        PAIR(0, "w1", 8, 6), PAIR(99999, "w1", 8, 6), {NULL, 0, 0, 0}};
    static const struct make_tensor first[] = {
        PAIR(0, "w2", 6, 8), PAIR(1, "w1", 8, 6), {NULL, 0, 0, 0}};
    static const struct make_tensor odd[] = {
        PAIR(0, "w1", 8, 6), PAIR(1, "w1", 8, 5), {NULL, 0, 0, 0}};
    static const struct {
        const struct make_tensor *tensors;
        const char *word;
    } rows[] = {{missing, "no such tensors"},
                {gap, "expert 1 has no such"},
                {far, "experts are missing"},
                {first, "expert 0 lacks"},
                {odd, "differs from expert"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct adapter *a;
        struct err err = {0};
        const char *path = make_adapter("{\"target_modules\":[\"w1\"]}", rows[i].tensors);
        CHECK_CODE(peft_read(&a, path, NULL, &err), ERR_REFUSED, err);
        EXPECT_MSG(strstr(err.msg, rows[i].word), "%s", err.msg);
    }
}

TEST(token_rows_are_sorted_by_id)
{
    static const struct make_tensor tensors[] = {
        {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", 3, 4, 0},
        {NULL, 0, 0, 0}};
    struct adapter *a;
    struct err err = {0};
    CHECK_OK(
        peft_read(&a, make_adapter("{\"trainable_token_indices\":[9,2,5]}", tensors), NULL, &err),
        err);
    const struct adapter_module *m = adapter_find(a, "model.embed_tokens", NULL);
    CHECK(m && m->n_rows == 3);
    EXPECT(m->row_ids[0] == 2 && m->row_ids[1] == 5 && m->row_ids[2] == 9);
    const float *file = a->tensors[0].value.data;
    EXPECT(memcmp(tensor_row(&m->rows, 0), file + 4, 4 * sizeof *file) == 0);
    EXPECT(memcmp(tensor_row(&m->rows, 2), file, 4 * sizeof *file) == 0);
    adapter_free(a);
}

TEST(leaked_prefixes_and_adapter_names_are_taken_off)
{
    static const struct {
        const char *a, *b;
        const char *module;
        size_t n_warnings;
    } rows[] = {
        {Q ".lora_A.weight", Q ".lora_B.weight", LAYER(0, "self_attn.q_proj"), 0},
        {Q ".lora_A.default.weight", Q ".lora_B.default.weight", LAYER(0, "self_attn.q_proj"), 1},
        {"base_model.model._orig_mod.model.layers.0.q_proj.lora_A.weight",
         "base_model.model._orig_mod.model.layers.0.q_proj.lora_B.weight", LAYER(0, "q_proj"), 1},
        {"base_model.model.model.layers.0._fsdp_wrapped_module.q_proj.lora_A.weight",
         "base_model.model.model.layers.0._fsdp_wrapped_module.q_proj.lora_B.weight",
         LAYER(0, "q_proj"), 1},
        {"base_model.model.model.language_model.layers.0.q_proj.lora_A.weight",
         "base_model.model.model.language_model.layers.0.q_proj.lora_B.weight",
         "model.language_model.layers.0.q_proj", 0},
        {"model.layers.0.q_proj.lora_A.weight", "model.layers.0.q_proj.lora_B.weight",
         LAYER(0, "q_proj"), 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct make_tensor tensors[] = {
            {rows[i].a, 4, 8, 0}, {rows[i].b, 6, 4, 0}, {NULL, 0, 0, 0}};
        struct adapter *a;
        struct err err = {0};
        CHECK_OK(peft_read(&a, make_adapter(NULL, tensors), NULL, &err), err);
        EXPECT_MSG(adapter_find(a, rows[i].module, NULL), "%s", a->modules[0].name);
        EXPECT_MSG(json_array_size(a->warnings) == rows[i].n_warnings, "%s: %zu warnings",
                   rows[i].a, json_array_size(a->warnings));
        adapter_free(a);
    }
}

TEST(overlapping_patterns_warn)
{
    struct adapter *a;
    struct err err = {0};
    CHECK_OK(peft_read(&a, make_adapter("{\"alpha_pattern\":{\"q_proj\":2,\".*_proj\":4}}", NULL),
                       NULL, &err),
             err);
    expect_scale(a, LAYER(0, "self_attn.q_proj"), 4, 0.5);
    expect_scale(a, LAYER(0, "self_attn.v_proj"), 4, 1.0);
    CHECK_INT(json_array_size(a->warnings), 1);
    EXPECT(strstr(json_string_value(json_array_get(a->warnings, 0)), "more than one key matches"));
    adapter_free(a);
}

TEST(adapter_is_found_as_file_and_in_a_named_sub_folder)
{
    char path[4500], outer[4300];
    struct adapter *a;
    struct err err = {0};
    const char *folder = make_adapter(NULL, NULL);
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", folder);
    EXPECT(peft_looks_like(path) && peft_looks_like(folder));
    CHECK_OK(peft_read(&a, path, NULL, &err), err);
    adapter_free(a);
    snprintf(outer, sizeof outer, "%s/outer", test_tmp());
    snprintf(path, sizeof path, "%s/named", outer);
    CHECK_OK(file_make_folders(path, &err), err);
    make_config(path, NULL);
    make_weights(path, make_plain);
    EXPECT(!peft_looks_like(outer));
    CHECK_OK(peft_read(&a, outer, NULL, &err), err);
    adapter_free(a);
}

static void expect_name(const char *path, const char *want)
{
    char *name = peft_name_of_path(path);
    EXPECT_STR(name, want);
    sys_free(name);
}

TEST(copied_adapter_outlives_its_file)
{
    char path[4500];
    struct adapter *a;
    struct err err = {0};
    const struct peft_options opt = {.copy = true};
    const char *folder = make_adapter(NULL, NULL);
    CHECK_OK(peft_read(&a, folder, &opt, &err), err);
    CHECK_OK(content_id_compute(a, 1, &err), err);
    char id[65];
    strcpy(id, a->content_id);
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", folder);
    CHECK(truncate(path, 0) == 0); // with the file mapped, the next line would be the last
    CHECK_OK(content_id_compute(a, 1, &err), err);
    EXPECT_STR(a->content_id, id);
    adapter_free(a);
}

TEST(names_come_from_what_says_something)
{
    expect_name("/x/my-adapter", "my-adapter");
    expect_name("/x/my-adapter/", "my-adapter");
    expect_name("/x/my-adapter/checkpoint-500", "my-adapter");
    expect_name("/x/my-adapter/checkpoint-500/adapter_model.safetensors", "my-adapter");
    expect_name("/x/sql.safetensors", "sql");
    expect_name("/hub/models--org--name/snapshots/0123456789abcdef0123", "name");
    expect_name("/x/with blank", "with-blank");
    struct adapter *a;
    struct err err = {0};
    CHECK_OK(peft_read(&a, make_adapter("{\"name\":\"given\"}", NULL), NULL, &err), err);
    EXPECT_STR(a->name, "given");
    adapter_free(a);
}

TEST(files_of_an_adapter_are_listed)
{
    char path[4500];
    struct peft_files f;
    struct err err = {0};
    const char *folder = make_adapter(NULL, NULL);
    static const char *const more[] = {"README.md", "chat_template.jinja", "optimizer.pt",
                                       "tokenizer.json"};
    for (size_t i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, more[i]);
        CHECK_OK(file_write_atomic(path, "x", 1, &err), err);
    }
    CHECK_OK(peft_files_list(&f, folder, &err), err);
    CHECK_INT(f.n, 5);
    EXPECT_INT(f.items[0].role, PEFT_FILE_CONFIG);
    EXPECT_INT(f.items[1].role, PEFT_FILE_WEIGHTS);
    EXPECT_STR(f.items[2].name, "README.md");
    EXPECT_INT(f.items[3].role, PEFT_FILE_TEMPLATE);
    EXPECT_INT(f.items[4].role, PEFT_FILE_TOKENIZER);
    for (size_t i = 0; i < f.n; i++)
        EXPECT(file_exists(f.items[i].path));
    peft_files_release(&f);
}

/* ---- content ids ---- */

static void id_of(const char *path, char *id)
{
    struct adapter *a;
    struct err err = {0};
    CHECK_OK(peft_read(&a, path, NULL, &err), err);
    CHECK_OK(content_id_compute(a, 2, &err), err);
    strcpy(id, a->content_id);
    adapter_free(a);
}

TEST(content_id_does_not_see_how_a_thing_is_written)
{
    char first[65], id[65];
    static const char *const same[] = {
        "{\"target_modules\":[\"v_proj\",\"q_proj\"]}",
        "{\"use_rslora\":false,\"use_dora\":false,\"lora_bias\":false,\"bias\":\"none\"}",
        "{\"rank_pattern\":{},\"alpha_pattern\":{}}",
        "{\"lora_alpha\":8.0,\"lora_dropout\":0.1,\"base_model_name_or_path\":\"x\"}",
        "{\"alpha_pattern\":{\"q_proj\":8,\"v_proj\":8},\"lora_alpha\":3}",
        "{\"use_rslora\":true,\"lora_alpha\":4}", // 4 / sqrt(4) = 8 / 4
    };
    static const char *const other[] = {"{\"lora_alpha\":16}", "{\"alpha_pattern\":{\"q_proj\":4}}",
                                        "{\"use_rslora\":true}", "{\"fan_in_fan_out\":true}",
                                        "{\"ensure_weight_tying\":true}"};
    id_of(make_adapter(NULL, NULL), first);
    EXPECT_INT(strlen(first), 64);
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        id_of(make_adapter(same[i], NULL), id);
        EXPECT_MSG(strcmp(id, first) == 0, "%s changes the id", same[i]);
    }
    for (size_t i = 0; i < sizeof other / sizeof *other; i++) {
        id_of(make_adapter(other[i], NULL), id);
        EXPECT_MSG(strcmp(id, first) != 0, "%s does not change the id", other[i]);
    }
}

TEST(content_id_sees_every_value_name_and_type)
{
    char first[65], id[65];
    static const struct make_tensor renamed[] = {
        {Q ".lora_A.weight", 4, 8, 0},
        {Q ".lora_B.weight", 6, 4, 0},
        {"base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight", 4, 8, 0},
        {"base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight", 2, 4, 0},
        {NULL, 0, 0, 0}};
    static const struct make_tensor retyped[] = {{Q ".lora_A.weight", 4, 8, DTYPE_BF16},
                                                 {Q ".lora_B.weight", 6, 4, 0},
                                                 {V ".lora_A.weight", 4, 8, 0},
                                                 {V ".lora_B.weight", 2, 4, 0},
                                                 {NULL, 0, 0, 0}};
    id_of(make_adapter(NULL, NULL), first);
    id_of(make_adapter(NULL, renamed), id);
    EXPECT(strcmp(first, id) != 0);
    id_of(make_adapter(NULL, retyped), id);
    EXPECT(strcmp(first, id) != 0);
    char path[4500];
    char *data;
    size_t n;
    struct err err = {0};
    const char *folder = make_adapter(NULL, NULL);
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", folder);
    CHECK_OK(file_read(path, 1 << 20, &data, &n, &err), err);
    data[n - 4] ^= 1; // the lowest bit of the last value
    CHECK_OK(file_write_atomic(path, data, n, &err), err);
    sys_free(data);
    id_of(folder, id);
    EXPECT(strcmp(first, id) != 0);
}

/* ---- writing ---- */

static void expect_same_file(const char *a_folder, const char *b_folder, const char *name)
{
    char a_path[4600], b_path[4600];
    char *a, *b;
    size_t na, nb;
    struct err err = {0};
    snprintf(a_path, sizeof a_path, "%s/%s", a_folder, name);
    snprintf(b_path, sizeof b_path, "%s/%s", b_folder, name);
    CHECK_OK(file_read(a_path, 1 << 28, &a, &na, &err), err);
    CHECK_OK(file_read(b_path, 1 << 28, &b, &nb, &err), err);
    EXPECT_MSG(na == nb && memcmp(a, b, na) == 0, "%s and %s differ", a_path, b_path);
    sys_free(a);
    sys_free(b);
}

TEST(adapter_is_written_back_byte_for_byte)
{
    static const char *const names[] = {"first-lora", "sort-lora", "count-lora", "last-lora"};
    for (size_t i = 0; i < 4; i++) {
        char folder[4300], out[4300];
        struct adapter *a;
        struct err err = {0};
        snprintf(folder, sizeof folder, "%s/examples/tinytalk/adapters/%s", test_root(), names[i]);
        snprintf(out, sizeof out, "%s/out-%s", test_tmp(), names[i]);
        CHECK_OK(file_make_folders(out, &err), err);
        CHECK_OK(peft_read(&a, folder, NULL, &err), err);
        CHECK_OK(peft_write(a, out, &err), err);
        adapter_free(a);
        expect_same_file(folder, out, "adapter_model.safetensors");
        expect_same_file(folder, out, "adapter_config.json");
    }
}

/* The same modules under names that the writer chose itself. */
TEST(adapter_made_here_comes_back_as_it_was)
{
    static const char *const paths[] = {
        "kinds/qwen2-bias/adapters/patterns",    "kinds/qwen2-bias/adapters/patterns-rslora",
        "kinds/qwen2-bias/adapters/embed",       "kinds/qwen2-bias/adapters/saved",
        "kinds/qwen2-bias/adapters/saved-norm",  "kinds/qwen2-bias/adapters/tokens",
        "kinds/qwen2-bias/adapters/lora-bias",   "kinds/qwen2-bias/adapters/bias-all",
        "kinds/qwen2-bias/adapters/dora-rslora", "archs/mixtral/adapters/rslora"};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        struct adapter *a = open_fixture(paths[i]), *b;
        struct err err = {0};
        char out[4300];
        if (!a)
            return;
        snprintf(out, sizeof out, "%s/made%zu", test_tmp(), i);
        CHECK_OK(file_make_folders(out, &err), err);
        a->format = "memory"; // not a file's own: everything is made anew
        CHECK_OK(peft_write(a, out, &err), err);
        CHECK_OK(peft_read(&b, out, NULL, &err), err);
        EXPECT_MSG(a->n_modules == b->n_modules && a->kinds == b->kinds, "%s", paths[i]);
        for (size_t k = 0; k < a->n_modules && k < b->n_modules; k++) {
            const struct adapter_module *x = &a->modules[k], *y = &b->modules[k];
            EXPECT_STR(y->name, x->name);
            EXPECT_MSG(x->rank == y->rank && x->scale == y->scale &&
                           x->full_is_base == y->full_is_base && x->n_rows == y->n_rows,
                       "%s: %s: scale %.17g, was %.17g", paths[i], x->name, y->scale, x->scale);
            EXPECT(tensor_n_bytes(&x->b) == tensor_n_bytes(&y->b) &&
                   (!x->b.data || memcmp(x->b.data, y->b.data, tensor_n_bytes(&x->b)) == 0));
        }
        adapter_free(a);
        adapter_free(b);
    }
}

/* ---- failures of the host ---- */

static void sweep(const char *path)
{
    for (uint64_t n = 1; n < 100000; n++) {
        struct adapter *a;
        struct err err = {0};
        sys_fault(SYS_FAULT_FAIL, SYS_FAULT_MEM, n);
        int rc = peft_read(&a, path, NULL, &err);
        if (rc == 0)
            rc = content_id_compute(a, 1, &err);
        bool hit = sys_fault_hit();
        sys_fault(SYS_FAULT_OFF, 0, 0);
        adapter_free(a);
        if (!hit) {
            EXPECT_MSG(rc == 0, "%s: %s", path, err.msg);
            return;
        }
        EXPECT_MSG(rc == ERR_NO_MEMORY, "%s: allocation %llu: %d: %s", path, (unsigned long long)n,
                   rc, err.msg);
    }
    test_fail(__FILE__, __LINE__, "%s: no end", path);
}

TEST(every_failed_allocation_is_an_error_and_no_leak)
{
    // Our own calls and PCRE2's (through its hook). Not jansson's: 2.14 writes out of bounds when
    // an allocation fails inside json_loadb.
    sweep(make_adapter("{\"rank_pattern\":{\"q_proj\":4},\"exclude_modules\":\".*x\","
                       "\"modules_to_save\":[\"z\"],\"layers_pattern\":[\"layers\"]}",
                       NULL));
    static const struct make_tensor tokens[] = {
        {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", 3, 4, 0},
        {NULL, 0, 0, 0}};
    sweep(make_adapter("{\"trainable_token_indices\":[9,2,5]}", tokens));
    static const struct make_tensor experts[] = {
        PAIR(0, "w1", 8, 6), PAIR(0, "w3", 8, 6), {NULL, 0, 0, 0}};
    sweep(make_adapter("{\"target_modules\":[\"w1\",\"w3\"]}", experts));
}

/* Every failing call while an adapter is written leaves either nothing under the final names or the
 * whole thing, and never a temporary file. */
TEST(failed_writes_leave_no_half_file)
{
    struct adapter *a;
    struct err err = {0};
    CHECK_OK(peft_read(&a, make_adapter(NULL, NULL), NULL, &err), err);
    for (uint64_t n = 1; n < 1000; n++) {
        char out[4300];
        char **names;
        size_t n_names;
        snprintf(out, sizeof out, "%s/fault%u", test_tmp(), (unsigned)n);
        CHECK_OK(file_make_folders(out, &err), err);
        sys_fault(SYS_FAULT_FAIL, SYS_FAULT_ALL, n);
        int rc = peft_write(a, out, &err);
        bool hit = sys_fault_hit();
        sys_fault(SYS_FAULT_OFF, 0, 0);
        CHECK_OK(file_list(out, &names, &n_names, &err), err);
        for (size_t i = 0; i < n_names; i++)
            EXPECT_MSG(strcmp(names[i], "adapter_config.json") == 0 ||
                           strcmp(names[i], "adapter_model.safetensors") == 0,
                       "call %u leaves %s", (unsigned)n, names[i]);
        if (n_names == 2) { // then it is whole
            struct adapter *b;
            CHECK_OK(peft_read(&b, out, NULL, &err), err);
            adapter_free(b);
        }
        file_free_names(names, n_names);
        if (!hit) {
            EXPECT(rc == 0 && n_names == 2);
            break;
        }
        EXPECT_MSG(rc != 0 || n_names == 2, "call %u: no error, %zu files", (unsigned)n, n_names);
    }
    adapter_free(a);
}
