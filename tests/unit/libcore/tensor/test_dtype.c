#include "libcore/tensor/dtype.h"

#include <stdio.h>
#include <stdlib.h>

#include "tests/lib/test.h"

/*
 * The reference is slow and plain: a small float's value is computed from its fields with ldexp,
 * and the nearest one is found by looking at all of them. Nothing of dtype.c is used in it.
 */
struct kind {
    const char *name;
    int e_bits, m_bits, bias;
    bool has_infinity; // e4m3 has none: its top exponent holds numbers, and one NaN
    unsigned n;        // encodings
};

static const struct kind f16 = {"f16", 5, 10, 15, true, 65536};
static const struct kind bf16 = {"bf16", 8, 7, 127, true, 65536};
static const struct kind e4m3 = {"f8_e4m3", 4, 3, 7, false, 256};
static const struct kind e5m2 = {"f8_e5m2", 5, 2, 15, true, 256};

static double value_of(const struct kind *k, unsigned bits)
{
    unsigned sign = bits >> (k->e_bits + k->m_bits);
    unsigned exponent = bits >> k->m_bits & ((1u << k->e_bits) - 1);
    unsigned mantissa = bits & ((1u << k->m_bits) - 1);
    unsigned top = (1u << k->e_bits) - 1;
    double v;
    if (k->has_infinity && exponent == top)
        v = mantissa ? NAN : INFINITY;
    else if (!k->has_infinity && exponent == top && mantissa == (1u << k->m_bits) - 1)
        v = NAN;
    else if (exponent == 0)
        v = ldexp(mantissa, 1 - k->bias - k->m_bits);
    else
        v = ldexp(mantissa + (1u << k->m_bits), (int)exponent - k->bias - k->m_bits);
    return sign ? -v : v;
}

static float to_f32(const struct kind *k, unsigned bits)
{
    return k == &f16    ? dtype_f16_to_f32((uint16_t)bits)
           : k == &bf16 ? dtype_bf16_to_f32((uint16_t)bits)
           : k == &e4m3 ? dtype_f8_e4m3_to_f32((uint8_t)bits)
                        : dtype_f8_e5m2_to_f32((uint8_t)bits);
}

static unsigned from_f32(const struct kind *k, float v)
{
    return k == &f16    ? dtype_f32_to_f16(v)
           : k == &bf16 ? dtype_f32_to_bf16(v)
           : k == &e4m3 ? dtype_f32_to_f8_e4m3(v)
                        : dtype_f32_to_f8_e5m2(v);
}

static bool is_nan_bits(const struct kind *k, unsigned bits)
{
    return isnan(value_of(k, bits));
}

static void decode_all(const struct kind *k)
{
    for (unsigned bits = 0; bits < k->n; bits++) {
        double want = value_of(k, bits);
        float got = to_f32(k, bits);
        if (isnan(want)) {
            CHECK_MSG(isnan(got), "%s %#x: %g, want NaN", k->name, bits, got);
            continue;
        }
        CHECK_MSG((double)got == want && !signbit(got) == !signbit(want), "%s %#x: %.9g, want %.9g",
                  k->name, bits, got, want);
    }
}

TEST(every_f16_decodes)
{
    decode_all(&f16);
}

TEST(every_bf16_decodes)
{
    decode_all(&bf16);
}

TEST(every_f8_decodes)
{
    decode_all(&e4m3);
    decode_all(&e5m2);
}

static void round_trip(const struct kind *k)
{
    for (unsigned bits = 0; bits < k->n; bits++) {
        unsigned back = from_f32(k, to_f32(k, bits));
        if (is_nan_bits(k, bits))
            CHECK_MSG(is_nan_bits(k, back), "%s: NaN %#x came back as %#x", k->name, bits, back);
        else
            CHECK_MSG(back == bits, "%s: %#x came back as %#x", k->name, bits, back);
    }
}

