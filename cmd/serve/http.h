/*
 * http: the listening socket, and exchanges: one request and its answer.
 *
 * One thread runs libmicrohttpd with epoll; its callbacks never block. A request whose body is
 * complete is given to `handle`, which answers at once or hands the exchange to another thread; the
 * connection is suspended meanwhile. A second thread watches the sockets of suspended connections
 * for clients that leave (EPOLLRDHUP), because libmicrohttpd does not see them.
 *
 * Thread rule: callbacks run on the two threads above. Every http_… function on an exchange may be
 * called from any thread that holds a reference. An exchange is answered once: by http_answer, or
 * by http_stream_begin … http_stream_end.
 */
#ifndef CMD_SERVE_HTTP_H
#define CMD_SERVE_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/err.h"
#include "libcore/base/strbuf.h"

struct http_server;
struct http_exchange;

struct http_options {
    const char *host; // address or name
    uint16_t port;    // 0: any free one
    uint64_t max_body_bytes;
    unsigned max_connections;
    unsigned idle_timeout_s; // of a connection that neither sends nor reads
    /* Headers are there, the body is not. May answer already; the body is then dropped. */
    void (*begin)(void *user, struct http_exchange *x);
    /* The body is complete and nothing was answered. Must not block. Answers, or takes a reference
     * with http_hold() and answers later. */
    void (*handle)(void *user, struct http_exchange *x);
    /* The client left before the answer was complete: stop working for it. At most once. */
    void (*gone)(void *user, struct http_exchange *x);
    /* Answer with this status: the body is too large (413). */
    void (*refuse)(void *user, struct http_exchange *x, unsigned status, const char *message);
    /* The exchange is over, one way or the other (access log). */
    void (*done)(void *user, struct http_exchange *x);
    void *user;
};

/* Listens and starts both threads. ERR_BUSY: the port is in use; ERR_IO, ERR_USAGE (host). */
int http_open(struct http_server **out, const struct http_options *opt, struct err *err);
uint16_t http_port(const struct http_server *s);
/* Stops listening; open connections go on. */
void http_stop_listening(struct http_server *s);
/* Cuts what is left (gone is called for it) and joins the threads. Nobody may hold an exchange. */
void http_free(struct http_server *s);
unsigned http_n_exchanges(struct http_server *s); // open now
/* Ends every unanswered or streaming exchange as if its client had left. */
void http_abort_all(struct http_server *s);

/* ---- the request ---- */
const char *http_method(const struct http_exchange *x);
const char *http_path(const struct http_exchange *x);                     // decoded, no query
const char *http_header(const struct http_exchange *x, const char *name); // begin and handle only
const char *http_body(const struct http_exchange *x, size_t *n);
bool http_peer_is_loopback(const struct http_exchange *x);
const char *http_peer(const struct http_exchange *x); // "127.0.0.1:5123"
uint64_t http_started_ns(const struct http_exchange *x);
/* Two places for the server's use. The tag: set in `begin`, borrowed. The user: set once; `release`
 * is called with it when the exchange is freed. */
void http_set_tag(struct http_exchange *x, const void *tag);
const void *http_tag(const struct http_exchange *x);
void http_set_user(struct http_exchange *x, void *user, void (*release)(void *user));
void *http_user(struct http_exchange *x);

struct http_exchange *http_hold(struct http_exchange *x); // one more reference
void http_release(struct http_exchange *x);
bool http_is_gone(struct http_exchange *x); // the client left
bool http_is_answered(struct http_exchange *x);

/* ---- the answer ---- */
/* name and value are copied; before the answer. At most 4. */
void http_add_header(struct http_exchange *x, const char *name, const char *value);
/* Takes the text of `body` and leaves it empty. content_type: static; NULL without a body. */
void http_answer(struct http_exchange *x, unsigned status, const char *content_type,
                 struct strbuf *body);
void http_answer_text(struct http_exchange *x, unsigned status, const char *text);
void http_stream_begin(struct http_exchange *x, unsigned status, const char *content_type);
/* Appends; nothing is sent before http_stream_flush. false: the client left or is far too slow. */
bool http_stream_write(struct http_exchange *x, const void *data, size_t n);
void http_stream_flush(struct http_exchange *x); // once a step, not once a token
void http_stream_end(struct http_exchange *x);   // flushes too

/* For the access log, in `done`. */
unsigned http_status(const struct http_exchange *x);
uint64_t http_bytes_sent(const struct http_exchange *x);

#endif
