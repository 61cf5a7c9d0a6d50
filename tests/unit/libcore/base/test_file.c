#include "libcore/base/file.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "tests/lib/fault.h"
#include "tests/lib/test.h"

static const char *at(const char *name)
{
    static char paths[8][600];
    static int turn;
    char *p = paths[turn++ % 8];
    snprintf(p, sizeof paths[0], "%s/%s", test_tmp(), name);
    return p;
}

static void put(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    CHECK(f);
    fputs(text, f);
    fclose(f);
}

static size_t count_names(const char *path)
{
    char **names;
    size_t n = 0;
    file_list(path, &names, &n, NULL);
    file_free_names(names, n);
    return n;
}

TEST(a_file_is_written_and_read)
{
    struct err err;
    char *data;
    size_t n;
    CHECK_OK(file_write_atomic(at("f"), "one\0two", 7, &err), err);
    CHECK_OK(file_read(at("f"), 100, &data, &n, &err), err);
    EXPECT_INT(n, 7);
    EXPECT(memcmp(data, "one\0two", 8) == 0); // and a NUL behind it
    sys_free(data);
    CHECK_OK(file_write_atomic(at("f"), "", 0, &err), err);
    CHECK_OK(file_read(at("f"), 0, &data, &n, &err), err);
    EXPECT_INT(n, 0);
    sys_free(data);
}

TEST(a_bound_on_reading_is_kept)
{
    struct err err;
    char *data;
    size_t n;
    CHECK_OK(file_write_atomic(at("five"), "12345", 5, &err), err);
    CHECK_CODE(file_read(at("five"), 4, &data, &n, &err), ERR_LIMIT, err);
    EXPECT(data == NULL);
    CHECK_OK(file_read(at("five"), 5, &data, &n, &err), err);
    sys_free(data);
    // A size of 0 in the file system, but content: read anyway, and bounded.
    CHECK_OK(file_read("/proc/self/status", 1 << 20, &data, &n, &err), err);
    EXPECT(n > 100);
    sys_free(data);
    CHECK_CODE(file_read("/proc/self/status", 10, &data, &n, &err), ERR_LIMIT, err);
    CHECK_CODE(file_read("/dev/zero", 100000, &data, &n, &err), ERR_LIMIT, err);
}

TEST(what_cannot_be_read_says_which_and_why)
{
    struct err err;
    char *data;
    CHECK_CODE(file_read(at("missing"), 10, &data, NULL, &err), ERR_NOT_FOUND, err);
    EXPECT(strstr(err.msg, "missing: cannot open: No such file"));
    CHECK_CODE(file_read(test_tmp(), 10, &data, NULL, &err), ERR_IO, err);
    EXPECT(strstr(err.msg, "Is a directory"));
}

TEST(an_atomic_write_replaces_and_leaves_nothing_beside)
{
    struct err err;
    char *data;
    CHECK_OK(file_make_folders(at("atomic"), &err), err);
    CHECK_OK(file_write_atomic(at("atomic/f"), "old", 3, &err), err);
    CHECK_OK(file_write_atomic(at("atomic/f"), "new", 3, &err), err);
    CHECK_OK(file_read(at("atomic/f"), 10, &data, NULL, &err), err);
    EXPECT_STR(data, "new");
    sys_free(data);
    EXPECT_INT(count_names(at("atomic")), 1);
    CHECK_CODE(file_write_atomic(at("nowhere/f"), "x", 1, &err), ERR_NOT_FOUND, err);
}

static int write_new(void *arg, struct err *err)
{
    return file_write_atomic(arg, "new", 3, err);
}

TEST(a_write_that_fails_at_any_call_leaves_old_or_new_and_no_temporary)
{
    struct err err;
    char path[600];
    CHECK_OK(file_make_folders(at("faults"), &err), err);
    snprintf(path, sizeof path, "%s/faults/f", test_tmp());
    for (uint64_t n = 1;; n++) {
        put(path, "old");
        sys_fault(SYS_FAULT_FAIL, SYS_FAULT_ALL, n);
        int rc = write_new(path, &err);
        bool hit = sys_fault_hit();
        sys_fault(SYS_FAULT_OFF, 0, 0);
        if (!hit)
            break;
        char *data;
        EXPECT(rc != 0);
        CHECK_OK(file_read(path, 10, &data, NULL, &err), err);
        EXPECT(strcmp(data, "old") == 0 || strcmp(data, "new") == 0);
        sys_free(data);
        EXPECT_INT(count_names(at("faults")), 1);
    }
    EXPECT(test_each_fault(SYS_FAULT_ALL, false, write_new, path) >= 6);
}

TEST(folders_are_made_with_their_parents)
{
    struct err err;
    CHECK_OK(file_make_folders(at("a/b//c/"), &err), err);
    EXPECT(file_is_folder(at("a/b/c")));
    CHECK_OK(file_make_folders(at("a/b"), &err), err);
    put(at("a/file"), "x");
    EXPECT(file_make_folders(at("a/file"), &err) != 0);
    EXPECT(file_make_folders(at("a/file/below"), &err) != 0);
    EXPECT(strstr(err.msg, "a/file"));
}

static int make_and_remove(void *arg, struct err *err)
{
    char deep[700];
    snprintf(deep, sizeof deep, "%s/x/y/z", (char *)arg);
    int rc = file_make_folders(deep, err);
    return rc ? rc : file_remove_tree(arg, err);
}

