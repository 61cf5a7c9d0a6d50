/*
 * bind: adapter modules to base modules, both ways and strictly.
 * Every adapter tensor lands on a base tensor of the right shape; every module that the
 * configuration matches has its tensors. ERR_REFUSED names the first offender, wanted and got, and
 * the nearest name.
 */
#ifndef LIBCORE_MODEL_BIND_H
#define LIBCORE_MODEL_BIND_H

#include "libcore/adapter/adapter.h"
#include "libcore/model/module.h"

struct bound_part {
    const struct adapter_module *module; // borrowed from the adapter
    const struct model_module *target;   // borrowed from the modules
    /* DoRA: g[d_out] = magnitude / ||W + s B A||_row, filled by bind_set_gains() (it needs W)
     * before adapter_pack; NULL until then and for other kinds. Owned by the bound_adapter. */
    float *gain;
};

struct bound_adapter {
    const struct adapter *adapter; // borrowed
    struct bound_part *parts;      // sorted by layer, site, row0
    size_t n_parts;
    unsigned kinds;   // enum adapter_kind bits
    uint32_t n_vocab; // rows of an embedding or head that the adapter brings, 0: the base's
    json_t *warnings; // array of strings, owned
};

int bind_adapter(struct bound_adapter **out, const struct adapter *a, const struct model_modules *m,
                 const struct model_config *config, struct err *err);
void bound_free(struct bound_adapter *b);

#endif
