/*
 * One module: its terms' factors into the result's, expert by expert.
 */
#include <math.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/base/thread.h"
#include "libcore/merge/combine_impl.h"
#include "libcore/merge/random.h"

static int no_memory(struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "combining: no memory");
}

static uint32_t sum_of_ranks(const struct combine_job *j)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < j->n_terms; i++)
        sum += j->terms[i].module->rank;
    return sum;
}

/* The rank that the result may have, before its own values say less. */
static uint32_t rank_cap(const struct combine_job *j, const struct combine_options *opt)
{
    uint32_t out = (uint32_t)j->like->b.shape[0], in = (uint32_t)j->like->a.shape[1];
    uint32_t cap = opt->rank;
    for (size_t i = 0; !opt->rank && opt->method->own_rank && i < j->n_terms; i++)
        cap = j->terms[i].module->rank > cap ? j->terms[i].module->rank : cap;
    if (!cap)
        cap = sum_of_ranks(j);
    cap = cap < out ? cap : out;
    return cap < in ? cap : in;
}

/* The best rank that `d` allows, into the result; and what that leaves out. */
static void keep(struct combine_job *j, uint32_t expert, const struct svd *d, uint32_t cap)
{
    const struct svd_want want = {.rank = cap};
    size_t k = svd_choose(d, &want);
    factors_put(&j->result, expert, d, k);
    j->report.total2 += d->total2;
    if (!d->exact) {
        j->report.exact = false;
        j->report.residual = fmax(j->report.residual, d->residual);
    }
    double cut = d->total2 - svd_kept2(d, k);
    if (d->exact) { // the sum of what is cut, not a difference of nearly equal sums
        cut = 0;
        for (size_t i = k; i < d->k; i++)
            cut += d->s[i] * d->s[i];
    }
    j->report.discarded2 += fmax(cut, 0);
}

// ---- sums in factored form ---------------------------------------------------------------------

/* The stacked factors of one expert: left [d_out, R] with weights and scales, right [d_in, R]. */
static void stack(const struct combine_job *j, uint32_t expert, const double *weights, double *left,
                  double *right)
{
    size_t out = j->like->b.shape[0], in = j->like->a.shape[1];
    for (size_t i = 0; i < j->n_terms; i++) {
        const struct adapter_module *m = j->terms[i].module;
        factors_left(m, expert, weights[i] * m->scale, left);
        factors_right(m, expert, right);
        left += m->rank * out;
        right += m->rank * in;
    }
}

/* <L_a R_a^T, L_b R_b^T> = sum over k, l of (L_a^T L_b)(R_a^T R_b). */
static double inner(const double *la, const double *ra, size_t ka, const double *lb,
                    const double *rb, size_t kb, size_t out, size_t in)
{
    double sum = 0;
    for (size_t k = 0; k < ka; k++) {
        for (size_t l = 0; l < kb; l++) {
            double x = 0, y = 0;
            for (size_t i = 0; i < out; i++)
                x += la[k * out + i] * lb[l * out + i];
            for (size_t i = 0; i < in; i++)
                y += ra[k * in + i] * rb[l * in + i];
            sum += x * y;
        }
    }
    return sum;
}

/* slerp's coefficients from the stacked (unweighted) factors of two terms. */
static void slerp_weights(const struct combine_job *j, const double *left, const double *right,
                          double w[2])
{
    size_t out = j->like->b.shape[0], in = j->like->a.shape[1];
    size_t ka = j->terms[0].module->rank, kb = j->terms[1].module->rank;
    const double *lb = left + ka * out, *rb = right + ka * in;
    double t = j->terms[1].weight; // weights were divided by their sum
    double aa = inner(left, right, ka, left, right, ka, out, in);
    double bb = inner(lb, rb, kb, lb, rb, kb, out, in);
    double ab = inner(left, right, ka, lb, rb, kb, out, in);
    double cosine = aa > 0 && bb > 0 ? ab / sqrt(aa) / sqrt(bb) : 1;
    w[0] = 1 - t;
    w[1] = t;
    if (fabs(cosine) > 0.9995)
        return;
    double angle = acos(cosine);
    w[0] = sin((1 - t) * angle) / sin(angle);
    w[1] = sin(t * angle) / sin(angle);
}

