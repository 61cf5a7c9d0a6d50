#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "store/archive_impl.h"

enum { CHUNK_BYTES = 1 << 20, ZSTD_LEVEL = 3, ZSTD_WORKERS = 2, HASH_BESIDE_BYTES = 1 << 20 };

struct archive_out {
    enum archive_kind kind;
    char *path, *tmp;
    int fd;
    bool finished;
    uint64_t written; // bytes in the file
    uint64_t tar_at;  // bytes of the tar, before compression
    ZSTD_CCtx *zstd;
    struct archive *la; // gzip, zip
    char *buf;          // CHUNK_BYTES to read into, then CHUNK_BYTES to compress into
    struct err la_err;  // of the write callback
    int (*on_bytes)(void *arg, uint64_t bytes);
    void *arg;
};

// ---- kinds -------------------------------------------------------------------------------------

static const struct {
    const char *ending;
    enum archive_kind kind;
} endings[] = {
    {".tar", ARCHIVE_KIND_TAR},       {".tar.zst", ARCHIVE_KIND_TAR_ZST},
    {".tar.gz", ARCHIVE_KIND_TAR_GZ}, {".zip", ARCHIVE_KIND_ZIP},
    {".tgz", ARCHIVE_KIND_TAR_GZ},
};

enum archive_kind archive_kind_of(const char *path)
{
    size_t n = strlen(path);
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        size_t k = strlen(endings[i].ending);
        if (n > k && strcmp(path + n - k, endings[i].ending) == 0)
            return endings[i].kind;
    }
    return ARCHIVE_KIND_NONE;
}

const char *archive_kind_ending(enum archive_kind kind)
{
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        if (endings[i].kind == kind)
            return endings[i].ending;
    }
    return "";
}

// ---- sinks -------------------------------------------------------------------------------------

static int put_raw(void *arg, const void *data, size_t n, struct err *err)
{
    struct archive_out *a = arg;
    int rc = file_write_all(a->fd, data, n, a->path, err);
    a->written += n;
    return rc;
}

static int put_zstd(struct archive_out *a, const void *data, size_t n, bool end, struct err *err)
{
    ZSTD_inBuffer in = {data, n, 0};
    ZSTD_EndDirective how = end ? ZSTD_e_end : ZSTD_e_continue;
    for (;;) {
        ZSTD_outBuffer out = {a->buf + CHUNK_BYTES, CHUNK_BYTES, 0};
        size_t left = ZSTD_compressStream2(a->zstd, &out, &in, how);
        if (ZSTD_isError(left))
            return err_set(err, ERR_FAIL, "%s: zstd: %s", a->path, ZSTD_getErrorName(left));
        int rc = out.pos ? put_raw(a, out.dst, out.pos, err) : 0;
        if (rc)
            return rc;
        if (end ? left == 0 : in.pos == in.size)
            return 0;
    }
}

static int la_failed(struct archive_out *a, struct err *err)
{
    if (a->la_err.code)
        return err_set(err, a->la_err.code, "%s", a->la_err.msg);
    const char *why = archive_error_string(a->la);
    return err_set(err, ERR_FAIL, "%s: cannot write: %s", a->path, why ? why : "no reason given");
}

static int put_la(struct archive_out *a, const void *data, size_t n, struct err *err)
{
    for (const char *p = data; n;) {
        la_ssize_t put = archive_write_data(a->la, p, n);
        if (put <= 0)
            return la_failed(a, err);
        p += put;
        n -= (size_t)put;
    }
    return 0;
}

/* Bytes of a tar, or of a zip's entry. */
static int put(void *arg, const void *data, size_t n, struct err *err)
{
    struct archive_out *a = arg;
    a->tar_at += n;
    if (a->kind == ARCHIVE_KIND_TAR)
        return put_raw(a, data, n, err);
    if (a->kind == ARCHIVE_KIND_TAR_ZST)
        return put_zstd(a, data, n, false, err);
    return put_la(a, data, n, err);
}

