#include "libcore/base/thread.h"

#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

#include "tests/lib/fault.h"
#include "tests/lib/test.h"

/* tiers: check asan tsan */

enum { MAX_N = 5000 };

struct cover {
    unsigned char seen[MAX_N]; // each cell is one thread's, if ranges do not overlap
    size_t begin[64], end[64];
};

static void cover(void *arg, size_t begin, size_t end, unsigned idx)
{
    struct cover *c = arg;
    for (size_t i = begin; i < end; i++)
        c->seen[i]++;
    c->begin[idx] = begin;
    c->end[idx] = end;
}

TEST(ranges_cover_everything_once_in_whole_grains)
{
    struct err err;
    for (unsigned n_threads = 1; n_threads <= 5; n_threads++) {
        struct worker_pool *p;
        CHECK_OK(worker_pool_open(&p, n_threads, &err), err);
        EXPECT_INT(worker_pool_size(p), n_threads);
        for (size_t n = 0; n < MAX_N; n = n * 3 / 2 + 1) {
            for (size_t grain = 0; grain < 70; grain = grain * 2 + 1) {
                struct cover c = {0};
                worker_pool_run(p, n, grain, cover, &c);
                for (size_t i = 0; i < MAX_N; i++)
                    CHECK_MSG(c.seen[i] == (i < n),
                              "%u threads, n %zu, grain %zu: %zu seen %d times", n_threads, n,
                              grain, i, c.seen[i]);
                for (unsigned t = 0; t < n_threads; t++)
                    CHECK(grain < 2 || c.end[t] == n || (c.end[t] - c.begin[t]) % grain == 0);
            }
        }
        worker_pool_free(p);
    }
}

TEST(the_same_words_give_the_same_ranges)
{
    struct err err;
    struct worker_pool *p;
    CHECK_OK(worker_pool_open(&p, 3, &err), err);
    struct cover first = {0};
    worker_pool_run(p, 1000, 16, cover, &first);
    for (int i = 0; i < 100; i++) {
        struct cover again = {0};
        worker_pool_run(p, 1000, 16, cover, &again);
        CHECK(memcmp(&first, &again, sizeof first) == 0);
    }
    worker_pool_free(p);
}

static void add_up(void *arg, size_t begin, size_t end, unsigned idx)
{
    (void)idx;
    uint64_t sum = 0;
    for (size_t i = begin; i < end; i++)
        sum += i;
    atomic_fetch_add((_Atomic uint64_t *)arg, sum);
}

TEST(many_short_runs_and_sleeps_between_lose_nothing)
{
    struct err err;
    struct worker_pool *p;
    CHECK_OK(worker_pool_open(&p, 4, &err), err);
    for (int i = 0; i < 3000; i++) {
        _Atomic uint64_t sum = 0;
        worker_pool_run(p, 100, 1, add_up, &sum);
        CHECK_INT(sum, 4950);
        if (i % 500 == 0)
            usleep(3000); // long enough for the workers to fall asleep
    }
    worker_pool_free(p);
}

TEST(a_pool_that_never_ran_is_freed)
{
    struct err err;
    struct worker_pool *p;
    CHECK_OK(worker_pool_open(&p, 0, &err), err);
    EXPECT_INT(worker_pool_size(p), thread_n_processors());
    worker_pool_free(p);
    worker_pool_free(NULL);
}

static void count_job(void *arg)
{
    atomic_fetch_add((atomic_int *)arg, 1);
}

TEST(jobs_run_once_each_and_freeing_waits_for_them)
{
    struct err err;
    struct job_queue *q;
    atomic_int n = 0;
    CHECK_OK(job_queue_open(&q, 3, 2000, "unit", &err), err);
    for (int i = 0; i < 2000; i++)
        CHECK_OK(job_queue_add(q, count_job, &n, &err), err);
    job_queue_free(q);
    EXPECT_INT(n, 2000);
    job_queue_free(NULL);
}

static void wait_for(void *arg)
{
    while (!atomic_load((atomic_bool *)arg))
        usleep(100);
}

TEST(a_full_queue_says_so)
{
    struct err err;
    struct job_queue *q;
    atomic_bool go = false;
    CHECK_OK(job_queue_open(&q, 1, 2, "unit", &err), err);
    CHECK_OK(job_queue_add(q, wait_for, &go, &err), err);
    int n = 0; // until the worker has taken the first, two or three fit
    while (job_queue_add(q, wait_for, &go, &err) == 0)
        n++;
    EXPECT_INT(err.code, ERR_BUSY);
    EXPECT(n >= 1 && n <= 2);
    atomic_store(&go, true);
    job_queue_free(q);
    CHECK_CODE(job_queue_open(&q, 0, 2, "unit", &err), ERR_LIMIT, err);
}

static int open_both(void *arg, struct err *err)
{
    (void)arg;
    struct worker_pool *p;
    struct job_queue *q;
    int rc = worker_pool_open(&p, 2, err);
    worker_pool_free(p);
    if (rc)
        return rc;
    rc = job_queue_open(&q, 2, 4, "unit", err);
    job_queue_free(q);
    return rc;
}

TEST(a_failed_allocation_opens_nothing)
{
    EXPECT(test_each_fault(SYS_FAULT_MEM, false, open_both, NULL) >= 5);
}

TEST(clocks_run)
{
    uint64_t a = thread_now_ns(), u = thread_unix_ns();
    usleep(2000);
    EXPECT(thread_now_ns() - a >= 2000000);
    EXPECT(thread_unix_ns() > u);
    EXPECT(u > UINT64_C(1700000000) * 1000000000);
}
