#include "store/manifest.h"

#include <stdio.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"

static int no_memory(struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "no memory for a manifest");
}

// ---- files -------------------------------------------------------------------------------------

int manifest_add_file(json_t *manifest, const char *path, const char *digest, uint64_t size,
                      int64_t mtime_ns, struct err *err)
{
    json_t *file =
        json_pack("{s:s,s:s,s:I}", "path", path, "sha256", digest, "size", (json_int_t)size);
    if (file && mtime_ns)
        json_object_set_new(file, "mtime_ns", json_integer(mtime_ns));
    if (!file || json_array_append_new(json_object_get(manifest, "files"), file) != 0)
        return no_memory(err);
    return 0;
}

int manifest_seal(json_t *manifest, struct err *err)
{
    json_int_t total = 0;
    size_t i;
    json_t *file;
    json_array_foreach(json_object_get(manifest, "files"), i, file)
    {
        total += json_integer_value(json_object_get(file, "size"));
    }
    json_t *bytes = json_object_get(manifest, "bytes");
    return json_object_set_new(bytes, "disk", json_integer(total)) == 0 ? 0 : no_memory(err);
}

size_t manifest_n_files(const json_t *manifest)
{
    return json_array_size(json_object_get(manifest, "files"));
}

/* A path inside an object: relative, no "..": export joins it to a folder. */
static bool is_inside(const char *path)
{
    if (!*path || *path == '/')
        return false;
    for (const char *p = path; p; p = strchr(p, '/')) {
        p += *p == '/';
        size_t n = strcspn(p, "/");
        if (n == 0 || (n == 1 && p[0] == '.') || (n == 2 && p[0] == '.' && p[1] == '.'))
            return false;
    }
    return true;
}

int manifest_file_at(const json_t *manifest, size_t i, struct manifest_file *out, struct err *err)
{
    const json_t *f = json_array_get(json_object_get(manifest, "files"), i);
    const json_t *size = json_object_get(f, "size"), *mtime = json_object_get(f, "mtime_ns");
    out->path = json_string_value(json_object_get(f, "path"));
    out->digest = json_string_value(json_object_get(f, "sha256"));
    struct digest d;
    if (!out->path || !is_inside(out->path) || !out->digest ||
        (*out->digest && !digest_parse(out->digest, &d)) || !json_is_integer(size) ||
        json_integer_value(size) < 0 || (mtime && !json_is_integer(mtime)))
        return err_set(err, ERR_CORRUPT, "manifest %.12s: entry %zu of \"files\" is off",
                       json_string_value(json_object_get(manifest, "id")), i);
    out->size = (uint64_t)json_integer_value(size);
    out->mtime_ns = json_integer_value(mtime);
    return 0;
}

bool manifest_find_file(const json_t *manifest, const char *path, struct manifest_file *out)
{
    for (size_t i = 0; i < manifest_n_files(manifest); i++) {
        if (manifest_file_at(manifest, i, out, NULL) == 0 && strcmp(out->path, path) == 0)
            return true;
    }
    return false;
}

// ---- signatures --------------------------------------------------------------------------------

static const json_t *signatures_of(const json_t *manifest)
{
    return json_object_get(manifest, "signatures");
}

size_t manifest_n_signatures(const json_t *manifest)
{
    return json_array_size(signatures_of(manifest));
}

const char *manifest_signature_key(const json_t *manifest, size_t i)
{
    const char *key =
        json_string_value(json_object_get(json_array_get(signatures_of(manifest), i), "key"));
    return key ? key : "";
}

int manifest_signature_at(const json_t *manifest, size_t i, struct manifest_file *out,
                          char path[MANIFEST_SIGNATURE_PATH_BYTES], struct err *err)
{
    const json_t *entry = json_array_get(signatures_of(manifest), i),
                 *size = json_object_get(entry, "size");
    const char *text = json_string_value(json_object_get(entry, "sha256"));
    struct digest d;
    if (!text || strlen(text) != STORE_ID_CHARS || !digest_parse(text, &d) ||
        !json_is_integer(size) || json_integer_value(size) < 0)
        return err_set(err, ERR_CORRUPT, "manifest %.12s: entry %zu of \"signatures\" is off",
                       json_string_value(json_object_get(manifest, "id")), i);
    snprintf(path, MANIFEST_SIGNATURE_PATH_BYTES, "signature:%.64s", text);
    *out = (struct manifest_file){
        .path = path, .digest = text, .size = (uint64_t)json_integer_value(size)};
    return 0;
}

