/*
 * Two devices in one process: cuda:0 and cuda:1, or two back ends of the CPU. Both hold tinytalk
 * and its adapters and compute steps in turn and from two threads at once, each with a mix of its
 * own; one opens and closes, or finds no memory, while the other goes on. Answers are golden on
 * both, and of the same bits where both are of one kind: in steps of so few rows that no algorithm
 * is chosen by its time, and in any step with --deterministic. tiers: check tsan
 */
#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>

#include "tests/golden/golden.h"

enum { PROMPTS = 2, FEW_ROWS = 16, GOLDEN_NEW = 4, MAX_NEW = 3, MAX_PROMPT = 70, MOST = 48 };

static const struct step_limits limits = {.max_rows = 1024,
                                          .max_sequences = 64,
                                          .max_logit_rows = 64,
                                          .max_segments = 128,
                                          .max_slots = RIG_SLOTS,
                                          .max_pages = 2048,
                                          .page_tokens = 16};

/* A device, what is asked of it, and how. */
struct side {
    const char *device;
    struct rig rig;
    struct golden golden;
    uint32_t max_rows;
    bool backwards; // the order of the adapters, so that a slot holds another one than over there
    bool recorded;  // without the adapter that replaces weights, whose steps are never recorded
    int rc;
    struct err err;
};

static int open_side(struct side *s, const char *folder)
{
    return s->rc = rig_open_on(&s->rig, s->device, folder, &limits, 1024, 64, &s->err);
}

static void close_sides(struct side s[2])
{
    for (int i = 0; i < 2; i++) {
        rig_close(&s[i].rig);
        golden_release(&s[i].golden);
    }
}

/* False after a skip or a failure. */
static bool open_sides(struct side s[2], const char *folder)
{
    bool cuda = strncmp(rig_device(), "cuda", 4) == 0;
    for (int i = 0; i < 2; i++) {
        s[i] = (struct side){.device = !cuda ? "cpu"
                                       : i   ? "cuda:1"
                                             : "cuda:0",
                             .max_rows = FEW_ROWS};
        if (open_side(&s[i], folder) == 0)
            continue;
        if (i == 1 && strstr(s[i].err.msg, "there is no card 1"))
            test_skip("%s", s[i].err.msg);
        else
            test_fail(__FILE__, __LINE__, "%s: %s", s[i].device, s[i].err.msg);
        close_sides(s);
        return false;
    }
    return true;
}

static bool open_tinytalk(struct side s[2])
{
    char folder[4096];
    tinytalk_folder(folder, sizeof folder);
    return open_sides(s, folder);
}

/* Some prompts of the base or an adapter, and the first tokens of their answers. */
static void ask(struct golden *g, const char *name, int32_t slot)
{
    uint32_t i = g->n;
    golden_add(g, name, slot, PROMPTS);
    for (; i < g->n; i++) {
        if (g->requests[i].max_new > GOLDEN_NEW)
            g->requests[i].max_new = GOLDEN_NEW;
    }
}

/* Loads the adapters and asks each of them and the base. */
static int add_golden(struct side *s)
{
    if (!golden_read(&s->golden))
        return s->rc = err_set(&s->err, ERR_NOT_FOUND, "no golden answers");
    ask(&s->golden, "base", -1);
    for (int i = 0; i < GOLDEN_ADAPTERS; i++) {
        char path[4096];
        const char *name = golden_adapters[s->backwards ? GOLDEN_ADAPTERS - 1 - i : i];
        if (s->recorded && strcmp(name, "last-lora") == 0)
            continue;
        snprintf(path, sizeof path, "%s/examples/tinytalk/adapters/%s", test_root(), name);
        int slot = rig_add_adapter(&s->rig, path, &s->err);
        if (slot < 0)
            return s->rc = slot;
        ask(&s->golden, name, slot);
    }
    return 0;
}

static int run_golden(struct side *s)
{
    return s->rc = rig_run(&s->rig, s->golden.requests, s->golden.n, s->max_rows, NULL, &s->err);
}

static bool both_well(const struct side s[2])
{
    for (int i = 0; i < 2; i++)
        EXPECT_MSG(s[i].rc == 0, "%s: %s", s[i].device, s[i].err.msg);
    return s[0].rc == 0 && s[1].rc == 0;
}

static bool of_one_kind(const struct side s[2])
{
    struct backend_info info[2];
    for (int i = 0; i < 2; i++) {
        if (s[i].rig.be->ops->info(s[i].rig.be, &info[i], NULL) != 0)
            return false;
    }
    return strcmp(info[0].device, info[1].device) == 0;
}

