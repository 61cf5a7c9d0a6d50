/* The inner loops of every instruction set that this processor has, against plain sums. */
#include "kernels/cpu/isa/isa.h"

#include <stdio.h>
#include <stdlib.h>

#include "libcore/base/sys.h"
#include "tests/lib/test.h"

static const char *const names[] = {"plain", "avx2", "avx512", "amx"};
static const enum dtype types[] = {DTYPE_BF16, DTYPE_F16, DTYPE_F32};

static uint64_t state = 42;

static float random_value(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(state >> 32) * 0x1p-31f;
}

static float *floats(size_t n)
{
    float *f = sys_malloc((n + 1) * sizeof *f);
    if (!f)
        abort();
    for (size_t i = 0; i < n; i++)
        f[i] = random_value();
    return f;
}

/* Runs body for every table that can run here; says which cannot. */
static void for_tables(void (*body)(const struct isa_table *isa))
{
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const struct isa_table *isa = isa_select(names[i]);
        if (isa)
            body(isa);
        else
            printf("# this processor has no %s\n", names[i]);
    }
}

TEST(the_best_table_is_chosen_and_unknown_ones_are_not_there)
{
    const struct isa_table *best = isa_select(NULL);
    CHECK(best && isa_select(best->name) == best);
    CHECK(isa_select("plain") == &isa_plain);
    CHECK(isa_select("mmx") == NULL);
}

// ---- panels
// --------------------------------------------------------------------------------------

struct matrix {
    enum dtype t;
    size_t n, k;
    void *rows, *panels;
    float *values; // as stored
};

static struct matrix make_matrix(enum dtype t, size_t n, size_t k)
{
    struct matrix m = {t, n, k, NULL, NULL, floats(n * k)};
    size_t bytes = (n + ISA_PANEL - 1) / ISA_PANEL * isa_panel_bytes(t, k);
    m.rows = sys_malloc(n * k * 4 + 1);
    m.panels = sys_calloc(1, bytes + 1);
    if (!m.rows || !m.panels)
        abort();
    dtype_from_f32(t, m.values, m.rows, n * k);
    dtype_to_f32(t, m.rows, m.values, n * k);
    size_t row_bytes = k * dtype_bits(t) / 8, half = n / 2; // in two pieces
    isa_pack_rows(t, m.panels, k, 0, half, m.rows, row_bytes);
    isa_pack_rows(t, m.panels, k, half, n - half, (char *)m.rows + half * row_bytes, row_bytes);
    return m;
}

static void free_matrix(struct matrix *m)
{
    sys_free(m->rows);
    sys_free(m->panels);
    sys_free(m->values);
}

TEST(rows_come_back_from_panels)
{
    static const size_t shapes[][2] = {{1, 1}, {31, 7}, {32, 8}, {70, 33}, {129, 64}, {5, 1029}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (size_t j = 0; j < 3; j++) {
            struct matrix m = make_matrix(types[j], shapes[i][0], shapes[i][1]);
            float *row = floats(m.k);
            for (size_t r = 0; r < m.n; r++) {
                isa_unpack_row(m.t, m.panels, m.k, r, row);
                CHECK_MSG(memcmp(row, m.values + r * m.k, m.k * sizeof *row) == 0,
                          "%s %zu x %zu, row %zu", dtype_name(m.t), m.n, m.k, r);
            }
            sys_free(row);
            free_matrix(&m);
        }
    }
}

// ---- the product
// ---------------------------------------------------------------------------------

