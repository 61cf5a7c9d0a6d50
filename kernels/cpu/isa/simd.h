/*
 * simd: the inner loops, in vectors of ISA_WIDTH floats (GCC's vector extensions, so that one text
 * serves every instruction set). Included once by each isa_*.c, which defines ISA_WIDTH
 * and the blocking ISA_BLOCKS(X) of the product, and then its table; never elsewhere.
 * alone with: -DISA_NAME='"alone"' -DISA_SYMBOL=isa_alone -DISA_WIDTH=4 -D'ISA_BLOCKS(X)=X(1, 1)'
 *
 * gemm: a block of M activation rows times U panels keeps M * U * 32 sums in registers; for every k
 * it loads 32 * U weights once and broadcasts M activations, which were packed to lie side by side.
 * Few rows take several panels at once, so that there are enough independent sums to hide the
 * latency of the multiply-add. 48 rows pass while a block of K_BLOCK k of the weights is in the
 * caches, so up to 48 rows read the weights from memory once.
 */
#ifndef KERNELS_CPU_ISA_SIMD_H
#define KERNELS_CPU_ISA_SIMD_H

#include <math.h>
#include <string.h>

#include "kernels/cpu/isa/isa.h"

/* The blocks for 32 registers of sixteen floats: rows, vectors. */
#define ISA_BLOCKS_512(X)                                                                          \
    X(1, 8) X(1, 2) X(2, 8) X(2, 2) X(3, 4) X(3, 2) X(4, 4) X(4, 2) X(6, 4) X(6, 2) X(8, 2) X(12, 2)

enum {
    W = ISA_WIDTH,
    PANEL_VECTORS = ISA_PANEL / ISA_WIDTH,
    K_BLOCK = ISA_UNIT_K,
    ROW_CHUNK = ISA_UNIT_ROWS
};

typedef float vf __attribute__((vector_size(ISA_WIDTH * 4)));
typedef int32_t vi __attribute__((vector_size(ISA_WIDTH * 4)));
typedef uint32_t vu __attribute__((vector_size(ISA_WIDTH * 4)));
typedef uint16_t vh __attribute__((vector_size(ISA_WIDTH * 2)));

#define INLINE static inline __attribute__((always_inline))

