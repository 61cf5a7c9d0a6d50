#include "libcore/tensor/dtype.h"

#include <math.h>
#include <string.h>

static const struct {
    const char *name;
    uint8_t bits;
} types[DTYPE_COUNT] = {
    [DTYPE_NONE] = {"NONE", 0},
    [DTYPE_BOOL] = {"BOOL", 8},
    [DTYPE_F4] = {"F4", 4},
    [DTYPE_F6_E2M3] = {"F6_E2M3", 6},
    [DTYPE_F6_E3M2] = {"F6_E3M2", 6},
    [DTYPE_U8] = {"U8", 8},
    [DTYPE_I8] = {"I8", 8},
    [DTYPE_F8_E5M2] = {"F8_E5M2", 8},
    [DTYPE_F8_E4M3] = {"F8_E4M3", 8},
    [DTYPE_F8_E8M0] = {"F8_E8M0", 8},
    [DTYPE_F8_E4M3FNUZ] = {"F8_E4M3FNUZ", 8},
    [DTYPE_F8_E5M2FNUZ] = {"F8_E5M2FNUZ", 8},
    [DTYPE_I16] = {"I16", 16},
    [DTYPE_U16] = {"U16", 16},
    [DTYPE_F16] = {"F16", 16},
    [DTYPE_BF16] = {"BF16", 16},
    [DTYPE_I32] = {"I32", 32},
    [DTYPE_U32] = {"U32", 32},
    [DTYPE_F32] = {"F32", 32},
    [DTYPE_C64] = {"C64", 64},
    [DTYPE_F64] = {"F64", 64},
    [DTYPE_I64] = {"I64", 64},
    [DTYPE_U64] = {"U64", 64},
};

unsigned dtype_bits(enum dtype t)
{
    return (unsigned)t < DTYPE_COUNT ? types[t].bits : 0;
}

const char *dtype_name(enum dtype t)
{
    return (unsigned)t < DTYPE_COUNT ? types[t].name : types[DTYPE_NONE].name;
}

enum dtype dtype_parse(const char *name)
{
    for (int t = DTYPE_NONE + 1; t < DTYPE_COUNT; t++) {
        if (strcmp(name, types[t].name) == 0)
            return (enum dtype)t;
    }
    return DTYPE_NONE;
}

bool dtype_is_float8(enum dtype t)
{
    return t == DTYPE_F8_E4M3 || t == DTYPE_F8_E5M2;
}

bool dtype_is_float(enum dtype t)
{
    return t == DTYPE_F64 || t == DTYPE_F32 || t == DTYPE_F16 || t == DTYPE_BF16 ||
           dtype_is_float8(t);
}

// ---- to float32 ---------------------------------------------------------------------------------

