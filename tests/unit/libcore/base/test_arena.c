#include "libcore/base/arena.h"

#include <stdint.h>

#include "tests/lib/fault.h"
#include "tests/lib/test.h"

TEST(pieces_are_aligned_zeroed_and_apart)
{
    struct arena a;
    arena_init(&a);
    unsigned char *last = NULL;
    for (size_t n = 0; n < 5000; n += 7) {
        unsigned char *p = arena_alloc(&a, n);
        CHECK(p);
        EXPECT_INT((uintptr_t)p % 16, 0);
        EXPECT(p != last);
        for (size_t i = 0; i < n; i++)
            CHECK(p[i] == 0);
        memset(p, 0xAB, n); // would show in the next piece if they overlapped
        last = p;
    }
    arena_release(&a);
    arena_release(&a);
}

TEST(a_large_piece_does_not_waste_the_block)
{
    struct arena a;
    arena_init(&a);
    char *first = arena_alloc(&a, 16);
    char *large = arena_alloc(&a, 1 << 20);
    char *second = arena_alloc(&a, 16);
    CHECK(first && large && second);
    EXPECT_INT(second - first, 16);
    memset(large, 1, 1 << 20);
    arena_release(&a);
}

TEST(absurd_sizes_are_refused)
{
    struct arena a;
    arena_init(&a);
    EXPECT(arena_array(&a, SIZE_MAX / 2, 3) == NULL);
    EXPECT(arena_alloc(&a, SIZE_MAX) == NULL);
    EXPECT(arena_alloc(&a, SIZE_MAX - 32) == NULL);
    arena_release(&a);
}

TEST(texts_are_copied)
{
    struct arena a;
    arena_init(&a);
    EXPECT_STR(arena_strdup(&a, "abc"), "abc");
    EXPECT_STR(arena_strndup(&a, "abcdef", 2), "ab");
    EXPECT_STR(arena_strndup(&a, "ab", 10), "ab");
    EXPECT_STR(arena_printf(&a, "%s-%d", "x", 7), "x-7");
    arena_release(&a);
}

static int fill(void *arg, struct err *err)
{
    (void)arg;
    struct arena a;
    arena_init(&a);
    int rc = 0;
    for (int i = 0; i < 10 && !rc; i++) {
        if (!arena_alloc(&a, 9000) || !arena_strdup(&a, "x"))
            rc = err_set(err, ERR_NO_MEMORY, "no memory");
    }
    arena_release(&a);
    return rc;
}

TEST(a_failed_block_leaves_a_releasable_arena)
{
    EXPECT(test_each_fault(SYS_FAULT_MEM, false, fill, NULL) >= 5);
}
