/*
 * stream: moves a base's tensors into the shards of the result, block by block, adding on the way
 * what the plan says. Reading ahead, arithmetic (n_threads of it), writing behind and syncing run
 * beside each other; memory is a few blocks of half a MiB and the packed factors of the tensor in
 * hand. What is untouched is copied inside the kernel where that works.
 */
#ifndef LIBCORE_MERGE_STREAM_H
#define LIBCORE_MERGE_STREAM_H

#include "libcore/merge/plan.h"
#include "libcore/merge/work.h"

struct merge_stream_options {
    unsigned n_threads;     // 0: all processors
    struct backend *device; // borrowed; NULL: the processors alone
    /* Bytes written; called by the caller's thread. Non-zero (ERR_INTERRUPTED) stops. May be NULL.
     */
    int (*on_bytes)(void *arg, uint64_t bytes);
    void *arg;
};

/* Writes every shard into merge_work_folder(), complete and synced, but for tensors that the
 * journal has; stats[n_tensors] is filled (untouched tensors: only n_values). A failure names the
 * first tensor that failed ("file:tensor: …"). ERR_IO, ERR_CORRUPT, ERR_REFUSED, ERR_INTERRUPTED,
 * ERR_NO_MEMORY. */
int merge_stream(const struct merge_plan *p, struct merge_work *w,
                 const struct merge_stream_options *opt, struct values_stats *stats,
                 struct err *err);

#endif
