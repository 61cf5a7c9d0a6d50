#include "store/blob.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"

enum { CHUNK_BYTES = 8 << 20 };

/*
 * Two threads follow one another through the file: the first copies chunk by chunk (in the kernel
 * where it can: no byte passes through this process), the second hashes what has arrived, through a
 * mapping of the copy, while it is still in the processor's cache or at least in memory.
 */
struct blob_copy {
    char *from, *to;
    int in, out;
    uint64_t size;
    int (*on_bytes)(void *arg, uint64_t bytes);
    void *arg;
    const uint8_t *map; // of `to`
    pthread_t copier, hasher;
    bool copier_runs, hasher_runs;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint64_t arrived; // bytes copied so far
    bool failed;      // copy_err holds
    struct err copy_err, hash_err;
    int hash_rc;
    struct digest digest;
};

char *blob_path(const struct store *s, const char *name, struct err *err)
{
    char folder[32];
    snprintf(folder, sizeof folder, "blobs/sha256/%.2s", name);
    return store_join(s, folder, name, err);
}

// ---- copying -----------------------------------------------------------------------------------

static void publish_progress(struct blob_copy *c, uint64_t arrived, int rc)
{
    pthread_mutex_lock(&c->mutex);
    c->arrived = arrived;
    c->failed = rc != 0;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->mutex);
}

/* One chunk in the kernel; 0 copied, 1 this file system cannot, else an error. */
static int chunk_in_kernel(struct blob_copy *c, off_t at, size_t n, struct err *err)
{
    off_t from = at, to = at;
    while (n) {
        ssize_t got = sys_copy_file_range(c->in, &from, c->out, &to, n);
        if (got < 0 && from == at &&
            (errno == EXDEV || errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP))
            return 1;
        if (got < 0)
            return err_set_errno(err, errno, "%s: cannot copy to %s", c->from, c->to);
        if (got == 0)
            return from == at
                       ? 1
                       : err_set(err, ERR_IO, "%s: became shorter while it was read", c->from);
        n -= (size_t)got;
    }
    return 0;
}

static int chunk_by_hand(struct blob_copy *c, char *buf, off_t at, size_t n, struct err *err)
{
    int rc = file_pread_all(c->in, buf, n, (uint64_t)at, c->from, err);
    for (size_t done = 0; !rc && done < n;) {
        ssize_t put = sys_pwrite(c->out, buf + done, n - done, at + (off_t)done);
        if (put < 0)
            rc = err_set_errno(err, errno, "%s: cannot write", c->to);
        else
            done += (size_t)put;
    }
    return rc;
}

static int copy_chunks(struct blob_copy *c, struct err *err)
{
    // A clone shares the extents: all bytes arrive at once.
    bool cloned = c->size && ioctl(c->out, FICLONE, c->in) == 0;
    char *buf = NULL;
    int rc = 0;
    for (uint64_t at = 0; !rc && at < c->size;) {
        size_t n = c->size - at < CHUNK_BYTES ? (size_t)(c->size - at) : CHUNK_BYTES;
        if (!cloned && !buf) {
            rc = chunk_in_kernel(c, (off_t)at, n, err);
            if (rc == 1)
                rc = (buf = sys_malloc(CHUNK_BYTES))
                         ? 0
                         : err_set(err, ERR_NO_MEMORY, "%s: no memory to copy it", c->from);
        }
        if (!rc && buf)
            rc = chunk_by_hand(c, buf, (off_t)at, n, err);
        if (!rc && c->on_bytes && (rc = c->on_bytes(c->arg, n)) != 0)
            err_set(err, rc, "%s: interrupted", c->from);
        if (!rc) {
            at += n;
            sys_start_writeback(c->out, (off_t)(at - n), (off_t)n);
            publish_progress(c, at, 0);
        }
    }
    sys_free(buf);
    return rc;
}

static void *copier_main(void *arg)
{
    struct blob_copy *c = arg;
    struct err err = {0};
    int rc = copy_chunks(c, &err);
    if (rc) {
        c->copy_err = err;
        publish_progress(c, c->arrived, rc);
    }
    return NULL;
}

