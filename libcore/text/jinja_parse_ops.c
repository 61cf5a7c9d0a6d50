/* Operators of a template, with the precedence of jinja2's parser. */
#include <string.h>

#include "libcore/text/jinja_syntax.h"

static int parse_unary(struct jinja_parser *p, bool with_filter, struct jinja_node **out)
{
    uint32_t line = jinja_token(p)->line;
    bool minus = jinja_at_op(p, "-");
    if (minus || jinja_at_op(p, "+")) {
        struct jinja_node *a;
        p->pos++;
        JINJA_TRY(jinja_parse_deeper(p));
        JINJA_TRY(parse_unary(p, false, &a));
        p->depth--;
        JINJA_TRY(jinja_new_pair_node(p, minus ? NODE_NEG : NODE_POS, line, a, NULL, out));
    } else {
        JINJA_TRY(jinja_parse_primary(p, false, out));
    }
    JINJA_TRY(jinja_parse_postfix(p, out));
    return with_filter ? jinja_parse_filter_expr(p, out) : 0;
}

/* One level of binary operators that group to the left. */
static int left_assoc(struct jinja_parser *p, const char *const *words, const enum jinja_op *ops,
                      int (*next)(struct jinja_parser *p, struct jinja_node **out),
                      struct jinja_node **out)
{
    JINJA_TRY(next(p, out));
    for (;;) {
        size_t i = 0;
        uint32_t line = jinja_token(p)->line;
        while (words[i] && !jinja_at_op(p, words[i]))
            i++;
        if (!words[i])
            return 0;
        struct jinja_node *right;
        p->pos++;
        JINJA_TRY(next(p, &right));
        JINJA_TRY(jinja_new_pair_node(p, NODE_BINARY, line, *out, right, out));
        (*out)->op = ops[i];
    }
}

static int parse_operand(struct jinja_parser *p, struct jinja_node **out)
{
    return parse_unary(p, true, out);
}

static int parse_pow(struct jinja_parser *p, struct jinja_node **out)
{
    static const char *const words[] = {"**", NULL};
    static const enum jinja_op ops[] = {JINJA_POW};
    return left_assoc(p, words, ops, parse_operand, out);
}

static int parse_product(struct jinja_parser *p, struct jinja_node **out)
{
    static const char *const words[] = {"*", "/", "//", "%", NULL};
    static const enum jinja_op ops[] = {JINJA_MUL, JINJA_DIV, JINJA_FLOORDIV, JINJA_MOD};
    return left_assoc(p, words, ops, parse_pow, out);
}

static int parse_concat(struct jinja_parser *p, struct jinja_node **out)
{
    struct jinja_node *item, *n;
    uint32_t line = jinja_token(p)->line;
    JINJA_TRY(parse_product(p, out));
    if (!jinja_at_op(p, "~"))
        return 0;
    JINJA_TRY(jinja_new_node(p, NODE_CONCAT, line, &n));
    JINJA_TRY(jinja_add_item(p, n, *out));
    while (jinja_skip_op(p, "~")) {
        JINJA_TRY(parse_product(p, &item));
        JINJA_TRY(jinja_add_item(p, n, item));
    }
    *out = n;
    return 0;
}

static int parse_sum(struct jinja_parser *p, struct jinja_node **out)
{
    static const char *const words[] = {"+", "-", NULL};
    static const enum jinja_op ops[] = {JINJA_ADD, JINJA_SUB};
    return left_assoc(p, words, ops, parse_concat, out);
}

/* The comparison at the current token, which is then passed. */
static bool skip_comparison(struct jinja_parser *p, enum jinja_op *op)
{
    static const char *const words[] = {"==", "!=", "<", "<=", ">", ">="};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (jinja_skip_op(p, words[i])) {
            *op = (enum jinja_op)(JINJA_EQ + i);
            return true;
        }
    if (jinja_skip_name(p, "in")) {
        *op = JINJA_IN;
        return true;
    }
    if (!jinja_skip_name(p, "not"))
        return false;
    *op = JINJA_NOT_IN;
    if (jinja_skip_name(p, "in"))
        return true;
    p->pos--;
    return false;
}

static int parse_compare(struct jinja_parser *p, struct jinja_node **out)
{
    struct jinja_node *n = NULL, *operand, *right;
    enum jinja_op op;
    uint32_t line = jinja_token(p)->line;
    JINJA_TRY(parse_sum(p, out));
    while (skip_comparison(p, &op)) {
        if (!n) {
            JINJA_TRY(jinja_new_pair_node(p, NODE_COMPARE, line, *out, NULL, &n));
            *out = n;
        }
        JINJA_TRY(parse_sum(p, &right));
        JINJA_TRY(jinja_new_pair_node(p, NODE_OPERAND, line, right, NULL, &operand));
        operand->op = op;
        JINJA_TRY(jinja_add_item(p, n, operand));
    }
    return 0;
}

static int parse_not(struct jinja_parser *p, struct jinja_node **out)
{
    uint32_t line = jinja_token(p)->line;
    struct jinja_node *a;
    if (!jinja_skip_name(p, "not"))
        return parse_compare(p, out);
    JINJA_TRY(jinja_parse_deeper(p));
    JINJA_TRY(parse_not(p, &a));
    p->depth--;
    return jinja_new_pair_node(p, NODE_NOT, line, a, NULL, out);
}

static int parse_and(struct jinja_parser *p, struct jinja_node **out)
{
    struct jinja_node *right;
    JINJA_TRY(parse_not(p, out));
    for (uint32_t line = jinja_token(p)->line; jinja_skip_name(p, "and");) {
        JINJA_TRY(parse_not(p, &right));
        JINJA_TRY(jinja_new_pair_node(p, NODE_AND, line, *out, right, out));
    }
    return 0;
}

static int parse_or(struct jinja_parser *p, struct jinja_node **out)
{
    struct jinja_node *right;
    JINJA_TRY(parse_and(p, out));
    for (uint32_t line = jinja_token(p)->line; jinja_skip_name(p, "or");) {
        JINJA_TRY(parse_and(p, &right));
        JINJA_TRY(jinja_new_pair_node(p, NODE_OR, line, *out, right, out));
    }
    return 0;
}

static int parse_cond(struct jinja_parser *p, struct jinja_node **out)
{
    uint32_t line = jinja_token(p)->line;
    JINJA_TRY(parse_or(p, out));
    while (jinja_skip_name(p, "if")) {
        struct jinja_node *n, *test, *other = NULL;
        JINJA_TRY(parse_or(p, &test));
        if (jinja_skip_name(p, "else"))
            JINJA_TRY(jinja_parse_expression(p, true, &other));
        JINJA_TRY(jinja_new_pair_node(p, NODE_COND, line, *out, test, &n));
        n->c = other;
        JINJA_TRY(jinja_adopt(p, n, other));
        *out = n;
    }
    return 0;
}

int jinja_parse_expression(struct jinja_parser *p, bool with_cond, struct jinja_node **out)
{
    JINJA_TRY(jinja_parse_deeper(p));
    JINJA_TRY(with_cond ? parse_cond(p, out) : parse_or(p, out));
    p->depth--;
    return 0;
}
