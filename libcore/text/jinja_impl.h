/*
 * jinja_impl: what the rooms of jinja share: values, the state of one render, the built-ins.
 * Values live in the arena of the template or of the render and are never freed one by one.
 * Every function that can fail returns 0 or an error code that is already set in the render's err.
 */
#ifndef LIBCORE_TEXT_JINJA_IMPL_H
#define LIBCORE_TEXT_JINJA_IMPL_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/arena.h"
#include "libcore/base/err.h"
#include "libcore/base/limits.h"
#include "libcore/base/strbuf.h"
#include "libcore/text/jinja.h"

#define JINJA_TRY(call)                                                                            \
    do {                                                                                           \
        int rc_ = (call);                                                                          \
        if (rc_)                                                                                   \
            return rc_;                                                                            \
    } while (0)

/* ---- values ---- */
enum jinja_type {
    JINJA_MISSING, // no value at all: an unset variable, an argument that was not given
    JINJA_UNDEFINED,
    JINJA_NONE,
    JINJA_BOOL,
    JINJA_INT,
    JINJA_FLOAT,
    JINJA_STR,
    JINJA_LIST,
    JINJA_TUPLE,
    JINJA_DICT,
    JINJA_VIEW, // dict.keys(), .values(), .items()
    JINJA_RANGE,
    JINJA_NAMESPACE,
    JINJA_MACRO,
    JINJA_FUNC, // a global function, or a method bound to its object
    JINJA_ITER, // what Python calls a generator or iterator: it can be walked once
    JINJA_LOOP,
    JINJA_CYCLER,
    JINJA_JOINER
};

struct jinja_value {
    enum jinja_type type;
    union {
        bool b;
        int64_t i;
        double f;
        struct jinja_str *s;
        struct jinja_list *list; // LIST, TUPLE
        struct jinja_dict *dict; // DICT, NAMESPACE
        struct jinja_view *view;
        struct jinja_range *range;
        struct jinja_macro *macro;
        struct jinja_func *func;
        struct jinja_iter *iter;
        struct jinja_loop *loop;
        struct jinja_cycler *cycler; // CYCLER, JOINER
        struct jinja_undef *undef;
    };
};

/* Room behind a string into which `~` and `+` may go on writing, so that a text grown piece by
 * piece costs linear time: the bytes that older values see do not change. */
struct jinja_space {
    char *data;
    size_t used, cap;
};

#define JINJA_UNCOUNTED SIZE_MAX
struct jinja_str {
    const char *data; // UTF-8, valid; no NUL at the end
    size_t len;       // bytes
    size_t n_chars;   // code points, or JINJA_UNCOUNTED; always known in a template's constants
    struct jinja_space *space;
    bool markup; // marked safe (or escaped): what is added to it with + gets escaped
};

struct jinja_list {
    struct jinja_value *items;
    size_t n, cap;
    bool group; // a tuple made by groupby: it has .grouper and .list
};

struct jinja_entry {
    struct jinja_value key, value;
    uint64_t hash;
};

/* In order of insertion; nothing is ever removed. */
struct jinja_dict {
    struct jinja_entry *entries;
    size_t n, cap;
    uint32_t *index; // 1 + entry, 0 = free; NULL while the dict is small
    size_t n_index;  // a power of two
};

enum jinja_view_kind { JINJA_KEYS, JINJA_VALUES, JINJA_ITEMS };
struct jinja_view {
    enum jinja_view_kind kind;
    struct jinja_dict *dict;
};

struct jinja_range {
    int64_t start, stop, step, n;
};

struct jinja_undef {
    const char *message; // what the error says when it is used
};

struct jinja_kwarg {
    const struct jinja_str *name;
    struct jinja_value value;
};

struct jinja_args {
    const struct jinja_value *pos;
    size_t n;
    const struct jinja_kwarg *kw;
    size_t n_kw;
};

struct jinja_render;
/* A built-in. argv has one value a parameter of its row (MISSING where none was given); in a row
 * whose parameters are "*", args is what was written and argv is NULL. */
typedef int jinja_builtin(struct jinja_render *r, struct jinja_value self,
                          const struct jinja_value *argv, const struct jinja_args *args,
                          struct jinja_value *out);
