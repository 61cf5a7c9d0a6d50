/* Statements: output, scopes, loops, macros, captured blocks. */
#include <string.h>

#include "libcore/text/jinja_syntax.h"

/* ---- scopes ---- */
int jinja_enter_frame(struct jinja_render *r, const struct jinja_frame *f, struct jinja_env *env)
{
    for (size_t i = 0; i < f->n; i++) {
        const struct jinja_symbol *sym = &f->symbols[i];
        struct jinja_value *slot = &env->slots[i];
        if (sym->load == JINJA_LOAD_UNDEFINED) {
            *slot = (struct jinja_value){.type = JINJA_MISSING};
        } else if (sym->load == JINJA_LOAD_ALIAS) {
            const struct jinja_env *from = env;
            for (uint32_t h = 0; h < sym->hops; h++)
                from = from->parent;
            *slot = from->slots[sym->slot];
        } else if (sym->load == JINJA_LOAD_RESOLVE) {
            JINJA_TRY(jinja_dict_get(r, r->context, jinja_of_str(sym->name), slot));
            if (slot->type == JINJA_MISSING)
                JINJA_TRY(jinja_find_global(r, sym->name->data, sym->name->len, slot));
        }
    }
    return jinja_steps(r, f->n);
}

struct jinja_env *jinja_open_env(struct jinja_render *r, const struct jinja_frame *f,
                                 struct jinja_env *parent)
{
    struct jinja_env *env = jinja_alloc(r, sizeof *env + f->n * sizeof *env->slots);
    if (!env)
        return NULL;
    env->parent = parent;
    return jinja_enter_frame(r, f, env) ? NULL : env;
}

/* ---- captured output ---- */
int jinja_capture_begin(struct jinja_render *r, struct strbuf **sb, struct strbuf **saved)
{
    *sb = jinja_alloc(r, sizeof **sb);
    if (!*sb)
        return r->err->code;
    JINJA_TRY(jinja_enter(r));
    strbuf_init(*sb);
    (*sb)->max = LIMIT_TEMPLATE_OUTPUT_BYTES;
    *saved = r->out;
    r->out = *sb;
    return 0;
}

int jinja_capture_end(struct jinja_render *r, struct strbuf *sb, struct strbuf *saved, int rc,
                      struct jinja_value *out)
{
    r->out = saved;
    r->depth--;
    if (!rc)
        return jinja_take_strbuf(r, sb, out);
    strbuf_release(sb);
    return rc;
}

static int capture(struct jinja_render *r, struct jinja_env *env, const struct jinja_body *body,
                   enum jinja_flow *flow, struct jinja_value *out)
{
    struct strbuf *sb = NULL, *saved = NULL;
    JINJA_TRY(jinja_capture_begin(r, &sb, &saved));
    int rc = jinja_exec(r, env, body, flow);
    return jinja_capture_end(r, sb, saved, rc, out);
}

/* ---- output, assignment ---- */
static int print(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n)
{
    struct jinja_value v;
    JINJA_TRY(jinja_eval(r, env, n->a, &v));
    JINJA_TRY(jinja_to_str(r, v, &v));
    return jinja_emit(r, v.s->data, v.s->len);
}

/* A target with namespaces: they are checked before anything is computed. */
static int check_namespaces(struct jinja_render *r, struct jinja_env *env,
                            const struct jinja_node *target)
{
    for (size_t i = 0; i < target->body.n; i++)
        JINJA_TRY(check_namespaces(r, env, target->body.items[i]));
    if (target->type != NODE_NSREF)
        return 0;
    for (uint32_t i = 0; i < target->hops; i++)
        env = env->parent;
    if (env->slots[target->slot].type != JINJA_NAMESPACE)
        return jinja_fail(r, "cannot assign attribute on non-namespace object");
    return 0;
}

static int set(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n)
{
    struct jinja_value v;
    JINJA_TRY(check_namespaces(r, env, n->a));
    JINJA_TRY(jinja_eval(r, env, n->b, &v));
    r->line = n->line;
    return jinja_assign(r, env, n->a, v);
}

