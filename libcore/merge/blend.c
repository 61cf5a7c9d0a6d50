#include "libcore/merge/blend.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/base/thread.h"
#include "libcore/merge/random.h"

enum { TILE_VALUES = 1 << 18, N_BINS = 65536, MAX_THREADS = 256 };

/* What of a term's values is kept: |x| above `low` (equal to it: indices up to last_low) and below
 * `high` (equal: indices from first_high on). Bits of |x| order as |x| does. */
struct limits {
    uint32_t low, high;
    uint64_t last_low, first_high;
};

struct blend {
    const struct blend_source *source;
    struct blend_rule rule;
    struct limits *limits; // [n_terms]
    double *scales;        // [n_terms]
};

struct ranked {
    float magnitude;
    uint32_t idx;
};

static int no_memory(struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "combining: no memory");
}

static uint32_t magnitude_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x7FFFFFFF;
}

static bool prunes(const struct blend *b)
{
    return b->rule.prune != BLEND_ALL && b->rule.density < 1;
}

/* ---- exact thresholds ---- */

/* A pass over one term in tiles of rows, which threads share out. What a thread counts is its own;
 * what is summed up lies by tile, so that no sum depends on the threads. */
struct selection {
    const struct blend_source *source;
    struct blend *blend;
    size_t term, tile_rows, n_tiles;
    unsigned n_threads;
    float *tiles;           // [n_threads][tile]
    uint64_t *bins;         // [n_threads][N_BINS]
    double *before, *after; // [n_tiles]
    bool lower;             // count the lower 16 bits of those whose upper ones are `upper`
    uint32_t upper;
    struct err *errs; // [n_threads]
};

static void spread(struct selection *s,
                   void (*body)(void *arg, size_t begin, size_t end, unsigned thread_idx))
{
    if (s->source->pool)
        worker_pool_run(s->source->pool, s->n_tiles, 1, body, s);
    else
        body(s, 0, s->n_tiles, 0);
}

/* The values of tile number i; how many. */
static size_t load_tile(const struct selection *s, size_t i, unsigned thread_idx, float **tile)
{
    size_t cols = s->source->n_cols, row = i * s->tile_rows, n = s->source->n_rows - row;
    n = n < s->tile_rows ? n : s->tile_rows;
    *tile = s->tiles + (size_t)thread_idx * s->tile_rows * cols;
    s->source->rows(s->source->arg, s->term, row, n, *tile, thread_idx);
    return n * cols;
}

static void count_tiles(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    const struct selection *s = arg;
    uint64_t *bins = s->bins + (size_t)thread_idx * N_BINS;
    for (size_t i = begin; i < end; i++) {
        float *tile;
        size_t n = load_tile(s, i, thread_idx, &tile);
        for (size_t k = 0; k < n; k++) {
            uint32_t bits = magnitude_bits(tile[k]);
            if (!s->lower)
                bins[bits >> 16]++;
            else if (bits >> 16 == s->upper)
                bins[bits & 0xFFFF]++;
        }
    }
}

/* All threads' bins, in the first thread's. */
static void count(struct selection *s)
{
    memset(s->bins, 0, s->n_threads * N_BINS * sizeof *s->bins);
    spread(s, count_tiles);
    for (unsigned t = 1; t < s->n_threads; t++) {
        for (size_t i = 0; i < N_BINS; i++)
            s->bins[i] += s->bins[t * (size_t)N_BINS + i];
    }
}

/* The index of number `left` (from 0) of the values with these bits, in order. */
static uint64_t nth_equal(struct selection *s, uint32_t bits, uint64_t left)
{
    for (size_t i = 0; i < s->n_tiles; i++) {
        float *tile;
        size_t n = load_tile(s, i, 0, &tile);
        for (size_t k = 0; k < n; k++) {
            if (magnitude_bits(tile[k]) == bits && left-- == 0)
                return (uint64_t)i * s->tile_rows * s->source->n_cols + k;
        }
    }
    return UINT64_MAX;
}

/* The bin, from above, in which the k-th value (from 1) lies; *k becomes its number inside. */
static uint32_t bin_of(const uint64_t *bins, uint64_t *k)
{
    for (uint32_t bin = 65535;; bin--) {
        if (bins[bin] >= *k || bin == 0)
            return bin;
        *k -= bins[bin];
    }
}

/* The k-th largest |x| (k from 1): its bits, and the index of the last one equal to it that is
 * still among the k largest. */
static void select_kth(struct selection *s, uint64_t k, uint32_t *bits, uint64_t *last_idx)
{
    s->lower = false;
    count(s);
    s->upper = bin_of(s->bins, &k);
    s->lower = true;
    count(s);
    uint32_t lower = bin_of(s->bins, &k);
    *bits = s->upper << 16 | lower;
    *last_idx = s->bins[lower] == k ? UINT64_MAX // all that are equal to it
                                    : nth_equal(s, *bits, k - 1);
}

