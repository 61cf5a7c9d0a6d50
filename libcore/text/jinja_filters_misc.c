/* Filters for numbers, defaults and JSON. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/text/jinja_impl.h"

#define FILTER(name)                                                                               \
    static int name(struct jinja_render *r, struct jinja_value self,                               \
                    const struct jinja_value *argv, const struct jinja_args *args,                 \
                    struct jinja_value *out)
#define UNUSED_ARGS (void)argv, (void)args

FILTER(default_)
{
    (void)args;
    bool use = self.type == JINJA_UNDEFINED || (jinja_truth(argv[1]) && !jinja_truth(self));
    if (!use)
        *out = self;
    else if (argv[0].type == JINJA_MISSING)
        return jinja_borrow_str(r, "", 0, out);
    else
        *out = argv[0];
    return 0;
}

FILTER(abs_)
{
    UNUSED_ARGS;
    if (self.type == JINJA_UNDEFINED)
        return jinja_fail_undefined(r, self);
    if (!jinja_is_number(self))
        return jinja_fail(r, "bad operand type for abs(): '%s'", jinja_type_name(self));
    if (self.type == JINJA_FLOAT)
        *out = jinja_float(fabs(self.f));
    else
        return jinja_negate(r, self, jinja_as_int(self) < 0, out);
    return 0;
}

/* ---- text to numbers ---- */

/* The text without white space around it, and without single underscores between digits. */
static bool clean_number(const struct jinja_str *s, char *buf, size_t cap)
{
    size_t i = 0, end = s->len, n = 0;
    while (i < end && jinja_is_space((unsigned char)s->data[i]))
        i++;
    while (end > i && jinja_is_space((unsigned char)s->data[end - 1]))
        end--;
    for (; i < end; i++) {
        char c = s->data[i];
        bool between = c == '_' && n && i + 1 < end && buf[n - 1] != '_' && s->data[i + 1] != '_' &&
                       strchr("0123456789abcdefABCDEFxXoObB", buf[n - 1]) &&
                       strchr("0123456789abcdefABCDEF", s->data[i + 1]);
        if (between)
            continue;
        if (n + 1 >= cap || c == '_' || !c)
            return false;
        buf[n++] = c;
    }
    buf[n] = '\0';
    return n > 0;
}

/* Python's float(text), without hexadecimal forms. */
static bool text_to_float(const struct jinja_str *s, double *out)
{
    char buf[512], *end;
    if (!clean_number(s, buf, sizeof buf) || strpbrk(buf, "xXpP(") ||
        jinja_is_space((unsigned char)*buf))
        return false;
    *out = strtod(buf, &end);
    return *end == '\0';
}

/* Python's int(text, base). 1: a number, 0: none, -1: more than 64 bits. */
static int text_to_int(const struct jinja_str *s, int64_t base, int64_t *out)
{
    char buf[128], *end, *digits = buf;
    if (!clean_number(s, buf, sizeof buf))
        return 0;
    bool minus = *buf == '-';
    digits += *buf == '-' || *buf == '+';
    char kind = digits[0] == '0' ? (char)(digits[1] | 0x20) : 0;
    int64_t named = kind == 'x' ? 16 : kind == 'o' ? 8 : kind == 'b' ? 2 : 0;
    if (named && (base == named || base == 0)) {
        base = named;
        digits += 2;
    } else if (base == 0) {
        base = 10;
    }
    if (base < 2 || base > 36 || strpbrk(digits, "+-") || !*digits)
        return 0;
    errno = 0;
    uint64_t u = strtoull(digits, &end, (int)base);
    if (*end)
        return 0;
    if (errno == ERANGE || u > (uint64_t)INT64_MAX + minus)
        return -1;
    *out = minus ? (int64_t)(0 - u) : (int64_t)u;
    return 1;
}

static int float_to_int(struct jinja_render *r, double f, struct jinja_value fallback,
                        struct jinja_value *out)
{
    if (isnan(f)) {
        *out = fallback;
        return 0;
    }
    if (!(fabs(f) < 0x1p63))
        return jinja_fail(r, "cannot convert float to a 64-bit integer");
    *out = jinja_int((int64_t)f);
    return 0;
}

