/*
 * cmd: the command table, what every command receives, and the option tables from which parsing,
 * usage, --help, man pages and shell completion all come.
 * A command is one file cmd_NAME.c: options, one call into a library, printing. No arithmetic, no
 * SQL.
 */
#ifndef CMD_CMD_H
#define CMD_CMD_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "libcore/base/err.h"

enum option_type {
    OPTION_FLAG,   // bool *          --name, --no-name
    OPTION_STRING, // const char **   --name VALUE, --name=VALUE
    OPTION_INT,    // int64_t *       min and max apply
    OPTION_DOUBLE, // double *
    OPTION_SIZE,   // uint64_t *      1024, 64K, 1.5G, 2GiB
    OPTION_LIST,   // struct string_list *   may be repeated; each time one value
    OPTION_WORDS, // struct string_list *   takes every word up to the next option (--lora-paths a=b
                  // c=d)
    OPTION_HEADING // no option: a heading in --help
};

struct string_list {
    const char *
        *items; // borrowed from argv, environment or config file; the array is cmd_context's
    size_t n;
};

/* One row of a table; a table ends with a row whose long_name and help are NULL. */
struct option {
    const char *long_name; // "lora-paths", no dashes
    char short_name;       // 'q', or 0
    enum option_type type;
    void *value;            // where the result goes; holds the default before parsing
    const char *value_name; // "N", "FILE", "NAME=REF …" (for help)
    const char *help;       // one sentence
    const char *aliases;    // "lora-modules,other" or NULL: the peers' spellings
    const char *env;        // "LORA_STORE" or NULL: used when the flag is not given
    const char *choices;    // "auto,cpu,cuda:0" or NULL: anything
    int64_t min, max;       // OPTION_INT only, when max > min
    bool *given;            // or NULL: set true when the flag, the environment or the file had it
    bool hidden;            // not in --help (peers' spellings that only translate)
    bool secret;            // a key: `lora env` says only whether it is set
};

struct cmd_context {
    const char *program; // argv[0]
    const struct command *command;
    char **args; // positional arguments, after options
    size_t n_args;
    bool json, quiet;            // --json, -q
    bool help;                   // --help: nothing else was checked, main prints the page
    const char *store_path;      // resolved: --store, LORA_STORE, config file, XDG
    const char *store_path_from; // "flag" | "environment" | "config file" | "default"
    const char *progress;        // "auto" | "plain" | "none"
    bool force;                  // --force
    bool color;                  // stdout is a terminal and NO_COLOR is not set
    struct cmd_private *priv;    // config file, memory of string lists
};

struct command {
    const char *name;        // "import"
    const char *alias;       // "ls" or NULL
    const char *arguments;   // "PATH…" (for usage)
    const char *summary;     // one line
    const char *description; // paragraphs for --help and the man page
    const char *examples;    // lines "lora …", or NULL
    bool main_five;          // shown first
    bool hidden;
    size_t min_args, max_args; // SIZE_MAX: any number
    /* The command's options, whose `value` pointers it owns (static storage of its file). */
    const struct option *options;
    /* 0 or an ERR_ code with err set; an error was not printed yet. */
    int (*run)(struct cmd_context *ctx, struct err *err);
};

/* cmd.c: the table of all commands, NULL-ended, in the order of --help. A command `x` is
 * `const struct command command_x` of cmd_x.c and one line in commands.inc. */
extern const struct command *const cmd_table[];
const struct command *cmd_find(const char *name); // by name or alias; NULL
const char *cmd_version(void);                    // "0.1.0"

/*
 * options.c. Parses argv[1…] (the command's own name is not in it) by the command's table and the
 * shared one; args are left in order, `--` ends options, a wrong flag gives ERR_USAGE with the
 * nearest spelling. Values come from the flag, then the environment, then the config file
 * ($XDG_CONFIG_HOME/lora/config.json, "serve": {"port": 1} or top level), then the default.
 * A row of the command hides a shared row of that name. `_` may be written for `-` in a long name.
 * After a failure ctx may still be asked for json, and must be released.
 */
int options_parse(struct cmd_context *ctx, const struct command *command, int argc, char **argv,
                  struct err *err);
/* The same with no argv and no demands on arguments: what environment and config file say. */
int options_load(struct cmd_context *ctx, const struct command *command, struct err *err);
void options_release(struct cmd_context *ctx);
/* Where the value of a row came from in the last parse: "flag", "environment", "config file",
 * "default". */
const char *options_origin(const struct cmd_context *ctx, const struct option *row);
const char *options_config_path(const struct cmd_context *ctx); // whether it is there or not
/* The options of every command (--store, --json, …), ended as every table is. */
const struct option *options_shared(void);
/* K, M, G, T and KiB… are powers of 1024; KB… powers of 1000. */
int options_parse_size(const char *text, uint64_t *bytes, struct err *err);

/* help.c: everything that is written from the tables. */
void options_usage(const struct command *command, FILE *out);       // one paragraph
void options_help(const struct command *command, FILE *out);        // the whole page
void help_overview(FILE *out);                                      // lora --help
void help_man(const struct command *command, FILE *out);            // roff; NULL: lora.1
int help_completion(const char *shell, FILE *out, struct err *err); // bash, zsh, fish

/* Interruption: set by SIGINT and SIGTERM (main.c installs the handler for commands but serve).
 * Long work polls it and returns ERR_INTERRUPTED. */
bool cmd_interrupted(void);

/* Prints {"schema":1, …fields of `fields`} on stdout as one line and takes the reference. */
void cmd_print_json(json_t *fields);

/* "hint: …" after an error: the next command to try. Set by a command before it returns its error;
 * printed by main.c after the message, and as "hint" in the JSON error. */
void cmd_hint(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
