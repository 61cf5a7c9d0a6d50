/*
 * plan, stream, work, check: what is refused, what a tied pair and added rows become, interruption,
 * and that the check finds a wrong value. On tinytalk, and on fixtures/kinds where it is there.
 */
#include <stdio.h>
#include <stdlib.h>

#include "libcore/adapter/content_id.h"
#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/peft.h"
#include "libcore/merge/check.h"
#include "libcore/merge/explain.h"
#include "libcore/merge/into_base.h"
#include "tests/lib/test.h"

enum { PATH_BYTES = 4096 };

static struct adapter *read_adapter(const char *folder, const char *name)
{
    char path[PATH_BYTES];
    struct adapter *a = NULL;
    struct err err = {0};
    snprintf(path, sizeof path, "%s/adapters/%s", folder, name);
    if (peft_read(&a, path, NULL, &err) != 0 || content_id_compute(a, 1, &err) != 0)
        test_fail(__FILE__, __LINE__, "%s: %s", path, err.msg);
    return a;
}

static int plan_two(struct merge_plan **p, const char *base, struct adapter *a, double wa,
                    struct adapter *b, double wb, struct err *err)
{
    struct merge_adapter two[2] = {{a, wa}, {b, wb}};
    return merge_plan_open(p, base, two, b ? 2 : 1, NULL, err);
}

static void expect_refusal(const char *base, struct adapter *a, double wa, struct adapter *b,
                           double wb, int code, const char *word)
{
    struct merge_plan *p = NULL;
    struct err err = {0};
    int rc = plan_two(&p, base, a, wa, b, wb, &err);
    EXPECT_MSG(rc == code, "code %d, want %d: %s", rc, code, err.msg);
    EXPECT_MSG(strstr(err.msg, word) != NULL, "\"%s\" is not in \"%s\"", word, err.msg);
    merge_plan_free(p);
}

static int stop_at_once(void *arg, uint64_t bytes)
{
    (void)arg;
    (void)bytes;
    return ERR_INTERRUPTED;
}

static int merge_to(const struct merge_plan *p, const char *output, struct merge_run *run,
                    struct err *err)
{
    static const struct merge_options options = {0};
    const struct recipe_origin origin = {.version = "test", .options = &options};
    json_t *recipe = NULL;
    run->output = output;
    run->origin = &origin;
    int rc = merge_into_base(p, run, &recipe, err);
    json_decref(recipe);
    return rc;
}

TEST(what_has_no_meaning_is_refused_by_name)
{
    char base[PATH_BYTES];
    snprintf(base, sizeof base, "%s/base", test_tinytalk());
    struct adapter *dora = read_adapter(test_tinytalk(), "sort-lora");
    struct adapter *lora = read_adapter(test_tinytalk(), "math-lora");
    struct adapter *saved = read_adapter(test_tinytalk(), "last-lora");
    struct adapter *head = read_adapter(test_tinytalk(), "first-lora");
    expect_refusal(base, dora, 0.5, NULL, 0, ERR_REFUSED, "DoRA");
    expect_refusal(base, saved, -1, NULL, 0, ERR_REFUSED, "weight other than 1");
    expect_refusal(base, dora, 1, lora, 1, ERR_REFUSED, "is a DoRA adapter of");
    expect_refusal(base, saved, 1, head, 1, ERR_REFUSED, "lm_head");
    expect_refusal(base, lora, 1, lora, 1, ERR_USAGE, "same adapter");
    expect_refusal(base, lora, NAN, NULL, 0, ERR_USAGE, "no number");
    expect_refusal("/nonexistent", lora, 1, NULL, 0, ERR_NOT_FOUND, "nonexistent");
    struct merge_plan *p = NULL;
    struct err err = {0};
    CHECK_OK(plan_two(&p, base, dora, 0, lora, 0.5, &err), err); // weight 0 is not there
    EXPECT_INT(json_array_size(p->warnings), 1);
    EXPECT_INT(p->n_touched, 42);
    merge_plan_free(p);
    adapter_free(dora);
    adapter_free(lora);
    adapter_free(saved);
    adapter_free(head);
}

