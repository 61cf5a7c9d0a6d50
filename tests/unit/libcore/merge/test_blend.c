/*
 * The element-by-element rules against plain code that sorts whole tensors.
 */
#include <stdlib.h>

#include "libcore/base/thread.h"
#include "libcore/merge/blend.h"
#include "libcore/merge/random.h"
#include "tests/lib/test.h"

enum { ROWS = 37, COLS = 53, TERMS = 3, N = ROWS * COLS };

static float terms[TERMS][N];
static const double weights[TERMS] = {0.7, -0.5, 1.3};
static const uint64_t streams[TERMS] = {11, 22, 33};

static void rows(void *arg, size_t term, size_t row0, size_t n, float *out, unsigned thread_idx)
{
    (void)thread_idx;
    (void)arg;
    memcpy(out, terms[term] + row0 * COLS, n * COLS * sizeof *out);
}

/* coarse: few different values, so that thresholds fall among equals. */
static void fill(bool coarse)
{
    for (size_t t = 0; t < TERMS; t++) {
        for (size_t i = 0; i < N; i++) {
            double v = random_normal(5, t, i);
            terms[t][i] = (float)(coarse ? round(2 * v) / 2 : v);
        }
    }
}

static int order(const void *a, const void *b)
{
    const float *const *x = a, *const *y = b;
    if (fabsf(**x) != fabsf(**y))
        return fabsf(**x) > fabsf(**y) ? -1 : 1;
    return *x < *y ? -1 : *x > *y; // equal ones: the lowest index first
}

/* The term after pruning, by sorting it whole. */
static void prune(const struct blend_rule *r, size_t t, float *out)
{
    const float *sorted[N];
    memset(out, 0, N * sizeof *out);
    for (size_t i = 0; i < N; i++)
        sorted[i] = &terms[t][i];
    qsort(sorted, N, sizeof *sorted, order);
    size_t keep = (size_t)(r->density * N), top = (size_t)(r->gamma * N);
    if (top > N - keep)
        top = N - keep;
    for (size_t i = 0; i < N; i++) {
        size_t at = (size_t)(sorted[i] - terms[t]);
        bool kept = r->prune == BLEND_MAGNITUDE ? i < keep : i >= top && i < top + keep;
        if (r->density >= 1 || r->prune == BLEND_ALL)
            out[at] = terms[t][at];
        else if (r->prune == BLEND_RANDOM)
            out[at] = random_uniform(r->seed, streams[t], at) < r->density
                          ? (float)(terms[t][at] *
                                    (r->rescale == BLEND_BY_PROBABILITY ? 1 / r->density : 1))
                          : 0;
        else if (r->prune != BLEND_DELLA && kept)
            out[at] = terms[t][at];
    }
    for (size_t i = 0; i < N && r->prune == BLEND_DELLA && r->density < 1; i++) {
        size_t row = i / COLS, rank = 0;
        for (size_t c = 0; c < COLS; c++) {
            float other = fabsf(terms[t][row * COLS + c]), own = fabsf(terms[t][i]);
            rank += other < own || (other == own && row * COLS + c < i);
        }
        double p = r->density - r->epsilon + 2 * r->epsilon * ((double)rank / (COLS - 1));
        if (random_uniform(r->seed, streams[t], i) < p)
            out[i] = (float)(terms[t][i] * (r->rescale == BLEND_BY_PROBABILITY ? 1 / p : 1));
    }
}

static double reference(const struct blend_rule *r, float pruned[TERMS][N], const double *scale,
                        size_t i)
{
    double votes = 0, sum = 0, weight = 0;
    float plain = 0;
    int count = 0;
    for (size_t t = 0; t < TERMS; t++) {
        votes += weights[t] * scale[t] * pruned[t][i];
        plain += pruned[t][i];
    }
    int sign = (r->vote == BLEND_VOTE_PLAIN ? plain : votes) >= 0 ? 1 : -1;
    for (size_t t = 0; t < TERMS; t++) {
        double x = pruned[t][i], wx = weights[t] * scale[t] * x;
        double judged = r->vote == BLEND_VOTE_PLAIN ? x : wx;
        if (r->vote != BLEND_NO_VOTE && !(sign > 0 ? judged > 0 : judged < 0))
            continue;
        sum += wx;
        weight += weights[t];
        count++;
    }
    if (r->divisor == BLEND_BY_COUNT)
        return sum / (count ? count : 1);
    return r->divisor == BLEND_BY_WEIGHTS && fabs(weight) > 1e-8 ? sum / weight : sum;
}