struct jinja_row {
    const char *name;
    jinja_builtin *run;
    const char *params; // "sep,maxsplit", "" or "*"
    size_t required;
};

struct jinja_func {
    const struct jinja_row *row;
    struct jinja_value self;
};

struct jinja_cycler {
    struct jinja_list *items;
    size_t pos;
    struct jinja_value sep; // JOINER
    bool used;
};

struct jinja_node;
struct jinja_frame;
struct jinja_body;
struct jinja_call;

/* A scope while it runs. */
struct jinja_env {
    struct jinja_env *parent;
    struct jinja_value slots[];
};

struct jinja_macro {
    const struct jinja_node *node;
    struct jinja_env *env;
};

/* ---- iteration ---- */
enum jinja_iter_kind {
    JINJA_ITER_PLAIN,   // over source
    JINJA_ITER_REVERSE, // over source, a sequence, from its end
    JINJA_ITER_MAP,
    JINJA_ITER_SELECT,
    JINJA_ITER_UNIQUE,
    JINJA_ITER_BATCH,
    JINJA_ITER_LOOP_TEST // the `if` of a for statement
};

struct jinja_path; // an attribute path: "a.b.0"

struct jinja_iter {
    enum jinja_iter_kind kind;
    const char *type_name; // for <… object> and errors
    struct jinja_value source;
    size_t pos;                    // bytes in a string, items elsewhere
    struct jinja_iter *inner;      // what filters walk
    const struct jinja_row *row;   // MAP: the filter, SELECT: the test; NULL: none
    struct jinja_args args;        // of row
    const struct jinja_path *path; // NULL: the item itself
    struct jinja_value fallback;   // MAP: `default`
    bool negate;                   // SELECT: reject
    bool fold;                     // UNIQUE: case does not count
    struct jinja_dict *seen;       // UNIQUE
    int64_t count;                 // BATCH
    const struct jinja_node *node; // LOOP_TEST
    struct jinja_env *env;         // LOOP_TEST
};

struct jinja_loop {
    struct jinja_iter *iter;
    struct jinja_value source;
    struct jinja_value previous, current, after; // MISSING: none
    struct jinja_value changed;                  // last arguments of loop.changed, a tuple
    int64_t index0, depth0;
    int64_t length;                // -1: not asked for yet
    const struct jinja_node *node; // a recursive loop's statement, else NULL
    struct jinja_env *outer;
};

struct jinja_template {
    struct arena arena;
    char *name;
    struct jinja_body *body;
    struct jinja_frame *root;
};

/* ---- one render ---- */
struct jinja_render {
    const struct jinja_template *t;
    struct arena arena;
    size_t memory; // bytes taken from the arena
    uint64_t steps;
    unsigned depth, call_depth;
    uint32_t line;
    uint64_t seed; // of hashes
    int64_t now_unix;
    struct strbuf *out;
    size_t out_total; // bytes written, captured or not
    struct jinja_dict *context;
    struct err *err;
};

enum { JINJA_MAX_RANGE = 100000 }; // the bound of jinja2's sandbox