/* Requests that have other ids or other bits of log-probabilities. */
static uint32_t count_other(const struct rig_request *a, const struct rig_request *b, uint32_t n)
{
    uint32_t other = 0;
    for (uint32_t i = 0; i < n; i++)
        other += a[i].n_ids != b[i].n_ids || memcmp(a[i].ids, b[i].ids, a[i].n_ids * 4) != 0 ||
                 memcmp(a[i].logprobs, b[i].logprobs, a[i].n_ids * 4) != 0;
    return other;
}

/* One thread: a step on either is in flight before the other's result is fetched. */
static void run_in_turn(struct side s[2])
{
    struct rig_step steps[2];
    uint64_t tickets[2] = {1, 1};
    for (int i = 0; i < 2; i++)
        rig_begin(&s[i].rig, &steps[i], s[i].golden.requests, s[i].golden.n);
    while (s[0].rc == 0 && s[1].rc == 0 && (tickets[0] || tickets[1])) {
        for (int i = 0; i < 2; i++)
            s[i].rc = rig_submit(&s[i].rig, &steps[i], s[i].golden.requests, s[i].golden.n,
                                 s[i].max_rows, &tickets[i], &s[i].err);
        for (int i = 0; i < 2; i++) {
            if (s[i].rc == 0 && tickets[i])
                s[i].rc = rig_fetch(&s[i].rig, &steps[i], s[i].golden.requests, tickets[i], NULL,
                                    &s[i].err);
        }
    }
    for (int i = 0; i < 2; i++)
        rig_end(&steps[i], s[i].golden.requests, s[i].golden.n);
}

TEST(steps_in_turn_are_golden_on_both_and_of_the_same_bits)
{
    struct side s[2];
    if (!open_tinytalk(s))
        return;
    s[0].recorded = s[1].recorded = true;
    if (add_golden(&s[0]) == 0 && add_golden(&s[1]) == 0)
        run_in_turn(s);
    if (both_well(s)) {
        golden_compare(&s[0].golden);
        golden_compare(&s[1].golden);
        uint32_t n = s[0].golden.n,
                 other = count_other(s[0].golden.requests, s[1].golden.requests, n);
        EXPECT_MSG(other == 0 || !of_one_kind(s), "%u of %u requests have other bits", other, n);
    }
    close_sides(s);
}

/* What a thread that never chose a device does: adapters, then steps. */
static void *load_and_run(void *arg)
{
    struct side *s = arg;
    if (add_golden(s) == 0)
        run_golden(s);
    return NULL;
}

/* Each in a thread of its own. */
static void run_beside(void *(*body)(void *), void *a, void *b)
{
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, body, i ? b : a);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
}

TEST(two_threads_with_other_mixes_are_golden)
{
    struct side s[2];
    if (!open_tinytalk(s))
        return;
    s[0].max_rows = 1024;
    s[1].backwards = s[1].rig.scatter = true;
    run_beside(load_and_run, &s[0], &s[1]);
    if (both_well(s)) {
        golden_compare(&s[0].golden);
        golden_compare(&s[1].golden);
    }
    close_sides(s);
}

// ---- every kind of adapter, bit for bit

struct requests {
    struct side *side;
    const char *folder; // of the base; its adapters lie in it
    uint32_t n, vocab;
    struct rig_request items[MOST];
    int32_t prompts[MOST][MAX_PROMPT];
    float *logits; // [MOST][MAX_NEW][vocab]
};

static void add_request(struct requests *all, int32_t slot)
{
    static const uint32_t lengths[] = {5, 33, 1, MAX_PROMPT, 12};
    uint32_t i = all->n++;
    all->items[i] = (struct rig_request){.prompt = all->prompts[i],
                                         .n_prompt = lengths[i % 5],
                                         .slot = slot,
                                         .max_new = MAX_NEW,
                                         .logits = all->logits + (size_t)i * MAX_NEW * all->vocab};
    for (uint32_t j = 0; j < lengths[i % 5]; j++)
        all->prompts[i][j] = (int32_t)((j * 7919 + i * 104729 + 3) % all->vocab);
}

/* All adapters of the folder, in its order, which is one for both sides. */
static void *load_and_run_kinds(void *arg)
{
    struct requests *all = arg;
    struct side *s = all->side;
    char path[4700];
    add_request(all, -1);
    snprintf(path, sizeof path, "%s/adapters", all->folder);
    DIR *dir = opendir(path);
    struct dirent *entry;
    while (s->rc == 0 && dir && (entry = readdir(dir)) && all->n < MOST) {
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "%s/adapters/%s", all->folder, entry->d_name);
        int slot = rig_add_adapter(&s->rig, path, &s->err);
        s->rc = slot < 0 ? slot : 0;
        if (s->rc == 0)
            add_request(all, slot);
    }
    if (dir)
        closedir(dir);
    if (s->rc == 0)
        s->rc = rig_run(&s->rig, all->items, all->n, s->max_rows, NULL, &s->err);
    return NULL;
}

