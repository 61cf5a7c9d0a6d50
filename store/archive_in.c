#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "libcore/base/limits.h"
#include "libcore/base/sys.h"
#include "store/archive_impl.h"

enum { READ_BYTES = 1 << 20 };

/* What reads the file, and unpacks it; belongs to the thread that does once there is one. */
struct source {
    const char *path; // for messages
    int fd;
    char *buf;             // READ_BYTES as read
    struct unpack *unpack; // NULL: the file is a plain tar or a zip
    bool ended;            // the input's end was met
    uint64_t packed;       // bytes read
    int (*on_bytes)(void *arg, uint64_t bytes);
    void *arg;
    struct err err;
};

struct archive_in {
    char *path; // for messages; "-" for standard input
    struct source source;
    bool zip;
    uint64_t file_size; // 0: a pipe
    struct archive *la;
    struct ahead *ahead; // unpacked bytes; NULL: none are packed
    bool started;        // the first bytes were looked at
    struct name_set *names;
    char *name; // of the entry in hand
    uint64_t size, n_entries;
    uint64_t packed, unpacked; // bytes read for what was given, and given, so far
    struct err read_err;
};

// ---- the file ----------------------------------------------------------------------------------

/* Bytes of the file as they are; 0 at its end, -1 with s->err. */
static ssize_t read_raw(struct source *s)
{
    ssize_t n = sys_read(s->fd, s->buf, READ_BYTES);
    if (n < 0)
        err_set_errno(&s->err, errno, "%s: cannot read", s->path);
    int rc = n > 0 && s->on_bytes ? s->on_bytes(s->arg, (uint64_t)n) : 0;
    if (rc)
        err_set(&s->err, rc, "%s: interrupted", s->path);
    if (s->err.code)
        return -1;
    s->packed += (uint64_t)n;
    return n;
}

/* Unpacked bytes; as ahead_open() wants it. */
static ssize_t fill(void *arg, void *buf, size_t room, uint64_t *packed)
{
    struct source *s = arg;
    size_t got = 0;
    while (got == 0) {
        if (unpack_take(s->unpack, buf, room, &got, &s->err) != 0)
            return -1;
        *packed = s->packed;
        if (got || !unpack_hungry(s->unpack))
            continue;
        ssize_t n = s->ended ? 0 : read_raw(s);
        s->ended |= n == 0;
        if (n < 0 || (n == 0 && unpack_end(s->unpack, &s->err) != 0))
            return -1;
        if (n == 0)
            return 0;
        unpack_give(s->unpack, s->buf, (size_t)n);
    }
    return (ssize_t)got;
}

/* A pipe is not read ahead: nobody could end a thread that waits for it. */
static bool begin_unpack(struct archive_in *a, enum unpack_kind kind, size_t n)
{
    if (unpack_open(&a->source.unpack, kind, a->path, &a->read_err) != 0)
        return false;
    unpack_give(a->source.unpack, a->source.buf, n);
    return ahead_open(&a->ahead, a->file_size != 0, fill, &a->source, &a->read_err) == 0;
}

static ssize_t take_unpacked(struct archive_in *a, const void **data)
{
    ssize_t n = ahead_take(a->ahead, data, &a->packed);
    if (n < 0)
        a->read_err = a->source.err;
    return n;
}

static ssize_t take_raw(struct archive_in *a, const void **data)
{
    ssize_t n = read_raw(&a->source);
    *data = a->source.buf;
    a->packed = a->source.packed;
    if (n < 0)
        a->read_err = a->source.err;
    return n;
}

static la_ssize_t la_read(struct archive *la, void *arg, const void **data)
{
    struct archive_in *a = arg;
    ssize_t n = a->ahead ? take_unpacked(a, data) : take_raw(a, data);
    if (!a->started && !a->zip && n > 0) {
        enum unpack_kind kind = unpack_kind_of(*data, (size_t)n);
        a->started = true;
        if (kind != UNPACK_NONE)
            n = begin_unpack(a, kind, (size_t)n) ? take_unpacked(a, data) : -1;
    }
    if (n < 0)
        archive_set_error(la, EIO, "%s", a->read_err.msg);
    return n;
}

static la_int64_t la_seek(struct archive *la, void *arg, la_int64_t offset, int whence)
{
    struct archive_in *a = arg;
    off_t at = lseek(a->source.fd, offset, whence);
    if (at < 0)
        archive_set_error(la, errno, "cannot seek");
    return at < 0 ? ARCHIVE_FATAL : at;
}

static int la_failed(struct archive_in *a, struct err *err)
{
    char shown[128];
    if (a->read_err.code)
        return err_set(err, a->read_err.code, "%s", a->read_err.msg);
    const char *why = archive_error_string(a->la);
    if (archive_errno(a->la) == ENOMEM)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", a->path);
    return err_set(err, ERR_CORRUPT, "%s%s%s: %s", a->path, a->name ? ":" : "",
                   a->name ? archive_shown(a->name, shown) : "", why ? why : "cut off");
}

