/*
 * trace: one JSON line a step, for tests and for people who ask what the batch was
 * (docs/SERVING.md, "Trace"). Worker thread only.
 */
#ifndef LIBCORE_ENGINE_TRACE_H
#define LIBCORE_ENGINE_TRACE_H

#include <stdio.h>

#include "libcore/engine/batch.h"

/* Writes the line of a step that has ended; does nothing when file is NULL. */
void trace_step(FILE *file, const struct step_record *r, uint64_t end_ns);

#endif
