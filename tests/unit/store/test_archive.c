/* archive, arrive, registry references: what their headers promise. */
#include <stdio.h>
#include <stdlib.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "store/archive.h"
#include "store/arrive.h"
#include "store/registry.h"
#include "tests/lib/test.h"

static char *tmp_path(const char *name)
{
    return file_join(test_tmp(), name);
}

static void write_tar(const char *path, size_t name_chars, struct err *err)
{
    struct archive_out *a;
    char name[800];
    uint64_t bytes;
    memset(name, 'x', sizeof name);
    for (size_t i = 60; i < name_chars; i += 61)
        name[i] = '/';
    name[name_chars] = '\0';
    const struct archive_item small = {.name = "a", .size = 3, .data = "abc"};
    const struct archive_item aligned = {.name = name, .size = 5, .data = "DATA!", .align = true};
    CHECK_OK(archive_out_open(&a, path, ARCHIVE_KIND_TAR, NULL, NULL, err), *err);
    EXPECT_INT(archive_out_put(a, &small, err), 0);
    EXPECT_INT(archive_out_put(a, &aligned, err), 0);
    EXPECT_INT(archive_out_finish(a, true, &bytes, err), 0);
    archive_out_free(a);
}

static int keep(void *arg, const void *data, size_t n, struct err *err)
{
    (void)err;
    strncat(arg, data, n);
    return 0;
}

TEST(aligned_data_begins_at_a_page_and_comes_back_whatever_the_name)
{
    const size_t lengths[] = {1, 99, 100, 101, 154, 255, 256, 257, 400, 700};
    struct err err = {0};
    char *path = tmp_path("aligned.tar");
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        char *data, text[16] = "";
        size_t n;
        struct archive_in *in;
        struct archive_in_entry e;
        bool more;
        write_tar(path, lengths[i], &err);
        CHECK_OK(file_read(path, 1 << 20, &data, &n, &err), err);
        const char *at = memmem(data, n, "DATA!", 5);
        CHECK(at);
        EXPECT_INT((at - data) % ARCHIVE_ALIGN, 0);
        EXPECT_INT(n % 512, 0);
        CHECK_OK(archive_in_open(&in, path, NULL, NULL, &err), err);
        CHECK_OK(archive_in_next(in, &e, &more, &err), err);
        CHECK_OK(archive_in_data(in, NULL, NULL, &err), err);
        CHECK_OK(archive_in_next(in, &e, &more, &err), err);
        EXPECT_INT(strlen(e.name), lengths[i]);
        CHECK_OK(archive_in_data(in, keep, text, &err), err);
        EXPECT_STR(text, "DATA!");
        CHECK_OK(archive_in_next(in, &e, &more, &err), err);
        EXPECT(!more);
        archive_in_free(in);
        sys_free(data);
    }
    sys_free(path);
}

TEST(an_unfinished_archive_leaves_no_file)
{
    struct err err = {0};
    struct archive_out *a;
    char *path = tmp_path("unfinished.zip"), **names;
    size_t n;
    CHECK_OK(archive_out_open(&a, path, ARCHIVE_KIND_ZIP, NULL, NULL, &err), err);
    archive_out_free(a);
    CHECK_OK(file_list(test_tmp(), &names, &n, &err), err);
    for (size_t i = 0; i < n; i++)
        EXPECT_MSG(!strstr(names[i], "unfinished"), "%s is left", names[i]);
    file_free_names(names, n);
    sys_free(path);
}

TEST(what_arrives_is_hashed_and_counted)
{
    enum { SIZE = 3 << 20 }; // large enough for the hashing thread
    struct err err = {0};
    struct arriving *a;
    struct digest got, want;
    char *path = tmp_path("arriving"), *data = malloc(SIZE);
    for (size_t i = 0; i < SIZE; i++)
        data[i] = (char)(i * 7 + i / 1000);
    CHECK_OK(digest_buffer(data, SIZE, &want, &err), err);
    CHECK_OK(arriving_open(&a, path, SIZE, "input", &err), err);
    for (size_t at = 0; at < SIZE; at += 4096)
        CHECK_OK(arriving_write(a, data + at, 4096, &err), err);
    CHECK_CODE(arriving_write(a, data, 1, &err), ERR_CORRUPT, err);
    CHECK_OK(arriving_finish(a, &got, &err), err);
    EXPECT(digest_equal(&got, &want));
    arriving_free(a);
    sys_unlink(path);
    // One that ends early is an error, and may be given up at any time.
    CHECK_OK(arriving_open(&a, path, SIZE, "input", &err), err);
    CHECK_OK(arriving_write(a, data, SIZE / 2, &err), err);
    CHECK_CODE(arriving_finish(a, &got, &err), ERR_CORRUPT, err);
    arriving_free(a);
    free(data);
    sys_free(path);
}

static struct digest digest_of(const char *data, size_t n)
{
    struct digest d = {{0}};
    struct err err = {0};
    EXPECT(digest_buffer(data, n, &d, &err) == 0);
    return d;
}

