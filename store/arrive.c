#include "store/arrive.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "store/block_pipe.h"

enum { WRITEBACK_BYTES = 8 << 20 };

/*
 * The thread that brings the bytes puts them into a slot and writes the slot; the pipe's thread
 * hashes it, the file's digest and the tensors' in one pass.
 */
struct arriving {
    char *path;
    const char *what;
    int fd;
    uint64_t size;
    uint64_t taken, written; // bytes that came, and that lie in the file; the rest in the slot
    bool in_place;           // the file has its bytes: they are hashed only
    struct block_pipe *pipe;
    struct safetensors_stream *stream;
    char *slot; // in hand; NULL: none
    size_t n_slot, room;
};

static int hash_block(void *arg, const void *data, size_t n, struct err *err)
{
    return safetensors_stream_update(arg, data, n, err);
}

static int check_room(const struct arriving *a, struct err *err)
{
    uint64_t room;
    if (a->size < BLOCK_PIPE_BESIDE_BYTES || sys_disk_free(a->path, &room) != 0)
        return 0;
    return a->size <= room
               ? 0
               : err_set(err, ERR_LIMIT, "%s: %llu bytes, the disk has room for %llu", a->what,
                         (unsigned long long)a->size, (unsigned long long)room);
}

/* Opens the file with these flags, and what its bytes go through. */
static int open_arriving(struct arriving **out, const char *path, int flags, uint64_t size,
                         const char *what, struct err *err)
{
    struct arriving *a = sys_calloc(1, sizeof *a);
    *out = a;
    if (!a)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", what);
    a->fd = -1;
    a->size = size;
    a->what = what;
    a->path = sys_strdup(path);
    int rc = a->path ? 0 : err_set(err, ERR_NO_MEMORY, "no memory");
    if (!rc) {
        a->fd = sys_open(path, O_RDWR | O_CREAT | flags, 0666);
        if (a->fd < 0)
            rc = err_set_errno(err, errno, "%s: cannot create", path);
    }
    if (!rc)
        rc = check_room(a, err);
    if (!rc)
        rc = safetensors_stream_open(&a->stream, size, err);
    if (!rc)
        rc = block_pipe_open(&a->pipe, size, hash_block, a->stream, err);
    return rc;
}

int arriving_open(struct arriving **out, const char *path, uint64_t size, const char *what,
                  struct err *err)
{
    int rc = open_arriving(out, path, O_EXCL, size, what, err);
    if (rc) {
        arriving_free(*out);
        *out = NULL;
    }
    return rc;
}

/* Writes what is in the slot and passes it on. */
static int flush(struct arriving *a, struct err *err)
{
    int rc = 0;
    if (a->n_slot && !a->in_place)
        rc = file_write_all(a->fd, a->slot, a->n_slot, a->path, err);
    uint64_t before = a->written;
    a->written += a->n_slot;
    if (!rc && a->n_slot)
        rc = block_pipe_give(a->pipe, a->n_slot, err);
    a->slot = NULL;
    a->n_slot = 0;
    uint64_t from = before / WRITEBACK_BYTES * WRITEBACK_BYTES;
    if (!rc && !a->in_place && before / WRITEBACK_BYTES != a->written / WRITEBACK_BYTES)
        sys_start_writeback(a->fd, (off_t)from, (off_t)(a->written - from));
    return rc;
}

void *arriving_slot(struct arriving *a, size_t *room)
{
    if (!a->slot)
        a->slot = block_pipe_slot(a->pipe, &a->room);
    *room = a->room - a->n_slot;
    return a->slot + a->n_slot;
}

int arriving_filled(struct arriving *a, size_t n, struct err *err)
{
    if (n > a->size - a->taken)
        return err_set(err, ERR_CORRUPT, "%s: has more than its %llu bytes", a->what,
                       (unsigned long long)a->size);
    a->n_slot += n;
    a->taken += n;
    return a->n_slot == a->room ? flush(a, err) : 0;
}

