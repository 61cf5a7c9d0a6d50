/* a.b, a[b] and a[b:c] as the sandbox of jinja2 looks them up: undefined where there is nothing. */
#include <stdio.h>
#include <string.h>

#include "libcore/text/jinja_syntax.h"

static bool is(const char *name, size_t len, const char *word)
{
    return strlen(word) == len && memcmp(name, word, len) == 0;
}

/* How Jinja names an object in "… has no attribute". */
static const char *object_name(struct jinja_value v, char *buf, size_t cap)
{
    if (v.type == JINJA_NONE)
        return "None";
    if (v.type == JINJA_NAMESPACE)
        return "jinja2.utils.Namespace object";
    snprintf(buf, cap, "%s object", jinja_type_name(v));
    return buf;
}

static int no_attribute(struct jinja_render *r, struct jinja_value v, const char *name, size_t len,
                        struct jinja_value *out)
{
    char buf[64];
    return jinja_new_undefined(r, out, "'%s' has no attribute '%.*s'",
                               object_name(v, buf, sizeof buf), (int)(len < 100 ? len : 100), name);
}

static int no_element(struct jinja_render *r, struct jinja_value v, struct jinja_value key,
                      struct jinja_value *out)
{
    char buf[64];
    struct strbuf sb;
    strbuf_init(&sb);
    sb.max = LIMIT_TEMPLATE_OUTPUT_BYTES;
    int rc = jinja_add_repr(r, &sb, key);
    if (!rc)
        rc = jinja_new_undefined(r, out, "%s has no element %.100s",
                                 object_name(v, buf, sizeof buf), strbuf_text(&sb));
    strbuf_release(&sb);
    return rc;
}

static int unsafe(struct jinja_render *r, struct jinja_value v, const char *name, size_t len,
                  struct jinja_value *out)
{
    return jinja_new_undefined(r, out, "access to attribute '%.*s' of '%s' object is unsafe.",
                               (int)(len < 100 ? len : 100), name, jinja_type_name(v));
}

static int macro_attr(struct jinja_render *r, struct jinja_value v, const char *name, size_t len,
                      struct jinja_value *out)
{
    const struct jinja_node *n = v.macro->node;
    if (is(name, len, "name")) {
        *out = n->type == NODE_MACRO ? jinja_of_str(n->a->name) : jinja_none();
    } else if (is(name, len, "arguments")) {
        JINJA_TRY(jinja_new_list(r, JINJA_TUPLE, 0, out));
        for (size_t i = 0; i < n->call->body.n; i++)
            JINJA_TRY(jinja_list_add(r, out->list, jinja_of_str(n->call->body.items[i]->name)));
    } else if (is(name, len, "caller")) {
        *out = jinja_bool(n->block->caller_slot != JINJA_NO_SLOT);
    } else if (is(name, len, "catch_kwargs")) {
        *out = jinja_bool(n->block->kwargs_slot != JINJA_NO_SLOT);
    } else if (is(name, len, "catch_varargs")) {
        *out = jinja_bool(n->block->varargs_slot != JINJA_NO_SLOT);
    }
    return 0;
}

/* Plain data that some objects carry. */
static int data_attr(struct jinja_render *r, struct jinja_value v, const char *name, size_t len,
                     struct jinja_value *out)
{
    if (v.type == JINJA_NAMESPACE)
        return jinja_dict_get_text(r, v.dict, name, len, out);
    if (v.type == JINJA_LOOP)
        return jinja_loop_attr(r, v, name, len, out);
    if (v.type == JINJA_MACRO)
        return macro_attr(r, v, name, len, out);
    if (v.type == JINJA_TUPLE && v.list->group && is(name, len, "grouper"))
        *out = v.list->items[0];
    else if (v.type == JINJA_TUPLE && v.list->group && is(name, len, "list"))
        *out = v.list->items[1];
    else if (v.type == JINJA_CYCLER && is(name, len, "current"))
        *out = v.cycler->items->items[v.cycler->pos];
    else if (jinja_is_number(v) && is(name, len, "real"))
        *out = v.type == JINJA_BOOL ? jinja_int(v.b) : v;
    else if (jinja_is_number(v) && is(name, len, "imag"))
        *out = v.type == JINJA_FLOAT ? jinja_float(0) : jinja_int(0);
    else if (jinja_is_integral(v) && is(name, len, "numerator"))
        *out = jinja_int(jinja_as_int(v));
    else if (jinja_is_integral(v) && is(name, len, "denominator"))
        *out = jinja_int(1);
    else if (v.type == JINJA_RANGE && is(name, len, "start"))
        *out = jinja_int(v.range->start);
    else if (v.type == JINJA_RANGE && is(name, len, "stop"))
        *out = jinja_int(v.range->stop);
    else if (v.type == JINJA_RANGE && is(name, len, "step"))
        *out = jinja_int(v.range->step);
    return 0;
}

