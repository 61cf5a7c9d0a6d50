/* Statements of a template, as jinja2's parser reads them. */
#include "libcore/text/jinja_syntax.h"

#include <stdio.h>
#include <string.h>

/* Deeper trees would overrun a thread's stack while they are walked. */
enum { MAX_TREE_DEPTH = 1000 };

int jinja_parse_fail(struct jinja_parser *p, uint32_t line, const char *fmt, ...)
{
    char text[ERR_MSG_BYTES];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    return err_set(p->err, ERR_CORRUPT, "%s:%u: %s", p->t->name, line, text);
}

int jinja_parse_memory(struct jinja_parser *p)
{
    return err_set(p->err, ERR_NO_MEMORY, "%s: out of memory", p->t->name);
}

int jinja_parse_deeper(struct jinja_parser *p)
{
    if (++p->depth > LIMIT_TEMPLATE_DEPTH)
        return err_set(p->err, ERR_LIMIT, "%s:%u: nested deeper than %d", p->t->name,
                       jinja_token(p)->line, LIMIT_TEMPLATE_DEPTH);
    return 0;
}

struct jinja_token *jinja_token(const struct jinja_parser *p)
{
    return &p->tokens[p->pos];
}

bool jinja_at_op(const struct jinja_parser *p, const char *op)
{
    return jinja_token(p)->type == TOKEN_OP && strcmp(jinja_token(p)->op, op) == 0;
}

static bool token_is(const struct jinja_token *t, const char *name)
{
    return t->type == TOKEN_NAME && strlen(name) == t->len && memcmp(t->text, name, t->len) == 0;
}

bool jinja_at_name(const struct jinja_parser *p, const char *name)
{
    return token_is(jinja_token(p), name);
}

bool jinja_skip_op(struct jinja_parser *p, const char *op)
{
    bool yes = jinja_at_op(p, op);
    p->pos += yes;
    return yes;
}

bool jinja_skip_name(struct jinja_parser *p, const char *name)
{
    bool yes = jinja_at_name(p, name);
    p->pos += yes;
    return yes;
}

int jinja_unexpected(struct jinja_parser *p, const char *wanted)
{
    static const char *const names[] = {
        [TOKEN_EOF] = "end of template", [TOKEN_DATA] = "text",      [TOKEN_VAR_BEGIN] = "{{",
        [TOKEN_VAR_END] = "}}",          [TOKEN_BLOCK_BEGIN] = "{%", [TOKEN_BLOCK_END] = "%}",
        [TOKEN_STRING] = "a string",     [TOKEN_INT] = "an integer", [TOKEN_FLOAT] = "a float",
    };
    const struct jinja_token *t = jinja_token(p);
    char text[80];
    if (t->type == TOKEN_OP)
        snprintf(text, sizeof text, "'%s'", t->op);
    else if (t->type == TOKEN_NAME)
        snprintf(text, sizeof text, "'%.*s'", t->len > 60 ? 60 : (int)t->len, t->text);
    else
        snprintf(text, sizeof text, "%s", names[t->type]);
    return jinja_parse_fail(p, t->line, "expected %s, got %s", wanted, text);
}

int jinja_expect_op(struct jinja_parser *p, const char *op)
{
    char wanted[8];
    snprintf(wanted, sizeof wanted, "'%s'", op);
    return jinja_skip_op(p, op) ? 0 : jinja_unexpected(p, wanted);
}

int jinja_const_str(struct jinja_parser *p, const char *text, size_t len, struct jinja_str **out)
{
    struct jinja_str *s = arena_alloc(&p->t->arena, sizeof *s);
    if (!s)
        return jinja_parse_memory(p);
    *s = (struct jinja_str){.data = text, .len = len, .n_chars = JINJA_UNCOUNTED};
    jinja_n_chars(s);
    *out = s;
    return 0;
}

int jinja_expect_name(struct jinja_parser *p, struct jinja_str **out)
{
    const struct jinja_token *t = jinja_token(p);
    if (t->type != TOKEN_NAME)
        return jinja_unexpected(p, "a name");
    p->pos++;
    return jinja_const_str(p, t->text, t->len, out);
}

