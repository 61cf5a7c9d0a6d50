/* Regular expressions of tokenizer.json. The expected matches were made by the `tokenizers` library
 * 0.23 (Oniguruma); empty matches do not show in them. */
#include <stdio.h>

#include "libcore/base/sys.h"
#include "libcore/text/regex.h"
#include "libcore/text/unicode.h"
#include "tests/lib/test.h"

static const struct {
    const char *pattern, *text, *spans;
} rows[] = {
    {"\\p{N}{1,3}",
     "12345 x\xd9\xa3\xd9\xa4\xe0\xa5\xab"
     "1",
     "0-3 3-5 7-14 14-15"},
    {"\\p{N}{1,3}+", "1234567 8", "0-7 8-9"},
    {"a{2}?", "aaa a", "0-2"},
    {"a{1,2}?", "aaa", "0-1 1-2 2-3"},
    {"(?i:'s|'ll)", "'S 'LL '\xc5\xbf 'l", "0-2 3-6 7-10"},
    {"\\s+(?!\\S)|\\s+", "a  b \n\nc  ", "1-2 2-3 4-6 6-7 8-10"},
    {"[^\\r\\n\\p{L}\\p{N}]?\\p{L}+", " w\xc3\xb6rld \xe4\xbd\xa0\xe5\xa5\xbd,ok",
     "0-7 7-14 14-17"},
    {"\\bthe\\b", "the other the", "0-3 10-13"},
    {"^.", "ab\ncd", "0-1 3-4"},
    {".$", "ab\ncd", "1-2 4-5"},
    {"x*", "axxb", "1-3"},
    {"(?<=\\d)[a-z]", "1a b2c", "1-2 5-6"},
    {"[^\\S\\n]+",
     "a \xc2\xa0\n\x09"
     "b",
     "1-4 5-6"},
    {"(?i)[k-l]+", "KLMkl\xe2\x84\xaa", "0-2 3-8"},
    {"(?m:a.b)|z.", "a\nb z\nzz", "0-3 6-8"},
    {"\\p{Han}+|\\p{Hiragana}", "\xe6\xbc\xa2\xe5\xad\x97\xe3\x81\x8b\xe3\x81\xaa\xe6\xbc\xa2",
     "0-6 6-9 9-12 12-15"},
    {"\\P{M}\\p{M}+", "e\xcc\x81\xcc\x82x", "0-5"},
    {"\\w+",
     "\xc2\xbd\xc2\xb2"
     "a_b-c",
     "0-7 8-9"},
    {"[\\w]+",
     "\xc2\xbd\xc2\xb2"
     "a_b-c",
     "4-7 8-9"},
    {"\\x{4e00}|\\u00e9|\\x41", "A\xe4\xb8\x80\xc3\xa9", "0-1 1-4 4-6"},
    {"(?>a+)b|ha++", "aaab haaa", "0-4 5-9"},
    {"\\p{^L}+", "ab12c", "2-4"},
};

static void check_row(size_t row)
{
    struct err err = {0};
    struct regex *r = NULL;
    struct regex_scratch *s = NULL;
    struct span_list spans = {0};
    char got[256] = "";
    CHECK_OK(regex_open(&r, rows[row].pattern, strlen(rows[row].pattern), &err), err);
    CHECK_OK(regex_scratch_open(&s, &err), err);
    CHECK_OK(regex_find_all(r, s, rows[row].text, strlen(rows[row].text), &spans, &err), err);
    for (size_t i = 0; i < spans.n; i++) {
        size_t used = strlen(got);
        if (spans.items[i].start < spans.items[i].end)
            snprintf(got + used, sizeof got - used, "%s%u-%u", used ? " " : "",
                     spans.items[i].start, spans.items[i].end);
    }
    EXPECT_MSG(strcmp(got, rows[row].spans) == 0, "%s on '%s': %s, want %s", rows[row].pattern,
               rows[row].text, got, rows[row].spans);
    span_list_release(&spans);
    regex_scratch_free(s);
    regex_free(r);
}

TEST(patterns_match_what_oniguruma_matches)
{
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        check_row(i);
}

TEST(empty_matches_are_given_once_and_not_behind_another_match)
{
    struct err err = {0};
    struct regex *r = NULL;
    struct regex_scratch *s = NULL;
    struct span_list spans = {0};
    CHECK_OK(regex_open(&r, "x*", 2, &err), err);
    CHECK_OK(regex_scratch_open(&s, &err), err);
    CHECK_OK(regex_find_all(r, s, "axx\xc3\xa9", 5, &spans, &err), err);
    static const struct text_span want[] = {{0, 0}, {1, 3}, {5, 5}};
    EXPECT_INT(spans.n, 3);
    for (size_t i = 0; i < 3 && i < spans.n; i++)
        EXPECT(spans.items[i].start == want[i].start && spans.items[i].end == want[i].end);
    span_list_release(&spans);
    regex_scratch_free(s);
    regex_free(r);
}

TEST(what_is_not_certain_is_refused_by_name)
{
    static const struct {
        const char *pattern;
        int code;
        const char *says;
    } refused[] = {{"[a&&[^b]]", ERR_REFUSED, "intersection"},
                   {"[a[b]]", ERR_REFUSED, "a set in a set"},
                   {"[[:alpha:]]", ERR_REFUSED, "POSIX bracket"},
                   {"\\p{Klingon}", ERR_REFUSED, "\\p{Klingon}"},
                   {"\\pL", ERR_REFUSED, "without braces"},
                   {"(a)\\1", ERR_REFUSED, "escape \\1"},
                   {"\\R", ERR_REFUSED, "escape \\R"},
                   {"(?x:a b)", ERR_REFUSED, "group or flag"},
                   {"(?<name>a)", ERR_REFUSED, "group or flag"},
                   {"a(?i)b", ERR_REFUSED, "middle"},
                   {"a{2,1}", ERR_REFUSED, "repeat count"},
                   {"*a", ERR_REFUSED, "repeat of nothing"},
                   {"(a", ERR_CORRUPT, "')' missing"},
                   {"a)", ERR_CORRUPT, "without '('"},
                   {"[a", ERR_CORRUPT, "']' missing"},
                   {"[b-a]", ERR_CORRUPT, "empty range"},
                   {"\\x{110000}", ERR_REFUSED, "code point"},
                   {"a\\", ERR_CORRUPT, "backslash"},
                   {"\xff", ERR_CORRUPT, "UTF-8"}};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        struct err err = {0};
        struct regex *r = NULL;
        int code = regex_open(&r, refused[i].pattern, strlen(refused[i].pattern), &err);
        EXPECT_MSG(code == refused[i].code && strstr(err.msg, refused[i].says), "%s gives %d: %s",
                   refused[i].pattern, code, err.msg);
        EXPECT(r == NULL);
        regex_free(r);
    }
}

TEST(a_pattern_that_runs_away_is_stopped)
{
    struct err err = {0};
    struct regex *r = NULL;
    struct regex_scratch *s = NULL;
    struct span_list spans = {0};
    char text[64];
    memset(text, 'a', sizeof text);
    CHECK_OK(regex_open(&r, "(?:a+)+[bc]", 11, &err), err);
    CHECK_OK(regex_scratch_open(&s, &err), err);
    CHECK_CODE(regex_find_all(r, s, text, sizeof text, &spans, &err), ERR_LIMIT, err);
    span_list_release(&spans);
    regex_scratch_free(s);
    regex_free(r);
}
