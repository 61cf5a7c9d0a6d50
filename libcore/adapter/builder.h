/*
 * builder: an adapter that is made here (combined, extracted, resized) instead of read from a file.
 *
 * Modules are added one by one with memory that the builder owns or keeps alive; the finished
 * adapter owns all of it. Its tensors have no file names yet: peft_write() gives them. Thread rule:
 * one thread at a time.
 */
#ifndef LIBCORE_ADAPTER_BUILDER_H
#define LIBCORE_ADAPTER_BUILDER_H

#include "libcore/adapter/adapter.h"

struct adapter_builder;

/* base_name: base_model_name_or_path of the result, may be NULL; copied. */
int adapter_builder_open(struct adapter_builder **out, const char *base_name, struct err *err);
void adapter_builder_free(struct adapter_builder *b);

/* A new, empty module; borrowed, valid until the next call. parameter NULL: "weight". Names are
 * copied. NULL: no memory (err is set). */
struct adapter_module *adapter_builder_module(struct adapter_builder *b, const char *name,
                                              const char *parameter, struct err *err);

/* Takes a block of sys_malloc's; it is freed with the adapter, or now when memory is out. */
int adapter_builder_own(struct adapter_builder *b, void *memory, struct err *err);
/* free(arg) is called with the adapter's end: for mapped files that tensors are views of. */
int adapter_builder_keep(struct adapter_builder *b, void *arg, void (*free)(void *arg),
                         struct err *err);

/* A tensor of that type and shape over `memory`, which the builder takes (see own). */
int adapter_builder_tensor(struct adapter_builder *b, struct tensor *out, enum dtype dtype,
                           uint32_t n_dims, const uint64_t *shape, void *memory, struct err *err);
/* A copy of a tensor that somebody else may free. Absent stays absent. */
int adapter_builder_copy(struct adapter_builder *b, struct tensor *out, const struct tensor *from,
                         struct err *err);
/* The same for replaced rows' numbers. */
int adapter_builder_copy_ids(struct adapter_builder *b, const uint32_t **out, const uint32_t *ids,
                             uint32_t n, struct err *err);

/* Gives the adapter and frees the builder. */
int adapter_builder_finish(struct adapter_builder *b, struct adapter **out, struct err *err);
/* The adapter under construction, for fields of the whole. */
struct adapter *adapter_builder_adapter(struct adapter_builder *b);

#endif
