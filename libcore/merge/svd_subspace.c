/*
 * The leading singular triples of a matrix that is read in tiles of rows: block subspace iteration.
 * A pass over M gives both Y = M W and, with Q from the pass before, nothing more; so a step is two
 * passes: Y = M W, Q = orth(Y); Z = M^T Q. The singular values of Z are the Ritz values: their
 * squares add up to the energy that the subspace holds, which only grows from step to step.
 */
#include <math.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/base/thread.h"
#include "libcore/merge/random.h"
#include "libcore/merge/svd_impl.h"

enum {
    TILE_VALUES = 1 << 18,    // of one tile: 2 MB
    KEEP_VALUES = 8 << 20,    // a matrix up to this is kept in float64: 64 MB
    KEEP32_VALUES = 64 << 20, // up to this in float32: 256 MB
    EXTRA_VECTORS = 10,       // beyond the rank (Halko et al. 4.2)
    MAX_STEPS = 12,
};
/* Steps end when the energy held grows by less than this share of all. Behind a gap that is at the
 * rounding; where there is none, more steps turn the vectors without holding more. */
static const double GROWTH = 1e-6;

/* Loops along l, compiled for what the processor has. All sums keep their order and nothing is
 * fused (-std=c11 allows no contraction), so every variant gives the same bits. */
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define FOR_EVERY_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EVERY_CPU
#endif

struct subspace {
    const struct svd_source *source;
    unsigned n_threads;
    double *kept;  // [m, n], rows; or NULL
    float *kept32; // the same of a larger one
    double *tile;  // of the rows in hand; not with `kept`
    size_t tile_rows;
    double total2;
    double *zeros, *spare; // a row of the matrix; four rows of y a thread
    double *w, *y;         // [n, l] and [m, l], rows: the inner loops run along l
    size_t l;
};

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* body over [0, n), on the pool where there is one. Ranges are any; sums must not depend on them.
 */
static void spread(const struct subspace *x, size_t n, size_t grain,
                   void (*body)(void *arg, size_t begin, size_t end, unsigned thread_idx),
                   void *arg)
{
    if (x->source->pool)
        worker_pool_run(x->source->pool, n, grain, body, arg);
    else
        body(arg, 0, n, 0);
}

// ---- tiles
// ---------------------------------------------------------------------------------------

/* Rows of the matrix that are worked on together: all that is kept, or a tile. */
struct stretch {
    struct subspace *x;
    size_t row0, n_rows;
    double *rows;     // [n_rows, n]
    double *squares;  // [n_rows], or NULL: not wanted
    struct err *errs; // [n_threads]
};

static void make_rows(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    const struct stretch *t = arg;
    const struct svd_source *s = t->x->source;
    double *rows = t->rows + begin * s->n;
    if (t->errs[thread_idx].code || begin == end)
        return;
    s->rows(s->arg, t->row0 + begin, end - begin, rows, thread_idx, &t->errs[thread_idx]);
    for (size_t i = begin; t->squares && i < end; i++)
        t->squares[i] = svd_dot(t->rows + i * s->n, t->rows + i * s->n, s->n);
}

static void widen_rows(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    const struct stretch *t = arg;
    size_t n = t->x->source->n;
    (void)thread_idx;
    for (size_t i = begin * n; i < end * n; i++)
        t->rows[i] = t->x->kept32[t->row0 * n + i];
}

/* Makes rows from the source, all threads together. */
static int make(struct stretch *t, struct err *err)
{
    struct err errs[SVD_MAX_THREADS] = {0};
    t->errs = errs;
    spread(t->x, t->n_rows, 1, make_rows, t);
    for (unsigned i = 0; i < t->x->n_threads; i++) {
        if (errs[i].code && err)
            *err = errs[i];
        if (errs[i].code)
            return errs[i].code;
    }
    return 0;
}

/* The next stretch from row0 on. */
static int stretch_at(struct subspace *x, size_t row0, struct stretch *t, struct err *err)
{
    const struct svd_source *s = x->source;
    *t = (struct stretch){.x = x, .row0 = row0, .n_rows = s->m - row0, .rows = x->kept};
    if (x->kept)
        return 0;
    t->n_rows = smaller(x->tile_rows, s->m - row0);
    t->rows = x->tile;
    if (!x->kept32)
        return make(t, err);
    spread(x, t->n_rows, 1, widen_rows, t);
    return 0;
}

