#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/safetensors.h"
#include "libcore/format/safetensors_writer.h"
#include "tests/lib/test.h"

/* A file in memory: header length, header, payload of n bytes. */
static size_t build(unsigned char *buf, const char *header, size_t payload)
{
    size_t n = strlen(header);
    for (int i = 0; i < 8; i++)
        buf[i] = (unsigned char)(n >> 8 * i);
    memcpy(buf + 8, header, n);
    for (size_t i = 0; i < payload; i++)
        buf[8 + n + i] = (unsigned char)i;
    return 8 + n + payload;
}

struct row {
    const char *name;
    const char *good, *bad;       // headers; a NULL good: only the refusal is of interest
    size_t good_bytes, bad_bytes; // payloads
    const char *message;          // part of the error of the bad one
    int code;                     // 0: ERR_CORRUPT
};

#define ONE(body) "{\"a\":" body "}"
#define E8        "{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}"

/* One pair a rule: the file that keeps it is read, the one that breaks it is refused. */
static const struct row rows[] = {
    {"object", "{}", "[]", 0, 0, "must begin with '{'", 0},
    {"strict start", ONE(E8), " " ONE(E8), 8, 8, "must begin with '{'", 0},
    {"padding", ONE(E8) "    ", ONE(E8) "\n", 8, 8, "only spaces", 0},
    {"json end", ONE(E8), "{\"a\":" E8, 8, 8, "'}' is wanted", 0},
    {"metadata strings", "{\"__metadata__\":{\"k\":\"v\"},\"a\":" E8 "}",
     "{\"__metadata__\":{\"k\":1},\"a\":" E8 "}", 8, 8, "string is wanted", 0},
    {"metadata nested", "{\"__metadata__\":{}}", "{\"__metadata__\":{\"k\":{}}}", 0, 0,
     "string is wanted", 0},
    {"metadata once", "{\"__metadata__\":{\"k\":\"v\",\"l\":\"v\"}}",
     "{\"__metadata__\":{},\"__metadata__\":{}}", 0, 0, "__metadata__: key twice", 0},
    {"metadata keys once", "{\"__metadata__\":{\"k\":\"v\"}}",
     "{\"__metadata__\":{\"k\":\"v\",\"k\":\"v\"}}", 0, 0, "duplicate key \"k\"", 0},
    {"duplicate tensor",
     "{\"a\":" E8 ",\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[8,9]}}",
     "{\"a\":" E8 ",\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[8,9]}}", 9, 9,
     ":a: duplicate key", 0},
    {"duplicate by escape", ONE(E8),
     "{\"a\":" E8 ",\"\\u0061\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[8,9]}}", 8, 9,
     ":a: duplicate key", 0},
    {"duplicate same range", ONE(E8), "{\"a\":" E8 ",\"a\":" E8 "}", 8, 8, "duplicate key", 0},
    {"unknown key", ONE(E8),
     ONE("{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"x\":1}"), 8, 8,
     ":a: unknown key \"x\"", 0},
    {"key twice in entry", ONE(E8),
     ONE("{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}"), 8, 8,
     ":a: key \"dtype\" twice", 0},
    {"missing key", ONE(E8), ONE("{\"dtype\":\"F32\",\"shape\":[2]}"), 8, 8,
     ":a: dtype, shape and data_offsets are wanted", 0},
    {"dtype known", ONE("{\"dtype\":\"F8_E8M0\",\"shape\":[8],\"data_offsets\":[0,8]}"),
     ONE("{\"dtype\":\"F33\",\"shape\":[2],\"data_offsets\":[0,8]}"), 8, 8, ":a: unknown dtype", 0},
    {"size", ONE(E8), ONE("{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}"), 8, 8,
     ":a: data_offsets hold 8 bytes, F32 [3] wants 12", 0},
    {"bits", ONE("{\"dtype\":\"F4\",\"shape\":[2],\"data_offsets\":[0,1]}"),
     ONE("{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}"), 1, 1, "whole number of bytes",
     0},
    {"overflow",
     ONE("{\"dtype\":\"F32\",\"shape\":[0,1099511627776,1099511627776],"
         "\"data_offsets\":[0,0]}"),
     ONE("{\"dtype\":\"F32\",\"shape\":[1099511627776,1099511627776,0],\"data_offsets\":[0,0]}"), 0,
     0, "overflows", 0},
    {"scalar", ONE("{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}"),
     ONE("{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,0]}"), 4, 0, "wants 4", 0},
    {"empty", ONE("{\"dtype\":\"F32\",\"shape\":[0,5],\"data_offsets\":[0,0]}"),
     ONE("{\"dtype\":\"F32\",\"shape\":[0,5],\"data_offsets\":[0,4]}"), 0, 4, "wants 0", 0},
    {"reversed offsets", ONE(E8), ONE("{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}"),
     8, 8, "end before they begin", 0},
    {"hole", "{\"a\":" E8 ",\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[8,9]}}",
     "{\"a\":" E8 ",\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[9,10]}}", 9, 10,
     ":b: hole before it", 0},
    {"hole at the start", ONE(E8), ONE("{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}"),
     8, 8, ":a: hole", 0},
    {"overlap", "{\"a\":" E8 ",\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[8,10]}}",
     "{\"a\":" E8 ",\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[7,9]}}", 10, 9,
     ":b: overlap", 0},
    {"truncated", ONE(E8), ONE(E8), 8, 7, "truncated", 0},
    {"trailing bytes", ONE(E8), ONE(E8), 8, 9, "bytes after the last tensor", 0},
    {"whole numbers", ONE(E8), ONE("{\"dtype\":\"F32\",\"shape\":[2.0],\"data_offsets\":[0,8]}"), 8,
     8, "whole number", 0},
    {"no exponents", ONE(E8), ONE("{\"dtype\":\"F32\",\"shape\":[2e0],\"data_offsets\":[0,8]}"), 8,
     8, "whole number", 0},
    {"no signs", ONE(E8), ONE("{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}"), 8, 8,
     "whole number", 0},
    {"no leading zeros", ONE(E8), ONE("{\"dtype\":\"F32\",\"shape\":[02],\"data_offsets\":[0,8]}"),
     8, 8, "leading zero", 0},
    {"number range", ONE(E8),
     ONE("{\"dtype\":\"F32\",\"shape\":[18446744073709551616],\"data_offsets\":[0,8]}"), 8, 8,
     "too large", 0},
    {"offsets are two", ONE(E8), ONE("{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4,8]}"),
     8, 8, "two numbers", 0},
    {"dimensions", ONE("{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}"),
     ONE("{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}"), 1, 1,
     "9 dimensions", ERR_REFUSED},
    {"utf-8", "{\"\xC3\xA9\":" E8 "}", "{\"\xC3\":" E8 "}", 8, 8, "not UTF-8", 0},
    {"overlong utf-8", "{\"\xE2\x82\xAC\":" E8 "}", "{\"\xC0\xAF\":" E8 "}", 8, 8, "not UTF-8", 0},
    {"surrogates in utf-8", "{\"\xED\x9F\xBF\":" E8 "}", "{\"\xED\xA0\x80\":" E8 "}", 8, 8,
     "not UTF-8", 0},
    {"surrogate pairs", "{\"\\ud83d\\ude00\":" E8 "}", "{\"\\ud83d\":" E8 "}", 8, 8,
     "lone surrogate", 0},
    {"low surrogate", "{\"\\u00e9\":" E8 "}", "{\"\\ude00\":" E8 "}", 8, 8, "lone surrogate", 0},
    {"control characters", "{\"a\\tb\":" E8 "}", "{\"a\tb\":" E8 "}", 8, 8, "raw control character",
     0},
    {"NUL", "{\"a\\u0001\":" E8 "}", "{\"a\\u0000\":" E8 "}", 8, 8, "NUL", 0},
    {"escapes", "{\"\\/\\\\\\\"\\b\\f\\n\\r\":" E8 "}", "{\"\\x41\":" E8 "}", 8, 8,
     "unknown escape", 0},
    {"string end", ONE(E8), "{\"a", 8, 0, "string without end", 0},
    {"string end in escape", ONE(E8), "{\"a\\", 8, 0, "string without end", 0},
    {"comma", ONE(E8), "{\"a\":" E8 ",}", 8, 8, "string is wanted", 0},
    {"nesting", ONE(E8), ONE("[[[[[[]]]]]]"), 8, 8, ":a: an object is wanted", 0},
};

