#include "cmd/serve/http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "libcore/base/log.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"

enum {
    MAX_HEADERS = 4,
    // Headers and the read buffer of one connection; libmicrohttpd answers 431 beyond.
    CONNECTION_BYTES = 32 << 10,
    STREAM_BLOCK_BYTES = 16 << 10,
    // A client that reads slower than this much text behind is dropped.
    STREAM_BACKLOG_BYTES = 16 << 20,
    // A body that is too large is read and dropped up to this many times the limit, so that the
    // client gets to see the 413.
    DISCARD_FACTOR = 4,
    LISTEN_BACKLOG = 1024,
};

struct http_exchange {
    struct http_server *server;
    struct http_exchange *next, *prev; // server's list, under server->mutex
    atomic_uint refs;
    uint64_t id; // never used twice; what the watcher's epoll carries

    const char *method; // static
    char *path;
    char peer[72];
    bool loopback;
    struct strbuf body;
    uint64_t n_discarded;
    uint64_t started_ns;
    const void *tag;

    pthread_mutex_t mutex;             // everything below
    struct MHD_Connection *connection; // NULL when the exchange is over
    int watched_fd;                    // -1
    bool dispatched, suspended, answered, queued, streaming, ended, gone, told_gone;
    unsigned status;
    const char *content_type;
    char *header_names[MAX_HEADERS], *header_values[MAX_HEADERS];
    unsigned n_headers;
    struct strbuf out;
    size_t out_pos;
    uint64_t n_sent;
    void *user;
    void (*release_user)(void *user);
};

struct http_server {
    struct http_options opt;
    struct MHD_Daemon *daemon;
    int listen_fd, watch_fd, stop_fd;
    uint16_t port;
    pthread_t watcher;
    bool watcher_started;
    pthread_mutex_t mutex;
    struct http_exchange *first; // open exchanges
    unsigned n_open;
    uint64_t last_id;
};

// ---- exchanges ----------------------------------------------------------------------------------

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

