/*
 * Seeded simulation of the whole engine over the fake back end: random limits, budgets and traffic
 * (adapters by Zipf, several at once, scales, priorities, cancels, failing loads, salts, prompt
 * scores, unloads), and what must hold whatever happens:
 *   every request ends exactly once; every answer is the one it gets alone; nothing is delivered
 *   after the end; nobody waits for ever; pages, slots, images and weights all come back.
 * tiers: check asan tsan all
 * LORA_SIM_SEEDS=N runs N seeds (default 60), LORA_SIM_SEED=S begins at S.
 */
#include "libcore/base/log.h"
#include "tests/unit/libcore/engine/rig.h"

enum { N_ADAPTERS = 40, MAX_REQUESTS = 220 };

struct sim {
    uint64_t random;
    struct rig rig;
    struct job *jobs;
    unsigned n_jobs, failing;
    uint32_t kv_chunks, max_tokens;
    bool fails, device_fails;
    uint64_t n_preemptions, n_hits, n_host_evictions, n_device_evictions; // over all seeds
};

static uint64_t next(struct sim *s)
{
    s->random ^= s->random >> 12;
    s->random ^= s->random << 25;
    s->random ^= s->random >> 27;
    return s->random * 0x2545F4914F6CDD1Du;
}

static unsigned below(struct sim *s, unsigned n)
{
    return (unsigned)(next(s) >> 33) % n;
}

static bool chance(struct sim *s, unsigned percent)
{
    return below(s, 100) < percent;
}

static unsigned pick(struct sim *s, unsigned a, unsigned b, unsigned c)
{
    unsigned which = below(s, 3);
    return which == 0 ? a : which == 1 ? b : c;
}

/* Zipf with exponent 1 over the adapters. */
static unsigned zipf(struct sim *s)
{
    double total = 0, at;
    for (unsigned i = 1; i <= N_ADAPTERS; i++)
        total += 1.0 / i;
    at = (double)below(s, 1 << 20) / (1 << 20) * total;
    for (unsigned i = 1; i <= N_ADAPTERS; i++) {
        at -= 1.0 / i;
        if (at <= 0)
            return i;
    }
    return N_ADAPTERS;
}

static void choose_limits(struct sim *s)
{
    struct step_limits *l = &s->rig.limits;
    *l = (struct step_limits){.max_rows = pick(s, 8, 64, 512),
                              .max_sequences = pick(s, 2, 16, 64),
                              .max_logit_rows = pick(s, 4, 32, 128),
                              .max_segments = pick(s, 8, 32, 256),
                              .max_slots = pick(s, 3, 6, 24),
                              .max_pages = pick(s, 256, 1024, 8192),
                              .page_tokens = pick(s, 1, 4, 16)};
    unsigned kv_chunks = pick(s, 1, 2, 40), adapter_chunks = pick(s, 6, 9, 40);
    s->kv_chunks = kv_chunks;
    s->rig.opt = (struct engine_options){
        .pool_bytes = (uint64_t)(kv_chunks + adapter_chunks) * BACKEND_CHUNK_BYTES,
        .adapter_bytes = (uint64_t)adapter_chunks * BACKEND_CHUNK_BYTES,
        .host_cache_bytes = (uint64_t)pick(s, 0, 4, 60) * BACKEND_CHUNK_BYTES,
        .max_host_adapters = pick(s, 0, 1, 5),
        .base_fingerprint = chance(s, 50) ? "fingerprint" : "",
        .max_kv_pages = chance(s, 50) ? pick(s, 60, 120, 400) : 0,
        .max_step_adapters = pick(s, 0, 3, 5),
        .context_length = 200,
        .n_loader_threads = 1 + below(s, 3),
        .eviction = (enum eviction_policy)below(s, 3),
        .no_prefix_cache = chance(s, 20)};
}

/* What the engine must make of the limits: adapters keep their bytes, KV has the other chunks. */
static uint32_t longest_sequence(const struct sim *s, uint32_t pages_per_chunk)
{
    uint32_t pages = s->kv_chunks * pages_per_chunk, cap = s->rig.opt.max_kv_pages;
    pages = cap && cap < pages ? cap : pages;
    pages = s->rig.limits.max_pages < pages ? s->rig.limits.max_pages : pages;
    uint32_t tokens = pages * s->rig.limits.page_tokens;
    return tokens < s->rig.opt.context_length ? tokens : s->rig.opt.context_length;
}

static struct fake_options choose_fake(struct sim *s)
{
    return (struct fake_options){.pages_per_chunk = pick(s, 16, 64, 256),
                                 .threaded = chance(s, 70),
                                 .load_polls = pick(s, 0, 1, 3)};
}

static unsigned number_of(struct sim *s)
{
    unsigned number = zipf(s);
    if (number % 7 == 3)
        number |= FAKE_FULL;
    else if (number % 7 == 5)
        number |= FAKE_DORA;
    return number;
}

