#include "store/index_impl.h"

/*
 * The index as SQL, one string a schema version; index.c runs those that a database lacks, each in
 * a transaction of its own. Never edit one that was released: add the next. All of it can be made
 * again from manifests and refs, so a change may also drop and rebuild.
 */
const char *const schema_migrations[] = {
    // 1
    // no: what names join by; ids are long.
    "CREATE TABLE object("
    " no INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, kind INTEGER NOT NULL, base_id TEXT NOT "
    "NULL, base_name TEXT NOT NULL,"
    " format TEXT NOT NULL, arch TEXT NOT NULL, path TEXT NOT NULL, dtype TEXT NOT NULL,"
    " targets TEXT NOT NULL, kinds INTEGER NOT NULL, min_rank INTEGER NOT NULL,"
    " max_rank INTEGER NOT NULL, n_layers INTEGER NOT NULL, n_modules INTEGER NOT NULL,"
    " n_parameters INTEGER NOT NULL, disk_bytes INTEGER NOT NULL, host_bytes INTEGER NOT NULL,"
    " device_bytes INTEGER NOT NULL, created INTEGER NOT NULL);"
    "CREATE INDEX object_base ON object(base_id);"
    // digest is '' for files of a base by reference that were not hashed.
    "CREATE TABLE file("
    " object TEXT NOT NULL, path TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL,"
    " PRIMARY KEY(object, path)) WITHOUT ROWID;"
    "CREATE INDEX file_digest ON file(digest);"
    "CREATE TABLE ref("
    " name TEXT NOT NULL, tag TEXT NOT NULL, object TEXT NOT NULL, object_no INTEGER,"
    " time INTEGER NOT NULL,"
    " PRIMARY KEY(name, tag)) WITHOUT ROWID;"
    "CREATE INDEX ref_object ON ref(object);"
    // The same content may be recorded for several bases: one and its fine-tuned version.
    // Columns in the key's order: quick_check of SQLite 3.40 stumbles over others.
    "CREATE TABLE adapter_base("
    " base_id TEXT NOT NULL, object TEXT NOT NULL, PRIMARY KEY(base_id, object)) WITHOUT ROWID;"
    "CREATE INDEX adapter_base_object ON adapter_base(object);",
    // 2: signatures. Their blobs are rows of file, under a path that no file has.
    "ALTER TABLE object ADD COLUMN n_signatures INTEGER NOT NULL DEFAULT 0;",
    NULL,
};
