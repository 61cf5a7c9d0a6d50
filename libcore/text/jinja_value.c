/* Values: making them, their truth and length, and values from JSON. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "libcore/text/jinja_impl.h"

struct jinja_value jinja_none(void)
{
    return (struct jinja_value){.type = JINJA_NONE};
}

struct jinja_value jinja_bool(bool b)
{
    return (struct jinja_value){.type = JINJA_BOOL, .b = b};
}

struct jinja_value jinja_int(int64_t i)
{
    return (struct jinja_value){.type = JINJA_INT, .i = i};
}

struct jinja_value jinja_float(double f)
{
    return (struct jinja_value){.type = JINJA_FLOAT, .f = f};
}

struct jinja_value jinja_of_str(const struct jinja_str *s)
{
    return (struct jinja_value){.type = JINJA_STR, .s = (struct jinja_str *)s};
}

/* ---- strings ---- */
int jinja_borrow_str(struct jinja_render *r, const char *data, size_t len, struct jinja_value *out)
{
    struct jinja_str *s = jinja_alloc(r, sizeof *s);
    if (!s)
        return r->err->code;
    *s = (struct jinja_str){.data = data, .len = len, .n_chars = JINJA_UNCOUNTED};
    *out = jinja_of_str(s);
    return 0;
}

int jinja_new_str(struct jinja_render *r, const char *data, size_t len, struct jinja_value *out)
{
    char *copy = jinja_alloc(r, len);
    if (!copy)
        return r->err->code;
    if (len)
        memcpy(copy, data, len);
    JINJA_TRY(jinja_steps(r, len / 64));
    return jinja_borrow_str(r, copy, len, out);
}

int jinja_check_strbuf(struct jinja_render *r, const struct strbuf *sb)
{
    if (sb->too_long)
        return jinja_fail_code(r, ERR_LIMIT, "a text of more than %zu bytes", sb->max);
    return sb->failed ? jinja_fail_code(r, ERR_NO_MEMORY, "out of memory") : 0;
}

int jinja_take_strbuf(struct jinja_render *r, struct strbuf *sb, struct jinja_value *out)
{
    int rc = jinja_check_strbuf(r, sb);
    if (!rc)
        rc = jinja_new_str(r, strbuf_text(sb), sb->len, out);
    strbuf_release(sb);
    return rc;
}

/* Room for `len` bytes and as much again. */
static struct jinja_space *new_space(struct jinja_render *r, size_t len)
{
    struct jinja_space *sp = jinja_alloc(r, sizeof *sp);
    if (!sp)
        return NULL;
    sp->cap = 2 * len + 64;
    sp->data = jinja_alloc(r, sp->cap);
    return sp->data ? sp : NULL;
}

int jinja_join2(struct jinja_render *r, const struct jinja_str *a, const struct jinja_str *b,
                struct jinja_value *out)
{
    size_t len = a->len + b->len;
    if (!b->len || !a->len) {
        *out = jinja_of_str(b->len ? b : a);
        return 0;
    }
    if (len > LIMIT_TEMPLATE_OUTPUT_BYTES)
        return jinja_fail_code(r, ERR_LIMIT, "a text of more than %d bytes",
                               LIMIT_TEMPLATE_OUTPUT_BYTES);
    struct jinja_space *sp = a->space;
    size_t copied = b->len;
    // only the text that ends where the space is used up to may grow in place
    if (!sp || a->data + a->len != sp->data + sp->used || sp->cap - sp->used < b->len) {
        sp = new_space(r, len);
        if (!sp)
            return r->err->code;
        memcpy(sp->data, a->data, a->len);
        sp->used = a->len;
        copied = len;
    }
    const char *data = sp->data + sp->used - a->len;
    memcpy(sp->data + sp->used, b->data, b->len);
    sp->used += b->len;
    JINJA_TRY(jinja_borrow_str(r, data, len, out));
    out->s->space = sp;
    return jinja_steps(r, copied / 64);
}

int jinja_mark(struct jinja_render *r, struct jinja_value text, bool markup,
               struct jinja_value *out)
{
    *out = text;
    if (text.s->markup == markup)
        return 0;
    JINJA_TRY(jinja_borrow_str(r, text.s->data, text.s->len, out));
    out->s->n_chars = text.s->n_chars;
    out->s->space = text.s->space;
    out->s->markup = markup;
    return 0;
}

