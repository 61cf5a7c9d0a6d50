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

static int publish_content(struct store *s, const struct publish *p, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; !rc && i < p->n_files; i++) {
        if (p->files[i].tmp)
            rc = blob_publish(s, p->files[i].tmp, p->files[i].digest, err);
    }
    return rc ? rc : manifest_write(s, p->id, p->manifest, err);
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

/* What the store has of the id already: *known that the index has it; *old is its manifest when it
 * is whole, else NULL. */
static int find_old(struct store *s, const struct publish *p, bool *known, json_t **old,
                    struct err *err)
{
    struct store_entry e;
    *old = NULL;
    *known = false;
    int rc = store_get(s, p->id, &e, err);
    if (rc) {
        if (rc == ERR_NOT_FOUND)
            err_clear(err);
        return rc == ERR_NOT_FOUND ? 0 : rc;
    }
    store_entry_release(&e);
    *known = true;
    if (p->rewrite || manifest_read(s, p->id, old, NULL) != 0)
        return 0;
    if (!files_are_there(s, *old)) {
        json_decref(*old);
        *old = NULL;
        return 0;
    }
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

/* Records a base of content that was imported before: as the last one, the others stay. */
static int record_base(struct store *s, const struct publish *p, json_t *old, struct err *err)
{
    json_t *base = json_object_get(old, "base"), *also = json_object_get(base, "also");
    int failed = 0;
    if (*base_of(old) && !also) {
        also = json_array();
        failed = json_object_set_new(base, "also", also);
    }
    if (!failed && *base_of(old))
        failed = json_array_append_new(also, json_string(base_of(old)));
    if (!failed)
        failed = json_object_set_new(base, "fingerprint", json_string(base_of(p->manifest)));
    if (failed)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", p->name);
    return manifest_write(s, p->id, old, err);
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

/* Files first; *indexed is the manifest that the index is to have, NULL when it has it. */
static int publish_files(struct store *s, const struct publish *p, bool known, json_t *old,
                         const json_t **indexed, struct err *err)
{
    *indexed = NULL;
    if (old && (!*base_of(p->manifest) || is_recorded(old, base_of(p->manifest))))
        return 0;
    int rc = known ? begin_rewrite(s, p->id, err) : 0;
    if (rc)
        return rc;
    *indexed = old ? old : p->manifest;
    return old ? record_base(s, p, old, err) : publish_content(s, p, err);
}

static int publish_locked(struct store *s, const struct publish *p, enum publish_state *state,
                          struct err *err)
{
    json_t *old = NULL;
    const json_t *indexed = NULL;
    bool known = false;
    int rc = publish_recover(s, err);
    if (!rc)
        rc = publish_check_name(s, p->name, p->tag, p->id, p->force, state, err);
    if (!rc)
        rc = find_old(s, p, &known, &old, err);
    if (!rc && *state == PUBLISH_NAMED && !old)
        *state = PUBLISH_ADDED;
    if (!rc)
        rc = publish_files(s, p, known, old, &indexed, err);
    bool new_name = *state != PUBLISH_SAME;
    if (rc || (!new_name && !indexed)) {
        json_decref(old);
        return rc;
    }
    rc = index_begin(s->index, err);
    if (!rc && new_name)
        rc = refs_write(s, p->name, p->tag, p->id, "import", err);
    if (!rc && indexed)
        rc = manifest_index(s, indexed, err);
    if (!rc && new_name)
        rc = index_put_ref(s->index, p->name, p->tag, p->id, thread_unix_ns() / 1000000000u, err);
    if (!rc)
        rc = index_commit(s->index, err);
    index_rollback(s->index);
    if (!rc && known && indexed)
        rc = end_rewrite(s, p->id, err);
    json_decref(old);
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
