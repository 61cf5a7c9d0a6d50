#include <stdio.h>
#include <string.h>

#include "libcore/format/peft_match.h"
#include "tests/lib/test.h"

static void check_name(struct peft_matcher *m, size_t case_idx, const char *name,
                       const json_t *want)
{
    const char *other;
    int64_t rank = 0;
    double alpha = 0;
    bool yes = false, linear = strcmp(name, "lm_head") && strcmp(name, "model.embed_tokens");
    struct err err = {0};
    CHECK_OK(peft_matcher_rank(m, name, &rank, &other, &err), err);
    CHECK_OK(peft_matcher_alpha(m, name, &alpha, &other, &err), err);
    CHECK_OK(peft_matcher_targets(m, name, linear, &yes, &err), err);
    EXPECT_MSG(rank == json_integer_value(json_array_get(want, 0)) &&
                   alpha == json_number_value(json_array_get(want, 1)) &&
                   yes == json_is_true(json_array_get(want, 2)),
               "case %zu, %s: rank %lld, alpha %g, targeted %d", case_idx, name, (long long)rank,
               alpha, yes);
}

/* 300 random configurations; the answers are those of Python's re under PEFT's rules. */
TEST(patterns_mean_what_they_mean_to_peft)
{
    char path[4400];
    json_error_t je;
    snprintf(path, sizeof path, "%s/tests/golden/peft_match.json", test_root());
    json_t *root = json_load_file(path, 0, &je);
    CHECK_MSG(root, "%s: %s", path, je.text);
    const json_t *names = json_object_get(root, "names"), *cases = json_object_get(root, "cases");
    CHECK_INT(json_array_size(cases), 300);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *c = json_array_get(cases, i);
        struct peft_matcher *m;
        struct err err = {0};
        CHECK_OK(peft_matcher_open(&m, json_object_get(c, "config"), "case", &err), err);
        for (size_t n = 0; n < json_array_size(names); n++)
            check_name(m, i, json_string_value(json_array_get(names, n)),
                       json_array_get(json_object_get(c, "want"), n));
        peft_matcher_free(m);
    }
    json_decref(root);
}

TEST(entries_are_whole_names_or_endings_after_a_dot)
{
    EXPECT(peft_entry_matches("q_proj", "model.q_proj"));
    EXPECT(peft_entry_matches("model.q_proj", "model.q_proj"));
    EXPECT(!peft_entry_matches("q_proj", "model.qq_proj"));
    EXPECT(!peft_entry_matches("a.model.q_proj", "model.q_proj"));
}

TEST(modules_to_save_wraps_by_mere_ending_and_from_outside)
{
    json_error_t je;
    json_t *config = json_loads("{\"modules_to_save\":[\"norm\",\"mlp\"]}", 0, &je);
    struct peft_matcher *m;
    struct err err = {0};
    CHECK_OK(peft_matcher_open(&m, config, "test", &err), err);
    EXPECT(peft_matcher_wraps(m, "model.layers.0.input_layernorm"));
    EXPECT(peft_matcher_wraps(m, "model.layers.0.mlp.up_proj"));
    EXPECT(!peft_matcher_wraps(m, "model.layers.0.self_attn.q_proj"));
    EXPECT(peft_matcher_saves(m, "model.layers.0.mlp.up_proj"));
    EXPECT(!peft_matcher_saves(m, "model.layers.0.input_layernorm"));
    peft_matcher_free(m);
    json_decref(config);
}
