/*
 * arch: one table entry an architecture; private to libcore/model.
 * An entry says which names it answers to and how its own config fields are read.
 */
#ifndef LIBCORE_MODEL_ARCH_H
#define LIBCORE_MODEL_ARCH_H

#include "libcore/model/config.h"

/* Reads one config.json: the object, where it came from, and the first error. */
struct config_reader {
    const json_t *root;
    const char *where;
    struct err *err;
    int code; // first error, or 0; every reader does nothing after it
};

struct arch_entry {
    enum arch arch;
    const char *class_name;   // of `architectures`: "LlamaForCausalLM"
    const char *model_type;   // of `model_type`: "llama"
    const char *alias;        // another accepted class name, or NULL
    const char *expert_block; // checkpoint's own name of the expert block, or NULL
    /* Sets what differs from the common reading of config.c; runs after it. */
    void (*read)(struct model_config *c, struct config_reader *r);
};

extern const struct arch_entry arch_llama, arch_mistral, arch_qwen2, arch_qwen3, arch_qwen3_moe,
    arch_gemma3, arch_phi3, arch_mixtral;

const struct arch_entry *arch_by_id(enum arch a);

/* Typed fields; a missing or null field gives the default. A wrong type is ERR_CORRUPT by name. */
uint32_t config_u32(struct config_reader *r, const char *field, uint32_t fallback);
double config_number(struct config_reader *r, const char *field, double fallback);
bool config_bool(struct config_reader *r, const char *field, bool fallback);
const char *config_string(struct config_reader *r, const char *field, const char *fallback);
void config_fail(struct config_reader *r, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Windows by `layer_types` when it is there; else all layers get `window`. */
void config_set_windows(struct model_config *c, struct config_reader *r, uint32_t window);

/* One rope description (rope_parameters, or rope_scaling with rope_theta) into *out. */
void config_read_rope(struct model_config *c, struct config_reader *r, const json_t *description,
                      double theta, struct rope_config *out);

#endif
