#include <string.h>
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "libcore/base/sys.h"
#include "store/archive_impl.h"

/*
 * libarchive's own filters do not look at the checksum at a gzip's end: a flipped bit in the
 * weights of somebody's tar.gz would come through as another number. zlib's and zstd's own do; and
 * done here they can run on another thread.
 */
struct unpack {
    z_stream z;
    ZSTD_DCtx *zstd; // NULL: gzip
    ZSTD_inBuffer in;
    const char *where;
    bool ended; // of a member or frame: another may follow
};

enum unpack_kind unpack_kind_of(const void *data, size_t n)
{
    if (n >= 2 && memcmp(data, "\x1f\x8b", 2) == 0)
        return UNPACK_GZIP;
    if (n >= 4 && memcmp(data, "\x28\xb5\x2f\xfd", 4) == 0)
        return UNPACK_ZSTD;
    return UNPACK_NONE;
}

int unpack_open(struct unpack **out, enum unpack_kind kind, const char *where, struct err *err)
{
    *out = NULL;
    struct unpack *u = sys_calloc(1, sizeof *u);
    bool zstd = kind == UNPACK_ZSTD, failed = !u;
    if (u && zstd)
        failed = !(u->zstd = ZSTD_createDCtx());
    else if (u)
        failed = inflateInit2(&u->z, 16 + MAX_WBITS) != Z_OK;
    if (failed) {
        sys_free(u);
        return err_set(err, ERR_NO_MEMORY, "%s: no memory to unpack it", where);
    }
    u->where = where;
    *out = u;
    return 0;
}

void unpack_free(struct unpack *u)
{
    if (u && u->zstd)
        ZSTD_freeDCtx(u->zstd);
    else if (u)
        inflateEnd(&u->z);
    sys_free(u);
}

void unpack_give(struct unpack *u, const void *data, size_t n)
{
    u->in = (ZSTD_inBuffer){data, n, 0};
    u->z.next_in = (Bytef *)data;
    u->z.avail_in = (uInt)n;
}

bool unpack_hungry(const struct unpack *u)
{
    return u->zstd ? u->in.pos == u->in.size : u->z.avail_in == 0;
}

static int take_zstd(struct unpack *u, void *to, size_t n, size_t *got, struct err *err)
{
    ZSTD_outBuffer out = {to, n, 0};
    if (u->ended && u->in.pos == u->in.size)
        return 0;
    // Also without input: there may be output that had no room before.
    size_t left = ZSTD_decompressStream(u->zstd, &out, &u->in);
    *got = out.pos;
    u->ended = left == 0;
    if (!ZSTD_isError(left))
        return 0;
    u->ended = false;
    if (ZSTD_getErrorCode(left) == ZSTD_error_memory_allocation)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory to unpack it", u->where);
    return err_set(err, ERR_CORRUPT, "%s: zstd: %s", u->where, ZSTD_getErrorName(left));
}

/* After a member's end: zeros are padding, as gzip has it; else another member begins. */
static void pass_padding(struct unpack *u)
{
    while (u->z.avail_in && *u->z.next_in == 0) {
        u->z.next_in++;
        u->z.avail_in--;
    }
    if (u->z.avail_in) {
        inflateReset(&u->z);
        u->ended = false;
    }
}

int unpack_take(struct unpack *u, void *to, size_t n, size_t *got, struct err *err)
{
    *got = 0;
    if (u->zstd)
        return take_zstd(u, to, n, got, err);
    if (u->ended)
        pass_padding(u);
    if (u->ended || !u->z.avail_in)
        return 0;
    u->z.next_out = to;
    u->z.avail_out = (uInt)n;
    int code = inflate(&u->z, Z_NO_FLUSH);
    *got = n - u->z.avail_out;
    u->ended = code == Z_STREAM_END;
    if (code == Z_OK || code == Z_STREAM_END || code == Z_BUF_ERROR)
        return 0;
    if (code == Z_MEM_ERROR)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory to unpack it", u->where);
    return err_set(err, ERR_CORRUPT, "%s: gzip: %s", u->where, u->z.msg ? u->z.msg : "damaged");
}

int unpack_end(const struct unpack *u, struct err *err)
{
    return u->ended
               ? 0
               : err_set(err, ERR_CORRUPT, "%s: %s: cut off", u->where, u->zstd ? "zstd" : "gzip");
}
