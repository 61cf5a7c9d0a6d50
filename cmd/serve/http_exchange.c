#include "cmd/serve/http_impl.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/base/thread.h"

// A client that reads slower than this much text behind is dropped.
enum { STREAM_BACKLOG_BYTES = 16 << 20 };

// ---- life ---------------------------------------------------------------------------------------

static void describe_peer(struct http_exchange *x, const struct sockaddr *addr)
{
    char host[INET6_ADDRSTRLEN] = "?";
    unsigned port = 0;
    if (addr && addr->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)addr;
        inet_ntop(AF_INET, &in->sin_addr, host, sizeof host);
        port = ntohs(in->sin_port);
        x->loopback = (ntohl(in->sin_addr.s_addr) >> 24) == 127;
    } else if (addr && addr->sa_family == AF_INET6) {
        const struct sockaddr_in6 *in = (const struct sockaddr_in6 *)addr;
        inet_ntop(AF_INET6, &in->sin6_addr, host, sizeof host);
        port = ntohs(in->sin6_port);
        x->loopback = IN6_IS_ADDR_LOOPBACK(&in->sin6_addr) ||
                      (IN6_IS_ADDR_V4MAPPED(&in->sin6_addr) && in->sin6_addr.s6_addr[12] == 127);
    }
    snprintf(x->peer, sizeof x->peer, "%s:%u", host, port);
}

static const char *static_method(const char *method)
{
    static const char *const known[] = {"GET", "POST", "HEAD", "PUT", "PATCH", "OPTIONS", "DELETE"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(known[i], method) == 0)
            return known[i];
    }
    return "OTHER";
}

static void exchange_destroy(struct http_exchange *x)
{
    for (unsigned i = 0; i < x->n_headers; i++) {
        sys_free(x->header_names[i]);
        sys_free(x->header_values[i]);
    }
    if (x->release_user)
        x->release_user(x->user);
    strbuf_release(&x->body);
    strbuf_release(&x->out);
    pthread_mutex_destroy(&x->mutex);
    sys_free(x->path);
    sys_free(x);
}

struct http_exchange *http_hold(struct http_exchange *x)
{
    atomic_fetch_add_explicit(&x->refs, 1, memory_order_relaxed);
    return x;
}

void http_release(struct http_exchange *x)
{
    if (x && atomic_fetch_sub_explicit(&x->refs, 1, memory_order_acq_rel) == 1)
        exchange_destroy(x);
}

struct http_exchange *http_exchange_open(struct http_server *s, struct MHD_Connection *connection,
                                         const char *method, const char *path)
{
    struct http_exchange *x = sys_calloc(1, sizeof *x);
    if (!x)
        return NULL;
    x->server = s;
    x->method = static_method(method);
    x->path = sys_strdup(path);
    x->connection = connection;
    x->watched_fd = -1;
    x->started_ns = thread_now_ns();
    atomic_init(&x->refs, 1); // libmicrohttpd's
    pthread_mutex_init(&x->mutex, NULL);
    strbuf_init(&x->body);
    strbuf_init(&x->out);
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    describe_peer(x, info ? info->client_addr : NULL);
    if (!x->path) {
        exchange_destroy(x);
        return NULL;
    }
    pthread_mutex_lock(&s->mutex);
    x->id = ++s->last_id;
    x->next = s->first;
    if (s->first)
        s->first->prev = x;
    s->first = x;
    s->n_open++;
    pthread_mutex_unlock(&s->mutex);
    return x;
}

void http_exchange_unlist(struct http_exchange *x)
{
    struct http_server *s = x->server;
    pthread_mutex_lock(&s->mutex);
    if (x->prev)
        x->prev->next = x->next;
    else
        s->first = x->next;
    if (x->next)
        x->next->prev = x->prev;
    s->n_open--;
    pthread_mutex_unlock(&s->mutex);
}

void http_exchange_resume(struct http_exchange *x)
{
    if (!x->suspended)
        return;
    x->suspended = false;
    MHD_resume_connection(x->connection);
}

void http_exchange_leave(struct http_exchange *x)
{
    pthread_mutex_lock(&x->mutex);
    bool tell = !x->told_gone && x->dispatched && !(x->answered && (!x->streaming || x->ended));
    x->gone = true;
    x->told_gone = x->told_gone || tell;
    http_exchange_resume(x);
    pthread_mutex_unlock(&x->mutex);
    if (tell)
        x->server->opt.gone(x->server->opt.user, x);
}

// ---- the request --------------------------------------------------------------------------------

const char *http_method(const struct http_exchange *x)
{
    return x->method;
}

