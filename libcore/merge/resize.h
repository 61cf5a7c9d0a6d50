/*
 * resize: an adapter at a lower rank, the best one of that rank in every module; what is lost is
 * known exactly, since the singular values of s B A are. A module that keeps its rank keeps its
 * bytes. Whatever is no factor stays as it is. DoRA is refused: its gain is a function of W + s B
 * A. Thread rule: re-entrant; works on its own threads.
 */
#ifndef LIBCORE_MERGE_RESIZE_H
#define LIBCORE_MERGE_RESIZE_H

#include "libcore/merge/combine.h"

struct resize_options {
    uint32_t rank;      // at most; 0: what `energy` takes
    double energy;      // share of ||s B A||^2 that each module keeps; 0: `rank` decides
    unsigned n_threads; // 0: all processors
    bool (*stop)(void); // asked from any thread between modules; may be NULL
};

/* *out and *report are the caller's. ERR_USAGE, ERR_REFUSED, ERR_NO_MEMORY, ERR_INTERRUPTED. */
int resize_adapter(struct adapter **out, struct combine_report **report, const struct adapter *a,
                   const struct resize_options *opt, struct err *err);

#endif