static float float_of_bits(uint32_t bits)
{
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static uint64_t bits_of_double(double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

static uint32_t bits_of_float(float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

float dtype_bf16_to_f32(uint16_t v)
{
    return float_of_bits((uint32_t)v << 16);
}

/*
 * A small float without branches on its exponent: its exponent and mantissa, moved to float32's
 * places, are the value divided by 2^(127 - bias), subnormals included, so one exact multiplication
 * mends the exponent. Only Inf and NaN need their own way.
 */
float dtype_f16_to_f32(uint16_t v)
{
    uint32_t sign = (uint32_t)(v & 0x8000) << 16;
    uint32_t magnitude = v & 0x7FFF;
    if (magnitude >= 0x7C00)
        return float_of_bits(sign | 0x7F800000 | (magnitude & 0x3FF) << 13);
    return float_of_bits(sign | bits_of_float(float_of_bits(magnitude << 13) * 0x1p112f));
}

float dtype_f8_e5m2_to_f32(uint8_t v)
{
    return dtype_f16_to_f32((uint16_t)(v << 8)); // e5m2 is the upper half of an f16
}

float dtype_f8_e4m3_to_f32(uint8_t v)
{
    uint32_t sign = (uint32_t)(v & 0x80) << 24;
    uint32_t magnitude = v & 0x7F;
    if (magnitude == 0x7F)
        return float_of_bits(sign | 0x7FC00000);
    return float_of_bits(sign | bits_of_float(float_of_bits(magnitude << 20) * 0x1p120f));
}

// ---- from float32 and float64 -------------------------------------------------------------------

/* What a small float looks like: sign, e_bits exponent bits with `bias`, m_bits mantissa bits. */
struct layout {
    int e_bits, m_bits, bias;
    uint32_t infinity; // what an overflow becomes, without sign
    uint32_t nan;      // without sign
    uint32_t largest;  // bits of the largest finite value
};

static const struct layout f16_layout = {5, 10, 15, 0x7C00, 0x7E00, 0x7BFF};
static const struct layout bf16_layout = {8, 7, 127, 0x7F80, 0x7FC0, 0x7F7F};
static const struct layout e4m3_layout = {4, 3, 7, 0x7F, 0x7F, 0x7E};
static const struct layout e5m2_layout = {5, 2, 15, 0x7C, 0x7E, 0x7B};

/* Rounds once, to nearest and ties to even, from a double's 52 bits (a float32 is a double
 * exactly). */
static uint32_t round_to(const struct layout *l, double v)
{
    uint64_t bits = bits_of_double(v);
    uint32_t sign = (uint32_t)(bits >> 63) << (l->e_bits + l->m_bits);
    uint64_t magnitude = bits & ~(UINT64_C(1) << 63);
    if (magnitude > UINT64_C(0x7FF) << 52)
        return sign | l->nan;
    if (magnitude == UINT64_C(0x7FF) << 52)
        return sign | l->infinity;
    int exponent = (int)(magnitude >> 52) - 1023;
    uint64_t mantissa = (magnitude & ((UINT64_C(1) << 52) - 1)) | UINT64_C(1) << 52;
    if (magnitude < UINT64_C(1) << 52)
        return sign; // a double's subnormals are below half of every smallest value here
    int field = exponent + l->bias; // biased exponent of the result
    int shift = 52 - l->m_bits + (field < 1 ? 1 - field : 0);
    if (shift > 54)
        return sign;
    uint64_t half = UINT64_C(1) << (shift - 1);
    uint64_t kept = mantissa >> shift, dropped = mantissa & ((half << 1) - 1);
    kept += dropped > half || (dropped == half && (kept & 1));
    // kept holds the implicit one when normal, so adding carries into the exponent as it must.
    uint64_t result = field < 1 ? kept : ((uint64_t)(field - 1) << l->m_bits) + kept;
    return sign | (result > l->largest ? l->infinity : (uint32_t)result);
}

uint16_t dtype_f64_to_bf16(double v)
{
    return (uint16_t)round_to(&bf16_layout, v);
}

uint16_t dtype_f64_to_f16(double v)
{
    return (uint16_t)round_to(&f16_layout, v);
}

/* The common one has its short way: adding half of what is cut, less one when even, carries right.
 */
uint16_t dtype_f32_to_bf16(float v)
{
    uint32_t bits = bits_of_float(v);
    if ((bits & 0x7FFFFFFF) > 0x7F800000)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

/*
 * Short way for f16: normal results round as bf16 does, after the exponent is moved; results below
 * 2^-14 are rounded by the adder itself, because v + 0.5 has its last bit at 2^-24.
 */
uint16_t dtype_f32_to_f16(float v)
{
    uint32_t bits = bits_of_float(v);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    uint32_t magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000)
        return sign | 0x7E00;
    if (magnitude >= 0x477FF000) // 65520 and more round to infinity
        return sign | 0x7C00;
    if (magnitude < 0x38800000)
        return sign | (uint16_t)(bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3F000000);
    magnitude +=
        0xC8000FFF + (magnitude >> 13 & 1); // (15 - 127) << 23, and half of what is cut - 1
    return sign | (uint16_t)(magnitude >> 13);
}

uint8_t dtype_f32_to_f8_e4m3(float v)
{
    return (uint8_t)round_to(&e4m3_layout, v);
}

uint8_t dtype_f32_to_f8_e5m2(float v)
{
    return (uint8_t)round_to(&e5m2_layout, v);
}

// ---- rows ---------------------------------------------------------------------------------------

/* One loop a pair of types; memory may be unaligned, so values move by memcpy. */
#define ROWS(in_type, out_type, convert)                                                           \
    do {                                                                                           \
        for (size_t i = 0; i < n; i++) {                                                           \
            in_type in;                                                                            \
            memcpy(&in, (const char *)src + i * sizeof in, sizeof in);                             \
            out_type out = convert(in);                                                            \
            memcpy((char *)dst + i * sizeof out, &out, sizeof out);                                \
        }                                                                                          \
        return true;                                                                               \
    } while (0)

/* All types as out_type, whose own is `same`; those of 16 and 8 bits are float32 numbers. */
#define ROWS_FROM_ALL(out_type, same)                                                              \
    if (t == (same)) {                                                                             \
        memcpy(dst, src, n * sizeof(out_type));                                                    \
        return true;                                                                               \
    }                                                                                              \
    switch (t) {                                                                                   \
    case DTYPE_F64:                                                                                \
        ROWS(double, out_type, (out_type));                                                        \
    case DTYPE_F32:                                                                                \
        ROWS(float, out_type, (out_type));                                                         \
    case DTYPE_F16:                                                                                \
        ROWS(uint16_t, out_type, dtype_f16_to_f32);                                                \
    case DTYPE_BF16:                                                                               \
        ROWS(uint16_t, out_type, dtype_bf16_to_f32);                                               \
    case DTYPE_F8_E4M3:                                                                            \
        ROWS(uint8_t, out_type, dtype_f8_e4m3_to_f32);                                             \
    case DTYPE_F8_E5M2:                                                                            \
        ROWS(uint8_t, out_type, dtype_f8_e5m2_to_f32);                                             \
    default:                                                                                       \
        return false;                                                                              \
    }

bool dtype_to_f32(enum dtype t, const void *src, float *dst, size_t n)
{
    ROWS_FROM_ALL(float, DTYPE_F32);
}

bool dtype_to_f64(enum dtype t, const void *src, double *dst, size_t n)
{
    ROWS_FROM_ALL(double, DTYPE_F64);
}

static uint8_t dtype_f64_to_f8_e4m3(double v)
{
    return (uint8_t)round_to(&e4m3_layout, v);
}

static uint8_t dtype_f64_to_f8_e5m2(double v)
{
    return (uint8_t)round_to(&e5m2_layout, v);
}

/* in_type (f32 or f64, by `from`) as any type, rounded once. */
#define ROWS_TO_ALL(in_type, from, same)                                                           \
    if (t == (same)) {                                                                             \
        memcpy(dst, src, n * sizeof(in_type));                                                     \
        return true;                                                                               \
    }                                                                                              \
    switch (t) {                                                                                   \
    case DTYPE_F64:                                                                                \
        ROWS(in_type, double, (double));                                                           \
    case DTYPE_F32:                                                                                \
        ROWS(in_type, float, (float));                                                             \
    case DTYPE_F16:                                                                                \
        ROWS(in_type, uint16_t, from##_to_f16);                                                    \
    case DTYPE_BF16:                                                                               \
        ROWS(in_type, uint16_t, from##_to_bf16);                                                   \
    case DTYPE_F8_E4M3:                                                                            \
        ROWS(in_type, uint8_t, from##_to_f8_e4m3);                                                 \
    case DTYPE_F8_E5M2:                                                                            \
        ROWS(in_type, uint8_t, from##_to_f8_e5m2);                                                 \
    default:                                                                                       \
        return false;                                                                              \
    }

bool dtype_from_f32(enum dtype t, const float *src, void *dst, size_t n)
{
    ROWS_TO_ALL(float, dtype_f32, DTYPE_F32);
}

bool dtype_from_f64(enum dtype t, const double *src, void *dst, size_t n)
{
    ROWS_TO_ALL(double, dtype_f64, DTYPE_F64);
}

/* In all of these types a NaN or Inf is a value whose masked bits are all set: the exponent, or for
 * e4m3 everything but the sign. Then, and only then, adding the mask's lowest bit carries into the
 * sign's place; so a word of eight bytes is looked at at once, however many values it holds. */
struct non_finite {
    uint64_t mask, low; // of one value
    unsigned bits;
};

static bool find_rule(enum dtype t, struct non_finite *r)
{
    switch (t) {
    case DTYPE_F64:
        *r = (struct non_finite){UINT64_C(0x7FF) << 52, UINT64_C(1) << 52, 64};
        return true;
    case DTYPE_F32:
        *r = (struct non_finite){0x7F800000, 0x00800000, 32};
        return true;
    case DTYPE_F16:
        *r = (struct non_finite){0x7C00, 0x0400, 16};
        return true;
    case DTYPE_BF16:
        *r = (struct non_finite){0x7F80, 0x0080, 16};
        return true;
    case DTYPE_F8_E4M3:
        *r = (struct non_finite){0x7F, 0x01, 8};
        return true;
    case DTYPE_F8_E5M2:
        *r = (struct non_finite){0x7C, 0x04, 8};
        return true;
    default:
        return false;
    }
}

static uint64_t repeated(uint64_t value, unsigned bits)
{
    for (; bits < 64; bits *= 2)
        value |= value << bits;
    return value;
}

/* Whether one of n_words words holds such a value. */
static bool words_have(const char *src, size_t n_words, const struct non_finite *r)
{
    uint64_t mask = repeated(r->mask, r->bits), low = repeated(r->low, r->bits), seen = 0;
    for (size_t i = 0; i < n_words; i++) {
        uint64_t word;
        memcpy(&word, src + 8 * i, 8);
        seen |= (word & mask) + low;
    }
    return seen & repeated(UINT64_C(1) << (r->bits - 1), r->bits);
}

static bool value_is(const char *src, const struct non_finite *r)
{
    uint64_t bits = 0;
    for (unsigned i = 0; i < r->bits / 8; i++)
        bits |= (uint64_t)(unsigned char)src[i] << 8 * i;
    return (bits & r->mask) == r->mask;
}

size_t dtype_find_non_finite(enum dtype t, const void *src, size_t n)
{
    enum { BLOCK_WORDS = 512 };
    struct non_finite r;
    if (!find_rule(t, &r))
        return n;
    size_t size = r.bits / 8, per_block = BLOCK_WORDS * 8 / size, i = 0;
    const char *bytes = src;
    while (n - i >= per_block && !words_have(bytes + i * size, BLOCK_WORDS, &r))
        i += per_block;
    while (i < n && !value_is(bytes + i * size, &r))
        i++;
    return i;
}
