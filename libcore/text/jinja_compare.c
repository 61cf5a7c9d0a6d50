/* Equality, order and sorting as Python has them. */
#include <math.h>
#include <string.h>

#include "libcore/text/jinja_impl.h"

static int compare_int_float(int64_t i, double f, bool *unordered)
{
    if (isnan(f)) {
        *unordered = true;
        return 1;
    }
    if (f >= 0x1p63)
        return -1;
    if (f < -0x1p63)
        return 1;
    int64_t whole = (int64_t)f;
    if (i != whole)
        return i < whole ? -1 : 1;
    double rest = f - (double)whole;
    return rest > 0 ? -1 : rest < 0;
}

static int compare_numbers(struct jinja_value a, struct jinja_value b, bool *unordered)
{
    if (a.type == JINJA_FLOAT && b.type == JINJA_FLOAT) {
        *unordered = isnan(a.f) || isnan(b.f);
        return a.f < b.f ? -1 : a.f > b.f;
    }
    if (a.type == JINJA_FLOAT)
        return -compare_int_float(jinja_as_int(b), a.f, unordered);
    if (b.type == JINJA_FLOAT)
        return compare_int_float(jinja_as_int(a), b.f, unordered);
    int64_t x = jinja_as_int(a), y = jinja_as_int(b);
    return x < y ? -1 : x > y;
}

/* The order of UTF-8 bytes is that of code points. */
static int compare_text(const struct jinja_str *a, const struct jinja_str *b)
{
    size_t n = a->len < b->len ? a->len : b->len;
    int sign = n ? memcmp(a->data, b->data, n) : 0;
    return sign ? sign : a->len < b->len ? -1 : a->len > b->len;
}

static int equal_lists(struct jinja_render *r, const struct jinja_list *a,
                       const struct jinja_list *b, bool *out)
{
    *out = a->n == b->n;
    for (size_t i = 0; *out && i < a->n; i++)
        JINJA_TRY(jinja_equal(r, a->items[i], b->items[i], out));
    return 0;
}

static int equal_dicts(struct jinja_render *r, const struct jinja_dict *a,
                       const struct jinja_dict *b, bool *out)
{
    *out = a->n == b->n;
    for (size_t i = 0; *out && i < a->n; i++) {
        struct jinja_value other;
        JINJA_TRY(jinja_dict_get(r, b, a->entries[i].key, &other));
        *out = other.type != JINJA_MISSING;
        if (*out)
            JINJA_TRY(jinja_equal(r, a->entries[i].value, other, out));
    }
    return 0;
}

/* The keys or items of two dicts as sets. */
static int equal_views(struct jinja_render *r, const struct jinja_view *a,
                       const struct jinja_view *b, bool *out)
{
    *out = a == b;
    if (*out || a->kind != b->kind || a->kind == JINJA_VALUES)
        return 0;
    if (a->kind == JINJA_ITEMS)
        return equal_dicts(r, a->dict, b->dict, out);
    *out = a->dict->n == b->dict->n;
    for (size_t i = 0; *out && i < a->dict->n; i++) {
        struct jinja_value other;
        JINJA_TRY(jinja_dict_get(r, b->dict, a->dict->entries[i].key, &other));
        *out = other.type != JINJA_MISSING;
    }
    return 0;
}

static bool equal_ranges(const struct jinja_range *a, const struct jinja_range *b)
{
    if (a->n != b->n)
        return false;
    return a->n == 0 || (a->start == b->start && (a->n == 1 || a->step == b->step));
}

static int equal_same_type(struct jinja_render *r, struct jinja_value a, struct jinja_value b,
                           bool *out)
{
    switch (a.type) {
    case JINJA_UNDEFINED:
    case JINJA_NONE:
        *out = true;
        return 0;
    case JINJA_STR:
        *out = a.s->len == b.s->len && memcmp(a.s->data, b.s->data, a.s->len) == 0;
        return jinja_steps(r, *out ? a.s->len / 64 : 0);
    case JINJA_LIST:
    case JINJA_TUPLE:
        return equal_lists(r, a.list, b.list, out);
    case JINJA_DICT:
        return equal_dicts(r, a.dict, b.dict, out);
    case JINJA_VIEW:
        return equal_views(r, a.view, b.view, out);
    case JINJA_RANGE:
        *out = equal_ranges(a.range, b.range);
        return 0;
    default:
        *out = a.dict == b.dict;
        return 0;
    }
}

