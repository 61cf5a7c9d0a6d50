/* Walking over values; the lazy sequences that filters give; attribute paths. */
#include <string.h>

#include "libcore/text/jinja_syntax.h"

bool jinja_is_iterable(struct jinja_value v)
{
    switch (v.type) {
    case JINJA_UNDEFINED:
    case JINJA_STR:
    case JINJA_LIST:
    case JINJA_TUPLE:
    case JINJA_DICT:
    case JINJA_VIEW:
    case JINJA_RANGE:
    case JINJA_ITER:
    case JINJA_LOOP:
        return true;
    default:
        return false;
    }
}

int jinja_iter_open(struct jinja_render *r, struct jinja_iter *it, struct jinja_value v)
{
    if (!jinja_is_iterable(v))
        return jinja_fail(r, "'%s' object is not iterable", jinja_type_name(v));
    *it = (struct jinja_iter){.kind = JINJA_ITER_PLAIN, .type_name = "iterator", .source = v};
    return 0;
}

int jinja_new_iter(struct jinja_render *r, enum jinja_iter_kind kind, struct jinja_value source,
                   struct jinja_iter **out)
{
    struct jinja_iter *it = jinja_alloc(r, 2 * sizeof *it);
    if (!it)
        return r->err->code;
    JINJA_TRY(jinja_iter_open(r, it, source));
    it->kind = kind;
    it->type_name = "generator";
    if (kind != JINJA_ITER_PLAIN && kind != JINJA_ITER_REVERSE) {
        it->inner = it + 1;
        JINJA_TRY(jinja_iter_open(r, it->inner, source));
    }
    *out = it;
    return 0;
}

struct jinja_value jinja_of_iter(struct jinja_iter *it)
{
    return (struct jinja_value){.type = JINJA_ITER, .iter = it};
}

static int next_char(struct jinja_render *r, struct jinja_iter *it, struct jinja_value *out)
{
    uint32_t cp;
    const struct jinja_str *s = it->source.s;
    if (it->pos >= s->len)
        return 0;
    size_t n = jinja_decode(s->data + it->pos, s->len - it->pos, &cp);
    const char *data = s->data + it->pos;
    it->pos += n;
    return jinja_borrow_str(r, data, n, out);
}

static int next_entry(struct jinja_render *r, struct jinja_iter *it, const struct jinja_dict *d,
                      enum jinja_view_kind kind, struct jinja_value *out)
{
    if (it->pos >= d->n)
        return 0;
    const struct jinja_entry *e = &d->entries[it->pos++];
    if (kind == JINJA_ITEMS)
        return jinja_new_pair(r, e->key, e->value, out);
    *out = kind == JINJA_KEYS ? e->key : e->value;
    return 0;
}

static int next_of_loop(struct jinja_render *r, struct jinja_loop *l, struct jinja_value *out)
{
    struct jinja_value item;
    JINJA_TRY(jinja_loop_next(r, l, &item));
    if (item.type == JINJA_MISSING)
        return 0;
    return jinja_new_pair(r, item, (struct jinja_value){.type = JINJA_LOOP, .loop = l}, out);
}

static int next_plain(struct jinja_render *r, struct jinja_iter *it, struct jinja_value *out)
{
    struct jinja_value v = it->source;
    switch (v.type) {
    case JINJA_STR:
        return next_char(r, it, out);
    case JINJA_LIST:
    case JINJA_TUPLE:
        if (it->pos < v.list->n)
            *out = v.list->items[it->pos++];
        return 0;
    case JINJA_DICT:
        return next_entry(r, it, v.dict, JINJA_KEYS, out);
    case JINJA_VIEW:
        return next_entry(r, it, v.view->dict, v.view->kind, out);
    case JINJA_RANGE:
        if ((int64_t)it->pos < v.range->n)
            *out = jinja_int(jinja_range_item(v.range, it->pos++));
        return 0;
    case JINJA_ITER:
        return jinja_iter_next(r, v.iter, out);
    case JINJA_LOOP:
        return next_of_loop(r, v.loop, out);
    default:
        return 0;
    }
}

