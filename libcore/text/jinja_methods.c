/* Methods of what is not a str, and the table from types to methods. */
#include <string.h>

#include "libcore/text/jinja_impl.h"

#define METHOD(name)                                                                               \
    static int name(struct jinja_render *r, struct jinja_value self,                               \
                    const struct jinja_value *argv, const struct jinja_args *args,                 \
                    struct jinja_value *out)
#define UNUSED_ARGS (void)argv, (void)args

/* ---- dict ---- */
static int view(struct jinja_render *r, struct jinja_value self, enum jinja_view_kind kind,
                struct jinja_value *out)
{
    struct jinja_view *v = jinja_alloc(r, sizeof *v);
    if (!v)
        return r->err->code;
    *v = (struct jinja_view){.kind = kind, .dict = self.dict};
    *out = (struct jinja_value){.type = JINJA_VIEW, .view = v};
    return 0;
}

METHOD(dict_keys)
{
    UNUSED_ARGS;
    return view(r, self, JINJA_KEYS, out);
}

METHOD(dict_values)
{
    UNUSED_ARGS;
    return view(r, self, JINJA_VALUES, out);
}

METHOD(dict_items)
{
    UNUSED_ARGS;
    return view(r, self, JINJA_ITEMS, out);
}

METHOD(dict_get)
{
    (void)args;
    JINJA_TRY(jinja_dict_get(r, self.dict, argv[0], out));
    if (out->type == JINJA_MISSING)
        *out = argv[1].type == JINJA_MISSING ? jinja_none() : argv[1];
    return 0;
}

METHOD(dict_copy)
{
    UNUSED_ARGS;
    JINJA_TRY(jinja_new_dict(r, JINJA_DICT, out));
    for (size_t i = 0; i < self.dict->n; i++)
        JINJA_TRY(
            jinja_dict_set(r, out->dict, self.dict->entries[i].key, self.dict->entries[i].value));
    return 0;
}

/* ---- list, tuple, range ---- */
METHOD(list_copy)
{
    UNUSED_ARGS;
    return jinja_to_list(r, self, out);
}

METHOD(seq_count)
{
    struct jinja_iter it;
    struct jinja_value v;
    int64_t n = 0;
    (void)args;
    JINJA_TRY(jinja_iter_open(r, &it, self));
    for (;;) {
        bool same;
        JINJA_TRY(jinja_iter_next(r, &it, &v));
        if (v.type == JINJA_MISSING)
            break;
        JINJA_TRY(jinja_equal(r, v, argv[0], &same));
        n += same;
    }
    *out = jinja_int(n);
    return 0;
}

METHOD(seq_index)
{
    struct jinja_iter it;
    struct jinja_value v;
    int64_t n, from = 0, to = INT64_MAX;
    (void)args;
    JINJA_TRY(jinja_length(r, self, &n));
    JINJA_TRY(jinja_arg_int(r, argv[1], "start", &from));
    JINJA_TRY(jinja_arg_int(r, argv[2], "stop", &to));
    from = from < 0 ? from + n : from;
    to = to < 0 ? to + n : to;
    JINJA_TRY(jinja_iter_open(r, &it, self));
    for (int64_t i = 0; i < n && i < to; i++) {
        bool same = false;
        JINJA_TRY(jinja_iter_next(r, &it, &v));
        if (i >= from)
            JINJA_TRY(jinja_equal(r, v, argv[0], &same));
        if (same) {
            *out = jinja_int(i);
            return 0;
        }
    }
    return jinja_fail(r, "the value is not in the %s", jinja_type_name(self));
}

/* ---- numbers ---- */
METHOD(int_bit_length)
{
    int64_t i = jinja_as_int(self), n = 0;
    (void)r;
    UNUSED_ARGS;
    for (uint64_t u = i < 0 ? 0 - (uint64_t)i : (uint64_t)i; u; u >>= 1)
        n++;
    *out = jinja_int(n);
    return 0;
}

METHOD(float_is_integer)
{
    (void)r;
    UNUSED_ARGS;
    *out = jinja_bool(self.f - self.f == 0 && (double)(long long)self.f == self.f);
    if (self.f >= 0x1p53 || self.f <= -0x1p53)
        *out = jinja_bool(self.f - self.f == 0);
    return 0;
}

/* ---- cycler ---- */
METHOD(cycler_next)
{
    (void)r;
    UNUSED_ARGS;
    *out = self.cycler->items->items[self.cycler->pos];
    self.cycler->pos = (self.cycler->pos + 1) % self.cycler->items->n;
    return 0;
}

METHOD(cycler_reset)
{
    (void)r;
    UNUSED_ARGS;
    self.cycler->pos = 0;
    *out = jinja_none();
    return 0;
}

static const struct jinja_row dict_methods[] = {
    {"get", dict_get, "key,default", 1}, {"items", dict_items, "", 0}, {"keys", dict_keys, "", 0},
    {"values", dict_values, "", 0},      {"copy", dict_copy, "", 0},   {NULL, NULL, NULL, 0},
};
static const struct jinja_row list_methods[] = {
    {"count", seq_count, "value", 1},
    {"index", seq_index, "value,start,stop", 1},
    {"copy", list_copy, "", 0},
    {NULL, NULL, NULL, 0},
};
static const struct jinja_row tuple_methods[] = {
    {"count", seq_count, "value", 1},
    {"index", seq_index, "value,start,stop", 1},
    {NULL, NULL, NULL, 0},
};
static const struct jinja_row int_methods[] = {
    {"bit_length", int_bit_length, "", 0},
    {NULL, NULL, NULL, 0},
};
static const struct jinja_row float_methods[] = {
    {"is_integer", float_is_integer, "", 0},
    {NULL, NULL, NULL, 0},
};
static const struct jinja_row cycler_methods[] = {
    {"next", cycler_next, "", 0},
    {"reset", cycler_reset, "", 0},
    {NULL, NULL, NULL, 0},
};

const struct jinja_row *jinja_find_method(enum jinja_type type, const char *name, size_t len)
{
    const struct jinja_row *const str_tables[] = {jinja_str_methods_find, jinja_str_methods_make,
                                                  jinja_str_methods_split};
    const struct jinja_row *row = NULL;
    switch (type) {
    case JINJA_STR:
        for (size_t i = 0; !row && i < sizeof str_tables / sizeof *str_tables; i++)
            row = jinja_find_row(str_tables[i], name, len);
        return row;
    case JINJA_DICT:
        return jinja_find_row(dict_methods, name, len);
    case JINJA_LIST:
        return jinja_find_row(list_methods, name, len);
    case JINJA_TUPLE:
    case JINJA_RANGE:
        return jinja_find_row(tuple_methods, name, len);
    case JINJA_BOOL:
    case JINJA_INT:
        return jinja_find_row(int_methods, name, len);
    case JINJA_FLOAT:
        return jinja_find_row(float_methods, name, len);
    case JINJA_CYCLER:
        return jinja_find_row(cycler_methods, name, len);
    default:
        return NULL;
    }
}

bool jinja_is_mutating(enum jinja_type type, const char *name, size_t len)
{
    static const char *const of_list[] = {"append", "clear",  "pop",    "reverse", "insert",
                                          "sort",   "extend", "remove", NULL};
    static const char *const of_dict[] = {"clear", "pop", "popitem", "setdefault", "update", NULL};
    const char *const *p = type == JINJA_LIST ? of_list : type == JINJA_DICT ? of_dict : NULL;
    for (; p && *p; p++)
        if (strlen(*p) == len && memcmp(*p, name, len) == 0)
            return true;
    return false;
}
