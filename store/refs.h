/*
 * refs: the names as files, refs/<name>/<tag>, each with its history.
 * The index answers every question about names; these files are what it is rebuilt from, and where
 * undo comes from. A slash of a name is written '+' (no name may hold one), so that the name "a/b"
 * and the tag "b" of "a" stay apart. All of it under the store's lock.
 */
#ifndef STORE_REFS_H
#define STORE_REFS_H

#include "store/store_impl.h"

enum { REFS_MAX_HISTORY = 100 };

/* Writes refs/<name>/<tag>: id (NULL: removed) becomes current and is put on top of the history
 * with `action` ("import", "tag", "rm", "undo", "repair"). */
int refs_write(struct store *s, const char *name, const char *tag, const char *id,
               const char *action, struct err *err);
/* Removes the file, and the name's folder when it was the last. */
int refs_remove(struct store *s, const char *name, const char *tag, struct err *err);
/* *out: {"id": string or null, "history": [{"id", "time", "action"}, …]}, newest first; a new
 * reference. ERR_NOT_FOUND, ERR_CORRUPT. */
int refs_read(struct store *s, const char *name, const char *tag, json_t **out, struct err *err);
/* Every ref file; root is NULL when the file cannot be read (problem says why). */
int refs_each(struct store *s,
              int (*row)(void *arg, const char *name, const char *tag, const json_t *root,
                         const struct err *problem),
              void *arg, struct err *err);

#endif
