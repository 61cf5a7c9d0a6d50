/* Operators with Python's meaning. */
#include <math.h>
#include <string.h>

#include "libcore/text/jinja_impl.h"

static const char *const op_text[] = {
    [JINJA_ADD] = "+", [JINJA_SUB] = "-",  [JINJA_MUL] = "*",       [JINJA_DIV] = "/",
    [JINJA_MOD] = "%", [JINJA_POW] = "**", [JINJA_FLOORDIV] = "//", [JINJA_LT] = "<",
    [JINJA_LE] = "<=", [JINJA_GT] = ">",   [JINJA_GE] = ">=",
};

static int unsupported(struct jinja_render *r, enum jinja_op op, struct jinja_value a,
                       struct jinja_value b)
{
    if (a.type == JINJA_UNDEFINED || b.type == JINJA_UNDEFINED)
        return jinja_fail_undefined(r, a.type == JINJA_UNDEFINED ? a : b);
    if (op == JINJA_ADD && (a.type == JINJA_STR || a.type == JINJA_LIST || a.type == JINJA_TUPLE))
        return jinja_fail(r, "can only concatenate %s (not \"%s\") to %s", jinja_type_name(a),
                          jinja_type_name(b), jinja_type_name(a));
    return jinja_fail(r, "unsupported operand type(s) for %s: '%s' and '%s'", op_text[op],
                      jinja_type_name(a), jinja_type_name(b));
}

static int overflow(struct jinja_render *r)
{
    return jinja_fail(r, "an integer result does not fit 64 bits");
}

/* ---- integers ---- */
static int floor_divide(struct jinja_render *r, int64_t a, int64_t b, int64_t *quotient,
                        int64_t *rest)
{
    if (b == 0)
        return jinja_fail(r, "integer division or modulo by zero");
    if (a == INT64_MIN && b == -1) {
        if (!rest)
            return overflow(r);
        *rest = 0;
        return 0;
    }
    int64_t q = a / b, m = a % b;
    if (m && (m < 0) != (b < 0)) {
        q--;
        m += b;
    }
    if (quotient)
        *quotient = q;
    if (rest)
        *rest = m;
    return 0;
}

static int float_power(struct jinja_render *r, double a, double b, struct jinja_value *out)
{
    if (a == 0 && b < 0)
        return jinja_fail(r, "0.0 cannot be raised to a negative power");
    if (a < 0 && floor(b) != b && isfinite(a) && isfinite(b))
        return jinja_fail(r, "a negative number to a fractional power is complex");
    double f = pow(a, b);
    if (isinf(f) && isfinite(a) && isfinite(b))
        return jinja_fail(r, "Numerical result out of range");
    *out = jinja_float(f);
    return 0;
}

static int int_power(struct jinja_render *r, int64_t base, int64_t exponent,
                     struct jinja_value *out)
{
    int64_t result = 1;
    if (exponent < 0)
        return float_power(r, (double)base, (double)exponent, out);
    while (exponent) {
        if ((exponent & 1) && __builtin_mul_overflow(result, base, &result))
            return overflow(r);
        exponent >>= 1;
        if (exponent && __builtin_mul_overflow(base, base, &base))
            return overflow(r);
    }
    *out = jinja_int(result);
    return 0;
}

static int integers(struct jinja_render *r, enum jinja_op op, int64_t a, int64_t b,
                    struct jinja_value *out)
{
    int64_t i = 0;
    bool over = false;
    if (op == JINJA_ADD)
        over = __builtin_add_overflow(a, b, &i);
    else if (op == JINJA_SUB)
        over = __builtin_sub_overflow(a, b, &i);
    else if (op == JINJA_MUL)
        over = __builtin_mul_overflow(a, b, &i);
    else if (op == JINJA_FLOORDIV)
        JINJA_TRY(floor_divide(r, a, b, &i, NULL));
    else if (op == JINJA_MOD)
        JINJA_TRY(floor_divide(r, a, b, NULL, &i));
    else if (op == JINJA_POW)
        return int_power(r, a, b, out);
    if (op == JINJA_DIV) {
        if (b == 0)
            return jinja_fail(r, "division by zero");
        *out = jinja_float((double)((long double)a / (long double)b));
        return 0;
    }
    *out = jinja_int(i);
    return over ? overflow(r) : 0;
}

