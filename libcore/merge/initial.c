#include "libcore/merge/initial.h"

#include <math.h>
#include <string.h>
#include <strings.h>

#include "libcore/adapter/builder.h"
#include "libcore/base/sys.h"
#include "libcore/merge/extract_impl.h"
#include "libcore/merge/factors.h"

/* Float32 decompositions of the trainer: a modest multiple of its unit roundoff. */
static const double TRAINER_ERROR = 0x1p-20;
/* Beyond this share of s B0 A0 it is not determined well enough to call it a conversion. */
static const double MAX_ARITHMETIC = 0.01;
static const double MAX_RESIDUAL = 1e-6; // of our own singular vectors
enum { TILE_ROWS = 64 };

struct conversion {
    struct extract_side side;
    const struct adapter *a;
    struct adapter_builder *b;
    bool pissa;
    struct initial_report report; // squares until the end
    double taken2;                // ||s B0 A0||^2 over all modules
    struct err *err;
};

/* One module at work; left [d_out, 2 r] and right [d_in, 2 r] in columns: B | -B0, A^T | A0^T. */
struct module_work {
    const struct adapter_module *m;
    const struct extract_weight *w;
    size_t d_out, d_in, r;
    double *left, *right;
    double total2, taken2, arithmetic;
};

bool initial_knows(const char *init)
{
    return init && (strcasecmp(init, "pissa") == 0 || strcasecmp(init, "olora") == 0);
}

static int no_memory(struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "converting an adapter: no memory");
}

static int rows_of(void *arg, size_t row0, size_t n_rows, double *out, unsigned thread_idx,
                   struct err *err)
{
    (void)thread_idx;
    return extract_rows(arg, 0, row0, n_rows, out, err);
}

/* ---- B0 and A0 ---- */

static int undetermined(const struct module_work *k, const char *why, struct err *err)
{
    return err_set(err, ERR_REFUSED,
                   "%s: its initialisation cannot be computed again: %s; convert it in PEFT with "
                   "path_initial_model_for_weight_conversion",
                   k->m->name, why);
}

static int initial_pissa(struct module_work *k, struct err *err)
{
    struct svd d = {0};
    const struct svd_source source = {k->d_out, k->d_in, (void *)k->w, rows_of, NULL};
    const struct svd_want want = {.rank = (uint32_t)k->r + 1, .seed = 1};
    int rc = svd_of_source(&d, &source, &want, err);
    if (rc)
        return rc;
    double next = d.k > k->r ? d.s[k->r] : 0, last = d.k >= k->r ? d.s[k->r - 1] : 0;
    if (last <= 0 || last <= next)
        rc = undetermined(k, "its singular values do not part there", err);
    else if (!d.exact && d.residual > MAX_RESIDUAL)
        rc = undetermined(k, "its singular vectors do not settle", err);
    for (size_t j = 0; !rc && j < k->r; j++) {
        double root = sqrt(d.s[j] / k->m->scale);
        for (size_t i = 0; i < k->d_out; i++)
            k->left[(k->r + j) * k->d_out + i] = -root * d.u[j * k->d_out + i];
        for (size_t i = 0; i < k->d_in; i++)
            k->right[(k->r + j) * k->d_in + i] = root * d.v[j * k->d_in + i];
        k->taken2 += d.s[j] * d.s[j];
    }
    k->total2 = d.total2;
    if (!rc) // a perturbed matrix's best approximation: the gap decides
        k->arithmetic =
            TRAINER_ERROR * d.s[0] * sqrt((double)k->r) * (1 + 2 * last / (last - next));
    svd_release(&d);
    return rc;
}

/* right0 = W^T q, and ||W||^2. */
static int project(struct module_work *k, const double *q, double *right0, double *tile,
                   struct err *err)
{
    for (size_t row0 = 0; row0 < k->d_out; row0 += TILE_ROWS) {
        size_t n = k->d_out - row0 < TILE_ROWS ? k->d_out - row0 : TILE_ROWS;
        int rc = extract_rows(k->w, 0, row0, n, tile, err);
        if (rc)
            return rc;
        for (size_t i = 0; i < n * k->d_in; i++)
            k->total2 += tile[i] * tile[i];
        for (size_t j = 0; j < k->r; j++) {
            for (size_t i = 0; i < n; i++) {
                double factor = q[j * k->d_out + row0 + i];
                for (size_t c = 0; c < k->d_in; c++)
                    right0[j * k->d_in + c] += factor * tile[i * k->d_in + c];
            }
        }
    }
    return 0;
}