// ---- opening -----------------------------------------------------------------------------------

static la_ssize_t la_write(struct archive *la, void *arg, const void *data, size_t n)
{
    struct archive_out *a = arg;
    if (put_raw(a, data, n, &a->la_err) == 0)
        return (la_ssize_t)n;
    archive_set_error(la, EIO, "%s", a->la_err.msg);
    return -1;
}

static int open_la(struct archive_out *a, struct err *err)
{
    a->la = archive_write_new();
    if (!a->la)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", a->path);
    bool zip = a->kind == ARCHIVE_KIND_ZIP;
    int bad = zip ? archive_write_set_format_zip(a->la) : archive_write_set_format_raw(a->la);
    if (!bad && !zip)
        bad = archive_write_add_filter_gzip(a->la);
    if (!bad && !zip) // the clock has no place in it
        bad = archive_write_set_filter_option(a->la, "gzip", "timestamp", NULL);
    if (!bad)
        bad = archive_write_set_bytes_in_last_block(a->la, 1);
    if (!bad)
        bad = archive_write_open(a->la, a, NULL, la_write, NULL);
    if (!bad && !zip) {
        struct archive_entry *e = archive_entry_new();
        if (e)
            archive_entry_set_filetype(e, AE_IFREG);
        bad = e ? archive_write_header(a->la, e) : ARCHIVE_FATAL;
        archive_entry_free(e);
    }
    return bad ? la_failed(a, err) : 0;
}

static int open_zstd(struct archive_out *a, struct err *err)
{
    a->zstd = ZSTD_createCCtx();
    if (!a->zstd)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", a->path);
    ZSTD_CCtx_setParameter(a->zstd, ZSTD_c_compressionLevel, ZSTD_LEVEL);
    ZSTD_CCtx_setParameter(a->zstd, ZSTD_c_checksumFlag, 1);
    // A library without threads refuses this, and does without. The bytes depend on whether there
    // are workers, not on how many.
    ZSTD_CCtx_setParameter(a->zstd, ZSTD_c_nbWorkers, ZSTD_WORKERS);
    return 0;
}

static int open_file(struct archive_out *a, const char *path, struct err *err)
{
    struct strbuf sb;
    strbuf_init(&sb);
    strbuf_addf(&sb, "%s.%ld.tmp", path, (long)getpid());
    a->tmp = strbuf_take(&sb, NULL);
    a->path = sys_strdup(path);
    a->buf = sys_malloc(2 * CHUNK_BYTES);
    strbuf_release(&sb);
    if (!a->tmp || !a->path || !a->buf)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
    a->fd = sys_open(a->tmp, O_WRONLY | O_CREAT | O_EXCL, 0666);
    return a->fd < 0 ? err_set_errno(err, errno, "%s: cannot create", a->tmp) : 0;
}

int archive_out_open(struct archive_out **out, const char *path, enum archive_kind kind,
                     int (*on_bytes)(void *arg, uint64_t bytes), void *arg, struct err *err)
{
    *out = NULL;
    struct archive_out *a = sys_calloc(1, sizeof *a);
    if (!a)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
    a->kind = kind;
    a->fd = -1;
    a->on_bytes = on_bytes;
    a->arg = arg;
    int rc = open_file(a, path, err);
    if (!rc && kind == ARCHIVE_KIND_TAR_ZST)
        rc = open_zstd(a, err);
    if (!rc && (kind == ARCHIVE_KIND_TAR_GZ || kind == ARCHIVE_KIND_ZIP))
        rc = open_la(a, err);
    if (rc) {
        archive_out_free(a);
        return rc;
    }
    *out = a;
    return 0;
}

// ---- one entry ---------------------------------------------------------------------------------

