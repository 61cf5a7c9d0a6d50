#include "store/oci.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"

#define MODEL_TYPE  "application/vnd.cncf.model.manifest.v1+json"
#define CONFIG_TYPE "application/vnd.cncf.model.config.v1+json"
#define IMAGE_TYPE  "application/vnd.oci.image.config.v1+json"
#define EMPTY_TYPE  "application/vnd.oci.empty.v1+json"
#define LAYER_TYPE  "application/vnd.cncf.model."
#define EPOCH       "1970-01-01T00:00:00Z"
#define OURS        "vnd.lora."
#define FILEPATH    "org.cncf.model.filepath"
#define TITLE       "org.opencontainers.image.title"

static int no_memory(struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "no memory for an image");
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

int oci_compat_parse(const char *text, enum oci_compat *out, struct err *err)
{
    static const char *const names[] = {"model", "image", "empty"};
    *out = OCI_MODEL;
    for (int i = 0; text && i < 3; i++) {
        if (strcmp(text, names[i]) == 0) {
            *out = (enum oci_compat)i;
            return 0;
        }
    }
    return text ? err_set(err, ERR_USAGE, "'%s': wanted model, image or empty", text) : 0;
}

// ---- blobs -------------------------------------------------------------------------------------

static bool has_blob(const struct pack_items *items, const char *digest)
{
    for (size_t i = 0; i < items->n; i++) {
        if (strcmp(items->items[i].digest, digest) == 0)
            return true;
    }
    return false;
}

/* Adds bytes (taken) as a blob, once. digest receives their digest. */
static int add_text(struct pack_items *items, char *text, char digest[STORE_ID_CHARS + 1],
                    struct err *err)
{
    struct digest d;
    char name[32 + STORE_ID_CHARS];
    if (!text)
        return no_memory(err);
    size_t n = strlen(text);
    int rc = digest_buffer(text, n, &d, err);
    if (!rc)
        digest_hex(&d, digest);
    if (rc || has_blob(items, digest)) {
        sys_free(text);
        return rc;
    }
    snprintf(name, sizeof name, "blobs/sha256/%s", digest);
    return pack_items_add(items, name, NULL, text, n, digest, err);
}

static int add_file(const struct pack_plan *p, struct pack_items *items, const json_t *file,
                    struct err *err)
{
    char name[32 + STORE_ID_CHARS], *path = NULL;
    const char *digest = text_of(file, "sha256");
    if (has_blob(items, digest))
        return 0;
    int rc = pack_blob_path(p, file, &path, err);
    snprintf(name, sizeof name, "blobs/sha256/%.64s", digest);
    if (!rc)
        rc = pack_items_add(items, name, path, NULL,
                            (uint64_t)json_integer_value(json_object_get(file, "size")), digest,
                            err);
    sys_free(path);
    return rc;
}

static json_t *digest_text(const char *hex)
{
    return json_sprintf("sha256:%.64s", hex);
}

static json_t *descriptor(const char *type, const char *digest, uint64_t size)
{
    return json_pack("{s:s,s:o,s:I}", "mediaType", type, "digest", digest_text(digest), "size",
                     (json_int_t)size);
}

// ---- one manifest ------------------------------------------------------------------------------

static const char *layer_type(const char *path)
{
    const char *base = file_base_name(path);
    size_t n = strlen(base);
    if (n > 12 && strcmp(base + n - 12, ".safetensors") == 0)
        return LAYER_TYPE "weight.v1.raw";
    if (strcmp(base, "README.md") == 0 || strncmp(base, "LICENSE", 7) == 0)
        return LAYER_TYPE "doc.v1.raw";
    return LAYER_TYPE "weight.config.v1.raw";
}

static json_t *layers_of(const json_t *record)
{
    json_t *layers = json_array(), *file;
    size_t i;
    json_array_foreach(json_object_get(record, "files"), i, file)
    {
        const char *path = text_of(file, "path");
        json_t *layer = descriptor(layer_type(path), text_of(file, "sha256"),
                                   (uint64_t)json_integer_value(json_object_get(file, "size")));
        json_object_set_new(layer, "annotations",
                            json_pack("{s:s,s:s}", FILEPATH, path, TITLE, path));
        json_array_append_new(layers, layer);
    }
    return layers;
}

static json_t *diff_ids(const json_t *record)
{
    json_t *ids = json_array(), *file;
    size_t i;
    json_array_foreach(json_object_get(record, "files"), i, file)
    {
        json_array_append_new(ids, digest_text(text_of(file, "sha256")));
    }
    return ids;
}

static json_t *config_of(const json_t *record, enum oci_compat compat)
{
    if (compat == OCI_EMPTY)
        return json_object();
    if (compat == OCI_IMAGE)
        return json_pack("{s:s,s:s,s:s,s:{},s:{s:s,s:o}}", "created", EPOCH, "architecture",
                         "amd64", "os", "linux", "config", "rootfs", "type", "layers", "diff_ids",
                         diff_ids(record));
    return json_pack("{s:{s:s,s:s},s:{s:s,s:s},s:{s:s,s:o}}", "descriptor", "name",
                     text_of(record, "name"), "createdAt", EPOCH, "config", "format", "safetensors",
                     "precision", text_of(record, "dtype"), "modelfs", "type", "layers", "diffIds",
                     diff_ids(record));
}