int jinja_new_node(struct jinja_parser *p, enum jinja_node_type type, uint32_t line,
                   struct jinja_node **out)
{
    if (++p->n_nodes > JINJA_MAX_NODES)
        return err_set(p->err, ERR_LIMIT, "%s:%u: a template of more than %d parts", p->t->name,
                       line, JINJA_MAX_NODES);
    struct jinja_node *n = arena_alloc(&p->t->arena, sizeof *n);
    if (!n)
        return jinja_parse_memory(p);
    n->type = type;
    n->line = line;
    n->depth = 1;
    *out = n;
    return 0;
}

int jinja_body_add(struct jinja_parser *p, struct jinja_body *b, struct jinja_node *item)
{
    if (b->n == b->cap) {
        size_t cap = b->cap ? 2 * b->cap : 4;
        struct jinja_node **items = arena_array(&p->t->arena, cap, sizeof(struct jinja_node *));
        if (!items)
            return jinja_parse_memory(p);
        if (b->n)
            memcpy(items, b->items, b->n * sizeof(struct jinja_node *));
        b->items = items;
        b->cap = cap;
    }
    b->items[b->n++] = item;
    return 0;
}

int jinja_adopt(struct jinja_parser *p, struct jinja_node *n, const struct jinja_node *child)
{
    if (child && child->depth >= n->depth)
        n->depth = child->depth + 1;
    if (n->depth > MAX_TREE_DEPTH)
        return err_set(p->err, ERR_LIMIT, "%s:%u: an expression of more than %d levels", p->t->name,
                       n->line, MAX_TREE_DEPTH);
    return 0;
}

/* ---- statements ---- */
static int new_statement(struct jinja_parser *p, enum jinja_node_type type, struct jinja_node **out)
{
    JINJA_TRY(jinja_new_node(p, type, jinja_token(p)->line, out));
    (*out)->block = arena_alloc(&p->t->arena, sizeof *(*out)->block);
    if (!(*out)->block)
        return jinja_parse_memory(p);
    struct jinja_block *b = (*out)->block;
    b->caller_slot = b->kwargs_slot = b->varargs_slot = b->loop_slot = JINJA_NO_SLOT;
    p->pos++;
    return 0;
}

static int subparse(struct jinja_parser *p, const char *const *ends, struct jinja_body *out);

static bool at_any(const struct jinja_parser *p, const char *const *names)
{
    for (; *names; names++)
        if (jinja_at_name(p, *names))
            return true;
    return false;
}

static int expect_block_end(struct jinja_parser *p)
{
    if (jinja_token(p)->type != TOKEN_BLOCK_END)
        return jinja_unexpected(p, "%}");
    p->pos++;
    return 0;
}

/* A body up to the tag named by one of `ends` (NULL-ended), whose name is then the current token.
 */
static int statements(struct jinja_parser *p, const char *const *ends, struct jinja_body *out)
{
    jinja_skip_op(p, ":");
    JINJA_TRY(expect_block_end(p));
    JINJA_TRY(jinja_parse_deeper(p));
    JINJA_TRY(subparse(p, ends, out));
    p->depth--;
    if (jinja_token(p)->type == TOKEN_EOF)
        return jinja_parse_fail(p, jinja_token(p)->line, "the template ends before {%% %s %%}",
                                ends[0]);
    return 0;
}

static int body_until(struct jinja_parser *p, const char *end, struct jinja_body *out)
{
    const char *const ends[] = {end, NULL};
    JINJA_TRY(statements(p, ends, out));
    p->pos++;
    return 0;
}

static int check_target(struct jinja_parser *p, const struct jinja_node *n)
{
    static const char *const reserved[] = {"true", "false", "none", "True", "False", "None", NULL};
    if (n->type == NODE_NSREF)
        return 0;
    if (n->type == NODE_TUPLE) {
        for (size_t i = 0; i < n->body.n; i++)
            JINJA_TRY(check_target(p, n->body.items[i]));
        return 0;
    }
    bool ok = n->type == NODE_NAME;
    for (const char *const *w = reserved; ok && *w; w++)
        ok = !(strlen(*w) == n->name->len && memcmp(*w, n->name->data, n->name->len) == 0);
    return ok ? 0 : jinja_parse_fail(p, n->line, "cannot assign to what stands here");
}

