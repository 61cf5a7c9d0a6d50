/*
 * fsck_impl: what fsck's two rooms share: looking (fsck.c) and repairing (fsck_repair.c).
 */
#ifndef STORE_FSCK_IMPL_H
#define STORE_FSCK_IMPL_H

#include "store/fsck.h"
#include "store/id_set.h"
#include "store/manifest.h"

struct fsck {
    struct store *s;
    const struct fsck_options *opt;
    struct fsck_report *report;
    void (*found)(void *arg, enum fsck_severity severity, const char *text);
    void *arg;
    struct err *err;
    struct id_set objects; // that the index has
    struct id_set blobs;   // that objects need
    struct id_set checked; // blobs that were looked at
};

/* Tells a finding and counts it. */
void fsck_tell(struct fsck *f, enum fsck_severity severity, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Makes the index anew from manifests and refs; the old one is kept as cache/index.db.broken. */
int fsck_rebuild_index(struct fsck *f);
/* Puts one object into the index again from its manifest. */
int fsck_reindex(struct fsck *f, const json_t *manifest);
/* Moves a spoiled blob out of the way. */
int fsck_set_aside(struct fsck *f, const char *digest);

#endif
