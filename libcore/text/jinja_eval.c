/* Expressions. */
#include <string.h>

#include "libcore/text/jinja_syntax.h"

static struct jinja_value *slot_of(struct jinja_env *env, const struct jinja_node *n)
{
    for (uint32_t i = 0; i < n->hops; i++)
        env = env->parent;
    return &env->slots[n->slot];
}

static int eval_name(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
                     struct jinja_value *out)
{
    *out = *slot_of(env, n);
    if (out->type != JINJA_MISSING)
        return 0;
    return jinja_new_undefined(r, out, "'%.*s' is undefined", (int)n->name->len, n->name->data);
}

/* ---- assignment ---- */
static int assign_tuple(struct jinja_render *r, struct jinja_env *env, const struct jinja_body *b,
                        struct jinja_value v)
{
    struct jinja_value list;
    if (!jinja_is_iterable(v))
        return jinja_fail(r, "cannot unpack non-iterable %s object", jinja_type_name(v));
    list = v;
    if (v.type != JINJA_LIST && v.type != JINJA_TUPLE)
        JINJA_TRY(jinja_to_list(r, v, &list));
    if (list.list->n != b->n)
        return jinja_fail(r, "cannot unpack %zu values into %zu names", list.list->n, b->n);
    for (size_t i = 0; i < b->n; i++)
        JINJA_TRY(jinja_assign(r, env, b->items[i], list.list->items[i]));
    return 0;
}

int jinja_assign(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *target,
                 struct jinja_value v)
{
    if (target->type == NODE_TUPLE)
        return assign_tuple(r, env, &target->body, v);
    struct jinja_value *slot = slot_of(env, target);
    if (target->type == NODE_NAME) {
        *slot = v;
        return 0;
    }
    if (slot->type != JINJA_NAMESPACE)
        return jinja_fail(r, "cannot assign attribute on non-namespace object");
    return jinja_dict_set(r, slot->dict, jinja_of_str(target->attr), v);
}

/* ---- literals ---- */
static int eval_list(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
                     struct jinja_value *out)
{
    struct jinja_value list;
    JINJA_TRY(
        jinja_new_list(r, n->type == NODE_TUPLE ? JINJA_TUPLE : JINJA_LIST, n->body.n, &list));
    for (size_t i = 0; i < n->body.n; i++) {
        JINJA_TRY(jinja_eval(r, env, n->body.items[i], &list.list->items[i]));
        list.list->n++;
    }
    *out = list;
    return 0;
}

static int eval_dict(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
                     struct jinja_value *out)
{
    struct jinja_value dict, key, value;
    JINJA_TRY(jinja_new_dict(r, JINJA_DICT, &dict));
    for (size_t i = 0; i < n->body.n; i += 2) {
        JINJA_TRY(jinja_eval(r, env, n->body.items[i], &key));
        JINJA_TRY(jinja_eval(r, env, n->body.items[i + 1], &value));
        JINJA_TRY(jinja_dict_set(r, dict.dict, key, value));
    }
    *out = dict;
    return 0;
}

/* ---- operators ---- */
static int eval_concat(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
                       struct jinja_value *out)
{
    struct jinja_value text, v;
    JINJA_TRY(jinja_borrow_str(r, "", 0, &text));
    for (size_t i = 0; i < n->body.n; i++) {
        JINJA_TRY(jinja_eval(r, env, n->body.items[i], &v));
        JINJA_TRY(jinja_to_str(r, v, &v));
        JINJA_TRY(jinja_mark(r, v, false, &v));
        JINJA_TRY(jinja_join2(r, text.s, v.s, &text));
    }
    *out = text;
    return 0;
}

static int eval_compare(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
                        struct jinja_value *out)
{
    struct jinja_value left, right;
    bool truth = true;
    JINJA_TRY(jinja_eval(r, env, n->a, &left));
    for (size_t i = 0; truth && i < n->body.n; i++) {
        const struct jinja_node *operand = n->body.items[i];
        JINJA_TRY(jinja_eval(r, env, operand->a, &right));
        r->line = n->line;
        JINJA_TRY(jinja_relation(r, operand->op, left, right, &truth));
        left = right;
    }
    *out = jinja_bool(truth);
    return 0;
}

