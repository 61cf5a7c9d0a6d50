/*
 * registry_impl: one request and its answer, for the rooms of registry.
 */
#ifndef STORE_REGISTRY_IMPL_H
#define STORE_REGISTRY_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "libcore/base/strbuf.h"
#include "store/registry.h"

struct registry {
    struct registry_ref ref;
    struct registry_options opt;
    bool writes;                  // the token's scope
    pthread_mutex_t mutex;        // guards what follows
    char *authorization;          // "Bearer …" or "Basic …"; NULL: none was asked for yet
    unsigned generation;          // of it: two transfers that meet 401 ask once
    atomic_bool has_no_referrers; // it does not know the API: the tags are asked
};

struct request {
    const char *method; // GET, HEAD, POST, PUT, PATCH
    const char *url;
    const char *accept, *content_type; // or NULL
    const char *content_range;         // PATCH; or NULL
    const char *authorization;         // instead of the session's
    bool foreign;                      // a token server: no authorization but that above
    // What is sent: bytes, or part of a file.
    const void *data;
    const char *file;
    uint64_t offset, size;
    // Where the answer's body goes when its status is 200 or 206; NULL: into response.body.
    int (*sink)(void *arg, bool partial, const void *data, size_t n, struct err *err);
    void *sink_arg;
    uint64_t from; // Range: bytes=from-
    bool once;     // not to be tried again here: the caller knows how to go on
};

struct response {
    long status;
    char *url;          // that answered, redirects followed
    char *location;     // NULL
    char *digest;       // Docker-Content-Digest
    char *challenge;    // WWW-Authenticate
    char *range;        // Range of an upload
    bool knows_subject; // OCI-Subject: it will list this manifest among the referrers
    long retry_after_s; // -1: not said
    struct strbuf body; // at most LIMIT_OCI_MANIFEST_BYTES
};
void response_release(struct response *r);

/*
 * Performs a request on a connection of its own or of this thread's. Answers 401 by
 * authenticating once, tries again what may pass. 0 when there is an answer, whatever its status.
 * response is to be released also after an error.
 */
struct connection; // belongs to one thread
int connection_open(struct connection **out, struct registry *r, struct err *err);
void connection_free(struct connection *c);
struct registry *connection_registry(const struct connection *c);
int registry_request(struct connection *c, const struct request *q, struct response *out,
                     struct err *err);
/* The error that a status is: "host/repo: what: 404 …", with the registry's own words. */
int registry_status_error(const struct registry *r, const struct response *p, const char *what,
                          struct err *err);
/* http[s]://host/v2/repo/<path> */
void registry_url(const struct registry *r, struct strbuf *out, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* `location` of an answer from `base`, made absolute ("": base itself); query (or NULL) is added.
 * The caller's. */
char *registry_resolve_url(const char *base, const char *location, const char *query);
bool registry_same_host(const char *a, const char *b);
bool registry_may_retry(long status);
/* Sleeps; ERR_INTERRUPTED when on_bytes says so meanwhile. */
int registry_wait(const struct registry *r, unsigned try, long retry_after_s, struct err *err);

/* registry_auth.c: what to send after this challenge; the caller's, in *authorization. */
int registry_authenticate(struct connection *c, const char *challenge, char **authorization,
                          struct err *err);

/* registry_login.c: what docker's config.json knows of a host. Found or not, 0. */
struct login {
    char *user, *secret;
    char *identity_token;
};
int login_find(struct login *out, const char *host, struct err *err);
void login_release(struct login *l);
/* The caller's; NULL when memory is out or it is no base64. */
char *base64_encode(const char *text, size_t n);
char *base64_decode(const char *text, size_t *n);

/* registry_pull.c: the manifest behind a tag or "sha256:…", its digest checked; *text is the
 * caller's. */
int registry_manifest(struct connection *c, const char *reference, char **text, size_t *n,
                      char hex[DIGEST_HEX_CHARS + 1], struct err *err);
/* registry_push.c. */
int registry_put_manifest(struct connection *c, const char *data, uint64_t size, const char *type,
                          const char *reference, bool *knows_subject, struct err *err);

/* registry_refer.c: appends {"sha256", "size", "subject"} for each signature that refers to the
 * manifest `subject` (hex) to the array `out`. */
int registry_signatures(struct connection *c, const char *subject, json_t *out, struct err *err);
/* Manifests of signatures, whose blobs are there. */
int registry_push_signatures(struct connection *c, const struct pack_items *items,
                             const json_t *referrers, struct err *err);

/* registry_many.c: run(arg, c, i) for i in [0, n), several at once, each thread on a connection of
 * its own; the first failure is returned when all have ended, and keeps new ones from starting. */
int registry_each(struct registry *r, size_t n,
                  int (*run)(void *arg, struct connection *c, size_t i, struct err *err), void *arg,
                  struct err *err);

#endif
