#include "libcore/text/json_pull.h"

#include <string.h>

#include "libcore/base/limits.h"
#include "libcore/text/unicode.h"

void json_pull_init(struct json_pull *r, const char *text, size_t n, const char *name,
                    struct err *err)
{
    *r = (struct json_pull){.p = text, .start = text, .end = text + n, .name = name, .err = err};
    strbuf_init(&r->scratch);
}

void json_pull_release(struct json_pull *r)
{
    strbuf_release(&r->scratch);
}

int json_pull_fail(struct json_pull *r, const char *what)
{
    return err_set(r->err, ERR_CORRUPT, "%s:%zu: %s", r->name, (size_t)(r->p - r->start), what);
}

char json_pull_peek(struct json_pull *r)
{
    while (r->p < r->end && (*r->p == ' ' || *r->p == '\n' || *r->p == '\t' || *r->p == '\r'))
        r->p++;
    return r->p < r->end ? *r->p : '\0';
}

int json_pull_begin(struct json_pull *r, char bracket)
{
    if (json_pull_peek(r) != bracket)
        return json_pull_fail(r, bracket == '{' ? "an object is wanted" : "a list is wanted");
    r->p++;
    return 0;
}

int json_pull_next(struct json_pull *r, char bracket, bool *first, bool *more)
{
    char c = json_pull_peek(r);
    *more = c != bracket;
    if (c == bracket) {
        r->p++;
        return 0;
    }
    if (!*first) {
        if (c != ',')
            return json_pull_fail(r, "',' or the end of the list is wanted");
        r->p++;
    }
    *first = false;
    return 0;
}

static int read_hex4(struct json_pull *r, uint32_t *value)
{
    *value = 0;
    if (r->end - r->p < 4)
        return json_pull_fail(r, "broken escape");
    for (int i = 0; i < 4; i++) {
        char c = *r->p++;
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0)
            return json_pull_fail(r, "broken escape");
        *value = *value << 4 | (uint32_t)digit;
    }
    return 0;
}

static int read_unicode_escape(struct json_pull *r)
{
    uint32_t c, low;
    int rc = read_hex4(r, &c);
    if (rc)
        return rc;
    if (c >= 0xD800 && c <= 0xDFFF) {
        if (c > 0xDBFF || r->end - r->p < 6 || r->p[0] != '\\' || r->p[1] != 'u')
            return json_pull_fail(r, "lone surrogate");
        r->p += 2;
        rc = read_hex4(r, &low);
        if (rc)
            return rc;
        if (low < 0xDC00 || low > 0xDFFF)
            return json_pull_fail(r, "lone surrogate");
        c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
    }
    strbuf_add_utf8(&r->scratch, c);
    return 0;
}

/* Behind a backslash. */
static int read_escape(struct json_pull *r)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    char c = r->p < r->end ? *r->p++ : '\0';
    if (c == 'u')
        return read_unicode_escape(r);
    const char *at = c ? strchr(from, c) : NULL;
    if (!at)
        return json_pull_fail(r, "broken escape");
    strbuf_addc(&r->scratch, to[at - from]);
    return 0;
}

/* Runs over plain bytes from r->p; stops at a quote or a backslash. */
static int plain_run(struct json_pull *r, const char **s, size_t *n)
{
    const char *p = r->p;
    unsigned char any = 0;
    while (p < r->end && *p != '"' && *p != '\\' && (unsigned char)*p >= 0x20)
        any |= (unsigned char)*p++;
    if (p == r->end || (unsigned char)*p < 0x20)
        return json_pull_fail(r, "broken string");
    *s = r->p;
    *n = (size_t)(p - r->p);
    if ((any & 0x80) && utf8_valid_prefix(*s, *n) != *n)
        return json_pull_fail(r, "string is not UTF-8");
    r->p = p;
    return 0;
}