/* y (+)= W x for some rows; the error is held against the sum of absolute products. */
static void check_product(const struct isa_table *isa, const struct matrix *m, size_t rows,
                          bool add)
{
    size_t ldx = m->k + 3, ldy = m->n + 5, n_panels = (m->n + ISA_PANEL - 1) / ISA_PANEL;
    float *x = floats(rows * ldx), *y = floats(rows * ldy), *before = floats(rows * ldy);
    memcpy(before, y, rows * ldy * sizeof *y);
    double bound = strcmp(isa->name, "amx") == 0 ? 5e-6 : 1e-6; // activations of 16 bits
    size_t cut = n_panels / 2;                                  // as two threads would
    isa->gemm(m->t, m->panels, m->n, m->k, 0, cut, x, ldx, rows, y, ldy, add);
    isa->gemm(m->t, m->panels, m->n, m->k, cut, n_panels, x, ldx, rows, y, ldy, add);
    for (size_t r = 0; r < rows; r++) {
        for (size_t i = 0; i < ldy; i++) {
            double want = add ? before[r * ldy + i] : 0, size = fabs(want);
            if (i >= m->n) {
                CHECK(y[r * ldy + i] == before[r * ldy + i]); // beyond the output
                continue;
            }
            for (size_t k = 0; k < m->k; k++) {
                double p = (double)m->values[i * m->k + k] * x[r * ldx + k];
                want += p;
                size += fabs(p);
            }
            CHECK_MSG(fabs(y[r * ldy + i] - want) <= bound * size + 1e-30,
                      "%s, %s %zu x %zu, %zu rows: [%zu, %zu] = %g, want %g", isa->name,
                      dtype_name(m->t), m->n, m->k, rows, r, i, y[r * ldy + i], want);
        }
    }
    sys_free(x);
    sys_free(y);
    sys_free(before);
}

static void check_gemm(const struct isa_table *isa)
{
    static const size_t shapes[][2] = {{1, 1},    {33, 9},    {64, 64},
                                       {300, 37}, {70, 2100}, {100, 2080}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (size_t j = 0; j < 3; j++) {
            struct matrix m = make_matrix(types[j], shapes[i][0], shapes[i][1]);
            for (size_t rows = 1; rows <= 17; rows++)
                check_product(isa, &m, rows, rows % 2 == 0);
            check_product(isa, &m, 48, false);
            check_product(isa, &m, 101, true);
            free_matrix(&m);
        }
    }
}

TEST(products_of_all_shapes_and_types)
{
    for_tables(check_gemm);
}

/* A row's result is the same bits alone and among others: the order of summation is k's. */
static void check_invariance(const struct isa_table *isa)
{
    enum { ROWS = 77 };
    for (size_t j = 0; j < 4; j++) { // the last one as AMX takes it
        struct matrix m = make_matrix(types[j % 3], 160, j < 3 ? 1501 : 1536);
        float *x = floats(ROWS * m.k), *all = floats(ROWS * m.n), *one = floats(m.n);
        isa->gemm(m.t, m.panels, m.n, m.k, 0, 5, x, m.k, ROWS, all, m.n, false);
        for (size_t r = 0; r < ROWS; r++) {
            isa->gemm(m.t, m.panels, m.n, m.k, 0, 2, x + r * m.k, m.k, 1, one, m.n, false);
            isa->gemm(m.t, m.panels, m.n, m.k, 2, 5, x + r * m.k, m.k, 1, one, m.n, false);
            CHECK_MSG(memcmp(one, all + r * m.n, m.n * sizeof *one) == 0, "%s, %s: row %zu",
                      isa->name, dtype_name(m.t), r);
        }
        float *packed = floats(ROWS * m.n);
        size_t n_units = isa_units(ROWS, m.k);
        char *units = sys_aligned_alloc(64, n_units * ISA_UNIT_BYTES);
        isa->pack(m.t, m.k, x, m.k, ROWS, 0, n_units / 2, units);
        isa->pack(m.t, m.k, x, m.k, ROWS, n_units / 2, n_units, units);
        isa->gemm_packed(m.t, m.panels, m.n, m.k, 0, 5, units, ROWS, packed, m.n, false);
        CHECK_MSG(memcmp(packed, all, ROWS * m.n * sizeof *all) == 0, "%s, %s: packed", isa->name,
                  dtype_name(m.t));
        sys_free(units);
        sys_free(packed);
        sys_free(x);
        sys_free(all);
        sys_free(one);
        free_matrix(&m);
    }
}

TEST(a_row_alone_and_in_a_batch_gives_the_same_bits)
{
    for_tables(check_invariance);
}

