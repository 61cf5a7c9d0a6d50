#include "store/publish.h"

#include <stdio.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"
#include "store/blob.h"
#include "store/refs.h"

int publish_check_name(struct store *s, const char *name, const char *tag, const char *id,
                       bool force, enum publish_state *state, struct err *err)
{
    char old[STORE_ID_CHARS + 1];
    int rc = index_get_ref(s->index, name, tag, old, err);
    if (rc && rc != ERR_NOT_FOUND)
        return rc;
    err_clear(err);
    if (strcmp(old, id) == 0) {
        *state = PUBLISH_SAME;
        return 0;
    }
    if (!old[0]) {
        *state = PUBLISH_NAMED;
        return 0;
    }
    if (!force)
        return err_set(err, ERR_EXISTS, "%s:%s: is in use for %.12s, wanted to name %.12s", name,
                       tag, old, id);
    *state = PUBLISH_REPLACED;
    return 0;
}

enum blobs { BLOBS_NONE, BLOBS_SIGNATURES, BLOBS_ALL };

static int publish_blobs(struct store *s, const struct publish *p, enum blobs which,
                         struct err *err)
{
    int rc = 0;
    for (size_t i = 0; !rc && which != BLOBS_NONE && i < p->n_files; i++) {
        if (p->files[i].tmp && (p->files[i].signature || which == BLOBS_ALL))
            rc = blob_publish(s, p->files[i].tmp, p->files[i].digest, err);
    }
    return rc;
}

static bool files_are_there(struct store *s, const json_t *manifest)
{
    for (size_t i = 0; i < manifest_n_files(manifest); i++) {
        struct manifest_file f;
        if (manifest_file_at(manifest, i, &f, NULL) != 0)
            return false;
        bool in_store = f.mtime_ns == 0;
        if (in_store && blob_check(s, f.digest, f.size, BLOB_CHECK_SIZE, NULL) != 0)
            return false;
    }
    return true;
}

static const char *base_of(const json_t *manifest)
{
    const char *id =
        json_string_value(json_object_get(json_object_get(manifest, "base"), "fingerprint"));
    return id ? id : "";
}

/* What the store has of the id already: *known that the index has it; *old is its manifest, NULL
 * when it cannot be read; *whole that its files are there, too. */
static int find_old(struct store *s, const struct publish *p, bool *known, json_t **old,
                    bool *whole, struct err *err)
{
    struct store_entry e;
    *old = NULL;
    *known = *whole = false;
    int rc = store_get(s, p->id, &e, err);
    if (rc) {
        if (rc == ERR_NOT_FOUND)
            err_clear(err);
        return rc == ERR_NOT_FOUND ? 0 : rc;
    }
    store_entry_release(&e);
    *known = true;
    if (manifest_read(s, p->id, old, NULL) == 0)
        *whole = !p->rewrite && files_are_there(s, *old);
    return 0;
}

static bool is_recorded(const json_t *manifest, const char *base_id)
{
    size_t i;
    json_t *other;
    json_array_foreach(json_object_get(json_object_get(manifest, "base"), "also"), i, other)
    {
        const char *id = json_string_value(other);
        if (id && strcmp(id, base_id) == 0)
            return true;
    }
    return strcmp(base_of(manifest), base_id) == 0;
}

static int add_other_base(json_t *manifest, const char *base_id, struct err *err)
{
    json_t *base = json_object_get(manifest, "base"), *also = json_object_get(base, "also");
    int failed = 0;
    if (!also) {
        also = json_array();
        failed = json_object_set_new(base, "also", also);
    }
    if (!failed)
        failed = json_array_append_new(also, json_string(base_id));
    return failed ? err_set(err, ERR_NO_MEMORY, "%.12s: no memory", base_id) : 0;
}

static int set_base(json_t *manifest, const char *base_id, struct err *err)
{
    return json_object_set_new(json_object_get(manifest, "base"), "fingerprint",
                               json_string(base_id)) == 0
               ? 0
               : err_set(err, ERR_NO_MEMORY, "%.12s: no memory", base_id);
}

/* Records a base of content that was imported before: as the last one, the others stay. */
static int record_base(json_t *manifest, const char *base_id, struct err *err)
{
    if (!*base_id || is_recorded(manifest, base_id))
        return 0;
    int rc = *base_of(manifest) ? add_other_base(manifest, base_of(manifest), err) : 0;
    return rc ? rc : set_base(manifest, base_id, err);
}

/* A base that an older manifest had: behind the one of this. */
static int keep_base(json_t *manifest, const char *base_id, struct err *err)
{
    if (!*base_id || is_recorded(manifest, base_id))
        return 0;
    return *base_of(manifest) ? add_other_base(manifest, base_id, err)
                              : set_base(manifest, base_id, err);
}

