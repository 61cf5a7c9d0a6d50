/*
 * recipe: merge.json, what a merge was made of; and the plan, which is the same object before the
 * merge was made. docs/SCRIPTING.md has the schema. A recipe is enough to make the same bytes
 * again.
 */
#ifndef LIBCORE_MERGE_RECIPE_H
#define LIBCORE_MERGE_RECIPE_H

#include <jansson.h>

#include "libcore/merge/plan.h"
#include "libcore/merge/values.h"

/* What the plan does not know. Strings are borrowed. */
struct recipe_origin {
    const char *version;      // of this program
    const char *base_name;    // for people
    const char *base_folder;  // where it lay
    const char *const *names; // of the adapters, in the plan's order; NULL: their own
    const char *const *paths; // where they lay; NULL or an element NULL: in the store
    const struct merge_options *options;
};

/* A new object: inputs, options and, with `planned`, what the plan found (tensors, memory, disk,
 * refusals). NULL when memory is out. */
json_t *recipe_of_plan(const struct merge_plan *p, const struct recipe_origin *o, bool planned);
/* Adds "report": totals and a row a changed tensor. stats: [p->n_tensors]. */
int recipe_add_report(json_t *recipe, const struct merge_plan *p, const struct values_stats *stats,
                      struct err *err);

struct recipe_adapter {
    const char *name, *id, *path; // path NULL: in the store
    double weight;
};
struct recipe {
    const char *base_name, *base_folder, *fingerprint;
    struct recipe_adapter *adapters;
    size_t n_adapters;
    bool resize_embeddings, float8_to_bf16;
    json_t *root; // owns the strings
};
/* Reads a plan or a merge.json. ERR_CORRUPT names the field; ERR_REFUSED: a newer schema. Release
 * with recipe_release(). */
int recipe_read(struct recipe *out, const char *path, struct err *err);
void recipe_release(struct recipe *r);

/* sqrt(part / whole), 0 for nothing. */
double recipe_ratio(double part2, double whole2);

#endif
