/*
 * float8: checkpoints that keep linear weights as 8-bit floats with scales beside them, which stand
 * for W[i,j] = q[i,j] * scale of the block that (i,j) lies in. Nothing here computes on them; merge
 * reads and writes them. The forms (docs/MERGING.md): quant_method "fp8" (DeepSeek, Qwen: blocks;
 * or one scale a tensor), "compressed-tensors" in format float-quantized or naive-quantized,
 * "fbgemm_fp8" (a scale a row), "modelopt" with quant_algo FP8, and 8-bit floats that nobody
 * scaled. Other quantizations are refused by name.
 */
#ifndef LIBCORE_MODEL_FLOAT8_H
#define LIBCORE_MODEL_FLOAT8_H

#include "libcore/format/checkpoint.h"
#include "libcore/model/config.h"

struct float8_config {
    char method[24];                 // quant_method; "": no quantization_config
    uint32_t block_rows, block_cols; // of scales with two dimensions; 0: not said
    bool power_of_two;               // scales are powers of two (scale_fmt ue8m0)
};

/* Reads quantization_config of a parsed config.json, if there is one. ERR_REFUSED: a form that is
 * not read, by name; ERR_CORRUPT: a field of the wrong type. */
int float8_config_read(struct float8_config *out, const json_t *config, const char *where,
                       struct err *err);
/* config_read() of a base whose weights may be 8-bit floats: for what moves weights and does not
 * compute with them. */
int config_read_stored(struct model_config *out, struct float8_config *float8, const char *folder,
                       struct err *err);

/* How a matrix's scales lie: the scale of (i, j) is number i / block_rows * n_cols + j / block_cols
 * of the tensor. */
struct float8_layout {
    const struct checkpoint_tensor *scale; // NULL: every value stands for itself
    size_t block_rows, block_cols, n_rows, n_cols;
};
/* Finds the scales of `weight`, an 8-bit matrix. ERR_REFUSED names a shape or type that is not
 * read, a scale that is missing; ERR_CORRUPT a scale that is negative or not finite. */
int float8_find(struct float8_layout *out, const struct float8_config *config,
                const struct checkpoint *base, const struct checkpoint_tensor *weight,
                struct err *err);
/* Whether a tensor is there for the sake of an 8-bit weight alone (scales, activation scales). */
bool float8_is_beside(const struct checkpoint *base, const char *name);

/* Whether values up to `peak` round to finite ones of type t at that scale. */
bool float8_fits(enum dtype t, double peak, double scale);
/* The least scale of type `stored` (a power of two if asked) at which `peak` is no more than t's
 * largest value; Inf when `stored` has none. */
double float8_scale_for(enum dtype t, double peak, enum dtype stored, bool power_of_two);

#endif
