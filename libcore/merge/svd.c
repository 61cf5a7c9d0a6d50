/*
 * QR, one-sided Jacobi (Hestenes), and products of thin factors. The leading part of large matrices
 * is svd_subspace.c's.
 */
#include "libcore/merge/svd.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/merge/svd_impl.h"

int svd_no_memory(struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "singular values: no memory");
}

double *svd_alloc(size_t m, size_t n)
{
    return sys_calloc(m && n ? m * n : 1, sizeof(double));
}

void svd_release(struct svd *d)
{
    sys_free(d->u);
    sys_free(d->s);
    sys_free(d->v);
    *d = (struct svd){0};
}

double svd_dot(const double *x, const double *y, size_t n)
{
    double s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        s0 += x[i] * y[i];
        s1 += x[i + 1] * y[i + 1];
        s2 += x[i + 2] * y[i + 2];
        s3 += x[i + 3] * y[i + 3];
    }
    for (; i < n; i++)
        s0 += x[i] * y[i];
    return (s0 + s1) + (s2 + s3);
}

static void axpy(double f, const double *x, double *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] += f * x[i];
}

void svd_orthogonalise(double *a, size_t m, size_t n, double *r)
{
    memset(r, 0, n * n * sizeof *r);
    for (size_t j = 0; j < n; j++) {
        double *q = a + j * m;
        double before = sqrt(svd_dot(q, q, m));
        for (int pass = 0; pass < 2; pass++) {
            for (size_t i = 0; i < j; i++) {
                double f = svd_dot(a + i * m, q, m);
                r[j * n + i] += f;
                axpy(-f, a + i * m, q, m);
            }
        }
        double after = sqrt(svd_dot(q, q, m));
        bool independent = after > before * 1e-13;
        r[j * n + j] = independent ? after : 0;
        double f = independent ? 1 / after : 0;
        for (size_t i = 0; i < m; i++)
            q[i] *= f;
    }
}

/* ---- one-sided Jacobi ---- */

/* Turns columns x and y until they are orthogonal, and vx, vy with them. False: they were. */
static bool rotate(double *x, double *y, size_t m, double *vx, double *vy, size_t n)
{
    double a = svd_dot(x, x, m), b = svd_dot(y, y, m), c = svd_dot(x, y, m);
    if (c == 0 || fabs(c) <= 4 * DBL_EPSILON * sqrt(a) * sqrt(b))
        return false;
    double zeta = (b - a) / (2 * c);
    double t = copysign(1, zeta) / (fabs(zeta) + sqrt(1 + zeta * zeta));
    double cs = 1 / sqrt(1 + t * t), sn = cs * t;
    for (size_t i = 0; i < m; i++) {
        double p = x[i], q = y[i];
        x[i] = cs * p - sn * q;
        y[i] = sn * p + cs * q;
    }
    for (size_t i = 0; i < n; i++) {
        double p = vx[i], q = vy[i];
        vx[i] = cs * p - sn * q;
        vy[i] = sn * p + cs * q;
    }
    return true;
}

static void swap_columns(double *a, size_t m, size_t i, size_t j)
{
    for (size_t k = 0; k < m; k++) {
        double t = a[i * m + k];
        a[i * m + k] = a[j * m + k];
        a[j * m + k] = t;
    }
}

/* Norms of the columns, descending; the columns follow, divided by them. */
static void sort_columns(double *a, double *v, size_t n, double *s)
{
    for (size_t j = 0; j < n; j++)
        s[j] = sqrt(svd_dot(a + j * n, a + j * n, n));
    for (size_t j = 0; j < n; j++) {
        size_t best = j;
        for (size_t i = j + 1; i < n; i++)
            best = s[i] > s[best] ? i : best;
        if (best != j) {
            double t = s[j];
            s[j] = s[best];
            s[best] = t;
            swap_columns(a, n, j, best);
            swap_columns(v, n, j, best);
        }
        for (size_t i = 0; i < n; i++)
            a[j * n + i] = s[j] > 0 ? a[j * n + i] / s[j] : 0;
    }
}

void svd_jacobi(double *a, size_t n, double *v, double *s)
{
    enum { MAX_SWEEPS = 60 };
    memset(v, 0, n * n * sizeof *v);
    for (size_t i = 0; i < n; i++)
        v[i * n + i] = 1;
    bool turned = true;
    for (int sweep = 0; turned && sweep < MAX_SWEEPS; sweep++) {
        turned = false;
        for (size_t i = 0; i + 1 < n; i++) {
            for (size_t j = i + 1; j < n; j++)
                turned |= rotate(a + i * n, a + j * n, n, v + i * n, v + j * n, n);
        }
    }
    sort_columns(a, v, n, s);
}

void svd_multiply(const double *q, size_t m, const double *x, size_t r, size_t k, double *out)
{
    memset(out, 0, m * k * sizeof *out);
    for (size_t j = 0; j < k; j++) {
        for (size_t i = 0; i < r; i++)
            axpy(x[j * r + i], q + i * m, out + j * m, m);
    }
}

static double sum_squares(const double *s, size_t n)
{
    return svd_dot(s, s, n);
}

