/* From the text of tokenizer.json to the block of vocab.h, in one pass over the file. */
#include <string.h>

#include "libcore/base/limits.h"
#include "libcore/base/sys.h"
#include "libcore/text/vocab_build_impl.h"

int vocab_no_memory(struct builder *b)
{
    return err_set(b->r.err, ERR_NO_MEMORY, "%s: out of memory", b->r.name);
}

/* Doubles *array when it is full. */
int vocab_grow(struct builder *b, void **array, size_t n, size_t *cap, size_t item)
{
    if (n < *cap)
        return 0;
    if (n >= LIMIT_VOCABULARY)
        return err_set(b->r.err, ERR_LIMIT, "%s: more than %d tokens or merges", b->r.name,
                       LIMIT_VOCABULARY);
    size_t more = *cap ? *cap * 2 : 1024;
    void *p = sys_reallocarray(*array, more, item);
    if (!p)
        return vocab_no_memory(b);
    *array = p;
    *cap = more;
    return 0;
}

/* The smallest power of two with at least 1/2 of it free (a load that keeps probes short). */
uint32_t vocab_table_size(size_t n)
{
    uint32_t size = 16;
    while (size < n + n / 2)
        size *= 2;
    return size;
}

/* ---- vocab ---- */

static int read_entry(struct builder *b)
{
    const char *s;
    size_t n;
    int64_t id;
    int rc = json_pull_key(&b->r, &s, &n);
    if (rc)
        return rc;
    rc = vocab_grow(b, (void **)&b->entries, b->n_entries, &b->cap_entries, sizeof *b->entries);
    if (rc)
        return rc;
    struct vocab_entry *e = &b->entries[b->n_entries++];
    *e = (struct vocab_entry){.offset = (uint32_t)b->text.len, .len = (uint32_t)n};
    strbuf_add(&b->text, s, n);
    rc = json_pull_integer(&b->r, &id);
    if (rc)
        return rc;
    if (id < 0 || id >= LIMIT_VOCABULARY)
        return err_set(b->r.err, ERR_LIMIT, "%s: token id %lld is out of range", b->r.name,
                       (long long)id);
    e->id = (uint32_t)id;
    if (e->id >= b->v.n_ids)
        b->v.n_ids = e->id + 1;
    return 0;
}

static int add_slot(struct builder *b, const struct vocab_entry *e)
{
    uint64_t h = vocab_hash(b->text.data + e->offset, e->len);
    uint32_t tag = (uint32_t)(h >> 32), i = (uint32_t)h & b->v.slot_mask;
    for (; b->slots[i].id != VOCAB_NONE; i = (i + 1) & b->v.slot_mask) {
        const struct vocab_token *t = &b->tokens[b->slots[i].id];
        if (b->slots[i].tag == tag && t->len == e->len &&
            memcmp(b->text.data + t->offset, b->text.data + e->offset, e->len) == 0)
            return err_set(b->r.err, ERR_CORRUPT, "%s: model.vocab has the token '%.*s' twice",
                           b->r.name, e->len > 60 ? 60 : (int)e->len, b->text.data + e->offset);
    }
    if (b->tokens[e->id].len != VOCAB_NONE)
        return err_set(b->r.err, ERR_CORRUPT, "%s: model.vocab has two tokens of id %u", b->r.name,
                       e->id);
    b->slots[i] = (struct vocab_slot){tag, e->id};
    b->tokens[e->id] = (struct vocab_token){e->offset, e->len};
    return 0;
}

static int index_vocab(struct builder *b)
{
    uint32_t n_slots = vocab_table_size(b->n_entries);
    b->tokens = sys_reallocarray(NULL, b->v.n_ids, sizeof *b->tokens);
    b->slots = sys_reallocarray(NULL, n_slots, sizeof *b->slots);
    if (!b->tokens || !b->slots || b->text.failed)
        return vocab_no_memory(b);
    memset(b->tokens, 0xFF, b->v.n_ids * sizeof *b->tokens);
    memset(b->slots, 0xFF, n_slots * sizeof *b->slots);
    b->v.slot_mask = n_slots - 1;
    b->v.n_tokens = (uint32_t)b->n_entries;
    for (size_t i = 0; i < b->n_entries; i++) {
        int rc = add_slot(b, &b->entries[i]);
        if (rc)
            return rc;
    }
    b->v.tokens = b->tokens;
    b->v.slots = b->slots;
    return 0;
}

static int read_vocab(struct builder *b)
{
    bool first = true, more;
    if (b->tokens)
        return json_pull_fail(&b->r, "model.vocab stands there twice");
    int rc = json_pull_begin(&b->r, '{');
    while (!rc && !(rc = json_pull_next(&b->r, '}', &first, &more)) && more)
        rc = read_entry(b);
    return rc ? rc : index_vocab(b);
}

/* ---- added tokens ---- */

