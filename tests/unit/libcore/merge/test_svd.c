#include <stdio.h>
#include <stdlib.h>

#include "libcore/base/philox.h"
#include "libcore/base/thread.h"
#include "libcore/merge/random.h"
#include "libcore/merge/svd.h"
#include "tests/lib/test.h"

static double *normal(size_t m, size_t n, uint64_t seed)
{
    double *a = malloc(m * n * sizeof *a);
    for (size_t i = 0; i < m * n; i++)
        a[i] = random_normal(seed, 1, i);
    return a;
}

/* a [m, r] times b [n, r]^T, all in columns, plainly. */
static double *product(const double *a, size_t m, const double *b, size_t n, size_t r)
{
    double *c = calloc(m * n, sizeof *c);
    for (size_t j = 0; j < n; j++) {
        for (size_t k = 0; k < r; k++) {
            for (size_t i = 0; i < m; i++)
                c[j * m + i] += a[k * m + i] * b[k * n + j];
        }
    }
    return c;
}

static double *copy_of(const double *a, size_t n)
{
    double *c = malloc(n * sizeof *c);
    memcpy(c, a, n * sizeof *c);
    return c;
}

static double norm(const double *a, size_t n)
{
    double s = 0;
    for (size_t i = 0; i < n; i++)
        s += a[i] * a[i];
    return sqrt(s);
}

/* || want - sum of the first k triples ||_F */
static double distance(const double *want, const struct svd *d, size_t k)
{
    double *c = copy_of(want, d->m * d->n);
    for (size_t t = 0; t < k; t++) {
        for (size_t j = 0; j < d->n; j++) {
            for (size_t i = 0; i < d->m; i++)
                c[j * d->m + i] -= d->s[t] * d->u[t * d->m + i] * d->v[t * d->n + j];
        }
    }
    double e = norm(c, d->m * d->n);
    free(c);
    return e;
}

/* Largest |<q_i, q_j> - (i == j)| over columns whose value is not 0. */
static double skewness(const double *q, size_t m, const struct svd *d)
{
    double worst = 0;
    for (size_t i = 0; i < d->k; i++) {
        for (size_t j = 0; j <= i && d->s[i] > d->s[0] * 1e-9; j++) {
            double s = 0;
            for (size_t k = 0; k < m; k++)
                s += q[i * m + k] * q[j * m + k];
            worst = fmax(worst, fabs(s - (i == j)));
        }
    }
    return worst;
}

static void check(const double *a, const struct svd *d, double tolerance)
{
    double size = norm(a, d->m * d->n);
    EXPECT_NEAR(d->total2, size * size, 1e-12 * (size * size + 1));
    EXPECT(distance(a, d, d->k) <= tolerance * (size + 1e-300));
    EXPECT(skewness(d->u, d->m, d) < 1e-11);
    EXPECT(skewness(d->v, d->n, d) < 1e-11);
    for (size_t i = 1; i < d->k; i++)
        EXPECT(d->s[i] <= d->s[i - 1]);
}

TEST(philox_gives_the_published_numbers)
{
    static const struct {
        uint32_t counter[4], key[2], want[4];
    } known[] = {
        // Random123's kat_vectors, philox4x32 10
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        uint32_t out[4];
        philox4x32(known[i].counter, known[i].key, out);
        EXPECT(memcmp(out, known[i].want, sizeof out) == 0);
    }
}

TEST(random_numbers_depend_on_the_index_alone)
{
    double all[101], some[50];
    random_uniforms(7, 3, 0, 101, all);
    random_uniforms(7, 3, 51, 50, some);
    EXPECT(memcmp(all + 51, some, sizeof some) == 0);
    double sum = 0;
    for (size_t i = 0; i < 101; i++) {
        EXPECT(all[i] == random_uniform(7, 3, i) && all[i] >= 0 && all[i] < 1);
        sum += all[i];
    }
    EXPECT_NEAR(sum / 101, 0.5, 0.1);
    EXPECT(random_uniform(7, 3, 1) != random_uniform(8, 3, 1));
    EXPECT(random_uniform(7, 3, 1) != random_uniform(7, 4, 1));
    EXPECT(random_stream("ab", "c", "", 0) != random_stream("a", "bc", "", 0));
    EXPECT(random_stream("a", "b", "", 0) != random_stream("a", "b", "", 1));
}