/* A chain of filters whose innermost operand is `text`. */
static int apply_filters(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
                         struct jinja_value text, struct jinja_value *out)
{
    struct jinja_value self = text;
    struct jinja_args args = {0};
    if (n->a) {
        JINJA_TRY(jinja_enter(r));
        JINJA_TRY(apply_filters(r, env, n->a, text, &self));
        r->depth--;
    }
    if (n->call)
        JINJA_TRY(jinja_eval_args(r, env, n->call, NULL, &args));
    r->line = n->line;
    if (!n->row)
        return jinja_fail(r, "no filter named '%.*s'", (int)n->name->len, n->name->data);
    return jinja_run_row(r, n->row, self, &args, out);
}

/* Block set and filter block: the body's text, through the filters if there are any. */
static int captured_block(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
                          enum jinja_flow *flow)
{
    struct jinja_value text;
    struct jinja_env *inner = jinja_open_env(r, n->block->frame, env);
    if (!inner)
        return r->err->code;
    JINJA_TRY(capture(r, inner, &n->body, flow, &text));
    if (*flow != JINJA_NEXT) // break or continue out of the block: its text is lost
        return 0;
    if (n->b)
        JINJA_TRY(apply_filters(r, inner, n->b, text, &text));
    r->line = n->line;
    if (n->type == NODE_SET_BLOCK)
        return jinja_assign(r, env, n->a, text);
    JINJA_TRY(jinja_to_str(r, text, &text));
    return jinja_emit(r, text.s->data, text.s->len);
}

static int with(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
                enum jinja_flow *flow)
{
    const struct jinja_body *pairs = &n->block->elifs;
    struct jinja_env *inner = jinja_open_env(r, n->block->frame, env);
    struct jinja_value v;
    if (!inner)
        return r->err->code;
    for (size_t i = 0; i < pairs->n; i += 2) {
        JINJA_TRY(jinja_eval(r, env, pairs->items[i + 1], &v));
        JINJA_TRY(jinja_assign(r, inner, pairs->items[i], v));
    }
    return jinja_exec(r, inner, &n->body, flow);
}

static int run_if(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
                  enum jinja_flow *flow)
{
    struct jinja_value test;
    JINJA_TRY(jinja_eval(r, env, n->a, &test));
    if (jinja_truth(test))
        return jinja_exec(r, env, &n->body, flow);
    for (size_t i = 0; i < n->block->elifs.n; i++) {
        const struct jinja_node *branch = n->block->elifs.items[i];
        JINJA_TRY(jinja_eval(r, env, branch->a, &test));
        if (jinja_truth(test))
            return jinja_exec(r, env, &branch->body, flow);
    }
    return jinja_exec(r, env, &n->block->else_body, flow);
}

/* ---- for ---- */
static int open_loop(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
                     struct jinja_value items, int64_t depth0, struct jinja_loop **out)
{
    struct jinja_loop *l = jinja_alloc(r, sizeof *l);
    if (!l)
        return r->err->code;
    *l = (struct jinja_loop){.source = items, .index0 = -1, .depth0 = depth0, .length = -1};
    l->node = n->block->recursive ? n : NULL;
    l->outer = env;
    JINJA_TRY(jinja_new_iter(r, n->c ? JINJA_ITER_LOOP_TEST : JINJA_ITER_PLAIN, items, &l->iter));
    l->iter->node = n;
    if (n->c) {
        l->iter->env = jinja_open_env(r, n->block->test_frame, env);
        if (!l->iter->env)
            return r->err->code;
    }
    *out = l;
    return 0;
}

static int run_else(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
                    enum jinja_flow *flow)
{
    struct jinja_env *inner = jinja_open_env(r, n->block->else_frame, env);
    return inner ? jinja_exec(r, inner, &n->block->else_body, flow) : r->err->code;
}