TEST(a_survey_lists_what_is_refused_and_plans_the_rest)
{
    char base[PATH_BYTES];
    struct merge_plan *p = NULL;
    struct err err = {0};
    snprintf(base, sizeof base, "%s/base", test_tinytalk());
    struct adapter *dora = read_adapter(test_tinytalk(), "sort-lora");
    struct adapter *lora = read_adapter(test_tinytalk(), "math-lora");
    struct merge_adapter two[2] = {{dora, 0.5}, {lora, 1}};
    const struct merge_options opt = {.headers_only = true};
    CHECK_OK(merge_plan_survey(&p, base, two, 2, &opt, &err), err);
    EXPECT_INT(json_array_size(p->refusals), 43); // the weight, and 42 modules
    EXPECT(p->write_bytes > 10000000);
    merge_plan_free(p);
    adapter_free(dora);
    adapter_free(lora);
}

TEST(an_interrupted_merge_leaves_nothing_and_resumes_when_asked)
{
    char base[PATH_BYTES], output[PATH_BYTES], partial[PATH_BYTES + 32];
    struct merge_plan *p = NULL;
    struct err err = {0};
    snprintf(base, sizeof base, "%s/base", test_tinytalk());
    snprintf(output, sizeof output, "%s/stopped", test_tmp());
    snprintf(partial, sizeof partial, "%s.partial", output);
    struct adapter *lora = read_adapter(test_tinytalk(), "math-lora");
    CHECK_OK(plan_two(&p, base, lora, 1, NULL, 0, &err), err);
    struct merge_run run = {.on_bytes = stop_at_once};
    CHECK_CODE(merge_to(p, output, &run, &err), ERR_INTERRUPTED, err);
    EXPECT(!file_exists(output));
    EXPECT(!file_exists(partial));
    run.resume = true;
    CHECK_CODE(merge_to(p, output, &run, &err), ERR_INTERRUPTED, err);
    EXPECT(!file_exists(output));
    EXPECT(file_exists(partial));
    run.on_bytes = NULL;
    err_clear(&err);
    CHECK_OK(merge_to(p, output, &run, &err), err);
    EXPECT(file_exists(output));
    EXPECT(!file_exists(partial));
    CHECK_CODE(merge_to(p, output, &run, &err), ERR_EXISTS, err);
    merge_plan_free(p);
    adapter_free(lora);
}

TEST(the_check_finds_one_wrong_bit)
{
    char base[PATH_BYTES], output[PATH_BYTES], shard[PATH_BYTES + 32];
    struct merge_plan *p = NULL;
    struct merge_check_result result;
    struct err err = {0};
    snprintf(base, sizeof base, "%s/base", test_tinytalk());
    snprintf(output, sizeof output, "%s/checked", test_tmp());
    snprintf(shard, sizeof shard, "%s/model.safetensors", output);
    struct adapter *lora = read_adapter(test_tinytalk(), "upper-lora");
    CHECK_OK(plan_two(&p, base, lora, 1, NULL, 0, &err), err);
    struct merge_run run = {0};
    CHECK_OK(merge_to(p, output, &run, &err), err);
    CHECK_OK(merge_check(p, output, &result, &err), err);
    EXPECT_INT(result.n_equal, 45);
    EXPECT(result.off2 < result.delta2 * 1e-3);
    char *data;
    size_t n;
    static const char *const names[] = {"model.layers.2.self_attn.v_proj.weight",
                                        "model.layers.2.mlp.up_proj.weight"};
    for (int i = 0; i < 2; i++) {
        const struct checkpoint_tensor *t = checkpoint_find(p->base, names[i]);
        const struct safetensors *s = checkpoint_shard(p->base, 0);
        size_t at = safetensors_data_offset(s) + safetensors_find(s, t->name)->begin + 1000;
        CHECK_OK(file_read(shard, 1 << 30, &data, &n, &err), err);
        data[at] ^= 2;
        CHECK_OK(file_write_atomic(shard, data, n, &err), err);
        CHECK_CODE(merge_check(p, output, &result, &err), ERR_CORRUPT, err);
        EXPECT_MSG(strstr(err.msg, names[i]) != NULL, "%s", err.msg);
        data[at] ^= 2;
        CHECK_OK(file_write_atomic(shard, data, n, &err), err);
        sys_free(data);
    }
    err_clear(&err);
    CHECK_OK(merge_check(p, output, &result, &err), err);
    merge_plan_free(p);
    adapter_free(lora);
}

