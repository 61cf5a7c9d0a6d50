/*
 * http_load: the sub-commands of the load client, one file each.
 */
#ifndef TESTS_LIB_HTTP_LOAD_H
#define TESTS_LIB_HTTP_LOAD_H

#include <jansson.h>

#include "tests/lib/http_client.h"

struct load_options {
    const char *host;
    uint16_t port;
    const char *key;
    const char *golden;   // tests/golden/tinytalk.json
    const char *base;     // what the base is called
    const char *models;   // "a,b"
    const char *prompt;   // ask: the words
    const char *expected; // ask: file with the wanted answers
    unsigned clients;     // connections at once
    double seconds;       // soak
    long pid;             // soak: whose RSS is watched
    bool leave;           // soak: some clients leave early
    unsigned repeat;      // golden: rounds
    double tolerance;     // golden: of five log-probabilities; beyond 0.1 a tenth for the first
    double share;         // golden: of the answers that must be so
};

int load_golden(const struct load_options *o); // exit status
int load_soak(const struct load_options *o);
int load_leave(const struct load_options *o);
int load_ask(const struct load_options *o);

/* A number of /metrics, summed over its series; -1: not there. */
double load_metric(const struct load_options *o, const char *name);
json_t *load_json_file(const char *path); // NULL: said why

#endif