void jinja_add_escaped(struct strbuf *sb, const char *data, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        char c = data[i];
        const char *entity = c == '&'    ? "&amp;"
                             : c == '<'  ? "&lt;"
                             : c == '>'  ? "&gt;"
                             : c == '\'' ? "&#39;"
                             : c == '"'  ? "&#34;"
                                         : NULL;
        if (entity)
            strbuf_adds(sb, entity);
        else
            strbuf_addc(sb, c);
    }
}

int jinja_escape(struct jinja_render *r, struct jinja_value v, struct jinja_value *out)
{
    struct strbuf sb;
    JINJA_TRY(jinja_to_str(r, v, out));
    if (out->s->markup)
        return 0;
    JINJA_TRY(jinja_steps(r, out->s->len / 16));
    strbuf_init(&sb);
    sb.max = LIMIT_TEMPLATE_OUTPUT_BYTES;
    jinja_add_escaped(&sb, out->s->data, out->s->len);
    JINJA_TRY(jinja_take_strbuf(r, &sb, out));
    out->s->markup = true;
    return 0;
}

/* ---- lists, undefined ---- */
int jinja_new_list(struct jinja_render *r, enum jinja_type type, size_t cap,
                   struct jinja_value *out)
{
    struct jinja_list *l = jinja_alloc(r, sizeof *l);
    if (!l)
        return r->err->code;
    if (cap) {
        if (cap > LIMIT_TEMPLATE_MEMORY_BYTES / sizeof *l->items)
            return jinja_fail_code(r, ERR_LIMIT, "a list of %zu items", cap);
        l->items = jinja_alloc(r, cap * sizeof *l->items);
        if (!l->items)
            return r->err->code;
        l->cap = cap;
    }
    *out = (struct jinja_value){.type = type, .list = l};
    return 0;
}

int jinja_list_add(struct jinja_render *r, struct jinja_list *l, struct jinja_value v)
{
    JINJA_TRY(jinja_steps(r, 1));
    if (l->n == l->cap) {
        size_t cap = l->cap ? 2 * l->cap : 4;
        struct jinja_value *items = jinja_alloc(r, cap * sizeof *items);
        if (!items)
            return r->err->code;
        if (l->n)
            memcpy(items, l->items, l->n * sizeof *items);
        l->items = items;
        l->cap = cap;
    }
    l->items[l->n++] = v;
    return 0;
}

int jinja_new_pair(struct jinja_render *r, struct jinja_value a, struct jinja_value b,
                   struct jinja_value *out)
{
    JINJA_TRY(jinja_new_list(r, JINJA_TUPLE, 2, out));
    out->list->items[0] = a;
    out->list->items[1] = b;
    out->list->n = 2;
    return 0;
}

