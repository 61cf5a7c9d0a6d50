#include "libcore/merge/explain_impl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/adapter/stats.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"

enum { MAX_ADAPTERS = 32, SAMPLED_ROWS = 32, N_RANKS = 9 };
static const uint32_t ranks[N_RANKS] = {1, 2, 4, 8, 16, 32, 64, 128, 256};

// ---- the spectrum of a weighted sum -------------------------------------------------------------

struct stacked {
    const struct factors *f;
    const double *weights;
    size_t n_adapters, rank; // of all together
};

/* Gram matrices R x R of stacked A and of stacked weight * scale * B, of expert e. */
static void stacked_grams(const struct stacked *s, size_t e, double *ga, double *gb, double *g)
{
    size_t row = 0;
    for (size_t i = 0; i < s->n_adapters; i++) {
        size_t col = 0;
        const struct factors *x = &s->f[i];
        for (size_t j = 0; j < s->n_adapters; j++) {
            const struct factors *y = &s->f[j];
            double w = s->weights[i] * x->scale * s->weights[j] * y->scale;
            if (x->r && y->r)
                explain_b_gram(x, y, e, g);
            for (size_t k = 0; k < x->r; k++) {
                for (size_t l = 0; l < y->r; l++) {
                    ga[(row + k) * s->rank + col + l] = explain_a_dot(x, y, e, k, l);
                    gb[(row + k) * s->rank + col + l] = w * g[k * y->r + l];
                }
            }
            col += y->r;
        }
        row += x->r;
    }
}

/* Lower Cholesky factor in place; a pivot lost in rounding makes its column zero. */
static void cholesky(double *g, size_t n)
{
    double largest = 0;
    for (size_t i = 0; i < n; i++)
        largest = fmax(largest, g[i * n + i]);
    for (size_t j = 0; j < n; j++) {
        double pivot = g[j * n + j];
        for (size_t k = 0; k < j; k++)
            pivot -= g[j * n + k] * g[j * n + k];
        double root = pivot > largest * (double)n * 2.3e-16 ? sqrt(pivot) : 0;
        g[j * n + j] = root;
        for (size_t i = j + 1; i < n; i++) {
            double v = g[i * n + j];
            for (size_t k = 0; k < j; k++)
                v -= g[i * n + k] * g[j * n + k];
            g[i * n + j] = root > 0 ? v / root : 0;
            g[j * n + i] = 0;
        }
    }
}

/* out = l^T g l; t: scratch; all n x n. */
static void congruence(const double *l, const double *g, size_t n, double *t, double *out)
{
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < n; j++) {
            double v = 0;
            for (size_t k = j; k < n; k++)
                v += g[i * n + k] * l[k * n + j];
            t[i * n + j] = v;
        }
    }
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j <= i; j++) {
            double v = 0;
            for (size_t k = i; k < n; k++)
                v += l[k * n + i] * t[k * n + j];
            out[i * n + j] = out[j * n + i] = v;
        }
    }
}

/* Adds the energy beyond each of `ranks` to lost[], and all of it to *total. */
static int add_spectrum(const struct stacked *s, size_t n_experts, double *lost, double *total,
                        struct err *err)
{
    size_t n = s->rank;
    double *work = sys_malloc((5 * n * n + 2 * n + 1) * sizeof *work);
    if (!work)
        return explain_no_memory(err);
    double *ga = work, *gb = ga + n * n, *t = gb + n * n, *core = t + n * n, *g = core + n * n;
    double *values = g + n * n;
    for (size_t e = 0; n && e < n_experts; e++) {
        stacked_grams(s, e, ga, gb, g);
        cholesky(gb, n);
        congruence(gb, ga, n, t, core);
        stats_eigenvalues(core, n, values, values + n); // ascending
        for (size_t i = 0; i < n; i++) {
            double energy = fmax(values[n - 1 - i], 0);
            *total += energy;
            for (size_t k = 0; k < N_RANKS; k++)
                lost[k] += i >= ranks[k] ? energy : 0;
        }
    }
    sys_free(work);
    return 0;
}

