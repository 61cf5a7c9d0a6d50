#include "libcore/base/err.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "tests/lib/test.h"

TEST(a_message_is_set_and_its_code_returned)
{
    struct err err = {0};
    EXPECT_INT(err_set(&err, ERR_REFUSED, "%s:%s: rank %d", "a.safetensors", "q.lora_A", 3),
               ERR_REFUSED);
    EXPECT_INT(err.code, ERR_REFUSED);
    EXPECT_STR(err.msg, "a.safetensors:q.lora_A: rank 3");
    err_clear(&err);
    EXPECT_INT(err.code, 0);
    EXPECT_STR(err.msg, "");
}

TEST(nobody_listening_is_fine)
{
    EXPECT_INT(err_set(NULL, ERR_LIMIT, "x"), ERR_LIMIT);
    EXPECT_INT(err_set_errno(NULL, ENOENT, "x"), ERR_NOT_FOUND);
    EXPECT(err_prefix(NULL, "x") != 0);
    err_clear(NULL);
}

TEST(errno_chooses_the_code)
{
    struct err err = {0};
    EXPECT_INT(err_set_errno(&err, ENOENT, "/a: cannot open"), ERR_NOT_FOUND);
    EXPECT_STR(err.msg, "/a: cannot open: No such file or directory");
    EXPECT_INT(err_set_errno(&err, ENOMEM, "x"), ERR_NO_MEMORY);
    EXPECT_INT(err_set_errno(&err, EEXIST, "x"), ERR_EXISTS);
    EXPECT_INT(err_set_errno(&err, ENOSPC, "x"), ERR_IO);
}

TEST(a_prefix_stands_before_what_was_there)
{
    struct err err = {0};
    err_set(&err, ERR_CORRUPT, "hole at byte 8");
    EXPECT_INT(err_prefix(&err, "%s", "model.safetensors"), ERR_CORRUPT);
    EXPECT_STR(err.msg, "model.safetensors: hole at byte 8");
}

TEST(an_argument_may_be_the_message_itself)
{
    struct err err = {0};
    err_set(&err, ERR_FAIL, "inner");
    err_set(&err, ERR_FAIL, "outer (%s)", err.msg);
    EXPECT_STR(err.msg, "outer (inner)");
}

TEST(a_message_is_one_line)
{
    struct err err = {0};
    err_set(&err, ERR_FAIL, "name 'a\nb\x1b[31m'");
    EXPECT_STR(err.msg, "name 'a b [31m'");
}

TEST(a_long_message_ends_in_an_ellipsis_and_stays_utf8)
{
    // Every offset of the three-byte character against the end of the buffer.
    for (int pad = 0; pad < 4; pad++) {
        struct err err = {0};
        char text[ERR_MSG_BYTES * 2] = "";
        memset(text, 'x', (size_t)pad);
        for (size_t n = (size_t)pad; n + 3 < sizeof text; n += 3)
            memcpy(text + n, "€", 4);
        err_set(&err, ERR_FAIL, "%s", text);
        size_t len = strlen(err.msg);
        EXPECT(len < ERR_MSG_BYTES && len > ERR_MSG_BYTES - 8);
        EXPECT_STR(err.msg + len - 3, "…");
        EXPECT_INT((len - 3 - (size_t)pad) % 3, 0); // whole characters before it
    }
}

TEST(codes_map_to_exit_status)
{
    static const int rows[][2] = {
        {ERR_OK, 0},      {ERR_FAIL, 1},          {ERR_USAGE, 2},     {ERR_PARTIAL, 3},
        {ERR_EXISTS, 4},  {ERR_REFUSED, 4},       {ERR_CORRUPT, 5},   {ERR_NO_STORE, 10},
        {ERR_LOCKED, 11}, {ERR_INTERRUPTED, 130}, {ERR_NOT_FOUND, 1}, {ERR_NO_MEMORY, 1},
        {-1000, 1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        EXPECT_INT(err_exit_status(rows[i][0]), rows[i][1]);
}

TEST(codes_map_to_http_status)
{
    static const int rows[][2] = {
        {ERR_USAGE, 400},  {ERR_LIMIT, 400},     {ERR_REFUSED, 400}, {ERR_CORRUPT, 400},
        {ERR_DENIED, 401}, {ERR_NOT_FOUND, 404}, {ERR_EXISTS, 409},  {ERR_CANCELLED, 499},
        {ERR_BUSY, 503},   {ERR_TIMEOUT, 504},   {ERR_FAIL, 500},    {ERR_DEVICE, 500},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        EXPECT_INT(err_http_status(rows[i][0]), rows[i][1]);
}

TEST(every_code_has_a_name_of_its_own)
{
    for (int a = ERR_INTERNAL; a <= ERR_OK; a++) {
        for (int b = ERR_INTERNAL; b < a; b++)
            EXPECT_MSG(strcmp(err_name(a), err_name(b)) != 0, "%d and %d are both %s", a, b,
                       err_name(a));
    }
}
