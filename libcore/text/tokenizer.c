#include "libcore/text/tokenizer.h"

#include <string.h>

#include "libcore/base/limits.h"
#include "libcore/base/sys.h"
#include "libcore/text/tokenizer_impl.h"
#include "libcore/text/unicode.h"

enum { KEEP_SCRATCH_BYTES = 1 << 20 }; // a prompt of a quarter of a million tokens

/* ---- ids ---- */

void token_ids_init(struct token_ids *ids)
{
    memset(ids, 0, sizeof *ids);
}

void token_ids_release(struct token_ids *ids)
{
    sys_free(ids->data);
    token_ids_init(ids);
}

int token_ids_add(struct token_ids *ids, uint32_t id, struct err *err)
{
    if (ids->n == ids->cap) {
        size_t cap = ids->cap ? ids->cap * 2 : 64;
        uint32_t *data = sys_reallocarray(ids->data, cap, sizeof *data);
        if (!data)
            return err_set(err, ERR_NO_MEMORY, "tokenizer: out of memory");
        ids->data = data;
        ids->cap = cap;
    }
    ids->data[ids->n++] = id;
    return 0;
}

/* ---- scratches: as many as there are encodes at once ---- */

void encode_scratch_free(struct encode_scratch *s)
{
    if (!s)
        return;
    regex_scratch_free(s->regex);
    bpe_scratch_free(s->bpe);
    normalize_scratch_release(&s->normalize);
    pre_scratch_release(&s->pre);
    strbuf_release(&s->text);
    strbuf_release(&s->normalized);
    piece_list_release(&s->raw);
    piece_list_release(&s->pieces);
    sys_free(s);
}

int encode_scratch_open(struct encode_scratch **out, struct err *err)
{
    *out = NULL;
    struct encode_scratch *s = sys_calloc(1, sizeof *s);
    if (!s)
        return err_set(err, ERR_NO_MEMORY, "tokenizer: out of memory");
    int rc = regex_scratch_open(&s->regex, err);
    if (!rc)
        rc = bpe_scratch_open(&s->bpe, err);
    if (rc) {
        encode_scratch_free(s);
        return rc;
    }
    s->normalize.regex = s->regex;
    s->pre.regex = s->regex;
    *out = s;
    return 0;
}

/* The tokenizer is const to its callers: its list of idle scratches is no part of what it means. */
static int take_scratch(const struct tokenizer *t, struct encode_scratch **out, struct err *err)
{
    struct tokenizer *own = (struct tokenizer *)(uintptr_t)t;
    pthread_mutex_lock(&own->lock);
    *out = own->idle;
    if (*out)
        own->idle = (*out)->next;
    pthread_mutex_unlock(&own->lock);
    return *out ? 0 : encode_scratch_open(out, err);
}

/* One that a long text has made large is not kept. */
static void give_scratch(const struct tokenizer *t, struct encode_scratch *s, size_t n_text)
{
    if (n_text > KEEP_SCRATCH_BYTES) {
        encode_scratch_free(s);
        return;
    }
    struct tokenizer *own = (struct tokenizer *)(uintptr_t)t;
    pthread_mutex_lock(&own->lock);
    s->next = own->idle;
    own->idle = s;
    pthread_mutex_unlock(&own->lock);
}

/* ---- encoding ---- */

/* Normalizes every piece of the text and looks for the tokens that are found only then. */
static int normalize_pieces(const struct tokenizer *t, struct encode_scratch *s, const char *text,
                            bool special_as_text, struct err *err)
{
    strbuf_reset(&s->normalized);
    s->normalized.max = LIMIT_TEXT_BYTES;
    s->pieces.n = 0;
    // first all the text, then the pieces: it moves while it grows
    for (size_t i = 0; i < s->raw.n; i++) {
        struct piece *p = &s->raw.items[i];
        const char *out;
        size_t n;
        if (p->id != VOCAB_NONE)
            continue;
        int rc = normalizer_run(&t->normalizer, &s->normalize, text + p->start, p->len, &p->head,
                                &out, &n, err);
        if (rc)
            return rc;
        p->start = (uint32_t)s->normalized.len;
        p->len = (uint32_t)n;
        strbuf_add(&s->normalized, out, n);
    }
    if (s->normalized.too_long)
        return err_set(err, ERR_LIMIT, "normalizer: the text grows beyond %d bytes",
                       LIMIT_TEXT_BYTES);
    if (s->normalized.failed)
        return err_set(err, ERR_NO_MEMORY, "tokenizer: out of memory");
    int rc = 0;
    for (size_t i = 0; i < s->raw.n && !rc; i++) {
        rc = s->raw.items[i].id != VOCAB_NONE
                 ? piece_list_add(&s->pieces, s->raw.items[i], err)
                 : added_split(&t->added, &t->added.normalized, strbuf_text(&s->normalized),
                               s->raw.items[i], special_as_text, &s->pieces, err);
    }
    return rc;
}