static void check_dots(const struct isa_table *isa)
{
    for (size_t j = 0; j < 3; j++) {
        for (size_t k = 1; k < 70; k += 6) {
            struct matrix m = make_matrix(types[j], 7, k);
            float *x = floats(9 * k), out[9 * 8];
            isa->dots(m.t, m.rows, k * dtype_bits(m.t) / 8, 7, k, x, k, 9, out, 8);
            for (size_t r = 0; r < 9; r++) {
                for (size_t i = 0; i < 7; i++) {
                    double want = 0;
                    for (size_t c = 0; c < k; c++)
                        want += (double)m.values[i * k + c] * x[r * k + c];
                    CHECK_MSG(fabs(out[r * 8 + i] - want) < 2e-6 * (double)k,
                              "%s, k %zu: %g, want %g", isa->name, k, out[r * 8 + i], want);
                }
            }
            sys_free(x);
            free_matrix(&m);
        }
    }
}

TEST(dots_with_tails)
{
    for_tables(check_dots);
}

// ---- functions
// -----------------------------------------------------------------------------------

static void check_functions(const struct isa_table *isa)
{
    enum { N = 1037 };
    float g[N], u[N], out[N];
    for (int i = 0; i < N; i++) {
        g[i] = (float)(i - N / 2) * 0.25f; // -129 … 129: exp over- and underflows
        u[i] = 1.5f;
    }
    isa->silu_mul(g, u, out, N);
    for (int i = 0; i < N; i++) {
        double want = 1.5 * g[i] / (1 + exp(-(double)g[i]));
        CHECK_MSG(fabs(out[i] - want) <= 3e-7 * fabs(want) + 1e-35, "%s: silu(%g) = %g, want %g",
                  isa->name, g[i], out[i], want);
    }
    isa->gelu_tanh_mul(g, u, out, N);
    for (int i = 0; i < N; i++) {
        double x = g[i],
               want = 0.75 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
        CHECK_MSG(fabs(out[i] - want) <= 2e-6 * fabs(want) + 1e-6, "%s: gelu(%g) = %g, want %g",
                  isa->name, g[i], out[i], want);
    }
    for (size_t n = 1; n < N; n = n * 2 + 1) {
        double sum = 0;
        float max = -INFINITY;
        for (size_t i = 0; i < n; i++)
            max = g[i] > max ? g[i] : max;
        for (size_t i = 0; i < n; i++)
            sum += exp((double)g[i] - max);
        CHECK(isa->max(g, n) == max);
        CHECK(fabs(isa->sum_exp(g, max, n) - sum) <= 1e-6 * sum);
    }
}

TEST(activations_and_exponentials_to_the_last_places)
{
    for_tables(check_functions);
}

static void check_rows(const struct isa_table *isa)
{
    enum { N = 83 };
    float *x = floats(N), *w = floats(N), y[N], z[N];
    double sum = 0;
    for (int i = 0; i < N; i++)
        sum += (double)x[i] * x[i];
    isa->rms_norm(x, w, y, N, 1e-3f);
    for (int i = 0; i < N; i++)
        EXPECT_NEAR(y[i], x[i] / sqrt(sum / N + 1e-3) * w[i], 1e-6);
    memcpy(z, x, sizeof z);
    isa->axpy(z, w, 0.5f, N);
    for (int i = 0; i < N; i++)
        EXPECT_NEAR(z[i], x[i] + 0.5 * w[i], 1e-7);
    memcpy(z, x, sizeof z);
    isa->gain_bias(z, w, x, N);
    isa->gain_bias(z, NULL, w, N);
    for (int i = 0; i < N; i++)
        EXPECT_NEAR(z[i], (double)w[i] * x[i] + x[i] + w[i], 1e-6);
    for (size_t j = 0; j < 3; j++) {
        struct matrix m = make_matrix(types[j], 1, N);
        isa->to_f32(m.t, m.rows, y, N);
        CHECK(memcmp(y, m.values, sizeof y) == 0);
        free_matrix(&m);
    }
    sys_free(x);
    sys_free(w);
}

TEST(norms_sums_gains_and_conversions)
{
    for_tables(check_rows);
}