/* jinja_render.c */
int jinja_fail(struct jinja_render *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int jinja_fail_code(struct jinja_render *r, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
int jinja_fail_undefined(struct jinja_render *r, struct jinja_value v);
int jinja_steps(struct jinja_render *r, size_t n);   // ERR_LIMIT when the template had its share
int jinja_enter(struct jinja_render *r);             // one level deeper; pair with r->depth--
void *jinja_alloc(struct jinja_render *r, size_t n); // NULL: err is set
int jinja_emit(struct jinja_render *r, const char *data, size_t n);

/* jinja_value.c */
struct jinja_value jinja_none(void);
struct jinja_value jinja_bool(bool b);
struct jinja_value jinja_int(int64_t i);
struct jinja_value jinja_float(double f);
struct jinja_value jinja_of_str(const struct jinja_str *s);
int jinja_new_str(struct jinja_render *r, const char *data, size_t len, struct jinja_value *out);
/* As above without a copy: data must live as long as the render. */
int jinja_borrow_str(struct jinja_render *r, const char *data, size_t len, struct jinja_value *out);
/* Copies what was built and releases sb; a failed sb is an error. */
int jinja_take_strbuf(struct jinja_render *r, struct strbuf *sb, struct jinja_value *out);
int jinja_check_strbuf(struct jinja_render *r, const struct strbuf *sb); // failed: an error
int jinja_join2(struct jinja_render *r, const struct jinja_str *a, const struct jinja_str *b,
                struct jinja_value *out);
/* The same text with or without the mark. */
int jinja_mark(struct jinja_render *r, struct jinja_value text, bool markup,
               struct jinja_value *out);
void jinja_add_escaped(struct strbuf *sb, const char *data,
                       size_t len); // &amp; &lt; &gt; &#39; &#34;
/* str(v) escaped and marked; marked text stays as it is. */
int jinja_escape(struct jinja_render *r, struct jinja_value v, struct jinja_value *out);
int jinja_new_list(struct jinja_render *r, enum jinja_type type, size_t cap,
                   struct jinja_value *out);
int jinja_list_add(struct jinja_render *r, struct jinja_list *l, struct jinja_value v);
int jinja_new_pair(struct jinja_render *r, struct jinja_value a, struct jinja_value b,
                   struct jinja_value *out); // a tuple
int jinja_new_undefined(struct jinja_render *r, struct jinja_value *out, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
const char *jinja_type_name(struct jinja_value v); // Python's name of the type
int64_t jinja_range_item(const struct jinja_range *g, uint64_t idx);
bool jinja_truth(struct jinja_value v);
bool jinja_is_number(struct jinja_value v);   // bool, int, float
bool jinja_is_integral(struct jinja_value v); // bool, int
int64_t jinja_as_int(struct jinja_value v);
double jinja_as_double(struct jinja_value v);
/* len(): an error for what has none. */
int jinja_length(struct jinja_render *r, struct jinja_value v, int64_t *out);
/* From JSON, copied into the render. */
int jinja_from_json(struct jinja_render *r, const json_t *json, struct jinja_value *out);

/* jinja_compare.c */
int jinja_equal(struct jinja_render *r, struct jinja_value a, struct jinja_value b, bool *out);
/* For <, <=, >, >=: an error where the types do not compare. */
int jinja_order(struct jinja_render *r, struct jinja_value a, struct jinja_value b, const char *op,
                int *sign, bool *unordered);
int jinja_less(struct jinja_render *r, struct jinja_value a, struct jinja_value b, bool *out);
/* Stable; keys[i] belongs to items[i]. */
int jinja_sort(struct jinja_render *r, struct jinja_value *keys, struct jinja_value *items,
               size_t n, bool reverse);

/* jinja_dict.c */
int jinja_new_dict(struct jinja_render *r, enum jinja_type type, struct jinja_value *out);
int jinja_dict_set(struct jinja_render *r, struct jinja_dict *d, struct jinja_value key,
                   struct jinja_value value);
/* *out is MISSING when there is no such key; an unhashable key is an error. */
int jinja_dict_get(struct jinja_render *r, const struct jinja_dict *d, struct jinja_value key,
                   struct jinja_value *out);
int jinja_dict_get_text(struct jinja_render *r, const struct jinja_dict *d, const char *name,
                        size_t len, struct jinja_value *out);
bool jinja_hashable(struct jinja_value v);

/* jinja_iter.c */
int jinja_iter_open(struct jinja_render *r, struct jinja_iter *it, struct jinja_value v);
/* *out is MISSING at the end. */
int jinja_iter_next(struct jinja_render *r, struct jinja_iter *it, struct jinja_value *out);
int jinja_new_iter(struct jinja_render *r, enum jinja_iter_kind kind, struct jinja_value source,
                   struct jinja_iter **out);
struct jinja_value jinja_of_iter(struct jinja_iter *it);
int jinja_to_list(struct jinja_render *r, struct jinja_value v, struct jinja_value *out);
bool jinja_is_iterable(struct jinja_value v);
int jinja_path_parse(struct jinja_render *r, struct jinja_value attribute,
                     const struct jinja_path **out);
int jinja_path_get(struct jinja_render *r, const struct jinja_path *path, struct jinja_value item,
                   struct jinja_value fallback, struct jinja_value *out);
int jinja_fold_case(struct jinja_render *r, struct jinja_value v, struct jinja_value *out);

/* jinja_loop.c */
int jinja_loop_length(struct jinja_render *r, struct jinja_loop *l, int64_t *out);
int jinja_loop_next(struct jinja_render *r, struct jinja_loop *l, struct jinja_value *out);
int jinja_loop_attr(struct jinja_render *r, struct jinja_value loop, const char *name, size_t len,
                    struct jinja_value *out); // MISSING: no such attribute

/* jinja_text.c, jinja_case.c: Python's idea of characters */
size_t jinja_n_chars(struct jinja_str *s);
size_t jinja_char_offset(struct jinja_str *s, size_t char_idx); // in bytes
size_t jinja_decode(const char *data, size_t len,
                    uint32_t *cp); // bytes of the next one, at least 1
bool jinja_valid_utf8(const char *data, size_t len);
bool jinja_is_space(uint32_t cp);
bool jinja_is_alpha(uint32_t cp);
bool jinja_is_decimal(uint32_t cp);
bool jinja_is_digit(uint32_t cp);
bool jinja_is_numeric(uint32_t cp);
bool jinja_is_printable(uint32_t cp);
bool jinja_is_lower(uint32_t cp);
bool jinja_is_upper(uint32_t cp);
bool jinja_is_title(uint32_t cp);
bool jinja_is_word(uint32_t cp);
bool jinja_is_line_break(uint32_t cp);
void jinja_add_upper(struct strbuf *sb, const char *data, size_t len);
void jinja_add_lower(struct strbuf *sb, const char *data, size_t len);
void jinja_add_title_char(struct strbuf *sb, uint32_t cp);
void jinja_add_casefold(struct strbuf *sb, const char *data, size_t len);

/* jinja_repr.c */
void jinja_add_float(struct strbuf *sb, double f); // Python's repr
void jinja_add_str_repr(struct strbuf *sb, const char *data, size_t len);
int jinja_add_repr(struct jinja_render *r, struct strbuf *sb, struct jinja_value v);
int jinja_add_text(struct jinja_render *r, struct strbuf *sb, struct jinja_value v); // str()
int jinja_to_str(struct jinja_render *r, struct jinja_value v, struct jinja_value *out);

/* jinja_json.c: json.dumps */
struct jinja_json_style {
    bool ensure_ascii, sort_keys;
    const struct jinja_str *indent; // NULL: one line
    const struct jinja_str *item_sep, *key_sep;
};
int jinja_add_json(struct jinja_render *r, struct strbuf *sb, const struct jinja_json_style *style,
                   struct jinja_value v, size_t level);

/* jinja_format.c: printf-style; jinja_strformat.c: str.format */
int jinja_percent(struct jinja_render *r, struct jinja_value format, struct jinja_value args,
                  struct jinja_value *out);
int jinja_str_format(struct jinja_render *r, const struct jinja_str *format,
                     const struct jinja_args *args, struct jinja_value mapping,
                     struct jinja_value *out);
/* A number's text as both write it: sign, digits, precision; conversion d, x, o, b, e, f, g, … */
struct jinja_number_style {
    char sign; // 0, '+', ' ', '-'
    bool alternate;
    int precision; // -1: none
    char conversion;
    char group; // 0, ',' or '_'
};
int jinja_add_number(struct jinja_render *r, struct strbuf *sb, const struct jinja_number_style *st,
                     struct jinja_value v, size_t *prefix); // *prefix: bytes of sign and 0x

/* jinja_ops.c */
enum jinja_op {
    JINJA_ADD,
    JINJA_SUB,
    JINJA_MUL,
    JINJA_DIV,
    JINJA_FLOORDIV,
    JINJA_MOD,
    JINJA_POW,
    JINJA_EQ,
    JINJA_NE,
    JINJA_LT,
    JINJA_LE,
    JINJA_GT,
    JINJA_GE,
    JINJA_IN,
    JINJA_NOT_IN
};
int jinja_binary(struct jinja_render *r, enum jinja_op op, struct jinja_value a,
                 struct jinja_value b, struct jinja_value *out);
int jinja_negate(struct jinja_render *r, struct jinja_value a, bool minus, struct jinja_value *out);
int jinja_relation(struct jinja_render *r, enum jinja_op op, struct jinja_value a,
                   struct jinja_value b, bool *out);
int jinja_contains(struct jinja_render *r, struct jinja_value container, struct jinja_value item,
                   bool *out);

/* jinja_attr.c */
int jinja_getattr(struct jinja_render *r, struct jinja_value v, const struct jinja_str *name,
                  struct jinja_value *out);
int jinja_getitem(struct jinja_render *r, struct jinja_value v, struct jinja_value key,
                  struct jinja_value *out);
/* The attribute alone, without the items of a dict: MISSING when there is none. */
int jinja_find_attr(struct jinja_render *r, struct jinja_value v, const char *name, size_t len,
                    struct jinja_value *out);
int jinja_slice(struct jinja_render *r, struct jinja_value v, const struct jinja_value bounds[3],
                struct jinja_value *out);

/* jinja_call.c */
enum { JINJA_MAX_PARAMS = 8 };
int jinja_run_row(struct jinja_render *r, const struct jinja_row *row, struct jinja_value self,
                  const struct jinja_args *args, struct jinja_value *out);
/* A method of `self`: what comes out of marked text is marked. */
int jinja_run_method(struct jinja_render *r, const struct jinja_row *row, struct jinja_value self,
                     const struct jinja_args *args, struct jinja_value *out);
int jinja_call_value(struct jinja_render *r, struct jinja_value f, const struct jinja_args *args,
                     struct jinja_value *out);
/* An argument: *out keeps what it holds when v is MISSING. */
int jinja_arg_int(struct jinja_render *r, struct jinja_value v, const char *what, int64_t *out);
int jinja_arg_str(struct jinja_render *r, struct jinja_value v, const char *what,
                  struct jinja_str **out);
const struct jinja_row *jinja_find_row(const struct jinja_row *rows, const char *name, size_t len);

/* jinja_eval.c */
int jinja_eval(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
               struct jinja_value *out);
int jinja_eval_args(struct jinja_render *r, struct jinja_env *env, const struct jinja_call *call,
                    const struct jinja_value *caller, struct jinja_args *out);
int jinja_assign(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *target,
                 struct jinja_value v);

/* jinja_exec.c */
enum jinja_flow { JINJA_NEXT, JINJA_BREAK, JINJA_CONTINUE };
int jinja_exec(struct jinja_render *r, struct jinja_env *env, const struct jinja_body *body,
               enum jinja_flow *flow);
int jinja_run_for(struct jinja_render *r, struct jinja_env *env, const struct jinja_node *n,
                  struct jinja_value items, int64_t depth0);
int jinja_call_macro(struct jinja_render *r, struct jinja_macro *m, const struct jinja_args *args,
                     struct jinja_value *out);
/* Opens a scope and gives its variables their first values; NULL: err is set. */
struct jinja_env *jinja_open_env(struct jinja_render *r, const struct jinja_frame *f,
                                 struct jinja_env *parent);
int jinja_enter_frame(struct jinja_render *r, const struct jinja_frame *f, struct jinja_env *env);
/* Runs a function while what it prints goes into *out. */
int jinja_capture_begin(struct jinja_render *r, struct strbuf **sb, struct strbuf **saved);
int jinja_capture_end(struct jinja_render *r, struct strbuf *sb, struct strbuf *saved, int rc,
                      struct jinja_value *out);

/* tables */
const struct jinja_row *jinja_find_filter(const char *name, size_t len);
const struct jinja_row *jinja_find_test(const char *name, size_t len);
const struct jinja_row *jinja_find_method(enum jinja_type type, const char *name, size_t len);
bool jinja_is_mutating(enum jinja_type type, const char *name, size_t len);
int jinja_find_global(struct jinja_render *r, const char *name, size_t len,
                      struct jinja_value *out);
extern const struct jinja_row jinja_filters_seq[], jinja_filters_lazy[], jinja_filters_text[],
    jinja_filters_misc[], jinja_str_methods_find[], jinja_str_methods_make[],
    jinja_str_methods_split[];

#endif
