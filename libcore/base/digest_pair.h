/*
 * digest_pair: the SHA-256 of a stream and of the parts that it is made of, in one pass.
 * SHA-256 is one chain of dependent instructions; two chains side by side cost a core with SHA
 * extensions 1.25 times one, where hashing the bytes twice costs 2. A processor without them hashes
 * twice, by libcrypto. A pair belongs to one thread.
 */
#ifndef LIBCORE_BASE_DIGEST_PAIR_H
#define LIBCORE_BASE_DIGEST_PAIR_H

#include "libcore/base/digest.h"

struct digest_pair;

int digest_pair_open(struct digest_pair **out, struct err *err);
/* By libcrypto on every processor; for tests. */
int digest_pair_open_portable(struct digest_pair **out, struct err *err);
void digest_pair_free(struct digest_pair *p);
/* The stream's next n bytes; in_part: they belong to the part that is open, too. */
int digest_pair_update(struct digest_pair *p, const void *data, size_t n, bool in_part,
                       struct err *err);
/* Digest of the part's bytes; the next part is open then. */
int digest_pair_end_part(struct digest_pair *p, struct digest *out, struct err *err);
/* Digest of the stream; then p may only be freed. */
int digest_pair_final(struct digest_pair *p, struct digest *out, struct err *err);

#endif
