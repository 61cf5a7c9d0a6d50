#include <stdio.h>
#include <stdlib.h>

#include "libcore/adapter/capability.h"
#include "libcore/adapter/stats.h"
#include "libcore/base/sys.h"
#include "libcore/format/peft.h"
#include "tests/lib/test.h"

static double uniform(uint64_t *state)
{
    *state = *state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (double)(int64_t)(*state >> 11) / (double)(1ULL << 52) - 1;
}

/* Largest singular value of a dense matrix [m, n], by a long power iteration. */
static double dense_spectral(const double *w, size_t m, size_t n)
{
    double *v = malloc(n * sizeof *v), *u = malloc(m * sizeof *u), norm = 0;
    for (size_t i = 0; i < n; i++)
        v[i] = 1 + (double)(i % 7);
    for (int step = 0; step < 1000; step++) {
        double s = 0;
        for (size_t i = 0; i < n; i++)
            s += v[i] * v[i];
        for (size_t i = 0; i < n; i++)
            v[i] /= sqrt(s);
        norm = 0;
        for (size_t i = 0; i < m; i++) {
            u[i] = 0;
            for (size_t j = 0; j < n; j++)
                u[i] += w[i * n + j] * v[j];
            norm += u[i] * u[i];
        }
        for (size_t j = 0; j < n; j++) {
            v[j] = 0;
            for (size_t i = 0; i < m; i++)
                v[j] += w[i * n + j] * u[i];
        }
    }
    free(u);
    free(v);
    return sqrt(norm);
}

/* Dense norms of one expert's s B A; adds to *frobenius2, raises *spectral. */
static void dense(const struct adapter_module *m, size_t e, double *frobenius2, double *spectral)
{
    size_t in = m->a.shape[1], out = m->b.shape[0], r = m->rank;
    size_t n_experts = m->n_experts ? m->n_experts : 1;
    double *a = malloc(tensor_n_values(&m->a) * sizeof *a);
    double *b = malloc(tensor_n_values(&m->b) * sizeof *b);
    double *w = calloc(in * out, sizeof *w);
    dtype_to_f64(m->a.dtype, m->a.data, a, tensor_n_values(&m->a));
    dtype_to_f64(m->b.dtype, m->b.data, b, tensor_n_values(&m->b));
    for (size_t o = 0; o < out; o++) {
        for (size_t k = 0; k < r; k++) {
            double v = m->scale * b[o * r * n_experts + k * n_experts + e];
            for (size_t i = 0; i < in; i++)
                w[o * in + i] += v * a[(e * r + k) * in + i];
        }
    }
    for (size_t i = 0; i < in * out; i++)
        *frobenius2 += w[i] * w[i];
    *spectral = fmax(*spectral, dense_spectral(w, out, in));
    free(a);
    free(b);
    free(w);
}

static void compare(const char *path, size_t max_modules)
{
    struct adapter *a;
    struct adapter_stats *s;
    struct err err = {0};
    CHECK_OK(peft_read(&a, path, NULL, &err), err);
    CHECK_OK(stats_compute(&s, a, 2, &err), err);
    for (size_t i = 0; i < s->n && i < max_modules; i++) {
        const struct module_stats *m = &s->modules[i];
        double frobenius2 = 0, spectral = 0;
        if (!m->has_factors)
            continue;
        for (size_t e = 0; e < (m->module->n_experts ? m->module->n_experts : 1); e++)
            dense(m->module, e, &frobenius2, &spectral);
        EXPECT_NEAR(m->frobenius / sqrt(frobenius2), 1, 1e-9);
        EXPECT_NEAR(m->spectral / spectral, 1, 1e-6); // the iteration's own error
        EXPECT_NEAR(m->stable_rank, frobenius2 / (spectral * spectral), 1e-4);
    }
    stats_free(s);
    adapter_free(a);
}

TEST(norms_equal_those_of_the_dense_product)
{
    char path[4400];
    snprintf(path, sizeof path, "%s/examples/tinytalk/adapters/upper-lora", test_root());
    compare(path, 4);
    snprintf(path, sizeof path, "%s/examples/tinytalk/adapters/count-lora", test_root());
    compare(path, 4);
    if (!test_fixtures()) {
        test_skip("no fixtures beside the checkout");
        return;
    }
    snprintf(path, sizeof path, "%s/archs/mixtral/adapters/plain", test_fixtures());
    compare(path, 4);
    snprintf(path, sizeof path, "%s/kinds/llama-untied/adapters/embed", test_fixtures());
    compare(path, 2);
    snprintf(path, sizeof path, "%s/kinds/llama-untied/adapters/r1", test_fixtures());
    compare(path, 3);
}

TEST(eigenvalues_of_known_matrices)
{
    double diagonal[9] = {3, 0, 0, 0, -1, 0, 0, 0, 2}, values[64], scratch[64];
    stats_eigenvalues(diagonal, 3, values, scratch);
    EXPECT_NEAR(values[0], -1, 1e-15);
    EXPECT_NEAR(values[1], 2, 1e-15);
    EXPECT_NEAR(values[2], 3, 1e-15);
    double one[1] = {7};
    stats_eigenvalues(one, 1, values, scratch);
    EXPECT_NEAR(values[0], 7, 0);
    enum { N = 40 }; // second differences: 2 - 2 cos(k pi / (n + 1))
    double chain[N * N] = {0};
    for (size_t i = 0; i < N; i++) {
        chain[i * N + i] = 2;
        if (i)
            chain[i * N + i - 1] = chain[(i - 1) * N + i] = -1;
    }
    stats_eigenvalues(chain, N, values, scratch);
    for (size_t k = 0; k < N; k++)
        EXPECT_NEAR(values[k], 2 - 2 * cos((double)(k + 1) * M_PI / (N + 1)), 1e-13);
}

