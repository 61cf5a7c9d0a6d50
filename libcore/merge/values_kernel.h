/*
 * values_kernel: the loops of values, written once. A file that includes this one has set the
 * instruction set by a pragma and defined KERNEL_NAME, KERNEL_TABLE, and VECTOR (16 floats) with
 * vector_zero, vector_load, vector_store, vector_splat, vector_add and vector_fma.
 * No loop here may be reordered: the lanes are said in the source.
 * alone with: -DVECTOR=float -D'KERNEL_NAME="alone"' -D'vector_zero()=0' -D'vector_splat(f)=(f)'
 * alone with: -D'KERNEL_TABLE=const struct values_kernels alone' -D'vector_load(p)=(*(p))'
 * alone with: -D'vector_store(p,v)=(*(p)=(v))' -D'vector_fma(a,b,c)=fmaf(a,b,c)'
 * alone with: -D'vector_add(a,b)=((a)+(b))'
 */
#ifndef LIBCORE_MERGE_VALUES_KERNEL_H
#define LIBCORE_MERGE_VALUES_KERNEL_H

#include <math.h>
#include <string.h>

#include "libcore/merge/values_impl.h"

static const float HALF_ULP = 0x1p-24f; // of float32, relative
static const float TINY = 0x1p-136f;    // what underflow in up to 2^12 terms may cost

/* Sums of VALUES_TERMS products each, added up: the error grows with their number and with that of
 * the sums, not with the rank. */
static inline __attribute__((always_inline)) void
tile(const float *left, size_t n_rows, size_t rank, const float *panel, float *delta)
{
    VECTOR acc[VALUES_ROWS][2], sum[VALUES_ROWS][2];
    for (size_t i = 0; i < n_rows; i++)
        sum[i][0] = sum[i][1] = vector_zero();
    for (size_t k0 = 0; k0 < rank; k0 += VALUES_TERMS) {
        size_t end = rank - k0 < VALUES_TERMS ? rank : k0 + VALUES_TERMS;
        for (size_t i = 0; i < n_rows; i++)
            acc[i][0] = acc[i][1] = vector_zero();
        for (size_t k = k0; k < end; k++) {
            VECTOR r0 = vector_load(panel + k * VALUES_PANEL);
            VECTOR r1 = vector_load(panel + k * VALUES_PANEL + 16);
            for (size_t i = 0; i < n_rows; i++) {
                VECTOR l = vector_splat(left[i * rank + k]);
                acc[i][0] = vector_fma(l, r0, acc[i][0]);
                acc[i][1] = vector_fma(l, r1, acc[i][1]);
            }
        }
        for (size_t i = 0; i < n_rows; i++) {
            sum[i][0] = vector_add(sum[i][0], acc[i][0]);
            sum[i][1] = vector_add(sum[i][1], acc[i][1]);
        }
    }
    for (size_t i = 0; i < n_rows; i++) {
        vector_store(delta + i * VALUES_CHUNK, sum[i][0]);
        vector_store(delta + i * VALUES_CHUNK + 16, sum[i][1]);
    }
}

static void deltas(const float *left, size_t n_rows, size_t rank, const float *packed,
                   size_t n_panels, float *delta)
{
    for (size_t p = 0; p < n_panels; p++) {
        const float *panel = packed + p * rank * VALUES_PANEL;
        float *to = delta + p * VALUES_PANEL;
        if (n_rows == VALUES_ROWS) {
            tile(left, VALUES_ROWS, rank, panel, to);
            continue;
        }
        for (size_t i = 0; i < n_rows; i++)
            tile(left + i * rank, 1, rank, panel, to + i * VALUES_CHUNK);
    }
}

/* Columns whose sums stay in registers while k runs; each sum adds up in rising order of k. */
enum { SUMS64_COLUMNS = 64 };

