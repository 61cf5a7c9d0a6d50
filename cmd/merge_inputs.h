/*
 * merge_inputs: the adapters and the base that merge, diff and their kin work on, from the words of
 * a command line or from a recipe. Everything read is checked against its content id; what the
 * store has is held by a lease until release.
 */
#ifndef CMD_MERGE_INPUTS_H
#define CMD_MERGE_INPUTS_H

#include "cmd/model_ref.h"
#include "libcore/merge/recipe.h"

struct merge_input {
    struct adapter *adapter;
    double weight;
    char *name;                       // as it was given, or as the store calls it
    char *path;                       // real path outside the store; NULL: in the store
    char base_id[STORE_ID_CHARS + 1]; // as recorded at import; "" unknown
};

struct merge_inputs {
    struct store *store; // borrowed; NULL: there is none
    struct merge_input *items;
    size_t n;
    struct lease *lease;
    char *base_folder, *base_name;
    char base_id[STORE_ID_CHARS + 1]; // of a base of the store; "" by path
};

/* Reads REF or REF=WEIGHT words. s may be NULL. Release with merge_inputs_release() also after a
 * failure. */
int merge_inputs_read(struct merge_inputs *out, struct store *s, char *const *words, size_t n,
                      struct err *err);
/* The adapters of a recipe: by content id from the store, else from their paths, where the content
 * must be the same (ERR_REFUSED). */
int merge_inputs_of_recipe(struct merge_inputs *out, struct store *s, const struct recipe *r,
                           struct err *err);
/* Finds the base: `ref`, else what the adapters record (fingerprint in the store, then
 * base_model_name_or_path). They must agree (ERR_REFUSED). */
int merge_inputs_base(struct merge_inputs *in, const char *ref, struct err *err);
void merge_inputs_release(struct merge_inputs *in);

/* Whether the base that was opened is the one that the adapters were recorded with; ERR_REFUSED
 * names both. */
int merge_inputs_check_base(const struct merge_inputs *in, const char *fingerprint,
                            struct err *err);

#endif
