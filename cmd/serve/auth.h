/*
 * auth: bearer keys. Who may call which route.
 * Keys are kept as digests and compared in constant time; they are never logged. Immutable after
 * auth_open, so any thread may check.
 */
#ifndef CMD_SERVE_AUTH_H
#define CMD_SERVE_AUTH_H

#include <stdbool.h>
#include <stddef.h>

#include "libcore/base/err.h"

enum auth_access {
    AUTH_OPEN, // no key at all: /health, /ping, /metrics
    AUTH_KEY,  // an API key or the admin key, when any API key is set
    AUTH_ADMIN // mutates: the admin key; an API key where no admin key is set; no key: loopback
               // only
};

struct auth;

/* keys: n texts; key_file: one key a line, # begins a comment, NULL for none; admin_key: or NULL.
 * ERR_USAGE: an empty key. */
int auth_open(struct auth **out, const char *const *keys, size_t n, const char *key_file,
              const char *admin_key, struct err *err);
void auth_free(struct auth *a);

/* authorization: the header's value or NULL. 0, or the HTTP status (401, 403) with the reason. */
int auth_check(const struct auth *a, enum auth_access access, const char *authorization,
               bool loopback, const char **reason);

#endif
