/*
 * digest: SHA-256 (OpenSSL libcrypto), and digests as text.
 * One running hash belongs to one thread; digest_buffer may be called from any thread.
 */
#ifndef LIBCORE_BASE_DIGEST_H
#define LIBCORE_BASE_DIGEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/err.h"

enum { DIGEST_BYTES = 32, DIGEST_HEX_CHARS = 64 };

struct digest {
    uint8_t bytes[DIGEST_BYTES];
};

struct digest_state; // a running hash

int digest_open(struct digest_state **out, struct err *err);
void digest_free(struct digest_state *s);
int digest_update(struct digest_state *s, const void *data, size_t n, struct err *err);
int digest_final(struct digest_state *s, struct digest *out,
                 struct err *err); // then s may only be freed

int digest_buffer(const void *data, size_t n, struct digest *out, struct err *err);
/* Hashes the whole file behind `path` in large reads. */
int digest_file(const char *path, struct digest *out, uint64_t *size, struct err *err);

void digest_hex(const struct digest *d, char hex[DIGEST_HEX_CHARS + 1]); // lower case
/* Parses exactly 64 hex digits, with or without "sha256:" before them. */
bool digest_parse(const char *text, struct digest *out);
bool digest_equal(const struct digest *a, const struct digest *b);

#endif
