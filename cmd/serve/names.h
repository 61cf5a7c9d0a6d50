/*
 * names: which adapters are offered under which names, and what a name means at this moment.
 *
 * A name points at a served adapter (one content id). A request holds the served adapter; a name
 * that is unloaded or loaded again with new content leaves running requests untouched, and the
 * engine forgets a content id when its last holder lets go.
 * Thread rule: any thread; the engine's and the output thread only release.
 */
#ifndef CMD_SERVE_NAMES_H
#define CMD_SERVE_NAMES_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "cmd/serve/text_kit.h"
#include "libcore/adapter_source.h"
#include "libcore/base/digest.h"
#include "libcore/engine/engine.h"
#include "store/sign.h"

struct names;

/* One adapter on offer: its content and where it lies (the text files beside it). */
struct served {
    struct names *names;
    struct served *next; // names' list
    unsigned refs;       // under names' mutex
    char content_id[DIGEST_HEX_CHARS + 1];
    char *label; // the name it was offered under first: for metrics
    char *path;  // its folder outside the store; NULL: the store has it

    pthread_mutex_t mutex; // the first request readies it, the others wait
    bool ready, refused;
    struct err why;
    unsigned kinds;
    uint32_t max_rank;
    struct text_kit *kit; // after served_ready(); held
};

struct served_use {
    struct served *served; // held
    float scale;
};

struct names_options {
    const char *store_path;          // NULL or a folder without a store: paths only
    struct adapter_source *source;   // borrowed; made over the same store
    const char *base_fingerprint;    // "" when unknown
    const char *const *served_names; // what the base is called
    size_t n_served_names;
    const char *base_folder, *cache_folder;
    struct text_kit *base_kit;
    const char *adapter_root;         // or NULL
    uint32_t max_rank;                // 0: no cap
    const struct sign_keys *required; // what is offered must be signed by one of these; NULL or
                                      // none: need not
};

/* Whether an adapter is signed by one of the keys: of the store (NULL: the one at store_path is
 * opened), or at `path` outside it. label: its name, for messages. ERR_REFUSED, ERR_CORRUPT. */
struct store;
int names_check_signature(struct store *store, const char *store_path, const char *content_id,
                          const char *path, const char *label, const struct sign_keys *keys,
                          struct err *err);

int names_open(struct names **out, const struct names_options *opt, struct err *err);
/* Before the first served_ready; NULL before the engine goes. */
void names_set_engine(struct names *n, struct engine *engine);
/* After every held adapter was released. */
void names_free(struct names *n);

/* Offers what the words say: NAME=REF, REF, or JSON items. A missing or refused one is an error. */
int names_offer_words(struct names *n, const char *const *words, size_t n_words, struct err *err);
/* Offers every adapter of the store whose base matches; those that do not bind are left out with a
 * log line when they are readied, those that are not signed as wanted at once. Sets *count. */
int names_offer_store(struct names *n, size_t *count, struct err *err);
/* Reads the names again (SIGHUP): of the store, or where the words' references point now. */
int names_reload(struct names *n, struct err *err);

/* From a request. by_path_allowed: the path must lie below --adapter-root; else only names of the
 * store are loaded. ERR_EXISTS: the name is loaded and !replace. */
int names_load(struct names *n, const char *name, const char *ref, bool replace, bool pinned,
               struct err *err);
int names_unload(struct names *n, const char *name, struct err *err); // ERR_NOT_FOUND

/* What a `model` means: an offered name, name:tag, the base's name, then base:adapter. Empty or
 * NULL: the base. *served is NULL for the base, else held. ERR_NOT_FOUND. */
int names_find_model(struct names *n, const char *model, struct served **served, struct err *err);
/* An adapter by its name alone; held. */
int names_find_adapter(struct names *n, const char *name, struct served **served, struct err *err);
/* By its place in the list (llama.cpp's id). */
int names_find_index(struct names *n, size_t index, struct served **served, struct err *err);

/* Binds, asks the back end, registers with the engine, opens the adapter's own text files: once.
 * Runs on a worker thread. ERR_REFUSED with the reason, at every call. */
int served_ready(struct served *s, struct err *err);
struct served *served_hold(struct served *s);
void served_release(struct served *s); // NULL is fine

/* One row of the list, in order of the offers. */
struct offered {
    const char *name, *root; // root: path or reference
    const struct served *served;
    uint64_t created; // unix seconds
    bool pinned;
};
/* Calls row for each name under the names' mutex: it must not call names. */
void names_each(struct names *n, void (*row)(void *arg, const struct offered *o), void *arg);
size_t names_count(struct names *n);
const char *names_base(const struct names *n); // the first served name
bool names_is_base(const struct names *n, const char *name, size_t len);
size_t names_n_base(const struct names *n);
const char *names_base_at(const struct names *n, size_t i);
/* Readies every offered adapter; refused ones are dropped with a log line when `drop`, else the
 * first one's error is returned. */
int names_ready_all(struct names *n, bool drop, struct err *err);

#endif
