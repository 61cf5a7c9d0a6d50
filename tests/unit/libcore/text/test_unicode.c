#include "libcore/base/strbuf.h"
#include "libcore/text/unicode.h"
#include "libcore/text/unicode_impl.h"
#include "tests/lib/test.h"

TEST(every_code_point_survives_utf8)
{
    for (uint32_t c = 0; c <= UNICODE_MAX; c++) {
        char b[4];
        size_t len;
        if (c >= 0xD800 && c <= 0xDFFF)
            continue;
        size_t n = utf8_encode(c, b);
        CHECK_MSG(utf8_length(b, n) == n && utf8_valid_prefix(b, n) == n &&
                      utf8_decode(b, &len) == c && len == n && utf8_length_before(b, n) == n,
                  "U+%04X", c);
    }
}

/* One U+FFFD for each maximal ill-formed part, as Python's and Rust's decoders do it. */
TEST(ill_formed_bytes_become_replacement_characters)
{
    static const struct {
        const char *bytes, *want;
    } rows[] = {{"a\xff"
                 "b",
                 "a?b"},
                {"\xc3", "?"},
                {"\xc0\xaf", "??"},
                {"\xe0\x80\x80", "???"},
                {"\xed\xa0\x80", "???"},
                {"\xf0\x9f\xa6", "?"},
                {"\xf0\x9f"
                 "A",
                 "?A"},
                {"\xf4\x90\x80\x80", "????"},
                {"\xe4\xbd\xe4\xbd\xa0", "?你"},
                {"\x80\x80", "??"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct strbuf got, want;
        strbuf_init(&got);
        strbuf_init(&want);
        utf8_add_lossy(&got, rows[i].bytes, strlen(rows[i].bytes));
        for (const char *p = rows[i].want; *p; p++) {
            if (*p == '?')
                strbuf_adds(&want, "\xEF\xBF\xBD");
            else
                strbuf_addc(&want, *p);
        }
        EXPECT_STR(strbuf_text(&got), strbuf_text(&want));
        strbuf_release(&got);
        strbuf_release(&want);
    }
}

static size_t count(const char *property)
{
    struct cp_set s;
    size_t n = 0;
    cp_set_init(&s);
    if (!cp_set_add_property(&s, property, strlen(property)))
        return 0;
    for (size_t i = 0; i < s.n; i++)
        n += s.ranges[i].last - s.ranges[i].first + 1;
    cp_set_release(&s);
    return n;
}

/* What Oniguruma in the `tokenizers` library 0.23 counts (Unicode 16). */
TEST(properties_are_those_of_unicode_16)
{
    EXPECT_INT(count("L"), 141028);
    EXPECT_INT(count("N"), 1911);
    EXPECT_INT(count("P"), 855);
    EXPECT_INT(count("S"), 8514);
    EXPECT_INT(count("M"), 2501);
    EXPECT_INT(count("Z"), 19);
    EXPECT_INT(count("C"), 957236);
    EXPECT_INT(count("Uppercase_Letter"), 1858);
    EXPECT_INT(count("ll"), 2258);
    EXPECT_INT(count("Any"), 1112064);
    EXPECT_INT(count("Han"), 99030);
    EXPECT_INT(count("Hiragana"), 381);
    EXPECT_INT(count("Common"), 9053);
    EXPECT_INT(count("\\s"), 25);
    EXPECT_INT(count("\\d"), 760);
    EXPECT_INT(count("\\w"), 144665);
    EXPECT_INT(count("\\h"), 22);
    EXPECT_INT(count("Klingon"), 0);
}

TEST(sets_are_joined_and_complemented)
{
    struct cp_set s;
    cp_set_init(&s);
    cp_set_add(&s, 'x', 'z');
    cp_set_add(&s, 'a', 'c');
    cp_set_add(&s, 'c', 'f');
    cp_set_add(&s, 'g', 'g');
    cp_set_normalize(&s);
    EXPECT_INT(s.n, 2);
    EXPECT(cp_set_has(&s, 'g') && !cp_set_has(&s, 'h') && cp_set_has(&s, 'x'));
    cp_set_complement(&s);
    EXPECT(!cp_set_has(&s, 'g') && cp_set_has(&s, 'h') && cp_set_has(&s, UNICODE_MAX) &&
           cp_set_has(&s, 0) && !cp_set_has(&s, 0xD800));
    cp_set_complement(&s);
    EXPECT_INT(s.n, 2);
    cp_set_release(&s);
}

TEST(case_closes_over_all_that_folds_alike)
{
    static const char *const classes[] = {"sSſ", "kKK", "σςΣ", "åÅÅ", "ǆǅǄ", "ßẞ", "µμΜ"};
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++) {
        for (size_t at = 0, len; classes[i][at]; at += len) {
            struct cp_set s;
            cp_set_init(&s);
            uint32_t c = utf8_decode(classes[i] + at, &len);
            cp_set_add(&s, c, c);
            cp_set_close_case(&s);
            size_t n = 0;
            for (size_t k = 0; k < s.n; k++)
                n += s.ranges[k].last - s.ranges[k].first + 1;
            for (size_t k = 0, step; classes[i][k]; k += step, n--)
                EXPECT_MSG(cp_set_has(&s, utf8_decode(classes[i] + k, &step)), "%s from U+%04X",
                           classes[i], c);
            EXPECT_INT(n, 0);
            cp_set_release(&s);
        }
    }
}

TEST(characters_are_what_the_library_takes_them_for)
{
    EXPECT(unicode_is_space(0x3000) && unicode_is_space(0x85) && !unicode_is_space(0x200B) &&
           !unicode_is_space(0x180E));
    EXPECT(unicode_is_numeric(0xBD) && unicode_is_numeric(0x11DE0) && !unicode_is_numeric('a'));
    EXPECT(unicode_is_punctuation('$') && unicode_is_punctuation(0x3001) &&
           !unicode_is_punctuation(0x2E52) && !unicode_is_punctuation(0x20AC));
    EXPECT(unicode_is_word(0x200D) && unicode_is_word(0x24B6) && unicode_is_word('_') &&
           !unicode_is_word(0xBD));
    EXPECT(unicode_is_mark(0x301) && !unicode_is_mark(0x898));
    EXPECT(unicode_is_late_form(0x898) && !unicode_is_late_form(0x301));
}