static int initial_olora(struct module_work *k, double *tile, double *upper, struct err *err)
{
    double *q = k->left + k->r * k->d_out, *right0 = k->right + k->r * k->d_in;
    for (size_t row0 = 0; row0 < k->d_out; row0 += TILE_ROWS) {
        size_t n = k->d_out - row0 < TILE_ROWS ? k->d_out - row0 : TILE_ROWS;
        int rc = extract_rows(k->w, 0, row0, n, tile, err);
        if (rc)
            return rc;
        for (size_t i = 0; i < n; i++) {
            for (size_t j = 0; j < k->r; j++)
                q[j * k->d_out + row0 + i] = tile[i * k->d_in + j];
        }
    }
    svd_orthogonalise(q, k->d_out, k->r, upper);
    double most = 0, least = INFINITY;
    for (size_t j = 0; j < k->r; j++) {
        double d = fabs(upper[j * k->r + j]);
        most = d > most ? d : most;
        least = d < least ? d : least;
    }
    if (least <= 0)
        return undetermined(k, "its first columns depend on one another", err);
    int rc = project(k, q, right0, tile, err);
    for (size_t i = 0; i < k->r * k->d_in; i++)
        k->taken2 += right0[i] * right0[i];
    for (size_t i = 0; i < k->r * k->d_out; i++)
        q[i] = -q[i];
    // PEFT takes s Q R out: B0 A0 = Q R, not divided by the scale
    k->taken2 *= k->m->scale * k->m->scale;
    k->arithmetic = TRAINER_ERROR * sqrt(k->taken2) * most / least;
    return rc;
}

/* ---- one module ---- */

/* ||L R^T||_F^2 of k columns. */
static double product_norm2(const double *left, size_t m, const double *right, size_t n, size_t k)
{
    double sum = 0;
    for (size_t i = 0; i < k; i++) {
        for (size_t j = 0; j < k; j++) {
            double l = 0, r = 0;
            for (size_t x = 0; x < m; x++)
                l += left[i * m + x] * left[j * m + x];
            for (size_t x = 0; x < n; x++)
                r += right[i * n + x] * right[j * n + x];
            sum += l * r;
        }
    }
    return sum > 0 ? sum : 0;
}

/* What rounding to the base's type can change of a value, relative to it. */
static double unit_roundoff(enum dtype t)
{
    return t == DTYPE_BF16 ? 0x1p-8 : t == DTYPE_F16 ? 0x1p-11 : 0x1p-24;
}

static void note(struct conversion *c, const struct module_work *k)
{
    double s = k->m->scale,
           change2 = s * s * product_norm2(k->left, k->d_out, k->right, k->d_in, 2 * k->r);
    double u = unit_roundoff(k->w->pieces[0].tensor->value.dtype);
    // OLoRA at a scale other than 1 leaves more than the projection does; ||W'|| bounds both
    double left2 = s == 1 || c->pissa ? k->total2 - k->taken2 : k->total2 + k->taken2;
    c->report.n_modules++;
    c->report.change += change2;
    c->taken2 += k->taken2;
    c->report.rounding += u * u * (left2 > 0 ? left2 : 0);
    c->report.arithmetic += k->arithmetic * k->arithmetic;
}

/* Columns of float64 into rows of float32: A' [2 r, d_in] as they lie, B' [d_out, 2 r] turned. */
static int put(struct conversion *c, const struct module_work *k)
{
    size_t rank = 2 * k->r;
    struct adapter_module *to = adapter_builder_module(c->b, k->m->name, k->m->parameter, c->err);
    float *a = sys_calloc(rank * k->d_in, sizeof *a), *b = sys_calloc(rank * k->d_out, sizeof *b);
    if (!to || !a || !b) {
        sys_free(a);
        sys_free(b);
        return no_memory(c->err);
    }
    for (size_t i = 0; i < rank * k->d_in; i++)
        a[i] = (float)k->right[i];
    for (size_t j = 0; j < rank; j++) {
        for (size_t i = 0; i < k->d_out; i++)
            b[i * rank + j] = (float)k->left[j * k->d_out + i];
    }
    to->rank = (uint32_t)rank;
    to->scale = k->m->scale;
    to->alpha = k->m->scale * (double)rank;
    const uint64_t a_shape[2] = {rank, k->d_in}, b_shape[2] = {k->d_out, rank};
    int rc = adapter_builder_tensor(c->b, &to->a, DTYPE_F32, 2, a_shape, a, c->err);
    if (rc) {
        sys_free(b);
        return rc;
    }
    return adapter_builder_tensor(c->b, &to->b, DTYPE_F32, 2, b_shape, b, c->err);
}