static int read_added_field(struct builder *b, struct vocab_added *a, bool *has_id,
                            bool *has_content)
{
    static const struct {
        const char *name;
        uint32_t flag;
    } flags[] = {{"special", ADDED_SPECIAL},
                 {"lstrip", ADDED_LSTRIP},
                 {"rstrip", ADDED_RSTRIP},
                 {"single_word", ADDED_SINGLE_WORD},
                 {"normalized", ADDED_NORMALIZED}};
    const char *s;
    size_t n;
    int rc = json_pull_key(&b->r, &s, &n);
    if (rc)
        return rc;
    if (n == 2 && memcmp(s, "id", 2) == 0) {
        int64_t id;
        rc = json_pull_integer(&b->r, &id);
        if (!rc && (id < 0 || id >= LIMIT_VOCABULARY))
            return json_pull_fail(&b->r, "token id out of range");
        a->id = rc ? 0 : (uint32_t)id;
        *has_id = true;
        return rc;
    }
    if (n == 7 && memcmp(s, "content", 7) == 0) {
        rc = json_pull_string(&b->r, &s, &n);
        if (rc)
            return rc;
        a->offset = (uint32_t)b->text.len;
        a->len = (uint32_t)n;
        strbuf_add(&b->text, s, n);
        *has_content = true;
        return 0;
    }
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        bool on;
        if (strlen(flags[i].name) != n || memcmp(flags[i].name, s, n) != 0)
            continue;
        rc = json_pull_bool(&b->r, &on);
        a->flags = !rc && on ? a->flags | flags[i].flag : a->flags;
        return rc;
    }
    return json_pull_skip(&b->r, NULL, NULL);
}

static int read_added_token(struct builder *b)
{
    struct vocab_added a = {0};
    bool first = true, more, has_id = false, has_content = false;
    int rc = json_pull_begin(&b->r, '{');
    while (!rc && !(rc = json_pull_next(&b->r, '}', &first, &more)) && more)
        rc = read_added_field(b, &a, &has_id, &has_content);
    if (!rc && (!has_id || !has_content))
        rc = json_pull_fail(&b->r, "an added token needs id and content");
    if (!rc)
        rc = vocab_grow(b, (void **)&b->added, b->n_added, &b->cap_added, sizeof *b->added);
    if (!rc)
        b->added[b->n_added++] = a;
    return rc;
}

static int read_added(struct builder *b)
{
    if (json_pull_peek(&b->r) != '[') // null
        return json_pull_skip(&b->r, NULL, NULL);
    bool first = true, more;
    int rc = json_pull_begin(&b->r, '[');
    while (!rc && !(rc = json_pull_next(&b->r, ']', &first, &more)) && more)
        rc = read_added_token(b);
    return rc;
}

/* ---- the file ---- */

/* Copies a member into the rest. */
static int keep(struct builder *b, const char *key, size_t n, bool *first)
{
    const char *value;
    size_t len;
    if (!*first)
        strbuf_addc(&b->rest, ',');
    *first = false;
    strbuf_add_json(&b->rest, key, n);
    strbuf_addc(&b->rest, ':');
    int rc = json_pull_skip(&b->r, &value, &len);
    if (!rc)
        strbuf_add(&b->rest, value, len);
    return rc;
}

/* The prefix must be known while merges are read; it stands before them in every file seen. */
static int note_prefix(struct builder *b)
{
    const char *s, *at = b->r.p;
    size_t n;
    if (json_pull_peek(&b->r) != '"')
        return 0;
    int rc = json_pull_string(&b->r, &s, &n);
    if (!rc && n > sizeof b->prefix)
        rc = err_set(b->r.err, ERR_REFUSED, "%s: continuing_subword_prefix of %zu bytes", b->r.name,
                     n);
    if (rc)
        return rc;
    memcpy(b->prefix, s, n);
    b->prefix_len = n;
    b->r.p = at;
    return 0;
}

static int read_model_member(struct builder *b, bool *first)
{
    const char *key;
    size_t n;
    int rc = json_pull_key(&b->r, &key, &n);
    if (rc)
        return rc;
    char after = json_pull_peek(&b->r);
    if (n == 5 && memcmp(key, "vocab", 5) == 0 && after == '{')
        return read_vocab(b);
    if (n == 6 && memcmp(key, "merges", 6) == 0 && after == '[') {
        b->merges_at = b->r.p;
        return b->tokens ? vocab_read_merges(b) : json_pull_skip(&b->r, NULL, NULL);
    }
    if (n == 5 && memcmp(key, "vocab", 5) == 0) // a list: Unigram, refused by its type
        return json_pull_skip(&b->r, NULL, NULL);
    if (n == 25 && memcmp(key, "continuing_subword_prefix", 25) == 0) {
        rc = note_prefix(b);
        key = "continuing_subword_prefix"; // the reader's buffer was used again
    }
    return rc ? rc : keep(b, key, n, first);
}

