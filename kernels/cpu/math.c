/* The math table: row norms of W + s B A (for DoRA), and a float32 product. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu_impl.h"
#include "libcore/base/sys.h"

// ---- row norms
// -----------------------------------------------------------------------------------

enum { NORM_COLUMNS = 256 }; // even

struct norms_run {
    struct device_model *m;
    const struct bound_part *part;
    const struct cpu_matrix *w;
    uint32_t row0;    // of the module within w
    const float *a;   // [rank, d_in] float32
    const float *b;   // [d_out, rank] float32
    float *a_columns; // [d_in, rank]
    char *b_panels;   // B in panels that lie under those of w; NULL: no A and B
    size_t panel0;    // of w, that holds row0
    float *scratch;
    double *out;
};

/* A block of columns of s B A for the 32 rows of a panel is a product of B's panel with A's
 * columns, so never more of the changed matrix exists than that block. */
static void norm_panels(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    const struct norms_run *r = arg;
    const struct isa_table *isa = r->m->isa;
    uint32_t d_in = r->w->n_cols, rank = r->part->module->rank, n = r->part->target->d_out;
    float *delta = r->scratch + (size_t)thread_idx * NORM_COLUMNS * ISA_PANEL;
    for (size_t p = begin; p < end; p++) {
        double sums[ISA_PANEL] = {0};
        const char *w =
            (const char *)r->w->data + (r->panel0 + p) * isa_panel_bytes(r->w->dtype, d_in);
        for (uint32_t k0 = 0; k0 < d_in; k0 += NORM_COLUMNS) {
            uint32_t n_k = d_in - k0 < NORM_COLUMNS ? d_in - k0 : NORM_COLUMNS;
            if (r->b_panels)
                isa->gemm(DTYPE_F32, r->b_panels + p * isa_panel_bytes(DTYPE_F32, rank), ISA_PANEL,
                          rank, 0, 1, r->a_columns + (size_t)k0 * rank, rank, n_k, delta, ISA_PANEL,
                          false);
            isa->add_squares(r->w->dtype, w, k0, n_k, r->b_panels ? delta : NULL,
                             (float)r->part->module->scale, sums);
        }
        for (size_t i = 0; i < ISA_PANEL; i++) {
            size_t row = (r->panel0 + p) * ISA_PANEL + i;
            if (row >= r->row0 && row < (size_t)r->row0 + n)
                r->out[row - r->row0] = sums[i];
        }
    }
}

static int norms_of_panels(struct cpu_backend *be, struct norms_run *r, struct err *err)
{
    uint32_t rank = r->part->module->rank, d_in = r->w->n_cols, n = r->part->target->d_out;
    r->panel0 = r->row0 / ISA_PANEL;
    size_t n_panels = (r->row0 + (size_t)n + ISA_PANEL - 1) / ISA_PANEL - r->panel0;
    r->scratch =
        sys_malloc(worker_pool_size(be->math_pool) * NORM_COLUMNS * ISA_PANEL * sizeof *r->scratch);
    r->a_columns = sys_malloc(((size_t)d_in * rank + 1) * sizeof *r->a_columns);
    if (rank > 0)
        r->b_panels = sys_calloc(n_panels, isa_panel_bytes(DTYPE_F32, rank));
    int rc = 0;
    if (!r->scratch || !r->a_columns || (rank > 0 && !r->b_panels)) {
        rc = err_set(err, ERR_NO_MEMORY, "no memory for row norms");
    } else {
        if (rank > 0)
            isa_pack_rows(DTYPE_F32, r->b_panels, rank, r->row0 % ISA_PANEL, n, r->b,
                          rank * sizeof *r->b);
        for (uint32_t j = 0; j < rank; j++) {
            for (uint32_t k = 0; k < d_in; k++)
                r->a_columns[(size_t)k * rank + j] = r->a[(size_t)j * d_in + k];
        }
        pthread_mutex_lock(&be->math_lock);
        worker_pool_run(be->math_pool, n_panels, 1, norm_panels, r);
        pthread_mutex_unlock(&be->math_lock);
    }
    sys_free(r->b_panels);
    sys_free(r->a_columns);
    sys_free(r->scratch);
    return rc;
}

