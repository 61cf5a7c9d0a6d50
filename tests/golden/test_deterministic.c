/*
 * --deterministic: the same request gives the same bits alone and in any batch, in any chunks of
 * its prompt, on pages anywhere. Requests over the base and every adapter of a fixture, prompts of
 * 1 to 150 tokens, some sampled with a seed; what each gives alone is compared, bit for bit, with
 * what it gives among all the others.
 * tiers: check
 */
#include <dirent.h>

#include "tests/golden/rig.h"
#include "tests/lib/test.h"

enum { MAX_REQUESTS = 48, MAX_PROMPT = 150, MAX_NEW = 4 };

struct requests {
    uint32_t n;
    struct rig_request items[MAX_REQUESTS];
    struct sample_params sampling[MAX_REQUESTS];
    int32_t prompts[MAX_REQUESTS][MAX_PROMPT];
    float *alone; // [n][MAX_NEW][vocab]
    float *logits;
    int32_t ids[MAX_REQUESTS][MAX_NEW];
    float logprobs[MAX_REQUESTS][MAX_NEW];
    uint32_t vocab;
};

static void add(struct requests *all, int32_t slot)
{
    static const uint32_t lengths[] = {5, 33, 1, 70, 12, 150, 64, 2, 65, 20};
    uint32_t i = all->n++;
    struct rig_request *q = &all->items[i];
    *q = (struct rig_request){.prompt = all->prompts[i],
                              .n_prompt = lengths[i % (sizeof lengths / sizeof *lengths)],
                              .slot = slot,
                              .max_new = MAX_NEW};
    for (uint32_t j = 0; j < q->n_prompt; j++)
        all->prompts[i][j] = (int32_t)((j * 7919 + i * 104729 + j * j * 31 + 3) % all->vocab);
    all->sampling[i] = (struct sample_params){.temperature = 0.8f,
                                              .top_p = 0.9f,
                                              .top_k = 40,
                                              .repetition_penalty = 1,
                                              .pending = -1,
                                              .target = -1,
                                              .seed = 1000 + i};
    if (i % 3 == 1)
        q->sampling = &all->sampling[i];
}

/* The base twice, every adapter of the folder once or twice. */
static int add_all(struct rig *r, struct requests *all, const char *folder, struct err *err)
{
    char path[4700];
    add(all, -1);
    add(all, -1);
    snprintf(path, sizeof path, "%s/adapters", folder);
    DIR *dir = opendir(path);
    if (!dir)
        return err_set(err, ERR_NOT_FOUND, "%s: no adapters", path);
    struct dirent *entry;
    int slot = 0, first = -1;
    while (slot >= 0 && (entry = readdir(dir))) {
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "%s/adapters/%s", folder, entry->d_name);
        slot = rig_add_adapter(r, path, err);
        for (uint32_t i = 0; slot >= 0 && i < 1 + all->n % 2 && all->n < MAX_REQUESTS; i++)
            add(all, slot);
        if (slot < 0 || r->adapters[slot].bound->kinds & ~(unsigned)ADAPTER_ADDITIVE ||
            all->n == MAX_REQUESTS)
            continue;
        // Two adapters at once after one of them alone: its segment begins before the other's.
        if (first >= 0) {
            add(all, slot);
            all->items[all->n - 1].also = 1 + (uint32_t)first;
        }
        first = slot;
    }
    closedir(dir);
    return slot < 0 ? slot : 0;
}

static int open_all(struct requests **out, struct rig *r, const char *folder, struct err *err)
{
    const struct step_limits limits = {.max_rows = 1024,
                                       .max_sequences = 64,
                                       .max_logit_rows = 64,
                                       .max_segments = 128,
                                       .max_slots = RIG_SLOTS,
                                       .max_pages = 4096,
                                       .page_tokens = 16};
    struct requests *all = *out = sys_calloc(1, sizeof *all);
    if (!all)
        return err_set(err, ERR_NO_MEMORY, "no memory for requests");
    rig_deterministic = true;
    int rc = rig_open(r, folder, &limits, 1024, 64, err);
    rig_deterministic = false;
    all->vocab = rc ? 0 : r->config.vocab_size;
    rc = rc ? rc : add_all(r, all, folder, err);
    size_t each = (size_t)MAX_NEW * all->vocab;
    all->alone = sys_calloc(all->n * each + 1, sizeof *all->alone);
    all->logits = sys_calloc(all->n * each + 1, sizeof *all->logits);
    if (rc == 0 && (!all->alone || !all->logits))
        rc = err_set(err, ERR_NO_MEMORY, "no memory for logits");
    return rc;
}

