/*
 * loaded: which weights of a model have arrived, counted in rows, so that a back end can name the
 * one that is missing. Any thread may note; a check comes after the last note.
 */
#ifndef KERNELS_LOADED_H
#define KERNELS_LOADED_H

#include <stdatomic.h>

#include "libcore/model/module.h"
#include "libcore/tensor/tensor.h"

struct loaded {
    const struct model_modules *modules; // borrowed
    _Atomic uint32_t *rows;              // [2 * modules->n]: weight, bias
};

/* ERR_NO_MEMORY. Frees with loaded_release(), also after an error. */
int loaded_init(struct loaded *l, const struct model_modules *modules, struct err *err);
void loaded_release(struct loaded *l);

/* src (a part, a whole, all experts of a module) has reached its place. */
void loaded_note(struct loaded *l, const struct weight_place *place, const struct tensor *src);
/* 0, or ERR_CORRUPT naming the first weight or bias that is not whole. */
int loaded_check(struct loaded *l, struct err *err);

#endif
