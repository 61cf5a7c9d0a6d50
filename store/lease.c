#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"
#include "store/store_impl.h"

/*
 * A lease is a file in leases/ that its holder keeps flock'd: when the holder dies, by whatever
 * death, the system lets go and the file means nothing any more. pid, boot id and time in it are
 * for people. Leases are made, extended and looked at under the store's lock, so gc never meets a
 * half-made one.
 */
struct lease {
    char *path;
    int fd;
    char what[16];
    uint64_t started;
    json_t *ids;
};

const char *lease_name(const struct lease *l)
{
    return file_base_name(l->path);
}

static int create_file(struct lease *l, struct store *s, struct err *err)
{
    static unsigned counter;
    char name[96];
    snprintf(name, sizeof name, "%s-%ld-%llx-%u", l->what, (long)getpid(),
             (unsigned long long)thread_unix_ns(),
             __atomic_add_fetch(&counter, 1, __ATOMIC_RELAXED));
    l->path = store_join(s, "leases", name, err);
    if (!l->path)
        return ERR_NO_MEMORY;
    l->fd = sys_open(l->path, O_RDWR | O_CREAT | O_EXCL, 0666);
    if (l->fd < 0)
        return err_set_errno(err, errno, "%s: cannot create", l->path);
    if (sys_flock(l->fd, LOCK_EX | LOCK_NB) != 0)
        return err_set_errno(err, errno, "%s: cannot lock", l->path);
    return 0;
}

static int write_lease(struct lease *l, struct err *err)
{
    json_t *root =
        json_pack("{s:i,s:s,s:i,s:s,s:I,s:O}", "schema", 1, "what", l->what, "pid", (int)getpid(),
                  "boot_id", lock_boot_id(), "started", (json_int_t)l->started, "ids", l->ids);
    char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
    int rc = 0;
    if (!text)
        rc = err_set(err, ERR_NO_MEMORY, "%s: no memory", l->path);
    else if (sys_ftruncate(l->fd, 0) != 0 ||
             sys_pwrite(l->fd, text, strlen(text), 0) != (ssize_t)strlen(text))
        rc = err_set_errno(err, errno, "%s: cannot write", l->path);
    free(text);
    json_decref(root);
    return rc;
}

static int add_id(struct lease *l, struct store *s, const char *id, struct err *err)
{
    struct store_entry e;
    int rc = store_get(s, id, &e, err);
    if (rc)
        return rc;
    store_entry_release(&e);
    return json_array_append_new(l->ids, json_string(id)) == 0
               ? 0
               : err_set(err, ERR_NO_MEMORY, "%s: no memory", l->path);
}

int lease_open(struct lease **out, struct store *s, const char *what, const char *const *ids,
               size_t n_ids, struct err *err)
{
    *out = NULL;
    struct lease *l = sys_calloc(1, sizeof *l);
    if (!l)
        return err_set(err, ERR_NO_MEMORY, "no memory for a lease");
    l->fd = -1;
    l->started = thread_unix_ns() / 1000000000u;
    snprintf(l->what, sizeof l->what, "%s", what);
    l->ids = json_array();
    int rc = l->ids ? store_lock(s, what, err) : err_set(err, ERR_NO_MEMORY, "no memory");
    if (rc) {
        lease_close(l);
        return rc;
    }
    rc = create_file(l, s, err);
    for (size_t i = 0; !rc && i < n_ids; i++)
        rc = add_id(l, s, ids[i], err);
    if (!rc)
        rc = write_lease(l, err);
    store_unlock(s);
    if (rc) {
        lease_close(l);
        return rc;
    }
    *out = l;
    return 0;
}

int lease_add(struct lease *l, struct store *s, const char *id, struct err *err)
{
    return lease_add_many(l, s, &id, 1, err);
}

int lease_add_many(struct lease *l, struct store *s, const char *const *ids, size_t n_ids,
                   struct err *err)
{
    int rc = store_lock(s, l->what, err);
    if (rc)
        return rc;
    for (size_t i = 0; !rc && i < n_ids; i++)
        rc = add_id(l, s, ids[i], err);
    if (!rc)
        rc = write_lease(l, err);
    store_unlock(s);
    return rc;
}

void lease_close(struct lease *l)
{
    if (!l)
        return;
    if (l->fd >= 0) {
        sys_unlink(l->path);
        sys_close(l->fd);
    }
    sys_free(l->path);
    json_decref(l->ids);
    sys_free(l);
}

// ---- looking at the leases of others -----------------------------------------------------------

/* Whether somebody holds the file's lock. An unreadable answer counts as held: gc must not err. */
static bool is_held(const char *path)
{
    int fd = sys_open(path, O_RDONLY, 0);
    if (fd < 0)
        return errno != ENOENT;
    bool held = sys_flock(fd, LOCK_SH | LOCK_NB) != 0;
    sys_close(fd);
    return held;
}

static int look_at(struct store *s, const char *name, bool sweep,
                   int (*row)(void *arg, const char *lease_name, const json_t *lease), void *arg,
                   struct err *err)
{
    char *path = store_join(s, "leases", name, err);
    if (!path)
        return ERR_NO_MEMORY;
    int rc = 0;
    if (is_held(path)) {
        json_t *lease = json_load_file(path, 0, NULL);
        // A live lease that cannot be read might hold anything.
        rc = !lease && file_exists(path)
                 ? err_set(err, ERR_LOCKED, "%s: held, and it does not say what it holds", path)
             : lease ? row(arg, name, lease)
                     : 0;
        json_decref(lease);
    } else if (sweep) {
        sys_unlink(path);
    }
    sys_free(path);
    return rc;
}

int lease_each(struct store *s, bool sweep,
               int (*row)(void *arg, const char *lease_name, const json_t *lease), void *arg,
               struct err *err)
{
    char *folder = store_join(s, "leases", NULL, err), **names = NULL;
    size_t n = 0;
    int rc = folder ? file_list(folder, &names, &n, err) : ERR_NO_MEMORY;
    for (size_t i = 0; !rc && i < n; i++) {
        if (strcmp(names[i], "store.lock") != 0)
            rc = look_at(s, names[i], sweep, row, arg, err);
    }
    file_free_names(names, n);
    sys_free(folder);
    return rc;
}

// ---- work folders ------------------------------------------------------------------------------

int work_open(struct work *w, struct store *s, const char *what, struct err *err)
{
    *w = (struct work){0};
    int rc = lease_open(&w->lease, s, what, NULL, 0, err);
    if (rc)
        return rc;
    w->folder = store_join(s, "tmp", lease_name(w->lease), err);
    if (!w->folder)
        rc = ERR_NO_MEMORY;
    else if (sys_mkdir(w->folder, 0777) != 0)
        rc = err_set_errno(err, errno, "%s: cannot make the folder", w->folder);
    if (rc)
        work_close(w);
    return rc;
}

void work_close(struct work *w)
{
    if (w->folder)
        file_remove_tree(w->folder, NULL);
    sys_free(w->folder);
    lease_close(w->lease);
    *w = (struct work){0};
}
