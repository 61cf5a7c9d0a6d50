/* Functions that every template finds: range, dict, namespace, raise_exception, strftime_now, … */
#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "libcore/text/jinja_impl.h"

#define GLOBAL(name)                                                                               \
    static int name(struct jinja_render *r, struct jinja_value self,                               \
                    const struct jinja_value *argv, const struct jinja_args *args,                 \
                    struct jinja_value *out)

GLOBAL(range)
{
    struct jinja_range *g = jinja_alloc(r, sizeof *g);
    int64_t a = 0, b = 0, step = 1;
    (void)self, (void)args;
    if (!g)
        return r->err->code;
    bool one = argv[1].type == JINJA_MISSING;
    JINJA_TRY(jinja_arg_int(r, argv[0], "range", one ? &b : &a));
    JINJA_TRY(jinja_arg_int(r, argv[1], "range", &b));
    JINJA_TRY(jinja_arg_int(r, argv[2], "range", &step));
    if (step == 0)
        return jinja_fail(r, "range() arg 3 must not be zero");
    uint64_t span = step > 0 ? (b > a ? (uint64_t)b - (uint64_t)a : 0)
                             : (a > b ? (uint64_t)a - (uint64_t)b : 0);
    uint64_t width = step > 0 ? (uint64_t)step : 0 - (uint64_t)step;
    uint64_t n = span ? (span - 1) / width + 1 : 0;
    if (n > JINJA_MAX_RANGE)
        return jinja_fail(r, "Range too big. The sandbox blocks ranges larger than MAX_RANGE (%d).",
                          JINJA_MAX_RANGE);
    *g = (struct jinja_range){.start = a, .stop = b, .step = step, .n = (int64_t)n};
    *out = (struct jinja_value){.type = JINJA_RANGE, .range = g};
    return 0;
}

/* Key and value pairs, a dict, keywords: what dict() and namespace() take. */
static int fill_dict(struct jinja_render *r, const struct jinja_args *args, struct jinja_dict *d)
{
    struct jinja_value pairs;
    if (args->n > 1)
        return jinja_fail(r, "dict expected at most 1 argument, got %zu", args->n);
    if (args->n && args->pos[0].type == JINJA_UNDEFINED)
        return jinja_fail_undefined(r, args->pos[0]);
    if (args->n && args->pos[0].type == JINJA_DICT) {
        const struct jinja_dict *from = args->pos[0].dict;
        for (size_t i = 0; i < from->n; i++)
            JINJA_TRY(jinja_dict_set(r, d, from->entries[i].key, from->entries[i].value));
    } else if (args->n) {
        JINJA_TRY(jinja_to_list(r, args->pos[0], &pairs));
        for (size_t i = 0; i < pairs.list->n; i++) {
            struct jinja_value pair;
            JINJA_TRY(jinja_to_list(r, pairs.list->items[i], &pair));
            if (pair.list->n != 2)
                return jinja_fail(r,
                                  "dictionary update sequence element #%zu has length %zu; 2 is "
                                  "required",
                                  i, pair.list->n);
            JINJA_TRY(jinja_dict_set(r, d, pair.list->items[0], pair.list->items[1]));
        }
    }
    for (size_t i = 0; i < args->n_kw; i++)
        JINJA_TRY(jinja_dict_set(r, d, jinja_of_str(args->kw[i].name), args->kw[i].value));
    return 0;
}

GLOBAL(dict)
{
    (void)self, (void)argv;
    JINJA_TRY(jinja_new_dict(r, JINJA_DICT, out));
    return fill_dict(r, args, out->dict);
}

GLOBAL(namespace)
{
    (void)self, (void)argv;
    JINJA_TRY(jinja_new_dict(r, JINJA_NAMESPACE, out));
    return fill_dict(r, args, out->dict);
}

