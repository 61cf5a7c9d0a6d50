/* Reads a pattern in Oniguruma's Ruby syntax. What PCRE2 would read differently is rewritten here:
 * sets, escapes, x{n,m}+ (a repeated repeat there, possessive here) and x{n}?, '^' and '$' (always
 * of lines), \b. Everything else that could differ is refused. */
#include <string.h>

#include "libcore/text/regex_impl.h"

enum { MAX_DEPTH = 64, MAX_REPEAT = 65535 };

struct parser {
    const char *p, *end, *pattern;
    struct regex_program *program;
    struct err *err;
    int depth;
    bool ignore_case, dot_all;
};

static int parse_alternatives(struct parser *s);

static int refuse(struct parser *s, const char *what)
{
    return err_set(s->err, ERR_REFUSED, "regular expression: %s at %zu is not supported", what,
                   (size_t)(s->p - s->pattern));
}

static int broken(struct parser *s, const char *what)
{
    return err_set(s->err, ERR_CORRUPT, "regular expression: %s at %zu", what,
                   (size_t)(s->p - s->pattern));
}

static bool at(const struct parser *s, const char *text)
{
    size_t n = strlen(text);
    return (size_t)(s->end - s->p) >= n && memcmp(s->p, text, n) == 0;
}

static uint32_t next_code_point(struct parser *s)
{
    size_t len;
    uint32_t c = utf8_decode(s->p, &len);
    s->p += len;
    return c;
}

/* Writes the set into the program; takes what it holds. */
static int emit_set(struct parser *s, struct cp_set *set)
{
    struct regex_program *g = s->program;
    cp_set_normalize(set);
    size_t i = 0;
    while (i < g->n_sets && !cp_set_equal(&g->sets[i], set))
        i++;
    if (set->failed) {
        cp_set_release(set);
        return err_set(s->err, ERR_NO_MEMORY, "regular expression: out of memory");
    }
    if (i == REGEX_MAX_SETS) {
        cp_set_release(set);
        return err_set(s->err, ERR_LIMIT, "regular expression: more than %d different sets",
                       REGEX_MAX_SETS);
    }
    if (i == g->n_sets)
        g->sets[g->n_sets++] = *set;
    else
        cp_set_release(set);
    strbuf_addc(&g->text, REGEX_SET_MARK);
    strbuf_addc(&g->text, (char)(' ' + i));
    return 0;
}

static int emit_literal(struct parser *s, uint32_t c)
{
    struct cp_set set;
    cp_set_init(&set);
    cp_set_add(&set, c, c);
    if (s->ignore_case)
        cp_set_close_case(&set);
    return emit_set(s, &set);
}

/* ---- escapes ---- */