static struct http_exchange *exchange_open(struct http_server *s, struct MHD_Connection *connection,
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

static void list_remove(struct http_server *s, struct http_exchange *x)
{
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

/* Under x->mutex. */
static void resume(struct http_exchange *x)
{
    if (!x->suspended)
        return;
    x->suspended = false;
    MHD_resume_connection(x->connection);
}

/* The client left: tells the user once and wakes the connection so that it is closed. */
static void exchange_leave(struct http_exchange *x)
{
    pthread_mutex_lock(&x->mutex);
    bool tell = !x->told_gone && x->dispatched && !(x->answered && (!x->streaming || x->ended));
    x->gone = true;
    x->told_gone = x->told_gone || tell;
    resume(x);
    pthread_mutex_unlock(&x->mutex);
    if (tell)
        x->server->opt.gone(x->server->opt.user, x);
}

// ---- the watcher of clients that leave ----------------------------------------------------------

/* Under x->mutex; before the connection is suspended. */
static void watch(struct http_exchange *x)
{
    if (x->watched_fd >= 0)
        return;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    if (!info)
        return;
    struct epoll_event event = {.events = EPOLLRDHUP | EPOLLONESHOT, .data.u64 = x->id};
    if (epoll_ctl(x->server->watch_fd, EPOLL_CTL_ADD, info->connect_fd, &event) == 0)
        x->watched_fd = info->connect_fd;
}

static struct http_exchange *find_and_hold(struct http_server *s, uint64_t id)
{
    pthread_mutex_lock(&s->mutex);
    struct http_exchange *x = s->first;
    while (x && x->id != id)
        x = x->next;
    if (x)
        http_hold(x);
    pthread_mutex_unlock(&s->mutex);
    return x;
}

static void *watcher_main(void *arg)
{
    struct http_server *s = arg;
    struct epoll_event events[64];
    for (;;) {
        int n = epoll_wait(s->watch_fd, events, 64, -1);
        if (n < 0 && errno != EINTR)
            return NULL;
        for (int i = 0; i < n; i++) {
            if (events[i].data.u64 == 0)
                return NULL; // stop_fd
            struct http_exchange *x = find_and_hold(s, events[i].data.u64);
            if (!x)
                continue;
            exchange_leave(x);
            http_release(x);
        }
    }
}

// ---- libmicrohttpd's callbacks ------------------------------------------------------------------

static ssize_t read_stream(void *cls, uint64_t pos, char *buf, size_t max)
{
    (void)pos;
    struct http_exchange *x = cls;
    ssize_t n = 0;
    pthread_mutex_lock(&x->mutex);
    size_t ready = x->out.len - x->out_pos;
    if (x->gone) {
        n = MHD_CONTENT_READER_END_WITH_ERROR;
    } else if (ready > 0) {
        n = (ssize_t)(ready < max ? ready : max);
        memcpy(buf, x->out.data + x->out_pos, (size_t)n);
        x->out_pos += (size_t)n;
        x->n_sent += (uint64_t)n;
        if (x->out_pos == x->out.len) {
            strbuf_reset(&x->out);
            x->out_pos = 0;
        }
    } else if (x->ended) {
        n = MHD_CONTENT_READER_END_OF_STREAM;
    } else {
        x->suspended = true;
        MHD_suspend_connection(x->connection);
    }
    pthread_mutex_unlock(&x->mutex);
    return n;
}

static void release_stream(void *cls)
{
    http_release(cls);
}

/* Under x->mutex. */
static struct MHD_Response *make_response(struct http_exchange *x)
{
    struct MHD_Response *response = NULL;
    if (x->streaming) {
        response = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK_BYTES,
                                                     read_stream, http_hold(x), release_stream);
        if (!response)
            http_release(x);
    } else {
        size_t n = x->out.len;
        x->n_sent = n;
        char *body = n ? strbuf_take(&x->out, &n) : NULL;
        response = body ? MHD_create_response_from_buffer_with_free_callback(n, body, sys_free)
                        : MHD_create_response_from_buffer(0, "", MHD_RESPMEM_PERSISTENT);
        if (!response)
            sys_free(body);
    }
    if (!response)
        return NULL;
    if (x->content_type)
        MHD_add_response_header(response, "Content-Type", x->content_type);
    for (unsigned i = 0; i < x->n_headers; i++)
        MHD_add_response_header(response, x->header_names[i], x->header_values[i]);
    return response;
}

/* Under x->mutex. */
static enum MHD_Result queue_answer(struct http_exchange *x)
{
    struct MHD_Response *response = make_response(x);
    if (!response)
        return MHD_NO;
    x->queued = true;
    enum MHD_Result result = MHD_queue_response(x->connection, x->status, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result take_body(struct http_exchange *x, const char *data, size_t *n)
{
    const struct http_options *opt = &x->server->opt;
    pthread_mutex_lock(&x->mutex);
    bool answered = x->answered;
    pthread_mutex_unlock(&x->mutex);
    if (!answered && x->body.len + *n <= opt->max_body_bytes) {
        strbuf_add(&x->body, data, *n);
        answered = x->body.failed;
    } else if (!answered) {
        char text[96];
        snprintf(text, sizeof text, "The request body is larger than %llu bytes.",
                 (unsigned long long)opt->max_body_bytes);
        strbuf_release(&x->body);
        strbuf_init(&x->body);
        opt->refuse(opt->user, x, MHD_HTTP_CONTENT_TOO_LARGE, text);
        answered = true;
    }
    if (answered)
        x->n_discarded += *n;
    *n = 0;
    return x->n_discarded > DISCARD_FACTOR * opt->max_body_bytes ? MHD_NO : MHD_YES;
}

static enum MHD_Result finish_request(struct http_exchange *x)
{
    pthread_mutex_lock(&x->mutex);
    bool dispatch = !x->dispatched && !x->answered;
    x->dispatched = true;
    pthread_mutex_unlock(&x->mutex);
    if (dispatch)
        x->server->opt.handle(x->server->opt.user, x);
    enum MHD_Result result = MHD_YES;
    pthread_mutex_lock(&x->mutex);
    if (x->gone) {
        result = MHD_NO;
    } else if (x->answered && !x->queued) {
        if (x->streaming)
            watch(x);
        result = queue_answer(x);
    } else if (!x->answered) {
        watch(x);
        x->suspended = true;
        MHD_suspend_connection(x->connection);
    }
    pthread_mutex_unlock(&x->mutex);
    return result;
}

static enum MHD_Result on_access(void *cls, struct MHD_Connection *connection, const char *url,
                                 const char *method, const char *version, const char *data,
                                 size_t *n, void **con_cls)
{
    (void)version;
    struct http_server *s = cls;
    struct http_exchange *x = *con_cls;
    if (!x) {
        x = exchange_open(s, connection, method, url);
        if (!x)
            return MHD_NO;
        *con_cls = x;
        s->opt.begin(s->opt.user, x);
        pthread_mutex_lock(&x->mutex);
        /* A client that waits for 100-continue gets its refusal instead. */
        const char *expect = http_header(x, "Expect");
        enum MHD_Result result = MHD_YES;
        if (x->answered && expect && strcasecmp(expect, "100-continue") == 0)
            result = queue_answer(x);
        pthread_mutex_unlock(&x->mutex);
        return result;
    }
    if (*n > 0)
        return take_body(x, data, n);
    return finish_request(x);
}

static void on_completed(void *cls, struct MHD_Connection *connection, void **con_cls,
                         enum MHD_RequestTerminationCode code)
{
    (void)connection;
    struct http_server *s = cls;
    struct http_exchange *x = *con_cls;
    *con_cls = NULL;
    if (!x)
        return;
    pthread_mutex_lock(&x->mutex);
    if (x->watched_fd >= 0)
        epoll_ctl(s->watch_fd, EPOLL_CTL_DEL, x->watched_fd, NULL);
    x->watched_fd = -1;
    pthread_mutex_unlock(&x->mutex);
    if (code != MHD_REQUEST_TERMINATED_COMPLETED_OK)
        exchange_leave(x);
    pthread_mutex_lock(&x->mutex);
    x->connection = NULL;
    x->suspended = false;
    pthread_mutex_unlock(&x->mutex);
    s->opt.done(s->opt.user, x);
    list_remove(s, x);
    http_release(x);
}

__attribute__((format(printf, 2, 0))) static void on_log(void *cls, const char *fmt, va_list args)
{
    (void)cls;
    if (!log_enabled(LOG_LEVEL_DEBUG))
        return;
    char text[256];
    vsnprintf(text, sizeof text, fmt, args);
    text[strcspn(text, "\r\n")] = '\0';
    log_write(LOG_LEVEL_DEBUG, "http", "libmicrohttpd: %s", text);
}

// ---- the server ---------------------------------------------------------------------------------

static int listen_on(const struct addrinfo *a, struct err *err, const char *host, unsigned port)
{
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        err_set_errno(err, errno, "cannot make a socket for %s:%u", host, port);
        return -1;
    }
    int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, LISTEN_BACKLOG) == 0)
        return fd;
    if (errno == EADDRINUSE)
        err_set(err, ERR_BUSY, "port %u of %s is in use by another program", port, host);
    else
        err_set_errno(err, errno, "cannot listen on %s:%u", host, port);
    close(fd);
    return -1;
}