TEST(every_value_survives_the_way_there_and_back)
{
    round_trip(&f16);
    round_trip(&bf16);
    round_trip(&e4m3);
    round_trip(&e5m2);
}

/* What a value strictly between the finite neighbours lo < hi (by bits, positive) becomes. */
static unsigned want_between(const struct kind *k, unsigned lo, double v)
{
    double a = value_of(k, lo);
    unsigned hi = lo + 1;
    double b = value_of(k, hi);
    bool overflow = isinf(b) || isnan(b);
    if (overflow) // the next step, had the format one more
        b = a + (a - value_of(k, lo - 1));
    double middle = a + (b - a) / 2; // exact: few bits
    if (v < middle)
        return lo;
    if (v > middle)
        return hi;
    return lo & 1 ? hi : lo;
}

/* Around the middle of every pair of neighbours: just below, the tie, just above; both signs. */
static void ties(const struct kind *k)
{
    unsigned sign = k->n / 2;
    for (unsigned lo = 0; lo + 1 < sign; lo++) {
        double a = value_of(k, lo), b = value_of(k, lo + 1);
        if (isnan(a) || isinf(a))
            break;
        if (isinf(b) || isnan(b))
            b = a + (a - value_of(k, lo - 1));
        double middle = a + (b - a) / 2;
        float points[] = {nextafterf((float)middle, 0.0f), (float)middle,
                          nextafterf((float)middle, INFINITY), nextafterf((float)a, INFINITY)};
        CHECK((double)points[1] == middle || k == &bf16); // float32 has room for it
        for (int i = 0; i < 4; i++) {
            double v = points[i];
            if (!(v > a && v < b))
                continue;
            unsigned want = want_between(k, lo, v);
            unsigned got = from_f32(k, points[i]), negative = from_f32(k, -points[i]);
            CHECK_MSG(got == want, "%s: %.9g becomes %#x, want %#x", k->name, v, got, want);
            CHECK_MSG(negative == (want | sign), "%s: %.9g becomes %#x, want %#x", k->name, -v,
                      negative, want | sign);
        }
    }
}

TEST(rounding_is_to_nearest_and_ties_to_even)
{
    ties(&f16);
    ties(&bf16);
    ties(&e4m3);
    ties(&e5m2);
}

TEST(what_is_too_large_or_no_number)
{
    const struct kind *kinds[] = {&f16, &bf16, &e4m3, &e5m2};
    for (int i = 0; i < 4; i++) {
        const struct kind *k = kinds[i];
        EXPECT(is_nan_bits(k, from_f32(k, NAN)));
        EXPECT(is_nan_bits(k, from_f32(k, -NAN)));
        double inf = value_of(k, from_f32(k, INFINITY));
        EXPECT(k->has_infinity ? inf == INFINITY : isnan(inf));
        double minus = value_of(k, from_f32(k, -3.4028235e38f));
        EXPECT(k->has_infinity ? minus == -INFINITY : isnan(minus));
        EXPECT_INT(from_f32(k, 0.0f), 0);
        EXPECT_INT(from_f32(k, -0.0f), k->n / 2);
        EXPECT_INT(from_f32(k, k == &bf16 ? 1e-45f : 1e-30f), 0);
    }
    // A float32 NaN whose payload lies in the bits that are cut must not become infinity.
    uint32_t bits = 0x7F800001;
    float v;
    memcpy(&v, &bits, 4);
    EXPECT(is_nan_bits(&bf16, dtype_f32_to_bf16(v)));
    EXPECT(is_nan_bits(&f16, dtype_f32_to_f16(v)));
}

/* From float64 the tie is seen exactly: a value a hair off the middle, which float32 would round
 * onto it. */
