/* printf-style formatting (`"%s" % x`, the filter format) and the digits that both styles share. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/text/jinja_impl.h"

/* More digits than this say nothing; a wish for them is a mistake or an attack. */
enum { MAX_PRECISION = 10000 };

/* ---- numbers ---- */
static void add_digits(struct strbuf *sb, uint64_t u, unsigned base, bool upper, int at_least)
{
    char buf[72];
    size_t n = sizeof buf;
    const char *set = upper ? "0123456789ABCDEF" : "0123456789abcdef";
    do {
        buf[--n] = set[u % base];
        u /= base;
        at_least--;
    } while (u);
    for (; at_least > 0; at_least--)
        strbuf_addc(sb, '0');
    strbuf_add(sb, buf + n, sizeof buf - n);
}

/* Puts a separator between every `width` digits from the right of sb[begin, end). */
static void group_digits(struct strbuf *sb, size_t begin, size_t end, char sep, size_t width)
{
    struct strbuf out;
    strbuf_init(&out);
    for (size_t i = begin; i < end; i++) {
        if (i > begin && (end - i) % width == 0)
            strbuf_addc(&out, sep);
        strbuf_addc(&out, sb->data[i]);
    }
    strbuf_add(&out, sb->data + end, sb->len - end);
    strbuf_truncate(sb, begin);
    strbuf_add(sb, strbuf_text(&out), out.len);
    sb->failed |= out.failed;
    strbuf_release(&out);
}

static void add_sign(struct strbuf *sb, bool minus, char sign)
{
    if (minus)
        strbuf_addc(sb, '-');
    else if (sign == '+' || sign == ' ')
        strbuf_addc(sb, sign);
}

static int add_integer(struct strbuf *sb, const struct jinja_number_style *st, int64_t i,
                       size_t *prefix)
{
    char c = st->conversion;
    unsigned base = c == 'x' || c == 'X' ? 16 : c == 'o' ? 8 : c == 'b' ? 2 : 10;
    size_t start = sb->len;
    add_sign(sb, i < 0, st->sign);
    if (st->alternate && base != 10)
        strbuf_addf(sb, "0%c", c);
    *prefix = sb->len - start;
    size_t begin = sb->len;
    add_digits(sb, i < 0 ? 0 - (uint64_t)i : (uint64_t)i, base, c == 'X', st->precision);
    if (st->group && !sb->failed)
        group_digits(sb, begin, sb->len, st->group, base == 10 ? 3 : 4);
    return 0;
}

/* str.format without a type: like g with a point always, or repr where no precision is given. */
static void add_general(struct strbuf *sb, double f, int precision)
{
    if (precision < 0) {
        jinja_add_float(sb, f);
        return;
    }
    precision = precision ? precision : 1;
    size_t start = sb->len;
    strbuf_addf(sb, "%.*e", precision - 1, f);
    if (sb->failed)
        return;
    const char *e = strchr(sb->data + start, 'e');
    int exponent = atoi(e + 1);
    if (exponent >= -4 && exponent < precision - 1) {
        strbuf_truncate(sb, start);
        strbuf_addf(sb, "%.*g", precision, f);
        if (!sb->failed && !strchr(sb->data + start, '.'))
            strbuf_adds(sb, ".0");
        return;
    }
    size_t n = (size_t)(e - sb->data), end = n;
    while (precision > 1 && (sb->data[n - 1] == '0' || sb->data[n - 1] == '.') && n > start + 1)
        if (sb->data[--n] == '.')
            break;
    memmove(sb->data + n, sb->data + end, sb->len - end);
    strbuf_truncate(sb, sb->len - (end - n));
}

static void add_float_digits(struct strbuf *sb, const struct jinja_number_style *st, double f)
{
    char fmt[8];
    char c = st->conversion;
    bool upper = c == 'E' || c == 'F' || c == 'G';
    if (isnan(f) || isinf(f)) {
        strbuf_adds(sb, isnan(f) ? (upper ? "NAN" : "nan") : (upper ? "INF" : "inf"));
    } else if (!c) {
        add_general(sb, f, st->precision);
        return;
    } else {
        snprintf(fmt, sizeof fmt, "%%%s.*%c", st->alternate ? "#" : "", c == '%' ? 'f' : c);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        strbuf_addf(sb, fmt, st->precision < 0 ? 6 : st->precision, c == '%' ? f * 100 : f);
#pragma GCC diagnostic pop
    }
    if (c == '%')
        strbuf_addc(sb, '%');
}