int manifest_add_signature(json_t *manifest, const char *digest, uint64_t size, const char *key,
                           bool *added, struct err *err)
{
    json_t *all = json_object_get(manifest, "signatures"), *other;
    size_t i, at = 0;
    *added = false;
    if (!all && json_object_set_new(manifest, "signatures", json_array()) == 0)
        all = json_object_get(manifest, "signatures");
    json_array_foreach(all, i, other)
    {
        const char *text = json_string_value(json_object_get(other, "sha256"));
        int order = strcmp(text ? text : "", digest);
        if (order == 0)
            return 0;
        at += order < 0;
    }
    if (json_array_size(all) >= LIMIT_SIGNATURES)
        return err_set(err, ERR_LIMIT, "%.12s: has %d signatures, no more are kept",
                       json_string_value(json_object_get(manifest, "id")), LIMIT_SIGNATURES);
    *added = true;
    return json_array_insert_new(all, at,
                                 json_pack("{s:s,s:I,s:s}", "sha256", digest, "size",
                                           (json_int_t)size, "key", key)) == 0
               ? 0
               : no_memory(err);
}

// ---- reading and writing -----------------------------------------------------------------------

static void file_name(const char *id, char name[STORE_ID_CHARS + 8])
{
    snprintf(name, STORE_ID_CHARS + 8, "%.64s.json", id);
}

int manifest_read(struct store *s, const char *id, json_t **out, struct err *err)
{
    char name[STORE_ID_CHARS + 8];
    file_name(id, name);
    *out = NULL;
    char *path = store_join(s, "manifests", name, err), *text = NULL;
    size_t n;
    int rc = path ? file_read(path, LIMIT_CONFIG_BYTES, &text, &n, err) : ERR_NO_MEMORY;
    json_error_t why = {0};
    json_t *m = rc ? NULL : json_loadb(text, n, JSON_REJECT_DUPLICATES, &why);
    const char *got = json_string_value(json_object_get(m, "id"));
    if (rc == ERR_NOT_FOUND)
        err_set(err, rc, "manifest %.12s: missing (%s)", id, path);
    else if (!rc && !m)
        rc = err_set(err, ERR_CORRUPT, "%s: %s", path, why.text);
    else if (!rc && (!got || strcmp(got, id) != 0))
        rc = err_set(err, ERR_CORRUPT, "%s: it is the manifest of %s", path, got ? got : "nothing");
    if (rc)
        json_decref(m);
    else
        *out = m;
    sys_free(text);
    sys_free(path);
    return rc;
}

int manifest_write(struct store *s, const char *id, const json_t *manifest, struct err *err)
{
    char name[STORE_ID_CHARS + 8];
    file_name(id, name);
    return store_write_json(s, "manifests", name, manifest, err);
}

int store_manifest(struct store *s, const char *id, json_t **out, struct err *err)
{
    return manifest_read(s, id, out, err);
}

// ---- into the index ----------------------------------------------------------------------------

static int bad_field(const json_t *m, const char *field, struct err *err)
{
    const char *id = json_string_value(json_object_get(m, "id"));
    return err_set(err, ERR_CORRUPT, "manifest %.12s: field \"%s\" is missing or off",
                   id ? id : "?", field);
}

