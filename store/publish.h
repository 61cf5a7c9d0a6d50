/*
 * publish: the moment at which something becomes part of the store.
 * Under the store's lock, in this order: blobs renamed into place and their folders synced, the
 * manifest, the ref file, the index. What a kill leaves before the index's commit is reclaimable.
 */
#ifndef STORE_PUBLISH_H
#define STORE_PUBLISH_H

#include "store/manifest.h"

struct publish_file {
    char *tmp; // in a work folder, finished; NULL: nothing to move
    char digest[STORE_ID_CHARS + 1];
    bool signature; // not one of the adapter's files: one of manifest's "signatures"
};

enum publish_state {
    PUBLISH_ADDED,    // new content
    PUBLISH_NAMED,    // known content, a new name for it
    PUBLISH_REPLACED, // the name pointed elsewhere before (force)
    PUBLISH_SAME,     // known content under that name already: nothing changed
};

struct publish {
    const char *id;
    const json_t *manifest; // with its files; used when the store lacks the id, or `rewrite`
    const struct publish_file *files;
    size_t n_files;
    const char *name, *tag;
    bool force;   // a name in use is taken; what it named stays in its history
    bool rewrite; // the id is there, but a blob of it is spoiled: put this in its place
    // The same content may lie there in other files, of which these signatures say nothing. They
    // are put in the place of files without a signature; in the place of signed ones only when
    // must_be_signed, else the signatures are left out and *left_out (or NULL) is set.
    bool must_be_signed;
    bool *left_out;
};

/* ERR_EXISTS: the name is in use for other content and !force; nothing was changed then.
 * When the id is there and this manifest has a base that it was not recorded for, it is; likewise
 * signatures. */
int publish(struct store *s, const struct publish *p, enum publish_state *state, struct err *err);

/* Adds one signature, whose blob lies at `tmp`, to an adapter that the store has. files: what it is
 * of, as in the manifest: ERR_REFUSED when that has changed meanwhile. *same: it was there. */
int publish_signature(struct store *s, const char *id, const json_t *files, const char *tmp,
                      const char *digest, uint64_t size, const char *key, bool *same,
                      struct err *err);

/* Finishes what a killed process had begun to change of known objects. Under the store's lock. */
int publish_recover(struct store *s, struct err *err);
/* Whether such a change of this id was begun and not finished (or goes on now). */
bool publish_is_rewriting(const struct store *s, const char *id);

/* What publish() would say of the name; needs no lock when only asked for a plan. */
int publish_check_name(struct store *s, const char *name, const char *tag, const char *id,
                       bool force, enum publish_state *state, struct err *err);

#endif
