/* str() and repr() as Python writes them. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/text/jinja_syntax.h"

/* The shortest digits that read back as f: "d.ddde±xx" in buf. */
static void shortest(double f, char *buf, size_t cap)
{
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(buf, cap, "%.*e", digits - 1, f);
        if (strtod(buf, NULL) == f)
            return;
    }
}

/* Digits without point, then zeros or a point where they belong (exponents −4 … 15). */
static void add_positional(struct strbuf *sb, const char *digits, int n, int exponent)
{
    if (exponent < 0) {
        strbuf_adds(sb, "0.");
        for (int i = -1; i > exponent; i--)
            strbuf_addc(sb, '0');
        strbuf_add(sb, digits, (size_t)n);
        return;
    }
    for (int i = 0; i <= exponent || i < n; i++) {
        if (i == exponent + 1)
            strbuf_addc(sb, '.');
        strbuf_addc(sb, i < n ? digits[i] : '0');
    }
    if (n <= exponent + 1)
        strbuf_adds(sb, ".0");
}

void jinja_add_float(struct strbuf *sb, double f)
{
    char buf[40], digits[24];
    int n = 0;
    if (isnan(f) || isinf(f)) {
        strbuf_adds(sb, isnan(f) ? "nan" : f < 0 ? "-inf" : "inf");
        return;
    }
    shortest(f, buf, sizeof buf);
    const char *p = buf;
    if (*p == '-') {
        strbuf_addc(sb, '-');
        p++;
    }
    for (; *p && *p != 'e'; p++)
        if (*p != '.')
            digits[n++] = *p;
    int exponent = atoi(p + 1);
    while (n > 1 && digits[n - 1] == '0')
        n--;
    if (exponent >= -4 && exponent < 16) {
        add_positional(sb, digits, n, exponent);
        return;
    }
    strbuf_addc(sb, digits[0]);
    if (n > 1) {
        strbuf_addc(sb, '.');
        strbuf_add(sb, digits + 1, (size_t)n - 1);
    }
    strbuf_addf(sb, "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent));
}

static void add_escaped(struct strbuf *sb, uint32_t cp, char quote)
{
    if (cp == (uint32_t)quote || cp == '\\')
        strbuf_addf(sb, "\\%c", (char)cp);
    else if (cp == '\n')
        strbuf_adds(sb, "\\n");
    else if (cp == '\r')
        strbuf_adds(sb, "\\r");
    else if (cp == '\t')
        strbuf_adds(sb, "\\t");
    else if (jinja_is_printable(cp))
        strbuf_add_utf8(sb, cp);
    else if (cp < 0x100)
        strbuf_addf(sb, "\\x%02x", cp);
    else if (cp < 0x10000)
        strbuf_addf(sb, "\\u%04x", cp);
    else
        strbuf_addf(sb, "\\U%08x", cp);
}

void jinja_add_str_repr(struct strbuf *sb, const char *data, size_t len)
{
    bool single = len && memchr(data, '\'', len), twice = len && memchr(data, '"', len);
    char quote = single && !twice ? '"' : '\'';
    uint32_t cp;
    strbuf_addc(sb, quote);
    for (size_t i = 0; i < len;) {
        i += jinja_decode(data + i, len - i, &cp);
        add_escaped(sb, cp, quote);
    }
    strbuf_addc(sb, quote);
}

static int add_items(struct jinja_render *r, struct strbuf *sb, const struct jinja_list *l)
{
    for (size_t i = 0; i < l->n; i++) {
        if (i)
            strbuf_adds(sb, ", ");
        JINJA_TRY(jinja_add_repr(r, sb, l->items[i]));
    }
    return 0;
}

static int add_dict(struct jinja_render *r, struct strbuf *sb, const struct jinja_dict *d)
{
    strbuf_addc(sb, '{');
    for (size_t i = 0; i < d->n; i++) {
        if (i)
            strbuf_adds(sb, ", ");
        JINJA_TRY(jinja_add_repr(r, sb, d->entries[i].key));
        strbuf_adds(sb, ": ");
        JINJA_TRY(jinja_add_repr(r, sb, d->entries[i].value));
    }
    strbuf_addc(sb, '}');
    return 0;
}

static int add_view(struct jinja_render *r, struct strbuf *sb, struct jinja_value v)
{
    struct jinja_value list;
    strbuf_addf(sb, "%s([", jinja_type_name(v));
    JINJA_TRY(jinja_to_list(r, v, &list));
    JINJA_TRY(add_items(r, sb, list.list));
    strbuf_adds(sb, "])");
    return 0;
}

static int add_sequence(struct jinja_render *r, struct strbuf *sb, struct jinja_value v)
{
    bool list = v.type == JINJA_LIST;
    strbuf_addc(sb, list ? '[' : '(');
    JINJA_TRY(add_items(r, sb, v.list));
    if (!list && v.list->n == 1)
        strbuf_addc(sb, ',');
    strbuf_addc(sb, list ? ']' : ')');
    return 0;
}

static int add_loop(struct jinja_render *r, struct strbuf *sb, struct jinja_loop *l)
{
    int64_t length;
    JINJA_TRY(jinja_loop_length(r, l, &length));
    strbuf_addf(sb, "<LoopContext %" PRId64 "/%" PRId64 ">", l->index0 + 1, length);
    return 0;
}

static void add_range(struct strbuf *sb, const struct jinja_range *g)
{
    strbuf_addf(sb, "range(%" PRId64 ", %" PRId64, g->start, g->stop);
    if (g->step != 1)
        strbuf_addf(sb, ", %" PRId64, g->step);
    strbuf_addc(sb, ')');
}

static int add_object(struct jinja_render *r, struct strbuf *sb, struct jinja_value v)
{
    switch (v.type) {
    case JINJA_NAMESPACE:
        strbuf_adds(sb, "<Namespace ");
        JINJA_TRY(add_dict(r, sb, v.dict));
        strbuf_addc(sb, '>');
        return 0;
    case JINJA_RANGE:
        add_range(sb, v.range);
        return 0;
    case JINJA_LOOP:
        return add_loop(r, sb, v.loop);
    case JINJA_MACRO: {
        const struct jinja_node *n = v.macro->node;
        strbuf_adds(sb, "<Macro ");
        if (n->type == NODE_MACRO)
            jinja_add_str_repr(sb, n->a->name->data, n->a->name->len);
        else
            strbuf_adds(sb, "anonymous");
        strbuf_addc(sb, '>');
        return 0;
    }
    default:
        strbuf_addf(sb, "<%s object>", jinja_type_name(v));
        return 0;
    }
}

static int add_repr(struct jinja_render *r, struct strbuf *sb, struct jinja_value v)
{
    switch (v.type) {
    case JINJA_MISSING:
    case JINJA_UNDEFINED:
        strbuf_adds(sb, "Undefined");
        return 0;
    case JINJA_NONE:
        strbuf_adds(sb, "None");
        return 0;
    case JINJA_BOOL:
        strbuf_adds(sb, v.b ? "True" : "False");
        return 0;
    case JINJA_INT:
        strbuf_addf(sb, "%" PRId64, v.i);
        return 0;
    case JINJA_FLOAT:
        jinja_add_float(sb, v.f);
        return 0;
    case JINJA_STR:
        if (v.s->markup)
            strbuf_adds(sb, "Markup(");
        jinja_add_str_repr(sb, v.s->data, v.s->len);
        if (v.s->markup)
            strbuf_addc(sb, ')');
        return jinja_steps(r, v.s->len / 16);
    case JINJA_LIST:
    case JINJA_TUPLE:
        return add_sequence(r, sb, v);
    case JINJA_DICT:
        return add_dict(r, sb, v.dict);
    case JINJA_VIEW:
        return add_view(r, sb, v);
    default:
        return add_object(r, sb, v);
    }
}

int jinja_add_repr(struct jinja_render *r, struct strbuf *sb, struct jinja_value v)
{
    JINJA_TRY(jinja_enter(r));
    int rc = add_repr(r, sb, v);
    r->depth--;
    return rc ? rc : jinja_check_strbuf(r, sb);
}

int jinja_add_text(struct jinja_render *r, struct strbuf *sb, struct jinja_value v)
{
    if (v.type == JINJA_STR) {
        strbuf_add(sb, v.s->data, v.s->len);
        return jinja_steps(r, v.s->len / 64);
    }
    if (v.type == JINJA_UNDEFINED || v.type == JINJA_MISSING)
        return 0;
    return jinja_add_repr(r, sb, v);
}

int jinja_to_str(struct jinja_render *r, struct jinja_value v, struct jinja_value *out)
{
    struct strbuf sb;
    *out = v;
    if (v.type == JINJA_STR)
        return 0;
    strbuf_init(&sb);
    sb.max = LIMIT_TEMPLATE_OUTPUT_BYTES;
    int rc = jinja_add_text(r, &sb, v);
    if (!rc)
        return jinja_take_strbuf(r, &sb, out);
    strbuf_release(&sb);
    return rc;
}
