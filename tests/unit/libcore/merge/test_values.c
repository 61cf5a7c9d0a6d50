/*
 * values: every stored number is the real sum rounded once. The reference sums in 113 bits
 * (__float128 of the compiler), where the products of these inputs are exact.
 */
#include <stdio.h>

#include "libcore/base/sys.h"
#include "libcore/merge/values.h"
#include "tests/lib/random_tensor.h"
#include "tests/lib/test.h"

typedef __float128 wide_real;

struct matrix_case {
    enum dtype dtype, factors; // stored, and A and B
    size_t n_rows, n_cols, n_pairs;
    uint32_t ranks[3];
    double size; // of the deltas against the base
    bool dora, embedding;
};

struct world {
    struct tensor left[3], right[3], magnitude;
    struct values_pair pairs[3];
    void *base, *out;
    struct values_matrix m;
};

static double value_of(const struct tensor *t, size_t i)
{
    double v = 0;
    dtype_to_f64(t->dtype, (const char *)t->data + i * (dtype_bits(t->dtype) / 8), &v, 1);
    return v;
}

static void make_world(struct world *w, const struct matrix_case *c)
{
    memset(w, 0, sizeof *w);
    for (size_t t = 0; t < c->n_pairs; t++) {
        uint32_t r = c->ranks[t];
        double f = (t ? -0.5 : 1.0) * 2.0 / r;
        if (c->embedding) { // A[r, vocab] is the right half of E^T
            w->left[t] = random_tensor(c->factors, r, c->n_rows, 1);
            w->right[t] = random_tensor(c->factors, c->n_cols, r, c->size);
            w->pairs[t] =
                (struct values_pair){{&w->left[t], 0, 1, c->n_rows}, {&w->right[t], 0, 1, r}, r, f};
        } else {
            w->left[t] = random_tensor(c->factors, c->n_rows, r, c->size);
            w->right[t] = random_tensor(c->factors, r, c->n_cols, 1);
            w->pairs[t] =
                (struct values_pair){{&w->left[t], 0, r, 1}, {&w->right[t], 0, c->n_cols, 1}, r, f};
        }
    }
    size_t n = c->n_rows * c->n_cols, bytes = dtype_bits(c->dtype) / 8;
    struct tensor base = random_tensor(c->dtype, c->n_rows, c->n_cols, 0.05);
    w->base = (void *)base.data;
    memset(w->base, 0, 3 * bytes); // zeros, one of them negative
    ((char *)w->base)[bytes - 1] = (char)0x80;
    w->out = sys_malloc(n * bytes);
    w->m = (struct values_matrix){.dtype = c->dtype,
                                  .source_dtype = c->dtype,
                                  .n_rows = c->n_rows,
                                  .n_cols = c->n_cols,
                                  .pairs = w->pairs,
                                  .n_pairs = c->n_pairs};
    if (c->dora) {
        w->magnitude = random_tensor(DTYPE_F32, c->n_rows, 1, 1);
        w->m.magnitude = &w->magnitude;
    }
}

static void release(struct world *w)
{
    for (int t = 0; t < 3; t++) {
        sys_free((void *)w->left[t].data);
        sys_free((void *)w->right[t].data);
    }
    sys_free((void *)w->magnitude.data);
    sys_free(w->base);
    sys_free(w->out);
}

static double base_at(const struct world *w, size_t i)
{
    struct tensor t = {.dtype = w->m.dtype, .data = w->base};
    return value_of(&t, i);
}

static wide_real sum_at(const struct world *w, size_t i, size_t j)
{
    wide_real sum = base_at(w, i * w->m.n_cols + j);
    for (size_t t = 0; t < w->m.n_pairs; t++) {
        const struct values_pair *p = &w->pairs[t];
        wide_real product = 0;
        for (size_t k = 0; k < p->rank; k++)
            product +=
                (wide_real)value_of(p->left.tensor,
                                    p->left.offset + i * p->left.row + k * p->left.col) *
                value_of(p->right.tensor, p->right.offset + k * p->right.row + j * p->right.col);
        sum += product * p->factor;
    }
    return sum;
}

/* Whether `got` is a nearest number of type t to x: no neighbour is nearer, and of two equally near
 * ones it is the even one. */
static bool is_nearest(enum dtype t, uint64_t got, wide_real x)
{
    uint64_t sign = UINT64_C(1) << (dtype_bits(t) - 1), magnitude = got & ~sign;
    double v;
    dtype_to_f64(t, &got, &v, 1);
    wide_real off = x > v ? x - v : v - x;
    for (int up = 0; up < 2; up++) {
        uint64_t other = magnitude || up ? (got & sign) | (magnitude + (up ? 1 : (uint64_t)-1))
                                         : (got ^ sign) | 1;
        double u;
        dtype_to_f64(t, &other, &u, 1);
        wide_real off_other = x > u ? x - u : u - x;
        if (off_other < off || (off_other == off && (got & 1)))
            return false;
    }
    return true;
}

