/*
 * image: a safetensors file in memory, put together from views of other files.
 * Readers of foreign formats give every tensor its PEFT name and say where its values lie, strides
 * included; what comes out is read like a PEFT file, with every check of that reader.
 * Thread rule: an image belongs to one thread.
 */
#ifndef LIBCORE_FORMAT_IMAGE_H
#define LIBCORE_FORMAT_IMAGE_H

#include <stddef.h>
#include <stdint.h>

#include "libcore/base/arena.h"
#include "libcore/base/err.h"
#include "libcore/tensor/tensor.h"

/* Values to copy, outermost dimension first. Strides count values; whole bytes a value only. */
struct image_view {
    enum dtype dtype;
    uint32_t n_dims;
    uint64_t shape[LIMIT_TENSOR_DIMS], stride[LIMIT_TENSOR_DIMS];
    const void *data; // borrowed until image_finish()
};

struct image {
    struct image_item *items;
    size_t n, cap;
    struct arena arena; // also for what the views point into
};

void image_init(struct image *img);
void image_release(struct image *img);

/* A tensor's view in its own order, and turned about: [a, b] seen as [b, a]. */
struct image_view image_view_of(const struct tensor *t);
struct image_view image_view_transposed(const struct tensor *t);

/* Adds a tensor of the given shape (n_dims 0: the view's own); it has as many values as the view.
 * `name` is copied. ERR_NO_MEMORY, ERR_INTERNAL (counts differ). */
int image_add(struct image *img, const char *name, const struct image_view *view, uint32_t n_dims,
              const uint64_t *shape, struct err *err);

/* The file: *bytes is the caller's, to free with sys_free(). ERR_NO_MEMORY, ERR_LIMIT. */
int image_finish(struct image *img, char **bytes, size_t *n, struct err *err);

#endif
