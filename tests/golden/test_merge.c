/*
 * Merged models against other people's numbers: every tinytalk adapter merged into the base gives
 * the golden answers without any adapter; every kind of fixtures/kinds and fixtures/archs merged
 * into a float32 copy of its base gives the reference's logits within 1e-3, and into the bf16 base
 * itself within what rounding weights to bf16 does.
 */
#include <jansson.h>

#include "libcore/adapter/content_id.h"
#include "libcore/base/file.h"
#include "libcore/format/safetensors_writer.h"
#include "libcore/merge/check.h"
#include "libcore/merge/into_base.h"
#include "tests/golden/rig.h"
#include "tests/lib/test.h"

enum { MAX_PROMPT = 64, PATH_BYTES = 4352 };

static const struct merge_options merge_options = {.resize_embeddings = true};

/* Merges, checks the files by the other code, gives the folder's path. */
static int merge_one(const char *base, const char *adapter, const char *output, struct err *err)
{
    struct adapter *a = NULL;
    struct merge_plan *plan = NULL;
    json_t *recipe = NULL;
    struct recipe_origin origin = {.version = "test", .options = &merge_options};
    struct merge_run run = {.output = output, .origin = &origin, .force = true};
    int rc = peft_read(&a, adapter, NULL, err);
    if (rc == 0)
        rc = content_id_compute(a, 1, err);
    struct merge_adapter one = {a, 1};
    if (rc == 0)
        rc = merge_plan_open(&plan, base, &one, 1, &merge_options, err);
    if (rc == 0)
        rc = merge_into_base(plan, &run, &recipe, err);
    struct merge_check_result result;
    if (rc == 0)
        rc = merge_check(plan, output, &result, err);
    if (rc == 0 && result.n_values == 0)
        rc = err_set(err, ERR_FAIL, "nothing was checked");
    json_decref(recipe);
    merge_plan_free(plan);
    adapter_free(a);
    return rc;
}

static uint32_t copy_ids(json_t *array, int32_t *out, uint32_t max)
{
    uint32_t n = (uint32_t)json_array_size(array);
    for (uint32_t i = 0; i < n && i < max; i++)
        out[i] = (int32_t)json_integer_value(json_array_get(array, i));
    return n < max ? n : max;
}

// ---- tinytalk -----------------------------------------------------------------------------------

static void run_golden(const char *folder, json_t *items, const char *name)
{
    struct rig r;
    struct err err = {0};
    struct rig_request q[32];
    int32_t prompts[32][MAX_PROMPT], want[RIG_IDS];
    uint32_t n = 0, wrong = 0;
    CHECK_OK(rig_open(&r, folder, NULL, 512, 0, &err), err);
    for (; n < json_array_size(items) && n < 32; n++) {
        json_t *item = json_array_get(items, n);
        q[n] = (struct rig_request){.prompt = prompts[n], .slot = -1};
        q[n].n_prompt = copy_ids(json_object_get(item, "prompt_ids"), prompts[n], MAX_PROMPT);
        q[n].max_new = (uint32_t)json_array_size(json_object_get(item, "ids"));
    }
    CHECK_INT(n, 24);
    CHECK_OK(rig_run(&r, q, n, 512, NULL, &err), err);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t n_want = copy_ids(json_object_get(json_array_get(items, i), "ids"), want, RIG_IDS);
        wrong += n_want != q[i].n_ids || memcmp(want, q[i].ids, n_want * sizeof *want) != 0;
    }
    EXPECT_MSG(wrong == 0, "%s: %u of %u answers are not golden", name, wrong, n);
    rig_close(&r);
}

TEST(every_tinytalk_adapter_merged_gives_the_golden_answers)
{
    static const char *const names[] = {"upper-lora", "title-lora", "reverse-lora", "math-lora",
                                        "sort-lora",  "count-lora", "first-lora",   "last-lora"};
    char golden[PATH_BYTES], base[PATH_BYTES], adapter[PATH_BYTES], output[PATH_BYTES];
    snprintf(golden, sizeof golden, "%s/tests/golden/tinytalk.json", test_root());
    snprintf(base, sizeof base, "%s/base", test_tinytalk());
    json_t *root = json_load_file(golden, 0, NULL);
    CHECK(root);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct err err = {0};
        snprintf(adapter, sizeof adapter, "%s/adapters/%s", test_tinytalk(), names[i]);
        snprintf(output, sizeof output, "%s/merged", test_tmp());
        CHECK_OK(merge_one(base, adapter, output, &err), err);
        run_golden(output, json_object_get(root, names[i]), names[i]);
    }
    json_decref(root);
}

// ---- miniatures ---------------------------------------------------------------------------------