INLINE vf load(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store(float *p, vf v)
{
    memcpy(p, &v, sizeof v);
}

INLINE vf splat(float a)
{
    return a - (vf){0};
}

INLINE vf as_float(vu v)
{
    return (vf)v;
}

/* Half floats in the low 16 bits of each lane; Inf and NaN do not occur in weights. */
INLINE vf half_low(vu v)
{
    return as_float(((v & 0x7FFF) << 13)) * splat(0x1p112f);
}

INLINE vf with_sign(vf magnitude, vu sign)
{
    return as_float((vu)magnitude | sign);
}

/* The two k of a 16-bit pair. */
INLINE vf pair_even(enum dtype t, vu v)
{
    return t == DTYPE_BF16 ? as_float(v << 16) : with_sign(half_low(v), (v & 0x8000) << 16);
}

INLINE vf pair_odd(enum dtype t, vu v)
{
    return t == DTYPE_BF16 ? as_float(v & 0xFFFF0000u)
                           : with_sign(half_low(v >> 16), v & 0x80000000u);
}

INLINE vf load_as(enum dtype t, const void *p)
{
    if (t == DTYPE_F32)
        return load(p);
    vh h;
    memcpy(&h, p, sizeof h);
    return pair_even(t, __builtin_convertvector(h, vu));
}

INLINE float value_as(enum dtype t, const void *p)
{
    uint16_t h;
    float f;
    if (t == DTYPE_F32) {
        memcpy(&f, p, sizeof f);
        return f;
    }
    memcpy(&h, p, sizeof h);
    return t == DTYPE_BF16 ? dtype_bf16_to_f32(h) : dtype_f16_to_f32(h);
}

INLINE float sum_lanes(vf v)
{
    float lanes[W];
    store(lanes, v);
    for (int n = W / 2; n > 0; n /= 2)
        for (int i = 0; i < n; i++)
            lanes[i] += lanes[i + n];
    return lanes[0];
}

INLINE vf choose(vi mask, vf a, vf b)
{
    return (vf)((mask & (vi)a) | (~mask & (vi)b));
}

INLINE vf max_of(vf a, vf b)
{
    return choose(a > b, a, b);
}

/*
 * exp by 2^n * p(r), |r| <= ln2 / 2, Cephes' polynomial: 1 ulp or so over the whole range; below
 * -87.3 the result is 0 (a weight that small changes no float32 sum), above 88.3 it is 2^127.x.
 */
INLINE vf exp_of(vf x)
{
    vi tiny = x < splat(-87.3f);
    x = choose(x > splat(88.3f), splat(88.3f), choose(tiny, splat(-87.3f), x));
    vf shifter = splat(12582912.0f); // 1.5 * 2^23: adding rounds to an integer
    vf n = (x * splat(1.44269504088896341f) + shifter) - shifter;
    vf r = x - n * splat(0.693359375f);
    r = r - n * splat(-2.12194440e-4f);
    vf p = splat(1.9875691500e-4f);
    p = p * r + splat(1.3981999507e-3f);
    p = p * r + splat(8.3334519073e-3f);
    p = p * r + splat(4.1665795894e-2f);
    p = p * r + splat(1.6666665459e-1f);
    p = p * r + splat(5.0000001201e-1f);
    p = p * r * r + r + splat(1.0f);
    vi e = (__builtin_convertvector(n, vi) + 127) << 23;
    return choose(tiny, (vf){0}, p * (vf)e);
}

// ---- the product
// ---------------------------------------------------------------------------------

#define UNROLL _Pragma("GCC unroll 16")

INLINE void load_sums(vf *acc, const float *y, int n, bool add)
{
    UNROLL for (int i = 0; i < n; i++) acc[i] = add ? load(y + i * W) : (vf){0};
}

/*
 * One pass: M rows of packed activations, x[k][M], over V vectors of outputs (a part of a panel, or
 * whole panels `stride` bytes apart), n_steps k (16-bit types: pairs of k). Only the first `rows`
 * rows are read from and written to y.
 */
#define DEFINE_BLOCK(M, V)                                                                         \
    INLINE void block_##M##x##V(enum dtype t, const char *w, size_t stride, size_t n_steps,        \
                                const float *x, size_t rows, float *y, size_t ldy, bool add)       \
    {                                                                                              \
        vf acc[M][V];                                                                              \
        UNROLL for (int m = 0; m < (M); m++)                                                       \
            load_sums(acc[m], y + m * ldy, (V), add && m < (int)rows);                             \
        for (size_t i = 0; i < n_steps; i++, w += ISA_PANEL * 4) {                                 \
            vu v[V];                                                                               \
            UNROLL for (int n = 0; n < (V); n++) memcpy(                                           \
                &v[n], w + n / PANEL_VECTORS * stride + n % PANEL_VECTORS * W * 4, sizeof v[n]);   \
            vf part[V];                                                                            \
            UNROLL for (int n = 0; n < (V); n++) part[n] =                                         \
                t == DTYPE_F32 ? (vf)v[n] : pair_even(t, v[n]);                                    \
            UNROLL for (int m = 0; m < (M); m++)                                                   \
            {                                                                                      \
                vf xm = splat(x[m]);                                                               \
                UNROLL for (int n = 0; n < (V); n++) acc[m][n] += part[n] * xm;                    \
            }                                                                                      \
            x += (M);                                                                              \
            if (t == DTYPE_F32)                                                                    \
                continue;                                                                          \
            UNROLL for (int n = 0; n < (V); n++) part[n] = pair_odd(t, v[n]);                      \
            UNROLL for (int m = 0; m < (M); m++)                                                   \
            {                                                                                      \
                vf xm = splat(x[m]);                                                               \
                UNROLL for (int n = 0; n < (V); n++) acc[m][n] += part[n] * xm;                    \
            }                                                                                      \
            x += (M);                                                                              \
        }                                                                                          \
        UNROLL for (int m = 0; m < (M); m++)                                                       \
        {                                                                                          \
            if (m < (int)rows)                                                                     \
                UNROLL for (int n = 0; n < (V); n++) store(y + m * ldy + n * W, acc[m][n]);        \
        }                                                                                          \
    }                                                                                              \
    static void run_##M##x##V(enum dtype t, const char *w, size_t stride, size_t n_steps,          \
                              const float *x, size_t rows, float *y, size_t ldy, bool add)         \
    {                                                                                              \
        if (t == DTYPE_BF16)                                                                       \
            block_##M##x##V(DTYPE_BF16, w, stride, n_steps, x, rows, y, ldy, add);                 \
        else if (t == DTYPE_F16)                                                                   \
            block_##M##x##V(DTYPE_F16, w, stride, n_steps, x, rows, y, ldy, add);                  \
        else                                                                                       \
            block_##M##x##V(DTYPE_F32, w, stride, n_steps, x, rows, y, ldy, add);                  \
    }

