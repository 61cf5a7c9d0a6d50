/* The merges of a vocabulary: half a million pairs of texts to find. A lookup waits for memory
 * three times (slot, token, text); sixteen merges at a time, asked for in advance, wait together.
 */
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/text/unicode.h"
#include "libcore/text/vocab_build_impl.h"

enum { PAIR_BITS_LARGE = 23, PAIR_BITS_SMALL = 20, LARGE_MERGES = 100000 };
enum { BATCH = 16, HELD_BYTES = 232, LONG_BYTES = 4096 };

enum { LEFT, RIGHT, PRODUCT, N_PARTS };

/* A merge whose texts stand one behind the other: without a prefix they are the product. */
struct held {
    uint32_t n_left, n_right;
    uint64_t hash[N_PARTS];
    char text[HELD_BYTES];
};
struct batch {
    struct held items[BATCH];
    size_t n;
};

static int unknown_in_merge(struct builder *b, const char *s, size_t n)
{
    return err_set(b->r.err, ERR_CORRUPT,
                   "%s: merge %zu needs the token '%.*s', which model.vocab lacks", b->r.name,
                   b->n_list, n > 60 ? 60 : (int)n, s);
}

/* text: left and right, one behind the other; that of the product is the left and the right one
 * without the continuing prefix. hash: of the three. */
static int add_merge(struct builder *b, char *text, uint32_t n_left, uint32_t n_right,
                     const uint64_t hash[N_PARTS])
{
    uint32_t left = vocab_find_hashed(&b->v, hash[LEFT], text, n_left);
    if (left == VOCAB_NONE)
        return unknown_in_merge(b, text, n_left);
    uint32_t right = vocab_find_hashed(&b->v, hash[RIGHT], text + n_left, n_right);
    if (right == VOCAB_NONE)
        return unknown_in_merge(b, text + n_left, n_right);
    if (n_right < b->prefix_len)
        return unknown_in_merge(b, b->prefix, b->prefix_len);
    uint32_t cut = (uint32_t)b->prefix_len;
    uint32_t n = n_left + n_right - cut;
    if (cut)
        memmove(text + n_left, text + n_left + cut, n_right - cut);
    uint32_t product =
        cut ? vocab_find(&b->v, text, n) : vocab_find_hashed(&b->v, hash[PRODUCT], text, n);
    if (product == VOCAB_NONE)
        return unknown_in_merge(b, text, n);
    int rc = vocab_grow(b, (void **)&b->list, b->n_list, &b->cap_list, sizeof *b->list);
    if (rc)
        return rc;
    b->list[b->n_list] = (struct vocab_merge){left, right, (uint32_t)b->n_list, product};
    b->n_list++;
    return 0;
}

static void hash_parts(const char *text, uint32_t n_left, uint32_t n_right, uint64_t hash[N_PARTS])
{
    hash[LEFT] = vocab_hash(text, n_left);
    hash[RIGHT] = vocab_hash(text + n_left, n_right);
    hash[PRODUCT] = vocab_hash(text, n_left + n_right);
}

/* Asks for the memory of all lookups, step by step, then makes them. */
static int flush(struct builder *b, struct batch *batch)
{
    const struct vocab_slot *slots = b->v.slots;
    const struct vocab_token *tokens = b->v.tokens;
    for (size_t k = 0; k < batch->n; k++) {
        struct held *m = &batch->items[k];
        hash_parts(m->text, m->n_left, m->n_right, m->hash);
        for (int part = 0; part < N_PARTS; part++)
            __builtin_prefetch(&slots[m->hash[part] & b->v.slot_mask]);
    }
    for (int deep = 0; deep < 2; deep++) {
        for (size_t k = 0; k < batch->n; k++) {
            for (int part = 0; part < N_PARTS; part++) {
                uint32_t id = slots[batch->items[k].hash[part] & b->v.slot_mask].id;
                if (id != VOCAB_NONE && deep)
                    __builtin_prefetch(b->v.text + tokens[id].offset);
                else if (id != VOCAB_NONE)
                    __builtin_prefetch(&tokens[id]);
            }
        }
    }
    int rc = 0;
    for (size_t k = 0; k < batch->n && !rc; k++) {
        struct held *m = &batch->items[k];
        rc = add_merge(b, m->text, m->n_left, m->n_right, m->hash);
    }
    batch->n = 0;
    return rc;
}

/* One that is too long to be held goes its own way. */
static int add_long(struct builder *b, const char *left, size_t n_left, const char *right,
                    size_t n_right)
{
    char text[LONG_BYTES];
    uint64_t hash[N_PARTS];
    if (n_left > sizeof text || n_right > sizeof text - n_left)
        return err_set(b->r.err, ERR_LIMIT, "%s: merge %zu has more than %d bytes", b->r.name,
                       b->n_list, LONG_BYTES);
    memcpy(text, left, n_left);
    memcpy(text + n_left, right, n_right);
    hash_parts(text, (uint32_t)n_left, (uint32_t)n_right, hash);
    return add_merge(b, text, (uint32_t)n_left, (uint32_t)n_right, hash);
}

