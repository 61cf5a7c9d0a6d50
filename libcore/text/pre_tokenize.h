/*
 * pre_tokenize: the pre-tokenizers of tokenizer.json, run one after the other over a list of
 * pieces. A struct pre_tokenizer is immutable and may be shared; a scratch belongs to one thread.
 */
#ifndef LIBCORE_TEXT_PRE_TOKENIZE_H
#define LIBCORE_TEXT_PRE_TOKENIZE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "libcore/base/err.h"
#include "libcore/base/strbuf.h"
#include "libcore/text/normalize.h"
#include "libcore/text/pieces.h"

enum split_behavior {
    SPLIT_REMOVED,
    SPLIT_ISOLATED,
    SPLIT_MERGED_WITH_PREVIOUS,
    SPLIT_MERGED_WITH_NEXT,
    SPLIT_CONTIGUOUS
};

enum pre_kind {
    PRE_SPLIT,
    PRE_BYTE_LEVEL_SPLIT, // ByteLevel's space in front and its own pattern
    PRE_BYTE_LEVEL_MAP,   // ByteLevel's characters for bytes
    PRE_METASPACE,
    PRE_DIGITS,
    PRE_WHITESPACE,
    PRE_WHITESPACE_SPLIT,
    PRE_PUNCTUATION,
    PRE_DELIMITER,
    PRE_FIXED_LENGTH
};

enum prepend_scheme { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER };

struct pre_step {
    enum pre_kind kind;
    struct text_pattern pattern; // SPLIT; BYTE_LEVEL_SPLIT with use_regex
    enum split_behavior behavior;
    bool invert;                 // SPLIT
    bool prefix_space;           // BYTE_LEVEL_SPLIT
    bool use_pattern;            // BYTE_LEVEL_SPLIT
    bool split;                  // METASPACE
    enum prepend_scheme prepend; // METASPACE
    uint32_t character;          // METASPACE: the replacement; DELIMITER
    size_t length;               // FIXED_LENGTH, in characters
};
struct pre_tokenizer {
    struct pre_step *steps;
    size_t n, cap;
};

struct split_event {
    uint32_t start, end;
    bool match;
};
struct pre_scratch {
    struct strbuf buffer[2];
    struct piece_list pieces[2];
    struct span_list spans;
    struct split_event *events;
    size_t n_events, cap_events;
    struct regex_scratch *regex; // borrowed
};

/* Adds the steps of a "pre_tokenizer" value (null: none). ERR_REFUSED names what is not known. */
int pre_tokenizer_add(struct pre_tokenizer *p, const json_t *value, struct err *err);
void pre_tokenizer_release(struct pre_tokenizer *p);
void pre_scratch_release(struct pre_scratch *s);

/* Cuts *pieces of *text further. Both are replaced by what is in the scratch where a step changes
 * them. */
int pre_tokenizer_run(const struct pre_tokenizer *p, struct pre_scratch *s, const char **text,
                      const struct piece_list **pieces, struct err *err);

/* A Metaspace value, which is also a decoder. */
int metaspace_read(const json_t *value, struct pre_step *step, struct err *err);

#endif
