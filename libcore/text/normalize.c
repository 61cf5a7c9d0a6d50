#include "libcore/text/normalize.h"

#include <string.h>
#include <utf8proc.h>

#include "libcore/base/limits.h"
#include "libcore/base/sys.h"
#include "libcore/text/bpe.h"
#include "libcore/text/json_fields.h"
#include "libcore/text/unicode.h"
#include "libcore/text/unicode_impl.h"

enum { MAX_STEPS = 64 };

/* ---- patterns ---- */

int text_pattern_open(struct text_pattern *p, const json_t *value, const char *what,
                      struct err *err)
{
    memset(p, 0, sizeof *p);
    const json_t *text = json_object_get(value, "String"), *regex = json_object_get(value, "Regex");
    const json_t *given = text ? text : regex;
    if (!json_is_string(given) || json_object_size(value) != 1)
        return err_set(err, ERR_REFUSED, "%s: pattern is neither a String nor a Regex", what);
    p->n = json_string_length(given);
    if (p->n == 0)
        return err_set(err, ERR_REFUSED, "%s: an empty pattern is not supported", what);
    if (!text)
        return err_prefix_of(regex_open(&p->regex, json_string_value(given), p->n, err), what, err);
    p->text = sys_malloc(p->n);
    if (!p->text)
        return err_set(err, ERR_NO_MEMORY, "%s: out of memory", what);
    memcpy(p->text, json_string_value(given), p->n);
    return 0;
}

void text_pattern_release(struct text_pattern *p)
{
    regex_free(p->regex);
    sys_free(p->text);
    memset(p, 0, sizeof *p);
}

int text_pattern_find(const struct text_pattern *p, struct regex_scratch *s, const char *text,
                      size_t n, struct span_list *out, struct err *err)
{
    if (n == 0) // the library does not ask: even an empty match is none
        return 0;
    if (p->regex)
        return regex_find_all(p->regex, s, text, n, out, err);
    for (size_t i = 0; n - i >= p->n;) {
        const char *at = memmem(text + i, n - i, p->text, p->n);
        if (!at)
            break;
        size_t start = (size_t)(at - text);
        int rc = span_list_add(out, start, start + p->n, err);
        if (rc)
            return rc;
        i = start + p->n;
    }
    return 0;
}

/* ---- from JSON ---- */

static int read_step(struct normalize_step *z, const char *type, const json_t *value,
                     struct err *err)
{
    static const struct {
        const char *name;
        enum normalize_kind kind;
    } plain[] = {{"NFC", NORMALIZE_NFC},
                 {"NFD", NORMALIZE_NFD},
                 {"NFKC", NORMALIZE_NFKC},
                 {"NFKD", NORMALIZE_NFKD},
                 {"Lowercase", NORMALIZE_LOWERCASE},
                 {"StripAccents", NORMALIZE_STRIP_ACCENTS},
                 {"Nmt", NORMALIZE_NMT},
                 {"ByteLevel", NORMALIZE_BYTE_LEVEL}};
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++) {
        if (strcmp(type, plain[i].name) == 0) {
            z->kind = plain[i].kind;
            return 0;
        }
    }
    if (strcmp(type, "Strip") == 0) {
        z->kind = NORMALIZE_STRIP;
        int rc =
            json_field_bool(value, "strip_left", FIELD_NEEDED, &z->left, "normalizer Strip", err);
        return rc ? rc
                  : json_field_bool(value, "strip_right", FIELD_NEEDED, &z->right,
                                    "normalizer Strip", err);
    }
    if (strcmp(type, "Prepend") == 0) {
        z->kind = NORMALIZE_PREPEND;
        return json_field_copy(value, "prepend", &z->content, &z->n_content, "normalizer Prepend",
                               err);
    }
    if (strcmp(type, "Replace") == 0) {
        z->kind = NORMALIZE_REPLACE;
        int rc = json_field_copy(value, "content", &z->content, &z->n_content, "normalizer Replace",
                                 err);
        return rc ? rc
                  : text_pattern_open(&z->pattern, json_object_get(value, "pattern"),
                                      "normalizer Replace", err);
    }
    return err_set(err, ERR_REFUSED, "normalizer '%.60s' is not supported", type);
}