static int add_signatures(json_t *manifest, const json_t *from, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; !rc && i < manifest_n_signatures(from); i++) {
        char path[MANIFEST_SIGNATURE_PATH_BYTES];
        struct manifest_file f;
        bool added;
        rc = manifest_signature_at(from, i, &f, path, err);
        if (!rc)
            rc = manifest_add_signature(manifest, f.digest, f.size, manifest_signature_key(from, i),
                                        &added, err);
    }
    return rc;
}

/* The order in which they were found is no matter. */
static bool has_same_files(const json_t *a, const json_t *b)
{
    struct manifest_file x, y;
    bool same = manifest_n_files(a) == manifest_n_files(b);
    for (size_t i = 0; same && i < manifest_n_files(a); i++)
        same = manifest_file_at(a, i, &x, NULL) == 0 && manifest_find_file(b, x.path, &y) &&
               strcmp(x.digest, y.digest) == 0;
    return same;
}

/* The new files in the place of the old ones, which had the same content: what was recorded of that
 * stays true. *next is the caller's. */
static int replace_old(const struct publish *p, const json_t *old, json_t **next, struct err *err)
{
    *next = json_deep_copy(p->manifest);
    int rc = *next ? 0 : err_set(err, ERR_NO_MEMORY, "%s: no memory", p->name);
    size_t i;
    json_t *other;
    json_array_foreach(json_object_get(json_object_get(old, "base"), "also"), i, other)
    {
        if (!rc && json_is_string(other))
            rc = keep_base(*next, json_string_value(other), err);
    }
    if (!rc)
        rc = keep_base(*next, base_of(old), err);
    if (!rc && has_same_files(old, p->manifest))
        rc = add_signatures(*next, old, err);
    return rc;
}

/* What the id's manifest is to become: *next, the caller's, or NULL when it stays as it is. */
static int find_next(const struct publish *p, const json_t *old, bool whole, enum blobs *blobs,
                     json_t **next, struct err *err)
{
    *blobs = BLOBS_ALL;
    *next = old ? NULL : json_incref((json_t *)p->manifest);
    if (!old)
        return *next ? 0 : err_set(err, ERR_NO_MEMORY, "%s: no memory", p->name);
    bool is_signed = manifest_n_signatures(p->manifest) > 0,
         same = has_same_files(old, p->manifest);
    if (!whole || (is_signed && !same && (p->must_be_signed || !manifest_n_signatures(old))))
        return replace_old(p, old, next, err);
    *blobs = is_signed && same ? BLOBS_SIGNATURES : BLOBS_NONE;
    if (is_signed && !same && p->left_out)
        *p->left_out = true;
    *next = json_deep_copy(old);
    int rc = *next ? 0 : err_set(err, ERR_NO_MEMORY, "%s: no memory", p->name);
    if (!rc)
        rc = record_base(*next, base_of(p->manifest), err);
    if (!rc && same)
        rc = add_signatures(*next, p->manifest, err);
    if (!rc && json_equal(*next, old)) {
        json_decref(*next);
        *next = NULL;
    }
    return rc;
}

// ---- manifests that are written again ----------------------------------------------------------

/*
 * A manifest that the index knows cannot change in one step with it. A mark, tmp/rewrite-<id>, says
 * that it was begun; whoever holds the lock next and finds it reads the manifest into the index,
 * the new one or still the old one: both are whole, since blobs come before their manifest.
 */
#define REWRITE_MARK "rewrite-"

static int begin_rewrite(struct store *s, const char *id, struct err *err)
{
    char name[sizeof REWRITE_MARK + STORE_ID_CHARS];
    snprintf(name, sizeof name, REWRITE_MARK "%.64s", id);
    return store_write_file(s, "tmp", name, "", 0, err);
}

static int end_rewrite(struct store *s, const char *id, struct err *err)
{
    char name[sizeof REWRITE_MARK + STORE_ID_CHARS];
    snprintf(name, sizeof name, REWRITE_MARK "%.64s", id);
    return store_remove_file(s, "tmp", name, err);
}

bool publish_is_rewriting(const struct store *s, const char *id)
{
    char name[sizeof REWRITE_MARK + STORE_ID_CHARS];
    snprintf(name, sizeof name, REWRITE_MARK "%.64s", id);
    char *path = store_join(s, "tmp", name, NULL);
    bool there = path && file_exists(path);
    sys_free(path);
    return there;
}

static int recover_one(struct store *s, const char *id, struct err *err)
{
    struct store_entry e;
    json_t *m = NULL;
    int rc = store_get(s, id, &e, err);
    if (!rc) {
        store_entry_release(&e);
        rc = manifest_read(s, id, &m, err);
    }
    if (!rc)
        rc = index_begin(s->index, err);
    if (!rc)
        rc = manifest_index(s, m, err);
    if (!rc)
        rc = index_commit(s->index, err);
    index_rollback(s->index);
    json_decref(m);
    // Nothing to finish: the object is gone, or fsck has to see to its manifest.
    if (rc == ERR_NOT_FOUND || rc == ERR_CORRUPT) {
        err_clear(err);
        rc = 0;
    }
    return rc ? rc : end_rewrite(s, id, err);
}

