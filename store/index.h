/*
 * index: the SQLite database of a store: what adapters, bases, files and names there are.
 * Owns the connection and its prepared statements; knows no file of the store but index.db.
 * Everything in it can be rebuilt from manifests and refs. Not thread-safe.
 * Writes happen between index_begin() and index_commit(), under the store's lock.
 */
#ifndef STORE_INDEX_H
#define STORE_INDEX_H

#include "store/store.h"

struct index;

/* Opens (create: makes) the database, WAL with synchronous FULL, and brings its schema up to date.
 * ERR_LOCKED after busy_ms, ERR_CORRUPT (no database), ERR_REFUSED (a newer schema), ERR_IO. */
int index_open(struct index **out, const char *path, bool create, uint32_t busy_ms,
               struct err *err);
void index_close(struct index *x);

int index_begin(struct index *x, struct err *err);
int index_commit(struct index *x, struct err *err); // on failure the transaction is rolled back
void index_rollback(struct index *x);               // nothing to do: nothing done

/* After index_delete_object() of that id, if it may be there. */
int index_put_object(struct index *x, const struct store_entry *e, struct err *err);
int index_put_file(struct index *x, const char *id, const char *path, const char *digest,
                   uint64_t size, struct err *err);
/* One more base that the adapter is recorded for. */
int index_put_base(struct index *x, const char *id, const char *base_id, struct err *err);
/* Sets *has. */
int index_has_base(struct index *x, const char *id, const char *base_id, bool *has,
                   struct err *err);
int index_delete_object(struct index *x, const char *id, struct err *err); // files and bases, too
int index_put_ref(struct index *x, const char *name, const char *tag, const char *id, uint64_t time,
                  struct err *err);
int index_delete_ref(struct index *x, const char *name, const char *tag, struct err *err);

/* ERR_NOT_FOUND leaves id empty. */
int index_get_ref(struct index *x, const char *name, const char *tag, char id[STORE_ID_CHARS + 1],
                  struct err *err);
/* Copies the object and one of its names into e->memory; store_entry_release() frees it. */
int index_get_object(struct index *x, const char *id, struct store_entry *e, struct err *err);
int index_get_file(struct index *x, const char *id, const char *path,
                   char digest[STORE_ID_CHARS + 1], uint64_t *size, struct err *err);

/* Callbacks: a non-zero return stops and is returned. Strings are valid inside the call. */
int index_list(struct index *x, const struct store_query *q,
               int (*row)(void *arg, const struct store_entry *e), void *arg, struct err *err);
int index_each_ref(struct index *x,
                   int (*row)(void *arg, const char *name, const char *tag, const char *id),
                   void *arg, struct err *err);
int index_refs_of(struct index *x, const char *id,
                  int (*row)(void *arg, const char *name, const char *tag, const char *id),
                  void *arg, struct err *err);
int index_each_object(struct index *x, int (*row)(void *arg, const char *id, enum store_kind kind),
                      void *arg, struct err *err);
int index_each_file(struct index *x,
                    int (*row)(void *arg, const char *id, const char *path, const char *digest,
                               uint64_t size),
                    void *arg, struct err *err);
/* Objects whose id, or one of whose files' digest, begins with `prefix` (lower-case hex). */
int index_find_prefix(struct index *x, const char *prefix, unsigned kinds,
                      int (*row)(void *arg, const char *id, enum store_kind kind), void *arg,
                      struct err *err);
/* Tags of a name, or of every name when a tag is wanted; for messages. */
int index_tags_of(struct index *x, const char *name,
                  int (*row)(void *arg, const char *name, const char *tag, const char *id),
                  void *arg, struct err *err);

int index_clear(struct index *x, struct err *err); // empties every table, inside a transaction
/* SQLite's own check of the file. ERR_CORRUPT with its first complaint. */
int index_check(struct index *x, bool quick, struct err *err);

#endif
