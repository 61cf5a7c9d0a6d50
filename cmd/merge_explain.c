#include "cmd/merge_explain.h"

#include <string.h>

#include "cmd/table.h"
#include "libcore/base/sys.h"
#include "libcore/merge/explain.h"

enum { SHOWN_MODULES = 10 };

static double number(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

static double entry(const json_t *matrix, size_t i, size_t j)
{
    return json_number_value(json_array_get(json_array_get(matrix, i), j));
}

static void print_adapters(const json_t *info)
{
    size_t i;
    json_t *a;
    printf("%-28s %8s %6s %10s  %s\n", "ADAPTER", "WEIGHT", "RANK", "NORM", "KINDS");
    json_array_foreach(json_object_get(info, "adapters"), i, a)
    {
        printf("%-28s %8g %6d %10.4g  %s\n", json_string_value(json_object_get(a, "name")),
               number(a, "weight"), (int)number(a, "rank"), number(a, "norm"),
               json_string_value(json_object_get(a, "kinds")));
    }
}

static void print_pairs(const json_t *info)
{
    const json_t *adapters = json_object_get(info, "adapters");
    const json_t *cosines = json_object_get(info, "cosines");
    const json_t *conflicts = json_object_get(info, "conflicts");
    size_t n = json_array_size(adapters);
    if (n > 1)
        printf("\n%-44s %8s %14s\n", "PAIR", "COSINE", "SIGN CONFLICTS");
    for (size_t i = 0; i < n; i++) {
        for (size_t j = i + 1; j < n; j++) {
            char pair[256];
            snprintf(pair, sizeof pair, "%s, %s",
                     json_string_value(json_object_get(json_array_get(adapters, i), "name")),
                     json_string_value(json_object_get(json_array_get(adapters, j), "name")));
            printf("%-44s %8.4f %12.1f %%\n", pair, entry(cosines, i, j),
                   100 * entry(conflicts, i, j));
        }
    }
}

static void print_methods(const json_t *info)
{
    size_t i;
    json_t *m;
    printf("\nweighted sum: norm %.4g\n%-10s %6s %16s\n", number(info, "norm_of_sum"), "METHOD",
           "RANK", "RELATIVE ERROR");
    json_array_foreach(json_object_get(info, "methods"), i, m)
    {
        printf("%-10s %6d %16.3g\n", json_string_value(json_object_get(m, "method")),
               (int)number(m, "rank"), number(m, "relative_error"));
    }
}

/* The modules in which the first adapter has most of its energy. */
static void print_modules(const json_t *info)
{
    const json_t *modules = json_object_get(info, "modules");
    size_t n = json_array_size(modules),
           n_adapters = json_array_size(json_object_get(info, "adapters"));
    bool *shown = sys_calloc(n + 1, sizeof *shown);
    printf("\n%-44s  ENERGY\n", "MODULE");
    for (size_t row = 0; shown && row < SHOWN_MODULES && row < n; row++) {
        size_t best = n;
        for (size_t i = 0; i < n; i++) {
            const json_t *shares = json_object_get(json_array_get(modules, i), "energy_shares");
            const json_t *most =
                best < n ? json_object_get(json_array_get(modules, best), "energy_shares") : NULL;
            if (!shown[i] && (!most || json_number_value(json_array_get(shares, 0)) >
                                           json_number_value(json_array_get(most, 0))))
                best = i;
        }
        shown[best] = true;
        const json_t *m = json_array_get(modules, best);
        printf("%-44s ", json_string_value(json_object_get(m, "name")));
        for (size_t k = 0; k < n_adapters; k++)
            printf(" %5.1f %%",
                   100 * json_number_value(json_array_get(json_object_get(m, "energy_shares"), k)));
        putchar('\n');
    }
    if (n > SHOWN_MODULES)
        printf("… and %zu more (--json has all)\n", n - SHOWN_MODULES);
    sys_free(shown);
}

int merge_explain_run(struct cmd_context *ctx, const struct merge_inputs *in, struct err *err)
{
    struct merge_adapter *adapters = sys_calloc(in->n + 1, sizeof *adapters);
    const char **names = sys_calloc(in->n + 1, sizeof *names);
    json_t *info = NULL;
    int rc = adapters && names ? 0 : err_set(err, ERR_NO_MEMORY, "explain: no memory");
    for (size_t i = 0; !rc && i < in->n; i++) {
        adapters[i] = (struct merge_adapter){in->items[i].adapter, in->items[i].weight};
        names[i] = in->items[i].name;
    }
    if (!rc)
        rc = explain_adapters(&info, adapters, names, in->n, err);
    if (!rc && ctx->json) {
        cmd_print_json(json_incref(info));
    } else if (!rc) {
        print_adapters(info);
        print_pairs(info);
        print_methods(info);
        print_modules(info);
    }
    json_decref(info);
    sys_free(adapters);
    sys_free(names);
    return rc;
}
