/*
 * pack: adapters of the store as one archive or OCI image layout, the same bytes for the same
 * input. docs/FORMATS.md describes both.
 * A plan holds what is to travel: a record for each adapter or base, with nothing in it that
 * depends on when or where it was imported, and the files behind it. A base travels thin: its
 * fingerprint and the list of its files.
 * Thread rule: one thread uses a plan; what it points to lies in the store, so a lease must hold
 * the ids while the plan lives (pack_plan_open() takes one).
 */
#ifndef STORE_PACK_H
#define STORE_PACK_H

#include "store/archive.h"
#include "store/store.h"

#define PACK_INDEX      "LORA-PACK.json"
#define PACK_SIGNATURES "signatures/"              // <folder>/<digest>.sig
enum { PACK_SCHEMA = 1, PACK_SCHEMA_OVERLAY = 2 }; // the second: with a base as an overlay

/* A file of the result. */
struct pack_item {
    char *name;
    char *from; // a file of the store; NULL: data
    char *data;
    uint64_t size;
    char digest[STORE_ID_CHARS + 1];
    bool align;
};

struct pack_items {
    struct pack_item *items;
    size_t n, cap;
};

/* The folder in a pack of what has this name and tag; n: bytes of `folder`. */
void pack_folder_of(const char *name, const char *tag, char *folder, size_t n);
/* Copies name and from, takes data (freed with sys_free, also on failure). digest "" or NULL: not
 * known. */
int pack_items_add(struct pack_items *all, const char *name, const char *from, char *data,
                   uint64_t size, const char *digest, struct err *err);
void pack_items_sort(struct pack_items *all); // by name, bytes
const struct pack_item *pack_items_find(const struct pack_items *all, const char *digest); // NULL
void pack_items_release(struct pack_items *all);
uint64_t pack_items_bytes(const struct pack_items *all);

struct pack_plan {
    struct store *s; // borrowed
    struct lease *lease;
    json_t *records; // array, sorted by "folder"; see docs/FORMATS.md
};

/* Each ref is resolved; the same one twice counts once. ERR_NOT_FOUND, ERR_USAGE (two adapters
 * would have one name). */
int pack_plan_open(struct pack_plan *out, struct store *s, const char *const *refs, size_t n_refs,
                   const char *what, struct err *err);
void pack_plan_release(struct pack_plan *p);

/* The pack's files: PACK_INDEX and adapters/<folder>/<file>. */
int pack_plan_items(const struct pack_plan *p, struct pack_items *out, struct err *err);
/* Adds PACK_INDEX. adapters, bases: arrays of records, borrowed. */
int pack_add_index(json_t *adapters, json_t *bases, int schema, struct pack_items *out,
                   struct err *err);
/* Path of a blob that a record's file names; the caller's. ERR_NOT_FOUND, ERR_CORRUPT. */
int pack_blob_path(const struct pack_plan *p, const json_t *file, char **path, struct err *err);
/* JSON as all of these files have it: sorted keys, one space of indent, a newline at the end. */
char *pack_json(const json_t *value);

struct pack_output {
    const char *path;
    bool replace;
    int (*on_bytes)(void *arg, uint64_t bytes);
    void *arg;
};
int pack_write_archive(const struct pack_items *items, enum archive_kind kind,
                       const struct pack_output *out, uint64_t *bytes, struct err *err);
int pack_write_folder(const struct pack_items *items, const struct pack_output *out,
                      uint64_t *bytes, struct err *err);

#endif
