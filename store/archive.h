/*
 * archive: tar and zip files; written so that the same input gives the same bytes, read as if an
 * enemy had written them.
 *
 * Writing: owner 0, time 0, mode 0644, no folders, entries in the order in which they are put. A
 * tar is ustar, with a pax header where a name or a size asks for it, or to bring the data of an
 * aligned entry to a multiple of ARCHIVE_ALIGN bytes (a comment record is the padding), so that it
 * can be mapped. The file appears at its path by rename, complete and synced.
 * Reading: tar (also zstd, gzip) from a file or a pipe, zip from a file. Entry names come out
 * checked and are for comparing only: nothing here makes a path of one.
 * Thread rule: a handle belongs to one thread.
 */
#ifndef STORE_ARCHIVE_H
#define STORE_ARCHIVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/digest.h"
#include "libcore/base/err.h"

enum { ARCHIVE_ALIGN = 4096 };

enum archive_kind {
    ARCHIVE_KIND_NONE,
    ARCHIVE_KIND_TAR,
    ARCHIVE_KIND_TAR_ZST,
    ARCHIVE_KIND_TAR_GZ,
    ARCHIVE_KIND_ZIP
};

/* From the end of a file's name: .tar, .tar.zst, .tar.gz, .tgz, .zip; ARCHIVE_KIND_NONE. */
enum archive_kind archive_kind_of(const char *path);
const char *archive_kind_ending(enum archive_kind kind); // ".tar.zst"

/* ---- writing ---- */

struct archive_item {
    const char *name;   // relative, UTF-8
    uint64_t size;      // bytes
    const void *data;   // its bytes; NULL: they are in `from`
    const char *from;   // a file of exactly that size
    const char *digest; // hex: what `from` must hash to; NULL: not checked
    bool align;         // plain and compressed tar alike, so that their tars are the same
};

struct archive_out;

/* A temporary file beside `path`. on_bytes (or NULL) hears of bytes read; a non-zero return ends
 * the work with that code. *out is the caller's, for archive_out_free(). */
int archive_out_open(struct archive_out **out, const char *path, enum archive_kind kind,
                     int (*on_bytes)(void *arg, uint64_t bytes), void *arg, struct err *err);
/* ERR_CORRUPT: the file has another size or digest than it should. */
int archive_out_put(struct archive_out *a, const struct archive_item *item, struct err *err);
/* Ends, syncs and renames; replaces what is there when `replace`, else ERR_EXISTS. */
int archive_out_finish(struct archive_out *a, bool replace, uint64_t *bytes, struct err *err);
void archive_out_free(struct archive_out *a); // an unfinished file is removed

/* ---- reading ---- */

struct archive_in;

struct archive_in_entry {
    const char *name; // without a leading "./"; borrowed until the next call
    uint64_t size;
};

/* path NULL: standard input (no zip then). A zip's local and central headers are compared here.
 * ERR_CORRUPT, ERR_REFUSED, ERR_LIMIT, ERR_NOT_FOUND, ERR_IO. on_bytes as above, of bytes read. */
int archive_in_open(struct archive_in **out, const char *path,
                    int (*on_bytes)(void *arg, uint64_t bytes), void *arg, struct err *err);
/* The next regular file; folders are passed over. *more is false at the end. ERR_REFUSED for links,
 * devices, absolute names, "..", ERR_CORRUPT for duplicates and broken headers, ERR_LIMIT for too
 * many entries, too large ones and bombs; each names the entry. */
int archive_in_next(struct archive_in *a, struct archive_in_entry *e, bool *more, struct err *err);
/* Gives the entry's bytes, exactly its size. To be called once for each entry, also for one that is
 * not wanted (sink NULL), so that its size is checked. */
int archive_in_data(struct archive_in *a,
                    int (*sink)(void *arg, const void *data, size_t n, struct err *err), void *arg,
                    struct err *err);
void archive_in_free(struct archive_in *a);

/* A name for a message: what is no printable ASCII becomes '?', long ones are cut. */
const char *archive_shown(const char *name, char shown[128]);

#endif
