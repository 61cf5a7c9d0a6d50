/*
 * checkpoint: the tensors of a base model's folder, over one file or many.
 *
 * Owns the mapped safetensors files; tensors are views of them. Knows files and names, not models
 * (libcore/model says what a name means). `.bin`-only folders are refused by name: they are pickle.
 * A shard index may name only files that lie in the folder itself.
 * Thread rule: immutable once open, any thread may read.
 */
#ifndef LIBCORE_FORMAT_CHECKPOINT_H
#define LIBCORE_FORMAT_CHECKPOINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/err.h"
#include "libcore/format/safetensors.h"
#include "libcore/tensor/tensor.h"

struct checkpoint;

struct checkpoint_tensor {
    const char *name;
    struct tensor value;
    uint32_t shard_idx; // which safetensors file: checkpoint_shard()
};

/* A file of the folder that belongs to the model, links followed. */
struct checkpoint_file {
    const char *name; // within the folder
    uint64_t size;
    int64_t mtime_ns;
    bool weights; // a safetensors file; else config, tokenizer, index, template, …
};

/* Opens `folder`: model.safetensors, or the shards of model.safetensors.index.json. *out is the
 * caller's, to free with checkpoint_free(). ERR_NOT_FOUND (no folder, no weights), ERR_REFUSED
 * (only pickle weights), ERR_CORRUPT (a shard breaks its format; the index names a file that is not
 * there, lies outside, or lacks the tensor; one tensor in two shards). */
int checkpoint_open(struct checkpoint **out, const char *folder, struct err *err);
void checkpoint_free(struct checkpoint *c);

/* Whether the folder holds a base: config.json and weights of any kind. Never opens them. */
bool checkpoint_looks_like(const char *folder);

const char *checkpoint_folder(const struct checkpoint *c);
/* Tensors of all shards, sorted by name. */
size_t checkpoint_count(const struct checkpoint *c);
const struct checkpoint_tensor *checkpoint_at(const struct checkpoint *c, size_t i);
const struct checkpoint_tensor *checkpoint_find(const struct checkpoint *c, const char *name);
uint64_t checkpoint_weight_bytes(const struct checkpoint *c); // payload of all tensors

size_t checkpoint_n_shards(const struct checkpoint *c);
const struct safetensors *checkpoint_shard(const struct checkpoint *c, size_t i);

/* Weights, index, config, generation config, tokenizer and template files; sorted by name. */
size_t checkpoint_n_files(const struct checkpoint *c);
const struct checkpoint_file *checkpoint_file_at(const struct checkpoint *c, size_t i);

/* Whether a file name is one of those that travel with a model besides its weights. */
bool checkpoint_is_companion(const char *name);

#endif
