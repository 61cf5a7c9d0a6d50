/*
 * tinytalk's golden answers (made by transformers and PEFT) through the back-end port, without the
 * engine: the base alone, then all of base and adapters in one mixed batch.
 * tiers: check asan tsan
 */
#include <jansson.h>

#include "tests/golden/rig.h"
#include "tests/lib/test.h"

struct golden {
    json_t *root;
    struct rig_request *requests;
    int32_t *prompts;
    json_t **items; // of a request
    uint32_t n;
};

static void golden_release(struct golden *g)
{
    json_decref(g->root);
    sys_free(g->requests);
    sys_free(g->prompts);
    sys_free(g->items);
}

enum { MAX_REQUESTS = 256, MAX_PROMPT = 64 };

static bool golden_read(struct golden *g)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/tests/golden/tinytalk.json", test_root());
    memset(g, 0, sizeof *g);
    g->root = json_load_file(path, 0, NULL);
    g->requests = sys_calloc(MAX_REQUESTS, sizeof *g->requests);
    g->prompts = sys_calloc(MAX_REQUESTS * MAX_PROMPT, sizeof *g->prompts);
    g->items = sys_calloc(MAX_REQUESTS, sizeof *g->items);
    return g->root && g->requests && g->prompts && g->items;
}

static void golden_add(struct golden *g, const char *name, int32_t slot)
{
    size_t i, j;
    json_t *item, *id;
    json_array_foreach(json_object_get(g->root, name), i, item)
    {
        struct rig_request *q = &g->requests[g->n];
        json_t *ids = json_object_get(item, "prompt_ids");
        int32_t *prompt = g->prompts + g->n * MAX_PROMPT;
        json_array_foreach(ids, j, id)
        {
            prompt[j] = (int32_t)json_integer_value(id);
        }
        *q =
            (struct rig_request){.prompt = prompt,
                                 .n_prompt = (uint32_t)json_array_size(ids),
                                 .slot = slot,
                                 .max_new = (uint32_t)json_array_size(json_object_get(item, "ids")),
                                 .n_top = 5};
        g->items[g->n++] = item;
    }
}

/* Greedy ids equal; the five first-token log-probabilities within 0.01. */
static void golden_compare(const struct golden *g)
{
    for (uint32_t i = 0; i < g->n; i++) {
        const struct rig_request *q = &g->requests[i];
        json_t *ids = json_object_get(g->items[i], "ids");
        json_t *top = json_object_get(g->items[i], "top5_ids");
        json_t *logprobs = json_object_get(g->items[i], "top5_logprobs");
        for (uint32_t j = 0; j < q->max_new; j++) {
            int32_t want = (int32_t)json_integer_value(json_array_get(ids, j));
            CHECK_MSG(q->ids[j] == want, "request %u (slot %d), token %u: %d, want %d", i, q->slot,
                      j, q->ids[j], want);
        }
        for (int j = 0; j < 5; j++) {
            int32_t want = (int32_t)json_integer_value(json_array_get(top, (size_t)j));
            double logprob = json_number_value(json_array_get(logprobs, (size_t)j));
            int at = 0;
            while (at < 5 && q->top_ids[at] != want)
                at++;
            EXPECT_MSG(at < 5 || j == 4, "request %u: id %d is not among the top 5", i, want);
            if (at < 5)
                EXPECT_NEAR(q->top_logprobs[at], logprob,
                            rig_is_bf16() ? j == 0 ? 0.05 : 0.5 : 0.01);
        }
    }
}

static void tinytalk_folder(char *path, size_t n)
{
    snprintf(path, n, "%s/examples/tinytalk/base", test_root());
}

TEST(base_answers_are_golden_one_at_a_time_and_all_at_once)
{
    char folder[4096];
    struct golden g;
    struct rig r;
    struct err err = {0};
    tinytalk_folder(folder, sizeof folder);
    CHECK(golden_read(&g));
    golden_add(&g, "base", -1);
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
    static const char *const names[] = {"upper-lora", "title-lora", "reverse-lora", "math-lora",
                                        "sort-lora",  "count-lora", "first-lora",   "last-lora"};
    char path[4096];
    struct golden g;
    struct rig r;
    struct err err = {0};
    uint32_t n_groups = 0;
    tinytalk_folder(path, sizeof path);
    CHECK(golden_read(&g));
    CHECK_OK(rig_open(&r, path, limits, 1024, 64, &err), err);
    r.scatter = scatter;
    golden_add(&g, "base", -1);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        snprintf(path, sizeof path, "%s/examples/tinytalk/adapters/%s", test_root(), names[i]);
        int slot = rig_add_adapter(&r, path, &err);
        CHECK_MSG(slot >= 0, "%s: %s", names[i], err.msg);
        golden_add(&g, names[i], slot);
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
