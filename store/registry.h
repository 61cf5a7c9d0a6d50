/*
 * registry: images to and from a registry, by the OCI distribution protocol 1.1.
 * TLS is verified; plain http is for loopback alone. Credentials come from docker's config.json
 * and its credential helpers and go to the registry's host only. What fails for a moment (429, 5xx,
 * a broken connection) is tried again; a download goes on where it broke off.
 * Built without libcurl every function says so (ERR_REFUSED).
 * Thread rule: one thread uses a struct registry; it has several transfers going itself.
 */
#ifndef STORE_REGISTRY_H
#define STORE_REGISTRY_H

#include "store/import.h"
#include "store/oci.h"

enum {
    REGISTRY_HOST_BYTES = 255,
    REGISTRY_REPO_BYTES = 255,
    REGISTRY_REFERENCE_BYTES = 135, // "sha256:<hex>"
    REGISTRY_CHUNK_BYTES = 64 << 20,
    REGISTRY_TRANSFERS = 4, // at once
    REGISTRY_TRIES = 5,
};

/* "host[:port]/team/repo[:tag|@sha256:…]"; the tag is "latest" when none is given. */
struct registry_ref {
    char host[REGISTRY_HOST_BYTES + 1]; // with its port
    char repo[REGISTRY_REPO_BYTES + 1];
    char reference[REGISTRY_REFERENCE_BYTES + 1]; // tag or digest
};
/* ERR_USAGE says what is wrong; a host has a dot, a colon, or is "localhost". */
int registry_ref_parse(const char *text, struct registry_ref *out, struct err *err);

struct registry_options {
    bool plain_http;        // ERR_USAGE unless the host is loopback
    uint64_t chunk_bytes;   // larger blobs are sent in pieces of this; 0: REGISTRY_CHUNK_BYTES
    const char *mount_from; // a repository of the same registry that may have blobs already; NULL
    uint32_t retry_ms;      // wait before the second try, doubled at each; 0: 500
    int (*on_bytes)(void *arg, uint64_t bytes); // from any thread; non-zero stops
    void *arg;
};

struct registry;
int registry_open(struct registry **out, const struct registry_ref *ref,
                  const struct registry_options *opt, struct err *err);
void registry_free(struct registry *r);

struct registry_report {
    size_t n_blobs, n_present, n_mounted; // blobs; of them there already, mounted
    uint64_t bytes;                       // sent, or received
    uint64_t resumed;                     // bytes that an earlier pull had received
    char digest[STORE_ID_CHARS + 1];      // of the image
};

/* Blobs first, several at once; then manifests, signatures (by the referrers API, or under the tags
 * that stand for it), the tag last. What is there is not sent. referrers: of oci_items().
 * ERR_DENIED, ERR_NOT_FOUND, ERR_BUSY (429 to the end), ERR_IO, ERR_CORRUPT. */
int registry_push(struct registry *r, const struct pack_items *items, const json_t *manifests,
                  const json_t *referrers, const struct oci_top *top, struct registry_report *out,
                  struct err *err);

/* As import_pack() for the image behind the reference, with the signatures that refer to it. Blobs
 * that the store has are not fetched. */
int registry_pull(struct registry *r, struct store *s, const struct import_options *opt,
                  import_row_fn *row, void *arg, json_t **notes, struct registry_report *out,
                  struct err *err);

#endif
