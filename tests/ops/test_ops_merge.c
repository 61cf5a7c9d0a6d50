/*
 * merge_delta and matmul of the back end under test (LORA_TEST_DEVICE, the CPU without): the bits
 * and the statistics of a merge are those of libcore/merge's own loops, whatever computes.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/kernels.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"
#include "libcore/merge/values.h"
#include "tests/lib/random_tensor.h"
#include "tests/lib/test.h"

struct merge_case {
    const char *name;
    enum dtype dtype, factors;
    size_t n_rows, n_cols, n_pairs;
    uint32_t ranks[2];
    double size;  // of the deltas against the base
    bool on_ties; // the sums lie exactly between two values, or nearly
    bool dora;
};

static const struct merge_case cases[] = {
    {"bf16 r16", DTYPE_BF16, DTYPE_BF16, 64, 4096, 1, {16, 0}, 0.02, false, false},
    {"bf16 r1, odd columns", DTYPE_BF16, DTYPE_F32, 11, 777, 1, {1, 0}, 0.02, false, false},
    {"bf16 r5 + r64", DTYPE_BF16, DTYPE_F32, 33, 1024, 2, {5, 64}, 0.2, false, false},
    {"bf16 r256", DTYPE_BF16, DTYPE_F32, 200, 2048, 1, {256, 0}, 0.05, false, false},
    {"bf16 r17, far below an ulp", DTYPE_BF16, DTYPE_F16, 40, 512, 1, {17, 0}, 1e-5, false, false},
    {"bf16 ties", DTYPE_BF16, DTYPE_F32, 24, 600, 1, {2, 0}, 0, true, false},
    {"f16 r16", DTYPE_F16, DTYPE_F16, 64, 1000, 1, {16, 0}, 0.02, false, false},
    {"f16 r100", DTYPE_F16, DTYPE_F32, 19, 520, 1, {100, 0}, 0.1, false, false},
    {"f16 subnormal", DTYPE_F16, DTYPE_F32, 16, 512, 1, {8, 0}, 1e-7, false, false},
    {"f16 ties", DTYPE_F16, DTYPE_F32, 24, 600, 1, {2, 0}, 0, true, false},
    {"f32 r16", DTYPE_F32, DTYPE_F32, 40, 1100, 1, {16, 0}, 0.02, false, false},
    {"f32 r3 + r200", DTYPE_F32, DTYPE_BF16, 33, 513, 2, {3, 200}, 0.1, false, false},
    {"bf16 DoRA r33", DTYPE_BF16, DTYPE_F32, 200, 700, 1, {33, 0}, 0.02, false, true},
    {"f32 DoRA", DTYPE_F32, DTYPE_F32, 9, 520, 1, {16, 0}, 0.02, false, true},
    {"bf16, float64 factors", DTYPE_BF16, DTYPE_F64, 20, 90, 1, {7, 0}, 0.02, false, false},
    {"e4m3 r16", DTYPE_F8_E4M3, DTYPE_F32, 70, 600, 1, {16, 0}, 0.05, false, false},
    {"one column", DTYPE_BF16, DTYPE_F32, 9, 1, 1, {3, 0}, 0.1, false, false},
};

struct world {
    struct tensor left[2], right[2], magnitude;
    struct values_pair pairs[2];
    struct values_matrix m;
    uint16_t *base; // where values have 16 bits
    size_t n_bytes; // of all of them
};

/* L = 1 and R = a half of W's last place and, in the second term, nothing or 2^-60 of it: only an
 * exact sum knows on which side of the middle it lies. */
static void put_on_ties(struct world *w, const struct merge_case *c)
{
    float *l = (float *)(uintptr_t)w->left[0].data, *r = (float *)(uintptr_t)w->right[0].data;
    double ulp = c->dtype == DTYPE_BF16 ? 0x1p-7 : 0x1p-10;
    for (size_t i = 0; i < c->n_rows; i++) {
        l[2 * i] = 1;
        l[2 * i + 1] = (float)((int)(i % 3) - 1);
    }
    for (size_t j = 0; j < c->n_cols; j++) {
        r[j] = (float)(ulp / 2) * (j % 2 ? 1 : -1);
        r[c->n_cols + j] = (float)(ulp * 0x1p-60);
    }
    for (size_t i = 0; i < c->n_rows * c->n_cols; i++)
        w->base[i] = (uint16_t)((c->dtype == DTYPE_BF16 ? 0x3F80 : 0x3C00) + i % 100);
    w->pairs[0].factor = 1;
}