int publish_recover(struct store *s, struct err *err)
{
    char *folder = store_join(s, "tmp", NULL, err), **names = NULL;
    size_t n = 0, skip = sizeof REWRITE_MARK - 1;
    int rc = folder ? file_list(folder, &names, &n, err) : ERR_NO_MEMORY;
    for (size_t i = 0; !rc && i < n; i++) {
        if (strncmp(names[i], REWRITE_MARK, skip) == 0)
            rc = recover_one(s, names[i] + skip, err);
    }
    file_free_names(names, n);
    sys_free(folder);
    return rc;
}

// ---- all of it ---------------------------------------------------------------------------------

/* Blobs, then the manifest; *next is what the index is to have, NULL when it has it. */
static int publish_files(struct store *s, const struct publish *p, bool known, const json_t *old,
                         bool whole, json_t **next, struct err *err)
{
    enum blobs blobs;
    int rc = find_next(p, old, whole, &blobs, next, err);
    if (!rc && *next && known)
        rc = begin_rewrite(s, p->id, err);
    if (!rc)
        rc = publish_blobs(s, p, blobs, err);
    if (!rc && *next)
        rc = manifest_write(s, p->id, *next, err);
    return rc;
}

static int publish_locked(struct store *s, const struct publish *p, enum publish_state *state,
                          struct err *err)
{
    json_t *old = NULL, *next = NULL;
    bool known = false, whole = false;
    int rc = publish_recover(s, err);
    if (!rc)
        rc = publish_check_name(s, p->name, p->tag, p->id, p->force, state, err);
    if (!rc)
        rc = find_old(s, p, &known, &old, &whole, err);
    if (!rc && *state == PUBLISH_NAMED && !whole)
        *state = PUBLISH_ADDED;
    if (!rc)
        rc = publish_files(s, p, known, old, whole, &next, err);
    bool new_name = *state != PUBLISH_SAME;
    json_decref(old);
    if (rc || (!new_name && !next)) {
        json_decref(next);
        return rc;
    }
    rc = index_begin(s->index, err);
    if (!rc && new_name)
        rc = refs_write(s, p->name, p->tag, p->id, "import", err);
    if (!rc && next)
        rc = manifest_index(s, next, err);
    if (!rc && new_name)
        rc = index_put_ref(s->index, p->name, p->tag, p->id, thread_unix_ns() / 1000000000u, err);
    if (!rc)
        rc = index_commit(s->index, err);
    index_rollback(s->index);
    if (!rc && known && next)
        rc = end_rewrite(s, p->id, err);
    json_decref(next);
    return rc;
}

int publish(struct store *s, const struct publish *p, enum publish_state *state, struct err *err)
{
    int rc = store_lock(s, "import", err);
    if (rc)
        return rc;
    rc = publish_locked(s, p, state, err);
    store_unlock(s);
    return rc;
}

// ---- one signature -----------------------------------------------------------------------------

static int write_again(struct store *s, const char *id, const json_t *manifest, struct err *err)
{
    int rc = manifest_write(s, id, manifest, err);
    if (!rc)
        rc = index_begin(s->index, err);
    if (!rc)
        rc = manifest_index(s, manifest, err);
    if (!rc)
        rc = index_commit(s->index, err);
    index_rollback(s->index);
    return rc ? rc : end_rewrite(s, id, err);
}

static int publish_signature_locked(struct store *s, const char *id, const json_t *files,
                                    const char *tmp, const char *digest, uint64_t size,
                                    const char *key, bool *same, struct err *err)
{
    json_t *m = NULL;
    bool added = false;
    int rc = publish_recover(s, err);
    if (!rc)
        rc = manifest_read(s, id, &m, err);
    if (!rc && json_equal(json_object_get(m, "files"), files) != 1)
        rc = err_set(err, ERR_REFUSED, "%.12s: its files were changed meanwhile", id);
    if (!rc)
        rc = manifest_add_signature(m, digest, size, key, &added, err);
    *same = !rc && !added;
    if (!rc && added)
        rc = begin_rewrite(s, id, err);
    if (!rc && added)
        rc = blob_publish(s, tmp, digest, err);
    if (!rc && added)
        rc = write_again(s, id, m, err);
    json_decref(m);
    return rc;
}

int publish_signature(struct store *s, const char *id, const json_t *files, const char *tmp,
                      const char *digest, uint64_t size, const char *key, bool *same,
                      struct err *err)
{
    int rc = store_lock(s, "sign", err);
    if (rc)
        return rc;
    rc = publish_signature_locked(s, id, files, tmp, digest, size, key, same, err);
    store_unlock(s);
    return rc;
}
