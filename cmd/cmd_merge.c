/*
 * lora merge: adapters into base weights, or with --name into one adapter.
 */
#include <string.h>

#include "cmd/cmd.h"
#include "cmd/made_adapter.h"
#include "cmd/merge_base.h"
#include "cmd/merge_combine.h"
#include "cmd/merge_explain.h"

static const char *base_ref, *output, *plan, *apply, *device = "cpu", *float8 = "keep";
static bool resume, check, resize_embeddings, explain;
static int64_t n_threads;
// combining
static const char *name, *method, *compat;
static int64_t rank, seed;
static double density, epsilon = -1, gamma_share = -1;
static bool rank_given, seed_given, density_given, epsilon_given, gamma_given;

static int check_usage(const struct cmd_context *ctx, struct err *err)
{
    if (apply && ctx->n_args)
        return err_set(err, ERR_USAGE, "--apply takes its adapters from the file, not also %s",
                       ctx->args[0]);
    if (!apply && !ctx->n_args)
        return err_set(err, ERR_USAGE, "which adapters? lora merge ADAPTER… --output DIR");
    if (apply && plan)
        return err_set(err, ERR_USAGE, "--plan and --apply exclude each other");
    bool combining = method || compat || rank_given || seed_given || density_given ||
                     epsilon_given || gamma_given;
    if (combining && !name && !explain)
        return err_set(err, ERR_USAGE,
                       "--method and its numbers are for combining: --name NAME is missing; into "
                       "base weights the sum is always exact");
    if (name && (plan || apply || resume || check || resize_embeddings))
        return err_set(
            err, ERR_USAGE,
            "--name combines adapters into an adapter: --plan, --apply, --resume, --check "
            "and --resize-embeddings are for merging into base weights");
    if (density_given && density <= 0)
        return err_set(err, ERR_USAGE, "--density %g: wanted a share of (0, 1]", density);
    if ((epsilon_given && epsilon < 0) || (gamma_given && gamma_share < 0))
        return err_set(err, ERR_USAGE, "--epsilon and --gamma: wanted a share of [0, 1]");
    if (!output && !plan && !explain && !name)
        return err_set(err, ERR_USAGE,
                       "--output DIR is missing: where the merged model goes (or --name NAME, to "
                       "combine the adapters into one)");
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

static int combine(struct cmd_context *ctx, struct err *err)
{
    const struct merge_combine_options opt = {.name = name,
                                              .output = output,
                                              .base_ref = base_ref,
                                              .method = method,
                                              .compat = compat,
                                              .rank = rank,
                                              .density = density,
                                              .epsilon = epsilon,
                                              .gamma = gamma_share,
                                              .seed = seed,
                                              .n_threads = (unsigned)n_threads};
    struct store *s = NULL;
    struct merge_inputs in = {0};
    int rc = cmd_store_open(ctx, true, &s, err);
    if (!rc)
        rc = merge_inputs_read(&in, s, ctx->args, ctx->n_args, err);
    if (!rc)
        rc = merge_combine_run(ctx, s, &in, &opt, err);
    merge_inputs_release(&in);
    store_close(s);
    return rc;
}

static int run(struct cmd_context *ctx, struct err *err)
{
    struct store *s = NULL;
    struct merge_inputs in = {0};
    struct recipe recipe = {0};
    int rc = check_usage(ctx, err);
    if (!rc && name && !explain)
        return combine(ctx, err);
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
        .float8_to_bf16 = strcmp(float8, "bf16") == 0 || recipe.float8_to_bf16,
        .device = device,
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
     .help = "The merged checkpoint; it appears when it is complete. With --name a PEFT folder of "
             "the combined adapter."},
    {.long_name = "name",
     .type = OPTION_STRING,
     .value = &name,
     .value_name = "NAME[:TAG]",
     .help = "Combine the adapters into one, which gets this name in the store."},
    {.long_name = "method",
     .type = OPTION_STRING,
     .value = &method,
     .value_name = "METHOD",
     .help = "cat, linear, svd, task_arithmetic, slerp, magnitude_prune, ties, dare_linear, "
             "dare_ties, della, breadcrumbs. Without it the exact weighted sum."},
    {.long_name = "rank",
     .type = OPTION_INT,
     .value = &rank,
     .value_name = "K",
     .min = 1,
     .max = LIMIT_RANK,
     .given = &rank_given,
     .help = "The best result of that rank; what it leaves out is printed."},
    {.long_name = "density",
     .type = OPTION_DOUBLE,
     .value = &density,
     .value_name = "D",
     .given = &density_given,
     .help = "The share of each delta that pruning methods keep, in (0, 1]."},
    {.long_name = "seed",
     .type = OPTION_INT,
     .value = &seed,
     .value_name = "N",
     .min = 0,
     .max = INT64_MAX,
     .given = &seed_given,
     .help = "Of the random numbers of dare and della; 0 without it."},
    {.long_name = "epsilon",
     .type = OPTION_DOUBLE,
     .value = &epsilon,
     .value_name = "E",
     .given = &epsilon_given,
     .help = "della: keep with probabilities from density - E to density + E (0.15)."},
    {.long_name = "gamma",
     .type = OPTION_DOUBLE,
     .value = &gamma_share,
     .value_name = "G",
     .given = &gamma_given,
     .help = "breadcrumbs: the share of largest values that is left out (0.01)."},
    {.long_name = "compat",
     .type = OPTION_STRING,
     .value = &compat,
     .value_name = "TOOL",
     .choices = "peft,mergekit",
     .help = "That tool's flavour of a method; says where it differs."},
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
    {.long_name = "float8",
     .type = OPTION_STRING,
     .value = &float8,
     .choices = "keep,bf16",
     .help =
         "Of a base in 8-bit floats: keep them (a scale changes only where its values would not "
         "fit), or write them all as BF16."},
    MADE_THREADS_ROW(&n_threads),
    {.long_name = "device",
     .type = OPTION_STRING,
     .value = &device,
     .value_name = "DEVICE",
     .help = "cpu, cuda:N, or auto: a card if there is one. The bytes do not depend on it."},
    CMD_LOCK_TIMEOUT_ROW,
    {0},
};

const struct command command_merge = {
    .name = "merge",
    .arguments = "ADAPTER[=WEIGHT]…",
    .summary = "merge adapters into base weights, or combine them into one adapter",
    .description =
        "Writes a standard checkpoint folder: the base's shards, index, configuration and\n"
        "tokenizer, with base + sum of weight * delta in the weights, each rounded once, and\n"
        "merge.json, from which --apply makes the same bytes again. Needs neither the model in\n"
        "memory nor a GPU. What has no exact meaning is refused by name. Exit status 4 when no\n"
        "weight would change.\n"
        "With --name NAME the adapters become one adapter in the store instead: by default the\n"
        "weighted sum in factored form at the sum of their ranks, with --method and --rank other\n"
        "rules. No base is needed.",
    .examples = "lora merge support-bot --output ./merged\n"
                "lora merge style=0.7 facts=0.3 --base llama --output ./merged\n"
                "lora merge ./my-adapter --base ./Llama-3.1-8B --plan plan.json\n"
                "lora merge style=0.7 facts=0.3 --name both\n"
                "lora merge style facts --name both --method ties --density 0.5 --rank 16\n"
                "lora merge --apply ./merged/merge.json --output ./again\n"
                "lora merge style facts --explain",
    .main_five = true,
    .max_args = SIZE_MAX,
    .options = options,
    .run = run,
};
