/*
 * foreign_write: adapters as kohya, MLX and llama.cpp have them.
 *
 * What a target cannot hold is refused by the module's name (ERR_REFUSED): DoRA (MLX can, when
 * every module has it), biases, replaced rows, full weights, experts, transposed weights. A scale
 * that it cannot say exactly is refused with the advice to bake it (adapter_bake()). Folders must
 * exist; files appear by rename. Re-entrant.
 */
#ifndef LIBCORE_FORMAT_FOREIGN_WRITE_H
#define LIBCORE_FORMAT_FOREIGN_WRITE_H

#include <stdbool.h>

#include "libcore/adapter/adapter.h"

/* <folder>/adapter.safetensors: lora_te_<name>.lora_down.weight, .lora_up.weight and .alpha, a
 * float32 by module. Scale: alpha / rank. */
int kohya_write(const struct adapter *a, const char *folder, struct err *err);

/* <folder>/adapters.safetensors and adapter_config.json: lora_a[in, r], lora_b[r, out]; one rank
 * and one scale, which multiplies directly. */
int mlx_write(const struct adapter *a, const char *folder, struct err *err);

/* What llama.cpp's converter knows of the base. */
struct gguf_target {
    const char *architecture; // "llama", "qwen2", …
    uint32_t n_heads, n_kv_heads;
    bool tied; // lm_head has no tensor there
};
/* <folder>/adapter.gguf: one alpha, a float32; scale alpha / rank of the tensor. */
int gguf_lora_write(const struct adapter *a, const char *folder, const struct gguf_target *target,
                    struct err *err);

#endif
