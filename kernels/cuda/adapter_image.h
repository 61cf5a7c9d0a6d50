/*
 * adapter_image: an adapter as cuda_adapter_pack writes it and cuda_adapter_load reads it.
 *
 * image = header, one record a module, a place for the tables, then the data in units
 * (kernels/image.h):
 *   A   per site the rows of its modules stacked, 16 rows a unit, row-major, bf16
 *   B   512 outputs a unit, in the fragment order of expand.cuh, rank padded to 8, bf16
 *   experts: the same for each expert after the other, in smaller units where it has fewer rows
 *   embedding: A as [vocab][rank], 1024 tokens a unit; B as [dim][rank], 512 a unit
 *   gains and biases float32, a vector a unit; replaced rows bf16, a row a unit
 * The tables (struct cu_site and the arrays of pointers) depend on the chunks, so loading makes
 * them and writes them to their place in the chunks.
 */
#ifndef KERNELS_CUDA_ADAPTER_IMAGE_H
#define KERNELS_CUDA_ADAPTER_IMAGE_H

#include "kernels/image.h"

enum { CUDA_IMAGE_MAGIC = 0x4C504355, CUDA_A_GROUP = 16 };

struct cuda_image {
    uint32_t magic, layout, n_records, kinds;
    uint64_t size, key;
    uint32_t width, n_pointers;
    struct image_piece table; // one unit: n_pointers addresses
};

struct cuda_record {
    uint32_t kind, site, norm, layer, row0, d_out, d_in, rank, n_rows, has_full;
    uint32_t site_rows, col0; // stacked A rows of the site; first of this module
    float scale;
    uint32_t embedding, n_experts; // n_experts 0: one matrix
    struct image_piece a;          // of the site's first record only
    struct image_piece b, gain, bias, lora_bias, row_ids, rows;
};

static inline uint32_t cuda_round8(uint32_t n)
{
    return (n + 7) / 8 * 8;
}

/* Units of A of a site, of one expert. */
static inline uint32_t cuda_a_units(const struct cuda_record *r)
{
    return (r->site_rows + CUDA_A_GROUP - 1) / CUDA_A_GROUP;
}

#endif
