/* str.format and the format specification of its fields. */
#include <string.h>

#include "libcore/text/jinja_impl.h"

struct formatter {
    struct jinja_render *r;
    const struct jinja_args *args;
    struct jinja_value mapping; // format_map, or MISSING
    size_t next;
    bool automatic, manual;
    bool markup; // a marked format: fields are escaped
};

/* [[fill]align][sign][#][0][width][,][.precision][type] */
struct spec {
    uint32_t fill;
    char align, sign, group, type;
    bool alternate, zero;
    int64_t width, precision;
};

static int format_text(struct formatter *f, struct strbuf *sb, const char *s, size_t len,
                       unsigned level);

static bool read_number(const char *s, size_t len, size_t *i, int64_t *out)
{
    size_t begin = *i;
    for (*out = 0; *i < len && s[*i] >= '0' && s[*i] <= '9'; (*i)++)
        if (*out <= LIMIT_TEMPLATE_OUTPUT_BYTES)
            *out = *out * 10 + (s[*i] - '0');
    return *i > begin;
}

static bool is_align(char c)
{
    return c == '<' || c == '>' || c == '=' || c == '^';
}

static void read_align(const char *s, size_t len, size_t *i, struct spec *spec)
{
    uint32_t cp;
    if (!len)
        return;
    size_t n = jinja_decode(s, len, &cp);
    if (n < len && is_align(s[n])) {
        spec->fill = cp;
        spec->align = s[n];
        *i = n + 1;
    } else if (is_align(s[0])) {
        spec->align = s[0];
        *i = 1;
    }
}

static int read_spec(struct jinja_render *r, const char *s, size_t len, struct spec *spec)
{
    size_t i = 0;
    *spec = (struct spec){.fill = ' ', .precision = -1};
    read_align(s, len, &i, spec);
    if (i < len && (s[i] == '+' || s[i] == '-' || s[i] == ' '))
        spec->sign = s[i++];
    if (i < len && s[i] == '#') {
        spec->alternate = true;
        i++;
    }
    if (i < len && s[i] == '0' && !spec->align) {
        spec->zero = true;
        spec->fill = '0';
        i++;
    }
    read_number(s, len, &i, &spec->width);
    if (i < len && (s[i] == ',' || s[i] == '_'))
        spec->group = s[i++];
    if (i < len && s[i] == '.') {
        i++;
        if (!read_number(s, len, &i, &spec->precision))
            return jinja_fail(r, "Format specifier missing precision");
    }
    if (i < len)
        spec->type = s[i++];
    if (i < len)
        return jinja_fail(r, "Invalid format specifier '%.*s'", (int)len, s);
    if (spec->width > LIMIT_TEMPLATE_OUTPUT_BYTES || spec->precision > LIMIT_TEMPLATE_OUTPUT_BYTES)
        return jinja_fail_code(r, ERR_LIMIT, "a format width or precision of more than %d",
                               LIMIT_TEMPLATE_OUTPUT_BYTES);
    return 0;
}

static int add_padded(struct jinja_render *r, struct strbuf *sb, const struct spec *spec,
                      char align, const char *text, size_t len, size_t prefix)
{
    struct jinja_str s = {.data = text, .len = len, .n_chars = JINJA_UNCOUNTED};
    size_t n = jinja_n_chars(&s), pad = (size_t)spec->width > n ? (size_t)spec->width - n : 0;
    size_t before = align == '<' ? 0 : align == '^' ? pad / 2 : pad;
    JINJA_TRY(jinja_steps(r, (pad + len) / 16));
    if (align == '=') {
        strbuf_add(sb, text, prefix);
        text += prefix;
        len -= prefix;
    }
    for (size_t i = 0; i < before; i++)
        strbuf_add_utf8(sb, spec->fill);
    strbuf_add(sb, text, len);
    for (size_t i = before; i < pad; i++)
        strbuf_add_utf8(sb, spec->fill);
    return 0;
}

static int format_number(struct jinja_render *r, struct strbuf *sb, const struct spec *spec,
                         struct jinja_value v)
{
    struct strbuf text;
    size_t prefix = 0;
    struct jinja_number_style st = {.sign = spec->sign,
                                    .alternate = spec->alternate,
                                    .precision = (int)spec->precision,
                                    .conversion = spec->type == 'n' ? 'g' : spec->type,
                                    .group = spec->group};
    bool integer = jinja_is_integral(v);
    if (spec->type && !strchr(integer ? "bdoxXneEfFgG%" : "eEfFgGn%", spec->type))
        return jinja_fail(r, "Unknown format code '%c' for object of type '%s'", spec->type,
                          jinja_type_name(v));
    if (integer && (!spec->type || strchr("bdoxXn", spec->type))) {
        if (spec->precision >= 0)
            return jinja_fail(r, "Precision not allowed in integer format specifier");
        st.conversion = spec->type && spec->type != 'n' ? spec->type : 'd';
    }
    if (spec->zero && spec->group)
        return jinja_fail(r, "zero padding together with '%c' is not supported", spec->group);
    strbuf_init(&text);
    int rc = jinja_add_number(r, &text, &st, v, &prefix);
    if (!rc)
        rc = jinja_check_strbuf(r, &text);
    char align = spec->align ? spec->align : spec->zero ? '=' : '>';
    if (!rc)
        rc = add_padded(r, sb, spec, align, strbuf_text(&text), text.len, prefix);
    strbuf_release(&text);
    return rc;
}

