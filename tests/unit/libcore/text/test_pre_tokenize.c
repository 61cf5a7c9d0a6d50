/* Pre-tokenizers. The expected pieces, with | between them, were made by the `tokenizers` library
 * 0.23. */
#include <jansson.h>

#include "libcore/base/strbuf.h"
#include "libcore/text/pre_tokenize.h"
#include "tests/lib/test.h"

static const struct {
    const char *json, *text, *want;
} rows[] = {
    {"{\"type\": \"Split\", \"pattern\": {\"String\": \"-\"}, \"behavior\": \"Removed\", "
     "\"invert\": false}",
     "the-final--countdown-", "the|final|countdown"},
    {"{\"type\": \"Split\", \"pattern\": {\"String\": \"-\"}, \"behavior\": \"Isolated\", "
     "\"invert\": false}",
     "the-final--countdown-", "the|-|final|-|-|countdown|-"},
    {"{\"type\": \"Split\", \"pattern\": {\"String\": \"-\"}, \"behavior\": "
     "\"MergedWithPrevious\", \"invert\": false}",
     "the-final--countdown-", "the-|final-|-|countdown-"},
    {"{\"type\": \"Split\", \"pattern\": {\"String\": \"-\"}, \"behavior\": \"MergedWithNext\", "
     "\"invert\": false}",
     "the-final--countdown-", "the|-final|-|-countdown|-"},
    {"{\"type\": \"Split\", \"pattern\": {\"String\": \"-\"}, \"behavior\": \"Contiguous\", "
     "\"invert\": false}",
     "the-final--countdown-", "the|-|final|--|countdown|-"},
    {"{\"type\": \"Split\", \"pattern\": {\"Regex\": \"\\\\w+\"}, \"behavior\": \"Removed\", "
     "\"invert\": true}",
     "Hey, man!", "Hey|man"},
    {"{\"type\": \"Split\", \"pattern\": {\"Regex\": \"\\\\w\"}, \"behavior\": \"Contiguous\", "
     "\"invert\": true}",
     "ab, c", "ab|, |c"},
    {"{\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"trim_offsets\": true, \"use_regex\": "
     "true}",
     "it's \xc3\xa9 12",
     "\xc4\xa0it|'s|\xc4\xa0\xc3\x83\xc2\xa9|\xc4\xa0"
     "12"},
    {"{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, "
     "\"use_regex\": false}",
     "a b\n",
     "a\xc4\xa0"
     "b\xc4\x8a"},
    {"{\"type\": \"Metaspace\", \"replacement\": \"\xe2\x96\x81\", \"add_prefix_space\": true}",
     " Hey  you", "\xe2\x96\x81Hey|\xe2\x96\x81|\xe2\x96\x81you"},
    {"{\"type\": \"Metaspace\", \"replacement\": \"\xe2\x96\x81\", \"prepend_scheme\": \"first\", "
     "\"split\": true}",
     "Hey you", "\xe2\x96\x81Hey|\xe2\x96\x81you"},
    {"{\"type\": \"Metaspace\", \"replacement\": \"\xe2\x96\x81\", \"prepend_scheme\": \"never\", "
     "\"split\": false}",
     "Hey you", "Hey\xe2\x96\x81you"},
    {"{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"WhitespaceSplit\"}, {\"type\": "
     "\"Metaspace\", \"replacement\": \"\xe2\x96\x81\", \"prepend_scheme\": \"first\"}]}",
     "a b",
     "\xe2\x96\x81"
     "a|b"},
    {"{\"type\": \"Digits\", \"individual_digits\": true}",
     "a12\xc2\xb2"
     "b",
     "a|1|2|\xc2\xb2|b"},
    {"{\"type\": \"Digits\", \"individual_digits\": false}", "a12 3b", "a|12| |3|b"},
    {"{\"type\": \"Whitespace\"}", "Hey, you_2 don't", "Hey|,|you_2|don|'|t"},
    {"{\"type\": \"WhitespaceSplit\"}",
     " a\xe3\x80\x80"
     "b,c ",
     "a|b,c"},
    {"{\"type\": \"Punctuation\"}", "a.b!!c", "a|.|b|!|!|c"},
    {"{\"type\": \"Punctuation\", \"behavior\": \"Contiguous\"}", "a.b!!c", "a|.|b|!!|c"},
    {"{\"type\": \"BertPreTokenizer\"}", "Hey, a  b!", "Hey|,|a|b|!"},
    {"{\"type\": \"CharDelimiterSplit\", \"delimiter\": \"\xc3\xa9\"}",
     "a\xc3\xa9"
     "b\xc3\xa9\xc3\xa9",
     "a|b"},
    {"{\"type\": \"FixedLength\", \"length\": 2}",
     "a\xc3\xa9"
     "bcd",
     "a\xc3\xa9|bc|d"},
};

