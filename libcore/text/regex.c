#define PCRE2_CODE_UNIT_WIDTH 8
#include "libcore/text/regex.h"

#include <pcre2.h>
#include <string.h>

#include "libcore/base/limits.h"
#include "libcore/base/sys.h"
#include "libcore/text/regex_impl.h"

enum { N_PAGES = 0x1100, PAGE = 256, MAX_CLASSES = 128 };
enum { JIT_STACK_START = 32 << 10, JIT_STACK_MOST = 16 << 20 };
enum { MATCH_LIMIT_BASE = 10000000, MATCH_LIMIT_PER_BYTE = 64, HEAP_LIMIT_KIB = 64 << 10 };

struct regex {
    pcre2_code *code;
    bool jit;
    uint16_t page_of[N_PAGES]; // index into `pages`, in pages
    uint8_t *pages;            // the byte that stands for each code point
    size_t n_pages, cap_pages;
};

struct regex_scratch {
    pcre2_match_context *context;
    pcre2_match_data *match;
    pcre2_jit_stack *stack;
    uint8_t *subject;
    size_t cap;
};

/* ---- spans ---- */

void span_list_release(struct span_list *l)
{
    sys_free(l->items);
    memset(l, 0, sizeof *l);
}

int span_list_add(struct span_list *l, size_t start, size_t end, struct err *err)
{
    if (l->n == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 64;
        struct text_span *items = sys_reallocarray(l->items, cap, sizeof *items);
        if (!items)
            return err_set(err, ERR_NO_MEMORY, "tokenizer: out of memory");
        l->items = items;
        l->cap = cap;
    }
    l->items[l->n++] = (struct text_span){(uint32_t)start, (uint32_t)end};
    return 0;
}

/* ---- classes: which code points from U+0080 the pattern can tell apart ---- */

struct classes {
    uint64_t signature[MAX_CLASSES]; // bit i: the class lies in sets[i]
    size_t n;
};

static int class_of_signature(struct classes *k, uint64_t signature, struct err *err)
{
    for (size_t i = 0; i < k->n; i++) {
        if (k->signature[i] == signature)
            return (int)i;
    }
    if (k->n == MAX_CLASSES)
        return err_set(err, ERR_LIMIT, "regular expression: tells more than %d classes apart",
                       MAX_CLASSES);
    k->signature[k->n] = signature;
    return (int)k->n++;
}

static uint64_t signature_at(const struct regex_program *g, const size_t *cursor, uint32_t c)
{
    uint64_t bits = 0;
    for (size_t i = 0; i < g->n_sets; i++) {
        const struct cp_set *s = &g->sets[i];
        if (cursor[i] < s->n && s->ranges[cursor[i]].first <= c)
            bits |= UINT64_C(1) << i;
    }
    return bits;
}

/* Moves every cursor to the range that ends at or behind c; gives the first code point behind c at
 * which any set begins or ends. */
static uint32_t next_border(const struct regex_program *g, size_t *cursor, uint32_t c)
{
    uint32_t border = UNICODE_MAX + 1;
    for (size_t i = 0; i < g->n_sets; i++) {
        const struct cp_set *s = &g->sets[i];
        while (cursor[i] < s->n && s->ranges[cursor[i]].last < c)
            cursor[i]++;
        if (cursor[i] == s->n)
            continue;
        const struct cp_range *r = &s->ranges[cursor[i]];
        uint32_t b = r->first > c ? r->first : r->last + 1;
        if (b < border)
            border = b;
    }
    return border;
}

static int add_page(struct regex *r, const uint8_t *bytes, struct err *err)
{
    if (r->n_pages == r->cap_pages) {
        size_t cap = r->cap_pages ? r->cap_pages * 2 : 64;
        uint8_t *pages = sys_reallocarray(r->pages, cap, PAGE);
        if (!pages)
            return err_set(err, ERR_NO_MEMORY, "regular expression: out of memory");
        r->pages = pages;
        r->cap_pages = cap;
    }
    memcpy(r->pages + r->n_pages * PAGE, bytes, PAGE);
    r->n_pages++;
    return 0;
}

/* Files the finished page; pages that are one class throughout are shared. */
static int place_page(struct regex *r, size_t page_idx, const uint8_t *bytes, uint16_t *uniform,
                      struct err *err)
{
    bool same = memcmp(bytes, bytes + 1, PAGE - 1) == 0;
    uint16_t *shared = same ? &uniform[bytes[0]] : NULL;
    if (shared && *shared) {
        r->page_of[page_idx] = (uint16_t)(*shared - 1);
        return 0;
    }
    r->page_of[page_idx] = (uint16_t)r->n_pages;
    int rc = add_page(r, bytes, err);
    if (shared)
        *shared = (uint16_t)r->n_pages;
    return rc;
}

