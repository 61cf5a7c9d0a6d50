/*
 * What the engine promises about adapters: loads, tiers, room and fairness, over the fake back end.
 * tiers: check asan tsan
 */
#include "tests/unit/libcore/engine/rig.h"

TEST(answers_one_request_of_each_of_thirty_adapters_over_sixteen_slots)
{
    struct rig r = rig_defaults();
    struct err err = {0};
    CHECK_OK(rig_open(&r, &THREADED, &err), err);
    static struct job jobs[60];
    for (unsigned i = 0; i < 60; i++) {
        job_init(&jobs[i], i, 1 + i % 37, 1 + i % 50);
        if (i % 2)
            job_use(&jobs[i], i, 1);
        CHECK_OK(job_submit(&r, &jobs[i], &err), err);
    }
    for (unsigned i = 0; i < 60; i++)
        CHECK_JOB(&jobs[i]);
    rig_close(&r);
}

TEST(requests_for_one_adapter_share_its_load)
{
    struct rig r = rig_defaults();
    struct err err = {0};
    CHECK_OK(rig_open(&r, &(struct fake_options){.pages_per_chunk = 16, .load_polls = 5}, &err),
             err);
    fake_source_delay(&r.fake, 20000);
    struct job *jobs = jobs_alloc(12);
    for (unsigned i = 0; i < 12; i++) {
        job_init(&jobs[i], i, 5, 10);
        job_use(&jobs[i], 7, 1);
        CHECK_OK(job_submit(&r, &jobs[i], &err), err);
    }
    for (unsigned i = 0; i < 12; i++) {
        CHECK_JOB(&jobs[i]);
        EXPECT(jobs[i].end.adapter_wait_ns >= 15000000);
    }
    EXPECT_INT(fake_source_gets(&r.fake), 1);
    rig_close(&r);
    free(jobs);
}

TEST(a_slow_load_does_not_stop_the_batch)
{
    struct rig r = rig_defaults();
    struct err err = {0};
    CHECK_OK(rig_open(&r, &THREADED, &err), err);
    fake_source_delay(&r.fake, 300000);
    struct job *jobs = jobs_alloc(2);
    job_init(&jobs[0], 1, 5, 10);
    job_use(&jobs[0], 7, 1);
    job_init(&jobs[1], 2, 5, 200);
    CHECK_OK(job_submit(&r, &jobs[0], &err), err);
    CHECK_OK(job_submit(&r, &jobs[1], &err), err);
    CHECK_JOB(&jobs[1]);
    CHECK_JOB(&jobs[0]);
    EXPECT(jobs[1].end.finished_ns < jobs[0].end.first_token_ns);
    rig_close(&r);
    free(jobs);
}

TEST(a_load_that_fails_is_told_to_all_who_wait_and_tried_again_later)
{
    struct rig r = rig_defaults();
    struct err err = {0};
    CHECK_OK(rig_open(&r, &PLAIN, &err), err);
    fake_source_delay(&r.fake, 10000);
    fake_source_fail(&r.fake, 7, ERR_CORRUPT);
    struct job *jobs = jobs_alloc(6);
    for (unsigned i = 0; i < 6; i++) {
        job_init(&jobs[i], i, 5, 10);
        if (i < 4)
            job_use(&jobs[i], 7, 1);
        CHECK_OK(job_submit(&r, &jobs[i], &err), err);
    }
    for (unsigned i = 0; i < 4; i++) {
        CHECK(job_wait(&jobs[i]));
        CHECK_INT(jobs[i].end.finish, ENGINE_FINISH_ERROR);
        CHECK_INT(jobs[i].error.code, ERR_CORRUPT);
        CHECK_STR(jobs[i].error.msg, "fake: adapter 7 fails to load");
    }
    CHECK_JOB(&jobs[4]);
    fake_source_fail(&r.fake, 0, 0);
    job_init(&jobs[5], 9, 5, 10);
    job_use(&jobs[5], 7, 1);
    CHECK_OK(job_submit(&r, &jobs[5], &err), err);
    CHECK_JOB(&jobs[5]);
    fake_fail_upload(&r.fake, 1);
    job_init(&jobs[0], 9, 5, 10);
    job_use(&jobs[0], 8, 1);
    CHECK_OK(job_submit(&r, &jobs[0], &err), err);
    CHECK(job_wait(&jobs[0]));
    CHECK_INT(jobs[0].error.code, ERR_DEVICE);
    struct engine_stats stats;
    engine_stats(r.engine, &stats);
    EXPECT_INT(stats.load_failures, 2);
    rig_close(&r);
    free(jobs);
}

