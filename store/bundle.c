#include "store/bundle.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/limits.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"

#define PAYLOAD_TYPE   "application/vnd.in-toto+json"
#define STATEMENT_TYPE "https://in-toto.io/Statement/v1"

static int no_memory(struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "no memory for a signature");
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

/* As Python sorts paths: part by part, so that '/' comes before every character. */
static int compare_paths(const char *a, const char *b)
{
    for (; *a && *a == *b; a++, b++)
        ;
    int x = *a == '/' ? 1 : (unsigned char)*a, y = *b == '/' ? 1 : (unsigned char)*b;
    return x - y;
}

/* DSSE's pre-authentication encoding: what is really signed. */
static void add_pae(struct strbuf *sb, const void *payload, size_t n)
{
    strbuf_addf(sb, "DSSEv1 %zu %s %zu ", strlen(PAYLOAD_TYPE), PAYLOAD_TYPE, n);
    strbuf_add(sb, payload, n);
}

// ---- making ------------------------------------------------------------------------------------

static int by_path(const void *a, const void *b)
{
    return compare_paths(((const struct bundle_file *)a)->name,
                         ((const struct bundle_file *)b)->name);
}

/* sha256 over the digests' bytes, in order. */
static int root_digest(const struct digest *digests, size_t n, char hex[DIGEST_HEX_CHARS + 1],
                       struct err *err)
{
    struct digest d;
    int rc = digest_buffer(digests, n * sizeof *digests, &d, err);
    if (!rc)
        digest_hex(&d, hex);
    return rc;
}

static int root_of_files(const struct bundle_file *files, size_t n, char hex[DIGEST_HEX_CHARS + 1],
                         struct err *err)
{
    struct digest *all = sys_calloc(n, sizeof *all);
    int rc = all ? 0 : no_memory(err);
    for (size_t i = 0; !rc && i < n; i++) {
        if (!digest_parse(files[i].digest, &all[i]))
            rc = err_set(err, ERR_INTERNAL, "%s: is without a digest", files[i].name);
    }
    if (!rc)
        rc = root_digest(all, n, hex, err);
    sys_free(all);
    return rc;
}

static json_t *make_statement(const char *model, const char *root, const struct bundle_file *files,
                              size_t n)
{
    json_t *resources = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(resources,
                              json_pack("{s:s,s:s,s:s}", "name", files[i].name, "algorithm",
                                        "sha256", "digest", files[i].digest));
    if (json_array_size(resources) != n) {
        json_decref(resources);
        return NULL;
    }
    // The tools leave these out by themselves; the list says so to who verifies.
    json_t *ignored =
        json_pack("[s,s,s,s,s]", BUNDLE_FILE, ".git", ".gitattributes", ".github", ".gitignore");
    return json_pack("{s:s,s:[{s:s,s:{s:s}}],s:s,s:{s:{s:s,s:s,s:b,s:o},s:o}}", "_type",
                     STATEMENT_TYPE, "subject", "name", model, "digest", "sha256", root,
                     "predicateType", BUNDLE_PREDICATE, "predicate", "serialization", "method",
                     "files", "hash_type", "sha256", "allow_symlinks", 0, "ignore_paths", ignored,
                     "resources", resources);
}

static int sign_payload(const struct sign_key *key, const char *payload, char **sig,
                        struct err *err)
{
    struct strbuf pae;
    uint8_t *der = NULL;
    size_t n = 0;
    strbuf_init(&pae);
    add_pae(&pae, payload, strlen(payload));
    int rc = pae.failed ? no_memory(err) : sign_bytes(key, pae.data, pae.len, &der, &n, err);
    if (!rc)
        rc = sign_base64_encode(der, n, sig, err);
    sys_free(der);
    strbuf_release(&pae);
    return rc;
}

static char *make_envelope(const struct sign_key *key, const char *payload, const char *sig)
{
    json_t *root = json_pack("{s:s,s:{s:{s:s},s:[]},s:{s:s,s:s,s:[{s:s,s:s}]}}", "mediaType",
                             BUNDLE_TYPE, "verificationMaterial", "publicKey", "hint",
                             sign_key_hint(key), "tlogEntries", "dsseEnvelope", "payload", payload,
                             "payloadType", PAYLOAD_TYPE, "signatures", "sig", sig, "keyid", "");
    char *dumped = root ? json_dumps(root, JSON_COMPACT) : NULL;
    char *text = dumped ? sys_strdup(dumped) : NULL;
    free(dumped);
    json_decref(root);
    return text;
}

