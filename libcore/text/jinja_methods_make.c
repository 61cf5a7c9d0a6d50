/* Methods of str that give another text: case, strip, replace, padding, format. */
#include <string.h>

#include "libcore/text/jinja_impl.h"

#define METHOD(name)                                                                               \
    static int name(struct jinja_render *r, struct jinja_value self,                               \
                    const struct jinja_value *argv, const struct jinja_args *args,                 \
                    struct jinja_value *out)

/* ---- case ---- */
#define CASE(name, add)                                                                            \
    METHOD(name)                                                                                   \
    {                                                                                              \
        struct strbuf sb;                                                                          \
        (void)argv, (void)args;                                                                    \
        JINJA_TRY(jinja_steps(r, self.s->len / 16));                                               \
        strbuf_init(&sb);                                                                          \
        add(&sb, self.s->data, self.s->len);                                                       \
        return jinja_take_strbuf(r, &sb, out);                                                     \
    }

static void add_capitalized(struct strbuf *sb, const char *data, size_t len)
{
    uint32_t cp;
    if (!len)
        return;
    size_t n = jinja_decode(data, len, &cp);
    struct strbuf lower; // as a whole: a final sigma looks back at the first letter
    jinja_add_title_char(sb, cp);
    strbuf_init(&lower);
    jinja_add_lower(&lower, data, len);
    struct strbuf head;
    strbuf_init(&head);
    jinja_add_lower(&head, data, n);
    if (lower.len >= head.len)
        strbuf_add(sb, strbuf_text(&lower) + head.len, lower.len - head.len);
    sb->failed |= lower.failed | head.failed;
    strbuf_release(&head);
    strbuf_release(&lower);
}

/* str.title(): a letter after anything but a letter is a capital. */
static void add_titled(struct strbuf *sb, const char *data, size_t len)
{
    uint32_t cp;
    bool inside = false;
    for (size_t i = 0; i < len;) {
        size_t n = jinja_decode(data + i, len - i, &cp);
        if (inside)
            jinja_add_lower(sb, data + i, n);
        else
            jinja_add_title_char(sb, cp);
        inside = jinja_is_lower(cp) || jinja_is_upper(cp) || jinja_is_title(cp);
        i += n;
    }
}

static void add_swapped(struct strbuf *sb, const char *data, size_t len)
{
    uint32_t cp;
    for (size_t i = 0; i < len;) {
        size_t n = jinja_decode(data + i, len - i, &cp);
        if (jinja_is_upper(cp))
            jinja_add_lower(sb, data + i, n);
        else if (jinja_is_lower(cp))
            jinja_add_upper(sb, data + i, n);
        else
            strbuf_add(sb, data + i, n);
        i += n;
    }
}

CASE(upper, jinja_add_upper)
CASE(lower, jinja_add_lower)
CASE(casefold, jinja_add_casefold)
CASE(capitalize, add_capitalized)
CASE(title, add_titled)
CASE(swapcase, add_swapped)

/* ---- strip ---- */
static bool stripped(uint32_t cp, const char *at, size_t n, const struct jinja_str *chars)
{
    if (!chars)
        return jinja_is_space(cp);
    for (size_t i = 0; i < chars->len;) {
        uint32_t other;
        size_t m = jinja_decode(chars->data + i, chars->len - i, &other);
        if (m == n && memcmp(chars->data + i, at, n) == 0)
            return true;
        i += m;
    }
    return false;
}

static int strip_sides(struct jinja_render *r, struct jinja_value self, struct jinja_value what,
                       bool left, bool right, struct jinja_value *out)
{
    struct jinja_str *chars = NULL;
    const char *s = self.s->data;
    size_t begin = 0, end = self.s->len;
    uint32_t cp;
    if (what.type != JINJA_NONE)
        JINJA_TRY(jinja_arg_str(r, what, "strip", &chars));
    while (left && begin < end) {
        size_t n = jinja_decode(s + begin, end - begin, &cp);
        if (!stripped(cp, s + begin, n, chars))
            break;
        begin += n;
    }
    while (right && end > begin) {
        size_t p = end - 1;
        while (p > begin && ((unsigned char)s[p] & 0xC0) == 0x80)
            p--;
        jinja_decode(s + p, end - p, &cp);
        if (!stripped(cp, s + p, end - p, chars))
            break;
        end = p;
    }
    JINJA_TRY(jinja_steps(r, (self.s->len - (end - begin)) * (chars ? chars->len + 1 : 1) / 16));
    if (end - begin == self.s->len)
        *out = self;
    else
        return jinja_borrow_str(r, s + begin, end - begin, out);
    return 0;
}

METHOD(strip)
{
    (void)args;
    return strip_sides(r, self, argv[0], true, true, out);
}

METHOD(lstrip)
{
    (void)args;
    return strip_sides(r, self, argv[0], true, false, out);
}

METHOD(rstrip)
{
    (void)args;
    return strip_sides(r, self, argv[0], false, true, out);
}