ISA_BLOCKS(DEFINE_BLOCK)

struct block {
    unsigned rows, vectors; // vectors divide a panel's or are whole panels'
    void (*run)(enum dtype t, const char *w, size_t stride, size_t n_steps, const float *x,
                size_t rows, float *y, size_t ldy, bool add);
};

#define BLOCK_ENTRY(M, V) {M, V, run_##M##x##V},
/* By rising rows, then falling vectors; every row count has an entry of at most one panel. */
static const struct block blocks[] = {ISA_BLOCKS(BLOCK_ENTRY)};
enum { N_BLOCKS = sizeof blocks / sizeof blocks[0] };

/* The block for n_rows: the smallest that holds them, else the largest. */
static const struct block *find_block(size_t n_rows, size_t n_vectors)
{
    size_t rows = blocks[N_BLOCKS - 1].rows;
    for (int i = N_BLOCKS - 1; i >= 0; i--)
        rows = blocks[i].rows >= n_rows ? blocks[i].rows : rows;
    int i = 0;
    while (blocks[i].rows != rows || blocks[i].vectors > n_vectors)
        i++;
    return &blocks[i];
}

/* Activations of some rows and some k, in blocks of rows, each as [k][rows of the block]. */
struct packed_rows {
    size_t n_rows, n_k; // n_k: even where weights come in pairs
    float x[ROW_CHUNK * K_BLOCK];
};

static void pack_x(struct packed_rows *p, const float *x, size_t ldx, size_t n_rows, size_t n_k)
{
    p->n_rows = n_rows;
    p->n_k = (n_k + 1) / 2 * 2;
    float *to = p->x;
    for (size_t row = 0; row < n_rows;) {
        size_t m = find_block(n_rows - row, PANEL_VECTORS)->rows;
        size_t rows = n_rows - row < m ? n_rows - row : m;
        if (rows < m || n_k < p->n_k)
            memset(to, 0, m * p->n_k * sizeof *to);
        const float *from = x + row * ldx;
        for (size_t k = 0; k < n_k; k++) {
            for (size_t r = 0; r < rows; r++)
                to[k * m + r] = from[r * ldx + k];
        }
        to += m * p->n_k;
        row += rows;
    }
}

/* The packed rows over `n_panels` panels at one block of k, as many panels at a time as the first
 * block of rows takes. */
static void run_panels(enum dtype t, const char *w, size_t stride, size_t n_panels, size_t n_k,
                       const struct packed_rows *p, float *y, size_t ldy, bool add)
{
    size_t n_steps = t == DTYPE_F32 ? n_k : p->n_k / 2;
    for (size_t panel = 0; panel < n_panels;) {
        size_t vectors = find_block(p->n_rows, (n_panels - panel) * PANEL_VECTORS)->vectors;
        vectors = vectors < PANEL_VECTORS ? PANEL_VECTORS : vectors;
        const float *x = p->x;
        for (size_t row = 0; row < p->n_rows;) {
            const struct block *b = find_block(p->n_rows - row, vectors);
            size_t rows = p->n_rows - row < b->rows ? p->n_rows - row : b->rows;
            for (size_t v = 0; v < vectors; v += b->vectors)
                b->run(t, w + (panel + v / PANEL_VECTORS) * stride + v % PANEL_VECTORS * W * 4,
                       stride, n_steps, x, rows, y + row * ldy + panel * ISA_PANEL + v * W, ldy,
                       add);
            x += b->rows * p->n_k;
            row += rows;
        }
        panel += vectors / PANEL_VECTORS;
    }
}

/* The last panel when n_out is no multiple of 32: through a small buffer. */
static void run_edge(enum dtype t, const char *w, size_t stride, size_t n_k,
                     const struct packed_rows *p, float *y, size_t ldy, size_t n_valid, bool add)
{
    float part[ROW_CHUNK * ISA_PANEL];
    if (add) {
        memset(part, 0, sizeof part);
        for (size_t r = 0; r < p->n_rows; r++)
            memcpy(part + r * ISA_PANEL, y + r * ldy, n_valid * sizeof *y);
    }
    run_panels(t, w, stride, 1, n_k, p, part, ISA_PANEL, add);
    for (size_t r = 0; r < p->n_rows; r++)
        memcpy(y + r * ldy, part + r * ISA_PANEL, n_valid * sizeof *y);
}

