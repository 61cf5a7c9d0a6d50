#include "store/index.h"

#include <stdio.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "store/index_impl.h"

static const char *const sql[STATEMENT_COUNT] = {
    [STATEMENT_BEGIN] = "BEGIN IMMEDIATE",
    [STATEMENT_COMMIT] = "COMMIT",
    [STATEMENT_ROLLBACK] = "ROLLBACK",
    [STATEMENT_PUT_OBJECT] =
        "INSERT INTO object(kind, id, base_id, base_name, format, arch, path, dtype,"
        " targets, kinds, min_rank, max_rank, n_layers, n_modules, n_parameters, disk_bytes,"
        " host_bytes, device_bytes, created, n_signatures)"
        " VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
    // A name may be there before the object that it names is indexed again.
    [STATEMENT_JOIN_REFS] =
        "UPDATE ref SET object_no = (SELECT no FROM object WHERE id = ref.object)"
        " WHERE object = ?",
    [STATEMENT_PUT_FILE] =
        "INSERT OR REPLACE INTO file(object, path, digest, size) VALUES(?,?,?,?)",
    [STATEMENT_PUT_BASE] = "INSERT OR IGNORE INTO adapter_base(object, base_id) VALUES(?,?)",
    [STATEMENT_DELETE_BASES] = "DELETE FROM adapter_base WHERE object = ?",
    [STATEMENT_HAS_BASE] = "SELECT 1 FROM adapter_base WHERE object = ? AND base_id = ?",
    [STATEMENT_DELETE_FILES] = "DELETE FROM file WHERE object = ?",
    [STATEMENT_DELETE_OBJECT] = "DELETE FROM object WHERE id = ?",
    [STATEMENT_PUT_REF] = "INSERT OR REPLACE INTO ref(name, tag, object, time, object_no)"
                          " VALUES(?1,?2,?3,?4,(SELECT no FROM object WHERE id = ?3))",
    [STATEMENT_DELETE_REF] = "DELETE FROM ref WHERE name = ? AND tag = ?",
    [STATEMENT_GET_REF] = "SELECT object FROM ref WHERE name = ? AND tag = ?",
    [STATEMENT_GET_OBJECT] = "SELECT " INDEX_OBJECT_COLUMNS " FROM object o WHERE o.id = ?",
    [STATEMENT_REFS_OF] = "SELECT name, tag, object FROM ref WHERE object = ? ORDER BY name, tag",
    [STATEMENT_PREFIX] =
        "SELECT id, kind FROM object WHERE id >= ?1 AND id < ?2 AND (kind & ?3) UNION "
        "SELECT o.id, o.kind FROM file f JOIN object o ON o.id = f.object"
        " WHERE f.digest >= ?1 AND f.digest < ?2 AND (o.kind & ?3) ORDER BY 1",
    [STATEMENT_EACH_REF] = "SELECT name, tag, object FROM ref ORDER BY name, tag",
    [STATEMENT_EACH_OBJECT] = "SELECT id, kind FROM object ORDER BY id",
    [STATEMENT_EACH_FILE] = "SELECT object, path, digest, size FROM file ORDER BY object, path",
    [STATEMENT_GET_FILE] = "SELECT digest, size FROM file WHERE object = ? AND path = ?",
    [STATEMENT_NAMED] = "SELECT name, tag, object FROM ref WHERE name = ? ORDER BY tag",
};

int index_error(struct index *x, int rc, const char *doing, struct err *err)
{
    switch (rc & 0xFF) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return err_set(err, ERR_LOCKED, "%s: locked by another program, %s", x->path, doing);
    case SQLITE_NOMEM:
        return err_set(err, ERR_NO_MEMORY, "%s: no memory, %s", x->path, doing);
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return err_set(err, ERR_CORRUPT, "%s: %s, %s", x->path, sqlite3_errmsg(x->db), doing);
    case SQLITE_INTERRUPT:
        return err_set(err, ERR_INTERRUPTED, "%s: interrupted, %s", x->path, doing);
    default:
        return err_set(err, ERR_IO, "%s: %s, %s", x->path,
                       x->db ? sqlite3_errmsg(x->db) : sqlite3_errstr(rc), doing);
    }
}