static void make_world(struct world *w, const struct merge_case *c)
{
    memset(w, 0, sizeof *w);
    for (size_t t = 0; t < c->n_pairs; t++) {
        uint32_t r = c->ranks[t];
        w->left[t] = random_tensor(c->factors, c->n_rows, r, c->size);
        w->right[t] = random_tensor(c->factors, r, c->n_cols, 1);
        w->pairs[t] = (struct values_pair){
            {&w->left[t], 0, r, 1}, {&w->right[t], 0, c->n_cols, 1}, r, (t ? -0.5 : 1.0) * 2 / r};
    }
    struct tensor base =
        random_tensor(c->dtype, c->n_rows, c->n_cols, c->size < 1e-6 ? 1e-7 : 0.05);
    w->base = (uint16_t *)(uintptr_t)base.data;
    if (c->on_ties)
        put_on_ties(w, c);
    else if (c->n_cols > 2 && dtype_bits(c->dtype) == 16)
        w->base[1] = 0x8000; // a zero with a sign
    w->m = (struct values_matrix){.dtype = c->dtype,
                                  .source_dtype = c->dtype,
                                  .n_rows = c->n_rows,
                                  .n_cols = c->n_cols,
                                  .pairs = w->pairs,
                                  .n_pairs = c->n_pairs};
    w->n_bytes = c->n_rows * c->n_cols * (dtype_bits(c->dtype) / 8);
    if (c->dora) {
        w->magnitude = random_tensor(DTYPE_F32, c->n_rows, 1, 1);
        w->m.magnitude = &w->magnitude;
    }
}

static void release(struct world *w)
{
    for (int t = 0; t < 2; t++) {
        sys_free((void *)(uintptr_t)w->left[t].data);
        sys_free((void *)(uintptr_t)w->right[t].data);
    }
    sys_free((void *)(uintptr_t)w->magnitude.data);
    sys_free(w->base);
}

static struct backend *device(void)
{
    const char *name = getenv("LORA_TEST_DEVICE");
    struct backend_options opt = {.device = name && *name ? name : "cpu"};
    struct backend *be = NULL;
    struct err err = {0};
    if (kernels_open(&be, &opt, NULL, 0, &err) != 0) {
        fprintf(stderr, "%s\n", err.msg);
        abort();
    }
    return be;
}

/* In place, as the merge does it. */
static int merge(const struct world *w, struct backend *be, void *out, struct values_stats *st,
                 struct err *err)
{
    struct values_matrix m = w->m;
    struct values *v = NULL;
    struct values_scratch *s = NULL;
    m.device = be;
    struct values_block b = {.n_rows = m.n_rows,
                             .source = out,
                             .source_dtype = m.dtype,
                             .base = out,
                             .out = out,
                             .stats = st};
    memcpy(out, w->base, w->n_bytes);
    int rc = values_prepare(&v, &m, err);
    if (!rc)
        rc = values_scratch_open(&s, err);
    if (!rc)
        rc = values_block(v, s, &b, err);
    values_scratch_free(s);
    values_free(v);
    return rc;
}

static void check_case(struct backend *be, const struct merge_case *c)
{
    struct world w;
    struct values_stats here, there;
    struct err err = {0};
    make_world(&w, c);
    size_t off = 0;
    uint8_t *a = sys_malloc(w.n_bytes), *b = sys_malloc(w.n_bytes);
    CHECK_OK(merge(&w, NULL, a, &here, &err), err);
    CHECK_OK(merge(&w, be, b, &there, &err), err);
    for (size_t i = 0; i < w.n_bytes; i++)
        off += a[i] != b[i];
    if (off || memcmp(&here, &there, sizeof here) != 0)
        printf("# %s: %zu of %zu bytes differ; base2 %a %a delta2 %a %a lost2 %a %a changed %llu "
               "%llu\n",
               c->name, off, w.n_bytes, here.base2, there.base2, here.delta2, there.delta2,
               here.lost2, there.lost2, (unsigned long long)here.n_changed,
               (unsigned long long)there.n_changed);
    EXPECT_INT(off, 0);
    EXPECT(memcmp(&here, &there, sizeof here) == 0);
    EXPECT(here.n_changed > 0 || c->size < 1e-4);
    sys_free(a);
    sys_free(b);
    release(&w);
}

TEST(a_device_merges_to_the_same_bits_and_statistics)
{
    struct backend *be = device();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        check_case(be, &cases[i]);
    be->ops->close(be);
}