int json_pull_string(struct json_pull *r, const char **s, size_t *n)
{
    if (json_pull_peek(r) != '"')
        return json_pull_fail(r, "a string is wanted");
    r->p++;
    int rc = plain_run(r, s, n);
    if (rc)
        return rc;
    if (*r->p++ == '"')
        return 0;
    strbuf_reset(&r->scratch);
    strbuf_add(&r->scratch, *s, *n);
    for (;;) {
        rc = read_escape(r);
        if (!rc)
            rc = plain_run(r, s, n);
        if (rc)
            return rc;
        strbuf_add(&r->scratch, *s, *n);
        if (*r->p++ == '"')
            break;
    }
    if (r->scratch.failed)
        return err_set(r->err, ERR_NO_MEMORY, "%s: out of memory", r->name);
    *s = r->scratch.data;
    *n = r->scratch.len;
    return 0;
}

int json_pull_key(struct json_pull *r, const char **s, size_t *n)
{
    int rc = json_pull_string(r, s, n);
    if (rc)
        return rc;
    if (json_pull_peek(r) != ':')
        return json_pull_fail(r, "':' is wanted");
    r->p++;
    return 0;
}

int json_pull_integer(struct json_pull *r, int64_t *value)
{
    char c = json_pull_peek(r);
    bool negative = c == '-';
    r->p += negative;
    const char *digits = r->p;
    int64_t v = 0;
    while (r->p < r->end && *r->p >= '0' && *r->p <= '9' && r->p - digits < 18)
        v = v * 10 + (*r->p++ - '0');
    char next = r->p < r->end ? *r->p : '\0';
    if (r->p == digits || next == '.' || next == 'e' || next == 'E' || (next >= '0' && next <= '9'))
        return json_pull_fail(r, "an integer is wanted");
    *value = negative ? -v : v;
    return 0;
}

int json_pull_bool(struct json_pull *r, bool *value)
{
    json_pull_peek(r);
    size_t left = (size_t)(r->end - r->p);
    *value = left >= 4 && memcmp(r->p, "true", 4) == 0;
    bool no = left >= 5 && memcmp(r->p, "false", 5) == 0;
    if (!*value && !no)
        return json_pull_fail(r, "true or false is wanted");
    r->p += *value ? 4 : 5;
    return 0;
}

static int skip_string(struct json_pull *r)
{
    for (r->p++; r->p < r->end && *r->p != '"'; r->p++) {
        if (*r->p == '\\')
            r->p++;
    }
    if (r->p >= r->end) {
        r->p = r->end;
        return json_pull_fail(r, "broken string");
    }
    r->p++;
    return 0;
}

int json_pull_skip(struct json_pull *r, const char **start, size_t *n)
{
    json_pull_peek(r);
    const char *from = r->p;
    int depth = 0;
    do {
        char c = json_pull_peek(r);
        if (c == '"') {
            int rc = skip_string(r);
            if (rc)
                return rc;
        } else if (c == '{' || c == '[') {
            if (++depth > LIMIT_JSON_DEPTH)
                return json_pull_fail(r, "nested too deep");
            r->p++;
        } else if (c == '}' || c == ']') {
            if (--depth < 0)
                return json_pull_fail(r, "a value is wanted");
            r->p++;
        } else if (c == ',' || c == ':') {
            if (depth == 0)
                return json_pull_fail(r, "a value is wanted");
            r->p++;
        } else {
            const char *word = r->p;
            while (r->p < r->end && !strchr(" \n\r\t\"{}[],:", *r->p))
                r->p++;
            if (r->p == word)
                return json_pull_fail(r, "a value is wanted");
        }
    } while (depth > 0);
    if (start)
        *start = from;
    if (n)
        *n = (size_t)(r->p - from);
    return 0;
}

int json_pull_end(struct json_pull *r)
{
    json_pull_peek(r);
    return r->p == r->end ? 0 : json_pull_fail(r, "something follows the end");
}