static int format_string(struct jinja_render *r, struct strbuf *sb, const struct spec *spec,
                         struct jinja_str *s)
{
    if ((spec->type && spec->type != 's') || spec->sign || spec->group || spec->alternate ||
        spec->align == '=')
        return jinja_fail(r, "Unknown format code for object of type 'str'");
    size_t len = spec->precision < 0 ? s->len : jinja_char_offset(s, (size_t)spec->precision);
    return add_padded(r, sb, spec, spec->align ? spec->align : '<', s->data, len, 0);
}

static int add_formatted(struct jinja_render *r, struct strbuf *sb, struct jinja_value v,
                         const char *spec_text, size_t len)
{
    struct spec spec;
    if (!len)
        return jinja_add_text(r, sb, v);
    JINJA_TRY(read_spec(r, spec_text, len, &spec));
    if (v.type == JINJA_STR)
        return format_string(r, sb, &spec, v.s);
    if (jinja_is_number(v))
        return format_number(r, sb, &spec, v);
    return jinja_fail(r, "unsupported format string passed to %s.__format__", jinja_type_name(v));
}

static int add_value(struct formatter *f, struct strbuf *sb, struct jinja_value v, const char *spec,
                     size_t len)
{
    struct strbuf raw;
    bool marked = v.type == JINJA_STR && v.s->markup;
    if (marked && f->markup && len)
        return jinja_fail(f->r, "Format specifier given, but text marked safe does not define one");
    if (!f->markup || marked)
        return add_formatted(f->r, sb, v, spec, len);
    strbuf_init(&raw);
    raw.max = LIMIT_TEMPLATE_OUTPUT_BYTES;
    int rc = add_formatted(f->r, &raw, v, spec, len);
    if (!rc)
        rc = jinja_check_strbuf(f->r, &raw);
    if (!rc)
        jinja_add_escaped(sb, strbuf_text(&raw), raw.len);
    strbuf_release(&raw);
    return rc;
}

/* ---- fields ---- */
static int numbered(struct formatter *f, size_t idx, struct jinja_value *out)
{
    if (f->mapping.type != JINJA_MISSING || idx >= f->args->n)
        return jinja_fail(f->r, "Replacement index %zu out of range for positional args tuple",
                          idx);
    *out = f->args->pos[idx];
    return 0;
}

static int named(struct formatter *f, const char *name, size_t len, struct jinja_value *out)
{
    *out = (struct jinja_value){.type = JINJA_MISSING};
    if (f->mapping.type == JINJA_DICT)
        JINJA_TRY(jinja_dict_get_text(f->r, f->mapping.dict, name, len, out));
    for (size_t i = 0; f->mapping.type == JINJA_MISSING && i < f->args->n_kw; i++) {
        const struct jinja_str *kw = f->args->kw[i].name;
        if (kw->len == len && memcmp(kw->data, name, len) == 0)
            *out = f->args->kw[i].value;
    }
    if (out->type == JINJA_MISSING)
        return jinja_fail(f->r, "KeyError: '%.*s'", (int)len, name);
    return 0;
}

/* What stands before the first . or [ of a field. The numbering is watched as string.Formatter
 * does: only in fields that are nothing but a number, or empty. */
static int first_part(struct formatter *f, const char *s, size_t len, bool whole,
                      struct jinja_value *out)
{
    size_t i = 0;
    int64_t idx = 0;
    bool number = read_number(s, len, &i, &idx) && i == len;
    f->automatic |= whole && len == 0;
    f->manual |= whole && number;
    if (f->automatic && f->manual)
        return jinja_fail(f->r, "cannot mix manual and automatic field numbering");
    if (whole && len == 0)
        return numbered(f, f->next++, out);
    return number ? numbered(f, (size_t)idx, out) : named(f, s, len, out);
}

