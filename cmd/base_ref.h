/*
 * base_ref: what a MODEL on the command line means: a base of the store (name, name:tag, prefix), a
 * folder, or a hub id in the local cache. A name wins over a path.
 */
#ifndef CMD_BASE_REF_H
#define CMD_BASE_REF_H

#include <stdbool.h>

#include "libcore/base/digest.h"
#include "libcore/base/err.h"

struct base_ref {
    char *folder;                  // where its files lie
    char *name;                    // as it was given; for a store's prefix, the name it stands for
    char id[DIGEST_HEX_CHARS + 1]; // fingerprint
    bool in_store;
};

/* store_path: a folder that may hold no store, or NULL. ERR_NOT_FOUND says where was looked;
 * ERR_USAGE: ambiguous. Release with base_ref_release(). */
int base_ref_find(struct base_ref *out, const char *store_path, const char *ref, struct err *err);
void base_ref_release(struct base_ref *r);

#endif
