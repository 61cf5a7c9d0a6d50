/* Calls: arguments of built-ins, and what may be called. */
#include <inttypes.h>
#include <string.h>

#include "libcore/text/jinja_syntax.h"

const struct jinja_row *jinja_find_row(const struct jinja_row *rows, const char *name, size_t len)
{
    for (; rows->name; rows++)
        if (strlen(rows->name) == len && memcmp(rows->name, name, len) == 0)
            return rows;
    return NULL;
}

/* Place of a parameter in "a,b,c", or -1. */
static int param_place(const char *params, const struct jinja_str *name)
{
    int place = 0;
    for (const char *p = params; *p; place++) {
        size_t n = strcspn(p, ",");
        if (n == name->len && memcmp(p, name->data, n) == 0)
            return place;
        p += n + (p[n] == ',');
    }
    return -1;
}

static size_t count_params(const char *params)
{
    size_t n = *params != '\0';
    for (; *params; params++)
        n += *params == ',';
    return n;
}

static int bind_args(struct jinja_render *r, const struct jinja_row *row,
                     const struct jinja_args *args, struct jinja_value *argv)
{
    size_t n = count_params(row->params);
    if (args->n > n)
        return jinja_fail(r, "%s() takes at most %zu arguments (%zu given)", row->name, n, args->n);
    for (size_t i = 0; i < JINJA_MAX_PARAMS; i++)
        argv[i] = i < args->n ? args->pos[i] : (struct jinja_value){.type = JINJA_MISSING};
    for (size_t i = 0; i < args->n_kw; i++) {
        const struct jinja_str *name = args->kw[i].name;
        int place = param_place(row->params, name);
        if (place < 0)
            return jinja_fail(r, "%s() got an unexpected keyword argument '%.*s'", row->name,
                              (int)name->len, name->data);
        if (argv[place].type != JINJA_MISSING)
            return jinja_fail(r, "%s() got multiple values for argument '%.*s'", row->name,
                              (int)name->len, name->data);
        argv[place] = args->kw[i].value;
    }
    for (size_t i = 0; i < row->required; i++)
        if (argv[i].type == JINJA_MISSING)
            return jinja_fail(r, "%s() wants at least %zu arguments", row->name, row->required);
    return 0;
}

int jinja_run_row(struct jinja_render *r, const struct jinja_row *row, struct jinja_value self,
                  const struct jinja_args *args, struct jinja_value *out)
{
    struct jinja_value argv[JINJA_MAX_PARAMS];
    JINJA_TRY(jinja_steps(r, 1));
    if (strcmp(row->params, "*") == 0)
        return row->run(r, self, NULL, args, out);
    JINJA_TRY(bind_args(r, row, args, argv));
    return row->run(r, self, argv, args, out);
}

int jinja_run_method(struct jinja_render *r, const struct jinja_row *row, struct jinja_value self,
                     const struct jinja_args *args, struct jinja_value *out)
{
    JINJA_TRY(jinja_run_row(r, row, self, args, out));
    if (self.type != JINJA_STR || !self.s->markup)
        return 0;
    if (out->type == JINJA_STR)
        return jinja_mark(r, *out, true, out);
    bool list = out->type == JINJA_LIST || out->type == JINJA_TUPLE;
    for (size_t i = 0; list && i < out->list->n; i++)
        JINJA_TRY(jinja_mark(r, out->list->items[i], true, &out->list->items[i]));
    return 0;
}

int jinja_arg_int(struct jinja_render *r, struct jinja_value v, const char *what, int64_t *out)
{
    if (v.type == JINJA_MISSING)
        return 0;
    if (v.type == JINJA_UNDEFINED)
        return jinja_fail_undefined(r, v);
    if (!jinja_is_integral(v))
        return jinja_fail(r, "%s: '%s' object cannot be interpreted as an integer", what,
                          jinja_type_name(v));
    *out = jinja_as_int(v);
    return 0;
}

int jinja_arg_str(struct jinja_render *r, struct jinja_value v, const char *what,
                  struct jinja_str **out)
{
    if (v.type == JINJA_MISSING)
        return 0;
    if (v.type != JINJA_STR)
        return jinja_fail(r, "%s: must be str, not %s", what, jinja_type_name(v));
    *out = v.s;
    return 0;
}

static int call_joiner(struct jinja_cycler *j, struct jinja_render *r, struct jinja_value *out)
{
    if (j->used) {
        *out = j->sep;
        return 0;
    }
    j->used = true;
    return jinja_borrow_str(r, "", 0, out);
}

/* loop(items): the body of a recursive loop once more. */
static int call_loop(struct jinja_render *r, struct jinja_loop *l, const struct jinja_args *args,
                     struct jinja_value *out)
{
    struct strbuf *sb = NULL, *saved = NULL;
    if (!l->node)
        return jinja_fail(r, "the loop must have the 'recursive' marker to be called recursively");
    if (args->n != 1 || args->n_kw)
        return jinja_fail(r, "loop() takes one argument");
    JINJA_TRY(jinja_capture_begin(r, &sb, &saved));
    int rc = jinja_run_for(r, l->outer, l->node, args->pos[0], l->depth0 + 1);
    return jinja_capture_end(r, sb, saved, rc, out);
}

static int call_value(struct jinja_render *r, struct jinja_value f, const struct jinja_args *args,
                      struct jinja_value *out)
{
    switch (f.type) {
    case JINJA_FUNC:
        return jinja_run_method(r, f.func->row, f.func->self, args, out);
    case JINJA_MACRO:
        return jinja_call_macro(r, f.macro, args, out);
    case JINJA_LOOP:
        return call_loop(r, f.loop, args, out);
    case JINJA_JOINER:
        return call_joiner(f.cycler, r, out);
    case JINJA_UNDEFINED:
        return jinja_fail_undefined(r, f);
    default:
        return jinja_fail(r, "'%s' object is not callable", jinja_type_name(f));
    }
}

int jinja_call_value(struct jinja_render *r, struct jinja_value f, const struct jinja_args *args,
                     struct jinja_value *out)
{
    bool deep = f.type == JINJA_MACRO || f.type == JINJA_LOOP;
    if (deep && r->call_depth >= LIMIT_TEMPLATE_DEPTH)
        return jinja_fail_code(r, ERR_LIMIT, "macros or loops call one another deeper than %d",
                               LIMIT_TEMPLATE_DEPTH);
    r->call_depth += deep;
    int rc = call_value(r, f, args, out);
    r->call_depth -= deep;
    return rc;
}
