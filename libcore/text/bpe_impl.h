/*
 * bpe_impl: the scratch of bpe.c, its merging loop (bpe_merge.c) and its cache of words
 * (word_cache.c). For libcore/text only.
 */
#ifndef LIBCORE_TEXT_BPE_IMPL_H
#define LIBCORE_TEXT_BPE_IMPL_H

#include "libcore/base/strbuf.h"
#include "libcore/text/bpe.h"

enum { WORD_CACHE_BYTES = 128 }; // longer words are rare and are not kept

struct word_ids {
    uint64_t hash;
    uint32_t text, len; // len 0: a free slot
    uint32_t first, n;  // in ids
};
/* Words and their ids; emptied when it is full. Zeroed memory is an empty cache. */
struct word_cache {
    struct word_ids *slots;
    uint32_t *ids;
    char *text;
    size_t n_words, n_ids, n_text;
    bool off; // memory was short: nothing is kept
};
void word_cache_release(struct word_cache *c);
const struct word_ids *word_cache_find(struct word_cache *c, const char *text, size_t n,
                                       uint64_t *hash);
void word_cache_add(struct word_cache *c, const char *text, size_t n, uint64_t hash,
                    const uint32_t *ids, size_t n_ids);

struct bpe_symbol {
    uint32_t id;
    uint32_t prev, next;    // VOCAB_NONE at the ends
    uint32_t rank, product; // of the pair with the next one; rank VOCAB_NONE: no merge
};
struct bpe_candidate {
    uint32_t rank, pos, product;
};
struct bpe_scratch {
    struct bpe_symbol *symbols;
    size_t n, cap;
    struct bpe_candidate *heap;
    size_t n_heap, cap_heap;
    struct word_cache cache;
    struct strbuf text, mapped;
};

/* Merges symbols[0, n), whose ids are set, and closes the gaps. */
int bpe_merge(const struct vocab *v, struct bpe_scratch *s, struct err *err);

#endif