/* Keeps the matrix when it is small enough; its energy, summed row after row. */
static int look(struct subspace *x, struct err *err)
{
    const struct svd_source *s = x->source;
    double *squares = svd_alloc(x->tile_rows, 1);
    int rc = squares ? 0 : svd_no_memory(err);
    for (size_t row = 0, n_rows; !rc && row < s->m; row += n_rows) {
        n_rows = smaller(x->tile_rows, s->m - row);
        struct stretch t = {.x = x, .row0 = row, .n_rows = n_rows, .squares = squares};
        t.rows = x->kept ? x->kept + row * s->n : x->tile;
        rc = make(&t, err);
        for (size_t i = 0; !rc && i < n_rows; i++)
            x->total2 += squares[i];
        for (size_t i = 0; !rc && x->kept32 && i < n_rows * s->n; i++)
            x->kept32[row * s->n + i] = (float)t.rows[i];
    }
    sys_free(squares);
    return rc;
}

/* y[r] += sum_j tile[r, j] w[j] for four rows at once. */
FOR_EVERY_CPU
static void add_forward(const double *const tile[4], size_t n, const double *w, size_t l,
                        double *const y[4])
{
    double *restrict y0 = y[0], *restrict y1 = y[1], *restrict y2 = y[2], *restrict y3 = y[3];
    for (size_t j = 0; j < n; j++) {
        const double f0 = tile[0][j], f1 = tile[1][j], f2 = tile[2][j], f3 = tile[3][j];
        const double *restrict from = w + j * l;
        for (size_t k = 0; k < l; k++) {
            y0[k] += f0 * from[k];
            y1[k] += f1 * from[k];
            y2[k] += f2 * from[k];
            y3[k] += f3 * from[k];
        }
    }
}

/* z[j] += sum_r tile[r, j] q[r] for four rows at once. */
FOR_EVERY_CPU
static void add_backward(const double *const tile[4], size_t n, const double *const q[4], size_t l,
                         double *z)
{
    const double *q0 = q[0], *q1 = q[1], *q2 = q[2], *q3 = q[3];
    for (size_t j = 0; j < n; j++) {
        const double f0 = tile[0][j], f1 = tile[1][j], f2 = tile[2][j], f3 = tile[3][j];
        double *restrict to = z + j * l;
        for (size_t k = 0; k < l; k++)
            to[k] = to[k] + f0 * q0[k] + f1 * q1[k] + f2 * q2[k] + f3 * q3[k];
    }
}

struct product {
    struct subspace *x;
    const struct stretch *t;
    const double *from; // w or q
    size_t l;
    double *to; // y or z
};

/* Some rows of y. */
static void forward_rows(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    const struct product *p = arg;
    const struct stretch *t = p->t;
    size_t n = p->x->source->n, l = p->l;
    double *spare = p->x->spare + (size_t)thread_idx * 4 * l;
    for (size_t i = begin; i < end; i += 4) {
        const double *rows[4];
        double *to[4];
        for (size_t r = 0; r < 4; r++) { // rows that are not there: zeros, into the spare ones
            rows[r] = i + r < end ? t->rows + (i + r) * n : p->x->zeros;
            to[r] = i + r < end ? p->to + (t->row0 + i + r) * l : spare + r * l;
        }
        add_forward(rows, n, p->from, l, to);
    }
}

/* y = M w */
static int forward(struct subspace *x, const double *w, size_t l, double *y, struct err *err)
{
    struct stretch t;
    memset(y, 0, x->source->m * l * sizeof *y);
    for (size_t row = 0; row < x->source->m; row += t.n_rows) {
        int rc = stretch_at(x, row, &t, err);
        if (rc)
            return rc;
        struct product p = {x, &t, w, l, y};
        spread(x, t.n_rows, 4, forward_rows, &p);
    }
    return 0;
}

