#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <zstd.h>

#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "store/archive_impl.h"
#include "store/block_pipe.h"

enum { CHUNK_BYTES = 1 << 20, ZSTD_LEVEL = 3, ZSTD_WORKERS = 2, WRITEBACK_BYTES = 8 << 20 };

struct archive_out {
    enum archive_kind kind;
    char *path, *tmp;
    int fd;
    bool finished;
    uint64_t written; // bytes in the file
    uint64_t tar_at;  // bytes of the tar, before compression
    ZSTD_CCtx *zstd;
    struct archive *la; // gzip, zip
    char *buf;          // CHUNK_BYTES to compress into
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
    uint64_t before = a->written / WRITEBACK_BYTES * WRITEBACK_BYTES;
    a->written += n;
    // The sync at the end finds little left to do.
    if (a->written - before >= WRITEBACK_BYTES)
        sys_start_writeback(a->fd, (off_t)before, (off_t)(a->written - before));
    return rc;
}

static int put_zstd(struct archive_out *a, const void *data, size_t n, bool end, struct err *err)
{
    ZSTD_inBuffer in = {data, n, 0};
    ZSTD_EndDirective how = end ? ZSTD_e_end : ZSTD_e_continue;
    for (;;) {
        ZSTD_outBuffer out = {a->buf, CHUNK_BYTES, 0};
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
    a->buf = sys_malloc(CHUNK_BYTES);
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

/*
 * A file's bytes come in blocks; each is hashed by the pipe's thread while it is compressed and
 * written here. What does not have the digest that it should is found at the end, and the archive
 * with it never appears.
 */
struct source {
    struct archive_out *a;
    const struct archive_item *item;
    int fd;
    bool cloned; // its bytes are in the archive
    struct digest_state *hash;
    struct block_pipe *pipe;
};

static int tell(struct archive_out *a, const struct archive_item *item, size_t n, struct err *err)
{
    int rc = a->on_bytes ? a->on_bytes(a->arg, n) : 0;
    return rc ? err_set(err, rc, "%s: interrupted", item->name) : 0;
}

static int hash_block(void *arg, const void *data, size_t n, struct err *err)
{
    struct source *s = arg;
    return s->hash ? digest_update(s->hash, data, n, err) : 0;
}

static int check_digest(const struct source *s, struct err *err)
{
    char hex[DIGEST_HEX_CHARS + 1];
    struct digest d;
    int rc = s->hash ? digest_final(s->hash, &d, err) : 0;
    if (rc || !s->hash)
        return rc;
    digest_hex(&d, hex);
    if (strcmp(hex, s->item->digest) == 0)
        return 0;
    return err_set(err, ERR_CORRUPT, "%s: its bytes have the digest %.12s, wanted %.12s",
                   s->item->from, hex, s->item->digest);
}

/* Where files can share extents, a tar's aligned data are the file's own. */
static bool clone_file(struct archive_out *a, const struct archive_item *item, int fd)
{
    struct file_clone_range range = {.src_fd = fd, .dest_offset = a->written};
    if (a->kind != ARCHIVE_KIND_TAR || a->written % ARCHIVE_ALIGN || !item->size ||
        ioctl(a->fd, FICLONERANGE, &range) != 0)
        return false;
    a->written += item->size;
    a->tar_at += item->size;
    return lseek(a->fd, (off_t)a->written, SEEK_SET) >= 0;
}

static int copy_blocks(struct source *s, struct err *err)
{
    int rc = 0;
    for (uint64_t done = 0; !rc && done < s->item->size;) {
        size_t room;
        char *slot = block_pipe_slot(s->pipe, &room);
        size_t n = s->item->size - done < room ? (size_t)(s->item->size - done) : room;
        rc = file_pread_all(s->fd, slot, n, done, s->item->from, err);
        // The slot is not used again before it is asked for: it may be read here meanwhile.
        if (!rc)
            rc = block_pipe_give(s->pipe, n, err);
        if (!rc && !s->cloned)
            rc = put(s->a, slot, n, err);
        if (!rc)
            rc = tell(s->a, s->item, n, err);
        done += n;
    }
    return rc;
}

static int check_source(const struct source *s, struct err *err)
{
    struct stat st;
    if (sys_fstat(s->fd, &st) != 0)
        return err_set_errno(err, errno, "%s: cannot stat", s->item->from);
    if ((uint64_t)st.st_size == s->item->size)
        return 0;
    return err_set(err, ERR_CORRUPT, "%s: %llu bytes, wanted %llu", s->item->from,
                   (unsigned long long)st.st_size, (unsigned long long)s->item->size);
}

static int copy_file(struct archive_out *a, const struct archive_item *item, struct err *err)
{
    struct source s = {.a = a, .item = item, .fd = sys_open(item->from, O_RDONLY, 0)};
    if (s.fd < 0)
        return err_set_errno(err, errno, "%s: cannot open", item->from);
    int rc = check_source(&s, err);
    if (!rc && item->digest)
        rc = digest_open(&s.hash, err);
    if (!rc)
        rc = block_pipe_open(&s.pipe, item->size, hash_block, &s, err);
    if (!rc) {
        s.cloned = clone_file(a, item, s.fd);
        rc = copy_blocks(&s, err);
    }
    if (!rc)
        rc = block_pipe_finish(s.pipe, err);
    if (!rc)
        rc = check_digest(&s, err);
    block_pipe_free(s.pipe);
    digest_free(s.hash);
    sys_close(s.fd);
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