static int next_reverse(struct jinja_render *r, struct jinja_iter *it, struct jinja_value *out)
{
    int64_t n;
    JINJA_TRY(jinja_length(r, it->source, &n));
    if ((int64_t)it->pos >= n)
        return 0;
    struct jinja_iter at = {.source = it->source, .pos = (size_t)n - 1 - it->pos++};
    return next_plain(r, &at, out);
}

static int next_map(struct jinja_render *r, struct jinja_iter *it, struct jinja_value *out)
{
    struct jinja_value item;
    JINJA_TRY(jinja_iter_next(r, it->inner, &item));
    if (item.type == JINJA_MISSING)
        return 0;
    if (it->row)
        return jinja_run_row(r, it->row, item, &it->args, out);
    return jinja_path_get(r, it->path, item, it->fallback, out);
}

static int next_selected(struct jinja_render *r, struct jinja_iter *it, struct jinja_value *out)
{
    struct jinja_value item, seen, verdict;
    for (;;) {
        JINJA_TRY(jinja_iter_next(r, it->inner, &item));
        if (item.type == JINJA_MISSING)
            return 0;
        JINJA_TRY(jinja_path_get(r, it->path, item, (struct jinja_value){0}, &seen));
        verdict = seen;
        if (it->row)
            JINJA_TRY(jinja_run_row(r, it->row, seen, &it->args, &verdict));
        if (jinja_truth(verdict) == it->negate)
            continue;
        *out = item;
        return 0;
    }
}

static int next_unique(struct jinja_render *r, struct jinja_iter *it, struct jinja_value *out)
{
    struct jinja_value item, key, before;
    for (;;) {
        JINJA_TRY(jinja_iter_next(r, it->inner, &item));
        if (item.type == JINJA_MISSING)
            return 0;
        JINJA_TRY(jinja_path_get(r, it->path, item, (struct jinja_value){0}, &key));
        if (it->fold)
            JINJA_TRY(jinja_fold_case(r, key, &key));
        JINJA_TRY(jinja_dict_get(r, it->seen, key, &before));
        if (before.type != JINJA_MISSING)
            continue;
        JINJA_TRY(jinja_dict_set(r, it->seen, key, jinja_none()));
        *out = item;
        return 0;
    }
}

static int next_batch(struct jinja_render *r, struct jinja_iter *it, struct jinja_value *out)
{
    struct jinja_value item, list;
    JINJA_TRY(jinja_new_list(r, JINJA_LIST, 0, &list));
    while ((int64_t)list.list->n < it->count || it->count <= 0) {
        JINJA_TRY(jinja_iter_next(r, it->inner, &item));
        if (item.type == JINJA_MISSING)
            break;
        JINJA_TRY(jinja_list_add(r, list.list, item));
    }
    if (!list.list->n)
        return 0;
    bool fill = it->fallback.type != JINJA_MISSING && it->fallback.type != JINJA_NONE;
    while (fill && (int64_t)list.list->n < it->count)
        JINJA_TRY(jinja_list_add(r, list.list, it->fallback));
    *out = list;
    return 0;
}

static int next_tested(struct jinja_render *r, struct jinja_iter *it, struct jinja_value *out)
{
    struct jinja_value item, verdict;
    for (;;) {
        JINJA_TRY(jinja_iter_next(r, it->inner, &item));
        if (item.type == JINJA_MISSING)
            return 0;
        JINJA_TRY(jinja_assign(r, it->env, it->node->block->test_target, item));
        JINJA_TRY(jinja_eval(r, it->env, it->node->c, &verdict));
        if (!jinja_truth(verdict))
            continue;
        *out = item;
        return 0;
    }
}