static double gain_of(const struct world *w, size_t i)
{
    wide_real square = 0;
    for (size_t j = 0; j < w->m.n_cols; j++) {
        wide_real x = sum_at(w, i, j);
        square += x * x;
    }
    return value_of(&w->magnitude, i) / sqrt((double)square);
}

static void run_blocks(struct world *w, size_t block_rows, void *out, struct values_stats *total)
{
    struct values *v = NULL;
    struct values_scratch *s = NULL;
    struct err err = {0};
    size_t bytes = dtype_bits(w->m.dtype) / 8 * w->m.n_cols;
    *total = (struct values_stats){0};
    CHECK_OK(values_prepare(&v, &w->m, &err), err);
    CHECK_OK(values_scratch_open(&s, &err), err);
    for (size_t i = 0; i < w->m.n_rows; i += block_rows) {
        struct values_stats st;
        struct values_block b = {.row0 = i,
                                 .n_rows =
                                     w->m.n_rows - i < block_rows ? w->m.n_rows - i : block_rows,
                                 .source = (char *)w->base + i * bytes,
                                 .source_dtype = w->m.dtype,
                                 .base = (char *)w->base + i * bytes,
                                 .out = (char *)out + i * bytes,
                                 .stats = &st};
        CHECK_OK(values_block(v, s, &b, &err), err);
        values_stats_add(total, &st);
    }
    values_scratch_free(s);
    values_free(v);
}

/* DoRA's gain is a float64 number that may be the last bit off the reference's: a value that lies
 * that near to the middle of two may be either. */
static bool is_near_enough(enum dtype t, uint64_t got, wide_real sum, double gain)
{
    return is_nearest(t, got, sum * gain) || is_nearest(t, got, sum * gain * (1 + 0x1p-50)) ||
           is_nearest(t, got, sum * gain * (1 - 0x1p-50));
}

static void check_values(const struct matrix_case *c)
{
    struct world w;
    struct values_stats st;
    make_world(&w, c);
    run_blocks(&w, 7, w.out, &st);
    size_t bytes = dtype_bits(c->dtype) / 8, wrong = 0, changed = 0;
    for (size_t i = 0; i < c->n_rows; i++) {
        double gain = c->dora ? gain_of(&w, i) : 1;
        for (size_t j = 0; j < c->n_cols; j++) {
            uint64_t got = 0;
            size_t at = (i * c->n_cols + j) * bytes;
            memcpy(&got, (char *)w.out + at, bytes);
            changed += memcmp((char *)w.out + at, (char *)w.base + at, bytes) != 0;
            wide_real sum = sum_at(&w, i, j);
            wrong += c->dora ? !is_near_enough(c->dtype, got, sum, gain)
                             : !is_nearest(c->dtype, got, sum);
        }
    }
    EXPECT_MSG(wrong == 0, "%s from %s, %zu x %zu: %zu values are not the nearest",
               dtype_name(c->dtype), dtype_name(c->factors), c->n_rows, c->n_cols, wrong);
    EXPECT_INT(st.n_values, c->n_rows * c->n_cols);
    EXPECT_INT(st.n_changed, changed);
    release(&w);
}

