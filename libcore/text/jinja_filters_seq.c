/* Filters over sequences that give a value at once: order, sums, groups. */
#include <string.h>

#include "libcore/text/jinja_impl.h"

#define FILTER(name)                                                                               \
    static int name(struct jinja_render *r, struct jinja_value self,                               \
                    const struct jinja_value *argv, const struct jinja_args *args,                 \
                    struct jinja_value *out)
#define UNUSED_ARGS (void)argv, (void)args

FILTER(first)
{
    struct jinja_iter it;
    UNUSED_ARGS;
    JINJA_TRY(jinja_iter_open(r, &it, self));
    JINJA_TRY(jinja_iter_next(r, &it, out));
    if (out->type == JINJA_MISSING)
        return jinja_new_undefined(r, out, "No first item, sequence was empty.");
    return 0;
}

static bool is_reversible(struct jinja_value v)
{
    return jinja_is_iterable(v) && v.type != JINJA_ITER && v.type != JINJA_LOOP;
}

FILTER(last)
{
    struct jinja_iter *it;
    UNUSED_ARGS;
    if (!is_reversible(self))
        return jinja_fail(r, "'%s' object is not reversible", jinja_type_name(self));
    // code points from the end of a text would each be searched from its start
    if (self.type == JINJA_STR)
        JINJA_TRY(jinja_to_list(r, self, &self));
    JINJA_TRY(jinja_new_iter(r, JINJA_ITER_REVERSE, self, &it));
    JINJA_TRY(jinja_iter_next(r, it, out));
    if (out->type == JINJA_MISSING)
        return jinja_new_undefined(r, out, "No last item, sequence was empty.");
    return 0;
}

FILTER(length)
{
    int64_t n;
    UNUSED_ARGS;
    JINJA_TRY(jinja_length(r, self, &n));
    *out = jinja_int(n);
    return 0;
}

FILTER(list)
{
    UNUSED_ARGS;
    return jinja_to_list(r, self, out);
}

FILTER(reverse)
{
    const struct jinja_value down[3] = {
        {.type = JINJA_MISSING}, {.type = JINJA_MISSING}, {.type = JINJA_INT, .i = -1}};
    struct jinja_iter *it;
    UNUSED_ARGS;
    if (self.type == JINJA_STR)
        return jinja_slice(r, self, down, out);
    if (is_reversible(self)) {
        JINJA_TRY(jinja_new_iter(r, JINJA_ITER_REVERSE, self, &it));
        it->type_name = "list_reverseiterator";
        *out = jinja_of_iter(it);
        return 0;
    }
    JINJA_TRY(jinja_to_list(r, self, &self));
    return jinja_slice(r, self, down, out);
}

FILTER(join)
{
    struct jinja_iter it;
    struct jinja_value item, sep;
    const struct jinja_path *path;
    struct strbuf sb;
    (void)args;
    JINJA_TRY(jinja_to_str(r, argv[0], &sep));
    JINJA_TRY(jinja_path_parse(r, argv[1], &path));
    JINJA_TRY(jinja_iter_open(r, &it, self));
    strbuf_init(&sb);
    sb.max = LIMIT_TEMPLATE_OUTPUT_BYTES;
    int rc = 0;
    for (bool more = false; !rc; more = true) {
        rc = jinja_iter_next(r, &it, &item);
        if (rc || item.type == JINJA_MISSING)
            break;
        if (more)
            strbuf_add(&sb, sep.s->data, sep.s->len);
        rc = jinja_path_get(r, path, item, (struct jinja_value){0}, &item);
        if (!rc)
            rc = jinja_add_text(r, &sb, item);
        if (!rc)
            rc = jinja_steps(r, sep.s->len / 64);
    }
    if (!rc)
        return jinja_take_strbuf(r, &sb, out);
    strbuf_release(&sb);
    return rc;
}

FILTER(sum)
{
    struct jinja_iter it;
    struct jinja_value item, total = argv[1].type == JINJA_MISSING ? jinja_int(0) : argv[1];
    const struct jinja_path *path;
    (void)args;
    if (total.type == JINJA_STR)
        return jinja_fail(r, "sum() can't sum strings [use ''.join(seq) instead]");
    JINJA_TRY(jinja_path_parse(r, argv[0], &path));
    JINJA_TRY(jinja_iter_open(r, &it, self));
    for (;;) {
        JINJA_TRY(jinja_iter_next(r, &it, &item));
        if (item.type == JINJA_MISSING)
            break;
        JINJA_TRY(jinja_path_get(r, path, item, (struct jinja_value){0}, &item));
        JINJA_TRY(jinja_binary(r, JINJA_ADD, total, item, &total));
    }
    *out = total;
    return 0;
}

