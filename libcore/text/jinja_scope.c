/*
 * Scopes as jinja2's idtracking finds them. A scope (template, loop, macro, block) knows all names
 * that its statements read or set before it runs, and where each gets its first value: from the
 * context, from the scope around it, or nowhere. `if` has no scope of its own.
 */
#include <string.h>

#include "libcore/text/jinja_syntax.h"

/* Names of one scope; they are searched in line. */
enum { MAX_NAMES = 1000 };

struct scoper {
    struct jinja_template *t;
    struct err *err;
    unsigned loops; // for statements around
};

static int visit(struct scoper *s, struct jinja_frame *f, struct jinja_node *n);
static int bind(struct scoper *s, struct jinja_frame *f, struct jinja_node *n);

static int memory(struct scoper *s)
{
    return err_set(s->err, ERR_NO_MEMORY, "%s: out of memory", s->t->name);
}

static bool same(const struct jinja_str *a, const struct jinja_str *b)
{
    return a->len == b->len && memcmp(a->data, b->data, a->len) == 0;
}

static bool is_word(const struct jinja_str *a, const char *word)
{
    return strlen(word) == a->len && memcmp(a->data, word, a->len) == 0;
}

static struct jinja_symbol *find_here(struct jinja_frame *f, const struct jinja_str *name)
{
    for (size_t i = 0; i < f->n; i++)
        if (same(f->symbols[i].name, name))
            return &f->symbols[i];
    return NULL;
}

/* The nearest scope that has the name, from f outward. */
static bool find_ref(struct jinja_frame *f, const struct jinja_str *name, uint32_t *hops,
                     uint32_t *slot)
{
    *hops = 0;
    for (; f; f = f->parent, (*hops)++) {
        const struct jinja_symbol *sym = find_here(f, name);
        if (sym) {
            *slot = (uint32_t)(sym - f->symbols);
            return true;
        }
    }
    return false;
}

static int define(struct scoper *s, struct jinja_frame *f, const struct jinja_str *name,
                  struct jinja_symbol **out)
{
    if (f->n == MAX_NAMES)
        return err_set(s->err, ERR_LIMIT, "%s: more than %d names in one scope", s->t->name,
                       MAX_NAMES);
    if (f->n == f->cap) {
        size_t cap = f->cap ? 2 * f->cap : 8;
        struct jinja_symbol *symbols = arena_array(&s->t->arena, cap, sizeof *symbols);
        if (!symbols)
            return memory(s);
        if (f->n)
            memcpy(symbols, f->symbols, f->n * sizeof *symbols);
        f->symbols = symbols;
        f->cap = cap;
    }
    *out = &f->symbols[f->n++];
    (*out)->name = name;
    return 0;
}

/* First value of a name that is set here: what the scope around has, if it has any. */
static void load_from_outside(struct jinja_frame *f, struct jinja_symbol *sym,
                              enum jinja_load other)
{
    sym->load = other;
    if (f->parent && find_ref(f->parent, sym->name, &sym->hops, &sym->slot)) {
        sym->load = JINJA_LOAD_ALIAS;
        sym->hops++;
    }
}

static int store(struct scoper *s, struct jinja_frame *f, const struct jinja_str *name)
{
    struct jinja_symbol *sym = find_here(f, name);
    if (!sym) {
        JINJA_TRY(define(s, f, name, &sym));
        load_from_outside(f, sym, JINJA_LOAD_UNDEFINED);
    }
    sym->stored = true;
    return 0;
}

static int load(struct scoper *s, struct jinja_frame *f, const struct jinja_str *name)
{
    struct jinja_symbol *sym;
    uint32_t hops, slot;
    if (find_ref(f, name, &hops, &slot))
        return 0;
    JINJA_TRY(define(s, f, name, &sym));
    sym->load = JINJA_LOAD_RESOLVE;
    return 0;
}

static int declare_param(struct scoper *s, struct jinja_frame *f, const struct jinja_str *name)
{
    struct jinja_symbol *sym = find_here(f, name);
    if (!sym)
        JINJA_TRY(define(s, f, name, &sym));
    sym->load = JINJA_LOAD_PARAM;
    sym->stored = true;
    return 0;
}

