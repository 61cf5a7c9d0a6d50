/*
 * store: where adapters and bases are kept, with their names.
 *
 * On disk (docs/FORMATS.md has the details):
 *   lora-store.json · index.db (SQLite) · blobs/sha256/ab/<hex> · manifests/<id>.json ·
 *   refs/<name>/<tag> · leases/ · tmp/ · cache/
 * An adapter's id is its content id; a base's id is its fingerprint. Both are 64 hex digits.
 *
 * Thread rule: one thread at a time uses a struct store; other threads open their own (cheap).
 * What store_source_open() gives may be used by any thread, also after store_close().
 * Several processes may use one store: writers wait for each other for lock_timeout_ms, then get
 * ERR_LOCKED with who holds it; readers never wait.
 */
#ifndef STORE_STORE_H
#define STORE_STORE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/adapter_source.h"
#include "libcore/base/digest.h"
#include "libcore/base/err.h"
#include "libcore/base/limits.h"

enum { STORE_ID_CHARS = DIGEST_HEX_CHARS, STORE_TAG_BYTES = 128, STORE_PREFIX_CHARS = 6 };

enum store_kind { STORE_ADAPTER = 1, STORE_BASE = 2, STORE_ANY = 3 };

struct store;

struct store_options {
    bool create;              // make the store when there is none; else ERR_NO_STORE
    uint32_t lock_timeout_ms; // 0: 30000
};

/* On success *out is the caller's, to free with store_close(). ERR_NO_STORE, ERR_CORRUPT (not a
 * store, or its index is lost), ERR_REFUSED (of a newer format), ERR_LOCKED, ERR_IO. */
int store_open(struct store **out, const char *path, const struct store_options *opt,
               struct err *err);
void store_close(struct store *s);
const char *store_path(const struct store *s);

/* ---- names ---- */

/* "name" or "name:tag" into name[LIMIT_NAME_BYTES + 1] and tag[STORE_TAG_BYTES + 1] (default
 * "latest"). ERR_USAGE says which character or part is wrong. */
int store_parse_name(const char *text, char *name, char *tag, struct err *err);

/* One adapter or base as the index knows it. Strings are borrowed: valid inside the callback, or
 * until store_entry_release() of the entry that store_get() filled. */
struct store_entry {
    enum store_kind kind;
    const char *id;
    const char *name;      // "" when nothing names it
    const char *tags;      // "latest" or "latest,v1": the tags of `name` that point to it
    const char *base_id;   // adapters: fingerprint of the base that was recorded last, "" when
                           // it was never known
    const char *base_name; // adapters: what the configuration says, "" when nothing
    const char *format;    // "peft", "checkpoint"
    const char *arch;      // bases: "LlamaForCausalLM"; ""
    const char *path;      // bases by reference: the folder; "" when the store has the bytes
    const char *dtype;     // "BF16", "F32", "mixed"
    const char *targets;   // "q_proj,v_proj": last parts of module names, sorted
    unsigned kinds;        // enum adapter_kind bits
    uint32_t min_rank, max_rank, n_layers, n_modules;
    uint64_t n_parameters;
    uint64_t disk_bytes;   // files in the store (a base by reference: its files outside)
    uint64_t host_bytes;   // tensors as the host tier holds them, the file's dtypes
    uint64_t device_bytes; // the same in 16 bits a value, as device tiers pack them
    uint64_t created;      // unix seconds
    uint32_t n_signatures; // adapters: kept with it; whose they are, and whether they hold, is
                           // another question
    void *memory;          // of store_get(); private
};

enum store_sort { STORE_SORT_NAME, STORE_SORT_AGE, STORE_SORT_BYTES, STORE_SORT_RANK };

struct store_query {
    unsigned kinds;       // STORE_ADAPTER, STORE_BASE or both; 0: both
    const char *base_id;  // only adapters of this base; NULL: all
    bool or_unknown_base; // with base_id: also adapters whose base was never known
    const char *tag;      // only this tag; NULL: all
    enum store_sort sort;
};

/* Calls row once for each (name, id); a non-zero return stops and is returned. Rows stream: nothing
 * is collected. The callback must not use the store. */
int store_list(struct store *s, const struct store_query *q,
               int (*row)(void *arg, const struct store_entry *e), void *arg, struct err *err);

/* What a REF means inside the store: a name, name:tag, or a unique prefix (at least 6 hex digits)
 * of an id or of a file's digest; a name wins over a prefix. kinds: STORE_ADAPTER | STORE_BASE.
 * ERR_NOT_FOUND; ERR_USAGE when ambiguous (the message lists candidates) or malformed. */
