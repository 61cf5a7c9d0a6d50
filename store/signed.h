/*
 * signed: what is signed and whether it still is what was signed: adapters of the store, with the
 * signatures kept with them, and folders with their model.sig.
 *
 * An adapter's signature is of its files. Every file that the store has must be in it, README.md
 * and LICENSE excepted when the signer left them out; a file that it lists and that an adapter does
 * not keep (optimizer states, logs) may be missing, any other may not.
 * A folder is as the model-signing tools see it: nothing may be missing, and nothing be there
 * besides, git's files and what the signer left out excepted.
 */
#ifndef STORE_SIGNED_H
#define STORE_SIGNED_H

#include "store/bundle.h"
#include "store/store.h"

/* ---- comparing ---- */

/* A file that is there. */
struct signed_file {
    const char *name;   // inside the model
    const char *digest; // hex; NULL: not known yet
    const char *path;   // where its bytes are: read for shards, and when the digest is not known
};

enum signed_scope {
    SIGNED_ADAPTER,
    SIGNED_FOLDER,
    SIGNED_FOLDER_LOOSE /* more files may be there */
};

/* ERR_CORRUPT names the first file that differs or is missing, ERR_REFUSED the first that is not
 * signed; `where` stands before it. */
int signed_compare(const struct bundle *b, const struct signed_file *files, size_t n,
                   enum signed_scope scope, const char *where, struct err *err);

/* ---- what a check found ---- */

struct signed_report {
    char key[DIGEST_HEX_CHARS + 1];       // hint of the key that signed
    char signature[DIGEST_HEX_CHARS + 1]; // digest of the bundle; "" for a folder's
    size_t n_files;                       // that were compared
    uint64_t n_bytes;                     // that were read
    size_t n_signatures;                  // that it has
};

/* ---- adapters of the store ---- */

/* Signs the files of an adapter and keeps the signature with it. model: its name, for people.
 * *same: this key's signature was there (nothing is done, unless `again`). */
int signed_sign(struct store *s, const char *id, const char *model, const struct sign_key *key,
                bool again, bool *same, struct signed_report *out, struct err *err);
/* Keeps a bundle made elsewhere; it must be of the adapter's files, whoever signed it. */
int signed_attach(struct store *s, const char *id, const char *bundle_path, bool *same,
                  struct signed_report *out, struct err *err);

/* The signature to give away with the adapter's files, of those by a key (its hint; NULL: any): the
 * first that lists nothing besides them, else the first; "" when there is none. */
int signed_pick(struct store *s, const char *id, const char *key, char digest[DIGEST_HEX_CHARS + 1],
                struct err *err);

/* Writes a signature that the store keeps with the adapter to a file. ERR_NOT_FOUND, ERR_EXISTS
 * (unless `replace`). */
int signed_write(struct store *s, const char *id, const char *digest, const char *path,
                 bool replace, struct err *err);

enum signed_depth {
    SIGNED_RECORDED, // files by the digests that the store recorded when it took them in; bytes of
                     // those that no content id covers (templates, tokenizers)
    SIGNED_BYTES,    // the bytes of all files
};
/* One signature by one of the keys must hold. ERR_REFUSED (none, or by others), ERR_CORRUPT. */
int signed_check(struct store *s, const char *id, const char *where, const struct sign_keys *keys,
                 enum signed_depth depth, struct signed_report *out, struct err *err);
/* A bundle that lies elsewhere, of an adapter of the store. */
int signed_check_bundle(struct store *s, const char *id, const char *bundle_path,
                        const struct sign_keys *keys, struct signed_report *out, struct err *err);

/* ---- folders ---- */

/* Whether an adapter that lies outside the store is signed by one of the keys: its folder's
 * model.sig, for the files that an import would take. Reads all of them. */
int signed_check_adapter_path(const char *path, const struct sign_keys *keys,
                              struct signed_report *out, struct err *err);

struct signed_folder_options {
    const char *bundle; // NULL: <path>/model.sig
    bool loose;         // checking: files that are not signed are no matter
    bool replace;       // signing: an older bundle is replaced, else ERR_EXISTS
    int (*on_bytes)(void *arg, uint64_t bytes); // bytes read; non-zero stops
    void *on_bytes_arg;
};
/* path: a folder, or a single file (bundle is wanted then). Links to files are followed. */
int signed_sign_folder(const char *path, const struct sign_key *key,
                       const struct signed_folder_options *opt, struct signed_report *out,
                       struct err *err);
int signed_check_folder(const char *path, const struct sign_keys *keys,
                        const struct signed_folder_options *opt, struct signed_report *out,
                        struct err *err);

#endif
