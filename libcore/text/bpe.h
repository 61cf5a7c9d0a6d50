/*
 * bpe: byte pair encoding of one piece of text by a vocabulary, as the model "BPE" of the
 * `tokenizers` library does it: the pair of the lowest rank first, the leftmost of equals.
 * A struct bpe is immutable and may be shared; a scratch (buffers and a cache of words) belongs to
 * one thread at a time. Time is O(n log n) in the length of a piece.
 */
#ifndef LIBCORE_TEXT_BPE_H
#define LIBCORE_TEXT_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/err.h"
#include "libcore/text/tokenizer.h"
#include "libcore/text/vocab.h"

struct bpe {
    const struct vocab *v; // borrowed
    bool byte_fallback, ignore_merges, fuse_unk;
    char *unk_token;       // or NULL
    char *prefix, *suffix; // continuing_subword_prefix, end_of_word_suffix; NULL when empty
    bool byte_level;       // pieces come as raw bytes and stand for ByteLevel's characters
    /* set by bpe_prepare */
    uint32_t unk_id;         // VOCAB_NONE: none
    uint32_t byte_ids[256];  // <0xNN>
    uint32_t level_ids[256]; // ByteLevel's character for a byte
    bool may_cut;            // vocab_may_join decides where a piece can be cut in two
};

/* Fills in what follows from the fields above it. */
void bpe_prepare(struct bpe *b);
void bpe_release(struct bpe *b); // the strings

struct bpe_scratch;
int bpe_scratch_open(struct bpe_scratch **out, struct err *err);
void bpe_scratch_free(struct bpe_scratch *s);

/* Appends the ids of one piece of well-formed UTF-8. ERR_REFUSED: the text needs the unknown token
 * and the vocabulary lacks it. */
int bpe_encode(const struct bpe *b, struct bpe_scratch *s, const char *text, size_t n,
               struct token_ids *out, struct err *err);

/* ByteLevel's alphabet: the character that stands for a byte, and back (-1: none). */
uint32_t byte_level_char(unsigned char byte);
int byte_level_byte(uint32_t code_point);

#endif
