#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/limits.h"
#include "libcore/base/sys.h"
#include "store/archive_impl.h"

/*
 * A zip says everything twice: before each entry's data and in the central directory at the end.
 * Readers differ in which they believe, so a file in which the two differ is one thing to the
 * checker and another to the user. Here every pair is compared, and every byte before the directory
 * must belong to exactly one entry. Layout: APPNOTE.TXT 6.3.9, sections 4.3 to 4.5.
 */
enum {
    LOCAL_BYTES = 30,
    CENTRAL_BYTES = 46,
    END_BYTES = 22,
    END64_BYTES = 56,
    LOCATOR64_BYTES = 20,
    MAX_COMMENT = 65535,
    MAX_DESCRIPTOR = 24, // with signature and 64-bit sizes
    FLAG_ENCRYPTED = 1 << 0,
    FLAG_DESCRIPTOR = 1 << 3,
    FLAG_STRONG = 1 << 6,
    FLAG_MASKED = 1 << 13,
};

struct zip {
    int fd;
    const char *path;
    uint64_t size;
    uint64_t directory, directory_bytes, n_entries;
    uint8_t *central; // the whole directory
};

struct header {
    uint16_t flags, method, name_bytes, extra_bytes;
    uint32_t crc;
    uint64_t packed, unpacked, offset;
    const uint8_t *name;
};

struct span {
    uint64_t begin, end, slack;
    char shown[128];
};

static uint16_t u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t u32(const uint8_t *p)
{
    return (uint32_t)u16(p) | (uint32_t)u16(p + 2) << 16;
}

static uint64_t u64(const uint8_t *p)
{
    return (uint64_t)u32(p) | (uint64_t)u32(p + 4) << 32;
}

static int corrupt(const struct zip *z, const char *what, struct err *err)
{
    return err_set(err, ERR_CORRUPT, "%s: %s", z->path, what);
}

static int entry_corrupt(const struct zip *z, const struct header *h, const char *what,
                         struct err *err)
{
    char name[200] = "", shown[128];
    size_t n = h->name_bytes < sizeof name - 1 ? h->name_bytes : sizeof name - 1;
    for (size_t i = 0; i < n; i++)
        name[i] = h->name[i] ? (char)h->name[i] : '?';
    return err_set(err, ERR_CORRUPT, "%s:%s: %s", z->path, archive_shown(name, shown), what);
}

// ---- the end records ---------------------------------------------------------------------------

static int read_end64(struct zip *z, uint64_t end_at, struct err *err)
{
    uint8_t locator[LOCATOR64_BYTES], end[END64_BYTES];
    if (end_at < LOCATOR64_BYTES)
        return corrupt(z, "its zip64 records are missing", err);
    int rc = file_pread_all(z->fd, locator, sizeof locator, end_at - LOCATOR64_BYTES, z->path, err);
    if (rc)
        return rc;
    uint64_t at = u64(locator + 8);
    if (u32(locator) != 0x07064b50 || at > z->size || z->size - at < END64_BYTES)
        return corrupt(z, "its zip64 records are missing", err);
    rc = file_pread_all(z->fd, end, sizeof end, at, z->path, err);
    if (rc)
        return rc;
    if (u32(end) != 0x06064b50 || u64(end + 24) != u64(end + 32) || u32(end + 16) || u32(end + 20))
        return corrupt(z, "its zip64 end record is off", err);
    z->n_entries = u64(end + 32);
    z->directory_bytes = u64(end + 40);
    z->directory = u64(end + 48);
    return 0;
}

static int read_end(struct zip *z, struct err *err)
{
    uint64_t want = END_BYTES + MAX_COMMENT, n = z->size < want ? z->size : want, at;
    uint8_t *tail = sys_malloc((size_t)n + 1);
    if (!tail)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", z->path);
    int rc = file_pread_all(z->fd, tail, (size_t)n, z->size - n, z->path, err);
    bool found = false;
    for (at = n < END_BYTES ? 0 : n - END_BYTES + 1; !rc && !found && at-- > 0;) {
        const uint8_t *p = tail + at;
        found = u32(p) == 0x06054b50 && at + END_BYTES + u16(p + 20) == n;
        if (!found)
            continue;
        z->n_entries = u16(p + 10);
        z->directory_bytes = u32(p + 12);
        z->directory = u32(p + 16);
        if (u16(p + 4) || u16(p + 6) || u16(p + 8) != u16(p + 10))
            rc = corrupt(z, "is one part of several, which is not read", err);
        else if (z->n_entries == 0xffff || z->directory == 0xffffffff ||
                 z->directory_bytes == 0xffffffff)
            rc = read_end64(z, z->size - n + at, err);
    }
    if (!rc && !found)
        rc = corrupt(z, "its end record is missing: cut off, or no zip", err);
    sys_free(tail);
    return rc;
}

