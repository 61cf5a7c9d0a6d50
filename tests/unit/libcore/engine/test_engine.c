#include "tests/unit/libcore/engine/rig.h"

static const struct fake_options PLAIN = {.pages_per_chunk = 16};
static const struct fake_options THREADED = {.pages_per_chunk = 16, .threaded = true};

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