/* ---- first walk: which names a scope has. It stops at inner scopes. ---- */
static int visit_body(struct scoper *s, struct jinja_frame *f, const struct jinja_body *b)
{
    for (size_t i = 0; i < b->n; i++)
        JINJA_TRY(visit(s, f, b->items[i]));
    return 0;
}

static int visit_call(struct scoper *s, struct jinja_frame *f, const struct jinja_call *c)
{
    if (!c)
        return 0;
    JINJA_TRY(visit_body(s, f, &c->body));
    for (size_t i = 0; i < c->n_named; i++)
        JINJA_TRY(visit(s, f, c->named[i].value));
    JINJA_TRY(visit(s, f, c->star));
    return visit(s, f, c->star_star);
}

/* Targets of set, for, with, and names of macros. */
static int visit_target(struct scoper *s, struct jinja_frame *f, struct jinja_node *n, bool param)
{
    for (size_t i = 0; i < n->body.n; i++)
        JINJA_TRY(visit_target(s, f, n->body.items[i], param));
    if (n->type == NODE_NSREF)
        return load(s, f, n->name);
    if (n->type != NODE_NAME)
        return 0;
    if (s->loops && !param && is_word(n->name, "loop"))
        return err_set(s->err, ERR_CORRUPT, "%s:%u: cannot assign to the special variable 'loop'",
                       s->t->name, n->line);
    return param ? declare_param(s, f, n->name) : store(s, f, n->name);
}

/* What only some branches set comes from outside when they do not run. */
static int visit_if(struct scoper *s, struct jinja_frame *f, struct jinja_node *n)
{
    JINJA_TRY(visit(s, f, n->a));
    size_t n_before = f->n;
    bool *stored = arena_array(&s->t->arena, n_before + 1, sizeof *stored);
    if (!stored)
        return memory(s);
    for (size_t i = 0; i < n_before; i++)
        stored[i] = f->symbols[i].stored;
    JINJA_TRY(visit_body(s, f, &n->body));
    JINJA_TRY(visit_body(s, f, &n->block->elifs));
    JINJA_TRY(visit_body(s, f, &n->block->else_body));
    for (size_t i = 0; i < f->n; i++)
        if (f->symbols[i].stored && !(i < n_before && stored[i]))
            load_from_outside(f, &f->symbols[i], JINJA_LOAD_RESOLVE);
    return 0;
}

static int visit_statement(struct scoper *s, struct jinja_frame *f, struct jinja_node *n)
{
    switch (n->type) {
    case NODE_IF:
        return visit_if(s, f, n);
    case NODE_SET:
        JINJA_TRY(visit(s, f, n->b));
        return visit_target(s, f, n->a, false);
    case NODE_SET_BLOCK:
        return visit_target(s, f, n->a, false);
    case NODE_MACRO:
        return store(s, f, n->a->name);
    case NODE_WITH:
        for (size_t i = 1; i < n->block->elifs.n; i += 2)
            JINJA_TRY(visit(s, f, n->block->elifs.items[i]));
        return 0;
    default: // for, call and filter blocks: what they walk over or call
        return visit(s, f, n->b);
    }
}

static int visit(struct scoper *s, struct jinja_frame *f, struct jinja_node *n)
{
    if (!n)
        return 0;
    if (n->block)
        return visit_statement(s, f, n);
    if (n->type == NODE_NAME)
        return load(s, f, n->name);
    JINJA_TRY(visit(s, f, n->a));
    JINJA_TRY(visit(s, f, n->b));
    JINJA_TRY(visit(s, f, n->c));
    JINJA_TRY(visit_body(s, f, &n->body));
    return visit_call(s, f, n->call);
}

/* ---- second walk: a slot for every name, and the inner scopes ---- */
static int bind_body(struct scoper *s, struct jinja_frame *f, const struct jinja_body *b)
{
    for (size_t i = 0; i < b->n; i++)
        JINJA_TRY(bind(s, f, b->items[i]));
    return 0;
}

static int bind_call(struct scoper *s, struct jinja_frame *f, const struct jinja_call *c)
{
    if (!c)
        return 0;
    JINJA_TRY(bind_body(s, f, &c->body));
    JINJA_TRY(bind_body(s, f, &c->defaults));
    for (size_t i = 0; i < c->n_named; i++)
        JINJA_TRY(bind(s, f, c->named[i].value));
    JINJA_TRY(bind(s, f, c->star));
    return bind(s, f, c->star_star);
}

