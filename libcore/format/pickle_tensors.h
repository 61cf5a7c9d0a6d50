/*
 * pickle_tensors: PyTorch's .bin, .pt and .pth files of tensors, never executed.
 *
 * Reads the zip container (PyTorch 1.6 and later) and the older form of five pickles and raw
 * storages. What comes out is a safetensors file in memory with the same names, types and values,
 * so that one set of checks reads both. Thread rule: re-entrant.
 */
#ifndef LIBCORE_FORMAT_PICKLE_TENSORS_H
#define LIBCORE_FORMAT_PICKLE_TENSORS_H

#include <stdbool.h>
#include <stddef.h>

#include "libcore/base/err.h"

/* *out is the caller's, to free with sys_free(). ERR_CORRUPT: hostile (the name it would have
 * called is said), cut off, a bad CRC; ERR_REFUSED: sound, but no dictionary of tensors. */
int pickle_tensors_read(char **out, size_t *out_size, const void *data, size_t size,
                        const char *where, struct err *err);

/* Whether a file's name is one of PyTorch's: .bin, .pt, .pth. */
bool pickle_tensors_name(const char *path);

#endif
