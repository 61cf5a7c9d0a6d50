/*
 * base_model: what the store knows of a base: its folder, architecture and fingerprint; and
 * importing one, by reference or as a copy.
 */
#ifndef STORE_BASE_MODEL_H
#define STORE_BASE_MODEL_H

#include "libcore/adapter/adapter.h"
#include "libcore/model/config.h"
#include "libcore/model/module.h"
#include "store/store.h"

/* An opened base, to check adapters against. */
struct base_model {
    char id[STORE_ID_CHARS + 1]; // fingerprint
    char *name;                  // for people: its name in the store, or the folder's
    char *folder;
    bool sampled; // verified by size, time and fingerprint only: it has no digests
    struct model_config config;
    struct model_modules *modules;
    uint64_t n_parameters;
};

/* From a folder; the fingerprint is computed. *out is the caller's, to free with base_model_free().
 * ERR_REFUSED (an architecture or tensor that is not known), ERR_CORRUPT, ERR_NOT_FOUND. */
int base_model_open_folder(struct base_model **out, const char *folder, struct err *err);
/* From the store; checked as store_base_folder() does, the fingerprint is the recorded one. */
int base_model_open(struct base_model **out, struct store *s, const char *id, struct err *err);
void base_model_free(struct base_model *b);

/* Whether the adapter lands on this base, both ways: 0, or ERR_REFUSED naming the first offender.
 * Appends bind's warnings to `warnings` (or NULL). */
int base_model_check_adapter(const struct base_model *b, const struct adapter *a, json_t *warnings,
                             struct err *err);

#endif
