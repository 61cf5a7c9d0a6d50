/*
 * The engine's promises, one by one, over the fake back end.
 * tiers: check asan tsan
 */
#include "tests/unit/libcore/engine/rig.h"
#include "tests/lib/fault.h"

TEST(answers_a_base_request)
{
    struct rig r = rig_defaults();
    struct err err = {0};
    CHECK_OK(rig_open(&r, &PLAIN, &err), err);
    static struct job j;
    job_init(&j, 1, 7, 20);
    CHECK_OK(job_submit(&r, &j, &err), err);
    CHECK_JOB(&j);
    CHECK_INT(j.end.n_prompt, 7);
    CHECK_INT(j.end.finish, ENGINE_FINISH_LENGTH);
    rig_close(&r);
}

TEST(answers_many_base_requests_in_one_batch)
{
    struct rig r = rig_defaults();
    struct err err = {0};
    CHECK_OK(rig_open(&r, &THREADED, &err), err);
    static struct job jobs[100];
    static const int32_t stops[] = {3, 5};
    for (unsigned i = 0; i < 100; i++) {
        job_init(&jobs[i], i, 1 + i % 37, 1 + i % 50);
        jobs[i].request.stop_ids = stops;
        jobs[i].request.n_stop_ids = i % 3 ? 2 : 0;
        jobs[i].request.min_new_tokens = i % 5;
        CHECK_OK(job_submit(&r, &jobs[i], &err), err);
    }
    for (unsigned i = 0; i < 100; i++)
        CHECK_JOB(&jobs[i]);
    rig_close(&r);
}

// ---- what is refused ----------------------------------------------------------------------------

TEST(refuses_what_cannot_be_answered)
{
    struct rig r = rig_defaults();
    struct err err = {0};
    CHECK_OK(rig_open(&r, &PLAIN, &err), err);
    static struct job j;
    job_init(&j, 1, 512, 1);
    CHECK_CODE(job_submit(&r, &j, &err), ERR_LIMIT, err);
    job_init(&j, 1, 4, 0);
    CHECK_CODE(job_submit(&r, &j, &err), ERR_USAGE, err);
    job_init(&j, 1, 0, 4);
    CHECK_CODE(job_submit(&r, &j, &err), ERR_USAGE, err);
    job_init(&j, 1, 4, 4);
    j.prompt[2] = FAKE_VOCAB;
    CHECK_CODE(job_submit(&r, &j, &err), ERR_USAGE, err);
    CHECK_STR(err.msg, "token id 61 at position 2 is out of vocabulary (61)");
    job_init(&j, 1, 4, 4);
    j.request.sampling.temperature = NAN;
    CHECK_CODE(job_submit(&r, &j, &err), ERR_USAGE, err);
    job_init(&j, 1, 4, 4);
    j.request.sampling.n_top = BACKEND_MAX_TOP + 1;
    CHECK_CODE(job_submit(&r, &j, &err), ERR_LIMIT, err);
    rig_close(&r);
}

TEST(a_scale_or_a_mix_of_kinds_that_do_more_than_add_is_refused)
{
    struct rig r = rig_defaults();
    struct err err = {0};
    CHECK_OK(rig_open(&r, &PLAIN, &err), err);
    static struct job j;
    struct adapter *a = fake_adapter(FAKE_DORA | 3);
    CHECK_OK(engine_adapter_register(r.engine, a, &err), err);
    adapter_free(a);
    job_init(&j, 1, 4, 4);
    job_use(&j, FAKE_DORA | 3, 0.5f);
    CHECK_CODE(job_submit(&r, &j, &err), ERR_REFUSED, err);
    job_init(&j, 1, 4, 4); // known only after it is loaded
    job_use(&j, FAKE_FULL | 4, 1);
    job_use(&j, 5, 1);
    int rc = job_submit(&r, &j, &err);
    if (rc != 0) { // or already while it is submitted, when the load was that quick
        CHECK_CODE(rc, ERR_REFUSED, err);
    } else {
        CHECK(job_wait(&j));
        CHECK_INT(j.end.finish, ENGINE_FINISH_ERROR);
        CHECK_INT(j.error.code, ERR_REFUSED);
    }
    rig_close(&r);
}

