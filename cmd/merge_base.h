/*
 * merge_base: `lora merge … --output DIR`, `--plan FILE` and `--apply FILE`.
 */
#ifndef CMD_MERGE_BASE_H
#define CMD_MERGE_BASE_H

#include "cmd/merge_inputs.h"

struct merge_base_options {
    const char *output;          // NULL with plan alone
    const char *plan;            // file to write the plan to, "-": stdout
    const struct recipe *recipe; // of --apply; its fingerprint must be the base's
    bool resume, check, resize_embeddings, float8_to_bf16;
    unsigned n_threads;
    const char *device; // "cpu", "cuda:N", "auto"
};

/* in: adapters and base are found. Prints what was done, or the JSON. */
int merge_base_run(struct cmd_context *ctx, const struct merge_inputs *in,
                   const struct merge_base_options *opt, struct err *err);

#endif
