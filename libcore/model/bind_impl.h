/*
 * bind_impl: between the rooms of bind.
 *   bind.c           names, shapes, the order   bind_coverage.c  configuration → base
 *   bind_variants.c  tied ends, saved base layers, experts stored the other way round
 */
#ifndef LIBCORE_MODEL_BIND_IMPL_H
#define LIBCORE_MODEL_BIND_IMPL_H

#include "libcore/model/bind.h"

struct binder {
    struct bound_adapter *b;
    const struct adapter *a;
    const struct model_modules *m;
    const struct model_config *config;
    const struct model_module *embed, *head;
    size_t cap; // of b->parts
    bool warned_fan_in, warned_prefix;
    struct err *err; // never NULL
};

int bind_refuse(struct binder *k, const char *module, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
int bind_no_memory(struct binder *k);
int bind_warn(struct binder *k, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* A copy of a module in the bound adapter's arena; NULL with the error set. */
struct adapter_module *bind_copy(struct binder *k, const struct adapter_module *m);
struct bound_part *bind_find(struct bound_adapter *b, const struct model_module *target);
int bind_add(struct binder *k, const struct adapter_module *m, const struct model_module *target);
void bind_set_kinds(struct bound_adapter *b);

int bind_coverage(struct binder *k);
int bind_tied(struct binder *k);
/* The module itself, or a copy with A and B exchanged when PEFT (before 0.18) took the base's
 * [experts, out, in] for [experts, in, out]; NULL with the error set. */
const struct adapter_module *bind_experts_oriented(struct binder *k, const struct adapter_module *m,
                                                   const struct model_module *t);

#endif