static int eval_cond(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
                     struct jinja_value *out)
{
    struct jinja_value test;
    JINJA_TRY(jinja_eval(r, env, n->b, &test));
    if (jinja_truth(test))
        return jinja_eval(r, env, n->a, out);
    if (n->c)
        return jinja_eval(r, env, n->c, out);
    return jinja_new_undefined(r, out,
                               "the inline if-expression on line %u evaluated to false and no else "
                               "section was defined.",
                               n->line);
}

static int eval_logic(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
                      struct jinja_value *out)
{
    JINJA_TRY(jinja_eval(r, env, n->a, out));
    if (jinja_truth(*out) != (n->type == NODE_AND))
        return 0;
    return jinja_eval(r, env, n->b, out);
}

static int eval_binary(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
                       struct jinja_value *out)
{
    struct jinja_value a, b;
    JINJA_TRY(jinja_eval(r, env, n->a, &a));
    JINJA_TRY(jinja_eval(r, env, n->b, &b));
    r->line = n->line;
    return jinja_binary(r, n->op, a, b, out);
}

static int eval_unary(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
                      struct jinja_value *out)
{
    struct jinja_value a;
    JINJA_TRY(jinja_eval(r, env, n->a, &a));
    if (n->type == NODE_NOT) {
        *out = jinja_bool(!jinja_truth(a));
        return 0;
    }
    return jinja_negate(r, a, n->type == NODE_NEG, out);
}

/* ---- items, calls ---- */
static int eval_slice(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
                      struct jinja_value v, struct jinja_value *out)
{
    const struct jinja_node *parts[3] = {n->a, n->b, n->c};
    struct jinja_value bounds[3];
    for (size_t i = 0; i < 3; i++) {
        bounds[i] = (struct jinja_value){.type = JINJA_MISSING};
        if (parts[i])
            JINJA_TRY(jinja_eval(r, env, parts[i], &bounds[i]));
    }
    r->line = n->line;
    return jinja_slice(r, v, bounds, out);
}

static int eval_item(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
                     struct jinja_value *out)
{
    struct jinja_value v, key;
    JINJA_TRY(jinja_eval(r, env, n->a, &v));
    if (n->b->type == NODE_SLICE)
        return eval_slice(r, env, n->b, v, out);
    JINJA_TRY(jinja_eval(r, env, n->b, &key));
    r->line = n->line;
    return jinja_getitem(r, v, key, out);
}

static int eval_attr(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
                     struct jinja_value *out)
{
    struct jinja_value v;
    JINJA_TRY(jinja_eval(r, env, n->a, &v));
    r->line = n->line;
    return jinja_getattr(r, v, n->name, out);
}

static int add_positional(struct jinja_render *r, struct jinja_env *env,
                          const struct jinja_call *call, struct jinja_args *out)
{
    struct jinja_value list, item, star;
    JINJA_TRY(jinja_new_list(r, JINJA_LIST, call->body.n, &list));
    for (size_t i = 0; i < call->body.n; i++) {
        JINJA_TRY(jinja_eval(r, env, call->body.items[i], &item));
        JINJA_TRY(jinja_list_add(r, list.list, item));
    }
    if (call->star) {
        JINJA_TRY(jinja_eval(r, env, call->star, &star));
        JINJA_TRY(jinja_to_list(r, star, &star));
        for (size_t i = 0; i < star.list->n; i++)
            JINJA_TRY(jinja_list_add(r, list.list, star.list->items[i]));
    }
    out->pos = list.list->items;
    out->n = list.list->n;
    return 0;
}

static int add_kwarg(struct jinja_render *r, struct jinja_kwarg *kw, struct jinja_args *out,
                     const struct jinja_str *name, struct jinja_value v)
{
    for (size_t i = 0; i < out->n_kw; i++)
        if (kw[i].name->len == name->len && memcmp(kw[i].name->data, name->data, name->len) == 0)
            return jinja_fail(r, "got multiple values for keyword argument '%.*s'", (int)name->len,
                              name->data);
    kw[out->n_kw++] = (struct jinja_kwarg){.name = name, .value = v};
    return jinja_steps(r, out->n_kw);
}