/* The record without what the layers say already, as one annotation, so that it comes back whole;
 * the important parts also each in its own, for people and other tools. */
static json_t *annotations_of(const json_t *record)
{
    json_t *rest = json_copy((json_t *)record), *base = json_object_get(record, "base");
    json_object_del(rest, "files");
    json_object_del(rest, "signatures"); // they refer to the image, and may come later
    json_object_del(rest, "folder");
    char *text = rest ? json_dumps(rest, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
    json_t *a = text ? json_pack("{s:s,s:s,s:s,s:s,s:o,s:s}", "org.opencontainers.image.created",
                                 EPOCH, TITLE, text_of(record, "name"), OURS "adapter.name",
                                 text_of(record, "name"), OURS "adapter.kind", "lora",
                                 OURS "adapter.content-id", digest_text(text_of(record, "id")),
                                 OURS "adapter.record", text)
                     : NULL;
    if (a && *text_of(base, "name"))
        json_object_set_new(a, OURS "base.name", json_string(text_of(base, "name")));
    if (a && *text_of(base, "fingerprint"))
        json_object_set_new(a, OURS "base.fingerprint", digest_text(text_of(base, "fingerprint")));
    free(text);
    json_decref(rest);
    return a;
}

static int add_manifest(struct pack_items *items, const json_t *record, enum oci_compat compat,
                        struct oci_top *top, struct err *err)
{
    static const char *const types[] = {CONFIG_TYPE, IMAGE_TYPE, EMPTY_TYPE};
    char config_digest[STORE_ID_CHARS + 1];
    json_t *config = config_of(record, compat);
    char *text = config ? json_dumps(config, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
    uint64_t config_size = text ? strlen(text) : 0;
    int rc = add_text(items, text ? sys_strdup(text) : NULL, config_digest, err);
    free(text);
    json_decref(config);
    if (rc)
        return rc;
    json_t *m =
        json_pack("{s:i,s:s,s:o,s:o,s:o}", "schemaVersion", 2, "mediaType", OCI_MANIFEST_TYPE,
                  "config", descriptor(types[compat], config_digest, config_size), "layers",
                  layers_of(record), "annotations", annotations_of(record));
    if (m && compat != OCI_IMAGE)
        json_object_set_new(m, "artifactType", json_string(MODEL_TYPE));
    text = m ? pack_json(m) : NULL;
    json_decref(m);
    *top = (struct oci_top){.size = text ? strlen(text) : 0, .media_type = OCI_MANIFEST_TYPE};
    return add_text(items, text, top->digest, err);
}

// ---- signatures --------------------------------------------------------------------------------

#define BUNDLE_CONTENT   "dev.sigstore.bundle.content"
#define BUNDLE_PREDICATE "dev.sigstore.bundle.predicateType"

static json_t *signature_notes(void)
{
    return json_pack("{s:s,s:s,s:s}", "org.opencontainers.image.created", EPOCH, BUNDLE_CONTENT,
                     "dsse-envelope", BUNDLE_PREDICATE, "https://model_signing/signature/v1.0");
}

/* As cosign and sigstore's other tools refer to an image. */
static int add_signature(const struct pack_plan *p, const json_t *file, enum oci_compat compat,
                         const struct oci_top *subject, struct pack_items *items, json_t *referrers,
                         struct err *err)
{
    char config[STORE_ID_CHARS + 1], digest[STORE_ID_CHARS + 1];
    static const char image_config[] =
        "{\"architecture\":\"amd64\",\"config\":{},\"created\":\"" EPOCH
        "\",\"os\":\"linux\",\"rootfs\":{\"diff_ids\":[],\"type\":\"layers\"}}";
    const char *text = compat == OCI_IMAGE ? image_config : "{}";
    int rc = add_file(p, items, file, err);
    if (!rc)
        rc = add_text(items, sys_strdup(text), config, err);
    if (rc)
        return rc;
    json_t *m = json_pack(
        "{s:i,s:s,s:o,s:[o],s:o,s:o}", "schemaVersion", 2, "mediaType", OCI_MANIFEST_TYPE, "config",
        descriptor(compat == OCI_IMAGE ? IMAGE_TYPE : EMPTY_TYPE, config, strlen(text)), "layers",
        descriptor(OCI_SIGNATURE_TYPE, text_of(file, "sha256"),
                   (uint64_t)json_integer_value(json_object_get(file, "size"))),
        "subject", descriptor(subject->media_type, subject->digest, subject->size), "annotations",
        signature_notes());
    if (m && compat != OCI_IMAGE)
        json_object_set_new(m, "artifactType", json_string(OCI_SIGNATURE_TYPE));
    char *json = m ? pack_json(m) : NULL;
    uint64_t size = json ? strlen(json) : 0;
    json_decref(m);
    rc = add_text(items, json, digest, err);
    json_t *d = rc ? NULL : descriptor(OCI_MANIFEST_TYPE, digest, size);
    if (rc)
        return rc;
    json_object_set_new(d, "artifactType",
                        json_string(compat == OCI_IMAGE ? IMAGE_TYPE : OCI_SIGNATURE_TYPE));
    json_object_set_new(d, "annotations", signature_notes());
    json_object_set_new(d, "subject", json_string(subject->digest));
    return json_array_append_new(referrers, d) == 0 ? 0 : no_memory(err);
}

// ---- all of them -------------------------------------------------------------------------------

static int add_adapter(const struct pack_plan *p, const json_t *record, enum oci_compat compat,
                       struct pack_items *items, json_t *manifests, json_t *referrers,
                       json_t *index, struct oci_top *top, struct err *err)
{
    size_t i;
    json_t *file;
    if (strcmp(text_of(record, "kind"), "adapter") != 0)
        return err_set(err, ERR_REFUSED,
                       "%s: is a base; an image holds adapters, and names their "
                       "base",
                       text_of(record, "name"));
    json_array_foreach(json_object_get(record, "files"), i, file)
    {
        int rc = add_file(p, items, file, err);
        if (rc)
            return rc;
    }
    int rc = add_manifest(items, record, compat, top, err);
    json_array_foreach(json_object_get(record, "signatures"), i, file)
    {
        rc = rc ? rc : add_signature(p, file, compat, top, items, referrers, err);
    }
    if (rc)
        return rc;
    json_t *d = descriptor(OCI_MANIFEST_TYPE, top->digest, top->size);
    json_object_set_new(d, "annotations",
                        json_pack("{s:s,s:o}", TITLE, text_of(record, "folder"),
                                  OURS "adapter.content-id", digest_text(text_of(record, "id"))));
    if (compat != OCI_IMAGE)
        json_object_set_new(d, "artifactType", json_string(MODEL_TYPE));
    if (json_array_append_new(manifests, json_string(top->digest)) != 0 ||
        json_array_append_new(index, d) != 0)
        return no_memory(err);
    return 0;
}

static int add_index(struct pack_items *items, json_t *list, json_t *manifests, struct oci_top *top,
                     struct err *err)
{
    json_t *index = json_pack("{s:i,s:s,s:O}", "schemaVersion", 2, "mediaType", OCI_INDEX_TYPE,
                              "manifests", list);
    char *text = index ? pack_json(index) : NULL;
    json_decref(index);
    *top = (struct oci_top){.size = text ? strlen(text) : 0, .media_type = OCI_INDEX_TYPE};
    int rc = add_text(items, text, top->digest, err);
    if (!rc && json_array_append_new(manifests, json_string(top->digest)) != 0)
        rc = no_memory(err);
    return rc;
}

int oci_items(const struct pack_plan *p, enum oci_compat compat, struct pack_items *out,
              json_t **manifests, json_t **referrers, struct oci_top *top, struct err *err)
{
    *out = (struct pack_items){0};
    *manifests = json_array();
    *referrers = json_array();
    json_t *list = json_array(), *record;
    size_t i;
    int rc = *manifests && *referrers && list ? 0 : no_memory(err);
    json_array_foreach(p->records, i, record)
    {
        rc = rc ? rc : add_adapter(p, record, compat, out, *manifests, *referrers, list, top, err);
    }
    if (!rc && json_array_size(list) > 1)
        rc = add_index(out, list, *manifests, top, err);
    json_decref(list);
    pack_items_sort(out);
    if (rc) {
        pack_items_release(out);
        json_decref(*manifests);
        json_decref(*referrers);
        *manifests = *referrers = NULL;
    }
    return rc;
}

/* Behind the image: whoever looks for references to it finds them in the index. */
static int list_referrers(json_t *index, const json_t *referrers, struct err *err)
{
    size_t i;
    json_t *d, *list = json_object_get(index, "manifests");
    json_array_foreach(referrers, i, d)
    {
        json_t *copy = json_copy(d);
        json_object_del(copy, "subject");
        if (json_array_append_new(list, copy) != 0)
            return no_memory(err);
    }
    return 0;
}

int oci_add_layout(struct pack_items *items, const struct oci_top *top, const json_t *referrers,
                   const char *tag, struct err *err)
{
    json_t *d = descriptor(top->media_type, top->digest, top->size);
    json_object_set_new(d, "annotations",
                        json_pack("{s:s}", "org.opencontainers.image.ref.name", tag));
    json_t *index = json_pack("{s:i,s:s,s:[o]}", "schemaVersion", 2, "mediaType", OCI_INDEX_TYPE,
                              "manifests", d);
    int rc = index ? list_referrers(index, referrers, err) : no_memory(err);
    char *text = rc ? NULL : pack_json(index);
    json_decref(index);
    if (!rc)
        rc = text ? pack_items_add(items, "index.json", NULL, text, strlen(text), NULL, err)
                  : no_memory(err);
    static const char layout[] = "{\"imageLayoutVersion\":\"1.0.0\"}";
    if (!rc) {
        text = sys_strdup(layout);
        rc = text ? pack_items_add(items, "oci-layout", NULL, text, strlen(text), NULL, err)
                  : no_memory(err);
    }
    pack_items_sort(items);
    return rc;
}
