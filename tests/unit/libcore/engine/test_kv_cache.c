#include "libcore/backend.h"
#include "libcore/engine/kv_cache.h"
#include "libcore/engine/prefix_cache.h"
#include "tests/lib/fault.h"
#include "tests/lib/test.h"

struct memory {
    struct device_pool *pool;
    struct kv_cache *kv;
    struct prefix_cache *prefix;
};

static void evicted(void *user, uint32_t page)
{
    prefix_cache_evicted(((struct memory *)user)->prefix, page);
}

static int memory_open(struct memory *m, uint32_t n_chunks, uint32_t per_chunk, uint32_t max_pages,
                       struct err *err)
{
    memset(m, 0, sizeof *m);
    int rc = device_pool_open(&m->pool, n_chunks, err);
    struct kv_cache_options opt = {.pool = m->pool,
                                   .page_bytes = BACKEND_CHUNK_BYTES / per_chunk,
                                   .max_pages = max_pages,
                                   .on_evict = evicted,
                                   .user = m};
    if (rc == 0)
        rc = kv_cache_open(&m->kv, &opt, err);
    if (rc == 0)
        rc = prefix_cache_open(&m->prefix, m->kv, n_chunks * per_chunk, 4, err);
    return rc;
}

static void memory_close(struct memory *m)
{
    prefix_cache_free(m->prefix);
    kv_cache_free(m->kv);
    device_pool_free(m->pool);
}

