#include "libcore/engine/kv_cache.h"

#include <assert.h>

#include "libcore/backend.h"
#include "libcore/base/sys.h"

/* A page's links serve two lists that exclude each other: the free pages of its chunk (next only)
 * and the idle pages from longest to newest. */
struct page {
    uint32_t refs;
    uint32_t next, prev;
    bool kept;
};

struct chunk {
    uint32_t first_free;     // page, or KV_NO_PAGE
    uint32_t n_free, n_refd; // the rest is idle
    uint32_t next, prev;     // list of our chunks that have free pages
};

struct kv_cache {
    struct kv_cache_options opt;
    uint32_t pages_per_chunk;
    uint32_t max_pages;
    uint32_t n_free, n_refd, n_idle; // of the chunks that are ours
    struct page *pages;
    struct chunk *chunks; // by chunk of the pool
    uint32_t partial;     // first chunk with free pages
    uint32_t idle_oldest, idle_newest;
};

int kv_cache_open(struct kv_cache **out, const struct kv_cache_options *opt, struct err *err)
{
    *out = NULL;
    if (opt->page_bytes == 0 || opt->page_bytes > BACKEND_CHUNK_BYTES)
        return err_set(err, ERR_LIMIT, "kv cache: a page has %llu bytes, wanted 1 to %d",
                       (unsigned long long)opt->page_bytes, BACKEND_CHUNK_BYTES);
    uint64_t per_chunk = BACKEND_CHUNK_BYTES / opt->page_bytes;
    uint32_t n_chunks = device_pool_n_chunks(opt->pool);
    uint64_t n_pages = per_chunk * n_chunks;
    if (n_pages == 0 || n_pages >= KV_NO_PAGE)
        return err_set(err, ERR_LIMIT, "kv cache: %llu pages in %u chunks",
                       (unsigned long long)n_pages, n_chunks);
    struct kv_cache *c = sys_calloc(1, sizeof *c);
    if (!c)
        return err_set(err, ERR_NO_MEMORY, "kv cache: no memory");
    c->opt = *opt;
    c->pages_per_chunk = (uint32_t)per_chunk;
    c->max_pages = opt->max_pages && opt->max_pages < n_pages ? opt->max_pages : (uint32_t)n_pages;
    c->partial = c->idle_oldest = c->idle_newest = KV_NO_PAGE;
    c->pages = sys_calloc(n_pages, sizeof *c->pages);
    c->chunks = sys_calloc(n_chunks, sizeof *c->chunks);
    if (!c->pages || !c->chunks) {
        kv_cache_free(c);
        return err_set(err, ERR_NO_MEMORY, "kv cache: no memory for %llu pages",
                       (unsigned long long)n_pages);
    }
    *out = c;
    return 0;
}

void kv_cache_free(struct kv_cache *c)
{
    if (!c)
        return;
    sys_free(c->pages);
    sys_free(c->chunks);
    sys_free(c);
}

// ---- lists --------------------------------------------------------------------------------------

static void partial_add(struct kv_cache *c, uint32_t chunk)
{
    c->chunks[chunk].prev = KV_NO_PAGE;
    c->chunks[chunk].next = c->partial;
    if (c->partial != KV_NO_PAGE)
        c->chunks[c->partial].prev = chunk;
    c->partial = chunk;
}

static void partial_remove(struct kv_cache *c, uint32_t chunk)
{
    struct chunk *k = &c->chunks[chunk];
    if (k->prev != KV_NO_PAGE)
        c->chunks[k->prev].next = k->next;
    else
        c->partial = k->next;
    if (k->next != KV_NO_PAGE)
        c->chunks[k->next].prev = k->prev;
}

static void idle_add(struct kv_cache *c, uint32_t page)
{
    struct page *p = &c->pages[page];
    p->next = KV_NO_PAGE;
    p->prev = c->idle_newest;
    if (c->idle_newest != KV_NO_PAGE)
        c->pages[c->idle_newest].next = page;
    else
        c->idle_oldest = page;
    c->idle_newest = page;
    c->n_idle++;
}

static void idle_remove(struct kv_cache *c, uint32_t page)
{
    struct page *p = &c->pages[page];
    if (p->prev != KV_NO_PAGE)
        c->pages[p->prev].next = p->next;
    else
        c->idle_oldest = p->next;
    if (p->next != KV_NO_PAGE)
        c->pages[p->next].prev = p->prev;
    else
        c->idle_newest = p->prev;
    c->n_idle--;
}

// ---- chunks -------------------------------------------------------------------------------------

static bool take_chunk(struct kv_cache *c)
{
    uint32_t chunk;
    if (!device_pool_take(c->opt.pool, POOL_KV, &chunk))
        return false;
    struct chunk *k = &c->chunks[chunk];
    *k = (struct chunk){.n_free = c->pages_per_chunk};
    uint32_t first = chunk * c->pages_per_chunk;
    for (uint32_t i = 0; i < c->pages_per_chunk; i++)
        c->pages[first + i] = (struct page){.next = first + i + 1};
    c->pages[first + c->pages_per_chunk - 1].next = KV_NO_PAGE;
    k->first_free = first;
    c->n_free += c->pages_per_chunk;
    partial_add(c, chunk);
    return true;
}

