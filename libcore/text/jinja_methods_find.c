/* Methods of str that look: find, startswith, count, is…. */
#include <inttypes.h>
#include <string.h>

#include "libcore/text/jinja_impl.h"

#define METHOD(name)                                                                               \
    static int name(struct jinja_render *r, struct jinja_value self,                               \
                    const struct jinja_value *argv, const struct jinja_args *args,                 \
                    struct jinja_value *out)

/* The part of self that [start, end) names; false: the start lies behind the text. */
struct part {
    const char *data;
    size_t len;
    size_t first; // code points before it
    bool inside;
};

static int64_t clamp(int64_t i, int64_t n)
{
    if (i < 0)
        i += n;
    return i < 0 ? 0 : i;
}

static int read_part(struct jinja_render *r, struct jinja_str *s, struct jinja_value start,
                     struct jinja_value end, struct part *out)
{
    int64_t n = (int64_t)jinja_n_chars(s), from = 0, to = n;
    if (start.type != JINJA_NONE)
        JINJA_TRY(jinja_arg_int(r, start, "start", &from));
    if (end.type != JINJA_NONE)
        JINJA_TRY(jinja_arg_int(r, end, "end", &to));
    from = clamp(from, n);
    to = to > n ? n : clamp(to, n);
    out->inside = from <= n && from <= to;
    out->first = (size_t)from;
    size_t begin = jinja_char_offset(s, (size_t)from), stop = jinja_char_offset(s, (size_t)to);
    out->data = s->data + begin;
    out->len = out->inside ? stop - begin : 0;
    return jinja_steps(r, 1 + s->len / 64);
}

static bool has_at_end(const struct part *p, const struct jinja_str *s, bool start)
{
    if (!p->inside || s->len > p->len)
        return false;
    return memcmp(start ? p->data : p->data + p->len - s->len, s->data, s->len) == 0;
}

static int starts_or_ends(struct jinja_render *r, struct jinja_value self,
                          const struct jinja_value *argv, bool start, struct jinja_value *out)
{
    struct part p;
    bool found = false;
    struct jinja_value what = argv[0];
    JINJA_TRY(read_part(r, self.s, argv[1], argv[2], &p));
    if (what.type == JINJA_STR) {
        found = has_at_end(&p, what.s, start);
    } else if (what.type == JINJA_TUPLE) {
        for (size_t i = 0; !found && i < what.list->n; i++) {
            if (what.list->items[i].type != JINJA_STR)
                return jinja_fail(r, "tuple for startswith or endswith must only contain str");
            found = has_at_end(&p, what.list->items[i].s, start);
            JINJA_TRY(jinja_steps(r, 1));
        }
    } else {
        return jinja_fail(r, "%s first arg must be str or a tuple of str, not %s",
                          start ? "startswith" : "endswith", jinja_type_name(what));
    }
    *out = jinja_bool(found);
    return 0;
}

METHOD(startswith)
{
    (void)args;
    return starts_or_ends(r, self, argv, true, out);
}

METHOD(endswith)
{
    (void)args;
    return starts_or_ends(r, self, argv, false, out);
}

static const char *last_match(const struct part *p, const struct jinja_str *what)
{
    for (size_t i = p->len - what->len + 1; i-- > 0;)
        if (memcmp(p->data + i, what->data, what->len) == 0)
            return p->data + i;
    return NULL;
}

/* Place of the first or last match in code points, or -1. */
static int find_place(struct jinja_render *r, struct jinja_value self,
                      const struct jinja_value *argv, bool last, int64_t *out)
{
    struct part p;
    struct jinja_str *what = NULL;
    const char *found = NULL;
    JINJA_TRY(jinja_arg_str(r, argv[0], "find", &what));
    JINJA_TRY(read_part(r, self.s, argv[1], argv[2], &p));
    *out = -1;
    if (!p.inside || what->len > p.len)
        return 0;
    if (last) {
        JINJA_TRY(jinja_steps(r, p.len / 4 + (p.len / 64) * (what->len / 64)));
        found = last_match(&p, what);
    } else {
        found = what->len ? memmem(p.data, p.len, what->data, what->len) : p.data;
    }
    if (!found)
        return 0;
    struct jinja_str before = {
        .data = p.data, .len = (size_t)(found - p.data), .n_chars = JINJA_UNCOUNTED};
    *out = (int64_t)(p.first + jinja_n_chars(&before));
    return 0;
}

#define FINDER(name, last, must)                                                                   \
    METHOD(name)                                                                                   \
    {                                                                                              \
        int64_t place;                                                                             \
        (void)args;                                                                                \
        JINJA_TRY(find_place(r, self, argv, last, &place));                                        \
        if (must && place < 0)                                                                     \
            return jinja_fail(r, "substring not found");                                           \
        *out = jinja_int(place);                                                                   \
        return 0;                                                                                  \
    }

FINDER(find, false, false)
FINDER(rfind, true, false)
FINDER(index_, false, true)
FINDER(rindex_, true, true)

