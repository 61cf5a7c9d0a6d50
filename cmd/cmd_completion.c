/*
 * lora completion: a script for the shell, written from the option tables.
 */
#include <stdlib.h>

#include "cmd/cmd.h"

static int run(struct cmd_context *ctx, struct err *err)
{
    if (!ctx->json)
        return help_completion(ctx->args[0], stdout, err);
    char *script = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&script, &n);
    int rc = f ? help_completion(ctx->args[0], f, err) : err_set(err, ERR_NO_MEMORY, "no memory");
    if (f && fclose(f) != 0 && !rc)
        rc = err_set(err, ERR_NO_MEMORY, "no memory for a completion script");
    if (!rc)
        cmd_print_json(json_pack("{s:s, s:s}", "shell", ctx->args[0], "script", script));
    free(script);
    return rc;
}

const struct command command_completion = {
    .name = "completion",
    .arguments = "bash|zsh|fish",
    .summary = "a completion script for your shell",
    .description = "Prints a script that completes commands, options and their choices.",
    .examples = "source <(lora completion bash)\n"
                "lora completion zsh > ~/.zfunc/_lora\n"
                "lora completion fish > ~/.config/fish/completions/lora.fish",
    .min_args = 1,
    .max_args = 1,
    .run = run,
};