TEST(every_rule_has_an_accepted_and_a_refused_file)
{
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct row *r = &rows[i];
        unsigned char buf[1024];
        struct safetensors *s;
        struct err err = {0};
        size_t n = build(buf, r->good, r->good_bytes);
        int rc = safetensors_open_memory(&s, buf, n, "good", 0, &err);
        EXPECT_MSG(rc == 0, "%s: good one: %s", r->name, err.msg);
        safetensors_free(s);
        n = build(buf, r->bad, r->bad_bytes);
        rc = safetensors_open_memory(&s, buf, n, "bad", 0, &err);
        EXPECT_MSG(rc == (r->code ? r->code : ERR_CORRUPT), "%s: bad one gives %d: %s", r->name, rc,
                   err.msg);
        EXPECT_MSG(s == NULL, "%s: a handle beside an error", r->name);
        EXPECT_MSG(strstr(err.msg, r->message) != NULL, "%s: \"%s\" lacks \"%s\"", r->name, err.msg,
                   r->message);
    }
}

TEST(frame_is_checked)
{
    unsigned char buf[64] = {0};
    struct safetensors *s;
    struct err err = {0};
    CHECK_CODE(safetensors_open_memory(&s, buf, 7, "f", 0, &err), ERR_CORRUPT, err);
    CHECK(strstr(err.msg, "at least 8"));
    memset(buf, 0xFF, 8); // huge
    CHECK_CODE(safetensors_open_memory(&s, buf, 64, "f", 0, &err), ERR_CORRUPT, err);
    CHECK(strstr(err.msg, "the format allows 100000000"));
    size_t n = build(buf, "{}", 0);
    CHECK_CODE(safetensors_open_memory(&s, buf, n - 1, "f", 0, &err), ERR_CORRUPT, err);
    CHECK(strstr(err.msg, "truncated"));
    CHECK_CODE(safetensors_open_memory(&s, buf, n, "f", 1, &err), ERR_LIMIT, err);
    CHECK_OK(safetensors_open_memory(&s, buf, n, "f", 2, &err), err);
    CHECK_INT(safetensors_count(s), 0);
    safetensors_free(s);
}

