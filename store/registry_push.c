#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "store/registry_impl.h"

struct push {
    struct registry *r;
    const struct pack_items *items;
    const struct pack_item **blobs;
    size_t n_blobs;
    struct registry_report *out;
    pthread_mutex_t mutex; // guards *out
};

static int no_memory(const struct registry *r, struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "%s: no memory", r->ref.host);
}

static void count(struct push *p, size_t *counter, uint64_t bytes)
{
    pthread_mutex_lock(&p->mutex);
    if (counter)
        ++*counter;
    p->out->bytes += bytes;
    pthread_mutex_unlock(&p->mutex);
}

/* A request without a body to <repo>/<path>. */
static int ask(struct connection *c, const char *method, const char *path, const char *accept,
               struct response *p, struct err *err)
{
    struct strbuf url;
    strbuf_init(&url);
    registry_url(connection_registry(c), &url, "%s", path);
    struct request q = {.method = method, .url = strbuf_text(&url), .accept = accept};
    int rc = url.failed ? no_memory(connection_registry(c), err) : registry_request(c, &q, p, err);
    strbuf_release(&url);
    return rc;
}

static int has_blob(struct connection *c, const char *digest, bool *there, struct err *err)
{
    char path[120];
    struct response p = {0};
    snprintf(path, sizeof path, "blobs/sha256:%.64s", digest);
    int rc = ask(c, "HEAD", path, NULL, &p, err);
    *there = !rc && p.status == 200;
    if (!rc && p.status != 200 && p.status != 404)
        rc = registry_status_error(connection_registry(c), &p, path, err);
    response_release(&p);
    return rc;
}

// ---- uploads -----------------------------------------------------------------------------------

/* Begins an upload, or mounts the blob from another repository. *url is the caller's. */
static int begin_upload(struct connection *c, const char *digest, bool *mounted, char **url,
                        struct err *err)
{
    struct registry *r = connection_registry(c);
    struct strbuf path;
    struct response p = {0};
    strbuf_init(&path);
    strbuf_adds(&path, "blobs/uploads/");
    if (r->opt.mount_from)
        strbuf_addf(&path, "?mount=sha256:%s&from=%s", digest, r->opt.mount_from);
    int rc = path.failed ? no_memory(r, err) : ask(c, "POST", strbuf_text(&path), NULL, &p, err);
    *mounted = !rc && p.status == 201 && r->opt.mount_from;
    *url = NULL;
    if (!rc && !*mounted && (p.status != 202 || !p.location))
        rc = registry_status_error(r, &p, "cannot begin an upload", err);
    if (!rc && !*mounted && !(*url = registry_resolve_url(p.url, p.location, NULL)))
        rc = err_set(err, ERR_FAIL, "%s: its upload location is no URL", r->ref.host);
    response_release(&p);
    strbuf_release(&path);
    return rc;
}

/* A request on an upload: its URL may lie elsewhere, where our login is nobody's business. */
static int on_upload(struct connection *c, struct request *q, struct response *p, struct err *err)
{
    struct registry *r = connection_registry(c);
    struct strbuf own;
    strbuf_init(&own);
    registry_url(r, &own, "blobs/");
    q->foreign = own.failed || !registry_same_host(strbuf_text(&own), q->url);
    q->once = true;
    strbuf_release(&own);
    return registry_request(c, q, p, err);
}

static int put_whole(struct connection *c, const struct pack_item *blob, const char *url,
                     long *status, struct err *err)
{
    char query[100];
    struct response p = {0};
    snprintf(query, sizeof query, "digest=sha256:%s", blob->digest);
    char *to = registry_resolve_url(url, "", query);
    struct request q = {.method = "PUT",
                        .url = to,
                        .content_type = "application/octet-stream",
                        .data = blob->data,
                        .file = blob->from,
                        .size = blob->size};
    int rc = to ? on_upload(c, &q, &p, err) : no_memory(connection_registry(c), err);
    *status = p.status;
    if (!rc && p.status != 201)
        rc = registry_status_error(connection_registry(c), &p, blob->name, err);
    response_release(&p);
    sys_free(to);
    return rc;
}