/* One unit over the panels [panel0, panel1). */
static void run_unit(enum dtype t, const void *weights, size_t n_out, size_t k, size_t panel0,
                     size_t panel1, const struct packed_rows *p, struct isa_unit u, float *y,
                     size_t ldy, bool add)
{
    size_t stride = isa_panel_bytes(t, k);
    size_t whole = n_out / ISA_PANEL < panel1 ? n_out / ISA_PANEL : panel1;
    const char *w = (const char *)weights + isa_panel_bytes(t, u.k);
    y += u.row * ldy;
    add |= u.k > 0;
    if (panel0 < whole)
        run_panels(t, w + panel0 * stride, stride, whole - panel0, u.n_k, p, y + panel0 * ISA_PANEL,
                   ldy, add);
    if (whole < panel1)
        run_edge(t, w + whole * stride, stride, u.n_k, p, y + whole * ISA_PANEL, ldy,
                 n_out - whole * ISA_PANEL, add);
}

static void gemm(enum dtype t, const void *weights, size_t n_out, size_t k, size_t panel0,
                 size_t panel1, const float *x, size_t ldx, size_t n_rows, float *y, size_t ldy,
                 bool add)
{
    struct packed_rows p;
    for (size_t i = 0; i < isa_units(n_rows, k); i++) {
        struct isa_unit u = isa_unit_at(n_rows, k, i);
        pack_x(&p, x + u.row * ldx + u.k, ldx, u.n_rows, u.n_k);
        run_unit(t, weights, n_out, k, panel0, panel1, &p, u, y, ldy, add);
    }
}

_Static_assert(sizeof(struct packed_rows) <= ISA_UNIT_BYTES, "a unit holds packed rows");

static void pack_units(enum dtype t, size_t k, const float *x, size_t ldx, size_t n_rows,
                       size_t unit0, size_t unit1, void *units)
{
    (void)t;
    for (size_t i = unit0; i < unit1; i++) {
        struct isa_unit u = isa_unit_at(n_rows, k, i);
        void *to = (char *)units + i * ISA_UNIT_BYTES;
        pack_x(to, x + u.row * ldx + u.k, ldx, u.n_rows, u.n_k);
    }
}

static void gemm_packed(enum dtype t, const void *weights, size_t n_out, size_t k, size_t panel0,
                        size_t panel1, const void *units, size_t n_rows, float *y, size_t ldy,
                        bool add)
{
    for (size_t i = 0; i < isa_units(n_rows, k); i++) {
        const void *p = (const char *)units + i * ISA_UNIT_BYTES;
        run_unit(t, weights, n_out, k, panel0, panel1, p, isa_unit_at(n_rows, k, i), y, ldy, add);
    }
}

// ---- dot products of stored rows
// -----------------------------------------------------------------

/* NA rows of a by NR rows of x; every sum has its own vector of partial sums, whatever NA, NR. */
#define DEFINE_DOTS(NA, NR)                                                                        \
    INLINE void dots_##NA##x##NR(enum dtype t, const char *a, size_t a_stride, size_t k,           \
                                 const float *x, size_t ldx, float *out, size_t ldo)               \
    {                                                                                              \
        size_t value_bytes = t == DTYPE_F32 ? 4 : 2, whole = k / W * W;                            \
        vf acc[NA][NR];                                                                            \
        UNROLL for (int i = 0; i < (NA); i++) UNROLL for (int r = 0; r < (NR); r++) acc[i][r] =    \
            (vf){0};                                                                               \
        for (size_t j = 0; j < whole; j += W) {                                                    \
            vf xr[NR];                                                                             \
            UNROLL for (int r = 0; r < (NR); r++) xr[r] = load(x + r * ldx + j);                   \
            UNROLL for (int i = 0; i < (NA); i++)                                                  \
            {                                                                                      \
                vf v = load_as(t, a + i * a_stride + j * value_bytes);                             \
                UNROLL for (int r = 0; r < (NR); r++) acc[i][r] += v * xr[r];                      \
            }                                                                                      \
        }                                                                                          \
        for (int i = 0; i < (NA); i++) {                                                           \
            for (int r = 0; r < (NR); r++) {                                                       \
                float sum = sum_lanes(acc[i][r]);                                                  \
                for (size_t j = whole; j < k; j++)                                                 \
                    sum += value_as(t, a + i * a_stride + j * value_bytes) * x[r * ldx + j];       \
                out[r * ldo + i] = sum;                                                            \
            }                                                                                      \
        }                                                                                          \
    }