int bundle_make(char **text, const struct sign_key *key, const char *model,
                struct bundle_file *files, size_t n, struct err *err)
{
    char root[DIGEST_HEX_CHARS + 1], *payload = NULL, *sig = NULL;
    *text = NULL;
    qsort(files, n, sizeof *files, by_path);
    int rc = root_of_files(files, n, root, err);
    json_t *statement = rc ? NULL : make_statement(model, root, files, n);
    char *plain = statement ? json_dumps(statement, JSON_INDENT(2)) : NULL;
    if (!rc && !plain)
        rc = no_memory(err);
    if (!rc)
        rc = sign_payload(key, plain, &sig, err);
    if (!rc)
        rc = sign_base64_encode(plain, strlen(plain), &payload, err);
    if (!rc && !(*text = make_envelope(key, payload, sig)))
        rc = no_memory(err);
    free(plain);
    sys_free(payload);
    sys_free(sig);
    json_decref(statement);
    return rc;
}

// ---- reading: the envelope ---------------------------------------------------------------------

static int broken(const char *where, const char *what, struct err *err)
{
    return err_set(err, ERR_CORRUPT, "%s: %s", where, what);
}

static int take_material(struct bundle *b, const json_t *root, const char *where, struct err *err)
{
    const json_t *material = json_object_get(root, "verificationMaterial");
    const char *hint = text_of(json_object_get(material, "publicKey"), "hint");
    struct digest d;
    if (!json_is_object(material))
        return broken(where, "is no Sigstore bundle: \"verificationMaterial\" is missing", err);
    b->has_certificate = json_object_get(material, "certificate") ||
                         json_object_get(material, "x509CertificateChain");
    if (*hint && !digest_parse(hint, &d))
        return broken(where, "the hint of its public key is no sha256", err);
    if (*hint)
        digest_hex(&d, b->hint);
    return 0;
}

static int take_envelope(struct bundle *b, const json_t *root, const char *where, struct err *err)
{
    const json_t *envelope = json_object_get(root, "dsseEnvelope");
    const json_t *signatures = json_object_get(envelope, "signatures");
    if (!json_is_object(envelope))
        return broken(where, "is no signature of a model: \"dsseEnvelope\" is missing", err);
    if (strcmp(text_of(envelope, "payloadType"), PAYLOAD_TYPE) != 0)
        return err_set(err, ERR_REFUSED, "%s: its payload is %.80s, wanted " PAYLOAD_TYPE, where,
                       text_of(envelope, "payloadType"));
    if (json_array_size(signatures) != 1)
        return broken(where, "its envelope has not exactly one signature", err);
    int rc =
        sign_base64_decode(text_of(envelope, "payload"), where, &b->payload, &b->n_payload, err);
    if (!rc)
        rc = sign_base64_decode(text_of(json_array_get(signatures, 0), "sig"), where, &b->sig,
                                &b->n_sig, err);
    return rc;
}

// ---- reading: the statement --------------------------------------------------------------------

/* Inside the model: no name of a bundle leads out of the folder. */
static bool is_inside(const char *path)
{
    if (!*path || *path == '/' || strlen(path) > LIMIT_PACK_NAME_BYTES)
        return false;
    for (const char *p = path; p; p = strchr(p, '/')) {
        p += *p == '/';
        size_t n = strcspn(p, "/");
        if (n == 0 || (n == 2 && p[0] == '.' && p[1] == '.') ||
            (n == 1 && p[0] == '.' && strcmp(path, ".") != 0))
            return false;
    }
    return true;
}

/* "path:start:end" into a file's name, copied to *to, and the bytes' range. */
static bool take_shard(struct bundle_resource *r, const char *text, char **to)
{
    const char *colon = strchr(text, ':'), *second = colon ? strchr(colon + 1, ':') : NULL;
    char *end = NULL;
    if (!second || strchr(second + 1, ':'))
        return false;
    r->start = strtoull(colon + 1, &end, 10);
    if (end != second || end == colon + 1)
        return false;
    r->end = strtoull(second + 1, &end, 10);
    if (*end || r->end <= r->start)
        return false;
    memcpy(*to, text, (size_t)(colon - text));
    (*to)[colon - text] = '\0';
    r->name = *to;
    *to += colon - text + 1;
    return true;
}

