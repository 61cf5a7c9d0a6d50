/*
 * merge_explain: `lora merge … --explain`: how the adapters stand to each other.
 */
#ifndef CMD_MERGE_EXPLAIN_H
#define CMD_MERGE_EXPLAIN_H

#include "cmd/merge_inputs.h"

int merge_explain_run(struct cmd_context *ctx, const struct merge_inputs *in, struct err *err);

#endif
