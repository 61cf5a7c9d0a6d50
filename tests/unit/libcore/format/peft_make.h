/*
 * peft_make: small adapters written for a test, mutated field by field.
 */
#ifndef TESTS_PEFT_MAKE_H
#define TESTS_PEFT_MAKE_H

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/safetensors_writer.h"
#include "tests/lib/test.h"

#define Q "base_model.model.model.layers.0.self_attn.q_proj"
#define V "base_model.model.model.layers.0.self_attn.v_proj"

struct make_tensor {
    const char *name;
    uint64_t d0, d1;  // d1 0: one dimension
    enum dtype dtype; // NONE: F32
};

/* Rank 4 on q_proj and v_proj of one layer. */
static const struct make_tensor make_plain[] = {{Q ".lora_A.weight", 4, 8, 0},
                                                {Q ".lora_B.weight", 6, 4, 0},
                                                {V ".lora_A.weight", 4, 8, 0},
                                                {V ".lora_B.weight", 2, 4, 0},
                                                {NULL, 0, 0, 0}};

static inline void make_weights(const char *folder, const struct make_tensor *tensors)
{
    char path[4600];
    struct err err = {0};
    struct safetensors_writer *w;
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", folder);
    CHECK_OK(safetensors_writer_open(&w, path, &err), err);
    for (const struct make_tensor *t = tensors; t->name; t++) {
        uint64_t shape[2] = {t->d0, t->d1};
        CHECK_OK(safetensors_writer_declare(w, t->name, t->dtype ? t->dtype : DTYPE_F32,
                                            t->d1 ? 2 : 1, shape, &err),
                 err);
    }
    CHECK_OK(safetensors_writer_begin(w, &err), err);
    unsigned seed = 1;
    for (const struct make_tensor *t = tensors; t->name; t++) {
        size_t n = (size_t)(t->d0 * (t->d1 ? t->d1 : 1));
        float *f = malloc(n * sizeof *f);
        for (size_t i = 0; i < n; i++) {
            seed = seed * 1103515245 + 12345;
            f[i] = (float)(int)(seed >> 16 & 255) / 64 - 2; // exact in every float type here
        }
        enum dtype dtype = t->dtype ? t->dtype : DTYPE_F32;
        void *raw = calloc(n, 8);
        if (!dtype_from_f32(dtype, f, raw, n))
            memset(raw, 1, n * 8);
        CHECK_OK(safetensors_writer_put(w, t->name, 0, raw, n * dtype_bits(dtype) / 8, &err), err);
        free(raw);
        free(f);
    }
    CHECK_OK(safetensors_writer_finish(w, &err), err);
    safetensors_writer_free(w);
}

/* `overrides` is a JSON object merged over a sound configuration; may be NULL. */
static inline void make_config(const char *folder, const char *overrides)
{
    char path[4600];
    struct err err = {0};
    json_t *c = json_pack("{s:s, s:i, s:i, s:[s,s], s:s, s:b}", "peft_type", "LORA", "r", 4,
                          "lora_alpha", 8, "target_modules", "q_proj", "v_proj", "task_type",
                          "CAUSAL_LM", "inference_mode", 1);
    json_error_t je;
    const char *changes = overrides ? overrides : "{}";
    json_t *over = json_loads(changes, 0, &je);
    CHECK_MSG(over, "%s: %s", changes, je.text);
    json_object_update(c, over);
    json_decref(over);
    char *text = json_dumps(c, 0);
    snprintf(path, sizeof path, "%s/adapter_config.json", folder);
    CHECK_OK(file_write_atomic(path, text, strlen(text), &err), err);
    free(text);
    json_decref(c);
}

/* A folder with both; a static buffer, overwritten by the next call. */
static inline const char *make_adapter(const char *overrides, const struct make_tensor *tensors)
{
    static char folder[4300];
    static unsigned n;
    struct err err = {0};
    snprintf(folder, sizeof folder, "%s/adapter%u", test_tmp(), n++);
    if (file_make_folders(folder, &err) != 0)
        test_fail(__FILE__, __LINE__, "%s", err.msg);
    make_config(folder, overrides);
    make_weights(folder, tensors ? tensors : make_plain);
    return folder;
}

#endif
