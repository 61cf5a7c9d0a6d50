/*
 * inspect_info: everything about one adapter or base, gathered once as JSON (docs/SCRIPTING.md has
 * the fields); what the terminal and the HTML report show is made of it.
 */
#ifndef CMD_INSPECT_INFO_H
#define CMD_INSPECT_INFO_H

#include "cmd/model_ref.h"

/* *out: a new object. s may be NULL when `ref` is a path. deep: norms per module, and digests of
 * all bytes. ERR_CORRUPT, ERR_REFUSED, ERR_NOT_FOUND. */
int inspect_adapter(json_t **out, struct store *s, const struct model_ref *ref, bool deep,
                    struct err *err);
int inspect_base(json_t **out, struct store *s, const struct model_ref *ref, bool deep,
                 struct err *err);

/* The terminal's page. */
void inspect_print(const json_t *info);

/* ---- the map layer x target, for the terminal and the report ---- */

struct inspect_map {
    size_t n_layers, n_targets;
    long first_layer;
    const char **targets; // borrowed from info
    double *values;       // [target][layer]; negative: no such module
    double max;
    const char *what; // "‖ΔW‖", or "rank" without norms
};
/* ERR_NO_MEMORY. Release with inspect_map_release(). Modules without a layer are not in it. */
int inspect_map_make(struct inspect_map *out, const json_t *info, struct err *err);
void inspect_map_release(struct inspect_map *m);

#endif
