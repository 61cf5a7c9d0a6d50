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

static json_t *options_json(const struct option *row)
{
    json_t *list = json_array();
    for (; row && (row->long_name || row->help); row++) {
        if (!row->long_name || row->hidden)
            continue;
        char short_name[2] = {row->short_name, '\0'};
        json_array_append_new(
            list,
            json_pack("{s:s, s:s?, s:s?, s:s?, s:s?, s:s?, s:s?}", "name", row->long_name, "short",
                      *short_name ? short_name : NULL, "value", row->value_name, "help", row->help,
                      "choices", row->choices, "aliases", row->aliases, "environment", row->env));
    }
    return list;
}

static json_t *command_json(const struct command *c)
{
    return json_pack("{s:s, s:s?, s:s, s:s?, s:o}", "name", c->name, "alias", c->alias, "arguments",
                     c->arguments ? c->arguments : "", "summary", c->summary, "options",
                     options_json(c->options));
}

static void print_json(const struct command *only)
{
    json_t *list = json_array();
    for (const struct command *const *c = cmd_table; *c; c++) {
        if (only ? *c == only : !(*c)->hidden)
            json_array_append_new(list, command_json(*c));
    }
    cmd_print_json(json_pack("{s:o, s:o}", "commands", list, "shared_options",
                             options_json(options_shared())));
}

static int run(struct cmd_context *ctx, struct err *err)
{
    const struct command *command = ctx->n_args ? cmd_find(ctx->args[0]) : NULL;
    if (ctx->n_args && !command) {
        cmd_hint("`lora --help` lists the commands");
        return err_set(err, ERR_USAGE, "lora has no command '%s'", ctx->args[0]);
    }
    if (ctx->json)
        print_json(command);
    else if (names)
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