static int encode_text(const struct tokenizer *t, struct encode_scratch *s, const char *text,
                       size_t n, unsigned flags, struct token_ids *out, struct err *err)
{
    bool special_as_text = flags & TOKENIZER_SPECIAL_AS_TEXT;
    struct piece all = {.len = (uint32_t)n, .id = VOCAB_NONE, .head = true};
    const struct piece_list *pieces = &s->raw;
    s->raw.n = 0;
    int rc = added_split(&t->added, &t->added.raw, text, all, special_as_text, &s->raw, err);
    if (!rc && (t->normalizer.n || t->added.normalized.n)) {
        rc = normalize_pieces(t, s, text, special_as_text, err);
        text = strbuf_text(&s->normalized);
        pieces = &s->pieces;
    }
    if (!rc)
        rc = pre_tokenizer_run(&t->pre, &s->pre, &text, &pieces, err);
    for (size_t i = 0; !rc && i < pieces->n; i++) {
        const struct piece *p = &pieces->items[i];
        rc = p->id != VOCAB_NONE ? token_ids_add(out, p->id, err)
                                 : bpe_encode(&t->bpe, s->bpe, text + p->start, p->len, out, err);
    }
    return rc;
}

static int add_all(struct token_ids *out, const struct token_ids *ids, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; i < ids->n && !rc; i++)
        rc = token_ids_add(out, ids->data[i], err);
    return rc;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, unsigned flags,
                     struct token_ids *out, struct err *err)
{
    struct encode_scratch *s;
    if (n > LIMIT_TEXT_BYTES)
        return err_set(err, ERR_LIMIT, "text of %zu bytes, at most %d are taken", n,
                       LIMIT_TEXT_BYTES);
    int rc = take_scratch(t, &s, err);
    if (rc)
        return rc;
    if (utf8_valid_prefix(text, n) != n) {
        strbuf_reset(&s->text);
        utf8_add_lossy(&s->text, text, n);
        if (s->text.failed || s->text.len > LIMIT_TEXT_BYTES)
            rc = err_set(err, s->text.failed ? ERR_NO_MEMORY : ERR_LIMIT, "text of %zu bytes", n);
        text = strbuf_text(&s->text);
        n = s->text.len;
    }
    if (!rc && (flags & TOKENIZER_ADD_SPECIAL))
        rc = add_all(out, &t->before, err);
    if (!rc)
        rc = encode_text(t, s, text, n, flags, out, err);
    if (!rc && (flags & TOKENIZER_ADD_SPECIAL))
        rc = add_all(out, &t->after, err);
    give_scratch(t, s, n);
    return rc;
}

/* ---- tokens ---- */

static const char *vocab_text(const struct vocab *v, uint32_t id, size_t *n)
{
    if (id >= v->n_ids || v->tokens[id].len == VOCAB_NONE)
        return NULL;
    *n = v->tokens[id].len;
    return v->text + v->tokens[id].offset;
}

const char *tokenizer_spelling(const struct tokenizer *t, uint32_t id, size_t *n)
{
    const struct added_token *a = added_by_id(&t->added, id);
    if (!a)
        return vocab_text(t->v, id, n);
    *n = a->n_pattern;
    return a->pattern;
}

bool tokenizer_skips(const struct tokenizer *t, uint32_t id)
{
    const struct added_token *a = added_by_id(&t->added, id);
    return a && a->skipped;
}

const char *tokenizer_token_text(const struct tokenizer *t, uint32_t id, size_t *n)
{
    const struct added_token *a = added_by_id(&t->added, id);
    if (!a)
        return vocab_text(t->v, id, n);
    *n = a->n;
    return a->content;
}

int64_t tokenizer_id_of(const struct tokenizer *t, const char *text, size_t n)
{
    uint32_t id = vocab_find(t->v, text, n);
    if (id != VOCAB_NONE)
        return id;
    const struct added_token *a = added_by_text(&t->added, text, n);
    return a ? (int64_t)a->id : -1;
}

uint32_t tokenizer_vocab_size(const struct tokenizer *t)
{
    return t->n_ids;
}

bool tokenizer_is_special(const struct tokenizer *t, uint32_t id)
{
    const struct added_token *a = added_by_id(&t->added, id);
    return a && (a->flags & ADDED_SPECIAL);
}

int64_t tokenizer_role_id(const struct tokenizer *t, enum tokenizer_role role)
{
    return t->role_id[role];
}

const char *tokenizer_role_text(const struct tokenizer *t, enum tokenizer_role role)
{
    return t->role_text[role];
}
