/* The math table of the CPU: row norms of changed matrices, gains, and the float32 product. */
#include "tests/ops/ops_cases.h"

/* ||W + s B A||^2 by rows (embedding: by columns of E + s (B A)^T), in double. */
static void reference_norms(const struct ops_rig *r, const struct ops_adapter *a, size_t p,
                            double *out)
{
    const struct model_module *mod = a->parts[p].target;
    const struct adapter_module *m = &a->modules[p];
    const float *w = r->weights[mod - r->modules->items];
    const float *va = a->values[p][VALUE_A], *vb = a->values[p][VALUE_B];
    uint32_t rows = m->embedding ? mod->d_in : mod->d_out;
    uint32_t cols = m->embedding ? mod->d_out : mod->d_in;
    for (uint32_t i = 0; i < rows; i++) {
        out[i] = 0;
        for (uint32_t k = 0; k < cols; k++) {
            double v = m->embedding ? w[(size_t)k * rows + i] : w[(size_t)i * cols + k];
            for (uint32_t j = 0; j < m->rank; j++)
                v += m->scale * vb[(size_t)i * m->rank + j] * va[(size_t)j * cols + k];
            out[i] += v * v;
        }
    }
}

static void check_norms(struct ops_rig *r)
{
    struct ops_adapter *a = &r->adapters[0];
    for (size_t p = 0; p < a->bound.n_parts; p++) {
        const struct model_module *mod = a->parts[p].target;
        uint32_t n = a->modules[p].embedding ? mod->d_in : mod->d_out;
        double *want = doubles(n), *got = doubles(n);
        struct err err = {0};
        if (mod->n_experts) {
            CHECK_CODE(r->be->ops->math->row_norms(r->be, r->dm, &a->parts[p], got, &err),
                       ERR_REFUSED, err);
        } else {
            reference_norms(r, a, p, want);
            CHECK_OK(r->be->ops->math->row_norms(r->be, r->dm, &a->parts[p], got, &err), err);
            for (uint32_t i = 0; i < n; i++)
                CHECK_MSG(fabs(got[i] - want[i]) <= 2e-6 * want[i], "%s, %s, row %u: %g, want %g",
                          r->c->name, mod->name, i, got[i], want[i]);
        }
        sys_free(want);
        sys_free(got);
    }
}

TEST(row_norms_of_every_module_with_its_adapter)
{
    for_cases(check_norms);
}

static void check_gains(struct ops_rig *r)
{
    struct ops_adapter *a = &r->adapters[0];
    struct err err = {0};
    for (size_t p = 0; p < a->bound.n_parts; p++) {
        const struct model_module *mod = a->parts[p].target;
        uint32_t n = a->modules[p].embedding ? mod->d_in : mod->d_out;
        if (mod->n_experts)
            continue;
        float magnitude[2048];
        double norms[2048];
        for (uint32_t i = 0; i < n; i++)
            magnitude[i] = 0.5f + (float)i;
        a->modules[p].magnitude =
            (struct tensor){.dtype = DTYPE_F32, .n_dims = 1, .shape = {n}, .data = magnitude};
        CHECK_OK(backend_set_gains(r->be, r->dm, &a->bound, &err), err);
        reference_norms(r, a, p, norms);
        for (uint32_t i = 0; i < n; i++)
            CHECK(fabs(a->parts[p].gain[i] - magnitude[i] / sqrt(norms[i])) <=
                  2e-6 * magnitude[i] / sqrt(norms[i]));
        sys_free(a->parts[p].gain);
        a->parts[p].gain = NULL;
        a->modules[p].magnitude.shape[0] = n - 1;
        CHECK_CODE(backend_set_gains(r->be, r->dm, &a->bound, &err), ERR_INTERNAL, err);
        err_clear(&err);
        a->modules[p].magnitude = (struct tensor){0};
    }
}

TEST(gains_are_magnitude_over_norm)
{
    for_cases(check_gains);
}

TEST(an_adapter_is_not_packed_before_its_gains_are_set)
{
    struct ops_rig *r = sys_calloc(1, sizeof *r);
    struct err err = {0};
    uint64_t size;
    float magnitude[150] = {0};
    CHECK_OK(ops_open(r, &ops_cases[0], &err), err);
    struct adapter_module *m = &r->adapters[0].modules[1];
    m->magnitude =
        (struct tensor){.dtype = DTYPE_F32, .n_dims = 1, .shape = {72}, .data = magnitude};
    CHECK_CODE(r->be->ops->adapter_pack_size(r->be, r->dm, &r->adapters[0].bound, &size, &err),
               ERR_INTERNAL, err);
    m->magnitude = (struct tensor){0};
    ops_close(r);
    sys_free(r);
}

TEST(products_of_floats)
{
    static const size_t shapes[][3] = {{1, 1, 1}, {3, 5000, 7}, {65, 33, 130}, {4, 16, 0}};
    struct backend *be;
    struct backend_options opt = {.device = "cpu", .n_threads = 3};
    struct err err = {0};
    CHECK_OK(kernels_open(&be, &opt, NULL, 0, &err), err);
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        size_t m = shapes[s][0], n = shapes[s][1], k = shapes[s][2];
        struct ops_rig r = {.state = s + 1};
        float *a, *b, *c, *before;
        sys_free(ops_values(&r, DTYPE_F32, m * k, 1, &a));
        sys_free(ops_values(&r, DTYPE_F32, k * n, 1, &b));
        sys_free(ops_values(&r, DTYPE_F32, m * n, 1, &c));
        before = sys_malloc(m * n * sizeof *before);
        memcpy(before, c, m * n * sizeof *before);
        for (int add = 1; add >= 0; add--) {
            memcpy(c, before, m * n * sizeof *c);
            CHECK_OK(be->ops->math->matmul(be, a, b, c, m, n, k, 0.5f, add, &err), err);
            for (size_t i = 0; i < m * n; i++) {
                double want = 0;
                for (size_t j = 0; j < k; j++)
                    want += (double)a[i / n * k + j] * b[j * n + i % n];
                want = want * 0.5 + (add ? before[i] : 0);
                CHECK_MSG(fabs(c[i] - want) <= 1e-6 * (double)(k + 1), "[%zu]: %g, want %g", i,
                          c[i], want);
            }
        }
        sys_free(a);
        sys_free(b);
        sys_free(c);
        sys_free(before);
    }
    be->ops->close(be);
}