static void one_rounding(const struct kind *k, uint16_t (*convert)(double))
{
    for (unsigned lo = 1; lo + 1 < k->n / 2; lo++) {
        double a = value_of(k, lo), b = value_of(k, lo + 1);
        if (isinf(a) || isnan(a))
            break;
        if (isinf(b))
            b = a + (a - value_of(k, lo - 1));
        double middle = a + (b - a) / 2;
        double points[] = {nextafter(middle, 0), middle, nextafter(middle, INFINITY)};
        for (int i = 0; i < 3; i++) {
            unsigned want = want_between(k, lo, points[i]);
            CHECK_MSG(convert(points[i]) == want, "%s: %.17g becomes %#x, want %#x", k->name,
                      points[i], convert(points[i]), want);
            CHECK(convert(-points[i]) == (want | 0x8000));
        }
    }
}

TEST(float64_is_rounded_once)
{
    one_rounding(&f16, dtype_f64_to_f16);
    one_rounding(&bf16, dtype_f64_to_bf16);
    EXPECT_INT(dtype_f64_to_f16(1e300), 0x7C00);
    EXPECT_INT(dtype_f64_to_f16(-1e-300), 0x8000);
    EXPECT_INT(dtype_f64_to_bf16(5e-324), 0);
    EXPECT_INT(dtype_f64_to_bf16(INFINITY), 0x7F80);
    EXPECT((dtype_f64_to_bf16(NAN) & 0x7FFF) > 0x7F80);
}

TEST(short_ways_agree_with_the_one_for_float64)
{
    // Every float32 whose low bits matter would be 2^32; a stride that is coprime to it sees all
    // exponents.
    for (uint64_t i = 0; i < UINT64_C(1) << 32; i += 40503) {
        uint32_t bits = (uint32_t)i;
        float v;
        memcpy(&v, &bits, 4);
        if (isnan(v))
            continue;
        CHECK_MSG(dtype_f32_to_f16(v) == dtype_f64_to_f16(v), "f16 of %a", v);
        CHECK_MSG(dtype_f32_to_bf16(v) == dtype_f64_to_bf16(v), "bf16 of %a", v);
    }
}

TEST(rows_convert_like_scalars_also_unaligned)
{
    enum { N = 37 };
    static const enum dtype types[] = {DTYPE_F64,  DTYPE_F32,     DTYPE_F16,
                                       DTYPE_BF16, DTYPE_F8_E4M3, DTYPE_F8_E5M2};
    float in[N], out[N];
    double in64[N], out64[N];
    unsigned char raw[N * 8 + 1], raw64[N * 8 + 1];
    for (int i = 0; i < N; i++)
        in64[i] = in[i] = (float)(i % 9 - 4) * 0.25f; // exact in every type
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        CHECK(dtype_from_f32(types[t], in, raw + 1, N));
        CHECK(dtype_from_f64(types[t], in64, raw64 + 1, N));
        EXPECT(memcmp(raw + 1, raw64 + 1, N * dtype_bits(types[t]) / 8) == 0);
        CHECK(dtype_to_f32(types[t], raw + 1, out, N));
        CHECK(dtype_to_f64(types[t], raw + 1, out64, N));
        for (int i = 0; i < N; i++)
            CHECK_MSG(out[i] == in[i] && out64[i] == in64[i], "%s: %g gives %g, %g",
                      dtype_name(types[t]), in[i], out[i], out64[i]);
        EXPECT_INT(dtype_find_non_finite(types[t], raw + 1, N), N);
        float keep = in[20];
        in[20] = NAN;
        dtype_from_f32(types[t], in, raw + 1, N);
        EXPECT_INT(dtype_find_non_finite(types[t], raw + 1, N), 20);
        in[20] = keep;
    }
    EXPECT(!dtype_to_f32(DTYPE_I32, raw, out, 1));
    EXPECT(!dtype_from_f32(DTYPE_F8_E8M0, in, raw, 1));
    EXPECT(!dtype_to_f64(DTYPE_BOOL, raw, out64, 1));
    EXPECT(!dtype_from_f64(DTYPE_NONE, in64, raw, 1));
}