static void release(struct requests *all)
{
    if (all) {
        sys_free(all->alone);
        sys_free(all->logits);
    }
    sys_free(all);
}

static void write_to(struct requests *all, float *logits)
{
    for (uint32_t i = 0; i < all->n; i++)
        all->items[i].logits = logits + (size_t)i * MAX_NEW * all->vocab;
}

/* Values of other bits, and the largest difference. */
static uint32_t count_other(const float *a, const float *b, size_t n, float *largest)
{
    uint32_t other = 0;
    for (size_t i = 0; i < n; i++) {
        if (memcmp(&a[i], &b[i], sizeof a[i]) == 0)
            continue;
        float gap = fabsf(a[i] - b[i]);
        other++;
        *largest = gap > *largest ? gap : *largest;
    }
    return other;
}

static void compare(const struct requests *all, const char *base, const char *how)
{
    size_t each = (size_t)MAX_NEW * all->vocab;
    uint32_t n_other = 0, n_requests = 0;
    float largest = 0;
    for (uint32_t i = 0; i < all->n; i++) {
        const struct rig_request *q = &all->items[i];
        uint32_t other = count_other(all->alone + i * each, q->logits, each, &largest);
        n_other += other;
        n_requests += other > 0;
        EXPECT_MSG(other > 0 || memcmp(q->ids, all->ids[i], sizeof all->ids[i]) == 0,
                   "%s, %s: request %u samples other ids from the same logits", base, how, i);
        EXPECT_MSG(other > 0 || memcmp(q->logprobs, all->logprobs[i], sizeof *all->logprobs) == 0,
                   "%s, %s: request %u has other log-probabilities", base, how, i);
    }
    EXPECT_MSG(n_other == 0, "%s, %s: %u logits of %u requests have other bits, by %g at most",
               base, how, n_other, n_requests, (double)largest);
}

static void check_base(struct requests *all, struct rig *r, const char *base)
{
    struct err err = {0};
    write_to(all, all->alone);
    for (uint32_t i = 0; i < all->n; i++) {
        struct rig_request *q = &all->items[i];
        CHECK_OK(rig_run(r, q, 1, 1024, NULL, &err), err);
        memcpy(all->ids[i], q->ids, sizeof all->ids[i]);
        memcpy(all->logprobs[i], q->logprobs, sizeof all->logprobs[i]);
    }
    static const struct {
        const char *name;
        uint32_t max_rows;
    } ways[] = {{"all at once", 1024},
                {"97 rows a step", 97},
                {"64 rows a step", 64},
                {"7 rows a step", 7}};
    write_to(all, all->logits);
    for (size_t k = 0; k < sizeof ways / sizeof *ways; k++) {
        r->scatter = k % 2;
        CHECK_OK(rig_run(r, all->items, all->n, ways[k].max_rows, NULL, &err), err);
        compare(all, base, ways[k].name);
    }
    for (uint32_t i = 0; i < all->n; i++)
        CHECK_OK(rig_run(r, &all->items[i], 1, 1 + i % 6, NULL, &err), err);
    compare(all, base, "alone in small chunks");
    printf("# %s: %u requests, %u adapters\n", base, all->n, r->n_adapters);
}

static void run_base(const char *family, const char *name)
{
    char folder[4096];
    struct rig r = {0};
    struct requests *all = NULL;
    struct err err = {0};
    if (!test_fixtures()) {
        test_skip("no fixtures");
        return;
    }
    snprintf(folder, sizeof folder, "%s/%s/%s", test_fixtures(), family, name);
    int rc = open_all(&all, &r, folder, &err);
    EXPECT_MSG(rc == 0, "%s: %s", name, err.msg);
    if (rc == 0)
        check_base(all, &r, name);
    rig_close(&r);
    release(all);
}

TEST(every_kind_of_adapter)
{
    run_base("kinds", "llama-untied");
}

TEST(tied_embeddings)
{
    run_base("kinds", "llama-tied");
}

TEST(biases)
{
    run_base("kinds", "qwen2-bias");
}

TEST(windows_and_post_norms)
{
    run_base("archs", "gemma3");
}

TEST(experts)
{
    run_base("archs", "qwen3moe");
    run_base("archs", "mixtral");
}

TEST(rotary_scaling)
{
    run_base("archs", "phi3");
    run_base("archs", "llama31-tied");
}
