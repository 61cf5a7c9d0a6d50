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
#include "store/arrive.h"

/* Small files are copied by who asks for it: a thread costs more. */
enum { BESIDE_BYTES = 1 << 20 };

/*
 * The source is read block by block into what arrives (arrive.h), which writes and hashes it. A
 * file system that can share extents is asked for a clone first; then the clone is only hashed.
 */
struct blob_copy {
    char *from, *to;
    int in;
    uint64_t size;
    int (*on_bytes)(void *arg, uint64_t bytes);
    void *arg;
    struct arriving *file;
    struct safetensors_stream *weights; // after the end
    pthread_t copier;
    bool runs;
    int rc;
    struct err err;
    struct digest digest;
};

char *blob_path(const struct store *s, const char *name, struct err *err)
{
    char folder[32];
    snprintf(folder, sizeof folder, "blobs/sha256/%.2s", name);
    return store_join(s, folder, name, err);
}

// ---- copying -----------------------------------------------------------------------------------

static int read_block(struct blob_copy *c, int fd, uint64_t at, size_t *n, struct err *err)
{
    size_t room, got = 0;
    char *slot = arriving_slot(c->file, &room);
    *n = c->size - at < room ? (size_t)(c->size - at) : room;
    while (got < *n) {
        ssize_t k = sys_pread(fd, slot + got, *n - got, (off_t)(at + got));
        if (k < 0)
            return err_set_errno(err, errno, "%s: cannot read", c->from);
        if (k == 0)
            return err_set(err, ERR_IO, "%s: became shorter while it was read", c->from);
        got += (size_t)k;
    }
    return arriving_filled(c->file, *n, err);
}

static int copy_blocks(struct blob_copy *c, struct err *err)
{
    int out = arriving_fd(c->file);
    // A clone shares the extents: all bytes are there at once.
    bool cloned = c->size && ioctl(out, FICLONE, c->in) == 0;
    if (cloned)
        arriving_set_in_place(c->file);
    int rc = 0;
    for (uint64_t at = 0; !rc && at < c->size;) {
        size_t n = 0;
        rc = read_block(c, cloned ? out : c->in, at, &n, err);
        if (!rc && c->on_bytes && (rc = c->on_bytes(c->arg, n)) != 0)
            err_set(err, rc, "%s: interrupted", c->from);
        at += n;
    }
    return rc ? rc : arriving_finish(c->file, &c->digest, err);
}

static void *copier_main(void *arg)
{
    struct blob_copy *c = arg;
    c->rc = copy_blocks(c, &c->err);
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

int blob_copy_open(struct blob_copy **out, const char *from, const char *to, bool skip_values,
                   int (*on_bytes)(void *arg, uint64_t bytes), void *arg, struct err *err)
{
    *out = NULL;
    struct blob_copy *c = sys_calloc(1, sizeof *c);
    if (!c)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", from);
    c->in = -1;
    c->on_bytes = on_bytes;
    c->arg = arg;
    c->from = sys_strdup(from);
    c->to = sys_strdup(to);
    int rc =
        c->from && c->to ? open_source(c, err) : err_set(err, ERR_NO_MEMORY, "%s: no memory", from);
    if (!rc)
        rc = arriving_open(&c->file, to, c->size, c->from, err);
    if (rc) {
        blob_copy_free(c);
        return rc;
    }
    if (skip_values)
        arriving_skip_values(c->file);
    c->runs = c->size >= BESIDE_BYTES && pthread_create(&c->copier, NULL, copier_main, c) == 0;
    if (!c->runs)
        copier_main(c);
    *out = c;
    return 0;
}

uint64_t blob_copy_size(const struct blob_copy *c)
{
    return c->size;
}

/* Files and blocks of a copy that has ended are given back at once: a checkpoint has many. */
static void end_copy(struct blob_copy *c)
{
    if (c->runs)
        pthread_join(c->copier, NULL);
    c->runs = false;
    if (c->file && !c->weights)
        c->weights = arriving_take_weights(c->file);
    arriving_free(c->file);
    c->file = NULL;
    if (c->in >= 0)
        sys_close(c->in);
    c->in = -1;
}

int blob_copy_finish(struct blob_copy *c, struct digest *digest, struct err *err)
{
    end_copy(c);
    if (c->rc)
        return err_set(err, c->rc, "%s", c->err.msg);
    *digest = c->digest;
    return 0;
}

const struct safetensors_stream *blob_copy_weights(const struct blob_copy *c)
{
    return c->weights;
}

void blob_copy_free(struct blob_copy *c)
{
    if (!c)
        return;
    end_copy(c);
    safetensors_stream_free(c->weights);
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
