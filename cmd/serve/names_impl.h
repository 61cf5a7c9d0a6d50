/*
 * names_impl: what names.c (finding, listing) and names_load.c (store, paths, words) share.
 */
#ifndef CMD_SERVE_NAMES_IMPL_H
#define CMD_SERVE_NAMES_IMPL_H

#include "cmd/serve/names.h"
#include "store/store.h"

enum name_origin { NAME_FROM_WORDS, NAME_FROM_STORE, NAME_FROM_REQUEST };

struct name_entry {
    char *name, *root, *ref; // ref: what it was resolved from
    struct served *served;   // held
    uint64_t created;
    bool pinned, seen;
    enum name_origin origin;
};

struct names {
    struct names_options opt;
    struct engine *engine;
    struct lease *lease;        // of everything served from the store; NULL without one
    bool from_store;            // no words: the store's names are offered
    struct store *checking;     // for signatures, while the store's names are offered; or NULL
    pthread_mutex_t load_mutex; // one load, reload or unload at a time; before mutex
    pthread_mutex_t mutex;      // everything below, and served.refs
    struct name_entry *entries;
    size_t n_entries, cap;
    struct served *first;
};

/* Under mutex: the served adapter of a content id and a place, held; made when it is new, or when
 * it must be `fresh` (the text files beside the weights may have changed). */
struct served *names_served(struct names *n, const char *content_id, const char *label,
                            const char *path, bool fresh);
/* Under mutex. */
struct name_entry *names_entry(struct names *n, const char *name, size_t len);
/* Under mutex: `name` points at `served` from now on (one reference is taken over). The old one, if
 * any, is given in *old to be released outside. ERR_NO_MEMORY. */
int names_set(struct names *n, const struct name_entry *entry, struct served **old,
              struct err *err);
void names_entry_release(struct name_entry *e);

#endif
