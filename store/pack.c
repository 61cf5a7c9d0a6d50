#include "store/pack.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "store/blob.h"
#include "store/manifest.h"

static int no_memory(struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "no memory for a pack");
}

// ---- items -------------------------------------------------------------------------------------

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), k = strlen(end);
    return n >= k && strcmp(text + n - k, end) == 0;
}

int pack_items_add(struct pack_items *all, const char *name, const char *from, char *data,
                   uint64_t size, const char *digest, struct err *err)
{
    if (all->n == all->cap) {
        size_t cap = all->cap ? all->cap * 2 : 32;
        struct pack_item *more = sys_reallocarray(all->items, cap, sizeof *more);
        if (!more) {
            sys_free(data);
            return no_memory(err);
        }
        all->items = more;
        all->cap = cap;
    }
    struct pack_item *item = &all->items[all->n++];
    *item = (struct pack_item){.name = sys_strdup(name),
                               .from = from ? sys_strdup(from) : NULL,
                               .data = data,
                               .size = size,
                               .align = ends_with(name, ".safetensors")};
    snprintf(item->digest, sizeof item->digest, "%s", digest ? digest : "");
    return item->name && (item->from || item->data) ? 0 : no_memory(err);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct pack_item *)a)->name, ((const struct pack_item *)b)->name);
}

void pack_items_sort(struct pack_items *all)
{
    if (all->n)
        qsort(all->items, all->n, sizeof *all->items, by_name);
}

const struct pack_item *pack_items_find(const struct pack_items *all, const char *digest)
{
    for (size_t i = 0; i < all->n; i++) {
        if (strcmp(all->items[i].digest, digest) == 0)
            return &all->items[i];
    }
    return NULL;
}

void pack_items_release(struct pack_items *all)
{
    for (size_t i = 0; i < all->n; i++) {
        sys_free(all->items[i].name);
        sys_free(all->items[i].from);
        sys_free(all->items[i].data);
    }
    sys_free(all->items);
    *all = (struct pack_items){0};
}

uint64_t pack_items_bytes(const struct pack_items *all)
{
    uint64_t total = 0;
    for (size_t i = 0; i < all->n; i++)
        total += all->items[i].size;
    return total;
}

char *pack_json(const json_t *value)
{
    char *text = json_dumps(value, JSON_INDENT(1) | JSON_SORT_KEYS), *out = NULL;
    struct strbuf sb;
    strbuf_init(&sb);
    if (text) {
        strbuf_adds(&sb, text);
        strbuf_addc(&sb, '\n');
        out = strbuf_take(&sb, NULL);
    }
    strbuf_release(&sb);
    free(text);
    return out;
}

// ---- records -----------------------------------------------------------------------------------

/* "a/b:v1" is the folder "a+b@v1": no name or tag has either of the two characters. */
void pack_folder_of(const char *name, const char *tag, char *folder, size_t n)
{
    bool latest = strcmp(tag, "latest") == 0;
    snprintf(folder, n, "%s%s%s", name, latest ? "" : "@", latest ? "" : tag);
    for (char *p = folder; *p; p++) {
        if (*p == '/')
            *p = '+';
    }
}

static json_t *files_of(const json_t *manifest, struct err *err)
{
    json_t *files = json_array();
    for (size_t i = 0; i < manifest_n_files(manifest); i++) {
        struct manifest_file f;
        if (manifest_file_at(manifest, i, &f, err) != 0) {
            json_decref(files);
            return NULL;
        }
        json_array_append_new(files, json_pack("{s:s,s:s,s:I}", "path", f.path, "sha256", f.digest,
                                               "size", (json_int_t)f.size));
    }
    if (json_array_size(files) == manifest_n_files(manifest))
        return files;
    json_decref(files);
    no_memory(err);
    return NULL;
}