/* Hashes a file on a thread of its own while it is copied. */
struct hasher {
    pthread_t thread;
    bool runs;
    const struct archive_item *item;
    struct digest digest;
    struct err err;
    int rc;
};

static void *hasher_main(void *arg)
{
    struct hasher *h = arg;
    h->rc = digest_file(h->item->from, &h->digest, NULL, &h->err);
    return NULL;
}

static void hasher_start(struct hasher *h, const struct archive_item *item)
{
    *h = (struct hasher){.item = item};
    if (!item->digest)
        return;
    h->runs =
        item->size >= HASH_BESIDE_BYTES && pthread_create(&h->thread, NULL, hasher_main, h) == 0;
    if (!h->runs)
        hasher_main(h);
}

static int hasher_finish(struct hasher *h, struct err *err)
{
    char hex[DIGEST_HEX_CHARS + 1];
    if (!h->item->digest)
        return 0;
    if (h->runs)
        pthread_join(h->thread, NULL);
    if (h->rc)
        return err_set(err, h->rc, "%s", h->err.msg);
    digest_hex(&h->digest, hex);
    if (strcmp(hex, h->item->digest) == 0)
        return 0;
    return err_set(err, ERR_CORRUPT, "%s: its bytes have the digest %.12s, wanted %.12s",
                   h->item->from, hex, h->item->digest);
}

static int tell(struct archive_out *a, const struct archive_item *item, size_t n, struct err *err)
{
    int rc = a->on_bytes ? a->on_bytes(a->arg, n) : 0;
    return rc ? err_set(err, rc, "%s: interrupted", item->name) : 0;
}

/* A plain tar's bytes go from file to file in the kernel. 1: it cannot. */
static int copy_in_kernel(struct archive_out *a, const struct archive_item *item, int in,
                          uint64_t *done, struct err *err)
{
    while (*done < item->size) {
        size_t n =
            item->size - *done < 8 * CHUNK_BYTES ? (size_t)(item->size - *done) : 8 * CHUNK_BYTES;
        off_t from = (off_t)*done;
        ssize_t got = sys_copy_file_range(in, &from, a->fd, NULL, n);
        if (got < 0 && (errno == EXDEV || errno == EINVAL || errno == ENOSYS ||
                        errno == EOPNOTSUPP || errno == EBADF))
            return 1;
        if (got < 0)
            return err_set_errno(err, errno, "%s: cannot copy to %s", item->from, a->path);
        if (got == 0)
            return 1;
        sys_start_writeback(a->fd, (off_t)a->written, got);
        *done += (uint64_t)got;
        a->written += (uint64_t)got;
        a->tar_at += (uint64_t)got;
        int rc = tell(a, item, (size_t)got, err);
        if (rc)
            return rc;
    }
    return 0;
}

static int copy_by_hand(struct archive_out *a, const struct archive_item *item, int in,
                        uint64_t done, struct err *err)
{
    int rc = 0;
    while (!rc && done < item->size) {
        size_t n = item->size - done < CHUNK_BYTES ? (size_t)(item->size - done) : CHUNK_BYTES;
        rc = file_pread_all(in, a->buf, n, done, item->from, err);
        if (!rc)
            rc = put(a, a->buf, n, err);
        if (!rc)
            rc = tell(a, item, n, err);
        done += n;
    }
    return rc;
}

static int copy_file(struct archive_out *a, const struct archive_item *item, struct err *err)
{
    int in = sys_open(item->from, O_RDONLY, 0);
    struct stat st;
    if (in < 0)
        return err_set_errno(err, errno, "%s: cannot open", item->from);
    int rc = 0;
    if (sys_fstat(in, &st) != 0)
        rc = err_set_errno(err, errno, "%s: cannot stat", item->from);
    else if ((uint64_t)st.st_size != item->size)
        rc = err_set(err, ERR_CORRUPT, "%s: %llu bytes, wanted %llu", item->from,
                     (unsigned long long)st.st_size, (unsigned long long)item->size);
    struct hasher h = {.item = item};
    if (!rc) {
        uint64_t done = 0;
        hasher_start(&h, item);
        rc = a->kind == ARCHIVE_KIND_TAR ? copy_in_kernel(a, item, in, &done, err) : 1;
        if (rc == 1)
            rc = copy_by_hand(a, item, in, done, err);
        int hash_rc = hasher_finish(&h, rc ? NULL : err);
        rc = rc ? rc : hash_rc;
    }
    sys_close(in);
    return rc;
}