int jinja_find_attr(struct jinja_render *r, struct jinja_value v, const char *name, size_t len,
                    struct jinja_value *out)
{
    *out = (struct jinja_value){.type = JINJA_MISSING};
    if (len > 4 && memcmp(name, "__", 2) == 0 && memcmp(name + len - 2, "__", 2) == 0)
        return unsafe(r, v, name, len, out);
    if (jinja_is_mutating(v.type, name, len))
        return unsafe(r, v, name, len, out);
    JINJA_TRY(data_attr(r, v, name, len, out));
    if (out->type != JINJA_MISSING)
        return 0;
    const struct jinja_row *row = jinja_find_method(v.type, name, len);
    if (!row)
        return 0;
    struct jinja_func *f = jinja_alloc(r, sizeof *f);
    if (!f)
        return r->err->code;
    *f = (struct jinja_func){.row = row, .self = v};
    *out = (struct jinja_value){.type = JINJA_FUNC, .func = f};
    return 0;
}

int jinja_getattr(struct jinja_render *r, struct jinja_value v, const struct jinja_str *name,
                  struct jinja_value *out)
{
    if (v.type == JINJA_UNDEFINED)
        return jinja_fail_undefined(r, v);
    JINJA_TRY(jinja_find_attr(r, v, name->data, name->len, out));
    if (out->type == JINJA_MISSING && v.type == JINJA_DICT)
        JINJA_TRY(jinja_dict_get(r, v.dict, jinja_of_str(name), out));
    if (out->type == JINJA_MISSING)
        return no_attribute(r, v, name->data, name->len, out);
    return 0;
}

/* ---- items ---- */
static int char_at(struct jinja_render *r, struct jinja_str *s, size_t idx, struct jinja_value *out)
{
    size_t begin = jinja_char_offset(s, idx);
    uint32_t cp;
    JINJA_TRY(jinja_steps(r, s->n_chars == s->len ? 0 : begin / 64));
    size_t n = jinja_decode(s->data + begin, s->len - begin, &cp);
    JINJA_TRY(jinja_borrow_str(r, s->data + begin, n, out));
    out->s->markup = s->markup;
    return 0;
}

/* MISSING when out of range, or when v has no numbered items. */
static int item_at(struct jinja_render *r, struct jinja_value v, int64_t idx,
                   struct jinja_value *out)
{
    int64_t n;
    if (v.type != JINJA_STR && v.type != JINJA_LIST && v.type != JINJA_TUPLE &&
        v.type != JINJA_RANGE)
        return 0;
    JINJA_TRY(jinja_length(r, v, &n));
    if (idx < 0)
        idx += n;
    if (idx < 0 || idx >= n)
        return 0;
    if (v.type == JINJA_STR)
        return char_at(r, v.s, (size_t)idx, out);
    *out = v.type == JINJA_RANGE ? jinja_int(jinja_range_item(v.range, (uint64_t)idx))
                                 : v.list->items[idx];
    return 0;
}

int jinja_getitem(struct jinja_render *r, struct jinja_value v, struct jinja_value key,
                  struct jinja_value *out)
{
    struct jinja_value found = {.type = JINJA_MISSING};
    if (v.type == JINJA_UNDEFINED)
        return jinja_fail_undefined(r, v);
    if (v.type == JINJA_DICT && jinja_hashable(key))
        JINJA_TRY(jinja_dict_get(r, v.dict, key, &found));
    else if (jinja_is_integral(key))
        JINJA_TRY(item_at(r, v, jinja_as_int(key), &found));
    if (found.type == JINJA_MISSING && key.type == JINJA_STR)
        JINJA_TRY(jinja_find_attr(r, v, key.s->data, key.s->len, &found));
    *out = found;
    if (found.type != JINJA_MISSING)
        return 0;
    if (key.type == JINJA_STR)
        return no_attribute(r, v, key.s->data, key.s->len, out);
    return no_element(r, v, key, out);
}

/* ---- slices ---- */
struct bounds {
    int64_t start, stop, step, n; // n: items that the slice has
};

static int64_t clamp(int64_t i, int64_t n, int64_t low, int64_t high)
{
    if (i < 0)
        i += n;
    return i < low ? low : i > high ? high : i;
}

static int slice_index(struct jinja_render *r, struct jinja_value v, bool *given, int64_t *out)
{
    *given = v.type != JINJA_MISSING && v.type != JINJA_NONE;
    if (!*given)
        return 0;
    if (v.type == JINJA_UNDEFINED || !jinja_is_integral(v))
        return jinja_fail(r, "slice indices must be integers or None or have an __index__ method");
    *out = jinja_as_int(v);
    return 0;
}

