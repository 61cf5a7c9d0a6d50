/*
 * jinja_syntax: tokens, syntax tree and scopes of a template. Made once by jinja_compile in the
 * template's arena, then only read.
 */
#ifndef LIBCORE_TEXT_JINJA_SYNTAX_H
#define LIBCORE_TEXT_JINJA_SYNTAX_H

#include "libcore/text/jinja_impl.h"

enum jinja_node_type {
    NODE_CONST,        // value
    NODE_NAME,         // name; hops, slot
    NODE_TUPLE,        // body: items
    NODE_LIST,         // body: items
    NODE_DICT,         // body: key, value, key, value …
    NODE_COND,         // a if b else c (c may be NULL)
    NODE_AND,          // a, b
    NODE_OR,           // a, b
    NODE_NOT,          // a
    NODE_NEG,          // a
    NODE_POS,          // a
    NODE_BINARY,       // a op b
    NODE_CONCAT,       // body: items
    NODE_COMPARE,      // a, then body: NODE_OPERAND
    NODE_OPERAND,      // op a
    NODE_ATTR,         // a.name
    NODE_ITEM,         // a[b]
    NODE_SLICE,        // as b of NODE_ITEM: a:b:c, each may be NULL
    NODE_CALL,         // a(call)
    NODE_FILTER,       // a|row(call); a is NULL in a block: the captured text
    NODE_TEST,         // a is row(call)
    NODE_NSREF,        // a target name.attr: name, attr; hops, slot
    NODE_DATA,         // value
    NODE_PRINT,        // a
    NODE_FOR,          // for a in b if c: body, else_body
    NODE_IF,           // a: body, elifs: NODE_IF without else, else_body
    NODE_SET,          // a = b
    NODE_SET_BLOCK,    // a = body through b (filters or NULL)
    NODE_MACRO,        // a: name as target, call: parameters, body
    NODE_CALL_BLOCK,   // b: the call (NULL: generation), call: parameters, body
    NODE_FILTER_BLOCK, // b: filters, body
    NODE_WITH,         // elifs: target, value, target, value …; body
    NODE_BREAK,
    NODE_CONTINUE
};

struct jinja_body {
    struct jinja_node **items;
    size_t n, cap;
};

struct jinja_named {
    struct jinja_str *name;
    struct jinja_node *value;
};

/* What stands between the parentheses of a call, filter or test; or a macro's parameters: body has
 * their names as nodes, defaults those of the last ones. */
struct jinja_call {
    struct jinja_body body, defaults;
    struct jinja_named *named;
    size_t n_named, cap_named;
    struct jinja_node *star, *star_star;
};

struct jinja_node {
    enum jinja_node_type type;
    uint32_t line;
    uint32_t depth; // 1 + that of the deepest child
    enum jinja_op op;
    uint32_t hops, slot; // scopes outward, place there
    struct jinja_node *a, *b, *c;
    struct jinja_body body;
    struct jinja_call *call;
    struct jinja_str *name, *attr;
    struct jinja_value value;
    const struct jinja_row *row; // NULL: unknown, an error when it runs
    struct jinja_block *block;   // statements that have a body
};

/* The parts that only statements need. */
#define JINJA_NO_SLOT UINT32_MAX
struct jinja_block {
    struct jinja_body else_body, elifs;
    struct jinja_frame *frame, *else_frame, *test_frame;
    struct jinja_node *test_target; // NODE_FOR: `a` once more, in the test's own scope
    bool recursive;
    bool uses_caller, uses_kwargs, uses_varargs;     // of a macro's body
    uint32_t caller_slot, kwargs_slot, varargs_slot; // JINJA_NO_SLOT: not asked for
    uint32_t loop_slot;                              // NODE_FOR
};

/* ---- scopes: Jinja decides at compile time where a name of a scope gets its first value ---- */
enum jinja_load { JINJA_LOAD_UNDEFINED, JINJA_LOAD_RESOLVE, JINJA_LOAD_ALIAS, JINJA_LOAD_PARAM };

struct jinja_symbol {
    const struct jinja_str *name;
    enum jinja_load load;
    uint32_t hops, slot; // ALIAS: where from; hops counted from this scope
    bool stored;
};

struct jinja_frame {
    struct jinja_frame *parent;
    struct jinja_symbol *symbols;
    size_t n, cap;
};

