/*
 * lora tag: gives a name to what the store has; undoes and shows the history of a name.
 */
#include <string.h>

#include "cmd/cmd.h"
#include "cmd/model_ref.h"
#include "cmd/table.h"

static bool undo, history;

static int print_result(struct cmd_context *ctx, const char *name, const char *tag, const char *id,
                        bool changed)
{
    if (ctx->json)
        cmd_print_json(json_pack("{s:s, s:s, s:s, s:b}", "name", name, "tag", tag, "id", id,
                                 "changed", changed));
    else if (ctx->quiet)
        puts(id);
    else
        printf("%s:%s %s %.12s\n", name, tag, changed ? "is now" : "was already", id);
    return 0;
}

static int print_history(struct cmd_context *ctx, struct store *s, const char *name,
                         const char *tag, struct err *err)
{
    json_t *events;
    int rc = store_tag_history(s, name, tag, &events, err);
    if (rc)
        return rc;
    if (ctx->json) {
        cmd_print_json(json_pack("{s:s, s:s, s:o}", "name", name, "tag", tag, "events", events));
        return 0;
    }
    struct table *t = table_open((const char *[]){"ID", "BY", "WHEN", NULL});
    size_t i;
    json_t *event;
    json_array_foreach(events, i, event)
    {
        const char *id = json_string_value(json_object_get(event, "id"));
        const char *action = json_string_value(json_object_get(event, "action"));
        char cut[13] = "(removed)", when[TABLE_CELL_BYTES];
        if (id)
            snprintf(cut, sizeof cut, "%.12s", id);
        table_row(t, (const char *[]){cut, action ? action : "",
                                      table_age(when, (uint64_t)json_integer_value(
                                                          json_object_get(event, "time")))});
    }
    table_print(t, stdout);
    table_free(t);
    json_decref(events);
    return 0;
}

static int set_tag(struct cmd_context *ctx, struct store *s, const char *ref, const char *name,
                   const char *tag, struct err *err)
{
    struct store_resolved r;
    bool same;
    int rc = store_resolve(s, ref, STORE_ANY, &r, err);
    if (!rc)
        rc = store_tag(s, name, tag, r.id, ctx->force, &same, err);
    if (rc == ERR_EXISTS)
        cmd_hint("--force points it there; `lora tag --undo %s:%s` brings the old one back", name,
                 tag);
    return rc ? rc : print_result(ctx, name, tag, r.id, !same);
}

static int run(struct cmd_context *ctx, struct err *err)
{
    if (undo && history)
        return err_set(err, ERR_USAGE, "--undo and --history: one at a time");
    size_t wanted = undo || history ? 1 : 2;
    if (ctx->n_args != wanted)
        return err_set(err, ERR_USAGE, "wanted %s, got %zu arguments",
                       wanted == 1 ? "one NAME[:TAG]" : "REF and NAME[:TAG]", ctx->n_args);
    char name[LIMIT_NAME_BYTES + 1], tag[STORE_TAG_BYTES + 1], id[STORE_ID_CHARS + 1];
    int rc = store_parse_name(ctx->args[wanted - 1], name, tag, err);
    struct store *s = NULL;
    if (!rc)
        rc = cmd_store_open(ctx, false, &s, err);
    if (rc)
        return rc;
    if (history)
        rc = print_history(ctx, s, name, tag, err);
    else if (!undo)
        rc = set_tag(ctx, s, ctx->args[0], name, tag, err);
    else if ((rc = store_tag_undo(s, name, tag, id, err)) == 0)
        rc = print_result(ctx, name, tag, id, true);
    store_close(s);
    return rc;
}

static const struct option options[] = {
    {.long_name = "undo",
     .type = OPTION_FLAG,
     .value = &undo,
     .help = "Point the name at what it was before its last change, also after `lora rm`."},
    {.long_name = "history",
     .type = OPTION_FLAG,
     .value = &history,
     .help = "Show what the name was, newest first."},
    CMD_LOCK_TIMEOUT_ROW,
    {0},
};

const struct command command_tag = {
    .name = "tag",
    .arguments = "REF NAME[:TAG]",
    .summary = "give another name or tag to an adapter or base",
    .description =
        "REF is a name, name:tag, or a unique prefix of an id or digest. A name that is\n"
        "in use is refused unless --force is given; what it named before stays in its\n"
        "history until `lora gc` removes it.",
    .examples = "lora tag support-bot support-bot:v1\nlora tag 3fa9c1 support-bot --force\n"
                "lora tag --undo support-bot",
    .min_args = 1,
    .max_args = 2,
    .options = options,
    .run = run,
};
