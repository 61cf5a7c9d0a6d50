#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "store/cache.h"
#include "store/import_pack_impl.h"
#include "store/registry_impl.h"

/*
 * The manifests first, then every blob that they name, several at once, into the work folder; what
 * they become is import's business (landing_image). A blob that the store has is linked, and hashed
 * like one that came.
 */
#define ACCEPT OCI_MANIFEST_TYPE ", " OCI_INDEX_TYPE

enum { MAX_DEPTH = 3 };

struct pull {
    struct registry *r;
    struct landing *l;
    struct registry_report *out;
    pthread_mutex_t mutex; // guards *out
    struct fetch {
        size_t idx; // of l->files
    } * fetches;
    size_t n_fetches;
    json_t *images;     // digests of the adapters' manifests
    json_t *signatures; // of them; under the mutex while they are asked for
};

static int no_memory(const struct pull *p, struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "%s: no memory", p->r->ref.host);
}

// ---- manifests ---------------------------------------------------------------------------------

static int check_digest(const struct registry *r, const char *reference, const struct response *a,
                        char hex[DIGEST_HEX_CHARS + 1], struct err *err)
{
    struct digest d, wanted;
    int rc = digest_buffer(strbuf_text(&a->body), a->body.len, &d, err);
    if (rc)
        return rc;
    digest_hex(&d, hex);
    const char *said = strncmp(reference, "sha256:", 7) == 0 ? reference : a->digest;
    if (said && digest_parse(said, &wanted) && !digest_equal(&d, &wanted))
        return err_set(err, ERR_CORRUPT, "%s/%s: manifest %.80s has the digest %.12s", r->ref.host,
                       r->ref.repo, reference, hex);
    return 0;
}

int registry_manifest(struct connection *c, const char *reference, char **text, size_t *n,
                      char hex[DIGEST_HEX_CHARS + 1], struct err *err)
{
    const struct registry *r = connection_registry(c);
    struct strbuf url;
    struct response a = {0};
    strbuf_init(&url);
    registry_url(r, &url, "manifests/%s", reference);
    struct request q = {.method = "GET", .url = strbuf_text(&url), .accept = ACCEPT};
    int rc = url.failed ? err_set(err, ERR_NO_MEMORY, "%s: no memory", r->ref.host)
                        : registry_request(c, &q, &a, err);
    *text = NULL;
    if (!rc && a.status != 200)
        rc = registry_status_error(r, &a, reference, err);
    if (!rc)
        rc = check_digest(r, reference, &a, hex, err);
    if (!rc && !(*text = strbuf_take(&a.body, n)))
        rc = err_set(err, ERR_NO_MEMORY, "%s: no memory", r->ref.host);
    response_release(&a);
    strbuf_release(&url);
    return rc;
}

static int keep_text(struct pull *p, const char *text, size_t n, const char *hex, struct err *err)
{
    struct arrival *a;
    struct arriving *to = NULL;
    struct digest d;
    int rc = arrivals_add(&p->l->files, "manifest", &a, err);
    if (!rc)
        rc = arriving_open(&to, a->path, n, "manifest", err);
    if (!rc)
        rc = arriving_write(to, text, n, err);
    if (!rc)
        rc = arriving_finish(to, &d, err);
    arriving_free(to);
    if (!rc) {
        a->size = n;
        memcpy(a->digest, hex, sizeof a->digest);
    }
    return rc;
}

static int want_blob(struct pull *p, const json_t *file, struct err *err)
{
    const char *digest = landing_text(file, "sha256");
    struct arrival *a;
    if (arrivals_find_digest(&p->l->files, digest))
        return 0;
    int rc = landing_check_file(p->l, file, p->r->ref.reference, err);
    struct fetch *more = rc ? NULL : sys_reallocarray(p->fetches, p->n_fetches + 1, sizeof *more);
    if (!rc && !more)
        rc = no_memory(p, err);
    if (rc)
        return rc;
    p->fetches = more;
    rc = arrivals_add(&p->l->files, landing_text(file, "path"), &a, err);
    if (rc)
        return rc;
    a->size = (uint64_t)json_integer_value(json_object_get(file, "size"));
    snprintf(a->digest, sizeof a->digest, "%s", digest);
    p->fetches[p->n_fetches++] = (struct fetch){p->l->files.n - 1};
    return 0;
}

// ---- signatures --------------------------------------------------------------------------------