/* ---- order ---- */

/* What an item is sorted by: its attribute, folded unless case counts. */
static int sort_key(struct jinja_render *r, const struct jinja_path *path, struct jinja_value item,
                    struct jinja_value fallback, bool fold, struct jinja_value *out)
{
    JINJA_TRY(jinja_path_get(r, path, item, fallback, out));
    return fold ? jinja_fold_case(r, *out, out) : 0;
}

static int min_or_max(struct jinja_render *r, struct jinja_value self,
                      const struct jinja_value *argv, bool max, struct jinja_value *out)
{
    struct jinja_iter it;
    struct jinja_value item, key, best = {.type = JINJA_MISSING};
    const struct jinja_path *path;
    JINJA_TRY(jinja_path_parse(r, argv[1], &path));
    JINJA_TRY(jinja_iter_open(r, &it, self));
    *out = best;
    for (;;) {
        bool better = out->type == JINJA_MISSING;
        JINJA_TRY(jinja_iter_next(r, &it, &item));
        if (item.type == JINJA_MISSING)
            break;
        JINJA_TRY(sort_key(r, path, item, (struct jinja_value){0}, !jinja_truth(argv[0]), &key));
        if (!better)
            JINJA_TRY(max ? jinja_less(r, best, key, &better) : jinja_less(r, key, best, &better));
        if (better) {
            best = key;
            *out = item;
        }
    }
    if (out->type == JINJA_MISSING)
        return jinja_new_undefined(r, out, "No aggregated item, sequence was empty.");
    return 0;
}

FILTER(min)
{
    (void)args;
    return min_or_max(r, self, argv, false, out);
}

FILTER(max)
{
    (void)args;
    return min_or_max(r, self, argv, true, out);
}

/* Keys of "a,b.c": a list of one key an attribute. */
static int multi_key(struct jinja_render *r, const struct jinja_path *const *paths, size_t n,
                     struct jinja_value item, bool fold, struct jinja_value *out)
{
    JINJA_TRY(jinja_new_list(r, JINJA_LIST, n, out));
    for (size_t i = 0; i < n; i++)
        JINJA_TRY(sort_key(r, paths[i], item, (struct jinja_value){0}, fold, &out->list->items[i]));
    out->list->n = n;
    return 0;
}

static int parse_paths(struct jinja_render *r, struct jinja_value attribute,
                       const struct jinja_path ***out, size_t *n)
{
    const struct jinja_str *s = attribute.type == JINJA_STR ? attribute.s : NULL;
    *n = 1;
    for (size_t i = 0; s && i < s->len; i++)
        *n += s->data[i] == ',';
    *out = jinja_alloc(r, *n * sizeof **out);
    if (!*out)
        return r->err->code;
    if (!s)
        return jinja_path_parse(r, attribute, &(*out)[0]);
    for (size_t i = 0, begin = 0; i < *n; i++) {
        size_t end = begin;
        struct jinja_value part;
        while (end < s->len && s->data[end] != ',')
            end++;
        JINJA_TRY(jinja_borrow_str(r, s->data + begin, end - begin, &part));
        JINJA_TRY(jinja_path_parse(r, part, &(*out)[i]));
        begin = end + 1;
    }
    return 0;
}

FILTER(sort)
{
    struct jinja_value keys;
    const struct jinja_path **paths;
    size_t n_paths;
    (void)args;
    JINJA_TRY(parse_paths(r, argv[2], &paths, &n_paths));
    JINJA_TRY(jinja_to_list(r, self, out));
    size_t n = out->list->n;
    JINJA_TRY(jinja_new_list(r, JINJA_LIST, n, &keys));
    for (size_t i = 0; i < n; i++)
        JINJA_TRY(multi_key(r, paths, n_paths, out->list->items[i], !jinja_truth(argv[1]),
                            &keys.list->items[i]));
    return jinja_sort(r, keys.list->items, out->list->items, n, jinja_truth(argv[0]));
}