const char *http_path(const struct http_exchange *x)
{
    return x->path;
}

const char *http_header(const struct http_exchange *x, const char *name)
{
    return MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, name);
}

const char *http_body(const struct http_exchange *x, size_t *n)
{
    *n = x->body.len;
    return strbuf_text(&x->body);
}

bool http_peer_is_loopback(const struct http_exchange *x)
{
    return x->loopback;
}

const char *http_peer(const struct http_exchange *x)
{
    return x->peer;
}

uint64_t http_started_ns(const struct http_exchange *x)
{
    return x->started_ns;
}

void http_set_tag(struct http_exchange *x, const void *tag)
{
    x->tag = tag;
}

const void *http_tag(const struct http_exchange *x)
{
    return x->tag;
}

void http_set_user(struct http_exchange *x, void *user, void (*release)(void *user))
{
    pthread_mutex_lock(&x->mutex);
    x->user = user;
    x->release_user = release;
    pthread_mutex_unlock(&x->mutex);
}

void *http_user(struct http_exchange *x)
{
    pthread_mutex_lock(&x->mutex);
    void *user = x->user;
    pthread_mutex_unlock(&x->mutex);
    return user;
}

bool http_is_gone(struct http_exchange *x)
{
    pthread_mutex_lock(&x->mutex);
    bool gone = x->gone;
    pthread_mutex_unlock(&x->mutex);
    return gone;
}

bool http_is_answered(struct http_exchange *x)
{
    pthread_mutex_lock(&x->mutex);
    bool answered = x->answered;
    pthread_mutex_unlock(&x->mutex);
    return answered;
}

// ---- the answer ---------------------------------------------------------------------------------

void http_add_header(struct http_exchange *x, const char *name, const char *value)
{
    pthread_mutex_lock(&x->mutex);
    if (x->n_headers < HTTP_MAX_HEADERS) {
        x->header_names[x->n_headers] = sys_strdup(name);
        x->header_values[x->n_headers] = sys_strdup(value);
        if (x->header_names[x->n_headers] && x->header_values[x->n_headers]) {
            x->n_headers++;
        } else {
            sys_free(x->header_names[x->n_headers]);
            sys_free(x->header_values[x->n_headers]);
        }
    }
    pthread_mutex_unlock(&x->mutex);
}

void http_answer(struct http_exchange *x, unsigned status, const char *content_type,
                 struct strbuf *body)
{
    pthread_mutex_lock(&x->mutex);
    if (!x->answered) {
        x->answered = true;
        x->status = body && body->failed ? MHD_HTTP_INTERNAL_SERVER_ERROR : status;
        x->content_type = content_type;
        if (body && !body->failed) {
            strbuf_release(&x->out);
            x->out = *body;
            strbuf_init(body);
        }
        http_exchange_resume(x);
    }
    pthread_mutex_unlock(&x->mutex);
    if (body)
        strbuf_release(body);
}

void http_answer_text(struct http_exchange *x, unsigned status, const char *text)
{
    struct strbuf body;
    strbuf_init(&body);
    strbuf_adds(&body, text);
    http_answer(x, status, "text/plain; charset=utf-8", &body);
}

void http_stream_begin(struct http_exchange *x, unsigned status, const char *content_type)
{
    pthread_mutex_lock(&x->mutex);
    if (!x->answered) {
        x->answered = x->streaming = true;
        x->status = status;
        x->content_type = content_type;
        http_exchange_resume(x);
    }
    pthread_mutex_unlock(&x->mutex);
}

bool http_stream_write(struct http_exchange *x, const void *data, size_t n)
{
    pthread_mutex_lock(&x->mutex);
    bool ok = !x->gone && !x->ended && x->streaming;
    if (ok) {
        strbuf_add(&x->out, data, n);
        ok = !x->out.failed && x->out.len - x->out_pos <= STREAM_BACKLOG_BYTES;
    }
    pthread_mutex_unlock(&x->mutex);
    return ok;
}

void http_stream_flush(struct http_exchange *x)
{
    pthread_mutex_lock(&x->mutex);
    if (x->out.len > x->out_pos)
        http_exchange_resume(x);
    pthread_mutex_unlock(&x->mutex);
}

void http_stream_end(struct http_exchange *x)
{
    pthread_mutex_lock(&x->mutex);
    x->ended = true;
    http_exchange_resume(x);
    pthread_mutex_unlock(&x->mutex);
}

unsigned http_status(const struct http_exchange *x)
{
    return x->status;
}

uint64_t http_bytes_sent(const struct http_exchange *x)
{
    return x->n_sent;
}
