/*
 * made_adapter: what merge --name, extract and resize do with the adapter that they made: into the
 * store under a name, into a folder, and the table of what each module lost.
 */
#ifndef CMD_MADE_ADAPTER_H
#define CMD_MADE_ADAPTER_H

#include "cmd/cmd.h"
#include "libcore/merge/combine.h"
#include "store/import.h"

struct made_options {
    const char *name;        // NAME or NAME:TAG; NULL: only into the folder
    const char *output;      // folder for PEFT's files; NULL: only into the store
    const char *base_id;     // of a base of the store: checked against it and recorded; "" or NULL
    const char *base_folder; // a base by path; NULL
    const char *source;      // the words of the command, for the manifest
    const json_t *lineage;   // borrowed
};

/* Before any work: ERR_USAGE without name and output or for what cannot be a name, ERR_EXISTS when
 * the folder is there and --force is not given. */
int made_check(const struct cmd_context *ctx, const struct made_options *opt, struct err *err);
/* Both of them; the folder appears when it is complete. `info` gets name, tag, id, state, bytes,
 * base_id (with a name) and output. */
int made_put(const struct cmd_context *ctx, struct store *s, const struct adapter *a,
             const struct made_options *opt, json_t *info, struct err *err);

/* [{"name", "parameter", "rank", "loss", "exact", "residual"}]: a new array. */
json_t *made_modules_json(const struct combine_report *r);
/* The same as a table, when anything was lost, and the whole in one line. */
int made_print_modules(const struct combine_report *r, struct err *err);
/* "added x  0123456789ab  1.2 MB": from made_put()'s info. */
void made_print(const json_t *info);
/* With -q: its id, or its folder when it is in no store; true: that was all. */
bool made_print_id(const struct cmd_context *ctx, const json_t *info);

/* Rows of the commands' option tables. */
#define MADE_SIZE_ROWS(rank_to, rank_text, energy_to, given_to, energy_text)                       \
    {.long_name = "rank",                                                                          \
     .type = OPTION_INT,                                                                           \
     .value = (rank_to),                                                                           \
     .value_name = "K",                                                                            \
     .min = 1,                                                                                     \
     .max = LIMIT_RANK,                                                                            \
     .help = (rank_text)},                                                                         \
    {                                                                                              \
        .long_name = "energy", .type = OPTION_DOUBLE, .value = (energy_to), .value_name = "E",     \
        .given = (given_to), .help = (energy_text)                                                 \
    }
#define MADE_PLACE_ROWS(name_to, name_text, output_to)                                             \
    {.long_name = "name",                                                                          \
     .type = OPTION_STRING,                                                                        \
     .value = (name_to),                                                                           \
     .value_name = "NAME[:TAG]",                                                                   \
     .help = (name_text)},                                                                         \
    {                                                                                              \
        .long_name = "output", .short_name = 'o', .type = OPTION_STRING, .value = (output_to),     \
        .value_name = "DIR",                                                                       \
        .help = "A PEFT folder of it; with --name as well, without it instead."                    \
    }
#define MADE_THREADS_ROW(to)                                                                       \
    {                                                                                              \
        .long_name = "threads", .type = OPTION_INT, .value = (to), .value_name = "N", .min = 0,    \
        .max = 256,                                                                                \
        .help = "Threads that compute; 0: all processors. The bytes do not depend on it."          \
    }

#endif
