#include "cmd/merge_base.h"

#include <stdlib.h>
#include <string.h>

#include "cmd/progress.h"
#include "cmd/table.h"
#include "kernels/kernels.h"
#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/adapter_file.h"
#include "libcore/merge/check.h"
#include "libcore/merge/into_base.h"
#include "store/manifest.h"

static const double SWALLOWED = 0.5; // share of a delta lost to rounding that is worth a warning

struct session {
    struct cmd_context *ctx;
    const struct merge_inputs *in;
    const struct merge_base_options *opt;
    struct merge_options plan_options;
    struct merge_plan *plan;
    const char **names, **paths; // in the plan's order
    struct recipe_origin origin;
    struct progress *progress;
    struct backend *device; // NULL: the processors alone
    json_t *manifest;       // of a base of the store; NULL
    struct merge_companion *companions;
    size_t n_companions;
    struct arena arena;
};

static int no_memory(struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "merge: no memory");
}

// ---- planning -----------------------------------------------------------------------------------

static int set_origin(struct session *x, struct err *err)
{
    size_t n = x->plan->n_adapters;
    x->names = arena_array(&x->arena, n + 1, sizeof *x->names);
    x->paths = arena_array(&x->arena, n + 1, sizeof *x->paths);
    if (!x->names || !x->paths)
        return no_memory(err);
    for (size_t i = 0; i < n; i++) {
        for (size_t k = 0; k < x->in->n; k++) {
            if (x->in->items[k].adapter != x->plan->adapters[i].adapter)
                continue;
            x->names[i] = x->in->items[k].name;
            x->paths[i] = x->in->items[k].path;
        }
    }
    x->origin = (struct recipe_origin){.version = cmd_version(),
                                       .base_name = x->in->base_name,
                                       .base_folder = x->in->base_folder,
                                       .names = x->names,
                                       .paths = x->paths,
                                       .options = &x->plan_options};
    return 0;
}

static int open_plan(struct session *x, bool survey, struct err *err)
{
    struct merge_adapter *adapters = arena_array(&x->arena, x->in->n + 1, sizeof *adapters);
    if (!adapters)
        return no_memory(err);
    for (size_t i = 0; i < x->in->n; i++)
        adapters[i] = (struct merge_adapter){x->in->items[i].adapter, x->in->items[i].weight};
    x->plan_options = (struct merge_options){.float8 = x->opt->float8_to_bf16 ? MERGE_FLOAT8_BF16
                                                                              : MERGE_FLOAT8_KEEP,
                                             .resize_embeddings = x->opt->resize_embeddings,
                                             .headers_only = survey,
                                             .n_threads = x->opt->n_threads};
    int rc = survey ? merge_plan_survey(&x->plan, x->in->base_folder, adapters, x->in->n,
                                        &x->plan_options, err)
                    : merge_plan_open(&x->plan, x->in->base_folder, adapters, x->in->n,
                                      &x->plan_options, err);
    if (!rc)
        rc = set_origin(x, err);
    if (!rc)
        rc = merge_inputs_check_base(x->in, x->plan->fingerprint, err);
    if (!rc && x->opt->recipe && strcmp(x->opt->recipe->fingerprint, x->plan->fingerprint) != 0)
        rc = err_set(err, ERR_REFUSED, "%s: fingerprint %.12s, the recipe wants %.12s",
                     x->in->base_folder, x->plan->fingerprint, x->opt->recipe->fingerprint);
    return rc;
}

static void warn_all(const json_t *warnings)
{
    size_t i;
    json_t *text;
    json_array_foreach(warnings, i, text)
    {
        fprintf(stderr, "warning: %s\n", json_string_value(text));
    }
}

static void print_plan(const struct session *x, double seconds)
{
    const struct merge_plan *p = x->plan;
    char disk[TABLE_CELL_BYTES], ram[TABLE_CELL_BYTES];
    printf("base       %s  %.12s  %s\n", x->in->base_name, p->fingerprint, x->in->base_folder);
    for (size_t i = 0; i < p->n_adapters; i++) {
        char kinds[96];
        printf("adapter    %s  %.12s  weight %g  %s\n", x->names[i],
               p->adapters[i].adapter->content_id, p->adapters[i].weight,
               adapter_kinds_text(p->adapters[i].adapter->kinds, kinds, sizeof kinds));
    }
    printf("tensors    %zu, %zu of them change%s\n", p->n_tensors, p->n_touched,
           p->untied ? "; lm_head gets its own" : "");
    printf("disk       %s\nmemory     %s beside the adapters\ntime       about %.2g s\n",
           table_bytes(disk, p->write_bytes), table_bytes(ram, p->ram_bytes), seconds);
    size_t i;
    json_t *text;
    json_array_foreach(p->refusals, i, text)
    {
        printf("refused    %s\n", json_string_value(text));
    }
}

