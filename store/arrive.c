#include "store/arrive.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"

/* Small files are hashed by who writes them: a thread costs more. */
enum { HASH_BESIDE_BYTES = 1 << 20, STEP_BYTES = 4 << 20 };

struct arriving {
    char *path;
    const char *what;
    int fd;
    uint64_t size, written;
    const uint8_t *map; // of the file, when a thread hashes
    struct digest_state *hash;
    pthread_t thread;
    bool runs;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint64_t ready; // bytes that may be hashed
    bool given_up;
    int hash_rc;
    struct err hash_err;
};

// ---- the hashing thread ------------------------------------------------------------------------

/* Bytes that are ready beyond `at`; 0: given up. */
static size_t wait_ready(struct arriving *a, uint64_t at)
{
    pthread_mutex_lock(&a->mutex);
    while (a->ready == at && !a->given_up)
        pthread_cond_wait(&a->changed, &a->mutex);
    size_t n = a->given_up ? 0 : (size_t)(a->ready - at);
    pthread_mutex_unlock(&a->mutex);
    return n;
}

static void *hasher_main(void *arg)
{
    struct arriving *a = arg;
    for (uint64_t at = 0; !a->hash_rc && at < a->size;) {
        size_t n = wait_ready(a, at);
        if (n == 0)
            return NULL;
        a->hash_rc = digest_update(a->hash, a->map + at, n, &a->hash_err);
        at += n;
    }
    return NULL;
}

static void tell_hasher(struct arriving *a, bool given_up)
{
    pthread_mutex_lock(&a->mutex);
    a->ready = a->written;
    a->given_up = given_up;
    pthread_cond_signal(&a->changed);
    pthread_mutex_unlock(&a->mutex);
}

static void join(struct arriving *a, bool given_up)
{
    if (!a->runs)
        return;
    tell_hasher(a, given_up);
    pthread_join(a->thread, NULL);
    a->runs = false;
}

static int start_hasher(struct arriving *a, struct err *err)
{
    if (a->size < HASH_BESIDE_BYTES)
        return 0;
    if (sys_ftruncate(a->fd, (off_t)a->size) != 0)
        return err_set_errno(err, errno, "%s: cannot make it %llu bytes long", a->path,
                             (unsigned long long)a->size);
    a->map = sys_mmap_read(a->fd, a->size);
    if (!a->map)
        return err_set_errno(err, errno, "%s: cannot map", a->path);
    int errno_value = pthread_create(&a->thread, NULL, hasher_main, a);
    a->runs = errno_value == 0;
    return errno_value ? err_set_errno(err, errno_value, "%s: cannot start a thread", a->path) : 0;
}

// ---- one file ----------------------------------------------------------------------------------

static int check_room(const struct arriving *a, struct err *err)
{
    uint64_t room;
    if (a->size < HASH_BESIDE_BYTES || sys_disk_free(a->path, &room) != 0)
        return 0;
    return a->size <= room
               ? 0
               : err_set(err, ERR_LIMIT, "%s: %llu bytes, the disk has room for %llu", a->what,
                         (unsigned long long)a->size, (unsigned long long)room);
}

int arriving_open(struct arriving **out, const char *path, uint64_t size, const char *what,
                  struct err *err)
{
    *out = NULL;
    struct arriving *a = sys_calloc(1, sizeof *a);
    if (!a)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", what);
    a->fd = -1;
    a->size = size;
    a->what = what;
    pthread_mutex_init(&a->mutex, NULL);
    pthread_cond_init(&a->changed, NULL);
    a->path = sys_strdup(path);
    int rc = a->path ? digest_open(&a->hash, err) : err_set(err, ERR_NO_MEMORY, "no memory");
    if (!rc) {
        a->fd = sys_open(path, O_RDWR | O_CREAT | O_EXCL, 0666);
        if (a->fd < 0)
            rc = err_set_errno(err, errno, "%s: cannot create", path);
    }
    if (!rc)
        rc = check_room(a, err);
    if (!rc)
        rc = start_hasher(a, err);
    if (rc) {
        arriving_free(a);
        return rc;
    }
    *out = a;
    return 0;
}

