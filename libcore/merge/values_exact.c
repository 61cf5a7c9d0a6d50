/* The value that a fast sum left in doubt: in float64, then in pairs of float64 (106 bits). */
#include <math.h>
#include <string.h>

#include "libcore/merge/values_impl.h"

double values_get(const struct tensor *t, size_t idx)
{
    double v = 0;
    dtype_to_f64(t->dtype, (const char *)t->data + idx * (dtype_bits(t->dtype) / 8), &v, 1);
    return v;
}

// ---- a pair of float64: high + low, |low| <= half an ulp of high --------------------------------

struct twofold {
    double high, low;
};

static struct twofold two_sum(double a, double b)
{
    double s = a + b, t = s - a;
    return (struct twofold){s, (a - (s - t)) + (b - t)};
}

static struct twofold two_product(double a, double b)
{
    double p = a * b;
    return (struct twofold){p, fma(a, b, -p)};
}

static struct twofold add(struct twofold x, struct twofold y)
{
    struct twofold s = two_sum(x.high, y.high), t = two_sum(x.low, y.low);
    s = two_sum(s.high, s.low + t.high);
    return two_sum(s.high, s.low + t.low);
}

static struct twofold scale(struct twofold x, double f)
{
    struct twofold p = two_product(x.high, f);
    return two_sum(p.high, fma(x.low, f, p.low));
}

/* A float64 that rounds to any shorter type as high + low does: when something is left over, the
 * last bit is made odd, so that no tie can be seen where there is none (and a tie stays one). */
static double sticky(struct twofold x)
{
    uint64_t bits;
    memcpy(&bits, &x.high, sizeof bits);
    if (x.low == 0 || !isfinite(x.high) || bits & 1)
        return x.high;
    bool away = (x.low > 0) == (x.high > 0);
    bits += away ? 1 : (uint64_t)-1;
    memcpy(&x.high, &bits, sizeof bits);
    return x.high;
}

// ---- rounding -----------------------------------------------------------------------------------

static uint64_t rounded(enum dtype t, double v)
{
    float f = (float)v;
    uint32_t bits32;
    uint64_t bits64;
    memcpy(&bits32, &f, sizeof bits32);
    memcpy(&bits64, &v, sizeof bits64);
    return t == DTYPE_BF16  ? dtype_f64_to_bf16(v)
           : t == DTYPE_F16 ? dtype_f64_to_f16(v)
           : t == DTYPE_F32 ? bits32
                            : bits64;
}

/* The middle of 8-bit value number `bits` and the next one; they are evenly spaced at the top. */
static double middle_above(enum dtype t, uint8_t bits)
{
    uint8_t next = (uint8_t)(bits + 1), last = (uint8_t)(bits - 1);
    double here, other;
    bool top = next == (t == DTYPE_F8_E4M3 ? 0x7F : 0x7C);
    dtype_to_f64(t, &bits, &here, 1);
    dtype_to_f64(t, top ? &last : &next, &other, 1);
    return top ? here + (here - other) / 2 : (here + other) / 2;
}

/* v / scale as an 8-bit float: v against scale times the middles, which are exact products. */
static uint64_t float8_bits(enum dtype t, struct twofold v, double scale, double w)
{
    const uint8_t beyond = t == DTYPE_F8_E4M3 ? 0x7F : 0x7C;
    uint8_t sign = signbit(v.high == 0 ? w : v.high) ? 0x80 : 0, bits = 0;
    if (v.high == 0)
        return sign;
    if (scale == 0)
        return sign | beyond;
    double x = fabs(v.high), low = sign ? -v.low : v.low, quotient = x / scale;
    dtype_from_f64(t, &quotient, &bits, 1);
    bits = bits < beyond ? bits : beyond - 1;
    for (;;) {
        double above = (x - middle_above(t, bits) * scale) + low;
        if (above > 0 || (above == 0 && bits & 1)) {
            if (++bits == beyond)
                return sign | bits;
            continue;
        }
        double below = bits ? (x - middle_above(t, bits - 1) * scale) + low : 1;
        if (below > 0 || (below == 0 && !(bits & 1)))
            return sign | bits;
        bits--;
    }
}

static uint64_t exact_bits(enum dtype t, struct twofold v, double w)
{
    if (v.high == 0 && w == 0) // nothing is added to a zero: it keeps its sign
        return signbit(w) ? UINT64_C(1) << (dtype_bits(t) - 1) : 0;
    return rounded(t, t == DTYPE_F64 ? v.high : sticky(v));
}

// ---- one value of a matrix ----------------------------------------------------------------------

static double at(const struct values_view *v, size_t i, size_t k)
{
    return values_get(v->tensor, v->offset + i * v->row + k * v->col);
}

static struct twofold exact_sum(const struct values_matrix *m, size_t i, size_t j, double w)
{
    struct twofold total = {w, 0};
    for (size_t t = 0; t < m->n_pairs; t++) {
        const struct values_pair *p = &m->pairs[t];
        struct twofold product = {0, 0};
        for (size_t k = 0; k < p->rank; k++)
            product = add(product, two_product(at(&p->left, i, k), at(&p->right, k, j)));
        total = add(total, scale(product, p->factor));
    }
    return total;
}

uint64_t values_exact(const struct values_matrix *m, size_t i, size_t j, double w, double gain)
{
    if (dtype_is_float8(m->dtype)) {
        struct twofold v = exact_sum(m, i, j, w);
        return float8_bits(m->dtype, gain == 1 ? v : scale(v, gain),
                           values_scale_at(m->stored_scales, i, j), w);
    }
    double sum = 0, size = 0; // of what is added, and of its parts without signs
    size_t n = 8;
    for (size_t t = 0; t < m->n_pairs && m->dtype != DTYPE_F64; t++) {
        const struct values_pair *p = &m->pairs[t];
        double product = 0, magnitude = 0;
        for (size_t k = 0; k < p->rank; k++) {
            double x = at(&p->left, i, k) * at(&p->right, k, j);
            product += x;
            magnitude += fabs(x);
        }
        sum += p->factor * product;
        size += fabs(p->factor) * magnitude;
        n += p->rank + 4;
    }
    double v = gain * (w + sum);
    double slack = fabs(gain) * (double)n * 0x1p-53 * size + fabs(v) * 0x1p-50 + 0x1p-1000;
    if (m->dtype != DTYPE_F64 && w + sum != 0) {
        uint64_t low = rounded(m->dtype, v - slack), high = rounded(m->dtype, v + slack);
        if (low == high)
            return low;
    }
    struct twofold exact = exact_sum(m, i, j, w);
    return exact_bits(m->dtype, gain == 1 ? exact : scale(exact, gain), w);
}

uint64_t values_exact_sum(enum dtype dtype, double w, const double *x, const double *y, size_t n)
{
    struct twofold total = {w, 0};
    for (size_t t = 0; t < n; t++)
        total = add(total, two_product(x[t], y[t]));
    return exact_bits(dtype, total, w);
}
