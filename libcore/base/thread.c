#include "libcore/base/thread.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "libcore/base/sys.h"

// ---- clock and processors ----------------------------------------------------------------------

static uint64_t read_clock(clockid_t id)
{
    struct timespec ts;
    clock_gettime(id, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

uint64_t thread_now_ns(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

uint64_t thread_unix_ns(void)
{
    return read_clock(CLOCK_REALTIME);
}

unsigned thread_n_processors(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0)
        return (unsigned)CPU_COUNT(&set);
    long n = sysconf(_SC_NPROCESSORS_ONLN); // more than CPU_SETSIZE processors
    return n > 0 ? (unsigned)n : 1;
}

// ---- parallel ranges ---------------------------------------------------------------------------

/*
 * A run is published by raising `generation`. Its ranges, one a thread, are claimed: a worker takes
 * its own first and then whatever nobody has begun, and so does the caller, so that a run never
 * waits for a thread that the system has not scheduled, only for ranges that were begun. A claim
 * moves a range's number from the generation before to this one; who comes late finds it moved.
 * Workers look at `generation` for a short while before they sleep, because the arithmetic of one
 * step comes as hundreds of short runs and a wake-up costs more than many of them.
 */
enum { SPINS = 4000, CACHE_LINE = 64 };

struct worker {
    struct worker_pool *pool;
    pthread_t thread;
    unsigned idx;
    atomic_uint claimed; // generation in which range `idx` was last claimed
    char apart[CACHE_LINE];
};

struct worker_pool {
    unsigned n_threads;
    struct worker *workers; // n_threads; the first stands for the caller
    unsigned n_started;
    unsigned n_spins; // 0 where the pool has more threads than processors
    // One run's words, written before `generation` is raised, read by who has claimed a range.
    size_t n, grain;
    void (*body)(void *arg, size_t begin, size_t end, unsigned thread_idx);
    void *arg;
    atomic_uint generation;
    atomic_uint n_left; // ranges of this run that are not done
    atomic_uint n_sleeping;
    atomic_bool caller_sleeps;
    atomic_bool stop;
    pthread_mutex_t mutex; // only for sleeping
    pthread_cond_t work, idle;
};

static void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* The idx-th of n_threads consecutive ranges, in whole grains. */
static void run_range(const struct worker_pool *p, unsigned idx)
{
    size_t n_grains = (p->n + p->grain - 1) / p->grain;
    size_t each = n_grains / p->n_threads, rest = n_grains % p->n_threads;
    size_t first = idx * each + (idx < rest ? idx : rest);
    size_t last = first + each + (idx < rest);
    size_t begin = first * p->grain;
    size_t end = last == n_grains ? p->n : last * p->grain;
    if (first < last)
        p->body(p->arg, begin, end, idx);
}

static void range_done(struct worker_pool *p)
{
    if (atomic_fetch_sub(&p->n_left, 1) != 1 || !atomic_load(&p->caller_sleeps))
        return;
    pthread_mutex_lock(&p->mutex);
    pthread_cond_signal(&p->idle);
    pthread_mutex_unlock(&p->mutex);
}

/* Runs every range of this generation that is still free, beginning with the own one. */
static void run_free_ranges(struct worker_pool *p, unsigned generation, unsigned own)
{
    for (unsigned i = 0; i < p->n_threads; i++) {
        unsigned idx = (own + i) % p->n_threads, before = generation - 1;
        atomic_uint *claimed = &p->workers[idx].claimed;
        if (atomic_load_explicit(claimed, memory_order_relaxed) != before ||
            !atomic_compare_exchange_strong(claimed, &before, generation))
            continue;
        run_range(p, idx);
        range_done(p);
    }
}

/* Waits until a generation other than `seen` is there; returns it. */
static unsigned wait_for_work(struct worker_pool *p, unsigned seen)
{
    unsigned now;
    for (unsigned i = 0; i < p->n_spins; i++) {
        now = atomic_load_explicit(&p->generation, memory_order_acquire);
        if (now != seen)
            return now;
        cpu_relax();
    }
    pthread_mutex_lock(&p->mutex);
    atomic_fetch_add(&p->n_sleeping, 1);
    while ((now = atomic_load(&p->generation)) == seen)
        pthread_cond_wait(&p->work, &p->mutex);
    atomic_fetch_sub(&p->n_sleeping, 1);
    pthread_mutex_unlock(&p->mutex);
    return now;
}

static unsigned publish(struct worker_pool *p)
{
    unsigned generation = atomic_fetch_add(&p->generation, 1) + 1;
    if (atomic_load(&p->n_sleeping) > 0) {
        pthread_mutex_lock(&p->mutex);
        pthread_cond_broadcast(&p->work);
        pthread_mutex_unlock(&p->mutex);
    }
    return generation;
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct worker_pool *p = w->pool;
    unsigned seen = 0;
    for (;;) {
        seen = wait_for_work(p, seen);
        if (atomic_load(&p->stop))
            return NULL;
        run_free_ranges(p, seen, w->idx);
    }
}

int worker_pool_open(struct worker_pool **out, unsigned n_threads, struct err *err)
{
    *out = NULL;
    unsigned n_processors = thread_n_processors();
    if (n_threads == 0)
        n_threads = n_processors;
    struct worker_pool *p = sys_calloc(1, sizeof *p);
    if (!p)
        return err_set(err, ERR_NO_MEMORY, "no memory for a pool of %u threads", n_threads);
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->idle, NULL);
    p->n_threads = n_threads;
    p->n_spins = n_threads <= n_processors ? SPINS : 0;
    p->workers = sys_calloc(n_threads, sizeof *p->workers);
    if (!p->workers) {
        worker_pool_free(p);
        return err_set(err, ERR_NO_MEMORY, "no memory for a pool of %u threads", n_threads);
    }
    for (unsigned i = 1; i < n_threads; i++) {
        struct worker *w = &p->workers[i];
        w->pool = p;
        w->idx = i;
        int rc = pthread_create(&w->thread, NULL, worker_main, w);
        if (rc != 0) {
            worker_pool_free(p);
            return err_set_errno(err, rc, "cannot start thread %u of %u", i + 1, n_threads);
        }
        p->n_started = i;
    }
    *out = p;
    return 0;
}

void worker_pool_free(struct worker_pool *p)
{
    if (!p)
        return;
    atomic_store(&p->stop, true);
    publish(p);
    for (unsigned i = 1; i <= p->n_started; i++)
        pthread_join(p->workers[i].thread, NULL);
    pthread_cond_destroy(&p->work);
    pthread_cond_destroy(&p->idle);
    pthread_mutex_destroy(&p->mutex);
    sys_free(p->workers);
    sys_free(p);
}

unsigned worker_pool_size(const struct worker_pool *p)
{
    return p->n_threads;
}

static void wait_until_idle(struct worker_pool *p)
{
    for (unsigned i = 0; i < p->n_spins; i++) {
        if (atomic_load_explicit(&p->n_left, memory_order_acquire) == 0)
            return;
        cpu_relax();
    }
    pthread_mutex_lock(&p->mutex);
    atomic_store(&p->caller_sleeps, true);
    while (atomic_load(&p->n_left) != 0)
        pthread_cond_wait(&p->idle, &p->mutex);
    atomic_store(&p->caller_sleeps, false);
    pthread_mutex_unlock(&p->mutex);
}

void worker_pool_run(struct worker_pool *p, size_t n, size_t grain,
                     void (*body)(void *arg, size_t begin, size_t end, unsigned thread_idx),
                     void *arg)
{
    if (n == 0)
        return;
    if (grain == 0)
        grain = 1;
    if (p->n_threads == 1 || n <= grain) {
        body(arg, 0, n, 0);
        return;
    }
    p->n = n;
    p->grain = grain;
    p->body = body;
    p->arg = arg;
    atomic_store_explicit(&p->n_left, p->n_threads, memory_order_relaxed);
    run_free_ranges(p, publish(p), 0);
    wait_until_idle(p);
}

// ---- jobs --------------------------------------------------------------------------------------

struct job {
    void (*run)(void *arg);
    void *arg;
};

struct job_queue {
    pthread_mutex_t mutex;
    pthread_cond_t work;
    struct job *ring;
    size_t max_jobs, first, n_waiting;
    bool stop;
    unsigned n_started;
    pthread_t *threads;
    char name[16];
};

static void *job_main(void *arg)
{
    struct job_queue *q = arg;
    pthread_mutex_lock(&q->mutex);
    for (;;) {
        while (q->n_waiting == 0 && !q->stop)
            pthread_cond_wait(&q->work, &q->mutex);
        if (q->n_waiting == 0)
            break;
        struct job job = q->ring[q->first];
        q->first = (q->first + 1) % q->max_jobs;
        q->n_waiting--;
        pthread_mutex_unlock(&q->mutex);
        job.run(job.arg);
        pthread_mutex_lock(&q->mutex);
    }
    pthread_mutex_unlock(&q->mutex);
    return NULL;
}

int job_queue_open(struct job_queue **out, unsigned n_threads, size_t max_jobs, const char *name,
                   struct err *err)
{
    *out = NULL;
    if (n_threads == 0 || max_jobs == 0)
        return err_set(err, ERR_LIMIT, "job queue %s: %u threads for %zu jobs, wanted 1 or more",
                       name, n_threads, max_jobs);
    struct job_queue *q = sys_calloc(1, sizeof *q);
    if (!q)
        return err_set(err, ERR_NO_MEMORY, "job queue %s: no memory", name);
    pthread_mutex_init(&q->mutex, NULL);
    pthread_cond_init(&q->work, NULL);
    snprintf(q->name, sizeof q->name, "%s", name);
    q->max_jobs = max_jobs;
    q->ring = sys_calloc(max_jobs, sizeof *q->ring);
    q->threads = sys_calloc(n_threads, sizeof *q->threads);
    if (!q->ring || !q->threads) {
        job_queue_free(q);
        return err_set(err, ERR_NO_MEMORY, "job queue %s: no memory for %zu jobs", name, max_jobs);
    }
    for (unsigned i = 0; i < n_threads; i++) {
        int rc = pthread_create(&q->threads[i], NULL, job_main, q);
        if (rc != 0) {
            job_queue_free(q);
            return err_set_errno(err, rc, "job queue %s: cannot start a thread", name);
        }
        pthread_setname_np(q->threads[i], q->name);
        q->n_started++;
    }
    *out = q;
    return 0;
}

void job_queue_free(struct job_queue *q)
{
    if (!q)
        return;
    pthread_mutex_lock(&q->mutex);
    q->stop = true;
    pthread_cond_broadcast(&q->work);
    pthread_mutex_unlock(&q->mutex);
    for (unsigned i = 0; i < q->n_started; i++)
        pthread_join(q->threads[i], NULL);
    pthread_cond_destroy(&q->work);
    pthread_mutex_destroy(&q->mutex);
    sys_free(q->ring);
    sys_free(q->threads);
    sys_free(q);
}

int job_queue_add(struct job_queue *q, void (*run)(void *arg), void *arg, struct err *err)
{
    pthread_mutex_lock(&q->mutex);
    bool full = q->n_waiting == q->max_jobs;
    if (!full) {
        q->ring[(q->first + q->n_waiting) % q->max_jobs] = (struct job){run, arg};
        q->n_waiting++;
        pthread_cond_signal(&q->work);
    }
    pthread_mutex_unlock(&q->mutex);
    if (full)
        return err_set(err, ERR_BUSY, "%s: %zu jobs are waiting already", q->name, q->max_jobs);
    return 0;
}
