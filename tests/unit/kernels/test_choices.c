/* Choices on disk: read again, and never believed when damaged or another's. tiers: check asan */
#include "kernels/choices.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "tests/lib/test.h"

struct record {
    uint32_t shape, choice;
};

static int open_choices(struct choices *c, const char *folder, const char *key)
{
    struct err err = {0};
    int rc = choices_open(c, folder, "gemm", key, sizeof(struct record), 4, &err);
    EXPECT_MSG(rc == 0, "%s", err.msg);
    return rc;
}

static void write_two(const char *folder, const char *key, char *path, size_t n)
{
    struct choices c;
    struct err err = {0};
    struct record a = {1, 10}, b = {2, 20};
    CHECK_INT(open_choices(&c, folder, key), 0);
    CHECK(choices_add(&c, &a) && choices_add(&c, &b));
    CHECK_OK(choices_save(&c, &err), err);
    CHECK(!c.changed);
    snprintf(path, n, "%s", c.path);
    choices_release(&c);
}

static size_t count(const char *folder, const char *key)
{
    struct choices c;
    (void)open_choices(&c, folder, key);
    size_t n = c.n;
    choices_release(&c);
    return n;
}

TEST(what_was_chosen_is_there_at_the_next_start)
{
    char folder[4096], path[4352];
    snprintf(folder, sizeof folder, "%s/a/b", test_tmp());
    write_two(folder, "card one", path, sizeof path);
    struct choices c;
    CHECK_INT(open_choices(&c, folder, "card one"), 0);
    CHECK_INT(c.n, 2);
    CHECK_INT(((struct record *)choices_at(&c, 1))->choice, 20);
    struct record more = {3, 30};
    CHECK(choices_add(&c, &more) && choices_add(&c, &more) && !choices_add(&c, &more));
    choices_drop(&c, 0);
    CHECK_INT(c.n, 3);
    CHECK_INT(((struct record *)choices_at(&c, 0))->shape, 3);
    choices_release(&c); // never saved
    CHECK_INT(count(folder, "card one"), 2);
    CHECK_INT(count(folder, "card two"), 0); // another file
    CHECK_INT(count(NULL, "card one"), 0);
}

TEST(a_damaged_or_foreign_file_counts_as_empty_and_is_written_anew)
{
    char folder[4096], path[4352], *data;
    size_t size;
    struct err err = {0};
    snprintf(folder, sizeof folder, "%s/damaged", test_tmp());
    write_two(folder, "card", path, sizeof path);
    CHECK_OK(file_read(path, 1 << 16, &data, &size, &err), err);
    for (size_t i = 0; i < size; i++) { // each byte turned
        data[i] ^= 0x20;
        CHECK_OK(file_write_atomic(path, data, size, &err), err);
        EXPECT_INT(count(folder, "card"), 0);
        data[i] ^= 0x20;
    }
    for (size_t n = 0; n < size; n++) { // cut anywhere
        CHECK_OK(file_write_atomic(path, data, n, &err), err);
        EXPECT_INT(count(folder, "card"), 0);
    }
    CHECK_OK(file_write_atomic(path, data, size, &err), err);
    CHECK_INT(count(folder, "card"), 2);
    sys_free(data);
    char other[4352];
    write_two(folder, "another card", other, sizeof other);
    CHECK_OK(file_read(other, 1 << 16, &data, &size, &err), err);
    CHECK_OK(file_write_atomic(path, data, size, &err), err); // a file of another key in our place
    sys_free(data);
    CHECK_INT(count(folder, "card"), 0);
    write_two(folder, "card", path, sizeof path);
    CHECK_INT(count(folder, "card"), 2);
}

TEST(a_folder_that_cannot_be_written_is_an_error_of_save_alone)
{
    struct choices c;
    struct err err = {0};
    struct record a = {1, 10};
    char folder[4096];
    snprintf(folder, sizeof folder, "%s/file", test_tmp());
    CHECK_OK(file_write_atomic(folder, "x", 1, &err), err);
    CHECK_INT(open_choices(&c, folder, "card"), 0);
    CHECK(choices_add(&c, &a));
    CHECK(choices_save(&c, &err) != 0 && c.changed);
    choices_release(&c);
}
