/*
 * dtype: the number types of safetensors, and exact conversion between those that carry weights.
 */
#ifndef LIBCORE_TENSOR_DTYPE_H
#define LIBCORE_TENSOR_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dtype {
    DTYPE_NONE = 0,
    DTYPE_BOOL,
    DTYPE_F4,
    DTYPE_F6_E2M3,
    DTYPE_F6_E3M2,
    DTYPE_U8,
    DTYPE_I8,
    DTYPE_F8_E5M2,
    DTYPE_F8_E4M3,
    DTYPE_F8_E8M0,
    DTYPE_F8_E4M3FNUZ,
    DTYPE_F8_E5M2FNUZ,
    DTYPE_I16,
    DTYPE_U16,
    DTYPE_F16,
    DTYPE_BF16,
    DTYPE_I32,
    DTYPE_U32,
    DTYPE_F32,
    DTYPE_C64,
    DTYPE_F64,
    DTYPE_I64,
    DTYPE_U64,
    DTYPE_COUNT
};

unsigned dtype_bits(enum dtype t);
const char *dtype_name(enum dtype t);     // as safetensors writes it: "BF16"
enum dtype dtype_parse(const char *name); // DTYPE_NONE when unknown
bool dtype_is_float(enum dtype t);        // F64, F32, F16, BF16, F8_E4M3, F8_E5M2
bool dtype_is_float8(enum dtype t);       // the last two

/* Scalars. To a smaller type: round to nearest, ties to even; overflow gives ±Inf (f8_e4m3: NaN).
 */
float dtype_bf16_to_f32(uint16_t v);
float dtype_f16_to_f32(uint16_t v);
float dtype_f8_e4m3_to_f32(uint8_t v);
float dtype_f8_e5m2_to_f32(uint8_t v);
uint16_t dtype_f32_to_bf16(float v);
uint16_t dtype_f32_to_f16(float v);
uint16_t dtype_f64_to_bf16(double v); // one rounding, not two
uint16_t dtype_f64_to_f16(double v);
uint8_t dtype_f32_to_f8_e4m3(float v);
uint8_t dtype_f32_to_f8_e5m2(float v);

/* Rows: n values of type t at src. ok only for dtype_is_float types; false otherwise. */
bool dtype_to_f32(enum dtype t, const void *src, float *dst, size_t n);
bool dtype_from_f32(enum dtype t, const float *src, void *dst, size_t n);
bool dtype_to_f64(enum dtype t, const void *src, double *dst, size_t n);
bool dtype_from_f64(enum dtype t, const double *src, void *dst, size_t n);
/* Index of the first NaN or Inf among n values, or n. */
size_t dtype_find_non_finite(enum dtype t, const void *src, size_t n);

#endif