TEST(a_full_queue_is_busy_and_a_draining_engine_takes_nothing)
{
    struct rig r = rig_defaults();
    r.opt.max_queued = 2;
    r.opt.max_running = 1;
    struct err err = {0};
    CHECK_OK(rig_open(&r, &(struct fake_options){.pages_per_chunk = 16, .step_us = 2000}, &err),
             err);
    struct job *jobs = jobs_alloc(4);
    for (unsigned i = 0; i < 4; i++)
        job_init(&jobs[i], i, 4, i == 0 ? 450 : 40); // the first runs on while the others queue
    CHECK_OK(job_submit(&r, &jobs[0], &err), err);
    wait_for_tokens(&jobs[0], 2);
    CHECK_OK(job_submit(&r, &jobs[1], &err), err);
    CHECK_OK(job_submit(&r, &jobs[2], &err), err);
    CHECK_CODE(job_submit(&r, &jobs[3], &err), ERR_BUSY, err);
    CHECK_CODE(engine_drain(r.engine, 5, &err), ERR_TIMEOUT, err);
    CHECK_CODE(job_submit(&r, &jobs[3], &err), ERR_BUSY, err);
    CHECK_OK(engine_drain(r.engine, 300000, &err), err);
    for (unsigned i = 0; i < 3; i++)
        CHECK_JOB(&jobs[i]);
    rig_close(&r);
    free(jobs);
}

// ---- ends ---------------------------------------------------------------------------------------

TEST(a_stop_id_ends_an_answer_and_is_shown_only_when_asked_for)
{
    struct rig r = rig_defaults();
    struct err err = {0};
    CHECK_OK(rig_open(&r, &THREADED, &err), err);
    static struct job j;
    int32_t stops[FAKE_VOCAB - 1];
    for (int32_t i = 0; i < FAKE_VOCAB - 1; i++)
        stops[i] = i;
    for (int shown = 0; shown < 2; shown++) {
        job_init(&j, 9, 6, 50); // nearly every id stops, but not before the seventh
        j.request.stop_ids = stops;
        j.request.n_stop_ids = FAKE_VOCAB - 1;
        j.request.min_new_tokens = 6;
        j.request.include_stop_token = shown;
        CHECK_OK(job_submit(&r, &j, &err), err);
        CHECK(job_wait(&j));
        CHECK_INT(j.end.finish, ENGINE_FINISH_STOP);
        CHECK(j.end.n_generated >= 7);
        CHECK_INT(j.n_tokens, j.end.n_generated - (shown ? 0 : 1));
        for (unsigned i = 0; i < 6; i++)
            CHECK_INT(j.tokens[i], FAKE_VOCAB - 1); // all others are forbidden before
        CHECK(j.end.stop_id >= 0 && j.end.stop_id < FAKE_VOCAB - 1);
    }
    rig_close(&r);
}

TEST(the_context_ends_an_answer)
{
    struct rig r = rig_defaults();
    r.opt.context_length = 30;
    struct err err = {0};
    CHECK_OK(rig_open(&r, &PLAIN, &err), err);
    static struct job j;
    job_init(&j, 2, 20, 500);
    j.max_tokens = 30;
    CHECK_OK(job_submit(&r, &j, &err), err);
    CHECK_JOB(&j);
    CHECK_INT(j.end.n_generated, 10);
    rig_close(&r);
}

/* How far another answer had come when this one ended, read on the engine's own thread. */
struct watched {
    struct job *j, *other;
    uint32_t other_at_end;
};

static void watched_event(void *user, const struct engine_event *event)
{
    struct watched *w = user;
    if (event->type == ENGINE_EVENT_FINISHED)
        w->other_at_end = n_tokens_of(w->other);
    job_event(w->j, event);
}