/* ---- floats ---- */
static int float_divmod(struct jinja_render *r, double a, double b, double *quotient, double *rest)
{
    if (b == 0)
        return jinja_fail(r, "float floor division or modulo by zero");
    double m = fmod(a, b), d = (a - m) / b;
    if (m == 0) {
        m = copysign(0, b);
    } else if ((b < 0) != (m < 0)) {
        m += b;
        d -= 1;
    }
    double whole = floor(d);
    if (d - whole > 0.5)
        whole += 1;
    *quotient = d == 0 ? copysign(0, a / b) : whole;
    *rest = m;
    return 0;
}

static int floats(struct jinja_render *r, enum jinja_op op, double a, double b,
                  struct jinja_value *out)
{
    double q = 0, m = 0;
    switch (op) {
    case JINJA_ADD:
        *out = jinja_float(a + b);
        return 0;
    case JINJA_SUB:
        *out = jinja_float(a - b);
        return 0;
    case JINJA_MUL:
        *out = jinja_float(a * b);
        return 0;
    case JINJA_DIV:
        if (b == 0)
            return jinja_fail(r, "float division by zero");
        *out = jinja_float(a / b);
        return 0;
    case JINJA_POW:
        return float_power(r, a, b, out);
    default:
        JINJA_TRY(float_divmod(r, a, b, &q, &m));
        *out = jinja_float(op == JINJA_MOD ? m : q);
        return 0;
    }
}

/* ---- sequences ---- */
static int concatenate(struct jinja_render *r, struct jinja_value a, struct jinja_value b,
                       struct jinja_value *out)
{
    size_t n = a.list->n + b.list->n;
    JINJA_TRY(jinja_new_list(r, a.type, n, out));
    JINJA_TRY(jinja_steps(r, n));
    if (a.list->n)
        memcpy(out->list->items, a.list->items, a.list->n * sizeof *a.list->items);
    if (b.list->n)
        memcpy(out->list->items + a.list->n, b.list->items, b.list->n * sizeof *b.list->items);
    out->list->n = n;
    return 0;
}

static int repeat_text(struct jinja_render *r, const struct jinja_str *s, uint64_t times,
                       struct jinja_value *out)
{
    if (s->len && times > LIMIT_TEMPLATE_OUTPUT_BYTES / s->len)
        return jinja_fail_code(r, ERR_LIMIT, "a text of more than %d bytes",
                               LIMIT_TEMPLATE_OUTPUT_BYTES);
    size_t len = s->len * times;
    char *data = jinja_alloc(r, len);
    if (!data)
        return r->err->code;
    for (size_t i = 0; s->len && i < times; i++)
        memcpy(data + i * s->len, s->data, s->len);
    JINJA_TRY(jinja_steps(r, len / 64 + (s->len ? times / 8 : 0)));
    JINJA_TRY(jinja_borrow_str(r, data, len, out));
    out->s->markup = s->markup;
    return 0;
}

static int repeat(struct jinja_render *r, struct jinja_value seq, int64_t times,
                  struct jinja_value *out)
{
    uint64_t n = times < 0 ? 0 : (uint64_t)times;
    if (seq.type == JINJA_STR)
        return repeat_text(r, seq.s, n, out);
    const struct jinja_list *l = seq.list;
    if (l->n && n > LIMIT_TEMPLATE_STEPS / l->n)
        return jinja_fail_code(r, ERR_LIMIT, "a list of more than %d items", LIMIT_TEMPLATE_STEPS);
    JINJA_TRY(jinja_new_list(r, seq.type, l->n * n, out));
    JINJA_TRY(jinja_steps(r, l->n * n));
    for (size_t i = 0; l->n && i < n; i++)
        memcpy(out->list->items + i * l->n, l->items, l->n * sizeof *l->items);
    out->list->n = l->n * n;
    return 0;
}

/* + where one side is marked safe: the other is escaped. */
static int join_marked(struct jinja_render *r, struct jinja_value a, struct jinja_value b,
                       struct jinja_value *out)
{
    JINJA_TRY(jinja_escape(r, a, &a));
    JINJA_TRY(jinja_escape(r, b, &b));
    JINJA_TRY(jinja_join2(r, a.s, b.s, out));
    return jinja_mark(r, *out, true, out);
}

static bool is_sequence(struct jinja_value v)
{
    return v.type == JINJA_STR || v.type == JINJA_LIST || v.type == JINJA_TUPLE;
}

