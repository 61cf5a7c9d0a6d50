/* json.dumps as Python writes it; the filter tojson is this, without escapes for HTML. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "libcore/text/jinja_impl.h"

static void add_unicode_escape(struct strbuf *sb, uint32_t cp)
{
    if (cp >= 0x10000) {
        cp -= 0x10000;
        strbuf_addf(sb, "\\u%04x\\u%04x", 0xD800 + (cp >> 10), 0xDC00 + (cp & 0x3FF));
        return;
    }
    strbuf_addf(sb, "\\u%04x", cp);
}

static void add_string(struct strbuf *sb, const struct jinja_str *s, bool ensure_ascii)
{
    static const char from[] = "\"\\\n\r\t\f\b", to[] = "\"\\nrtfb";
    uint32_t cp;
    strbuf_addc(sb, '"');
    for (size_t i = 0, n; i < s->len; i += n) {
        n = jinja_decode(s->data + i, s->len - i, &cp);
        const char *simple = cp && cp < 0x80 ? strchr(from, (int)cp) : NULL;
        if (simple)
            strbuf_addf(sb, "\\%c", to[simple - from]);
        else if (cp < 0x20 || (ensure_ascii && cp > 0x7E))
            add_unicode_escape(sb, cp);
        else
            strbuf_add(sb, s->data + i, n);
    }
    strbuf_addc(sb, '"');
}

static void add_number(struct strbuf *sb, struct jinja_value v)
{
    if (v.type == JINJA_INT)
        strbuf_addf(sb, "%" PRId64, v.i);
    else if (isnan(v.f) || isinf(v.f))
        strbuf_adds(sb, isnan(v.f) ? "NaN" : v.f < 0 ? "-Infinity" : "Infinity");
    else
        jinja_add_float(sb, v.f);
}

static void new_line(struct strbuf *sb, const struct jinja_json_style *style, size_t level)
{
    if (!style->indent)
        return;
    strbuf_addc(sb, '\n');
    for (size_t i = 0; i < level; i++)
        strbuf_add(sb, style->indent->data, style->indent->len);
}

static int add_list(struct jinja_render *r, struct strbuf *sb, const struct jinja_json_style *style,
                    const struct jinja_list *l, size_t level)
{
    strbuf_addc(sb, '[');
    for (size_t i = 0; i < l->n; i++) {
        if (i)
            strbuf_add(sb, style->item_sep->data, style->item_sep->len);
        new_line(sb, style, level + 1);
        JINJA_TRY(jinja_add_json(r, sb, style, l->items[i], level + 1));
    }
    if (l->n)
        new_line(sb, style, level);
    strbuf_addc(sb, ']');
    return 0;
}

static int add_key(struct jinja_render *r, struct strbuf *sb, const struct jinja_json_style *style,
                   struct jinja_value key)
{
    if (key.type == JINJA_STR) {
        add_string(sb, key.s, style->ensure_ascii);
        return 0;
    }
    strbuf_addc(sb, '"');
    if (key.type == JINJA_BOOL)
        strbuf_adds(sb, key.b ? "true" : "false");
    else if (key.type == JINJA_NONE)
        strbuf_adds(sb, "null");
    else if (jinja_is_number(key))
        add_number(sb, key);
    else
        return jinja_fail(r, "keys must be str, int, float, bool or None, not %s",
                          jinja_type_name(key));
    strbuf_addc(sb, '"');
    return 0;
}

/* The entries' places in the order of their keys. */
static int sorted_places(struct jinja_render *r, const struct jinja_dict *d,
                         struct jinja_value **places)
{
    struct jinja_value *keys = jinja_alloc(r, d->n * sizeof *keys);
    *places = jinja_alloc(r, d->n * sizeof **places);
    if (!keys || !*places)
        return r->err->code;
    for (size_t i = 0; i < d->n; i++) {
        keys[i] = d->entries[i].key;
        (*places)[i] = jinja_int((int64_t)i);
    }
    return jinja_sort(r, keys, *places, d->n, false);
}

static int add_dict(struct jinja_render *r, struct strbuf *sb, const struct jinja_json_style *style,
                    const struct jinja_dict *d, size_t level)
{
    struct jinja_value *places = NULL;
    if (style->sort_keys)
        JINJA_TRY(sorted_places(r, d, &places));
    strbuf_addc(sb, '{');
    for (size_t i = 0; i < d->n; i++) {
        const struct jinja_entry *e = &d->entries[places ? (size_t)places[i].i : i];
        if (i)
            strbuf_add(sb, style->item_sep->data, style->item_sep->len);
        new_line(sb, style, level + 1);
        JINJA_TRY(add_key(r, sb, style, e->key));
        strbuf_add(sb, style->key_sep->data, style->key_sep->len);
        JINJA_TRY(jinja_add_json(r, sb, style, e->value, level + 1));
    }
    if (d->n)
        new_line(sb, style, level);
    strbuf_addc(sb, '}');
    return 0;
}

static int add_value(struct jinja_render *r, struct strbuf *sb,
                     const struct jinja_json_style *style, struct jinja_value v, size_t level)
{
    switch (v.type) {
    case JINJA_NONE:
        strbuf_adds(sb, "null");
        return 0;
    case JINJA_BOOL:
        strbuf_adds(sb, v.b ? "true" : "false");
        return 0;
    case JINJA_INT:
    case JINJA_FLOAT:
        add_number(sb, v);
        return 0;
    case JINJA_STR:
        add_string(sb, v.s, style->ensure_ascii);
        return jinja_steps(r, v.s->len / 16);
    case JINJA_LIST:
    case JINJA_TUPLE:
        return add_list(r, sb, style, v.list, level);
    case JINJA_DICT:
        return add_dict(r, sb, style, v.dict, level);
    default:
        return jinja_fail(r, "Object of type %s is not JSON serializable", jinja_type_name(v));
    }
}

int jinja_add_json(struct jinja_render *r, struct strbuf *sb, const struct jinja_json_style *style,
                   struct jinja_value v, size_t level)
{
    JINJA_TRY(jinja_enter(r));
    int rc = add_value(r, sb, style, v, level);
    r->depth--;
    return rc ? rc : jinja_check_strbuf(r, sb);
}
