/*
 * lora inspect: everything about one adapter or base.
 */
#include <string.h>

#include "cmd/cmd.h"
#include "cmd/inspect_info.h"
#include "cmd/report.h"
#include "libcore/base/file.h"

static bool deep;
static const char *html;

static int write_report(struct cmd_context *ctx, const json_t *info, struct err *err)
{
    if (file_exists(html) && !ctx->force) {
        cmd_hint("--force overwrites it");
        return err_set(err, ERR_EXISTS, "%s: is there already", html);
    }
    return report_write(info, html, err);
}

static int run(struct cmd_context *ctx, struct err *err)
{
    struct store *s;
    int rc = cmd_store_open_if_there(ctx, &s, err);
    if (rc)
        return rc;
    struct model_ref ref = {0};
    json_t *info = NULL;
    rc = model_ref_resolve(&ref, s, ctx->args[0], STORE_ANY, err);
    if (rc == ERR_NOT_FOUND && !strstr(err->msg, "no such file"))
        cmd_hint("`lora list` shows what the store has");
    bool all = deep || html;
    if (!rc && ref.kind == STORE_ADAPTER)
        rc = inspect_adapter(&info, s, &ref, all, err);
    else if (!rc)
        rc = inspect_base(&info, s, &ref, all, err);
    if (!rc && html)
        rc = write_report(ctx, info, err);
    if (!rc && ctx->json)
        cmd_print_json(json_incref(info));
    else if (!rc && ctx->quiet)
        puts(json_string_value(json_object_get(info, "id")));
    else if (!rc && html)
        printf("wrote %s\n", html);
    else if (!rc)
        inspect_print(info);
    json_decref(info);
    model_ref_release(&ref);
    store_close(s);
    return rc;
}

static const struct option options[] = {
    {.long_name = "deep",
     .type = OPTION_FLAG,
     .value = &deep,
     .help = "Norms and stable rank of every module (in factored form); a base's digests."},
    {.long_name = "html",
     .type = OPTION_STRING,
     .value = &html,
     .value_name = "FILE",
     .help = "Write the page as HTML, with a heat map; implies --deep."},
    {0},
};

const struct command command_inspect = {
    .name = "inspect",
    .alias = "show",
    .arguments = "REF",
    .summary = "everything about one adapter or base",
    .description =
        "Parameters and their share of the base, rank and scale of every module, kinds, types,\n"
        "bytes in each tier, files and digests, where it came from, and what serve and merge will\n"
        "say of it. An adapter's bytes are checked against its content id. REF may be a path: no\n"
        "import is needed.",
    .examples = "lora inspect support-bot\nlora inspect ./my-adapter --deep\n"
                "lora inspect support-bot --html report.html",
    .main_five = true,
    .min_args = 1,
    .max_args = 1,
    .options = options,
    .run = run,
};
