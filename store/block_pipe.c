#include "store/block_pipe.h"

#include <pthread.h>
#include <stdbool.h>

#include "libcore/base/sys.h"

struct block_pipe {
    int (*work)(void *arg, const void *data, size_t n, struct err *err);
    void *arg;
    char *slots;
    size_t slot_bytes, sizes[BLOCK_PIPE_SLOTS];
    pthread_t thread;
    bool runs;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint64_t n_given, n_done; // blocks; the difference is what waits or is worked on
    bool ended, given_up;
    int rc;
    struct err err; // of the work
};

static char *slot_at(struct block_pipe *p, uint64_t i)
{
    return p->slots + (size_t)(i % BLOCK_PIPE_SLOTS) * p->slot_bytes;
}

/* Waits for block i; false: there is none, or it is not wanted any more. */
static bool next_block(struct block_pipe *p, uint64_t i)
{
    pthread_mutex_lock(&p->mutex);
    while (p->n_given == i && !p->ended && !p->given_up)
        pthread_cond_wait(&p->changed, &p->mutex);
    bool there = p->n_given > i && !p->given_up;
    pthread_mutex_unlock(&p->mutex);
    return there;
}

static void *pipe_main(void *arg)
{
    struct block_pipe *p = arg;
    int rc = 0;
    struct err err = {0};
    for (uint64_t i = 0; next_block(p, i); i++) {
        // After a failure blocks are taken and not looked at, so that nobody waits for a slot.
        if (!rc)
            rc = p->work(p->arg, slot_at(p, i), p->sizes[i % BLOCK_PIPE_SLOTS], &err);
        pthread_mutex_lock(&p->mutex);
        p->n_done = i + 1;
        if (rc && !p->rc) {
            p->rc = rc;
            p->err = err;
        }
        pthread_cond_signal(&p->changed);
        pthread_mutex_unlock(&p->mutex);
    }
    return NULL;
}

int block_pipe_open(struct block_pipe **out, uint64_t total,
                    int (*work)(void *arg, const void *data, size_t n, struct err *err), void *arg,
                    struct err *err)
{
    *out = NULL;
    bool beside = total >= BLOCK_PIPE_BESIDE_BYTES;
    struct block_pipe *p = sys_calloc(1, sizeof *p);
    if (!p)
        return err_set(err, ERR_NO_MEMORY, "no memory to pass bytes on");
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->changed, NULL);
    p->work = work;
    p->arg = arg;
    p->slot_bytes = total < BLOCK_PIPE_SLOT_BYTES ? (size_t)total : BLOCK_PIPE_SLOT_BYTES;
    p->slots = sys_malloc(p->slot_bytes * (beside ? BLOCK_PIPE_SLOTS : 1));
    if (!p->slots) {
        block_pipe_free(p);
        return err_set(err, ERR_NO_MEMORY, "no memory to pass bytes on");
    }
    p->runs = beside && pthread_create(&p->thread, NULL, pipe_main, p) == 0;
    *out = p;
    return 0;
}

void *block_pipe_slot(struct block_pipe *p, size_t *room)
{
    *room = p->slot_bytes;
    if (!p->runs)
        return p->slots;
    pthread_mutex_lock(&p->mutex);
    // Once all are taken half of them are waited for: the threads change places less often.
    bool full = p->n_given - p->n_done >= BLOCK_PIPE_SLOTS;
    while (full && p->n_given - p->n_done > BLOCK_PIPE_SLOTS / 2)
        pthread_cond_wait(&p->changed, &p->mutex);
    pthread_mutex_unlock(&p->mutex);
    return slot_at(p, p->n_given);
}

int block_pipe_give(struct block_pipe *p, size_t n, struct err *err)
{
    if (!p->runs)
        return p->work(p->arg, p->slots, n, err);
    pthread_mutex_lock(&p->mutex);
    p->sizes[p->n_given % BLOCK_PIPE_SLOTS] = n;
    p->n_given++;
    pthread_cond_signal(&p->changed);
    int rc = p->rc;
    pthread_mutex_unlock(&p->mutex);
    return rc ? err_set(err, rc, "%s", p->err.msg) : 0;
}

static void join(struct block_pipe *p, bool given_up)
{
    if (!p->runs)
        return;
    pthread_mutex_lock(&p->mutex);
    p->ended = true;
    p->given_up = given_up;
    pthread_cond_signal(&p->changed);
    pthread_mutex_unlock(&p->mutex);
    pthread_join(p->thread, NULL);
    p->runs = false;
}

int block_pipe_finish(struct block_pipe *p, struct err *err)
{
    join(p, false);
    return p->rc ? err_set(err, p->rc, "%s", p->err.msg) : 0;
}

void block_pipe_free(struct block_pipe *p)
{
    if (!p)
        return;
    join(p, true);
    pthread_mutex_destroy(&p->mutex);
    pthread_cond_destroy(&p->changed);
    sys_free(p->slots);
    sys_free(p);
}
