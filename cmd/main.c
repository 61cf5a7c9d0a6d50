/*
 * main: finds the command, runs it, prints its error, chooses the exit status.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd/cmd_impl.h"
#include "cmd/options_impl.h"
#include "libcore/base/file.h"

static void on_signal(int number)
{
    (void)number;
    cmd_set_interrupted();
}

/* The first signal asks the command to stop and clean up; the second one, now with the default
 * action, ends it at once. Not restarted, so that a command that waits in a read gets EINTR. */
static void install_handlers(void)
{
    struct sigaction sa = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    sigemptyset(&sa.sa_mask);
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
}

static void print_json_error(const struct err *err, const char *hint)
{
    json_t *e = json_pack("{s:i, s:{s:s, s:s%}}", "schema", 1, "error", "code", err_name(err->code),
                          "message", err->msg, strlen(err->msg));
    if (!e) // the message holds bytes that are not UTF-8
        e = json_pack("{s:i, s:{s:s, s:s}}", "schema", 1, "error", "code", err_name(err->code),
                      "message", "the message holds bytes that are not UTF-8");
    if (hint)
        json_object_set_new(json_object_get(e, "error"), "hint", json_string(hint));
    json_dumpf(e, stderr, JSON_COMPACT);
    fputc('\n', stderr);
    json_decref(e);
}

static int report(const struct err *err, bool json)
{
    const char *hint = cmd_hint_text();
    fflush(stdout);
    if (json) {
        print_json_error(err, hint);
        return err_exit_status(err->code);
    }
    const char *no_color = getenv("NO_COLOR");
    bool color = isatty(STDERR_FILENO) && !(no_color && *no_color);
    fprintf(stderr, "%serror:%s %s\n", color ? "\033[1;31m" : "", color ? "\033[0m" : "", err->msg);
    if (hint)
        fprintf(stderr, "%shint:%s %s\n", color ? "\033[1m" : "", color ? "\033[0m" : "", hint);
    return err_exit_status(err->code);
}

/* Whether --json is among the options, also when they cannot be parsed. */
static bool wants_json(int argc, char **argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--json") == 0)
            return true;
    }
    return false;
}

static const struct option *shared_row(const char *word)
{
    for (const struct option *row = options_shared(); !option_is_end(row); row++) {
        if (word[1] == '-' ? option_has_name(row, word + 2, strcspn(word + 2, "="))
                           : row->short_name && row->short_name == word[1] && !word[2])
            return row;
    }
    return NULL;
}

/* Where the command's name stands: options of every command may come before it. argc: nowhere. */
static int command_index(int argc, char **argv)
{
    int i = 1;
    while (i < argc && argv[i][0] == '-' && argv[i][1] != '\0') {
        const struct option *row = shared_row(argv[i]);
        bool value_follows = row && option_takes_value(row) && !strchr(argv[i], '=');
        i += value_follows ? 2 : 1;
    }
    return i < argc ? i : argc;
}

static int unknown_command(const char *name, struct err *err)
{
    struct nearest nearest;
    nearest_init(&nearest, name);
    for (const struct command *const *c = cmd_table; *c; c++) {
        if (!(*c)->hidden)
            nearest_offer(&nearest, (*c)->name);
    }
    if (nearest_name(&nearest))
        cmd_hint("did you mean `lora %s`?", nearest_name(&nearest));
    else
        cmd_hint("`lora --help` lists the commands");
    return err_set(err, ERR_USAGE, "lora has no command '%s'", name);
}

/* What helps after most errors of this sort, where the command knew nothing better. */
/* "PATH: no such file": which folder of the path is there, so that the next look is short. */
static void hint_for_path(const char *msg)
{
    char path[ERR_MSG_BYTES], cwd[512];
    const char *of_many = strstr(msg, " failed: "); // "2 of 2 failed: PATH: …"
    msg = of_many ? of_many + strlen(" failed: ") : msg;
    const char *colon = strstr(msg, ": ");
    size_t n = colon ? (size_t)(colon - msg) : 0;
    if (n == 0 || n >= sizeof path)
        return;
    memcpy(path, msg, n);
    path[n] = '\0';
    bool absolute = path[0] == '/';
    if (!strchr(path, '/')) {
        if (getcwd(cwd, sizeof cwd))
            cmd_hint("it was looked for in %s; `lora list` shows the names in the store", cwd);
        return;
    }
    for (char *slash; (slash = strrchr(path, '/')) && slash != path;) {
        *slash = '\0';
        if (file_exists(path))
            break;
    }
    if (absolute && strrchr(path, '/') == path && !file_exists(path))
        path[1] = '\0'; // nothing of it is there but the root
    if (file_exists(path))
        cmd_hint("`ls %s` shows what is there", path);
    else if (getcwd(cwd, sizeof cwd))
        cmd_hint("nothing of that path is there; it was looked for from %s", cwd);
}

static void hint_by_code(const struct command *command, int rc, const struct err *err)
{
    if (cmd_hint_text())
        return;
    if (rc == ERR_USAGE)
        cmd_hint("see `lora %s --help`", command->name);
    else if (rc == ERR_NOT_FOUND && strstr(err->msg, "in the store"))
        cmd_hint("`lora list` shows what the store has");
    else if (rc == ERR_NOT_FOUND &&
             (strstr(err->msg, "no such file") || strstr(err->msg, "No such")))
        hint_for_path(err->msg);
    else if (rc == ERR_CORRUPT)
        cmd_hint("the file is damaged or half written: fetch or make it again");
    else if (rc == ERR_LOCKED)
        cmd_hint("wait for the process that holds the store, and try again");
}

static int run_command(const struct command *command, int argc, char **argv, struct err *err)
{
    struct cmd_context ctx;
    int rc = options_parse(&ctx, command, argc, argv, err);
    if (!rc && ctx.help)
        options_help(command, stdout);
    else if (!rc)
        rc = command->run(&ctx, err);
    hint_by_code(command, rc, err);
    options_release(&ctx);
    return rc;
}

static int without_command(int argc, char **argv, struct err *err)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            help_overview(stdout);
            return 0;
        }
        if (strcmp(argv[i], "--version") == 0)
            return run_command(cmd_find("version"), 1, argv, err);
        if (!shared_row(argv[i]))
            return err_set(err, ERR_USAGE, "unknown option %s before a command", argv[i]);
    }
    if (argc == 1) {
        help_overview(stderr);
        err->code = ERR_USAGE; // the page says it all
        return ERR_USAGE;
    }
    cmd_hint("`lora --help` lists the commands");
    return err_set(err, ERR_USAGE, "no command was given");
}

static int run(int argc, char **argv, struct err *err)
{
    int at = command_index(argc, argv);
    if (at == argc)
        return without_command(argc, argv, err);
    const struct command *command = cmd_find(argv[at]);
    if (!command)
        return unknown_command(argv[at], err);
    // The name leaves argv; what stood before it is parsed with the rest.
    memmove(&argv[at], &argv[at + 1], (size_t)(argc - at) * sizeof *argv);
    return run_command(command, argc - 1, argv, err);
}

int main(int argc, char **argv)
{
    struct err err = {0};
    bool json = wants_json(argc, argv);
    install_handlers();
    int rc = run(argc, argv, &err);
    if (!rc && (fflush(stdout) != 0 || ferror(stdout)))
        rc = err_set_errno(&err, errno, "cannot write to standard output");
    if (!rc)
        return 0;
    err.code = rc;
    return err.msg[0] ? report(&err, json) : err_exit_status(rc);
}