/* The k largest go beyond `low`; of them the first `n_top` are above `high`. */
static void set_limits(struct blend *b, struct selection *s)
{
    const struct blend_rule *r = &b->rule;
    struct limits *l = &b->limits[s->term];
    uint64_t n = (uint64_t)s->source->n_rows * s->source->n_cols;
    uint64_t keep = (uint64_t)(r->density * (double)n), top = 0;
    *l = (struct limits){.high = UINT32_MAX};
    if (r->prune == BLEND_OUTLIERS) {
        top = (uint64_t)(r->gamma * (double)n);
        top = top > n - keep ? n - keep : top; // density comes first
    } else if (r->at_least_one && keep == 0 && r->density > 0) {
        keep = 1;
    }
    if (keep == 0) {
        l->low = UINT32_MAX;
        return;
    }
    select_kth(s, keep + top, &l->low, &l->last_low);
    if (!top)
        return;
    select_kth(s, top, &l->high, &l->first_high);
    l->first_high = l->first_high == UINT64_MAX ? UINT64_MAX : l->first_high + 1;
}

static bool within(const struct limits *l, float x, uint64_t idx)
{
    uint32_t bits = magnitude_bits(x);
    if (bits < l->low || bits > l->high)
        return false;
    if (bits == l->low && idx > l->last_low)
        return false;
    return bits != l->high || idx >= l->first_high;
}

/* ---- pruning rows ---- */

static int by_magnitude(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    if (x->magnitude != y->magnitude)
        return x->magnitude < y->magnitude ? -1 : 1;
    return x->idx < y->idx ? -1 : x->idx > y->idx;
}

/* Values [first, first + n) of a row, in place. */
static void keep_random(const struct blend *b, size_t term, uint64_t first, size_t n, float *x)
{
    enum { CHUNK = 512 };
    double u[CHUNK], p = b->rule.density;
    double f = b->rule.rescale == BLEND_BY_PROBABILITY ? 1 / p : 1;
    for (size_t i = 0; i < n; i += CHUNK) {
        size_t count = n - i < CHUNK ? n - i : CHUNK;
        random_uniforms(b->rule.seed, b->source->streams[term], first + i, count, u);
        for (size_t k = 0; k < count; k++)
            x[i + k] = u[k] < p ? (float)(x[i + k] * f) : 0;
    }
}

static void keep_by_rank(const struct blend *b, size_t term, uint64_t first, size_t n, float *x,
                         struct ranked *order)
{
    const struct blend_rule *r = &b->rule;
    for (size_t i = 0; i < n; i++)
        order[i] = (struct ranked){fabsf(x[i]), (uint32_t)i};
    qsort(order, n, sizeof *order, by_magnitude);
    for (size_t k = 0; k < n; k++) {
        size_t i = order[k].idx;
        double share = n > 1 ? (double)k / (double)(n - 1) : 0.5;
        double p = r->density - r->epsilon + 2 * r->epsilon * share;
        double f = r->rescale == BLEND_BY_PROBABILITY ? 1 / p : 1;
        bool kept = random_uniform(r->seed, b->source->streams[term], first + i) < p;
        x[i] = kept ? (float)(x[i] * f) : 0;
    }
}

static int prune_rows(const struct blend *b, size_t term, size_t row0, size_t n_rows, float *x,
                      struct err *err)
{
    size_t cols = b->source->n_cols;
    uint64_t first = (uint64_t)row0 * cols;
    struct ranked *order = NULL;
    if (!prunes(b))
        return 0;
    if (b->rule.density <= 0) {
        memset(x, 0, n_rows * cols * sizeof *x);
        return 0;
    }
    if (b->rule.prune == BLEND_DELLA && !(order = sys_reallocarray(NULL, cols, sizeof *order)))
        return no_memory(err);
    for (size_t i = 0; i < n_rows; i++) {
        if (b->rule.prune == BLEND_RANDOM)
            keep_random(b, term, first + i * cols, cols, x + i * cols);
        else if (b->rule.prune == BLEND_DELLA)
            keep_by_rank(b, term, first + i * cols, cols, x + i * cols, order);
    }
    sys_free(order);
    if (b->rule.prune == BLEND_MAGNITUDE || b->rule.prune == BLEND_OUTLIERS) {
        for (size_t i = 0; i < n_rows * cols; i++)
            x[i] = within(&b->limits[term], x[i], first + i) ? x[i] : 0;
    }
    return 0;
}

static void sum_tiles(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    struct selection *s = arg;
    for (size_t i = begin; i < end && !s->errs[thread_idx].code; i++) {
        float *tile;
        size_t n = load_tile(s, i, thread_idx, &tile);
        double before = 0, after = 0;
        for (size_t k = 0; k < n; k++)
            before += fabs((double)tile[k]);
        prune_rows(s->blend, s->term, i * s->tile_rows, n / s->source->n_cols, tile,
                   &s->errs[thread_idx]);
        for (size_t k = 0; k < n; k++)
            after += fabs((double)tile[k]);
        s->before[i] = before;
        s->after[i] = after;
    }
}