static int hold(struct builder *b, struct batch *batch, const char *left, size_t n_left,
                const char *right, size_t n_right)
{
    bool fits = n_left <= HELD_BYTES && n_right <= HELD_BYTES - n_left;
    int rc = batch->n == BATCH || !fits ? flush(b, batch) : 0;
    if (rc)
        return rc;
    if (!fits)
        return add_long(b, left, n_left, right, n_right);
    struct held *m = &batch->items[batch->n++];
    m->n_left = (uint32_t)n_left;
    m->n_right = (uint32_t)n_right;
    memcpy(m->text, left, n_left);
    memcpy(m->text + n_left, right, n_right);
    return 0;
}

/* "left right": exactly one space. Lines that begin with #version are no merges. */
static int read_merge_string(struct builder *b, struct batch *batch)
{
    const char *s;
    size_t n;
    int rc = json_pull_string(&b->r, &s, &n);
    if (rc)
        return rc;
    if (n >= 8 && memcmp(s, "#version", 8) == 0)
        return 0;
    const char *space = memchr(s, ' ', n);
    if (!space || memchr(space + 1, ' ', n - (size_t)(space - s) - 1))
        return json_pull_fail(&b->r, "a merge is two tokens with one space between them");
    return hold(b, batch, s, (size_t)(space - s), space + 1, n - (size_t)(space - s) - 1);
}

static int read_merge_pair(struct builder *b, struct batch *batch)
{
    const char *s;
    size_t n = 0, k = 0;
    bool first = true, more;
    strbuf_reset(&b->left);
    int rc = json_pull_begin(&b->r, '[');
    while (!rc && !(rc = json_pull_next(&b->r, ']', &first, &more)) && more) {
        if (k++ == 2)
            return json_pull_fail(&b->r, "a merge has two tokens");
        rc = json_pull_string(&b->r, &s, &n);
        if (!rc && k == 1)
            strbuf_add(&b->left, s, n);
    }
    if (rc)
        return rc;
    if (k != 2)
        return json_pull_fail(&b->r, "a merge has two tokens");
    if (b->left.failed)
        return vocab_no_memory(b);
    return hold(b, batch, strbuf_text(&b->left), b->left.len, s, n);
}

int vocab_read_merges(struct builder *b)
{
    struct batch batch;
    bool first = true, more;
    batch.n = 0;
    b->n_list = 0;
    b->v.text = strbuf_text(&b->text);
    b->prefix_len_used = b->prefix_len;
    int rc = json_pull_begin(&b->r, '[');
    while (!rc && !(rc = json_pull_next(&b->r, ']', &first, &more)) && more)
        rc = json_pull_peek(&b->r) == '"' ? read_merge_string(b, &batch)
                                          : read_merge_pair(b, &batch);
    return rc ? rc : flush(b, &batch);
}

/* Of a pair that is listed twice the later one counts. */
int vocab_index_merges(struct builder *b)
{
    uint32_t n_slots = vocab_table_size(b->n_list);
    b->merges = sys_reallocarray(NULL, n_slots, sizeof *b->merges);
    if (!b->merges)
        return vocab_no_memory(b);
    memset(b->merges, 0xFF, n_slots * sizeof *b->merges);
    b->v.merge_mask = n_slots - 1;
    for (size_t k = 0; k < b->n_list; k++) {
        const struct vocab_merge *m = &b->list[k];
        uint32_t i = (uint32_t)vocab_hash_pair(m->left, m->right) & b->v.merge_mask;
        while (b->merges[i].left != VOCAB_NONE &&
               (b->merges[i].left != m->left || b->merges[i].right != m->right))
            i = (i + 1) & b->v.merge_mask;
        b->merges[i] = *m;
    }
    b->v.n_merges = (uint32_t)b->n_list;
    return 0;
}

/* ---- pairs of characters inside products ---- */

static void add_pairs_of(struct builder *b, const struct vocab_token *t)
{
    const char *s = b->text.data + t->offset;
    uint32_t before = 0;
    for (size_t i = 0, len; i < t->len; i += len) {
        uint32_t c = utf8_decode(s + i, &len);
        if (i) {
            uint32_t bit = (uint32_t)vocab_hash_pair(before, c) & b->v.pair_mask;
            b->pairs[bit / 64] |= UINT64_C(1) << bit % 64;
        }
        before = c;
    }
}

/* Only for models that get long pieces: behind a ByteLevel pre-tokenizer they are words. */
int vocab_make_pairs(struct builder *b)
{
    if (strstr(strbuf_text(&b->rest), "\"ByteLevel\"") || b->prefix_len)
        return 0;
    uint32_t n_bits = 1u << (b->n_list >= LARGE_MERGES ? PAIR_BITS_LARGE : PAIR_BITS_SMALL);
    b->pairs = sys_calloc(n_bits / 64, sizeof *b->pairs);
    bool *seen = sys_calloc(b->v.n_ids, sizeof *seen);
    if (!b->pairs || !seen) {
        sys_free(seen);
        return vocab_no_memory(b);
    }
    b->v.pair_mask = n_bits - 1;
    for (size_t k = 0; k < b->n_list; k++) {
        uint32_t product = b->list[k].product;
        if (!seen[product])
            add_pairs_of(b, &b->tokens[product]);
        seen[product] = true;
    }
    sys_free(seen);
    return 0;
}
