#include "libcore/text/pre_tokenize.h"

#include <string.h>

#include "libcore/base/limits.h"
#include "libcore/base/sys.h"
#include "libcore/text/bpe.h"
#include "libcore/text/unicode.h"

void piece_list_release(struct piece_list *l)
{
    sys_free(l->items);
    memset(l, 0, sizeof *l);
}

int piece_list_add(struct piece_list *l, struct piece p, struct err *err)
{
    if (p.len == 0 && p.id == VOCAB_NONE)
        return 0;
    if (l->n == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 64;
        struct piece *items = sys_reallocarray(l->items, cap, sizeof *items);
        if (!items)
            return err_set(err, ERR_NO_MEMORY, "tokenizer: out of memory");
        l->items = items;
        l->cap = cap;
    }
    l->items[l->n++] = p;
    return 0;
}

void pre_scratch_release(struct pre_scratch *s)
{
    for (int i = 0; i < 2; i++) {
        strbuf_release(&s->buffer[i]);
        piece_list_release(&s->pieces[i]);
    }
    span_list_release(&s->spans);
    sys_free(s->events);
    memset(s, 0, sizeof *s);
}

/* ---- cutting a piece where the spans are ---- */

static int add_event(struct pre_scratch *s, size_t start, size_t end, bool match, struct err *err)
{
    if (s->n_events == s->cap_events) {
        size_t cap = s->cap_events ? s->cap_events * 2 : 64;
        struct split_event *events = sys_reallocarray(s->events, cap, sizeof *events);
        if (!events)
            return err_set(err, ERR_NO_MEMORY, "tokenizer: out of memory");
        s->events = events;
        s->cap_events = cap;
    }
    s->events[s->n_events++] = (struct split_event){(uint32_t)start, (uint32_t)end, match};
    return 0;
}

/* The spans and what lies between them. */
static int list_events(struct pre_scratch *s, size_t n, bool invert, struct err *err)
{
    size_t done = 0;
    int rc = 0;
    s->n_events = 0;
    for (size_t i = 0; i < s->spans.n && !rc; i++) {
        struct text_span m = s->spans.items[i];
        if (m.start > done)
            rc = add_event(s, done, m.start, invert, err);
        if (!rc)
            rc = add_event(s, m.start, m.end, !invert, err);
        done = m.end;
    }
    return !rc && done < n ? add_event(s, done, n, invert, err) : rc;
}

/* Joins neighbours as the behaviour wants it; what is to go loses its length. */
static void join_events(struct pre_scratch *s, enum split_behavior behavior)
{
    struct split_event *e = s->events;
    size_t n = s->n_events, k = 0;
    bool before = false;
    if (behavior == SPLIT_MERGED_WITH_NEXT) { // from behind; e[n - k…n) is the result
        for (size_t i = n; i-- > 0;) {
            struct split_event now = e[i];
            if (now.match && !before && k)
                e[n - k].start = now.start;
            else
                e[n - ++k] = now;
            before = now.match;
        }
        memmove(e, e + n - k, k * sizeof *e);
        s->n_events = k;
        return;
    }
    for (size_t i = 0; i < n; i++) {
        struct split_event now = e[i];
        bool join = (behavior == SPLIT_CONTIGUOUS && now.match == before) ||
                    (behavior == SPLIT_MERGED_WITH_PREVIOUS && now.match && !before);
        if (join && k)
            e[k - 1].end = now.end;
        else if (behavior != SPLIT_REMOVED || !now.match)
            e[k++] = now;
        before = now.match;
    }
    s->n_events = k;
}

/* Cuts `from` (whose text the spans are of) and adds the parts. */
static int cut(struct pre_scratch *s, struct piece from, enum split_behavior behavior, bool invert,
               struct piece_list *out, struct err *err)
{
    int rc = list_events(s, from.len, invert, err);
    if (!rc && behavior != SPLIT_ISOLATED)
        join_events(s, behavior);
    for (size_t i = 0; i < s->n_events && !rc; i++) {
        const struct split_event *e = &s->events[i];
        rc = piece_list_add(out,
                            (struct piece){.start = from.start + e->start,
                                           .len = e->end - e->start,
                                           .id = VOCAB_NONE,
                                           .head = from.head && e->start == 0},
                            err);
    }
    return rc;
}

