/*
 * Merging into bases in 8-bit floats: every form that is read, against results made outside
 * (make_float8.py: numpy, ml_dtypes and exact fractions), scales and all; what is refused, by name.
 */
#include <jansson.h>

#include "libcore/adapter/content_id.h"
#include "libcore/base/digest.h"
#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/peft.h"
#include "libcore/merge/check.h"
#include "libcore/merge/into_base.h"
#include "tests/lib/test.h"

enum { PATH_BYTES = 4352 };

static const char *const cases[] = {"deepseek", "ue8m0", "static", "compressed",
                                    "fbgemm",   "e5m2",  "bare"};

static const char *golden(const char *label, const char *what)
{
    static char path[4][PATH_BYTES];
    static int next;
    char *p = path[next++ % 4];
    snprintf(p, PATH_BYTES, "%s/tests/golden/float8/%s/%s", test_root(), label, what);
    return p;
}

struct result {
    json_t *recipe;
    struct merge_check_result check;
};

static int merge(const char *base, const char *adapter, const char *output, enum merge_float8 mode,
                 unsigned n_threads, struct result *out, struct err *err)
{
    const struct merge_options options = {.float8 = mode};
    struct adapter *a = NULL;
    struct merge_plan *plan = NULL;
    struct recipe_origin origin = {.version = "test", .options = &options};
    struct merge_run run = {
        .output = output, .origin = &origin, .force = true, .n_threads = n_threads};
    *out = (struct result){0};
    int rc = peft_read(&a, adapter, NULL, err);
    if (rc == 0)
        rc = content_id_compute(a, 1, err);
    struct merge_adapter one = {a, 1};
    if (rc == 0)
        rc = merge_plan_open(&plan, base, &one, 1, &options, err);
    if (rc == 0)
        rc = merge_into_base(plan, &run, &out->recipe, err);
    if (rc == 0)
        rc = merge_check(plan, output, &out->check, err);
    merge_plan_free(plan);
    adapter_free(a);
    return rc;
}

static void compare(const char *folder, json_t *want, const char *what)
{
    struct checkpoint *c = NULL;
    struct err err = {0};
    const char *name;
    json_t *row;
    CHECK_OK(checkpoint_open(&c, folder, &err), err);
    EXPECT_INT(checkpoint_count(c), json_object_size(want));
    json_object_foreach(want, name, row)
    {
        const struct checkpoint_tensor *t = checkpoint_find(c, name);
        struct digest d;
        char hex[DIGEST_HEX_CHARS + 1];
        EXPECT_MSG(t != NULL, "%s: %s is not there", what, name);
        if (!t || digest_buffer(t->value.data, tensor_n_bytes(&t->value), &d, &err) != 0)
            continue;
        digest_hex(&d, hex);
        EXPECT_STR(dtype_name(t->value.dtype), json_string_value(json_array_get(row, 0)));
        EXPECT_MSG(strcmp(hex, json_string_value(json_array_get(row, 1))) == 0,
                   "%s: %s has other bytes than outside", what, name);
    }
    checkpoint_free(c);
}

TEST(every_form_gives_the_bytes_made_outside)
{
    char path[PATH_BYTES], output[PATH_BYTES], what[64];
    snprintf(path, sizeof path, "%s/tests/golden/float8/expected.json", test_root());
    snprintf(output, sizeof output, "%s/float8", test_tmp());
    json_t *expected = json_load_file(path, 0, NULL);
    CHECK(expected);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *want = json_object_get(expected, cases[i]);
        for (int mode = 0; mode < 2; mode++) {
            for (unsigned n_threads = 1; n_threads < 6; n_threads += 2) {
                struct err err = {0};
                struct result r;
                CHECK_OK(merge(golden(cases[i], "base"), golden(cases[i], "adapter"), output,
                               mode ? MERGE_FLOAT8_BF16 : MERGE_FLOAT8_KEEP, n_threads, &r, &err),
                         err);
                snprintf(what, sizeof what, "%s, %s, %u threads", cases[i], mode ? "bf16" : "keep",
                         n_threads);
                compare(output, json_object_get(want, mode ? "bf16" : "keep"), what);
                EXPECT(r.check.n_values > 0);
                json_decref(r.recipe);
            }
        }
    }
    json_decref(expected);
}