static int for_loop(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
                    struct jinja_value items, int64_t depth0, enum jinja_flow *outer_flow)
{
    struct jinja_loop *l = NULL;
    struct jinja_value item, loop;
    enum jinja_flow flow = JINJA_NEXT;
    bool completed = false; // a body that ran to its end: a break does not count, as in jinja2
    JINJA_TRY(open_loop(r, env, n, items, depth0, &l));
    loop = (struct jinja_value){.type = JINJA_LOOP, .loop = l};
    struct jinja_env *inner =
        jinja_alloc(r, sizeof *inner + n->block->frame->n * sizeof *inner->slots);
    if (!inner)
        return r->err->code;
    inner->parent = env;
    while (flow != JINJA_BREAK) {
        JINJA_TRY(jinja_loop_next(r, l, &item));
        if (item.type == JINJA_MISSING)
            break;
        JINJA_TRY(jinja_assign(r, inner, n->a, item));
        inner->slots[n->block->loop_slot] = loop;
        JINJA_TRY(jinja_enter_frame(r, n->block->frame, inner));
        JINJA_TRY(jinja_exec(r, inner, &n->body, &flow));
        completed |= flow == JINJA_NEXT;
    }
    if (completed || !n->block->else_body.n)
        return 0;
    return run_else(r, env, n, outer_flow);
}

int jinja_run_for(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
                  struct jinja_value items, int64_t depth0)
{
    enum jinja_flow flow = JINJA_NEXT;
    return for_loop(r, env, n, items, depth0, &flow);
}

static int run_for(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
                   enum jinja_flow *flow)
{
    struct jinja_value items;
    JINJA_TRY(jinja_eval(r, env, n->b, &items));
    r->line = n->line;
    return for_loop(r, env, n, items, 0, flow);
}

/* ---- macros ---- */
static int new_macro(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
                     struct jinja_value *out)
{
    struct jinja_macro *m = jinja_alloc(r, sizeof *m);
    if (!m)
        return r->err->code;
    *m = (struct jinja_macro){.node = n, .env = env};
    *out = (struct jinja_value){.type = JINJA_MACRO, .macro = m};
    return 0;
}

static bool is_name(const struct jinja_str *a, const struct jinja_str *b)
{
    return a->len == b->len && memcmp(a->data, b->data, a->len) == 0;
}

/* Parameter i from the keywords; its place in `used` is marked. */
static struct jinja_value from_keywords(const struct jinja_args *args, const struct jinja_str *name,
                                        bool *used)
{
    for (size_t i = 0; i < args->n_kw; i++)
        if (is_name(args->kw[i].name, name)) {
            used[i] = true;
            return args->kw[i].value;
        }
    return (struct jinja_value){.type = JINJA_MISSING};
}

static int bind_params(struct jinja_render *r, const struct jinja_node *n, struct jinja_env *env,
                       const struct jinja_args *args, bool *used)
{
    const struct jinja_body *params = &n->call->body, *defaults = &n->call->defaults;
    for (size_t i = 0; i < params->n; i++) {
        const struct jinja_node *p = params->items[i];
        env->slots[p->slot] = i < args->n ? args->pos[i] : from_keywords(args, p->name, used);
    }
    // defaults may read the parameters before them
    for (size_t i = 0; i < params->n; i++) {
        const struct jinja_node *p = params->items[i];
        size_t first = params->n - defaults->n;
        if (env->slots[p->slot].type != JINJA_MISSING)
            continue;
        if (i >= first)
            JINJA_TRY(jinja_eval(r, env, defaults->items[i - first], &env->slots[p->slot]));
        else
            JINJA_TRY(jinja_new_undefined(r, &env->slots[p->slot],
                                          "parameter '%.*s' was not provided", (int)p->name->len,
                                          p->name->data));
    }
    return 0;
}

static int bind_caller(struct jinja_render *r, const struct jinja_node *n, struct jinja_env *env,
                       const struct jinja_args *args, bool *used)
{
    static const struct jinja_str name = {.data = "caller", .len = 6, .n_chars = 6};
    if (n->block->caller_slot == JINJA_NO_SLOT)
        return 0;
    struct jinja_value *slot = &env->slots[n->block->caller_slot];
    *slot = from_keywords(args, &name, used);
    if (slot->type == JINJA_MISSING)
        return jinja_new_undefined(r, slot, "No caller defined");
    return 0;
}