/* The base with every weight as float32. */
static int widen(const char *base, const char *output, struct err *err)
{
    struct checkpoint *c = NULL;
    struct safetensors_writer *w = NULL;
    char path[PATH_BYTES + 32], from[PATH_BYTES + 32];
    int rc = file_make_folders(output, err);
    snprintf(path, sizeof path, "%s/config.json", output);
    snprintf(from, sizeof from, "%s/config.json", base);
    if (rc == 0)
        rc = file_copy(from, path, err);
    snprintf(path, sizeof path, "%s/model.safetensors", output);
    if (rc == 0)
        rc = checkpoint_open(&c, base, err);
    if (rc == 0)
        rc = safetensors_writer_open(&w, path, err);
    for (size_t i = 0; rc == 0 && i < checkpoint_count(c); i++) {
        const struct checkpoint_tensor *t = checkpoint_at(c, i);
        rc =
            safetensors_writer_declare(w, t->name, DTYPE_F32, t->value.n_dims, t->value.shape, err);
    }
    if (rc == 0)
        rc = safetensors_writer_begin(w, err);
    for (size_t i = 0; rc == 0 && i < checkpoint_count(c); i++) {
        const struct checkpoint_tensor *t = checkpoint_at(c, i);
        size_t n = (size_t)tensor_n_values(&t->value);
        float *values = sys_malloc(n * sizeof *values);
        dtype_to_f32(t->value.dtype, t->value.data, values, n);
        rc = safetensors_writer_put(w, t->name, 0, values, n * sizeof *values, err);
        sys_free(values);
    }
    if (rc == 0)
        rc = safetensors_writer_finish(w, err);
    safetensors_writer_free(w);
    checkpoint_free(c);
    return rc;
}

/* The largest ||out - ref|| / ||ref|| of last-position logits over the reference's prompts. */
static double worst_logits(const char *folder, json_t *items, struct err *err)
{
    struct rig r;
    double worst = 0;
    int32_t prompt[MAX_PROMPT];
    if (rig_open(&r, folder, NULL, 256, 0, err) != 0)
        return 1e9;
    float *logits = sys_malloc(r.config.vocab_size * sizeof *logits);
    size_t i;
    json_t *item;
    json_array_foreach(items, i, item)
    {
        struct rig_request q = {.prompt = prompt, .slot = -1, .max_new = 1, .logits = logits};
        json_t *want = json_object_get(item, "logits");
        q.n_prompt = copy_ids(json_object_get(item, "prompt"), prompt, MAX_PROMPT);
        if (rig_run(&r, &q, 1, 256, NULL, err) != 0)
            return 1e9;
        double diff = 0, norm = 0;
        size_t n = json_array_size(want) < r.config.vocab_size ? json_array_size(want)
                                                               : r.config.vocab_size;
        for (size_t j = 0; j < n; j++) {
            double w = json_number_value(json_array_get(want, j));
            diff += (logits[j] - w) * (logits[j] - w);
            norm += w * w;
        }
        worst = fmax(worst, sqrt(diff / norm));
    }
    sys_free(logits);
    rig_close(&r);
    return worst;
}

static void run_base(const char *family, const char *name)
{
    char folder[PATH_BYTES - 128], wide[PATH_BYTES - 128], path[PATH_BYTES], output[PATH_BYTES];
    struct err err = {0};
    double worst_wide = 0, worst = 0;
    if (!test_fixtures()) {
        test_skip("no fixtures");
        return;
    }
    snprintf(folder, sizeof folder, "%s/%s/%s", test_fixtures(), family, name);
    snprintf(wide, sizeof wide, "%s/%s-%s-wide", test_tmp(), family, name);
    snprintf(path, sizeof path, "%s/reference.json", folder);
    snprintf(output, sizeof output, "%s/%s-%s", test_tmp(), family, name);
    json_t *root = json_load_file(path, 0, NULL), *items;
    CHECK(root);
    CHECK_OK(widen(folder, wide, &err), err);
    const char *key;
    size_t n = 0;
    json_object_foreach(root, key, items)
    {
        if (strcmp(key, "base") == 0 || !json_is_array(items)) // null: PEFT has no such kind
            continue;
        snprintf(path, sizeof path, "%s/adapters/%s", folder, key);
        int rc = merge_one(wide, path, output, &err);
        EXPECT_MSG(rc == 0, "%s/%s: %s", name, key, err.msg);
        double e = rc ? 0 : worst_logits(output, items, &err);
        EXPECT_MSG(e < 1e-3, "%s/%s into float32: logits off by %.2e %s", name, key, e, err.msg);
        worst_wide = fmax(worst_wide, e);
        rc = merge_one(folder, path, output, &err);
        EXPECT_MSG(rc == 0, "%s/%s: %s", name, key, err.msg);
        e = rc ? 0 : worst_logits(output, items, &err);
        EXPECT_MSG(e < 4e-2, "%s/%s into bf16: logits off by %.2e %s", name, key, e, err.msg);
        worst = fmax(worst, e);
        n++;
    }
    EXPECT(n > 1);
    printf("# %s: %zu adapters, worst logits %.1e into float32, %.1e into bf16\n", name, n,
           worst_wide, worst);
    json_decref(root);
}

TEST(kinds_llama_untied)
{
    run_base("kinds", "llama-untied");
}

TEST(kinds_llama_tied)
{
    run_base("kinds", "llama-tied");
}

TEST(kinds_qwen2_bias)
{
    run_base("kinds", "qwen2-bias");
}

TEST(archs_with_tied_embeddings)
{
    run_base("archs", "llama31-tied");
    run_base("archs", "gemma3");
}

TEST(archs_with_fused_modules)
{
    run_base("archs", "phi3");
}

TEST(archs_with_experts)
{
    run_base("archs", "mixtral");
    run_base("archs", "qwen3moe");
}

TEST(archs_of_other_families)
{
    run_base("archs", "mistral");
    run_base("archs", "qwen2");
    run_base("archs", "qwen3");
}