/* A page without references and without content: back to its chunk, and that perhaps to the pool.
 */
static void free_page(struct kv_cache *c, uint32_t page)
{
    uint32_t chunk = page / c->pages_per_chunk;
    struct chunk *k = &c->chunks[chunk];
    if (k->n_free == 0)
        partial_add(c, chunk);
    c->pages[page] = (struct page){.next = k->first_free};
    k->first_free = page;
    k->n_free++;
    c->n_free++;
    if (k->n_free < c->pages_per_chunk)
        return;
    partial_remove(c, chunk);
    c->n_free -= c->pages_per_chunk;
    device_pool_give(c->opt.pool, POOL_KV, chunk);
}

static void evict_idle(struct kv_cache *c, uint32_t page)
{
    assert(c->pages[page].refs == 0 && c->pages[page].kept);
    idle_remove(c, page);
    c->pages[page].kept = false;
    if (c->opt.on_evict)
        c->opt.on_evict(c->opt.user, page);
    free_page(c, page);
}

bool kv_cache_give_chunk(struct kv_cache *c)
{
    uint32_t best = KV_NO_PAGE, best_idle = UINT32_MAX;
    for (uint32_t i = 0; i < device_pool_n_chunks(c->opt.pool); i++) {
        if (device_pool_owner(c->opt.pool, i) != POOL_KV || c->chunks[i].n_refd)
            continue;
        uint32_t n_idle = c->pages_per_chunk - c->chunks[i].n_free;
        if (n_idle < best_idle) {
            best = i;
            best_idle = n_idle;
        }
    }
    if (best == KV_NO_PAGE)
        return false;
    uint32_t first = best * c->pages_per_chunk;
    for (uint32_t i = first; best_idle && i < first + c->pages_per_chunk; i++) {
        if (c->pages[i].kept) {
            evict_idle(c, i);
            best_idle--;
        }
    }
    return true;
}

uint32_t kv_cache_n_spare_chunks(const struct kv_cache *c)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < device_pool_n_chunks(c->opt.pool); i++)
        n += device_pool_owner(c->opt.pool, i) == POOL_KV && c->chunks[i].n_refd == 0;
    return n;
}

// ---- pages --------------------------------------------------------------------------------------

bool kv_cache_take(struct kv_cache *c, uint32_t *page)
{
    bool full = c->n_refd + c->n_idle >= c->max_pages;
    if (full || (c->partial == KV_NO_PAGE && !take_chunk(c))) {
        if (c->n_idle == 0)
            return false;
        evict_idle(c, c->idle_oldest);
        if (c->partial == KV_NO_PAGE && !take_chunk(c))
            return false;
    }
    uint32_t chunk = c->partial;
    struct chunk *k = &c->chunks[chunk];
    *page = k->first_free;
    k->first_free = c->pages[*page].next;
    k->n_free--;
    k->n_refd++;
    c->n_free--;
    c->n_refd++;
    if (k->n_free == 0)
        partial_remove(c, chunk);
    c->pages[*page] = (struct page){.refs = 1};
    return true;
}

void kv_cache_ref(struct kv_cache *c, uint32_t page)
{
    struct page *p = &c->pages[page];
    if (p->refs++ > 0)
        return;
    assert(p->kept);
    idle_remove(c, page);
    c->chunks[page / c->pages_per_chunk].n_refd++;
    c->n_refd++;
}

void kv_cache_unref(struct kv_cache *c, uint32_t page)
{
    struct page *p = &c->pages[page];
    assert(p->refs > 0);
    if (--p->refs > 0)
        return;
    c->chunks[page / c->pages_per_chunk].n_refd--;
    c->n_refd--;
    if (p->kept)
        idle_add(c, page);
    else
        free_page(c, page);
}

void kv_cache_keep(struct kv_cache *c, uint32_t page, bool keep)
{
    struct page *p = &c->pages[page];
    if (p->kept == keep)
        return;
    assert(p->refs > 0 || p->kept);
    p->kept = keep;
    if (p->refs == 0) {
        idle_remove(c, page);
        free_page(c, page);
    }
}

uint32_t kv_cache_pages_per_chunk(const struct kv_cache *c)
{
    return c->pages_per_chunk;
}

uint32_t kv_cache_n_pages(const struct kv_cache *c)
{
    return c->max_pages;
}

uint32_t kv_cache_n_referenced(const struct kv_cache *c)
{
    return c->n_refd;
}

uint32_t kv_cache_n_idle(const struct kv_cache *c)
{
    return c->n_idle;
}

uint32_t kv_cache_n_available(const struct kv_cache *c)
{
    uint64_t n = (uint64_t)device_pool_n_owned(c->opt.pool, POOL_FREE) * c->pages_per_chunk;
    n += c->n_free + c->n_idle;
    uint32_t room = c->max_pages - c->n_refd;
    return n < room ? (uint32_t)n : room;
}

uint32_t kv_cache_refs(const struct kv_cache *c, uint32_t page)
{
    return c->pages[page].refs;
}