static int target(struct jinja_parser *p, bool with_namespace, const char *end_name,
                  struct jinja_node **out)
{
    JINJA_TRY(jinja_parse_tuple(p, JINJA_TUPLE_TARGET, with_namespace, end_name, out));
    return check_target(p, *out);
}

static int name_target(struct jinja_parser *p, struct jinja_node **out)
{
    struct jinja_str *name = NULL;
    uint32_t line = jinja_token(p)->line;
    JINJA_TRY(jinja_expect_name(p, &name));
    JINJA_TRY(jinja_new_node(p, NODE_NAME, line, out));
    (*out)->name = name;
    return check_target(p, *out);
}

static int parse_set(struct jinja_parser *p, struct jinja_node **out)
{
    struct jinja_node *n = NULL, *filters = NULL;
    JINJA_TRY(new_statement(p, NODE_SET, &n));
    JINJA_TRY(target(p, true, NULL, &n->a));
    *out = n;
    if (jinja_skip_op(p, "="))
        return jinja_parse_tuple(p, JINJA_TUPLE_FULL, false, NULL, &n->b);
    n->type = NODE_SET_BLOCK;
    JINJA_TRY(jinja_parse_filter(p, NULL, false, &filters));
    n->b = filters;
    return body_until(p, "endset", &n->body);
}

/* A second copy of a loop's target: the `if` of a for statement has a scope of its own. */
static int copy_target(struct jinja_parser *p, const struct jinja_node *from,
                       struct jinja_node **out)
{
    JINJA_TRY(jinja_new_node(p, from->type, from->line, out));
    (*out)->name = from->name;
    for (size_t i = 0; i < from->body.n; i++) {
        struct jinja_node *item;
        JINJA_TRY(copy_target(p, from->body.items[i], &item));
        JINJA_TRY(jinja_body_add(p, &(*out)->body, item));
    }
    return 0;
}

static int parse_for(struct jinja_parser *p, struct jinja_node **out)
{
    static const char *const ends[] = {"endfor", "else", NULL};
    struct jinja_node *n = NULL;
    JINJA_TRY(new_statement(p, NODE_FOR, &n));
    JINJA_TRY(target(p, false, "in", &n->a));
    if (!jinja_skip_name(p, "in"))
        return jinja_unexpected(p, "'in'");
    JINJA_TRY(jinja_parse_tuple(p, JINJA_TUPLE_NO_COND, false, "recursive", &n->b));
    if (jinja_skip_name(p, "if")) {
        JINJA_TRY(jinja_parse_expression(p, true, &n->c));
        JINJA_TRY(copy_target(p, n->a, &n->block->test_target));
    }
    n->block->recursive = jinja_skip_name(p, "recursive");
    p->loops++;
    JINJA_TRY(statements(p, ends, &n->body));
    p->loops--;
    if (jinja_skip_name(p, "else"))
        JINJA_TRY(body_until(p, "endfor", &n->block->else_body));
    else
        p->pos++;
    *out = n;
    return 0;
}

/* Tests and bodies up to endif. `n` is the if, its elifs hang below it. */
static int if_branches(struct jinja_parser *p, struct jinja_node *n)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    struct jinja_node *branch = n;
    for (;;) {
        JINJA_TRY(jinja_parse_tuple(p, JINJA_TUPLE_NO_COND, false, NULL, &branch->a));
        JINJA_TRY(statements(p, ends, &branch->body));
        if (jinja_at_name(p, "elif")) {
            JINJA_TRY(new_statement(p, NODE_IF, &branch));
            JINJA_TRY(jinja_body_add(p, &n->block->elifs, branch));
        } else if (jinja_skip_name(p, "else")) {
            return body_until(p, "endif", &n->block->else_body);
        } else {
            p->pos++;
            return 0;
        }
    }
}

static int parse_if(struct jinja_parser *p, struct jinja_node **out)
{
    JINJA_TRY(new_statement(p, NODE_IF, out));
    return if_branches(p, *out);
}

