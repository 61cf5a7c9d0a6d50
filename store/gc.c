#include "store/gc.h"

#include <errno.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"
#include "store/blob.h"
#include "store/cache.h"
#include "store/id_set.h"
#include "store/publish.h"
#include "store/refs.h"

struct gc {
    struct store *s;
    const struct gc_options *opt;
    struct gc_report *report;
    void (*removed)(void *arg, enum gc_what what, const char *name, uint64_t bytes);
    void *arg;
    struct err *err;
    struct id_set named, leased;
    struct id_set objects;        // that stay
    struct id_set doomed_objects; // that go
    struct id_set kept_blobs, doomed_blobs;
    json_t *live_leases; // names of lease files
    int64_t young_ns;    // files changed after this are within the grace period
};

static void tell(struct gc *g, enum gc_what what, const char *name, uint64_t bytes)
{
    g->report->bytes += bytes;
    g->report->n_objects += what == GC_OBJECT;
    g->report->n_blobs += what == GC_BLOB;
    g->report->n_temporaries += what == GC_TEMPORARY;
    if (g->removed)
        g->removed(g->arg, what, name, bytes);
}

// ---- marking -----------------------------------------------------------------------------------

static int mark_ref(void *arg, const char *name, const char *tag, const char *id)
{
    (void)name;
    (void)tag;
    struct gc *g = arg;
    return id_set_add(&g->named, id, g->err);
}

static int mark_lease(void *arg, const char *name, const json_t *lease)
{
    struct gc *g = arg;
    size_t i;
    json_t *id;
    json_array_foreach(json_object_get(lease, "ids"), i, id)
    {
        int rc = id_set_add(&g->leased, json_string_value(id), g->err);
        if (rc)
            return rc;
    }
    return json_object_set_new(g->live_leases, name, json_true()) == 0
               ? 0
               : err_set(g->err, ERR_NO_MEMORY, "no memory for the leases");
}

static int sort_object(void *arg, const char *id, enum store_kind kind)
{
    (void)kind;
    struct gc *g = arg;
    bool named = id_set_has(&g->named, id), leased = id_set_has(&g->leased, id);
    g->report->n_leased += !named && leased;
    return id_set_add(named || leased ? &g->objects : &g->doomed_objects, id, g->err);
}

static int sort_file(void *arg, const char *id, const char *path, const char *digest, uint64_t size)
{
    (void)path;
    (void)size;
    struct gc *g = arg;
    bool goes = id_set_has(&g->doomed_objects, id);
    return id_set_add(goes ? &g->doomed_blobs : &g->kept_blobs, digest, g->err);
}

static int mark(struct gc *g)
{
    int rc = index_each_ref(g->s->index, mark_ref, g, g->err);
    if (!rc)
        rc = lease_each(g->s, !g->opt->dry_run, mark_lease, g, g->err);
    if (!rc)
        rc = index_each_object(g->s->index, sort_object, g, g->err);
    if (!rc)
        rc = index_each_file(g->s->index, sort_file, g, g->err);
    return rc;
}

// ---- sweeping ----------------------------------------------------------------------------------

static int forget_objects(struct gc *g)
{
    for (size_t i = 0; i < g->doomed_objects.n; i++)
        tell(g, GC_OBJECT, g->doomed_objects.ids[i], 0);
    if (g->opt->dry_run || !g->doomed_objects.n)
        return 0;
    int rc = index_begin(g->s->index, g->err);
    for (size_t i = 0; !rc && i < g->doomed_objects.n; i++)
        rc = index_delete_object(g->s->index, g->doomed_objects.ids[i], g->err);
    if (!rc)
        rc = index_commit(g->s->index, g->err);
    index_rollback(g->s->index);
    return rc;
}

/* Whether an unreferenced file goes now: its object did, or its grace is over. */
static bool goes_now(struct gc *g, bool doomed, int64_t mtime_ns)
{
    if (doomed || mtime_ns <= g->young_ns)
        return true;
    g->report->n_young++;
    return false;
}

