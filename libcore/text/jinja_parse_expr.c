/* What expressions are made of: literals, names, and what may follow them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/text/jinja_syntax.h"

int jinja_new_pair_node(struct jinja_parser *p, enum jinja_node_type type, uint32_t line,
                        struct jinja_node *a, struct jinja_node *b, struct jinja_node **out)
{
    struct jinja_node *n;
    JINJA_TRY(jinja_new_node(p, type, line, &n));
    n->a = a;
    n->b = b;
    *out = n;
    JINJA_TRY(jinja_adopt(p, n, a));
    return jinja_adopt(p, n, b);
}

int jinja_add_item(struct jinja_parser *p, struct jinja_node *n, struct jinja_node *item)
{
    JINJA_TRY(jinja_body_add(p, &n->body, item));
    return jinja_adopt(p, n, item);
}

/* ---- literals ---- */
static int number_node(struct jinja_parser *p, struct jinja_node **out)
{
    const struct jinja_token *t = jinja_token(p);
    char text[400];
    size_t n = 0;
    for (size_t i = 0; i < t->len; i++) {
        if (n + 1 >= sizeof text)
            return jinja_parse_fail(p, t->line, "a number of more than %zu digits", n);
        if (t->text[i] != '_')
            text[n++] = t->text[i];
    }
    text[n] = '\0';
    JINJA_TRY(jinja_new_node(p, NODE_CONST, t->line, out));
    p->pos++;
    if (t->type == TOKEN_FLOAT) {
        (*out)->value = jinja_float(strtod(text, NULL));
        return 0;
    }
    char kind = (char)(text[0] == '0' ? text[1] | 0x20 : 0);
    int base = kind == 'x' ? 16 : kind == 'o' ? 8 : kind == 'b' ? 2 : 10;
    errno = 0;
    (*out)->value = jinja_int(strtoll(base == 10 ? text : text + 2, NULL, base));
    if (errno == ERANGE)
        return jinja_parse_fail(p, t->line, "integer %s does not fit 64 bits", text);
    return 0;
}

/* Strings that follow one another are one. */
static int string_node(struct jinja_parser *p, struct jinja_node **out)
{
    size_t first = p->pos, len = 0;
    struct jinja_str *s;
    for (; jinja_token(p)->type == TOKEN_STRING; p->pos++)
        len += jinja_token(p)->len;
    const struct jinja_token *t = &p->tokens[first];
    const char *text = t->text;
    if (p->pos > first + 1) {
        char *joined = arena_alloc(&p->t->arena, len + 1);
        if (!joined)
            return jinja_parse_memory(p);
        text = joined;
        for (size_t i = first; i < p->pos; joined += p->tokens[i].len, i++)
            memcpy(joined, p->tokens[i].text, p->tokens[i].len);
    }
    JINJA_TRY(jinja_new_node(p, NODE_CONST, t->line, out));
    JINJA_TRY(jinja_const_str(p, text, len, &s));
    (*out)->value = jinja_of_str(s);
    return 0;
}

static bool constant_word(const struct jinja_parser *p, struct jinja_value *v)
{
    if (jinja_at_name(p, "true") || jinja_at_name(p, "True"))
        *v = jinja_bool(true);
    else if (jinja_at_name(p, "false") || jinja_at_name(p, "False"))
        *v = jinja_bool(false);
    else if (jinja_at_name(p, "none") || jinja_at_name(p, "None"))
        *v = jinja_none();
    else
        return false;
    return true;
}

static int name_node(struct jinja_parser *p, bool with_namespace, struct jinja_node **out)
{
    uint32_t line = jinja_token(p)->line;
    struct jinja_value v;
    if (constant_word(p, &v)) {
        p->pos++;
        JINJA_TRY(jinja_new_node(p, NODE_CONST, line, out));
        (*out)->value = v;
        return 0;
    }
    JINJA_TRY(jinja_new_node(p, NODE_NAME, line, out));
    JINJA_TRY(jinja_expect_name(p, &(*out)->name));
    if (with_namespace && jinja_skip_op(p, ".")) {
        (*out)->type = NODE_NSREF;
        return jinja_expect_name(p, &(*out)->attr);
    }
    return 0;
}