int jinja_equal(struct jinja_render *r, struct jinja_value a, struct jinja_value b, bool *out)
{
    bool unordered = false;
    if (jinja_is_number(a) && jinja_is_number(b)) {
        *out = compare_numbers(a, b, &unordered) == 0 && !unordered;
        return 0;
    }
    *out = false;
    if (a.type != b.type)
        return 0;
    JINJA_TRY(jinja_enter(r));
    int rc = equal_same_type(r, a, b, out);
    r->depth--;
    return rc;
}

static int order_lists(struct jinja_render *r, const struct jinja_list *a,
                       const struct jinja_list *b, const char *op, int *sign, bool *unordered)
{
    size_t n = a->n < b->n ? a->n : b->n;
    for (size_t i = 0; i < n; i++) {
        bool same;
        JINJA_TRY(jinja_equal(r, a->items[i], b->items[i], &same));
        if (!same)
            return jinja_order(r, a->items[i], b->items[i], op, sign, unordered);
    }
    *sign = a->n < b->n ? -1 : a->n > b->n;
    return 0;
}

int jinja_order(struct jinja_render *r, struct jinja_value a, struct jinja_value b, const char *op,
                int *sign, bool *unordered)
{
    *unordered = false;
    if (jinja_is_number(a) && jinja_is_number(b)) {
        *sign = compare_numbers(a, b, unordered);
        return 0;
    }
    if (a.type == JINJA_UNDEFINED || b.type == JINJA_UNDEFINED)
        return jinja_fail_undefined(r, a.type == JINJA_UNDEFINED ? a : b);
    if (a.type == JINJA_STR && b.type == JINJA_STR) {
        *sign = compare_text(a.s, b.s);
        return jinja_steps(r, (a.s->len < b.s->len ? a.s->len : b.s->len) / 64 + 1);
    }
    if (a.type == b.type && (a.type == JINJA_LIST || a.type == JINJA_TUPLE)) {
        JINJA_TRY(jinja_enter(r));
        int rc = order_lists(r, a.list, b.list, op, sign, unordered);
        r->depth--;
        return rc;
    }
    return jinja_fail(r, "'%s' not supported between instances of '%s' and '%s'", op,
                      jinja_type_name(a), jinja_type_name(b));
}

int jinja_less(struct jinja_render *r, struct jinja_value a, struct jinja_value b, bool *out)
{
    int sign;
    bool unordered;
    JINJA_TRY(jinja_order(r, a, b, "<", &sign, &unordered));
    *out = !unordered && sign < 0;
    return 0;
}

/* ---- merge sort of pairs, stable ---- */
struct pair {
    struct jinja_value key, item;
};

/* Whether the right half's head goes before the left's. */
static int right_first(struct jinja_render *r, const struct pair *left, const struct pair *right,
                       bool reverse, bool *out)
{
    return reverse ? jinja_less(r, left->key, right->key, out)
                   : jinja_less(r, right->key, left->key, out);
}

static int merge(struct jinja_render *r, const struct pair *from, struct pair *to, size_t begin,
                 size_t middle, size_t end, bool reverse)
{
    size_t i = begin, j = middle;
    for (size_t k = begin; k < end; k++) {
        bool right = i == middle;
        if (!right && j < end)
            JINJA_TRY(right_first(r, &from[i], &from[j], reverse, &right));
        to[k] = right ? from[j++] : from[i++];
    }
    return jinja_steps(r, end - begin);
}

int jinja_sort(struct jinja_render *r, struct jinja_value *keys, struct jinja_value *items,
               size_t n, bool reverse)
{
    struct pair *a = jinja_alloc(r, n * sizeof *a), *b = jinja_alloc(r, n * sizeof *b);
    if (!a || !b)
        return r->err->code;
    for (size_t i = 0; i < n; i++)
        a[i] = (struct pair){.key = keys[i], .item = items[i]};
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t begin = 0; begin < n; begin += 2 * width) {
            size_t middle = begin + width < n ? begin + width : n;
            size_t end = begin + 2 * width < n ? begin + 2 * width : n;
            JINJA_TRY(merge(r, a, b, begin, middle, end, reverse));
        }
        struct pair *swap = a;
        a = b;
        b = swap;
    }
    for (size_t i = 0; i < n; i++) {
        keys[i] = a[i].key;
        items[i] = a[i].item;
    }
    return 0;
}
