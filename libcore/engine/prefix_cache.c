#include "libcore/engine/prefix_cache.h"

#include <assert.h>
#include <string.h>

#include "libcore/base/sys.h"

enum { NO_NODE = UINT32_MAX, SPACE_BUCKETS = 1024 };

struct prefix_space {
    uint64_t id; // of the chain before the first page; 0: not interned
    uint64_t hash;
    uint32_t refs; // sequences and nodes
    uint32_t n_adapters;
    struct prefix_space *next; // in its bucket
    size_t n_key;
    uint8_t key[]; // n_adapters records of {64 hex digits, scale}, rope regime, salt
};

enum { RECORD_BYTES = DIGEST_HEX_CHARS + sizeof(float) };

/* Node i describes page i. Ids are never used twice, so a node whose parent went is never found. */
struct node {
    uint64_t id; // 0: the page is not known
    uint64_t parent;
    uint64_t hash;
    struct prefix_space *space;
    uint32_t next; // in its bucket
};

struct prefix_cache {
    struct kv_cache *kv;
    uint32_t n_pages, page_tokens, n_known;
    uint64_t last_id;
    struct node *nodes;
    int32_t *tokens; // page_tokens a node
    uint32_t *buckets;
    uint32_t bucket_mask;
    struct prefix_space *spaces[SPACE_BUCKETS];
};

static uint64_t mix(uint64_t h, uint64_t v)
{
    h ^= v;
    h *= 0x9E3779B97F4A7C15u;
    return h ^ (h >> 29);
}

// ---- spaces -------------------------------------------------------------------------------------

int prefix_space_open(struct prefix_space **out, const struct prefix_adapter *adapters, size_t n,
                      unsigned rope_regime, const char *salt, struct err *err)
{
    size_t n_salt = salt ? strlen(salt) + 1 : 0; // with its NUL: "" is not NULL
    size_t n_key = n * RECORD_BYTES + sizeof rope_regime + n_salt;
    *out = sys_calloc(1, sizeof **out + n_key);
    if (!*out)
        return err_set(err, ERR_NO_MEMORY, "prefix cache: no memory for a key of %zu bytes", n_key);
    struct prefix_space *s = *out;
    uint8_t *at = s->key;
    for (size_t i = 0; i < n; i++) {
        memcpy(at, adapters[i].content_id, DIGEST_HEX_CHARS);
        memcpy(at + DIGEST_HEX_CHARS, &adapters[i].scale, sizeof(float));
        at += RECORD_BYTES;
    }
    memcpy(at, &rope_regime, sizeof rope_regime);
    if (salt)
        memcpy(at + sizeof rope_regime, salt, n_salt);
    s->n_adapters = (uint32_t)n;
    s->n_key = n_key;
    s->hash = n;
    for (size_t i = 0; i < n_key; i++)
        s->hash = mix(s->hash, s->key[i]);
    return 0;
}

void prefix_space_free(struct prefix_space *s)
{
    assert(!s || s->id == 0);
    sys_free(s);
}

struct prefix_space *prefix_cache_intern(struct prefix_cache *c, struct prefix_space *s)
{
    struct prefix_space **bucket = &c->spaces[s->hash % SPACE_BUCKETS];
    for (struct prefix_space *known = *bucket; known; known = known->next) {
        if (known->n_key == s->n_key && known->n_adapters == s->n_adapters &&
            memcmp(known->key, s->key, s->n_key) == 0) {
            prefix_space_free(s);
            known->refs++;
            return known;
        }
    }
    s->id = ++c->last_id;
    s->refs = 1;
    s->next = *bucket;
    *bucket = s;
    return s;
}

void prefix_cache_release(struct prefix_cache *c, struct prefix_space *s)
{
    assert(s->refs > 0);
    if (--s->refs > 0)
        return;
    struct prefix_space **at = &c->spaces[s->hash % SPACE_BUCKETS];
    while (*at != s)
        at = &(*at)->next;
    *at = s->next;
    sys_free(s);
}

uint64_t prefix_space_root(const struct prefix_space *s)
{
    return s->id;
}

static bool space_has(const struct prefix_space *s, const char *content_id)
{
    for (uint32_t i = 0; i < s->n_adapters; i++) {
        if (memcmp(s->key + i * (size_t)RECORD_BYTES, content_id, DIGEST_HEX_CHARS) == 0)
            return true;
    }
    return false;
}

// ---- pages --------------------------------------------------------------------------------------