/* Sorted by digest, as the manifest has them. NULL with err set. */
static json_t *signatures_of(const json_t *manifest, const char *folder, struct err *err)
{
    json_t *all = json_array();
    for (size_t i = 0; i < manifest_n_signatures(manifest); i++) {
        char ignored[MANIFEST_SIGNATURE_PATH_BYTES];
        struct manifest_file f;
        if (manifest_signature_at(manifest, i, &f, ignored, err) != 0) {
            json_decref(all);
            return NULL;
        }
        json_array_append_new(all,
                              json_pack("{s:o,s:s,s:I}", "path",
                                        json_sprintf(PACK_SIGNATURES "%s/%s.sig", folder, f.digest),
                                        "sha256", f.digest, "size", (json_int_t)f.size));
    }
    if (json_array_size(all) == manifest_n_signatures(manifest))
        return all;
    json_decref(all);
    no_memory(err);
    return NULL;
}

/* Only what the content and its names say: nothing of this store, no time. */
static json_t *make_record(const json_t *manifest, const struct store_resolved *r, struct err *err)
{
    static const char *const kept[] = {"architecture", "base",    "dtype",   "format",
                                       "id",           "kind",    "kinds",   "kinds_text",
                                       "layers",       "lineage", "modules", "parameters",
                                       "rank",         "recipe",  "targets"};
    char folder[LIMIT_NAME_BYTES + STORE_TAG_BYTES + 2];
    pack_folder_of(r->name, r->tag, folder, sizeof folder);
    json_t *files = files_of(manifest, err);
    json_t *signatures = files ? signatures_of(manifest, folder, err) : NULL;
    if (!files || !signatures) {
        json_decref(files);
        return NULL;
    }
    json_t *record = json_pack("{s:s,s:s,s:s,s:o}", "name", r->name, "tag", r->tag, "folder",
                               folder, "files", files);
    for (size_t i = 0; record && i < sizeof kept / sizeof *kept; i++) {
        json_t *value = json_object_get(manifest, kept[i]);
        if (value && json_object_set(record, kept[i], value) != 0) {
            json_decref(record);
            record = NULL;
        }
    }
    json_t *ignored = json_object_get(manifest, "ignored_fields");
    if (record && json_array_size(ignored))
        json_object_set(record, "ignored_fields", ignored);
    if (record && json_array_size(signatures))
        json_object_set(record, "signatures", signatures);
    json_decref(signatures);
    if (!record)
        no_memory(err);
    return record;
}

static const char *text_of(const json_t *record, const char *key)
{
    const char *text = json_string_value(json_object_get(record, key));
    return text ? text : "";
}

/* Puts the record where it belongs; one that is there already is dropped. Takes it. */
static int insert_record(json_t *records, json_t *record, struct err *err)
{
    size_t i, n = json_array_size(records);
    const char *folder = text_of(record, "folder");
    for (i = 0; i < n; i++) {
        const json_t *other = json_array_get(records, i);
        int order = strcmp(text_of(other, "folder"), folder);
        if (order > 0)
            break;
        if (order < 0)
            continue;
        int rc = strcmp(text_of(other, "id"), text_of(record, "id")) == 0
                     ? 0
                     : err_set(err, ERR_USAGE, "two of them would be %s in the pack: %.12s, %.12s",
                               folder, text_of(other, "id"), text_of(record, "id"));
        json_decref(record);
        return rc;
    }
    return json_array_insert_new(records, i, record) == 0 ? 0 : no_memory(err);
}

static int add_ref(struct pack_plan *p, const char *ref, struct err *err)
{
    struct store_resolved r;
    json_t *manifest = NULL, *record = NULL;
    int rc = store_resolve(p->s, ref, STORE_ANY, &r, err);
    const char *id = r.id;
    if (!rc)
        rc = lease_add_many(p->lease, p->s, &id, 1, err);
    if (!rc)
        rc = store_manifest(p->s, r.id, &manifest, err);
    if (!rc && !*r.name)
        snprintf(r.name, sizeof r.name, "%s", text_of(manifest, "name"));
    if (!rc && !*r.tag)
        snprintf(r.tag, sizeof r.tag, "latest");
    if (!rc) {
        record = make_record(manifest, &r, err);
        rc = record ? insert_record(p->records, record, err) : ERR_CORRUPT;
        if (!record && err && err->code)
            rc = err->code;
    }
    json_decref(manifest);
    return rc;
}

