/*
 * added: added tokens, special ones and others, and where they stand in a text.
 * Immutable after added_prepare; may then be shared by threads.
 */
#ifndef LIBCORE_TEXT_ADDED_H
#define LIBCORE_TEXT_ADDED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/arena.h"
#include "libcore/base/err.h"
#include "libcore/text/normalize.h"
#include "libcore/text/pieces.h"
#include "libcore/text/vocab.h"

struct added_token {
    const char *content; // as the file has it
    uint32_t n;
    uint32_t id;
    unsigned flags; // enum vocab_added_flags
    // what is looked for and what decoding gives: the content, normalized when the flag says so
    const char *pattern;
    uint32_t n_pattern;
    bool skipped; // decoding can leave it out: the pattern is the content of a special token
};

/* Tokens sorted by pattern; `first` counts those whose first byte is smaller. */
struct added_index {
    uint32_t *order;
    size_t n;
    uint32_t first[257];
};

struct added {
    struct added_token *tokens; // sorted by id once prepared
    size_t n, cap;
    uint32_t next_id;                   // for the next token that the vocabulary lacks
    uint32_t *slots;                    // hash table: content → its place in tokens + 1
    size_t n_slots;                     // a power of two, or 0
    struct added_index raw, normalized; // looked for before, and after the normalizer
    struct arena arena;                 // the texts
};

void added_init(struct added *a);
void added_release(struct added *a);

/* To be called in front of each list of tokens: sets next_id as the library does. */
void added_begin(struct added *a, const struct vocab *v);

/*
 * Adds a token. One that the vocabulary or an earlier added token has gets that id, another one the
 * next free one, as the library counts: wanted_id is what the file says (VOCAB_NONE: nothing), and
 * ERR_REFUSED that it says something else. Of equal contents the later one's flags count.
 */
int added_add(struct added *a, const struct vocab *v, const char *content, size_t n,
              uint32_t wanted_id, unsigned flags, struct err *err);
/* Normalizes, sorts and indexes. */
int added_prepare(struct added *a, const struct normalizer *z, struct normalize_scratch *s,
                  struct err *err);

const struct added_token *added_by_id(const struct added *a, uint32_t id);
const struct added_token *added_by_text(const struct added *a, const char *text, size_t n);

/* Cuts piece `from` of `text` at the tokens of the index and adds the parts to *out.
 * special_as_text: special tokens are left in the text. */
int added_split(const struct added *a, const struct added_index *index, const char *text,
                struct piece from, bool special_as_text, struct piece_list *out, struct err *err);

#endif