/* ---- spans by character ---- */

static bool is_wanted(const struct pre_step *step, uint32_t c)
{
    switch (step->kind) {
    case PRE_DIGITS:
        return unicode_is_numeric(c);
    case PRE_PUNCTUATION:
        return unicode_is_punctuation(c);
    case PRE_WHITESPACE_SPLIT:
        return unicode_is_space(c);
    default: // METASPACE, DELIMITER
        return c == step->character;
    }
}

static int find_characters(const struct pre_step *step, struct span_list *spans, const char *text,
                           size_t n, struct err *err)
{
    for (size_t i = 0, len; i < n; i += len) {
        uint32_t c = utf8_decode(text + i, &len);
        int rc = is_wanted(step, c) ? span_list_add(spans, i, i + len, err) : 0;
        if (rc)
            return rc;
    }
    return 0;
}

/* \w+|[^\w\s]+ : what is not matched is removed. */
static int find_words(struct span_list *spans, const char *text, size_t n, struct err *err)
{
    enum { SPACE, WORD, MARK } now, before = SPACE;
    size_t start = 0;
    for (size_t i = 0, len; i < n; i += len, before = now) {
        uint32_t c = utf8_decode(text + i, &len);
        now = unicode_is_word(c) ? WORD : unicode_is_space(c) ? SPACE : MARK;
        if (now == before)
            continue;
        int rc = before != SPACE ? span_list_add(spans, start, i, err) : 0;
        if (rc)
            return rc;
        start = i;
    }
    return before != SPACE ? span_list_add(spans, start, n, err) : 0;
}

static int find_fixed(const struct pre_step *step, struct span_list *spans, const char *text,
                      size_t n, struct err *err)
{
    size_t start = 0, k = 0;
    for (size_t i = 0, len; i < n;) {
        utf8_decode(text + i, &len);
        i += len;
        if (++k < step->length && i < n)
            continue;
        int rc = span_list_add(spans, start, i, err);
        if (rc)
            return rc;
        start = i;
        k = 0;
    }
    return 0;
}

/* ---- steps ---- */

static int split_piece(const struct pre_step *step, struct pre_scratch *s, const char *text,
                       struct piece p, struct piece_list *out, struct err *err)
{
    int rc;
    bool invert = step->invert;
    s->spans.n = 0;
    switch (step->kind) {
    case PRE_SPLIT:
    case PRE_BYTE_LEVEL_SPLIT:
        rc = text_pattern_find(&step->pattern, s->regex, text + p.start, p.len, &s->spans, err);
        break;
    case PRE_WHITESPACE:
        rc = find_words(&s->spans, text + p.start, p.len, err);
        invert = true;
        break;
    case PRE_FIXED_LENGTH:
        rc = find_fixed(step, &s->spans, text + p.start, p.len, err);
        break;
    default:
        rc = find_characters(step, &s->spans, text + p.start, p.len, err);
    }
    enum split_behavior behavior = step->kind == PRE_METASPACE      ? SPLIT_MERGED_WITH_NEXT
                                   : step->kind == PRE_FIXED_LENGTH ? SPLIT_ISOLATED
                                                                    : step->behavior;
    return rc ? rc : cut(s, p, behavior, invert, out, err);
}

static int split_pieces(const struct pre_step *step, struct pre_scratch *s, const char *text,
                        const struct piece_list *in, struct piece_list *out, struct err *err)
{
    int rc = 0;
    out->n = 0;
    for (size_t i = 0; i < in->n && !rc; i++) {
        rc = in->items[i].id != VOCAB_NONE ? piece_list_add(out, in->items[i], err)
                                           : split_piece(step, s, text, in->items[i], out, err);
    }
    return rc;
}

