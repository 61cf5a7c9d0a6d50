/* Filters that make text. Most are a str method over str(value). */
#include <string.h>

#include "libcore/text/jinja_impl.h"

#define FILTER(name)                                                                               \
    static int name(struct jinja_render *r, struct jinja_value self,                               \
                    const struct jinja_value *argv, const struct jinja_args *args,                 \
                    struct jinja_value *out)
#define UNUSED_ARGS (void)argv, (void)args

/* str(self).method(args…) */
static int by_method(struct jinja_render *r, const char *method, struct jinja_value self,
                     const struct jinja_args *args, struct jinja_value *out)
{
    JINJA_TRY(jinja_to_str(r, self, &self));
    return jinja_run_method(r, jinja_find_method(JINJA_STR, method, strlen(method)), self, args,
                            out);
}

FILTER(upper)
{
    (void)argv;
    return by_method(r, "upper", self, args, out);
}

FILTER(lower)
{
    (void)argv;
    return by_method(r, "lower", self, args, out);
}

FILTER(capitalize)
{
    (void)argv;
    return by_method(r, "capitalize", self, args, out);
}

FILTER(trim)
{
    const struct jinja_args chars = {.pos = argv, .n = argv[0].type != JINJA_MISSING};
    (void)args;
    return by_method(r, "strip", self, &chars, out);
}

FILTER(center)
{
    const struct jinja_value width[] = {argv[0].type == JINJA_MISSING ? jinja_int(80) : argv[0]};
    const struct jinja_args a = {.pos = width, .n = 1};
    (void)args;
    return by_method(r, "center", self, &a, out);
}

FILTER(safe)
{
    UNUSED_ARGS;
    JINJA_TRY(jinja_to_str(r, self, &self));
    return jinja_mark(r, self, true, out);
}

/* A list of dicts, as tools are. */
static bool is_tool_list(struct jinja_value v)
{
    bool all = v.type == JINJA_LIST && v.list->n > 0;
    for (size_t i = 0; all && i < v.list->n; i++)
        all = v.list->items[i].type == JINJA_DICT;
    return all;
}

/*
 * str(), but a list of dicts as JSON: the one place where this program leaves jinja2 (which writes
 * Python's repr) for the published expectation of a template that says `tools|string`
 * (MadeAgents/Hammer2.1). Every other value, and such a list when it is printed or joined with ~,
 * is written as Python writes it.
 */
FILTER(string)
{
    const struct jinja_row *tojson = jinja_find_filter("tojson", 6);
    const struct jinja_args none = {0};
    UNUSED_ARGS;
    if (is_tool_list(self))
        return jinja_run_row(r, tojson, self, &none, out);
    return jinja_to_str(r, self, out);
}

FILTER(replace)
{
    struct jinja_value v[3] = {argv[0], argv[1], argv[2]};
    (void)args;
    JINJA_TRY(jinja_to_str(r, self, &self));
    JINJA_TRY(jinja_mark(r, self, false, &self));
    JINJA_TRY(jinja_to_str(r, v[0], &v[0]));
    JINJA_TRY(jinja_to_str(r, v[1], &v[1]));
    bool counted = v[2].type != JINJA_MISSING && v[2].type != JINJA_NONE;
    const struct jinja_args a = {.pos = v, .n = counted ? 3 : 2};
    return by_method(r, "replace", self, &a, out);
}

FILTER(format)
{
    struct jinja_value v;
    (void)argv;
    JINJA_TRY(jinja_to_str(r, self, &self));
    if (args->n && args->n_kw)
        return jinja_fail(r, "can't handle positional and keyword arguments at the same time");
    if (args->n_kw) {
        JINJA_TRY(jinja_new_dict(r, JINJA_DICT, &v));
        for (size_t i = 0; i < args->n_kw; i++)
            JINJA_TRY(jinja_dict_set(r, v.dict, jinja_of_str(args->kw[i].name), args->kw[i].value));
        return jinja_percent(r, self, v, out);
    }
    JINJA_TRY(jinja_new_list(r, JINJA_TUPLE, 0, &v));
    for (size_t i = 0; i < args->n; i++)
        JINJA_TRY(jinja_list_add(r, v.list, args->pos[i]));
    return jinja_percent(r, self, v, out);
}

/* ---- built here ---- */
FILTER(escape)
{
    UNUSED_ARGS;
    return jinja_escape(r, self, out);
}

FILTER(forceescape)
{
    UNUSED_ARGS;
    JINJA_TRY(jinja_to_str(r, self, &self));
    JINJA_TRY(jinja_mark(r, self, false, &self));
    return jinja_escape(r, self, out);
}