static int want_signature(struct pull *p, const json_t *signature, struct err *err)
{
    const char *digest = landing_text(signature, "sha256");
    char name[32];
    struct arrival *a;
    snprintf(name, sizeof name, "signature %.12s", digest);
    if (arrivals_find_digest(&p->l->files, digest))
        return landing_add_signature(p->l, signature, err);
    struct fetch *more = sys_reallocarray(p->fetches, p->n_fetches + 1, sizeof *more);
    if (!more)
        return no_memory(p, err);
    p->fetches = more;
    int rc = arrivals_add(&p->l->files, name, &a, err);
    if (rc)
        return rc;
    a->size = (uint64_t)json_integer_value(json_object_get(signature, "size"));
    snprintf(a->digest, sizeof a->digest, "%s", digest);
    p->fetches[p->n_fetches++] = (struct fetch){p->l->files.n - 1};
    return landing_add_signature(p->l, signature, err);
}

static int ask_signatures(void *arg, struct connection *c, size_t i, struct err *err)
{
    struct pull *p = arg;
    json_t *found = json_array();
    int rc =
        found ? registry_signatures(c, json_string_value(json_array_get(p->images, i)), found, err)
              : no_memory(p, err);
    pthread_mutex_lock(&p->mutex);
    if (!rc && json_array_extend(p->signatures, found) != 0)
        rc = no_memory(p, err);
    pthread_mutex_unlock(&p->mutex);
    json_decref(found);
    return rc;
}

static int find_signatures(struct pull *p, struct err *err)
{
    size_t i;
    json_t *signature;
    int rc = registry_each(p->r, json_array_size(p->images), ask_signatures, p, err);
    json_array_foreach(p->signatures, i, signature)
    {
        rc = rc ? rc : want_signature(p, signature, err);
    }
    return rc;
}

// ---- what a manifest leads to ------------------------------------------------------------------

static int walk(struct pull *p, struct connection *c, const char *text, size_t n, const char *own,
                int depth, struct err *err)
{
    enum oci_kind kind;
    json_t *value = NULL, *d;
    size_t i;
    if (depth > MAX_DEPTH)
        return err_set(err, ERR_REFUSED, "%s: an index in an index in an index", p->l->path);
    int rc = oci_parse(text, n, p->l->path, &kind, &value, err);
    if (!rc && kind == OCI_KIND_MANIFEST && json_array_append_new(p->images, json_string(own)) != 0)
        rc = no_memory(p, err);
    if (!rc && kind == OCI_KIND_SIGNATURE && depth)
        rc = want_signature(p, value, err);
    else if (!rc && (kind == OCI_KIND_SIGNATURE || kind == OCI_KIND_OTHER) && !depth)
        rc = err_set(err, ERR_REFUSED, "%s:%s: refers to an image, and is none", p->l->path,
                     p->r->ref.reference);
    if (rc || kind == OCI_KIND_SIGNATURE || kind == OCI_KIND_OTHER) {
        json_decref(value);
        return rc;
    }
    const json_t *list = !rc && kind == OCI_KIND_MANIFEST ? json_object_get(value, "files") : value;
    json_array_foreach(list, i, d)
    {
        char reference[REGISTRY_REFERENCE_BYTES + 1], hex[DIGEST_HEX_CHARS + 1], *sub = NULL;
        size_t k = 0;
        if (!rc && kind == OCI_KIND_MANIFEST) {
            rc = want_blob(p, d, err);
            continue;
        }
        snprintf(reference, sizeof reference, "sha256:%.64s", landing_text(d, "sha256"));
        if (!rc)
            rc = registry_manifest(c, reference, &sub, &k, hex, err);
        if (!rc && !arrivals_find_digest(&p->l->files, hex))
            rc = keep_text(p, sub, k, hex, err);
        if (!rc)
            rc = walk(p, c, sub, k, hex, depth + 1, err);
        sys_free(sub);
    }
    json_decref(value);
    return rc;
}

// ---- blobs -------------------------------------------------------------------------------------

static void count(struct pull *p, size_t *counter, uint64_t bytes, uint64_t resumed)
{
    pthread_mutex_lock(&p->mutex);
    if (counter)
        ++*counter;
    p->out->bytes += bytes;
    p->out->resumed += resumed;
    pthread_mutex_unlock(&p->mutex);
}

/* A link to the store's own blob; false when it has none, or a spoiled one. */
static bool link_own(struct pull *p, struct arrival *a)
{
    if (!p->l->s || p->l->opt->dry_run ||
        blob_check(p->l->s, a->digest, a->size, BLOB_CHECK_SIZE, NULL) != 0)
        return false;
    char *blob = blob_path(p->l->s, a->digest, NULL), hex[DIGEST_HEX_CHARS + 1];
    struct digest d;
    bool linked = blob && safetensors_stream_file(&a->weights, blob, false, &d, NULL) == 0;
    if (linked) {
        digest_hex(&d, hex);
        linked = strcmp(hex, a->digest) == 0 && sys_link(blob, a->path) == 0;
    }
    sys_free(blob);
    if (!linked) {
        safetensors_stream_free(a->weights);
        a->weights = NULL;
    }
    return linked;
}