TEST(what_does_not_fit_is_refused_alike)
{
    struct merge_case c = {"overflow", DTYPE_F16, DTYPE_F32, 4, 700, 1, {4, 0}, 0.1, false, false};
    struct backend *be = device();
    struct world w;
    struct values_stats st;
    struct err here = {0}, there = {0};
    make_world(&w, &c);
    uint16_t *out = sys_malloc(4 * 700 * 2);
    w.base[3 * 700 + 650] = 0x7BFF;        // the largest
    for (int sign = 0; sign < 2; sign++) { // whichever way the delta goes, one of the two overflows
        struct values_pair *p = &w.pairs[0];
        p->factor = sign ? -1e5 : 1e5;
        int rc = merge(&w, NULL, out, &st, &here);
        EXPECT_INT(merge(&w, be, out, &st, &there), rc);
        EXPECT_STR(there.msg, here.msg);
    }
    w.base[2 * 700 + 1] = 0x7E00;
    w.pairs[0].factor = 1;
    CHECK_CODE(merge(&w, be, out, &st, &there), ERR_CORRUPT, there);
    EXPECT(strstr(there.msg, "[2, 1]"));
    sys_free(out);
    release(&w);
    be->ops->close(be);
}

TEST(products_are_those_of_float64_within_float32)
{
    static const size_t shapes[][3] = {{1, 1, 1}, {65, 63, 130}, {16, 128, 300}, {7, 200, 0}};
    struct backend *be = device();
    struct err err = {0};
    for (size_t t = 0; t < sizeof shapes / sizeof shapes[0]; t++) {
        size_t m = shapes[t][0], n = shapes[t][1], k = shapes[t][2];
        struct tensor a = random_tensor(DTYPE_F32, m, k, 1), b = random_tensor(DTYPE_F32, k, n, 1),
                      c = random_tensor(DTYPE_F32, m, n, 1);
        const float *x = a.data, *y = b.data;
        float *z = (float *)(uintptr_t)c.data, *was = sys_malloc(m * n * sizeof *was);
        memcpy(was, z, m * n * sizeof *was);
        CHECK_OK(be->ops->math->matmul(be, x, y, z, m, n, k, 0.5f, true, &err), err);
        for (size_t i = 0; i < m * n; i++) {
            double sum = 0, size = 1;
            for (size_t q = 0; q < k; q++) {
                double p = (double)x[i / n * k + q] * y[q * n + i % n];
                sum += p;
                size += fabs(p);
            }
            EXPECT_NEAR(z[i], 0.5 * sum + was[i], size * (double)(k + 4) * 0x1p-24);
        }
        sys_free((void *)(uintptr_t)a.data);
        sys_free((void *)(uintptr_t)b.data);
        sys_free(z);
        sys_free(was);
    }
    be->ops->close(be);
}

/* LORA_TEST_PERF=1: values a second of one thread's lane, from and to the device's own host memory.
 */
TEST(perf_of_merge)
{
    static const uint32_t ranks[] = {16, 64, 256};
    bool measuring = getenv("LORA_TEST_PERF") != NULL;
    struct backend *be = device();
    for (size_t t = 0; t < sizeof ranks / sizeof ranks[0]; t++) {
        size_t rows = measuring ? 4096 : 32, cols = measuring ? 4096 : 512, n = rows * cols;
        struct merge_case c = {"perf", DTYPE_BF16,    DTYPE_F32, rows,  cols,
                               1,      {ranks[t], 0}, 0.02,      false, false};
        struct world w;
        struct values_stats st;
        struct err err = {0};
        double best = 1e9;
        make_world(&w, &c);
        void *out = be->ops->host_alloc(be, n * 2);
        for (int i = 0; i < (measuring ? 5 : 1); i++) {
            uint64_t start = thread_now_ns();
            CHECK_OK(merge(&w, be, out, &st, &err), err);
            double s = (double)(thread_now_ns() - start) * 1e-9;
            best = s < best ? s : best;
        }
        if (measuring)
            printf("# rank %3u: %zu x %zu in %.2f ms, %.2f G values/s, %.0f GFLOP/s\n", ranks[t],
                   rows, cols, best * 1e3, (double)n / best * 1e-9,
                   2.0 * ranks[t] * (double)n / best * 1e-9);
        be->ops->host_free(be, out);
        release(&w);
    }
    be->ops->close(be);
}
