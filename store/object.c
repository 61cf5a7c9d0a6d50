#include "store/object.h"

#include <string.h>

#include "libcore/adapter/content_id.h"
#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/adapter_file.h"
#include "store/blob.h"
#include "store/cache.h"

bool object_is_reference(const json_t *manifest)
{
    return json_is_string(json_object_get(manifest, "path"));
}

static const char *id_of(const json_t *manifest)
{
    const char *id = json_string_value(json_object_get(manifest, "id"));
    return id ? id : "";
}

// ---- folders -----------------------------------------------------------------------------------

static void free_links(struct cache_link *links, size_t n)
{
    for (size_t i = 0; i < n; i++)
        sys_free((char *)links[i].target);
    sys_free(links);
}

static int fill_links(const struct store *s, const json_t *manifest, struct cache_link *links,
                      size_t n, struct err *err)
{
    for (size_t i = 0; i < n; i++) {
        struct manifest_file f;
        int rc = manifest_file_at(manifest, i, &f, err);
        if (!rc)
            rc = blob_check(s, f.digest, f.size, BLOB_CHECK_SIZE, err);
        if (rc)
            return rc;
        links[i].name = f.path;
        links[i].target = blob_path(s, f.digest, err);
        if (!links[i].target)
            return ERR_NO_MEMORY;
    }
    return 0;
}

int object_link_folder(const struct store *s, const json_t *manifest, char **folder,
                       struct err *err)
{
    *folder = NULL;
    size_t n = manifest_n_files(manifest);
    struct cache_link *links = sys_calloc(n, sizeof *links);
    if (!links)
        return err_set(err, ERR_NO_MEMORY, "%.12s: no memory", id_of(manifest));
    int rc = fill_links(s, manifest, links, n, err);
    if (!rc)
        rc = cache_link_folder(s->path, id_of(manifest), links, n, folder, err);
    free_links(links, n);
    return rc;
}

