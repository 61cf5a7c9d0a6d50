#include "libcore/text/bpe.h"

#include <stdio.h>
#include <string.h>

#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "libcore/text/bpe_impl.h"
#include "libcore/text/unicode.h"

/* Cut long pieces only; a word is merged as quickly as it is cut. */
enum { CUT_FROM_BYTES = 24 };

uint32_t byte_level_char(unsigned char b)
{
    if ((b >= '!' && b <= '~') || (b >= 0xA1 && b != 0xAD))
        return b;
    // the others take U+0100… in order: 0…0x20, 0x7F…0xA0, 0xAD
    return 0x100 + (b <= 0x20 ? b : b == 0xAD ? 0x43u : 0x21u + (b - 0x7Fu));
}

int byte_level_byte(uint32_t c)
{
    if (c < 0x100)
        return byte_level_char((unsigned char)c) == c ? (int)c : -1;
    uint32_t k = c - 0x100;
    return k <= 0x20 ? (int)k : k <= 0x42 ? (int)(0x7F + k - 0x21) : k == 0x43 ? 0xAD : -1;
}

void bpe_prepare(struct bpe *b)
{
    bool all = true;
    b->unk_id = b->unk_token ? vocab_find(b->v, b->unk_token, strlen(b->unk_token)) : VOCAB_NONE;
    for (unsigned i = 0; i < 256; i++) {
        char text[8];
        snprintf(text, sizeof text, "<0x%02X>", i);
        b->byte_ids[i] = vocab_find(b->v, text, 6);
        all &= b->byte_ids[i] != VOCAB_NONE;
        size_t n = utf8_encode(byte_level_char((unsigned char)i), text);
        b->level_ids[i] = vocab_find(b->v, text, n);
    }
    // An unknown character that is dropped or fused could reach over a cut, and a merge of byte
    // tokens would join what no product shows.
    b->may_cut =
        b->v->pairs && !b->prefix && !b->suffix && !b->byte_level && b->byte_fallback && all;
    for (unsigned i = 0; i < 256 && b->may_cut; i++) {
        for (unsigned k = 0; k < 256 && b->may_cut; k++)
            b->may_cut = !vocab_find_merge(b->v, b->byte_ids[i], b->byte_ids[k]);
    }
}

void bpe_release(struct bpe *b)
{
    sys_free(b->unk_token);
    sys_free(b->prefix);
    sys_free(b->suffix);
    b->unk_token = b->prefix = b->suffix = NULL;
}

/* ---- scratch ---- */

int bpe_scratch_open(struct bpe_scratch **out, struct err *err)
{
    struct bpe_scratch *s = sys_calloc(1, sizeof *s);
    *out = s;
    if (!s)
        return err_set(err, ERR_NO_MEMORY, "tokenizer: out of memory");
    strbuf_init(&s->text);
    strbuf_init(&s->mapped);
    return 0;
}

void bpe_scratch_free(struct bpe_scratch *s)
{
    if (!s)
        return;
    sys_free(s->symbols);
    sys_free(s->heap);
    word_cache_release(&s->cache);
    strbuf_release(&s->text);
    strbuf_release(&s->mapped);
    sys_free(s);
}

/* Room for n more symbols. */
static int reserve(struct bpe_scratch *s, size_t n, struct err *err)
{
    if (s->n + n <= s->cap)
        return 0;
    size_t cap = s->cap ? s->cap * 2 : 256;
    while (cap < s->n + n)
        cap *= 2;
    struct bpe_symbol *symbols = sys_reallocarray(s->symbols, cap, sizeof *symbols);
    if (!symbols)
        return err_set(err, ERR_NO_MEMORY, "tokenizer: out of memory");
    s->symbols = symbols;
    s->cap = cap;
    return 0;
}

static void push(struct bpe_scratch *s, uint32_t id)
{
    s->symbols[s->n].id = id;
    s->n++;
}

/* ---- first symbols: one a character ---- */

/* A character that the vocabulary lacks. What an earlier unknown character left pending stays
 * pending while bytes are added: so the library does it. */
static int push_unknown(const struct bpe *b, struct bpe_scratch *s, const char *text, size_t n,
                        size_t *pending, struct err *err)
{
    bool bytes = b->byte_fallback;
    for (size_t i = 0; i < n && bytes; i++)
        bytes = b->byte_ids[(unsigned char)text[i]] != VOCAB_NONE;
    if (bytes) {
        int rc = reserve(s, n + 1, err);
        for (size_t i = 0; i < n && !rc; i++)
            push(s, b->byte_ids[(unsigned char)text[i]]);
        return rc;
    }
    if (!b->unk_token)
        return 0; // dropped
    if (b->unk_id == VOCAB_NONE)
        return err_set(err, ERR_REFUSED, "tokenizer: the vocabulary lacks its unknown token '%s'",
                       b->unk_token);
    if (*pending && !b->fuse_unk)
        push(s, b->unk_id);
    *pending = 1;
    return 0;
}