struct download {
    struct pull *p;
    struct arriving *to;
    uint64_t skip; // a server that begins again has sent so much already
};

static int take_bytes(void *arg, bool partial, const void *data, size_t n, struct err *err)
{
    struct download *d = arg;
    const struct registry *r = d->p->r;
    const char *at = data;
    if (!partial && d->skip) {
        size_t k = n < d->skip ? n : (size_t)d->skip;
        d->skip -= k;
        at += k;
        n -= k;
    }
    int rc = n ? arriving_write(d->to, at, n, err) : 0;
    if (!rc && n && r->opt.on_bytes && (rc = r->opt.on_bytes(r->opt.arg, n)) != 0)
        err_set(err, rc, "%s: interrupted", r->ref.host);
    return rc;
}

/* One try, from where the last one ended. */
static int download_on(struct download *d, struct connection *c, const struct arrival *a,
                       struct response *answer, struct err *err)
{
    struct strbuf url;
    strbuf_init(&url);
    registry_url(d->p->r, &url, "blobs/sha256:%s", a->digest);
    d->skip = arriving_bytes(d->to);
    struct request q = {.method = "GET",
                        .url = strbuf_text(&url),
                        .sink = take_bytes,
                        .sink_arg = d,
                        .from = arriving_bytes(d->to),
                        .once = true};
    int rc = url.failed ? no_memory(d->p, err) : registry_request(c, &q, answer, err);
    strbuf_release(&url);
    return rc;
}

static int download(struct pull *p, struct connection *c, const struct arrival *a,
                    struct arriving *to, struct err *err)
{
    struct download d = {.p = p, .to = to};
    for (unsigned tries = 0; arriving_bytes(to) < a->size || tries == 0; tries++) {
        struct response answer = {0};
        uint64_t before = arriving_bytes(to);
        int rc = download_on(&d, c, a, &answer, err);
        long status = answer.status, after = answer.retry_after_s;
        bool broken = rc == ERR_IO, again = registry_may_retry(status);
        if (!rc && status != 200 && status != 206)
            rc = registry_status_error(p->r, &answer, a->name, err);
        response_release(&answer);
        if (!rc && arriving_bytes(to) < a->size)
            return err_set(err, ERR_CORRUPT, "%s/%s: %s: ends after %llu of %llu bytes",
                           p->r->ref.host, p->r->ref.repo, a->name,
                           (unsigned long long)arriving_bytes(to), (unsigned long long)a->size);
        if (!rc)
            return 0;
        if (arriving_bytes(to) > before)
            tries = 0; // it gets on
        if (!(broken || again) || tries + 1 >= REGISTRY_TRIES)
            return rc;
        rc = registry_wait(p->r, tries, broken ? -1 : after, err);
        if (rc)
            return rc;
    }
    return 0;
}

/* Where a blob comes to: a file in the cache that outlives a pull which is cut off, or without a
 * store, or when another pull is at that file, one in the work folder. */
struct place {
    char *partial; // NULL: the work folder
    struct arriving *to;
    uint64_t begun; // bytes that were there
};

enum { PARTIAL_BYTES = 64 << 10 }; // less is fetched again as quickly

static int open_place(struct pull *p, const struct arrival *a, bool fresh, struct place *place,
                      struct err *err)
{
    *place = (struct place){0};
    if (p->l->s && !p->l->opt->dry_run && a->size >= PARTIAL_BYTES)
        place->partial = cache_partial_path(p->l->s->path, a->digest, NULL);
    if (place->partial && fresh)
        sys_unlink(place->partial);
    if (place->partial &&
        arriving_open_partial(&place->to, place->partial, a->size, a->name, NULL) == 0) {
        place->begun = arriving_bytes(place->to);
        return 0;
    }
    sys_free(place->partial);
    place->partial = NULL;
    return arriving_open(&place->to, a->path, a->size, a->name, err);
}

/* What was received is kept where more may follow. */
static void close_place(struct place *place, int rc)
{
    bool keep = rc && rc != ERR_CORRUPT;
    if (place->partial && keep)
        arriving_keep(place->to, NULL);
    else if (place->partial && rc)
        sys_unlink(place->partial);
    arriving_free(place->to);
    sys_free(place->partial);
}

