#include "libcore/base/sys.h"
#include "store/registry_impl.h"

struct many {
    struct registry *r;
    size_t n, next;
    int (*run)(void *arg, struct connection *c, size_t i, struct err *err);
    void *arg;
    pthread_mutex_t mutex;
    int rc; // of the first that failed
    struct err err;
};

/* n: no more, or one failed. */
static size_t take_next(struct many *m)
{
    pthread_mutex_lock(&m->mutex);
    size_t i = m->rc ? m->n : m->next;
    m->next += i < m->n;
    pthread_mutex_unlock(&m->mutex);
    return i;
}

static void *many_main(void *arg)
{
    struct many *m = arg;
    struct connection *c;
    struct err err = {0};
    int rc = connection_open(&c, m->r, &err);
    for (size_t i; !rc && (i = take_next(m)) < m->n;)
        rc = m->run(m->arg, c, i, &err);
    connection_free(c);
    pthread_mutex_lock(&m->mutex);
    if (rc && !m->rc) {
        m->rc = rc;
        m->err = err;
    }
    pthread_mutex_unlock(&m->mutex);
    return NULL;
}

int registry_each(struct registry *r, size_t n,
                  int (*run)(void *arg, struct connection *c, size_t i, struct err *err), void *arg,
                  struct err *err)
{
    struct many m = {.r = r, .n = n, .run = run, .arg = arg};
    pthread_t threads[REGISTRY_TRANSFERS];
    size_t n_threads = 0;
    pthread_mutex_init(&m.mutex, NULL);
    // This thread is one of them, so that a system without threads gets on too.
    while (n_threads + 1 < REGISTRY_TRANSFERS && n_threads + 1 < n &&
           pthread_create(&threads[n_threads], NULL, many_main, &m) == 0)
        n_threads++;
    if (n)
        many_main(&m);
    for (size_t i = 0; i < n_threads; i++)
        pthread_join(threads[i], NULL);
    pthread_mutex_destroy(&m.mutex);
    return m.rc ? err_set(err, m.rc, "%s", m.err.msg) : 0;
}
