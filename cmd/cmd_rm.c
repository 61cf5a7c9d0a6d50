/*
 * lora rm: takes names away; the bytes stay until gc.
 */
#include <string.h>

#include "cmd/cmd.h"
#include "cmd/model_ref.h"

static bool all_tags;

struct removal {
    struct cmd_context *ctx;
    json_t *removed;
};

static int remove_one(struct removal *r, struct store *s, const char *name, const char *tag,
                      struct err *err)
{
    char id[STORE_ID_CHARS + 1];
    int rc = store_untag(s, name, tag, id, err);
    if (rc)
        return rc;
    json_array_append_new(r->removed,
                          json_pack("{s:s, s:s, s:s}", "name", name, "tag", tag, "id", id));
    if (r->ctx->json)
        return 0;
    if (r->ctx->quiet)
        puts(id);
    else
        printf("removed %s:%s, it named %.12s\n", name, tag, id);
    return 0;
}

struct tags {
    const char *name;
    json_t *list;
};

static int collect(void *arg, const struct store_entry *e)
{
    struct tags *t = arg;
    if (strcmp(e->name, t->name) != 0)
        return 0;
    for (const char *p = e->tags; *p;) {
        size_t n = strcspn(p, ",");
        if (json_array_append_new(t->list, json_stringn(p, n)) != 0)
            return ERR_NO_MEMORY;
        p += n + (p[n] == ',');
    }
    return 0;
}

static int remove_all_tags(struct removal *r, struct store *s, const char *name, struct err *err)
{
    struct tags t = {name, json_array()};
    int rc = store_list(s, &(struct store_query){0}, collect, &t, err);
    if (!rc && json_array_size(t.list) == 0)
        rc = err_set(err, ERR_NOT_FOUND, "%s: no such name in the store", name);
    size_t i;
    json_t *tag;
    json_array_foreach(t.list, i, tag)
    {
        if (!rc)
            rc = remove_one(r, s, name, json_string_value(tag), err);
    }
    json_decref(t.list);
    return rc;
}

static int remove_argument(struct removal *r, struct store *s, const char *text, struct err *err)
{
    char name[LIMIT_NAME_BYTES + 1], tag[STORE_TAG_BYTES + 1];
    int rc = store_parse_name(text, name, tag, err);
    if (rc)
        return rc;
    if (all_tags && strchr(text, ':'))
        return err_set(err, ERR_USAGE, "%s: --all-tags wants a name without a tag", text);
    if (all_tags)
        return remove_all_tags(r, s, name, err);
    rc = remove_one(r, s, name, tag, err);
    struct store_resolved found;
    if (rc == ERR_NOT_FOUND && store_resolve(s, text, STORE_ANY, &found, err) == 0) {
        cmd_hint("`lora rm %s:%s`", *found.name ? found.name : "NAME",
                 *found.tag ? found.tag : "TAG");
        rc = err_set(err, ERR_NOT_FOUND, "%s: is an id; rm takes names", text);
    }
    return rc;
}

static int run(struct cmd_context *ctx, struct err *err)
{
    struct store *s;
    int rc = cmd_store_open(ctx, false, &s, err);
    if (rc)
        return rc;
    struct removal r = {ctx, json_array()};
    for (size_t i = 0; !rc && i < ctx->n_args; i++)
        rc = remove_argument(&r, s, ctx->args[i], err);
    if (rc && json_array_size(r.removed))
        rc = err_set(err, ERR_PARTIAL, "%s", err->msg);
    if (ctx->json && (!rc || rc == ERR_PARTIAL))
        cmd_print_json(json_pack("{s:O}", "removed", r.removed));
    json_decref(r.removed);
    store_close(s);
    return rc;
}

static const struct option options[] = {
    {.long_name = "all-tags",
     .type = OPTION_FLAG,
     .value = &all_tags,
     .help = "Remove every tag of the names."},
    CMD_LOCK_TIMEOUT_ROW,
    {0},
};

const struct command command_rm = {
    .name = "rm",
    .arguments = "NAME[:TAG]…",
    .summary = "remove names from the store",
    .description =
        "Without a tag, `latest` is meant. The content stays until `lora gc`; until then\n"
        "`lora tag --undo NAME` brings the name back. A running server keeps what it uses.",
    .examples = "lora rm old-bot\nlora rm support-bot:v1",
    .min_args = 1,
    .max_args = SIZE_MAX,
    .options = options,
    .run = run,
};
