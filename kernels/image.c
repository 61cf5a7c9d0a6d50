#include "kernels/image.h"

static uint64_t align_up(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}

int image_place(uint64_t *end, struct image_piece *p, uint64_t unit, uint64_t n_units,
                struct err *err)
{
    *p = (struct image_piece){0, 0, 0};
    if (n_units == 0 || unit == 0)
        return 0;
    if (unit > BACKEND_CHUNK_BYTES || n_units > UINT32_MAX)
        return err_set(err, ERR_LIMIT, "adapter image: %llu pieces of %llu bytes, a chunk holds %d",
                       (unsigned long long)n_units, (unsigned long long)unit, BACKEND_CHUNK_BYTES);
    uint64_t at = align_up(*end, IMAGE_ALIGN);
    if (BACKEND_CHUNK_BYTES - at % BACKEND_CHUNK_BYTES < unit)
        at = align_up(at, BACKEND_CHUNK_BYTES);
    *p = (struct image_piece){at, (uint32_t)n_units, (uint32_t)unit};
    *end = image_unit_offset(p, n_units - 1) + unit;
    return 0;
}

uint64_t image_unit_offset(const struct image_piece *p, uint64_t u)
{
    uint64_t n_first = (BACKEND_CHUNK_BYTES - p->offset % BACKEND_CHUNK_BYTES) / p->unit;
    if (u < n_first)
        return p->offset + u * p->unit;
    uint64_t per_chunk = BACKEND_CHUNK_BYTES / p->unit, rest = u - n_first;
    uint64_t next = p->offset / BACKEND_CHUNK_BYTES + 1;
    return (next + rest / per_chunk) * BACKEND_CHUNK_BYTES + rest % per_chunk * p->unit;
}

bool image_piece_fits(const struct image_piece *p, uint64_t size)
{
    if (p->n_units == 0)
        return true;
    if (p->unit == 0 || p->unit > BACKEND_CHUNK_BYTES || p->offset >= size ||
        BACKEND_CHUNK_BYTES - p->offset % BACKEND_CHUNK_BYTES < p->unit)
        return false;
    return image_unit_offset(p, p->n_units - 1) + p->unit <= size;
}