static int new_frame(struct scoper *s, struct jinja_frame *parent, struct jinja_frame **out)
{
    *out = arena_alloc(&s->t->arena, sizeof **out);
    if (!*out)
        return memory(s);
    (*out)->parent = parent;
    return 0;
}

static uint32_t slot_of(struct jinja_frame *f, const struct jinja_str *name)
{
    return (uint32_t)(find_here(f, name) - f->symbols);
}

static bool targets_loop(const struct jinja_node *n)
{
    for (size_t i = 0; i < n->body.n; i++)
        if (targets_loop(n->body.items[i]))
            return true;
    return n->type == NODE_NAME && is_word(n->name, "loop");
}

static int bind_for(struct scoper *s, struct jinja_frame *f, struct jinja_node *n)
{
    static const struct jinja_str loop_name = {.data = "loop", .len = 4, .n_chars = 4};
    struct jinja_block *b = n->block;
    if (targets_loop(n->a))
        return err_set(s->err, ERR_CORRUPT, "%s:%u: cannot assign to the special variable 'loop'",
                       s->t->name, n->line);
    s->loops++;
    JINJA_TRY(bind(s, f, n->b));
    JINJA_TRY(new_frame(s, f, &b->frame));
    JINJA_TRY(declare_param(s, b->frame, &loop_name));
    b->loop_slot = slot_of(b->frame, &loop_name);
    JINJA_TRY(visit_target(s, b->frame, n->a, true));
    JINJA_TRY(visit_body(s, b->frame, &n->body));
    JINJA_TRY(bind(s, b->frame, n->a));
    JINJA_TRY(bind_body(s, b->frame, &n->body));
    if (n->c) {
        JINJA_TRY(new_frame(s, f, &b->test_frame));
        JINJA_TRY(visit_target(s, b->test_frame, b->test_target, true));
        JINJA_TRY(visit(s, b->test_frame, n->c));
        JINJA_TRY(bind(s, b->test_frame, b->test_target));
        JINJA_TRY(bind(s, b->test_frame, n->c));
    }
    JINJA_TRY(new_frame(s, f, &b->else_frame));
    JINJA_TRY(visit_body(s, b->else_frame, &b->else_body));
    JINJA_TRY(bind_body(s, b->else_frame, &b->else_body));
    s->loops--;
    return 0;
}

/* Whether a macro's body reads one of the names that Jinja fills in when asked. */
static bool body_reads(const struct jinja_body *b, const char *word);

static bool reads(const struct jinja_node *n, const char *word)
{
    if (!n)
        return false;
    if (n->type == NODE_NAME && is_word(n->name, word))
        return true;
    const struct jinja_call *c = n->call;
    if (reads(n->a, word) || reads(n->b, word) || reads(n->c, word) || body_reads(&n->body, word))
        return true;
    for (size_t i = 0; c && i < c->n_named; i++)
        if (reads(c->named[i].value, word))
            return true;
    if (c && (reads(c->star, word) || reads(c->star_star, word) || body_reads(&c->body, word) ||
              body_reads(&c->defaults, word)))
        return true;
    return n->block &&
           (body_reads(&n->block->elifs, word) || body_reads(&n->block->else_body, word));
}

static bool body_reads(const struct jinja_body *b, const char *word)
{
    for (size_t i = 0; i < b->n; i++)
        if (reads(b->items[i], word))
            return true;
    return false;
}

static int special(struct scoper *s, struct jinja_node *n, const struct jinja_str *name,
                   uint32_t *slot)
{
    for (size_t i = 0; i < n->call->body.n; i++)
        if (same(n->call->body.items[i]->name, name))
            return 0; // an ordinary parameter of that name
    if (!body_reads(&n->body, name->data))
        return 0;
    JINJA_TRY(declare_param(s, n->block->frame, name));
    *slot = slot_of(n->block->frame, name);
    return 0;
}

