/*
 * http_client: many HTTP calls at once on one thread (epoll), one connection a call, answers whole
 * or as they come. For tests and the demo; knows just enough HTTP/1.1 (Content-Length and chunked).
 */
#ifndef TESTS_LIB_HTTP_CLIENT_H
#define TESTS_LIB_HTTP_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/strbuf.h"

struct http_client;

struct http_call {
    // set before http_client_add
    const char *method, *path; // borrowed
    const char *key;           // bearer key, or NULL
    const char *body;          // borrowed until the call ended; NULL: none
    size_t n_body;
    bool leave_early; // closes the connection after the first piece of the answer
    /* After each piece of the answer's body, and once at the end (over). May add other calls. */
    void (*on_data)(struct http_call *call, bool over);
    void *user;

    // results
    int status;         // 0: no answer
    struct strbuf text; // the body, decoded
    bool failed;        // the connection broke, or no HTTP came
    uint64_t started_ns, first_ns, ended_ns;

    // private
    struct http_client *client;
    struct http_call *next;
    int fd;
    struct strbuf head, out;
    size_t out_pos;
    bool in_body, chunked, in_chunk, ended;
    size_t left; // of the chunk or the body
};

/* host: a numeric IPv4 address. max_open: connections at once; further calls wait. */
struct http_client *http_client_open(const char *host, uint16_t port, unsigned max_open);
void http_client_free(struct http_client *c);
void http_client_add(struct http_client *c, struct http_call *call);
/* Until every call ended, or deadline_ns (monotonic, 0: none) passed: false then. */
bool http_client_run(struct http_client *c, uint64_t deadline_ns);
void http_call_abort(struct http_call *call);   // closes its connection if it is open still
void http_call_release(struct http_call *call); // its buffers

#endif