int jinja_binary(struct jinja_render *r, enum jinja_op op, struct jinja_value a,
                 struct jinja_value b, struct jinja_value *out)
{
    if (jinja_is_integral(a) && jinja_is_integral(b))
        return integers(r, op, jinja_as_int(a), jinja_as_int(b), out);
    if (jinja_is_number(a) && jinja_is_number(b))
        return floats(r, op, jinja_as_double(a), jinja_as_double(b), out);
    if (op == JINJA_ADD && a.type == JINJA_STR && b.type == JINJA_STR &&
        (a.s->markup || b.s->markup))
        return join_marked(r, a, b, out);
    if (op == JINJA_ADD && a.type == JINJA_STR && b.type == JINJA_STR)
        return jinja_join2(r, a.s, b.s, out);
    if (op == JINJA_ADD && is_sequence(a) && a.type == b.type)
        return concatenate(r, a, b, out);
    if (op == JINJA_MUL && is_sequence(a) && jinja_is_integral(b))
        return repeat(r, a, jinja_as_int(b), out);
    if (op == JINJA_MUL && jinja_is_integral(a) && is_sequence(b))
        return repeat(r, b, jinja_as_int(a), out);
    if (op == JINJA_MOD && a.type == JINJA_STR)
        return jinja_percent(r, a, b, out);
    return unsupported(r, op, a, b);
}

int jinja_negate(struct jinja_render *r, struct jinja_value a, bool minus, struct jinja_value *out)
{
    if (a.type == JINJA_UNDEFINED)
        return jinja_fail_undefined(r, a);
    if (!jinja_is_number(a))
        return jinja_fail(r, "bad operand type for unary %c: '%s'", minus ? '-' : '+',
                          jinja_type_name(a));
    if (a.type == JINJA_FLOAT)
        *out = jinja_float(minus ? -a.f : a.f);
    else if (minus && jinja_as_int(a) == INT64_MIN)
        return overflow(r);
    else
        *out = jinja_int(minus ? -jinja_as_int(a) : jinja_as_int(a));
    return 0;
}

/* ---- comparisons ---- */
static int walk_for(struct jinja_render *r, struct jinja_value container, struct jinja_value item,
                    bool *out)
{
    struct jinja_iter it;
    struct jinja_value v;
    JINJA_TRY(jinja_iter_open(r, &it, container));
    for (*out = false; !*out;) {
        JINJA_TRY(jinja_iter_next(r, &it, &v));
        if (v.type == JINJA_MISSING)
            return 0;
        JINJA_TRY(jinja_equal(r, v, item, out));
    }
    return 0;
}

int jinja_contains(struct jinja_render *r, struct jinja_value container, struct jinja_value item,
                   bool *out)
{
    struct jinja_value found;
    if (container.type == JINJA_STR) {
        if (item.type != JINJA_STR)
            return jinja_fail(r, "'in <string>' requires string as left operand, not %s",
                              jinja_type_name(item));
        const struct jinja_str *s = container.s, *part = item.s;
        *out = part->len == 0 || (s->len && memmem(s->data, s->len, part->data, part->len));
        return jinja_steps(r, s->len / 64);
    }
    if (container.type == JINJA_DICT ||
        (container.type == JINJA_VIEW && container.view->kind == JINJA_KEYS)) {
        const struct jinja_dict *d =
            container.type == JINJA_DICT ? container.dict : container.view->dict;
        JINJA_TRY(jinja_dict_get(r, d, item, &found));
        *out = found.type != JINJA_MISSING;
        return 0;
    }
    if (!jinja_is_iterable(container))
        return jinja_fail(r, "argument of type '%s' is not iterable", jinja_type_name(container));
    return walk_for(r, container, item, out);
}

int jinja_relation(struct jinja_render *r, enum jinja_op op, struct jinja_value a,
                   struct jinja_value b, bool *out)
{
    int sign;
    bool unordered;
    if (op == JINJA_EQ || op == JINJA_NE) {
        JINJA_TRY(jinja_equal(r, a, b, out));
        *out = *out == (op == JINJA_EQ);
        return 0;
    }
    if (op == JINJA_IN || op == JINJA_NOT_IN) {
        JINJA_TRY(jinja_contains(r, b, a, out));
        *out = *out == (op == JINJA_IN);
        return 0;
    }
    JINJA_TRY(jinja_order(r, a, b, op_text[op], &sign, &unordered));
    if (unordered)
        *out = false;
    else
        *out = op == JINJA_LT   ? sign < 0
               : op == JINJA_LE ? sign <= 0
               : op == JINJA_GT ? sign > 0
                                : sign >= 0;
    return 0;
}