static int write_plan(struct session *x, struct err *err)
{
    json_t *recipe = recipe_of_plan(x->plan, &x->origin, true);
    if (!recipe)
        return no_memory(err);
    char *text = json_dumps(recipe, JSON_INDENT(2));
    bool to_stdout = strcmp(x->opt->plan, "-") == 0;
    int rc = text ? 0 : no_memory(err);
    if (!rc && !to_stdout && file_exists(x->opt->plan) && !x->ctx->force)
        rc = err_set(err, ERR_EXISTS, "%s: is there already; --force overwrites it", x->opt->plan);
    if (!rc && to_stdout)
        printf("%s\n", text);
    else if (!rc)
        rc = file_write_atomic(x->opt->plan, text, strlen(text), err);
    if (!rc && !to_stdout && x->ctx->json) {
        json_object_del(recipe, "schema");
        cmd_print_json(json_incref(recipe));
    } else if (!rc && !to_stdout) {
        warn_all(x->plan->warnings);
        print_plan(x,
                   json_number_value(json_object_get(json_object_get(recipe, "plan"), "seconds")));
    }
    free(text);
    json_decref(recipe);
    size_t n = json_array_size(x->plan->refusals);
    if (rc || !n)
        return rc;
    return err_set(err, ERR_REFUSED, "%zu refused: %s", n,
                   json_string_value(json_array_get(x->plan->refusals, 0)));
}

// ---- an adapter's own tokenizer and template ----------------------------------------------------

static bool is_text_file(const char *name)
{
    return checkpoint_is_companion(name) && strcmp(name, "config.json") != 0 &&
           strcmp(name, "generation_config.json") != 0 && strncmp(name, "README", 6) != 0 &&
           strncmp(name, "LICENSE", 7) != 0 && strncmp(name, "USE_POLICY", 10) != 0;
}

static int add_companion(struct session *x, const char *name, const char *path, struct err *err)
{
    struct merge_companion *more = arena_array(&x->arena, x->n_companions + 1, sizeof *more);
    if (!more)
        return no_memory(err);
    if (x->n_companions)
        memcpy(more, x->companions, x->n_companions * sizeof *more);
    more[x->n_companions].name = arena_strdup(&x->arena, name);
    more[x->n_companions].path = arena_strdup(&x->arena, path);
    x->companions = more;
    return more[x->n_companions].name && more[x->n_companions++].path ? 0 : no_memory(err);
}

static int stored_companions(struct session *x, const char *id, struct err *err)
{
    json_t *m, *file;
    size_t i;
    int rc = store_manifest(x->in->store, id, &m, err);
    if (rc)
        return rc;
    json_array_foreach(json_object_get(m, "files"), i, file)
    {
        const char *name = json_string_value(json_object_get(file, "path"));
        char *path = NULL;
        if (rc || !name || !is_text_file(name))
            continue;
        rc = store_file(x->in->store, id, name, &path, err);
        if (!rc)
            rc = add_companion(x, name, path, err);
        sys_free(path);
    }
    json_decref(m);
    return rc;
}

static int path_companions(struct session *x, const char *path, struct err *err)
{
    struct peft_files files;
    int rc = adapter_files_list(&files, path, err);
    if (rc)
        return rc;
    for (size_t i = 0; !rc && i < files.n; i++) {
        if (is_text_file(files.items[i].name))
            rc = add_companion(x, files.items[i].name, files.items[i].path, err);
    }
    peft_files_release(&files);
    return rc;
}

/* They travel with the only adapter; of several, with none: whose would be right? */
static int find_companions(struct session *x, struct err *err)
{
    size_t found = 0;
    for (size_t i = 0; i < x->in->n; i++) {
        const struct merge_input *in = &x->in->items[i];
        size_t before = x->n_companions;
        if (in->weight == 0)
            continue;
        int rc = in->path ? path_companions(x, in->path, err)
                          : stored_companions(x, in->adapter->content_id, err);
        if (rc)
            return rc;
        found += x->n_companions > before;
    }
    if (found > 1) {
        fprintf(stderr, "warning: several adapters bring a tokenizer or template; the base's are "
                        "kept\n");
        x->n_companions = 0;
    }
    return 0;
}

// ---- merging ------------------------------------------------------------------------------------

static int on_bytes(void *arg, uint64_t bytes)
{
    struct session *x = arg;
    progress_add(x->progress, bytes);
    return cmd_interrupted() ? ERR_INTERRUPTED : 0;
}

/* A base whose digests the store has is checked while it is read. */
static int verify(void *arg, const char *path, struct err *err)
{
    struct session *x = arg;
    struct manifest_file f;
    struct digest want, got;
    if (!manifest_find_file(x->manifest, file_base_name(path), &f) ||
        !digest_parse(f.digest, &want))
        return 0;
    int rc = digest_file(path, &got, NULL, err);
    if (rc || digest_equal(&want, &got))
        return rc;
    return err_set(err, ERR_CORRUPT, "%s: its digest is not the one that the store recorded", path);
}

static bool has_digests(const json_t *manifest)
{
    struct manifest_file f;
    for (size_t i = 0; i < manifest_n_files(manifest); i++) {
        if (manifest_file_at(manifest, i, &f, NULL) == 0 && *f.digest)
            return true;
    }
    return false;
}

