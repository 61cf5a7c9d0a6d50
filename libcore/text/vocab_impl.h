/*
 * vocab_impl: the layout of the block, shared by the builder (vocab_build.c) and the cache
 * (vocab.c).
 */
#ifndef LIBCORE_TEXT_VOCAB_IMPL_H
#define LIBCORE_TEXT_VOCAB_IMPL_H

#include <string.h>

#include "libcore/text/vocab.h"

enum { VOCAB_VERSION = 1 };
enum vocab_section {
    SECTION_TOKENS,
    SECTION_TEXT,
    SECTION_SLOTS,
    SECTION_MERGES,
    SECTION_ADDED,
    SECTION_PAIRS,
    SECTION_REST,
    N_SECTIONS
};

/* The identity of the file that the block was made from. */
struct vocab_source {
    uint64_t device, inode, size;
    int64_t mtime_ns, ctime_ns;
};

struct vocab_header {
    char magic[8];
    uint32_t version, byte_order;
    uint64_t size, checksum; // of the whole block; checksum: of all behind the header
    struct vocab_source source;
    uint32_t n_ids, n_tokens, n_merges, n_added;
    uint64_t offset[N_SECTIONS], bytes[N_SECTIONS];
};

static inline uint64_t vocab_hash(const char *s, size_t n)
{
    const uint64_t k = 0x9E3779B97F4A7C15u;
    uint64_t h = n * k, word;
    for (; n >= 8; s += 8, n -= 8) {
        memcpy(&word, s, 8);
        h = (h ^ word) * k;
        h ^= h >> 32;
    }
    word = 0;
    memcpy(&word, s, n);
    h = (h ^ word) * k;
    h ^= h >> 29;
    h *= 0xBF58476D1CE4E5B9u;
    return h ^ h >> 32;
}

static inline uint64_t vocab_hash_pair(uint32_t a, uint32_t b)
{
    uint64_t h = ((uint64_t)a << 32 | b) * 0x9E3779B97F4A7C15u;
    h ^= h >> 32;
    h *= 0xBF58476D1CE4E5B9u;
    return h ^ h >> 29;
}

uint32_t vocab_find_hashed(const struct vocab *v, uint64_t hash, const char *text, size_t n);

/* Reads the JSON text and builds the block. `name` is for messages. */
int vocab_build(uint8_t **block, size_t *size, const char *json, size_t n, const char *name,
                struct err *err);
/* Sets the pointers of v from its block, whose header is sound. */
void vocab_attach(struct vocab *v);

#endif
