/*
 * strbuf: a byte string that grows.
 * Owns its memory; always ends in a NUL that is not counted. A failed allocation sets `failed` and
 * every later append does nothing, so a builder checks once at its end. Not thread-safe.
 */
#ifndef LIBCORE_BASE_STRBUF_H
#define LIBCORE_BASE_STRBUF_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct strbuf {
    char *data; // NULL until the first append
    size_t len;
    size_t cap;
    size_t max; // 0: no bound; an append beyond it sets failed and too_long
    bool failed;
    bool too_long;
};

void strbuf_init(struct strbuf *sb);
void strbuf_release(struct strbuf *sb);

/* The text, never NULL; borrowed, valid until the next append. */
const char *strbuf_text(const struct strbuf *sb);

/* Gives the text away (to free with sys_free) and empties the buffer; NULL when failed. */
char *strbuf_take(struct strbuf *sb, size_t *len);

void strbuf_reset(struct strbuf *sb); // empties it and keeps the memory
/* What is added must not lie in the buffer itself. */
void strbuf_add(struct strbuf *sb, const void *bytes, size_t n);
void strbuf_adds(struct strbuf *sb, const char *text);
void strbuf_addc(struct strbuf *sb, char c);
void strbuf_addf(struct strbuf *sb, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void strbuf_addv(struct strbuf *sb, const char *fmt, va_list args);
void strbuf_add_utf8(struct strbuf *sb, uint32_t code_point); // what is none becomes U+FFFD
void strbuf_truncate(struct strbuf *sb, size_t len);

/* Appends `text` as a JSON string with its quotes; invalid UTF-8 becomes U+FFFD. */
void strbuf_add_json(struct strbuf *sb, const char *text, size_t n);

#endif