static int read_directory(struct zip *z, struct err *err)
{
    if (z->n_entries > LIMIT_PACK_ENTRIES)
        return err_set(err, ERR_LIMIT, "%s: %llu entries, at most %d are read", z->path,
                       (unsigned long long)z->n_entries, LIMIT_PACK_ENTRIES);
    if (z->directory > z->size || z->directory_bytes > z->size - z->directory ||
        z->n_entries > z->directory_bytes / CENTRAL_BYTES ||
        z->directory_bytes > (uint64_t)LIMIT_PACK_ENTRIES * 2048)
        return corrupt(z, "its central directory is not where it should be", err);
    z->central = sys_malloc((size_t)z->directory_bytes + 1);
    if (!z->central)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory for its directory", z->path);
    return file_pread_all(z->fd, z->central, (size_t)z->directory_bytes, z->directory, z->path,
                          err);
}

// ---- one entry ---------------------------------------------------------------------------------

/* Sizes and offset that stand in the zip64 extra field, in their order; false when it is off. */
static bool take_zip64(const uint8_t *extra, size_t n, uint64_t *const *fields, const bool *wanted,
                       size_t n_fields)
{
    size_t left = 0;
    for (size_t i = 0; i < n_fields; i++)
        left += wanted[i];
    for (size_t at = 0; at + 4 <= n;) {
        size_t size = u16(extra + at + 2);
        const uint8_t *p = extra + at + 4;
        if (size > n - at - 4)
            return false;
        at += 4 + size;
        if (u16(p - 4) != 1)
            continue;
        for (size_t i = 0; i < n_fields; i++) {
            if (!wanted[i])
                continue;
            if (size < 8)
                return false;
            *fields[i] = u64(p);
            p += 8;
            size -= 8;
            left--;
        }
        break;
    }
    return left == 0;
}

static bool read_central(const uint8_t *p, size_t n, struct header *h, size_t *used)
{
    if (n < CENTRAL_BYTES || u32(p) != 0x02014b50)
        return false;
    *h = (struct header){u16(p + 8),  u16(p + 10), u16(p + 28), u16(p + 30),      u32(p + 16),
                         u32(p + 20), u32(p + 24), u32(p + 42), p + CENTRAL_BYTES};
    *used = (size_t)CENTRAL_BYTES + h->name_bytes + h->extra_bytes + u16(p + 32);
    if (*used > n || u16(p + 34)) {
        h->name_bytes = 0;
        return false;
    }
    uint64_t *const fields[] = {&h->unpacked, &h->packed, &h->offset};
    const bool wanted[] = {h->unpacked == 0xffffffff, h->packed == 0xffffffff,
                           h->offset == 0xffffffff};
    return take_zip64(h->name + h->name_bytes, h->extra_bytes, fields, wanted, 3);
}

/* Sizes of a local header count only where no descriptor follows the data; else they may be 0. */
static const char *compare(const struct header *c, struct header *l, const uint8_t *extra)
{
    if (l->flags != c->flags)
        return "its local and central headers differ: flags";
    if (l->method != c->method)
        return "its local and central headers differ: method";
    if (l->name_bytes != c->name_bytes || memcmp(l->name, c->name, c->name_bytes) != 0)
        return "its local and central headers differ: name";
    uint64_t *const fields[] = {&l->unpacked, &l->packed};
    const bool wanted[] = {l->unpacked == 0xffffffff, l->packed == 0xffffffff};
    if (!take_zip64(extra, l->extra_bytes, fields, wanted, 2))
        return "its local zip64 sizes are missing";
    bool later = c->flags & FLAG_DESCRIPTOR;
    if (l->crc != c->crc && !(later && l->crc == 0))
        return "its local and central headers differ: checksum";
    if (l->packed != c->packed && !(later && l->packed == 0))
        return "its local and central headers differ: packed size";
    if (l->unpacked != c->unpacked && !(later && l->unpacked == 0))
        return "its local and central headers differ: size";
    return NULL;
}

