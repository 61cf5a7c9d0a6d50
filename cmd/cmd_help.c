/*
 * lora help: a command's page, the overview, or a man page.
 */
#include "cmd/cmd.h"

static bool man, names;

static const struct option options[] = {
    {.long_name = "man",
     .type = OPTION_FLAG,
     .value = &man,
     .help = "Write the man page's source instead (lora.1 without COMMAND)."},
    {.long_name = "names", .type = OPTION_FLAG, .value = &names, .hidden = true},
    {0},
};

/* For `make man`: one command a line. */
static void print_names(void)
{
    for (const struct command *const *c = cmd_table; *c; c++) {
        if (!(*c)->hidden)
            puts((*c)->name);
    }
}

static int run(struct cmd_context *ctx, struct err *err)
{
    const struct command *command = ctx->n_args ? cmd_find(ctx->args[0]) : NULL;
    if (ctx->n_args && !command) {
        cmd_hint("`lora --help` lists the commands");
        return err_set(err, ERR_USAGE, "lora has no command '%s'", ctx->args[0]);
    }
    if (names)
        print_names();
    else if (man)
        help_man(command, stdout);
    else if (command)
        options_help(command, stdout);
    else
        help_overview(stdout);
    return 0;
}

const struct command command_help = {
    .name = "help",
    .arguments = "[COMMAND]",
    .summary = "a command's page",
    .examples = "lora help merge\nlora help --man serve > lora-serve.1",
    .max_args = 1,
    .options = options,
    .run = run,
};