static void add_metaspaced(const struct pre_step *step, const char *text, struct piece p,
                           struct strbuf *to)
{
    char mark[4];
    size_t n = utf8_encode(step->character, mark);
    text += p.start;
    bool marked = text[0] == ' ' || (p.len >= n && memcmp(text, mark, n) == 0);
    if (!marked && (step->prepend == PREPEND_ALWAYS || (step->prepend == PREPEND_FIRST && p.head)))
        strbuf_add(to, mark, n);
    for (size_t i = 0; i < p.len; i++) {
        if (text[i] == ' ')
            strbuf_add(to, mark, n);
        else
            strbuf_addc(to, text[i]);
    }
}

static void add_rewritten(const struct pre_step *step, const char *text, struct piece p,
                          struct strbuf *to)
{
    switch (step->kind) {
    case PRE_METASPACE:
        add_metaspaced(step, text, p, to);
        return;
    case PRE_BYTE_LEVEL_MAP:
        for (size_t i = 0; i < p.len; i++)
            strbuf_add_utf8(to, byte_level_char((unsigned char)text[p.start + i]));
        return;
    default: // ByteLevel's space in front
        if (text[p.start] != ' ')
            strbuf_addc(to, ' ');
        strbuf_add(to, text + p.start, p.len);
    }
}

/* Writes every piece anew. */
static int rewrite_pieces(const struct pre_step *step, const char *text,
                          const struct piece_list *in, struct piece_list *out, struct strbuf *to,
                          struct err *err)
{
    out->n = 0;
    strbuf_reset(to);
    to->max = LIMIT_TEXT_BYTES;
    for (size_t i = 0; i < in->n; i++) {
        struct piece p = in->items[i];
        size_t start = to->len;
        if (p.id == VOCAB_NONE)
            add_rewritten(step, text, p, to);
        p.start = (uint32_t)start;
        p.len = (uint32_t)(to->len - start);
        int rc = piece_list_add(out, p, err);
        if (rc)
            return rc;
    }
    if (to->too_long)
        return err_set(err, ERR_LIMIT, "pre-tokenizer: the text grows beyond %d bytes",
                       LIMIT_TEXT_BYTES);
    return to->failed ? err_set(err, ERR_NO_MEMORY, "tokenizer: out of memory") : 0;
}

/* The buffer and the list of the scratch that the caller does not read from at the moment. */
struct ends {
    const char **text;
    const struct piece_list **pieces;
};

static int rewrite(const struct pre_step *step, struct pre_scratch *s, struct ends at,
                   struct err *err)
{
    struct strbuf *to = &s->buffer[*at.text == s->buffer[0].data];
    struct piece_list *out = &s->pieces[*at.pieces == &s->pieces[0]];
    int rc = rewrite_pieces(step, *at.text, *at.pieces, out, to, err);
    *at.text = strbuf_text(to);
    *at.pieces = out;
    return rc;
}

static int split(const struct pre_step *step, struct pre_scratch *s, struct ends at,
                 struct err *err)
{
    struct piece_list *out = &s->pieces[*at.pieces == &s->pieces[0]];
    int rc = split_pieces(step, s, *at.text, *at.pieces, out, err);
    *at.pieces = out;
    return rc;
}

int pre_tokenizer_run(const struct pre_tokenizer *p, struct pre_scratch *s, const char **text,
                      const struct piece_list **pieces, struct err *err)
{
    struct ends at = {text, pieces};
    for (size_t i = 0; i < p->n; i++) {
        const struct pre_step *step = &p->steps[i];
        bool rewrites = step->kind == PRE_METASPACE || step->kind == PRE_BYTE_LEVEL_MAP ||
                        (step->kind == PRE_BYTE_LEVEL_SPLIT && step->prefix_space);
        bool splits = step->kind == PRE_METASPACE          ? step->split
                      : step->kind == PRE_BYTE_LEVEL_SPLIT ? step->use_pattern
                                                           : step->kind != PRE_BYTE_LEVEL_MAP;
        int rc = rewrites ? rewrite(step, s, at, err) : 0;
        if (!rc && splits)
            rc = split(step, s, at, err);
        if (rc)
            return rc;
    }
    return 0;
}
