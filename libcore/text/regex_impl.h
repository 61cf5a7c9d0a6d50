/*
 * regex_impl: what the parser of patterns hands to the compiler. For libcore/text only.
 */
#ifndef LIBCORE_TEXT_REGEX_IMPL_H
#define LIBCORE_TEXT_REGEX_IMPL_H

#include "libcore/base/strbuf.h"
#include "libcore/text/unicode.h"

enum { REGEX_MAX_SETS = 64, REGEX_SET_MARK = 1 };

/* The pattern in PCRE2's syntax, where a set of characters is written as REGEX_SET_MARK and a byte:
 * ' ' + its index in `sets`. */
struct regex_program {
    struct strbuf text;
    struct cp_set sets[REGEX_MAX_SETS];
    size_t n_sets;
};

/* On failure, too, the program is to be released. */
int regex_parse(struct regex_program *program, const char *pattern, size_t n, struct err *err);
void regex_program_release(struct regex_program *program);

#endif
