/*
 * check: `serve --check`: the memory plan, and what is said of each adapter, without serving.
 */
#ifndef CMD_SERVE_CHECK_H
#define CMD_SERVE_CHECK_H

#include "cmd/serve/options.h"

/* Prints a table, or JSON with ctx->json. ERR_REFUSED (exit 4) when an adapter is refused. */
int check_run(struct cmd_context *ctx, const struct serve_options *opt, struct err *err);

#endif