static bool title_gap(uint32_t cp)
{
    return cp == '-' || cp == '(' || cp == '{' || cp == '[' || cp == '<' || jinja_is_space(cp);
}

FILTER(title)
{
    struct strbuf sb;
    UNUSED_ARGS;
    JINJA_TRY(jinja_to_str(r, self, &self));
    const char *s = self.s->data;
    strbuf_init(&sb);
    for (size_t i = 0, n; i < self.s->len;) {
        uint32_t cp;
        n = jinja_decode(s + i, self.s->len - i, &cp);
        if (title_gap(cp)) {
            strbuf_add(&sb, s + i, n);
            i += n;
            continue;
        }
        size_t end = i + n;
        while (end < self.s->len) {
            size_t m = jinja_decode(s + end, self.s->len - end, &cp);
            if (title_gap(cp))
                break;
            end += m;
        }
        jinja_add_upper(&sb, s + i, n);
        jinja_add_lower(&sb, s + i + n, end - i - n);
        i = end;
    }
    JINJA_TRY(jinja_steps(r, self.s->len / 16));
    return jinja_take_strbuf(r, &sb, out);
}

FILTER(wordcount)
{
    int64_t n = 0;
    bool inside = false;
    uint32_t cp;
    UNUSED_ARGS;
    JINJA_TRY(jinja_to_str(r, self, &self));
    for (size_t i = 0; i < self.s->len;) {
        i += jinja_decode(self.s->data + i, self.s->len - i, &cp);
        bool word = jinja_is_word(cp);
        n += word && !inside;
        inside = word;
    }
    *out = jinja_int(n);
    return jinja_steps(r, self.s->len / 16);
}

/* One more line of `text`, which ends at its line break; *next is where the following starts. */
static size_t line_end(const struct jinja_str *s, size_t begin, size_t *next)
{
    uint32_t cp;
    for (size_t i = begin; i < s->len;) {
        size_t n = jinja_decode(s->data + i, s->len - i, &cp);
        if (jinja_is_line_break(cp)) {
            bool crlf = cp == '\r' && i + 1 < s->len && s->data[i + 1] == '\n';
            *next = i + n + crlf;
            return i;
        }
        i += n;
    }
    *next = s->len;
    return s->len;
}

static int indent_text(struct jinja_render *r, const struct jinja_str *s,
                       const struct jinja_str *by, bool first, bool blank, struct jinja_value *out)
{
    struct strbuf sb;
    size_t begin = 0;
    strbuf_init(&sb);
    sb.max = LIMIT_TEMPLATE_OUTPUT_BYTES;
    int rc = 0;
    for (bool head = true; !rc && (head || begin < s->len); head = false) {
        size_t next, end = line_end(s, begin, &next);
        if (!head)
            strbuf_addc(&sb, '\n');
        if (head ? first : blank || end > begin)
            strbuf_add(&sb, by->data, by->len);
        strbuf_add(&sb, s->data + begin, end - begin);
        rc = jinja_steps(r, 1 + by->len / 64 + (next - begin) / 16);
        begin = next;
    }
    if (!rc)
        return jinja_take_strbuf(r, &sb, out);
    strbuf_release(&sb);
    return rc;
}

FILTER(indent)
{
    struct jinja_value by, spaces, text, newline;
    int64_t width = 4;
    (void)args;
    if (self.type == JINJA_UNDEFINED)
        return jinja_fail_undefined(r, self);
    if (self.type != JINJA_STR)
        return jinja_fail(r, "indent: must be str, not %s", jinja_type_name(self));
    by = argv[0];
    if (by.type != JINJA_STR) {
        JINJA_TRY(jinja_arg_int(r, by, "width", &width));
        JINJA_TRY(jinja_borrow_str(r, " ", 1, &spaces));
        JINJA_TRY(jinja_binary(r, JINJA_MUL, spaces, jinja_int(width), &by));
    }
    // jinja2 adds a newline before it splits, so that a last empty line stays
    JINJA_TRY(jinja_borrow_str(r, "\n", 1, &newline));
    JINJA_TRY(jinja_join2(r, self.s, newline.s, &text));
    JINJA_TRY(indent_text(r, text.s, by.s, jinja_truth(argv[1]), jinja_truth(argv[2]), out));
    out->s->markup = self.s->markup;
    return 0;
}