static int sum_expert(struct combine_job *j, uint32_t expert, const struct combine_options *opt,
                      uint32_t cap, double *weights, struct err *err)
{
    size_t out = j->like->b.shape[0], in = j->like->a.shape[1], r = sum_of_ranks(j);
    double *left = sys_reallocarray(NULL, r * out, sizeof *left);
    double *right = sys_reallocarray(NULL, r * in, sizeof *right);
    int rc = left && right ? 0 : no_memory(err);
    bool turn = opt->method->path == COMBINE_SLERP && j->n_terms == 2;
    for (size_t i = 0; !rc && i < j->n_terms; i++)
        weights[i] = turn ? 1 : j->terms[i].weight;
    if (!rc)
        stack(j, expert, weights, left, right);
    if (!rc && turn) {
        slerp_weights(j, left, right, weights);
        stack(j, expert, weights, left, right);
    }
    struct svd d = {0};
    const struct svd_want want = {.rank = cap};
    if (!rc)
        rc = svd_product(&d, left, out, right, in, r, &want, err);
    if (!rc)
        keep(j, expert, &d, cap);
    svd_release(&d);
    sys_free(left);
    sys_free(right);
    return rc;
}

static int compute_sum(struct combine_job *j, const struct combine_options *opt, uint32_t n_experts,
                       uint32_t cap, struct err *err)
{
    double *weights = sys_calloc(j->n_terms, sizeof *weights);
    int rc = weights ? 0 : no_memory(err);
    for (uint32_t e = 0; !rc && e < n_experts; e++)
        rc = sum_expert(j, e, opt, cap, weights, err);
    sys_free(weights);
    return rc;
}

/* A = [w s A_i] and B = [B_i], each value rounded to float32 once. */
static void compute_stack(struct combine_job *j, uint32_t n_experts)
{
    struct factors *f = &j->result;
    uint32_t at = 0;
    for (size_t i = 0; i < j->n_terms; i++) {
        const struct adapter_module *m = j->terms[i].module;
        double factor = j->terms[i].weight * m->scale, v;
        size_t size_a = dtype_bits(m->a.dtype) / 8, size_b = dtype_bits(m->b.dtype) / 8;
        for (uint32_t e = 0; e < n_experts; e++) {
            for (uint32_t k = 0; k < m->rank; k++) {
                const char *a = m->a.data, *b = m->b.data;
                a += ((size_t)e * m->rank + k) * f->d_in * size_a;
                float *to = f->a + ((size_t)e * f->cap + at + k) * f->d_in;
                for (size_t x = 0; x < f->d_in; x++) {
                    dtype_to_f64(m->a.dtype, a + x * size_a, &v, 1);
                    to[x] = (float)(factor * v);
                }
                for (size_t y = 0; y < f->d_out; y++) {
                    size_t from = (y * m->rank + k) * n_experts + e;
                    dtype_to_f64(m->b.dtype, b + from * size_b, &v, 1);
                    f->b[(y * f->cap + at + k) * n_experts + e] = (float)v;
                }
            }
        }
        at += m->rank;
    }
    f->rank = at;
}

// ---- blends of the deltas ----------------------------------------------------------------------

/* The terms' factors of one expert, so that rows of the deltas can be made at will. */
struct deltas {
    const struct combine_job *j;
    double **left;  // [n_terms]: s B, [d_out, r] in columns
    double **right; // [n_terms]: A^T, [d_in, r] in columns
    double *rows;   // [n_threads][d_in]
    struct blend *blend;
    float *scratch; // [n_threads][n_terms][d_in]
};

static void delta_rows(void *arg, size_t term, size_t row0, size_t n, float *out,
                       unsigned thread_idx)
{
    struct deltas *x = arg;
    size_t d_in = x->j->like->a.shape[1], d_out = x->j->like->b.shape[0];
    double *row = x->rows + thread_idx * d_in;
    for (size_t i = 0; i < n; i++) {
        memset(row, 0, d_in * sizeof *row);
        for (size_t k = 0; k < x->j->terms[term].module->rank; k++) {
            double f = x->left[term][k * d_out + row0 + i];
            const double *a = x->right[term] + k * d_in;
            for (size_t c = 0; c < d_in; c++)
                row[c] += f * a[c];
        }
        for (size_t c = 0; c < d_in; c++)
            out[i * d_in + c] = (float)row[c];
    }
}

