/*
 * philox: Philox4x32-10, a counter-based generator (Salmon et al., "Parallel random numbers: as
 * easy as 1, 2, 3", SC 2011). Thread rule: a pure function.
 */
#ifndef LIBCORE_BASE_PHILOX_H
#define LIBCORE_BASE_PHILOX_H

#include <stdint.h>

/* One block: counter and key in, four words out. */
void philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

#endif
