/* Tests: what may follow `is`. */
#include <string.h>

#include "libcore/text/jinja_impl.h"

#define TEST(name)                                                                                 \
    static int name(struct jinja_render *r, struct jinja_value self,                               \
                    const struct jinja_value *argv, const struct jinja_args *args,                 \
                    struct jinja_value *out)

/* A test that only looks at its value. */
#define SIMPLE(name, expr)                                                                         \
    TEST(name)                                                                                     \
    {                                                                                              \
        (void)r, (void)self, (void)argv, (void)args;                                               \
        *out = jinja_bool(expr);                                                                   \
        return 0;                                                                                  \
    }

SIMPLE(is_defined, self.type != JINJA_UNDEFINED)
SIMPLE(is_undefined, self.type == JINJA_UNDEFINED)
SIMPLE(is_none, self.type == JINJA_NONE)
SIMPLE(is_boolean, self.type == JINJA_BOOL)
SIMPLE(is_true, self.type == JINJA_BOOL && self.b)
SIMPLE(is_false, self.type == JINJA_BOOL && !self.b)
SIMPLE(is_integer, self.type == JINJA_INT)
SIMPLE(is_float, self.type == JINJA_FLOAT)
SIMPLE(is_number, jinja_is_number(self))
SIMPLE(is_string, self.type == JINJA_STR)
SIMPLE(is_mapping, self.type == JINJA_DICT)
SIMPLE(is_iterable, jinja_is_iterable(self))
SIMPLE(is_escaped, self.type == JINJA_STR && self.s->markup)
SIMPLE(is_callable, self.type == JINJA_FUNC || self.type == JINJA_MACRO ||
                        self.type == JINJA_LOOP || self.type == JINJA_JOINER ||
                        self.type == JINJA_UNDEFINED)
SIMPLE(is_sequence, self.type == JINJA_STR || self.type == JINJA_LIST || self.type == JINJA_TUPLE ||
                        self.type == JINJA_DICT || self.type == JINJA_RANGE ||
                        self.type == JINJA_UNDEFINED)

static int case_test(struct jinja_render *r, struct jinja_value self, const char *method,
                     struct jinja_value *out)
{
    const struct jinja_args none = {0};
    JINJA_TRY(jinja_to_str(r, self, &self));
    return jinja_run_row(r, jinja_find_method(JINJA_STR, method, strlen(method)), self, &none, out);
}

TEST(is_lower)
{
    (void)argv, (void)args;
    return case_test(r, self, "islower", out);
}

TEST(is_upper)
{
    (void)argv, (void)args;
    return case_test(r, self, "isupper", out);
}

/* value % by == want */
static int modulo_is(struct jinja_render *r, struct jinja_value self, struct jinja_value by,
                     int64_t want, struct jinja_value *out)
{
    struct jinja_value rest;
    bool same;
    JINJA_TRY(jinja_binary(r, JINJA_MOD, self, by, &rest));
    JINJA_TRY(jinja_equal(r, rest, jinja_int(want), &same));
    *out = jinja_bool(same);
    return 0;
}

TEST(is_odd)
{
    (void)argv, (void)args;
    return modulo_is(r, self, jinja_int(2), 1, out);
}

TEST(is_even)
{
    (void)argv, (void)args;
    return modulo_is(r, self, jinja_int(2), 0, out);
}

TEST(is_divisibleby)
{
    (void)args;
    return modulo_is(r, self, argv[0], 0, out);
}

#define RELATION(name, op)                                                                         \
    TEST(name)                                                                                     \
    {                                                                                              \
        bool truth;                                                                                \
        (void)args;                                                                                \
        JINJA_TRY(jinja_relation(r, op, self, argv[0], &truth));                                   \
        *out = jinja_bool(truth);                                                                  \
        return 0;                                                                                  \
    }

RELATION(is_eq, JINJA_EQ)
RELATION(is_ne, JINJA_NE)
RELATION(is_lt, JINJA_LT)
RELATION(is_le, JINJA_LE)
RELATION(is_gt, JINJA_GT)
RELATION(is_ge, JINJA_GE)
RELATION(is_in, JINJA_IN)

TEST(is_sameas)
{
    struct jinja_value other = argv[0];
    bool same = self.type == other.type;
    (void)args;
    if (same && (jinja_is_number(self) || self.type == JINJA_STR))
        JINJA_TRY(jinja_equal(r, self, other, &same));
    else if (same && self.type != JINJA_NONE)
        same = self.dict == other.dict;
    *out = jinja_bool(same);
    return 0;
}

static int known_name(struct jinja_render *r, struct jinja_value self, bool filter,
                      struct jinja_value *out)
{
    if (!jinja_hashable(self))
        return jinja_fail(r, "unhashable type: '%s'", jinja_type_name(self));
    *out = jinja_bool(self.type == JINJA_STR &&
                      (filter ? jinja_find_filter(self.s->data, self.s->len)
                              : jinja_find_test(self.s->data, self.s->len)) != NULL);
    return 0;
}

TEST(is_filter)
{
    (void)argv, (void)args;
    return known_name(r, self, true, out);
}

TEST(is_test)
{
    (void)argv, (void)args;
    return known_name(r, self, false, out);
}

static const struct jinja_row tests[] = {
    {"defined", is_defined, "", 0},   {"undefined", is_undefined, "", 0},
    {"none", is_none, "", 0},         {"boolean", is_boolean, "", 0},
    {"true", is_true, "", 0},         {"false", is_false, "", 0},
    {"integer", is_integer, "", 0},   {"float", is_float, "", 0},
    {"number", is_number, "", 0},     {"string", is_string, "", 0},
    {"mapping", is_mapping, "", 0},   {"iterable", is_iterable, "", 0},
    {"sequence", is_sequence, "", 0}, {"callable", is_callable, "", 0},
    {"escaped", is_escaped, "", 0},   {"lower", is_lower, "", 0},
    {"upper", is_upper, "", 0},       {"odd", is_odd, "", 0},
    {"even", is_even, "", 0},         {"divisibleby", is_divisibleby, "num", 1},
    {"in", is_in, "seq", 1},          {"sameas", is_sameas, "other", 1},
    {"filter", is_filter, "", 0},     {"test", is_test, "", 0},
    {"eq", is_eq, "other", 1},        {"equalto", is_eq, "other", 1},
    {"==", is_eq, "other", 1},        {"ne", is_ne, "other", 1},
    {"!=", is_ne, "other", 1},        {"lt", is_lt, "other", 1},
    {"lessthan", is_lt, "other", 1},  {"<", is_lt, "other", 1},
    {"le", is_le, "other", 1},        {"<=", is_le, "other", 1},
    {"gt", is_gt, "other", 1},        {"greaterthan", is_gt, "other", 1},
    {">", is_gt, "other", 1},         {"ge", is_ge, "other", 1},
    {">=", is_ge, "other", 1},        {NULL, NULL, NULL, 0},
};

const struct jinja_row *jinja_find_test(const char *name, size_t len)
{
    return jinja_find_row(tests, name, len);
}
