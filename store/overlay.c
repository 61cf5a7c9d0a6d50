#include "store/overlay.h"

#include <stdio.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "libcore/format/checkpoint.h"
#include "libcore/format/safetensors_writer.h"

struct making {
    const struct overlay_source *from;
    struct checkpoint *model, *base;
    struct pack_items *items;
    json_t *files;
    char prefix[LIMIT_NAME_BYTES + STORE_TAG_BYTES + 16]; // "bases/<folder>/"
    struct err *err;
};

static int no_memory(struct making *m)
{
    return err_set(m->err, ERR_NO_MEMORY, "%s: no memory", m->from->name);
}

static uint64_t bytes_of(const struct safetensors_entry *e)
{
    return e->end - e->begin;
}

// ---- tensors -----------------------------------------------------------------------------------

/* Compared block by block, and the pages let go: both files are larger than memory may be. */
static int same_bytes(struct making *m, const void *a, const void *b, uint64_t n, bool *same)
{
    enum { STEP_BYTES = 4 << 20 };
    const char *x = a, *y = b;
    *same = true;
    for (uint64_t at = 0; *same && at < n; at += STEP_BYTES) {
        size_t k = n - at < STEP_BYTES ? (size_t)(n - at) : STEP_BYTES;
        *same = memcmp(x + at, y + at, k) == 0;
        sys_forget_pages(x + at, k);
        sys_forget_pages(y + at, k);
    }
    int rc = m->from->on_bytes ? m->from->on_bytes(m->from->arg, n) : 0;
    return rc ? err_set(m->err, rc, "%s: interrupted", m->from->name) : 0;
}

static int is_changed(struct making *m, const struct safetensors_entry *e, bool *changed)
{
    const struct checkpoint_tensor *t = checkpoint_find(m->base, e->name);
    *changed = !t || t->value.dtype != e->value.dtype || !tensor_same_shape(&t->value, &e->value);
    if (*changed)
        return 0;
    bool same;
    int rc = same_bytes(m, e->value.data, t->value.data, bytes_of(e), &same);
    *changed = !same;
    return rc;
}

static int put_tensor(struct safetensors_writer *w, const struct safetensors_entry *e,
                      struct err *err)
{
    enum { STEP_BYTES = 4 << 20 };
    const char *data = e->value.data;
    int rc = 0;
    for (uint64_t at = 0, n = bytes_of(e); !rc && at < n; at += STEP_BYTES) {
        uint64_t k = n - at < STEP_BYTES ? n - at : STEP_BYTES;
        rc = safetensors_writer_put(w, e->name, at, data + at, k, err);
        sys_forget_pages(data + at, (size_t)k);
    }
    return rc;
}

/* The changed tensors of a weight file as one of their own, for whoever wants to look at them. */
static int write_changed(struct making *m, const struct safetensors *shard, const bool *changed,
                         const char *path)
{
    struct safetensors_writer *w;
    int rc = safetensors_writer_open(&w, path, m->err);
    size_t n = safetensors_count(shard);
    for (size_t i = 0; !rc && i < n; i++) {
        const struct safetensors_entry *e = safetensors_at(shard, i);
        if (changed[i])
            rc = safetensors_writer_declare(w, e->name, e->value.dtype, e->value.n_dims,
                                            e->value.shape, m->err);
    }
    if (!rc)
        rc = safetensors_writer_begin(w, m->err);
    for (size_t i = 0; !rc && i < n; i++) {
        if (changed[i])
            rc = put_tensor(w, safetensors_at(shard, i), m->err);
    }
    if (!rc)
        rc = safetensors_writer_finish(w, m->err);
    safetensors_writer_free(w);
    return rc;
}

// ---- parts -------------------------------------------------------------------------------------

/* {"path", "sha256", "size"} of what the pack holds under that name, appended to `parts`. */
static int add_part(struct making *m, json_t *parts, const char *name, const char *digest,
                    uint64_t size)
{
    json_t *part =
        json_pack("{s:s,s:s,s:I}", "path", name, "sha256", digest, "size", (json_int_t)size);
    return json_array_append_new(parts, part) == 0 ? 0 : no_memory(m);
}

