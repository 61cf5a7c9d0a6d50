#include <pthread.h>

#include "libcore/base/sys.h"
#include "store/archive_impl.h"

/*
 * The thread fills slots in order; the reader takes them in order and holds one at a time. Each
 * slot brings along how many packed bytes had been read for it, so that the reader's look-out for
 * bombs sees what was true for these bytes.
 */
enum { N_SLOTS = 4, SLOT_BYTES = 512 << 10 };

struct ahead {
    ssize_t (*fill)(void *arg, void *buf, size_t n, uint64_t *packed);
    void *arg;
    char *slots;
    ssize_t sizes[N_SLOTS];
    uint64_t packed[N_SLOTS];
    pthread_t thread;
    bool runs;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint64_t n_filled, n_given; // slots; the last one given is being read
    bool stop;
    ssize_t last; // what ended it: 0 or -1
};

static char *slot_at(const struct ahead *a, uint64_t i)
{
    return a->slots + (size_t)(i % N_SLOTS) * SLOT_BYTES;
}

/* Waits for a slot that nobody reads; false: no more are wanted. */
static bool wait_free(struct ahead *a, uint64_t i)
{
    pthread_mutex_lock(&a->mutex);
    // The one given last is in the reader's hands.
    while (!a->stop && i - a->n_given >= N_SLOTS - 1)
        pthread_cond_wait(&a->changed, &a->mutex);
    bool go = !a->stop;
    pthread_mutex_unlock(&a->mutex);
    return go;
}

static void *ahead_main(void *arg)
{
    struct ahead *a = arg;
    for (uint64_t i = 0; wait_free(a, i); i++) {
        uint64_t packed = 0;
        ssize_t n = a->fill(a->arg, slot_at(a, i), SLOT_BYTES, &packed);
        pthread_mutex_lock(&a->mutex);
        a->sizes[i % N_SLOTS] = n;
        a->packed[i % N_SLOTS] = packed;
        a->n_filled++;
        pthread_cond_signal(&a->changed);
        pthread_mutex_unlock(&a->mutex);
        if (n <= 0)
            break;
    }
    return NULL;
}

int ahead_open(struct ahead **out, bool beside,
               ssize_t (*fill)(void *arg, void *buf, size_t n, uint64_t *packed), void *arg,
               struct err *err)
{
    *out = NULL;
    struct ahead *a = sys_calloc(1, sizeof *a);
    if (a)
        a->slots = sys_malloc((size_t)N_SLOTS * SLOT_BYTES);
    if (!a || !a->slots) {
        sys_free(a);
        return err_set(err, ERR_NO_MEMORY, "no memory to unpack it");
    }
    a->fill = fill;
    a->arg = arg;
    a->last = 1;
    pthread_mutex_init(&a->mutex, NULL);
    pthread_cond_init(&a->changed, NULL);
    a->runs = beside && pthread_create(&a->thread, NULL, ahead_main, a) == 0;
    *out = a;
    return 0;
}

ssize_t ahead_take(struct ahead *a, const void **data, uint64_t *packed)
{
    if (a->last <= 0) // asked again after the end
        return a->last;
    if (!a->runs) {
        *data = a->slots;
        return a->last = a->fill(a->arg, a->slots, SLOT_BYTES, packed);
    }
    pthread_mutex_lock(&a->mutex);
    while (a->n_filled == a->n_given)
        pthread_cond_wait(&a->changed, &a->mutex);
    uint64_t i = a->n_given++;
    *data = slot_at(a, i);
    *packed = a->packed[i % N_SLOTS];
    a->last = a->sizes[i % N_SLOTS];
    pthread_cond_signal(&a->changed);
    pthread_mutex_unlock(&a->mutex);
    return a->last;
}

void ahead_free(struct ahead *a)
{
    if (!a)
        return;
    if (a->runs) {
        pthread_mutex_lock(&a->mutex);
        a->stop = true;
        pthread_cond_signal(&a->changed);
        pthread_mutex_unlock(&a->mutex);
        pthread_join(a->thread, NULL);
    }
    pthread_mutex_destroy(&a->mutex);
    pthread_cond_destroy(&a->changed);
    sys_free(a->slots);
    sys_free(a);
}