static int check_blob(const struct pull *p, const struct arrival *a, const struct digest *d,
                      struct err *err)
{
    char hex[DIGEST_HEX_CHARS + 1];
    digest_hex(d, hex);
    return strcmp(hex, a->digest) == 0
               ? 0
               : err_set(err, ERR_CORRUPT, "%s/%s: %s: its digest is %.12s, wanted %.12s",
                         p->r->ref.host, p->r->ref.repo, a->name, hex, a->digest);
}

/* fresh: what an earlier pull left is not trusted. *begun: it was gone on with. */
static int fetch(struct pull *p, struct connection *c, struct arrival *a, bool fresh,
                 uint64_t *begun, struct err *err)
{
    struct place place;
    struct digest d;
    int rc = open_place(p, a, fresh, &place, err);
    *begun = place.begun;
    if (!rc && (place.begun < a->size || !a->size))
        rc = download(p, c, a, place.to, err);
    if (!rc)
        rc = arriving_finish(place.to, &d, err);
    if (!rc)
        rc = check_blob(p, a, &d, err);
    if (!rc && place.partial && sys_rename(place.partial, a->path) != 0)
        rc = err_set_errno(err, errno, "%s: cannot rename to it", a->path);
    if (!rc)
        a->weights = arriving_take_weights(place.to);
    close_place(&place, rc);
    return rc;
}

static int fetch_blob(void *arg, struct connection *c, size_t i, struct err *err)
{
    struct pull *p = arg;
    struct arrival *a = &p->l->files.items[p->fetches[i].idx];
    uint64_t begun;
    if (link_own(p, a)) {
        count(p, &p->out->n_present, 0, 0);
        return 0;
    }
    int rc = fetch(p, c, a, false, &begun, err);
    // The fault may lie in what was there before.
    if (rc == ERR_CORRUPT && begun) {
        err_clear(err);
        rc = fetch(p, c, a, true, &begun, err);
    }
    if (!rc)
        count(p, NULL, a->size - begun, begun);
    return rc;
}

// ---- all of it ---------------------------------------------------------------------------------

static int blob_that_came(void *arg, const char *digest, uint64_t size, const char *what,
                          const struct arrival **out, struct err *err)
{
    struct pull *p = arg;
    (void)size;
    *out = arrivals_find_digest(&p->l->files, digest);
    return *out ? 0 : err_set(err, ERR_INTERNAL, "%s: %s was not fetched", p->l->path, what);
}

static int pull(struct pull *p, struct err *err)
{
    struct connection *c;
    char *text = NULL, hex[DIGEST_HEX_CHARS + 1];
    size_t n = 0;
    int rc = connection_open(&c, p->r, err);
    if (!rc)
        rc = registry_manifest(c, p->r->ref.reference, &text, &n, hex, err);
    if (!rc) {
        memcpy(p->out->digest, hex, sizeof p->out->digest);
        rc = walk(p, c, text, n, hex, 0, err);
    }
    connection_free(c);
    if (!rc)
        rc = find_signatures(p, err);
    p->out->n_blobs = p->n_fetches;
    if (!rc)
        rc = registry_each(p->r, p->n_fetches, fetch_blob, p, err);
    const struct landing_blobs blobs = {blob_that_came, p};
    if (!rc)
        rc = landing_image(p->l, text, n, p->r->ref.reference, &blobs, err);
    sys_free(text);
    return rc;
}

int registry_pull(struct registry *r, struct store *s, const struct import_options *opt,
                  import_row_fn *row, void *arg, json_t **notes, struct registry_report *out,
                  struct err *err)
{
    struct landing l;
    struct strbuf path;
    *notes = NULL;
    *out = (struct registry_report){0};
    strbuf_init(&path);
    strbuf_addf(&path, "%s/%s", r->ref.host, r->ref.repo);
    int rc = path.failed ? err_set(err, ERR_NO_MEMORY, "%s: no memory", r->ref.host)
                         : landing_open(&l, s, strbuf_text(&path), opt, row, arg, err);
    if (!rc) {
        struct pull p = {
            .r = r, .l = &l, .out = out, .images = json_array(), .signatures = json_array()};
        pthread_mutex_init(&p.mutex, NULL);
        rc = p.images && p.signatures ? pull(&p, err) : no_memory(&p, err);
        pthread_mutex_destroy(&p.mutex);
        sys_free(p.fetches);
        json_decref(p.images);
        json_decref(p.signatures);
        if (!rc)
            *notes = json_incref(l.notes);
        landing_close(&l);
    }
    strbuf_release(&path);
    return rc;
}