DEFINE_DOTS(4, 4)
DEFINE_DOTS(4, 1)
DEFINE_DOTS(1, 4)
DEFINE_DOTS(1, 1)

INLINE void dots_of(enum dtype t, const char *a, size_t a_stride, size_t n_a, size_t k,
                    const float *x, size_t ldx, size_t n_rows, float *out, size_t ldo)
{
    size_t r = 0;
    for (; r + 4 <= n_rows; r += 4) {
        size_t i = 0;
        for (; i + 4 <= n_a; i += 4)
            dots_4x4(t, a + i * a_stride, a_stride, k, x + r * ldx, ldx, out + r * ldo + i, ldo);
        for (; i < n_a; i++)
            dots_1x4(t, a + i * a_stride, a_stride, k, x + r * ldx, ldx, out + r * ldo + i, ldo);
    }
    for (; r < n_rows; r++) {
        size_t i = 0;
        for (; i + 4 <= n_a; i += 4)
            dots_4x1(t, a + i * a_stride, a_stride, k, x + r * ldx, ldx, out + r * ldo + i, ldo);
        for (; i < n_a; i++)
            dots_1x1(t, a + i * a_stride, a_stride, k, x + r * ldx, ldx, out + r * ldo + i, ldo);
    }
}

static void dots(enum dtype t, const void *a, size_t a_stride, size_t n_a, size_t k, const float *x,
                 size_t ldx, size_t n_rows, float *out, size_t ldo)
{
    if (t == DTYPE_BF16)
        dots_of(DTYPE_BF16, a, a_stride, n_a, k, x, ldx, n_rows, out, ldo);
    else if (t == DTYPE_F16)
        dots_of(DTYPE_F16, a, a_stride, n_a, k, x, ldx, n_rows, out, ldo);
    else
        dots_of(DTYPE_F32, a, a_stride, n_a, k, x, ldx, n_rows, out, ldo);
}

// ---- rows
// ----------------------------------------------------------------------------------------

static void to_f32(enum dtype t, const void *src, float *dst, size_t n)
{
    size_t i = 0;
    if (t == DTYPE_BF16) {
        for (; i + W <= n; i += W)
            store(dst + i, load_as(DTYPE_BF16, (const char *)src + i * 2));
    } else if (t == DTYPE_F16) {
        for (; i + W <= n; i += W)
            store(dst + i, load_as(DTYPE_F16, (const char *)src + i * 2));
    }
    (void)dtype_to_f32(t, (const char *)src + i * (dtype_bits(t) / 8), dst + i, n - i);
}

static void rms_norm(const float *x, const float *w, float *y, size_t n, float eps)
{
    vf acc[4] = {{0}, {0}, {0}, {0}};
    size_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W)
        UNROLL for (int j = 0; j < 4; j++) acc[j] += load(x + i + j * W) * load(x + i + j * W);
    float sum = sum_lanes((acc[0] + acc[1]) + (acc[2] + acc[3]));
    for (; i < n; i++)
        sum += x[i] * x[i];
    float scale = 1.0f / sqrtf(sum / (float)n + eps);
    for (i = 0; i + W <= n; i += W)
        store(y + i, load(x + i) * splat(scale) * load(w + i));
    for (; i < n; i++)
        y[i] = x[i] * scale * w[i];
}

INLINE vf silu_of(vf g)
{
    return g / (splat(1.0f) + exp_of(-g));
}

/* 0.5 g (1 + tanh(u)) = g / (1 + exp(-2u)), u = sqrt(2/pi) (g + 0.044715 g^3) */
INLINE vf gelu_of(vf g)
{
    vf u = splat(0.7978845608028654f) * (g + splat(0.044715f) * g * g * g);
    return g / (splat(1.0f) + exp_of(splat(-2.0f) * u));
}