GLOBAL(cycler)
{
    struct jinja_value items;
    (void)self, (void)argv;
    if (!args->n)
        return jinja_fail(r, "at least one item has to be provided");
    struct jinja_cycler *c = jinja_alloc(r, sizeof *c);
    if (!c)
        return r->err->code;
    JINJA_TRY(jinja_new_list(r, JINJA_LIST, 0, &items));
    for (size_t i = 0; i < args->n; i++)
        JINJA_TRY(jinja_list_add(r, items.list, args->pos[i]));
    *c = (struct jinja_cycler){.items = items.list};
    *out = (struct jinja_value){.type = JINJA_CYCLER, .cycler = c};
    return 0;
}

GLOBAL(joiner)
{
    struct jinja_value sep = argv[0];
    (void)self, (void)args;
    struct jinja_cycler *c = jinja_alloc(r, sizeof *c);
    if (!c)
        return r->err->code;
    if (sep.type == JINJA_MISSING)
        JINJA_TRY(jinja_borrow_str(r, ", ", 2, &sep));
    *c = (struct jinja_cycler){.sep = sep};
    *out = (struct jinja_value){.type = JINJA_JOINER, .cycler = c};
    return 0;
}

/* The template's own refusal ("roles must alternate"). */
GLOBAL(raise_exception)
{
    struct jinja_value text;
    (void)self, (void)args, (void)out;
    JINJA_TRY(jinja_to_str(r, argv[0], &text));
    return jinja_fail(r, "%.*s", (int)(text.s->len < 400 ? text.s->len : 400), text.s->data);
}

GLOBAL(strftime_now)
{
    struct jinja_str *format = NULL;
    char fmt[256], text[1024];
    time_t now = (time_t)r->now_unix;
    struct tm tm;
    (void)self, (void)args;
    JINJA_TRY(jinja_arg_str(r, argv[0], "strftime_now", &format));
    if (!gmtime_r(&now, &tm))
        return jinja_fail(r, "the clock %" PRId64 " is out of range", r->now_unix);
    size_t n = 0;
    for (size_t i = 0; i < format->len; i++) {
        bool micro = format->data[i] == '%' && i + 1 < format->len && format->data[i + 1] == 'f';
        bool zone = format->data[i] == '%' && i + 1 < format->len &&
                    (format->data[i + 1] == 'z' || format->data[i + 1] == 'Z');
        bool pair = format->data[i] == '%' && i + 1 < format->len;
        if (n + 8 >= sizeof fmt || !format->data[i])
            return jinja_fail(r, "strftime_now: a format of more than %zu bytes", sizeof fmt);
        if (micro)
            n += (size_t)(stpcpy(fmt + n, "000000") - (fmt + n));
        else if (!zone)
            fmt[n++] = format->data[i];
        if (pair && !micro && !zone)
            fmt[n++] = format->data[i + 1];
        i += pair;
    }
    fmt[n] = '\0';
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    size_t len = n ? strftime(text, sizeof text, fmt, &tm) : 0;
#pragma GCC diagnostic pop
    return jinja_new_str(r, text, len, out);
}

static const struct jinja_row globals[] = {
    {"range", range, "start,stop,step", 1},
    {"dict", dict, "*", 0},
    {"namespace", namespace, "*", 0},
    {"cycler", cycler, "*", 0},
    {"joiner", joiner, "sep", 0},
    {"raise_exception", raise_exception, "message", 1},
    {"strftime_now", strftime_now, "format", 1},
    {NULL, NULL, NULL, 0},
};

int jinja_find_global(struct jinja_render *r, const char *name, size_t len, struct jinja_value *out)
{
    const struct jinja_row *row = jinja_find_row(globals, name, len);
    *out = (struct jinja_value){.type = JINJA_MISSING};
    if (!row)
        return 0;
    struct jinja_func *f = jinja_alloc(r, sizeof *f);
    if (!f)
        return r->err->code;
    *f = (struct jinja_func){.row = row};
    *out = (struct jinja_value){.type = JINJA_FUNC, .func = f};
    return 0;
}