int blob_copy_wait(struct blob_copy *c, uint64_t bytes, struct err *err)
{
    if (bytes > c->size)
        bytes = c->size;
    pthread_mutex_lock(&c->mutex);
    while (c->arrived < bytes && !c->failed)
        pthread_cond_wait(&c->changed, &c->mutex);
    bool there = c->arrived >= bytes;
    pthread_mutex_unlock(&c->mutex);
    return there ? 0 : err_set(err, c->copy_err.code, "%s", c->copy_err.msg);
}

static int hash_copy(struct blob_copy *c, struct err *err)
{
    struct digest_state *d;
    int rc = digest_open(&d, err);
    for (uint64_t at = 0; !rc && at < c->size;) {
        size_t n = c->size - at < CHUNK_BYTES ? (size_t)(c->size - at) : CHUNK_BYTES;
        rc = blob_copy_wait(c, at + n, err);
        if (!rc)
            rc = digest_update(d, c->map + at, n, err);
        at += n;
    }
    if (!rc)
        rc = digest_final(d, &c->digest, err);
    digest_free(d);
    return rc;
}

static void *hasher_main(void *arg)
{
    struct blob_copy *c = arg;
    c->hash_rc = hash_copy(c, &c->hash_err);
    return NULL;
}

static int open_source(struct blob_copy *c, struct err *err)
{
    c->in = sys_open(c->from, O_RDONLY, 0);
    if (c->in < 0)
        return err_set_errno(err, errno, "%s: cannot open", c->from);
    struct stat st;
    if (sys_fstat(c->in, &st) != 0)
        return err_set_errno(err, errno, "%s: cannot stat", c->from);
    if (!S_ISREG(st.st_mode))
        return err_set(err, ERR_REFUSED, "%s: is no regular file", c->from);
    c->size = (uint64_t)st.st_size;
    return 0;
}

static int open_target(struct blob_copy *c, struct err *err)
{
    c->out = sys_open(c->to, O_RDWR | O_CREAT | O_EXCL, 0666);
    if (c->out < 0)
        return err_set_errno(err, errno, "%s: cannot create", c->to);
    if (c->size == 0)
        return 0;
    if (sys_ftruncate(c->out, (off_t)c->size) != 0)
        return err_set_errno(err, errno, "%s: cannot make it %llu bytes long", c->to,
                             (unsigned long long)c->size);
    c->map = sys_mmap_read(c->out, c->size);
    return c->map ? 0 : err_set_errno(err, errno, "%s: cannot map", c->to);
}

static int start(struct blob_copy *c, struct err *err)
{
    int rc = open_source(c, err);
    if (!rc)
        rc = open_target(c, err);
    if (rc)
        return rc;
    int errno_value = pthread_create(&c->copier, NULL, copier_main, c);
    c->copier_runs = errno_value == 0;
    if (!errno_value) {
        errno_value = pthread_create(&c->hasher, NULL, hasher_main, c);
        c->hasher_runs = errno_value == 0;
    }
    return errno_value ? err_set_errno(err, errno_value, "%s: cannot start a thread", c->from) : 0;
}

int blob_copy_open(struct blob_copy **out, const char *from, const char *to,
                   int (*on_bytes)(void *arg, uint64_t bytes), void *arg, struct err *err)
{
    *out = NULL;
    struct blob_copy *c = sys_calloc(1, sizeof *c);
    if (!c)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", from);
    c->in = c->out = -1;
    c->on_bytes = on_bytes;
    c->arg = arg;
    pthread_mutex_init(&c->mutex, NULL);
    pthread_cond_init(&c->changed, NULL);
    c->from = sys_strdup(from);
    c->to = sys_strdup(to);
    int rc = c->from && c->to ? start(c, err) : err_set(err, ERR_NO_MEMORY, "%s: no memory", from);
    if (rc) {
        blob_copy_free(c);
        return rc;
    }
    *out = c;
    return 0;
}

uint64_t blob_copy_size(const struct blob_copy *c)
{
    return c->size;
}

static void join(struct blob_copy *c)
{
    if (c->copier_runs)
        pthread_join(c->copier, NULL);
    if (c->hasher_runs)
        pthread_join(c->hasher, NULL);
    c->copier_runs = c->hasher_runs = false;
}