int jinja_add_number(struct jinja_render *r, struct strbuf *sb, const struct jinja_number_style *st,
                     struct jinja_value v, size_t *prefix)
{
    bool integer = jinja_is_integral(v) && (!st->conversion || strchr("dxXob", st->conversion));
    if (st->precision > MAX_PRECISION)
        return jinja_fail_code(r, ERR_LIMIT, "a precision of %d digits", st->precision);
    if (integer)
        return add_integer(sb, st, jinja_as_int(v), prefix);
    double f = jinja_as_double(v);
    size_t start = sb->len;
    add_sign(sb, signbit(f) && !isnan(f), st->sign);
    *prefix = sb->len - start;
    size_t begin = sb->len, end = begin;
    add_float_digits(sb, st, isnan(f) ? f : fabs(f));
    while (!sb->failed && end < sb->len && sb->data[end] >= '0' && sb->data[end] <= '9')
        end++;
    if (st->group && !sb->failed)
        group_digits(sb, begin, end, st->group, 3);
    return 0;
}

/* ---- the % operator ---- */
struct percent {
    struct jinja_render *r;
    struct strbuf *sb;
    struct jinja_value args;
    size_t next; // of a tuple; 1 when a single argument was taken
    bool mapping;
    bool markup; // texts are escaped
};

struct spec {
    bool left, plus, space, alternate, zero;
    int64_t width, precision; // precision -1: none
    char conversion;
};

static bool is_mapping(struct jinja_value v)
{
    return v.type == JINJA_DICT || v.type == JINJA_LIST || v.type == JINJA_UNDEFINED ||
           v.type == JINJA_RANGE;
}

static int next_arg(struct percent *p, struct jinja_value *out)
{
    bool tuple = p->args.type == JINJA_TUPLE;
    if (p->next >= (tuple ? p->args.list->n : 1))
        return jinja_fail(p->r, "not enough arguments for format string");
    *out = tuple ? p->args.list->items[p->next] : p->args;
    p->next++;
    return 0;
}

/* Digits or `*`. */
static int read_count(struct percent *p, const char *s, size_t len, size_t *i, int64_t *out)
{
    if (*i < len && s[*i] == '*') {
        struct jinja_value v;
        (*i)++;
        JINJA_TRY(next_arg(p, &v));
        if (!jinja_is_integral(v))
            return jinja_fail(p->r, "* wants int");
        *out = jinja_as_int(v);
    } else {
        for (*out = 0; *i < len && s[*i] >= '0' && s[*i] <= '9'; (*i)++)
            if (*out <= LIMIT_TEMPLATE_OUTPUT_BYTES)
                *out = *out * 10 + (s[*i] - '0');
    }
    if (*out > LIMIT_TEMPLATE_OUTPUT_BYTES || *out < -LIMIT_TEMPLATE_OUTPUT_BYTES)
        return jinja_fail_code(p->r, ERR_LIMIT, "a format width or precision of more than %d",
                               LIMIT_TEMPLATE_OUTPUT_BYTES);
    return 0;
}

/* (key) of a dict: the value becomes the next argument. */
static int read_key(struct percent *p, const char *s, size_t len, size_t *i,
                    struct jinja_value *out)
{
    size_t begin = *i + 1, end = begin;
    unsigned depth = 1;
    for (; end < len; end++) {
        depth += s[end] == '(';
        depth -= s[end] == ')';
        if (!depth)
            break;
    }
    if (end >= len)
        return jinja_fail(p->r, "incomplete format key");
    if (p->args.type != JINJA_DICT)
        return jinja_fail(p->r, "format requires a mapping");
    *i = end + 1;
    p->next = 1; // the dict is used up as an argument of its own
    JINJA_TRY(jinja_dict_get_text(p->r, p->args.dict, s + begin, end - begin, out));
    if (out->type == JINJA_MISSING)
        return jinja_fail(p->r, "KeyError: '%.*s'", (int)(end - begin), s + begin);
    return 0;
}