static int open_file(struct archive_in *a, const char *path, struct err *err)
{
    a->source.fd = path ? sys_open(path, O_RDONLY, 0) : STDIN_FILENO;
    if (a->source.fd < 0)
        return err_set_errno(err, errno, "%s: cannot open", path);
    struct stat st;
    if (sys_fstat(a->source.fd, &st) != 0)
        return err_set_errno(err, errno, "%s: cannot stat", a->path);
    if (S_ISDIR(st.st_mode))
        return err_set(err, ERR_REFUSED, "%s: is a folder, wanted a pack", a->path);
    a->file_size = S_ISREG(st.st_mode) ? (uint64_t)st.st_size : 0;
    if (!path)
        return 0;
    char magic[4];
    a->zip = sys_pread(a->source.fd, magic, 4, 0) == 4 && memcmp(magic, "PK", 2) == 0;
    return a->zip ? archive_zip_check(a->source.fd, a->file_size, a->path, err) : 0;
}

static int open_la(struct archive_in *a, struct err *err)
{
    a->la = archive_read_new();
    if (!a->la)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", a->path);
    if (a->zip) {
        archive_read_support_format_zip_seekable(a->la);
        archive_read_set_seek_callback(a->la, la_seek);
    } else {
        archive_read_support_format_tar(a->la);
    }
    archive_read_set_callback_data(a->la, a);
    archive_read_set_read_callback(a->la, la_read);
    if (archive_read_open1(a->la) == ARCHIVE_OK)
        return 0;
    int rc = la_failed(a, err);
    if (rc == ERR_CORRUPT && !a->zip && !a->read_err.code)
        err_set(err, rc, "%s: is no tar, tar.gz or tar.zst%s", a->path,
                strcmp(a->path, "-") == 0 ? " (a zip cannot be read from standard input)"
                                          : ", and no zip");
    return rc;
}

int archive_in_open(struct archive_in **out, const char *path,
                    int (*on_bytes)(void *arg, uint64_t bytes), void *arg, struct err *err)
{
    *out = NULL;
    struct archive_in *a = sys_calloc(1, sizeof *a);
    if (!a)
        return err_set(err, ERR_NO_MEMORY, "no memory for an archive");
    a->path = sys_strdup(path ? path : "-");
    a->source = (struct source){
        .path = a->path, .fd = -1, .buf = sys_malloc(READ_BYTES), .on_bytes = on_bytes, .arg = arg};
    int rc = a->path && a->source.buf ? name_set_open(&a->names, err)
                                      : err_set(err, ERR_NO_MEMORY, "no memory for an archive");
    if (!rc)
        rc = open_file(a, path, err);
    if (!rc)
        rc = open_la(a, err);
    if (rc) {
        archive_in_free(a);
        return rc;
    }
    *out = a;
    return 0;
}

void archive_in_free(struct archive_in *a)
{
    if (!a)
        return;
    if (a->la)
        archive_read_free(a->la);
    ahead_free(a->ahead);
    unpack_free(a->source.unpack);
    if (a->source.fd > STDIN_FILENO)
        sys_close(a->source.fd);
    name_set_free(a->names);
    sys_free(a->name);
    sys_free(a->source.buf);
    sys_free(a->path);
    sys_free(a);
}

// ---- entries -----------------------------------------------------------------------------------

static int check_type(struct archive_in *a, struct archive_entry *e, struct err *err)
{
    char shown[128];
    const char *what = NULL;
    if (archive_entry_hardlink(e))
        what = "is a hard link";
    else if (archive_entry_filetype(e) == AE_IFLNK)
        what = "is a symbolic link";
    else if (archive_entry_filetype(e) != AE_IFREG && archive_entry_filetype(e) != AE_IFDIR)
        what = "is neither a file nor a folder";
    else if (archive_entry_sparse_count(e) > 0)
        what = "is a sparse file";
    else if (archive_entry_is_encrypted(e))
        what = "is encrypted";
    return what ? err_set(err, ERR_REFUSED, "%s:%s: %s, which a pack may not hold", a->path,
                          archive_shown(a->name, shown), what)
                : 0;
}

static int check_size(struct archive_in *a, struct archive_entry *e, struct err *err)
{
    char shown[128];
    archive_shown(a->name, shown);
    if (!archive_entry_size_is_set(e) || archive_entry_size(e) < 0)
        return err_set(err, ERR_CORRUPT, "%s:%s: has no size", a->path, shown);
    a->size = (uint64_t)archive_entry_size(e);
    if (a->size >> 20 > LIMIT_PACK_MIB || (a->unpacked + a->size) >> 20 > LIMIT_PACK_MIB)
        return err_set(err, ERR_LIMIT, "%s:%s: %llu bytes, more than any pack holds", a->path,
                       shown, (unsigned long long)a->size);
    // What a file says it unpacks to is known before a byte is; a pipe is watched while it runs.
    uint64_t most = ((uint64_t)LIMIT_PACK_FREE_MIB << 20) + a->file_size * LIMIT_PACK_RATIO;
    if (a->file_size && a->unpacked + a->size > most)
        return err_set(err, ERR_LIMIT, "%s:%s: a bomb: it says %llu bytes, the whole file has %llu",
                       a->path, shown, (unsigned long long)a->size,
                       (unsigned long long)a->file_size);
    return 0;
}

