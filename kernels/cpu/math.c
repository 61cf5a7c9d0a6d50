/* The math table: row norms of W + s B A (for DoRA), and a float32 product. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu_impl.h"
#include "libcore/base/sys.h"

// ---- row norms
// -----------------------------------------------------------------------------------

struct norms_run {
    struct device_model *m;
    const struct bound_part *part;
    const struct cpu_matrix *w;
    uint32_t row0;  // of the module within w
    const float *a; // [rank, d_in] float32
    const float *b; // [d_out, rank] float32
    float *scratch; // two rows a thread
    double *out;
};

/* One row at a time: never more of the changed matrix than a row. */
static void norm_rows(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    const struct norms_run *r = arg;
    uint32_t k = r->w->n_cols, rank = r->part->module->rank;
    float scale = (float)r->part->module->scale;
    float *row = r->scratch + (size_t)thread_idx * 2 * k, *delta = row + k;
    for (size_t i = begin; i < end; i++) {
        cpu_matrix_row(r->m->isa, r->w, r->row0 + (uint32_t)i, row);
        memset(delta, 0, k * sizeof *delta);
        for (uint32_t j = 0; j < rank; j++)
            r->m->isa->axpy(delta, r->a + (size_t)j * k, r->b[i * rank + j], k);
        double sum = 0;
        for (uint32_t j = 0; j < k; j++) {
            double v = (double)row[j] + (double)(scale * delta[j]);
            sum += v * v;
        }
        r->out[i] = sum;
    }
}

/* Embeddings: rows of E^T are columns of E + s (B A)^T, summed over the vocabulary. */
static void embedding_norms(const struct norms_run *r)
{
    uint32_t vocab = r->w->n_rows, dim = r->w->n_cols, rank = r->part->module->rank;
    float scale = (float)r->part->module->scale;
    float *row = r->scratch;
    memset(r->out, 0, dim * sizeof *r->out);
    for (uint32_t t = 0; t < vocab; t++) {
        cpu_matrix_row(r->m->isa, r->w, t, row);
        for (uint32_t d = 0; d < dim; d++) {
            float delta = 0;
            for (uint32_t j = 0; j < rank; j++)
                delta += r->b[(size_t)d * rank + j] * r->a[(size_t)j * vocab + t];
            double v = (double)row[d] + (double)(scale * delta);
            r->out[d] += v * v;
        }
    }
}

static float *as_floats(const struct tensor *t)
{
    size_t n = tensor_n_values(t);
    float *f = sys_malloc((n + 1) * sizeof *f);
    if (f && tensor_present(t))
        dtype_to_f32(t->dtype, t->data, f, n);
    return f;
}

static int row_norms(struct backend *base, struct device_model *m, const struct bound_part *part,
                     double *out, struct err *err)
{
    struct cpu_backend *be = (struct cpu_backend *)base;
    const struct weight_place *place = &part->target->place;
    if (place->kind != WEIGHT_MATRIX || part->module->n_experts)
        return err_set(err, ERR_REFUSED, "%s: no row norms of this weight", part->module->name);
    struct norms_run r = {.m = m,
                          .part = part,
                          .w = cpu_site_matrix(m, place->layer, place->site),
                          .row0 = place->row0,
                          .out = out};
    float *a = as_floats(&part->module->a), *b = as_floats(&part->module->b);
    size_t n_threads = worker_pool_size(be->math_pool);
    r.a = a;
    r.b = b;
    r.scratch = sys_malloc(n_threads * 2 * r.w->n_cols * sizeof *r.scratch);
    int rc = 0;
    if (!a || !b || !r.scratch) {
        rc = err_set(err, ERR_NO_MEMORY, "no memory for row norms");
    } else if (place->site == SITE_EMBED) {
        embedding_norms(&r);
    } else {
        pthread_mutex_lock(&be->math_lock);
        worker_pool_run(be->math_pool, part->target->d_out, 1, norm_rows, &r);
        pthread_mutex_unlock(&be->math_lock);
    }
    sys_free(r.scratch);
    sys_free(a);
    sys_free(b);
    return rc;
}

// ---- product
// -------------------------------------------------------------------------------------

struct matmul_run {
    const struct isa_table *isa;
    const float *a, *b;
    float *c;
    size_t n, k;
    float scale;
    bool add;
};

enum { MATMUL_COLUMNS = 4096 };

/* c = (c +) scale * (a b): the sum over k is complete before it is scaled and added. */
static void matmul_rows(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    const struct matmul_run *r = arg;
    (void)thread_idx;
    float acc[MATMUL_COLUMNS];
    for (size_t i = begin; i < end; i++) {
        for (size_t j0 = 0; j0 < r->n; j0 += MATMUL_COLUMNS) {
            size_t n = r->n - j0 < MATMUL_COLUMNS ? r->n - j0 : MATMUL_COLUMNS;
            memset(acc, 0, n * sizeof *acc);
            for (size_t k = 0; k < r->k; k++)
                r->isa->axpy(acc, r->b + k * r->n + j0, r->a[i * r->k + k], n);
            float *c = r->c + i * r->n + j0;
            if (!r->add)
                memset(c, 0, n * sizeof *c);
            r->isa->axpy(c, acc, r->scale, n);
        }
    }
}

static int matmul(struct backend *base, const float *a, const float *b, float *c, size_t m,
                  size_t n, size_t k, float scale, bool add, struct err *err)
{
    struct cpu_backend *be = (struct cpu_backend *)base;
    (void)err;
    struct matmul_run r = {be->isa, a, b, c, n, k, scale, add};
    pthread_mutex_lock(&be->math_lock);
    worker_pool_run(be->math_pool, m, 1, matmul_rows, &r);
    pthread_mutex_unlock(&be->math_lock);
    return 0;
}

const struct backend_math cpu_math = {.row_norms = row_norms, .matmul = matmul};