static int build_classes(struct regex *r, const struct regex_program *g, struct classes *k,
                         struct err *err)
{
    size_t cursor[REGEX_MAX_SETS] = {0};
    uint16_t uniform[256] = {0};
    uint8_t page[PAGE];
    for (uint32_t c = 0; c < 0x80; c++)
        page[c] = (uint8_t)c;
    for (uint32_t c = 0x80; c <= UNICODE_MAX;) {
        uint32_t border = next_border(g, cursor, c);
        int class_idx = class_of_signature(k, signature_at(g, cursor, c), err);
        if (class_idx < 0)
            return class_idx;
        while (c < border) {
            uint32_t stop = (c | (PAGE - 1)) + 1 < border ? (c | (PAGE - 1)) + 1 : border;
            memset(page + c % PAGE, 0x80 + class_idx, stop - c);
            c = stop;
            if (c % PAGE)
                continue;
            int rc = place_page(r, c / PAGE - 1, page, uniform, err);
            if (rc)
                return rc;
        }
    }
    return 0;
}

/* ---- the pattern for PCRE2 ---- */

static void write_set(struct strbuf *out, const struct cp_set *set, const struct classes *k,
                      uint64_t bit)
{
    bool has[256] = {false};
    size_t n = 0;
    for (unsigned b = 0; b < 0x80 + k->n; b++) {
        has[b] = b < 0x80 ? cp_set_has(set, b) : (k->signature[b - 0x80] & bit) != 0;
        n += has[b];
    }
    if (n == 0) {
        strbuf_adds(out, "(?!)");
        return;
    }
    strbuf_addc(out, '[');
    for (unsigned b = 0; b < 256; b++) {
        unsigned last = b;
        while (has[b] && last + 1 < 256 && has[last + 1])
            last++;
        if (has[b])
            strbuf_addf(out, last > b ? "\\x%02x-\\x%02x" : "\\x%02x", b, last);
        b = last;
    }
    strbuf_addc(out, ']');
}

static int compile(struct regex *r, const struct regex_program *g, const struct classes *k,
                   struct err *err)
{
    struct strbuf text;
    strbuf_init(&text);
    for (size_t i = 0; i < g->text.len; i++) {
        if (g->text.data[i] == REGEX_SET_MARK) {
            size_t set_idx = (size_t)(g->text.data[++i] - ' ');
            write_set(&text, &g->sets[set_idx], k, UINT64_C(1) << set_idx);
        } else {
            strbuf_addc(&text, g->text.data[i]);
        }
    }
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    int code = 0, rc = 0;
    PCRE2_SIZE offset = 0;
    if (context && !text.failed) {
        pcre2_set_newline(context, PCRE2_NEWLINE_LF);
        r->code = pcre2_compile((PCRE2_SPTR)strbuf_text(&text), text.len, PCRE2_MULTILINE, &code,
                                &offset, context);
    }
    if (!context || text.failed || code == PCRE2_ERROR_NOMEMORY) {
        rc = err_set(err, ERR_NO_MEMORY, "regular expression: out of memory");
    } else if (!r->code) {
        PCRE2_UCHAR message[160] = "";
        pcre2_get_error_message(code, message, sizeof message);
        rc = err_set(err, ERR_REFUSED, "regular expression: %s", (char *)message);
    } else {
        r->jit = pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE) == 0;
    }
    pcre2_compile_context_free(context);
    strbuf_release(&text);
    return rc;
}

int regex_open(struct regex **out, const char *pattern, size_t n, struct err *err)
{
    *out = NULL;
    if (n > LIMIT_PATTERN_BYTES)
        return err_set(err, ERR_LIMIT, "regular expression of %zu bytes, at most %d are taken", n,
                       LIMIT_PATTERN_BYTES);
    struct regex *r = sys_calloc(1, sizeof *r);
    if (!r)
        return err_set(err, ERR_NO_MEMORY, "regular expression: out of memory");
    struct regex_program program;
    struct classes classes = {.n = 0};
    int rc = regex_parse(&program, pattern, n, err);
    if (!rc)
        rc = build_classes(r, &program, &classes, err);
    if (!rc)
        rc = compile(r, &program, &classes, err);
    regex_program_release(&program);
    if (rc) {
        regex_free(r);
        return rc;
    }
    *out = r;
    return 0;
}

void regex_free(struct regex *r)
{
    if (!r)
        return;
    pcre2_code_free(r->code);
    sys_free(r->pages);
    sys_free(r);
}

/* ---- matching ---- */

