#include "libcore/adapter/stats.h"

#include <math.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/base/thread.h"

enum { CHUNK = 256 }; // columns (rows) of A (B) that are converted at once

struct stats_job {
    struct adapter_stats *s;
    struct err *errs; // one a thread
};

/* The r x r Gram matrix of r vectors of length n; value (i, j) of the tensor lies at
 * offset + i * step_vector + j * step_value. */
struct vectors {
    const struct tensor *t;
    size_t r, n;
    size_t offset, step_vector, step_value;
};

static void load_chunk(const struct vectors *v, size_t begin, size_t count, double *chunk)
{
    size_t size = dtype_bits(v->t->dtype) / 8;
    const char *data = v->t->data;
    for (size_t i = 0; i < v->r; i++) {
        size_t at = v->offset + i * v->step_vector + begin * v->step_value;
        if (v->step_value == 1) {
            dtype_to_f64(v->t->dtype, data + at * size, chunk + i * CHUNK, count);
            continue;
        }
        for (size_t j = 0; j < count; j++)
            dtype_to_f64(v->t->dtype, data + (at + j * v->step_value) * size, chunk + i * CHUNK + j,
                         1);
    }
}

static double dot(const double *x, const double *y, size_t n)
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

static void gram(const struct vectors *v, double *chunk, double *g)
{
    memset(g, 0, v->r * v->r * sizeof *g);
    for (size_t begin = 0; begin < v->n; begin += CHUNK) {
        size_t count = v->n - begin < CHUNK ? v->n - begin : CHUNK;
        load_chunk(v, begin, count, chunk);
        for (size_t i = 0; i < v->r; i++) {
            for (size_t j = 0; j <= i; j++)
                g[i * v->r + j] += dot(chunk + i * CHUNK, chunk + j * CHUNK, count);
        }
    }
    for (size_t i = 0; i < v->r; i++) {
        for (size_t j = 0; j < i; j++)
            g[j * v->r + i] = g[i * v->r + j];
    }
}

/* Lower Cholesky factor in place; a pivot lost in rounding makes its column zero. */
static void cholesky(double *g, size_t r)
{
    double largest = 0;
    for (size_t i = 0; i < r; i++)
        largest = fmax(largest, g[i * r + i]);
    for (size_t j = 0; j < r; j++) {
        double pivot = g[j * r + j];
        for (size_t k = 0; k < j; k++)
            pivot -= g[j * r + k] * g[j * r + k];
        double root = pivot > largest * (double)r * 2.3e-16 ? sqrt(pivot) : 0;
        g[j * r + j] = root;
        for (size_t i = j + 1; i < r; i++) {
            double v = g[i * r + j];
            for (size_t k = 0; k < j; k++)
                v -= g[i * r + k] * g[j * r + k];
            g[i * r + j] = root > 0 ? v / root : 0;
            g[j * r + i] = 0;
        }
    }
}

/* c = l^T g l, with t as scratch; all r x r. */
static void congruence(const double *l, const double *g, size_t r, double *t, double *c)
{
    for (size_t i = 0; i < r; i++) { // t = g l
        for (size_t j = 0; j < r; j++) {
            double v = 0;
            for (size_t k = j; k < r; k++)
                v += g[i * r + k] * l[k * r + j];
            t[i * r + j] = v;
        }
    }
    for (size_t i = 0; i < r; i++) {
        for (size_t j = 0; j <= i; j++) {
            double v = 0;
            for (size_t k = i; k < r; k++)
                v += l[k * r + i] * t[k * r + j];
            c[i * r + j] = c[j * r + i] = v;
        }
    }
}

/* Squares of the norms of B A for one pair of factors. */
static void pair_norms(const struct vectors *a, const struct vectors *b, double *work,
                       double *frobenius2, double *spectral2)
{
    size_t r = a->r;
    double *ga = work, *gb = ga + r * r, *t = gb + r * r, *c = t + r * r, *chunk = c + r * r;
    gram(a, chunk, ga);
    gram(b, chunk, gb);
    *frobenius2 = 0;
    for (size_t i = 0; i < r * r; i++)
        *frobenius2 += ga[i] * gb[i];
    cholesky(gb, r);
    congruence(gb, ga, r, t, c);
    stats_eigenvalues(c, r, chunk, chunk + r);
    *spectral2 = fmax(chunk[r - 1], 0);
    *frobenius2 = fmax(*frobenius2, *spectral2); // rounding of a rank-one product
}

