/*
 * store_impl: what the rooms of store/ share: the handle, paths inside the store, durable writes.
 */
#ifndef STORE_STORE_IMPL_H
#define STORE_STORE_IMPL_H

#include "store/index.h"
#include "store/store.h"

enum { STORE_FORMAT = 1, STORE_LOCK_TIMEOUT_MS = 30000 };

struct store {
    char *path;
    struct index *index; // NULL only after store_open_for_repair()
    uint32_t lock_timeout_ms;
    int lock_fd;         // of leases/store.lock, -1 until first used
    unsigned lock_depth; // taken so many times by this handle
};

/* Like store_open, but a missing or broken index is no error: s->index is NULL then. */
int store_open_for_repair(struct store **out, const char *path, const struct store_options *opt,
                          struct err *err);

/* "<store>/a/b"; b may be NULL. NULL with err set when memory is out. */
char *store_join(const struct store *s, const char *a, const char *b, struct err *err);

/* Writes <store>/folder/name: temporary file in tmp/, fsync, rename, fsync of the folder. The
 * folder must exist. Under the store's lock. */
int store_write_file(struct store *s, const char *folder, const char *name, const void *data,
                     size_t size, struct err *err);
/* The same with a JSON value, indented. */
int store_write_json(struct store *s, const char *folder, const char *name, const json_t *root,
                     struct err *err);
/* mkdir of <store>/folder, and fsync of its parent when it was made. */
int store_make_folder(struct store *s, const char *folder, struct err *err);
/* Removes <store>/folder/name; gone already is fine. */
int store_remove_file(struct store *s, const char *folder, const char *name, struct err *err);

/* ---- lock.c ---- */

/*
 * The store's write lock (flock on leases/store.lock): held while objects are published, names
 * change, leases open and gc sweeps; never while bytes are copied or hashed. Nests in one handle.
 * ERR_LOCKED after lock_timeout_ms, naming the holder's command, pid and age.
 */
int store_lock(struct store *s, const char *what, struct err *err);
void store_unlock(struct store *s);

/* The boot id of this machine's run, "" when unknown; static. */
const char *lock_boot_id(void);

/* ---- lease.c ---- */

/* Calls row for each lease that lives (its file is flock'd by somebody); under the store's lock.
 * ids: its JSON array. Files of dead leases are removed when `sweep`. */
int lease_each(struct store *s, bool sweep,
               int (*row)(void *arg, const char *lease_name, const json_t *lease), void *arg,
               struct err *err);
const char *lease_name(const struct lease *l); // file name in leases/

/* A lease with a folder of its own in tmp/, for files that are not published yet. */
struct work {
    struct lease *lease;
    char *folder; // absolute
};
int work_open(struct work *w, struct store *s, const char *what, struct err *err);
void work_close(struct work *w); // removes the folder and what is left in it

#endif
