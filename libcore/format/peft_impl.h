/*
 * peft_impl: between the rooms of the PEFT reader.
 *   peft_files.c   which files            peft_config.c  fields, known or refused
 *   peft_names.c   what a name means      peft_modules.c tensors into modules, with every check
 *   peft_experts.c MoE experts            peft.c         the order of it all
 */
#ifndef LIBCORE_FORMAT_PEFT_IMPL_H
#define LIBCORE_FORMAT_PEFT_IMPL_H

#include "libcore/format/peft.h"
#include "libcore/format/peft_match.h"
#include "libcore/format/safetensors.h"

/* ---- peft_files.c ---- */
struct peft_place {
    char *folder;  // where the configuration lies
    char *config;  // path of adapter_config.json
    char *weights; // path of the weights
};
int peft_place_find(struct peft_place *out, const char *path, struct err *err);
void peft_place_release(struct peft_place *p);
/* Whether a file of that name travels with an adapter besides its weights, and as what. */
bool peft_companion_role(const char *name, enum peft_file_role *role);

/* ---- peft.c ---- */
/* A file of another format, as a PEFT file would have said it. */
struct peft_image {
    const char *weights; // path of the file it came from, for errors
    const char *format;  // adapter.format
    json_t *config;      // given away, also on failure
    char *bytes;         // a safetensors file from sys_malloc; given away likewise
    size_t n;
    const json_t *warnings; // array, copied
};
int peft_read_image(struct adapter **out, const char *path, const struct peft_image *image,
                    const struct peft_options *opt, struct err *err);

/* ---- peft_config.c ---- */
struct peft_config {
    const json_t *root; // borrowed
    const char *where;  // borrowed
    bool rslora, dora, lora_bias, fan_in_fan_out;
};
/* Reads the file into a JSON object that the caller owns. */
int peft_config_load(json_t **out, const char *path, struct err *err);
/* Checks every field against the table; warnings and ignored fields into `a`. */
int peft_config_check(struct peft_config *out, const json_t *root, const char *where,
                      const struct peft_options *opt, struct adapter *a, struct err *err);

/* ---- peft_names.c ---- */
enum peft_part {
    PART_A,
    PART_B,
    PART_EMBEDDING_A,
    PART_EMBEDDING_B,
    PART_MAGNITUDE,
    PART_LORA_BIAS,  // lora_B.bias
    PART_BIAS,       // replaces the base's bias
    PART_FULL,       // weight of the module, by modules_to_save
    PART_SAVED_BASE, // weight of the base as the trainer had it
    PART_TOKENS,     // trainable_tokens_delta
    PART_INERT,      // belongs to training only
    PART_REFUSED,    // `why` says it
};
struct peft_name {
    char *module;          // in the arena: no prefix, no base_layer, no adapter name
    const char *parameter; // "weight"; a whole tensor under a name of its own: that name
    enum peft_part part;
    unsigned depth; // how many base_layer wrappers lay around it (MoE: the inner parameter has 1)
    bool leaked;    // a wrapper's prefix was taken off
    bool named;     // an adapter's name was taken off ("lora_A.default.weight")
    const char *why;
};
/* Takes a tensor's name apart. ERR_NO_MEMORY only. */
int peft_name_parse(struct peft_name *out, const char *name, struct arena *arena, struct err *err);

/* ---- peft_modules.c ---- */
struct peft_entry { // one tensor of the file with its meaning
    struct peft_name name;
    const struct safetensors_entry *tensor;
};
struct peft_reader {
    struct adapter *a;
    const struct peft_options *opt;
    struct peft_config config;
    struct peft_matcher *matcher;
    const struct safetensors *file;
    struct peft_entry *entries; // sorted by module, depth, part
    size_t n_entries;
    size_t cap_modules; // of a->modules
    struct err *err;
};
int peft_modules_build(struct peft_reader *r);
/* A new module in the adapter; NULL after ERR_NO_MEMORY was set. */
struct adapter_module *peft_module_add(struct peft_reader *r, const char *name,
                                       const char *parameter);
/* Rank and scale for `key` into m, checked against the rank that the shapes have. */
int peft_module_scale(struct peft_reader *r, struct adapter_module *m, const char *key,
                      uint64_t shape_rank, const char *tensor);
/* ERR_REFUSED "file:tensor: …". */
int peft_refuse(struct peft_reader *r, const char *tensor, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* ---- peft_experts.c ---- */
/* Whether a module's name is that of fused experts ("….mlp.experts") or of one expert's own
 * projection in an older checkpoint ("….experts.3.w1"). */
bool peft_is_experts(const char *module);
bool peft_is_one_expert(const char *module);
/* entries[begin, end) belong to one fused experts module. */
int peft_experts_fused(struct peft_reader *r, size_t begin, size_t end);
/* entries[begin, end) are all entries of one experts block's single experts. */
int peft_experts_single(struct peft_reader *r, size_t begin, size_t end);
/* Length of the block's name ("model.layers.0.mlp.experts") within a single expert's module. */
size_t peft_experts_block_length(const char *module);

#endif
