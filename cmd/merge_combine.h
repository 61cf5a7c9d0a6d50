/*
 * merge_combine: `lora merge … --name NAME`: adapters into one new adapter.
 */
#ifndef CMD_MERGE_COMBINE_H
#define CMD_MERGE_COMBINE_H

#include "cmd/merge_inputs.h"

struct merge_combine_options {
    const char *name;      // in the store
    const char *output;    // a PEFT folder as well; NULL
    const char *base_ref;  // NULL: what the adapters record, if anything
    const char *method;    // NULL: cat, or linear with a rank
    const char *compat;    // "peft", "mergekit", NULL
    int64_t rank;          // 0: the method's own
    double density;        // 0: not given
    double epsilon, gamma; // negative: not given
    int64_t seed;
    unsigned n_threads;
};

/* in: the adapters are read; finds the base by itself. s: the store, where the result goes. */
int merge_combine_run(struct cmd_context *ctx, struct store *s, struct merge_inputs *in,
                      const struct merge_combine_options *opt, struct err *err);

#endif
