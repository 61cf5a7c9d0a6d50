#include "libcore/base/strbuf.h"

#include <stdio.h>
#include <string.h>

#include "libcore/base/sys.h"

void strbuf_init(struct strbuf *sb)
{
    memset(sb, 0, sizeof *sb);
}

void strbuf_release(struct strbuf *sb)
{
    sys_free(sb->data);
    strbuf_init(sb);
}

const char *strbuf_text(const struct strbuf *sb)
{
    return sb->data ? sb->data : "";
}

char *strbuf_take(struct strbuf *sb, size_t *len)
{
    if (!sb->data)
        strbuf_add(sb, "", 0);
    char *text = sb->failed ? NULL : sb->data;
    if (len)
        *len = text ? sb->len : 0;
    if (!text)
        sys_free(sb->data);
    strbuf_init(sb);
    return text;
}

void strbuf_reset(struct strbuf *sb)
{
    sb->len = 0;
    sb->failed = sb->too_long = false;
    if (sb->data)
        sb->data[0] = '\0';
}

/* Makes room for n more bytes and the NUL. */
static bool reserve(struct strbuf *sb, size_t n)
{
    if (sb->failed)
        return false;
    if (sb->max && (n > sb->max || sb->len > sb->max - n)) {
        sb->failed = sb->too_long = true;
        return false;
    }
    if (n >= SIZE_MAX / 2 - sb->len) {
        sb->failed = true;
        return false;
    }
    size_t need = sb->len + n + 1;
    if (need <= sb->cap)
        return true;
    size_t cap = sb->cap ? sb->cap : 64;
    while (cap < need)
        cap *= 2;
    char *data = sys_realloc(sb->data, cap);
    if (!data) {
        sb->failed = true;
        return false;
    }
    sb->data = data;
    sb->cap = cap;
    return true;
}

void strbuf_add(struct strbuf *sb, const void *bytes, size_t n)
{
    if (!reserve(sb, n))
        return;
    if (n)
        memcpy(sb->data + sb->len, bytes, n);
    sb->len += n;
    sb->data[sb->len] = '\0';
}

void strbuf_adds(struct strbuf *sb, const char *text)
{
    strbuf_add(sb, text, strlen(text));
}

void strbuf_addc(struct strbuf *sb, char c)
{
    strbuf_add(sb, &c, 1);
}

void strbuf_addv(struct strbuf *sb, const char *fmt, va_list args)
{
    va_list again;
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, again);
    va_end(again);
    if (n < 0 || !reserve(sb, (size_t)n))
        return;
    vsnprintf(sb->data + sb->len, (size_t)n + 1, fmt, args);
    sb->len += (size_t)n;
}

void strbuf_addf(struct strbuf *sb, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    strbuf_addv(sb, fmt, args);
    va_end(args);
}

void strbuf_add_utf8(struct strbuf *sb, uint32_t c)
{
    char b[4];
    size_t n = 0;
    if (c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF))
        c = 0xFFFD;
    if (c < 0x80) {
        b[n++] = (char)c;
    } else if (c < 0x800) {
        b[n++] = (char)(0xC0 | c >> 6);
        b[n++] = (char)(0x80 | (c & 0x3F));
    } else if (c < 0x10000) {
        b[n++] = (char)(0xE0 | c >> 12);
        b[n++] = (char)(0x80 | (c >> 6 & 0x3F));
        b[n++] = (char)(0x80 | (c & 0x3F));
    } else {
        b[n++] = (char)(0xF0 | c >> 18);
        b[n++] = (char)(0x80 | (c >> 12 & 0x3F));
        b[n++] = (char)(0x80 | (c >> 6 & 0x3F));
        b[n++] = (char)(0x80 | (c & 0x3F));
    }
    strbuf_add(sb, b, n);
}

void strbuf_truncate(struct strbuf *sb, size_t len)
{
    if (!sb->data || len >= sb->len)
        return;
    sb->len = len;
    sb->data[len] = '\0';
}

/* Length of the well-formed UTF-8 sequence at s, or 0. */
static size_t utf8_length(const unsigned char *s, size_t n)
{
    if (s[0] < 0x80)
        return 1;
    if (s[0] < 0xC2 || s[0] > 0xF4)
        return 0;
    size_t len = s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : 4;
    if (n < len)
        return 0;
    for (size_t i = 1; i < len; i++) {
        if ((s[i] & 0xC0) != 0x80)
            return 0;
    }
    if ((s[0] == 0xE0 && s[1] < 0xA0) || (s[0] == 0xED && s[1] > 0x9F) ||
        (s[0] == 0xF0 && s[1] < 0x90) || (s[0] == 0xF4 && s[1] > 0x8F))
        return 0;
    return len;
}

static void add_json_escape(struct strbuf *sb, unsigned char c)
{
    static const char short_escapes[] = "\b\t\n\f\r\"\\";
    static const char letters[] = "btnfr\"\\";
    const char *at = c ? strchr(short_escapes, c) : NULL;
    if (at) {
        strbuf_addc(sb, '\\');
        strbuf_addc(sb, letters[at - short_escapes]);
    } else {
        strbuf_addf(sb, "\\u%04x", c);
    }
}

/* How many bytes from s on stand in JSON as they are, ASCII only: most of most texts, added at
 * once. */
static size_t plain_run(const unsigned char *s, size_t n)
{
    size_t i = 0;
    while (i < n && s[i] >= 0x20 && s[i] < 0x7F && s[i] != '"' && s[i] != '\\')
        i++;
    return i;
}

void strbuf_add_json(struct strbuf *sb, const char *text, size_t n)
{
    const unsigned char *s = (const unsigned char *)text;
    strbuf_addc(sb, '"');
    for (size_t i = 0; i < n;) {
        size_t plain = plain_run(s + i, n - i);
        strbuf_add(sb, s + i, plain);
        i += plain;
        if (i == n)
            break;
        size_t len = utf8_length(s + i, n - i);
        if (len == 1)
            add_json_escape(sb, s[i]);
        else if (len)
            strbuf_add(sb, s + i, len);
        else
            strbuf_adds(sb, "\xEF\xBF\xBD");
        i += len ? len : 1;
    }
    strbuf_addc(sb, '"');
}
