/*
 * thread: a pool that runs one loop body over ranges (arithmetic), a pool that runs jobs (loads,
 * tokenising), and the monotonic clock. Both pools own their threads and join them when freed.
 */
#ifndef LIBCORE_BASE_THREAD_H
#define LIBCORE_BASE_THREAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/err.h"

/* ---- parallel ranges: used by one calling thread at a time ---- */
struct worker_pool;

/* n_threads counts the caller; 0: the processors this process may run on. n_threads 1 starts none.
 */
int worker_pool_open(struct worker_pool **out, unsigned n_threads, struct err *err);
void worker_pool_free(struct worker_pool *p);
unsigned worker_pool_size(const struct worker_pool *p);

/* Calls body(arg, begin, end, thread_idx) so that [0, n) is covered once by consecutive ranges, at
 * most one a thread, each a multiple of `grain` long but the last. Returns when all are done.
 * A static split: the same n, grain and pool size give the same ranges. thread_idx is the range's
 * number: it is good for scratch memory of the range's own. Which thread runs a range is not said:
 * one that the system keeps waiting is not waited for, another takes its range. */
void worker_pool_run(struct worker_pool *p, size_t n, size_t grain,
                     void (*body)(void *arg, size_t begin, size_t end, unsigned thread_idx),
                     void *arg);

/* ---- jobs: any thread may queue ---- */
struct job_queue;

int job_queue_open(struct job_queue **out, unsigned n_threads, size_t max_jobs, const char *name,
                   struct err *err);
void job_queue_free(struct job_queue *q); // runs what is queued, then joins
/* Queues run(arg); ERR_BUSY when max_jobs wait. */
int job_queue_add(struct job_queue *q, void (*run)(void *arg), void *arg, struct err *err);

uint64_t thread_now_ns(void);  // CLOCK_MONOTONIC
uint64_t thread_unix_ns(void); // CLOCK_REALTIME
unsigned thread_n_processors(void);

#endif
