#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"
#include "store/blob.h"
#include "store/fsck_impl.h"
#include "store/refs.h"

int fsck_reindex(struct fsck *f, const json_t *manifest)
{
    int rc = index_begin(f->s->index, f->err);
    if (!rc)
        rc = manifest_index(f->s, manifest, f->err);
    if (!rc)
        rc = index_commit(f->s->index, f->err);
    index_rollback(f->s->index);
    return rc;
}

int fsck_set_aside(struct fsck *f, const char *digest)
{
    int rc = store_make_folder(f->s, "cache/spoiled", f->err);
    char *from = rc ? NULL : blob_path(f->s, digest, f->err);
    char *to = from ? store_join(f->s, "cache/spoiled", digest, f->err) : NULL;
    if (!rc && !to)
        rc = ERR_NO_MEMORY;
    if (!rc && sys_rename(from, to) != 0)
        rc = err_set(f->err, ERR_IO, "%s: cannot move it out of the way", from);
    sys_free(from);
    sys_free(to);
    return rc;
}

// ---- the index from nothing --------------------------------------------------------------------

static int move_index_away(struct fsck *f)
{
    static const char *const names[] = {"index.db", "index.db-wal", "index.db-shm"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char kept[64];
        snprintf(kept, sizeof kept, "%s.broken", names[i]);
        char *from = store_join(f->s, names[i], NULL, f->err);
        char *to = from ? store_join(f->s, "cache", kept, f->err) : NULL;
        int rc = to ? 0 : ERR_NO_MEMORY;
        if (!rc && file_exists(from) && sys_rename(from, to) != 0)
            rc = err_set(f->err, ERR_IO, "%s: cannot move it out of the way", from);
        sys_free(from);
        sys_free(to);
        if (rc)
            return rc;
    }
    return 0;
}

static int index_manifest(struct fsck *f, const char *file_name)
{
    char id[STORE_ID_CHARS + 1];
    json_t *m;
    struct err problem = {0};
    if (strlen(file_name) != STORE_ID_CHARS + 5)
        return 0;
    snprintf(id, sizeof id, "%.64s", file_name);
    int rc = manifest_read(f->s, id, &m, &problem);
    if (rc) {
        f->report->corrupt = true;
        fsck_tell(f, FSCK_PROBLEM, "%s", problem.msg);
        return 0;
    }
    rc = manifest_index(f->s, m, f->err);
    json_decref(m);
    return rc;
}

static int index_manifests(struct fsck *f)
{
    char *folder = store_join(f->s, "manifests", NULL, f->err), **names = NULL;
    size_t n = 0;
    int rc = folder ? file_list(folder, &names, &n, f->err) : ERR_NO_MEMORY;
    for (size_t i = 0; !rc && i < n; i++) {
        rc = index_manifest(f, names[i]);
        if (rc == ERR_CORRUPT) { // readable JSON that is no manifest: told, and passed over
            f->report->corrupt = true;
            fsck_tell(f, FSCK_PROBLEM, "%s", f->err->msg);
            err_clear(f->err);
            rc = 0;
        }
    }
    file_free_names(names, n);
    sys_free(folder);
    return rc;
}

static int index_ref(void *arg, const char *name, const char *tag, const json_t *root,
                     const struct err *problem)
{
    struct fsck *f = arg;
    const char *id = json_string_value(json_object_get(root, "id"));
    if (problem) {
        f->report->corrupt = true;
        fsck_tell(f, FSCK_PROBLEM, "%s", problem->msg);
        return 0;
    }
    if (!id)
        return 0;
    struct store_entry e;
    int rc = store_get(f->s, id, &e, f->err);
    if (rc == ERR_NOT_FOUND) {
        err_clear(f->err);
        f->report->corrupt = true;
        fsck_tell(f, FSCK_PROBLEM, "%s:%s: names %.12s, which is not there", name, tag, id);
        return 0;
    }
    if (rc)
        return rc;
    store_entry_release(&e);
    return index_put_ref(f->s->index, name, tag, id, thread_unix_ns() / 1000000000u, f->err);
}

/* Fills a database of its own: an index that holds but a part must never stand in the store, since
 * it would be believed. */
static int fill_index(struct fsck *f, const char *path)
{
    int rc = index_open(&f->s->index, path, true, f->s->lock_timeout_ms, f->err);
    if (!rc)
        rc = index_begin(f->s->index, f->err);
    if (!rc)
        rc = index_manifests(f);
    if (!rc)
        rc = refs_each(f->s, index_ref, f, f->err);
    if (!rc)
        rc = index_commit(f->s->index, f->err);
    // Closing moves the log into the database, which then is one file.
    index_close(f->s->index);
    f->s->index = NULL;
    return rc;
}

static int put_in_place(struct fsck *f, const char *from, const char *to)
{
    struct strbuf log;
    strbuf_init(&log);
    strbuf_addf(&log, "%s-wal", from);
    int rc = 0;
    if (log.failed)
        rc = err_set(f->err, ERR_NO_MEMORY, "no memory");
    else if (file_exists(strbuf_text(&log)))
        rc = err_set(f->err, ERR_IO, "%s: was not closed whole", from);
    strbuf_release(&log);
    if (!rc)
        rc = move_index_away(f);
    if (!rc && sys_rename(from, to) != 0)
        rc = err_set(f->err, ERR_IO, "%s: cannot be put in its place", to);
    if (!rc)
        rc = file_sync_folder(f->s->path, f->err);
    return rc ? rc : index_open(&f->s->index, to, false, f->s->lock_timeout_ms, f->err);
}

int fsck_rebuild_index(struct fsck *f)
{
    char name[64];
    snprintf(name, sizeof name, "index-%ld.db", (long)getpid());
    index_close(f->s->index);
    f->s->index = NULL;
    char *from = store_join(f->s, "tmp", name, f->err);
    char *to = from ? store_join(f->s, "index.db", NULL, f->err) : NULL;
    int rc = to ? 0 : ERR_NO_MEMORY;
    if (!rc && sys_unlink(from) != 0 && errno != ENOENT)
        rc = err_set_errno(f->err, errno, "%s: cannot remove", from);
    if (!rc)
        rc = fill_index(f, from);
    if (!rc)
        rc = put_in_place(f, from, to);
    sys_free(from);
    sys_free(to);
    if (!rc)
        fsck_tell(f, FSCK_REPAIRED, "index.db was rebuilt from the manifests and refs");
    return rc;
}
