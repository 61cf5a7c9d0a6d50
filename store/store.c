#include "store/store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"
#include "store/store_impl.h"

static const char *const folders[] = {"blobs",  "blobs/sha256", "manifests", "refs",
                                      "leases", "tmp",          "cache"};
static const char cache_tag[] = "Signature: 8a477f597d28d172789f06886806bc55\n"
                                "# Everything in this folder can be made again.\n";

char *store_join(const struct store *s, const char *a, const char *b, struct err *err)
{
    struct strbuf sb;
    strbuf_init(&sb);
    strbuf_addf(&sb, "%s/%s%s%s", s->path, a, b ? "/" : "", b ? b : "");
    char *text = strbuf_take(&sb, NULL);
    if (!text)
        err_set(err, ERR_NO_MEMORY, "%s: no memory for a path", s->path);
    return text;
}

const char *store_path(const struct store *s)
{
    return s->path;
}

void store_entry_release(struct store_entry *e)
{
    sys_free(e->memory);
    e->memory = NULL;
}

// ---- durable writes ----------------------------------------------------------------------------

static int write_temporary(const char *tmp, const void *data, size_t size, struct err *err)
{
    int fd = sys_open(tmp, O_WRONLY | O_CREAT | O_EXCL, 0666);
    if (fd < 0)
        return err_set_errno(err, errno, "%s: cannot create", tmp);
    int rc = file_write_all(fd, data, size, tmp, err);
    if (!rc && sys_fsync(fd) != 0)
        rc = err_set_errno(err, errno, "%s: cannot sync", tmp);
    if (sys_close(fd) != 0 && !rc)
        rc = err_set_errno(err, errno, "%s: cannot close", tmp);
    return rc;
}

int store_write_file(struct store *s, const char *folder, const char *name, const void *data,
                     size_t size, struct err *err)
{
    static unsigned counter;
    char tmp_name[64];
    snprintf(tmp_name, sizeof tmp_name, "file-%ld-%llx-%u", (long)getpid(),
             (unsigned long long)thread_unix_ns(),
             __atomic_add_fetch(&counter, 1, __ATOMIC_RELAXED));
    char *tmp = store_join(s, "tmp", tmp_name, err), *to = NULL;
    char *parent = tmp ? store_join(s, folder, NULL, err) : NULL;
    to = parent ? store_join(s, folder, name, err) : NULL;
    int rc = to ? write_temporary(tmp, data, size, err) : ERR_NO_MEMORY;
    if (!rc && sys_rename(tmp, to) != 0)
        rc = err_set_errno(err, errno, "%s: cannot rename to it", to);
    if (rc && tmp)
        sys_unlink(tmp);
    if (!rc)
        rc = file_sync_folder(parent, err);
    sys_free(tmp);
    sys_free(parent);
    sys_free(to);
    return rc;
}

/* jansson 2.14 may hand out a torn text when memory runs out inside json_dumps(), without a word
 * (found by failing every allocation); so what will be written is read back first. */
static char *dump_whole(const json_t *root)
{
    char *text = json_dumps(root, JSON_INDENT(1));
    json_t *back = text ? json_loads(text, 0, NULL) : NULL;
    bool whole = back && json_equal(back, root);
    json_decref(back);
    if (whole)
        return text;
    free(text);
    return NULL;
}

int store_write_json(struct store *s, const char *folder, const char *name, const json_t *root,
                     struct err *err)
{
    char *text = root ? dump_whole(root) : NULL;
    if (!text)
        return err_set(err, ERR_NO_MEMORY, "%s/%s: no memory to write it", folder, name);
    int rc = store_write_file(s, folder, name, text, strlen(text), err);
    free(text);
    return rc;
}

int store_make_folder(struct store *s, const char *folder, struct err *err)
{
    char *path = store_join(s, folder, NULL, err);
    if (!path)
        return ERR_NO_MEMORY;
    int rc = 0;
    if (sys_mkdir(path, 0777) == 0) {
        char *parent = file_dir_name(path);
        rc = parent ? file_sync_folder(parent, err)
                    : err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
        sys_free(parent);
    } else if (errno != EEXIST) {
        rc = err_set_errno(err, errno, "%s: cannot make the folder", path);
    }
    sys_free(path);
    return rc;
}

int store_remove_file(struct store *s, const char *folder, const char *name, struct err *err)
{
    char *path = store_join(s, folder, name, err);
    if (!path)
        return ERR_NO_MEMORY;
    int rc = 0;
    if (sys_unlink(path) != 0 && errno != ENOENT)
        rc = err_set_errno(err, errno, "%s: cannot remove", path);
    sys_free(path);
    return rc;
}

// ---- opening -----------------------------------------------------------------------------------

static int check_format(struct store *s, struct err *err)
{
    char *path = store_join(s, "lora-store.json", NULL, err), *text = NULL;
    if (!path)
        return ERR_NO_MEMORY;
    size_t n;
    int rc = file_read(path, LIMIT_CONFIG_BYTES, &text, &n, err);
    json_t *root = rc ? NULL : json_loadb(text, n, 0, NULL);
    json_int_t format = json_integer_value(json_object_get(root, "format"));
    if (rc == ERR_NOT_FOUND)
        rc = err_set(err, ERR_NO_STORE, "%s: no store there", s->path);
    else if (!rc && format <= 0)
        rc = err_set(err, ERR_CORRUPT, "%s: not a store's file, wanted {\"format\": %d}", path,
                     STORE_FORMAT);
    else if (!rc && format > STORE_FORMAT)
        rc = err_set(err, ERR_REFUSED, "%s: format %lld, this program knows up to %d", path,
                     (long long)format, STORE_FORMAT);
    json_decref(root);
    sys_free(text);
    sys_free(path);
    return rc;
}

