/*
 * manifest: manifests/<id>.json, everything the store knows of one adapter or base except its
 * names. The index is made from it. docs/FORMATS.md lists the fields.
 */
#ifndef STORE_MANIFEST_H
#define STORE_MANIFEST_H

#include "libcore/adapter/adapter.h"
#include "store/store_impl.h"

/* What the adapter itself does not say. Strings are borrowed. */
struct manifest_origin {
    const char *name;      // suggested by the file or folder
    const char *source;    // path that it was imported from
    const char *base_id;   // "" or NULL: unknown
    const json_t *lineage; // of an adapter that was made of others; or NULL
    json_t *ignored;       // names of configuration fields that were ignored on request; or NULL
    json_t *warnings;      // the adapter's and the import's; NULL: the adapter's own
};

/* *out: a new manifest without "files". */
int manifest_of_adapter(json_t **out, const struct adapter *a, const struct manifest_origin *origin,
                        struct err *err);
/* [4096, 16]; NULL when memory is out. */
json_t *manifest_shape(const struct tensor *t);
/* Appends a file: digest "" when it was not hashed, mtime_ns 0 when the store has the bytes. */
int manifest_add_file(json_t *manifest, const char *path, const char *digest, uint64_t size,
                      int64_t mtime_ns, struct err *err);
/* Sets bytes.disk to the sum of the files. */
int manifest_seal(json_t *manifest, struct err *err);

/* Reads manifests/<id>.json and checks that it is that id's. ERR_NOT_FOUND, ERR_CORRUPT. */
int manifest_read(struct store *s, const char *id, json_t **out, struct err *err);
int manifest_write(struct store *s, const char *id, const json_t *manifest, struct err *err);

/* The index's row; strings are borrowed from the manifest. ERR_CORRUPT names the field. */
int manifest_entry(const json_t *manifest, struct store_entry *e, struct err *err);

struct manifest_file {
    const char *path, *digest; // digest "": by reference, not hashed
    uint64_t size;
    int64_t mtime_ns;
};
size_t manifest_n_files(const json_t *manifest);
/* ERR_CORRUPT when the entry is off. */
int manifest_file_at(const json_t *manifest, size_t i, struct manifest_file *out, struct err *err);
/* NULL when there is no such file. */
bool manifest_find_file(const json_t *manifest, const char *path, struct manifest_file *out);

/* The signatures kept with an adapter: "signatures", sorted by digest. In the index each stands
 * among the files, under a path that no file of an adapter has. */
enum { MANIFEST_SIGNATURE_PATH_BYTES = STORE_ID_CHARS + 16 };
size_t manifest_n_signatures(const json_t *manifest);
/* out->path is written into `path`. ERR_CORRUPT when the entry is off. */
int manifest_signature_at(const json_t *manifest, size_t i, struct manifest_file *out,
                          char path[MANIFEST_SIGNATURE_PATH_BYTES], struct err *err);
/* The hint of the key, "" when it is not known. */
const char *manifest_signature_key(const json_t *manifest, size_t i);
/* *added: it was not there. ERR_LIMIT beyond LIMIT_SIGNATURES. */
int manifest_add_signature(json_t *manifest, const char *digest, uint64_t size, const char *key,
                           bool *added, struct err *err);

/* Puts the object and its files into the index, inside a transaction. */
int manifest_index(struct store *s, const json_t *manifest, struct err *err);

#endif