static struct requests *requests_of(struct side *s, const char *folder)
{
    struct requests *all = sys_calloc(1, sizeof *all);
    if (!all)
        return NULL;
    all->side = s;
    all->folder = folder;
    all->vocab = s->rig.config.vocab_size;
    all->logits = sys_calloc((size_t)MOST * MAX_NEW * all->vocab, sizeof *all->logits);
    return all;
}

static void compare_logits(struct requests *const all[2])
{
    size_t each = (size_t)MAX_NEW * all[0]->vocab;
    CHECK_INT(all[0]->n, all[1]->n);
    CHECK(all[0]->n > 10);
    for (uint32_t i = 0; i < all[0]->n; i++)
        EXPECT_MSG(memcmp(all[0]->items[i].logits, all[1]->items[i].logits, each * 4) == 0,
                   "request %u has other bits on the other device", i);
}

TEST(deterministic_steps_of_every_kind_of_adapter_have_the_same_bits_in_any_mix)
{
    struct side s[2];
    char folder[4096];
    if (!test_fixtures()) {
        test_skip("no fixtures");
        return;
    }
    snprintf(folder, sizeof folder, "%s/kinds/llama-untied", test_fixtures());
    rig_deterministic = true;
    bool open = open_sides(s, folder);
    rig_deterministic = false;
    if (!open)
        return;
    struct requests *all[2] = {requests_of(&s[0], folder), requests_of(&s[1], folder)};
    s[0].max_rows = 1024;
    s[1].rig.scatter = true;
    if (!of_one_kind(s))
        test_skip("two cards of different kinds");
    else if (all[0] && all[1]) {
        run_beside(load_and_run_kinds, all[0], all[1]);
        if (both_well(s))
            compare_logits(all);
    }
    for (int i = 0; i < 2; i++) {
        if (all[i])
            sys_free(all[i]->logits);
        sys_free(all[i]);
    }
    close_sides(s);
}

// ---- what happens on one leaves the other alone

struct runner {
    struct side *side;
    struct rig_request *first; // what the first pass gave
    atomic_bool stop;
    uint32_t n_passes, n_other;
};

/* Golden requests again and again, and how many differ from the first pass. */
static void *run_until_stopped(void *arg)
{
    struct runner *r = arg;
    struct golden *g = &r->side->golden;
    do {
        if (run_golden(r->side) != 0)
            break;
        if (r->n_passes++ == 0)
            memcpy(r->first, g->requests, g->n * sizeof *r->first);
        r->n_other += count_other(r->first, g->requests, g->n);
    } while (!atomic_load(&r->stop));
    return NULL;
}

TEST(one_opens_and_closes_while_the_other_goes_on)
{
    struct side s[2];
    char folder[4096];
    if (!open_tinytalk(s))
        return;
    struct runner r = {.side = &s[1], .first = sys_calloc(GOLDEN_REQUESTS, sizeof *r.first)};
    pthread_t thread;
    tinytalk_folder(folder, sizeof folder);
    s[1].recorded = true;
    add_golden(&s[1]);
    pthread_create(&thread, NULL, run_until_stopped, &r);
    rig_close(&s[0].rig);
    if (open_side(&s[0], folder) == 0 && add_golden(&s[0]) == 0)
        run_golden(&s[0]);
    atomic_store(&r.stop, true);
    pthread_join(thread, NULL);
    if (both_well(s)) {
        golden_compare(&s[0].golden);
        golden_compare(&s[1].golden);
        EXPECT_MSG(r.n_other == 0, "%u answers of %u passes changed", r.n_other, r.n_passes);
    }
    sys_free(r.first);
    close_sides(s);
}

TEST(memory_that_one_has_not_is_no_error_of_the_other)
{
    struct side s[2];
    struct err err = {0};
    if (!rig_is_bf16()) {
        test_skip("the CPU's memory is not counted");
        return;
    }
    if (!open_tinytalk(s))
        return;
    const struct rig *r = &s[0].rig;
    if (golden_read(&s[0].golden))
        ask(&s[0].golden, "base", -1); // its adapters would go with the pool
    add_golden(&s[1]);
    EXPECT_INT(r->be->ops->pool_open(r->be, r->dm, 1 << 20, &err), ERR_DEVICE); // 2 TB
    if (s[1].rc == 0)
        run_golden(&s[1]);
    s[0].rc = r->be->ops->pool_open(r->be, r->dm, r->n_chunks, &s[0].err);
    if (s[0].rc == 0)
        run_golden(&s[0]);
    if (both_well(s)) {
        golden_compare(&s[0].golden);
        golden_compare(&s[1].golden);
    }
    close_sides(s);
}