TEST(a_tree_is_removed_and_links_are_not_followed)
{
    struct err err;
    CHECK_OK(file_make_folders(at("keep"), &err), err);
    put(at("keep/me"), "x");
    CHECK_OK(file_make_folders(at("tree/a/b"), &err), err);
    put(at("tree/a/b/f"), "x");
    CHECK(symlink(at("keep"), at("tree/a/link")) == 0);
    CHECK(symlink("nowhere", at("tree/dangling")) == 0);
    CHECK_OK(file_remove_tree(at("tree"), &err), err);
    EXPECT(!file_exists(at("tree")));
    EXPECT(file_exists(at("keep/me")));
    CHECK_OK(file_remove_tree(at("tree"), &err), err); // gone already
    char base[600];
    snprintf(base, sizeof base, "%s/again", test_tmp());
    EXPECT(test_each_fault(SYS_FAULT_ALL, false, make_and_remove, base) >= 10);
}

static int copy(void *arg, struct err *err)
{
    char to[700];
    snprintf(to, sizeof to, "%s.copy", (char *)arg);
    return file_copy(arg, to, err);
}

TEST(a_copy_has_all_bytes)
{
    struct err err;
    char from[600], *a, *b;
    size_t n = 3 << 20, n_copy;
    snprintf(from, sizeof from, "%s/large", test_tmp());
    a = malloc(n);
    for (size_t i = 0; i < n; i++)
        a[i] = (char)(i * 2654435761u >> 13);
    CHECK_OK(file_write_atomic(from, a, n, &err), err);
    CHECK_OK(copy(from, &err), err);
    CHECK_OK(file_read(at("large.copy"), n, &b, &n_copy, &err), err);
    EXPECT_INT(n_copy, n);
    EXPECT(memcmp(a, b, n) == 0);
    sys_free(b);
    // A call that fails may be made good by the slower way, but never by a short file.
    for (uint64_t k = 1; k < 50; k++) {
        sys_fault(SYS_FAULT_FAIL, SYS_FAULT_ALL, k);
        int rc = copy(from, &err);
        bool hit = sys_fault_hit();
        sys_fault(SYS_FAULT_OFF, 0, 0);
        if (!hit)
            break;
        if (rc)
            continue;
        CHECK_OK(file_read(at("large.copy"), n, &b, &n_copy, &err), err);
        EXPECT_MSG(n_copy == n && memcmp(a, b, n) == 0, "call %d", (int)k);
        sys_free(b);
    }
    free(a);
    // Not a regular file: only reading works.
    CHECK_OK(file_copy("/proc/self/cmdline", at("cmdline"), &err), err);
    uint64_t size = 0;
    CHECK_OK(file_size(at("cmdline"), &size, &err), err);
    EXPECT(size > 0);
    CHECK_CODE(file_copy(at("missing"), at("x"), &err), ERR_NOT_FOUND, err);
}

static int list(void *arg, struct err *err)
{
    char **names;
    size_t n;
    int rc = file_list(arg, &names, &n, err);
    file_free_names(names, n);
    return rc;
}

TEST(names_come_sorted_by_bytes)
{
    struct err err;
    char **names, path[600];
    size_t n;
    snprintf(path, sizeof path, "%s/names", test_tmp());
    CHECK_OK(file_make_folders(path, &err), err);
    put(at("names/b"), "");
    put(at("names/B"), "");
    put(at("names/a"), "");
    put(at("names/.hidden"), "");
    CHECK_OK(file_list(path, &names, &n, &err), err);
    CHECK_INT(n, 4);
    EXPECT_STR(names[0], ".hidden");
    EXPECT_STR(names[1], "B");
    EXPECT_STR(names[2], "a");
    EXPECT_STR(names[3], "b");
    file_free_names(names, n);
    EXPECT(test_each_fault(SYS_FAULT_ALL, false, list, path) >= 6);
    CHECK_CODE(file_list(at("names/a"), &names, &n, &err), ERR_IO, err);
    file_free_names(names, n);
}

TEST(reading_at_an_offset_is_whole_or_corrupt)
{
    struct err err;
    char buf[4];
    put(at("off"), "0123456789");
    int fd = sys_open(at("off"), O_RDONLY, 0);
    CHECK_OK(file_pread_all(fd, buf, 4, 6, "off", &err), err);
    EXPECT(memcmp(buf, "6789", 4) == 0);
    CHECK_CODE(file_pread_all(fd, buf, 4, 7, "off", &err), ERR_CORRUPT, err);
    EXPECT_STR(err.msg, "off: ends at byte 10, wanted 1 more");
    sys_close(fd);
}

static void expect_path(char *got, const char *want)
{
    EXPECT_STR(got, want);
    sys_free(got);
}

TEST(paths_are_put_together_and_taken_apart)
{
    expect_path(file_join("a", "b"), "a/b");
    expect_path(file_join("a/", "b"), "a/b");
    expect_path(file_join("", "b"), "b");
    expect_path(file_join("/", "b"), "/b");
    EXPECT_STR(file_base_name("a/b"), "b");
    EXPECT_STR(file_base_name("b"), "b");
    EXPECT_STR(file_base_name("a/"), "");
    expect_path(file_dir_name("a/b"), "a");
    expect_path(file_dir_name("b"), ".");
    expect_path(file_dir_name("/b"), "/");
    expect_path(file_dir_name("a//b"), "a");
    struct err err;
    expect_path(file_real_path("/usr/./bin/..", &err), "/usr");
    EXPECT(file_real_path(at("missing"), &err) == NULL);
    EXPECT_INT(err.code, ERR_NOT_FOUND);
}
