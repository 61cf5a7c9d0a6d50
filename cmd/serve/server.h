/*
 * server: the whole of `lora serve`: HTTP, workers, output, names and the runtime, put together.
 */
#ifndef CMD_SERVE_SERVER_H
#define CMD_SERVE_SERVER_H

#include <stdatomic.h>

#include "cmd/serve/auth.h"
#include "cmd/serve/http.h"
#include "cmd/serve/metrics.h"
#include "cmd/serve/names.h"
#include "cmd/serve/output.h"
#include "cmd/serve/runtime.h"
#include "libcore/base/thread.h"

enum server_state { SERVER_LOADING, SERVER_READY, SERVER_DRAINING };

struct server {
    const struct serve_options *opt;
    atomic_int state; // enum server_state
    struct auth *auth;
    struct metrics *metrics;
    struct output *output;
    struct job_queue *workers;
    struct runtime *rt;
    struct names *names;
    struct http_server *http;
    const char **served_names; // what the base is called
    size_t n_served_names;
    uint64_t started_s;    // unix
    atomic_ullong last_id; // of requests
    atomic_ullong seed;    // of requests that bring none
    char boot[9];          // hex, in request ids
};

/* Runs until SIGTERM or SIGINT. A second signal ends at once. Prints nothing but the log. */
int server_run(const struct serve_options *opt, const char *store_path, struct err *err);

/* Names of the base (and the adapters on offer) over a runtime that is open. With `ready` the
 * engine is there: adapters are bound and registered. For server_run and --check. */
int server_open_names(struct server *s, struct err *err);
int server_offer(struct server *s, struct err *err);

#endif
