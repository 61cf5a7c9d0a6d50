/* Filters that give a lazy sequence (map, select, …), and the table of all filters. */
#include <string.h>

#include "libcore/text/jinja_impl.h"

#define FILTER(name)                                                                               \
    static int name(struct jinja_render *r, struct jinja_value self,                               \
                    const struct jinja_value *argv, const struct jinja_args *args,                 \
                    struct jinja_value *out)

static int empty(struct jinja_render *r, struct jinja_value *out)
{
    struct jinja_value list;
    struct jinja_iter *it;
    JINJA_TRY(jinja_new_list(r, JINJA_LIST, 0, &list));
    JINJA_TRY(jinja_new_iter(r, JINJA_ITER_PLAIN, list, &it));
    it->type_name = "generator";
    *out = jinja_of_iter(it);
    return 0;
}

/* The arguments without the first `n` positional ones, for the filter or test that is named there.
 */
static struct jinja_args rest(const struct jinja_args *args, size_t n)
{
    struct jinja_args a = *args;
    a.pos += n;
    a.n -= n;
    return a;
}

static int named_row(struct jinja_render *r, struct jinja_value name, bool filter,
                     const struct jinja_row **out)
{
    if (name.type != JINJA_STR)
        return jinja_fail(r, "the name of a %s must be str, not %s", filter ? "filter" : "test",
                          jinja_type_name(name));
    *out = filter ? jinja_find_filter(name.s->data, name.s->len)
                  : jinja_find_test(name.s->data, name.s->len);
    if (!*out)
        return jinja_fail(r, "no %s named '%.*s'", filter ? "filter" : "test", (int)name.s->len,
                          name.s->data);
    return 0;
}

static bool is(const struct jinja_str *s, const char *word)
{
    return strlen(word) == s->len && memcmp(s->data, word, s->len) == 0;
}

static int map_attribute(struct jinja_render *r, const struct jinja_args *args,
                         struct jinja_iter *it)
{
    for (size_t i = 0; i < args->n_kw; i++) {
        const struct jinja_str *name = args->kw[i].name;
        if (is(name, "attribute"))
            JINJA_TRY(jinja_path_parse(r, args->kw[i].value, &it->path));
        else if (is(name, "default"))
            it->fallback = args->kw[i].value;
        else
            return jinja_fail(r, "Unexpected keyword argument '%.*s'", (int)name->len, name->data);
    }
    return args->n_kw ? 0 : jinja_fail(r, "map requires a filter argument");
}

FILTER(map)
{
    struct jinja_iter *it;
    (void)argv;
    if (!jinja_truth(self))
        return empty(r, out);
    JINJA_TRY(jinja_new_iter(r, JINJA_ITER_MAP, self, &it));
    *out = jinja_of_iter(it);
    if (!args->n)
        return map_attribute(r, args, it);
    it->args = rest(args, 1);
    return named_row(r, args->pos[0], true, &it->row);
}

static int select_by(struct jinja_render *r, struct jinja_value self, const struct jinja_args *args,
                     bool attribute, bool negate, struct jinja_value *out)
{
    struct jinja_iter *it;
    if (!jinja_truth(self))
        return empty(r, out);
    JINJA_TRY(jinja_new_iter(r, JINJA_ITER_SELECT, self, &it));
    it->negate = negate;
    *out = jinja_of_iter(it);
    if (attribute && !args->n)
        return jinja_fail(r, "Missing parameter for attribute name");
    if (attribute)
        JINJA_TRY(jinja_path_parse(r, args->pos[0], &it->path));
    if (args->n <= attribute)
        return 0;
    it->args = rest(args, 1 + (size_t)attribute);
    return named_row(r, args->pos[attribute], false, &it->row);
}

FILTER(select_)
{
    (void)argv;
    return select_by(r, self, args, false, false, out);
}

FILTER(reject)
{
    (void)argv;
    return select_by(r, self, args, false, true, out);
}

FILTER(selectattr)
{
    (void)argv;
    return select_by(r, self, args, true, false, out);
}

FILTER(rejectattr)
{
    (void)argv;
    return select_by(r, self, args, true, true, out);
}

FILTER(unique)
{
    struct jinja_iter *it;
    struct jinja_value seen;
    (void)args;
    JINJA_TRY(jinja_new_iter(r, JINJA_ITER_UNIQUE, self, &it));
    JINJA_TRY(jinja_path_parse(r, argv[1], &it->path));
    JINJA_TRY(jinja_new_dict(r, JINJA_DICT, &seen));
    it->seen = seen.dict;
    it->fold = !jinja_truth(argv[0]);
    *out = jinja_of_iter(it);
    return 0;
}

FILTER(batch)
{
    struct jinja_iter *it;
    (void)args;
    JINJA_TRY(jinja_new_iter(r, JINJA_ITER_BATCH, self, &it));
    JINJA_TRY(jinja_arg_int(r, argv[0], "linecount", &it->count));
    it->fallback = argv[1];
    *out = jinja_of_iter(it);
    return 0;
}

FILTER(items)
{
    struct jinja_view *view;
    struct jinja_iter *it;
    (void)argv, (void)args;
    if (self.type == JINJA_UNDEFINED)
        return empty(r, out);
    if (self.type != JINJA_DICT)
        return jinja_fail(r, "Can only get item pairs from a mapping.");
    view = jinja_alloc(r, sizeof *view);
    if (!view)
        return r->err->code;
    *view = (struct jinja_view){.kind = JINJA_ITEMS, .dict = self.dict};
    struct jinja_value v = {.type = JINJA_VIEW, .view = view};
    JINJA_TRY(jinja_new_iter(r, JINJA_ITER_PLAIN, v, &it));
    it->type_name = "generator";
    *out = jinja_of_iter(it);
    return 0;
}

const struct jinja_row jinja_filters_lazy[] = {
    {"map", map, "*", 0},
    {"select", select_, "*", 0},
    {"reject", reject, "*", 0},
    {"selectattr", selectattr, "*", 0},
    {"rejectattr", rejectattr, "*", 0},
    {"unique", unique, "case_sensitive,attribute", 0},
    {"batch", batch, "linecount,fill_with", 1},
    {"items", items, "", 0},
    {NULL, NULL, NULL, 0},
};

/* Not here: random, pprint, urlize, striptags, wordwrap, xmlattr. */
const struct jinja_row *jinja_find_filter(const char *name, size_t len)
{
    const struct jinja_row *const tables[] = {jinja_filters_misc, jinja_filters_seq,
                                              jinja_filters_text, jinja_filters_lazy};
    const struct jinja_row *row = NULL;
    for (size_t i = 0; !row && i < sizeof tables / sizeof *tables; i++)
        row = jinja_find_row(tables[i], name, len);
    return row;
}
