#include <curl/curl.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "libcore/base/sys.h"
#include "store/registry_impl.h"

enum { CONNECT_S = 15, STALLED_S = 60, MAX_RETRY_AFTER_S = 60 };

struct connection {
    struct registry *r;
    CURL *curl;
    char why[CURL_ERROR_SIZE];
};

/* One try of one request, as curl's callbacks see it. */
struct exchange {
    struct connection *c;
    const struct request *q;
    struct response *p;
    int file; // being sent
    uint64_t sent;
    struct err err; // of a callback
    bool told;      // on_bytes said stop
};

// ---- sessions ----------------------------------------------------------------------------------

static void curl_start(void)
{
    curl_global_init(CURL_GLOBAL_DEFAULT);
}

static bool is_loopback(const char *host)
{
    static const char *const names[] = {"localhost", "127.0.0.1", "[::1]"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        size_t n = strlen(names[i]);
        if (strncmp(host, names[i], n) == 0 && (host[n] == '\0' || host[n] == ':'))
            return true;
    }
    return false;
}

int registry_open(struct registry **out, const struct registry_ref *ref,
                  const struct registry_options *opt, struct err *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    *out = NULL;
    if (opt->plain_http && !is_loopback(ref->host))
        return err_set(err, ERR_USAGE, "%s: plain http is for this machine alone", ref->host);
    pthread_once(&once, curl_start);
    struct registry *r = sys_calloc(1, sizeof *r);
    if (!r)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", ref->host);
    r->ref = *ref;
    r->opt = *opt;
    if (!r->opt.chunk_bytes)
        r->opt.chunk_bytes = REGISTRY_CHUNK_BYTES;
    if (!r->opt.retry_ms)
        r->opt.retry_ms = 500;
    pthread_mutex_init(&r->mutex, NULL);
    *out = r;
    return 0;
}

void registry_free(struct registry *r)
{
    if (!r)
        return;
    pthread_mutex_destroy(&r->mutex);
    sys_free(r->authorization);
    sys_free(r);
}

int connection_open(struct connection **out, struct registry *r, struct err *err)
{
    *out = NULL;
    struct connection *c = sys_calloc(1, sizeof *c);
    if (c) {
        c->r = r;
        c->curl = curl_easy_init();
    }
    if (!c || !c->curl) {
        sys_free(c);
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", r->ref.host);
    }
    *out = c;
    return 0;
}

void connection_free(struct connection *c)
{
    if (!c)
        return;
    curl_easy_cleanup(c->curl);
    sys_free(c);
}

struct registry *connection_registry(const struct connection *c)
{
    return c->r;
}

void response_release(struct response *p)
{
    sys_free(p->url);
    sys_free(p->location);
    sys_free(p->digest);
    sys_free(p->challenge);
    sys_free(p->range);
    strbuf_release(&p->body);
    *p = (struct response){0};
}

// ---- URLs --------------------------------------------------------------------------------------

void registry_url(const struct registry *r, struct strbuf *out, const char *fmt, ...)
{
    va_list args;
    // Docker's own registry answers under another name.
    bool hub = strcmp(r->ref.host, "docker.io") == 0;
    strbuf_addf(out, "http%s://%s/v2/%s/", r->opt.plain_http ? "" : "s",
                hub ? "registry-1.docker.io" : r->ref.host, r->ref.repo);
    va_start(args, fmt);
    strbuf_addv(out, fmt, args);
    va_end(args);
}

char *registry_resolve_url(const char *base, const char *location, const char *query)
{
    CURLU *u = curl_url();
    char *text = NULL, *out = NULL;
    bool good = u && curl_url_set(u, CURLUPART_URL, base, 0) == CURLUE_OK &&
                (!*location || curl_url_set(u, CURLUPART_URL, location, 0) == CURLUE_OK);
    if (good && query)
        good = curl_url_set(u, CURLUPART_QUERY, query, CURLU_APPENDQUERY) == CURLUE_OK;
    if (good && curl_url_get(u, CURLUPART_URL, &text, 0) == CURLUE_OK)
        out = sys_strdup(text);
    curl_free(text);
    curl_url_cleanup(u);
    return out;
}