TEST(a_cancelled_request_is_gone_within_two_steps)
{
    struct rig r = rig_defaults();
    struct err err = {0};
    CHECK_OK(
        rig_open(&r,
                 &(struct fake_options){.pages_per_chunk = 16, .threaded = true, .step_us = 5000},
                 &err),
        err);
    struct job *jobs = jobs_alloc(2);
    job_init(&jobs[0], 1, 4, 400);
    job_init(&jobs[1], 2, 4, 400);
    struct watched watched = {.j = &jobs[0], .other = &jobs[1]};
    jobs[0].request.on_event = watched_event;
    jobs[0].request.user = &watched;
    CHECK_OK(job_submit(&r, &jobs[0], &err), err);
    CHECK_OK(job_submit(&r, &jobs[1], &err), err);
    wait_for_tokens(&jobs[0], 3);
    // Read behind the call: this thread may have to wait for its turn before it.
    engine_cancel(r.engine, jobs[0].id);
    uint32_t before = n_tokens_of(&jobs[1]);
    CHECK(job_wait(&jobs[0]));
    uint32_t after = watched.other_at_end;
    CHECK_INT(jobs[0].end.finish, ENGINE_FINISH_CANCELLED);
    CHECK_MSG(after <= before + 3, "the other went on for %u tokens", after - before);
    engine_cancel(r.engine, jobs[0].id); // ended: ignored
    engine_cancel(r.engine, 12345);      // never was
    engine_cancel(r.engine, jobs[1].id);
    CHECK(job_wait(&jobs[1]));
    struct engine_stats stats;
    for (int i = 0; i < 60000; i++) {
        engine_stats(r.engine, &stats);
        if (stats.kv_pages_used == 0)
            break;
        usleep(1000);
    }
    CHECK_INT(stats.kv_pages_used, 0);
    CHECK_INT(stats.n_cancelled, 2);
    rig_close(&r);
    free(jobs);
}

TEST(freeing_an_engine_ends_what_runs_waits_and_loads)
{
    struct rig r = rig_defaults();
    r.opt.max_running = 2;
    struct err err = {0};
    CHECK_OK(
        rig_open(&r,
                 &(struct fake_options){.pages_per_chunk = 16, .threaded = true, .step_us = 1000},
                 &err),
        err);
    fake_source_delay(&r.fake, 20000);
    struct job *jobs = jobs_alloc(20);
    for (unsigned i = 0; i < 20; i++) {
        job_init(&jobs[i], i, 4, 400);
        if (i > 4)
            job_use(&jobs[i], i, 1);
        CHECK_OK(job_submit(&r, &jobs[i], &err), err);
    }
    wait_for_tokens(&jobs[0], 3);
    rig_close(&r);
    for (unsigned i = 0; i < 20; i++) {
        CHECK_INT(jobs[i].n_finished, 1);
        CHECK_INT(jobs[i].end.finish, ENGINE_FINISH_CANCELLED);
    }
    free(jobs);
}

// ---- prompts ------------------------------------------------------------------------------------

TEST(prompt_tokens_are_scored_once_each_in_small_steps_and_with_preemption)
{
    struct rig r = rig_defaults();
    r.limits.max_logit_rows = 6;
    r.limits.max_rows = 9;
    r.opt.max_running = 4;
    r.opt.max_kv_pages = 30;
    struct err err = {0};
    CHECK_OK(rig_open(&r, &THREADED, &err), err);
    struct job *jobs = jobs_alloc(12);
    for (unsigned i = 0; i < 12; i++) {
        job_init(&jobs[i], i, 1 + 4 * i, i % 3 ? 20 : 0);
        jobs[i].request.prompt_logprobs = true;
        if (i % 4 == 1)
            job_use(&jobs[i], i, 1);
        CHECK_OK(job_submit(&r, &jobs[i], &err), err);
    }
    for (unsigned i = 0; i < 12; i++) {
        CHECK_JOB(&jobs[i]);
        EXPECT_INT(jobs[i].n_scores, 4 * i);
        EXPECT_INT(jobs[i].n_wrong_scores, 0);
        EXPECT_INT(jobs[i].end.n_cached, 0);
    }
    rig_close(&r);
    free(jobs);
}