int pack_plan_open(struct pack_plan *out, struct store *s, const char *const *refs, size_t n_refs,
                   const char *what, struct err *err)
{
    *out = (struct pack_plan){.s = s, .records = json_array()};
    int rc = out->records ? lease_open(&out->lease, s, what, NULL, 0, err) : no_memory(err);
    for (size_t i = 0; !rc && i < n_refs; i++)
        rc = add_ref(out, refs[i], err);
    if (rc)
        pack_plan_release(out);
    return rc;
}

void pack_plan_release(struct pack_plan *p)
{
    lease_close(p->lease);
    json_decref(p->records);
    *p = (struct pack_plan){0};
}

// ---- the pack's files --------------------------------------------------------------------------

int pack_blob_path(const struct pack_plan *p, const json_t *file, char **path, struct err *err)
{
    const char *digest = text_of(file, "sha256");
    uint64_t size = (uint64_t)json_integer_value(json_object_get(file, "size"));
    *path = NULL;
    int rc = blob_check(p->s, digest, size, BLOB_CHECK_SIZE, err);
    if (!rc)
        *path = blob_path(p->s, digest, err);
    return rc ? rc : *path ? 0 : ERR_NO_MEMORY;
}

static int add_blob(const struct pack_plan *p, const json_t *file, const char *name,
                    struct pack_items *out, struct err *err)
{
    char *path = NULL;
    int rc = pack_blob_path(p, file, &path, err);
    if (!rc)
        rc = pack_items_add(out, name, path, NULL,
                            (uint64_t)json_integer_value(json_object_get(file, "size")),
                            text_of(file, "sha256"), err);
    sys_free(path);
    return rc;
}

static int add_files(const struct pack_plan *p, const json_t *record, struct pack_items *out,
                     struct err *err)
{
    size_t i;
    json_t *file;
    int rc = 0;
    json_array_foreach(json_object_get(record, "files"), i, file)
    {
        struct strbuf name;
        strbuf_init(&name);
        strbuf_addf(&name, "adapters/%s/%s", text_of(record, "folder"), text_of(file, "path"));
        if (!rc)
            rc = name.failed ? no_memory(err) : add_blob(p, file, strbuf_text(&name), out, err);
        strbuf_release(&name);
    }
    json_array_foreach(json_object_get(record, "signatures"), i, file)
    {
        if (!rc)
            rc = add_blob(p, file, text_of(file, "path"), out, err);
    }
    return rc;
}

int pack_add_index(json_t *adapters, json_t *bases, int schema, struct pack_items *out,
                   struct err *err)
{
    json_t *index =
        json_pack("{s:i,s:O,s:O}", "schema", schema, "adapters", adapters, "bases", bases);
    char *text = index ? pack_json(index) : NULL;
    struct digest d;
    char hex[DIGEST_HEX_CHARS + 1];
    json_decref(index);
    if (!text)
        return no_memory(err);
    int rc = digest_buffer(text, strlen(text), &d, err);
    if (rc) {
        sys_free(text);
        return rc;
    }
    digest_hex(&d, hex);
    return pack_items_add(out, PACK_INDEX, NULL, text, strlen(text), hex, err);
}

int pack_plan_items(const struct pack_plan *p, struct pack_items *out, struct err *err)
{
    *out = (struct pack_items){0};
    json_t *adapters = json_array(), *bases = json_array(), *record;
    size_t i;
    int rc = adapters && bases ? 0 : no_memory(err);
    json_array_foreach(p->records, i, record)
    {
        bool base = strcmp(text_of(record, "kind"), "base") == 0;
        if (!rc && json_array_append(base ? bases : adapters, record) != 0)
            rc = no_memory(err);
        if (!rc && !base)
            rc = add_files(p, record, out, err);
    }
    if (!rc)
        rc = pack_add_index(adapters, bases, PACK_SCHEMA, out, err);
    json_decref(adapters);
    json_decref(bases);
    pack_items_sort(out);
    if (rc)
        pack_items_release(out);
    return rc;
}