static bool same_part(CURLU *a, CURLU *b, CURLUPart part, unsigned flags)
{
    char *x = NULL, *y = NULL;
    bool same = curl_url_get(a, part, &x, flags) == CURLUE_OK &&
                curl_url_get(b, part, &y, flags) == CURLUE_OK && strcasecmp(x, y) == 0;
    curl_free(x);
    curl_free(y);
    return same;
}

bool registry_same_host(const char *a, const char *b)
{
    CURLU *x = curl_url(), *y = curl_url();
    bool same = x && y && curl_url_set(x, CURLUPART_URL, a, 0) == CURLUE_OK &&
                curl_url_set(y, CURLUPART_URL, b, 0) == CURLUE_OK &&
                same_part(x, y, CURLUPART_SCHEME, 0) && same_part(x, y, CURLUPART_HOST, 0) &&
                same_part(x, y, CURLUPART_PORT, CURLU_DEFAULT_PORT);
    curl_url_cleanup(x);
    curl_url_cleanup(y);
    return same;
}

// ---- callbacks ---------------------------------------------------------------------------------

static size_t take_body(char *data, size_t size, size_t n, void *arg)
{
    struct exchange *x = arg;
    struct response *p = x->p;
    long status = 0;
    n *= size;
    curl_easy_getinfo(x->c->curl, CURLINFO_RESPONSE_CODE, &status);
    if (x->q->sink && (status == 200 || status == 206))
        return x->q->sink(x->q->sink_arg, status == 206, data, n, &x->err) == 0 ? n : 0;
    strbuf_add(&p->body, data, n);
    if (p->body.too_long)
        err_set(&x->err, ERR_LIMIT, "%s: an answer of more than %d bytes", x->c->r->ref.host,
                LIMIT_OCI_MANIFEST_BYTES);
    else if (p->body.failed)
        err_set(&x->err, ERR_NO_MEMORY, "%s: no memory", x->c->r->ref.host);
    return p->body.failed ? 0 : n;
}

/* The value of a header line, when it is `name`'s; the caller's. */
static char *header_value(const char *line, size_t n, const char *name)
{
    size_t k = strlen(name);
    if (n <= k || strncasecmp(line, name, k) != 0 || line[k] != ':')
        return NULL;
    for (k++; k < n && (line[k] == ' ' || line[k] == '\t'); k++)
        continue;
    while (n > k && (line[n - 1] == '\r' || line[n - 1] == '\n' || line[n - 1] == ' '))
        n--;
    return sys_strndup(line + k, n - k);
}

static void replace(char **field, char *value)
{
    if (!value)
        return;
    sys_free(*field);
    *field = value;
}

static size_t take_header(char *line, size_t size, size_t n, void *arg)
{
    struct exchange *x = arg;
    struct response *p = x->p;
    n *= size;
    replace(&p->location, header_value(line, n, "Location"));
    replace(&p->digest, header_value(line, n, "Docker-Content-Digest"));
    replace(&p->range, header_value(line, n, "Range"));
    char *subject = header_value(line, n, "OCI-Subject");
    p->knows_subject |= subject != NULL;
    sys_free(subject);
    // Of several challenges the token's is answered.
    char *challenge = header_value(line, n, "WWW-Authenticate");
    if (challenge && p->challenge && strncasecmp(challenge, "Bearer", 6) != 0)
        sys_free(challenge);
    else
        replace(&p->challenge, challenge);
    char *after = header_value(line, n, "Retry-After");
    if (after) { // seconds, or a date
        char *end;
        long s = strtol(after, &end, 10);
        time_t at = end == after ? curl_getdate(after, NULL) : -1;
        p->retry_after_s = end != after ? s : at > time(NULL) ? (long)(at - time(NULL)) : -1;
        sys_free(after);
    }
    return n;
}