/* ---- lexer ---- */
enum jinja_token_type {
    TOKEN_EOF,
    TOKEN_DATA,
    TOKEN_VAR_BEGIN,
    TOKEN_VAR_END,
    TOKEN_BLOCK_BEGIN,
    TOKEN_BLOCK_END,
    TOKEN_NAME,
    TOKEN_STRING,
    TOKEN_INT,
    TOKEN_FLOAT,
    TOKEN_OP
};

struct jinja_token {
    uint8_t type;
    char op[3]; // TOKEN_OP: its characters
    uint32_t line;
    uint32_t len;
    const char *text; // DATA, NAME, numbers: as it stands; STRING: unescaped
};

/* A published template has a few thousand of each; these many take some 100 MB. */
enum { JINJA_MAX_TOKENS = 1 << 20, JINJA_MAX_NODES = 250000 };

struct jinja_lexer {
    struct arena *arena;
    const char *name;
    const char *src; // newlines are \n, the last one is gone
    size_t len, pos;
    uint32_t line;
    size_t line_pos; // `line` is counted up to here
    bool line_starting;
    struct jinja_token *tokens;
    size_t n, cap;
    char balance[LIMIT_TEMPLATE_DEPTH];
    size_t n_balance;
    struct err *err;
};
int jinja_lex(struct jinja_lexer *lx);

/* ---- parser ---- */
struct jinja_parser {
    struct jinja_template *t;
    struct jinja_token *tokens; // ends in TOKEN_EOF
    size_t pos;
    unsigned depth;
    unsigned n_nodes;
    unsigned loops; // for statements around, in this macro
    struct err *err;
};
int jinja_parse(struct jinja_parser *p);
int jinja_parse_fail(struct jinja_parser *p, uint32_t line, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
int jinja_parse_memory(struct jinja_parser *p);
int jinja_parse_deeper(struct jinja_parser *p); // pair with p->depth--
struct jinja_token *jinja_token(const struct jinja_parser *p);
bool jinja_at_op(const struct jinja_parser *p, const char *op);
bool jinja_at_name(const struct jinja_parser *p, const char *name);
bool jinja_skip_op(struct jinja_parser *p, const char *op);
bool jinja_skip_name(struct jinja_parser *p, const char *name);
int jinja_expect_op(struct jinja_parser *p, const char *op);
int jinja_expect_name(struct jinja_parser *p, struct jinja_str **out);
int jinja_unexpected(struct jinja_parser *p, const char *wanted);
int jinja_new_node(struct jinja_parser *p, enum jinja_node_type type, uint32_t line,
                   struct jinja_node **out);
int jinja_body_add(struct jinja_parser *p, struct jinja_body *b, struct jinja_node *item);
/* Notes the depth of a child; ERR_LIMIT when the tree gets too deep to walk. */
int jinja_adopt(struct jinja_parser *p, struct jinja_node *n, const struct jinja_node *child);
int jinja_const_str(struct jinja_parser *p, const char *text, size_t len, struct jinja_str **out);

/* jinja_parse_ops.c */
int jinja_parse_expression(struct jinja_parser *p, bool with_cond, struct jinja_node **out);
enum jinja_tuple_mode {
    JINJA_TUPLE_FULL,
    JINJA_TUPLE_NO_COND,
    JINJA_TUPLE_PAREN, // () is a tuple
    JINJA_TUPLE_TARGET // names and literals only
};
/* end_name: a word that ends the tuple, or NULL. */
int jinja_parse_tuple(struct jinja_parser *p, enum jinja_tuple_mode mode, bool with_namespace,
                      const char *end_name, struct jinja_node **out);
int jinja_parse_filter(struct jinja_parser *p, struct jinja_node *node, bool start_inline,
                       struct jinja_node **out);

/* jinja_parse_expr.c: for jinja_parse_ops.c */
int jinja_new_pair_node(struct jinja_parser *p, enum jinja_node_type type, uint32_t line,
                        struct jinja_node *a, struct jinja_node *b, struct jinja_node **out);
int jinja_add_item(struct jinja_parser *p, struct jinja_node *n, struct jinja_node *item);
int jinja_parse_primary(struct jinja_parser *p, bool with_namespace, struct jinja_node **out);
/* Subscripts and calls, then filters and tests, after *node, which they replace. */
int jinja_parse_postfix(struct jinja_parser *p, struct jinja_node **node);
int jinja_parse_filter_expr(struct jinja_parser *p, struct jinja_node **node);

/* jinja_scope.c: gives every name its scope and slot. */
int jinja_resolve_scopes(struct jinja_template *t, struct err *err);

#endif
