/*
 * overlay: a checkpoint that lies over a base (a merge's result, a fine-tuned model), packed as
 * what differs from it: changed tensors, the headers of the weight files, changed other files. Over
 * the same base it becomes the same bytes again; over another it is refused.
 * docs/FORMATS.md, "Overlays", describes the record and the entries.
 * Thread rule: functions are re-entrant.
 */
#ifndef STORE_OVERLAY_H
#define STORE_OVERLAY_H

#include "libcore/format/checkpoint.h"
#include "libcore/format/safetensors_stream.h"
#include "store/base_model.h"
#include "store/pack.h"

/* ---- making ---- */

struct overlay_source {
    const struct base_model *model; // the checkpoint
    const struct base_model *base;  // what it lies over
    const char *name, *tag;         // that it travels under
    const char *work_folder;        // there, for files of changed tensors; they are to stay while
                                    // the items are written
    int (*on_bytes)(void *arg, uint64_t bytes); // bytes compared; non-zero stops
    void *arg;
};
/* The whole pack's files, sorted. *record: the base's record, the caller's. ERR_REFUSED: of another
 * architecture. */
int overlay_items(const struct overlay_source *from, struct pack_items *out, json_t **record,
                  struct err *err);

/* ---- applying ---- */

/* Where the parts of it lie: the file that arrived as `name`, checked against the record's part. */
typedef int overlay_part_fn(void *arg, const json_t *part, const char **path, struct err *err);

/* One file of the record's "overlay", into the new file `to`: whole, with its digest checked.
 * *weights (or NULL): what was learnt of its tensors; the caller's. ERR_REFUSED: what comes out is
 * not the file that was packed, since the base differs from the one it was made over. */
struct overlay_target {
    const struct checkpoint *base;
    overlay_part_fn *part;
    void *arg;
};
int overlay_file(const struct overlay_target *t, const json_t *file, const char *to,
                 struct safetensors_stream **weights, struct err *err);

#endif