static int digest_of(const char *path, char hex[DIGEST_HEX_CHARS + 1], uint64_t *size,
                     struct err *err)
{
    struct digest d;
    int rc = digest_file(path, &d, size, err);
    if (!rc)
        digest_hex(&d, hex);
    return rc;
}

static int add_file_part(struct making *m, json_t *parts, const char *name, const char *path)
{
    char hex[DIGEST_HEX_CHARS + 1], full[sizeof m->prefix + LIMIT_NAME_BYTES];
    uint64_t size;
    int rc = digest_of(path, hex, &size, m->err);
    snprintf(full, sizeof full, "%s%.180s", m->prefix, name);
    if (!rc)
        rc = pack_items_add(m->items, full, path, NULL, size, hex, m->err);
    return rc ? rc : add_part(m, parts, name, hex, size);
}

/* The file's header as it is: length, text, padding. */
static int add_header_part(struct making *m, json_t *parts, const char *name,
                           const struct safetensors *shard)
{
    char hex[DIGEST_HEX_CHARS + 1], full[sizeof m->prefix + LIMIT_NAME_BYTES],
        own[LIMIT_NAME_BYTES];
    size_t n = (size_t)safetensors_data_offset(shard);
    struct digest d;
    char *text = sys_malloc(n), *path = file_join(checkpoint_folder(m->model), name);
    int fd = path ? sys_open(path, 0, 0) : -1;
    int rc = text && path ? 0 : no_memory(m);
    if (!rc)
        rc = fd < 0 ? err_set(m->err, ERR_IO, "%s: cannot open", path)
                    : file_pread_all(fd, text, n, 0, path, m->err);
    if (fd >= 0)
        sys_close(fd);
    sys_free(path);
    if (!rc)
        rc = digest_buffer(text, n, &d, m->err);
    if (rc) {
        sys_free(text);
        return rc;
    }
    digest_hex(&d, hex);
    snprintf(own, sizeof own, "%.180s.header", name);
    snprintf(full, sizeof full, "%s%s", m->prefix, own);
    rc = pack_items_add(m->items, full, NULL, text, n, hex, m->err);
    return rc ? rc : add_part(m, parts, own, hex, n);
}

// ---- files -------------------------------------------------------------------------------------

static const struct safetensors *shard_of(const struct checkpoint *c, const char *name)
{
    for (size_t i = 0; i < checkpoint_n_shards(c); i++) {
        if (strcmp(file_base_name(safetensors_path(checkpoint_shard(c, i))), name) == 0)
            return checkpoint_shard(c, i);
    }
    return NULL;
}

static int add_weights(struct making *m, const char *name, json_t *parts)
{
    const struct safetensors *shard = shard_of(m->model, name);
    size_t n = safetensors_count(shard), n_changed = 0;
    bool *changed = sys_calloc(n + 1, sizeof *changed);
    char *path = file_join(m->from->work_folder, name);
    int rc = changed && path ? 0 : no_memory(m);
    for (size_t i = 0; !rc && i < n; i++) {
        rc = is_changed(m, safetensors_at(shard, i), &changed[i]);
        n_changed += changed[i];
    }
    if (!rc)
        rc = add_header_part(m, parts, name, shard);
    if (!rc && n_changed)
        rc = write_changed(m, shard, changed, path);
    if (!rc && n_changed)
        rc = add_file_part(m, parts, name, path);
    sys_free(changed);
    sys_free(path);
    return rc;
}

/* Whether the base has a file of that name and those bytes. */
static bool base_has(const struct making *m, const char *name, const char *digest)
{
    char hex[DIGEST_HEX_CHARS + 1] = "", *path = file_join(m->from->base->folder, name);
    bool same = path && file_exists(path) && digest_of(path, hex, NULL, NULL) == 0 &&
                strcmp(hex, digest) == 0;
    sys_free(path);
    return same;
}