TEST(the_configuration_says_what_is_in_the_files)
{
    char output[PATH_BYTES], path[PATH_BYTES + 32];
    struct err err = {0};
    struct result r;
    snprintf(output, sizeof output, "%s/float8", test_tmp());
    snprintf(path, sizeof path, "%s/config.json", output);
    for (int mode = 0; mode < 2; mode++) {
        CHECK_OK(merge(golden("deepseek", "base"), golden("deepseek", "adapter"), output,
                       mode ? MERGE_FLOAT8_BF16 : MERGE_FLOAT8_KEEP, 0, &r, &err),
                 err);
        json_t *config = json_load_file(path, 0, NULL);
        EXPECT((json_object_get(config, "quantization_config") != NULL) == !mode);
        EXPECT_STR(
            json_string_value(json_object_get(json_object_get(r.recipe, "options"), "float8")),
            mode ? "bf16" : "keep");
        json_decref(config);
        json_decref(r.recipe);
    }
    struct model_config c;
    CHECK_OK(config_read(&c, output, &err), err); // what serve reads
    config_release(&c);
}

TEST(dora_on_float8_is_the_nearest_value_too)
{
    char output[PATH_BYTES];
    snprintf(output, sizeof output, "%s/float8", test_tmp());
    for (int mode = 0; mode < 2; mode++) {
        struct err err = {0};
        struct result r;
        CHECK_OK(merge(golden("deepseek", "base"), golden("deepseek", "dora"), output,
                       mode ? MERGE_FLOAT8_BF16 : MERGE_FLOAT8_KEEP, 2, &r, &err),
                 err);
        EXPECT(r.check.n_values > 0);
        json_decref(r.recipe);
    }
}

// ---- refusals -----------------------------------------------------------------------------------

/* The plan of a base whose config.json is `text`. */
static void refused(const char *label, const char *text, const char *why)
{
    char folder[PATH_BYTES], output[PATH_BYTES], to[PATH_BYTES + 32];
    struct err err = {0};
    struct result r;
    json_t *config = json_load_file(golden(label, "base/config.json"), 0, NULL);
    json_t *q = json_loads(text, 0, NULL);
    CHECK(config && q);
    json_object_set_new(config, "quantization_config", q);
    snprintf(folder, sizeof folder, "%s/refused", test_tmp());
    snprintf(output, sizeof output, "%s/float8", test_tmp());
    CHECK_OK(file_make_folders(folder, &err), err);
    snprintf(to, sizeof to, "%s/model.safetensors", folder);
    if (file_exists(to))
        CHECK_OK(file_remove_tree(to, &err), err);
    CHECK_OK(file_copy(golden(label, "base/model.safetensors"), to, &err), err);
    snprintf(to, sizeof to, "%s/config.json", folder);
    CHECK_INT(json_dump_file(config, to, 0), 0);
    json_decref(config);
    CHECK_CODE(merge(folder, golden(label, "adapter"), output, MERGE_FLOAT8_KEEP, 0, &r, &err),
               ERR_REFUSED, err);
    EXPECT_MSG(strstr(err.msg, why) != NULL, "'%s' does not say '%s'", err.msg, why);
}

TEST(other_forms_are_refused_by_name)
{
    static const char group[] =
        "{\"quant_method\":\"compressed-tensors\",\"format\":\"float-"
        "quantized\",\"config_groups\":{\"g\":{\"weights\":{\"type\":\"%s\","
        "\"num_bits\":%d,\"strategy\":\"%s\",\"symmetric\":%s}}}}";
    char text[512];
    refused("deepseek", "{\"quant_method\":\"gptq\"}", "gptq");
    refused("deepseek", "{\"quant_method\":\"mxfp4\"}", "mxfp4");
    refused("deepseek", "{\"quant_method\":\"modelopt\",\"quant_algo\":\"NVFP4\"}", "NVFP4");
    refused("deepseek", "{\"quant_method\":\"fp8\",\"fmt\":\"e4m3fnuz\"}", "e4m3fnuz");
    refused("deepseek", "{\"quant_method\":\"fp8\",\"weight_block_size\":[64,64]}", "64x64");
    refused("deepseek", "{\"quant_method\":\"fp8\"}", "neither one scale");
    refused("bare", "{\"quant_method\":\"fp8\"}", "without scales");
    refused("compressed", "{\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\"}",
            "pack-quantized");
    refused("compressed",
            "{\"quant_method\":\"compressed-tensors\",\"format\":\"float-quantized\","
            "\"transform_config\":{\"config_groups\":{\"u\":1}}}",
            "transform_config");
    snprintf(text, sizeof text, group, "int", 8, "channel", "true");
    refused("compressed", text, "int8");
    snprintf(text, sizeof text, group, "float", 4, "channel", "true");
    refused("compressed", text, "float4");
    snprintf(text, sizeof text, group, "float", 8, "group", "true");
    refused("compressed", text, "strategy \"group\"");
    snprintf(text, sizeof text, group, "float", 8, "channel", "false");
    refused("compressed", text, "symmetric");
}