static uint32_t cached_of(struct rig *r, unsigned adapter, float scale, const char *salt)
{
    static struct job j;
    struct err err = {0};
    job_init(&j, 3, 19, 3);
    if (adapter)
        job_use(&j, adapter, scale);
    j.request.cache_salt = salt;
    if (job_submit(r, &j, &err) || !job_wait(&j))
        return UINT32_MAX;
    EXPECT(job_is_right(&j));
    return j.end.n_cached;
}

TEST(a_prefix_is_shared_by_requests_of_one_space_and_no_other)
{
    struct rig r = rig_defaults();
    struct err err = {0};
    CHECK_OK(rig_open(&r, &PLAIN, &err), err);
    EXPECT_INT(cached_of(&r, 0, 1, NULL), 0);
    EXPECT_INT(cached_of(&r, 0, 1, NULL), 16); // four full pages; the last tokens are computed
    EXPECT_INT(cached_of(&r, 2, 1, NULL), 0);
    EXPECT_INT(cached_of(&r, 2, 1, NULL), 16);
    EXPECT_INT(cached_of(&r, 2, 0.5f, NULL), 0);
    EXPECT_INT(cached_of(&r, 0, 1, "tenant"), 0);
    EXPECT_INT(cached_of(&r, 0, 1, "tenant"), 16);
    engine_flush_prefix_cache(r.engine);
    EXPECT_INT(cached_of(&r, 0, 1, NULL), 0);
    rig_close(&r);
}

TEST(a_forgotten_adapter_leaves_every_tier_and_its_pages_go)
{
    struct rig r = rig_defaults();
    struct err err = {0};
    CHECK_OK(rig_open(&r, &PLAIN, &err), err);
    EXPECT_INT(cached_of(&r, 2, 1, NULL), 0);
    EXPECT_INT(cached_of(&r, 2, 1, NULL), 16);
    char id[DIGEST_HEX_CHARS + 1];
    fake_content_id(2, id);
    engine_adapter_forget(r.engine, id);
    struct engine_stats stats;
    for (int i = 0; i < 60000; i++) {
        engine_stats(r.engine, &stats);
        if (stats.n_device_adapters == 0 && stats.n_host_adapters == 0)
            break;
        usleep(1000);
    }
    EXPECT_INT(stats.n_device_adapters, 0);
    EXPECT_INT(stats.n_host_adapters, 0);
    EXPECT_INT(stats.device_adapter_bytes, 0);
    EXPECT_INT(engine_adapters(r.engine, NULL, 0), 0);
    EXPECT_INT(cached_of(&r, 2, 1, NULL), 0);
    rig_close(&r);
}

// ---- pages --------------------------------------------------------------------------------------

TEST(sequences_that_do_not_fit_together_give_way_and_come_back)
{
    struct rig r = rig_defaults();
    r.opt.max_kv_pages = 40; // 160 tokens
    struct err err = {0};
    CHECK_OK(rig_open(&r, &THREADED, &err), err);
    struct job *jobs = jobs_alloc(24);
    unsigned n_preempted = 0;
    for (unsigned i = 0; i < 24; i++) {
        job_init(&jobs[i], i, 5 + i, 100);
        jobs[i].request.sampling.temperature = 1; // the draw must not change by it
        jobs[i].request.sampling.seed = i;
        jobs[i].request.sampling.frequency_penalty = i % 2;
        CHECK_OK(job_submit(&r, &jobs[i], &err), err);
    }
    for (unsigned i = 0; i < 24; i++) {
        CHECK_JOB(&jobs[i]);
        n_preempted += jobs[i].end.n_preempted;
    }
    EXPECT(n_preempted > 0);
    EXPECT_INT(jobs[0].end.n_preempted, 0); // the oldest never gives way
    rig_close(&r);
    free(jobs);
}

// ---- failures of the device ---------------------------------------------------------------------