TEST(foreign_files_are_named)
{
    static const struct {
        const char *bytes;
        size_t n;
        const char *word;
    } files[] = {
        {"\x80\x02}q\x00(X\x08\x00\x00\x00", 11, "pickle"},
        {"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}", 12, "pickle"},
        {"PK\003\004\x14\x00\x00\x00\x08\x00\x00\x00", 12, "zip"},
        {"GGUF\x03\x00\x00\x00\x00\x00\x00\x00", 12, "GGUF"},
        {"version https://git-lfs.github.com/spec/v1\noid", 46, "LFS"},
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        struct safetensors *s;
        struct err err = {0};
        CHECK_CODE(safetensors_open_memory(&s, files[i].bytes, files[i].n, "f", 0, &err),
                   ERR_CORRUPT, err);
        EXPECT_MSG(strstr(err.msg, files[i].word), "%s", err.msg);
    }
}

TEST(header_whose_length_looks_like_pickle_is_read)
{
    size_t n = 0x010280; // bytes 80 02 01
    unsigned char *buf = malloc(n + 8);
    char *header = malloc(n + 1);
    memset(header, ' ', n);
    header[n] = '\0';
    memcpy(header, "{}", 2);
    size_t size = build(buf, header, 0);
    struct safetensors *s;
    struct err err = {0};
    CHECK_OK(safetensors_open_memory(&s, buf, size, "f", 0, &err), err);
    safetensors_free(s);
    free(header);
    free(buf);
}

TEST(only_regular_files_are_opened)
{
    char path[4200];
    struct safetensors *s;
    struct err err = {0};
    snprintf(path, sizeof path, "%s/fifo", test_tmp());
    CHECK(mkfifo(path, 0600) == 0);
    CHECK_CODE(safetensors_open(&s, path, 0, &err), ERR_NOT_FOUND, err);
    EXPECT(strstr(err.msg, "not a regular file"));
    CHECK(safetensors_open(&s, test_tmp(), 0, &err) != 0);
}

TEST(misalignment_warns_only)
{
    unsigned char buf[256];
    struct safetensors *s;
    struct err err = {0};
    size_t n = build(buf, ONE(E8) " ", 8);
    CHECK_OK(safetensors_open_memory(&s, buf, n, "f", 0, &err), err);
    EXPECT(safetensors_warning(s) != NULL);
    safetensors_free(s);
}

static void put_all(struct safetensors_writer *w, const struct safetensors *s)
{
    struct err err = {0};
    for (size_t i = safetensors_count(s); i-- > 0;) { // any order will do
        const struct safetensors_entry *e = safetensors_at(s, i);
        uint64_t half = (e->end - e->begin) / 2;
        CHECK_OK(safetensors_writer_put(w, e->name, half, (const char *)e->value.data + half,
                                        e->end - e->begin - half, &err),
                 err);
        CHECK_OK(safetensors_writer_put(w, e->name, 0, e->value.data, half, &err), err);
    }
}

static void declare_all(struct safetensors_writer *w, const struct safetensors *s)
{
    struct err err = {0};
    for (size_t i = 0; i < safetensors_n_metadata(s); i++) {
        const struct safetensors_metadata *m = safetensors_metadata_at(s, i);
        CHECK_OK(safetensors_writer_metadata(w, m->key, m->value, &err), err);
    }
    for (size_t i = 0; i < safetensors_count(s); i++) {
        const struct safetensors_entry *e = safetensors_at(s, i);
        CHECK_OK(safetensors_writer_declare(w, e->name, e->value.dtype, e->value.n_dims,
                                            e->value.shape, &err),
                 err);
    }
}