static int check_module(struct conversion *c, struct module_work *k)
{
    const struct adapter_module *m = k->m;
    char name[512];
    if (adapter_module_kinds(m) != ADAPTER_LORA || m->transposed || m->scale <= 0)
        return err_set(c->err, ERR_REFUSED, "%s: only plain LoRA of linear modules is converted",
                       m->name);
    if (2 * m->rank > LIMIT_RANK)
        return err_set(c->err, ERR_REFUSED, "%s: rank %u would become %u, at most %d is computed",
                       m->name, m->rank, 2 * m->rank, LIMIT_RANK);
    modules_canonical_name(c->side.modules, m->name, name, sizeof name);
    const struct model_module *target = modules_find(c->side.modules, name, NULL);
    k->w = target ? extract_side_find(&c->side, target) : NULL;
    if (!k->w || !k->w->n_pieces)
        return err_set(c->err, ERR_REFUSED, "%s: the initial base has no such weight", m->name);
    k->r = m->rank;
    k->d_out = target->d_out;
    k->d_in = target->d_in;
    if (m->a.shape[1] != k->d_in || m->b.shape[0] != k->d_out || k->r > k->d_in || k->r > k->d_out)
        return err_set(c->err, ERR_REFUSED, "%s: is %llu x %llu, the initial base's %zu x %zu",
                       m->name, (unsigned long long)m->b.shape[0],
                       (unsigned long long)m->a.shape[1], k->d_out, k->d_in);
    return 0;
}

static int convert_module(struct conversion *c, const struct adapter_module *m)
{
    struct module_work k = {.m = m};
    int rc = check_module(c, &k);
    if (rc)
        return rc;
    k.left = sys_calloc(2 * k.r * k.d_out, sizeof *k.left);
    k.right = sys_calloc(2 * k.r * k.d_in, sizeof *k.right);
    double *tile = sys_calloc((size_t)TILE_ROWS * k.d_in, sizeof *tile),
           *upper = sys_calloc(k.r * k.r, sizeof *upper);
    if (!k.left || !k.right || !tile || !upper)
        rc = no_memory(c->err);
    if (!rc) {
        factors_left(m, 0, 1, k.left);
        factors_right(m, 0, k.right);
        rc = c->pissa ? initial_pissa(&k, c->err) : initial_olora(&k, tile, upper, c->err);
    }
    if (!rc && k.arithmetic > MAX_ARITHMETIC * sqrt(k.taken2))
        rc = undetermined(&k, "float32 in training decided too much of it", c->err);
    if (!rc) {
        note(c, &k);
        rc = put(c, &k);
    }
    sys_free(k.left);
    sys_free(k.right);
    sys_free(tile);
    sys_free(upper);
    return rc;
}

static int finish_report(struct conversion *c, const char *base_folder)
{
    struct initial_report *r = &c->report;
    r->change = sqrt(r->change);
    r->distance = r->change / sqrt(c->taken2);
    r->rounding = sqrt(r->rounding);
    r->arithmetic = sqrt(r->arithmetic);
    if (r->distance < 1)
        return 0;
    return err_set(c->err, ERR_REFUSED,
                   "%s: the adapter is %.3g times as far from this base's initialisation as zero "
                   "is: it was trained on another base, or is converted already",
                   base_folder, r->distance);
}

int initial_convert(struct adapter **out, const struct adapter *a, const char *base_folder,
                    struct initial_report *report, struct err *err)
{
    struct conversion c = {.a = a, .err = err};
    const char *init = json_string_value(json_object_get(a->config, "init_lora_weights"));
    *out = NULL;
    if (!initial_knows(init))
        return err_set(err, ERR_REFUSED,
                       "init_lora_weights: '%.40s' cannot be computed again from the base; pissa "
                       "and olora can",
                       init ? init : "(none)");
    c.pissa = strcasecmp(init, "pissa") == 0;
    int rc = extract_side_open(&c.side, base_folder, err);
    if (!rc)
        rc = adapter_builder_open(&c.b, a->base_name, err);
    for (size_t i = 0; !rc && i < a->n_modules; i++)
        rc = convert_module(&c, &a->modules[i]);
    if (!rc)
        rc = finish_report(&c, base_folder);
    if (!rc) {
        rc = adapter_builder_finish(c.b, out, err);
        c.b = NULL;
    }
    adapter_builder_free(c.b);
    extract_side_release(&c.side);
    *report = c.report;
    return rc;
}