/* sum |x| before over sum |x| after, tile after tile. */
static int set_l1_scale(struct selection *s, struct err *err)
{
    struct err errs[MAX_THREADS] = {0};
    double before = 0, after = 0;
    s->errs = errs;
    spread(s, sum_tiles);
    for (unsigned t = 0; t < s->n_threads; t++) {
        if (errs[t].code && err)
            *err = errs[t];
        if (errs[t].code)
            return errs[t].code;
    }
    for (size_t i = 0; i < s->n_tiles; i++) {
        before += s->before[i];
        after += s->after[i];
    }
    s->blend->scales[s->term] = before < 1e-7 || after < 1e-7 ? 1 : before / after;
    return 0;
}

// ---- preparing ---------------------------------------------------------------------------------

static int prepare_terms(struct blend *b, struct selection *s, struct err *err)
{
    bool limits = b->rule.prune == BLEND_MAGNITUDE || b->rule.prune == BLEND_OUTLIERS;
    int rc = 0;
    for (s->term = 0; !rc && s->term < s->source->n_terms; s->term++) {
        if (limits && prunes(b))
            set_limits(b, s);
        if (b->rule.rescale == BLEND_BY_L1 && prunes(b))
            rc = set_l1_scale(s, err);
    }
    return rc;
}

int blend_prepare(struct blend **out, const struct blend_source *source,
                  const struct blend_rule *rule, struct err *err)
{
    struct selection s = {.source = source, .n_threads = 1};
    struct blend *b = sys_calloc(1, sizeof *b);
    *out = NULL;
    if (!b)
        return no_memory(err);
    b->source = source;
    b->rule = *rule;
    b->limits = sys_calloc(source->n_terms + 1, sizeof *b->limits);
    b->scales = sys_calloc(source->n_terms + 1, sizeof *b->scales);
    s.blend = b;
    s.tile_rows = TILE_VALUES / source->n_cols ? TILE_VALUES / source->n_cols : 1;
    s.n_tiles = (source->n_rows + s.tile_rows - 1) / s.tile_rows;
    if (source->pool)
        s.n_threads = worker_pool_size(source->pool);
    s.tiles = sys_reallocarray(NULL, s.n_threads * s.tile_rows * source->n_cols, sizeof *s.tiles);
    s.bins = sys_calloc((size_t)s.n_threads * N_BINS, sizeof *s.bins);
    s.before = sys_calloc(2 * s.n_tiles + 1, sizeof *s.before);
    int rc = b->limits && b->scales && s.tiles && s.bins && s.before ? 0 : no_memory(err);
    s.after = s.before ? s.before + s.n_tiles : NULL;
    for (size_t i = 0; !rc && i < source->n_terms; i++)
        b->scales[i] = 1;
    if (!rc)
        rc = prepare_terms(b, &s, err);
    sys_free(s.tiles);
    sys_free(s.bins);
    sys_free(s.before);
    if (rc) {
        blend_free(b);
        return rc;
    }
    *out = b;
    return 0;
}

void blend_free(struct blend *b)
{
    if (!b)
        return;
    sys_free(b->limits);
    sys_free(b->scales);
    sys_free(b);
}

// ---- adding up ---------------------------------------------------------------------------------

static int sign_of(double x)
{
    return (x > 0) - (x < 0);
}

/* Terms' values of one place lie `step` apart. */
static double blend_one(const struct blend *b, const float *x, size_t step)
{
    const struct blend_rule *r = &b->rule;
    size_t n = b->source->n_terms;
    const double *w = b->source->weights;
    double sum = 0, votes = 0, weights = 0;
    float plain = 0;
    size_t count = 0;
    for (size_t t = 0; t < n && r->vote != BLEND_NO_VOTE; t++) {
        votes += w[t] * b->scales[t] * x[t * step];
        plain += x[t * step];
    }
    bool by_weight = r->vote == BLEND_VOTE_WEIGHTED;
    int sign = (by_weight ? votes : (double)plain) >= 0 ? 1 : -1; // zero votes for plus, as PEFT
    for (size_t t = 0; t < n; t++) {
        double wx = w[t] * b->scales[t] * x[t * step];
        if (r->vote != BLEND_NO_VOTE && sign_of(by_weight ? wx : (double)x[t * step]) != sign)
            continue;
        sum += wx;
        weights += w[t];
        count++;
    }
    if (r->divisor == BLEND_BY_COUNT)
        return sum / (double)(count ? count : 1);
    if (r->divisor == BLEND_BY_WEIGHTS)
        return sum / (fabs(weights) < 1e-8 ? 1 : weights);
    return sum;
}

size_t blend_scratch_floats(const struct blend *b, size_t n_rows)
{
    return n_rows * b->source->n_cols * b->source->n_terms;
}

int blend_rows(const struct blend *b, size_t row0, size_t n_rows, float *scratch, double *out,
               unsigned thread_idx, struct err *err)
{
    const struct blend_source *s = b->source;
    size_t n = n_rows * s->n_cols;
    for (size_t t = 0; t < s->n_terms; t++) {
        s->rows(s->arg, t, row0, n_rows, scratch + t * n, thread_idx);
        int rc = prune_rows(b, t, row0, n_rows, scratch + t * n, err);
        if (rc)
            return rc;
    }
    for (size_t i = 0; i < n; i++)
        out[i] = blend_one(b, scratch + i, n);
    return 0;
}
