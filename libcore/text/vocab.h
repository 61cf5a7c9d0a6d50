/*
 * vocab: the large part of a tokenizer.json, compiled: tokens, merges and added tokens as tables in
 * one block of memory that is either built from the JSON or mapped from a cache file.
 *
 * The cache file is named by the identity of tokenizer.json (device, inode, size, both times) and
 * holds that identity, a format version and a checksum; anything that does not fit is ignored and
 * written anew. It may be deleted at any time.
 * Immutable after open; may be shared by threads.
 */
#ifndef LIBCORE_TEXT_VOCAB_H
#define LIBCORE_TEXT_VOCAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/err.h"

enum { VOCAB_NONE = 0xFFFFFFFF };

enum vocab_added_flags {
    ADDED_SPECIAL = 1,
    ADDED_LSTRIP = 2,
    ADDED_RSTRIP = 4,
    ADDED_SINGLE_WORD = 8,
    ADDED_NORMALIZED = 16
};

struct vocab_token {      // text of an id
    uint32_t offset, len; // len VOCAB_NONE: the id has no token
};
struct vocab_slot {   // hash table: token text → id
    uint32_t tag, id; // id VOCAB_NONE: empty
};
struct vocab_merge {                     // hash table: pair of ids → rank and product
    uint32_t left, right, rank, product; // left VOCAB_NONE: empty
};
struct vocab_added { // in the order of the file
    uint32_t offset, len, id, flags;
};

struct vocab {
    uint8_t *block; // private, as the two below
    size_t size;
    bool mapped;
    uint32_t n_ids;    // the highest id + 1
    uint32_t n_tokens; // tokens of the model
    uint32_t n_merges;
    uint32_t n_added;
    uint32_t slot_mask, merge_mask, pair_mask;
    const struct vocab_token *tokens;
    const char *text;
    const struct vocab_slot *slots;
    const struct vocab_merge *merges;
    const struct vocab_added *added;
    /* Bit set of hashed pairs of code points that stand side by side inside a merge's product; NULL
     * when it was not made. A pair whose bit is clear is never joined by any merge. */
    const uint64_t *pairs;
    /* tokenizer.json without added_tokens, model.vocab and model.merges. */
    const char *rest;
    size_t rest_len;
};

/* path: the file itself. Returns as tokenizer_open. */
int vocab_open(struct vocab **out, const char *path, const char *cache_folder, struct err *err);
void vocab_free(struct vocab *v);

uint32_t vocab_find(const struct vocab *v, const char *text, size_t n); // the id or VOCAB_NONE
const struct vocab_merge *vocab_find_merge(const struct vocab *v, uint32_t left, uint32_t right);
bool vocab_may_join(const struct vocab *v, uint32_t left_char, uint32_t right_char);

#endif