int arriving_write(struct arriving *a, const void *data, size_t n, struct err *err)
{
    int rc = 0;
    if (n > a->size - a->taken)
        return arriving_filled(a, n, err);
    for (const char *at = data; !rc && n;) {
        size_t room;
        void *to = arriving_slot(a, &room);
        size_t k = n < room ? n : room;
        memcpy(to, at, k);
        rc = arriving_filled(a, k, err);
        at += k;
        n -= k;
    }
    return rc;
}

/* Hashes the bytes that are there, and puts what comes behind them. */
static int take_existing(struct arriving *a, struct err *err)
{
    struct stat st;
    if (sys_flock(a->fd, LOCK_EX | LOCK_NB) != 0)
        return err_set(err, ERR_LOCKED, "%s: another process fetches it", a->path);
    if (sys_fstat(a->fd, &st) != 0)
        return err_set_errno(err, errno, "%s: cannot stat", a->path);
    uint64_t there = (uint64_t)st.st_size <= a->size ? (uint64_t)st.st_size : 0;
    int rc = 0;
    a->in_place = true;
    while (!rc && a->taken < there) {
        size_t room;
        void *slot = arriving_slot(a, &room);
        size_t n = there - a->taken < room ? (size_t)(there - a->taken) : room;
        rc = file_pread_all(a->fd, slot, n, a->taken, a->path, err);
        if (!rc)
            rc = arriving_filled(a, n, err);
    }
    if (!rc)
        rc = flush(a, err);
    a->in_place = false;
    if (!rc &&
        (sys_ftruncate(a->fd, (off_t)there) != 0 || lseek(a->fd, (off_t)there, SEEK_SET) < 0))
        rc = err_set_errno(err, errno, "%s: cannot go on with it", a->path);
    return rc;
}

int arriving_open_partial(struct arriving **out, const char *path, uint64_t size, const char *what,
                          struct err *err)
{
    int rc = open_arriving(out, path, 0, size, what, err);
    if (!rc)
        rc = take_existing(*out, err);
    if (rc) {
        arriving_free(*out);
        *out = NULL;
    }
    return rc;
}

int arriving_keep(struct arriving *a, struct err *err)
{
    return flush(a, err);
}

void arriving_skip_values(struct arriving *a)
{
    safetensors_stream_skip_values(a->stream);
}

uint64_t arriving_bytes(const struct arriving *a)
{
    return a->taken;
}

int arriving_fd(const struct arriving *a)
{
    return a->fd;
}

void arriving_set_in_place(struct arriving *a)
{
    a->in_place = true;
}

int arriving_finish(struct arriving *a, struct digest *digest, struct err *err)
{
    if (a->taken != a->size)
        return err_set(err, ERR_CORRUPT, "%s: ends after %llu of %llu bytes", a->what,
                       (unsigned long long)a->taken, (unsigned long long)a->size);
    int rc = flush(a, err);
    // The disk is at work while the last blocks are hashed.
    if (!rc && a->size >= BLOCK_PIPE_BESIDE_BYTES)
        sys_start_writeback(a->fd, 0, 0);
    if (!rc)
        rc = block_pipe_finish(a->pipe, err);
    if (!rc)
        rc = safetensors_stream_finish(a->stream, digest, err);
    if (!rc && sys_fchmod(a->fd, 0444) != 0)
        rc = err_set_errno(err, errno, "%s: cannot make it read-only", a->path);
    if (!rc && sys_fsync(a->fd) != 0)
        rc = err_set_errno(err, errno, "%s: cannot sync", a->path);
    return rc;
}

struct safetensors_stream *arriving_take_weights(struct arriving *a)
{
    struct safetensors_stream *s = a->stream;
    a->stream = NULL;
    return s;
}

void arriving_free(struct arriving *a)
{
    if (!a)
        return;
    block_pipe_free(a->pipe);
    safetensors_stream_free(a->stream);
    if (a->fd >= 0)
        sys_close(a->fd);
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
        safetensors_stream_free(all->items[i].weights);
    }
    sys_free(all->items);
    *all = (struct arrivals){0};
}
