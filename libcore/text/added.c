#include "libcore/text/added.h"

#include <stdlib.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/text/unicode.h"
#include "libcore/text/vocab_impl.h"

void added_init(struct added *a)
{
    memset(a, 0, sizeof *a);
    arena_init(&a->arena);
}

void added_release(struct added *a)
{
    sys_free(a->tokens);
    sys_free(a->slots);
    sys_free(a->raw.order);
    sys_free(a->normalized.order);
    arena_release(&a->arena);
    memset(a, 0, sizeof *a);
}

/* ---- by content ---- */

/* The slot of that content, or the free one where it would stand. There is always a free one. */
static uint32_t *slot_of(const struct added *a, const char *text, size_t n)
{
    size_t i = vocab_hash(text, n) & (a->n_slots - 1);
    for (; a->slots[i]; i = (i + 1) & (a->n_slots - 1)) {
        const struct added_token *t = &a->tokens[a->slots[i] - 1];
        if (t->n == n && memcmp(t->content, text, n) == 0)
            break;
    }
    return &a->slots[i];
}

static void fill_slots(struct added *a)
{
    memset(a->slots, 0, a->n_slots * sizeof *a->slots);
    for (size_t i = 0; i < a->n; i++)
        *slot_of(a, a->tokens[i].content, a->tokens[i].n) = (uint32_t)i + 1;
}

/* Room for one more token and its slot. */
static int reserve(struct added *a, struct err *err)
{
    if (a->n < a->cap)
        return 0;
    size_t cap = a->cap ? a->cap * 2 : 64;
    struct added_token *tokens = sys_reallocarray(a->tokens, cap, sizeof *tokens);
    if (!tokens)
        return err_set(err, ERR_NO_MEMORY, "tokenizer: out of memory");
    a->tokens = tokens;
    uint32_t *slots = sys_reallocarray(a->slots, 2 * cap, sizeof *slots);
    if (!slots)
        return err_set(err, ERR_NO_MEMORY, "tokenizer: out of memory");
    a->slots = slots;
    a->n_slots = 2 * cap;
    a->cap = cap;
    fill_slots(a);
    return 0;
}

const struct added_token *added_by_text(const struct added *a, const char *text, size_t n)
{
    uint32_t place = a->n_slots ? *slot_of(a, text, n) : 0;
    return place ? &a->tokens[place - 1] : NULL;
}

/* ---- adding ---- */

void added_begin(struct added *a, const struct vocab *v)
{
    a->next_id = v->n_tokens;
    for (size_t i = 0; i < a->n; i++) {
        if (a->tokens[i].id >= a->next_id)
            a->next_id = a->tokens[i].id + 1;
    }
}

static int check_id(uint32_t id, uint32_t wanted, const char *content, size_t n, struct err *err)
{
    if (wanted == VOCAB_NONE || wanted == id)
        return 0;
    return err_set(
        err, ERR_REFUSED,
        "added token '%.*s' has id %u in the file, but its place in the vocabulary is %u",
        n > 60 ? 60 : (int)n, content, wanted, id);
}

int added_add(struct added *a, const struct vocab *v, const char *content, size_t n,
              uint32_t wanted_id, unsigned flags, struct err *err)
{
    if (n == 0)
        return 0;
    int rc = reserve(a, err);
    if (rc)
        return rc;
    uint32_t *slot = slot_of(a, content, n);
    if (*slot) {
        a->tokens[*slot - 1].flags = flags;
        return check_id(a->tokens[*slot - 1].id, wanted_id, content, n, err);
    }
    uint32_t id = vocab_find(v, content, n);
    if (id == VOCAB_NONE)
        id = a->next_id++;
    rc = check_id(id, wanted_id, content, n, err);
    if (rc)
        return rc;
    const char *copy = arena_strndup(&a->arena, content, n);
    if (!copy)
        return err_set(err, ERR_NO_MEMORY, "tokenizer: out of memory");
    a->tokens[a->n] = (struct added_token){.content = copy,
                                           .n = (uint32_t)n,
                                           .id = id,
                                           .flags = flags,
                                           .pattern = copy,
                                           .n_pattern = (uint32_t)n};
    *slot = (uint32_t)++a->n;
    return 0;
}

