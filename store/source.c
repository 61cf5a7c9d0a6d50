#include <pthread.h>
#include <string.h>

#include "libcore/adapter/content_id.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"
#include "libcore/format/adapter_file.h"
#include "store/cache.h"
#include "store/object.h"

/*
 * The store's side of the adapter port. It works on files alone (manifests, blobs, cache), never on
 * the index, so that any number of loader threads may ask at once.
 */
struct outside {
    char id[STORE_ID_CHARS + 1];
    char *path;
};

struct store_source {
    struct adapter_source source; // first: the port's handle
    struct store *files;          // a path without an index; NULL: no store
    pthread_mutex_t mutex;        // guards the list of paths
    struct outside *paths;
    size_t n_paths, cap;
};

/* Hashing threads of one load: a few, since several loads run at once. */
static unsigned n_hash_threads(void)
{
    unsigned n = thread_n_processors();
    return n < 4 ? n : 4;
}

/* The path registered for an id, copied; NULL when there is none (or no memory: *rc says). */
static char *find_path(struct store_source *s, const char *id, int *rc)
{
    char *copy = NULL;
    bool found = false;
    pthread_mutex_lock(&s->mutex);
    for (size_t i = 0; i < s->n_paths && !found; i++) {
        found = strcmp(s->paths[i].id, id) == 0;
        if (found)
            copy = sys_strdup(s->paths[i].path);
    }
    pthread_mutex_unlock(&s->mutex);
    *rc = found && !copy ? ERR_NO_MEMORY : 0;
    return copy;
}

static int get_outside(const char *path, const char *id, struct adapter **out, struct err *err)
{
    const struct peft_options opt = {.copy = true}; // the file is the user's, who may overwrite it
    int rc = adapter_file_read(out, path, &opt, err);
    if (!rc)
        rc = content_id_compute(*out, n_hash_threads(), err);
    if (!rc && strcmp((*out)->content_id, id) != 0)
        rc = err_set(err, ERR_REFUSED,
                     "%s: changed since it was offered: content id %.12s, then "
                     "%.12s",
                     path, (*out)->content_id, id);
    if (rc) {
        adapter_free(*out);
        *out = NULL;
    }
    return rc;
}

static int source_get(struct adapter_source *source, const char *id, struct adapter **out,
                      struct err *err)
{
    struct store_source *s = (struct store_source *)source;
    int rc;
    *out = NULL;
    char *path = find_path(s, id, &rc);
    if (rc)
        return err_set(err, rc, "%.12s: no memory", id);
    if (path) {
        rc = get_outside(path, id, out, err);
        sys_free(path);
        return rc;
    }
    if (!s->files)
        return err_set(err, ERR_NOT_FOUND, "%.12s: no such adapter, and no store to look in", id);
    json_t *m;
    rc = manifest_read(s->files, id, &m, err);
    if (rc)
        return rc;
    rc = object_read_adapter(s->files, m, n_hash_threads(), out, err);
    json_decref(m);
    return rc;
}

static int source_pack_size(struct adapter_source *source, const char *id, const char *key,
                            uint64_t *size, struct err *err)
{
    struct store_source *s = (struct store_source *)source;
    return cache_pack_size(s->files->path, id, key, size, err);
}

static int source_pack_read(struct adapter_source *source, const char *id, const char *key,
                            void *dst, uint64_t size, struct err *err)
{
    struct store_source *s = (struct store_source *)source;
    return cache_pack_read(s->files->path, id, key, dst, size, err);
}

static int source_pack_write(struct adapter_source *source, const char *id, const char *key,
                             const void *data, uint64_t size, struct err *err)
{
    struct store_source *s = (struct store_source *)source;
    return cache_pack_write(s->files->path, id, key, data, size, CACHE_CAP_BYTES, err);
}

static void source_close(struct adapter_source *source)
{
    struct store_source *s = (struct store_source *)source;
    if (!s)
        return;
    for (size_t i = 0; i < s->n_paths; i++)
        sys_free(s->paths[i].path);
    sys_free(s->paths);
    if (s->files)
        sys_free(s->files->path);
    sys_free(s->files);
    pthread_mutex_destroy(&s->mutex);
    sys_free(s);
}

static const struct adapter_source_ops with_store = {
    .get = source_get,
    .pack_size = source_pack_size,
    .pack_read = source_pack_read,
    .pack_write = source_pack_write,
    .close = source_close,
};
static const struct adapter_source_ops without_store = {.get = source_get, .close = source_close};

int store_source_open(struct adapter_source **out, struct store *store, struct err *err)
{
    *out = NULL;
    struct store_source *s = sys_calloc(1, sizeof *s);
    if (!s)
        return err_set(err, ERR_NO_MEMORY, "no memory for a source of adapters");
    pthread_mutex_init(&s->mutex, NULL);
    s->source.ops = store ? &with_store : &without_store;
    if (store) {
        s->files = sys_calloc(1, sizeof *s->files);
        if (s->files) {
            s->files->lock_fd = -1;
            s->files->path = sys_strdup(store->path);
        }
        if (!s->files || !s->files->path) {
            source_close(&s->source);
            return err_set(err, ERR_NO_MEMORY, "no memory for a source of adapters");
        }
    }
    *out = &s->source;
    return 0;
}

static int remember(struct store_source *s, const char *id, const char *path, struct err *err)
{
    char *copy = sys_strdup(path);
    int rc = copy ? 0 : ERR_NO_MEMORY;
    pthread_mutex_lock(&s->mutex);
    if (!rc && s->n_paths == s->cap) {
        size_t cap = s->cap ? s->cap * 2 : 16;
        void *more = sys_reallocarray(s->paths, cap, sizeof *s->paths);
        if (more) {
            s->paths = more;
            s->cap = cap;
        } else {
            rc = ERR_NO_MEMORY;
        }
    }
    if (!rc) {
        memcpy(s->paths[s->n_paths].id, id, STORE_ID_CHARS + 1);
        s->paths[s->n_paths++].path = copy;
    }
    pthread_mutex_unlock(&s->mutex);
    if (rc)
        sys_free(copy);
    return rc ? err_set(err, rc, "%s: no memory", path) : 0;
}

int store_source_add_path(struct adapter_source *source, const char *path,
                          char content_id[STORE_ID_CHARS + 1], struct err *err)
{
    struct adapter *a;
    const struct peft_options opt = {.copy = true};
    int rc = adapter_file_read(&a, path, &opt, err);
    if (rc)
        return rc;
    rc = content_id_compute(a, n_hash_threads(), err);
    if (!rc)
        rc = remember((struct store_source *)source, a->content_id, path, err);
    if (!rc)
        memcpy(content_id, a->content_id, STORE_ID_CHARS + 1);
    adapter_free(a);
    return rc;
}