static int field_value(struct formatter *f, const char *s, size_t len, struct jinja_value *out)
{
    size_t i = 0, j;
    while (i < len && s[i] != '.' && s[i] != '[')
        i++;
    JINJA_TRY(first_part(f, s, i, i == len, out));
    for (; i < len; i = j) {
        bool attr = s[i] == '.';
        if (!attr && s[i] != '[')
            return jinja_fail(f->r, "Only '.' or '[' may follow ']' in format field specifier");
        for (j = ++i; j < len && (attr ? s[j] != '.' && s[j] != '[' : s[j] != ']');)
            j++;
        if (j == i || (!attr && j == len))
            return jinja_fail(f->r, "Empty attribute in format string");
        struct jinja_value key;
        size_t end = 0;
        int64_t idx;
        JINJA_TRY(jinja_borrow_str(f->r, s + i, j - i, &key));
        if (attr) {
            JINJA_TRY(jinja_getattr(f->r, *out, key.s, out));
            continue;
        }
        if (read_number(s + i, j - i, &end, &idx) && end == j - i)
            key = jinja_int(idx);
        JINJA_TRY(jinja_getitem(f->r, *out, key, out));
        j++; // ]
    }
    return 0;
}

static int apply_conversion(struct formatter *f, char conversion, struct jinja_value *v)
{
    struct strbuf sb;
    if (!conversion)
        return 0;
    if (conversion == 's')
        return jinja_to_str(f->r, *v, v);
    if (conversion != 'r')
        return jinja_fail(f->r, "Unknown conversion specifier '%c'", conversion);
    strbuf_init(&sb);
    sb.max = LIMIT_TEMPLATE_OUTPUT_BYTES;
    int rc = jinja_add_repr(f->r, &sb, *v);
    if (!rc)
        return jinja_take_strbuf(f->r, &sb, v);
    strbuf_release(&sb);
    return rc;
}

/* A field without its braces: name!conversion:spec. */
static int format_field(struct formatter *f, struct strbuf *sb, const char *s, size_t len,
                        unsigned level)
{
    struct jinja_value v;
    struct strbuf spec;
    size_t i = 0, bracket = 0;
    char conversion = 0;
    for (; i < len && (bracket || (s[i] != '!' && s[i] != ':')); i++)
        bracket = s[i] == '[' ? 1 : s[i] == ']' ? 0 : bracket;
    JINJA_TRY(field_value(f, s, i, &v));
    if (i < len && s[i] == '!') {
        if (i + 1 >= len || (i + 2 < len && s[i + 2] != ':'))
            return jinja_fail(f->r, "expected ':' after conversion specifier");
        conversion = s[i + 1];
        i += 2;
    }
    JINJA_TRY(apply_conversion(f, conversion, &v));
    if (i >= len)
        return add_value(f, sb, v, "", 0);
    strbuf_init(&spec);
    spec.max = LIMIT_TEMPLATE_OUTPUT_BYTES;
    int rc = format_text(f, &spec, s + i + 1, len - i - 1, level + 1);
    if (!rc)
        rc = jinja_check_strbuf(f->r, &spec);
    if (!rc)
        rc = add_value(f, sb, v, strbuf_text(&spec), spec.len);
    strbuf_release(&spec);
    return rc;
}

/* End of the field that starts at i, at its closing brace; len when there is none. */
static size_t field_end(const char *s, size_t len, size_t i)
{
    unsigned depth = 1;
    for (; i < len; i++) {
        depth += s[i] == '{';
        depth -= s[i] == '}';
        if (!depth)
            break;
    }
    return i;
}

static int format_text(struct formatter *f, struct strbuf *sb, const char *s, size_t len,
                       unsigned level)
{
    if (level > 1)
        return jinja_fail(f->r, "Max string recursion exceeded");
    for (size_t i = 0; i < len; i++) {
        JINJA_TRY(jinja_steps(f->r, i % 16 == 0));
        if (s[i] != '{' && s[i] != '}') {
            strbuf_addc(sb, s[i]);
        } else if (level == 0 && i + 1 < len && s[i + 1] == s[i]) {
            strbuf_addc(sb, s[i++]);
        } else if (s[i] == '}') {
            return jinja_fail(f->r, "Single '}' encountered in format string");
        } else {
            size_t end = field_end(s, len, i + 1);
            if (end >= len)
                return jinja_fail(f->r, "expected '}' before end of string");
            JINJA_TRY(format_field(f, sb, s + i + 1, end - i - 1, level));
            i = end;
        }
    }
    return 0;
}

int jinja_str_format(struct jinja_render *r, const struct jinja_str *format,
                     const struct jinja_args *args, struct jinja_value mapping,
                     struct jinja_value *out)
{
    struct strbuf sb;
    struct formatter f = {.r = r, .args = args, .mapping = mapping, .markup = format->markup};
    strbuf_init(&sb);
    sb.max = LIMIT_TEMPLATE_OUTPUT_BYTES;
    int rc = format_text(&f, &sb, format->data, format->len, 0);
    if (!rc)
        return jinja_take_strbuf(r, &sb, out);
    strbuf_release(&sb);
    return rc;
}