static void check_row(size_t row)
{
    struct err err = {0};
    struct pre_tokenizer p = {0};
    struct pre_scratch s = {0};
    struct piece_list all = {0};
    const struct piece_list *pieces = &all;
    const char *text = rows[row].text;
    struct strbuf got;
    strbuf_init(&got);
    json_t *value = json_loads(rows[row].json, 0, NULL);
    CHECK(value);
    CHECK_OK(regex_scratch_open(&s.regex, &err), err);
    CHECK_OK(pre_tokenizer_add(&p, value, &err), err);
    struct piece whole = {.len = (uint32_t)strlen(text), .id = VOCAB_NONE, .head = true};
    CHECK_OK(piece_list_add(&all, whole, &err), err);
    CHECK_OK(pre_tokenizer_run(&p, &s, &text, &pieces, &err), err);
    for (size_t i = 0; i < pieces->n; i++) {
        strbuf_adds(&got, i ? "|" : "");
        strbuf_add(&got, text + pieces->items[i].start, pieces->items[i].len);
    }
    EXPECT_MSG(strcmp(strbuf_text(&got), rows[row].want) == 0, "%s on '%s': %s, want %s",
               rows[row].json, rows[row].text, strbuf_text(&got), rows[row].want);
    strbuf_release(&got);
    piece_list_release(&all);
    regex_scratch_free(s.regex);
    pre_scratch_release(&s);
    pre_tokenizer_release(&p);
    json_decref(value);
}

TEST(pre_tokenizers_cut_as_the_library_does)
{
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        check_row(i);
}

TEST(tokens_among_the_pieces_stay_where_they_are)
{
    struct err err = {0};
    struct pre_tokenizer p = {0};
    struct pre_scratch s = {0};
    struct piece_list all = {0};
    const struct piece_list *pieces = &all;
    const char *text = "a b";
    json_t *value = json_loads("{\"type\": \"Metaspace\", \"replacement\": \"_\"}", 0, NULL);
    CHECK_OK(pre_tokenizer_add(&p, value, &err), err);
    CHECK_OK(piece_list_add(&all, (struct piece){.len = 1, .id = VOCAB_NONE, .head = true}, &err),
             err);
    CHECK_OK(piece_list_add(&all, (struct piece){.id = 7}, &err), err);
    CHECK_OK(piece_list_add(&all, (struct piece){.start = 1, .len = 2, .id = VOCAB_NONE}, &err),
             err);
    CHECK_OK(pre_tokenizer_run(&p, &s, &text, &pieces, &err), err);
    CHECK_INT(pieces->n, 3);
    EXPECT_INT(pieces->items[1].id, 7);
    EXPECT(memcmp(text + pieces->items[2].start, "_b", 2) == 0);
    piece_list_release(&all);
    pre_scratch_release(&s);
    pre_tokenizer_release(&p);
    json_decref(value);
}

TEST(unknown_pre_tokenizers_are_refused_by_name)
{
    static const struct {
        const char *json, *says;
    } refused[] = {
        {"{\"type\": \"UnicodeScripts\"}", "'UnicodeScripts'"},
        {"{}", "without a type"},
        {"{\"type\": \"Split\", \"pattern\": {\"String\": \"a\"}, \"invert\": false, "
         "\"behavior\": \"Shuffled\"}",
         "'Shuffled'"},
        {"{\"type\": \"Metaspace\", \"replacement\": \"ab\"}", "one character"},
        {"{\"type\": \"Metaspace\", \"replacement\": \"a\", \"add_prefix_space\": false}",
         "prepend_scheme"},
        {"{\"type\": \"FixedLength\", \"length\": 0}", "length 0"},
        {"{\"type\": \"ByteLevel\"}", "add_prefix_space"}};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        struct err err = {0};
        struct pre_tokenizer p = {0};
        json_t *value = json_loads(refused[i].json, 0, NULL);
        int rc = pre_tokenizer_add(&p, value, &err);
        EXPECT_MSG((rc == ERR_REFUSED || rc == ERR_CORRUPT) && strstr(err.msg, refused[i].says),
                   "%s gives %d: %s", refused[i].json, rc, err.msg);
        pre_tokenizer_release(&p);
        json_decref(value);
    }
}
