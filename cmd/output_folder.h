/*
 * output_folder: a folder that a command makes: it appears by rename when it is complete, --force
 * puts it in the place of what is there, and what stops earlier leaves nothing.
 */
#ifndef CMD_OUTPUT_FOLDER_H
#define CMD_OUTPUT_FOLDER_H

#include "cmd/cmd.h"

/* Before any work: ERR_EXISTS when `output` is there and --force is not given; what: "the export".
 */
int output_folder_check(const struct cmd_context *ctx, const char *output, const char *what,
                        struct err *err);
/* Has fill() write the files into a work folder beside `output`, then gives it that name. What fill
 * returns, ERR_IO, ERR_NO_MEMORY. */
int output_folder_make(const struct cmd_context *ctx, const char *output,
                       int (*fill)(void *arg, const char *folder, struct err *err), void *arg,
                       struct err *err);

#endif
