/*
 * image: how an adapter's data lies in chunks of the pool.
 * Data is laid in units (a group of A's rows, a block of B, a vector) that never straddle two
 * chunks of BACKEND_CHUNK_BYTES, so an image can be loaded into any chunks and a unit is always one
 * piece. Pure arithmetic; shared by the back ends.
 */
#ifndef KERNELS_IMAGE_H
#define KERNELS_IMAGE_H

#include <stdint.h>

#include "libcore/backend.h"

enum { IMAGE_ALIGN = 256 };

/* A run of n_units equal units; the first lies at `offset` of the image, as many as fit behind it
 * in its chunk, the rest as many a chunk as fit. n_units 0: nothing. */
struct image_piece {
    uint64_t offset;
    uint32_t n_units, unit; // unit in bytes, at most a chunk
};

/* Places units behind *end and moves it. ERR_LIMIT when a unit is larger than a chunk. */
int image_place(uint64_t *end, struct image_piece *p, uint64_t unit, uint64_t n_units,
                struct err *err);
/* Offset of unit u in the image. */
uint64_t image_unit_offset(const struct image_piece *p, uint64_t u);
/* Whether every unit lies within an image of `size` bytes. */
bool image_piece_fits(const struct image_piece *p, uint64_t size);

#endif
