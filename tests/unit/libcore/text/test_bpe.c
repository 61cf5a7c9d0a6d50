/* The model: merges, unknown characters, byte fallback, prefix and suffix. */
#include <stdlib.h>

#include "libcore/text/bpe.h"
#include "tests/unit/libcore/text/tokenizer_fixture.h"

#define VOCAB                                                                                      \
    "\"vocab\": {\"a\": 0, \"b\": 1, \"c\": 2, \"ab\": 3, \"bc\": 4, \"abc\": 5, \"<unk>\": 6, "   \
    "\"aa\": 7, "                                                                                  \
    "\"aaaa\": 8}"
#define MODEL(fields, merges)                                                                      \
    "{\"model\": {\"type\": \"BPE\", " fields VOCAB ", \"merges\": " merges "}}"

TEST(the_lowest_rank_goes_first_the_leftmost_of_equals)
{
    EXPECT_STR(encode_by(MODEL("", "[\"b c\", \"a b\", \"a bc\"]"), NULL, "abc", 0), "5");
    EXPECT_STR(encode_by(MODEL("", "[\"a b\", \"b c\"]"), NULL, "abc", 0), "3 2");
    EXPECT_STR(encode_by(MODEL("", "[\"a a\", \"aa aa\"]"), NULL, "aaaaaaa", 0), "8 7 0");
    EXPECT_STR(encode_by(MODEL("", "[\"a a\"]"), NULL, "aaa", 0), "7 0");
}

TEST(merges_may_be_pairs_or_strings)
{
    EXPECT_STR(encode_by(MODEL("", "[[\"a\", \"b\"], [\"ab\", \"c\"]]"), NULL, "abc", 0), "5");
    EXPECT_STR(encode_by(MODEL("", "[\"#version: 0.2\", \"a b\", \"ab c\"]"), NULL, "abc", 0), "5");
    // a pair that is listed twice: the later one counts
    EXPECT_STR(encode_by(MODEL("", "[\"a b\", \"b c\", \"a b\"]"), NULL, "abc", 0), "0 4");
}

TEST(members_may_come_in_any_order)
{
    EXPECT_STR(
        encode_by("{\"model\": {\"merges\": [\"a b\"], \"vocab\": {\"b\": 1, \"ab\": 2, \"a\": 0}, "
                  "\"type\": \"BPE\"}, \"version\": \"1.0\"}",
                  NULL, "aab", 0),
        "0 2");
}

TEST(ignore_merges_takes_whole_words)
{
    EXPECT_STR(encode_by(MODEL("", "[]"), NULL, "abc", 0), "0 1 2");
    EXPECT_STR(encode_by(MODEL("\"ignore_merges\": true, ", "[]"), NULL, "abc", 0), "5");
}

TEST(unknown_characters_are_dropped_marked_or_fused)
{
    EXPECT_STR(encode_by(MODEL("", "[\"a b\"]"), NULL, "axyb", 0), "3");
    EXPECT_STR(encode_by(MODEL("\"unk_token\": \"<unk>\", ", "[]"), NULL, "axyb", 0), "0 6 6 1");
    EXPECT_STR(
        encode_by(MODEL("\"unk_token\": \"<unk>\", \"fuse_unk\": true, ", "[]"), NULL, "axyb", 0),
        "0 6 1");
    EXPECT_STR(encode_by(MODEL("\"unk_token\": \"<no>\", ", "[]"), NULL, "ab", 0), "0 1");
    EXPECT(strstr(encode_by(MODEL("\"unk_token\": \"<no>\", ", "[]"), NULL, "axb", 0),
                  "lacks its unknown token '<no>'") != NULL);
}

TEST(bytes_stand_for_what_the_vocabulary_lacks)
{
    static const char json[] = "{\"model\": {\"type\": \"BPE\", \"byte_fallback\": true, "
                               "\"unk_token\": \"u\", \"vocab\": {\"a\": 0, "
                               "\"<0xC3>\": 1, \"<0xA9>\": 2, \"u\": 3}, \"merges\": []}}";
    EXPECT_STR(encode_by(json, NULL, "a\xc3\xa9", 0), "0 1 2");
    EXPECT_STR(encode_by(json, NULL, "a\xc3\xa8", 0), "0 3"); // <0xA8> is not there: unknown
    // what is pending stays pending over bytes, as in the library
    EXPECT_STR(encode_by(json, NULL,
                         "x\xc3\xa9"
                         "a",
                         0),
               "1 2 3 0");
}

TEST(prefix_and_suffix_belong_to_the_tokens)
{
    static const char json[] =
        "{\"model\": {\"type\": \"BPE\", \"continuing_subword_prefix\": \"##\", "
        "\"end_of_word_suffix\": "
        "\"</w>\", \"vocab\": {\"a\": 0, \"##b\": 1, \"##b</w>\": 2, \"ab</w>\": 3, \"a</w>\": 4}, "
        "\"merges\": [\"a ##b</w>\"]}}";
    EXPECT_STR(encode_by(json, NULL, "ab", 0), "3");
    EXPECT_STR(encode_by(json, NULL, "abb", 0), "0 1 2");
    EXPECT_STR(encode_by(json, NULL, "a", 0), "4");
}

