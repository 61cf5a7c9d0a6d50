/*
 * bind: adapter modules to base modules, both ways and strictly.
 * Every adapter tensor lands on a base tensor of the right shape; every module that the
 * configuration matches has its tensors. ERR_REFUSED names the first offender, wanted and got, and
 * the nearest name.
 *
 * What a base's tied embeddings (lm_head has no weight of its own) make of an adapter, as in PEFT:
 * - A and B on the embedding act on the embedding alone, unless ensure_weight_tying, which gives
 *   lm_head the transposed pair; A and B on lm_head act on the head alone.
 * - Trainable tokens are one part, on the embedding; back ends apply its rows to a tied head too.
 * - modules_to_save replaces the copy it names, unless ensure_weight_tying.
 * - A saved base_layer (full_is_base) stands for the shared weight, so both sites get it.
 */
#ifndef LIBCORE_MODEL_BIND_H
#define LIBCORE_MODEL_BIND_H

#include "libcore/adapter/adapter.h"
#include "libcore/format/checkpoint.h"
#include "libcore/model/module.h"

struct bound_part {
    const struct adapter_module *module; // the adapter's, or a copy that the bound_adapter owns
    const struct model_module *target;   // borrowed from the modules
    /* DoRA: g[d_out] = magnitude / ||W + s B A||_row, filled by backend_set_gains() (it needs W)
     * before adapter_pack; NULL until then and for other kinds. Owned by the bound_adapter. */
    float *gain;
};

struct bound_adapter {
    const struct adapter *adapter; // borrowed
    struct bound_part *parts;      // sorted by layer, matrices before norms, site (norm), row0
    size_t n_parts;
    unsigned kinds;     // enum adapter_kind bits
    uint32_t n_vocab;   // rows of an embedding or head that the adapter brings, 0: the base's
    json_t *warnings;   // array of strings, owned
    struct arena arena; // copies of modules where binding changes them
};

/* `a` and `m` are borrowed and must outlive *out, which is the caller's, to free with bound_free().
 * ERR_REFUSED (by module: "adapter:module: wanted and got"), ERR_NO_MEMORY. */
int bind_adapter(struct bound_adapter **out, const struct adapter *a, const struct model_modules *m,
                 const struct model_config *config, struct err *err);
void bound_free(struct bound_adapter *b);

/* Drops every saved base_layer that equals the base's weight, value by value (PEFT saves it whether
 * or not it was changed); kinds and n_vocab follow. bind_adapter() calls it when
 * m->base is there; otherwise they stay replacements, which gives the same numbers for more memory
 * and at scale 1 only. ERR_REFUSED: one that differs lies under a DoRA magnitude. */
int bind_drop_saved_base(struct bound_adapter *b, const struct model_modules *m,
                         const struct checkpoint *base, struct err *err);

#endif