// ---- sign conflicts -----------------------------------------------------------------------------

static void delta_row(const struct factors *f, size_t e, size_t o, double *row)
{
    memset(row, 0, f->in * sizeof *row);
    for (size_t k = 0; k < f->r; k++) {
        double b = f->scale * f->b[(o * f->r + k) * f->n + e];
        const double *a = f->a + (e * f->r + k) * f->in;
        for (size_t j = 0; j < f->in; j++)
            row[j] += b * a[j];
    }
}

/* Values of sampled rows that both change, and those where the signs differ. */
static int add_conflicts(const struct factors *x, const struct factors *y, double *both,
                         double *conflicts, struct err *err)
{
    double *p = sys_malloc((2 * x->in + 1) * sizeof *p), *q = p ? p + x->in : NULL;
    if (!p)
        return explain_no_memory(err);
    size_t n = x->n * x->out, step = n > SAMPLED_ROWS ? n / SAMPLED_ROWS : 1;
    for (size_t i = 0; i < n; i += step) {
        delta_row(x, i / x->out, i % x->out, p);
        delta_row(y, i / x->out, i % x->out, q);
        for (size_t j = 0; j < x->in; j++) {
            *both += p[j] != 0 && q[j] != 0;
            *conflicts += p[j] * q[j] < 0;
        }
    }
    sys_free(p);
    return 0;
}

// ---- one module of several adapters -------------------------------------------------------------

struct module_result {
    const char *name, *parameter;
    double *dots, *both, *conflicts; // [n, n] of the explainer's values
    double lost[N_RANKS], total;
    struct err err;
};

struct explainer {
    const struct merge_adapter *adapters;
    double weights[MAX_ADAPTERS];
    size_t n;
    struct module_result *modules;
    size_t n_modules;
    double *values; // what the modules' matrices lie in
};

static int compare_pairs(struct explainer *x, struct module_result *m, const struct factors *f,
                         double *g)
{
    int rc = 0;
    for (size_t i = 0; !rc && i < x->n; i++) {
        for (size_t j = i; !rc && j < x->n; j++) {
            if (!f[i].r || !f[j].r)
                continue;
            m->dots[i * x->n + j] = m->dots[j * x->n + i] = explain_factors_dot(&f[i], &f[j], g);
            if (j > i)
                rc = add_conflicts(&f[i], &f[j], &m->both[i * x->n + j],
                                   &m->conflicts[i * x->n + j], &m->err);
        }
    }
    return rc;
}

static void explain_module(struct explainer *x, struct module_result *m)
{
    struct factors f[MAX_ADAPTERS] = {0};
    struct stacked s = {f, x->weights, x->n, 0};
    const struct factors *first = NULL;
    size_t largest = 0;
    int rc = 0;
    for (size_t i = 0; !rc && i < x->n; i++) {
        const struct adapter_module *a =
            adapter_find(x->adapters[i].adapter, m->name, m->parameter);
        rc = explain_load(&f[i], a, &m->err);
        if (!rc && f[i].r && first && !explain_same_shape(first, &f[i]))
            rc = explain_shapes_differ(a, &m->err);
        if (!rc && f[i].r)
            first = first ? first : &f[i];
        s.rank += f[i].r;
        largest = f[i].r > largest ? f[i].r : largest;
    }
    double *g = rc ? NULL : sys_malloc((largest * largest + 1) * sizeof *g);
    if (!rc && !g)
        rc = explain_no_memory(&m->err);
    if (!rc)
        rc = compare_pairs(x, m, f, g);
    if (!rc && first)
        add_spectrum(&s, first->n, m->lost, &m->total, &m->err);
    sys_free(g);
    for (size_t i = 0; i < x->n; i++)
        explain_release(&f[i]);
}

static void explain_range(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    struct explainer *x = arg;
    (void)thread_idx;
    for (size_t i = begin; i < end; i++)
        explain_module(x, &x->modules[i]);
}

