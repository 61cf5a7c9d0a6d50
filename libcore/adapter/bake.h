/*
 * bake: the same adapter with its scales in the numbers.
 * For readers that know one rank and one alpha, whatever the adapter's patterns: every module gets
 * the largest rank (rows and columns of zeros behind its own) and scale 1, and B is multiplied by
 * the scale it had. B keeps its type where every product is a number of that type (powers of two
 * usually); else it becomes float32, one rounding of relative size 2^-24. Re-entrant.
 */
#ifndef LIBCORE_ADAPTER_BAKE_H
#define LIBCORE_ADAPTER_BAKE_H

#include "libcore/adapter/adapter.h"

struct bake_report {
    size_t n_modules; // with A and B
    size_t n_rounded; // of them, those whose B (or bias of B) became float32
    double max_error; // largest relative error of a value of those
};

/* *out is the caller's and borrows nothing. report may be NULL. ERR_REFUSED: a product beyond
 * float32; ERR_NO_MEMORY. */
int adapter_bake(struct adapter **out, const struct adapter *a, struct bake_report *report,
                 struct err *err);

#endif
