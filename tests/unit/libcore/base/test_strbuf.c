#include "libcore/base/strbuf.h"

#include <jansson.h>
#include <stdlib.h>

#include "tests/lib/fault.h"
#include "tests/lib/test.h"

TEST(an_empty_buffer_is_an_empty_text)
{
    struct strbuf sb;
    strbuf_init(&sb);
    EXPECT_STR(strbuf_text(&sb), "");
    size_t n = 7;
    char *text = strbuf_take(&sb, &n);
    CHECK(text);
    EXPECT_STR(text, "");
    EXPECT_INT(n, 0);
    sys_free(text);
}

TEST(appends_of_every_kind_line_up)
{
    struct strbuf sb;
    strbuf_init(&sb);
    strbuf_adds(&sb, "a");
    strbuf_addc(&sb, 'b');
    strbuf_add(&sb, "c\0d", 3);
    strbuf_addf(&sb, "%d-%s", 12, "x");
    EXPECT_INT(sb.len, 9);
    EXPECT(memcmp(sb.data, "abc\0d12-x", 10) == 0);
    strbuf_truncate(&sb, 2);
    EXPECT_STR(strbuf_text(&sb), "ab");
    strbuf_truncate(&sb, 50);
    EXPECT_STR(strbuf_text(&sb), "ab");
    strbuf_reset(&sb);
    EXPECT_STR(strbuf_text(&sb), "");
    strbuf_release(&sb);
}

TEST(a_long_text_grows_in_place)
{
    struct strbuf sb;
    strbuf_init(&sb);
    for (int i = 0; i < 100000; i++)
        strbuf_addf(&sb, "%05d", i);
    CHECK_INT(sb.len, 500000);
    EXPECT(memcmp(sb.data + 5 * 98765, "98765", 5) == 0);
    strbuf_release(&sb);
}

TEST(a_bound_is_kept_and_remembered)
{
    struct strbuf sb;
    strbuf_init(&sb);
    sb.max = 4;
    strbuf_adds(&sb, "1234");
    EXPECT(!sb.failed);
    strbuf_adds(&sb, "5");
    EXPECT(sb.failed && sb.too_long);
    strbuf_adds(&sb, "");
    EXPECT_INT(sb.len, 4);
    EXPECT(strbuf_take(&sb, NULL) == NULL);
    EXPECT(!sb.failed); // taken: empty and usable again
    strbuf_release(&sb);
}

TEST(an_absurd_length_fails_instead_of_wrapping)
{
    struct strbuf sb;
    strbuf_init(&sb);
    strbuf_adds(&sb, "x");
    strbuf_add(&sb, "y", SIZE_MAX - 1);
    EXPECT(sb.failed);
    strbuf_release(&sb);
}

TEST(code_points_become_utf8)
{
    struct strbuf sb;
    strbuf_init(&sb);
    static const uint32_t points[] = {0x24, 0x7F, 0x80, 0x7FF, 0x800, 0xFFFF, 0x10000, 0x10FFFF};
    for (size_t i = 0; i < sizeof points / sizeof *points; i++)
        strbuf_add_utf8(&sb, points[i]);
    EXPECT_STR(strbuf_text(&sb), "$\x7F\xC2\x80\xDF\xBF\xE0\xA0\x80\xEF\xBF\xBF\xF0\x90\x80\x80"
                                 "\xF4\x8F\xBF\xBF");
    strbuf_reset(&sb);
    strbuf_add_utf8(&sb, 0xD800);
    strbuf_add_utf8(&sb, 0x110000);
    EXPECT_STR(strbuf_text(&sb), "\xEF\xBF\xBD\xEF\xBF\xBD");
    strbuf_release(&sb);
}

/* What jansson, a reader of its own, makes of the string that we wrote. */
static char *read_back(const struct strbuf *sb)
{
    json_t *value = json_loadb(sb->data, sb->len, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
    char *text = NULL;
    if (json_is_string(value)) {
        text = malloc(json_string_length(value) + 1);
        memcpy(text, json_string_value(value), json_string_length(value) + 1);
    }
    json_decref(value);
    return text;
}

TEST(json_strings_are_escaped)
{
    struct strbuf sb;
    strbuf_init(&sb);
    static const char text[] = "a\"\\\b\f\n\r\t\x01\x7F/é€😀";
    strbuf_add_json(&sb, text, sizeof text - 1);
    EXPECT_STR(strbuf_text(&sb), "\"a\\\"\\\\\\b\\f\\n\\r\\t\\u0001\\u007f/é€😀\"");
    char *back = read_back(&sb);
    EXPECT_STR(back, text);
    free(back);
    strbuf_reset(&sb);
    strbuf_add_json(&sb, "\0x", 2);
    EXPECT_STR(strbuf_text(&sb), "\"\\u0000x\"");
    strbuf_reset(&sb);
    strbuf_add_json(&sb, "", 0);
    EXPECT_STR(strbuf_text(&sb), "\"\"");
    strbuf_release(&sb);
}

TEST(invalid_utf8_in_json_becomes_replacement_characters)
{
    static const char *const bad[] = {
        "\x80",
        "\xC0\x80",
        "\xC1\xBF",
        "\xE0\x80\x80",
        "\xED\xA0\x80",
        "\xF0\x80\x80\x80",
        "\xF4\x90\x80\x80",
        "\xF5",
        "\xFF",
        "\xE2\x82",
        "\xC3",
        "\xE2\x28\xA1",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct strbuf sb;
        strbuf_init(&sb);
        strbuf_add_json(&sb, bad[i], strlen(bad[i]));
        char *back = read_back(&sb); // jansson refuses invalid UTF-8
        EXPECT_MSG(back && strstr(back, "\xEF\xBF\xBD"), "case %zu: %s", i, strbuf_text(&sb));
        free(back);
        strbuf_release(&sb);
    }
}

static int build(void *arg, struct err *err)
{
    (void)arg;
    struct strbuf sb;
    strbuf_init(&sb);
    for (int i = 0; i < 300; i++)
        strbuf_addf(&sb, "%d ", i);
    char *text = strbuf_take(&sb, NULL);
    int rc = text ? 0 : err_set(err, ERR_NO_MEMORY, "no memory");
    sys_free(text);
    return rc;
}

TEST(a_failed_allocation_shows_once_at_the_end)
{
    EXPECT(test_each_fault(SYS_FAULT_MEM, false, build, NULL) >= 4);
}