static int blended_rows(void *arg, size_t row0, size_t n_rows, double *out, unsigned thread_idx,
                        struct err *err)
{
    struct deltas *x = arg;
    size_t d_in = x->j->like->a.shape[1];
    float *scratch = x->scratch + thread_idx * d_in * x->j->n_terms;
    int rc = 0;
    for (size_t i = 0; !rc && i < n_rows; i++)
        rc = blend_rows(x->blend, row0 + i, 1, scratch, out + i * d_in, thread_idx, err);
    return rc;
}

static int deltas_open(struct deltas *x, const struct combine_job *j, uint32_t expert,
                       unsigned n_threads, struct err *err)
{
    size_t out = j->like->b.shape[0], in = j->like->a.shape[1];
    *x = (struct deltas){.j = j};
    x->left = sys_calloc(j->n_terms, sizeof *x->left);
    x->right = sys_calloc(j->n_terms, sizeof *x->right);
    x->rows = sys_reallocarray(NULL, n_threads * in, sizeof *x->rows);
    x->scratch = sys_reallocarray(NULL, n_threads * in * j->n_terms, sizeof *x->scratch);
    if (!x->left || !x->right || !x->rows || !x->scratch)
        return no_memory(err);
    for (size_t i = 0; i < j->n_terms; i++) {
        const struct adapter_module *m = j->terms[i].module;
        x->left[i] = sys_reallocarray(NULL, m->rank * out, sizeof **x->left);
        x->right[i] = sys_reallocarray(NULL, m->rank * in, sizeof **x->right);
        if (!x->left[i] || !x->right[i])
            return no_memory(err);
        factors_left(m, expert, m->scale, x->left[i]);
        factors_right(m, expert, x->right[i]);
    }
    return 0;
}

static void deltas_release(struct deltas *x)
{
    for (size_t i = 0; x->left && x->right && i < x->j->n_terms; i++) {
        sys_free(x->left[i]);
        sys_free(x->right[i]);
    }
    sys_free(x->left);
    sys_free(x->right);
    sys_free(x->rows);
    sys_free(x->scratch);
    blend_free(x->blend);
}

static struct blend_rule rule_of(const struct combine_options *opt)
{
    struct blend_rule r = opt->method->rule;
    r.density = opt->density > 0 ? opt->density : 1;
    r.epsilon = opt->epsilon;
    r.gamma = opt->gamma;
    r.seed = opt->seed;
    return r;
}

static int dense_expert(struct combine_job *j, uint32_t expert, const struct combine_options *opt,
                        uint32_t cap, const double *weights, const uint64_t *streams,
                        struct err *err)
{
    size_t out = j->like->b.shape[0], in = j->like->a.shape[1];
    struct deltas x;
    struct svd d = {0};
    struct worker_pool *pool = j->pool;
    const struct blend_source source = {out,     in, j->n_terms, weights,
                                        streams, &x, delta_rows, pool};
    const struct blend_rule rule = rule_of(opt);
    int rc = deltas_open(&x, j, expert, pool ? worker_pool_size(pool) : 1, err);
    if (!rc)
        rc = blend_prepare(&x.blend, &source, &rule, err);
    const struct svd_source matrix = {out, in, &x, blended_rows, pool};
    const struct svd_want want = {.rank = cap, .seed = 1};
    if (!rc)
        rc = svd_of_source(&d, &matrix, &want, err);
    if (!rc)
        keep(j, expert, &d, cap);
    svd_release(&d);
    deltas_release(&x);
    return rc;
}

static int compute_dense(struct combine_job *j, const struct combine_options *opt,
                         uint32_t n_experts, uint32_t cap, struct err *err)
{
    double *weights = sys_calloc(j->n_terms, sizeof *weights);
    uint64_t *streams = sys_calloc(j->n_terms, sizeof *streams);
    int rc = weights && streams ? 0 : no_memory(err);
    for (uint32_t e = 0; !rc && e < n_experts; e++) {
        for (size_t i = 0; i < j->n_terms; i++) {
            weights[i] = j->terms[i].weight;
            streams[i] = random_stream(j->terms[i].input->adapter->content_id, j->like->name,
                                       j->like->parameter, e);
        }
        rc = dense_expert(j, e, opt, cap, weights, streams, err);
    }
    sys_free(weights);
    sys_free(streams);
    return rc;
}