int blob_copy_finish(struct blob_copy *c, struct digest *digest, struct err *err)
{
    join(c);
    if (c->copy_err.code)
        return err_set(err, c->copy_err.code, "%s", c->copy_err.msg);
    if (c->hash_rc)
        return err_set(err, c->hash_rc, "%s", c->hash_err.msg);
    if (sys_fchmod(c->out, 0444) != 0)
        return err_set_errno(err, errno, "%s: cannot make it read-only", c->to);
    if (sys_fsync(c->out) != 0)
        return err_set_errno(err, errno, "%s: cannot sync", c->to);
    *digest = c->digest;
    return 0;
}

void blob_copy_free(struct blob_copy *c)
{
    if (!c)
        return;
    join(c);
    if (c->map)
        sys_munmap((void *)c->map, c->size);
    if (c->in >= 0)
        sys_close(c->in);
    if (c->out >= 0)
        sys_close(c->out);
    pthread_mutex_destroy(&c->mutex);
    pthread_cond_destroy(&c->changed);
    sys_free(c->from);
    sys_free(c->to);
    sys_free(c);
}

// ---- in the store ------------------------------------------------------------------------------

int blob_publish(struct store *s, const char *tmp, const char *name, struct err *err)
{
    char folder[32];
    snprintf(folder, sizeof folder, "blobs/sha256/%.2s", name);
    int rc = store_make_folder(s, folder, err);
    if (rc)
        return rc;
    char *to = blob_path(s, name, err);
    char *parent = to ? store_join(s, folder, NULL, err) : NULL;
    if (!parent)
        rc = ERR_NO_MEMORY;
    else if (sys_rename(tmp, to) != 0)
        rc = err_set_errno(err, errno, "%s: cannot rename to it", to);
    else
        rc = file_sync_folder(parent, err);
    sys_free(parent);
    sys_free(to);
    return rc;
}

static int check_size(const char *path, const char *name, uint64_t size, struct err *err)
{
    uint64_t got;
    int rc = file_size(path, &got, err);
    if (rc == ERR_NOT_FOUND)
        return err_set(err, rc, "blob %.12s: missing (%s)", name, path);
    if (!rc && got != size)
        return err_set(err, ERR_CORRUPT, "blob %.12s: %llu bytes, wanted %llu (%s)", name,
                       (unsigned long long)got, (unsigned long long)size, path);
    return rc;
}

int blob_check(const struct store *s, const char *name, uint64_t size, enum blob_check how,
               struct err *err)
{
    char *path = blob_path(s, name, err);
    if (!path)
        return ERR_NO_MEMORY;
    int rc = check_size(path, name, size, err);
    struct digest got;
    char hex[DIGEST_HEX_CHARS + 1];
    if (!rc && how == BLOB_CHECK_DIGEST && (rc = digest_file(path, &got, NULL, err)) == 0) {
        digest_hex(&got, hex);
        if (strcmp(hex, name) != 0)
            rc = err_set(err, ERR_CORRUPT, "blob %.12s: its bytes have the digest %.12s (%s)", name,
                         hex, path);
    }
    sys_free(path);
    return rc;
}

static int each_in(const char *path, const char *folder,
                   int (*row)(void *arg, const struct blob_stat *b), void *arg, struct err *err)
{
    char **names;
    size_t n;
    int rc = file_list(path, &names, &n, err);
    for (size_t i = 0; !rc && i < n; i++) {
        struct stat st;
        char *file = file_join(path, names[i]);
        if (!file)
            rc = err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
        else if (sys_lstat(file, &st) == 0)
            rc = row(arg, &(struct blob_stat){folder, names[i], (uint64_t)st.st_size,
                                              (int64_t)st.st_mtim.tv_sec * 1000000000 +
                                                  st.st_mtim.tv_nsec});
        else if (errno != ENOENT)
            rc = err_set_errno(err, errno, "%s: cannot stat", file);
        sys_free(file);
    }
    file_free_names(names, n);
    return rc;
}

int blob_each(struct store *s, int (*row)(void *arg, const struct blob_stat *b), void *arg,
              struct err *err)
{
    char *path = store_join(s, "blobs/sha256", NULL, err), **names = NULL;
    size_t n = 0;
    int rc = path ? file_list(path, &names, &n, err) : ERR_NO_MEMORY;
    for (size_t i = 0; !rc && i < n; i++) {
        char *sub = file_join(path, names[i]);
        rc = sub ? each_in(sub, names[i], row, arg, err)
                 : err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
        sys_free(sub);
    }
    file_free_names(names, n);
    sys_free(path);
    return rc;
}