static int zip_header(struct archive_out *a, const struct archive_item *item, struct err *err)
{
    // Weights hardly shrink, and what is stored as it is can be mapped.
    int bad = item->align ? archive_write_zip_set_compression_store(a->la)
                          : archive_write_zip_set_compression_deflate(a->la);
    struct archive_entry *e = archive_entry_new();
    if (!e)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", item->name);
    archive_entry_set_pathname(e, item->name);
    archive_entry_set_size(e, (la_int64_t)item->size);
    archive_entry_set_filetype(e, AE_IFREG);
    archive_entry_set_perm(e, 0644);
    archive_entry_set_mtime(e, 0, 0); // a zip's own time begins in 1980: it becomes that
    if (!bad)
        bad = archive_write_header(a->la, e);
    archive_entry_free(e);
    return bad ? la_failed(a, err) : 0;
}

static int pad(struct archive_out *a, uint64_t size, struct err *err)
{
    static const char zeros[1024];
    size_t rest = (size_t)(size % 512);
    return rest ? put(a, zeros, 512 - rest, err) : 0;
}

int archive_out_put(struct archive_out *a, const struct archive_item *item, struct err *err)
{
    bool zip = a->kind == ARCHIVE_KIND_ZIP;
    int rc = zip ? zip_header(a, item, err) : archive_tar_header(item, a->tar_at, put, a, err);
    if (!rc && item->data)
        rc = put(a, item->data, item->size, err);
    else if (!rc)
        rc = copy_file(a, item, err);
    if (!rc && !zip)
        rc = pad(a, item->size, err);
    return rc;
}

// ---- the end -----------------------------------------------------------------------------------

static int end_format(struct archive_out *a, struct err *err)
{
    static const char zeros[1024]; // two empty blocks end a tar
    int rc = a->kind == ARCHIVE_KIND_ZIP ? 0 : put(a, zeros, sizeof zeros, err);
    if (!rc && a->zstd)
        rc = put_zstd(a, NULL, 0, true, err);
    if (!rc && a->la && archive_write_close(a->la) != ARCHIVE_OK)
        rc = la_failed(a, err);
    return rc;
}

int archive_out_finish(struct archive_out *a, bool replace, uint64_t *bytes, struct err *err)
{
    int rc = end_format(a, err);
    if (rc)
        return rc;
    if (sys_fsync(a->fd) != 0)
        return err_set_errno(err, errno, "%s: cannot sync", a->tmp);
    if ((replace ? sys_rename(a->tmp, a->path) : sys_rename_noreplace(a->tmp, a->path)) != 0)
        return err_set_errno(err, errno, "%s: cannot be made", a->path);
    a->finished = true;
    *bytes = a->written;
    char *folder = file_dir_name(a->path);
    rc = folder ? file_sync_folder(folder, err) : err_set(err, ERR_NO_MEMORY, "no memory");
    sys_free(folder);
    return rc;
}

void archive_out_free(struct archive_out *a)
{
    if (!a)
        return;
    if (a->la)
        archive_write_free(a->la);
    ZSTD_freeCCtx(a->zstd);
    if (a->fd >= 0)
        sys_close(a->fd);
    if (a->fd >= 0 && !a->finished)
        sys_unlink(a->tmp);
    sys_free(a->buf);
    sys_free(a->tmp);
    sys_free(a->path);
    sys_free(a);
}
