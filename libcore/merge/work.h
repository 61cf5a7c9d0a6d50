/*
 * work: the folder in which a merge grows, and the journal by which it goes on after a crash.
 *
 * OUTPUT.partial/model/ holds the files, OUTPUT.partial/journal what of them is on disk for good:
 * a line a tensor, with its statistics, written after the tensor's bytes were synced. When all is
 * there, model/ is renamed to OUTPUT and the rest removed: OUTPUT is never there by half.
 * The journal's key says which merge it is of; a lock keeps two processes apart.
 * Thread rule: one thread at a time.
 */
#ifndef LIBCORE_MERGE_WORK_H
#define LIBCORE_MERGE_WORK_H

#include "libcore/merge/values.h"

struct merge_work;

/* key: 64 hex digits; n_tensors: of the plan. resume: goes on from what is there (or begins); else
 * what is there is removed. On success *out is the caller's. ERR_EXISTS (OUTPUT is there and not
 * `force`), ERR_LOCKED (another process works on it), ERR_REFUSED (a journal of another merge),
 * ERR_IO. */
int merge_work_open(struct merge_work **out, const char *output, const char *key, size_t n_tensors,
                    bool resume, bool force, struct err *err);
const char *merge_work_folder(const struct merge_work *w); // …/model
/* Whether tensor idx is on disk from an earlier run; then its statistics. */
bool merge_work_done(const struct merge_work *w, size_t idx, struct values_stats *stats);
/* Notes that the tensor's bytes are synced; on disk after merge_work_sync(). */
void merge_work_note(struct merge_work *w, size_t idx, const struct values_stats *stats);
int merge_work_sync(struct merge_work *w, struct err *err);
/* Renames model/ to OUTPUT (an old OUTPUT is moved away and removed when `force`), removes the
 * rest. Every file in model/ must be synced. */
int merge_work_publish(struct merge_work *w, bool force, struct err *err);
/* keep: for a later resume; else everything is removed. */
void merge_work_close(struct merge_work *w, bool keep);

#endif