int jinja_new_undefined(struct jinja_render *r, struct jinja_value *out, const char *fmt, ...)
{
    char text[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    struct jinja_undef *u = jinja_alloc(r, sizeof *u);
    char *message = jinja_alloc(r, strlen(text) + 1);
    if (!u || !message)
        return r->err->code;
    strcpy(message, text);
    u->message = message;
    *out = (struct jinja_value){.type = JINJA_UNDEFINED, .undef = u};
    return 0;
}

/* ---- what kind of value ---- */
const char *jinja_type_name(struct jinja_value v)
{
    static const char *const views[] = {"dict_keys", "dict_values", "dict_items"};
    static const char *const names[] = {
        [JINJA_MISSING] = "Undefined", [JINJA_UNDEFINED] = "Undefined",
        [JINJA_NONE] = "NoneType",     [JINJA_BOOL] = "bool",
        [JINJA_INT] = "int",           [JINJA_FLOAT] = "float",
        [JINJA_STR] = "str",           [JINJA_LIST] = "list",
        [JINJA_TUPLE] = "tuple",       [JINJA_DICT] = "dict",
        [JINJA_RANGE] = "range",       [JINJA_NAMESPACE] = "Namespace",
        [JINJA_MACRO] = "Macro",       [JINJA_FUNC] = "builtin_function_or_method",
        [JINJA_LOOP] = "LoopContext",  [JINJA_CYCLER] = "Cycler",
        [JINJA_JOINER] = "Joiner",
    };
    if (v.type == JINJA_VIEW)
        return views[v.view->kind];
    return v.type == JINJA_ITER ? v.iter->type_name : names[v.type];
}

int64_t jinja_range_item(const struct jinja_range *g, uint64_t idx)
{
    // the item fits 64 bits, the way there may wrap
    return (int64_t)((uint64_t)g->start + idx * (uint64_t)g->step);
}

bool jinja_truth(struct jinja_value v)
{
    switch (v.type) {
    case JINJA_MISSING:
    case JINJA_UNDEFINED:
    case JINJA_NONE:
        return false;
    case JINJA_BOOL:
        return v.b;
    case JINJA_INT:
        return v.i != 0;
    case JINJA_FLOAT:
        return v.f != 0;
    case JINJA_STR:
        return v.s->len > 0;
    case JINJA_LIST:
    case JINJA_TUPLE:
        return v.list->n > 0;
    case JINJA_DICT:
        return v.dict->n > 0;
    case JINJA_VIEW:
        return v.view->dict->n > 0;
    case JINJA_RANGE:
        return v.range->n > 0;
    default:
        return true;
    }
}

bool jinja_is_integral(struct jinja_value v)
{
    return v.type == JINJA_BOOL || v.type == JINJA_INT;
}

bool jinja_is_number(struct jinja_value v)
{
    return jinja_is_integral(v) || v.type == JINJA_FLOAT;
}

int64_t jinja_as_int(struct jinja_value v)
{
    return v.type == JINJA_BOOL ? v.b : v.i;
}

double jinja_as_double(struct jinja_value v)
{
    return v.type == JINJA_FLOAT ? v.f : (double)jinja_as_int(v);
}

int jinja_length(struct jinja_render *r, struct jinja_value v, int64_t *out)
{
    switch (v.type) {
    case JINJA_UNDEFINED:
        *out = 0;
        return 0;
    case JINJA_STR:
        *out = (int64_t)jinja_n_chars(v.s);
        return 0;
    case JINJA_LIST:
    case JINJA_TUPLE:
        *out = (int64_t)v.list->n;
        return 0;
    case JINJA_DICT:
        *out = (int64_t)v.dict->n;
        return 0;
    case JINJA_VIEW:
        *out = (int64_t)v.view->dict->n;
        return 0;
    case JINJA_RANGE:
        *out = v.range->n;
        return 0;
    case JINJA_LOOP:
        return jinja_loop_length(r, v.loop, out);
    default:
        return jinja_fail(r, "object of type '%s' has no len()", jinja_type_name(v));
    }
}

/* ---- JSON ---- */
static int list_from_json(struct jinja_render *r, const json_t *json, struct jinja_value *out)
{
    size_t n = json_array_size(json);
    JINJA_TRY(jinja_new_list(r, JINJA_LIST, n, out));
    for (size_t i = 0; i < n; i++) {
        JINJA_TRY(jinja_from_json(r, json_array_get(json, i), &out->list->items[i]));
        out->list->n++;
    }
    return 0;
}

static int dict_from_json(struct jinja_render *r, const json_t *json, struct jinja_value *out)
{
    const char *key;
    json_t *item;
    JINJA_TRY(jinja_new_dict(r, JINJA_DICT, out));
    json_object_foreach((json_t *)json, key, item)
    {
        struct jinja_value name, v;
        JINJA_TRY(jinja_new_str(r, key, strlen(key), &name));
        JINJA_TRY(jinja_from_json(r, item, &v));
        JINJA_TRY(jinja_dict_set(r, out->dict, name, v));
    }
    return 0;
}

int jinja_from_json(struct jinja_render *r, const json_t *json, struct jinja_value *out)
{
    int rc = 0;
    switch (json_typeof(json)) {
    case JSON_NULL:
        *out = jinja_none();
        return 0;
    case JSON_TRUE:
    case JSON_FALSE:
        *out = jinja_bool(json_is_true(json));
        return 0;
    case JSON_INTEGER:
        *out = jinja_int(json_integer_value(json));
        return 0;
    case JSON_REAL:
        *out = jinja_float(json_real_value(json));
        return 0;
    case JSON_STRING:
        return jinja_new_str(r, json_string_value(json), json_string_length(json), out);
    case JSON_ARRAY:
    case JSON_OBJECT:
        JINJA_TRY(jinja_enter(r));
        rc = json_is_array(json) ? list_from_json(r, json, out) : dict_from_json(r, json, out);
        r->depth--;
        return rc;
    }
    return jinja_fail_code(r, ERR_INTERNAL, "an unknown kind of JSON value");
}