static void module_norms(struct module_stats *s, double *work)
{
    const struct adapter_module *m = s->module;
    size_t n_experts = m->n_experts ? m->n_experts : 1, r = m->rank;
    size_t in = (size_t)m->a.shape[1], out = (size_t)m->b.shape[0];
    double frobenius2 = 0, spectral2 = 0;
    for (size_t e = 0; e < n_experts; e++) { // A: expert slowest; B: expert fastest
        struct vectors a = {&m->a, r, in, e * r * in, in, 1};
        struct vectors b = {&m->b, r, out, e, n_experts, r * n_experts};
        double f, p;
        pair_norms(&a, &b, work, &f, &p);
        frobenius2 += f;
        spectral2 = fmax(spectral2, p);
    }
    s->frobenius = fabs(m->scale) * sqrt(frobenius2);
    s->spectral = fabs(m->scale) * sqrt(spectral2);
    s->stable_rank = spectral2 > 0 ? frobenius2 / spectral2 : 0;
}

static void compute_range(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    struct stats_job *job = arg;
    struct err *err = &job->errs[thread_idx];
    for (size_t i = begin; i < end && !err->code; i++) {
        struct module_stats *s = &job->s->modules[i];
        const struct adapter_module *m = s->module;
        if (!s->has_factors)
            continue;
        if (!dtype_is_float(m->a.dtype) || !dtype_is_float(m->b.dtype)) {
            err_set(err, ERR_REFUSED, "%s: %s is no type of weights", m->name,
                    dtype_name(m->a.dtype));
            return;
        }
        size_t r = m->rank;
        double *work = sys_reallocarray(NULL, 4 * r * r + r * CHUNK + 2 * r, sizeof *work);
        if (!work) {
            err_set(err, ERR_NO_MEMORY, "stats: no memory");
            return;
        }
        module_norms(s, work);
        sys_free(work);
    }
}

static void count(struct module_stats *s, const struct adapter_module *m)
{
    const struct tensor *all[] = {&m->a,    &m->b,    &m->magnitude, &m->lora_bias,
                                  &m->bias, &m->full, &m->rows};
    s->module = m;
    s->has_factors = m->rank > 0;
    s->needs_base = tensor_present(&m->magnitude) || tensor_present(&m->full) || m->n_rows ||
                    tensor_present(&m->bias);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (!tensor_present(all[i]))
            continue;
        s->n_parameters += tensor_n_values(all[i]);
        s->n_bytes += tensor_n_bytes(all[i]);
    }
}

static void sum_up(struct adapter_stats *s)
{
    double squares = 0;
    for (size_t i = 0; i < s->n; i++) {
        const struct module_stats *m = &s->modules[i];
        squares += m->frobenius * m->frobenius;
        s->n_bytes += m->n_bytes;
        if (m->spectral > s->max_spectral) {
            s->max_spectral = m->spectral;
            s->max_module_idx = i;
        }
    }
    s->frobenius = sqrt(squares);
}

static int run(struct adapter_stats *s, unsigned n_threads, struct err *err)
{
    struct worker_pool *pool;
    int rc = worker_pool_open(&pool, n_threads, err);
    if (rc)
        return rc;
    unsigned n = worker_pool_size(pool);
    struct stats_job job = {s, sys_calloc(n, sizeof(struct err))};
    if (!job.errs)
        rc = err_set(err, ERR_NO_MEMORY, "stats: no memory");
    else
        worker_pool_run(pool, s->n, 1, compute_range, &job);
    for (unsigned i = 0; job.errs && i < n && !rc; i++) {
        rc = job.errs[i].code;
        if (rc && err)
            *err = job.errs[i];
    }
    worker_pool_free(pool);
    sys_free(job.errs);
    return rc;
}

int stats_compute(struct adapter_stats **out, const struct adapter *a, unsigned n_threads,
                  struct err *err)
{
    *out = NULL;
    struct adapter_stats *s = sys_calloc(1, sizeof *s);
    if (s)
        s->modules = sys_calloc(a->n_modules + 1, sizeof *s->modules);
    if (!s || !s->modules) {
        stats_free(s);
        return err_set(err, ERR_NO_MEMORY, "stats: no memory");
    }
    s->n = a->n_modules;
    for (size_t i = 0; i < s->n; i++)
        count(&s->modules[i], &a->modules[i]);
    int rc = run(s, n_threads, err);
    if (rc) {
        stats_free(s);
        return rc;
    }
    sum_up(s);
    *out = s;
    return 0;
}

void stats_free(struct adapter_stats *s)
{
    if (!s)
        return;
    sys_free(s->modules);
    sys_free(s);
}