static int read_spec(struct percent *p, const char *s, size_t len, size_t *i, struct spec *spec)
{
    for (; *i < len && strchr("-+ #0", s[*i]) && s[*i]; (*i)++) {
        spec->left |= s[*i] == '-';
        spec->plus |= s[*i] == '+';
        spec->space |= s[*i] == ' ';
        spec->alternate |= s[*i] == '#';
        spec->zero |= s[*i] == '0';
    }
    JINJA_TRY(read_count(p, s, len, i, &spec->width));
    if (spec->width < 0) {
        spec->left = true;
        spec->width = -spec->width;
    }
    spec->precision = -1;
    if (*i < len && s[*i] == '.') {
        (*i)++;
        JINJA_TRY(read_count(p, s, len, i, &spec->precision));
        spec->precision = spec->precision < 0 ? 0 : spec->precision;
    }
    while (*i < len && (s[*i] == 'l' || s[*i] == 'h' || s[*i] == 'L'))
        (*i)++;
    if (*i >= len)
        return jinja_fail(p->r, "incomplete format");
    spec->conversion = s[(*i)++];
    return 0;
}

/* Appends `text`, whose first `prefix` bytes stay in front of padding zeros. */
static int add_padded(struct percent *p, const struct spec *spec, const char *text, size_t len,
                      size_t prefix, bool zero)
{
    struct jinja_str s = {.data = text, .len = len, .n_chars = JINJA_UNCOUNTED};
    size_t n = jinja_n_chars(&s), width = (size_t)spec->width, pad = width > n ? width - n : 0;
    JINJA_TRY(jinja_steps(p->r, (pad + len) / 16));
    if (zero && !spec->left) {
        strbuf_add(p->sb, text, prefix);
        text += prefix;
        len -= prefix;
    }
    for (size_t i = 0; !spec->left && i < pad; i++)
        strbuf_addc(p->sb, zero ? '0' : ' ');
    strbuf_add(p->sb, text, len);
    for (size_t i = 0; spec->left && i < pad; i++)
        strbuf_addc(p->sb, ' ');
    return 0;
}

/* ascii(): repr with everything else escaped. */
static void escape_ascii(struct strbuf *to, const struct strbuf *from)
{
    uint32_t cp;
    for (size_t i = 0; i < from->len;) {
        i += jinja_decode(from->data + i, from->len - i, &cp);
        if (cp < 0x80)
            strbuf_addc(to, (char)cp);
        else
            strbuf_addf(to, cp < 0x100 ? "\\x%02x" : cp < 0x10000 ? "\\u%04x" : "\\U%08x", cp);
    }
}

static int text_of(struct percent *p, const struct spec *spec, struct jinja_value v,
                   struct strbuf *out)
{
    if (spec->conversion == 's')
        return jinja_add_text(p->r, out, v);
    if (spec->conversion == 'r')
        return jinja_add_repr(p->r, out, v);
    struct strbuf raw;
    strbuf_init(&raw);
    raw.max = LIMIT_TEMPLATE_OUTPUT_BYTES;
    int rc = jinja_add_repr(p->r, &raw, v);
    if (!rc)
        escape_ascii(out, &raw);
    strbuf_release(&raw);
    return rc;
}

/* In a marked format: escaped, but for what is marked itself. */
static int escaped_text_of(struct percent *p, const struct spec *spec, struct jinja_value v,
                           struct strbuf *out)
{
    struct strbuf raw;
    strbuf_init(&raw);
    raw.max = LIMIT_TEMPLATE_OUTPUT_BYTES;
    int rc = text_of(p, spec, v, &raw);
    if (!rc)
        rc = jinja_check_strbuf(p->r, &raw);
    if (!rc && spec->conversion == 's' && v.type == JINJA_STR && v.s->markup)
        strbuf_add(out, strbuf_text(&raw), raw.len);
    else if (!rc)
        jinja_add_escaped(out, strbuf_text(&raw), raw.len);
    strbuf_release(&raw);
    return rc;
}

static int char_of(struct percent *p, struct jinja_value v, struct strbuf *out)
{
    if (v.type == JINJA_STR && jinja_n_chars(v.s) == 1) {
        strbuf_add(out, v.s->data, v.s->len);
        return 0;
    }
    if (!jinja_is_integral(v))
        return jinja_fail(p->r, "%%c requires int or char");
    int64_t cp = jinja_as_int(v);
    if (cp < 0 || cp > 0x10FFFF || (cp >= 0xD800 && cp <= 0xDFFF))
        return jinja_fail(p->r, "%%c arg not in range(0x110000)");
    if (cp)
        strbuf_add_utf8(out, (uint32_t)cp);
    else
        strbuf_addc(out, '\0');
    return 0;
}