FILTER(int_)
{
    struct jinja_value fallback = argv[0].type == JINJA_MISSING ? jinja_int(0) : argv[0];
    int64_t base = 10, i = 0;
    double f;
    (void)args;
    JINJA_TRY(jinja_arg_int(r, argv[1], "base", &base));
    if (self.type == JINJA_UNDEFINED)
        return jinja_fail_undefined(r, self);
    if (self.type == JINJA_FLOAT)
        return float_to_int(r, self.f, fallback, out);
    *out = jinja_is_integral(self) ? jinja_int(jinja_as_int(self)) : fallback;
    if (self.type != JINJA_STR)
        return 0;
    int found = text_to_int(self.s, base, &i);
    if (found < 0)
        return jinja_fail(r, "integer '%.*s' does not fit 64 bits", (int)self.s->len, self.s->data);
    if (found)
        *out = jinja_int(i);
    else if (text_to_float(self.s, &f) && !isinf(f))
        return float_to_int(r, f, fallback, out);
    return 0;
}

FILTER(float_)
{
    double f;
    (void)r, (void)args;
    if (self.type == JINJA_UNDEFINED)
        return jinja_fail_undefined(r, self);
    *out = argv[0].type == JINJA_MISSING ? jinja_float(0) : argv[0];
    if (jinja_is_number(self))
        *out = jinja_float(jinja_as_double(self));
    else if (self.type == JINJA_STR && text_to_float(self.s, &f))
        *out = jinja_float(f);
    return 0;
}

/* Nearest value with `precision` decimals; a tie goes to the even one, decided on the exact binary.
 */
static double round_float(double f, int64_t precision)
{
    char buf[400];
    if (!isfinite(f) || precision > 300)
        return f;
    if (precision < 0) {
        if (precision < -308)
            return copysign(0, f);
        double scale = pow(10, (double)-precision);
        return nearbyint(f / scale) * scale;
    }
    snprintf(buf, sizeof buf, "%.*f", (int)(precision > 60 ? 60 : precision), f);
    return strtod(buf, NULL);
}

static int round_int(struct jinja_render *r, int64_t i, int64_t precision, struct jinja_value *out)
{
    int64_t scale = 1, rest;
    *out = jinja_int(i);
    for (int64_t p = precision; p < 0; p++)
        if (__builtin_mul_overflow(scale, 10, &scale)) {
            *out = jinja_int(0);
            return 0;
        }
    if (scale == 1)
        return 0;
    rest = i % scale;
    i -= rest;
    rest *= 2;
    if (rest > scale || (rest == scale && (i / scale) % 2 != 0))
        i += scale;
    else if (rest < -scale || (rest == -scale && (i / scale) % 2 != 0))
        i -= scale;
    (void)r;
    *out = jinja_int(i);
    return 0;
}

static bool is(const struct jinja_str *s, const char *word)
{
    return strlen(word) == s->len && memcmp(s->data, word, s->len) == 0;
}

FILTER(round_)
{
    struct jinja_str common = {.data = "common", .len = 6, .n_chars = 6}, *method = &common;
    int64_t precision = 0;
    (void)args;
    JINJA_TRY(jinja_arg_int(r, argv[0], "precision", &precision));
    JINJA_TRY(jinja_arg_str(r, argv[1], "method", &method));
    if (!is(method, "common") && !is(method, "ceil") && !is(method, "floor"))
        return jinja_fail(r, "method must be common, ceil or floor");
    if (self.type == JINJA_UNDEFINED)
        return jinja_fail_undefined(r, self);
    if (!jinja_is_number(self))
        return jinja_fail(r, "type %s doesn't define __round__ method", jinja_type_name(self));
    if (is(method, "common")) {
        if (jinja_is_integral(self))
            return round_int(r, jinja_as_int(self), precision, out);
        *out = jinja_float(round_float(self.f, precision));
        return 0;
    }
    double scale = pow(10, (double)precision), f = jinja_as_double(self) * scale;
    *out = jinja_float((is(method, "ceil") ? ceil(f) : floor(f)) / scale);
    return 0;
}

