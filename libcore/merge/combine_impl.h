/*
 * combine_impl: between the rooms of combine.
 *   combine.c          which modules, threads, the result     combine_methods.c  the table
 *   combine_module.c   one module's numbers                   combine_rest.c     what is no factor
 *   factors.c          pairs of factors in and out (also of extract and resize)
 */
#ifndef LIBCORE_MERGE_COMBINE_IMPL_H
#define LIBCORE_MERGE_COMBINE_IMPL_H

#include "libcore/adapter/builder.h"
#include "libcore/merge/combine.h"
#include "libcore/merge/factors.h"

struct combine_term {
    const struct adapter_module *module;
    const struct combine_input *input;
    double weight; // after normalize
};

/* A module of the result while it is computed. */
struct combine_job {
    const struct adapter_module *like; // the first term's: name, flags
    struct combine_term *terms;        // those with factors
    size_t n_terms;
    struct worker_pool *pool; // helps with this one; NULL: the caller's thread alone
    struct factors result;
    struct combine_module report;
};

/* Fills result and report. Different jobs may be computed at once. */
int combine_compute(struct combine_job *j, const struct combine_options *opt, struct err *err);

/* Biases, lora_bias, rows and whole weights of the result: `members` are all modules of that name,
 * of inputs in order. m: the result's module (factors set already when there are any). */
struct combine_member {
    const struct adapter_module *module;
    const struct combine_input *input;
};
int combine_rest_check(const struct combine_member *members, size_t n,
                       const struct combine_options *opt, struct err *err);
int combine_rest(struct adapter_builder *b, struct adapter_module *m,
                 const struct combine_member *members, size_t n, bool any_lora_bias,
                 size_t *n_taken_over, struct err *err);

#endif