METHOD(removeprefix)
{
    struct jinja_str *part = NULL;
    (void)args;
    JINJA_TRY(jinja_arg_str(r, argv[0], "removeprefix", &part));
    *out = self;
    if (part->len > self.s->len || memcmp(self.s->data, part->data, part->len) != 0)
        return 0;
    return jinja_borrow_str(r, self.s->data + part->len, self.s->len - part->len, out);
}

METHOD(removesuffix)
{
    struct jinja_str *part = NULL;
    (void)args;
    JINJA_TRY(jinja_arg_str(r, argv[0], "removesuffix", &part));
    *out = self;
    size_t n = self.s->len - part->len;
    if (part->len > self.s->len || memcmp(self.s->data + n, part->data, part->len) != 0)
        return 0;
    return jinja_borrow_str(r, self.s->data, n, out);
}

/* ---- replace ---- */

/* An empty `old` matches before every character and at the end. */
static void replace_empty(struct strbuf *sb, const struct jinja_str *s,
                          const struct jinja_str *new_, int64_t count)
{
    uint32_t cp;
    size_t i = 0;
    for (; i < s->len && count != 0; count--) {
        size_t n = jinja_decode(s->data + i, s->len - i, &cp);
        strbuf_add(sb, new_->data, new_->len);
        strbuf_add(sb, s->data + i, n);
        i += n;
    }
    strbuf_add(sb, s->data + i, s->len - i);
    if (i == s->len && count != 0)
        strbuf_add(sb, new_->data, new_->len);
}

static int replace_all(struct jinja_render *r, struct strbuf *sb, const struct jinja_str *s,
                       const struct jinja_str *old, const struct jinja_str *new_, int64_t count)
{
    const char *at = s->data, *end = s->data + s->len;
    while (count != 0 && (size_t)(end - at) >= old->len) {
        const char *hit = memmem(at, (size_t)(end - at), old->data, old->len);
        if (!hit)
            break;
        strbuf_add(sb, at, (size_t)(hit - at));
        strbuf_add(sb, new_->data, new_->len);
        at = hit + old->len;
        count--;
        JINJA_TRY(jinja_steps(r, 1 + new_->len / 64));
    }
    strbuf_add(sb, at, (size_t)(end - at));
    return jinja_steps(r, s->len / 64);
}

METHOD(replace)
{
    struct jinja_str *old = NULL, *new_ = NULL;
    struct jinja_value marked;
    struct strbuf sb;
    int64_t count = -1;
    int rc = 0;
    (void)args;
    JINJA_TRY(jinja_arg_str(r, argv[0], "replace() argument 1", &old));
    JINJA_TRY(jinja_arg_str(r, argv[1], "replace() argument 2", &new_));
    JINJA_TRY(jinja_arg_int(r, argv[2], "replace() argument 3", &count));
    if (self.s->markup) {
        JINJA_TRY(jinja_escape(r, jinja_of_str(new_), &marked));
        new_ = marked.s;
    }
    strbuf_init(&sb);
    sb.max = LIMIT_TEMPLATE_OUTPUT_BYTES;
    if (old->len)
        rc = replace_all(r, &sb, self.s, old, new_, count);
    else if (self.s->len || count)
        rc = jinja_steps(r, self.s->len / 4 + 1);
    if (!rc && !old->len)
        replace_empty(&sb, self.s, new_, count);
    if (!rc)
        return jinja_take_strbuf(r, &sb, out);
    strbuf_release(&sb);
    return rc;
}

/* ---- padding ---- */
static int pad(struct jinja_render *r, struct jinja_value self, int64_t width,
               struct jinja_value fill, int side, struct jinja_value *out)
{
    struct jinja_str space = {.data = " ", .len = 1, .n_chars = 1}, *with = &space;
    struct strbuf sb;
    int64_t n = (int64_t)jinja_n_chars(self.s);
    JINJA_TRY(jinja_arg_str(r, fill, "fillchar", &with));
    if (jinja_n_chars(with) != 1)
        return jinja_fail(r, "The fill character must be exactly one character long");
    *out = self;
    if (width <= n)
        return 0;
    if (width > LIMIT_TEMPLATE_OUTPUT_BYTES)
        return jinja_fail_code(r, ERR_LIMIT, "a text of more than %d bytes",
                               LIMIT_TEMPLATE_OUTPUT_BYTES);
    int64_t room = width - n, left = side < 0 ? 0 : side > 0 ? room : room / 2 + (room & width & 1);
    JINJA_TRY(jinja_steps(r, (size_t)room / 16));
    strbuf_init(&sb);
    for (int64_t i = 0; i < left; i++)
        strbuf_add(&sb, with->data, with->len);
    strbuf_add(&sb, self.s->data, self.s->len);
    for (int64_t i = left; i < room; i++)
        strbuf_add(&sb, with->data, with->len);
    return jinja_take_strbuf(r, &sb, out);
}