int normalizer_add(struct normalizer *z, const json_t *value, struct err *err)
{
    if (!value || json_is_null(value))
        return 0;
    const char *type = json_string_value(json_object_get(value, "type"));
    if (!type)
        return err_set(err, ERR_REFUSED, "normalizer without a type");
    if (strcmp(type, "Sequence") == 0) {
        size_t i;
        const json_t *member;
        const json_t *list = json_object_get(value, "normalizers");
        if (!json_is_array(list))
            return err_set(err, ERR_CORRUPT, "normalizer Sequence: normalizers is no list");
        json_array_foreach(list, i, member)
        {
            int rc = json_is_object(member)
                         ? normalizer_add(z, member, err)
                         : err_set(err, ERR_CORRUPT, "normalizer Sequence: a member is no object");
            if (rc)
                return rc;
        }
        return 0;
    }
    if (z->n == MAX_STEPS)
        return err_set(err, ERR_LIMIT, "more than %d normalizers", MAX_STEPS);
    if (z->n == z->cap) {
        size_t cap = z->cap ? z->cap * 2 : 8;
        struct normalize_step *steps = sys_reallocarray(z->steps, cap, sizeof *steps);
        if (!steps)
            return err_set(err, ERR_NO_MEMORY, "normalizer: out of memory");
        z->steps = steps;
        z->cap = cap;
    }
    memset(&z->steps[z->n], 0, sizeof *z->steps);
    return read_step(&z->steps[z->n++], type, value, err); // released with the rest when it fails
}

void normalizer_release(struct normalizer *z)
{
    for (size_t i = 0; i < z->n; i++) {
        text_pattern_release(&z->steps[i].pattern);
        sys_free(z->steps[i].content);
    }
    sys_free(z->steps);
    memset(z, 0, sizeof *z);
}

void normalize_scratch_release(struct normalize_scratch *s)
{
    strbuf_release(&s->buffer[0]);
    strbuf_release(&s->buffer[1]);
    span_list_release(&s->spans);
    sys_free(s->code_points);
    memset(s, 0, sizeof *s);
}

/* ---- NFC, NFD, NFKC, NFKD ---- */

static int reserve(struct normalize_scratch *s, size_t n, struct err *err)
{
    if (n <= s->cap)
        return 0;
    size_t cap = n + n / 2;
    int32_t *more =
        sys_reallocarray(s->code_points, cap, 2 * sizeof *more); // the half is for sorting
    if (!more)
        return err_set(err, ERR_NO_MEMORY, "normalizer: out of memory");
    s->code_points = more;
    s->cap = cap;
    return 0;
}

static int class_of(int32_t c)
{
    return utf8proc_get_property(c)->combining_class;
}

/* Stable, by combining class, in linear time: utf8proc's own sort is quadratic in a run of marks,
 * and a prompt may be one run. */
static void sort_marks(int32_t *marks, size_t n, int32_t *room)
{
    uint32_t place[257] = {0};
    for (size_t i = 0; i < n; i++)
        place[class_of(marks[i]) + 1]++;
    for (int k = 0; k < 256; k++)
        place[k + 1] += place[k];
    for (size_t i = 0; i < n; i++)
        room[place[class_of(marks[i])]++] = marks[i];
    memcpy(marks, room, n * sizeof *marks);
}

static void order_marks(struct normalize_scratch *s, size_t n)
{
    int32_t *c = s->code_points;
    for (size_t i = 0, start; i < n;) {
        bool sorted = true;
        for (start = i; i < n && class_of(c[i]); i++)
            sorted &= i == start || class_of(c[i - 1]) <= class_of(c[i]);
        if (!sorted)
            sort_marks(c + start, i - start, c + s->cap);
        i += i == start;
    }
}