/* How far the registry has got with an upload, and where it goes on. */
static int ask_progress(struct connection *c, char **url, uint64_t *at, struct err *err)
{
    struct response p = {0};
    struct request q = {.method = "GET", .url = *url};
    int rc = on_upload(c, &q, &p, err);
    if (!rc && p.status != 204 && p.status != 200)
        rc = registry_status_error(connection_registry(c), &p, "an upload", err);
    if (!rc) {
        const char *dash = p.range ? strchr(p.range, '-') : NULL;
        uint64_t last = dash ? strtoull(dash + 1, NULL, 10) : 0;
        *at = dash && last ? last + 1 : 0;
        char *more = p.location ? registry_resolve_url(p.url, p.location, NULL) : NULL;
        if (more) {
            sys_free(*url);
            *url = more;
        }
    }
    response_release(&p);
    return rc;
}

/* One piece; *url becomes where the next one goes. *may_pass: asking how far it got may help. */
static int patch(struct connection *c, const struct pack_item *blob, char **url, uint64_t *at,
                 bool *may_pass, struct err *err)
{
    struct registry *r = connection_registry(c);
    uint64_t n = blob->size - *at < r->opt.chunk_bytes ? blob->size - *at : r->opt.chunk_bytes;
    char range[64];
    struct response p = {0};
    snprintf(range, sizeof range, "%llu-%llu", (unsigned long long)*at,
             (unsigned long long)(*at + n - 1));
    struct request q = {.method = "PATCH",
                        .url = *url,
                        .content_type = "application/octet-stream",
                        .content_range = range,
                        .file = blob->from,
                        .offset = *at,
                        .size = n};
    int rc = on_upload(c, &q, &p, err);
    *may_pass = rc == ERR_IO || (!rc && (registry_may_retry(p.status) || p.status == 416));
    char *more = NULL;
    if (!rc && p.status != 202)
        rc = registry_status_error(r, &p, blob->name, err);
    else if (!rc && !(more = registry_resolve_url(p.url, p.location ? p.location : "", NULL)))
        rc = err_set(err, ERR_FAIL, "%s: its upload location is no URL", r->ref.host);
    if (!rc) {
        sys_free(*url);
        *url = more;
        *at += n;
    }
    response_release(&p);
    return rc;
}

static int put_pieces(struct connection *c, const struct pack_item *blob, char **url, long *status,
                      struct err *err)
{
    uint64_t at = 0;
    for (unsigned tries = 0; at < blob->size;) {
        bool may_pass;
        uint64_t before = at;
        int rc = patch(c, blob, url, &at, &may_pass, err);
        if (rc && (!may_pass || ++tries >= REGISTRY_TRIES))
            return rc;
        if (!rc)
            tries = 0;
        else if ((rc = registry_wait(connection_registry(c), tries - 1, -1, err)) != 0)
            return rc;
        else if (ask_progress(c, url, &at, err) != 0)
            return err ? err->code : ERR_IO; // the upload is gone: another one may do
        if (at > blob->size)
            at = before;
    }
    const struct pack_item end = {.name = blob->name, .data = (char *)""};
    struct pack_item last = end;
    memcpy(last.digest, blob->digest, sizeof last.digest);
    return put_whole(c, &last, *url, status, err);
}

static int send_blob(struct push *p, struct connection *c, const struct pack_item *blob,
                     bool *may_pass, struct err *err)
{
    bool mounted;
    char *url;
    long status = 0;
    *may_pass = false;
    int rc = begin_upload(c, blob->digest, &mounted, &url, err);
    if (rc)
        return rc;
    if (mounted) {
        count(p, &p->out->n_mounted, 0);
        return 0;
    }
    if (blob->from && blob->size > p->r->opt.chunk_bytes)
        rc = put_pieces(c, blob, &url, &status, err);
    else
        rc = put_whole(c, blob, url, &status, err);
    *may_pass = rc == ERR_IO || registry_may_retry(status) || status == 404;
    sys_free(url);
    if (!rc)
        count(p, NULL, blob->size);
    return rc;
}