static const char *unreadable(const struct header *h)
{
    if (h->flags & (FLAG_ENCRYPTED | FLAG_STRONG | FLAG_MASKED))
        return "is encrypted, which is not read";
    if (h->method != 0 && h->method != 8)
        return "its compression method is neither stored nor deflate";
    if (h->method == 0 && h->packed != h->unpacked)
        return "is stored, but its two sizes differ";
    if (memchr(h->name, 0, h->name_bytes))
        return "has a NUL in its name";
    return NULL;
}

static int check_local(const struct zip *z, const struct header *c, struct span *span,
                       struct err *err)
{
    uint8_t fixed[LOCAL_BYTES], *rest;
    if (c->offset > z->directory || z->directory - c->offset < LOCAL_BYTES)
        return entry_corrupt(z, c, "its data lies outside the file", err);
    int rc = file_pread_all(z->fd, fixed, sizeof fixed, c->offset, z->path, err);
    if (rc)
        return rc;
    if (u32(fixed) != 0x04034b50)
        return entry_corrupt(z, c, "has no local header where its central one says", err);
    struct header l = {u16(fixed + 6),
                       u16(fixed + 8),
                       u16(fixed + 26),
                       u16(fixed + 28),
                       u32(fixed + 14),
                       u32(fixed + 18),
                       u32(fixed + 22),
                       0,
                       NULL};
    size_t n = (size_t)l.name_bytes + l.extra_bytes;
    rest = sys_malloc(n + 1);
    if (!rest)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", z->path);
    rc = file_pread_all(z->fd, rest, n, c->offset + LOCAL_BYTES, z->path, err);
    l.name = rest;
    const char *what = rc ? NULL : compare(c, &l, rest + l.name_bytes);
    span->begin = c->offset;
    span->end = c->offset + LOCAL_BYTES + n + c->packed;
    span->slack = c->flags & FLAG_DESCRIPTOR ? MAX_DESCRIPTOR : 0;
    if (!rc && !what && (c->packed > z->directory || span->end > z->directory))
        what = "its data lies outside the file";
    sys_free(rest);
    return rc ? rc : what ? entry_corrupt(z, c, what, err) : 0;
}

// ---- all of them -------------------------------------------------------------------------------

static int by_begin(const void *a, const void *b)
{
    const struct span *x = a, *y = b;
    return (x->begin > y->begin) - (x->begin < y->begin);
}

/* Data that two entries share makes small bombs; data of none hides from checkers. */
static int check_spans(const struct zip *z, struct span *spans, size_t n, struct err *err)
{
    qsort(spans, n, sizeof *spans, by_begin);
    uint64_t at = 0, slack = 0;
    for (size_t i = 0; i < n; i++) {
        if (spans[i].begin < at)
            return err_set(err, ERR_CORRUPT, "%s:%s: its data overlaps another entry's", z->path,
                           spans[i].shown);
        if (spans[i].begin > at + slack)
            return err_set(err, ERR_CORRUPT, "%s:%s: %llu bytes before it belong to no entry",
                           z->path, spans[i].shown, (unsigned long long)(spans[i].begin - at));
        at = spans[i].end;
        slack = spans[i].slack;
    }
    if (z->directory < at || z->directory > at + slack)
        return corrupt(z, "bytes before its directory belong to no entry", err);
    return 0;
}

static int check_entries(const struct zip *z, struct span *spans, struct err *err)
{
    size_t at = 0;
    for (uint64_t i = 0; i < z->n_entries; i++) {
        struct header h = {0};
        size_t used = 0;
        if (!read_central(z->central + at, (size_t)z->directory_bytes - at, &h, &used))
            return corrupt(z, "its central directory is off", err);
        const char *what = unreadable(&h);
        if (what)
            return entry_corrupt(z, &h, what, err);
        char name[200] = "";
        memcpy(name, h.name, h.name_bytes < 199 ? h.name_bytes : 199);
        archive_shown(name, spans[i].shown);
        int rc = check_local(z, &h, &spans[i], err);
        if (rc)
            return rc;
        at += used;
    }
    if (at != z->directory_bytes)
        return corrupt(z, "its central directory has more entries than it counts", err);
    return check_spans(z, spans, (size_t)z->n_entries, err);
}

int archive_zip_check(int fd, uint64_t size, const char *path, struct err *err)
{
    struct zip z = {.fd = fd, .path = path, .size = size};
    struct span *spans = NULL;
    int rc = read_end(&z, err);
    if (!rc)
        rc = read_directory(&z, err);
    if (!rc) {
        spans = sys_calloc((size_t)z.n_entries + 1, sizeof *spans);
        rc = spans ? check_entries(&z, spans, err)
                   : err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
    }
    sys_free(spans);
    sys_free(z.central);
    return rc;
}
