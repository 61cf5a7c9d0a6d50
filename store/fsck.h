/*
 * fsck: whether the store is whole, and bringing back what can be.
 *
 * The index is the judge of what was committed, as long as it is sound: a ref file, manifest or
 * blob that the index does not know is what an interrupted command left, a note and no problem.
 * When the index is missing or broken, repair rebuilds it from manifests and refs. A spoiled blob
 * is moved to cache/spoiled/ by repair; its adapter has to be imported again.
 */
#ifndef STORE_FSCK_H
#define STORE_FSCK_H

#include "store/store.h"

enum fsck_severity {
    FSCK_NOTE,     // left by an interrupted command; gc or repair takes it
    FSCK_PROBLEM,  // something is missing or spoiled
    FSCK_REPAIRED, // was a problem
};

struct fsck_options {
    bool quick; // sizes instead of digests
    bool repair;
    uint32_t lock_timeout_ms;                   // 0: the store's default
    int (*on_bytes)(void *arg, uint64_t bytes); // bytes looked at; non-zero stops
    void *on_bytes_arg;
};

struct fsck_report {
    uint64_t n_adapters, n_bases, n_names, n_blobs, n_bytes; // looked at
    uint64_t n_notes, n_problems, n_repaired;                // problems that are left
    bool corrupt; // one of the problems left is spoiled content
};

/* Opens the store itself, since it may be one that store_open() refuses. found (or NULL) hears of
 * everything, one line each. 0 also when problems were found: the report tells. */
int store_fsck(const char *path, const struct fsck_options *opt, struct fsck_report *report,
               void (*found)(void *arg, enum fsck_severity severity, const char *text), void *arg,
               struct err *err);

#endif
