/*
 * router: the route table.
 */
#ifndef CMD_SERVE_ROUTER_H
#define CMD_SERVE_ROUTER_H

#include "cmd/serve/answer.h"
#include "cmd/serve/auth.h"
#include "cmd/serve/http.h"

struct server;

struct route {
    const char *method, *path; // a path that ends in '/' takes everything below it
    enum auth_access access;
    enum answer_style style;
    bool always; // answered while loading and draining too, on the HTTP thread: must not block
    void (*run)(struct server *s, struct http_exchange *x); // on a worker thread unless `always`
};

/* NULL: 404, or 405 when *allow is set to the methods that the path has. HEAD finds GET. */
const struct route *router_find(const char *method, const char *path, const char **allow);

#endif