FILTER(filesizeformat)
{
    static const char *const names[] = {"kB",  "MB",  "GB",  "TB",  "PB",  "EB",  "ZB",  "YB",
                                        "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"};
    bool binary = jinja_truth(argv[0]);
    double bytes, base = binary ? 1024 : 1000, unit = base;
    char text[64];
    (void)args;
    bool ok = self.type == JINJA_STR ? text_to_float(self.s, &bytes) : jinja_is_number(self);
    if (!ok)
        return jinja_fail(r, "filesizeformat: '%s' is no number", jinja_type_name(self));
    if (self.type != JINJA_STR)
        bytes = jinja_as_double(self);
    if (bytes == 1)
        return jinja_new_str(r, "1 Byte", 6, out);
    if (bytes < base) {
        snprintf(text, sizeof text, "%.0f Bytes", trunc(bytes));
        return jinja_new_str(r, text, strlen(text), out);
    }
    size_t i = 0;
    for (unit *= base; i < 7 && !(bytes < unit); i++)
        unit *= base;
    snprintf(text, sizeof text, "%.1f %s", base * bytes / unit, names[i + (binary ? 8 : 0)]);
    return jinja_new_str(r, text, strlen(text), out);
}

FILTER(attr)
{
    struct jinja_str *name = NULL;
    (void)args;
    JINJA_TRY(jinja_arg_str(r, argv[0], "name", &name));
    if (self.type == JINJA_UNDEFINED)
        return jinja_fail_undefined(r, self);
    JINJA_TRY(jinja_find_attr(r, self, name->data, name->len, out));
    if (out->type == JINJA_MISSING)
        return jinja_new_undefined(r, out, "'%s object' has no attribute '%.*s'",
                                   jinja_type_name(self), (int)name->len, name->data);
    return 0;
}

/* ---- JSON ---- */
static int read_separators(struct jinja_render *r, struct jinja_value v,
                           struct jinja_json_style *style)
{
    if (v.type == JINJA_MISSING || v.type == JINJA_NONE)
        return 0;
    if ((v.type != JINJA_TUPLE && v.type != JINJA_LIST) || v.list->n != 2 ||
        v.list->items[0].type != JINJA_STR || v.list->items[1].type != JINJA_STR)
        return jinja_fail(r, "tojson: separators must be a pair of strings");
    style->item_sep = v.list->items[0].s;
    style->key_sep = v.list->items[1].s;
    return 0;
}

static int read_indent(struct jinja_render *r, struct jinja_value v, struct jinja_json_style *style)
{
    struct jinja_value space, text;
    if (v.type == JINJA_MISSING || v.type == JINJA_NONE)
        return 0;
    if (v.type == JINJA_STR) {
        style->indent = v.s;
        return 0;
    }
    int64_t n = 0;
    JINJA_TRY(jinja_arg_int(r, v, "indent", &n));
    JINJA_TRY(jinja_borrow_str(r, " ", 1, &space));
    JINJA_TRY(jinja_binary(r, JINJA_MUL, space, jinja_int(n), &text));
    style->indent = text.s;
    return 0;
}

FILTER(tojson)
{
    static const struct jinja_str comma = {.data = ", ", .len = 2, .n_chars = 2},
                                  bare = {.data = ",", .len = 1, .n_chars = 1},
                                  colon = {.data = ": ", .len = 2, .n_chars = 2};
    struct jinja_json_style style = {.ensure_ascii = jinja_truth(argv[0]),
                                     .sort_keys = jinja_truth(argv[3]),
                                     .item_sep = &comma,
                                     .key_sep = &colon};
    struct strbuf sb;
    (void)args;
    JINJA_TRY(read_indent(r, argv[1], &style));
    if (style.indent)
        style.item_sep = &bare;
    JINJA_TRY(read_separators(r, argv[2], &style));
    strbuf_init(&sb);
    sb.max = LIMIT_TEMPLATE_OUTPUT_BYTES;
    int rc = jinja_add_json(r, &sb, &style, self, 0);
    if (!rc)
        return jinja_take_strbuf(r, &sb, out);
    strbuf_release(&sb);
    return rc;
}

const struct jinja_row jinja_filters_misc[] = {
    {"default", default_, "default_value,boolean", 0},
    {"d", default_, "default_value,boolean", 0},
    {"tojson", tojson, "ensure_ascii,indent,separators,sort_keys", 0},
    {"abs", abs_, "", 0},
    {"int", int_, "default,base", 0},
    {"float", float_, "default", 0},
    {"round", round_, "precision,method", 0},
    {"filesizeformat", filesizeformat, "binary", 0},
    {"attr", attr, "name", 1},
    {NULL, NULL, NULL, 0},
};