static size_t give_body(char *to, size_t size, size_t n, void *arg)
{
    struct exchange *x = arg;
    const struct request *q = x->q;
    n *= size;
    if (n > q->size - x->sent)
        n = (size_t)(q->size - x->sent);
    if (n && q->data) {
        memcpy(to, (const char *)q->data + x->sent, n);
    } else if (n) {
        ssize_t got = sys_pread(x->file, to, n, (off_t)(q->offset + x->sent));
        if (got <= 0) {
            err_set(&x->err, ERR_IO, "%s: cannot be read", q->file);
            return CURL_READFUNC_ABORT;
        }
        n = (size_t)got;
    }
    x->sent += n;
    const struct registry *r = x->c->r;
    int rc = q->file && r->opt.on_bytes ? r->opt.on_bytes(r->opt.arg, n) : 0;
    if (rc)
        err_set(&x->err, rc, "%s: interrupted", r->ref.host);
    return rc ? CURL_READFUNC_ABORT : n;
}

static int rewind_body(void *arg, curl_off_t offset, int origin)
{
    struct exchange *x = arg;
    if (origin != SEEK_SET || (uint64_t)offset > x->q->size)
        return CURL_SEEKFUNC_FAIL;
    x->sent = (uint64_t)offset;
    return CURL_SEEKFUNC_OK;
}

static int watch(void *arg, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    struct exchange *x = arg;
    const struct registry *r = x->c->r;
    (void)a, (void)b, (void)c, (void)d;
    int rc = r->opt.on_bytes ? r->opt.on_bytes(r->opt.arg, 0) : 0;
    if (rc && !x->err.code)
        err_set(&x->err, rc, "%s: interrupted", r->ref.host);
    return rc ? 1 : 0;
}

// ---- one try -----------------------------------------------------------------------------------

static struct curl_slist *add_header(struct curl_slist *list, bool *failed, const char *name,
                                     const char *value)
{
    struct strbuf sb;
    if (!value)
        return list;
    strbuf_init(&sb);
    strbuf_addf(&sb, "%s:%s%s", name, *value ? " " : "", value);
    struct curl_slist *more = sb.failed ? NULL : curl_slist_append(list, sb.data);
    *failed |= !more;
    strbuf_release(&sb);
    return more ? more : list;
}