static int take_name(struct archive_in *a, struct archive_entry *e, struct err *err)
{
    const char *name = archive_entry_pathname_utf8(e);
    if (!name)
        name = archive_entry_pathname(e);
    sys_free(a->name);
    a->name = NULL;
    if (!name)
        return err_set(err, ERR_REFUSED, "%s: entry %llu has no readable name", a->path,
                       (unsigned long long)a->n_entries);
    a->name = sys_strdup(name);
    if (!a->name)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", a->path);
    size_t n = strlen(a->name);
    // A folder's own name ends in a slash, and "./" is the folder that was packed.
    if (archive_entry_filetype(e) == AE_IFDIR) {
        while (n && a->name[n - 1] == '/')
            a->name[--n] = '\0';
    }
    return 0;
}

static int take_entry(struct archive_in *a, struct archive_entry *e, const char **clean,
                      struct err *err)
{
    if (++a->n_entries > LIMIT_PACK_ENTRIES)
        return err_set(err, ERR_LIMIT, "%s: more than %d entries", a->path, LIMIT_PACK_ENTRIES);
    int rc = take_name(a, e, err);
    if (rc)
        return rc;
    bool folder = archive_entry_filetype(e) == AE_IFDIR;
    *clean = a->name;
    if (!folder || strcmp(a->name, ".") != 0)
        rc = archive_check_name(a->path, a->name, clean, err);
    if (!rc)
        rc = check_type(a, e, err);
    if (!rc && !folder)
        rc = check_size(a, e, err);
    return rc ? rc : name_set_add(a->names, a->path, *clean, err);
}

/* What follows the end of a tar is padding; a packed stream's checksum stands behind it. */
static int finish(struct archive_in *a, struct err *err)
{
    uint64_t rest = 0, most = (uint64_t)LIMIT_PACK_FREE_MIB << 20;
    const void *data;
    while (a->ahead && rest <= most) {
        ssize_t n = take_unpacked(a, &data);
        if (n < 0)
            return la_failed(a, err);
        if (n == 0)
            return 0;
        rest += (uint64_t)n;
    }
    return rest > most ? err_set(err, ERR_LIMIT, "%s: a bomb behind its end", a->path) : 0;
}

int archive_in_next(struct archive_in *a, struct archive_in_entry *out, bool *more, struct err *err)
{
    for (;;) {
        struct archive_entry *e;
        int got = archive_read_next_header(a->la, &e);
        *more = got != ARCHIVE_EOF;
        if (got == ARCHIVE_EOF)
            return finish(a, err);
        if (got != ARCHIVE_OK) {
            // An error of the header is its own entry's, not of the one before.
            sys_free(a->name);
            a->name = NULL;
            int rc = got == ARCHIVE_WARN ? take_name(a, e, err) : 0;
            return rc ? rc : la_failed(a, err);
        }
        int rc = take_entry(a, e, &out->name, err);
        if (rc)
            return rc;
        out->size = a->size;
        if (archive_entry_filetype(e) == AE_IFREG)
            return 0;
    }
}

/* Packed bytes that the reader took; in a packed tar the last of them may be ahead by a buffer. */
static int check_ratio(struct archive_in *a, struct err *err)
{
    char shown[128];
    uint64_t most = ((uint64_t)LIMIT_PACK_FREE_MIB << 20) + a->packed * LIMIT_PACK_RATIO;
    if (a->zip || a->unpacked <= most)
        return 0;
    return err_set(err, ERR_LIMIT, "%s:%s: a bomb: %llu bytes so far from %llu packed ones",
                   a->path, archive_shown(a->name, shown), (unsigned long long)a->unpacked,
                   (unsigned long long)a->packed);
}

int archive_in_data(struct archive_in *a,
                    int (*sink)(void *arg, const void *data, size_t n, struct err *err), void *arg,
                    struct err *err)
{
    char shown[128];
    uint64_t at = 0;
    for (;;) {
        const void *data;
        size_t n;
        la_int64_t offset;
        int got = archive_read_data_block(a->la, &data, &n, &offset);
        if (got == ARCHIVE_EOF)
            break;
        if (got != ARCHIVE_OK)
            return la_failed(a, err);
        if ((uint64_t)offset != at || n > a->size - at)
            return err_set(err, ERR_CORRUPT, "%s:%s: has other bytes than its %llu", a->path,
                           archive_shown(a->name, shown), (unsigned long long)a->size);
        at += n;
        a->unpacked += n;
        int rc = check_ratio(a, err);
        if (!rc && sink && n)
            rc = sink(arg, data, n, err);
        if (rc)
            return rc;
    }
    if (at == a->size)
        return 0;
    return err_set(err, ERR_CORRUPT, "%s:%s: ends after %llu of %llu bytes", a->path,
                   archive_shown(a->name, shown), (unsigned long long)at,
                   (unsigned long long)a->size);
}
