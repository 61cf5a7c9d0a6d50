/*
 * lora merge: adapters into base weights.
 */
#include <string.h>

#include "cmd/cmd.h"
#include "cmd/merge_base.h"
#include "cmd/merge_explain.h"

static const char *base_ref, *output, *plan, *apply;
static bool resume, check, resize_embeddings, explain;
static int64_t n_threads;

static int check_usage(const struct cmd_context *ctx, struct err *err)
{
    if (apply && ctx->n_args)
        return err_set(err, ERR_USAGE, "--apply takes its adapters from the file, not also %s",
                       ctx->args[0]);
    if (!apply && !ctx->n_args)
        return err_set(err, ERR_USAGE, "which adapters? lora merge ADAPTER… --output DIR");
    if (apply && plan)
        return err_set(err, ERR_USAGE, "--plan and --apply exclude each other");
    if (!output && !plan && !explain)
        return err_set(err, ERR_USAGE, "--output DIR is missing: where the merged model goes");
    return 0;
}

static int read_inputs(struct cmd_context *ctx, struct merge_inputs *in, struct store *s,
                       struct recipe *recipe, struct err *err)
{
    if (!apply) {
        int rc = merge_inputs_read(in, s, ctx->args, ctx->n_args, err);
        return rc || explain ? rc : merge_inputs_base(in, base_ref, err);
    }
    int rc = recipe_read(recipe, apply, err);
    if (!rc)
        rc = merge_inputs_of_recipe(in, s, recipe, err);
    if (rc)
        return rc;
    if (explain)
        return 0;
    if (base_ref)
        return merge_inputs_base(in, base_ref, err);
    struct store_entry e;
    if (s && store_get(s, recipe->fingerprint, &e, NULL) == 0) {
        store_entry_release(&e);
        return merge_inputs_base(in, recipe->fingerprint, err);
    }
    return merge_inputs_base(in, recipe->base_folder, err);
}

static int run(struct cmd_context *ctx, struct err *err)
{
    struct store *s = NULL;
    struct merge_inputs in = {0};
    struct recipe recipe = {0};
    int rc = check_usage(ctx, err);
    if (!rc)
        rc = cmd_store_open_if_there(ctx, &s, err);
    if (!rc)
        rc = read_inputs(ctx, &in, s, &recipe, err);
    struct merge_base_options opt = {
        .output = output,
        .plan = plan,
        .recipe = apply ? &recipe : NULL,
        .resume = resume,
        .check = check,
        .resize_embeddings = resize_embeddings || recipe.resize_embeddings,
        .n_threads = (unsigned)n_threads,
    };
    if (!rc)
        rc = explain ? merge_explain_run(ctx, &in, err) : merge_base_run(ctx, &in, &opt, err);
    merge_inputs_release(&in);
    recipe_release(&recipe);
    store_close(s);
    return rc;
}

static const struct option options[] = {
    {.long_name = "base",
     .type = OPTION_STRING,
     .value = &base_ref,
     .value_name = "REF",
     .help = "The base; without it the one that the adapters were recorded with."},
    {.long_name = "output",
     .short_name = 'o',
     .type = OPTION_STRING,
     .value = &output,
     .value_name = "DIR",
     .help = "The merged checkpoint; it appears when it is complete."},
    {.long_name = "plan",
     .type = OPTION_STRING,
     .value = &plan,
     .value_name = "FILE",
     .help = "Write what would be done, from headers alone (- is standard output); merge nothing."},
    {.long_name = "apply",
     .type = OPTION_STRING,
     .value = &apply,
     .value_name = "FILE",
     .help = "Do what a plan says, or make again what a merge.json was made of: the same bytes."},
    {.long_name = "explain",
     .type = OPTION_FLAG,
     .value = &explain,
     .help = "Say how the adapters stand to each other: norms, cosines, sign conflicts, what a "
             "rank would lose; merge nothing."},
    {.long_name = "check",
     .type = OPTION_FLAG,
     .value = &check,
     .help = "Read the result again and derive the delta from it, by other code."},
    {.long_name = "resume",
     .type = OPTION_FLAG,
     .value = &resume,
     .help = "Go on where an interrupted run stopped; and keep what is done if this one stops."},
    {.long_name = "resize-embeddings",
     .type = OPTION_FLAG,
     .value = &resize_embeddings,
     .help = "Let the adapter bring more embedding rows (added tokens) than the base has."},
    {.long_name = "threads",
     .type = OPTION_INT,
     .value = &n_threads,
     .value_name = "N",
     .min = 0,
     .max = 256,
     .help = "Threads that compute; 0: all processors. The bytes do not depend on it."},
    CMD_LOCK_TIMEOUT_ROW,
    {0},
};

const struct command command_merge = {
    .name = "merge",
    .arguments = "ADAPTER[=WEIGHT]…",
    .summary = "merge adapters into base weights",
    .description =
        "Writes a standard checkpoint folder: the base's shards, index, configuration and\n"
        "tokenizer, with base + sum of weight * delta in the weights, each rounded once, and\n"
        "merge.json, from which --apply makes the same bytes again. Needs neither the model in\n"
        "memory nor a GPU. What has no exact meaning is refused by name. Exit status 4 when no\n"
        "weight would change.",
    .examples = "lora merge support-bot --output ./merged\n"
                "lora merge style=0.7 facts=0.3 --base llama --output ./merged\n"
                "lora merge ./my-adapter --base ./Llama-3.1-8B --plan plan.json\n"
                "lora merge --apply ./merged/merge.json --output ./again\n"
                "lora merge style facts --explain",
    .main_five = true,
    .max_args = SIZE_MAX,
    .options = options,
    .run = run,
};
