/*
 * into_base: adapters into base weights: a new checkpoint folder with the base's names, shards,
 * index, tokenizer and configuration, plus merge.json. The folder appears by rename when all of it
 * is on disk; what stops earlier leaves none, and with `resume` goes on where it was.
 */
#ifndef LIBCORE_MERGE_INTO_BASE_H
#define LIBCORE_MERGE_INTO_BASE_H

#include "libcore/merge/plan.h"
#include "libcore/merge/recipe.h"
#include "libcore/merge/values.h"

/* A file that takes the place of the base's of that name: an adapter's tokenizer, its template. */
struct merge_companion {
    const char *name, *path;
};

struct merge_run {
    const char *output;     // folder to appear
    bool resume;            // go on from an earlier run's journal; keep it when this one stops
    bool force;             // an OUTPUT that is there is replaced
    unsigned n_threads;     // 0: all processors
    struct backend *device; // borrowed: computes too, to the same bytes; NULL: none
    const struct merge_companion *companions;
    size_t n_companions;
    const struct recipe_origin *origin;
    int (*on_bytes)(void *arg, uint64_t bytes); // bytes written; non-zero stops. May be NULL.
    void *arg;
    /* What to compare with digests of the base while it is read; NULL: nothing to compare. Called
     * on a thread of its own for each shard's path; an error stops the merge before it appears. */
    int (*verify)(void *arg, const char *path, struct err *err);
    void *verify_arg;
};

/* *recipe: merge.json as it was written, report included; the caller's, to json_decref().
 * ERR_REFUSED when no weight changed although an adapter has a weight. ERR_EXISTS, ERR_LOCKED,
 * ERR_IO (disk full), ERR_CORRUPT, ERR_INTERRUPTED, ERR_NO_MEMORY. */
int merge_into_base(const struct merge_plan *p, const struct merge_run *run, json_t **recipe,
                    struct err *err);

#endif