static int hex_value(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* \xHH, \x{H…}, \uHHHH; s->p stands behind the letter. */
static int parse_hex(struct parser *s, char letter, uint32_t *c)
{
    bool braces = letter == 'x' && s->p < s->end && *s->p == '{';
    int most = braces ? 8 : letter == 'x' ? 2 : 4, n = 0;
    s->p += braces;
    *c = 0;
    while (n < most && s->p < s->end && hex_value(*s->p) >= 0) {
        *c = *c << 4 | (uint32_t)hex_value(*s->p++);
        n++;
    }
    if (n == 0 || (letter == 'u' && n < 4))
        return broken(s, "hex digits missing");
    if (braces && (s->p == s->end || *s->p++ != '}'))
        return broken(s, "'}' missing");
    if (*c > UNICODE_MAX || (*c >= 0xD800 && *c <= 0xDFFF) ||
        (letter == 'x' && !braces && *c > 0x7F))
        return refuse(s, "that code point");
    return 0;
}

/* \p{Name}, \p{^Name}, \P{Name}; s->p stands behind the letter. */
static int add_property(struct parser *s, bool negated, struct cp_set *set)
{
    if (s->p == s->end || *s->p != '{')
        return refuse(s, "\\p without braces");
    const char *name = ++s->p;
    const char *close = memchr(name, '}', (size_t)(s->end - name));
    if (!close)
        return broken(s, "'}' missing");
    if (*name == '^') {
        negated = !negated;
        name++;
    }
    struct cp_set property;
    cp_set_init(&property);
    if (!cp_set_add_property(&property, name, (size_t)(close - name))) {
        cp_set_release(&property);
        return err_set(s->err, ERR_REFUSED, "regular expression: \\p{%.*s} is not supported",
                       (int)(close - name > 40 ? 40 : close - name), name);
    }
    if (negated)
        cp_set_complement(&property);
    cp_set_add_set(set, &property);
    cp_set_release(&property);
    s->p = close + 1;
    return 0;
}

/* Oniguruma's \w holds six old Latin-1 numbers (² ³ ¹ ¼ ½ ¾) when it stands alone, not inside [ ].
 */
static void add_escape_class(char letter, bool in_set, struct cp_set *set)
{
    char name[2] = {'\\', (char)(letter | 32)};
    struct cp_set property;
    cp_set_init(&property);
    cp_set_add_property(&property, name, 2);
    if ((letter | 32) == 'w' && !in_set) {
        cp_set_add(&property, 0xB2, 0xB3);
        cp_set_add(&property, 0xB9, 0xB9);
        cp_set_add(&property, 0xBC, 0xBE);
        cp_set_normalize(&property);
    }
    if (letter < 'a')
        cp_set_complement(&property);
    cp_set_add_set(set, &property);
    cp_set_release(&property);
}

/* Behind a backslash: adds what the escape means to the set. *single is set when it is one
 * character, *c then, which may begin a range. */
static int parse_escape(struct parser *s, bool in_set, struct cp_set *set, bool *single,
                        uint32_t *c)
{
    if (s->p == s->end)
        return broken(s, "a lone backslash");
    *single = false;
    char letter = *s->p;
    if (letter && strchr("sSdDwWhH", letter)) {
        s->p++;
        add_escape_class(letter, in_set, set);
        return 0;
    }
    if (letter == 'p' || letter == 'P') {
        s->p++;
        return add_property(s, letter == 'P', set);
    }
    static const char controls[] = "n\nt\tr\rf\fv\va\ae\x1b";
    *single = true;
    if (letter == 'x' || letter == 'u') {
        s->p++;
        int rc = parse_hex(s, letter, c);
        if (rc)
            return rc;
    } else if ((letter >= 'a' && letter <= 'z') || (letter >= 'A' && letter <= 'Z') ||
               (letter >= '0' && letter <= '9')) {
        size_t i = 0;
        while (controls[i] && controls[i] != letter)
            i += 2;
        if (!controls[i]) {
            char what[] = "the escape \\?";
            what[sizeof what - 2] = letter;
            return refuse(s, what);
        }
        s->p++;
        *c = (unsigned char)controls[i + 1];
    } else {
        *c = next_code_point(s);
    }
    cp_set_add(set, *c, *c);
    return 0;
}

/* ---- [sets] ---- */

/* The end of a range whose beginning was read; s->p stands behind the '-'. */
static int parse_range_end(struct parser *s, uint32_t first, struct cp_set *set)
{
    uint32_t last;
    if (*s->p == '\\') {
        struct cp_set unused;
        cp_set_init(&unused);
        bool single;
        s->p++;
        int rc = parse_escape(s, true, &unused, &single, &last);
        cp_set_release(&unused);
        if (rc)
            return rc;
        if (!single)
            return refuse(s, "a range that ends in a class");
    } else {
        last = next_code_point(s);
    }
    if (last < first)
        return broken(s, "an empty range");
    cp_set_add(set, first, last);
    return 0;
}

static int parse_set_members(struct parser *s, struct cp_set *set)
{
    for (bool first = true;; first = false) {
        if (s->p == s->end)
            return broken(s, "']' missing");
        if (*s->p == ']') {
            if (first)
                return refuse(s, "']' as the first of a set");
            s->p++;
            return 0;
        }
        if (*s->p == '[')
            return refuse(s, s->p + 1 < s->end && s->p[1] == ':' ? "a POSIX bracket"
                                                                 : "a set in a set");
        if (at(s, "&&"))
            return refuse(s, "an intersection of sets (&&)");
        bool single = true;
        uint32_t c = 0;
        int rc = 0;
        if (*s->p == '\\') {
            s->p++;
            rc = parse_escape(s, true, set, &single, &c);
        } else {
            c = next_code_point(s);
            cp_set_add(set, c, c);
        }
        bool range = !rc && s->end - s->p >= 2 && s->p[0] == '-' && s->p[1] != ']';
        if (range && !single)
            rc = refuse(s, "a range that begins with a class");
        else if (range && s->p[1] == '[')
            rc = refuse(s, "a set in a set");
        else if (range) {
            s->p++;
            rc = parse_range_end(s, c, set);
        }
        if (rc)
            return rc;
    }
}

static int parse_set(struct parser *s)
{
    struct cp_set set;
    cp_set_init(&set);
    bool negated = s->p < s->end && *s->p == '^';
    s->p += negated;
    int rc = parse_set_members(s, &set);
    if (rc) {
        cp_set_release(&set);
        return rc;
    }
    cp_set_normalize(&set);
    if (s->ignore_case)
        cp_set_close_case(&set);
    if (negated)
        cp_set_complement(&set);
    return emit_set(s, &set);
}

/* ---- groups and atoms ---- */

/* (?i) (?i-m: …: sets the flags; *scoped when a ':' followed. s->p stands behind "(?". */
static int parse_flags(struct parser *s, bool *scoped)
{
    bool on = true;
    for (; s->p < s->end; s->p++) {
        switch (*s->p) {
        case '-':
            on = false;
            break;
        case 'i':
            s->ignore_case = on;
            break;
        case 'm':
            s->dot_all = on;
            break;
        case ':':
        case ')':
            *scoped = *s->p++ == ':';
            return 0;
        default:
            return refuse(s, "that group or flag");
        }
    }
    return broken(s, "')' missing");
}

static int close_group(struct parser *s)
{
    if (s->p == s->end || *s->p != ')')
        return broken(s, "')' missing");
    s->p++;
    strbuf_addc(&s->program->text, ')');
    return 0;
}

static int parse_group(struct parser *s)
{
    static const char *const plain[] = {"?:", "?=", "?!", "?<=", "?<!", "?>"};
    struct strbuf *out = &s->program->text;
    bool ignore_case = s->ignore_case, dot_all = s->dot_all, scoped = true;
    const char *opening = "?:"; // nothing refers back, so that no group need capture
    size_t i = 0;
    while (i < 6 && !at(s, plain[i]))
        i++;
    if (i < 6) {
        opening = plain[i];
        s->p += strlen(opening);
    } else if (s->p < s->end && *s->p == '?') {
        bool first =
            out->len == 0 || out->data[out->len - 1] == '(' || out->data[out->len - 1] == ':';
        s->p++;
        int rc = parse_flags(s, &scoped);
        if (rc)
            return rc;
        if (!scoped && !first)
            return refuse(s, "a flag in the middle of a group");
        if (!scoped)
            return 0; // holds to the end of the group around it, which restores it
    }
    strbuf_addc(out, '(');
    strbuf_adds(out, opening);
    int rc = parse_alternatives(s);
    if (!rc)
        rc = close_group(s);
    s->ignore_case = ignore_case;
    s->dot_all = dot_all;
    return rc;
}

/* \b: a word character on exactly one side. */
static int emit_word_boundary(struct parser *s, bool negated)
{
    struct strbuf *out = &s->program->text;
    static const char *const parts[] = {"(?<=", ")(?!", ")|(?<!", ")(?=", "))"};
    static const char *const negated_parts[] = {"(?<=", ")(?=", ")|(?<!", ")(?!", "))"};
    const char *const *part = negated ? negated_parts : parts;
    strbuf_adds(out, "(?:");
    for (int i = 0; i < 5; i++) {
        strbuf_adds(out, part[i]);
        if (i == 4)
            break;
        struct cp_set word;
        cp_set_init(&word);
        add_escape_class('w', false, &word);
        int rc = emit_set(s, &word);
        if (rc)
            return rc;
    }
    return 0;
}

static int parse_backslash(struct parser *s)
{
    char letter = s->p < s->end ? *s->p : '\0';
    if (letter == 'b' || letter == 'B') {
        s->p++;
        return emit_word_boundary(s, letter == 'B');
    }
    if (letter == 'A' || letter == 'z' || letter == 'Z') {
        s->p++;
        strbuf_addc(&s->program->text, '\\');
        strbuf_addc(&s->program->text, letter);
        return 0;
    }
    struct cp_set set;
    cp_set_init(&set);
    bool single;
    uint32_t c;
    int rc = parse_escape(s, false, &set, &single, &c);
    if (rc) {
        cp_set_release(&set);
        return rc;
    }
    if (single && s->ignore_case)
        cp_set_close_case(&set);
    return emit_set(s, &set);
}

static int emit_dot(struct parser *s)
{
    struct cp_set set;
    cp_set_init(&set);
    if (!s->dot_all)
        cp_set_add(&set, '\n', '\n');
    cp_set_complement(&set);
    return emit_set(s, &set);
}

static int parse_atom(struct parser *s)
{
    switch (*s->p) {
    case '(':
        s->p++;
        return parse_group(s);
    case '[':
        s->p++;
        return parse_set(s);
    case '\\':
        s->p++;
        return parse_backslash(s);
    case '.':
        s->p++;
        return emit_dot(s);
    case '^':
    case '$':
        strbuf_addc(&s->program->text, *s->p++);
        return 0;
    case '*':
    case '+':
    case '?':
        return refuse(s, "a repeat of nothing");
    default:
        return emit_literal(s, next_code_point(s));
    }
}

/* ---- repeats ---- */

static bool parse_number(const char **p, const char *end, long *value)
{
    const char *start = *p;
    *value = 0;
    while (*p < end && **p >= '0' && **p <= '9' && *value <= MAX_REPEAT)
        *value = *value * 10 + (*(*p)++ - '0');
    return *p > start;
}

/* {n}, {n,}, {,m}, {n,m} at s->p: true and s->p behind it; anything else is a literal '{'. */
static bool parse_interval(struct parser *s, long *low, long *high)
{
    const char *p = s->p + 1;
    bool has_low = parse_number(&p, s->end, low);
    *high = *low;
    if (p < s->end && *p == ',') {
        p++;
        if (!parse_number(&p, s->end, high)) {
            if (!has_low)
                return false;
            *high = -1;
        }
    } else if (!has_low) {
        return false;
    }
    if (p == s->end || *p != '}')
        return false;
    s->p = p + 1;
    return true;
}

static void wrap(struct strbuf *out, size_t start)
{
    strbuf_adds(out, "(?:)");
    if (out->failed)
        return;
    memmove(out->data + start + 3, out->data + start, out->len - 4 - start);
    memcpy(out->data + start, "(?:", 3);
    out->data[out->len - 1] = ')';
}

/* One quantifier behind the atom that begins at `start`; *more when there was one. */
static int parse_repeat(struct parser *s, size_t start, bool *more)
{
    struct strbuf *out = &s->program->text;
    long low, high;
    *more = false;
    if (s->p == s->end)
        return 0;
    char c = *s->p;
    if (c == '*' || c == '+' || c == '?') {
        s->p++;
        strbuf_addc(out, c);
        if (s->p < s->end && (*s->p == '?' || *s->p == '+'))
            strbuf_addc(out, *s->p++);
    } else if (c == '{' && parse_interval(s, &low, &high)) {
        if (low > MAX_REPEAT || high > MAX_REPEAT || (high >= 0 && high < low))
            return refuse(s, "that repeat count");
        strbuf_addf(out, high < 0 ? "{%ld,}" : "{%ld,%ld}", low, high);
        // x{n}? is an optional x{n} there; x{n,m}? is the lazy one
        if (s->p < s->end && *s->p == '?' && low != high) {
            s->p++;
            strbuf_addc(out, '?');
        }
    } else {
        return 0;
    }
    wrap(out, start);
    *more = true;
    return 0;
}

static int parse_sequence(struct parser *s)
{
    while (s->p < s->end && *s->p != '|' && *s->p != ')') {
        size_t start = s->program->text.len;
        int rc = parse_atom(s);
        for (bool more = true; !rc && more;)
            rc = parse_repeat(s, start, &more);
        if (rc)
            return rc;
    }
    return 0;
}

static int parse_alternatives(struct parser *s)
{
    if (++s->depth > MAX_DEPTH)
        return err_set(s->err, ERR_LIMIT, "regular expression: groups more than %d deep",
                       MAX_DEPTH);
    int rc = parse_sequence(s);
    while (!rc && s->p < s->end && *s->p == '|') {
        strbuf_addc(&s->program->text, *s->p++);
        rc = parse_sequence(s);
    }
    s->depth--;
    return rc;
}

int regex_parse(struct regex_program *program, const char *pattern, size_t n, struct err *err)
{
    memset(program, 0, sizeof *program);
    strbuf_init(&program->text);
    if (utf8_valid_prefix(pattern, n) != n)
        return err_set(err, ERR_CORRUPT, "regular expression: not UTF-8");
    struct parser s = {
        .p = pattern, .end = pattern + n, .pattern = pattern, .program = program, .err = err};
    int rc = parse_alternatives(&s);
    if (!rc && s.p < s.end)
        rc = broken(&s, "')' without '('");
    if (!rc && program->text.failed)
        rc = err_set(err, ERR_NO_MEMORY, "regular expression: out of memory");
    return rc;
}

void regex_program_release(struct regex_program *program)
{
    strbuf_release(&program->text);
    for (size_t i = 0; i < program->n_sets; i++)
        cp_set_release(&program->sets[i]);
}
