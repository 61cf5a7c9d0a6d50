#include "cmd/serve/http_impl.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "libcore/base/log.h"
#include "libcore/base/sys.h"

enum {
    // Headers and the read buffer of one connection; libmicrohttpd answers 431 beyond.
    CONNECTION_BYTES = 32 << 10,
    STREAM_BLOCK_BYTES = 16 << 10,
    // A body that is too large is read and dropped up to this many times the limit, so that the
    // client gets to see the 413.
    DISCARD_FACTOR = 4,
    LISTEN_BACKLOG = 1024,
};

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
            http_exchange_leave(x);
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

/* Not under x->mutex while libmicrohttpd takes the response's own: its callbacks come the other way
 * round. Nobody else queues, and what is not suspended is not resumed. */
static enum MHD_Result queue_answer(struct http_exchange *x)
{
    pthread_mutex_lock(&x->mutex);
    struct MHD_Response *response = make_response(x);
    x->queued = response != NULL;
    pthread_mutex_unlock(&x->mutex);
    if (!response)
        return MHD_NO;
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
    pthread_mutex_lock(&x->mutex);
    bool gone = x->gone, queue = x->answered && !x->queued, wait = !gone && !x->answered;
    if (wait || (queue && x->streaming))
        watch(x);
    if (wait) {
        x->suspended = true;
        MHD_suspend_connection(x->connection);
    }
    pthread_mutex_unlock(&x->mutex);
    if (gone)
        return MHD_NO;
    return queue ? queue_answer(x) : MHD_YES;
}

static enum MHD_Result on_access(void *cls, struct MHD_Connection *connection, const char *url,
                                 const char *method, const char *version, const char *data,
                                 size_t *n, void **con_cls)
{
    (void)version;
    struct http_server *s = cls;
    struct http_exchange *x = *con_cls;
    if (!x) {
        x = http_exchange_open(s, connection, method, url);
        if (!x)
            return MHD_NO;
        *con_cls = x;
        s->opt.begin(s->opt.user, x);
        /* A client that waits for 100-continue gets its refusal instead. */
        const char *expect = http_header(x, "Expect");
        bool early = expect && strcasecmp(expect, "100-continue") == 0 && http_is_answered(x);
        return early ? queue_answer(x) : MHD_YES;
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
        http_exchange_leave(x);
    pthread_mutex_lock(&x->mutex);
    x->connection = NULL;
    x->suspended = false;
    pthread_mutex_unlock(&x->mutex);
    s->opt.done(s->opt.user, x);
    http_exchange_unlist(x);
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
        http_exchange_leave(x);
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