TEST(dense_matrices_come_back_from_their_triples)
{
    static const size_t shapes[][2] = {{1, 1}, {5, 1}, {1, 5}, {40, 40}, {97, 31}, {31, 97}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        size_t m = shapes[i][0], n = shapes[i][1];
        double *a = normal(m, n, i), *c = copy_of(a, m * n);
        struct svd d;
        struct err err = {0};
        CHECK_OK(svd_dense(&d, c, m, n, &err), err);
        CHECK_INT(d.k, m < n ? m : n);
        EXPECT(d.exact);
        check(a, &d, 1e-13);
        svd_release(&d);
        free(a);
        free(c);
    }
}

TEST(the_values_of_a_known_matrix_are_known)
{
    // [[3, 0], [4, 5]] has sqrt(45) and sqrt(5)
    double a[] = {3, 4, 0, 5};
    struct svd d;
    struct err err = {0};
    CHECK_OK(svd_dense(&d, a, 2, 2, &err), err);
    EXPECT_NEAR(d.s[0], sqrt(45), 1e-14);
    EXPECT_NEAR(d.s[1], sqrt(5), 1e-14);
    svd_release(&d);
}

TEST(nothing_is_decomposed_without_trouble)
{
    double a[12] = {0};
    struct svd d;
    struct err err = {0};
    const struct svd_want want = {.rank = 3};
    CHECK_OK(svd_dense(&d, a, 4, 3, &err), err);
    CHECK_INT(svd_choose(&d, &want), 0);
    EXPECT(d.total2 == 0);
    svd_release(&d);
}

TEST(products_are_decomposed_without_being_made)
{
    // {m, n, r}: thin, as wide as high, wider than one side, wider than both
    static const size_t cases[][3] = {{50, 40, 6}, {12, 40, 12}, {9, 60, 20}, {7, 8, 30}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t m = cases[i][0], n = cases[i][1], r = cases[i][2];
        double *l = normal(m, r, 10 + i), *q = normal(n, r, 20 + i);
        memcpy(l + (r - 1) * m, l, m * sizeof *l); // a column that depends on another
        double *a = product(l, m, q, n, r);
        const struct svd_want want = {0};
        struct svd d;
        struct err err = {0};
        CHECK_OK(svd_product(&d, l, m, q, n, r, &want, &err), err);
        check(a, &d, 1e-12);
        size_t most = r - 1 < m ? r - 1 : m;
        CHECK_INT(svd_choose(&d, &want), most < n ? most : n);
        svd_release(&d);
        free(l);
        free(q);
        free(a);
    }
}

TEST(the_leading_part_is_the_best_of_its_rank)
{
    // Eckart and Young: no matrix of rank k leaves less than the norm of the other values.
    size_t m = 60, n = 45;
    double *a = normal(m, n, 3), *c = copy_of(a, m * n);
    struct svd d;
    struct err err = {0};
    CHECK_OK(svd_dense(&d, c, m, n, &err), err);
    for (size_t k = 0; k <= n; k += 9)
        EXPECT_NEAR(distance(a, &d, k), sqrt(fmax(d.total2 - svd_kept2(&d, k), 0)), 1e-6);
    const struct svd_want want = {.energy = 0.9};
    size_t k = svd_choose(&d, &want);
    EXPECT(svd_kept2(&d, k) >= 0.9 * d.total2 && svd_kept2(&d, k - 1) < 0.9 * d.total2);
    svd_release(&d);
    free(a);
    free(c);
}

struct stored {
    const double *a; // columns
    size_t m, n, calls;
};

static int stored_rows(void *arg, size_t row0, size_t n_rows, double *out, unsigned thread_idx,
                       struct err *err)
{
    (void)thread_idx;
    struct stored *s = arg;
    (void)err;
    s->calls++;
    for (size_t i = 0; i < n_rows; i++) {
        for (size_t j = 0; j < s->n; j++)
            out[i * s->n + j] = s->a[j * s->m + row0 + i];
    }
    return 0;
}

/* The same of a matrix of 360 columns, for several threads. */
static int shared_rows(void *arg, size_t row0, size_t n_rows, double *out, unsigned thread_idx,
                       struct err *err)
{
    (void)thread_idx;
    (void)err;
    const double *a = arg; // columns of 420
    for (size_t i = 0; i < n_rows; i++) {
        for (size_t j = 0; j < 360; j++)
            out[i * 360 + j] = a[j * 420 + row0 + i];
    }
    return 0;
}