// ---- the list of modules ------------------------------------------------------------------------

static int by_name(const void *a, const void *b)
{
    const struct module_result *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    return order ? order : strcmp(x->parameter, y->parameter);
}

static int list_modules(struct explainer *x, struct err *err)
{
    size_t n = 0, kept = 0;
    for (size_t i = 0; i < x->n; i++)
        n += x->adapters[i].adapter->n_modules;
    x->modules = sys_calloc(n + 1, sizeof *x->modules);
    if (!x->modules)
        return explain_no_memory(err);
    n = 0;
    for (size_t i = 0; i < x->n; i++) {
        const struct adapter *a = x->adapters[i].adapter;
        for (size_t k = 0; k < a->n_modules; k++) {
            if (!a->modules[k].rank)
                continue;
            x->modules[n].name = a->modules[k].name;
            x->modules[n++].parameter = a->modules[k].parameter;
        }
    }
    qsort(x->modules, n, sizeof *x->modules, by_name);
    for (size_t i = 0; i < n; i++) {
        if (!kept || by_name(&x->modules[kept - 1], &x->modules[i]) != 0)
            x->modules[kept++] = x->modules[i];
    }
    x->n_modules = kept;
    size_t n2 = x->n * x->n;
    x->values = sys_calloc(3 * n2 * kept + 1, sizeof *x->values);
    if (!x->values)
        return explain_no_memory(err);
    for (size_t i = 0; i < kept; i++) {
        x->modules[i].dots = x->values + 3 * n2 * i;
        x->modules[i].both = x->modules[i].dots + n2;
        x->modules[i].conflicts = x->modules[i].both + n2;
    }
    return 0;
}

// ---- telling ------------------------------------------------------------------------------------

static double share(double part, double whole)
{
    return whole > 0 ? part / whole : 0;
}

static json_t *matrix_json(const struct explainer *x, const double *dots, const double *both,
                           const double *conflicts)
{
    json_t *rows = json_array();
    for (size_t i = 0; i < x->n; i++) {
        json_t *row = json_array();
        for (size_t j = 0; j < x->n; j++) {
            size_t at = i * x->n + j, pair = i < j ? at : j * x->n + i;
            double v = dots ? explain_cosine(dots[at], dots[i * x->n + i], dots[j * x->n + j])
                            : share(conflicts[pair], both[pair]);
            json_array_append_new(row, json_real(v));
        }
        json_array_append_new(rows, row);
    }
    return rows;
}

static json_t *ranks_json(const double *lost, double total)
{
    json_t *rows = json_array();
    for (size_t k = 0; k < N_RANKS; k++) {
        json_array_append_new(rows, json_pack("{s:i, s:f, s:f}", "rank", (int)ranks[k],
                                              "energy_kept", 1 - share(lost[k], total),
                                              "relative_error", sqrt(share(lost[k], total))));
        if (share(lost[k], total) < 1e-15)
            break;
    }
    return rows;
}

static json_t *module_json(const struct explainer *x, const struct module_result *m,
                           const double *totals)
{
    json_t *norms = json_array(), *shares = json_array();
    for (size_t i = 0; i < x->n; i++) {
        double d = m->dots[i * x->n + i];
        json_array_append_new(norms, json_real(sqrt(fmax(d, 0))));
        json_array_append_new(shares, json_real(share(d, totals[i * x->n + i])));
    }
    return json_pack(
        "{s:s, s:s, s:o, s:o, s:o, s:o, s:o}", "name", m->name, "parameter", m->parameter, "norms",
        norms, "energy_shares", shares, "cosines", matrix_json(x, m->dots, NULL, NULL), "conflicts",
        matrix_json(x, NULL, m->both, m->conflicts), "ranks", ranks_json(m->lost, m->total));
}