/* ---- the indexes ---- */

static int by_id(const void *a, const void *b)
{
    const struct added_token *x = a, *y = b;
    return x->id < y->id ? -1 : x->id > y->id;
}

static int sort_tokens(struct added *a, struct err *err)
{
    if (a->n)
        qsort(a->tokens, a->n, sizeof *a->tokens, by_id);
    for (size_t i = 1; i < a->n; i++) {
        if (a->tokens[i].id == a->tokens[i - 1].id)
            return err_set(err, ERR_CORRUPT, "two added tokens have id %u", a->tokens[i].id);
    }
    if (a->n_slots)
        fill_slots(a);
    return 0;
}

static int compare_patterns(const struct added_token *x, const struct added_token *y)
{
    uint32_t n = x->n_pattern < y->n_pattern ? x->n_pattern : y->n_pattern;
    int order = memcmp(x->pattern, y->pattern, n);
    return order ? order : (int)(x->n_pattern > y->n_pattern) - (int)(x->n_pattern < y->n_pattern);
}

static int by_pattern(const void *a, const void *b, void *tokens)
{
    const struct added_token *t = tokens;
    return compare_patterns(&t[*(const uint32_t *)a], &t[*(const uint32_t *)b]);
}

static int make_index(struct added *a, struct added_index *index, unsigned normalized,
                      struct err *err)
{
    index->order = sys_reallocarray(NULL, a->n, sizeof *index->order);
    if (!index->order)
        return err_set(err, ERR_NO_MEMORY, "tokenizer: out of memory");
    for (uint32_t i = 0; i < a->n; i++) {
        if ((a->tokens[i].flags & ADDED_NORMALIZED) == normalized && a->tokens[i].n_pattern)
            index->order[index->n++] = i;
    }
    qsort_r(index->order, index->n, sizeof *index->order, by_pattern, a->tokens);
    for (size_t i = 0; i < index->n; i++) {
        const struct added_token *t = &a->tokens[index->order[i]];
        if (i && compare_patterns(&a->tokens[index->order[i - 1]], t) == 0)
            return err_set(err, ERR_REFUSED, "two added tokens are '%.*s' once normalized",
                           t->n > 60 ? 60 : (int)t->n, t->content);
        index->first[(unsigned char)t->pattern[0] + 1]++;
    }
    for (unsigned b = 0; b < 256; b++)
        index->first[b + 1] += index->first[b];
    return 0;
}

static int normalize_token(struct added *a, struct added_token *t, const struct normalizer *z,
                           struct normalize_scratch *s, struct err *err)
{
    const char *text;
    size_t n;
    bool head = true;
    int rc = normalizer_run(z, s, t->content, t->n, &head, &text, &n, err);
    if (rc || (n == t->n && memcmp(text, t->content, n) == 0))
        return rc;
    if (n == 0)
        return err_set(err, ERR_REFUSED, "the normalizer leaves nothing of the added token '%.*s'",
                       t->n > 60 ? 60 : (int)t->n, t->content);
    t->pattern = arena_strndup(&a->arena, text, n);
    t->n_pattern = (uint32_t)n;
    return t->pattern ? 0 : err_set(err, ERR_NO_MEMORY, "tokenizer: out of memory");
}

int added_prepare(struct added *a, const struct normalizer *z, struct normalize_scratch *s,
                  struct err *err)
{
    int rc = sort_tokens(a, err);
    for (size_t i = 0; i < a->n && !rc; i++) {
        if (a->tokens[i].flags & ADDED_NORMALIZED)
            rc = normalize_token(a, &a->tokens[i], z, s, err);
    }
    if (rc)
        return rc;
    for (size_t i = 0; i < a->n; i++) {
        struct added_token *t = &a->tokens[i];
        const struct added_token *named =
            t->pattern == t->content ? t : added_by_text(a, t->pattern, t->n_pattern);
        t->skipped = named && (named->flags & ADDED_SPECIAL);
    }
    rc = make_index(a, &a->raw, 0, err);
    return rc ? rc : make_index(a, &a->normalized, ADDED_NORMALIZED, err);
}

