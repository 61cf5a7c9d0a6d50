#include <stdlib.h>
#include <string.h>

#include "kernels/segment_order.h"

uint64_t segment_key(const struct bound_adapter *b)
{
    char half[17] = {0};
    if (!b->adapter)
        return 0;
    memcpy(half, b->adapter->content_id, sizeof half - 1);
    return strtoull(half, NULL, 16);
}

static bool overlap(const struct step_segment *items, uint32_t n)
{
    uint32_t end = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (items[i].row0 < end)
            return true;
        if (items[i].row0 + items[i].n_rows > end)
            end = items[i].row0 + items[i].n_rows;
    }
    return false;
}

static bool before(const struct step_segment *a, const struct step_segment *b, const char *keys,
                   size_t stride)
{
    uint64_t x, y;
    memcpy(&x, keys + a->slot * stride, sizeof x);
    memcpy(&y, keys + b->slot * stride, sizeof y);
    if (x != y)
        return x < y;
    return a->slot != b->slot ? a->slot < b->slot : a->row0 < b->row0;
}

void segment_sort(struct step_segment *items, uint32_t n, const uint64_t *keys, size_t stride)
{
    if (!overlap(items, n))
        return;
    for (uint32_t i = 1; i < n; i++) { // few of them, and nearly sorted
        struct step_segment s = items[i];
        uint32_t j = i;
        for (; j > 0 && before(&s, &items[j - 1], (const char *)keys, stride); j--)
            items[j] = items[j - 1];
        items[j] = s;
    }
}
