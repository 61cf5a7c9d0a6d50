/*
 * http_impl: what http.c (the server, libmicrohttpd's callbacks) and http_exchange.c (the request
 * and its answer) share. For these two alone.
 */
#ifndef CMD_SERVE_HTTP_IMPL_H
#define CMD_SERVE_HTTP_IMPL_H

#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>

#include "cmd/serve/http.h"

enum { HTTP_MAX_HEADERS = 4 };

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
    char *header_names[HTTP_MAX_HEADERS], *header_values[HTTP_MAX_HEADERS];
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

/* Made for libmicrohttpd, which holds the first reference; NULL when memory is out. */
struct http_exchange *http_exchange_open(struct http_server *s, struct MHD_Connection *connection,
                                         const char *method, const char *path);
void http_exchange_unlist(struct http_exchange *x);
/* Under x->mutex: wakes the connection if it is suspended. */
void http_exchange_resume(struct http_exchange *x);
/* The client left: tells the server's user once and wakes the connection so that it is closed. */
void http_exchange_leave(struct http_exchange *x);

#endif