static void hint_for(const struct session *x, int rc)
{
    if (rc == ERR_EXISTS)
        cmd_hint("--force replaces it");
    else if (rc == ERR_IO && !x->opt->resume)
        cmd_hint("with --resume what is done is kept, and the next run with --resume goes on");
    else if (rc == ERR_REFUSED)
        cmd_hint("`lora inspect REF --deep` shows what the adapter weighs, --plan - what it meets");
}

/* The processors need no back end: the loops of the merge are their own. */
static int open_device(struct session *x, struct err *err)
{
    const struct backend_options opt = {.device = x->opt->device};
    if (strcmp(x->opt->device, "cpu") == 0)
        return 0;
    int rc = kernels_open(&x->device, &opt, NULL, 0, err);
    if (!rc && strcmp(x->device->ops->name, "cpu") == 0) { // auto, and no card
        x->device->ops->close(x->device);
        x->device = NULL;
    }
    return rc;
}

static int merge(struct session *x, json_t **recipe, struct err *err)
{
    int rc = find_companions(x, err);
    if (!rc && *x->in->base_id)
        rc = store_manifest(x->in->store, x->in->base_id, &x->manifest, err);
    if (rc)
        return rc;
    struct merge_run run = {.output = x->opt->output,
                            .resume = x->opt->resume,
                            .force = x->ctx->force,
                            .n_threads = x->opt->n_threads,
                            .device = x->device,
                            .companions = x->companions,
                            .n_companions = x->n_companions,
                            .origin = &x->origin,
                            .on_bytes = on_bytes,
                            .arg = x,
                            .verify = x->manifest && has_digests(x->manifest) ? verify : NULL,
                            .verify_arg = x};
    x->progress = progress_open(x->ctx->progress, "merge", x->plan->write_bytes);
    rc = merge_into_base(x->plan, &run, recipe, err);
    progress_free(x->progress);
    if (rc)
        hint_for(x, rc);
    return rc;
}

static double number(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

static void warn_swallowed(const json_t *report)
{
    double lost = number(report, "lost_share");
    if (lost > SWALLOWED)
        fprintf(stderr,
                "warning: rounding to the base's type swallows %.0f %% of what the adapters add "
                "(%.1f %% of the weights changed); serve them beside the base, or merge into a "
                "float32 base\n",
                100 * lost, 100 * number(report, "changed_share"));
}

static void print_report(const struct session *x, const json_t *recipe)
{
    const json_t *report = json_object_get(recipe, "report");
    char bytes[TABLE_CELL_BYTES];
    warn_all(x->plan->warnings);
    warn_swallowed(report);
    if (x->ctx->quiet) {
        puts(x->opt->output);
        return;
    }
    printf("merged into %s: %s  %s, %zu tensors, %zu changed\n", x->in->base_name, x->opt->output,
           table_bytes(bytes, x->plan->write_bytes), x->plan->n_tensors, x->plan->n_touched);
    printf("%.2f %% of their weights changed, by %.3g of the base's norm; rounding lost %.2f %% of "
           "the change\n",
           100 * number(report, "changed_share"), number(report, "relative_change"),
           100 * number(report, "lost_share"));
}

static int check(struct session *x, json_t *recipe, struct err *err)
{
    struct merge_check_result r;
    int rc = merge_check(x->plan, x->opt->output, &r, err);
    if (rc)
        return rc;
    json_object_set_new(recipe, "check",
                        json_pack("{s:I, s:I, s:f}", "values", (json_int_t)r.n_values,
                                  "unchanged_tensors", (json_int_t)r.n_equal, "delta_error",
                                  recipe_ratio(r.off2, r.delta2)));
    if (!x->ctx->json && !x->ctx->quiet)
        printf("checked: %llu values are the nearest to base plus delta, %llu other tensors equal "
               "the base's\n",
               (unsigned long long)r.n_values, (unsigned long long)r.n_equal);
    return 0;
}

static int run_merge(struct session *x, struct err *err)
{
    json_t *recipe = NULL;
    int rc = open_plan(x, false, err);
    if (!rc)
        rc = open_device(x, err);
    if (!rc)
        rc = merge(x, &recipe, err);
    if (!rc && !x->ctx->json)
        print_report(x, recipe);
    if (!rc && x->opt->check)
        rc = check(x, recipe, err);
    if (!rc && x->ctx->json) {
        json_object_del(recipe, "schema");
        json_object_set_new(recipe, "output", json_string(x->opt->output));
        cmd_print_json(json_incref(recipe));
    }
    json_decref(recipe);
    return rc;
}

int merge_base_run(struct cmd_context *ctx, const struct merge_inputs *in,
                   const struct merge_base_options *opt, struct err *err)
{
    struct session x = {.ctx = ctx, .in = in, .opt = opt};
    arena_init(&x.arena);
    int rc = 0;
    if (opt->plan) {
        rc = open_plan(&x, true, err);
        if (!rc)
            rc = write_plan(&x, err);
    } else {
        rc = run_merge(&x, err);
    }
    if (x.device)
        x.device->ops->close(x.device);
    merge_plan_free(x.plan);
    json_decref(x.manifest);
    arena_release(&x.arena);
    return rc;
}