#define DEFINE_GATED(name, activation)                                                             \
    static void name(const float *gate, const float *up, float *out, size_t n)                     \
    {                                                                                              \
        size_t i = 0;                                                                              \
        for (; i + W <= n; i += W)                                                                 \
            store(out + i, activation(load(gate + i)) * load(up + i));                             \
        if (i == n)                                                                                \
            return;                                                                                \
        float g[W] = {0}, u[W] = {0};                                                              \
        memcpy(g, gate + i, (n - i) * sizeof *g);                                                  \
        memcpy(u, up + i, (n - i) * sizeof *u);                                                    \
        store(g, activation(load(g)) * load(u));                                                   \
        memcpy(out + i, g, (n - i) * sizeof *g);                                                   \
    }
DEFINE_GATED(silu_mul, silu_of)
DEFINE_GATED(gelu_tanh_mul, gelu_of)

static void add_to(float *y, const float *x, size_t n)
{
    size_t i = 0;
    for (; i + W <= n; i += W)
        store(y + i, load(y + i) + load(x + i));
    for (; i < n; i++)
        y[i] += x[i];
}

static void axpy(float *y, const float *x, float a, size_t n)
{
    size_t i = 0;
    for (; i + W <= n; i += W)
        store(y + i, load(y + i) + load(x + i) * splat(a));
    for (; i < n; i++)
        y[i] += x[i] * a;
}

static void gain_bias(float *y, const float *g, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = (g ? g[i] : 1.0f) * y[i] + (b ? b[i] : 0.0f);
}

static void rotate(float *a, float *b, const float *c, const float *s, size_t n_half)
{
    for (size_t i = 0; i < n_half; i++) {
        float x = a[i], y = b[i];
        a[i] = x * c[i] - y * s[i];
        b[i] = y * c[i] + x * s[i];
    }
}

static float max_value(const float *x, size_t n)
{
    float best = -INFINITY;
    size_t i = 0;
    if (n >= W) {
        vf m = load(x);
        for (i = W; i + W <= n; i += W)
            m = max_of(load(x + i), m);
        float lanes[W];
        store(lanes, m);
        for (int j = 0; j < W; j++)
            best = lanes[j] > best ? lanes[j] : best;
    }
    for (; i < n; i++)
        best = x[i] > best ? x[i] : best;
    return best;
}

/* Float vectors over short runs, a double over the runs. */
static double sum_exp(const float *x, float max, size_t n)
{
    double total = 0;
    size_t i = 0;
    while (i + W <= n) {
        vf acc = {0};
        for (size_t end = i + 64 * W < n ? i + 64 * W : n; i + W <= end; i += W)
            acc += exp_of(load(x + i) - splat(max));
        total += sum_lanes(acc);
    }
    for (; i < n; i++)
        total += exp((double)x[i] - max);
    return total;
}

/* One k of a panel, as float32, with its change. */
INLINE void add_squares_of(vf w, const float *delta, float scale, double *sums)
{
    float v[W];
    store(v, delta ? w + load(delta) * splat(scale) : w);
    for (int i = 0; i < W; i++)
        sums[i] += (double)v[i] * v[i];
}

static void add_squares(enum dtype t, const void *panel, size_t k0, size_t n_k, const float *delta,
                        float scale, double *sums)
{
    size_t step = t == DTYPE_F32 ? 1 : 2;
    const char *w = (const char *)panel + k0 / step * ISA_PANEL * 4;
    for (size_t k = 0; k < n_k; k += step, w += ISA_PANEL * 4) {
        for (int n = 0; n < PANEL_VECTORS; n++) {
            const float *d = delta ? delta + k * ISA_PANEL + n * W : NULL;
            vu v;
            memcpy(&v, w + n * W * 4, sizeof v);
            add_squares_of(t == DTYPE_F32 ? (vf)v : pair_even(t, v), d, scale, sums + n * W);
            if (step == 2 && k + 1 < n_k)
                add_squares_of(pair_odd(t, v), d ? d + ISA_PANEL : NULL, scale, sums + n * W);
        }
    }
}

// ---- attention
// -----------------------------------------------------------------------------------

/*
 * Four queries against n_groups groups of W keys: keys lie as [head_dim][keys], so a vector holds W
 * keys and no sum crosses lanes; every score is summed over head_dim in order.
 */
enum { GROUPS = ISA_WIDTH == 16 ? 4 : 2, QUERIES = 4 };

