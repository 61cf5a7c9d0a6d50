/*
 * lora env: the settings that are in effect and where each comes from.
 */
#include <string.h>

#include "cmd/cmd.h"
#include "cmd/options_impl.h"
#include "cmd/table.h"

struct listing {
    struct table *table;
    json_t *json;
};

static void add(struct listing *l, const char *section, const char *name, const char *value,
                const char *origin, const char *variable)
{
    char full[128];
    snprintf(full, sizeof full, "%s%s%s", section ? section : "", section ? "." : "", name);
    table_row(l->table, (const char *[]){full, value, origin, variable ? variable : ""});
    json_array_append_new(l->json, json_pack("{s:s, s:s, s:s, s:s?}", "name", full, "value", value,
                                             "from", origin, "environment", variable));
}

static void add_row(struct listing *l, const struct cmd_context *ctx, const char *section,
                    const struct option *row)
{
    char buf[512];
    const char *value = option_value_text(row, buf, sizeof buf);
    if (row->secret)
        value = *value ? "(set)" : "";
    else if (!section && strcmp(row->long_name, "store") == 0)
        value = ctx->store_path; // also when it is the default
    add(l, section, row->long_name, value, options_origin(ctx, row), row->env);
}

/* A command's rows that can come from outside its command line, and those that do. */
static int add_command(struct listing *l, const struct command *command, struct err *err)
{
    struct cmd_context ctx;
    int rc = options_load(&ctx, command, err);
    for (const struct option *row = command->options; !rc && !option_is_end(row); row++) {
        if (!row->long_name || row->hidden)
            continue;
        if (row->env || strcmp(options_origin(&ctx, row), "default") != 0)
            add_row(l, &ctx, command->name, row);
    }
    options_release(&ctx);
    return rc;
}

static int collect(struct cmd_context *ctx, struct listing *l, struct err *err)
{
    add(l, NULL, "config", options_config_path(ctx), ctx->priv->config ? "read" : "not there",
        NULL);
    for (const struct option *row = options_shared(); !option_is_end(row); row++) {
        if (row->long_name && row->env)
            add_row(l, ctx, NULL, row);
    }
    int rc = 0;
    for (const struct command *const *c = cmd_table; *c && !rc; c++) {
        if ((*c)->options)
            rc = add_command(l, *c, err);
    }
    return rc;
}

static int run(struct cmd_context *ctx, struct err *err)
{
    struct listing l = {
        .table = table_open((const char *[]){"SETTING", "VALUE", "FROM", "VARIABLE", NULL}),
        .json = json_array(),
    };
    bool json = ctx->json;
    int rc = collect(ctx, &l, err);
    if (!rc && json)
        cmd_print_json(json_pack("{s:O}", "settings", l.json));
    else if (!rc)
        table_print(l.table, stdout);
    table_free(l.table);
    json_decref(l.json);
    return rc;
}

const struct command command_env = {
    .name = "env",
    .summary = "effective settings and where each comes from",
    .description = "A setting comes from its flag, else from its environment variable, else from\n"
                   "the config file, else it has its default. Shown are the settings of every\n"
                   "command that have a variable or were found in one of these places.",
    .examples = "lora env\nLORA_STORE=/data lora env --json",
    .run = run,
};
