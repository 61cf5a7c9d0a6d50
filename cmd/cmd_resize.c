/*
 * lora resize: an adapter at a lower rank, and what that loses.
 */
#include "cmd/cmd.h"
#include "cmd/made_adapter.h"
#include "cmd/merge_inputs.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "libcore/merge/resize.h"

static const char *name, *output;
static int64_t rank, n_threads;
static double energy;
static bool energy_given;

static int check_usage(struct err *err)
{
    if (!rank && !energy_given)
        return err_set(err, ERR_USAGE, "--rank K or --energy E is missing");
    if (energy_given && !(energy > 0 && energy <= 1))
        return err_set(err, ERR_USAGE, "--energy %g: wanted a share of (0, 1]", energy);
    return 0;
}

static json_t *lineage_of(const struct merge_input *in)
{
    return json_pack("{s:s, s:s, s:i, s:o, s:[{s:s, s:s}]}", "command", "resize", "version",
                     cmd_version(), "rank", (int)rank, "energy",
                     energy_given ? json_real(energy) : json_null(), "adapters", "id",
                     in->adapter->content_id, "name", in->name);
}

static int tell(const struct cmd_context *ctx, const struct combine_report *r, json_t *info,
                struct err *err)
{
    if (ctx->json) {
        json_object_update_new(info, json_pack("{s:i, s:f, s:o}", "rank", (int)r->max_rank, "loss",
                                               combine_loss(r->discarded2, r->total2), "modules",
                                               made_modules_json(r)));
        cmd_print_json(json_incref(info));
        return 0;
    }
    if (made_print_id(ctx, info))
        return 0;
    int rc = made_print_modules(r, err);
    made_print(info);
    return rc;
}

static int resize(struct cmd_context *ctx, struct store *s, const struct merge_input *in,
                  struct err *err)
{
    const struct resize_options opt = {.rank = (uint32_t)rank,
                                       .energy = energy,
                                       .n_threads = (unsigned)n_threads,
                                       .stop = cmd_interrupted};
    struct adapter *a = NULL;
    struct combine_report *r = NULL;
    struct store_entry e;
    json_t *info = json_object(), *lineage = lineage_of(in);
    struct strbuf source;
    strbuf_init(&source);
    strbuf_addf(&source, "lora resize %s", in->name);
    // A base that was taken out of the store is only a name.
    bool known = s && *in->base_id && store_get(s, in->base_id, &e, NULL) == 0;
    if (known)
        store_entry_release(&e);
    int rc = info && lineage && !source.failed ? 0 : err_set(err, ERR_NO_MEMORY, "no memory");
    if (!rc)
        rc = resize_adapter(&a, &r, in->adapter, &opt, err);
    const struct made_options made = {.name = name,
                                      .output = output,
                                      .base_id = known ? in->base_id : NULL,
                                      .source = strbuf_text(&source),
                                      .lineage = lineage};
    if (!rc)
        rc = made_put(ctx, s, a, &made, info, err);
    if (!rc)
        rc = tell(ctx, r, info, err);
    combine_report_free(r);
    adapter_free(a);
    json_decref(info);
    json_decref(lineage);
    strbuf_release(&source);
    return rc;
}

static int run(struct cmd_context *ctx, struct err *err)
{
    const struct made_options made = {.name = name, .output = output};
    struct store *s = NULL;
    struct merge_inputs in = {0};
    int rc = check_usage(err);
    if (!rc)
        rc = made_check(ctx, &made, err);
    if (!rc)
        rc = name ? cmd_store_open(ctx, true, &s, err) : cmd_store_open_if_there(ctx, &s, err);
    if (!rc)
        rc = merge_inputs_read(&in, s, ctx->args, 1, err);
    if (!rc)
        rc = resize(ctx, s, &in.items[0], err);
    merge_inputs_release(&in);
    store_close(s);
    return rc;
}

static const struct option options[] = {
    MADE_SIZE_ROWS(&rank, "The rank of every module, where it has as many.", &energy, &energy_given,
                   "The lowest ranks that keep this share of each module's squared norm, as 0.99."),
    MADE_PLACE_ROWS(&name, "The new adapter's name in the store.", &output),
    MADE_THREADS_ROW(&n_threads),
    CMD_LOCK_TIMEOUT_ROW,
    {0},
};

const struct command command_resize = {
    .name = "resize",
    .arguments = "ADAPTER",
    .summary = "an adapter at a lower rank, with what that loses",
    .description =
        "The best adapter of that rank: the leading singular values of every module, found from\n"
        "the factors in float64. A module that keeps its rank keeps its bytes. The loss printed\n"
        "is exact: the share of the delta's norm that is left out. DoRA is refused, since its\n"
        "gain depends on the base.",
    .examples = "lora resize support-bot --rank 8 --name support-bot-r8\n"
                "lora resize support-bot --energy 0.99 --name support-bot-small\n"
                "lora resize ./my-adapter --rank 8 --output ./my-adapter-r8",
    .min_args = 1,
    .max_args = 1,
    .options = options,
    .run = run,
};
