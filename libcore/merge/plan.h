/*
 * plan: what a merge of adapters into a base will do, tensor by tensor, decided from headers and
 * configurations before a weight is read.
 *
 * Owns the opened base (config, modules, checkpoint) and the bindings; the adapters are borrowed.
 * Adapters stand in the order of their content ids, whatever order was given. One of weight 0 is
 * left out. What has no meaning is refused by name: a replacement (modules_to_save, bias, trainable
 * tokens) or DoRA at a weight other than 1, or on a tensor that another adapter changes as well.
 * A tied pair (embedding and lm_head in one tensor) of which only one end changes, or both
 * differently, is untied: lm_head gets a tensor of its own and config.json says so. PEFT ties
 * nothing when it merges and leaves the config as it was, which gives a wrong model.
 * Thread rule: immutable once open.
 */
#ifndef LIBCORE_MERGE_PLAN_H
#define LIBCORE_MERGE_PLAN_H

#include <jansson.h>

#include "libcore/model/bind.h"
#include "libcore/model/float8.h"
#include "libcore/model/fingerprint.h"

struct merge_adapter {
    const struct adapter *adapter; // borrowed; with its content id
    double weight;
};

/* What becomes of weights that the base stores as 8-bit floats with scales. */
enum merge_float8 {
    MERGE_FLOAT8_KEEP, // they stay so; a scale changes only where its block would not fit
    MERGE_FLOAT8_BF16, // all of them become BF16, and the scales go
};

struct merge_options {
    enum merge_float8 float8;
    bool resize_embeddings; // adapters may bring more embedding rows than the base has
    bool headers_only;      // values are not looked at: a saved base layer is taken as it is
    unsigned n_threads;     // for the estimate; 0: all processors
};

/* One adapter's factors (or lora_bias) on one tensor. */
struct merge_term {
    const struct adapter_module *module;
    double factor; // weight * scale
    uint32_t adapter_idx;
};

/* Of a weight in 8-bit floats: the base's scales. */
struct merge_scales {
    struct float8_layout layout; // layout.scale NULL: none
    const double *values;        // [layout.n_rows, n_cols]
    uint32_t tensor_idx;         // of the plan's tensors; only with layout.scale
};

struct merge_tensor {
    const char *name;                     // as the base spells it
    const struct checkpoint_tensor *base; // old values; an untied head's: the embedding's
    struct tensor stored;                 // type and shape of the result; no data
    const struct model_module *module;    // NULL: no weight of the model, copied
    struct weight_place place;
    bool touched, added; // added: a lm_head that the base did not have
    bool converted;      // changes its type; `touched` says whether an adapter changes it too
    bool dropped;        // not in the result
    const struct merge_scales *scales;    // of an 8-bit weight that is touched or converted; NULL
    const struct merge_tensor *scales_of; // these are the scales of that weight, which is touched
    uint32_t shard_idx;
    uint64_t begin;           // in the new shard's payload
    struct merge_term *terms; // summed in this order
    size_t n_terms;
    const struct tensor *full;           // replaces the base's values, then terms are added
    const struct adapter_module *tokens; // its rows replace rows, last of all
    const struct adapter_module *dora;   // its magnitude sets the gain
};

struct merge_shard {
    const char *name; // file name within the folder
    const struct safetensors *base;
    bool same_header;   // header and places are the base's, byte for byte
    const void *header; // length word and JSON
    uint64_t header_bytes, file_bytes;
    uint32_t *tensors; // indices, in the order of the payload
    size_t n_tensors;
};

struct merge_bound {
    const struct adapter *adapter;
    double weight;
    struct bound_adapter *bound; // NULL: weight 0, or refused
};

struct merge_plan {
    char fingerprint[DIGEST_HEX_CHARS + 1]; // of the base
    struct model_config config;
    struct float8_config float8;
    bool to_bf16; // every 8-bit weight is converted
    struct model_modules *modules;
    struct checkpoint *base;
    struct merge_bound *adapters; // by content id
    size_t n_adapters;
    struct merge_tensor *tensors; // the base's by name, then added ones
    size_t n_tensors, n_touched, n_dropped;
    struct merge_shard *shards;
    size_t n_shards;
    bool untied;
    uint32_t n_vocab;    // 0: unchanged
    json_t *warnings;    // array of strings
    json_t *refusals;    // array of strings; empty unless merge_plan_survey()
    uint64_t read_bytes; // of base weights
    uint64_t write_bytes;
    uint64_t ram_bytes; // peak, beside the adapters' own files
    struct arena arena;
};

/* Opens the base at `folder` and plans. *out is the caller's, to free with merge_plan_free().
 * ERR_REFUSED ("adapter:module: …"), ERR_CORRUPT, ERR_NOT_FOUND, ERR_NO_MEMORY. */
int merge_plan_open(struct merge_plan **out, const char *folder,
                    const struct merge_adapter *adapters, size_t n_adapters,
                    const struct merge_options *opt, struct err *err);
/* The same, but what is refused is listed in `refusals` and the rest is planned. */
int merge_plan_survey(struct merge_plan **out, const char *folder,
                      const struct merge_adapter *adapters, size_t n_adapters,
                      const struct merge_options *opt, struct err *err);
void merge_plan_free(struct merge_plan *p);

#endif