static int failing_rows(void *arg, size_t row0, size_t n_rows, double *out, unsigned thread_idx,
                        struct err *err)
{
    (void)thread_idx;
    (void)arg, (void)row0, (void)n_rows, (void)out;
    return err_set(err, ERR_IO, "no rows");
}

TEST(large_matrices_give_the_triples_of_small_ones)
{
    // beyond SVD_EXACT_MAX on both sides: 12 strong directions and noise
    size_t m = 420, n = 360, r = 12;
    double *l = normal(m, r, 31), *q = normal(n, r, 32), *noise = normal(m, n, 33);
    for (size_t k = 0; k < r; k++) {
        for (size_t i = 0; i < m; i++)
            l[k * m + i] *= 1.0 / (double)(k + 1);
    }
    double *a = product(l, m, q, n, r);
    for (size_t i = 0; i < m * n; i++)
        a[i] += 1e-3 * noise[i];
    struct stored s = {a, m, n, 0};
    const struct svd_source source = {m, n, &s, stored_rows, NULL};
    const struct svd_want want = {.rank = 8, .seed = 5}, by_energy = {.energy = 0.95, .seed = 5};
    struct svd d, e, exact;
    struct err err = {0};
    double *c = copy_of(a, m * n);
    CHECK_OK(svd_dense(&exact, c, m, n, &err), err);
    CHECK_OK(svd_of_source(&d, &source, &want, &err), err);
    EXPECT(!d.exact && d.residual < 1e-4);
    CHECK_INT(svd_choose(&d, &want), 8);
    for (size_t k = 0; k < 8; k++)
        EXPECT_NEAR(d.s[k], exact.s[k], 1e-7 * exact.s[0]);
    EXPECT_NEAR(distance(a, &d, 8), distance(a, &exact, 8), 1e-6 * exact.s[0]);
    CHECK_OK(svd_of_source(&e, &source, &by_energy, &err), err);
    CHECK_INT(svd_choose(&e, &by_energy), svd_choose(&exact, &by_energy));
    svd_release(&d);
    CHECK_OK(svd_of_source(&d, &source, &want, &err), err); // again: the same bits
    svd_release(&e);
    CHECK_OK(svd_of_source(&e, &source, &want, &err), err);
    EXPECT(memcmp(d.u, e.u, m * 8 * sizeof *d.u) == 0);
    svd_release(&e);
    for (unsigned n_threads = 1; n_threads < 8; n_threads += 3) { // however many help
        struct worker_pool *pool;
        CHECK_OK(worker_pool_open(&pool, n_threads, &err), err);
        const struct svd_source shared = {m, n, a, shared_rows, pool};
        CHECK_OK(svd_of_source(&e, &shared, &want, &err), err);
        EXPECT(memcmp(d.u, e.u, m * 8 * sizeof *d.u) == 0);
        EXPECT(memcmp(d.v, e.v, n * 8 * sizeof *d.v) == 0);
        EXPECT(d.total2 == e.total2 && d.residual == e.residual);
        svd_release(&e);
        worker_pool_free(pool);
    }
    svd_release(&d);
    svd_release(&exact);
    free(l), free(q), free(noise), free(a), free(c);
}

TEST(a_large_matrix_of_low_rank_is_found_exactly)
{
    size_t m = 700, n = 330, r = 5;
    double *l = normal(m, r, 41), *q = normal(n, r, 42), *a = product(l, m, q, n, r);
    struct stored s = {a, m, n, 0};
    const struct svd_source source = {m, n, &s, stored_rows, NULL};
    const struct svd_want want = {.rank = 16, .seed = 1};
    struct svd d;
    struct err err = {0};
    CHECK_OK(svd_of_source(&d, &source, &want, &err), err);
    CHECK_INT(svd_choose(&d, &want), r);
    EXPECT(distance(a, &d, r) < 1e-12 * norm(a, m * n));
    EXPECT(d.residual < 1e-12);
    svd_release(&d);
    const struct svd_source broken = {m, n, &s, failing_rows, NULL};
    CHECK_CODE(svd_of_source(&d, &broken, &want, &err), ERR_IO, err);
    free(l), free(q), free(a);
}