static const int32_t TOKENS[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
static const char ID_A[] = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
static const char ID_B[] = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

static struct prefix_space *space(struct memory *m, const char *id, float scale, unsigned regime,
                                  const char *salt)
{
    struct prefix_space *s = NULL;
    struct prefix_adapter a = {id, scale};
    if (prefix_space_open(&s, &a, id != NULL, regime, salt, NULL))
        return NULL;
    return prefix_cache_intern(m->prefix, s);
}

TEST(chunks_are_taken_as_pages_are_wanted_and_given_back_when_empty)
{
    struct memory m;
    struct err err = {0};
    CHECK_OK(memory_open(&m, 3, 4, 0, &err), err);
    uint32_t pages[13];
    CHECK_INT(kv_cache_n_available(m.kv), 12);
    for (int i = 0; i < 12; i++)
        CHECK(kv_cache_take(m.kv, &pages[i]));
    CHECK(!kv_cache_take(m.kv, &pages[12]));
    CHECK_INT(device_pool_n_owned(m.pool, POOL_KV), 3);
    for (int i = 0; i < 12; i++) {
        for (int k = 0; k < i; k++)
            CHECK_MSG(pages[i] != pages[k], "page %u was given twice", pages[i]);
    }
    for (int i = 0; i < 12; i++)
        kv_cache_unref(m.kv, pages[i]);
    CHECK_INT(device_pool_n_owned(m.pool, POOL_FREE), 3);
    memory_close(&m);
}

TEST(a_cap_of_pages_holds)
{
    struct memory m;
    struct err err = {0};
    CHECK_OK(memory_open(&m, 3, 4, 5, &err), err);
    uint32_t page;
    for (int i = 0; i < 5; i++)
        CHECK(kv_cache_take(m.kv, &page));
    CHECK(!kv_cache_take(m.kv, &page));
    CHECK_INT(kv_cache_n_available(m.kv), 0);
    memory_close(&m);
}

TEST(pages_of_the_pool_and_of_adapters_do_not_meet)
{
    struct memory m;
    struct err err = {0};
    CHECK_OK(memory_open(&m, 2, 4, 0, &err), err);
    uint32_t chunk, page;
    CHECK(device_pool_take(m.pool, POOL_ADAPTER, &chunk));
    for (int i = 0; i < 4; i++) {
        CHECK(kv_cache_take(m.kv, &page));
        CHECK(page / 4 != chunk);
    }
    CHECK(!kv_cache_take(m.kv, &page));
    memory_close(&m);
}

/* An adapter is copied beside the steps: it must not get what a step in flight may still write. */
TEST(a_chunk_of_pages_goes_to_an_adapter_only_when_the_steps_in_flight_have_ended)
{
    struct memory m;
    struct err err = {0};
    CHECK_OK(memory_open(&m, 1, 4, 0, &err), err);
    uint32_t page, chunk;
    CHECK(kv_cache_take(m.kv, &page));
    device_pool_note_steps(m.pool, 2, 0);
    kv_cache_unref(m.kv, page); // the chunk goes back while steps 1 and 2 are in flight
    CHECK_INT(device_pool_n_owned(m.pool, POOL_FREE), 1);
    CHECK(!device_pool_take(m.pool, POOL_ADAPTER, &chunk));
    device_pool_note_steps(m.pool, 2, 1);
    CHECK(!device_pool_take(m.pool, POOL_ADAPTER, &chunk));
    CHECK(kv_cache_take(m.kv, &page)); // a later step may write there
    kv_cache_unref(m.kv, page);
    device_pool_note_steps(m.pool, 2, 2);
    CHECK(device_pool_take(m.pool, POOL_ADAPTER, &chunk));
    memory_close(&m);
}

/* Fills one page of a space with `tokens` after `chain` and lets it go. */
static uint64_t remember(struct memory *m, struct prefix_space *s, uint64_t chain,
                         const int32_t *tokens, uint32_t *page)
{
    if (!kv_cache_take(m->kv, page))
        return 0;
    uint64_t after = prefix_cache_insert(m->prefix, s, chain, tokens, *page);
    kv_cache_unref(m->kv, *page);
    return after;
}

TEST(a_prefix_is_found_page_by_page)
{
    struct memory m;
    struct err err = {0};
    CHECK_OK(memory_open(&m, 3, 4, 0, &err), err);
    struct prefix_space *s = space(&m, ID_A, 1, 0, NULL);
    uint32_t first, second, got[3];
    uint64_t chain = remember(&m, s, prefix_space_root(s), TOKENS, &first);
    chain = remember(&m, s, chain, TOKENS + 4, &second);
    CHECK_INT(kv_cache_n_idle(m.kv), 2);
    uint64_t found;
    CHECK_INT(prefix_cache_match(m.prefix, s, TOKENS, 3, got, &found), 2);
    CHECK_INT(got[0], first);
    CHECK_INT(got[1], second);
    CHECK_INT(found, chain);
    CHECK_INT(kv_cache_n_referenced(m.kv), 2);
    // the second page's tokens without the first page's are another context
    CHECK_INT(prefix_cache_match(m.prefix, s, TOKENS + 4, 1, got, &found), 0);
    memory_close(&m);
}

TEST(adapters_scales_regimes_and_salts_share_nothing)
{
    struct memory m;
    struct err err = {0};
    CHECK_OK(memory_open(&m, 3, 4, 0, &err), err);
    struct prefix_space *s = space(&m, ID_A, 1, 0, NULL);
    uint32_t page, got[1];
    uint64_t found;
    remember(&m, s, prefix_space_root(s), TOKENS, &page);
    struct prefix_space *others[] = {space(&m, ID_B, 1, 0, NULL), space(&m, ID_A, 0.5f, 0, NULL),
                                     space(&m, ID_A, 1, 1, NULL), space(&m, ID_A, 1, 0, "x"),
                                     space(&m, NULL, 0, 0, NULL), space(&m, ID_A, 1, 0, "")};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        EXPECT_INT(prefix_cache_match(m.prefix, others[i], TOKENS, 1, got, &found), 0);
    EXPECT(space(&m, ID_A, 1, 0, NULL) == s);
    EXPECT_INT(prefix_cache_match(m.prefix, s, TOKENS, 1, got, &found), 1);
    memory_close(&m);
}

TEST(idle_pages_go_oldest_first_and_are_not_found_after)
{
    struct memory m;
    struct err err = {0};
    CHECK_OK(memory_open(&m, 1, 2, 0, &err), err);
    struct prefix_space *s = space(&m, NULL, 0, 0, NULL);
    uint32_t old, young, page, got[1];
    uint64_t found, root = prefix_space_root(s);
    remember(&m, s, root, TOKENS, &old);
    remember(&m, s, root, TOKENS + 4, &young);
    CHECK(kv_cache_take(m.kv, &page)); // takes the place of the oldest
    CHECK_INT(page, old);
    CHECK_INT(prefix_cache_match(m.prefix, s, TOKENS, 1, got, &found), 0);
    CHECK_INT(prefix_cache_match(m.prefix, s, TOKENS + 4, 1, got, &found), 1);
    CHECK(!kv_cache_take(m.kv, &page)); // both are referenced now
    memory_close(&m);
}

TEST(equal_content_keeps_the_page_that_was_known_first)
{
    struct memory m;
    struct err err = {0};
    CHECK_OK(memory_open(&m, 1, 4, 0, &err), err);
    struct prefix_space *s = space(&m, NULL, 0, 0, NULL);
    uint32_t first, twin;
    uint64_t root = prefix_space_root(s);
    uint64_t chain = remember(&m, s, root, TOKENS, &first);
    EXPECT(remember(&m, s, root, TOKENS, &twin) == chain);
    EXPECT_INT(prefix_cache_n_known(m.prefix), 1);
    EXPECT_INT(kv_cache_n_idle(m.kv), 1); // the twin was freed
    memory_close(&m);
}

TEST(a_chunk_is_given_up_with_its_idle_pages_only)
{
    struct memory m;
    struct err err = {0};
    CHECK_OK(memory_open(&m, 2, 2, 0, &err), err);
    struct prefix_space *s = space(&m, NULL, 0, 0, NULL);
    uint32_t idle, used, page;
    uint64_t root = prefix_space_root(s);
    CHECK(kv_cache_take(m.kv, &used));
    CHECK(kv_cache_take(m.kv, &page));
    remember(&m, s, root, TOKENS, &idle); // in the second chunk
    CHECK_INT(kv_cache_n_spare_chunks(m.kv), 1);
    CHECK(kv_cache_give_chunk(m.kv));
    CHECK_INT(device_pool_owner(m.pool, idle / 2), POOL_FREE);
    CHECK_INT(prefix_cache_n_known(m.prefix), 0);
    CHECK(!kv_cache_give_chunk(m.kv));
    CHECK_INT(kv_cache_refs(m.kv, used), 1);
    memory_close(&m);
}

TEST(dropping_an_adapter_forgets_its_pages_and_no_others)
{
    struct memory m;
    struct err err = {0};
    CHECK_OK(memory_open(&m, 2, 4, 0, &err), err);
    struct prefix_space *a = space(&m, ID_A, 1, 0, NULL), *b = space(&m, ID_B, 1, 0, NULL);
    uint32_t page, used, got[1];
    uint64_t found;
    remember(&m, a, prefix_space_root(a), TOKENS, &page);
    remember(&m, b, prefix_space_root(b), TOKENS, &page);
    CHECK(kv_cache_take(m.kv, &used)); // one that a sequence still reads
    prefix_cache_insert(m.prefix, a, prefix_space_root(a), TOKENS + 4, used);
    prefix_cache_drop_adapter(m.prefix, ID_A);
    CHECK_INT(prefix_cache_n_known(m.prefix), 1);
    CHECK_INT(prefix_cache_match(m.prefix, b, TOKENS, 1, got, &found), 1);
    CHECK_INT(kv_cache_refs(m.kv, used), 1);
    prefix_cache_flush(m.prefix);
    CHECK_INT(prefix_cache_n_known(m.prefix), 0);
    memory_close(&m);
}

static int open_and_close(void *arg, struct err *err)
{
    (void)arg;
    struct memory m;
    int rc = memory_open(&m, 3, 4, 0, err);
    memory_close(&m);
    return rc;
}

TEST(memory_that_is_out_is_an_error)
{
    EXPECT(test_each_fault(SYS_FAULT_MEM, false, open_and_close, NULL) >= 8);
}