int object_check_reference(const json_t *manifest, struct err *err)
{
    const char *folder = json_string_value(json_object_get(manifest, "path"));
    for (size_t i = 0; i < manifest_n_files(manifest); i++) {
        struct manifest_file f;
        int rc = manifest_file_at(manifest, i, &f, err);
        char *path = rc ? NULL : file_join(folder, f.path);
        if (!path)
            return rc ? rc : err_set(err, ERR_NO_MEMORY, "%s: no memory", folder);
        struct stat st;
        if (sys_stat(path, &st) != 0)
            rc = err_set(err, ERR_NOT_FOUND, "%s: is gone; the base was imported by reference",
                         path);
        else if ((uint64_t)st.st_size != f.size ||
                 (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec != f.mtime_ns)
            rc = err_set(err, ERR_REFUSED,
                         "%s: changed since the base was imported (%llu bytes, then %llu)", path,
                         (unsigned long long)st.st_size, (unsigned long long)f.size);
        sys_free(path);
        if (rc)
            return rc;
    }
    return 0;
}

int store_base_folder(struct store *s, const char *id, char **folder, struct err *err)
{
    json_t *m;
    *folder = NULL;
    int rc = manifest_read(s, id, &m, err);
    if (rc)
        return rc;
    if (object_is_reference(m)) {
        rc = object_check_reference(m, err);
        *folder = rc ? NULL : sys_strdup(json_string_value(json_object_get(m, "path")));
        if (!rc && !*folder)
            rc = err_set(err, ERR_NO_MEMORY, "%.12s: no memory", id);
    } else {
        rc = object_link_folder(s, m, folder, err);
    }
    json_decref(m);
    return rc;
}

int store_base_digests(struct store *s, const char *id, json_t **out, struct err *err)
{
    json_t *m, *tensor;
    size_t i;
    *out = NULL;
    int rc = manifest_read(s, id, &m, err);
    if (rc)
        return rc;
    json_t *digests = json_object();
    if (!digests)
        rc = err_set(err, ERR_NO_MEMORY, "%.12s: no memory", id);
    json_array_foreach(json_object_get(m, "tensors"), i, tensor)
    {
        const char *name = json_string_value(json_object_get(tensor, "name"));
        json_t *hex = json_object_get(tensor, "sha256");
        if (rc == 0 && (!name || json_object_set(digests, name, hex) != 0))
            rc = err_set(err, ERR_CORRUPT, "%.12s: tensors[%zu] of its manifest", id, i);
    }
    json_decref(m);
    if (rc)
        json_decref(digests);
    else
        *out = digests;
    return rc;
}

int store_file(struct store *s, const char *id, const char *file, char **path, struct err *err)
{
    json_t *m;
    *path = NULL;
    int rc = manifest_read(s, id, &m, err);
    if (rc)
        return rc;
    struct manifest_file f;
    if (!manifest_find_file(m, file, &f)) {
        rc = err_set(err, ERR_NOT_FOUND, "%.12s: has no file %s", id, file);
    } else if (object_is_reference(m)) {
        *path = file_join(json_string_value(json_object_get(m, "path")), f.path);
        rc = *path ? 0 : err_set(err, ERR_NO_MEMORY, "%s: no memory", file);
    } else {
        rc = blob_check(s, f.digest, f.size, BLOB_CHECK_SIZE, err);
        *path = rc ? NULL : blob_path(s, f.digest, err);
        if (!rc && !*path)
            rc = ERR_NO_MEMORY;
    }
    json_decref(m);
    return rc;
}

// ---- adapters ----------------------------------------------------------------------------------

enum { MAX_IGNORED = 64 };

static int read_and_check(const char *folder, const json_t *manifest, unsigned n_threads,
                          struct adapter **out, struct err *err)
{
    const char *ignored[MAX_IGNORED];
    // Values were looked at when it was imported, and the digests say that they are the same.
    struct peft_options opt = {.ignore_fields = ignored, .skip_values = true};
    size_t i;
    json_t *field;
    json_array_foreach(json_object_get(manifest, "ignored_fields"), i, field)
    {
        if (opt.n_ignore_fields < MAX_IGNORED && json_is_string(field))
            ignored[opt.n_ignore_fields++] = json_string_value(field);
    }
    const json_t *heads = json_object_get(manifest, "base_heads");
    opt.n_heads = (uint32_t)json_integer_value(json_array_get(heads, 0));
    opt.n_kv_heads = (uint32_t)json_integer_value(json_array_get(heads, 1));
    int rc = adapter_file_read(out, folder, &opt, err);
    if (!rc)
        rc = content_id_compute(*out, n_threads, err);
    if (!rc && strcmp((*out)->content_id, id_of(manifest)) != 0)
        rc = err_set(err, ERR_CORRUPT, "%s: its content id is %.12s, wanted %.12s", folder,
                     (*out)->content_id, id_of(manifest));
    return rc;
}

int object_read_adapter(const struct store *s, const json_t *manifest, unsigned n_threads,
                        struct adapter **out, struct err *err)
{
    *out = NULL;
    const char *kind = json_string_value(json_object_get(manifest, "kind"));
    if (!kind || strcmp(kind, "adapter") != 0)
        return err_set(err, ERR_REFUSED, "%.12s: is no adapter", id_of(manifest));
    int rc = ERR_NOT_FOUND;
    // Somebody may be deleting the cache, links and all: then they are made once more.
    for (int tries = 0; tries < 2 && rc == ERR_NOT_FOUND; tries++) {
        char *folder;
        err_clear(err);
        rc = object_link_folder(s, manifest, &folder, err);
        if (!rc)
            rc = read_and_check(folder, manifest, n_threads, out, err);
        sys_free(folder);
    }
    if (rc) {
        adapter_free(*out);
        *out = NULL;
    }
    return rc;
}
