#include <string.h>
#include <zlib.h>

#include "libcore/base/sys.h"
#include "store/archive_impl.h"

/*
 * libarchive's own filter does not look at the checksum at a gzip's end: a flipped bit in the
 * weights of somebody's tar.gz would come through as another number. zlib's does.
 */
struct gunzip {
    z_stream z;
    const char *where;
    bool ended; // of a member: another may follow
};

int gunzip_open(struct gunzip **out, const char *where, struct err *err)
{
    *out = NULL;
    struct gunzip *g = sys_calloc(1, sizeof *g);
    if (g && inflateInit2(&g->z, 16 + MAX_WBITS) != Z_OK) {
        sys_free(g);
        g = NULL;
    }
    if (!g)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory to unpack it", where);
    g->where = where;
    *out = g;
    return 0;
}

void gunzip_free(struct gunzip *g)
{
    if (g)
        inflateEnd(&g->z);
    sys_free(g);
}

void gunzip_give(struct gunzip *g, const void *data, size_t n)
{
    g->z.next_in = (Bytef *)data;
    g->z.avail_in = (uInt)n;
}

bool gunzip_hungry(const struct gunzip *g)
{
    return g->z.avail_in == 0;
}

/* After a member's end: zeros are padding, as gzip has it; else another member begins. */
static void pass_padding(struct gunzip *g)
{
    while (g->z.avail_in && *g->z.next_in == 0) {
        g->z.next_in++;
        g->z.avail_in--;
    }
    if (g->z.avail_in) {
        inflateReset(&g->z);
        g->ended = false;
    }
}

int gunzip_take(struct gunzip *g, void *to, size_t n, size_t *got, struct err *err)
{
    *got = 0;
    if (g->ended)
        pass_padding(g);
    if (g->ended || !g->z.avail_in)
        return 0;
    g->z.next_out = to;
    g->z.avail_out = (uInt)n;
    int code = inflate(&g->z, Z_NO_FLUSH);
    *got = n - g->z.avail_out;
    g->ended = code == Z_STREAM_END;
    if (code == Z_OK || code == Z_STREAM_END || code == Z_BUF_ERROR)
        return 0;
    if (code == Z_MEM_ERROR)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory to unpack it", g->where);
    return err_set(err, ERR_CORRUPT, "%s: gzip: %s", g->where, g->z.msg ? g->z.msg : "damaged");
}

int gunzip_end(const struct gunzip *g, struct err *err)
{
    return g->ended ? 0 : err_set(err, ERR_CORRUPT, "%s: gzip: cut off", g->where);
}