static const struct matrix_case cases[] = {
    {DTYPE_BF16, DTYPE_F32, 61, 700, 1, {16}, 0.02, false, false},
    {DTYPE_BF16, DTYPE_BF16, 50, 513, 3, {3, 64, 1}, 1e-4, false, false},
    {DTYPE_BF16, DTYPE_F16, 33, 64, 1, {8}, 1e-6, false, false},
    {DTYPE_BF16, DTYPE_F32, 20, 300, 2, {200, 57}, 0.3, false, false},
    {DTYPE_F16, DTYPE_F32, 61, 700, 1, {16}, 0.02, false, false},
    {DTYPE_F16, DTYPE_BF16, 40, 90, 2, {16, 4}, 1e-5, false, false},
    {DTYPE_F32, DTYPE_F32, 50, 600, 1, {16}, 0.02, false, false},
    {DTYPE_F32, DTYPE_BF16, 50, 600, 2, {16, 9}, 1e-7, false, false},
    {DTYPE_F64, DTYPE_F32, 9, 40, 1, {5}, 0.02, false, false},
    {DTYPE_BF16, DTYPE_F64, 30, 100, 1, {7}, 0.02, false, false},
    {DTYPE_BF16, DTYPE_F32, 100, 65, 1, {16}, 0.02, false, true},
    {DTYPE_F32, DTYPE_F16, 100, 65, 1, {16}, 0.02, false, true},
    {DTYPE_BF16, DTYPE_F32, 40, 300, 1, {16}, 0.02, true, false},
    {DTYPE_F16, DTYPE_F32, 40, 300, 1, {16}, 0.02, true, false},
    {DTYPE_F32, DTYPE_F32, 40, 300, 1, {16}, 0.02, true, false},
    {DTYPE_F8_E4M3, DTYPE_F32, 61, 700, 1, {16}, 0.02, false, false},
    {DTYPE_F8_E4M3, DTYPE_BF16, 40, 90, 2, {16, 4}, 1, false, false},
    {DTYPE_F8_E4M3, DTYPE_F32, 30, 80, 1, {3}, 1e-4, false, true},
    {DTYPE_F8_E5M2, DTYPE_F32, 61, 700, 1, {16}, 0.02, false, false},
    {DTYPE_F8_E5M2, DTYPE_F16, 40, 300, 1, {16}, 1, true, false},
};

TEST(every_value_is_the_real_sum_rounded_once)
{
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_values(&cases[i]);
}

TEST(values_halfway_between_two_go_to_the_even_one)
{
    // W = 1, delta = half an ulp of bf16, exactly: 1 stays; 1 + ulp goes up.
    uint16_t base[2] = {0x3F80, 0x3F81}, out[2];
    float a[2] = {1, 1}, b[1] = {0x1p-8f};
    struct tensor left = {DTYPE_F32, 2, {1, 1}, b}, right = {DTYPE_F32, 2, {1, 2}, a};
    struct values_pair p = {{&left, 0, 1, 1}, {&right, 0, 2, 1}, 1, 1};
    struct world w = {.base = base};
    w.m = (struct values_matrix){.dtype = DTYPE_BF16,
                                 .source_dtype = DTYPE_BF16,
                                 .n_rows = 1,
                                 .n_cols = 2,
                                 .pairs = &p,
                                 .n_pairs = 1};
    struct values_stats st;
    run_blocks(&w, 1, out, &st);
    EXPECT_INT(out[0], 0x3F80);
    EXPECT_INT(out[1], 0x3F82);
    b[0] = 0x1.000002p-8f; // the least bit more
    run_blocks(&w, 1, out, &st);
    EXPECT_INT(out[0], 0x3F81);
    EXPECT_INT(st.n_changed, 2);
}

TEST(all_instruction_sets_and_block_sizes_give_the_same_bits)
{
    const char *names[4];
    size_t n_names = values_kernel_names(names, 4);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct world w;
        struct values_stats first, st;
        make_world(&w, &cases[i]);
        size_t bytes = w.m.n_rows * w.m.n_cols * (dtype_bits(w.m.dtype) / 8);
        void *other = sys_malloc(bytes);
        CHECK(values_use(names[0]));
        run_blocks(&w, 16, w.out, &first);
        for (size_t k = 0; k < n_names; k++) {
            CHECK(values_use(names[k]));
            run_blocks(&w, 16, other, &st);
            EXPECT_MSG(memcmp(other, w.out, bytes) == 0, "case %zu: %s differs from %s", i,
                       names[k], names[0]);
            EXPECT_MSG(memcmp(&st, &first, sizeof st) == 0, "case %zu: statistics of %s", i,
                       names[k]);
            run_blocks(&w, 5, other, &st);
            EXPECT_MSG(memcmp(other, w.out, bytes) == 0, "case %zu: blocks of 5 rows, %s", i,
                       names[k]);
        }
        sys_free(other);
        release(&w);
    }
    values_use(NULL);
    printf("# %zu instruction sets, best %s\n", n_names, names[n_names - 1]);
}

TEST(the_order_of_the_pairs_does_not_matter_beyond_the_exact_sum)
{
    struct matrix_case c = {DTYPE_BF16, DTYPE_F32, 64, 256, 2, {16, 16}, 0.02, false, false};
    struct world w;
    struct values_stats st;
    make_world(&w, &c);
    run_blocks(&w, 64, w.out, &st);
    struct values_pair swapped = w.pairs[0];
    w.pairs[0] = w.pairs[1];
    w.pairs[1] = swapped;
    void *other = sys_malloc(64 * 256 * 2);
    run_blocks(&w, 64, other, &st);
    EXPECT(memcmp(other, w.out, 64 * 256 * 2) == 0);
    sys_free(other);
    release(&w);
}

