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
    struct blob_copy **copies;
    char **names;
    struct publish_file *published;
};
int import_files_open(struct import_files *f, size_t n, struct err *err);
void import_files_release(struct import_files *f);
/* Starts file i: `from` into <work_folder>/<name>. */
int import_files_start(struct import_files *f, size_t i, const char *from, const char *work_folder,
                       const char *name, const struct import_options *opt, struct err *err);
/* Waits for file i and adds it to the manifest. */
int import_files_finish(struct import_files *f, size_t i, json_t *manifest, uint64_t *bytes,
                        struct err *err);

#endif
