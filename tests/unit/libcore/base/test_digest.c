#include "libcore/base/digest.h"

#include <stdio.h>

#include "libcore/base/file.h"
#include "tests/lib/fault.h"
#include "tests/lib/test.h"

/* FIPS 180-2's own examples. */
static const char ABC[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
static const char EMPTY[] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
static const char MILLION_A[] = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";

TEST(known_digests)
{
    struct digest d;
    struct err err;
    char hex[DIGEST_HEX_CHARS + 1];
    CHECK_OK(digest_buffer("abc", 3, &d, &err), err);
    digest_hex(&d, hex);
    EXPECT_STR(hex, ABC);
    CHECK_OK(digest_buffer("", 0, &d, &err), err);
    digest_hex(&d, hex);
    EXPECT_STR(hex, EMPTY);
}

TEST(pieces_of_any_size_give_the_same_digest)
{
    char block[997], hex[DIGEST_HEX_CHARS + 1];
    memset(block, 'a', sizeof block);
    struct digest_state *s;
    struct digest d;
    struct err err;
    CHECK_OK(digest_open(&s, &err), err);
    size_t left = 1000000;
    for (size_t n = 1; left; n = n % sizeof block + 1) {
        size_t now = n < left ? n : left;
        CHECK_OK(digest_update(s, block, now, &err), err);
        left -= now;
    }
    CHECK_OK(digest_final(s, &d, &err), err);
    digest_free(s);
    digest_hex(&d, hex);
    EXPECT_STR(hex, MILLION_A);
}

TEST(text_and_digest_go_both_ways)
{
    struct digest d, e;
    char hex[DIGEST_HEX_CHARS + 1], text[128];
    CHECK(digest_parse(ABC, &d));
    digest_hex(&d, hex);
    EXPECT_STR(hex, ABC);
    snprintf(text, sizeof text, "sha256:%s", ABC);
    CHECK(digest_parse(text, &e));
    EXPECT(digest_equal(&d, &e));
    e.bytes[31] ^= 1;
    EXPECT(!digest_equal(&d, &e));
    EXPECT(digest_parse("BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD", &e));
    EXPECT(digest_equal(&d, &e));
}

TEST(what_is_no_digest_is_refused)
{
    struct digest d;
    char text[128];
    EXPECT(!digest_parse("", &d));
    EXPECT(!digest_parse("ba7816", &d));
    snprintf(text, sizeof text, "%s0", ABC);
    EXPECT(!digest_parse(text, &d));
    snprintf(text, sizeof text, "g%s", ABC + 1);
    EXPECT(!digest_parse(text, &d));
    snprintf(text, sizeof text, "sha512:%s", ABC);
    EXPECT(!digest_parse(text, &d));
}

static int hash_file(void *arg, struct err *err)
{
    struct digest d;
    uint64_t size;
    return digest_file(arg, &d, &size, err);
}

TEST(a_file_is_hashed_and_its_size_told)
{
    char path[512], hex[DIGEST_HEX_CHARS + 1];
    struct digest d;
    struct err err;
    uint64_t size = 0;
    snprintf(path, sizeof path, "%s/abc", test_tmp());
    CHECK_OK(file_write_atomic(path, "abc", 3, &err), err);
    CHECK_OK(digest_file(path, &d, &size, &err), err);
    digest_hex(&d, hex);
    EXPECT_STR(hex, ABC);
    EXPECT_INT(size, 3);
    EXPECT(test_each_fault(SYS_FAULT_ALL, false, hash_file, path) >= 4);
    CHECK_CODE(digest_file("/nowhere/at/all", &d, NULL, &err), ERR_NOT_FOUND, err);
}
