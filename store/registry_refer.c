#include <stdio.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "store/registry_impl.h"

/*
 * Signatures in a registry: manifests that refer to an image. A registry that knows the referrers
 * API lists them itself; for others the image's digest, written as a tag, names an index of them
 * (OCI distribution 1.1, "Referrers Tag Schema").
 */
#define TAG_PREFIX "sha256-"

static int no_memory(const struct connection *c, struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "%s: no memory", connection_registry(c)->ref.host);
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static void tag_of(const char *subject, char tag[REGISTRY_REFERENCE_BYTES + 1])
{
    snprintf(tag, REGISTRY_REFERENCE_BYTES + 1, TAG_PREFIX "%.64s", subject);
}

// ---- reading -----------------------------------------------------------------------------------

/* The index's list, a new reference; NULL when it is no index. */
static json_t *list_of(const char *text, size_t n)
{
    json_t *index = json_loadb(text, n, JSON_REJECT_DUPLICATES, NULL);
    json_t *list = json_object_get(index, "manifests");
    list = json_is_array(list) ? json_incref(list) : NULL;
    json_decref(index);
    return list;
}

/* What the API says; *list NULL when the registry has none. */
static int ask_api(struct connection *c, const char *subject, json_t **list, struct err *err)
{
    struct strbuf url;
    struct response a = {0};
    strbuf_init(&url);
    registry_url(connection_registry(c), &url, "referrers/sha256:%.64s", subject);
    struct request q = {.method = "GET", .url = strbuf_text(&url), .accept = OCI_INDEX_TYPE};
    int rc = url.failed ? no_memory(c, err) : registry_request(c, &q, &a, err);
    *list = !rc && a.status == 200 ? list_of(strbuf_text(&a.body), a.body.len) : NULL;
    response_release(&a);
    strbuf_release(&url);
    return rc;
}

static int ask_tag(struct connection *c, const char *subject, json_t **list, struct err *err)
{
    char tag[REGISTRY_REFERENCE_BYTES + 1], hex[DIGEST_HEX_CHARS + 1], *text = NULL;
    size_t n = 0;
    struct err why = {0};
    tag_of(subject, tag);
    *list = NULL;
    int rc = registry_manifest(c, tag, &text, &n, hex, &why);
    if (!rc)
        *list = list_of(text, n);
    sys_free(text);
    // Not there, or not ours to see: then there are none.
    if (rc && rc != ERR_NOT_FOUND && rc != ERR_DENIED)
        return err_set(err, rc, "%s", why.msg);
    return 0;
}

/* A list of the registry may hold anything: other kinds of references, and any number of them. */
static bool is_signature(const json_t *d)
{
    return strcmp(text_of(d, "artifactType"), OCI_SIGNATURE_TYPE) == 0 ||
           *text_of(json_object_get(d, "annotations"), "dev.sigstore.bundle.content");
}

static int take_one(struct connection *c, const json_t *d, const char *subject, json_t *out,
                    struct err *err)
{
    char hex[DIGEST_HEX_CHARS + 1], *text = NULL;
    size_t n = 0;
    enum oci_kind kind = OCI_KIND_OTHER;
    json_t *signature = NULL;
    struct err why = {0};
    const char *digest = text_of(d, "digest");
    if (strlen(digest) != 7 + DIGEST_HEX_CHARS)
        return 0;
    int rc = registry_manifest(c, digest, &text, &n, hex, &why);
    if (!rc)
        rc = oci_parse(text, n, digest, &kind, &signature, &why);
    if (!rc && kind == OCI_KIND_SIGNATURE && strcmp(text_of(signature, "subject"), subject) == 0 &&
        json_integer_value(json_object_get(signature, "size")) <= LIMIT_SIGNATURE_BYTES &&
        json_array_append(out, signature) != 0)
        rc = err_set(&why, ERR_NO_MEMORY, "%s: no memory", digest);
    json_decref(signature);
    sys_free(text);
    // Somebody's broken reference does not keep the image out; a broken connection does.
    if (rc == ERR_CORRUPT || rc == ERR_REFUSED || rc == ERR_NOT_FOUND)
        return 0;
    return rc ? err_set(err, rc, "%s", why.msg) : 0;
}

int registry_signatures(struct connection *c, const char *subject, json_t *out, struct err *err)
{
    json_t *list = NULL, *d;
    size_t i, n = 0;
    struct registry *r = connection_registry(c);
    int rc = 0;
    if (!atomic_load(&r->has_no_referrers))
        rc = ask_api(c, subject, &list, err);
    if (!rc && !list) {
        atomic_store(&r->has_no_referrers, true);
        rc = ask_tag(c, subject, &list, err);
    }
    json_array_foreach(list, i, d)
    {
        if (rc || !is_signature(d) || n++ >= LIMIT_SIGNATURES)
            continue;
        rc = take_one(c, d, subject, out, err);
    }
    json_decref(list);
    return rc;
}

// ---- writing -----------------------------------------------------------------------------------

static bool is_listed(const json_t *list, const json_t *d)
{
    size_t i;
    json_t *other;
    json_array_foreach(list, i, other)
    {
        if (strcmp(text_of(other, "digest"), text_of(d, "digest")) == 0)
            return true;
    }
    return false;
}

static int put_index(struct connection *c, const char *subject, json_t *list, struct err *err)
{
    char tag[REGISTRY_REFERENCE_BYTES + 1];
    bool ignored;
    json_t *index = json_pack("{s:i,s:s,s:O}", "schemaVersion", 2, "mediaType", OCI_INDEX_TYPE,
                              "manifests", list);
    char *text = index ? pack_json(index) : NULL;
    json_decref(index);
    tag_of(subject, tag);
    int rc = text ? registry_put_manifest(c, text, strlen(text), OCI_INDEX_TYPE, tag, &ignored, err)
                  : no_memory(c, err);
    sys_free(text);
    return rc;
}

/* Adds a reference to the index behind the image's tag. Two that do it at once may lose one: the
 * protocol has nothing better for such registries. */
static int add_to_tag(struct connection *c, const json_t *d, struct err *err)
{
    json_t *list = NULL, *copy = json_copy((json_t *)d);
    const char *subject = text_of(d, "subject");
    int rc = copy ? ask_tag(c, subject, &list, err) : no_memory(c, err);
    if (!rc && !list && !(list = json_array()))
        rc = no_memory(c, err);
    if (!rc && !is_listed(list, d)) {
        json_object_del(copy, "subject");
        rc = json_array_append(list, copy) == 0 ? put_index(c, subject, list, err)
                                                : no_memory(c, err);
    }
    json_decref(copy);
    json_decref(list);
    return rc;
}

int registry_push_signatures(struct connection *c, const struct pack_items *items,
                             const json_t *referrers, struct err *err)
{
    size_t i;
    json_t *d;
    int rc = 0;
    json_array_foreach(referrers, i, d)
    {
        const char *digest = text_of(d, "digest");
        const struct pack_item *m = rc ? NULL : pack_items_find(items, digest + 7);
        bool known = false;
        if (!rc && !m)
            rc = err_set(err, ERR_INTERNAL, "%s: is not among the items", digest);
        if (!rc)
            rc = registry_put_manifest(c, m->data, m->size, OCI_MANIFEST_TYPE, digest, &known, err);
        if (!rc && !known)
            rc = add_to_tag(c, d, err);
    }
    return rc;
}