/* Embeddings: rows of E^T are columns of E + s (B A)^T, summed over the vocabulary. */
static int embedding_norms(struct norms_run *r, struct err *err)
{
    uint32_t vocab = r->w->n_rows, dim = r->w->n_cols, rank = r->part->module->rank;
    float scale = (float)r->part->module->scale;
    float *row = sys_malloc(dim * sizeof *row);
    if (!row)
        return err_set(err, ERR_NO_MEMORY, "no memory for row norms");
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
    sys_free(row);
    return 0;
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
    r.a = a;
    r.b = b;
    int rc;
    if (!a || !b)
        rc = err_set(err, ERR_NO_MEMORY, "no memory for row norms");
    else if (place->site == SITE_EMBED)
        rc = embedding_norms(&r, err);
    else
        rc = norms_of_panels(be, &r, err);
    sys_free(a);
    sys_free(b);
    return rc;
}

// ---- product
// -------------------------------------------------------------------------------------

enum { MATMUL_ROWS = 16 };

struct matmul_run {
    const struct isa_table *isa;
    const float *a;
    const char *b_panels;
    float *c;
    float *scratch; // MATMUL_ROWS rows of c a thread
    size_t n, k;
    float scale;
    bool add;
};

/* c = (c +) scale * (a b): the sum over k is complete before it is scaled and added. */
static void matmul_rows(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    const struct matmul_run *r = arg;
    float *part = r->scratch + thread_idx * MATMUL_ROWS * r->n;
    if (r->k == 0)
        memset(part, 0, MATMUL_ROWS * r->n * sizeof *part); // the sum of nothing
    for (size_t i = begin; i < end; i += MATMUL_ROWS) {
        size_t rows = end - i < MATMUL_ROWS ? end - i : MATMUL_ROWS;
        r->isa->gemm(DTYPE_F32, r->b_panels, r->n, r->k, 0, (r->n + ISA_PANEL - 1) / ISA_PANEL,
                     r->a + i * r->k, r->k, rows, part, r->n, false);
        float *c = r->c + i * r->n;
        if (!r->add)
            memset(c, 0, rows * r->n * sizeof *c);
        r->isa->axpy(c, part, r->scale, rows * r->n);
    }
}

/* b[k, n] in panels: 32 columns side by side. */
static void pack_columns(const float *b, size_t n, size_t k, char *panels)
{
    size_t panel_bytes = isa_panel_bytes(DTYPE_F32, k);
    for (size_t j = 0; j < n; j += ISA_PANEL) {
        size_t width = n - j < ISA_PANEL ? n - j : ISA_PANEL;
        char *panel = panels + j / ISA_PANEL * panel_bytes;
        for (size_t i = 0; i < k; i++)
            memcpy(panel + i * ISA_PANEL * sizeof *b, b + i * n + j, width * sizeof *b);
    }
}

static int matmul(struct backend *base, const float *a, const float *b, float *c, size_t m,
                  size_t n, size_t k, float scale, bool add, struct err *err)
{
    struct cpu_backend *be = (struct cpu_backend *)base;
    size_t n_panels = (n + ISA_PANEL - 1) / ISA_PANEL;
    char *panels = sys_calloc(n_panels + 1, isa_panel_bytes(DTYPE_F32, k));
    float *scratch =
        sys_reallocarray(NULL, worker_pool_size(be->math_pool) * MATMUL_ROWS, (n + 1) * sizeof *c);
    struct matmul_run r = {be->isa, a, panels, c, scratch, n, k, scale, add};
    int rc = 0;
    if (!panels || !scratch) {
        rc = err_set(err, ERR_NO_MEMORY, "no memory for a product of %zu x %zu x %zu", m, n, k);
    } else {
        pack_columns(b, n, k, panels);
        pthread_mutex_lock(&be->math_lock);
        worker_pool_run(be->math_pool, m, MATMUL_ROWS, matmul_rows, &r);
        pthread_mutex_unlock(&be->math_lock);
    }
    sys_free(panels);
    sys_free(scratch);
    return rc;
}

const struct backend_math cpu_math = {.row_norms = row_norms,
                                      .matmul = matmul,
                                      .merge_open = cpu_merge_open,
                                      .merge_close = cpu_merge_close,
                                      .merge_lane_open = cpu_merge_lane_open,
                                      .merge_lane_close = cpu_merge_lane_close,
                                      .merge_delta = cpu_merge_delta,
                                      .sums_open = cpu_sums_open,
                                      .sums_close = cpu_sums_close,
                                      .sums = cpu_sums};