sqlite3_stmt *index_statement(struct index *x, enum index_statement which, struct err *err)
{
    sqlite3_stmt *st = x->statements[which];
    if (!st) {
        int rc = sqlite3_prepare_v3(x->db, sql[which], -1, SQLITE_PREPARE_PERSISTENT, &st, NULL);
        if (rc != SQLITE_OK) {
            index_error(x, rc, "preparing a statement", err);
            return NULL;
        }
        x->statements[which] = st;
    }
    sqlite3_reset(st);
    sqlite3_clear_bindings(st);
    return st;
}

int index_run(struct index *x, sqlite3_stmt *st, struct err *err)
{
    int rc = sqlite3_step(st);
    if (rc == SQLITE_DONE || rc == SQLITE_ROW) {
        sqlite3_reset(st);
        return 0;
    }
    rc = index_error(x, rc, "writing", err);
    sqlite3_reset(st);
    return rc;
}

const char *index_text(sqlite3_stmt *st, int column)
{
    const char *text = (const char *)sqlite3_column_text(st, column);
    return text ? text : "";
}

void index_bind_text(sqlite3_stmt *st, int column, const char *text)
{
    // Every caller's text outlives the step; a failed bind shows as a NOT NULL violation.
    sqlite3_bind_text(st, column, text ? text : "", -1, SQLITE_STATIC);
}

static int exec(struct index *x, const char *text, const char *doing, struct err *err)
{
    int rc = sqlite3_exec(x->db, text, NULL, NULL, NULL);
    return rc == SQLITE_OK ? 0 : index_error(x, rc, doing, err);
}