static int sweep_manifest(struct gc *g, const char *folder, const char *name)
{
    size_t n = strlen(name);
    char id[STORE_ID_CHARS + 1] = "";
    if (n == STORE_ID_CHARS + 5 && strcmp(name + STORE_ID_CHARS, ".json") == 0)
        memcpy(id, name, STORE_ID_CHARS);
    if (!id[0] || id_set_has(&g->objects, id))
        return 0;
    char *path = file_join(folder, name);
    struct stat st;
    int rc = path ? 0 : err_set(g->err, ERR_NO_MEMORY, "%s: no memory", folder);
    if (!rc && sys_lstat(path, &st) == 0 &&
        goes_now(g, id_set_has(&g->doomed_objects, id),
                 (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec)) {
        tell(g, GC_MANIFEST, id, (uint64_t)st.st_size);
        if (!g->opt->dry_run)
            rc = store_remove_file(g->s, "manifests", name, g->err);
    }
    sys_free(path);
    return rc;
}

static int sweep_manifests(struct gc *g)
{
    char *folder = store_join(g->s, "manifests", NULL, g->err), **names = NULL;
    size_t n = 0;
    int rc = folder ? file_list(folder, &names, &n, g->err) : ERR_NO_MEMORY;
    for (size_t i = 0; !rc && i < n; i++)
        rc = sweep_manifest(g, folder, names[i]);
    file_free_names(names, n);
    sys_free(folder);
    return rc;
}

static int sweep_blob(void *arg, const struct blob_stat *b)
{
    struct gc *g = arg;
    struct digest d;
    // What is no blob is not ours to remove; fsck speaks of it.
    if (!digest_parse(b->name, &d) || strncmp(b->name, b->folder, 2) != 0 ||
        id_set_has(&g->kept_blobs, b->name) ||
        !goes_now(g, id_set_has(&g->doomed_blobs, b->name), b->mtime_ns))
        return 0;
    tell(g, GC_BLOB, b->name, b->size);
    if (g->opt->dry_run)
        return 0;
    char *path = blob_path(g->s, b->name, g->err);
    if (!path)
        return ERR_NO_MEMORY;
    int rc = 0;
    if (sys_unlink(path) != 0 && errno != ENOENT)
        rc = err_set_errno(g->err, errno, "%s: cannot remove", path);
    sys_free(path);
    return rc;
}

static uint64_t tree_bytes(const char *path)
{
    struct stat st;
    char **names;
    size_t n;
    if (sys_lstat(path, &st) != 0)
        return 0;
    if (!S_ISDIR(st.st_mode))
        return (uint64_t)st.st_size;
    uint64_t total = 0;
    if (file_list(path, &names, &n, NULL) != 0)
        return 0;
    for (size_t i = 0; i < n; i++) {
        char *child = file_join(path, names[i]);
        total += child ? tree_bytes(child) : 0;
        sys_free(child);
    }
    file_free_names(names, n);
    return total;
}

/* Whatever lies in tmp/ without a live lease of that name was left by somebody who died. */
static int sweep_temporaries(struct gc *g)
{
    char *folder = store_join(g->s, "tmp", NULL, g->err), **names = NULL;
    size_t n = 0;
    int rc = folder ? file_list(folder, &names, &n, g->err) : ERR_NO_MEMORY;
    for (size_t i = 0; !rc && i < n; i++) {
        if (json_object_get(g->live_leases, names[i]))
            continue;
        char *path = file_join(folder, names[i]);
        if (!path) {
            rc = err_set(g->err, ERR_NO_MEMORY, "%s: no memory", folder);
            break;
        }
        tell(g, GC_TEMPORARY, names[i], tree_bytes(path));
        if (!g->opt->dry_run)
            rc = file_remove_tree(path, g->err);
        sys_free(path);
    }
    file_free_names(names, n);
    sys_free(folder);
    return rc;
}

/* A removed name's history goes when nothing in it can be brought back. */
static int sweep_ref(void *arg, const char *name, const char *tag, const json_t *root,
                     const struct err *problem)
{
    struct gc *g = arg;
    char now[STORE_ID_CHARS + 1];
    int rc = index_get_ref(g->s->index, name, tag, now, g->err);
    if (rc != ERR_NOT_FOUND)
        return rc;
    err_clear(g->err);
    if (problem)
        return 0;
    size_t i;
    json_t *event;
    json_array_foreach(json_object_get(root, "history"), i, event)
    {
        const char *id = json_string_value(json_object_get(event, "id"));
        if (id && id_set_has(&g->objects, id))
            return 0;
    }
    return refs_remove(g->s, name, tag, g->err);
}

static void cache_removed(void *arg, const char *name, uint64_t bytes)
{
    tell(arg, GC_CACHE, name, bytes);
}

static int sweep(struct gc *g)
{
    int rc = forget_objects(g);
    if (!rc)
        rc = sweep_manifests(g);
    if (!rc)
        rc = blob_each(g->s, sweep_blob, g, g->err);
    if (!rc)
        rc = sweep_temporaries(g);
    if (!rc && !g->opt->dry_run)
        rc = refs_each(g->s, sweep_ref, g, g->err);
    if (!rc)
        rc = cache_sweep(g->s, &g->objects, g->opt->cache_cap, g->opt->dry_run, cache_removed, g,
                         g->err);
    return rc;
}

int store_gc(struct store *s, const struct gc_options *opt, struct gc_report *report,
             void (*removed)(void *arg, enum gc_what what, const char *name, uint64_t bytes),
             void *arg, struct err *err)
{
    struct err own;
    if (!err)
        err = &own;
    err_clear(err);
    *report = (struct gc_report){0};
    struct gc g = {
        .s = s, .opt = opt, .report = report, .removed = removed, .arg = arg, .err = err};
    g.young_ns = (int64_t)thread_unix_ns() - (int64_t)(opt->grace_s * 1000000000u);
    g.live_leases = json_object();
    int rc = g.live_leases ? store_lock(s, "gc", err) : err_set(err, ERR_NO_MEMORY, "no memory");
    if (!rc) {
        rc = opt->dry_run ? 0 : publish_recover(s, err);
        if (!rc)
            rc = mark(&g);
        if (!rc)
            rc = sweep(&g);
        store_unlock(s);
    }
    struct id_set *sets[] = {&g.named,          &g.leased,     &g.objects,
                             &g.doomed_objects, &g.kept_blobs, &g.doomed_blobs};
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        id_set_release(sets[i]);
    json_decref(g.live_leases);
    return rc;
}
