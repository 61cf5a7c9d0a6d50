#include "libcore/merge/each.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#include "libcore/base/thread.h"

struct each {
    size_t n;
    bool (*stop)(void);
    int (*body)(void *arg, size_t i, struct err *err);
    void *arg;
    atomic_size_t next;
    atomic_bool ended;
    pthread_mutex_t lock; // of the two below
    size_t failed_idx;
    struct err failure;
};

static void fail(struct each *e, size_t idx, const struct err *err)
{
    pthread_mutex_lock(&e->lock);
    if (!e->failure.code || idx < e->failed_idx) {
        e->failed_idx = idx;
        e->failure = *err;
    }
    pthread_mutex_unlock(&e->lock);
    atomic_store(&e->ended, true);
}

static void work(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    struct each *e = arg;
    (void)begin;
    (void)end;
    (void)thread_idx;
    while (!atomic_load(&e->ended)) {
        size_t i = atomic_fetch_add(&e->next, 1);
        struct err err = {0};
        if (i >= e->n)
            return;
        int rc = e->stop && e->stop() ? err_set(&err, ERR_INTERRUPTED, "interrupted")
                                      : e->body(e->arg, i, &err);
        if (rc)
            fail(e, i, &err);
    }
}

int each_run(size_t n, unsigned n_threads, bool (*stop)(void),
             int (*body)(void *arg, size_t i, struct err *err), void *arg, struct err *err)
{
    struct each e = {.n = n, .stop = stop, .body = body, .arg = arg};
    struct worker_pool *pool;
    int rc = worker_pool_open(&pool, n_threads, err);
    if (rc)
        return rc;
    atomic_init(&e.next, 0);
    atomic_init(&e.ended, false);
    pthread_mutex_init(&e.lock, NULL);
    worker_pool_run(pool, worker_pool_size(pool), 1, work, &e);
    worker_pool_free(pool);
    pthread_mutex_destroy(&e.lock);
    if (e.failure.code && err)
        *err = e.failure;
    return e.failure.code;
}