TEST(one_non_finite_value_among_many_is_found_wherever_it_is)
{
    // The largest finite value, which is one bit away, and the smallest that is none.
    static const struct {
        enum dtype t;
        unsigned bytes;
        uint64_t largest, bad;
    } rows[] = {
        {DTYPE_F64, 8, UINT64_C(0x7FEFFFFFFFFFFFFF), UINT64_C(0xFFF0000000000000)},
        {DTYPE_F32, 4, 0xFF7FFFFF, 0x7F800000},
        {DTYPE_F16, 2, 0x7BFF, 0xFC00},
        {DTYPE_BF16, 2, 0xFF7F, 0x7F80},
        {DTYPE_F8_E4M3, 1, 0xFE, 0x7F},
        {DTYPE_F8_E5M2, 1, 0x7B, 0xFC},
    };
    enum { N = 9000 };
    static const size_t places[] = {0, 1, 7, 511, 512, 2047, 2048, 4095, 4096, 8191, N - 1};
    static unsigned char raw[N * 8 + 1];
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        unsigned char *data = raw + 1; // not aligned
        for (size_t i = 0; i < N * rows[r].bytes; i++)
            data[i] = (unsigned char)(rows[r].largest >> 8 * (i % rows[r].bytes));
        EXPECT_INT(dtype_find_non_finite(rows[r].t, data, N), N);
        for (size_t k = 0; k < sizeof places / sizeof *places; k++) {
            unsigned char *at = data + places[k] * rows[r].bytes;
            for (unsigned b = 0; b < rows[r].bytes; b++)
                at[b] = (unsigned char)(rows[r].bad >> 8 * b);
            EXPECT_INT(dtype_find_non_finite(rows[r].t, data, N), places[k]);
            for (unsigned b = 0; b < rows[r].bytes; b++)
                at[b] = (unsigned char)(rows[r].largest >> 8 * b);
        }
    }
}

TEST(every_non_finite_encoding_is_found)
{
    static const struct {
        const struct kind *k;
        enum dtype t;
    } rows[] = {
        {&f16, DTYPE_F16}, {&bf16, DTYPE_BF16}, {&e4m3, DTYPE_F8_E4M3}, {&e5m2, DTYPE_F8_E5M2}};
    for (size_t r = 0; r < 4; r++) {
        for (unsigned bits = 0; bits < rows[r].k->n; bits++) {
            unsigned char raw[2] = {(unsigned char)bits, (unsigned char)(bits >> 8)};
            size_t want = isfinite(value_of(rows[r].k, bits)) ? 1 : 0;
            CHECK_MSG(dtype_find_non_finite(rows[r].t, raw, 1) == want, "%s %#x", rows[r].k->name,
                      bits);
        }
    }
    float f[] = {1, -INFINITY, NAN};
    double d[] = {1, 2, NAN};
    EXPECT_INT(dtype_find_non_finite(DTYPE_F32, f, 3), 1);
    EXPECT_INT(dtype_find_non_finite(DTYPE_F64, d, 3), 2);
    EXPECT_INT(dtype_find_non_finite(DTYPE_I32, f, 3), 3); // integers are always finite
}

TEST(names_and_sizes)
{
    for (int t = DTYPE_NONE + 1; t < DTYPE_COUNT; t++) {
        EXPECT_INT(dtype_parse(dtype_name((enum dtype)t)), t);
        EXPECT(dtype_bits((enum dtype)t) > 0);
    }
    EXPECT_INT(dtype_bits(DTYPE_BF16), 16);
    EXPECT_INT(dtype_bits(DTYPE_F4), 4);
    EXPECT_STR(dtype_name(DTYPE_F8_E4M3), "F8_E4M3");
    EXPECT_INT(dtype_parse("bf16"), DTYPE_NONE);
    EXPECT_INT(dtype_parse("NONE"), DTYPE_NONE);
    EXPECT(dtype_is_float(DTYPE_F8_E5M2) && !dtype_is_float(DTYPE_F8_E8M0) &&
           !dtype_is_float(DTYPE_I64));
}
