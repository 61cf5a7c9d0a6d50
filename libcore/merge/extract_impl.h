/*
 * extract_impl: between the rooms of extract.
 *   extract.c       what becomes of each module      extract_side.c   one checkpoint, by modules
 */
#ifndef LIBCORE_MERGE_EXTRACT_IMPL_H
#define LIBCORE_MERGE_EXTRACT_IMPL_H

#include "libcore/format/checkpoint.h"
#include "libcore/merge/extract.h"
#include "libcore/model/module.h"

/* A tensor that holds rows of a module: all of it, or one expert's gate, up or down. */
struct extract_piece {
    const struct checkpoint_tensor *tensor;
    int32_t expert; // -1: all of them, or none
    uint32_t row0, n_rows;
};

struct extract_weight {
    const struct model_module *module;
    struct extract_piece *pieces;
    size_t n_pieces, cap;
    const struct checkpoint_tensor *bias;
};

/* One of the two checkpoints. */
struct extract_side {
    struct checkpoint *checkpoint;
    struct model_config config;
    struct model_modules *modules;
    struct extract_weight *weights; // [modules->n], in their order
};
int extract_side_open(struct extract_side *s, const char *folder, struct err *err);
void extract_side_release(struct extract_side *s);
const struct extract_weight *extract_side_find(const struct extract_side *s,
                                               const struct model_module *like);
/* Rows [row0, row0 + n) of one expert (0: none) as float64 into out[n, d_in]. */
int extract_rows(const struct extract_weight *w, uint32_t expert, size_t row0, size_t n,
                 double *out, struct err *err);

#endif