int arriving_write(struct arriving *a, const void *data, size_t n, struct err *err)
{
    if (n > a->size - a->written)
        return err_set(err, ERR_CORRUPT, "%s: has more than its %llu bytes", a->what,
                       (unsigned long long)a->size);
    int rc = file_write_all(a->fd, data, n, a->path, err);
    if (rc)
        return rc;
    uint64_t before = a->written;
    a->written += n;
    if (!a->runs)
        return digest_update(a->hash, data, n, err);
    if (before / STEP_BYTES != a->written / STEP_BYTES) {
        sys_start_writeback(a->fd, (off_t)(before / STEP_BYTES * STEP_BYTES),
                            (off_t)(a->written - before / STEP_BYTES * STEP_BYTES));
        tell_hasher(a, false);
    }
    return 0;
}

uint64_t arriving_bytes(const struct arriving *a)
{
    return a->written;
}

int arriving_finish(struct arriving *a, struct digest *digest, struct err *err)
{
    if (a->written != a->size)
        return err_set(err, ERR_CORRUPT, "%s: ends after %llu of %llu bytes", a->what,
                       (unsigned long long)a->written, (unsigned long long)a->size);
    join(a, false);
    if (a->hash_rc)
        return err_set(err, a->hash_rc, "%s", a->hash_err.msg);
    int rc = digest_final(a->hash, digest, err);
    if (rc)
        return rc;
    if (sys_fchmod(a->fd, 0444) != 0)
        return err_set_errno(err, errno, "%s: cannot make it read-only", a->path);
    return sys_fsync(a->fd) == 0 ? 0 : err_set_errno(err, errno, "%s: cannot sync", a->path);
}

void arriving_free(struct arriving *a)
{
    if (!a)
        return;
    join(a, true);
    if (a->map)
        sys_munmap((void *)a->map, a->size);
    if (a->fd >= 0)
        sys_close(a->fd);
    digest_free(a->hash);
    pthread_mutex_destroy(&a->mutex);
    pthread_cond_destroy(&a->changed);
    sys_free(a->path);
    sys_free(a);
}

// ---- all of them -------------------------------------------------------------------------------

int arrivals_add(struct arrivals *all, const char *name, struct arrival **out, struct err *err)
{
    if (all->n == all->cap) {
        size_t cap = all->cap ? all->cap * 2 : 32;
        struct arrival *more = sys_reallocarray(all->items, cap, sizeof *more);
        if (!more)
            return err_set(err, ERR_NO_MEMORY, "no memory for %zu files", cap);
        all->items = more;
        all->cap = cap;
    }
    struct strbuf sb;
    strbuf_init(&sb);
    strbuf_addf(&sb, "%s/%zu", all->folder, all->n);
    struct arrival *a = &all->items[all->n];
    *a = (struct arrival){.name = sys_strdup(name), .path = strbuf_take(&sb, NULL)};
    strbuf_release(&sb);
    all->n++;
    *out = a;
    return a->name && a->path ? 0 : err_set(err, ERR_NO_MEMORY, "no memory for a file's name");
}

const struct arrival *arrivals_find(const struct arrivals *all, const char *name)
{
    for (size_t i = 0; i < all->n; i++) {
        if (strcmp(all->items[i].name, name) == 0)
            return &all->items[i];
    }
    return NULL;
}

const struct arrival *arrivals_find_digest(const struct arrivals *all, const char *digest)
{
    for (size_t i = 0; i < all->n; i++) {
        if (strcmp(all->items[i].digest, digest) == 0)
            return &all->items[i];
    }
    return NULL;
}

void arrivals_release(struct arrivals *all)
{
    for (size_t i = 0; i < all->n; i++) {
        sys_free(all->items[i].name);
        sys_free(all->items[i].path);
    }
    sys_free(all->items);
    *all = (struct arrivals){0};
}