int prefix_cache_open(struct prefix_cache **out, struct kv_cache *kv, uint32_t n_pages,
                      uint32_t page_tokens, struct err *err)
{
    *out = NULL;
    struct prefix_cache *c = sys_calloc(1, sizeof *c);
    if (!c)
        return err_set(err, ERR_NO_MEMORY, "prefix cache: no memory");
    c->kv = kv;
    c->n_pages = n_pages;
    c->page_tokens = page_tokens;
    uint32_t n_buckets = 16;
    while (n_buckets < n_pages && n_buckets < 1u << 30)
        n_buckets *= 2;
    c->bucket_mask = n_buckets - 1;
    c->nodes = sys_calloc(n_pages, sizeof *c->nodes);
    c->tokens = sys_calloc(n_pages, (size_t)page_tokens * sizeof *c->tokens);
    c->buckets = sys_malloc(n_buckets * sizeof *c->buckets);
    if (!c->nodes || !c->tokens || !c->buckets) {
        prefix_cache_free(c);
        return err_set(err, ERR_NO_MEMORY, "prefix cache: no memory for %u pages", n_pages);
    }
    for (uint32_t i = 0; i < n_buckets; i++)
        c->buckets[i] = NO_NODE;
    *out = c;
    return 0;
}

void prefix_cache_free(struct prefix_cache *c)
{
    if (!c)
        return;
    for (uint32_t i = 0; i < SPACE_BUCKETS; i++) {
        while (c->spaces[i]) {
            struct prefix_space *s = c->spaces[i];
            c->spaces[i] = s->next;
            sys_free(s);
        }
    }
    sys_free(c->nodes);
    sys_free(c->tokens);
    sys_free(c->buckets);
    sys_free(c);
}

static uint64_t page_hash(const struct prefix_cache *c, uint64_t chain, const int32_t *tokens)
{
    uint64_t h = mix(chain, 0x517CC1B727220A95u);
    for (uint32_t i = 0; i < c->page_tokens; i++)
        h = mix(h, (uint32_t)tokens[i]);
    return h;
}

static uint32_t find(const struct prefix_cache *c, uint64_t chain, const int32_t *tokens,
                     uint64_t hash)
{
    size_t n_bytes = c->page_tokens * sizeof *tokens;
    for (uint32_t i = c->buckets[hash & c->bucket_mask]; i != NO_NODE; i = c->nodes[i].next) {
        if (c->nodes[i].hash == hash && c->nodes[i].parent == chain &&
            memcmp(&c->tokens[(size_t)i * c->page_tokens], tokens, n_bytes) == 0)
            return i;
    }
    return NO_NODE;
}

uint32_t prefix_cache_match(struct prefix_cache *c, const struct prefix_space *s,
                            const int32_t *tokens, uint32_t max_pages, uint32_t *pages,
                            uint64_t *chain)
{
    *chain = s->id;
    uint32_t n = 0;
    for (; n < max_pages; n++, tokens += c->page_tokens) {
        uint32_t i = find(c, *chain, tokens, page_hash(c, *chain, tokens));
        if (i == NO_NODE)
            break;
        kv_cache_ref(c->kv, i);
        pages[n] = i;
        *chain = c->nodes[i].id;
    }
    return n;
}

uint64_t prefix_cache_insert(struct prefix_cache *c, struct prefix_space *s, uint64_t chain,
                             const int32_t *tokens, uint32_t page)
{
    uint64_t hash = page_hash(c, chain, tokens);
    uint32_t known = find(c, chain, tokens, hash);
    if (known != NO_NODE)
        return c->nodes[known].id;
    struct node *node = &c->nodes[page];
    assert(node->id == 0);
    uint32_t *bucket = &c->buckets[hash & c->bucket_mask];
    *node = (struct node){++c->last_id, chain, hash, s, *bucket};
    *bucket = page;
    memcpy(&c->tokens[(size_t)page * c->page_tokens], tokens, c->page_tokens * sizeof *tokens);
    s->refs++;
    c->n_known++;
    kv_cache_keep(c->kv, page, true);
    return node->id;
}

static void forget(struct prefix_cache *c, uint32_t page)
{
    struct node *node = &c->nodes[page];
    uint32_t *at = &c->buckets[node->hash & c->bucket_mask];
    while (*at != page)
        at = &c->nodes[*at].next;
    *at = node->next;
    prefix_cache_release(c, node->space);
    node->id = 0;
    c->n_known--;
}

void prefix_cache_evicted(struct prefix_cache *c, uint32_t page)
{
    forget(c, page);
}

void prefix_cache_flush(struct prefix_cache *c)
{
    for (uint32_t i = 0; i < c->n_pages && c->n_known; i++) {
        if (c->nodes[i].id) {
            forget(c, i);
            kv_cache_keep(c->kv, i, false);
        }
    }
}

void prefix_cache_drop_adapter(struct prefix_cache *c, const char *content_id)
{
    for (uint32_t i = 0; i < c->n_pages && c->n_known; i++) {
        if (c->nodes[i].id && space_has(c->nodes[i].space, content_id)) {
            forget(c, i);
            kv_cache_keep(c->kv, i, false);
        }
    }
}

uint32_t prefix_cache_n_known(const struct prefix_cache *c)
{
    return c->n_known;
}
