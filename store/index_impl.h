/*
 * index_impl: what the index's own files share. The home of <sqlite3.h>: store/index*.c.
 */
#ifndef STORE_INDEX_IMPL_H
#define STORE_INDEX_IMPL_H

#include <sqlite3.h>

#include "store/index.h"

/* schema.c: NULL-ended; entry i brings a database from version i to i + 1. */
extern const char *const schema_migrations[];

/* index_vfs.c: sets SQLite's allocator to sys and registers the VFS "lora", whose writes and syncs
 * are fault points. Runs once a process; every index_open() calls it. */
int index_vfs_register(struct err *err);

enum index_statement {
    STATEMENT_BEGIN,
    STATEMENT_COMMIT,
    STATEMENT_ROLLBACK,
    STATEMENT_PUT_OBJECT,
    STATEMENT_JOIN_REFS,
    STATEMENT_PUT_FILE,
    STATEMENT_PUT_BASE,
    STATEMENT_DELETE_BASES,
    STATEMENT_HAS_BASE,
    STATEMENT_DELETE_FILES,
    STATEMENT_DELETE_OBJECT,
    STATEMENT_PUT_REF,
    STATEMENT_DELETE_REF,
    STATEMENT_GET_REF,
    STATEMENT_GET_OBJECT,
    STATEMENT_REFS_OF,
    STATEMENT_PREFIX,
    STATEMENT_EACH_REF,
    STATEMENT_EACH_OBJECT,
    STATEMENT_EACH_FILE,
    STATEMENT_GET_FILE,
    STATEMENT_NAMED,
    STATEMENT_COUNT
};

struct index {
    sqlite3 *db;
    char *path;
    sqlite3_stmt *statements[STATEMENT_COUNT]; // prepared when first used
    bool in_transaction;
};

/* The prepared statement, reset and without bindings; NULL with err set. */
sqlite3_stmt *index_statement(struct index *x, enum index_statement which, struct err *err);
/* Runs a statement that gives no rows. */
int index_run(struct index *x, sqlite3_stmt *st, struct err *err);
/* err from SQLite's state: ERR_LOCKED for a busy database, ERR_CORRUPT, ERR_NO_MEMORY or ERR_IO. */
int index_error(struct index *x, int rc, const char *doing, struct err *err);
/* A text column, never NULL. */
const char *index_text(sqlite3_stmt *st, int column);
void index_bind_text(sqlite3_stmt *st, int column, const char *text);
/* Fills an entry from the columns of object.*, starting at `column`; name and tags are left. */
void index_read_object(sqlite3_stmt *st, int column, struct store_entry *e);
#define INDEX_OBJECT_COLUMNS                                                                       \
    "o.kind, o.id, o.base_id, o.base_name, o.format, o.arch, o.path, o.dtype, o.targets, o.kinds," \
    " o.min_rank, o.max_rank, o.n_layers, o.n_modules, o.n_parameters, o.disk_bytes,"              \
    " o.host_bytes, o.device_bytes, o.created, o.n_signatures"

#endif
