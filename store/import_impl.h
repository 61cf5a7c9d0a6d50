/*
 * import_impl: what importing adapters and importing bases share.
 */
#ifndef STORE_IMPORT_IMPL_H
#define STORE_IMPORT_IMPL_H

#include "store/blob.h"
#include "store/import.h"

/* Sets r->name and r->tag from the options, or from what the content or the path suggests. */
int import_set_name(struct import_result *r, const struct import_options *opt,
                    const char *suggested, const char *path, struct err *err);

/* Puts `folder` where the message says `work_folder`. */
void import_restore_paths(struct err *err, const char *work_folder, const char *folder);

/* Files on their way into the store, copied and hashed by threads of their own. */
struct import_files {
    size_t n;
    struct blob_copy **copies; // NULL: its digest and size are known, nothing is to be waited for
    char **names;
    uint64_t *sizes;                           // of those
    const struct safetensors_stream **weights; // borrowed: what was learnt of each; NULL: nothing
    struct publish_file *published;
};
int import_files_open(struct import_files *f, size_t n, struct err *err);
void import_files_release(struct import_files *f);
/* Starts file i: `from` into <work_folder>/<name>. */
int import_files_start(struct import_files *f, size_t i, const char *from, const char *work_folder,
                       const char *name, bool skip_values, const struct import_options *opt,
                       struct err *err);
/* File i lies at `tmp`, complete and synced; tmp NULL: the store has it, or will by then. */
int import_files_arrived(struct import_files *f, size_t i, const char *tmp, const char *name,
                         const char *digest, uint64_t size, struct err *err);
/* Waits for all copies. */
int import_files_wait(struct import_files *f, struct err *err);
/* Gives the adapter the digests of its tensors that were computed while its bytes came, so that
 * they are not read once more. false: they are not known, or a value is no number; then whoever
 * reads the adapter has to look at them. */
bool import_files_know(const struct import_files *f, struct adapter *a);
/* Waits for file i and adds it to the manifest. */
int import_files_finish(struct import_files *f, size_t i, json_t *manifest, uint64_t *bytes,
                        struct err *err);

/* The signatures that came with an adapter. */
struct import_signature {
    char *text, *where;
    size_t n;
    struct err why; // it could not be read
    bool kept;
    char key[STORE_ID_CHARS + 1];
    struct publish_file published; // when kept
};
struct import_signatures {
    struct import_signature *items;
    size_t n;
    bool strict; // one that is not of the files is an error, not a warning
};
/* Reads a bundle; `where` names it in messages. */
int import_signatures_add(struct import_signatures *all, const char *path, const char *where,
                          struct err *err);
void import_signatures_release(struct import_signatures *all);
struct signed_file;
/* Those that are of these files are kept, of others a warning is left. ERR_REFUSED, ERR_CORRUPT
 * when opt->required wants a signature and none does. */
int import_signatures_judge(struct import_signatures *all, const struct signed_file *files,
                            size_t n_files, const struct import_options *opt, const char *where,
                            json_t *warnings, struct err *err);
uint32_t import_signatures_n(const struct import_signatures *all); // that are kept
/* Writes the kept ones into a work folder, and their digests into the manifest. */
int import_signatures_keep(struct import_signatures *all, const char *folder, json_t *manifest,
                           struct err *err);
/* The files and the kept signatures, as publish() wants them; the array is the caller's, what is in
 * it is not. */
int import_signatures_list(const struct import_signatures *all, const struct import_files *f,
                           struct publish_file **out, size_t *n, struct err *err);

/* An adapter whose files are in a work folder already. */
struct import_arrived {
    const char *where;  // "x.tar:adapters/a": for messages, and the manifest's "source"
    const char *folder; // its configuration and weights, under their usual names
    struct import_files *files;
    const char *suggested; // a name, when nothing else gives one
    const json_t *record;  // what its pack says of it; NULL: a pack of somebody else's
    struct import_signatures *signatures; // that came with it; may be empty
};
/* As import_adapter(). With a record its id must come out (ERR_CORRUPT), and its base is recorded.
 */
int import_adapter_arrived(struct store *s, const struct import_arrived *in,
                           const struct import_options *opt, struct import_result *out,
                           struct err *err);
/* A base whose files are built already, as a copy. The record's id must come out (ERR_CORRUPT). */
int import_base_arrived(struct store *s, const struct import_arrived *in,
                        const struct import_options *opt, struct import_result *out,
                        struct err *err);
/* Name and tag that a pack's record gives, unless the options do. */
int import_set_packed_name(struct import_result *r, const struct import_options *opt,
                           const json_t *record, const char *where, struct err *err);

#endif
