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

/* An adapter whose files are in a work folder already. */
struct import_arrived {
    const char *where;  // "x.tar:adapters/a": for messages, and the manifest's "source"
    const char *folder; // its configuration and weights, under their usual names
    struct import_files *files;
    const char *suggested; // a name, when nothing else gives one
    const json_t *record;  // what its pack says of it; NULL: a pack of somebody else's
};
/* As import_adapter(). With a record its id must come out (ERR_CORRUPT), and its base is recorded.
 */
int import_adapter_arrived(struct store *s, const struct import_arrived *in,
                           const struct import_options *opt, struct import_result *out,
                           struct err *err);

#endif