/* Normalizes a stretch and appends it. */
static int add_composed(struct normalize_scratch *s, const char *text, size_t n,
                        utf8proc_option_t options, struct strbuf *out, struct err *err)
{
    enum { MOST_OF_ONE = 18 }; // U+FDFA's compatibility form
    size_t k = 0;
    for (size_t i = 0, len; i < n; i += len) {
        int rc = reserve(s, k + MOST_OF_ONE, err);
        if (rc)
            return rc;
        utf8proc_ssize_t more = utf8proc_decompose_char(
            (int32_t)utf8_decode(text + i, &len), s->code_points + k, MOST_OF_ONE, options, NULL);
        if (more < 0 || more > MOST_OF_ONE)
            return err_set(err, ERR_INTERNAL, "normalizer: %s", utf8proc_errmsg(more));
        k += (size_t)more;
    }
    order_marks(s, k);
    utf8proc_ssize_t composed =
        utf8proc_normalize_utf32(s->code_points, (utf8proc_ssize_t)k, options);
    if (composed < 0)
        return err_set(err, ERR_INTERNAL, "normalizer: %s", utf8proc_errmsg(composed));
    for (utf8proc_ssize_t i = 0; i < composed; i++)
        strbuf_add_utf8(out, (uint32_t)s->code_points[i]);
    return 0;
}

/* ASCII is in every form already, and nothing composes with an ASCII character behind it: only the
 * stretches of other characters, each with the character before it, need the work. */
static int run_form(struct normalize_scratch *s, const char *text, size_t n,
                    utf8proc_option_t options, struct strbuf *out, struct err *err)
{
    size_t i = 0;
    while (i < n) {
        size_t start = i, len;
        while (i < n && !((unsigned char)text[i] & 0x80))
            i++;
        size_t ascii_end = i > start && i < n ? i - 1 : i;
        strbuf_add(out, text + start, ascii_end - start);
        start = ascii_end;
        while (i < n && ((unsigned char)text[i] & 0x80)) {
            if (unicode_is_late_form(utf8_decode(text + i, &len))) {
                int rc =
                    i > start ? add_composed(s, text + start, i - start, options, out, err) : 0;
                if (rc)
                    return rc;
                strbuf_add(out, text + i, len);
                start = i + len;
            }
            i += len;
        }
        int rc = i > start ? add_composed(s, text + start, i - start, options, out, err) : 0;
        if (rc)
            return rc;
    }
    return 0;
}

/* ---- the others ---- */

static void run_lowercase(const char *text, size_t n, struct strbuf *out)
{
    for (size_t i = 0, len; i < n; i += len) {
        uint32_t c = utf8_decode(text + i, &len);
        if (c < 0x80)
            strbuf_addc(out, c >= 'A' && c <= 'Z' ? (char)(c + 32) : (char)c);
        else
            unicode_add_lower(out, c);
    }
}

static void run_strip(const struct normalize_step *z, const char *text, size_t n, bool *head,
                      struct strbuf *out)
{
    size_t start = 0, end = n, len;
    while (z->left && start < end && unicode_is_space(utf8_decode(text + start, &len)))
        start += len;
    while (z->right && end > start) {
        len = utf8_length_before(text, end);
        size_t unused;
        if (!unicode_is_space(utf8_decode(text + end - len, &unused)))
            break;
        end -= len;
    }
    *head &= start == 0;
    strbuf_add(out, text + start, end - start);
}

static void run_strip_accents(const char *text, size_t n, bool *head, struct strbuf *out)
{
    for (size_t i = 0, len; i < n; i += len) {
        uint32_t c = utf8_decode(text + i, &len);
        if (!unicode_is_mark(c))
            strbuf_add(out, text + i, len);
        else if (out->len == 0)
            *head = false;
    }
}

