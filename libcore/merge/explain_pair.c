/* Factors of one module, and two adapters compared. */
#include <math.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/merge/explain_impl.h"

int explain_no_memory(struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "explain: no memory");
}

double explain_cosine(double dot, double a2, double b2)
{
    double c = a2 > 0 && b2 > 0 ? dot / sqrt(a2 * b2) : 0;
    return fmin(fmax(c, -1), 1);
}

// ---- factors of one module as float64 -----------------------------------------------------------

int explain_load(struct factors *f, const struct adapter_module *m, struct err *err)
{
    memset(f, 0, sizeof *f);
    if (!m || !m->rank)
        return 0;
    f->r = m->rank;
    f->n = m->n_experts ? m->n_experts : 1;
    f->in = (size_t)m->a.shape[1];
    f->out = (size_t)m->b.shape[0];
    f->scale = m->scale;
    f->a = sys_malloc((f->n * f->r * f->in + 1) * sizeof *f->a);
    f->b = sys_malloc((f->n * f->r * f->out + 1) * sizeof *f->b);
    if (!f->a || !f->b)
        return explain_no_memory(err);
    if (!dtype_to_f64(m->a.dtype, m->a.data, f->a, f->n * f->r * f->in) ||
        !dtype_to_f64(m->b.dtype, m->b.data, f->b, f->n * f->r * f->out))
        return err_set(err, ERR_REFUSED, "%s: %s is no type of weights", m->name,
                       dtype_name(m->a.dtype));
    return 0;
}

void explain_release(struct factors *f)
{
    sys_free(f->a);
    sys_free(f->b);
    memset(f, 0, sizeof *f);
}

