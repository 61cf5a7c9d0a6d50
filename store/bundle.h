/*
 * bundle: a signature as the OpenSSF model-signing tools write and read it: a Sigstore bundle
 * (v0.3) with a DSSE envelope around an in-toto statement that lists the files of a model and their
 * sha256. docs/FORMATS.md has the fields.
 * Knows JSON and keys; knows no store and no folder. Thread rule: a struct bundle belongs to one
 * thread at a time.
 */
#ifndef STORE_BUNDLE_H
#define STORE_BUNDLE_H

#include <jansson.h>

#include "store/sign.h"

#define BUNDLE_TYPE      "application/vnd.dev.sigstore.bundle.v0.3+json"
#define BUNDLE_FILE      "model.sig" // the name that the tools give it
#define BUNDLE_PREDICATE "https://model_signing/signature/v1.0"

/* One thing that is signed: a file, or a part of one. */
struct bundle_resource {
    const char *name; // path inside the model, '/' between parts; "." when the model is one file
    char digest[DIGEST_HEX_CHARS + 1];
    uint64_t start, end; // of a shard; end 0: the whole file
    size_t order;        // in the statement
};

struct bundle {
    char hint[DIGEST_HEX_CHARS + 1];   // of the key; "": not said
    bool has_certificate;              // signed with one, which is not looked at here
    struct bundle_resource *resources; // sorted by name, then start
    size_t n_resources;
    const json_t
        *ignored; // array of paths that were left out, or NULL; borrowed from the statement
    json_t *statement;
    char *names; // memory of shards' names
    uint8_t *payload, *sig;
    size_t n_payload, n_sig;
};

/* A file that is to be signed. */
struct bundle_file {
    const char *name;
    char digest[DIGEST_HEX_CHARS + 1];
};

/* Signs the files (sorted here). model: a name for people. *text is the caller's. */
int bundle_make(char **text, const struct sign_key *key, const char *model,
                struct bundle_file *files, size_t n, struct err *err);

/*
 * Reads a bundle; its signature is not checked yet, its root digest is. `where` names it in
 * messages. ERR_CORRUPT: no such bundle, or broken; ERR_REFUSED: of a form that is not read here
 * (a newer version, another hash), by name. Release with bundle_release(), also after an error.
 */
int bundle_parse(struct bundle *out, const char *text, size_t n, const char *where,
                 struct err *err);
void bundle_release(struct bundle *b);

/* The key of the set that signed it; NULL with ERR_REFUSED (by another key, by a certificate) or
 * ERR_CORRUPT (the signature is not of this statement). */
const struct sign_key *bundle_signer(const struct bundle *b, const struct sign_keys *keys,
                                     const char *where, struct err *err);

/* The first resource of a file, and how many it has (shards); NULL when it is not signed. */
const struct bundle_resource *bundle_find(const struct bundle *b, const char *name, size_t *n);
/* Whether the statement says that this path, or a folder above it, was left out. */
bool bundle_ignores(const struct bundle *b, const char *name);

#endif