TEST(bytes_and_their_characters_are_each_others_inverse)
{
    bool seen[0x200] = {false};
    for (unsigned b = 0; b < 256; b++) {
        uint32_t c = byte_level_char((unsigned char)b);
        CHECK(c < 0x200 && !seen[c]);
        seen[c] = true;
        EXPECT_INT(byte_level_byte(c), b);
    }
    EXPECT_INT(byte_level_char(' '), 0x120);
    EXPECT_INT(byte_level_char('\n'), 0x10A);
    EXPECT_INT(byte_level_byte(0x144), -1);
    EXPECT_INT(byte_level_byte(' '), -1);
    EXPECT_INT(byte_level_byte(0xAD), -1);
}

/* Quadratic time would take hours here. */
TEST(a_megabyte_of_one_letter_takes_no_time)
{
    struct err err = {0};
    struct tokenizer *t = NULL;
    struct token_ids ids;
    size_t n = 1 << 20;
    char *text = malloc(n);
    memset(text, 'a', n);
    token_ids_init(&ids);
    CHECK_OK(
        tokenizer_open(&t, write_tokenizer(MODEL("", "[\"a a\", \"aa aa\"]"), NULL), NULL, &err),
        err);
    CHECK_OK(tokenizer_encode(t, text, n, 0, &ids, &err), err);
    EXPECT_INT(ids.n, n / 4);
    EXPECT(ids.data[0] == 8 && ids.data[ids.n - 1] == 8);
    token_ids_release(&ids);
    tokenizer_free(t);
    free(text);
}

/* A long text is cut where no merge can reach over; the ids must be those of the uncut text. */
TEST(cutting_a_long_text_changes_no_id)
{
    static const char vocab[] =
        "\"_\": 256, \"a\": 257, \"b\": 258, \"_a\": 259, \"ab\": 260, \"_ab\": 261, "
        "\"b_\": 262, \"__\": 263";
    struct strbuf with, without, text;
    strbuf_init(&with);
    strbuf_init(&without);
    strbuf_init(&text);
    strbuf_adds(&with, "{\"model\": {\"type\": \"BPE\", \"byte_fallback\": true, \"vocab\": {");
    for (unsigned i = 0; i < 256; i++)
        strbuf_addf(&with, "\"<0x%02X>\": %u, ", i, i);
    strbuf_addf(&with, "%s}, \"merges\": [\"a b\", \"_ a\", \"_ ab\", \"_ _\"%%s]}}", vocab);
    // one byte token missing: no cutting, and the same ids for texts that do not need it
    strbuf_adds(&without, strbuf_text(&with));
    char *gone = strstr(without.data, "<0xFF>");
    CHECK(gone);
    memcpy(gone, "[gone]", 6);
    for (unsigned seed = 1, i = 0; i < 3000; i++) {
        seed = seed * 1103515245u + 12345u;
        strbuf_adds(&text, (const char *const[]){"a", "b", "_", "ab", "__", "\xc3\xa9", "_ab",
                                                 "b_"}[seed >> 16 & 7]);
    }
    static const char *const more[] = {"", ", \"b _\""};
    for (size_t i = 0; i < 2; i++) {
        char json[8192], other[8192], want[4096];
        snprintf(json, sizeof json, strbuf_text(&with), more[i]);
        snprintf(other, sizeof other, strbuf_text(&without), more[i]);
        snprintf(want, sizeof want, "%s", encode_by(other, NULL, strbuf_text(&text), 0));
        EXPECT_STR(encode_by(json, NULL, strbuf_text(&text), 0), want);
        EXPECT(strlen(want) > 3000);
    }
    strbuf_release(&with);
    strbuf_release(&without);
    strbuf_release(&text);
}

TEST(broken_models_are_corrupt)
{
    static const struct {
        const char *json, *says;
    } rows[] = {
        {MODEL("", "[\"a x\"]"), "needs the token 'x'"},
        {MODEL("", "[\"b a\"]"), "needs the token 'ba'"},
        {MODEL("", "[\"ab\"]"), "one space"},
        {MODEL("", "[\"a b c\"]"), "one space"},
        {MODEL("", "[[\"a\"]]"), "two tokens"},
        {MODEL("", "[[\"a\", \"b\", \"c\"]]"), "two tokens"},
        {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"a\": 1}, \"merges\": []}}",
         "'a' twice"},
        {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 0}, \"merges\": []}}",
         "of id 0"},
        {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0.5}, \"merges\": []}}", "integer"},
        {"{\"model\": {\"type\": \"BPE\"}}", "no vocab"},
        {"{\"version\": \"1.0\"}", "no model"},
        {"[]", "object is wanted"},
        {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0}, \"merges\": []}} x",
         "follows the end"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *got = encode_by(rows[i].json, NULL, "", 0);
        EXPECT_MSG(strncmp(got, "corrupt: ", 9) == 0 && strstr(got, rows[i].says), "%s gives %s",
                   rows[i].json, got);
    }
}
