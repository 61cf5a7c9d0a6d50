/*
 * lora extract: an adapter out of a base and a checkpoint that was tuned from it.
 */
#include <string.h>

#include "cmd/cmd.h"
#include "cmd/made_adapter.h"
#include "cmd/model_ref.h"
#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "libcore/merge/extract.h"
#include "libcore/model/fingerprint.h"

static const char *base_ref, *tuned_ref, *name, *output;
static int64_t rank, n_threads;
static double energy;
static bool energy_given;

/* A base or a tuned model as the words say it. */
struct side {
    struct model_ref ref;
    char *folder;
    char fingerprint[STORE_ID_CHARS + 1];
};

static int find_side(struct side *x, struct store *s, const char *ref, struct err *err)
{
    int rc = model_ref_resolve(&x->ref, s, ref, STORE_BASE, err);
    if (rc)
        return rc;
    if (x->ref.in_store) {
        memcpy(x->fingerprint, x->ref.id, sizeof x->fingerprint);
        return store_base_folder(s, x->ref.id, &x->folder, err);
    }
    x->folder = file_real_path(x->ref.path, err);
    if (!x->folder)
        return err ? err->code : ERR_FAIL;
    return fingerprint_of_folder(x->folder, x->fingerprint, err);
}

static void release_side(struct side *x)
{
    model_ref_release(&x->ref);
    sys_free(x->folder);
}

static int check_usage(struct err *err)
{
    if (!base_ref || !tuned_ref)
        return err_set(err, ERR_USAGE, "--%s REF is missing", base_ref ? "tuned" : "base");
    if (!rank && !energy_given)
        return err_set(err, ERR_USAGE, "--rank K or --energy E is missing");
    if (energy_given && !(energy > 0 && energy <= 1))
        return err_set(err, ERR_USAGE, "--energy %g: wanted a share of (0, 1]", energy);
    return 0;
}

static json_t *lineage_of(const struct side *base, const struct side *tuned)
{
    return json_pack("{s:s, s:s, s:i, s:o, s:{s:s, s:s}, s:{s:s, s:s}}", "command", "extract",
                     "version", cmd_version(), "rank", (int)rank, "energy",
                     energy_given ? json_real(energy) : json_null(), "base", "fingerprint",
                     base->fingerprint, "ref", base_ref, "tuned", "fingerprint", tuned->fingerprint,
                     "ref", tuned_ref);
}

static int tell(const struct cmd_context *ctx, const struct extract_report *r, json_t *info,
                struct err *err)
{
    if (ctx->json) {
        json_t *saved = json_array();
        for (size_t i = 0; i < r->n_saved; i++)
            json_array_append_new(saved, json_string(r->saved[i]));
        json_object_update_new(
            info, json_pack("{s:i, s:f, s:o, s:o, s:i, s:i}", "rank", (int)r->factors.max_rank,
                            "loss", combine_loss(r->factors.discarded2, r->factors.total2),
                            "modules", made_modules_json(&r->factors), "modules_to_save", saved,
                            "biases", (int)r->n_biases, "unchanged", (int)r->n_same));
        cmd_print_json(json_incref(info));
        return 0;
    }
    if (made_print_id(ctx, info))
        return 0;
    int rc = made_print_modules(&r->factors, err);
    for (size_t i = 0; i < r->n_saved; i++)
        printf("%s %s", i ? "," : "whole, in modules_to_save:", r->saved[i]);
    if (r->n_saved)
        putchar('\n');
    if (r->n_biases)
        printf("%zu biases differ and are replaced\n", r->n_biases);
    printf("%zu weights do not differ\n", r->n_same);
    made_print(info);
    return rc;
}

static int extract(struct cmd_context *ctx, struct store *s, const struct side *base,
                   const struct side *tuned, struct err *err)
{
    const char *base_name = base->ref.in_store && *base->ref.name ? base->ref.name : base_ref;
    const struct extract_options opt = {.rank = (uint32_t)rank,
                                        .energy = energy,
                                        .base_name = base_name,
                                        .n_threads = (unsigned)n_threads,
                                        .stop = cmd_interrupted};
    struct adapter *a = NULL;
    struct extract_report *r = NULL;
    json_t *info = json_object(), *lineage = lineage_of(base, tuned);
    struct strbuf source;
    strbuf_init(&source);
    strbuf_addf(&source, "lora extract --base %s --tuned %s", base_ref, tuned_ref);
    int rc = info && lineage && !source.failed ? 0 : err_set(err, ERR_NO_MEMORY, "no memory");
    if (!rc)
        rc = extract_adapter(&a, &r, base->folder, tuned->folder, &opt, err);
    const struct made_options made = {.name = name,
                                      .output = output,
                                      .base_id = base->ref.in_store ? base->ref.id : NULL,
                                      .base_folder = base->folder,
                                      .source = strbuf_text(&source),
                                      .lineage = lineage};
    if (!rc)
        rc = made_put(ctx, s, a, &made, info, err);
    if (!rc)
        rc = tell(ctx, r, info, err);
    extract_report_free(r);
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
    struct side base = {0}, tuned = {0};
    int rc = check_usage(err);
    if (!rc)
        rc = made_check(ctx, &made, err);
    if (!rc)
        rc = name ? cmd_store_open(ctx, true, &s, err) : cmd_store_open_if_there(ctx, &s, err);
    if (!rc)
        rc = find_side(&base, s, base_ref, err);
    if (!rc)
        rc = find_side(&tuned, s, tuned_ref, err);
    if (!rc)
        rc = extract(ctx, s, &base, &tuned, err);
    release_side(&base);
    release_side(&tuned);
    store_close(s);
    return rc;
}

static const struct option options[] = {
    {.long_name = "base",
     .type = OPTION_STRING,
     .value = &base_ref,
     .value_name = "REF",
     .help = "The model that the tuned one was made of."},
    {.long_name = "tuned",
     .type = OPTION_STRING,
     .value = &tuned_ref,
     .value_name = "REF",
     .help = "The tuned model: a base of the store, or its folder."},
    MADE_SIZE_ROWS(
        &rank, "The rank of every linear weight that differs.", &energy, &energy_given,
        "The lowest ranks that keep this share of each difference's squared norm, as 0.99."),
    MADE_PLACE_ROWS(&name, "The adapter's name in the store.", &output),
    MADE_THREADS_ROW(&n_threads),
    CMD_LOCK_TIMEOUT_ROW,
    {0},
};

const struct command command_extract = {
    .name = "extract",
    .summary = "an adapter out of a base and a model that was tuned from it",
    .description =
        "Every linear weight that differs becomes a pair of factors: the leading singular values\n"
        "of tuned - base, large ones by subspace iteration whose residual is printed. Embeddings,\n"
        "norms, routers and heads of another size that differ are kept whole, in modules_to_save,\n"
        "biases are replaced; nothing that differs is dropped. Weights are read in tiles: memory\n"
        "does not grow with the model.",
    .examples = "lora extract --base llama --tuned ./my-llama --rank 64 --name my-delta\n"
                "lora extract --base ./base --tuned ./tuned --energy 0.99 --output ./delta",
    .max_args = 0,
    .options = options,
    .run = run,
};
