/*
 * gguf_names: what llama.cpp calls the modules of the architectures served here.
 */
#ifndef LIBCORE_FORMAT_GGUF_NAMES_H
#define LIBCORE_FORMAT_GGUF_NAMES_H

#include <stdbool.h>
#include <stddef.h>

/* A module's name in one world and in the other; '#' is the layer's number. */
struct gguf_module_name {
    const char *ggml;   // "blk.#.attn_q"
    const char *module; // "model.layers.#.self_attn.q_proj"
    const char *only;   // of this architecture; NULL: of all but those that have it otherwise
    bool expert;        // all experts in one tensor
};
const struct gguf_module_name *gguf_module_names(size_t *n);

/* Whether llama.cpp's converter reorders the rows of q and k of this architecture (rotary halves
 * side by side: convert_hf_to_gguf.py, LlamaModel.permute). */
bool gguf_rows_are_permuted(const char *architecture);

/* Architectures whose names are known. */
bool gguf_knows(const char *architecture);

#endif