/* Some rows of z, which are columns of the matrix: each sums up all of the stretch, in order. */
static void backward_columns(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    const struct product *p = arg;
    const struct stretch *t = p->t;
    size_t n = p->x->source->n, l = p->l;
    (void)thread_idx;
    for (size_t i = 0; i < t->n_rows; i += 4) {
        const double *rows[4], *from[4];
        for (size_t r = 0; r < 4; r++) {
            rows[r] = (i + r < t->n_rows ? t->rows + (i + r) * n : p->x->zeros) + begin;
            from[r] = p->from + (t->row0 + (i + r < t->n_rows ? i + r : 0)) * l;
        }
        add_backward(rows, end - begin, from, l, p->to + begin * l);
    }
}

/* z = M^T q */
static int backward(struct subspace *x, const double *q, size_t l, double *z, struct err *err)
{
    struct stretch t;
    memset(z, 0, x->source->n * l * sizeof *z);
    for (size_t row = 0; row < x->source->m; row += t.n_rows) {
        int rc = stretch_at(x, row, &t, err);
        if (rc)
            return rc;
        struct product p = {x, &t, q, l, z};
        spread(x, x->source->n, 1, backward_columns, &p);
    }
    return 0;
}

static void transpose(const double *a, size_t rows, size_t cols, double *out)
{
    for (size_t i = 0; i < rows; i++) {
        for (size_t j = 0; j < cols; j++)
            out[j * rows + i] = a[i * cols + j];
    }
}

/* Orthonormal columns for y [m, l] in rows. */
static int orthogonalise_rows(double *y, size_t m, size_t l, struct err *err)
{
    double *columns = svd_alloc(m, l), *r = svd_alloc(l, l);
    int rc = columns && r ? 0 : svd_no_memory(err);
    if (!rc) {
        transpose(y, m, l, columns);
        svd_orthogonalise(columns, m, l, r);
        transpose(columns, l, m, y);
    }
    sys_free(columns);
    sys_free(r);
    return rc;
}

/* M ~ Q Z^T with Z = a s b^T: u = Q b, v = a. */
static int ritz(struct subspace *x, struct svd *out, struct err *err)
{
    size_t m = x->source->m, n = x->source->n, l = x->l;
    struct svd z;
    double *columns = svd_alloc(n > m ? n : m, l);
    if (!columns)
        return svd_no_memory(err);
    transpose(x->w, n, l, columns);
    int rc = svd_dense(&z, columns, n, l, err);
    if (!rc) {
        svd_release(out);
        *out = (struct svd){.m = m, .n = n, .k = z.k, .s = z.s, .v = z.u, .total2 = x->total2};
        z.s = z.u = NULL;
        out->u = svd_alloc(m, z.k);
        transpose(x->y, m, l, columns);
        if (out->u)
            svd_multiply(columns, m, z.v, l, z.k, out->u);
        else
            rc = svd_no_memory(err);
        svd_release(&z);
    }
    sys_free(columns);
    return rc;
}

/* Goes on from the right vectors that are there. */
static int restart_from(struct subspace *x, const struct svd *d)
{
    for (size_t j = 0; j < x->source->n; j++) {
        for (size_t k = 0; k < x->l; k++)
            x->w[j * x->l + k] = k < d->k ? d->v[k * x->source->n + j] : 0;
    }
    return 0;
}

static void start(struct subspace *x, size_t from, uint64_t seed)
{
    for (size_t j = 0; j < x->source->n; j++) {
        for (size_t k = from; k < x->l; k++)
            x->w[j * x->l + k] = random_normal(seed, 0x73766421, j * 65536 + k);
    }
}

/* Steps until the wanted triples' energy stands still. */
static int iterate(struct subspace *x, const struct svd_want *want, struct svd *out,
                   struct err *err)
{
    double held = -1;
    for (int step = 0; step < MAX_STEPS; step++) {
        int rc = forward(x, x->w, x->l, x->y, err);
        if (!rc)
            rc = orthogonalise_rows(x->y, x->source->m, x->l, err);
        if (!rc)
            rc = backward(x, x->y, x->l, x->w, err);
        if (!rc)
            rc = ritz(x, out, err);
        if (rc)
            return rc;
        size_t k = want->rank && want->rank < out->k ? want->rank : out->k;
        double now = svd_kept2(out, k);
        if (now - held <= GROWTH * x->total2)
            break;
        held = now;
        rc = orthogonalise_rows(x->w, x->source->n, x->l, err);
        if (rc)
            return rc;
    }
    return 0;
}