static int read_model(struct builder *b)
{
    bool first = true, first_kept = true, more;
    strbuf_adds(&b->rest, "\"model\":{");
    int rc = json_pull_begin(&b->r, '{');
    while (!rc && !(rc = json_pull_next(&b->r, '}', &first, &more)) && more)
        rc = read_model_member(b, &first_kept);
    strbuf_addc(&b->rest, '}');
    if (rc || !b->merges_at || !b->tokens)
        return rc;
    if (b->n_list && b->prefix_len == b->prefix_len_used)
        return 0;
    const char *end = b->r.p; // merges stood before what they need: once more
    b->r.p = b->merges_at;
    rc = vocab_read_merges(b);
    if (!rc)
        b->r.p = end;
    return rc;
}

static int read_file(struct builder *b)
{
    bool first = true, first_kept = true, more, has_model = false;
    strbuf_addc(&b->rest, '{');
    int rc = json_pull_begin(&b->r, '{');
    while (!rc && !(rc = json_pull_next(&b->r, '}', &first, &more)) && more) {
        const char *key;
        size_t n;
        rc = json_pull_key(&b->r, &key, &n);
        if (rc)
            break;
        if (n == 12 && memcmp(key, "added_tokens", 12) == 0) {
            rc = read_added(b);
        } else if (n == 5 && memcmp(key, "model", 5) == 0 && json_pull_peek(&b->r) == '{') {
            if (has_model)
                return json_pull_fail(&b->r, "model stands there twice");
            has_model = true;
            if (!first_kept)
                strbuf_addc(&b->rest, ',');
            first_kept = false;
            rc = read_model(b);
        } else {
            rc = keep(b, key, n, &first_kept);
        }
    }
    strbuf_addc(&b->rest, '}');
    if (!rc)
        rc = json_pull_end(&b->r);
    if (!rc && !has_model)
        rc = err_set(b->r.err, ERR_CORRUPT, "%s: no model", b->r.name);
    return rc;
}

/* ---- the block ---- */

static uint64_t put(uint8_t *block, struct vocab_header *h, enum vocab_section section,
                    const void *data, size_t bytes, uint64_t at)
{
    h->offset[section] = at;
    h->bytes[section] = bytes;
    if (block && bytes)
        memcpy(block + at, data, bytes);
    return (at + bytes + 63) / 64 * 64;
}

/* With block NULL only measures. Section SECTION_REST is last and gets a NUL behind it. */
static uint64_t layout(const struct builder *b, uint8_t *block, struct vocab_header *h)
{
    uint64_t at = (sizeof *h + 63) / 64 * 64;
    size_t n_slots = b->slots ? b->v.slot_mask + 1 : 0, n_merges = b->v.merge_mask + 1;
    size_t pair_bytes = b->pairs ? (b->v.pair_mask + 1) / 8 : 0;
    at = put(block, h, SECTION_TOKENS, b->tokens, b->v.n_ids * sizeof *b->tokens, at);
    at = put(block, h, SECTION_TEXT, b->text.data, b->text.len, at);
    at = put(block, h, SECTION_SLOTS, b->slots, n_slots * sizeof *b->slots, at);
    at = put(block, h, SECTION_MERGES, b->merges, n_merges * sizeof *b->merges, at);
    at = put(block, h, SECTION_ADDED, b->added, b->n_added * sizeof *b->added, at);
    at = put(block, h, SECTION_PAIRS, b->pairs, pair_bytes, at);
    at = put(block, h, SECTION_REST, b->rest.data, b->rest.len + 1, at);
    return at;
}

static int make_block(struct builder *b, uint8_t **block, size_t *size)
{
    struct vocab_header h = {.magic = "loratok",
                             .version = VOCAB_VERSION,
                             .byte_order = 0x01020304,
                             .n_ids = b->v.n_ids,
                             .n_tokens = b->v.n_tokens,
                             .n_merges = b->v.n_merges,
                             .n_added = (uint32_t)b->n_added};
    h.size = layout(b, NULL, &h);
    *block = sys_calloc(1, h.size);
    if (!*block)
        return vocab_no_memory(b);
    *size = h.size;
    layout(b, *block, &h);
    memcpy(*block, &h, sizeof h);
    return 0;
}

int vocab_build(uint8_t **block, size_t *size, const char *json, size_t n, const char *name,
                struct err *err)
{
    struct builder b = {0};
    *block = NULL;
    json_pull_init(&b.r, json, n, name, err);
    strbuf_init(&b.text);
    strbuf_init(&b.rest);
    strbuf_init(&b.left);
    int rc = read_file(&b);
    if (!rc && (b.text.failed || b.rest.failed))
        rc = vocab_no_memory(&b);
    if (!rc && !b.tokens)
        b.v.slot_mask = 0;
    if (!rc)
        rc = vocab_index_merges(&b);
    if (!rc && b.tokens)
        rc = vocab_make_pairs(&b);
    if (!rc)
        rc = make_block(&b, block, size);
    sys_free(b.entries);
    sys_free(b.tokens);
    sys_free(b.slots);
    sys_free(b.list);
    sys_free(b.merges);
    sys_free(b.added);
    sys_free(b.pairs);
    strbuf_release(&b.text);
    strbuf_release(&b.rest);
    strbuf_release(&b.left);
    json_pull_release(&b.r);
    return rc;
}