static int parse_with(struct jinja_parser *p, struct jinja_node **out)
{
    struct jinja_node *n = NULL, *item = NULL;
    JINJA_TRY(new_statement(p, NODE_WITH, &n));
    while (jinja_token(p)->type != TOKEN_BLOCK_END) {
        if (n->block->elifs.n)
            JINJA_TRY(jinja_expect_op(p, ","));
        JINJA_TRY(target(p, false, NULL, &item));
        JINJA_TRY(jinja_body_add(p, &n->block->elifs, item));
        JINJA_TRY(jinja_expect_op(p, "="));
        JINJA_TRY(jinja_parse_expression(p, true, &item));
        JINJA_TRY(jinja_body_add(p, &n->block->elifs, item));
    }
    *out = n;
    return body_until(p, "endwith", &n->body);
}

static int parse_signature(struct jinja_parser *p, struct jinja_node *n)
{
    struct jinja_node *item;
    JINJA_TRY(jinja_expect_op(p, "("));
    while (!jinja_at_op(p, ")")) {
        if (n->call->body.n)
            JINJA_TRY(jinja_expect_op(p, ","));
        JINJA_TRY(name_target(p, &item));
        JINJA_TRY(jinja_body_add(p, &n->call->body, item));
        if (jinja_skip_op(p, "=")) {
            JINJA_TRY(jinja_parse_expression(p, true, &item));
            JINJA_TRY(jinja_body_add(p, &n->call->defaults, item));
        } else if (n->call->defaults.n) {
            return jinja_parse_fail(p, item->line,
                                    "a parameter without default follows one with default");
        }
    }
    p->pos++;
    return 0;
}

static int new_macro(struct jinja_parser *p, enum jinja_node_type type, struct jinja_node **out)
{
    JINJA_TRY(new_statement(p, type, out));
    (*out)->call = arena_alloc(&p->t->arena, sizeof *(*out)->call);
    return (*out)->call ? 0 : jinja_parse_memory(p);
}

/* break and continue do not reach out of a macro. */
static int macro_body(struct jinja_parser *p, const char *end, struct jinja_node *n)
{
    unsigned loops = p->loops;
    p->loops = 0;
    JINJA_TRY(body_until(p, end, &n->body));
    p->loops = loops;
    return 0;
}

static int parse_macro(struct jinja_parser *p, struct jinja_node **out)
{
    JINJA_TRY(new_macro(p, NODE_MACRO, out));
    JINJA_TRY(name_target(p, &(*out)->a));
    JINJA_TRY(parse_signature(p, *out));
    return macro_body(p, "endmacro", *out);
}

static int parse_call_block(struct jinja_parser *p, struct jinja_node **out)
{
    JINJA_TRY(new_macro(p, NODE_CALL_BLOCK, out));
    if (jinja_at_op(p, "("))
        JINJA_TRY(parse_signature(p, *out));
    JINJA_TRY(jinja_parse_expression(p, true, &(*out)->b));
    if ((*out)->b->type != NODE_CALL)
        return jinja_parse_fail(p, (*out)->line, "a call block wants a call");
    return macro_body(p, "endcall", *out);
}

/* transformers marks what the assistant says with it; the text comes out as it is. */
static int parse_generation(struct jinja_parser *p, struct jinja_node **out)
{
    JINJA_TRY(new_macro(p, NODE_CALL_BLOCK, out));
    return macro_body(p, "endgeneration", *out);
}

static int parse_filter_block(struct jinja_parser *p, struct jinja_node **out)
{
    JINJA_TRY(new_statement(p, NODE_FILTER_BLOCK, out));
    JINJA_TRY(jinja_parse_filter(p, NULL, true, &(*out)->b));
    return body_until(p, "endfilter", &(*out)->body);
}

static int parse_loop_control(struct jinja_parser *p, struct jinja_node **out)
{
    bool is_break = jinja_at_name(p, "break");
    if (!p->loops)
        return jinja_parse_fail(p, jinja_token(p)->line, "'%s' outside a loop",
                                is_break ? "break" : "continue");
    return new_statement(p, is_break ? NODE_BREAK : NODE_CONTINUE, out);
}

