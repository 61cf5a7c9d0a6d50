/*
 * golden: tinytalk's answers (made by transformers and PEFT) as requests of a rig, and what a rig
 * gave against them. All of it static inline, as in rig.h.
 */
#ifndef TESTS_GOLDEN_GOLDEN_H
#define TESTS_GOLDEN_GOLDEN_H

#include <jansson.h>

#include "tests/golden/rig.h"
#include "tests/lib/test.h"

static const char *const golden_adapters[] = {"upper-lora", "title-lora", "reverse-lora",
                                              "math-lora",  "sort-lora",  "count-lora",
                                              "first-lora", "last-lora"};
enum { GOLDEN_ADAPTERS = sizeof golden_adapters / sizeof *golden_adapters };

struct golden {
    json_t *root;
    struct rig_request *requests;
    int32_t *prompts;
    json_t **items; // of a request
    uint32_t n;
};

static inline void golden_release(struct golden *g)
{
    json_decref(g->root);
    sys_free(g->requests);
    sys_free(g->prompts);
    sys_free(g->items);
}

enum { GOLDEN_REQUESTS = 256, GOLDEN_PROMPT = 64 };

static inline bool golden_read(struct golden *g)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/tests/golden/tinytalk.json", test_root());
    memset(g, 0, sizeof *g);
    g->root = json_load_file(path, 0, NULL);
    g->requests = sys_calloc(GOLDEN_REQUESTS, sizeof *g->requests);
    g->prompts = sys_calloc(GOLDEN_REQUESTS * GOLDEN_PROMPT, sizeof *g->prompts);
    g->items = sys_calloc(GOLDEN_REQUESTS, sizeof *g->items);
    return g->root && g->requests && g->prompts && g->items;
}

/* The first `most` prompts of the base or an adapter; 24 are there. */
static inline void golden_add(struct golden *g, const char *name, int32_t slot, uint32_t most)
{
    size_t i, j;
    json_t *item, *id;
    json_array_foreach(json_object_get(g->root, name), i, item)
    {
        if (i == most)
            return;
        struct rig_request *q = &g->requests[g->n];
        json_t *ids = json_object_get(item, "prompt_ids");
        int32_t *prompt = g->prompts + g->n * GOLDEN_PROMPT;
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
static inline void golden_compare(const struct golden *g)
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

static inline void tinytalk_folder(char *path, size_t n)
{
    snprintf(path, n, "%s/examples/tinytalk/base", test_root());
}

#endif