static int add_file(struct making *m, const struct checkpoint_file *f)
{
    char hex[DIGEST_HEX_CHARS + 1], *path = file_join(checkpoint_folder(m->model), f->name);
    json_t *parts = json_array();
    const char *how = f->weights ? "tensors" : "pack";
    int rc = path && parts ? digest_of(path, hex, NULL, m->err) : no_memory(m);
    if (!rc && f->weights)
        rc = add_weights(m, f->name, parts);
    else if (!rc && base_has(m, f->name, hex))
        how = "base";
    else if (!rc)
        rc = add_file_part(m, parts, f->name, path);
    if (!rc) {
        json_t *file = json_pack("{s:s,s:s,s:I,s:s,s:O}", "path", f->name, "sha256", hex, "size",
                                 (json_int_t)f->size, "from", how, "parts", parts);
        rc = json_array_append_new(m->files, file) == 0 ? 0 : no_memory(m);
    }
    json_decref(parts);
    sys_free(path);
    return rc;
}

// ---- the record --------------------------------------------------------------------------------

/* What a merge wrote beside its result says how it was made. */
static json_t *read_recipe(const char *folder)
{
    char *path = file_join(folder, "merge.json"), *text = NULL;
    size_t n;
    json_t *recipe = NULL;
    if (path && file_exists(path) && file_read(path, LIMIT_CONFIG_BYTES, &text, &n, NULL) == 0)
        recipe = json_loadb(text, n, JSON_REJECT_DUPLICATES, NULL);
    sys_free(text);
    sys_free(path);
    return recipe;
}

static int make_record(struct making *m, json_t **record)
{
    const struct overlay_source *from = m->from;
    char folder[LIMIT_NAME_BYTES + STORE_TAG_BYTES + 2];
    pack_folder_of(from->name, from->tag, folder, sizeof folder);
    json_t *r = json_pack("{s:s,s:s,s:s,s:s,s:s,s:s,s:i,s:I,s:[],s:{s:s,s:s,s:O}}", "name",
                          from->name, "tag", from->tag, "folder", folder, "kind", "base", "id",
                          from->model->id, "architecture", from->model->config.arch_name, "layers",
                          (int)from->model->config.n_layers, "parameters",
                          (json_int_t)from->model->n_parameters, "files", "overlay", "of",
                          from->base->id, "of_name", from->base->name, "files", m->files);
    json_t *recipe = r ? read_recipe(checkpoint_folder(m->model)) : NULL;
    if (recipe)
        json_object_set_new(r, "recipe", recipe);
    *record = r;
    return r ? 0 : no_memory(m);
}

static int make_items(struct making *m, json_t **record)
{
    const struct overlay_source *from = m->from;
    char folder[LIMIT_NAME_BYTES + STORE_TAG_BYTES + 2];
    pack_folder_of(from->name, from->tag, folder, sizeof folder);
    snprintf(m->prefix, sizeof m->prefix, "bases/%s/", folder);
    m->files = json_array();
    int rc = m->files ? 0 : no_memory(m);
    for (size_t i = 0; !rc && i < checkpoint_n_files(m->model); i++)
        rc = add_file(m, checkpoint_file_at(m->model, i));
    if (!rc)
        rc = make_record(m, record);
    json_t *none = json_array(), *bases = json_array();
    if (!rc && (!none || !bases || json_array_append(bases, *record) != 0))
        rc = no_memory(m);
    if (!rc)
        rc = pack_add_index(none, bases, PACK_SCHEMA_OVERLAY, m->items, m->err);
    json_decref(none);
    json_decref(bases);
    json_decref(m->files);
    return rc;
}

int overlay_items(const struct overlay_source *from, struct pack_items *out, json_t **record,
                  struct err *err)
{
    struct err own = {0};
    struct making m = {.from = from, .items = out, .err = err ? err : &own};
    *out = (struct pack_items){0};
    *record = NULL;
    if (strcmp(from->model->config.arch_name, from->base->config.arch_name) != 0)
        return err_set(err, ERR_REFUSED, "%s: is a %s, its base %s a %s", from->name,
                       from->model->config.arch_name, from->base->name,
                       from->base->config.arch_name);
    int rc = checkpoint_open(&m.model, from->model->folder, m.err);
    if (!rc)
        rc = checkpoint_open(&m.base, from->base->folder, m.err);
    if (!rc)
        rc = make_items(&m, record);
    checkpoint_free(m.model);
    checkpoint_free(m.base);
    pack_items_sort(out);
    if (rc) {
        pack_items_release(out);
        json_decref(*record);
        *record = NULL;
    }
    return rc;
}