struct store_resolved {
    enum store_kind kind;
    char id[STORE_ID_CHARS + 1];
    char name[LIMIT_NAME_BYTES + 1]; // "" when found by prefix and nothing names it
    char tag[STORE_TAG_BYTES + 1];
};
int store_resolve(struct store *s, const char *ref, unsigned kinds, struct store_resolved *out,
                  struct err *err);

/* The entry of one id; free with store_entry_release(). ERR_NOT_FOUND. */
int store_get(struct store *s, const char *id, struct store_entry *out, struct err *err);
void store_entry_release(struct store_entry *e);

/* Whether an adapter may be used with a base: 0 when it is recorded for it, or for none;
 * ERR_REFUSED when it is recorded for others only. */
int store_check_base(struct store *s, const char *id, const char *base_id, struct err *err);

/* The manifest of an id: a new reference, to json_decref(). ERR_NOT_FOUND, ERR_CORRUPT. */
int store_manifest(struct store *s, const char *id, json_t **out, struct err *err);

/* All names of an id, "name:tag", sorted: a new json array of strings. */
int store_names(struct store *s, const char *id, json_t **out, struct err *err);

/* Points name:tag at an id that the store has. ERR_EXISTS when it points elsewhere and !force (the
 * old id is kept in the history), ERR_NOT_FOUND. Sets *same when it pointed there already. */
int store_tag(struct store *s, const char *name, const char *tag, const char *id, bool force,
              bool *same, struct err *err);
/* Removes name:tag; its history stays, so that store_untag_undo can bring it back until a gc.
 * Gives the id that it pointed at. ERR_NOT_FOUND. */
int store_untag(struct store *s, const char *name, const char *tag, char id[STORE_ID_CHARS + 1],
                struct err *err);
/* Points name:tag at what it was before its last change. ERR_NOT_FOUND: no history, or gc took it.
 */
int store_tag_undo(struct store *s, const char *name, const char *tag, char id[STORE_ID_CHARS + 1],
                   struct err *err);
/* The history, newest first: a new array of {"id": string or null, "time", "action"}. */
int store_tag_history(struct store *s, const char *name, const char *tag, json_t **out,
                      struct err *err);

/* ---- files ---- */

/* Path of one file of an adapter or a base ("adapter_config.json", "tokenizer.json"), wherever it
 * lies; to free with sys_free(). ERR_NOT_FOUND when the object has no such file. */
int store_file(struct store *s, const char *id, const char *file, char **path, struct err *err);

/* The folder of a base: where a base by reference lies (its files' sizes and times are checked:
 * ERR_REFUSED when they changed since import), or for a copy a folder of links in the cache, made
 * when needed. *folder is the caller's, to free with sys_free(). */
int store_base_folder(struct store *s, const char *id, char **folder, struct err *err);

/* What was recorded of a base's tensors at its import (--copy, --deep): {name: sha256 as hex}, a
 * new object, immutable; an empty one when nothing was. */
int store_base_digests(struct store *s, const char *id, json_t **out, struct err *err);

/* ---- leases ---- */

struct lease; // keeps ids from gc while it is open, also beyond store_close()

/* what: "serve", "merge", … (letters only): shown to whoever meets it. */
int lease_open(struct lease **out, struct store *s, const char *what, const char *const *ids,
               size_t n_ids, struct err *err);
/* Adds one id. ERR_NOT_FOUND when the store lacks it. */
int lease_add(struct lease *l, struct store *s, const char *id, struct err *err);
/* The file is written once for all of them: thousands of lease_add() would write it as often. */
int lease_add_many(struct lease *l, struct store *s, const char *const *ids, size_t n_ids,
                   struct err *err);
void lease_close(struct lease *l);

/* ---- the adapter source ---- */

/* Reads adapters by content id, digests checked, and keeps packs in the cache. s may be NULL: only
 * what store_source_add_path() registered, and no packs. Free with source->ops->close(). */
int store_source_open(struct adapter_source **out, struct store *s, struct err *err);
/* Registers an adapter that lies outside the store (`serve --lora-paths a=/path`); gives its
 * content id. The files are read again, and checked against that id, at each get. */
int store_source_add_path(struct adapter_source *source, const char *path,
                          char content_id[STORE_ID_CHARS + 1], struct err *err);

#endif