static int next_of_kind(struct jinja_render *r, struct jinja_iter *it, struct jinja_value *out)
{
    switch (it->kind) {
    case JINJA_ITER_REVERSE:
        return next_reverse(r, it, out);
    case JINJA_ITER_MAP:
        return next_map(r, it, out);
    case JINJA_ITER_SELECT:
        return next_selected(r, it, out);
    case JINJA_ITER_UNIQUE:
        return next_unique(r, it, out);
    case JINJA_ITER_BATCH:
        return next_batch(r, it, out);
    case JINJA_ITER_LOOP_TEST:
        return next_tested(r, it, out);
    case JINJA_ITER_PLAIN:
        break;
    }
    return next_plain(r, it, out);
}

int jinja_iter_next(struct jinja_render *r, struct jinja_iter *it, struct jinja_value *out)
{
    *out = (struct jinja_value){.type = JINJA_MISSING};
    JINJA_TRY(jinja_enter(r)); // lazy sequences may stand on one another
    int rc = next_of_kind(r, it, out);
    r->depth--;
    return rc;
}

int jinja_to_list(struct jinja_render *r, struct jinja_value v, struct jinja_value *out)
{
    struct jinja_iter it;
    struct jinja_value item;
    JINJA_TRY(jinja_iter_open(r, &it, v));
    JINJA_TRY(jinja_new_list(r, JINJA_LIST, 0, out));
    for (;;) {
        JINJA_TRY(jinja_iter_next(r, &it, &item));
        if (item.type == JINJA_MISSING)
            return 0;
        JINJA_TRY(jinja_list_add(r, out->list, item));
    }
}

/* ---- attribute paths ---- */
struct jinja_path {
    struct jinja_value *parts; // strings and integers
    size_t n;
};

static int path_part(struct jinja_render *r, const char *data, size_t len, struct jinja_value *out)
{
    int64_t number = 0;
    bool digits = len > 0 && len < 18;
    for (size_t i = 0; digits && i < len; i++) {
        digits = data[i] >= '0' && data[i] <= '9';
        number = number * 10 + (data[i] - '0');
    }
    if (!digits)
        return jinja_borrow_str(r, data, len, out);
    *out = jinja_int(number);
    return 0;
}

int jinja_path_parse(struct jinja_render *r, struct jinja_value attribute,
                     const struct jinja_path **out)
{
    *out = NULL;
    if (attribute.type == JINJA_MISSING || attribute.type == JINJA_NONE)
        return 0;
    struct jinja_path *path = jinja_alloc(r, sizeof *path);
    if (!path)
        return r->err->code;
    size_t n = 1;
    const struct jinja_str *s = attribute.type == JINJA_STR ? attribute.s : NULL;
    for (size_t i = 0; s && i < s->len; i++)
        n += s->data[i] == '.';
    path->parts = jinja_alloc(r, n * sizeof *path->parts);
    if (!path->parts)
        return r->err->code;
    path->parts[0] = attribute;
    path->n = n;
    for (size_t i = 0, begin = 0; s && i < n; i++) {
        size_t end = begin;
        while (end < s->len && s->data[end] != '.')
            end++;
        JINJA_TRY(path_part(r, s->data + begin, end - begin, &path->parts[i]));
        begin = end + 1;
    }
    *out = path;
    return 0;
}

int jinja_path_get(struct jinja_render *r, const struct jinja_path *path, struct jinja_value item,
                   struct jinja_value fallback, struct jinja_value *out)
{
    bool has_fallback = fallback.type != JINJA_MISSING && fallback.type != JINJA_NONE;
    for (size_t i = 0; path && i < path->n; i++) {
        JINJA_TRY(jinja_getitem(r, item, path->parts[i], &item));
        if (has_fallback && item.type == JINJA_UNDEFINED)
            item = fallback;
    }
    *out = item;
    return 0;
}

int jinja_fold_case(struct jinja_render *r, struct jinja_value v, struct jinja_value *out)
{
    struct strbuf sb;
    *out = v;
    if (v.type != JINJA_STR)
        return 0;
    strbuf_init(&sb);
    jinja_add_lower(&sb, v.s->data, v.s->len);
    return jinja_take_strbuf(r, &sb, out);
}