static bool config_flag(const char *folder, const char *key)
{
    char path[PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/config.json", folder);
    json_t *config = json_load_file(path, 0, NULL);
    bool flag = json_is_true(json_object_get(config, key));
    json_decref(config);
    return flag;
}

TEST(a_tied_pair_is_untied_when_its_ends_come_apart)
{
    static const struct {
        const char *adapter;
        bool untied;
    } cases[] = {{"embed", true}, {"head", true}, {"tokens", false}, {"r1", false}};
    char base[PATH_BYTES], folder[PATH_BYTES], output[PATH_BYTES + 32];
    if (!test_fixtures()) {
        test_skip("no fixtures");
        return;
    }
    snprintf(folder, sizeof folder, "%s/kinds/llama-tied", test_fixtures());
    snprintf(base, sizeof base, "%s", folder);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct merge_plan *p = NULL;
        struct checkpoint *c = NULL;
        struct err err = {0};
        struct merge_run run = {.force = true};
        snprintf(output, sizeof output, "%s/tied", test_tmp());
        struct adapter *a = read_adapter(folder, cases[i].adapter);
        CHECK_OK(plan_two(&p, base, a, 1, NULL, 0, &err), err);
        EXPECT_MSG(p->untied == cases[i].untied, "%s", cases[i].adapter);
        CHECK_OK(merge_to(p, output, &run, &err), err);
        EXPECT(config_flag(output, "tie_word_embeddings") == !cases[i].untied);
        CHECK_OK(checkpoint_open(&c, output, &err), err);
        EXPECT((checkpoint_find(c, "lm_head.weight") != NULL) == cases[i].untied);
        if (cases[i].untied && strcmp(cases[i].adapter, "embed") == 0) { // the head stays as it was
            const struct checkpoint_tensor *old =
                checkpoint_find(p->base, "model.embed_tokens.weight");
            const struct checkpoint_tensor *now = checkpoint_find(c, "lm_head.weight");
            EXPECT(memcmp(old->value.data, now->value.data, tensor_n_bytes(&old->value)) == 0);
        }
        checkpoint_free(c);
        merge_plan_free(p);
        adapter_free(a);
    }
}

TEST(cosines_and_norms_are_those_of_the_products)
{
    struct adapter *a = read_adapter(test_tinytalk(), "upper-lora");
    struct adapter *b = read_adapter(test_tinytalk(), "title-lora");
    struct err err = {0};
    const struct adapter_module *x = &a->modules[0];
    const struct adapter_module *y = adapter_find(b, x->name, x->parameter);
    CHECK(y);
    size_t in = (size_t)x->a.shape[1], out = (size_t)x->b.shape[0], r = x->rank;
    const float *xa = x->a.data, *xb = x->b.data, *ya = y->a.data, *yb = y->b.data;
    double want = 0, dot = 0;
    for (size_t o = 0; o < out; o++) {
        for (size_t j = 0; j < in; j++) {
            double p = 0, q = 0;
            for (size_t k = 0; k < r; k++) {
                p += (double)xb[o * r + k] * xa[k * in + j];
                q += (double)yb[o * r + k] * ya[k * in + j];
            }
            want += p * x->scale * q * y->scale;
        }
    }
    CHECK_OK(explain_dot(x, y, &dot, &err), err);
    EXPECT_NEAR(dot, want, fabs(want) * 1e-9 + 1e-9);
    const char *const names[2] = {"a", "b"};
    struct merge_adapter two[2] = {{a, 1}, {b, -2}};
    json_t *info = NULL;
    CHECK_OK(explain_adapters(&info, two, names, 2, &err), err);
    // At rank 16 of 8 + 8 nothing is lost; the norm of the sum is that of the sum.
    double na = json_number_value(
               json_object_get(json_array_get(json_object_get(info, "adapters"), 0), "norm")),
           nb = json_number_value(
               json_object_get(json_array_get(json_object_get(info, "adapters"), 1), "norm")),
           c = json_number_value(
               json_array_get(json_array_get(json_object_get(info, "cosines"), 0), 1)),
           sum = json_number_value(json_object_get(info, "norm_of_sum"));
    EXPECT_NEAR(sum, sqrt(na * na + 4 * nb * nb - 4 * c * na * nb), sum * 1e-9);
    json_t *ranks = json_object_get(info, "ranks");
    json_t *last = json_array_get(ranks, json_array_size(ranks) - 1);
    EXPECT_INT(json_integer_value(json_object_get(last, "rank")), 16);
    EXPECT_NEAR(json_number_value(json_object_get(last, "energy_kept")), 1, 1e-12);
    json_decref(info);
    adapter_free(a);
    adapter_free(b);
}