/* varargs and kwargs, or an error for what nobody takes. */
static int bind_rest(struct jinja_render *r, const struct jinja_node *n, struct jinja_env *env,
                     const struct jinja_args *args, const bool *used)
{
    const struct jinja_block *b = n->block;
    size_t n_params = n->call->body.n;
    struct jinja_value dict, tuple;
    JINJA_TRY(jinja_new_dict(r, JINJA_DICT, &dict));
    for (size_t i = 0; i < args->n_kw; i++) {
        const struct jinja_str *name = args->kw[i].name;
        if (used[i])
            continue;
        if (b->kwargs_slot == JINJA_NO_SLOT)
            return jinja_fail(r, "macro takes no keyword argument '%.*s'", (int)name->len,
                              name->data);
        JINJA_TRY(jinja_dict_set(r, dict.dict, jinja_of_str(name), args->kw[i].value));
    }
    if (b->kwargs_slot != JINJA_NO_SLOT)
        env->slots[b->kwargs_slot] = dict;
    if (args->n > n_params && b->varargs_slot == JINJA_NO_SLOT)
        return jinja_fail(r, "macro takes not more than %zu argument(s)", n_params);
    if (b->varargs_slot == JINJA_NO_SLOT)
        return 0;
    JINJA_TRY(jinja_new_list(r, JINJA_TUPLE, 0, &tuple));
    for (size_t i = n_params; i < args->n; i++)
        JINJA_TRY(jinja_list_add(r, tuple.list, args->pos[i]));
    env->slots[b->varargs_slot] = tuple;
    return 0;
}

int jinja_call_macro(struct jinja_render *r, struct jinja_macro *m, const struct jinja_args *args,
                     struct jinja_value *out)
{
    const struct jinja_node *n = m->node;
    struct jinja_env *env = jinja_open_env(r, n->block->frame, m->env);
    bool *used = jinja_alloc(r, args->n_kw * sizeof *used);
    if (!env || !used)
        return r->err->code;
    JINJA_TRY(bind_params(r, n, env, args, used));
    JINJA_TRY(bind_caller(r, n, env, args, used));
    JINJA_TRY(bind_rest(r, n, env, args, used));
    enum jinja_flow flow;
    return capture(r, env, &n->body, &flow, out);
}

static int call_block(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n)
{
    struct jinja_value caller, f, text;
    struct jinja_args args = {0};
    JINJA_TRY(new_macro(r, env, n, &caller));
    if (!n->b) {
        JINJA_TRY(jinja_call_value(r, caller, &args, &text));
    } else {
        JINJA_TRY(jinja_eval(r, env, n->b->a, &f));
        JINJA_TRY(jinja_eval_args(r, env, n->b->call, &caller, &args));
        r->line = n->line;
        JINJA_TRY(jinja_call_value(r, f, &args, &text));
    }
    JINJA_TRY(jinja_to_str(r, text, &text));
    return jinja_emit(r, text.s->data, text.s->len);
}

static int define_macro(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n)
{
    struct jinja_value macro;
    JINJA_TRY(new_macro(r, env, n, &macro));
    return jinja_assign(r, env, n->a, macro);
}

static int statement(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
                     enum jinja_flow *flow)
{
    switch (n->type) {
    case NODE_DATA:
        return jinja_emit(r, n->value.s->data, n->value.s->len);
    case NODE_PRINT:
        return print(r, env, n);
    case NODE_FOR:
        return run_for(r, env, n, flow);
    case NODE_IF:
        return run_if(r, env, n, flow);
    case NODE_SET:
        return set(r, env, n);
    case NODE_SET_BLOCK:
    case NODE_FILTER_BLOCK:
        return captured_block(r, env, n, flow);
    case NODE_MACRO:
        return define_macro(r, env, n);
    case NODE_CALL_BLOCK:
        return call_block(r, env, n);
    case NODE_WITH:
        return with(r, env, n, flow);
    case NODE_BREAK:
    case NODE_CONTINUE:
        *flow = n->type == NODE_BREAK ? JINJA_BREAK : JINJA_CONTINUE;
        return 0;
    default:
        return jinja_fail_code(r, ERR_INTERNAL, "no statement (%d)", (int)n->type);
    }
}

int jinja_exec(struct jinja_render *r, struct jinja_env *env, const struct jinja_body *body,
               enum jinja_flow *flow)
{
    *flow = JINJA_NEXT;
    JINJA_TRY(jinja_enter(r));
    for (size_t i = 0; *flow == JINJA_NEXT && i < body->n; i++) {
        r->line = body->items[i]->line;
        JINJA_TRY(statement(r, env, body->items[i], flow));
    }
    r->depth--;
    return 0;
}