static int list_node(struct jinja_parser *p, struct jinja_node **out)
{
    struct jinja_node *item;
    JINJA_TRY(jinja_new_node(p, NODE_LIST, jinja_token(p)->line, out));
    p->pos++;
    while (!jinja_at_op(p, "]")) {
        if ((*out)->body.n)
            JINJA_TRY(jinja_expect_op(p, ","));
        if (jinja_at_op(p, "]"))
            break;
        JINJA_TRY(jinja_parse_expression(p, true, &item));
        JINJA_TRY(jinja_add_item(p, *out, item));
    }
    return jinja_expect_op(p, "]");
}

static int dict_node(struct jinja_parser *p, struct jinja_node **out)
{
    struct jinja_node *item;
    JINJA_TRY(jinja_new_node(p, NODE_DICT, jinja_token(p)->line, out));
    p->pos++;
    while (!jinja_at_op(p, "}")) {
        if ((*out)->body.n)
            JINJA_TRY(jinja_expect_op(p, ","));
        if (jinja_at_op(p, "}"))
            break;
        JINJA_TRY(jinja_parse_expression(p, true, &item));
        JINJA_TRY(jinja_add_item(p, *out, item));
        JINJA_TRY(jinja_expect_op(p, ":"));
        JINJA_TRY(jinja_parse_expression(p, true, &item));
        JINJA_TRY(jinja_add_item(p, *out, item));
    }
    return jinja_expect_op(p, "}");
}

int jinja_parse_primary(struct jinja_parser *p, bool with_namespace, struct jinja_node **out)
{
    const struct jinja_token *t = jinja_token(p);
    if (t->type == TOKEN_NAME)
        return name_node(p, with_namespace, out);
    if (t->type == TOKEN_STRING)
        return string_node(p, out);
    if (t->type == TOKEN_INT || t->type == TOKEN_FLOAT)
        return number_node(p, out);
    if (jinja_skip_op(p, "(")) {
        JINJA_TRY(jinja_parse_tuple(p, JINJA_TUPLE_PAREN, false, NULL, out));
        return jinja_expect_op(p, ")");
    }
    if (jinja_at_op(p, "["))
        return list_node(p, out);
    if (jinja_at_op(p, "{"))
        return dict_node(p, out);
    return jinja_unexpected(p, "an expression");
}

static bool tuple_end(const struct jinja_parser *p, const char *end_name)
{
    uint8_t type = jinja_token(p)->type;
    return type == TOKEN_VAR_END || type == TOKEN_BLOCK_END || jinja_at_op(p, ")") ||
           (end_name && jinja_at_name(p, end_name));
}

int jinja_parse_tuple(struct jinja_parser *p, enum jinja_tuple_mode mode, bool with_namespace,
                      const char *end_name, struct jinja_node **out)
{
    struct jinja_node *tuple = NULL, *item = NULL;
    uint32_t line = jinja_token(p)->line;
    bool is_tuple = false, first = true;
    JINJA_TRY(jinja_parse_deeper(p));
    JINJA_TRY(jinja_new_node(p, NODE_TUPLE, line, &tuple));
    for (;; first = false) {
        if (!first)
            JINJA_TRY(jinja_expect_op(p, ","));
        if (tuple_end(p, end_name))
            break;
        if (mode == JINJA_TUPLE_TARGET)
            JINJA_TRY(jinja_parse_primary(p, with_namespace, &item));
        else
            JINJA_TRY(jinja_parse_expression(p, mode != JINJA_TUPLE_NO_COND, &item));
        JINJA_TRY(jinja_add_item(p, tuple, item));
        if (!jinja_at_op(p, ","))
            break;
        is_tuple = true;
    }
    p->depth--;
    if (!is_tuple && !tuple->body.n && mode != JINJA_TUPLE_PAREN)
        return jinja_unexpected(p, "an expression");
    *out = !is_tuple && tuple->body.n ? item : tuple;
    return 0;
}

/* ---- what may follow a primary ---- */
static int add_named(struct jinja_parser *p, struct jinja_call *c)
{
    if (c->n_named == c->cap_named) {
        size_t cap = c->cap_named ? 2 * c->cap_named : 4;
        struct jinja_named *named = arena_array(&p->t->arena, cap, sizeof *named);
        if (!named)
            return jinja_parse_memory(p);
        if (c->n_named)
            memcpy(named, c->named, c->n_named * sizeof *named);
        c->named = named;
        c->cap_named = cap;
    }
    JINJA_TRY(jinja_expect_name(p, &c->named[c->n_named].name));
    p->pos++; // =
    return jinja_parse_expression(p, true, &c->named[c->n_named++].value);
}

static bool at_keyword(const struct jinja_parser *p)
{
    const struct jinja_token *t = jinja_token(p);
    return t->type == TOKEN_NAME && t[1].type == TOKEN_OP && strcmp(t[1].op, "=") == 0;
}