static int take_resource(struct bundle_resource *r, const json_t *from, bool shards, char **to,
                         const char *where, struct err *err)
{
    struct digest d;
    const char *name = text_of(from, "name"), *algorithm = text_of(from, "algorithm");
    r->name = name;
    // The file hasher calls itself by the hash's name, the one of shards also by their size.
    if (strncmp(algorithm, "sha256", 6) != 0 || (algorithm[6] && algorithm[6] != '-'))
        return err_set(err, ERR_REFUSED, "%s: %.100s is signed by its %.40s, wanted sha256", where,
                       name, *algorithm ? algorithm : "unknown hash");
    if (!digest_parse(text_of(from, "digest"), &d) || (shards && !take_shard(r, name, to)) ||
        !is_inside(r->name))
        return err_set(err, ERR_CORRUPT, "%s: its entry \"%.100s\" is off", where, name);
    digest_hex(&d, r->digest);
    return 0;
}

static int by_name(const void *a, const void *b)
{
    const struct bundle_resource *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    return order ? order : x->start < y->start ? -1 : x->start > y->start;
}

/* The root digest is over the resources in the statement's order. */
static int check_root(const struct bundle *b, const char *wanted, const char *where,
                      struct err *err)
{
    char hex[DIGEST_HEX_CHARS + 1];
    struct digest *all = sys_calloc(b->n_resources + 1, sizeof *all), d;
    if (!all)
        return no_memory(err);
    for (size_t i = 0; i < b->n_resources; i++)
        digest_parse(b->resources[i].digest, &all[b->resources[i].order]);
    int rc = root_digest(all, b->n_resources, hex, err);
    sys_free(all);
    if (!rc && (!digest_parse(wanted, &d) || strncmp(hex, wanted, DIGEST_HEX_CHARS) != 0))
        rc = broken(where, "its root digest is not that of its entries", err);
    return rc;
}

static int take_resources(struct bundle *b, const json_t *list, bool shards, const char *where,
                          struct err *err)
{
    size_t n = json_array_size(list), bytes = 1;
    if (!json_is_array(list) || n == 0)
        return broken(where, "its statement lists no files", err);
    if (n > LIMIT_SIGNED_FILES)
        return err_set(err, ERR_LIMIT, "%s: signs %zu files, at most %d are read", where, n,
                       LIMIT_SIGNED_FILES);
    for (size_t i = 0; shards && i < n; i++)
        bytes += strlen(text_of(json_array_get(list, i), "name")) + 1;
    b->resources = sys_calloc(n, sizeof *b->resources);
    char *to = b->names = sys_malloc(bytes);
    if (!b->resources || !b->names)
        return no_memory(err);
    for (size_t i = 0; i < n; i++) {
        int rc = take_resource(&b->resources[i], json_array_get(list, i), shards, &to, where, err);
        if (rc)
            return rc;
        b->resources[i].order = i;
    }
    b->n_resources = n;
    qsort(b->resources, n, sizeof *b->resources, by_name);
    for (size_t i = 1; i < n; i++) {
        if (by_name(&b->resources[i - 1], &b->resources[i]) == 0)
            return err_set(err, ERR_CORRUPT, "%s: lists %.100s twice", where, b->resources[i].name);
    }
    return 0;
}

static int take_statement(struct bundle *b, const char *where, struct err *err)
{
    json_error_t why;
    b->statement = json_loadb((const char *)b->payload, b->n_payload, JSON_REJECT_DUPLICATES, &why);
    if (!b->statement)
        return err_set(err, ERR_CORRUPT, "%s: its statement: %s", where, why.text);
    const json_t *subjects = json_object_get(b->statement, "subject"),
                 *predicate = json_object_get(b->statement, "predicate"),
                 *how = json_object_get(predicate, "serialization"),
                 *ignored = json_object_get(how, "ignore_paths");
    const char *method = text_of(how, "method");
    if (strcmp(text_of(b->statement, "_type"), STATEMENT_TYPE) != 0)
        return broken(where, "its payload is no in-toto statement", err);
    if (strcmp(text_of(b->statement, "predicateType"), BUNDLE_PREDICATE) != 0)
        return err_set(err, ERR_REFUSED, "%s: states %.80s, wanted " BUNDLE_PREDICATE, where,
                       text_of(b->statement, "predicateType"));
    if (json_array_size(subjects) != 1)
        return broken(where, "its statement has not exactly one subject", err);
    bool shards = strcmp(method, "shards") == 0;
    if (!shards && strcmp(method, "files") != 0)
        return err_set(err, ERR_REFUSED,
                       "%s: signs by the method \"%.40s\", wanted files or shards", where, method);
    b->ignored = json_is_array(ignored) ? ignored : NULL;
    int rc = take_resources(b, json_object_get(predicate, "resources"), shards, where, err);
    const json_t *digest = json_object_get(json_array_get(subjects, 0), "digest");
    return rc ? rc : check_root(b, text_of(digest, "sha256"), where, err);
}