TEST(replacements_and_gains_are_served_beside_plain_adapters)
{
    struct rig r = rig_defaults();
    r.limits.max_slots = 3;
    struct err err = {0};
    CHECK_OK(rig_open(&r, &THREADED, &err), err);
    struct job *jobs = jobs_alloc(40);
    for (unsigned i = 0; i < 40; i++) {
        job_init(&jobs[i], i, 5, 20);
        job_use(&jobs[i],
                i % 3 == 0   ? FAKE_FULL | i % 5
                : i % 3 == 1 ? FAKE_DORA | i % 5
                             : i % 5,
                1);
        CHECK_OK(job_submit(&r, &jobs[i], &err), err);
    }
    for (unsigned i = 0; i < 40; i++)
        CHECK_JOB(&jobs[i]);
    rig_close(&r);
    free(jobs);
}

TEST(an_evicted_image_comes_back_from_the_pack_and_not_from_the_adapter)
{
    struct rig r = rig_defaults();
    r.opt.base_fingerprint = "base";
    r.opt.max_host_adapters = 1;
    r.limits.max_slots = 1;
    struct err err = {0};
    CHECK_OK(rig_open(&r, &PLAIN, &err), err);
    serve_one(&r, 1);
    serve_one(&r, 2);
    CHECK_INT(fake_source_gets(&r.fake), 2);
    serve_one(&r, 1);
    CHECK_INT(fake_source_gets(&r.fake), 2);
    CHECK_INT(fake_source_pack_reads(&r.fake), 1);
    struct engine_stats stats;
    engine_stats(r.engine, &stats);
    EXPECT_INT(stats.n_device_adapters, 1);
    EXPECT_INT(stats.evictions[1], 2);
    EXPECT_INT(stats.loads[1], 3);
    EXPECT_INT(stats.misses, 3);
    rig_close(&r);
}

static enum engine_tier tier_of(struct rig *r, unsigned number)
{
    struct engine_adapter_info infos[64];
    char id[DIGEST_HEX_CHARS + 1];
    fake_content_id(number, id);
    size_t n = engine_adapters(r->engine, infos, 64);
    for (size_t i = 0; i < n; i++) {
        if (strcmp(infos[i].content_id, id) == 0)
            return infos[i].tier;
    }
    return ENGINE_TIER_DISK;
}

TEST(a_pinned_adapter_stays_and_a_pin_too_many_is_refused)
{
    struct rig r = rig_defaults();
    r.opt.adapter_bytes = 2ull * BACKEND_CHUNK_BYTES;
    struct err err = {0};
    CHECK_OK(rig_open(&r, &PLAIN, &err), err);
    char id[DIGEST_HEX_CHARS + 1], large[DIGEST_HEX_CHARS + 1];
    fake_content_id(1, id);
    fake_content_id(9, large); // rank 10: two chunks
    struct adapter *a = fake_adapter(1), *b = fake_adapter(9);
    CHECK_OK(engine_adapter_register(r.engine, a, &err), err);
    CHECK_OK(engine_adapter_register(r.engine, b, &err), err);
    adapter_free(a);
    adapter_free(b);
    CHECK_OK(engine_adapter_prefetch(r.engine, id, true, &err), err);
    CHECK_CODE(engine_adapter_prefetch(r.engine, large, true, &err), ERR_LIMIT, err);
    for (unsigned i = 2; i < 7; i++)
        serve_one(&r, i);
    CHECK_INT(tier_of(&r, 1), ENGINE_TIER_DEVICE);
    engine_adapter_unpin(r.engine, id);
    serve_one(&r, 9);
    CHECK(tier_of(&r, 1) != ENGINE_TIER_DEVICE);
    rig_close(&r);
}

