/*
 * archive_impl: what the rooms of archive share.
 */
#ifndef STORE_ARCHIVE_IMPL_H
#define STORE_ARCHIVE_IMPL_H

#include "store/archive.h"

/* Appends to a sink; as file_write_all. */
typedef int archive_write_fn(void *arg, const void *data, size_t n, struct err *err);

/* archive_tar.c: the header of one entry whose archive has `at` bytes so far. */
int archive_tar_header(const struct archive_item *item, uint64_t at, archive_write_fn *write,
                       void *arg, struct err *err);

/* archive_zip.c: the whole of a zip's central directory against its local headers. ERR_CORRUPT
 * names the entry that differs. size: of the file. */
int archive_zip_check(int fd, uint64_t size, const char *path, struct err *err);

/* archive_name.c: what an entry may be called. *clean points into name. */
int archive_check_name(const char *archive, const char *name, const char **clean, struct err *err);

struct name_set;
int name_set_open(struct name_set **out, struct err *err);
void name_set_free(struct name_set *s);
/* ERR_CORRUPT when it is there. */
int name_set_add(struct name_set *s, const char *archive, const char *name, struct err *err);

/* archive_gzip.c: a gzip stream, its checksum looked at. Give it bytes (borrowed until it is hungry
 * again), take what they become; at the input's end gunzip_end() says whether it was whole. */
struct gunzip;
int gunzip_open(struct gunzip **out, const char *where, struct err *err);
void gunzip_free(struct gunzip *g);
void gunzip_give(struct gunzip *g, const void *data, size_t n);
bool gunzip_hungry(const struct gunzip *g);
int gunzip_take(struct gunzip *g, void *to, size_t n, size_t *got, struct err *err);
int gunzip_end(const struct gunzip *g, struct err *err);

#endif