int bundle_parse(struct bundle *out, const char *text, size_t n, const char *where, struct err *err)
{
    json_error_t why;
    *out = (struct bundle){0};
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &why);
    if (!root)
        return err_set(err, ERR_CORRUPT, "%s: is no Sigstore bundle: %s", where, why.text);
    const char *type = text_of(root, "mediaType");
    int rc = 0;
    if (!*type)
        rc = broken(where, "is no Sigstore bundle: \"mediaType\" is missing", err);
    else if (strcmp(type, BUNDLE_TYPE) != 0)
        rc =
            err_set(err, ERR_REFUSED, "%s: is of the type %.80s, wanted " BUNDLE_TYPE, where, type);
    if (!rc)
        rc = take_material(out, root, where, err);
    if (!rc)
        rc = take_envelope(out, root, where, err);
    if (!rc)
        rc = take_statement(out, where, err);
    json_decref(root);
    return rc;
}

void bundle_release(struct bundle *b)
{
    json_decref(b->statement);
    sys_free(b->resources);
    sys_free(b->names);
    sys_free(b->payload);
    sys_free(b->sig);
    *b = (struct bundle){0};
}

// ---- asking ------------------------------------------------------------------------------------

const struct sign_key *bundle_signer(const struct bundle *b, const struct sign_keys *keys,
                                     const char *where, struct err *err)
{
    struct strbuf pae;
    strbuf_init(&pae);
    add_pae(&pae, b->payload, b->n_payload);
    const struct sign_key *found = NULL;
    bool named = false;
    for (size_t i = 0; !pae.failed && i < keys->n && !found; i++) {
        const struct sign_key *k = keys->items[i];
        bool meant = strcmp(b->hint, sign_key_hint(k)) == 0;
        named |= meant;
        if ((meant || !*b->hint) && sign_check(k, pae.data, pae.len, b->sig, b->n_sig))
            found = k;
    }
    if (pae.failed)
        no_memory(err);
    else if (!found && named)
        err_set(err, ERR_CORRUPT, "%s: the signature is not of its statement: one was changed",
                where);
    else if (!found && b->has_certificate)
        err_set(err, ERR_REFUSED, "%s: is signed with a certificate, which is not checked here",
                where);
    else if (!found && keys->n == 1)
        err_set(err, ERR_REFUSED, "%s: is signed by key %.12s, wanted %.12s (%s)", where,
                *b->hint ? b->hint : "?", sign_key_hint(keys->items[0]),
                sign_key_path(keys->items[0]));
    else if (!found)
        err_set(err, ERR_REFUSED, "%s: is signed by key %.12s, by none of the %zu wanted", where,
                *b->hint ? b->hint : "?", keys->n);
    strbuf_release(&pae);
    return found;
}

const struct bundle_resource *bundle_find(const struct bundle *b, const char *name, size_t *n)
{
    size_t low = 0, high = b->n_resources;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(b->resources[middle].name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    for (*n = 0; low + *n < b->n_resources && strcmp(b->resources[low + *n].name, name) == 0;)
        ++*n;
    return *n ? &b->resources[low] : NULL;
}

bool bundle_ignores(const struct bundle *b, const char *name)
{
    size_t i;
    json_t *path;
    json_array_foreach(b->ignored, i, path)
    {
        const char *text = json_string_value(path);
        size_t n = text ? strlen(text) : 0;
        while (n && text[n - 1] == '/')
            n--;
        if (n && strncmp(text, name, n) == 0 && (name[n] == '\0' || name[n] == '/'))
            return true;
    }
    return false;
}