static int open_listener(struct http_server *s, struct err *err)
{
    const char *host = s->opt.host;
    char port[8];
    snprintf(port, sizeof port, "%u", s->opt.port);
    struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM};
    struct addrinfo *list = NULL;
    int rc = getaddrinfo(host, port, &hints, &list);
    if (rc != 0)
        return err_set(err, ERR_USAGE, "--host %s: %s", host, gai_strerror(rc));
    for (const struct addrinfo *a = list; a && s->listen_fd < 0; a = a->ai_next)
        s->listen_fd = listen_on(a, err, host, s->opt.port);
    freeaddrinfo(list);
    if (s->listen_fd < 0)
        return err ? err->code : ERR_IO;
    struct sockaddr_storage bound;
    socklen_t n = sizeof bound;
    if (getsockname(s->listen_fd, (struct sockaddr *)&bound, &n) == 0)
        s->port = ntohs(bound.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&bound)->sin6_port
                                                    : ((struct sockaddr_in *)&bound)->sin_port);
    return 0;
}

static int open_watcher(struct http_server *s, struct err *err)
{
    s->watch_fd = epoll_create1(EPOLL_CLOEXEC);
    s->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0};
    if (s->watch_fd < 0 || s->stop_fd < 0 ||
        epoll_ctl(s->watch_fd, EPOLL_CTL_ADD, s->stop_fd, &event) != 0)
        return err_set_errno(err, errno, "cannot watch connections");
    int rc = pthread_create(&s->watcher, NULL, watcher_main, s);
    if (rc != 0)
        return err_set_errno(err, rc, "cannot start the connection watcher");
    pthread_setname_np(s->watcher, "http-watch");
    s->watcher_started = true;
    return 0;
}

