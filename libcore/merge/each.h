/*
 * each: one piece of work per module, on several threads; threads take the next piece when they are
 * free, and what a piece computes depends on its number alone.
 */
#ifndef LIBCORE_MERGE_EACH_H
#define LIBCORE_MERGE_EACH_H

#include <stdbool.h>
#include <stddef.h>

#include "libcore/base/err.h"

/* Calls body(arg, i, err) for every i < n. n_threads 0: all processors. stop (may be NULL) is asked
 * from any thread between pieces. After a failure no piece is begun; the failure with the lowest
 * number is given. ERR_INTERRUPTED, ERR_NO_MEMORY, what body returns. */
int each_run(size_t n, unsigned n_threads, bool (*stop)(void),
             int (*body)(void *arg, size_t i, struct err *err), void *arg, struct err *err);

#endif