/* ||M v_j - s_j u_j|| of the first k, in one more pass. */
static int measure(struct subspace *x, struct svd *d, size_t k, struct err *err)
{
    size_t m = d->m, n = d->n;
    double *w = svd_alloc(n, k), *y = svd_alloc(m, k), sum = 0;
    int rc = w && y ? 0 : svd_no_memory(err);
    if (!rc) {
        transpose(d->v, k, n, w);
        rc = forward(x, w, k, y, err);
    }
    for (size_t j = 0; !rc && j < k; j++) {
        for (size_t i = 0; i < m; i++) {
            double e = y[i * k + j] - d->s[j] * d->u[j * m + i];
            sum += e * e;
        }
    }
    d->residual = x->total2 > 0 ? sqrt(sum / x->total2) : 0;
    sys_free(w);
    sys_free(y);
    return rc;
}

static int grow(struct subspace *x, size_t l, const struct svd *d, uint64_t seed, struct err *err)
{
    sys_free(x->w);
    sys_free(x->y);
    x->l = l;
    sys_free(x->spare);
    x->spare = svd_alloc((size_t)4 * x->n_threads, l);
    x->w = svd_alloc(x->source->n, l);
    x->y = svd_alloc(x->source->m, l);
    if (!x->w || !x->y || !x->spare)
        return svd_no_memory(err);
    restart_from(x, d);
    start(x, d->k, seed);
    return 0;
}

static int leading(struct subspace *x, const struct svd_want *want, struct svd *out,
                   struct err *err)
{
    size_t most = smaller(x->source->m, x->source->n);
    size_t cap = want->rank ? smaller(want->rank, most) : most;
    size_t l = want->energy > 0 ? smaller(cap, 32) : cap;
    for (;;) {
        int rc = grow(x, smaller(l + EXTRA_VECTORS, most), out, want->seed, err);
        if (!rc)
            rc = iterate(x, want, out, err);
        if (rc)
            return rc;
        size_t k = svd_choose(out, want);
        bool enough = want->energy <= 0 || l >= cap || x->total2 == 0 ||
                      svd_kept2(out, smaller(l, out->k)) >= want->energy * x->total2;
        if (enough)
            return k ? measure(x, out, k, err) : 0;
        l = smaller(2 * l, cap);
    }
}

static int exactly(struct subspace *x, struct svd *out, struct err *err)
{
    size_t m = x->source->m, n = x->source->n;
    double *columns = svd_alloc(m, n);
    if (!columns)
        return svd_no_memory(err);
    transpose(x->kept, m, n, columns);
    int rc = svd_dense(out, columns, m, n, err);
    if (!rc)
        out->total2 = x->total2;
    sys_free(columns);
    return rc;
}

int svd_of_source(struct svd *out, const struct svd_source *source, const struct svd_want *want,
                  struct err *err)
{
    *out = (struct svd){0};
    struct subspace x = {.source = source, .n_threads = 1};
    if (source->pool)
        x.n_threads = worker_pool_size(source->pool);
    size_t least = smaller(source->m, source->n);
    x.tile_rows = TILE_VALUES / source->n ? TILE_VALUES / source->n : 1;
    x.tile = svd_alloc(x.tile_rows, source->n);
    bool small = least <= SVD_EXACT_MAX && source->m * source->n <= 4 * (size_t)KEEP_VALUES;
    if (small || source->m * source->n <= KEEP_VALUES)
        x.kept = svd_alloc(source->m, source->n);
    else if (source->m * source->n <= KEEP32_VALUES) // without it, it is made again for each pass
        x.kept32 = sys_reallocarray(NULL, source->m * source->n, sizeof *x.kept32);
    x.zeros = svd_alloc(source->n, 1);
    int rc = x.tile && x.zeros && (x.kept || !small) ? look(&x, err) : svd_no_memory(err);
    if (!rc)
        rc = small ? exactly(&x, out, err) : leading(&x, want, out, err);
    if (rc)
        svd_release(out);
    sys_free(x.kept);
    sys_free(x.kept32);
    sys_free(x.zeros);
    sys_free(x.spare);
    sys_free(x.tile);
    sys_free(x.w);
    sys_free(x.y);
    return rc;
}
