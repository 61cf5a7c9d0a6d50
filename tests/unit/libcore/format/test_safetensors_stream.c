#include "libcore/format/safetensors_stream.h"

#include <stdio.h>
#include <stdlib.h>

#include "libcore/base/sys.h"
#include "tests/lib/fault.h"
#include "tests/lib/test.h"

#define HEADER                                                                                     \
    "{\"f32\":{\"dtype\":\"F32\",\"shape\":[500],\"data_offsets\":[7,2007]},"                      \
    "\"a\":{\"dtype\":\"U8\",\"shape\":[7],\"data_offsets\":[0,7]},"                               \
    "\"none\":{\"dtype\":\"F16\",\"shape\":[0],\"data_offsets\":[2007,2007]},"                     \
    "\"f16\":{\"dtype\":\"F16\",\"shape\":[2,50],\"data_offsets\":[2007,2207]},"                   \
    "\"last\":{\"dtype\":\"BF16\",\"shape\":[0],\"data_offsets\":[2207,2207]}}"

enum { PAYLOAD = 2207 };

/* No value among them is NaN or Inf: the bits of an exponent are never all set. */
static size_t build(unsigned char *buf, const char *header, size_t payload)
{
    size_t n = strlen(header);
    for (int i = 0; i < 8; i++)
        buf[i] = (unsigned char)(n >> 8 * i);
    memcpy(buf + 8, header, n);
    for (size_t i = 0; i < payload; i++)
        buf[8 + n + i] = (unsigned char)(i / 2 & 0x3b);
    return 8 + n + payload;
}

/* Gives `size` bytes of a file that says it has as many, in pieces of `step`. */
static struct safetensors_stream *stream(const unsigned char *data, size_t size, size_t step)
{
    struct safetensors_stream *s;
    struct err err = {0};
    struct digest got, want;
    if (safetensors_stream_open(&s, size, &err) != 0)
        abort();
    for (size_t at = 0; at < size; at += step) {
        size_t n = size - at < step ? size - at : step;
        EXPECT(safetensors_stream_update(s, data + at, n, &err) == 0);
    }
    EXPECT(safetensors_stream_finish(s, &got, &err) == 0);
    digest_buffer(data, size, &want, &err);
    EXPECT(digest_equal(&got, &want));
    return s;
}

static void expect_part(const struct safetensors_stream *s, const char *name, const void *data,
                        size_t n, bool finite)
{
    const struct safetensors_part *p = safetensors_stream_find(s, name);
    struct digest want;
    CHECK(p);
    digest_buffer(data, n, &want, NULL);
    EXPECT_MSG(digest_equal(&p->payload, &want), "%s", name);
    EXPECT_MSG(p->finite == finite, "%s", name);
}

TEST(each_tensor_has_its_digest_however_the_bytes_come)
{
    unsigned char buf[8192];
    size_t size = build(buf, HEADER, PAYLOAD), n;
    const unsigned char *payload = buf + size - PAYLOAD;
    static const size_t steps[] = {1, 3, 7, 64, 100, 1000, 8192};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        struct safetensors_stream *s = stream(buf, size, steps[i]);
        safetensors_stream_parts(s, &n);
        EXPECT_INT(n, 5);
        expect_part(s, "a", payload, 7, true);
        expect_part(s, "f32", payload + 7, 2000, true);
        expect_part(s, "f16", payload + 2007, 200, true);
        expect_part(s, "none", "", 0, true);
        expect_part(s, "last", "", 0, true);
        EXPECT(!safetensors_stream_find(s, "other"));
        safetensors_stream_free(s);
    }
}

TEST(values_that_are_no_numbers_are_seen_also_across_pieces)
{
    unsigned char buf[8192];
    for (size_t step = 1; step < 50; step++) {
        size_t size = build(buf, HEADER, PAYLOAD);
        unsigned char *payload = buf + size - PAYLOAD;
        static const unsigned char nan[] = {0, 0, 0xc0, 0x7f}, inf[] = {0, 0x7c};
        memcpy(payload + 7 + 4 * 123, nan, 4);
        struct safetensors_stream *s = stream(buf, size, step);
        expect_part(s, "f32", payload + 7, 2000, false);
        expect_part(s, "f16", payload + 2007, 200, true);
        safetensors_stream_free(s);
        memcpy(payload + 2007 + 2 * 99, inf, 2);
        s = stream(buf, size, step);
        expect_part(s, "f16", payload + 2007, 200, false);
        safetensors_stream_free(s);
    }
}

TEST(what_is_no_safetensors_has_a_digest_and_no_tensors)
{
    static const char *const headers[] = {
        "[]", "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}",
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[9],\"data_offsets\":[1,10]}}", "{"};
    unsigned char buf[8192];
    size_t n;
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        struct safetensors_stream *s = stream(buf, build(buf, headers[i], 10), 5);
        EXPECT(!safetensors_stream_parts(s, &n));
        safetensors_stream_free(s);
    }
    static const char json[] = "{\"schema\": 1, \"adapters\": []}\n";
    for (size_t size = 0; size < sizeof json; size++) { // also files that are too short
        struct safetensors_stream *s = stream((const unsigned char *)json, size, 4);
        EXPECT(!safetensors_stream_parts(s, &n));
        safetensors_stream_free(s);
    }
    memset(buf, 0xff, 64); // a header beyond all bounds
    struct safetensors_stream *s = stream(buf, 64, 64);
    EXPECT(!safetensors_stream_parts(s, &n));
    safetensors_stream_free(s);
}

static int stream_path(void *arg, struct err *err)
{
    struct safetensors_stream *s;
    struct digest d;
    int rc = safetensors_stream_file(&s, arg, false, &d, err);
    safetensors_stream_free(s);
    return rc;
}

TEST(a_file_is_read_in_blocks_and_every_failure_is_an_error)
{
    unsigned char buf[8192];
    struct safetensors_stream *s;
    struct err err = {0};
    struct digest d;
    char path[512];
    size_t size = build(buf, HEADER, PAYLOAD);
    snprintf(path, sizeof path, "%s/x.safetensors", test_tmp());
    FILE *f = fopen(path, "w");
    CHECK(f && fwrite(buf, 1, size, f) == size && fclose(f) == 0);
    CHECK_OK(safetensors_stream_file(&s, path, false, &d, &err), err);
    expect_part(s, "f32", buf + size - PAYLOAD + 7, 2000, true);
    safetensors_stream_free(s);
    EXPECT(test_each_fault(SYS_FAULT_ALL, false, stream_path, path) >= 6);
    CHECK_CODE(safetensors_stream_file(&s, "/nowhere/x", false, &d, &err), ERR_NOT_FOUND, err);
}
