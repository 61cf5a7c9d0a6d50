/*
 * lora diff: two adapters, module by module.
 */
#include <string.h>

#include "cmd/cmd.h"
#include "cmd/merge_inputs.h"
#include "cmd/table.h"
#include "libcore/merge/explain.h"

static double number(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

static const char *text(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

static void print_row(struct table *t, const json_t *m)
{
    char name[256], ranks[32], a[32], b[32], cosine[32], off[32];
    const json_t *c = json_object_get(m, "cosine");
    snprintf(name, sizeof name, "%s%s%s", text(m, "name"),
             strcmp(text(m, "parameter"), "weight") ? "." : "",
             strcmp(text(m, "parameter"), "weight") ? text(m, "parameter") : "");
    snprintf(ranks, sizeof ranks, "%d, %d", (int)number(m, "rank_a"), (int)number(m, "rank_b"));
    snprintf(a, sizeof a, "%.4g", number(m, "norm_a"));
    snprintf(b, sizeof b, "%.4g", number(m, "norm_b"));
    snprintf(cosine, sizeof cosine, json_is_number(c) ? "%.4f" : "-", json_number_value(c));
    snprintf(off, sizeof off, "%.4g", number(m, "norm_of_difference"));
    const char *const cells[] = {name, text(m, "state"), ranks, a, b, cosine, off};
    table_row(t, cells);
}

static int print(const json_t *info, struct err *err)
{
    static const char *const headings[] = {"MODULE",  "STATE",   "RANKS",     ">NORM A",
                                           ">NORM B", ">COSINE", ">NORM A-B", NULL};
    struct table *t = table_open(headings);
    size_t i;
    json_t *m;
    if (!t)
        return err_set(err, ERR_NO_MEMORY, "diff: no memory");
    json_array_foreach(json_object_get(info, "modules"), i, m)
    {
        if (strcmp(text(m, "state"), "same") != 0)
            print_row(t, m);
    }
    size_t n_same = (size_t)number(info, "n_same");
    if (n_same < json_array_size(json_object_get(info, "modules")))
        table_print(t, stdout);
    table_free(t);
    printf("%zu modules are the same, %d differ, %d only in A, %d only in B\n", n_same,
           (int)number(info, "n_differ"), (int)number(info, "n_only_a"),
           (int)number(info, "n_only_b"));
    printf("norms %.4g and %.4g, cosine %.4f, norm of the difference %.4g\n",
           number(info, "norm_a"), number(info, "norm_b"), number(info, "cosine"),
           number(info, "norm_of_difference"));
    return 0;
}

static int run(struct cmd_context *ctx, struct err *err)
{
    struct store *s = NULL;
    struct merge_inputs in = {0};
    json_t *info = NULL;
    int rc = cmd_store_open_if_there(ctx, &s, err);
    if (!rc)
        rc = merge_inputs_read(&in, s, ctx->args, 2, err);
    if (!rc)
        rc = explain_difference(&info, in.items[0].adapter, in.items[1].adapter, err);
    if (!rc && ctx->json) {
        json_object_set_new(info, "a", json_string(in.items[0].adapter->content_id));
        json_object_set_new(info, "b", json_string(in.items[1].adapter->content_id));
        cmd_print_json(json_incref(info));
    } else if (!rc) {
        rc = print(info, err);
    }
    json_decref(info);
    merge_inputs_release(&in);
    store_close(s);
    return rc;
}

static const struct option options[] = {{0}};

const struct command command_diff = {
    .name = "diff",
    .arguments = "A B",
    .summary = "how two adapters differ",
    .description =
        "Which modules differ, the cosine of their deltas, and how much of each is not in the\n"
        "other; from the factors, no base is needed. What is not made of factors (whole weights,\n"
        "replaced rows, biases, DoRA's magnitudes) is compared for equality only.",
    .examples = "lora diff support-bot support-bot:v1\nlora diff ./run-1 ./run-2 --json",
    .min_args = 2,
    .max_args = 2,
    .options = options,
    .run = run,
};