static int read_version(struct index *x, int *version, struct err *err)
{
    sqlite3_stmt *st = NULL;
    int rc = sqlite3_prepare_v2(x->db, "PRAGMA user_version", -1, &st, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(st);
    int result = 0;
    if (rc == SQLITE_ROW)
        *version = sqlite3_column_int(st, 0);
    else
        result = index_error(x, rc, "reading its version", err);
    sqlite3_finalize(st);
    return result;
}

/* Brings the schema up to date; two processes may try at once, so the version is read again once
 * the write lock is held. */
static int migrate(struct index *x, struct err *err)
{
    int n_versions = 0, version = 0;
    while (schema_migrations[n_versions])
        n_versions++;
    int rc = read_version(x, &version, err);
    if (rc || version == n_versions)
        return rc;
    if (version > n_versions)
        return err_set(err, ERR_REFUSED,
                       "%s: schema version %d, this program knows up to %d: use a newer lora",
                       x->path, version, n_versions);
    rc = exec(x, "BEGIN IMMEDIATE", "changing its schema", err);
    if (rc)
        return rc;
    rc = read_version(x, &version, err);
    for (int i = version; !rc && i < n_versions; i++)
        rc = exec(x, schema_migrations[i], "changing its schema", err);
    char set[64];
    snprintf(set, sizeof set, "PRAGMA user_version = %d", n_versions);
    if (!rc)
        rc = exec(x, set, "changing its schema", err);
    if (!rc)
        rc = exec(x, "COMMIT", "changing its schema", err);
    if (rc)
        sqlite3_exec(x->db, "ROLLBACK", NULL, NULL, NULL);
    return rc;
}

/* WAL is a property of the file: setting it again costs a lock, so only when it is not set. */
static int use_wal(struct index *x, struct err *err)
{
    sqlite3_stmt *st = NULL;
    int rc = sqlite3_prepare_v2(x->db, "PRAGMA journal_mode", -1, &st, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(st);
    bool is_wal = rc == SQLITE_ROW && strcmp(index_text(st, 0), "wal") == 0;
    int result = rc == SQLITE_ROW ? 0 : index_error(x, rc, "reading its journal mode", err);
    sqlite3_finalize(st);
    if (result || is_wal)
        return result;
    return exec(x, "PRAGMA journal_mode = WAL", "setting its journal mode", err);
}

int index_open(struct index **out, const char *path, bool create, uint32_t busy_ms, struct err *err)
{
    *out = NULL;
    int rc = index_vfs_register(err);
    if (rc)
        return rc;
    struct index *x = sys_calloc(1, sizeof *x);
    char *copy = sys_strdup(path);
    if (!x || !copy) {
        sys_free(x);
        sys_free(copy);
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
    }
    x->path = copy;
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | (create ? SQLITE_OPEN_CREATE : 0);
    int status = sqlite3_open_v2(path, &x->db, flags, "lora");
    if (status != SQLITE_OK) {
        rc = index_error(x, status, "opening it", err);
        index_close(x);
        return rc;
    }
    sqlite3_busy_timeout(x->db, (int)busy_ms);
    rc = exec(x,
              "PRAGMA synchronous = FULL; PRAGMA trusted_schema = OFF;"
              // KiB; a listing of ten thousand reads each page once, not once a row.
              "PRAGMA cache_size = -32768",
              "opening it", err);
    if (!rc)
        rc = use_wal(x, err);
    if (!rc)
        rc = migrate(x, err);
    // A reader that closes last must not pay for moving the log into the database.
    if (!rc)
        sqlite3_db_config(x->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    if (rc) {
        index_close(x);
        return rc;
    }
    *out = x;
    return 0;
}

void index_close(struct index *x)
{
    if (!x)
        return;
    index_rollback(x);
    for (int i = 0; i < STATEMENT_COUNT; i++)
        sqlite3_finalize(x->statements[i]);
    sqlite3_close(x->db);
    sys_free(x->path);
    sys_free(x);
}

int index_begin(struct index *x, struct err *err)
{
    sqlite3_stmt *st = index_statement(x, STATEMENT_BEGIN, err);
    int rc = st ? index_run(x, st, err) : err ? err->code : ERR_FAIL;
    if (!rc) {
        x->in_transaction = true;
        sqlite3_db_config(x->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0, NULL);
    }
    return rc;
}

int index_commit(struct index *x, struct err *err)
{
    sqlite3_stmt *st = index_statement(x, STATEMENT_COMMIT, err);
    int rc = st ? index_run(x, st, err) : err ? err->code : ERR_FAIL;
    if (rc)
        index_rollback(x);
    x->in_transaction = false;
    return rc;
}

void index_rollback(struct index *x)
{
    if (!x->in_transaction)
        return;
    x->in_transaction = false;
    // An error may have rolled back already; and this must work when memory is out.
    if (!sqlite3_get_autocommit(x->db))
        sqlite3_exec(x->db, "ROLLBACK", NULL, NULL, NULL);
}

int index_clear(struct index *x, struct err *err)
{
    return exec(x,
                "DELETE FROM object; DELETE FROM file; DELETE FROM ref; DELETE FROM adapter_base",
                "emptying it", err);
}

int index_check(struct index *x, bool quick, struct err *err)
{
    sqlite3_stmt *st = NULL;
    const char *text = quick ? "PRAGMA quick_check(1)" : "PRAGMA integrity_check(1)";
    int rc = sqlite3_prepare_v2(x->db, text, -1, &st, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(st);
    int result = 0;
    if (rc != SQLITE_ROW)
        result = index_error(x, rc, "checking it", err);
    else if (strcmp(index_text(st, 0), "ok") != 0)
        result = err_set(err, ERR_CORRUPT, "%s: %s", x->path, index_text(st, 0));
    sqlite3_finalize(st);
    return result;
}