TEST(eigenvalues_keep_trace_and_square_sum)
{
    enum { N = 33 };
    double m[N * N], values[N], scratch[N], trace = 0, squares = 0, sum = 0, sum2 = 0;
    uint64_t state = 7;
    for (size_t i = 0; i < N; i++) {
        for (size_t j = 0; j <= i; j++)
            m[i * N + j] = m[j * N + i] = uniform(&state);
    }
    for (size_t i = 0; i < N * N; i++)
        squares += m[i] * m[i];
    for (size_t i = 0; i < N; i++)
        trace += m[i * N + i];
    stats_eigenvalues(m, N, values, scratch);
    for (size_t i = 0; i < N; i++) {
        sum += values[i];
        sum2 += values[i] * values[i];
        EXPECT(!i || values[i] >= values[i - 1]);
    }
    EXPECT_NEAR(sum, trace, 1e-12);
    EXPECT_NEAR(sum2, squares, 1e-11);
}

TEST(what_needs_the_base_is_said)
{
    char path[4400];
    struct adapter *a;
    struct adapter_stats *s;
    struct err err = {0};
    snprintf(path, sizeof path, "%s/examples/tinytalk/adapters/last-lora", test_root());
    CHECK_OK(peft_read(&a, path, NULL, &err), err);
    CHECK_OK(stats_compute(&s, a, 1, &err), err);
    size_t idx = (size_t)(adapter_find(a, "lm_head", NULL) - a->modules);
    EXPECT(s->modules[idx].needs_base && !s->modules[idx].has_factors);
    EXPECT_INT(s->modules[idx].n_parameters, 2048 * 256);
    EXPECT(s->frobenius > 0 && s->max_spectral > 0);
    stats_free(s);
    adapter_free(a);
}

TEST(factors_that_are_zero_have_no_norm)
{
    static const float zeros[64];
    struct adapter_module m = {.name = "x",
                               .parameter = "weight",
                               .rank = 2,
                               .scale = 2,
                               .a = {DTYPE_F32, 2, {2, 8}, zeros},
                               .b = {DTYPE_F32, 2, {8, 2}, zeros}};
    struct adapter a = {.modules = &m, .n_modules = 1};
    struct adapter_stats *s;
    struct err err = {0};
    CHECK_OK(stats_compute(&s, &a, 1, &err), err);
    EXPECT(s->modules[0].frobenius == 0 && s->modules[0].spectral == 0 &&
           s->modules[0].stable_rank == 0);
    stats_free(s);
}

static void expect_capability(const char *name, enum capability_use use, bool ok, const char *word)
{
    char path[4400];
    struct adapter *a;
    struct capability c;
    struct err err = {0};
    snprintf(path, sizeof path, "%s/examples/tinytalk/adapters/%s", test_root(), name);
    CHECK_OK(peft_read(&a, path, NULL, &err), err);
    capability_of(a, use, ~(unsigned)ADAPTER_EXPERTS, &c);
    EXPECT_MSG(c.ok == ok && strstr(c.why, word), "%s: %s: %d \"%s\"", name,
               capability_use_name(use), c.ok, c.why);
    adapter_free(a);
}

TEST(capabilities_follow_the_kinds)
{
    expect_capability("upper-lora", CAPABILITY_SERVE, true, "");
    expect_capability("upper-lora", CAPABILITY_SCALE, true, "");
    expect_capability("upper-lora", CAPABILITY_COMBINE, true, "");
    expect_capability("sort-lora", CAPABILITY_SERVE, true, "");
    expect_capability("sort-lora", CAPABILITY_SCALE, false, "DoRA: only alone and at scale 1");
    expect_capability("sort-lora", CAPABILITY_COMBINE, false, "DoRA");
    expect_capability("last-lora", CAPABILITY_SCALE, false, "full weights");
    expect_capability("first-lora", CAPABILITY_COMBINE, true, "");
    expect_capability("last-lora", CAPABILITY_COMBINE, true,
                      "full weights: taken over at weight 1");
    expect_capability("first-lora", CAPABILITY_SCALE, true, "");
    expect_capability("first-lora", CAPABILITY_MERGE, true, "tied");
    struct adapter experts = {.kinds = ADAPTER_LORA | ADAPTER_EXPERTS};
    struct capability c;
    capability_of(&experts, CAPABILITY_SERVE, ~(unsigned)ADAPTER_EXPERTS, &c);
    EXPECT(!c.ok && strstr(c.why, "experts"));
}

TEST(every_failed_allocation_of_stats_is_an_error)
{
    char path[4400];
    struct adapter *a;
    struct err err = {0};
    snprintf(path, sizeof path, "%s/examples/tinytalk/adapters/upper-lora", test_root());
    CHECK_OK(peft_read(&a, path, NULL, &err), err);
    for (uint64_t n = 1; n < 1000; n++) {
        struct adapter_stats *s;
        sys_fault(SYS_FAULT_FAIL, SYS_FAULT_MEM, n);
        int rc = stats_compute(&s, a, 1, &err);
        bool hit = sys_fault_hit();
        sys_fault(SYS_FAULT_OFF, 0, 0);
        stats_free(s);
        EXPECT(rc == (hit ? ERR_NO_MEMORY : 0));
        if (!hit)
            break;
    }
    adapter_free(a);
}
