/*
 * import_initial: lora import --initial-base, adapters begun with PiSSA or OLoRA.
 */
#ifndef CMD_IMPORT_INITIAL_H
#define CMD_IMPORT_INITIAL_H

#include "cmd/cmd.h"
#include "store/import.h"

/*
 * As import_adapter(), of the adapter at `path` brought onto the base `initial_ref` as it was
 * before training (libcore/merge/initial.h), for which it is recorded. The converted adapter lies
 * in a private folder below TMPDIR meanwhile. Prints on stderr how far the conversion can be off.
 */
int import_converted(struct cmd_context *ctx, struct store *s, const char *initial_ref,
                     const char *path, struct import_options *opt, struct import_result *r,
                     struct err *err);

#endif
