#include "libcore/text/json_pull.h"
#include "tests/lib/test.h"

static void check_string(const char *json, int code, const char *want, size_t n_want)
{
    struct err err = {0};
    struct json_pull r;
    const char *s = NULL;
    size_t n = 0;
    json_pull_init(&r, json, strlen(json), "t.json", &err);
    int rc = json_pull_string(&r, &s, &n);
    EXPECT_MSG(rc == code, "%s gives %d: %s", json, rc, err.msg);
    if (!rc)
        EXPECT_MSG(n == n_want && memcmp(s, want, n) == 0, "%s gives %.*s", json, (int)n, s);
    json_pull_release(&r);
}

TEST(strings_are_read_with_and_without_escapes)
{
    check_string("  \"abc\"", 0, "abc", 3);
    check_string("\"a\\n\\\"\\\\\\/\\u00e9\\ud83e\\udd99\\u0000z\"", 0, "a\n\"\\/é🦙\0z", 13);
    check_string("\"\\ud83e\"", ERR_CORRUPT, "", 0);
    check_string("\"\\udd99\"", ERR_CORRUPT, "", 0);
    check_string("\"\\ud83e\\u0041\"", ERR_CORRUPT, "", 0);
    check_string("\"\\x\"", ERR_CORRUPT, "", 0);
    check_string("\"\\u12g4\"", ERR_CORRUPT, "", 0);
    check_string("\"\\u12", ERR_CORRUPT, "", 0);
    check_string("\"a\nb\"", ERR_CORRUPT, "", 0);
    check_string("\"a\xff\"", ERR_CORRUPT, "", 0);
    check_string("\"abc", ERR_CORRUPT, "", 0);
    check_string("\"abc\\", ERR_CORRUPT, "", 0);
    check_string("abc", ERR_CORRUPT, "", 0);
    check_string("", ERR_CORRUPT, "", 0);
}

TEST(lists_and_objects_are_walked)
{
    struct err err = {0};
    struct json_pull r;
    const char json[] = "{\"a\": [1, -2 ,3], \"b\" : {\"c\": [true, \"]}\", null]}, \"d\": false} ";
    const char *s;
    size_t n;
    int64_t sum = 0, v;
    bool first = true, more, inner = true, flag = true;
    json_pull_init(&r, json, sizeof json - 1, "t.json", &err);
    CHECK_OK(json_pull_begin(&r, '{'), err);
    CHECK_OK(json_pull_next(&r, '}', &first, &more), err);
    CHECK_OK(json_pull_key(&r, &s, &n), err);
    CHECK_OK(json_pull_begin(&r, '['), err);
    while (json_pull_next(&r, ']', &inner, &more) == 0 && more) {
        CHECK_OK(json_pull_integer(&r, &v), err);
        sum += v;
    }
    EXPECT_INT(sum, 2);
    CHECK_OK(json_pull_next(&r, '}', &first, &more), err);
    CHECK_OK(json_pull_key(&r, &s, &n), err);
    CHECK_OK(json_pull_skip(&r, &s, &n), err);
    EXPECT(n == 25 && memcmp(s, "{\"c\": [true, \"]}\", null]}", 25) == 0);
    CHECK_OK(json_pull_next(&r, '}', &first, &more), err);
    CHECK_OK(json_pull_key(&r, &s, &n), err);
    CHECK_OK(json_pull_bool(&r, &flag), err);
    EXPECT(!flag);
    CHECK_OK(json_pull_next(&r, '}', &first, &more), err);
    EXPECT(!more);
    CHECK_OK(json_pull_end(&r), err);
    json_pull_release(&r);
}

TEST(what_is_broken_is_said_with_its_place)
{
    static const char *const skipped[] = {"", "]", "[1", "{\"a\": ", "\"abc", "[\"a\\", ",", ":"};
    for (size_t i = 0; i < sizeof skipped / sizeof *skipped; i++) {
        struct err err = {0};
        struct json_pull r;
        json_pull_init(&r, skipped[i], strlen(skipped[i]), "t.json", &err);
        EXPECT_MSG(json_pull_skip(&r, NULL, NULL) == ERR_CORRUPT, "'%s' is passed over",
                   skipped[i]);
        EXPECT_MSG(strncmp(err.msg, "t.json:", 7) == 0, "%s", err.msg);
        json_pull_release(&r);
    }
    static const char *const numbers[] = {"", "a", "1.5", "1e3", "-", "99999999999999999999"};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        struct err err = {0};
        struct json_pull r;
        int64_t v;
        json_pull_init(&r, numbers[i], strlen(numbers[i]), "t.json", &err);
        EXPECT_MSG(json_pull_integer(&r, &v) == ERR_CORRUPT, "'%s' is a number", numbers[i]);
        json_pull_release(&r);
    }
}

TEST(depth_is_bounded)
{
    struct err err = {0};
    struct json_pull r;
    char deep[200];
    memset(deep, '[', sizeof deep);
    json_pull_init(&r, deep, sizeof deep, "t.json", &err);
    CHECK_CODE(json_pull_skip(&r, NULL, NULL), ERR_CORRUPT, err);
    EXPECT(strstr(err.msg, "too deep") != NULL);
    json_pull_release(&r);
}