static struct worker_pool *pool; // NULL: none helps

static void compare(const struct blend_rule *r, const char *what)
{
    static float pruned[TERMS][N];
    static double got[N];
    double scale[TERMS];
    float scratch[7 * TERMS * COLS];
    const struct blend_source source = {ROWS, COLS, TERMS, weights, streams, NULL, rows, pool};
    struct blend *b;
    struct err err = {0};
    CHECK_OK(blend_prepare(&b, &source, r, &err), err);
    CHECK(blend_scratch_floats(b, 7) <= sizeof scratch / sizeof *scratch);
    for (size_t row = 0; row < ROWS; row += 7)
        CHECK_OK(
            blend_rows(b, row, ROWS - row < 7 ? ROWS - row : 7, scratch, got + row * COLS, 0, &err),
            err);
    blend_free(b);
    for (size_t t = 0; t < TERMS; t++) {
        double before = 0, after = 0;
        prune(r, t, pruned[t]);
        for (size_t i = 0; i < N; i++) {
            before += fabs((double)terms[t][i]);
            after += fabs((double)pruned[t][i]);
        }
        scale[t] = r->rescale == BLEND_BY_L1 && after > 0 ? before / after : 1;
    }
    for (size_t i = 0; i < N; i++) {
        double want = reference(r, pruned, scale, i);
        if (fabs(got[i] - want) > 1e-12 * (1 + fabs(want))) {
            test_fail(__FILE__, __LINE__, "%s: value %zu is %.17g, want %.17g", what, i, got[i],
                      want);
            return;
        }
    }
}

TEST(every_rule_is_what_plain_code_makes_of_it)
{
    static const char *const prunes[] = {"all", "magnitude", "random", "della", "outliers"};
    static const double densities[] = {1, 0.9, 0.5, 0.2, 0.003};
    for (int coarse = 0; coarse < 2; coarse++) {
        fill(coarse);
        for (unsigned i = 0; i < 5 * 3 * 3 * 3 * 5; i++) {
            struct blend_rule r = {.prune = i % 5,
                                   .rescale = i / 5 % 3,
                                   .vote = i / 15 % 3,
                                   .divisor = i / 45 % 3,
                                   .density = densities[i / 135],
                                   .gamma = 0.05,
                                   .seed = 42};
            r.epsilon = fmin(0.15, fmin(r.density, 1 - r.density) / 2);
            for (unsigned n_threads = 0; n_threads < 4; n_threads += 3) {
                struct err err = {0};
                if (n_threads)
                    CHECK_OK(worker_pool_open(&pool, n_threads, &err), err);
                compare(&r, prunes[r.prune]);
                worker_pool_free(pool);
                pool = NULL;
            }
        }
    }
}

TEST(the_threshold_keeps_exactly_as_many_as_asked)
{
    fill(true);
    struct blend_rule r = {.prune = BLEND_MAGNITUDE, .density = 0.3};
    const double one = 1;
    const struct blend_source source = {ROWS, COLS, 1, &one, streams, NULL, rows, pool};
    struct blend *b;
    struct err err = {0};
    float scratch[COLS];
    double out[COLS];
    size_t kept = 0;
    CHECK_OK(blend_prepare(&b, &source, &r, &err), err);
    for (size_t row = 0; row < ROWS; row++) {
        CHECK_OK(blend_rows(b, row, 1, scratch, out, 0, &err), err);
        for (size_t c = 0; c < COLS; c++)
            kept += out[c] != 0;
    }
    CHECK_INT(kept, (size_t)(0.3 * N));
    blend_free(b);
    r.density = 1e-9; // mergekit keeps one at least
    r.at_least_one = true;
    kept = 0;
    CHECK_OK(blend_prepare(&b, &source, &r, &err), err);
    for (size_t row = 0; row < ROWS; row++) {
        CHECK_OK(blend_rows(b, row, 1, scratch, out, 0, &err), err);
        for (size_t c = 0; c < COLS; c++)
            kept += out[c] != 0;
    }
    CHECK_INT(kept, 1);
    blend_free(b);
}
