/*
 * sign: keys of signatures, and signing bytes with them: EC P-256, SHA-256, PEM files, offline.
 * The home of libcrypto's keys; what is signed is no business of this module (bundle is about
 * that).
 * Thread rule: a key never changes after it was read; any thread may use it.
 */
#ifndef STORE_SIGN_H
#define STORE_SIGN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/digest.h"
#include "libcore/base/err.h"

struct sign_key;

/*
 * A private key, or a public one. ERR_NOT_FOUND (no such file), ERR_CORRUPT (no PEM), ERR_REFUSED:
 * encrypted, not EC P-256, or a private key where the public one is wanted (and the other way
 * round), each said. On success *out is the caller's, for sign_key_free().
 */
int sign_key_read_private(struct sign_key **out, const char *path, struct err *err);
int sign_key_read_public(struct sign_key **out, const char *path, struct err *err);
void sign_key_free(struct sign_key *k);

/* What a bundle knows the key by: sha256, as hex, of the public key's PEM text. */
const char *sign_key_hint(const struct sign_key *k);
const char *sign_key_path(const struct sign_key *k);

/* DER, ECDSA over SHA-256; *sig is the caller's. Two signatures of the same bytes differ. */
int sign_bytes(const struct sign_key *k, const void *data, size_t n, uint8_t **sig, size_t *n_sig,
               struct err *err);
/* Whether it is this key's signature of these bytes. Anything else is false. */
bool sign_check(const struct sign_key *k, const void *data, size_t n, const uint8_t *sig,
                size_t n_sig);

/* A set of public keys: what is signed by one of them is trusted. */
struct sign_keys {
    struct sign_key **items;
    size_t n;
};
int sign_keys_read(struct sign_keys *out, const char *const *paths, size_t n, struct err *err);
void sign_keys_release(struct sign_keys *k);

/* Base64 with padding, on one line. *out is the caller's, with a NUL behind it that is not counted.
 * Decoding: ERR_CORRUPT, `what` names the text. */
int sign_base64_encode(const void *data, size_t n, char **out, struct err *err);
int sign_base64_decode(const char *text, const char *what, uint8_t **out, size_t *n,
                       struct err *err);

#endif