METHOD(count)
{
    struct part p;
    struct jinja_str *what = NULL;
    int64_t n = 0;
    (void)args;
    JINJA_TRY(jinja_arg_str(r, argv[0], "count", &what));
    JINJA_TRY(read_part(r, self.s, argv[1], argv[2], &p));
    if (p.inside && !what->len) {
        struct jinja_str s = {.data = p.data, .len = p.len, .n_chars = JINJA_UNCOUNTED};
        n = (int64_t)jinja_n_chars(&s) + 1;
    }
    while (p.inside && what->len && p.len >= what->len) {
        const char *at = memmem(p.data, p.len, what->data, what->len);
        if (!at)
            break;
        n++;
        p.len -= (size_t)(at - p.data) + what->len;
        p.data = at + what->len;
    }
    *out = jinja_int(n);
    return 0;
}

/* ---- is… ---- */
static bool all_chars(const struct jinja_str *s, bool (*is)(uint32_t cp), bool when_empty)
{
    uint32_t cp;
    for (size_t i = 0; i < s->len;) {
        i += jinja_decode(s->data + i, s->len - i, &cp);
        if (!is(cp))
            return false;
    }
    return s->len > 0 || when_empty;
}

static bool is_alnum(uint32_t cp)
{
    return jinja_is_alpha(cp) || jinja_is_numeric(cp);
}

static bool is_ascii(uint32_t cp)
{
    return cp < 0x80;
}

#define CLASS(name, predicate, when_empty)                                                         \
    METHOD(name)                                                                                   \
    {                                                                                              \
        (void)argv, (void)args;                                                                    \
        *out = jinja_bool(all_chars(self.s, predicate, when_empty));                               \
        return jinja_steps(r, self.s->len / 16);                                                   \
    }

CLASS(str_isalpha, jinja_is_alpha, false)
CLASS(str_isalnum, is_alnum, false)
CLASS(str_isdecimal, jinja_is_decimal, false)
CLASS(str_isdigit, jinja_is_digit, false)
CLASS(str_isnumeric, jinja_is_numeric, false)
CLASS(str_isspace, jinja_is_space, false)
CLASS(str_isprintable, jinja_is_printable, true)
CLASS(str_isascii, is_ascii, true)

METHOD(str_isidentifier)
{
    uint32_t cp = 0;
    (void)argv, (void)args;
    if (self.s->len)
        jinja_decode(self.s->data, self.s->len, &cp);
    *out = jinja_bool((cp == '_' || jinja_is_alpha(cp)) && all_chars(self.s, jinja_is_word, false));
    return jinja_steps(r, self.s->len / 16);
}

/* Some cased letter, and none of the other case. */
static bool only_case(const struct jinja_str *s, bool lower)
{
    uint32_t cp;
    bool some = false;
    for (size_t i = 0; i < s->len;) {
        i += jinja_decode(s->data + i, s->len - i, &cp);
        bool is_lower = jinja_is_lower(cp), is_upper = jinja_is_upper(cp);
        if (jinja_is_title(cp) || (lower ? is_upper : is_lower))
            return false;
        some |= lower ? is_lower : is_upper;
    }
    return some;
}

METHOD(str_islower)
{
    (void)argv, (void)args;
    *out = jinja_bool(only_case(self.s, true));
    return jinja_steps(r, self.s->len / 16);
}

METHOD(str_isupper)
{
    (void)argv, (void)args;
    *out = jinja_bool(only_case(self.s, false));
    return jinja_steps(r, self.s->len / 16);
}

METHOD(str_istitle)
{
    uint32_t cp;
    bool some = false, inside = false, ok = true;
    (void)argv, (void)args;
    for (size_t i = 0; ok && i < self.s->len;) {
        i += jinja_decode(self.s->data + i, self.s->len - i, &cp);
        bool upper = jinja_is_upper(cp) || jinja_is_title(cp), lower = jinja_is_lower(cp);
        ok = !(upper && inside) && !(lower && !inside);
        inside = upper || lower;
        some |= inside;
    }
    *out = jinja_bool(ok && some);
    return jinja_steps(r, self.s->len / 16);
}

const struct jinja_row jinja_str_methods_find[] = {
    {"startswith", startswith, "prefix,start,end", 1},
    {"endswith", endswith, "suffix,start,end", 1},
    {"find", find, "sub,start,end", 1},
    {"rfind", rfind, "sub,start,end", 1},
    {"index", index_, "sub,start,end", 1},
    {"rindex", rindex_, "sub,start,end", 1},
    {"count", count, "sub,start,end", 1},
    {"isalpha", str_isalpha, "", 0},
    {"isalnum", str_isalnum, "", 0},
    {"isdecimal", str_isdecimal, "", 0},
    {"isdigit", str_isdigit, "", 0},
    {"isnumeric", str_isnumeric, "", 0},
    {"isspace", str_isspace, "", 0},
    {"isprintable", str_isprintable, "", 0},
    {"isascii", str_isascii, "", 0},
    {"isidentifier", str_isidentifier, "", 0},
    {"islower", str_islower, "", 0},
    {"isupper", str_isupper, "", 0},
    {"istitle", str_istitle, "", 0},
    {NULL, NULL, NULL, 0},
};