TEST(a_step_that_fails_ends_its_requests_and_the_engine_goes_on)
{
    struct rig r = rig_defaults();
    struct err err = {0};
    CHECK_OK(rig_open(&r, &THREADED, &err), err);
    struct job *jobs = jobs_alloc(10);
    for (int by_result = 0; by_result < 2; by_result++) {
        if (by_result)
            fake_fail_result(&r.fake, 2);
        else
            fake_fail_submit(&r.fake, 2);
        for (unsigned i = 0; i < 10; i++) {
            job_init(&jobs[i], i + 10 * (unsigned)by_result, 40, 30);
            CHECK_OK(job_submit(&r, &jobs[i], &err), err);
        }
        unsigned n_failed = 0;
        for (unsigned i = 0; i < 10; i++) {
            CHECK(job_wait(&jobs[i]));
            n_failed += jobs[i].end.finish == ENGINE_FINISH_ERROR;
            CHECK(jobs[i].error.code == ERR_DEVICE || job_is_right(&jobs[i]));
        }
        CHECK(n_failed > 0);
        for (unsigned i = 0; i < 10; i++) { // the same prompts: nothing stale is found
            job_init(&jobs[i], i + 10 * (unsigned)by_result, 40, 30);
            CHECK_OK(job_submit(&r, &jobs[i], &err), err);
        }
        for (unsigned i = 0; i < 10; i++)
            CHECK_JOB(&jobs[i]);
    }
    rig_close(&r);
    free(jobs);
}

// ---- memory -------------------------------------------------------------------------------------

TEST(the_decode_loop_allocates_nothing)
{
    struct rig r = rig_defaults();
    r.opt.max_kv_pages = 100; // with preemptions
    struct err err = {0};
    CHECK_OK(
        rig_open(&r,
                 &(struct fake_options){.pages_per_chunk = 16, .threaded = true, .step_us = 300},
                 &err),
        err);
    struct job *jobs = jobs_alloc(12);
    for (unsigned i = 0; i < 12; i++) {
        job_init(&jobs[i], i, 5, 120);
        if (i % 3)
            job_use(&jobs[i], i % 4, 1);
        CHECK_OK(job_submit(&r, &jobs[i], &err), err);
    }
    for (unsigned i = 0; i < 4; i++)
        wait_for_tokens(&jobs[i], 1); // their adapters are there
    struct engine_stats stats;
    do {
        engine_stats(r.engine, &stats);
        usleep(100);
    } while (stats.n_waiting_for_adapter);
    sys_fault(SYS_FAULT_FAIL, SYS_FAULT_ALL, UINT64_MAX); // counts
    for (unsigned i = 0; i < 12; i++)
        CHECK(job_wait(&jobs[i]));
    uint64_t n_calls = sys_fault_count();
    sys_fault(SYS_FAULT_OFF, 0, 0);
    engine_stats(r.engine, &stats);
    EXPECT_INT(n_calls, 0);
    EXPECT_MSG(stats.n_preemptions > 0, "no preemption");
    for (unsigned i = 0; i < 12; i++)
        CHECK_JOB(&jobs[i]);
    rig_close(&r);
    free(jobs);
}

static int open_and_free(void *arg, struct err *err)
{
    struct rig *r = arg;
    int rc = engine_open(&r->engine, &r->opt, err);
    engine_free(r->engine);
    return rc;
}

TEST(an_engine_that_finds_no_memory_does_not_open)
{
    struct rig r = rig_defaults();
    struct err err = {0};
    CHECK_OK(rig_open(&r, &PLAIN, &err), err);
    engine_free(r.engine);
    EXPECT(test_each_fault(SYS_FAULT_MEM, false, open_and_free, &r) >= 25);
    CHECK_OK(engine_open(&r.engine, &r.opt, &err), err);
    rig_close(&r);
}

/* Every allocation of a load fails once: the request fails, or is answered; nothing else. */
TEST(a_request_that_finds_no_memory_fails_alone)
{
    struct err err = {0};
    for (uint64_t n = 1; n < 60; n++) {
        struct rig r = rig_defaults();
        static struct job j;
        CHECK_OK(rig_open(&r, &PLAIN, &err), err);
        job_init(&j, 1, 5, 10);
        job_use(&j, 3, 1);
        sys_fault(SYS_FAULT_FAIL, SYS_FAULT_MEM, n);
        int rc = job_submit(&r, &j, &err);
        if (rc == 0)
            CHECK(job_wait(&j));
        bool hit = sys_fault_hit();
        sys_fault(SYS_FAULT_OFF, 0, 0);
        EXPECT(rc == 0 || rc == ERR_NO_MEMORY);
        if (rc == 0 && j.end.finish == ENGINE_FINISH_ERROR)
            EXPECT_INT(j.error.code, ERR_NO_MEMORY);
        else if (rc == 0)
            EXPECT(job_is_right(&j));
        serve_one(&r, 3);
        rig_close(&r);
        if (!hit)
            return;
    }
    test_fail(__FILE__, __LINE__, "60 allocations are not the end");
}