static int number_of(struct percent *p, const struct spec *spec, struct jinja_value v,
                     struct strbuf *out, size_t *prefix)
{
    char c = spec->conversion;
    struct jinja_number_style st = {.sign = spec->plus    ? '+'
                                            : spec->space ? ' '
                                                          : 0,
                                    .alternate = spec->alternate,
                                    .precision = (int)spec->precision,
                                    .conversion = c == 'i' || c == 'u' ? 'd' : c};
    if (v.type == JINJA_UNDEFINED)
        return jinja_fail_undefined(p->r, v);
    if (!jinja_is_number(v))
        return jinja_fail(p->r, "%%%c format: a real number is required, not %s", c,
                          jinja_type_name(v));
    if (v.type == JINJA_FLOAT && strchr("xXo", c))
        return jinja_fail(p->r, "%%%c format: an integer is required, not float", c);
    if (v.type == JINJA_FLOAT && strchr("diu", c)) {
        if (!(fabs(v.f) < 0x1p63))
            return jinja_fail(p->r, "cannot convert float to a 64-bit integer");
        v = jinja_int((int64_t)v.f);
    }
    return jinja_add_number(p->r, out, &st, v, prefix);
}

static int convert(struct percent *p, const struct spec *spec, struct jinja_value v,
                   struct strbuf *text)
{
    size_t prefix = 0, len;
    bool number = strchr("diuoxXeEfFgG", spec->conversion) != NULL;
    if (strchr("sra", spec->conversion) && p->markup)
        JINJA_TRY(escaped_text_of(p, spec, v, text));
    else if (strchr("sra", spec->conversion))
        JINJA_TRY(text_of(p, spec, v, text));
    else if (spec->conversion == 'c')
        JINJA_TRY(char_of(p, v, text));
    else if (number)
        JINJA_TRY(number_of(p, spec, v, text, &prefix));
    else
        return jinja_fail(p->r, "unsupported format character '%c'", spec->conversion);
    JINJA_TRY(jinja_check_strbuf(p->r, text));
    len = text->len;
    struct jinja_str s = {.data = strbuf_text(text), .len = len, .n_chars = JINJA_UNCOUNTED};
    if (strchr("sra", spec->conversion) && spec->precision >= 0)
        len = jinja_char_offset(&s, (size_t)spec->precision);
    return add_padded(p, spec, strbuf_text(text), len, prefix, number && spec->zero);
}

static int format_one(struct percent *p, const char *s, size_t len, size_t *i)
{
    struct spec spec = {0};
    struct jinja_value v = {.type = JINJA_MISSING};
    struct strbuf text;
    if (*i < len && s[*i] == '(')
        JINJA_TRY(read_key(p, s, len, i, &v));
    JINJA_TRY(read_spec(p, s, len, i, &spec));
    if (spec.conversion == '%') {
        strbuf_addc(p->sb, '%');
        return 0;
    }
    if (v.type == JINJA_MISSING)
        JINJA_TRY(next_arg(p, &v));
    strbuf_init(&text);
    text.max = LIMIT_TEMPLATE_OUTPUT_BYTES;
    int rc = convert(p, &spec, v, &text);
    strbuf_release(&text);
    return rc;
}

static int format_all(struct percent *p, const struct jinja_str *format)
{
    const char *s = format->data;
    for (size_t i = 0; i < format->len;) {
        if (s[i] != '%') {
            strbuf_addc(p->sb, s[i++]);
            continue;
        }
        i++;
        JINJA_TRY(format_one(p, s, format->len, &i));
    }
    size_t n = p->args.type == JINJA_TUPLE ? p->args.list->n : 1;
    if (p->next < n && !p->mapping)
        return jinja_fail(p->r, "not all arguments converted during string formatting");
    return 0;
}

int jinja_percent(struct jinja_render *r, struct jinja_value format, struct jinja_value args,
                  struct jinja_value *out)
{
    struct strbuf sb;
    struct percent p = {
        .r = r, .sb = &sb, .args = args, .mapping = is_mapping(args), .markup = format.s->markup};
    strbuf_init(&sb);
    sb.max = LIMIT_TEMPLATE_OUTPUT_BYTES;
    JINJA_TRY(jinja_steps(r, format.s->len / 16));
    int rc = format_all(&p, format.s);
    if (rc) {
        strbuf_release(&sb);
        return rc;
    }
    JINJA_TRY(jinja_take_strbuf(r, &sb, out));
    out->s->markup = format.s->markup;
    return 0;
}