int http_open(struct http_server **out, const struct http_options *opt, struct err *err)
{
    *out = NULL;
    struct http_server *s = sys_calloc(1, sizeof *s);
    if (!s)
        return err_set(err, ERR_NO_MEMORY, "no memory for the HTTP server");
    s->opt = *opt;
    s->listen_fd = s->watch_fd = s->stop_fd = -1;
    pthread_mutex_init(&s->mutex, NULL);
    int rc = open_listener(s, err);
    if (rc == 0)
        rc = open_watcher(s, err);
    if (rc != 0) {
        http_free(s);
        return rc;
    }
    s->daemon = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL,
        on_access, s, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL, MHD_OPTION_LISTEN_SOCKET,
        s->listen_fd, MHD_OPTION_CONNECTION_LIMIT, opt->max_connections,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_BYTES, MHD_OPTION_CONNECTION_TIMEOUT,
        opt->idle_timeout_s, MHD_OPTION_NOTIFY_COMPLETED, on_completed, s, MHD_OPTION_END);
    if (!s->daemon) {
        http_free(s);
        return err_set(err, ERR_FAIL, "libmicrohttpd did not start on port %u", opt->port);
    }
    *out = s;
    return 0;
}

uint16_t http_port(const struct http_server *s)
{
    return s->port;
}

void http_stop_listening(struct http_server *s)
{
    if (s->listen_fd < 0 || !s->daemon)
        return;
    MHD_socket fd = MHD_quiesce_daemon(s->daemon);
    if (fd != MHD_INVALID_SOCKET)
        close(fd);
    s->listen_fd = -1;
}

unsigned http_n_exchanges(struct http_server *s)
{
    pthread_mutex_lock(&s->mutex);
    unsigned n = s->n_open;
    pthread_mutex_unlock(&s->mutex);
    return n;
}

void http_abort_all(struct http_server *s)
{
    for (uint64_t last = UINT64_MAX;;) {
        pthread_mutex_lock(&s->mutex);
        struct http_exchange *x = s->first; // newest first: ids fall along the list
        while (x && x->id >= last)
            x = x->next;
        if (x)
            http_hold(x);
        pthread_mutex_unlock(&s->mutex);
        if (!x)
            return;
        last = x->id;
        exchange_leave(x);
        http_release(x);
    }
}

void http_free(struct http_server *s)
{
    if (!s)
        return;
    if (s->daemon) {
        http_stop_listening(s);
        http_abort_all(s); // libmicrohttpd panics when it is stopped with suspended connections
        MHD_stop_daemon(s->daemon);
    }
    if (s->watcher_started) {
        uint64_t one = 1;
        if (write(s->stop_fd, &one, sizeof one) == sizeof one)
            pthread_join(s->watcher, NULL);
    }
    if (s->listen_fd >= 0)
        close(s->listen_fd);
    if (s->watch_fd >= 0)
        close(s->watch_fd);
    if (s->stop_fd >= 0)
        close(s->stop_fd);
    pthread_mutex_destroy(&s->mutex);
    sys_free(s);
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
    if (x->n_headers < MAX_HEADERS) {
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
        resume(x);
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
        resume(x);
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
        resume(x);
    pthread_mutex_unlock(&x->mutex);
}

void http_stream_end(struct http_exchange *x)
{
    pthread_mutex_lock(&x->mutex);
    x->ended = true;
    resume(x);
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