TEST(what_arrived_in_part_is_gone_on_with)
{
    enum { SIZE = (3 << 20) + 77 };
    struct err err = {0};
    struct arriving *a, *b;
    struct digest got, want;
    char *path = tmp_path("partial"), *data = malloc(SIZE);
    for (size_t i = 0; i < SIZE; i++)
        data[i] = (char)(i * 7 + i / 1000);
    want = digest_of(data, SIZE);
    size_t at = 0, step = 1;
    for (; at + step < SIZE; step = step * 5 + 3) {
        CHECK_OK(arriving_open_partial(&a, path, SIZE, "input", &err), err);
        CHECK_INT(arriving_bytes(a), at);
        CHECK_CODE(arriving_open_partial(&b, path, SIZE, "input", &err), ERR_LOCKED, err);
        CHECK_OK(arriving_write(a, data + at, step, &err), err);
        CHECK_OK(arriving_keep(a, &err), err);
        arriving_free(a);
        at += step;
    }
    CHECK_OK(arriving_open_partial(&a, path, SIZE, "input", &err), err);
    CHECK_OK(arriving_write(a, data + at, SIZE - at, &err), err);
    CHECK_OK(arriving_finish(a, &got, &err), err);
    EXPECT(digest_equal(&got, &want));
    arriving_free(a);
    CHECK_OK(digest_file(path, &got, NULL, &err), err);
    EXPECT(digest_equal(&got, &want));
    // What is longer than it may be is begun again.
    sys_chmod(path, 0644);
    CHECK_OK(arriving_open_partial(&a, path, 1000, "input", &err), err);
    EXPECT_INT(arriving_bytes(a), 0);
    arriving_free(a);
    sys_unlink(path);
    free(data);
    sys_free(path);
}

static int add_up(void *arg, const void *data, size_t n, struct err *err)
{
    return digest_update(arg, data, n, err);
}

/* Reads all entries; *got is the digest of the last one's bytes. */
static int read_packed(const char *path, struct digest *got, struct err *err)
{
    struct archive_in *in;
    struct archive_in_entry e;
    bool more = false;
    int rc = archive_in_open(&in, path, NULL, NULL, err);
    while (!rc && (rc = archive_in_next(in, &e, &more, err)) == 0 && more) {
        struct digest_state *d;
        rc = digest_open(&d, err);
        if (!rc)
            rc = archive_in_data(in, add_up, d, err);
        if (!rc)
            rc = digest_final(d, got, err);
        digest_free(d);
    }
    archive_in_free(in);
    return rc;
}

static void spoil(const char *path, const char *to, size_t size, size_t flip)
{
    char *data;
    size_t n;
    struct err err = {0};
    CHECK_OK(file_read(path, SIZE_MAX / 2, &data, &n, &err), err);
    if (flip)
        data[flip % n] ^= 4;
    sys_unlink(to);
    CHECK_OK(file_write_atomic(to, data, size && size < n ? size : n, &err), err);
    sys_free(data);
}

TEST(packed_tars_are_unpacked_ahead_of_the_reader)
{
    enum { SIZE = (9 << 20) + 5 };
    static const enum archive_kind kinds[] = {ARCHIVE_KIND_TAR_ZST, ARCHIVE_KIND_TAR_GZ};
    char *data = malloc(SIZE), *bad = tmp_path("bad");
    uint32_t x = 1;
    for (size_t i = 0; i < SIZE; i++)
        data[i] = (char)((x = x * 1664525 + 1013904223) >> 26); // six bits in eight
    struct digest want = digest_of(data, SIZE), got = {{0}};
    for (int k = 0; k < 2; k++) {
        struct archive_out *out;
        struct archive_in *in;
        struct archive_in_entry e;
        struct err err = {0};
        uint64_t bytes;
        bool more;
        char *path = tmp_path(k ? "ahead.tar.gz" : "ahead.tar.zst");
        const struct archive_item item = {.name = "x", .size = SIZE, .data = data};
        CHECK_OK(archive_out_open(&out, path, kinds[k], NULL, NULL, &err), err);
        CHECK_OK(archive_out_put(out, &item, &err), err);
        CHECK_OK(archive_out_finish(out, false, &bytes, &err), err);
        archive_out_free(out);
        CHECK_OK(read_packed(path, &got, &err), err);
        EXPECT(digest_equal(&got, &want));
        // One that is given up while the thread is at work.
        CHECK_OK(archive_in_open(&in, path, NULL, NULL, &err), err);
        CHECK_OK(archive_in_next(in, &e, &more, &err), err);
        archive_in_free(in);
        static const size_t cuts[] = {20, 1 << 20, 5 << 20};
        for (size_t i = 0; i < 3; i++) {
            spoil(path, bad, cuts[i], 0);
            CHECK_CODE(read_packed(bad, &got, &err), ERR_CORRUPT, err);
        }
        spoil(path, bad, 0, 3 << 20);
        CHECK_CODE(read_packed(bad, &got, &err), ERR_CORRUPT, err);
        spoil(path, bad, bytes - 2, 0); // only the checksum is not whole
        CHECK_CODE(read_packed(bad, &got, &err), ERR_CORRUPT, err);
        sys_free(path);
    }
    free(data);
    sys_free(bad);
}

TEST(references_to_registries)
{
    static const char *const bad[] = {
        "bot",      "team/bot",        "a.b/",     "a.b/x:", "a.b/X",        "a.b/x//y",
        "a.b/x:-v", "a.b/x@sha256:12", "a.b/../x", "a.b/x/", "http://a.b/x", "a.b/x:v/1"};
    struct registry_ref r;
    struct err err = {0};
    CHECK_OK(registry_ref_parse("localhost/x", &r, &err), err);
    EXPECT_STR(r.reference, "latest");
    CHECK_OK(registry_ref_parse("a.b:5000/team/my_bot.x--y:v1.0", &r, &err), err);
    EXPECT_STR(r.host, "a.b:5000");
    EXPECT_STR(r.repo, "team/my_bot.x--y");
    EXPECT_STR(r.reference, "v1.0");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        EXPECT_MSG(registry_ref_parse(bad[i], &r, &err) == ERR_USAGE, "%s is taken", bad[i]);
}
