#include "tests/lib/http_client.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "libcore/base/sys.h"
#include "libcore/base/thread.h"

struct http_client {
    struct sockaddr_in to;
    unsigned max_open, n_open;
    int epoll_fd;
    struct http_call *first, *last; // waiting for a connection
};

struct http_client *http_client_open(const char *host, uint16_t port, unsigned max_open)
{
    struct http_client *c = sys_calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->to = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port)};
    c->max_open = max_open;
    c->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (c->epoll_fd < 0 || inet_pton(AF_INET, host, &c->to.sin_addr) != 1) {
        http_client_free(c);
        return NULL;
    }
    return c;
}

void http_client_free(struct http_client *c)
{
    if (!c)
        return;
    if (c->epoll_fd >= 0)
        close(c->epoll_fd);
    sys_free(c);
}

void http_call_release(struct http_call *call)
{
    strbuf_release(&call->text);
    strbuf_release(&call->head);
    strbuf_release(&call->out);
}

void http_call_abort(struct http_call *call)
{
    if (call->fd < 0)
        return;
    close(call->fd);
    call->fd = -1;
    call->client->n_open--;
}

void http_client_add(struct http_client *c, struct http_call *call)
{
    call->client = c;
    call->next = NULL;
    call->fd = -1;
    if (c->last)
        c->last->next = call;
    else
        c->first = call;
    c->last = call;
}

static void end_call(struct http_call *call, bool failed)
{
    if (call->fd >= 0) {
        close(call->fd);
        call->client->n_open--;
    }
    call->fd = -1;
    call->failed = failed;
    call->ended = true;
    call->ended_ns = thread_now_ns();
    if (call->on_data)
        call->on_data(call, true);
}

static void write_request(struct http_call *call)
{
    struct strbuf *out = &call->out;
    strbuf_reset(out);
    strbuf_addf(out, "%s %s HTTP/1.1\r\nHost: test\r\nConnection: close\r\n", call->method,
                call->path);
    if (call->key)
        strbuf_addf(out, "Authorization: Bearer %s\r\n", call->key);
    if (call->body)
        strbuf_addf(out, "Content-Type: application/json\r\nContent-Length: %zu\r\n", call->n_body);
    strbuf_adds(out, "\r\n");
    if (call->body)
        strbuf_add(out, call->body, call->n_body);
    call->out_pos = 0;
}

static void start_call(struct http_client *c, struct http_call *call)
{
    call->started_ns = thread_now_ns();
    call->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (call->fd >= 0)
        c->n_open++;
    write_request(call);
    int rc = call->fd < 0 ? -1 : connect(call->fd, (struct sockaddr *)&c->to, sizeof c->to);
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.ptr = call};
    if ((rc != 0 && errno != EINPROGRESS) ||
        epoll_ctl(c->epoll_fd, EPOLL_CTL_ADD, call->fd, &event) != 0)
        end_call(call, true);
}

static bool send_some(struct http_call *call)
{
    while (call->out_pos < call->out.len) {
        ssize_t n = send(call->fd, call->out.data + call->out_pos, call->out.len - call->out_pos,
                         MSG_NOSIGNAL);
        if (n < 0)
            return errno == EAGAIN || errno == EINTR || errno == EPIPE || errno == ECONNRESET;
        call->out_pos += (size_t)n;
    }
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = call};
    epoll_ctl(call->client->epoll_fd, EPOLL_CTL_MOD, call->fd, &event);
    return true;
}

/* A header's value in the head, or NULL. */
static const char *find_header(const char *head, const char *name)
{
    size_t n = strlen(name);
    for (const char *p = strstr(head, "\r\n"); p; p = strstr(p + 2, "\r\n")) {
        if (strncasecmp(p + 2, name, n) == 0 && p[2 + n] == ':')
            return p + 2 + n + 1 + strspn(p + 2 + n + 1, " ");
    }
    return NULL;
}

/* Takes body bytes from data; returns how many. Ends the call at the end of the body. */
static size_t take_body(struct http_call *call, const char *data, size_t n)
{
    if (!call->chunked || call->in_chunk) {
        size_t part = call->left < n ? call->left : n;
        strbuf_add(&call->text, data, part);
        call->left -= part;
        if (call->left == 0 && !call->chunked)
            call->ended = true;
        if (call->left == 0)
            call->in_chunk = false;
        return part;
    }
    /* A line with the chunk's size, perhaps after the end of the last chunk. */
    size_t skip = 0;
    while (skip < n && (data[skip] == '\r' || data[skip] == '\n'))
        skip++;
    const char *end = memchr(data + skip, '\n', n - skip);
    if (!end)
        return 0;
    call->left = strtoull(data + skip, NULL, 16);
    call->in_chunk = call->left > 0;
    call->ended = call->left == 0;
    return (size_t)(end + 1 - data);
}

static void take_head(struct http_call *call)
{
    char *end = strstr(call->head.data, "\r\n\r\n");
    if (!end)
        return;
    *end = '\0';
    if (sscanf(call->head.data, "HTTP/1.%*d %d", &call->status) != 1)
        call->failed = true;
    const char *encoding = find_header(call->head.data, "Transfer-Encoding");
    const char *length = find_header(call->head.data, "Content-Length");
    call->chunked = encoding && strncasecmp(encoding, "chunked", 7) == 0;
    call->left = call->chunked ? 0 : length ? strtoull(length, NULL, 10) : SIZE_MAX;
    call->ended = !call->chunked && call->left == 0;
    call->in_body = true;
    size_t at = (size_t)(end + 4 - call->head.data);
    size_t rest = call->head.len - at;
    memmove(call->head.data, call->head.data + at, rest);
    strbuf_truncate(&call->head, rest);
}

static void take_bytes(struct http_call *call)
{
    if (!call->in_body)
        take_head(call);
    size_t at = 0;
    while (call->in_body && !call->ended && at < call->head.len) {
        size_t n = take_body(call, call->head.data + at, call->head.len - at);
        if (n == 0)
            break;
        at += n;
    }
    if (at > 0) {
        memmove(call->head.data, call->head.data + at, call->head.len - at);
        strbuf_truncate(&call->head, call->head.len - at);
    }
}

static void receive(struct http_call *call)
{
    char buf[16384];
    for (;;) {
        ssize_t n = recv(call->fd, buf, sizeof buf, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) {
            bool whole = call->in_body && !call->chunked && call->left > SIZE_MAX / 2;
            end_call(call, !whole);
            return;
        }
        size_t before = call->text.len;
        strbuf_add(&call->head, buf, (size_t)n);
        take_bytes(call);
        if (call->text.len > before && !call->first_ns)
            call->first_ns = thread_now_ns();
        bool leave = call->leave_early && call->text.len > 0;
        if (call->ended || call->failed || leave) {
            end_call(call, call->failed);
            return;
        }
        if (call->text.len > before && call->on_data)
            call->on_data(call, false);
    }
}

bool http_client_run(struct http_client *c, uint64_t deadline_ns)
{
    struct epoll_event events[64];
    while (c->first || c->n_open) {
        while (c->first && c->n_open < c->max_open) {
            struct http_call *call = c->first;
            c->first = call->next;
            if (!c->first)
                c->last = NULL;
            start_call(c, call);
        }
        int n = epoll_wait(c->epoll_fd, events, 64, 100);
        for (int i = 0; i < n; i++) {
            struct http_call *call = events[i].data.ptr;
            if ((events[i].events & EPOLLOUT) && !send_some(call))
                end_call(call, true);
            else if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                receive(call);
        }
        if (deadline_ns && thread_now_ns() > deadline_ns)
            return false;
    }
    return true;
}