/* The reference writer's files come back byte for byte: same order, same header text, same
 * padding. */
TEST(rewritten_file_equals_the_reference_writers)
{
    static const char *const files[] = {"adapters/first-lora/adapter_model.safetensors",
                                        "adapters/sort-lora/adapter_model.safetensors",
                                        "base/model.safetensors"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[4200], copy[4200];
        snprintf(path, sizeof path, "%s/examples/tinytalk/%s", test_root(), files[i]);
        snprintf(copy, sizeof copy, "%s/copy%zu.safetensors", test_tmp(), i);
        struct safetensors *s;
        struct safetensors_writer *w;
        struct err err = {0};
        CHECK_OK(safetensors_open(&s, path, 0, &err), err);
        CHECK(safetensors_warning(s) == NULL);
        CHECK_OK(safetensors_writer_open(&w, copy, &err), err);
        declare_all(w, s);
        EXPECT_INT(safetensors_writer_file_bytes(w), safetensors_file_bytes(s));
        CHECK_OK(safetensors_writer_begin(w, &err), err);
        put_all(w, s);
        CHECK(!file_exists(copy));
        CHECK_OK(safetensors_writer_finish(w, &err), err);
        safetensors_writer_free(w);
        safetensors_free(s);
        char *a, *b;
        size_t na, nb;
        CHECK_OK(file_read(path, 1 << 30, &a, &na, &err), err);
        CHECK_OK(file_read(copy, 1 << 30, &b, &nb, &err), err);
        EXPECT_INT(nb, na);
        EXPECT(na == nb && memcmp(a, b, na) == 0);
        sys_free(a);
        sys_free(b);
    }
}

TEST(writer_refuses_what_was_not_declared_and_leaves_nothing_unfinished)
{
    char path[4200];
    snprintf(path, sizeof path, "%s/unfinished.safetensors", test_tmp());
    struct safetensors_writer *w;
    struct err err = {0};
    uint64_t shape[1] = {4};
    CHECK_OK(safetensors_writer_open(&w, path, &err), err);
    CHECK_OK(safetensors_writer_declare(w, "a", DTYPE_F32, 1, shape, &err), err);
    CHECK_OK(safetensors_writer_begin(w, &err), err);
    float v[4] = {1, 2, 3, 4};
    CHECK_CODE(safetensors_writer_put(w, "b", 0, v, 4, &err), ERR_INTERNAL, err);
    CHECK_CODE(safetensors_writer_put(w, "a", 8, v, 12, &err), ERR_INTERNAL, err);
    CHECK_OK(safetensors_writer_put(w, "a", 0, v, 12, &err), err);
    CHECK_CODE(safetensors_writer_finish(w, &err), ERR_INTERNAL, err);
    safetensors_writer_free(w);
    char **names;
    size_t n;
    CHECK_OK(file_list(test_tmp(), &names, &n, &err), err);
    for (size_t i = 0; i < n; i++)
        EXPECT_MSG(!strstr(names[i], "unfinished"), "%s is left", names[i]);
    file_free_names(names, n);
}

TEST(writer_refuses_a_name_declared_twice)
{
    char path[4200];
    snprintf(path, sizeof path, "%s/twice.safetensors", test_tmp());
    struct safetensors_writer *w;
    struct err err = {0};
    uint64_t shape[1] = {4};
    CHECK_OK(safetensors_writer_open(&w, path, &err), err);
    CHECK_OK(safetensors_writer_declare(w, "a", DTYPE_F32, 1, shape, &err), err);
    CHECK_OK(safetensors_writer_declare(w, "a", DTYPE_F16, 1, shape, &err), err);
    CHECK_CODE(safetensors_writer_begin(w, &err), ERR_EXISTS, err);
    safetensors_writer_free(w);
}

TEST(every_failed_call_of_the_reader_is_an_error_and_no_leak)
{
    char path[4200];
    snprintf(path, sizeof path, "%s/examples/tinytalk/adapters/sort-lora/adapter_model.safetensors",
             test_root());
    for (uint64_t n = 1;; n++) {
        struct safetensors *s;
        struct err err = {0};
        sys_fault(SYS_FAULT_FAIL, SYS_FAULT_ALL, n);
        int rc = safetensors_open(&s, path, 0, &err);
        bool hit = sys_fault_hit();
        sys_fault(SYS_FAULT_OFF, 0, 0);
        safetensors_free(s);
        if (!hit) {
            CHECK_OK(rc, err);
            CHECK(n > 3);
            return;
        }
        // a failed close of a file that was only read loses nothing
        EXPECT_MSG(rc == 0 || err.msg[0], "call %llu: %d without words", (unsigned long long)n, rc);
    }
}
