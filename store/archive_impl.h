/*
 * archive_impl: what the rooms of archive share.
 */
#ifndef STORE_ARCHIVE_IMPL_H
#define STORE_ARCHIVE_IMPL_H

#include <sys/types.h>

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

/* archive_unpack.c: a gzip or zstd stream, its checksums looked at. Give it bytes (borrowed until
 * it is hungry again), take what they become; at the input's end unpack_end() says whether it was
 * whole. */
enum unpack_kind { UNPACK_NONE, UNPACK_GZIP, UNPACK_ZSTD };
enum unpack_kind unpack_kind_of(const void *data, size_t n); // by the first bytes
struct unpack;
int unpack_open(struct unpack **out, enum unpack_kind kind, const char *where, struct err *err);
void unpack_free(struct unpack *u);
void unpack_give(struct unpack *u, const void *data, size_t n);
bool unpack_hungry(const struct unpack *u);
int unpack_take(struct unpack *u, void *to, size_t n, size_t *got, struct err *err);
int unpack_end(const struct unpack *u, struct err *err);

/*
 * archive_ahead.c: bytes that a thread prepares while those before are looked at. fill(arg, …) puts
 * up to n of them into buf: how many, 0 at the end, -1 when it failed (arg has the words, to be
 * read after ahead_take() gave -1); *packed goes along with them. beside: on a thread of its own,
 * which ahead_free() waits for; without, or where none can be had, ahead_take() fills.
 */
struct ahead;
int ahead_open(struct ahead **out, bool beside,
               ssize_t (*fill)(void *arg, void *buf, size_t n, uint64_t *packed), void *arg,
               struct err *err);
/* The next bytes, borrowed until the next call; as fill returns. */
ssize_t ahead_take(struct ahead *a, const void **data, uint64_t *packed);
void ahead_free(struct ahead *a);

#endif
