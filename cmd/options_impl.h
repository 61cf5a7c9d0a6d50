/*
 * options_impl: what options.c and options_value.c share. For cmd/ alone.
 */
#ifndef CMD_OPTIONS_IMPL_H
#define CMD_OPTIONS_IMPL_H

#include "cmd/cmd.h"
#include "libcore/base/arena.h"

struct row_state {
    const struct option *row;
    const char *origin;   // NULL: default
    size_t list_capacity; // of a list's array in this parse
};

struct cmd_private {
    struct arena arena; // arrays of string lists, texts made of JSON values
    struct row_state *states;
    size_t n_states;
    size_t argc;
    json_t *config; // NULL: there is no file
    char *config_path;
};

/* options_value.c: puts one value, as text, where the row wants it; lists grow by one. `where`
 * names the place for the message: "--port", "LORA_PORT", "config.json: port". */
int option_set_text(struct cmd_private *priv, struct row_state *state, const char *text,
                    const char *where, struct err *err);
/* The value as text for a person, into buf (cut when too long). */
const char *option_value_text(const struct option *row, char *buf, size_t n);

/* options.c: the row of a long name or alias; and that a row got its value from `origin`. */
struct row_state *options_find_long(const struct cmd_private *priv, const char *name, size_t n);
void options_mark(struct row_state *state, const char *origin);

/* options_sources.c: give values to the rows that have none yet. */
extern const char OPTIONS_FROM_ENVIRONMENT[], OPTIONS_FROM_FILE[];
int options_read_environment(struct cmd_private *priv, struct err *err);
int options_read_config(struct cmd_private *priv, const struct command *command, struct err *err);
/* $VARIABLE/lora or ~/FALLBACK/lora, to free with sys_free; NULL when neither is known. */
int options_xdg_folder(const char *variable, const char *fallback, char **out, struct err *err);

/* help.c: the row's sentence with its choices, default, other spellings and variable. */
const char *option_full_help(const struct option *row, char *buf, size_t n);

bool option_is_end(const struct option *row);
bool option_takes_value(const struct option *row);
/* Whether `name` is this row's long name or one of its aliases, `_` counting as `-`. */
bool option_has_name(const struct option *row, const char *name, size_t n);

/* The closest of the names seen so far to `word`; feed it, then ask. */
struct nearest {
    const char *word;
    const char *best;
    size_t distance;
};
void nearest_init(struct nearest *n, const char *word);
void nearest_offer(struct nearest *n, const char *name);
const char *nearest_name(const struct nearest *n); // NULL: nothing is close

#endif
