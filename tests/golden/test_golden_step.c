/*
 * tinytalk's golden answers (made by transformers and PEFT) through the back-end port, without the
 * engine: the base alone, then all of base and adapters in one mixed batch.
 * tiers: check asan tsan
 */
#include "tests/golden/golden.h"

TEST(base_answers_are_golden_one_at_a_time_and_all_at_once)
{
    char folder[4096];
    struct golden g;
    struct rig r;
    struct err err = {0};
    tinytalk_folder(folder, sizeof folder);
    CHECK(golden_read(&g));
    golden_add(&g, "base", -1, 24);
    CHECK_INT(g.n, 24);
    CHECK_OK(rig_open(&r, folder, NULL, 512, 0, &err), err);
    for (uint32_t i = 0; i < g.n; i++)
        CHECK_OK(rig_run(&r, &g.requests[i], 1, 512, NULL, &err), err);
    golden_compare(&g);
    CHECK_OK(rig_run(&r, g.requests, g.n, 512, NULL, &err), err);
    golden_compare(&g);
    rig_close(&r);
    golden_release(&g);
}

/* The base and eight adapters, 24 prompts each, in one mixed batch of at most max_rows a step. */
static void run_all(const struct step_limits *limits, uint32_t max_rows, bool scatter)
{
    char path[4096];
    struct golden g;
    struct rig r;
    struct err err = {0};
    uint32_t n_groups = 0;
    tinytalk_folder(path, sizeof path);
    CHECK(golden_read(&g));
    CHECK_OK(rig_open(&r, path, limits, 1024, 64, &err), err);
    r.scatter = scatter;
    golden_add(&g, "base", -1, 24);
    for (size_t i = 0; i < GOLDEN_ADAPTERS; i++) {
        const char *name = golden_adapters[i];
        snprintf(path, sizeof path, "%s/examples/tinytalk/adapters/%s", test_root(), name);
        int slot = rig_add_adapter(&r, path, &err);
        CHECK_MSG(slot >= 0, "%s: %s", name, err.msg);
        golden_add(&g, name, slot, 24);
    }
    CHECK_INT(g.n, 216);
    CHECK_OK(rig_run(&r, g.requests, g.n, max_rows, &n_groups, &err), err);
    golden_compare(&g);
    if (max_rows >= 4096)
        CHECK_INT(n_groups, 9); // every prompt is in the first step
    rig_close(&r);
    golden_release(&g);
}

TEST(all_216_prompts_of_base_and_adapters_are_golden_in_one_mixed_batch)
{
    const struct step_limits limits = {.max_rows = 4096,
                                       .max_sequences = 256,
                                       .max_logit_rows = 256,
                                       .max_segments = 256,
                                       .max_slots = RIG_SLOTS,
                                       .max_pages = 4096,
                                       .page_tokens = 16};
    run_all(&limits, 4096, false);
}

TEST(all_216_prompts_are_golden_in_steps_of_sixteen_rows_with_small_scattered_pages)
{
    const struct step_limits limits = {.max_rows = 16,
                                       .max_sequences = 16,
                                       .max_logit_rows = 16,
                                       .max_segments = 16,
                                       .max_slots = RIG_SLOTS,
                                       .max_pages = 1024,
                                       .page_tokens = 8};
    run_all(&limits, 16, true);
}