#define PAD(name, side)                                                                            \
    METHOD(name)                                                                                   \
    {                                                                                              \
        int64_t width = 0;                                                                         \
        (void)args;                                                                                \
        JINJA_TRY(jinja_arg_int(r, argv[0], "width", &width));                                     \
        return pad(r, self, width, argv[1], side, out);                                            \
    }

PAD(ljust, -1)
PAD(rjust, 1)
PAD(center, 0)

METHOD(zfill)
{
    int64_t width = 0;
    struct jinja_value zero, sign, rest;
    (void)args;
    JINJA_TRY(jinja_arg_int(r, argv[0], "width", &width));
    JINJA_TRY(jinja_borrow_str(r, "0", 1, &zero));
    bool has_sign = self.s->len && (self.s->data[0] == '+' || self.s->data[0] == '-');
    if (!has_sign)
        return pad(r, self, width, zero, 1, out);
    JINJA_TRY(jinja_borrow_str(r, self.s->data, 1, &sign));
    JINJA_TRY(jinja_borrow_str(r, self.s->data + 1, self.s->len - 1, &rest));
    JINJA_TRY(pad(r, rest, width - 1, zero, 1, &rest));
    return jinja_join2(r, sign.s, rest.s, out);
}

METHOD(expandtabs)
{
    struct strbuf sb;
    int64_t size = 8, column = 0;
    int rc = 0;
    (void)args;
    JINJA_TRY(jinja_arg_int(r, argv[0], "tabsize", &size));
    strbuf_init(&sb);
    sb.max = LIMIT_TEMPLATE_OUTPUT_BYTES;
    for (size_t i = 0; !rc && i < self.s->len; i++) {
        char c = self.s->data[i];
        int64_t wide = c == '\t' ? (size > 0 ? size - column % size : 0) : 0;
        if (wide > LIMIT_TEMPLATE_OUTPUT_BYTES)
            rc = jinja_fail_code(r, ERR_LIMIT, "tabs of more than %d columns",
                                 LIMIT_TEMPLATE_OUTPUT_BYTES);
        for (int64_t k = 0; !rc && !sb.failed && k < wide; k++)
            strbuf_addc(&sb, ' ');
        if (c != '\t')
            strbuf_addc(&sb, c);
        column = c == '\n' || c == '\r' ? 0 : column + wide;
        column += c != '\t' && c != '\n' && c != '\r' && ((unsigned char)c & 0xC0) != 0x80;
        if (!rc)
            rc = jinja_steps(r, 1 + (size_t)wide / 16);
    }
    if (!rc)
        return jinja_take_strbuf(r, &sb, out);
    strbuf_release(&sb);
    return rc;
}

/* ---- join, format ---- */
METHOD(join)
{
    struct jinja_value items;
    struct strbuf sb;
    int rc = 0;
    (void)args;
    JINJA_TRY(jinja_to_list(r, argv[0], &items));
    strbuf_init(&sb);
    sb.max = LIMIT_TEMPLATE_OUTPUT_BYTES;
    for (size_t i = 0; !rc && i < items.list->n; i++) {
        struct jinja_value v = items.list->items[i];
        if (self.s->markup)
            rc = jinja_escape(r, v, &v);
        if (rc)
            break;
        if (v.type != JINJA_STR) {
            rc = jinja_fail(r, "sequence item %zu: expected str instance, %s found", i,
                            jinja_type_name(v));
            break;
        }
        if (i)
            strbuf_add(&sb, self.s->data, self.s->len);
        strbuf_add(&sb, v.s->data, v.s->len);
        rc = jinja_steps(r, (self.s->len + v.s->len) / 64);
    }
    if (!rc)
        return jinja_take_strbuf(r, &sb, out);
    strbuf_release(&sb);
    return rc;
}

METHOD(format)
{
    (void)argv;
    return jinja_str_format(r, self.s, args, (struct jinja_value){.type = JINJA_MISSING}, out);
}

METHOD(format_map)
{
    const struct jinja_args none = {0};
    (void)args;
    return jinja_str_format(r, self.s, &none, argv[0], out);
}

const struct jinja_row jinja_str_methods_make[] = {
    {"strip", strip, "chars", 0},
    {"lstrip", lstrip, "chars", 0},
    {"rstrip", rstrip, "chars", 0},
    {"replace", replace, "old,new,count", 2},
    {"upper", upper, "", 0},
    {"lower", lower, "", 0},
    {"title", title, "", 0},
    {"capitalize", capitalize, "", 0},
    {"casefold", casefold, "", 0},
    {"swapcase", swapcase, "", 0},
    {"join", join, "iterable", 1},
    {"format", format, "*", 0},
    {"format_map", format_map, "mapping", 1},
    {"removeprefix", removeprefix, "prefix", 1},
    {"removesuffix", removesuffix, "suffix", 1},
    {"ljust", ljust, "width,fillchar", 1},
    {"rjust", rjust, "width,fillchar", 1},
    {"center", center, "width,fillchar", 1},
    {"zfill", zfill, "width", 1},
    {"expandtabs", expandtabs, "tabsize", 0},
    {NULL, NULL, NULL, 0},
};
