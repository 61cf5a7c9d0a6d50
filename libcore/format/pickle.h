/*
 * pickle: a machine for the pickles of tensor state dicts, and for nothing else.
 *
 * A pickle is a program for a small stack machine that may call any function of Python. This one
 * has no way to call anything: it knows the opcodes that PyTorch writes for a dictionary of
 * tensors, and eight names (OrderedDict, _rebuild_tensor, _rebuild_tensor_v2, _rebuild_parameter,
 * and the typed storages), whose meaning is built into it. Every other opcode or name ends the
 * reading, as hostile, before anything has been done. Memory is bounded by the pickle's size.
 * Thread rule: re-entrant.
 */
#ifndef LIBCORE_FORMAT_PICKLE_H
#define LIBCORE_FORMAT_PICKLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/arena.h"
#include "libcore/base/err.h"
#include "libcore/tensor/tensor.h"

enum pickle_kind {
    PICKLE_NONE,
    PICKLE_MARK, // private
    PICKLE_BOOL,
    PICKLE_INT,
    PICKLE_BIG, // an integer of more than 8 bytes: its little-endian bytes as text
    PICKLE_FLOAT,
    PICKLE_TEXT,
    PICKLE_TUPLE,
    PICKLE_LIST,
    PICKLE_DICT, // items are keys and values in turn
    PICKLE_GLOBAL,
    PICKLE_STORAGE,
    PICKLE_TENSOR,
};

struct pickle_storage {
    const char *key; // the entry that holds its bytes
    enum dtype dtype;
    uint64_t n_values;
};

struct pickle_tensor {
    const struct pickle_storage *storage;
    uint64_t offset; // in values, as strides
    uint32_t n_dims;
    uint64_t shape[LIMIT_TENSOR_DIMS], stride[LIMIT_TENSOR_DIMS];
};

struct pickle_value {
    enum pickle_kind kind;
    int64_t integer; // bool, int; of a global: private
    const char *text;
    size_t n, cap; // of text or items
    struct pickle_value **items;
    struct pickle_storage *storage;
    struct pickle_tensor *tensor;
};

/*
 * Runs one pickle from data[*at]; *at is left behind its STOP. Everything made lives in `arena`.
 * ERR_CORRUPT: cut off, an opcode or a name that no tensor state dict has ("hostile"), values that
 * do not fit; ERR_REFUSED: a storage type without a number type here; ERR_NO_MEMORY.
 */
int pickle_run(struct pickle_value **out, const void *data, size_t size, size_t *at,
               struct arena *arena, const char *where, struct err *err);

#endif
