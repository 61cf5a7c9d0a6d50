/*
 * run_prompt: what `lora run` is asked: prompts as ids and adapters with scales.
 */
#ifndef CMD_RUN_PROMPT_H
#define CMD_RUN_PROMPT_H

#include <stddef.h>
#include <stdint.h>

#include "libcore/base/digest.h"
#include "libcore/base/err.h"

struct run_prompt {
    int32_t *ids;
    size_t n;
};

struct run_adapter {
    char content_id[DIGEST_HEX_CHARS + 1];
    float scale;
};

/* A JSON list of ids, or of such lists. *out is the caller's, for run_prompts_free(). */
int run_prompts_read(struct run_prompt **out, size_t *n, const char *path, uint32_t vocab_size,
                     struct err *err);
void run_prompts_free(struct run_prompt *prompts, size_t n);

/* "REF" or "REF=scale": the reference's length, and the scale (1 without). */
size_t run_adapter_parse(const char *text, float *scale);

/* float32 [n, width], little-endian, as NumPy reads it. ERR_EXISTS without force. */
int run_write_npy(const char *path, const float *data, size_t n, size_t width, bool force,
                  struct err *err);

#endif