#define DEFINE_SCORES(NG)                                                                          \
    INLINE void scores_##NG(const float *q, const float *const *k, const size_t *k_stride,         \
                            unsigned head_dim, float *score)                                       \
    {                                                                                              \
        vf acc[QUERIES][NG];                                                                       \
        UNROLL for (int i = 0; i < QUERIES; i++) UNROLL for (int g = 0; g < (NG); g++) acc[i][g] = \
            (vf){0};                                                                               \
        for (unsigned d = 0; d < head_dim; d++) {                                                  \
            vf key[NG];                                                                            \
            UNROLL for (int g = 0; g < (NG); g++) key[g] = load(k[g] + d * k_stride[g]);           \
            UNROLL for (int i = 0; i < QUERIES; i++)                                               \
            {                                                                                      \
                vf qi = splat(q[d * ISA_ATTEND_QUERIES + i]);                                      \
                UNROLL for (int g = 0; g < (NG); g++) acc[i][g] += key[g] * qi;                    \
            }                                                                                      \
        }                                                                                          \
        UNROLL for (int i = 0; i < QUERIES; i++) UNROLL for (int g = 0; g < (NG); g++)             \
            store(score + i * ISA_ATTEND_KEYS + g * W, acc[i][g]);                                 \
    }
DEFINE_SCORES(1)
#if ISA_WIDTH == 16
DEFINE_SCORES(4)
#define scores_many scores_4
#else
DEFINE_SCORES(2)
#define scores_many scores_2
#endif

enum { MAX_GROUPS = ISA_ATTEND_KEYS / ISA_WIDTH };

/* Where each group of W keys lies; groups of several small pages are put together in `buffer`. */
static unsigned find_groups(const struct isa_attend *a, float *buffer, const float **k,
                            size_t *stride)
{
    unsigned n = (a->n_keys + W - 1) / W;
    for (unsigned g = 0; g < n; g++) {
        unsigned first = g * W;
        if (a->piece >= W) {
            k[g] = a->k[first / a->piece] + first % a->piece;
            stride[g] = a->k_stride;
            continue;
        }
        float *to = buffer + (size_t)g * W * a->head_dim;
        for (unsigned j = 0; j < W && first + j < a->n_keys; j += a->piece) {
            const float *from = a->k[(first + j) / a->piece];
            for (unsigned d = 0; d < a->head_dim; d++)
                memcpy(to + d * W + j, from + d * a->k_stride, a->piece * sizeof *to);
        }
        k[g] = to;
        stride[g] = W;
    }
    return n;
}

/* Scores of one query become weights; returns by how much older sums must shrink. */
static float softmax_block(const struct isa_attend *a, unsigned q, float *score)
{
    int first = a->first[q], last = a->last[q];
    unsigned n = (a->n_keys + W - 1) / W * W;
    if (a->softcap > 0)
        for (int j = first; j < last; j++)
            score[j] = a->softcap * tanhf(score[j] / a->softcap);
    for (unsigned j = 0; j < n; j++)
        score[j] = (int)j < first || (int)j >= last ? -INFINITY : score[j];
    vf most = splat(a->max[q]);
    for (unsigned j = 0; j < n; j += W)
        most = max_of(load(score + j), most);
    float lanes[W], max = a->max[q];
    store(lanes, most);
    for (int j = 0; j < W; j++)
        max = lanes[j] > max ? lanes[j] : max;
    vf sum = {0};
    for (unsigned j = 0; j < n; j += W) {
        vf p = exp_of(load(score + j) - splat(max));
        store(score + j, p);
        sum += p;
    }
    float shrink = a->max[q] == max ? 1.0f : expf(a->max[q] - max);
    a->sum[q] = a->sum[q] * shrink + sum_lanes(sum);
    a->max[q] = max;
    return shrink;
}