static void choose_adapters(struct sim *s, struct job *j)
{
    if (chance(s, 20))
        return;
    unsigned n = chance(s, 15) ? 2 + below(s, 2) : 1;
    if (n == 1) {
        unsigned number = number_of(s);
        bool additive = !(number & (FAKE_FULL | FAKE_DORA));
        job_use(j, number, additive && chance(s, 20) ? 0.5f : 1);
        return;
    }
    unsigned first = zipf(s);
    for (unsigned i = 0; i < n; i++)
        job_use(j, (first + i * 11) % N_ADAPTERS + 1, chance(s, 50) ? 1 : 0.25f);
}

static void choose_request(struct sim *s, struct job *j, unsigned i)
{
    static const int32_t stops[] = {3, 17};
    static const struct token_bias bias[] = {{5, -INFINITY}, {6, -INFINITY}};
    // few different prompts, so that prefixes are shared
    job_init(j, chance(s, 60) ? below(s, 4) : i, 1 + below(s, 40), 1 + below(s, 30));
    struct engine_request *r = &j->request;
    r->stop_ids = stops;
    r->n_stop_ids = below(s, 3);
    r->min_new_tokens = chance(s, 30) ? below(s, 6) : 0;
    r->priority = chance(s, 20) ? (int32_t)below(s, 7) - 3 : 0;
    r->cache_salt = chance(s, 10) ? "tenant" : NULL;
    r->sampling.temperature = chance(s, 30) ? 1 : 0;
    r->sampling.seed = next(s);
    r->sampling.repetition_penalty = chance(s, 20) ? 1.5f : 1;
    r->sampling.n_top = (int32_t)below(s, 4);
    if (chance(s, 10)) {
        r->sampling.bias = bias;
        r->sampling.n_bias = 2;
    }
    if (chance(s, 10)) {
        r->prompt_logprobs = true;
        if (chance(s, 50))
            r->max_new_tokens = 0;
    }
    j->max_tokens = s->max_tokens;
    choose_adapters(s, j);
}

/* A submit may be refused only for what the limits of this run forbid. */
static void submit_one(struct sim *s, struct job *j)
{
    struct err err = {0};
    int rc = job_submit(&s->rig, j, &err);
    if (rc == ERR_LIMIT || rc == ERR_BUSY) {
        j->n_finished = 1; // nothing was promised
        j->end.finish = ENGINE_FINISH_CANCELLED;
        return;
    }
    CHECK_OK(rc, err);
    if (chance(s, 8))
        engine_cancel(s->rig.engine, j->id);
}

static void disturb(struct sim *s, unsigned i)
{
    char id[DIGEST_HEX_CHARS + 1];
    fake_content_id(number_of(s), id);
    struct err err = {0};
    if (chance(s, 5))
        engine_adapter_forget(s->rig.engine, id);
    if (chance(s, 5))
        engine_adapter_prefetch(s->rig.engine, id, chance(s, 20), &err);
    if (chance(s, 10))
        engine_adapter_unpin(s->rig.engine, id);
    if (chance(s, 2))
        engine_flush_prefix_cache(s->rig.engine);
    if (chance(s, 10) && i > 0)
        engine_cancel(s->rig.engine, s->jobs[below(s, i)].id);
    if (chance(s, 5))
        usleep(below(s, 2000));
    if (s->device_fails && chance(s, 2))
        pick(s, 0, 1, 2) ? fake_fail_submit(&s->rig.fake, 1 + below(s, 9))
                         : fake_fail_result(&s->rig.fake, 1 + below(s, 9));
    if (s->device_fails && chance(s, 3))
        fake_fail_upload(&s->rig.fake, 1);
}

static void unpin_all(struct sim *s)
{
    static struct engine_adapter_info infos[256];
    size_t n = engine_adapters(s->rig.engine, infos, 256);
    for (size_t i = 0; i < n && i < 256; i++)
        engine_adapter_unpin(s->rig.engine, infos[i].content_id);
}

static bool uses_failing(const struct sim *s, const struct job *j)
{
    for (size_t i = 0; i < j->n_uses; i++) {
        if (s->fails && j->uses[i].number == s->failing)
            return true;
    }
    return false;
}

/* A cancelled answer is the beginning of the right one. */
static bool is_prefix(struct job *j)
{
    int32_t want[RIG_MAX_TOKENS];
    bool stopped;
    size_t n =
        fake_answer(&j->request, j->uses, j->n_uses, want, j->request.max_new_tokens, &stopped);
    return j->n_tokens <= n && memcmp(want, j->tokens, j->n_tokens * sizeof *want) == 0;
}