int manifest_entry(const json_t *m, struct store_entry *e, struct err *err)
{
    memset(e, 0, sizeof *e);
    const json_t *base = json_object_get(m, "base"), *bytes = json_object_get(m, "bytes"),
                 *rank = json_object_get(m, "rank");
    const char *kind = json_string_value(json_object_get(m, "kind"));
    if (!kind || (strcmp(kind, "adapter") != 0 && strcmp(kind, "base") != 0))
        return bad_field(m, "kind", err);
    e->kind = strcmp(kind, "base") == 0 ? STORE_BASE : STORE_ADAPTER;
    e->name = e->tags = "";
    const struct {
        const char **to;
        const json_t *from;
        const char *field;
        bool optional;
    } texts[] = {
        {&e->id, m, "id", false},
        {&e->base_id, base, "fingerprint", true},
        {&e->base_name, base, "name", true},
        {&e->format, m, "format", false},
        {&e->arch, m, "architecture", true},
        {&e->path, m, "path", true},
        {&e->dtype, m, "dtype", false},
        {&e->targets, m, "targets", true},
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        const char *text = json_string_value(json_object_get(texts[i].from, texts[i].field));
        if (!text && !texts[i].optional)
            return bad_field(m, texts[i].field, err);
        *texts[i].to = text ? text : "";
    }
    const struct {
        uint64_t *to64;
        uint32_t *to32;
        const json_t *value;
        const char *field;
    } numbers[] = {
        {NULL, &e->kinds, json_object_get(m, "kinds"), "kinds"},
        {NULL, &e->min_rank, json_array_get(rank, 0), "rank"},
        {NULL, &e->max_rank, json_array_get(rank, 1), "rank"},
        {NULL, &e->n_layers, json_object_get(m, "layers"), "layers"},
        {NULL, &e->n_modules, json_object_get(m, "modules"), "modules"},
        {&e->n_parameters, NULL, json_object_get(m, "parameters"), "parameters"},
        {&e->disk_bytes, NULL, json_object_get(bytes, "disk"), "bytes"},
        {&e->host_bytes, NULL, json_object_get(bytes, "host"), "bytes"},
        {&e->device_bytes, NULL, json_object_get(bytes, "device"), "bytes"},
        {&e->created, NULL, json_object_get(m, "created"), "created"},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        bool adapter_only = i < 3;
        if (!json_is_integer(numbers[i].value) && !(adapter_only && e->kind == STORE_BASE))
            return bad_field(m, numbers[i].field, err);
        json_int_t v = json_integer_value(numbers[i].value);
        if (v < 0 || (numbers[i].to32 && v > UINT32_MAX))
            return bad_field(m, numbers[i].field, err);
        if (numbers[i].to64)
            *numbers[i].to64 = (uint64_t)v;
        else
            *numbers[i].to32 = (uint32_t)v;
    }
    e->n_signatures = (uint32_t)manifest_n_signatures(m);
    return 0;
}

static int index_bases(struct store *s, const json_t *manifest, const struct store_entry *e,
                       struct err *err)
{
    size_t i;
    json_t *other;
    int rc = *e->base_id ? index_put_base(s->index, e->id, e->base_id, err) : 0;
    json_array_foreach(json_object_get(json_object_get(manifest, "base"), "also"), i, other)
    {
        if (!rc && json_is_string(other))
            rc = index_put_base(s->index, e->id, json_string_value(other), err);
    }
    return rc;
}

int manifest_index(struct store *s, const json_t *manifest, struct err *err)
{
    struct store_entry e;
    int rc = manifest_entry(manifest, &e, err);
    if (!rc)
        rc = index_delete_object(s->index, e.id, err);
    if (!rc)
        rc = index_put_object(s->index, &e, err);
    if (!rc)
        rc = index_bases(s, manifest, &e, err);
    for (size_t i = 0; !rc && i < manifest_n_files(manifest); i++) {
        struct manifest_file f;
        rc = manifest_file_at(manifest, i, &f, err);
        if (!rc)
            rc = index_put_file(s->index, e.id, f.path, f.digest, f.size, err);
    }
    for (size_t i = 0; !rc && i < manifest_n_signatures(manifest); i++) {
        char path[MANIFEST_SIGNATURE_PATH_BYTES];
        struct manifest_file f;
        rc = manifest_signature_at(manifest, i, &f, path, err);
        if (!rc)
            rc = index_put_file(s->index, e.id, f.path, f.digest, f.size, err);
    }
    return rc;
}