/* a [m, n] with m >= n: a = q r, r^T = x s y^T, so a = (q y) s x^T. */
static int dense_tall(struct svd *out, double *a, size_t m, size_t n, struct err *err)
{
    double *r = svd_alloc(n, n), *t = svd_alloc(n, n), *y = svd_alloc(n, n);
    *out = (struct svd){.m = m, .n = n, .k = n, .exact = true};
    out->s = svd_alloc(n, 1);
    out->u = svd_alloc(m, n);
    int rc = r && t && y && out->s && out->u ? 0 : svd_no_memory(err);
    if (!rc) {
        svd_orthogonalise(a, m, n, r);
        for (size_t i = 0; i < n; i++) {
            for (size_t j = 0; j < n; j++)
                t[i * n + j] = r[j * n + i];
        }
        svd_jacobi(t, n, y, out->s);
        svd_multiply(a, m, y, n, n, out->u);
        out->total2 = sum_squares(out->s, n);
        out->v = t;
        t = NULL;
    }
    sys_free(r);
    sys_free(t);
    sys_free(y);
    if (rc)
        svd_release(out);
    return rc;
}

int svd_dense(struct svd *out, double *a, size_t m, size_t n, struct err *err)
{
    *out = (struct svd){0};
    if (m >= n)
        return dense_tall(out, a, m, n, err);
    double *t = svd_alloc(n, m);
    if (!t)
        return svd_no_memory(err);
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < n; j++)
            t[i * n + j] = a[j * m + i];
    }
    int rc = dense_tall(out, t, n, m, err);
    sys_free(t);
    if (rc)
        return rc;
    double *u = out->u;
    out->u = out->v;
    out->v = u;
    out->m = m;
    out->n = n;
    return 0;
}

/* ---- products ---- */

struct core {
    const double *c; // [r, r], columns
    size_t r;
};

static int core_rows(void *arg, size_t row0, size_t n_rows, double *out, unsigned thread_idx,
                     struct err *err)
{
    const struct core *core = arg;
    (void)thread_idx;
    (void)err;
    for (size_t i = 0; i < n_rows; i++) {
        for (size_t j = 0; j < core->r; j++)
            out[i * core->r + j] = core->c[j * core->r + row0 + i];
    }
    return 0;
}

/* From the core's vectors to those of the product. */
static int widen(struct svd *d, const double *left, size_t m, const double *right, size_t n,
                 size_t r, struct err *err)
{
    size_t most = m < n ? m : n;
    d->k = d->k < most ? d->k : most;
    double *u = svd_alloc(m, d->k), *v = svd_alloc(n, d->k);
    if (!u || !v) {
        sys_free(u);
        sys_free(v);
        return svd_no_memory(err);
    }
    svd_multiply(left, m, d->u, r, d->k, u);
    svd_multiply(right, n, d->v, r, d->k, v);
    sys_free(d->u);
    sys_free(d->v);
    d->u = u;
    d->v = v;
    d->m = m;
    d->n = n;
    return 0;
}

int svd_product(struct svd *out, double *left, size_t m, double *right, size_t n, size_t r,
                const struct svd_want *want, struct err *err)
{
    *out = (struct svd){0};
    double *rl = svd_alloc(r, r), *rr = svd_alloc(r, r), *c = svd_alloc(r, r);
    int rc = rl && rr && c ? 0 : svd_no_memory(err);
    double noise = 0;
    if (!rc) {
        for (size_t k = 0; k < r; k++) // what cancels leaves this much of what was added up
            noise += 1e-14 * sqrt(svd_dot(left + k * m, left + k * m, m)) *
                     sqrt(svd_dot(right + k * n, right + k * n, n));
        svd_orthogonalise(left, m, r, rl);
        svd_orthogonalise(right, n, r, rr);
        for (size_t j = 0; j < r; j++) { // c = rl rr^T; rr is upper triangular
            for (size_t k = j; k < r; k++)
                axpy(rr[k * r + j], rl + k * r, c + j * r, r);
        }
        struct core core = {c, r};
        const struct svd_source source = {r, r, &core, core_rows, NULL};
        rc = r > SVD_EXACT_MAX ? svd_of_source(out, &source, want, err)
                               : svd_dense(out, c, r, r, err);
    }
    if (!rc)
        rc = widen(out, left, m, right, n, r, err);
    out->noise = noise;
    if (rc)
        svd_release(out);
    sys_free(rl);
    sys_free(rr);
    sys_free(c);
    return rc;
}

/* ---- how many ---- */

double svd_kept2(const struct svd *d, size_t k)
{
    double sum = 0;
    for (size_t j = 0; j < k && j < d->k; j++)
        sum += d->s[j] * d->s[j];
    return sum;
}

size_t svd_choose(const struct svd *d, const struct svd_want *want)
{
    size_t most = want->rank && want->rank < d->k ? want->rank : d->k;
    // What lies below the rounding of the largest one is noise of the arithmetic.
    while (most && (d->s[most - 1] <= d->s[0] * 1e-12 || d->s[most - 1] <= d->noise))
        most--;
    if (want->energy <= 0)
        return most;
    double sum = 0, goal = want->energy * d->total2 * (1 - 1e-12);
    for (size_t j = 0; j < most; j++) {
        if (sum >= goal)
            return j;
        sum += d->s[j] * d->s[j];
    }
    return most;
}
