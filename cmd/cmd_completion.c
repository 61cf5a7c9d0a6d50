/*
 * lora completion: a script for the shell, written from the option tables.
 */
#include "cmd/cmd.h"

static int run(struct cmd_context *ctx, struct err *err)
{
    return help_completion(ctx->args[0], stdout, err);
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
