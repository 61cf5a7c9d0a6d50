/*
 * segment_order: in which order the adapters of one row are added up.
 * The engine sorts segments by their first row, which depends on the neighbours; sums in that order
 * would too. Rows with several adapters are therefore added by a key of the adapter's own.
 */
#ifndef KERNELS_SEGMENT_ORDER_H
#define KERNELS_SEGMENT_ORDER_H

#include "libcore/backend.h"

/* The key of an adapter for its image: the first half of its content id, 0 without one. */
uint64_t segment_key(const struct bound_adapter *b);

/* Sorts by (key of the slot, slot, row0) where ranges overlap at all; else leaves the order, which
 * then does not matter. keys: [slot], `stride` bytes apart. */
void segment_sort(struct step_segment *items, uint32_t n, const uint64_t *keys, size_t stride);

#endif
