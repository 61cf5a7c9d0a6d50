/*
 * regex: the regular expressions of tokenizer.json, with the meaning that Oniguruma (Ruby syntax,
 * Unicode 16) gives them, run by PCRE2's JIT.
 *
 * PCRE2 knows an older Unicode, so it never sees a character beyond ASCII: the pattern is parsed
 * here, every set of characters in it becomes a set of code points from our own table, the code
 * points from U+0080 are divided into the few classes that the pattern can tell apart, and pattern
 * and text are given to PCRE2 as bytes, a byte a character. A construct whose meaning is not
 * certain is refused. Multi-character case folds (ß with ss, ﬁ with fi) are not made.
 *
 * A struct regex is immutable and may be shared; a scratch belongs to one thread at a time.
 */
#ifndef LIBCORE_TEXT_REGEX_H
#define LIBCORE_TEXT_REGEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/err.h"

struct regex;
struct regex_scratch;

/* Byte ranges of a text, in order. */
struct text_span {
    uint32_t start, end;
};
struct span_list {
    struct text_span *items;
    size_t n, cap;
};
void span_list_release(struct span_list *l);
int span_list_add(struct span_list *l, size_t start, size_t end, struct err *err);

/* Returns 0, ERR_REFUSED (a construct that is not known here, by name), ERR_CORRUPT (no sound
 * pattern), ERR_LIMIT, ERR_NO_MEMORY. */
int regex_open(struct regex **out, const char *pattern, size_t n, struct err *err);
void regex_free(struct regex *r);

int regex_scratch_open(struct regex_scratch **out, struct err *err);
void regex_scratch_free(struct regex_scratch *s);

/* Appends every match in text[0, n) (well-formed UTF-8) from left to right, without overlaps; an
 * empty match right behind another match is passed over. ERR_LIMIT when the pattern runs away. */
int regex_find_all(const struct regex *r, struct regex_scratch *s, const char *text, size_t n,
                   struct span_list *out, struct err *err);

#endif