/* One argument; the order *args, **kwargs and names is jinja2's. */
static int parse_arg(struct jinja_parser *p, struct jinja_node *n, struct jinja_call *c)
{
    struct jinja_node *item;
    bool ok = !c->star_star;
    uint32_t line = jinja_token(p)->line;
    if (jinja_skip_op(p, "*")) {
        ok = ok && !c->star;
        JINJA_TRY(jinja_parse_expression(p, true, &item));
        c->star = item;
    } else if (jinja_skip_op(p, "**")) {
        JINJA_TRY(jinja_parse_expression(p, true, &item));
        c->star_star = item;
    } else if (at_keyword(p)) {
        JINJA_TRY(add_named(p, c));
        item = c->named[c->n_named - 1].value;
    } else {
        ok = ok && !c->star && !c->n_named;
        JINJA_TRY(jinja_parse_expression(p, true, &item));
        JINJA_TRY(jinja_body_add(p, &c->body, item));
    }
    if (!ok)
        return jinja_parse_fail(p, line, "arguments in a wrong order");
    return jinja_adopt(p, n, item);
}

static int parse_call_args(struct jinja_parser *p, struct jinja_node *n)
{
    struct jinja_call *c = n->call = arena_alloc(&p->t->arena, sizeof *c);
    if (!c)
        return jinja_parse_memory(p);
    JINJA_TRY(jinja_expect_op(p, "("));
    for (bool first = true; !jinja_at_op(p, ")"); first = false) {
        if (!first)
            JINJA_TRY(jinja_expect_op(p, ","));
        if (jinja_at_op(p, ")"))
            break;
        JINJA_TRY(parse_arg(p, n, c));
    }
    return jinja_expect_op(p, ")");
}

static int optional_bound(struct jinja_parser *p, struct jinja_node *n, struct jinja_node **out)
{
    *out = NULL;
    if (jinja_at_op(p, ":") || jinja_at_op(p, "]") || jinja_at_op(p, ","))
        return 0;
    JINJA_TRY(jinja_parse_expression(p, true, out));
    return jinja_adopt(p, n, *out);
}

/* An index, or start:stop:step. */
static int parse_subscribed(struct jinja_parser *p, struct jinja_node **out)
{
    struct jinja_node *n, *first = NULL;
    uint32_t line = jinja_token(p)->line;
    if (!jinja_at_op(p, ":"))
        JINJA_TRY(jinja_parse_expression(p, true, &first));
    *out = first;
    if (!jinja_skip_op(p, ":"))
        return 0;
    JINJA_TRY(jinja_new_pair_node(p, NODE_SLICE, line, first, NULL, &n));
    JINJA_TRY(optional_bound(p, n, &n->b));
    if (jinja_skip_op(p, ":"))
        JINJA_TRY(optional_bound(p, n, &n->c));
    *out = n;
    return 0;
}

static int parse_bracket(struct jinja_parser *p, struct jinja_node *node, uint32_t line,
                         struct jinja_node **out)
{
    struct jinja_node *tuple, *item = NULL;
    JINJA_TRY(jinja_new_node(p, NODE_TUPLE, line, &tuple));
    while (!jinja_at_op(p, "]")) {
        if (tuple->body.n)
            JINJA_TRY(jinja_expect_op(p, ","));
        JINJA_TRY(parse_subscribed(p, &item));
        JINJA_TRY(jinja_add_item(p, tuple, item));
    }
    p->pos++;
    if (tuple->body.n != 1)
        for (size_t i = 0; i < tuple->body.n; i++)
            if (tuple->body.items[i]->type == NODE_SLICE)
                return jinja_parse_fail(p, line, "a slice inside a tuple of indexes");
    return jinja_new_pair_node(p, NODE_ITEM, line, node, tuple->body.n == 1 ? item : tuple, out);
}

static int parse_subscript(struct jinja_parser *p, struct jinja_node *node, struct jinja_node **out)
{
    uint32_t line = jinja_token(p)->line;
    struct jinja_node *index;
    if (jinja_skip_op(p, "["))
        return parse_bracket(p, node, line, out);
    p->pos++; // .
    if (jinja_token(p)->type == TOKEN_INT) {
        JINJA_TRY(number_node(p, &index));
        return jinja_new_pair_node(p, NODE_ITEM, line, node, index, out);
    }
    JINJA_TRY(jinja_new_pair_node(p, NODE_ATTR, line, node, NULL, out));
    return jinja_expect_name(p, &(*out)->name);
}

