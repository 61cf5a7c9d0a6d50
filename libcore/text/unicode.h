/*
 * unicode: code points in UTF-8, their properties, and sets of them.
 * Properties are of Unicode 16.0 (unicode_table.c, generated). Pure functions; a set belongs to its
 * caller. Thread rule: everything may be called from any thread, a set by one at a time.
 */
#ifndef LIBCORE_TEXT_UNICODE_H
#define LIBCORE_TEXT_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/err.h"
#include "libcore/base/strbuf.h"

enum { UNICODE_MAX = 0x10FFFF };

/* Length (1…4) of the well-formed sequence at s, which has n > 0 bytes, or 0. */
size_t utf8_length(const char *s, size_t n);
/* The code point of a well-formed sequence; *len is its length. */
uint32_t utf8_decode(const char *s, size_t *len);
size_t utf8_encode(uint32_t code_point, char out[4]);
/* How many leading bytes are well-formed UTF-8; n when all are. */
size_t utf8_valid_prefix(const char *s, size_t n);
/* What an ill-formed sequence at s needs: the length (1…3) of its maximal part that becomes one
 * U+FFFD; *unfinished is set when more bytes could still complete it. */
size_t utf8_bad_length(const char *s, size_t n, bool *unfinished);
/* Appends s with every ill-formed part as U+FFFD. */
void utf8_add_lossy(struct strbuf *out, const char *s, size_t n);
/* Bytes before s[at] that belong to the character that ends there (0 when at is 0). */
size_t utf8_length_before(const char *s, size_t at);

bool unicode_is_space(uint32_t c);   // White_Space
bool unicode_is_numeric(uint32_t c); // N*
/* P* as the library's old table has it (Unicode 9), and every ASCII mark. */
bool unicode_is_punctuation(uint32_t c);
bool unicode_is_mark(uint32_t c); // M*, as the library's table has it
/* A letter of words as Rust's \w has it: letters, marks, Nd, Nl, Pc, circled letters, joiners. */
bool unicode_is_word(uint32_t c);
/* Appends the lower case form (U+0130 has two code points). */
void unicode_add_lower(struct strbuf *out, uint32_t c);

/* ---- sets: sorted ranges without overlaps or neighbours ---- */
struct cp_range {
    uint32_t first, last;
};
struct cp_set {
    struct cp_range *ranges;
    size_t n, cap;
    bool failed; // memory ran out; the set is then of no use
};
void cp_set_init(struct cp_set *s);
void cp_set_release(struct cp_set *s);
void cp_set_add(struct cp_set *s, uint32_t first, uint32_t last);  // then call cp_set_normalize
void cp_set_add_set(struct cp_set *s, const struct cp_set *other); // then call cp_set_normalize
void cp_set_normalize(struct cp_set *s);
void cp_set_complement(struct cp_set *s); // of a normalized set; surrogates stay out of it
bool cp_set_has(const struct cp_set *s, uint32_t c);
bool cp_set_equal(const struct cp_set *a, const struct cp_set *b);
/* Adds everything that simple case folding makes equal to a member (ſ to s, ς to σ). */
void cp_set_close_case(struct cp_set *s);

/* Adds a property by the name that \p{…} takes: a category ("L", "Lu", "Letter"), a script of the
 * table ("Han"), "Any"; or one of the escapes "s", "d", "w", "h" written as "\\s". Case, spaces,
 * '-' and '_' do not matter in names. false: not known. */
bool cp_set_add_property(struct cp_set *s, const char *name, size_t n);

#endif