static int bind_macro(struct scoper *s, struct jinja_frame *f, struct jinja_node *n)
{
    static const struct jinja_str caller = {.data = "caller", .len = 6, .n_chars = 6},
                                  kwargs = {.data = "kwargs", .len = 6, .n_chars = 6},
                                  varargs = {.data = "varargs", .len = 7, .n_chars = 7};
    struct jinja_block *b = n->block;
    if (n->type == NODE_MACRO)
        JINJA_TRY(bind(s, f, n->a));
    JINJA_TRY(bind(s, f, n->b));
    JINJA_TRY(new_frame(s, f, &b->frame));
    for (size_t i = 0; i < n->call->body.n; i++)
        JINJA_TRY(declare_param(s, b->frame, n->call->body.items[i]->name));
    JINJA_TRY(special(s, n, &caller, &b->caller_slot));
    JINJA_TRY(special(s, n, &kwargs, &b->kwargs_slot));
    JINJA_TRY(special(s, n, &varargs, &b->varargs_slot));
    JINJA_TRY(visit_body(s, b->frame, &n->call->defaults));
    JINJA_TRY(visit_body(s, b->frame, &n->body));
    JINJA_TRY(bind_call(s, b->frame, n->call));
    return bind_body(s, b->frame, &n->body);
}

static int bind_with(struct scoper *s, struct jinja_frame *f, struct jinja_node *n)
{
    struct jinja_block *b = n->block;
    JINJA_TRY(new_frame(s, f, &b->frame));
    for (size_t i = 0; i < b->elifs.n; i += 2) {
        JINJA_TRY(visit_target(s, b->frame, b->elifs.items[i], true));
        JINJA_TRY(bind(s, f, b->elifs.items[i + 1]));
    }
    JINJA_TRY(visit_body(s, b->frame, &n->body));
    for (size_t i = 0; i < b->elifs.n; i += 2)
        JINJA_TRY(bind(s, b->frame, b->elifs.items[i]));
    return bind_body(s, b->frame, &n->body);
}

/* The body of a block set or filter block. The filters of a set are read in the block's scope. */
static int bind_capture(struct scoper *s, struct jinja_frame *f, struct jinja_node *n)
{
    JINJA_TRY(new_frame(s, f, &n->block->frame));
    JINJA_TRY(visit_body(s, n->block->frame, &n->body));
    JINJA_TRY(visit(s, n->block->frame, n->b));
    if (n->type == NODE_SET_BLOCK)
        JINJA_TRY(bind(s, f, n->a));
    JINJA_TRY(bind(s, n->block->frame, n->b));
    return bind_body(s, n->block->frame, &n->body);
}

static int bind_plain(struct scoper *s, struct jinja_frame *f, struct jinja_node *n)
{
    JINJA_TRY(bind(s, f, n->a));
    JINJA_TRY(bind(s, f, n->b));
    JINJA_TRY(bind(s, f, n->c));
    JINJA_TRY(bind_body(s, f, &n->body));
    if (n->block) {
        JINJA_TRY(bind_body(s, f, &n->block->elifs));
        JINJA_TRY(bind_body(s, f, &n->block->else_body));
    }
    return bind_call(s, f, n->call);
}

static int bind(struct scoper *s, struct jinja_frame *f, struct jinja_node *n)
{
    if (!n)
        return 0;
    switch (n->type) {
    case NODE_NAME:
    case NODE_NSREF:
        if (!find_ref(f, n->name, &n->hops, &n->slot))
            return err_set(s->err, ERR_INTERNAL, "%s:%u: a name without scope", s->t->name,
                           n->line);
        return 0;
    case NODE_FOR:
        return bind_for(s, f, n);
    case NODE_MACRO:
    case NODE_CALL_BLOCK:
        return bind_macro(s, f, n);
    case NODE_WITH:
        return bind_with(s, f, n);
    case NODE_SET_BLOCK:
    case NODE_FILTER_BLOCK:
        return bind_capture(s, f, n);
    default:
        return bind_plain(s, f, n);
    }
}

int jinja_resolve_scopes(struct jinja_template *t, struct err *err)
{
    struct scoper s = {.t = t, .err = err};
    JINJA_TRY(new_frame(&s, NULL, &t->root));
    JINJA_TRY(visit_body(&s, t->root, t->body));
    return bind_body(&s, t->root, t->body);
}