static void set_transfer(struct exchange *x)
{
    CURL *h = x->c->curl;
    const struct request *q = x->q;
    bool plain = x->c->r->opt.plain_http;
    curl_easy_reset(h);
    curl_easy_setopt(h, CURLOPT_ERRORBUFFER, x->c->why);
    curl_easy_setopt(h, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(h, CURLOPT_URL, q->url);
    curl_easy_setopt(h, CURLOPT_PROTOCOLS_STR, plain ? "http,https" : "https");
    curl_easy_setopt(h, CURLOPT_REDIR_PROTOCOLS_STR, plain ? "http,https" : "https");
    // Only what has no body is led elsewhere; curl keeps our Authorization from other hosts.
    bool reads = strcmp(q->method, "GET") == 0 || strcmp(q->method, "HEAD") == 0;
    curl_easy_setopt(h, CURLOPT_FOLLOWLOCATION, reads ? 1L : 0L);
    curl_easy_setopt(h, CURLOPT_MAXREDIRS, 5L);
    curl_easy_setopt(h, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_S);
    curl_easy_setopt(h, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(h, CURLOPT_LOW_SPEED_TIME, (long)STALLED_S);
    curl_easy_setopt(h, CURLOPT_USERAGENT, "lora");
    curl_easy_setopt(h, CURLOPT_BUFFERSIZE, 256L << 10);
    curl_easy_setopt(h, CURLOPT_UPLOAD_BUFFERSIZE, 1L << 20);
    curl_easy_setopt(h, CURLOPT_WRITEFUNCTION, take_body);
    curl_easy_setopt(h, CURLOPT_WRITEDATA, x);
    curl_easy_setopt(h, CURLOPT_HEADERFUNCTION, take_header);
    curl_easy_setopt(h, CURLOPT_HEADERDATA, x);
    curl_easy_setopt(h, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(h, CURLOPT_XFERINFOFUNCTION, watch);
    curl_easy_setopt(h, CURLOPT_XFERINFODATA, x);
    if (strcmp(q->method, "HEAD") == 0)
        curl_easy_setopt(h, CURLOPT_NOBODY, 1L);
    if (q->from) { // a server that begins at 0 all the same is no error (CURLOPT_RESUME_FROM: it
                   // is)
        char range[32];
        snprintf(range, sizeof range, "%llu-", (unsigned long long)q->from);
        curl_easy_setopt(h, CURLOPT_RANGE, range);
    }
    if (reads)
        return;
    curl_easy_setopt(h, CURLOPT_UPLOAD, 1L);
    curl_easy_setopt(h, CURLOPT_CUSTOMREQUEST, q->method);
    curl_easy_setopt(h, CURLOPT_INFILESIZE_LARGE, (curl_off_t)q->size);
    curl_easy_setopt(h, CURLOPT_READFUNCTION, give_body);
    curl_easy_setopt(h, CURLOPT_READDATA, x);
    curl_easy_setopt(h, CURLOPT_SEEKFUNCTION, rewind_body);
    curl_easy_setopt(h, CURLOPT_SEEKDATA, x);
}

static struct curl_slist *set_headers(struct exchange *x, const char *authorization, bool *failed)
{
    const struct request *q = x->q;
    struct curl_slist *list = NULL;
    list = add_header(list, failed, "Accept", q->accept);
    list = add_header(list, failed, "Content-Type", q->content_type);
    list = add_header(list, failed, "Content-Range", q->content_range);
    list = add_header(list, failed, "Authorization", authorization);
    list = add_header(list, failed, "Expect", "");
    curl_easy_setopt(x->c->curl, CURLOPT_HTTPHEADER, list);
    return list;
}

static bool may_pass(CURLcode code)
{
    static const CURLcode moments[] = {
        CURLE_COULDNT_CONNECT, CURLE_OPERATION_TIMEDOUT, CURLE_SEND_ERROR,
        CURLE_RECV_ERROR,      CURLE_GOT_NOTHING,        CURLE_PARTIAL_FILE,
        CURLE_HTTP2,           CURLE_HTTP2_STREAM,       CURLE_COULDNT_RESOLVE_HOST,
    };
    for (size_t i = 0; i < sizeof moments / sizeof *moments; i++) {
        if (code == moments[i])
            return true;
    }
    return false;
}

/* *moment: it failed in a way that may pass. */
static int try_once(struct exchange *x, const char *authorization, bool *moment, struct err *err)
{
    const struct request *q = x->q;
    bool failed = false;
    *moment = false;
    response_release(x->p);
    x->p->retry_after_s = -1;
    x->p->body.max = LIMIT_OCI_MANIFEST_BYTES;
    x->sent = 0;
    x->err.code = 0;
    x->c->why[0] = '\0';
    x->file = q->file ? sys_open(q->file, O_RDONLY, 0) : -1;
    if (q->file && x->file < 0)
        return err_set_errno(err, errno, "%s: cannot open", q->file);
    set_transfer(x);
    struct curl_slist *headers = set_headers(x, authorization, &failed);
    CURLcode code = failed ? CURLE_OUT_OF_MEMORY : curl_easy_perform(x->c->curl);
    curl_slist_free_all(headers);
    if (x->file >= 0)
        sys_close(x->file);
    if (x->err.code)
        return err_set(err, x->err.code, "%s", x->err.msg);
    if (code == CURLE_OK) {
        char *url = NULL;
        curl_easy_getinfo(x->c->curl, CURLINFO_RESPONSE_CODE, &x->p->status);
        curl_easy_getinfo(x->c->curl, CURLINFO_EFFECTIVE_URL, &url);
        x->p->url = sys_strdup(url ? url : q->url);
        return x->p->url ? 0 : err_set(err, ERR_NO_MEMORY, "no memory");
    }
    *moment = may_pass(code);
    return err_set(err, code == CURLE_OUT_OF_MEMORY ? ERR_NO_MEMORY : ERR_IO, "%s: %s",
                   x->c->r->ref.host, x->c->why[0] ? x->c->why : curl_easy_strerror(code));
}

// ---- tries -------------------------------------------------------------------------------------

bool registry_may_retry(long status)
{
    return status == 429 || status == 500 || status == 502 || status == 503 || status == 504;
}

int registry_wait(const struct registry *r, unsigned try, long retry_after_s, struct err *err)
{
    uint64_t ms = (uint64_t)r->opt.retry_ms << (try < 6 ? try : 6);
    if (retry_after_s > MAX_RETRY_AFTER_S)
        return err_set(err, ERR_BUSY, "%s: asks to come back in %ld s", r->ref.host, retry_after_s);
    if (retry_after_s >= 0)
        ms = (uint64_t)retry_after_s * 1000;
    for (uint64_t done = 0; done < ms; done += 50) {
        const struct timespec step = {0, 50000000};
        int rc = r->opt.on_bytes ? r->opt.on_bytes(r->opt.arg, 0) : 0;
        if (rc)
            return err_set(err, rc, "%s: interrupted", r->ref.host);
        nanosleep(&step, NULL);
    }
    return 0;
}

static char *copy_authorization(struct registry *r, unsigned *generation)
{
    pthread_mutex_lock(&r->mutex);
    char *copy = r->authorization ? sys_strdup(r->authorization) : NULL;
    *generation = r->generation;
    pthread_mutex_unlock(&r->mutex);
    return copy;
}

/* One thread asks for a token; those that met 401 with the same old one wait and take its. */
static int renew(struct connection *c, unsigned seen, const char *challenge, struct err *err)
{
    struct registry *r = c->r;
    struct connection *own = NULL;
    char *fresh = NULL;
    int rc = 0;
    pthread_mutex_lock(&r->mutex);
    if (r->generation == seen) {
        rc = connection_open(&own, r, err);
        if (!rc)
            rc = registry_authenticate(own, challenge, &fresh, err);
        connection_free(own);
        if (!rc) {
            sys_free(r->authorization);
            r->authorization = fresh;
            r->generation++;
        }
    }
    pthread_mutex_unlock(&r->mutex);
    return rc;
}

int registry_request(struct connection *c, const struct request *q, struct response *p,
                     struct err *err)
{
    struct exchange x = {.c = c, .q = q, .p = p, .file = -1};
    bool renewed = false;
    *p = (struct response){.retry_after_s = -1};
    for (unsigned tries = 0;;) {
        unsigned seen = 0;
        bool moment;
        char *own = q->foreign ? NULL : copy_authorization(c->r, &seen);
        err_clear(err);
        int rc = try_once(&x, q->authorization ? q->authorization : own, &moment, err);
        sys_free(own);
        if (!rc && p->status == 401 && !q->foreign && !renewed && p->challenge) {
            renewed = true;
            rc = renew(c, seen, p->challenge, err);
            if (rc)
                return rc;
            continue;
        }
        bool again = rc ? moment : registry_may_retry(p->status);
        if (!again || q->once || ++tries >= REGISTRY_TRIES)
            return rc;
        rc = registry_wait(c->r, tries - 1, p->retry_after_s, err);
        if (rc)
            return rc;
    }
}

/* {"errors": [{"code", "message"}]} in a line. */
static void own_words(const struct response *p, char *text, size_t n)
{
    json_t *root = p->body.len ? json_loadb(p->body.data, p->body.len, 0, NULL) : NULL;
    const json_t *e = json_array_get(json_object_get(root, "errors"), 0);
    const char *code = json_string_value(json_object_get(e, "code"));
    const char *message = json_string_value(json_object_get(e, "message"));
    snprintf(text, n, "%s%.60s%s%.200s", code || message ? ": " : "", code ? code : "",
             code && message ? " " : "", message ? message : "");
    for (char *c = text; *c; c++) {
        if ((unsigned char)*c < ' ' || *c == 127)
            *c = ' ';
    }
    json_decref(root);
}

int registry_status_error(const struct registry *r, const struct response *p, const char *what,
                          struct err *err)
{
    char words[300];
    own_words(p, words, sizeof words);
    int code = p->status == 401 || p->status == 403 ? ERR_DENIED
               : p->status == 404                   ? ERR_NOT_FOUND
               : p->status == 429                   ? ERR_BUSY
                                                    : ERR_FAIL;
    return err_set(err, code, "%s/%s: %s: status %ld%s%s", r->ref.host, r->ref.repo, what,
                   p->status, p->status == 429 ? " (too many requests)" : "", words);
}
