/*
 * zip_stored: the zip container of PyTorch's files, over bytes in memory.
 * Entries are stored, never deflated; anything else is refused as no file of PyTorch's. Every entry
 * that is asked for is checked against its CRC-32. Thread rule: immutable once open.
 */
#ifndef LIBCORE_FORMAT_ZIP_STORED_H
#define LIBCORE_FORMAT_ZIP_STORED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/err.h"

struct zip_stored;

bool zip_stored_is(const void *data, size_t size);

/* data is borrowed; `where` names it in errors. ERR_CORRUPT, ERR_NO_MEMORY. */
int zip_stored_open(struct zip_stored **out, const void *data, size_t size, const char *where,
                    struct err *err);
void zip_stored_free(struct zip_stored *z);

/* The one entry whose name is `<folder>/data.pkl`: its folder, with the slash. ERR_CORRUPT when
 * there is none or more than one. The text lives as long as the handle. */
int zip_stored_root(struct zip_stored *z, const char **folder, struct err *err);

/* Bytes of <folder><name>, checked. ERR_NOT_FOUND, ERR_CORRUPT (CRC, outside of the file). */
int zip_stored_get(const struct zip_stored *z, const char *folder, const char *name,
                   const void **data, size_t *size, struct err *err);

#endif