FILTER(dictsort)
{
    struct jinja_value keys;
    struct jinja_str *by = NULL;
    (void)args;
    JINJA_TRY(jinja_arg_str(r, argv[1], "by", &by));
    bool by_value = by && by->len == 5 && memcmp(by->data, "value", 5) == 0;
    if (by && !by_value && !(by->len == 3 && memcmp(by->data, "key", 3) == 0))
        return jinja_fail(r, "You can only sort by either \"key\" or \"value\"");
    if (self.type != JINJA_DICT)
        return jinja_fail(r, "'%s' object has no attribute 'items'", jinja_type_name(self));
    struct jinja_view view = {.kind = JINJA_ITEMS, .dict = self.dict};
    JINJA_TRY(jinja_to_list(r, (struct jinja_value){.type = JINJA_VIEW, .view = &view}, out));
    size_t n = out->list->n;
    JINJA_TRY(jinja_new_list(r, JINJA_LIST, n, &keys));
    for (size_t i = 0; i < n; i++)
        JINJA_TRY(sort_key(r, NULL, out->list->items[i].list->items[by_value],
                           (struct jinja_value){0}, !jinja_truth(argv[0]), &keys.list->items[i]));
    return jinja_sort(r, keys.list->items, out->list->items, n, jinja_truth(argv[2]));
}

/* ---- groups ---- */
static int add_group(struct jinja_render *r, struct jinja_list *groups, struct jinja_value key,
                     struct jinja_value members)
{
    struct jinja_value group;
    JINJA_TRY(jinja_new_pair(r, key, members, &group));
    group.list->group = true;
    return jinja_list_add(r, groups, group);
}

FILTER(groupby)
{
    struct jinja_value items, keys, members = {.type = JINJA_MISSING}, key;
    const struct jinja_path *path;
    bool fold = !jinja_truth(argv[2]), same;
    (void)args;
    JINJA_TRY(jinja_path_parse(r, argv[0], &path));
    JINJA_TRY(jinja_to_list(r, self, &items));
    size_t n = items.list->n;
    JINJA_TRY(jinja_new_list(r, JINJA_LIST, n, &keys));
    for (size_t i = 0; i < n; i++)
        JINJA_TRY(sort_key(r, path, items.list->items[i], argv[1], fold, &keys.list->items[i]));
    JINJA_TRY(jinja_sort(r, keys.list->items, items.list->items, n, false));
    JINJA_TRY(jinja_new_list(r, JINJA_LIST, 0, out));
    for (size_t i = 0; i < n; i++) {
        same = false;
        if (i)
            JINJA_TRY(jinja_equal(r, keys.list->items[i - 1], keys.list->items[i], &same));
        if (!same) { // the group's name is that of its first item, as it is written
            JINJA_TRY(jinja_new_list(r, JINJA_LIST, 0, &members));
            JINJA_TRY(jinja_path_get(r, path, items.list->items[i], argv[1], &key));
            JINJA_TRY(add_group(r, out->list, key, members));
        }
        JINJA_TRY(jinja_list_add(r, members.list, items.list->items[i]));
    }
    return 0;
}

FILTER(slice)
{
    struct jinja_value items, rows, row;
    struct jinja_iter *it;
    int64_t n_rows = 0;
    (void)args;
    JINJA_TRY(jinja_arg_int(r, argv[0], "slices", &n_rows));
    JINJA_TRY(jinja_to_list(r, self, &items));
    if (n_rows == 0)
        return jinja_fail(r, "integer division or modulo by zero");
    JINJA_TRY(jinja_new_list(r, JINJA_LIST, 0, &rows));
    bool fill = argv[1].type != JINJA_MISSING && argv[1].type != JINJA_NONE;
    int64_t n = (int64_t)items.list->n, next = 0;
    for (int64_t i = 0; i < n_rows; i++) {
        int64_t here = n / n_rows + (i < n % n_rows);
        JINJA_TRY(jinja_new_list(r, JINJA_LIST, 0, &row));
        for (int64_t k = 0; k < here; k++)
            JINJA_TRY(jinja_list_add(r, row.list, items.list->items[next++]));
        if (fill && i >= n % n_rows)
            JINJA_TRY(jinja_list_add(r, row.list, argv[1]));
        JINJA_TRY(jinja_list_add(r, rows.list, row));
    }
    JINJA_TRY(jinja_new_iter(r, JINJA_ITER_PLAIN, rows, &it));
    *out = jinja_of_iter(it);
    return 0;
}

const struct jinja_row jinja_filters_seq[] = {
    {"first", first, "", 0},
    {"last", last, "", 0},
    {"length", length, "", 0},
    {"count", length, "", 0},
    {"list", list, "", 0},
    {"reverse", reverse, "", 0},
    {"join", join, "d,attribute", 0},
    {"sum", sum, "attribute,start", 0},
    {"min", min, "case_sensitive,attribute", 0},
    {"max", max, "case_sensitive,attribute", 0},
    {"sort", sort, "reverse,case_sensitive,attribute", 0},
    {"dictsort", dictsort, "case_sensitive,by,reverse", 0},
    {"groupby", groupby, "attribute,default,case_sensitive", 1},
    {"slice", slice, "slices,fill_with", 1},
    {NULL, NULL, NULL, 0},
};