static int push_character(const struct bpe *b, struct bpe_scratch *s, const char *text, size_t n,
                          bool first, bool last, size_t *pending, struct err *err)
{
    if ((!first && b->prefix) || (last && b->suffix)) {
        strbuf_reset(&s->text);
        strbuf_adds(&s->text, !first && b->prefix ? b->prefix : "");
        strbuf_add(&s->text, text, n);
        strbuf_adds(&s->text, last && b->suffix ? b->suffix : "");
        if (s->text.failed)
            return err_set(err, ERR_NO_MEMORY, "tokenizer: out of memory");
        text = s->text.data;
        n = s->text.len;
    }
    int rc = reserve(s, 2, err);
    if (rc)
        return rc;
    uint32_t id = vocab_find(b->v, text, n);
    if (id == VOCAB_NONE)
        return push_unknown(b, s, text, n, pending, err);
    if (*pending)
        push(s, b->unk_id);
    *pending = 0;
    push(s, id);
    return 0;
}

static int push_characters(const struct bpe *b, struct bpe_scratch *s, const char *text, size_t n,
                           struct err *err)
{
    size_t pending = 0; // an unknown token that is not written yet
    int rc = reserve(s, n + 1, err);
    for (size_t i = 0, len; i < n && !rc; i += len) {
        utf8_decode(text + i, &len);
        rc = push_character(b, s, text + i, len, i == 0, i + len == n, &pending, err);
    }
    if (!rc && pending) {
        rc = reserve(s, 1, err);
        if (!rc)
            push(s, b->unk_id);
    }
    return rc;
}

/* ---- one word ---- */

static int encode_word(const struct bpe *b, struct bpe_scratch *s, const char *text, size_t n,
                       struct token_ids *out, struct err *err)
{
    const char *spelled = text;
    size_t n_spelled = n;
    bool whole = b->byte_level;
    s->n = 0;
    if (b->byte_level) {
        strbuf_reset(&s->mapped);
        for (size_t i = 0; i < n; i++) {
            strbuf_add_utf8(&s->mapped, byte_level_char((unsigned char)text[i]));
            whole &= b->level_ids[(unsigned char)text[i]] != VOCAB_NONE;
        }
        if (s->mapped.failed)
            return err_set(err, ERR_NO_MEMORY, "tokenizer: out of memory");
        spelled = strbuf_text(&s->mapped);
        n_spelled = s->mapped.len;
    }
    uint32_t id = b->ignore_merges ? vocab_find(b->v, spelled, n_spelled) : VOCAB_NONE;
    if (id != VOCAB_NONE)
        return token_ids_add(out, id, err);
    int rc = 0;
    if (whole && !b->prefix && !b->suffix) {
        rc = reserve(s, n, err);
        for (size_t i = 0; i < n && !rc; i++)
            push(s, b->level_ids[(unsigned char)text[i]]);
    } else {
        rc = push_characters(b, s, spelled, n_spelled, err);
    }
    if (!rc)
        rc = bpe_merge(b->v, s, err);
    for (size_t i = 0; i < s->n && !rc; i++)
        rc = token_ids_add(out, s->symbols[i].id, err);
    return rc;
}

static int encode_cached(const struct bpe *b, struct bpe_scratch *s, const char *text, size_t n,
                         struct token_ids *out, struct err *err)
{
    if (n > WORD_CACHE_BYTES)
        return encode_word(b, s, text, n, out, err);
    uint64_t hash;
    const struct word_ids *hit = word_cache_find(&s->cache, text, n, &hash);
    size_t before = out->n;
    if (!hit) {
        int rc = encode_word(b, s, text, n, out, err);
        if (!rc)
            word_cache_add(&s->cache, text, n, hash, out->data + before, out->n - before);
        return rc;
    }
    int rc = 0;
    for (uint32_t i = 0; i < hit->n && !rc; i++)
        rc = token_ids_add(out, s->cache.ids[hit->first + i], err);
    return rc;
}

int bpe_encode(const struct bpe *b, struct bpe_scratch *s, const char *text, size_t n,
               struct token_ids *out, struct err *err)
{
    if (!b->may_cut || n < CUT_FROM_BYTES || b->ignore_merges)
        return n ? encode_cached(b, s, text, n, out, err) : 0;
    size_t start = 0, len;
    uint32_t before = utf8_decode(text, &len);
    for (size_t i = len; i < n; i += len) {
        uint32_t c = utf8_decode(text + i, &len);
        if (!vocab_may_join(b->v, before, c)) {
            int rc = encode_cached(b, s, text + start, i - start, out, err);
            if (rc)
                return rc;
            start = i;
        }
        before = c;
    }
    return encode_cached(b, s, text + start, n - start, out, err);
}