static int parse_print(struct jinja_parser *p, struct jinja_body *out)
{
    p->pos++;
    for (bool first = true; jinja_token(p)->type != TOKEN_BLOCK_END; first = false) {
        struct jinja_node *n = NULL;
        if (!first)
            JINJA_TRY(jinja_expect_op(p, ","));
        JINJA_TRY(jinja_new_node(p, NODE_PRINT, jinja_token(p)->line, &n));
        JINJA_TRY(jinja_parse_expression(p, true, &n->a));
        JINJA_TRY(jinja_body_add(p, out, n));
    }
    return 0;
}

static int unknown_tag(struct jinja_parser *p, const char *const *ends)
{
    static const char *const refused[] = {"include", "extends", "import",     "from",
                                          "block",   "do",      "autoescape", NULL};
    const struct jinja_token *t = jinja_token(p);
    int n = t->len > 60 ? 60 : (int)t->len;
    if (at_any(p, refused))
        return jinja_parse_fail(p, t->line, "'%.*s' is not available in chat templates", n,
                                t->text);
    if (ends)
        return jinja_parse_fail(p, t->line,
                                "unknown tag '%.*s'; {%% %s %%} is still open for its end", n,
                                t->text, ends[0]);
    return jinja_parse_fail(p, t->line, "unknown tag '%.*s'", n, t->text);
}

static int parse_statement(struct jinja_parser *p, const char *const *ends, struct jinja_body *out)
{
    static const struct {
        const char *name;
        int (*parse)(struct jinja_parser *p, struct jinja_node **out);
    } tags[] = {
        {"set", parse_set},
        {"for", parse_for},
        {"if", parse_if},
        {"with", parse_with},
        {"macro", parse_macro},
        {"call", parse_call_block},
        {"filter", parse_filter_block},
        {"generation", parse_generation},
        {"break", parse_loop_control},
        {"continue", parse_loop_control},
    };
    if (jinja_token(p)->type != TOKEN_NAME)
        return jinja_unexpected(p, "the name of a tag");
    if (jinja_at_name(p, "print"))
        return parse_print(p, out);
    for (size_t i = 0; i < sizeof tags / sizeof *tags; i++) {
        struct jinja_node *n = NULL;
        if (!jinja_at_name(p, tags[i].name))
            continue;
        JINJA_TRY(tags[i].parse(p, &n));
        return jinja_body_add(p, out, n);
    }
    return unknown_tag(p, ends);
}

static int parse_data(struct jinja_parser *p, struct jinja_body *out)
{
    struct jinja_node *n = NULL;
    struct jinja_str *s = NULL;
    const struct jinja_token *t = jinja_token(p);
    JINJA_TRY(jinja_new_node(p, NODE_DATA, t->line, &n));
    JINJA_TRY(jinja_const_str(p, t->text, t->len, &s));
    n->value = jinja_of_str(s);
    p->pos++;
    return jinja_body_add(p, out, n);
}

static int parse_variable(struct jinja_parser *p, struct jinja_body *out)
{
    struct jinja_node *n = NULL;
    p->pos++;
    JINJA_TRY(jinja_new_node(p, NODE_PRINT, jinja_token(p)->line, &n));
    JINJA_TRY(jinja_parse_tuple(p, JINJA_TUPLE_FULL, false, NULL, &n->a));
    if (jinja_token(p)->type != TOKEN_VAR_END)
        return jinja_unexpected(p, "}}");
    p->pos++;
    return jinja_body_add(p, out, n);
}

/* Statements up to a tag named by one of `ends` (the current token then) or the end of the
 * template. */
static int subparse(struct jinja_parser *p, const char *const *ends, struct jinja_body *out)
{
    for (;;) {
        uint8_t type = jinja_token(p)->type;
        if (type == TOKEN_EOF)
            return 0;
        if (type == TOKEN_DATA) {
            JINJA_TRY(parse_data(p, out));
        } else if (type == TOKEN_VAR_BEGIN) {
            JINJA_TRY(parse_variable(p, out));
        } else {
            p->pos++;
            if (ends && at_any(p, ends))
                return 0;
            JINJA_TRY(parse_statement(p, ends, out));
            JINJA_TRY(expect_block_end(p));
        }
    }
}

int jinja_parse(struct jinja_parser *p)
{
    p->t->body = arena_alloc(&p->t->arena, sizeof *p->t->body);
    if (!p->t->body)
        return jinja_parse_memory(p);
    return subparse(p, NULL, p->t->body);
}