int regex_scratch_open(struct regex_scratch **out, struct err *err)
{
    struct regex_scratch *s = sys_calloc(1, sizeof *s);
    *out = s;
    if (s) {
        s->context = pcre2_match_context_create(NULL);
        s->match = pcre2_match_data_create(1, NULL);
        s->stack = pcre2_jit_stack_create(JIT_STACK_START, JIT_STACK_MOST, NULL);
    }
    if (!s || !s->context || !s->match) {
        regex_scratch_free(s);
        *out = NULL;
        return err_set(err, ERR_NO_MEMORY, "regular expression: out of memory");
    }
    if (s->stack) // none where PCRE2 was built without JIT
        pcre2_jit_stack_assign(s->context, NULL, s->stack);
    pcre2_set_heap_limit(s->context, HEAP_LIMIT_KIB);
    return 0;
}

void regex_scratch_free(struct regex_scratch *s)
{
    if (!s)
        return;
    pcre2_jit_stack_free(s->stack);
    pcre2_match_data_free(s->match);
    pcre2_match_context_free(s->context);
    sys_free(s->subject);
    sys_free(s);
}

static bool is_ascii(const char *text, size_t n)
{
    size_t i = 0;
    uint64_t eight, any = 0;
    for (; i + 8 <= n; i += 8) {
        memcpy(&eight, text + i, 8);
        any |= eight;
    }
    for (; i < n; i++)
        any |= (uint64_t)(unsigned char)text[i] << 56;
    return !(any & 0x8080808080808080u);
}

/* One byte a character. */
static int make_subject(const struct regex *r, struct regex_scratch *s, const char *text, size_t n,
                        size_t *n_chars, struct err *err)
{
    if (s->cap < n) {
        uint8_t *subject = sys_realloc(s->subject, n + n / 4);
        if (!subject)
            return err_set(err, ERR_NO_MEMORY, "regular expression: out of memory");
        s->subject = subject;
        s->cap = n + n / 4;
    }
    size_t k = 0;
    for (size_t i = 0; i < n; k++) {
        if (!((unsigned char)text[i] & 0x80)) {
            s->subject[k] = (uint8_t)text[i++];
            continue;
        }
        size_t len;
        uint32_t c = utf8_decode(text + i, &len);
        s->subject[k] = r->pages[(size_t)r->page_of[c / PAGE] * PAGE + c % PAGE];
        i += len;
    }
    *n_chars = k;
    return 0;
}

static int match_at(const struct regex *r, struct regex_scratch *s, const uint8_t *subject,
                    size_t n, size_t from, bool *found, struct err *err)
{
    int rc = r->jit ? pcre2_jit_match(r->code, subject, n, from, 0, s->match, s->context)
                    : pcre2_match(r->code, subject, n, from, 0, s->match, s->context);
    *found = rc >= 0;
    if (rc >= 0 || rc == PCRE2_ERROR_NOMATCH)
        return 0;
    if (rc == PCRE2_ERROR_NOMEMORY)
        return err_set(err, ERR_NO_MEMORY, "regular expression: out of memory");
    return err_set(err, ERR_LIMIT, "regular expression: the pattern runs away on this text (%d)",
                   rc);
}

/* A place in the text as bytes and as characters, moved forward only. */
struct place {
    size_t byte, character;
};

static size_t byte_at(struct place *p, const char *text, size_t character)
{
    for (; p->character < character; p->character++) {
        unsigned char b = (unsigned char)text[p->byte];
        p->byte += b < 0x80 ? 1 : b < 0xE0 ? 2 : b < 0xF0 ? 3 : 4;
    }
    return p->byte;
}

int regex_find_all(const struct regex *r, struct regex_scratch *s, const char *text, size_t n,
                   struct span_list *out, struct err *err)
{
    const uint8_t *subject = (const uint8_t *)text;
    size_t n_chars = n, from = 0, last_end = SIZE_MAX;
    struct place place = {0, 0};
    bool ascii = is_ascii(text, n);
    if (!ascii) {
        int rc = make_subject(r, s, text, n, &n_chars, err);
        if (rc)
            return rc;
        subject = s->subject;
    }
    uint64_t limit = MATCH_LIMIT_BASE + (uint64_t)n * MATCH_LIMIT_PER_BYTE;
    pcre2_set_match_limit(s->context, limit > UINT32_MAX ? UINT32_MAX : (uint32_t)limit);
    while (from <= n_chars) {
        bool found;
        int rc = match_at(r, s, subject, n_chars, from, &found, err);
        if (rc || !found)
            return rc;
        const PCRE2_SIZE *pair = pcre2_get_ovector_pointer(s->match);
        size_t start = pair[0], end = pair[1];
        if (start == end && end == last_end) {
            from++;
            continue;
        }
        from = last_end = end;
        if (!ascii) {
            start = byte_at(&place, text, start);
            end = byte_at(&place, text, end);
        }
        rc = span_list_add(out, start, end, err);
        if (rc)
            return rc;
    }
    return 0;
}
