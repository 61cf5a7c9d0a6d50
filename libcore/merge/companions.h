/*
 * companions: what lies beside the weights of a merged checkpoint: configuration, index, tokenizer.
 */
#ifndef LIBCORE_MERGE_COMPANIONS_H
#define LIBCORE_MERGE_COMPANIONS_H

#include "libcore/merge/into_base.h"

/* Copies the base's files into `folder`, config.json and the index changed where the plan changes
 * what they say, `run`'s files in place of the base's; every file synced. */
int companions_write(const struct merge_plan *p, const struct merge_run *run, const char *folder,
                     struct err *err);
/* A JSON file, indented as the base's are, synced. */
int companions_write_json(const char *folder, const char *name, const json_t *value,
                          struct err *err);

#endif