double explain_a_dot(const struct factors *x, const struct factors *y, size_t e, size_t k, size_t l)
{
    const double *p = x->a + (e * x->r + k) * x->in, *q = y->a + (e * y->r + l) * y->in;
    double sum[4] = {0};
    size_t j = 0;
    for (; j + 4 <= x->in; j += 4) {
        for (size_t t = 0; t < 4; t++)
            sum[t] += p[j + t] * q[j + t];
    }
    for (; j < x->in; j++)
        sum[0] += p[j] * q[j];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* g[k, l] = sum over outputs of B1[o, k] B2[o, l] of one expert. */
void explain_b_gram(const struct factors *x, const struct factors *y, size_t e, double *g)
{
    memset(g, 0, x->r * y->r * sizeof *g);
    for (size_t o = 0; o < x->out; o++) {
        const double *p = x->b + o * x->r * x->n + e, *q = y->b + o * y->r * y->n + e;
        for (size_t k = 0; k < x->r; k++) {
            for (size_t l = 0; l < y->r; l++)
                g[k * y->r + l] += p[k * x->n] * q[l * y->n];
        }
    }
}

bool explain_same_shape(const struct factors *x, const struct factors *y)
{
    return x->n == y->n && x->in == y->in && x->out == y->out;
}

/* <D1, D2>; g: scratch of r1 * r2. */
double explain_factors_dot(const struct factors *x, const struct factors *y, double *g)
{
    double sum = 0;
    for (size_t e = 0; x->r && y->r && e < x->n; e++) {
        explain_b_gram(x, y, e, g);
        for (size_t k = 0; k < x->r; k++) {
            for (size_t l = 0; l < y->r; l++)
                sum += g[k * y->r + l] * explain_a_dot(x, y, e, k, l);
        }
    }
    return sum * x->scale * y->scale;
}

int explain_shapes_differ(const struct adapter_module *m, struct err *err)
{
    return err_set(err, ERR_REFUSED,
                   "%s: the adapters have different shapes here; are they for "
                   "different bases?",
                   m->name);
}

int explain_dot(const struct adapter_module *a, const struct adapter_module *b, double *dot,
                struct err *err)
{
    struct factors x, y = {0};
    double *g = NULL;
    *dot = 0;
    int rc = explain_load(&x, a, err);
    if (!rc)
        rc = explain_load(&y, b, err);
    if (!rc && x.r && y.r && !explain_same_shape(&x, &y))
        rc = explain_shapes_differ(a, err);
    if (!rc && !(g = sys_malloc((x.r * y.r + 1) * sizeof *g)))
        rc = explain_no_memory(err);
    if (!rc)
        *dot = explain_factors_dot(&x, &y, g);
    sys_free(g);
    explain_release(&x);
    explain_release(&y);
    return rc;
}

// ---- two adapters -------------------------------------------------------------------------------

static bool same_tensor(const struct tensor *a, const struct tensor *b)
{
    if (tensor_present(a) != tensor_present(b))
        return false;
    return !tensor_present(a) || (a->dtype == b->dtype && tensor_same_shape(a, b) &&
                                  memcmp(a->data, b->data, tensor_n_bytes(a)) == 0);
}

/* What is no product of factors, equal or not. */
static bool same_rest(const struct adapter_module *a, const struct adapter_module *b)
{
    return same_tensor(&a->magnitude, &b->magnitude) && same_tensor(&a->lora_bias, &b->lora_bias) &&
           same_tensor(&a->bias, &b->bias) && same_tensor(&a->full, &b->full) &&
           same_tensor(&a->rows, &b->rows) && a->n_rows == b->n_rows &&
           (!a->n_rows || memcmp(a->row_ids, b->row_ids, a->n_rows * sizeof *a->row_ids) == 0);
}

struct difference {
    double a2, b2, dot;
    size_t n_only_a, n_only_b, n_differ, n_same;
};

static int compare_modules(json_t *rows, const struct adapter_module *a,
                           const struct adapter_module *b, struct difference *total,
                           struct err *err)
{
    double a2 = 0, b2 = 0, dot = 0;
    int rc = a ? explain_dot(a, a, &a2, err) : 0;
    if (!rc && b)
        rc = explain_dot(b, b, &b2, err);
    if (!rc && a && b)
        rc = explain_dot(a, b, &dot, err);
    if (rc)
        return rc;
    double off2 = fmax(a2 + b2 - 2 * dot, 0);
    bool same = a && b && same_tensor(&a->a, &b->a) && same_tensor(&a->b, &b->b) &&
                a->scale == b->scale && same_rest(a, b);
    const char *state = !b ? "only_a" : !a ? "only_b" : same ? "same" : "differs";
    total->a2 += a2;
    total->b2 += b2;
    total->dot += dot;
    total->n_only_a += !b;
    total->n_only_b += !a;
    total->n_same += same;
    total->n_differ += a && b && !same;
    const struct adapter_module *m = a ? a : b;
    json_t *row =
        json_pack("{s:s, s:s, s:s, s:i, s:i, s:f, s:f, s:o, s:f, s:b}", "name", m->name,
                  "parameter", m->parameter, "state", state, "rank_a", a ? (int)a->rank : 0,
                  "rank_b", b ? (int)b->rank : 0, "norm_a", sqrt(a2), "norm_b", sqrt(b2), "cosine",
                  a2 > 0 && b2 > 0 ? json_real(explain_cosine(dot, a2, b2)) : json_null(),
                  "norm_of_difference", same ? 0.0 : sqrt(off2), "other_parts_differ",
                  a && b && !same_rest(a, b));
    return row && json_array_append_new(rows, row) == 0 ? 0 : explain_no_memory(err);
}

int explain_difference(json_t **out, const struct adapter *a, const struct adapter *b,
                       struct err *err)
{
    json_t *rows = json_array();
    struct difference d = {0};
    size_t i = 0, j = 0;
    int rc = rows ? 0 : explain_no_memory(err);
    *out = NULL;
    while (!rc && (i < a->n_modules || j < b->n_modules)) { // both are sorted by name, parameter
        const struct adapter_module *x = i < a->n_modules ? &a->modules[i] : NULL;
        const struct adapter_module *y = j < b->n_modules ? &b->modules[j] : NULL;
        int order = !x ? 1 : !y ? -1 : strcmp(x->name, y->name);
        if (!order)
            order = strcmp(x->parameter, y->parameter);
        rc = compare_modules(rows, order <= 0 ? x : NULL, order >= 0 ? y : NULL, &d, err);
        i += order <= 0;
        j += order >= 0;
    }
    double off2 = fmax(d.a2 + d.b2 - 2 * d.dot, 0);
    if (!rc) {
        *out = json_pack("{s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:O}", "norm_a", sqrt(d.a2),
                         "norm_b", sqrt(d.b2), "cosine", explain_cosine(d.dot, d.a2, d.b2),
                         "norm_of_difference", sqrt(off2), "n_same", (json_int_t)d.n_same,
                         "n_differ", (json_int_t)d.n_differ, "n_only_a", (json_int_t)d.n_only_a,
                         "n_only_b", (json_int_t)d.n_only_b, "modules", rows);
        rc = *out ? 0 : explain_no_memory(err);
    }
    json_decref(rows);
    return rc;
}