TEST(an_adapter_that_can_never_fit_is_refused)
{
    struct rig r = rig_defaults();
    r.opt.adapter_bytes = 1ull * BACKEND_CHUNK_BYTES;
    struct err err = {0};
    CHECK_OK(rig_open(&r, &PLAIN, &err), err);
    static struct job j;
    job_init(&j, 1, 5, 10);
    job_use(&j, 15, 1); // rank 16: two chunks
    CHECK_OK(job_submit(&r, &j, &err), err);
    CHECK(job_wait(&j));
    CHECK_INT(j.error.code, ERR_LIMIT);
    job_init(&j, 1, 5, 10); // each fits, both do not
    job_use(&j, 1, 1);
    job_use(&j, 2, 1);
    CHECK_OK(job_submit(&r, &j, &err), err);
    CHECK(job_wait(&j));
    CHECK_INT(j.error.code, ERR_LIMIT);
    serve_one(&r, 1);
    rig_close(&r);
}

/* Two adapters fill the device and always have requests; a third must get its turn all the same. */
TEST(an_adapter_that_finds_no_room_is_served_before_long)
{
    struct rig r = rig_defaults();
    r.limits.max_slots = 2;
    r.opt.max_running = 4;
    struct err err = {0};
    CHECK_OK(rig_open(&r, &SLOW, &err), err);
    enum { BUSY = 400 };
    struct job *jobs = jobs_alloc(BUSY + 1);
    for (unsigned i = 0; i < BUSY; i++) {
        job_init(&jobs[i], i, 5, 20);
        job_use(&jobs[i], 1 + i % 2, 1);
        CHECK_OK(job_submit(&r, &jobs[i], &err), err);
    }
    job_init(&jobs[BUSY], 9, 5, 20);
    job_use(&jobs[BUSY], 3, 1);
    CHECK(job_wait(&jobs[5]));
    CHECK_OK(job_submit(&r, &jobs[BUSY], &err), err);
    CHECK_JOB(&jobs[BUSY]);
    unsigned n_before = 0;
    for (unsigned i = 0; i < BUSY; i++) {
        CHECK_JOB(&jobs[i]);
        n_before += jobs[i].end.finished_ns < jobs[BUSY].end.finished_ns;
    }
    EXPECT_MSG(n_before < BUSY / 2, "%u of %u requests were served before it", n_before, BUSY);
    rig_close(&r);
    free(jobs);
}

TEST(a_step_holds_no_more_segments_than_the_back_end_takes)
{
    struct rig r = rig_defaults();
    r.limits.max_segments = 4;
    struct err err = {0};
    CHECK_OK(rig_open(&r, &THREADED, &err), err);
    struct job *jobs = jobs_alloc(30);
    for (unsigned i = 0; i < 30; i++) {
        job_init(&jobs[i], i, 5, 30);
        job_use(&jobs[i], 1 + i % 7, 1);
        if (i % 10 == 9)
            job_use(&jobs[i], 9, 0.5f);
        CHECK_OK(job_submit(&r, &jobs[i], &err), err);
    }
    for (unsigned i = 0; i < 30; i++)
        CHECK_JOB(&jobs[i]);
    rig_close(&r);
    free(jobs);
}

TEST(a_crowd_of_one_adapter_does_not_hold_up_the_base)
{
    struct rig r = rig_defaults();
    r.opt.max_running = 4;
    struct err err = {0};
    CHECK_OK(rig_open(&r, &THREADED, &err), err);
    enum { CROWD = 200 };
    struct job *jobs = jobs_alloc(CROWD + 1);
    for (unsigned i = 0; i <= CROWD; i++) {
        job_init(&jobs[i], i, 5, 20);
        if (i < CROWD)
            job_use(&jobs[i], 1, 1);
        CHECK_OK(job_submit(&r, &jobs[i], &err), err);
    }
    CHECK_JOB(&jobs[CROWD]);
    unsigned n_before = 0;
    for (unsigned i = 0; i <= CROWD; i++) {
        CHECK_JOB(&jobs[i]);
        n_before += jobs[i].end.finished_ns < jobs[CROWD].end.finished_ns;
    }
    EXPECT_MSG(n_before < CROWD / 2, "%u requests were served before it", n_before);
    rig_close(&r);
    free(jobs);
}