const struct added_token *added_by_id(const struct added *a, uint32_t id)
{
    size_t low = 0, high = a->n;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (a->tokens[mid].id < id)
            low = mid + 1;
        else
            high = mid;
    }
    return low < a->n && a->tokens[low].id == id ? &a->tokens[low] : NULL;
}

/* ---- finding ---- */

/* First in [low, high) whose pattern's byte at `depth` is at least `byte`; the range shares all
 * bytes before depth, and patterns that end there come first. */
static size_t lower_bound(const struct added *a, const struct added_index *x, size_t low,
                          size_t high, uint32_t depth, int byte)
{
    while (low < high) {
        size_t mid = (low + high) / 2;
        const struct added_token *t = &a->tokens[x->order[mid]];
        int at = t->n_pattern > depth ? (unsigned char)t->pattern[depth] : -1;
        if (at < byte)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* The longest token that stands at s, or NULL. */
static const struct added_token *longest_at(const struct added *a, const struct added_index *x,
                                            const char *s, size_t n)
{
    unsigned char c = (unsigned char)s[0];
    size_t low = x->first[c], high = x->first[c + 1];
    const struct added_token *best = NULL;
    for (uint32_t depth = 1; low < high; depth++) {
        const struct added_token *t = &a->tokens[x->order[low]];
        if (t->n_pattern == depth)
            best = t;
        if (depth == n)
            break;
        int next = (unsigned char)s[depth];
        low = lower_bound(a, x, low, high, depth, next);
        high = lower_bound(a, x, low, high, depth, next + 1);
    }
    return best;
}

static bool is_single_word(const char *s, size_t n, size_t start, size_t end)
{
    size_t len;
    if (start && unicode_is_word(utf8_decode(s + start - utf8_length_before(s, start), &len)))
        return false;
    return end == n || !unicode_is_word(utf8_decode(s + end, &len));
}

/* Spaces on the sides that belong to the token. */
static void widen(const struct added_token *t, const char *s, size_t n, size_t done, size_t *start,
                  size_t *end)
{
    size_t len, unused;
    if ((t->flags & ADDED_LSTRIP) && *start < done) // the token before has taken these spaces
        *start = done;
    while ((t->flags & ADDED_LSTRIP) && *start > done) {
        len = utf8_length_before(s, *start);
        if (!unicode_is_space(utf8_decode(s + *start - len, &unused)))
            break;
        *start -= len;
    }
    while ((t->flags & ADDED_RSTRIP) && *end < n) {
        if (!unicode_is_space(utf8_decode(s + *end, &len)))
            break;
        *end += len;
    }
}

static int add_text(struct piece_list *out, struct piece from, size_t start, size_t end,
                    struct err *err)
{
    return piece_list_add(out,
                          (struct piece){.start = from.start + (uint32_t)start,
                                         .len = (uint32_t)(end - start),
                                         .id = VOCAB_NONE,
                                         .head = from.head && start == 0},
                          err);
}

int added_split(const struct added *a, const struct added_index *x, const char *text,
                struct piece from, bool special_as_text, struct piece_list *out, struct err *err)
{
    const char *s = text + from.start;
    size_t n = from.len, done = 0, next = 0;
    for (size_t i = 0; i < n && x->n; i = next) {
        next = i + 1;
        if (x->first[(unsigned char)s[i]] == x->first[(unsigned char)s[i] + 1])
            continue;
        const struct added_token *t = longest_at(a, x, s + i, n - i);
        if (!t)
            continue;
        size_t start = i, end = i + t->n_pattern;
        next = end;
        if ((special_as_text && (t->flags & ADDED_SPECIAL)) ||
            ((t->flags & ADDED_SINGLE_WORD) && !is_single_word(s, n, start, end)))
            continue;
        widen(t, s, n, done, &start, &end);
        int rc = start > done ? add_text(out, from, done, start, err) : 0;
        if (!rc && start < end) // nothing is left of one that stood in those spaces
            rc = piece_list_add(out, (struct piece){.id = t->id}, err);
        if (rc)
            return rc;
        done = end;
    }
    return done < n ? add_text(out, from, done, n, err) : 0;
}