TEST(what_the_type_cannot_hold_is_refused_and_a_broken_base_named)
{
    uint16_t base[2] = {0x7BFF, 0x3C00}, out[2]; // 65504, 1
    float a[2] = {1, 1}, b[1] = {100};
    struct tensor left = {DTYPE_F32, 2, {1, 1}, b}, right = {DTYPE_F32, 2, {1, 2}, a};
    struct values_pair p = {{&left, 0, 1, 1}, {&right, 0, 2, 1}, 1, 1};
    struct values_matrix m = {.dtype = DTYPE_F16,
                              .source_dtype = DTYPE_F16,
                              .n_rows = 1,
                              .n_cols = 2,
                              .pairs = &p,
                              .n_pairs = 1};
    struct values *v = NULL;
    struct values_scratch *s = NULL;
    struct values_stats st;
    struct err err = {0};
    struct values_block block = {.n_rows = 1,
                                 .source = base,
                                 .source_dtype = DTYPE_F16,
                                 .base = base,
                                 .out = out,
                                 .stats = &st};
    CHECK_OK(values_prepare(&v, &m, &err), err);
    CHECK_OK(values_scratch_open(&s, &err), err);
    CHECK_CODE(values_block(v, s, &block, &err), ERR_REFUSED, err);
    EXPECT(strstr(err.msg, "F16"));
    base[0] = 0x7E00;
    CHECK_CODE(values_block(v, s, &block, &err), ERR_CORRUPT, err);
    EXPECT(strstr(err.msg, "[0, 0]"));
    base[0] = 0x3C00;
    CHECK_OK(values_block(v, s, &block, &err), err);
    EXPECT_INT(out[0], 0x5650); // 101
    values_scratch_free(s);
    values_free(v);
}

TEST(statistics_say_what_rounding_swallowed)
{
    enum { N = 4096 };
    uint16_t *base = sys_malloc(N * 2), *out = sys_malloc(N * 2);
    float *a = sys_malloc(N * sizeof *a), b[1] = {1};
    for (int i = 0; i < N; i++) {
        base[i] = 0x3F80;
        a[i] = i % 2 ? 0x1p-7f : 0x1p-12f; // one ulp, and far less than half of one
    }
    struct tensor left = {DTYPE_F32, 2, {1, 1}, b}, right = {DTYPE_F32, 2, {1, N}, a};
    struct values_pair p = {{&left, 0, 1, 1}, {&right, 0, N, 1}, 1, 1};
    struct world w = {.base = base};
    w.m = (struct values_matrix){.dtype = DTYPE_BF16,
                                 .source_dtype = DTYPE_BF16,
                                 .n_rows = 1,
                                 .n_cols = N,
                                 .pairs = &p,
                                 .n_pairs = 1};
    struct values_stats st;
    run_blocks(&w, 1, out, &st);
    EXPECT_INT(st.n_changed, N / 2);
    EXPECT_NEAR(st.base2, N, 1e-3);
    EXPECT_NEAR(st.delta2, N / 2 * (0x1p-14 + 0x1p-24), 1e-6);
    EXPECT_NEAR(st.lost2, N / 2 * 0x1p-24, 1e-9);
    sys_free(base);
    sys_free(out);
    sys_free(a);
}

TEST(vectors_are_summed_exactly_and_replacements_rounded_once)
{
    uint16_t base[3] = {0x3F80, 0x3F81, 0x8000}, out[3];
    float x[3] = {0x1p-8f, 0x1p-8f, 0};
    struct tensor t = {DTYPE_F32, 1, {3}, x};
    struct values_vector term = {&t, 1};
    struct values_stats st;
    struct err err = {0};
    struct values_block b = {.n_rows = 1,
                             .source = base,
                             .source_dtype = DTYPE_BF16,
                             .base = base,
                             .out = out,
                             .stats = &st};
    CHECK_OK(values_vector(DTYPE_BF16, 3, &term, 1, &b, &err), err);
    EXPECT_INT(out[0], 0x3F80);
    EXPECT_INT(out[1], 0x3F82);
    EXPECT_INT(out[2], 0x8000);
    float full[3] = {1 + 0x1p-8f, 0x1.030002p0f, 3};
    b.source = full;
    b.source_dtype = DTYPE_F32;
    CHECK_OK(values_replace(DTYPE_BF16, 1, 3, &b, &err), err);
    EXPECT_INT(out[0], 0x3F80);
    EXPECT_INT(out[1], 0x3F82);
    EXPECT_INT(out[2], 0x4040);
    EXPECT_INT(st.n_changed, 2);
}
