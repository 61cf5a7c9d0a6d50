/*
 * simd: the inner loops, in vectors of ISA_WIDTH floats (GCC's vector extensions, so that one text
 * serves every instruction set). Included once by each isa_*.c, which defines ISA_WIDTH and the
 * blocking ISA_BLOCKS(X) of the product, includes simd_gemm.h and simd_attend.h too, and makes its
 * table; never elsewhere.
 * alone with: -DISA_WIDTH=4
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

#define UNROLL _Pragma("GCC unroll 16")
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