// ---- blends of the factors, as PEFT does it -----------------------------------------------------

struct factor_tensors {
    const struct combine_job *j;
    bool is_b;
};

static void factor_rows(void *arg, size_t term, size_t row0, size_t n, float *out,
                        unsigned thread_idx)
{
    const struct factor_tensors *x = arg;
    (void)thread_idx;
    const struct adapter_module *m = x->j->terms[term].module;
    const struct tensor *t = x->is_b ? &m->b : &m->a;
    const char *data = t->data;
    dtype_to_f32(t->dtype, data + row0 * t->shape[1] * (dtype_bits(t->dtype) / 8), out,
                 n * t->shape[1]);
}

/* One of the two: the sign of a negative weight goes to A. PEFT keeps the weights in float32. */
static int blend_factor(struct combine_job *j, const struct combine_options *opt, bool is_b,
                        double *weights, uint64_t *streams, float *to, struct err *err)
{
    const struct tensor *like = is_b ? &j->like->b : &j->like->a;
    struct factor_tensors x = {j, is_b};
    const struct blend_source source = {
        like->shape[0], like->shape[1], j->n_terms, weights, streams, &x, factor_rows, NULL};
    const struct blend_rule rule = rule_of(opt);
    for (size_t i = 0; i < j->n_terms; i++) {
        double f = j->terms[i].weight * j->terms[i].module->scale;
        weights[i] = (float)(is_b || f >= 0 ? sqrt(fabs(f)) : -sqrt(fabs(f)));
        streams[i] = random_stream(j->terms[i].input->adapter->content_id, j->like->name,
                                   is_b ? "B" : "A", 0);
    }
    struct blend *b = NULL;
    int rc = blend_prepare(&b, &source, &rule, err);
    size_t cols = like->shape[1];
    double *row = rc ? NULL : sys_reallocarray(NULL, cols, sizeof *row);
    float *scratch =
        rc ? NULL : sys_reallocarray(NULL, blend_scratch_floats(b, 1), sizeof *scratch);
    if (!rc && (!row || !scratch))
        rc = no_memory(err);
    for (size_t i = 0; !rc && i < like->shape[0]; i++) {
        rc = blend_rows(b, i, 1, scratch, row, 0, err);
        for (size_t c = 0; !rc && c < cols; c++)
            to[i * cols + c] = (float)row[c];
    }
    sys_free(row);
    sys_free(scratch);
    blend_free(b);
    return rc;
}

static int compute_factors(struct combine_job *j, const struct combine_options *opt,
                           struct err *err)
{
    double *weights = sys_calloc(j->n_terms, sizeof *weights);
    uint64_t *streams = sys_calloc(j->n_terms, sizeof *streams);
    int rc = weights && streams ? 0 : no_memory(err);
    if (!rc)
        rc = blend_factor(j, opt, false, weights, streams, j->result.a, err);
    if (!rc)
        rc = blend_factor(j, opt, true, weights, streams, j->result.b, err);
    sys_free(weights);
    sys_free(streams);
    j->result.rank = j->result.cap;
    return rc;
}

// ---- all of it ---------------------------------------------------------------------------------

int combine_compute(struct combine_job *j, const struct combine_options *opt, struct err *err)
{
    const struct adapter_module *like = j->like;
    enum combine_path path = opt->method->path;
    uint32_t n_experts = like->n_experts ? like->n_experts : 1;
    uint32_t cap = path == COMBINE_STACK     ? sum_of_ranks(j)
                   : path == COMBINE_FACTORS ? like->rank
                                             : rank_cap(j, opt);
    j->report = (struct combine_module){.n_terms = (uint32_t)j->n_terms, .exact = true};
    int rc = factors_open(&j->result, like->n_experts, (uint32_t)like->b.shape[0],
                          (uint32_t)like->a.shape[1], cap, err);
    if (rc)
        return rc;
    if (path == COMBINE_STACK)
        compute_stack(j, n_experts);
    else if (path == COMBINE_FACTORS)
        rc = compute_factors(j, opt, err);
    else if (path == COMBINE_DENSE)
        rc = compute_dense(j, opt, n_experts, cap, err);
    else
        rc = compute_sum(j, opt, n_experts, cap, err);
    if (!rc)
        factors_compact(&j->result);
    j->report.rank = j->result.rank;
    return rc;
}