FILTER(truncate)
{
    struct jinja_str dots = {.data = "...", .len = 3, .n_chars = 3}, *end = &dots;
    int64_t length = 255, leeway = 5, n;
    struct jinja_value head;
    (void)args;
    JINJA_TRY(jinja_arg_int(r, argv[0], "length", &length));
    JINJA_TRY(jinja_arg_str(r, argv[2], "end", &end));
    if (argv[3].type != JINJA_NONE)
        JINJA_TRY(jinja_arg_int(r, argv[3], "leeway", &leeway));
    int64_t n_end = (int64_t)jinja_n_chars(end);
    if (length < n_end || leeway < 0)
        return jinja_fail(r, "truncate: expected length >= %d and leeway >= 0", (int)n_end);
    JINJA_TRY(jinja_length(r, self, &n));
    *out = self;
    if (n <= leeway || n - leeway <= length)
        return 0;
    if (self.type != JINJA_STR)
        return jinja_fail(r, "truncate: must be str, not %s", jinja_type_name(self));
    size_t cut = jinja_char_offset(self.s, (size_t)(length - n_end));
    if (!jinja_truth(argv[1])) {
        const char *space = cut ? memrchr(self.s->data, ' ', cut) : NULL;
        cut = space ? (size_t)(space - self.s->data) : cut;
    }
    JINJA_TRY(jinja_borrow_str(r, self.s->data, cut, &head));
    head.s->markup = self.s->markup;
    return jinja_binary(r, JINJA_ADD, head, jinja_of_str(end), out);
}

static void add_quoted(struct strbuf *sb, const struct jinja_str *s, bool query)
{
    for (size_t i = 0; i < s->len; i++) {
        unsigned char c = (unsigned char)s->data[i];
        bool plain = (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') ||
                     (c && strchr("_.-~", c)) || (c == '/' && !query);
        if (plain)
            strbuf_addc(sb, (char)c);
        else if (c == ' ' && query)
            strbuf_addc(sb, '+');
        else
            strbuf_addf(sb, "%%%02X", c);
    }
}

static int add_pair(struct jinja_render *r, struct strbuf *sb, struct jinja_value pair)
{
    struct jinja_value part;
    if ((pair.type != JINJA_TUPLE && pair.type != JINJA_LIST) || pair.list->n != 2)
        return jinja_fail(r, "urlencode wants pairs");
    for (size_t i = 0; i < 2; i++) {
        JINJA_TRY(jinja_to_str(r, pair.list->items[i], &part));
        JINJA_TRY(jinja_steps(r, part.s->len / 16));
        if (i)
            strbuf_addc(sb, '=');
        add_quoted(sb, part.s, true);
    }
    return 0;
}

FILTER(urlencode)
{
    struct strbuf sb;
    struct jinja_value pairs = self;
    struct jinja_view view = {.kind = JINJA_ITEMS, .dict = self.dict};
    UNUSED_ARGS;
    strbuf_init(&sb);
    sb.max = LIMIT_TEMPLATE_OUTPUT_BYTES;
    if (self.type == JINJA_STR || !jinja_is_iterable(self)) {
        JINJA_TRY(jinja_to_str(r, self, &self));
        JINJA_TRY(jinja_steps(r, self.s->len / 16));
        add_quoted(&sb, self.s, false);
        return jinja_take_strbuf(r, &sb, out);
    }
    if (self.type == JINJA_DICT)
        pairs = (struct jinja_value){.type = JINJA_VIEW, .view = &view};
    JINJA_TRY(jinja_to_list(r, pairs, &pairs));
    int rc = 0;
    for (size_t i = 0; !rc && i < pairs.list->n; i++) {
        if (i)
            strbuf_addc(&sb, '&');
        rc = add_pair(r, &sb, pairs.list->items[i]);
    }
    if (!rc)
        return jinja_take_strbuf(r, &sb, out);
    strbuf_release(&sb);
    return rc;
}

const struct jinja_row jinja_filters_text[] = {
    {"upper", upper, "", 0},
    {"lower", lower, "", 0},
    {"capitalize", capitalize, "", 0},
    {"title", title, "", 0},
    {"trim", trim, "chars", 0},
    {"center", center, "width", 0},
    {"string", string, "", 0},
    {"safe", safe, "", 0},
    {"replace", replace, "old,new,count", 2},
    {"format", format, "*", 0},
    {"escape", escape, "", 0},
    {"e", escape, "", 0},
    {"forceescape", forceescape, "", 0},
    {"wordcount", wordcount, "", 0},
    {"indent", indent, "width,first,blank", 0},
    {"truncate", truncate, "length,killwords,end,leeway", 0},
    {"urlencode", urlencode, "", 0},
    {NULL, NULL, NULL, 0},
};