static json_t *adapters_json(const struct explainer *x, const char *const *names,
                             const double *totals)
{
    json_t *list = json_array();
    for (size_t i = 0; i < x->n; i++) {
        const struct adapter *a = x->adapters[i].adapter;
        char kinds[96];
        json_array_append_new(list, json_pack("{s:s, s:s, s:f, s:f, s:i, s:s}", "name", names[i],
                                              "id", a->content_id, "weight", x->adapters[i].weight,
                                              "norm", sqrt(fmax(totals[i * x->n + i], 0)), "rank",
                                              (int)a->max_rank, "kinds",
                                              adapter_kinds_text(a->kinds, kinds, sizeof kinds)));
    }
    return list;
}

/* What each way of combining gives up: the exact sum, its best approximation at the usual ranks. */
static json_t *methods_json(const struct explainer *x, const double *lost, double total)
{
    uint32_t sum = 0, largest = 0;
    for (size_t i = 0; i < x->n; i++) {
        uint32_t r = x->adapters[i].adapter->max_rank;
        sum += r;
        largest = r > largest ? r : largest;
    }
    json_t *list = json_array();
    json_array_append_new(list, json_pack("{s:s, s:i, s:f}", "method", "cat", "rank", (int)sum,
                                          "relative_error", 0.0));
    for (size_t k = 0; k < N_RANKS; k++) {
        if (ranks[k] < largest / 2 || ranks[k] >= sum)
            continue;
        json_array_append_new(list,
                              json_pack("{s:s, s:i, s:f}", "method", "svd", "rank", (int)ranks[k],
                                        "relative_error", sqrt(share(lost[k], total))));
    }
    return list;
}

static int tell(struct explainer *x, const char *const *names, json_t **out, struct err *err)
{
    double dots[MAX_ADAPTERS * MAX_ADAPTERS] = {0}, both[MAX_ADAPTERS * MAX_ADAPTERS] = {0};
    double conflicts[MAX_ADAPTERS * MAX_ADAPTERS] = {0}, lost[N_RANKS] = {0}, total = 0;
    for (size_t i = 0; i < x->n_modules; i++) {
        const struct module_result *m = &x->modules[i];
        for (size_t k = 0; k < x->n * x->n; k++) {
            dots[k] += m->dots[k];
            both[k] += m->both[k];
            conflicts[k] += m->conflicts[k];
        }
        for (size_t k = 0; k < N_RANKS; k++)
            lost[k] += m->lost[k];
        total += m->total;
    }
    json_t *modules = json_array();
    for (size_t i = 0; i < x->n_modules; i++)
        json_array_append_new(modules, module_json(x, &x->modules[i], dots));
    *out = json_pack("{s:o, s:o, s:o, s:f, s:o, s:o, s:o}", "adapters",
                     adapters_json(x, names, dots), "cosines", matrix_json(x, dots, NULL, NULL),
                     "conflicts", matrix_json(x, NULL, both, conflicts), "norm_of_sum", sqrt(total),
                     "ranks", ranks_json(lost, total), "methods", methods_json(x, lost, total),
                     "modules", modules);
    return *out ? 0 : explain_no_memory(err);
}

int explain_adapters(json_t **out, const struct merge_adapter *adapters, const char *const *names,
                     size_t n, struct err *err)
{
    struct explainer x = {.adapters = adapters, .n = n};
    struct worker_pool *pool = NULL;
    *out = NULL;
    if (n > MAX_ADAPTERS)
        return err_set(err, ERR_LIMIT, "%zu adapters, at most %d are explained at once", n,
                       MAX_ADAPTERS);
    for (size_t i = 0; i < n; i++)
        x.weights[i] = adapters[i].weight;
    int rc = list_modules(&x, err);
    if (!rc)
        rc = worker_pool_open(&pool, 0, err);
    if (!rc)
        worker_pool_run(pool, x.n_modules, 1, explain_range, &x);
    for (size_t i = 0; !rc && i < x.n_modules; i++) {
        rc = x.modules[i].err.code;
        if (rc && err)
            *err = x.modules[i].err;
    }
    if (!rc)
        rc = tell(&x, names, out, err);
    worker_pool_free(pool);
    sys_free(x.modules);
    sys_free(x.values);
    return rc;
}
