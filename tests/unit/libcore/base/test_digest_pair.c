#include "libcore/base/digest_pair.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "tests/lib/test.h"

enum { SIZE = 300000 };

static unsigned char data[SIZE];

static void fill(void)
{
    uint32_t x = 7;
    for (size_t i = 0; i < SIZE; i++)
        data[i] = (unsigned char)((x = x * 1664525 + 1013904223) >> 24);
}

/* Random runs of bytes in and out of random parts, against digest_buffer(). */
static void compare(int (*open)(struct digest_pair **, struct err *), unsigned seed)
{
    struct digest_pair *p;
    struct err err = {0};
    struct digest want, got;
    size_t part_begin = 0, at = 0;
    bool in_part = false;
    srand(seed);
    CHECK_OK(open(&p, &err), err);
    while (at < SIZE) {
        size_t most = rand() % 4 ? 200 : 30000, n = (size_t)rand() % most;
        n = n < SIZE - at ? n : SIZE - at;
        CHECK_OK(digest_pair_update(p, data + at, n, in_part, &err), err);
        at += n;
        if (rand() % 3)
            continue;
        if (in_part) {
            CHECK_OK(digest_pair_end_part(p, &got, &err), err);
            digest_buffer(data + part_begin, at - part_begin, &want, &err);
            EXPECT(digest_equal(&got, &want));
        }
        in_part = rand() % 3 != 0;
        part_begin = at;
    }
    CHECK_OK(digest_pair_final(p, &got, &err), err);
    digest_buffer(data, SIZE, &want, &err);
    EXPECT(digest_equal(&got, &want));
    digest_pair_free(p);
}

TEST(stream_and_parts_have_the_digests_of_their_bytes)
{
    fill();
    for (unsigned seed = 0; seed < 40; seed++) {
        compare(digest_pair_open, seed);
        compare(digest_pair_open_portable, seed);
    }
}

TEST(every_length_is_padded_right)
{
    struct err err = {0};
    fill();
    for (size_t n = 0; n < 200; n++) {
        struct digest_pair *p;
        struct digest want, stream, part;
        CHECK_OK(digest_pair_open(&p, &err), err);
        CHECK_OK(digest_pair_update(p, data, n, true, &err), err);
        CHECK_OK(digest_pair_end_part(p, &part, &err), err);
        CHECK_OK(digest_pair_final(p, &stream, &err), err);
        digest_buffer(data, n, &want, &err);
        EXPECT(digest_equal(&part, &want) && digest_equal(&stream, &want));
        digest_pair_free(p);
    }
}

static uint64_t cpu_ns(void)
{
    return (uint64_t)clock() * (1000000000u / CLOCKS_PER_SEC);
}

/* With LORA_TEST_PERF, by CPU time: both digests against libcrypto's one. */
TEST(speed_of_both_at_once)
{
    if (!getenv("LORA_TEST_PERF"))
        return;
    struct digest_pair *p;
    struct err err = {0};
    struct digest d;
    fill();
    for (int round = 0; round < 3; round++) {
        uint64_t t0 = cpu_ns();
        CHECK_OK(digest_pair_open(&p, &err), err);
        for (int i = 0; i < 1000; i++)
            digest_pair_update(p, data, SIZE, true, &err);
        digest_pair_free(p);
        uint64_t t1 = cpu_ns();
        for (int i = 0; i < 1000; i++)
            digest_buffer(data, SIZE, &d, &err);
        uint64_t t2 = cpu_ns();
        printf("# both %.2f GB/s, one by libcrypto %.2f GB/s\n", 1000.0 * SIZE / (double)(t1 - t0),
               1000.0 * SIZE / (double)(t2 - t1));
    }
}