static int parse_call(struct jinja_parser *p, struct jinja_node *node, struct jinja_node **out)
{
    JINJA_TRY(jinja_new_pair_node(p, NODE_CALL, jinja_token(p)->line, node, NULL, out));
    return parse_call_args(p, *out);
}

int jinja_parse_postfix(struct jinja_parser *p, struct jinja_node **node)
{
    for (;;) {
        if (jinja_at_op(p, ".") || jinja_at_op(p, "["))
            JINJA_TRY(parse_subscript(p, *node, node));
        else if (jinja_at_op(p, "("))
            JINJA_TRY(parse_call(p, *node, node));
        else
            return 0;
    }
}

/* a.b as a filter's or test's name. */
static int dotted_name(struct jinja_parser *p, struct jinja_str **out)
{
    JINJA_TRY(jinja_expect_name(p, out));
    while (jinja_skip_op(p, ".")) {
        struct jinja_str *more;
        JINJA_TRY(jinja_expect_name(p, &more));
        char *text = arena_printf(&p->t->arena, "%.*s.%.*s", (int)(*out)->len, (*out)->data,
                                  (int)more->len, more->data);
        if (!text)
            return jinja_parse_memory(p);
        JINJA_TRY(jinja_const_str(p, text, strlen(text), out));
    }
    return 0;
}

int jinja_parse_filter(struct jinja_parser *p, struct jinja_node *node, bool start_inline,
                       struct jinja_node **out)
{
    while (start_inline || jinja_at_op(p, "|")) {
        struct jinja_node *n;
        p->pos += !start_inline;
        start_inline = false;
        JINJA_TRY(jinja_new_pair_node(p, NODE_FILTER, jinja_token(p)->line, node, NULL, &n));
        JINJA_TRY(dotted_name(p, &n->name));
        if (jinja_at_op(p, "("))
            JINJA_TRY(parse_call_args(p, n));
        n->row = jinja_find_filter(n->name->data, n->name->len);
        node = n;
    }
    *out = node;
    return 0;
}

static bool at_test_argument(const struct jinja_parser *p)
{
    const struct jinja_token *t = jinja_token(p);
    if (t->type == TOKEN_NAME)
        return !jinja_at_name(p, "else") && !jinja_at_name(p, "or") && !jinja_at_name(p, "and");
    return t->type == TOKEN_STRING || t->type == TOKEN_INT || t->type == TOKEN_FLOAT ||
           jinja_at_op(p, "[") || jinja_at_op(p, "{");
}

static int test_argument(struct jinja_parser *p, struct jinja_node *n)
{
    struct jinja_node *arg;
    if (jinja_at_name(p, "is"))
        return jinja_parse_fail(p, n->line, "tests cannot be chained with 'is'");
    n->call = arena_alloc(&p->t->arena, sizeof *n->call);
    if (!n->call)
        return jinja_parse_memory(p);
    JINJA_TRY(jinja_parse_primary(p, false, &arg));
    JINJA_TRY(jinja_parse_postfix(p, &arg));
    JINJA_TRY(jinja_body_add(p, &n->call->body, arg));
    return jinja_adopt(p, n, arg);
}

static int parse_test(struct jinja_parser *p, struct jinja_node *node, struct jinja_node **out)
{
    struct jinja_node *n;
    uint32_t line = jinja_token(p)->line;
    p->pos++; // is
    bool negated = jinja_skip_name(p, "not");
    JINJA_TRY(jinja_new_pair_node(p, NODE_TEST, line, node, NULL, &n));
    JINJA_TRY(dotted_name(p, &n->name));
    if (jinja_at_op(p, "("))
        JINJA_TRY(parse_call_args(p, n));
    else if (at_test_argument(p))
        JINJA_TRY(test_argument(p, n));
    n->row = jinja_find_test(n->name->data, n->name->len);
    *out = n;
    return negated ? jinja_new_pair_node(p, NODE_NOT, line, n, NULL, out) : 0;
}

int jinja_parse_filter_expr(struct jinja_parser *p, struct jinja_node **node)
{
    for (;;) {
        if (jinja_at_op(p, "|"))
            JINJA_TRY(jinja_parse_filter(p, *node, false, node));
        else if (jinja_at_name(p, "is"))
            JINJA_TRY(parse_test(p, *node, node));
        else if (jinja_at_op(p, "("))
            JINJA_TRY(parse_call(p, *node, node));
        else
            return 0;
    }
}
