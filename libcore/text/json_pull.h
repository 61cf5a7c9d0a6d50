/*
 * json_pull: reads JSON from memory token by token, for files that are too large for a tree.
 * Owns nothing but a scratch buffer; strings are handed out without copying where they hold no
 * escape. Strict about what it reads; what it skips is only balanced, not checked.
 * Not thread-safe. Every function returns 0 or ERR_CORRUPT (file:byte in the message),
 * ERR_NO_MEMORY.
 */
#ifndef LIBCORE_TEXT_JSON_PULL_H
#define LIBCORE_TEXT_JSON_PULL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/err.h"
#include "libcore/base/strbuf.h"

struct json_pull {
    const char *p, *start, *end;
    const char *name; // the file, for messages
    struct strbuf scratch;
    struct err *err;
};

void json_pull_init(struct json_pull *r, const char *text, size_t n, const char *name,
                    struct err *err);
void json_pull_release(struct json_pull *r);

char json_pull_peek(struct json_pull *r); // next character that is no space, '\0' at the end
/* Reads '{' or '['. Then before each member json_pull_next(r, '}' or ']', &first, &more), with
 * first = true at the beginning; it reads the comma, or the bracket and clears *more. */
int json_pull_begin(struct json_pull *r, char bracket);
int json_pull_next(struct json_pull *r, char bracket, bool *first, bool *more);
/* A key and its ':'; as json_pull_string otherwise. */
int json_pull_key(struct json_pull *r, const char **s, size_t *n);
/* A string: borrowed from the text or from the scratch buffer, valid until the next string. */
int json_pull_string(struct json_pull *r, const char **s, size_t *n);
int json_pull_integer(struct json_pull *r, int64_t *value);
int json_pull_bool(struct json_pull *r, bool *value);
/* Passes over one value of any kind; start and n (may be NULL) are its text. */
int json_pull_skip(struct json_pull *r, const char **start, size_t *n);
/* Only spaces follow. */
int json_pull_end(struct json_pull *r);
int json_pull_fail(struct json_pull *r, const char *what); // sets and returns ERR_CORRUPT

#endif