/* out = out * shrink + sum over the keys [first, last) of p_j v_j, NV vectors of head_dim. */
#define DEFINE_WEIGH(NV)                                                                           \
    INLINE void weigh_##NV(const struct isa_attend *a, float *out, unsigned d, const float *p,     \
                           const float *shrink, unsigned first, unsigned last)                     \
    {                                                                                              \
        vf acc[QUERIES][NV];                                                                       \
        UNROLL for (int i = 0; i < QUERIES; i++) UNROLL for (int n = 0; n < (NV); n++) acc[i][n] = \
            load(out + i * a->head_dim + d + n * W) * splat(shrink[i]);                            \
        for (unsigned j = first; j < last; j++) {                                                  \
            const float *v = a->v[j / a->piece] + (size_t)(j % a->piece) * a->head_dim + d;        \
            vf value[NV];                                                                          \
            UNROLL for (int n = 0; n < (NV); n++) value[n] = load(v + n * W);                      \
            UNROLL for (int i = 0; i < QUERIES; i++)                                               \
            {                                                                                      \
                vf pi = splat(p[i * ISA_ATTEND_KEYS + j]);                                         \
                UNROLL for (int n = 0; n < (NV); n++) acc[i][n] += value[n] * pi;                  \
            }                                                                                      \
        }                                                                                          \
        UNROLL for (int i = 0; i < QUERIES; i++) UNROLL for (int n = 0; n < (NV); n++)             \
            store(out + i * a->head_dim + d + n * W, acc[i][n]);                                   \
    }
DEFINE_WEIGH(1)
#if ISA_WIDTH == 16
DEFINE_WEIGH(4)
#endif
DEFINE_WEIGH(2)

static void weigh(const struct isa_attend *a, unsigned q0, const float *p, const float *shrink,
                  unsigned first, unsigned last)
{
    float *out = a->out + (size_t)q0 * a->head_dim;
    unsigned d = 0;
#if ISA_WIDTH == 16
    for (; d + 4 * W <= a->head_dim; d += 4 * W)
        weigh_4(a, out, d, p, shrink, first, last);
#endif
    for (; d + 2 * W <= a->head_dim; d += 2 * W)
        weigh_2(a, out, d, p, shrink, first, last);
    for (; d + W <= a->head_dim; d += W)
        weigh_1(a, out, d, p, shrink, first, last);
    for (; d < a->head_dim; d++) {
        for (int i = 0; i < QUERIES; i++) {
            float sum = out[i * a->head_dim + d] * shrink[i];
            for (unsigned j = first; j < last; j++)
                sum += a->v[j / a->piece][(size_t)(j % a->piece) * a->head_dim + d] *
                       p[i * ISA_ATTEND_KEYS + j];
            out[i * a->head_dim + d] = sum;
        }
    }
}

static void attend(const struct isa_attend *a)
{
    float score[QUERIES * ISA_ATTEND_KEYS], shrink[QUERIES];
    const float *k[MAX_GROUPS];
    size_t stride[MAX_GROUPS];
    unsigned n_groups = find_groups(a, a->buffer, k, stride);
    for (unsigned q0 = 0; q0 < a->n_queries; q0 += QUERIES) {
        unsigned g = 0, low = a->n_keys, high = 0;
        for (; g + GROUPS <= n_groups; g += GROUPS)
            scores_many(a->q + q0, k + g, stride + g, a->head_dim, score + g * W);
        for (; g < n_groups; g++)
            scores_1(a->q + q0, k + g, stride + g, a->head_dim, score + g * W);
        for (unsigned i = 0; i < QUERIES; i++) {
            unsigned q = q0 + i;
            float *s = score + i * ISA_ATTEND_KEYS;
            shrink[i] = 1.0f;
            if (q < a->n_queries && a->first[q] < a->last[q]) {
                shrink[i] = softmax_block(a, q, s);
                low = (unsigned)a->first[q] < low ? (unsigned)a->first[q] : low;
                high = (unsigned)a->last[q] > high ? (unsigned)a->last[q] : high;
            } else {
                memset(s, 0, ISA_ATTEND_KEYS * sizeof *s);
            }
        }
        if (low < high)
            weigh(a, q0, score, shrink, low, high);
    }
}

/* The table of an instruction set: its name and its products. */
#define ISA_TABLE(isa_name, isa_gemm, isa_pack, isa_packed)                                        \
    {                                                                                              \
        .name = isa_name, .gemm = isa_gemm, .pack = isa_pack, .gemm_packed = isa_packed,           \
        .dots = dots, .to_f32 = to_f32, .rms_norm = rms_norm, .silu_mul = silu_mul,                \
        .gelu_tanh_mul = gelu_tanh_mul, .add = add_to, .axpy = axpy, .gain_bias = gain_bias,       \
        .attend = attend, .rotate = rotate, .max = max_value, .sum_exp = sum_exp,                  \
        .add_squares = add_squares,                                                                \
    }

#endif