/* The rules of SentencePiece's nmt_nfkc that the library has under this name. */
static void run_nmt(const char *text, size_t n, bool *head, struct strbuf *out)
{
    for (size_t i = 0, len; i < n; i += len) {
        uint32_t c = utf8_decode(text + i, &len);
        if ((c >= 1 && c <= 8) || c == 0x0B || (c >= 0x0E && c <= 0x1F) || c == 0x7F || c == 0x8F ||
            c == 0x9F) {
            *head &= out->len > 0;
            continue;
        }
        bool space = c == 9 || c == 0x0A || c == 0x0C || c == 0x0D || c == 0x1680 ||
                     (c >= 0x200B && c <= 0x200F) || c == 0x2028 || c == 0x2029 || c == 0x2581 ||
                     c == 0xFEFF || c == 0xFFFD;
        if (space)
            strbuf_addc(out, ' ');
        else
            strbuf_add(out, text + i, len);
    }
}

static int run_replace(const struct normalize_step *z, struct normalize_scratch *s,
                       const char *text, size_t n, bool *head, struct strbuf *out, struct err *err)
{
    s->spans.n = 0;
    int rc = text_pattern_find(&z->pattern, s->regex, text, n, &s->spans, err);
    if (rc)
        return rc;
    size_t done = 0;
    for (size_t i = 0; i < s->spans.n; i++) {
        struct text_span m = s->spans.items[i];
        strbuf_add(out, text + done, m.start - done);
        strbuf_add(out, z->content, z->n_content);
        done = m.end;
        // what replaces a text counts as standing where its last character stood
        size_t last = m.start == 0 && m.end > 0 ? utf8_length_before(text, m.end) : 0;
        if (m.start == 0 && m.end > 0 && (z->n_content == 0 || last < m.end))
            *head = false;
    }
    strbuf_add(out, text + done, n - done);
    return 0;
}

static int run_step(const struct normalize_step *z, struct normalize_scratch *s, const char *text,
                    size_t n, bool *head, struct strbuf *out, struct err *err)
{
    switch (z->kind) {
    case NORMALIZE_NFC:
        return run_form(s, text, n, UTF8PROC_STABLE | UTF8PROC_COMPOSE, out, err);
    case NORMALIZE_NFD:
        return run_form(s, text, n, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, out, err);
    case NORMALIZE_NFKC:
        return run_form(s, text, n, UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT, out, err);
    case NORMALIZE_NFKD:
        return run_form(s, text, n, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT, out,
                        err);
    case NORMALIZE_LOWERCASE:
        run_lowercase(text, n, out);
        return 0;
    case NORMALIZE_STRIP:
        run_strip(z, text, n, head, out);
        return 0;
    case NORMALIZE_STRIP_ACCENTS:
        run_strip_accents(text, n, head, out);
        return 0;
    case NORMALIZE_NMT:
        run_nmt(text, n, head, out);
        return 0;
    case NORMALIZE_REPLACE:
        return run_replace(z, s, text, n, head, out, err);
    case NORMALIZE_PREPEND:
        if (n)
            strbuf_add(out, z->content, z->n_content);
        strbuf_add(out, text, n);
        return 0;
    case NORMALIZE_BYTE_LEVEL:
        for (size_t i = 0; i < n; i++)
            strbuf_add_utf8(out, byte_level_char((unsigned char)text[i]));
        return 0;
    }
    return err_set(err, ERR_INTERNAL, "normalizer: unknown step");
}

int normalizer_run(const struct normalizer *z, struct normalize_scratch *s, const char *text,
                   size_t n, bool *head, const char **out, size_t *n_out, struct err *err)
{
    for (size_t i = 0; i < z->n; i++) {
        struct strbuf *to = &s->buffer[i % 2];
        strbuf_reset(to);
        to->max = LIMIT_TEXT_BYTES;
        int rc = run_step(&z->steps[i], s, text, n, head, to, err);
        if (rc)
            return rc;
        if (to->too_long)
            return err_set(err, ERR_LIMIT, "normalizer: the text grows beyond %d bytes",
                           LIMIT_TEXT_BYTES);
        if (to->failed)
            return err_set(err, ERR_NO_MEMORY, "normalizer: out of memory");
        text = strbuf_text(to);
        n = to->len;
    }
    *out = text;
    *n_out = n;
    return 0;
}