// ---- trace, cost --------------------------------------------------------------------------------

TEST(the_trace_has_a_line_of_json_a_step)
{
    struct rig r = rig_defaults();
    struct err err = {0};
    char path[4096];
    snprintf(path, sizeof path, "%s/trace", test_tmp());
    r.opt.trace = fopen(path, "w");
    CHECK(r.opt.trace);
    CHECK_OK(rig_open(&r, &PLAIN, &err), err);
    serve_one(&r, 3);
    struct engine_stats stats;
    engine_stats(r.engine, &stats);
    rig_close(&r);
    fclose(r.opt.trace);
    FILE *f = fopen(path, "r");
    CHECK(f);
    char line[4096], id[DIGEST_HEX_CHARS + 1];
    fake_content_id(3, id);
    uint64_t n = 0;
    while (fgets(line, sizeof line, f)) {
        json_t *step = json_loads(line, 0, NULL);
        CHECK_MSG(step, "no JSON: %s", line);
        json_t *rows = json_object_get(step, "rows");
        EXPECT_INT(json_integer_value(json_object_get(step, "step")), ++n);
        EXPECT(json_equal(json_object_get(json_object_get(step, "adapters"), id), rows));
        EXPECT_INT(json_integer_value(json_object_get(step, "decode")) +
                       json_integer_value(json_object_get(step, "prefill")),
                   json_integer_value(rows));
        EXPECT(json_integer_value(json_object_get(step, "kv_pages")) > 0);
        EXPECT(json_is_integer(json_object_get(step, "ns")));
        json_decref(step);
    }
    fclose(f);
    EXPECT(n >= 10);
}

/* Host time a step at 256 sequences over 32 adapters, a back end that does nothing but copy the
 * step.
 */
TEST(a_step_of_256_sequences_costs_the_host_little)
{
    struct rig r = rig_defaults();
    struct err err = {0};
    r.limits = (struct step_limits){.max_rows = 8192,
                                    .max_sequences = 256,
                                    .max_logit_rows = 256,
                                    .max_segments = 1024,
                                    .max_slots = 64,
                                    .max_pages = 32768,
                                    .page_tokens = 16};
    r.opt.context_length = 1024;
    r.opt.pool_bytes = 200ull * BACKEND_CHUNK_BYTES;
    CHECK_OK(rig_open(&r, &(struct fake_options){.pages_per_chunk = 256, .no_model = true}, &err),
             err);
    struct job *jobs = jobs_alloc(256);
    for (unsigned i = 0; i < 256; i++) {
        job_init(&jobs[i], i, 200, 500);
        job_use(&jobs[i], 1 + i % 32, 1);
        CHECK_OK(job_submit(&r, &jobs[i], &err), err);
    }
    for (unsigned i = 0; i < 256; i++)
        wait_for_tokens(&jobs[i], 1);
    struct engine_stats before, after;
    engine_stats(r.engine, &before);
    uint64_t begin = thread_now_ns();
    for (unsigned i = 0; i < 256; i++)
        CHECK(job_wait(&jobs[i]));
    uint64_t ns = thread_now_ns() - begin;
    engine_stats(r.engine, &after);
    double us = (double)ns / 1000 / (double)(after.n_steps - before.n_steps);
    printf("# host time a step, 256 decode rows of 32 adapters at 200 to 700 tokens: %.0f us "
           "(%llu steps)\n",
           us, (unsigned long long)(after.n_steps - before.n_steps));
    EXPECT_MSG(us < 20000, "%.0f us", us); // ThreadSanitizer on a busy machine
    rig_close(&r);
    free(jobs);
}
