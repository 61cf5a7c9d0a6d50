/*
 * file: whole files and folders, built on sys.
 * Paths are plain strings; results are the caller's to free with sys_free.
 */
#ifndef LIBCORE_BASE_FILE_H
#define LIBCORE_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/err.h"

/* Reads a whole file of at most `max_bytes` (ERR_LIMIT beyond); a NUL that is not counted follows.
 */
int file_read(const char *path, size_t max_bytes, char **data, size_t *size, struct err *err);

/* Temporary file beside `path`, write, fsync, rename, fsync of the folder. Replaces what is there.
 */
int file_write_atomic(const char *path, const void *data, size_t size, struct err *err);

bool file_exists(const char *path);    // anything at all, links followed
bool file_is_folder(const char *path); // links followed
int file_size(const char *path, uint64_t *size, struct err *err);
int file_make_folders(const char *path, struct err *err); // mkdir -p
int file_sync_folder(const char *path, struct err *err);
int file_remove_tree(const char *path,
                     struct err *err); // never follows links; gone already is fine
/* Copies bytes of a whole file (reflink or copy_file_range where it works), no fsync. */
int file_copy(const char *from, const char *to, struct err *err);
int file_write_all(int fd, const void *data, size_t size, const char *path, struct err *err);
int file_pread_all(int fd, void *data, size_t size, uint64_t offset, const char *path,
                   struct err *err);

/* Names in a folder, sorted by bytes, without . and ..; free with file_free_names. */
int file_list(const char *path, char ***names, size_t *n, struct err *err);
void file_free_names(char **names, size_t n);

char *file_join(const char *a, const char *b); // NULL when memory is out
const char *file_base_name(const char *path);  // borrowed: what follows the last slash
char *file_dir_name(const char *path);         // "." when there is no slash
char *file_real_path(const char *path, struct err *err);

#endif
