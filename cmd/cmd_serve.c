/*
 * lora serve: the server, or with --check what it would do.
 */
#include <string.h>

#include "cmd/cmd.h"
#include "cmd/serve/check.h"
#include "cmd/serve/options.h"
#include "cmd/serve/server.h"
#include "cmd/signing.h"
#include "libcore/base/log.h"

static bool log_level_is_chosen(const struct cmd_context *ctx)
{
    for (const struct option *row = options_shared(); row->long_name || row->help; row++) {
        if (row->long_name && strcmp(row->long_name, "log-level") == 0)
            return strcmp(options_origin(ctx, row), "default") != 0;
    }
    return false;
}

static int run(struct cmd_context *ctx, struct err *err)
{
    if (!serve_options.check && !log_level_is_chosen(ctx))
        log_set_level(LOG_LEVEL_INFO);
    int rc = serve_options_finish(ctx, err);
    if (rc != 0)
        return rc;
    if (serve_options.check)
        return check_run(ctx, &serve_options, err);
    rc = server_run(&serve_options, ctx->store_path, err);
    if (rc == ERR_BUSY)
        cmd_hint("--port 0 takes a free port");
    else if (rc == ERR_NOT_FOUND && err && strstr(err->msg, "tokenizer.json"))
        cmd_hint("--skip-tokenizer-init serves token ids alone, on /generate");
    else if (serve_options.required.n && err)
        signing_hint_refused(rc, "NAME", err->msg);
    return rc;
}

const struct command command_serve = {
    .name = "serve",
    .arguments = "[MODEL]",
    .summary = "serve a base and many adapters to OpenAI and SGLang clients",
    .description =
        "Starts an HTTP server over one base model. Every adapter on offer is a model of its own "
        "name; requests for different adapters share one batch.\n"
        "\n"
        "Without --lora-paths all adapters of the store whose base matches are offered. SIGTERM "
        "lets "
        "running requests finish; SIGHUP reads the names again. Command lines of vLLM and SGLang "
        "start unchanged; what is not there is refused with the reason.",
    .examples = "lora serve --model tinytalk\n"
                "lora serve ./base --lora-paths sql=./adapters/sql --port 8000\n"
                "lora serve --model tinytalk --check",
    .main_five = true,
    .max_args = 1,
    .options = serve_option_table,
    .run = run,
};