static void check_job(struct sim *s, struct job *j, unsigned i, uint64_t seed)
{
    CHECK_MSG(job_wait(j), "seed %llu: request %u has not ended once but %u times",
              (unsigned long long)seed, i, j->n_finished);
    EXPECT_MSG(j->n_wrong_scores == 0, "seed %llu: request %u: %u wrong scores of %u",
               (unsigned long long)seed, i, j->n_wrong_scores, j->n_scores);
    if (j->end.finish == ENGINE_FINISH_CANCELLED) {
        EXPECT_MSG(is_prefix(j), "seed %llu: request %u was cancelled amid a wrong answer",
                   (unsigned long long)seed, i);
    } else if (j->end.finish == ENGINE_FINISH_ERROR) {
        bool allowed = uses_failing(s, j) || s->device_fails || j->error.code == ERR_LIMIT;
        EXPECT_MSG(allowed, "seed %llu: request %u failed: %s", (unsigned long long)seed, i,
                   j->error.msg);
    } else {
        EXPECT_MSG(job_is_right(j), "seed %llu: request %u has a wrong answer of %u tokens",
                   (unsigned long long)seed, i, j->n_tokens);
        uint32_t n_scores = j->request.prompt_logprobs ? (uint32_t)j->request.n_prompt - 1 : 0;
        EXPECT_MSG(j->n_scores == n_scores, "seed %llu: request %u: %u scores of %u",
                   (unsigned long long)seed, i, j->n_scores, n_scores);
    }
}

/* When all have ended nothing is referenced any more. */
static void check_rest(struct sim *s, uint64_t seed)
{
    struct err err = {0};
    EXPECT_MSG(engine_drain(s->rig.engine, 300000, &err) == 0, "seed %llu: %s",
               (unsigned long long)seed, err.msg);
    struct engine_stats stats;
    uint64_t n_ended = 0, n_submitted = 0;
    for (unsigned i = 0; i < s->n_jobs; i++)
        n_submitted += s->jobs[i].id != 0;
    for (int i = 0; i < 60000; i++) { // the last turn publishes its numbers after the last event
        engine_stats(s->rig.engine, &stats);
        n_ended = stats.n_finished + stats.n_cancelled + stats.n_failed;
        if (stats.kv_pages_used == 0 && stats.n_running == 0 && n_ended == n_submitted)
            break;
        usleep(1000);
    }
    EXPECT_MSG(stats.kv_pages_used == 0, "seed %llu: %u pages are still referenced",
               (unsigned long long)seed, stats.kv_pages_used);
    EXPECT_INT(stats.n_running, 0);
    EXPECT_INT(stats.n_waiting, 0);
    s->n_preemptions += stats.n_preemptions;
    s->n_hits += stats.prefix_hit_tokens;
    s->n_host_evictions += stats.evictions[0];
    s->n_device_evictions += stats.evictions[1];
    EXPECT_INT(n_ended, n_submitted);
}

static void run_seed(struct sim *s, uint64_t seed)
{
    s->random = seed * 0x9E3779B97F4A7C15u + 1;
    for (int i = 0; i < 8; i++)
        next(s);
    choose_limits(s);
    struct fake_options fake = choose_fake(s);
    s->max_tokens = longest_sequence(s, fake.pages_per_chunk);
    struct err err = {0};
    CHECK_OK(rig_open(&s->rig, &fake, &err), err);
    s->fails = chance(s, 30);
    s->device_fails = chance(s, 20);
    s->failing = 1 + below(s, 5);
    if (s->fails)
        fake_source_fail(&s->rig.fake, s->failing, ERR_CORRUPT);
    fake_source_delay(&s->rig.fake, pick(s, 0, 100, 1000));
    s->n_jobs = MAX_REQUESTS / 2 + below(s, MAX_REQUESTS / 2);
    s->jobs = calloc(s->n_jobs, sizeof *s->jobs);
    for (unsigned i = 0; i < s->n_jobs; i++) {
        choose_request(s, &s->jobs[i], i);
        submit_one(s, &s->jobs[i]);
        disturb(s, i);
    }
    unpin_all(s);
    for (unsigned i = 0; i < s->n_jobs; i++)
        check_job(s, &s->jobs[i], i, seed);
    check_rest(s, seed);
    rig_close(&s->rig);
    free(s->jobs);
}

TEST(simulated_traffic_keeps_every_promise)
{
    const char *n_text = getenv("LORA_SIM_SEEDS"), *first_text = getenv("LORA_SIM_SEED");
    unsigned n = n_text ? (unsigned)atoi(n_text) : 60;
    uint64_t first = first_text ? (uint64_t)atoll(first_text) : 1;
    static struct sim sim;
    log_set_level(LOG_LEVEL_OFF); // failures are made on purpose
    for (uint64_t seed = first; seed < first + n; seed++)
        run_seed(&sim, seed);
    printf(
        "# %u seeds: %llu preemptions, %llu tokens from the prefix cache, %llu evictions from the "
        "host, %llu from the device\n",
        n, (unsigned long long)sim.n_preemptions, (unsigned long long)sim.n_hits,
        (unsigned long long)sim.n_host_evictions, (unsigned long long)sim.n_device_evictions);
    // a simulation in which nothing happens proves nothing
    bool all = sim.n_preemptions && sim.n_hits && sim.n_host_evictions && sim.n_device_evictions;
    EXPECT(all || n < 12);
}