static int read_bounds(struct jinja_render *r, const struct jinja_value v[3], int64_t n,
                       struct bounds *b)
{
    bool start, stop, step;
    JINJA_TRY(slice_index(r, v[0], &start, &b->start));
    JINJA_TRY(slice_index(r, v[1], &stop, &b->stop));
    JINJA_TRY(slice_index(r, v[2], &step, &b->step));
    if (!step)
        b->step = 1;
    if (b->step == 0)
        return jinja_fail(r, "slice step cannot be zero");
    if (b->step < -INT64_MAX)
        b->step = -INT64_MAX;
    bool down = b->step < 0;
    int64_t low = down ? -1 : 0, high = down ? n - 1 : n;
    b->start = start ? clamp(b->start, n, low, high) : down ? high : low;
    b->stop = stop ? clamp(b->stop, n, low, high) : down ? low : high;
    int64_t span = down ? b->start - b->stop : b->stop - b->start;
    uint64_t width = down ? (uint64_t)-b->step : (uint64_t)b->step;
    b->n = span > 0 ? (int64_t)(((uint64_t)span - 1) / width) + 1 : 0;
    return 0;
}

static int slice_text(struct jinja_render *r, struct jinja_str *s, const struct bounds *b,
                      struct jinja_value *out)
{
    if (b->step == 1 || b->n == 0) {
        size_t begin = b->n ? jinja_char_offset(s, (size_t)b->start) : 0;
        size_t end = b->n ? jinja_char_offset(s, (size_t)(b->start + b->n)) : 0;
        JINJA_TRY(jinja_steps(r, s->n_chars == s->len ? 0 : end / 64));
        return jinja_borrow_str(r, s->data + begin, end - begin, out);
    }
    char *data = jinja_alloc(r, s->len);
    if (!data)
        return r->err->code;
    size_t len = 0, pos = jinja_char_offset(s, (size_t)b->start);
    JINJA_TRY(jinja_steps(r, s->len / 8));
    for (int64_t k = 0; k < b->n; k++) {
        uint32_t cp;
        size_t n = jinja_decode(s->data + pos, s->len - pos, &cp);
        memcpy(data + len, s->data + pos, n);
        len += n;
        for (int64_t i = 0; k + 1 < b->n && i < (b->step < 0 ? -b->step : b->step); i++) {
            if (b->step > 0)
                pos += jinja_decode(s->data + pos, s->len - pos, &cp);
            else
                while (((unsigned char)s->data[--pos] & 0xC0) == 0x80)
                    ;
        }
    }
    return jinja_borrow_str(r, data, len, out);
}

static int slice_list(struct jinja_render *r, struct jinja_value v, const struct bounds *b,
                      struct jinja_value *out)
{
    JINJA_TRY(jinja_new_list(r, v.type, (size_t)b->n, out));
    JINJA_TRY(jinja_steps(r, (size_t)b->n));
    for (int64_t k = 0; k < b->n; k++)
        out->list->items[k] = v.list->items[b->start + k * b->step];
    out->list->n = (size_t)b->n;
    return 0;
}

static int slice_range(struct jinja_render *r, const struct jinja_range *from,
                       const struct bounds *b, struct jinja_value *out)
{
    struct jinja_range *g = jinja_alloc(r, sizeof *g);
    if (!g)
        return r->err->code;
    // items stay within 64 bits; only a step or stop that no item reaches may wrap
    uint64_t step = (uint64_t)from->step;
    g->n = b->n;
    g->step = (int64_t)(step * (uint64_t)b->step);
    g->start = (int64_t)((uint64_t)from->start + step * (uint64_t)b->start);
    g->stop = (int64_t)((uint64_t)from->start + step * (uint64_t)b->stop);
    *out = (struct jinja_value){.type = JINJA_RANGE, .range = g};
    return 0;
}

int jinja_slice(struct jinja_render *r, struct jinja_value v, const struct jinja_value bounds[3],
                struct jinja_value *out)
{
    struct bounds b = {0};
    int64_t n;
    if (v.type == JINJA_UNDEFINED)
        return jinja_fail_undefined(r, v);
    if (v.type == JINJA_DICT)
        return jinja_fail(r, "unhashable type: 'slice'");
    if (v.type != JINJA_STR && v.type != JINJA_LIST && v.type != JINJA_TUPLE &&
        v.type != JINJA_RANGE)
        return jinja_fail(r, "'%s' object is not subscriptable", jinja_type_name(v));
    JINJA_TRY(jinja_length(r, v, &n));
    JINJA_TRY(read_bounds(r, bounds, n, &b));
    if (v.type == JINJA_STR) {
        JINJA_TRY(slice_text(r, v.s, &b, out));
        out->s->markup = v.s->markup;
        return 0;
    }
    return v.type == JINJA_RANGE ? slice_range(r, v.range, &b, out) : slice_list(r, v, &b, out);
}