static void sums64(const double *left, size_t rank, const double *right, size_t stride, size_t n,
                   double *sum)
{
    size_t j0 = 0;
    for (; j0 + SUMS64_COLUMNS <= n; j0 += SUMS64_COLUMNS) {
        double acc[SUMS64_COLUMNS] = {0};
        for (size_t k = 0; k < rank; k++) {
            const double l = left[k], *r = right + k * stride + j0;
#pragma GCC unroll 64
            for (size_t j = 0; j < SUMS64_COLUMNS; j++)
                acc[j] = __builtin_fma(l, r[j], acc[j]);
        }
        memcpy(sum + j0, acc, sizeof acc);
    }
    for (size_t j = j0; j < n; j++) {
        double acc = 0;
        for (size_t k = 0; k < rank; k++)
            acc = __builtin_fma(left[k], right[k * stride + j], acc);
        sum[j] = acc;
    }
}

static inline float float_of(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t bits_of(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static void load_bf16(const uint16_t *src, float *dst, size_t n)
{
    uint32_t *to = (uint32_t *)(void *)dst;
    for (size_t j = 0; j < n; j++)
        to[j] = (uint32_t)src[j] << 16;
}

static void load_f16(const uint16_t *src, float *dst, size_t n)
{
    for (size_t j = 0; j < n; j++) { // finite ones; an infinity becomes 65536, found by the caller
        uint32_t sign = (uint32_t)(src[j] & 0x8000) << 16, magnitude = src[j] & 0x7FFF;
        dst[j] = float_of(sign | bits_of(float_of(magnitude << 13) * 0x1p112f));
    }
}

static void add(const float *w, const float *delta, const float *norms, float window, size_t n,
                float *v, float *slack)
{
    for (size_t j = 0; j < n; j++) {
        float sum = w[j] + delta[j];
        v[j] = sum;
        slack[j] = window * norms[j] + fabsf(sum) * (4 * HALF_ULP) + TINY;
    }
}

static void narrow(const double *exact, const double *slack64, size_t n, float *v, float *slack)
{
    for (size_t j = 0; j < n; j++) {
        float f = (float)exact[j];
        v[j] = f;
        slack[j] = (float)slack64[j] * 1.0001f + fabsf(f) * (4 * HALF_ULP) + TINY;
    }
}

static inline uint32_t to_bf16(float f)
{
    uint32_t bits = bits_of(f);
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

/* As dtype_f32_to_f16, without branches; not for NaN. */
static inline uint32_t to_f16(float f)
{
    uint32_t bits = bits_of(f), magnitude = bits & 0x7FFFFFFF;
    uint32_t normal = (magnitude + 0xC8000FFF + (magnitude >> 13 & 1)) >> 13;
    uint32_t small = bits_of(float_of(magnitude) + 0.5f) - 0x3F000000;
    uint32_t r = magnitude < 0x38800000 ? small : normal;
    r = magnitude >= 0x477FF000 ? 0x7C00 : r;
    return (bits >> 16 & 0x8000) | r;
}

static uint16_t round_bf16(const float *v, const float *slack, size_t n, uint16_t *out,
                           uint16_t *unsure)
{
    uint16_t any = 0;
    for (size_t j = 0; j < n; j++) {
        uint32_t low = to_bf16(v[j] - slack[j]), high = to_bf16(v[j] + slack[j]);
        uint16_t doubt = (uint16_t)((low ^ high) | ((low & 0x7F80) == 0x7F80));
        out[j] = (uint16_t)low;
        unsure[j] = doubt;
        any |= doubt;
    }
    return any;
}

static uint16_t round_f16(const float *v, const float *slack, size_t n, uint16_t *out,
                          uint16_t *unsure)
{
    uint16_t any = 0;
    for (size_t j = 0; j < n; j++) {
        uint32_t low = to_f16(v[j] - slack[j]), high = to_f16(v[j] + slack[j]);
        uint16_t doubt = (uint16_t)((low ^ high) | ((low & 0x7C00) == 0x7C00));
        out[j] = (uint16_t)low;
        unsure[j] = doubt;
        any |= doubt;
    }
    return any;
}

static uint32_t round_f32(const double *v, const double *slack, size_t n, uint32_t *out,
                          uint32_t *unsure)
{
    uint32_t any = 0;
    for (size_t j = 0; j < n; j++) {
        uint32_t low = bits_of((float)(v[j] - slack[j])), high = bits_of((float)(v[j] + slack[j]));
        uint32_t doubt = (low ^ high) | ((low & 0x7F800000) == 0x7F800000);
        out[j] = low;
        unsure[j] = doubt;
        any |= doubt;
    }
    return any;
}

static void load_e4m3(const uint8_t *src, double *dst, size_t n)
{
    for (size_t j = 0; j < n; j++) {
        uint32_t sign = (uint32_t)(src[j] & 0x80) << 24, magnitude = src[j] & 0x7F;
        uint32_t bits = bits_of(float_of(magnitude << 20) * 0x1p120f);
        dst[j] = float_of(sign | (magnitude == 0x7F ? 0x7FC00000 : bits));
    }
}

static void load_e5m2(const uint8_t *src, double *dst, size_t n)
{
    for (size_t j = 0; j < n; j++) {
        uint32_t sign = (uint32_t)(src[j] & 0x80) << 24, magnitude = src[j] & 0x7F;
        uint32_t bits = bits_of(float_of(magnitude << 21) * 0x1p112f);
        bits = magnitude == 0x7C ? 0x7F800000 : bits;
        dst[j] = float_of(sign | (magnitude > 0x7C ? 0x7FC00000 : bits));
    }
}

static bool peak64(const double *v, size_t n, double *peak)
{
    double most[VALUES_LANES] = {0}, sum[VALUES_LANES] = {0}, all = 0;
    size_t j = 0;
    for (; j + VALUES_LANES <= n; j += VALUES_LANES) {
        for (size_t l = 0; l < VALUES_LANES; l++) {
            double x = fabs(v[j + l]);
            most[l] = x > most[l] ? x : most[l];
            sum[l] += x * 0; // NaN for ever after one, or after an infinity
        }
    }
    for (size_t l = 0; j < n; j++, l++) {
        double x = fabs(v[j]);
        most[l] = x > most[l] ? x : most[l];
        sum[l] += x * 0;
    }
    for (size_t l = 0; l < VALUES_LANES; l++) {
        *peak = most[l] > *peak ? most[l] : *peak;
        all += sum[l];
    }
    return all == 0;
}

static void narrow_scaled(const double *exact, const double *slack64, double inverse, size_t n,
                          float *v, float *slack)
{
    for (size_t j = 0; j < n; j++) {
        float f = (float)(exact[j] * inverse);
        v[j] = f;
        slack[j] = (float)(slack64[j] * inverse) * 1.0001f + fabsf(f) * (4 * HALF_ULP) + TINY;
    }
}

/* As dtype_f32_to_f8_e4m3 and _e5m2, without branches; what overflows gives 0x7F and 0x7C. */
static inline uint32_t to_e4m3(float f)
{
    uint32_t bits = bits_of(f), magnitude = bits & 0x7FFFFFFF;
    uint32_t normal = ((magnitude + 0x7FFFF + (magnitude >> 20 & 1)) >> 20) - ((127 - 7) << 3);
    uint32_t small = bits_of(float_of(magnitude) + 0x1p14f) - 0x46800000;
    uint32_t r = magnitude < 0x3C800000 ? small : normal;
    r = r > 0x7E ? 0x7F : r;
    return (bits >> 24 & 0x80) | r;
}

static inline uint32_t to_e5m2(float f)
{
    uint32_t bits = bits_of(f), magnitude = bits & 0x7FFFFFFF;
    uint32_t normal = ((magnitude + 0xFFFFF + (magnitude >> 21 & 1)) >> 21) - ((127 - 15) << 2);
    uint32_t small = bits_of(float_of(magnitude) + 0x1p7f) - 0x43000000;
    uint32_t r = magnitude < 0x38800000 ? small : normal;
    r = r > 0x7B ? 0x7C : r;
    return (bits >> 24 & 0x80) | r;
}

static uint8_t round_e4m3(const float *v, const float *slack, size_t n, uint8_t *out,
                          uint8_t *unsure)
{
    uint8_t any = 0;
    for (size_t j = 0; j < n; j++) {
        uint32_t low = to_e4m3(v[j] - slack[j]), high = to_e4m3(v[j] + slack[j]);
        uint8_t doubt = (uint8_t)((low ^ high) | ((low & 0x7F) == 0x7F));
        out[j] = (uint8_t)low;
        unsure[j] = doubt;
        any |= doubt;
    }
    return any;
}

static uint8_t round_e5m2(const float *v, const float *slack, size_t n, uint8_t *out,
                          uint8_t *unsure)
{
    uint8_t any = 0;
    for (size_t j = 0; j < n; j++) {
        uint32_t low = to_e5m2(v[j] - slack[j]), high = to_e5m2(v[j] + slack[j]);
        uint8_t doubt = (uint8_t)((low ^ high) | ((low & 0x7C) == 0x7C));
        out[j] = (uint8_t)low;
        unsure[j] = doubt;
        any |= doubt;
    }
    return any;
}

static void stats(const float *old, const float *delta, const float *now, size_t n,
                  struct values_sums *out)
{
    float base2[VALUES_LANES] = {0}, delta2[VALUES_LANES] = {0}, lost2[VALUES_LANES] = {0};
    size_t j = 0;
    for (; j + VALUES_LANES <= n; j += VALUES_LANES) {
        for (size_t l = 0; l < VALUES_LANES; l++) {
            float w = old[j + l], d = delta[j + l], lost = (now[j + l] - w) - d;
            base2[l] += w * w;
            delta2[l] += d * d;
            lost2[l] += lost * lost;
        }
    }
    for (size_t l = 0; j < n; j++, l++) {
        float w = old[j], d = delta[j], lost = (now[j] - w) - d;
        base2[l] += w * w;
        delta2[l] += d * d;
        lost2[l] += lost * lost;
    }
    *out = (struct values_sums){0};
    for (size_t l = 0; l < VALUES_LANES; l++) {
        out->base2 += base2[l];
        out->delta2 += delta2[l];
        out->lost2 += lost2[l];
    }
}

static void gain64(const double *w, const double *delta, const double *gain, size_t step,
                   const double *norms, double window, size_t n, double *v, double *slack)
{
    for (size_t j = 0; j < n; j++) {
        double g = gain[j * step], sum = w[j] + delta[j];
        v[j] = g * sum;
        slack[j] = fabs(g) * (window * norms[j]) + fabs(v[j]) * 0x1p-50 + 0x1p-1000;
    }
}

static double squares64(const double *w, const double *delta, size_t n)
{
    double s[VALUES_LANES] = {0}, total = 0;
    size_t j = 0;
    for (; j + VALUES_LANES <= n; j += VALUES_LANES) {
        for (size_t l = 0; l < VALUES_LANES; l++) {
            double x = w[j + l] + delta[j + l];
            s[l] += x * x;
        }
    }
    for (size_t l = 0; j < n; j++, l++) {
        double x = w[j] + delta[j];
        s[l] += x * x;
    }
    for (size_t l = 0; l < VALUES_LANES; l++)
        total += s[l];
    return total;
}

KERNEL_TABLE = {
    .name = KERNEL_NAME,
    .deltas = deltas,
    .sums64 = sums64,
    .load_bf16 = load_bf16,
    .load_f16 = load_f16,
    .add = add,
    .narrow = narrow,
    .round_bf16 = round_bf16,
    .round_f16 = round_f16,
    .round_f32 = round_f32,
    .load_e4m3 = load_e4m3,
    .load_e5m2 = load_e5m2,
    .peak64 = peak64,
    .narrow_scaled = narrow_scaled,
    .round_e4m3 = round_e4m3,
    .round_e5m2 = round_e5m2,
    .stats = stats,
    .gain64 = gain64,
    .squares64 = squares64,
};

#endif
