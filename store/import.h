/*
 * import: adapters and bases into the store.
 * Every byte of an adapter, or of a base that is copied, is read once into a work folder, hashed
 * there on two threads while it is written, and published under the store's lock. Nothing that
 * fails leaves a trace but the work folder of a killed process, which gc takes.
 */
#ifndef STORE_IMPORT_H
#define STORE_IMPORT_H

#include "store/base_model.h"
#include "store/publish.h"
#include "store/sign.h"
#include "store/store.h"

enum import_kind {
    IMPORT_NOTHING, // none of these
    IMPORT_ADAPTER, // a PEFT folder, or a .safetensors with its configuration beside it
    IMPORT_BASE,    // a checkpoint folder
    IMPORT_PACK,    // an archive by its name, an OCI layout folder, "-" (standard input)
    IMPORT_FOLDERS, // a folder that holds such folders
};
/* What a path is, by names alone. */
enum import_kind import_classify(const char *path);

/* Bytes of the files that an import of this path reads; 0 when that is not known. */
uint64_t import_bytes(const char *path, enum import_kind kind);

struct import_options {
    const char *name;              // NULL: from the content or the path
    const char *tag;               // NULL: "latest"
    const struct base_model *base; // adapters: checked against it and recorded; NULL: see below
    bool find_base;                // without base: take one of the store that the adapter names
    bool force, dry_run;
    bool copy; // bases: the bytes, not a reference
    bool deep; // bases by reference: digests of every file
    const char *const *ignore_fields;
    size_t n_ignore_fields;
    int (*on_bytes)(void *arg, uint64_t bytes); // bytes copied; non-zero (ERR_INTERRUPTED) stops
    void *on_bytes_arg;
    const char *source;               // adapters: what the manifest says it is from; NULL: the path
    const json_t *lineage;            // adapters that were made of others: how; borrowed, or NULL
    const struct sign_keys *required; // adapters: must be signed by one of these; NULL or none:
                                      // need not
};

struct import_result {
    enum store_kind kind;
    char id[STORE_ID_CHARS + 1];
    char name[LIMIT_NAME_BYTES + 1];
    char tag[STORE_TAG_BYTES + 1];
    char base_id[STORE_ID_CHARS + 1]; // adapters: "" when unknown
    enum publish_state state;
    uint64_t bytes; // of its files
    uint32_t n_files;
    uint32_t n_signatures; // adapters: that came with it and are of its files
    bool by_reference;
    json_t *warnings; // array of strings; released by import_result_release()
};
void import_result_release(struct import_result *r);

/* s may be NULL for a dry run where there is no store. On success *out is to be released.
 * ERR_EXISTS (the name is in use), ERR_REFUSED, ERR_CORRUPT, ERR_NOT_FOUND, ERR_USAGE (a name that
 * cannot be one), ERR_LOCKED, ERR_IO, ERR_INTERRUPTED. */
int import_adapter(struct store *s, const char *path, const struct import_options *opt,
                   struct import_result *out, struct err *err);
int import_base(struct store *s, const char *path, const struct import_options *opt,
                struct import_result *out, struct err *err);

/* An adapter that was made here: written as PEFT does into a work folder, and imported from there.
 * opt->name is wanted. Errors of peft_write() and import_adapter(). */
int import_made(struct store *s, const struct adapter *a, const struct import_options *opt,
                struct import_result *out, struct err *err);

/*
 * Every adapter of a pack: one of lora's, an OCI layout, or any tar or zip that holds PEFT folders.
 * path: an archive, a layout's folder, or "-". All of it is read and checked before anything is
 * published; then `row` hears of each adapter (`where` names it in the pack; r is lent). A failure
 * ends it. *notes: an array of warnings that concern the whole pack, the caller's to json_decref().
 * Errors as above, and ERR_LIMIT (a bomb, the disk). s may be NULL for a dry run.
 */
typedef void import_row_fn(void *arg, const char *where, const struct import_result *r);
int import_pack(struct store *s, const char *path, const struct import_options *opt,
                import_row_fn *row, void *arg, json_t **notes, struct err *err);

/* Adapters and bases below a folder, sorted; folders inside a found one are not looked at. The
 * caller frees the names with file_free_names(). */
int import_find(const char *folder, char ***paths, size_t *n, struct err *err);

#endif