static int add_named(struct jinja_render *r, struct jinja_env *env, const struct jinja_call *call,
                     const struct jinja_value *caller, struct jinja_args *out)
{
    static const struct jinja_str caller_name = {.data = "caller", .len = 6, .n_chars = 6};
    struct jinja_value v, dict = {.type = JINJA_MISSING};
    if (call->star_star) {
        JINJA_TRY(jinja_eval(r, env, call->star_star, &dict));
        if (dict.type != JINJA_DICT)
            return jinja_fail(r, "argument after ** must be a mapping, not %s",
                              jinja_type_name(dict));
    }
    size_t n = call->n_named + (caller != NULL) + (call->star_star ? dict.dict->n : 0);
    struct jinja_kwarg *kw = jinja_alloc(r, n * sizeof *kw);
    if (!kw)
        return r->err->code;
    out->kw = kw;
    for (size_t i = 0; i < call->n_named; i++) {
        JINJA_TRY(jinja_eval(r, env, call->named[i].value, &v));
        JINJA_TRY(add_kwarg(r, kw, out, call->named[i].name, v));
    }
    for (size_t i = 0; call->star_star && i < dict.dict->n; i++) {
        if (dict.dict->entries[i].key.type != JINJA_STR)
            return jinja_fail(r, "keywords must be strings");
        JINJA_TRY(add_kwarg(r, kw, out, dict.dict->entries[i].key.s, dict.dict->entries[i].value));
    }
    return caller ? add_kwarg(r, kw, out, &caller_name, *caller) : 0;
}

int jinja_eval_args(struct jinja_render *r, struct jinja_env *env, const struct jinja_call *call,
                    const struct jinja_value *caller, struct jinja_args *out)
{
    *out = (struct jinja_args){0};
    if (call->body.n || call->star)
        JINJA_TRY(add_positional(r, env, call, out));
    if (call->n_named || call->star_star || caller)
        JINJA_TRY(add_named(r, env, call, caller, out));
    return 0;
}

static int eval_call(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
                     struct jinja_value *out)
{
    struct jinja_value f;
    struct jinja_args args;
    JINJA_TRY(jinja_eval(r, env, n->a, &f));
    JINJA_TRY(jinja_eval_args(r, env, n->call, NULL, &args));
    r->line = n->line;
    return jinja_call_value(r, f, &args, out);
}

/* Filters and tests. */
static int eval_row(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
                    struct jinja_value *out)
{
    struct jinja_value self;
    struct jinja_args args = {0};
    JINJA_TRY(jinja_eval(r, env, n->a, &self));
    if (n->call)
        JINJA_TRY(jinja_eval_args(r, env, n->call, NULL, &args));
    r->line = n->line;
    if (!n->row)
        return jinja_fail(r, "no %s named '%.*s'", n->type == NODE_FILTER ? "filter" : "test",
                          (int)n->name->len, n->name->data);
    return jinja_run_row(r, n->row, self, &args, out);
}

static int eval(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
                struct jinja_value *out)
{
    switch (n->type) {
    case NODE_CONST:
        *out = n->value;
        return 0;
    case NODE_NAME:
        return eval_name(r, env, n, out);
    case NODE_TUPLE:
    case NODE_LIST:
        return eval_list(r, env, n, out);
    case NODE_DICT:
        return eval_dict(r, env, n, out);
    case NODE_COND:
        return eval_cond(r, env, n, out);
    case NODE_AND:
    case NODE_OR:
        return eval_logic(r, env, n, out);
    case NODE_NOT:
    case NODE_NEG:
    case NODE_POS:
        return eval_unary(r, env, n, out);
    case NODE_BINARY:
        return eval_binary(r, env, n, out);
    case NODE_CONCAT:
        return eval_concat(r, env, n, out);
    case NODE_COMPARE:
        return eval_compare(r, env, n, out);
    case NODE_ATTR:
        return eval_attr(r, env, n, out);
    case NODE_ITEM:
        return eval_item(r, env, n, out);
    case NODE_CALL:
        return eval_call(r, env, n, out);
    case NODE_FILTER:
    case NODE_TEST:
        return eval_row(r, env, n, out);
    default:
        return jinja_fail_code(r, ERR_INTERNAL, "no expression (%d)", (int)n->type);
    }
}

int jinja_eval(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
               struct jinja_value *out)
{
    JINJA_TRY(jinja_enter(r));
    r->line = n->line;
    int rc = eval(r, env, n, out);
    r->depth--;
    return rc;
}