static int push_blob(void *arg, struct connection *c, size_t i, struct err *err)
{
    struct push *p = arg;
    const struct pack_item *blob = p->blobs[i];
    bool there, may_pass;
    for (unsigned tries = 0;; tries++) {
        int rc = has_blob(c, blob->digest, &there, err);
        if (!rc && there && tries == 0)
            count(p, &p->out->n_present, 0);
        if (rc || there)
            return rc;
        rc = send_blob(p, c, blob, &may_pass, err);
        if (!rc || !may_pass || tries + 1 >= REGISTRY_TRIES)
            return rc;
        rc = registry_wait(p->r, tries, -1, err);
        if (rc)
            return rc;
    }
}

// ---- manifests ---------------------------------------------------------------------------------

int registry_put_manifest(struct connection *c, const char *data, uint64_t size, const char *type,
                          const char *reference, bool *knows_subject, struct err *err)
{
    struct registry *r = connection_registry(c);
    struct strbuf url;
    struct response p = {0};
    strbuf_init(&url);
    registry_url(r, &url, "manifests/%s", reference);
    struct request q = {.method = "PUT",
                        .url = strbuf_text(&url),
                        .content_type = type,
                        .data = data,
                        .size = size};
    int rc = url.failed ? no_memory(r, err) : registry_request(c, &q, &p, err);
    if (!rc && p.status != 201 && p.status != 200)
        rc = registry_status_error(r, &p, "manifest", err);
    *knows_subject = p.knows_subject;
    response_release(&p);
    strbuf_release(&url);
    return rc;
}

/* Signatures before what they refer to, the tag last: whoever finds the image finds them. */
static int push_manifests(struct push *p, const json_t *manifests, const json_t *referrers,
                          const struct oci_top *top, struct err *err)
{
    struct connection *c;
    size_t i;
    json_t *digest;
    bool ignored;
    int rc = connection_open(&c, p->r, err);
    if (!rc)
        rc = registry_push_signatures(c, p->items, referrers, err);
    json_array_foreach(manifests, i, digest)
    {
        const char *hex = json_string_value(digest);
        const struct pack_item *m = pack_items_find(p->items, hex);
        bool last = strcmp(hex, top->digest) == 0;
        char by_digest[REGISTRY_REFERENCE_BYTES + 1];
        snprintf(by_digest, sizeof by_digest, "sha256:%.64s", hex);
        if (!rc)
            rc = registry_put_manifest(c, m->data, m->size,
                                       last ? top->media_type : OCI_MANIFEST_TYPE,
                                       last ? p->r->ref.reference : by_digest, &ignored, err);
    }
    connection_free(c);
    return rc;
}

static bool is_manifest(const json_t *manifests, const json_t *referrers, const char *digest)
{
    size_t i;
    json_t *m;
    json_array_foreach(referrers, i, m)
    {
        if (strcmp(json_string_value(json_object_get(m, "digest")) + 7, digest) == 0)
            return true;
    }
    json_array_foreach(manifests, i, m)
    {
        if (strcmp(json_string_value(m), digest) == 0)
            return true;
    }
    return false;
}

int registry_push(struct registry *r, const struct pack_items *items, const json_t *manifests,
                  const json_t *referrers, const struct oci_top *top, struct registry_report *out,
                  struct err *err)
{
    struct push p = {.r = r, .items = items, .out = out};
    *out = (struct registry_report){0};
    memcpy(out->digest, top->digest, sizeof out->digest);
    r->writes = true;
    p.blobs = sys_calloc(items->n + 1, sizeof *p.blobs);
    if (!p.blobs)
        return no_memory(r, err);
    for (size_t i = 0; i < items->n; i++) {
        if (!is_manifest(manifests, referrers, items->items[i].digest))
            p.blobs[p.n_blobs++] = &items->items[i];
    }
    out->n_blobs = p.n_blobs;
    pthread_mutex_init(&p.mutex, NULL);
    int rc = registry_each(r, p.n_blobs, push_blob, &p, err);
    if (!rc)
        rc = push_manifests(&p, manifests, referrers, top, err);
    pthread_mutex_destroy(&p.mutex);
    sys_free(p.blobs);
    return rc;
}
