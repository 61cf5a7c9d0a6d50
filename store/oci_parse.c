#include <string.h>

#include "store/oci.h"

/*
 * What somebody's manifest says. Media types decide what is read: layers that are files as they
 * are, and tars of files.
 */
static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), k = strlen(end);
    return n >= k && strcmp(text + n - k, end) == 0;
}

/* {"sha256", "size"} of a descriptor; NULL with err set. */
static json_t *take_descriptor(const json_t *d, const char *where, struct err *err)
{
    struct digest digest;
    char hex[DIGEST_HEX_CHARS + 1];
    json_t *size = json_object_get(d, "size");
    const char *text = text_of(d, "digest");
    if (strncmp(text, "sha256:", 7) != 0 || !digest_parse(text, &digest) ||
        !json_is_integer(size) || json_integer_value(size) < 0) {
        err_set(err, ERR_CORRUPT, "%s: a descriptor without a sha256 digest and a size", where);
        return NULL;
    }
    digest_hex(&digest, hex);
    json_t *out = json_pack("{s:s,s:O}", "sha256", hex, "size", size);
    if (!out)
        err_set(err, ERR_NO_MEMORY, "%s: no memory", where);
    return out;
}

static int take_layer(const json_t *layer, json_t *files, const char *where, struct err *err)
{
    const json_t *a = json_object_get(layer, "annotations");
    const char *path = text_of(a, "org.cncf.model.filepath"), *type = text_of(layer, "mediaType");
    if (!*path)
        path = text_of(a, "org.opencontainers.image.title");
    bool unpack = ends_with(type, ".tar") || ends_with(type, ".tar+gzip") ||
                  ends_with(type, ".tar.gzip") || ends_with(type, ".tar+zstd");
    if (!*path && !unpack)
        return err_set(err, ERR_REFUSED, "%s: a layer of the type %.100s has no file name", where,
                       type);
    json_t *file = take_descriptor(layer, where, err);
    if (!file)
        return err ? err->code : ERR_CORRUPT;
    json_object_set_new(file, "path", json_string(*path ? path : "layer"));
    if (unpack)
        json_object_set_new(file, "unpack", json_true());
    return json_array_append_new(files, file) == 0
               ? 0
               : err_set(err, ERR_NO_MEMORY, "%s: no memory", where);
}

/* The pack's record, when lora made the image. */
static json_t *take_record(const json_t *manifest, const json_t *files)
{
    const char *text = text_of(json_object_get(manifest, "annotations"), "vnd.lora.adapter.record");
    json_t *record = *text ? json_loads(text, JSON_REJECT_DUPLICATES, NULL) : NULL;
    if (json_is_object(record))
        json_object_set(record, "files", (json_t *)files);
    return record;
}

static int parse_manifest(const json_t *root, const char *where, json_t **out, struct err *err)
{
    json_t *files = json_array(), *layer;
    size_t i;
    int rc = files ? 0 : err_set(err, ERR_NO_MEMORY, "%s: no memory", where);
    if (!rc && !json_is_array(json_object_get(root, "layers")))
        rc = err_set(err, ERR_CORRUPT, "%s: is neither a manifest nor an index", where);
    json_array_foreach(json_object_get(root, "layers"), i, layer)
    {
        rc = rc ? rc : take_layer(layer, files, where, err);
    }
    if (!rc) {
        json_t *record = take_record(root, files);
        const char *name =
            text_of(json_object_get(root, "annotations"), "org.opencontainers.image.title");
        *out = json_pack("{s:O,s:s}", "files", files, "name", *name ? name : "image");
        if (record && *out)
            json_object_set(*out, "record", record);
        json_decref(record);
        rc = *out ? 0 : err_set(err, ERR_NO_MEMORY, "%s: no memory", where);
    }
    json_decref(files);
    return rc;
}

/* A manifest with a subject: a Sigstore bundle as its one layer, or somebody else's business. */
static int parse_referrer(const json_t *root, const char *where, enum oci_kind *kind, json_t **out,
                          struct err *err)
{
    const json_t *layers = json_object_get(root, "layers"), *layer = json_array_get(layers, 0);
    struct digest d;
    char hex[DIGEST_HEX_CHARS + 1];
    *kind = OCI_KIND_OTHER;
    if (json_array_size(layers) != 1 ||
        strcmp(text_of(layer, "mediaType"), OCI_SIGNATURE_TYPE) != 0)
        return 0;
    const char *subject = text_of(json_object_get(root, "subject"), "digest");
    if (strncmp(subject, "sha256:", 7) != 0 || !digest_parse(subject, &d))
        return err_set(err, ERR_CORRUPT, "%s: its subject has no sha256 digest", where);
    *out = take_descriptor(layer, where, err);
    if (!*out)
        return err && err->code ? err->code : ERR_CORRUPT;
    digest_hex(&d, hex);
    *kind = OCI_KIND_SIGNATURE;
    if (json_object_set_new(*out, "subject", json_string(hex)) == 0)
        return 0;
    json_decref(*out);
    *out = NULL;
    return err_set(err, ERR_NO_MEMORY, "%s: no memory", where);
}

static int parse_index(const json_t *list, const char *where, json_t **out, struct err *err)
{
    json_t *all = json_array(), *d;
    size_t i;
    int rc = all ? 0 : err_set(err, ERR_NO_MEMORY, "%s: no memory", where);
    json_array_foreach(list, i, d)
    {
        json_t *taken = rc ? NULL : take_descriptor(d, where, err);
        if (!rc && !taken)
            rc = err && err->code ? err->code : ERR_CORRUPT;
        if (taken)
            json_array_append_new(all, taken);
    }
    if (rc)
        json_decref(all);
    else
        *out = all;
    return rc;
}

int oci_parse(const char *text, size_t n, const char *where, enum oci_kind *kind, json_t **out,
              struct err *err)
{
    json_error_t why;
    *out = NULL;
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &why);
    if (!root)
        return err_set(err, ERR_CORRUPT, "%s: %s", where, why.text);
    const json_t *list = json_object_get(root, "manifests");
    *kind = list ? OCI_KIND_INDEX : OCI_KIND_MANIFEST;
    int rc = 0;
    if (!json_is_object(root))
        rc = err_set(err, ERR_CORRUPT, "%s: is no object", where);
    else if (list && !json_is_array(list))
        rc = err_set(err, ERR_CORRUPT, "%s: \"manifests\" is no list", where);
    if (!rc && list)
        rc = parse_index(list, where, out, err);
    else if (!rc && json_object_get(root, "subject"))
        rc = parse_referrer(root, where, kind, out, err);
    else if (!rc)
        rc = parse_manifest(root, where, out, err);
    json_decref(root);
    return rc;
}