static bool belongs_to_store(const char *name)
{
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        if (strcmp(name, folders[i]) == 0)
            return true;
    }
    return strncmp(name, "index.db", 8) == 0 || strcmp(name, "lora-store.json") == 0;
}

/* A folder may become a store when it is new, empty, or what an interrupted creation left. */
static int check_room(const char *path, struct err *err)
{
    char **names;
    size_t n;
    int rc = file_list(path, &names, &n, err);
    if (rc)
        return rc;
    for (size_t i = 0; !rc && i < n; i++) {
        if (!belongs_to_store(names[i]))
            rc = err_set(err, ERR_REFUSED, "%s: no store, and not empty (%s is in it)", path,
                         names[i]);
    }
    file_free_names(names, n);
    return rc;
}

/* Makes what is missing, the marker last: without it the folder is no store. Under the lock. */
static int create_inside(struct store *s, struct err *err)
{
    int rc = check_format(s, NULL);
    if (rc != ERR_NO_STORE)
        return rc ? check_format(s, err) : 0; // somebody was quicker
    rc = check_room(s->path, err);
    for (size_t i = 0; !rc && i < sizeof folders / sizeof *folders; i++)
        rc = store_make_folder(s, folders[i], err);
    if (!rc)
        rc = store_write_file(s, "cache", "CACHEDIR.TAG", cache_tag, strlen(cache_tag), err);
    char *path = rc ? NULL : store_join(s, "index.db", NULL, err);
    struct index *index = NULL;
    if (!rc)
        rc = path ? index_open(&index, path, true, s->lock_timeout_ms, err) : ERR_NO_MEMORY;
    index_close(index);
    sys_free(path);
    char text[128];
    int n =
        snprintf(text, sizeof text, "{\"format\": %d, \"created\": %llu, \"program\": \"lora\"}\n",
                 STORE_FORMAT, (unsigned long long)(thread_unix_ns() / 1000000000u));
    if (!rc)
        rc = store_write_file(s, ".", "lora-store.json", text, (size_t)n, err);
    return rc;
}

static int create(struct store *s, struct err *err)
{
    int rc = file_make_folders(s->path, err);
    if (!rc)
        rc = check_room(s->path, err);
    // The lock's own folder comes first; mkdir settles a race by itself.
    if (!rc)
        rc = store_make_folder(s, "leases", err);
    if (!rc)
        rc = store_lock(s, "create", err);
    if (rc)
        return rc;
    rc = create_inside(s, err);
    store_unlock(s);
    return rc;
}

static int open_index(struct store *s, struct err *err)
{
    char *path = store_join(s, "index.db", NULL, err);
    if (!path)
        return ERR_NO_MEMORY;
    int rc;
    if (file_exists(path))
        rc = index_open(&s->index, path, false, s->lock_timeout_ms, err);
    else
        rc = err_set(err, ERR_CORRUPT, "%s: missing; it can be rebuilt: lora fsck --repair", path);
    sys_free(path);
    return rc;
}

/* Links in the cache point into the store, so its path must hold from anywhere. */
static int make_absolute(struct store *s, struct err *err)
{
    char *path = file_real_path(s->path, err);
    if (!path)
        return err ? err->code : ERR_FAIL;
    sys_free(s->path);
    s->path = path;
    return 0;
}

static int open_store(struct store **out, const char *path, const struct store_options *opt,
                      bool repair, struct err *err)
{
    *out = NULL;
    struct store *s = sys_calloc(1, sizeof *s);
    if (!s)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
    s->lock_fd = -1;
    s->lock_timeout_ms = opt && opt->lock_timeout_ms ? opt->lock_timeout_ms : STORE_LOCK_TIMEOUT_MS;
    s->path = sys_strdup(path);
    int rc = s->path ? check_format(s, err) : err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
    if (rc == ERR_NO_STORE && opt && opt->create) {
        err_clear(err);
        rc = create(s, err);
    }
    if (!rc)
        rc = make_absolute(s, err);
    if (!rc) {
        rc = open_index(s, err);
        if (rc == ERR_CORRUPT && repair) {
            err_clear(err);
            rc = 0;
        }
    }
    if (rc) {
        store_close(s);
        return rc;
    }
    *out = s;
    return 0;
}

int store_open(struct store **out, const char *path, const struct store_options *opt,
               struct err *err)
{
    return open_store(out, path, opt, false, err);
}

int store_open_for_repair(struct store **out, const char *path, const struct store_options *opt,
                          struct err *err)
{
    return open_store(out, path, opt, true, err);
}

void store_close(struct store *s)
{
    if (!s)
        return;
    index_close(s->index);
    if (s->lock_fd >= 0)
        sys_close(s->lock_fd);
    sys_free(s->path);
    sys_free(s);
}

int store_get(struct store *s, const char *id, struct store_entry *out, struct err *err)
{
    return index_get_object(s->index, id, out, err);
}

int store_list(struct store *s, const struct store_query *q,
               int (*row)(void *arg, const struct store_entry *e), void *arg, struct err *err)
{
    return index_list(s->index, q, row, arg, err);
}

int store_check_base(struct store *s, const char *id, const char *base_id, struct err *err)
{
    struct store_entry e;
    bool has;
    int rc = index_has_base(s->index, id, base_id, &has, err);
    if (rc || has)
        return rc;
    rc = store_get(s, id, &e, err);
    if (!rc && *e.base_id)
        rc = err_set(err, ERR_REFUSED, "%s: is recorded for base %.12s, wanted base %.12s",
                     *e.name ? e.name : e.id, e.base_id, base_id);
    store_entry_release(&e);
    return rc;
}
