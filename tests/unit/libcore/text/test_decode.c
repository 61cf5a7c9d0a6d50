/* Decoders. The expected texts were made by the `tokenizers` library 0.23; tokens have | between
 * them. */
#include <jansson.h>

#include "libcore/text/decode.h"
#include "tests/lib/test.h"

static const struct {
    const char *json, *tokens, *want;
} rows[] = {
    {"null", "a|b", "a b"},
    {"{\"type\": \"Fuse\"}", "a|b", "ab"},
    {"{\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"trim_offsets\": true, \"use_regex\": "
     "true}",
     "\xc4\xa0"
     "a|\xc3\xb0|\xc5\x81|\xc2\xa6|\xc4\xbb|<s> x|\xc3\x83",
     " a\xf0\x9f\xa6\x99<s> x\xef\xbf\xbd"},
    {"{\"type\": \"ByteFallback\"}", "a|<0xE4>|<0xBD>|<0xA0>|b|<0xE4>|<0xE4>|<0xzz>",
     "a\xe4\xbd\xa0"
     "b\xef\xbf\xbd\xef\xbf\xbd<0xzz>"},
    {"{\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Replace\", \"pattern\": {\"String\": "
     "\"\xe2\x96\x81\"}, \"content\": \" \"}, {\"type\": \"ByteFallback\"}, {\"type\": \"Fuse\"}, "
     "{\"type\": \"Strip\", \"content\": \" \", \"start\": 1, \"stop\": 0}]}",
     "\xe2\x96\x81\xe2\x96\x81"
     "a|<0xF0>|<0x9F>|\xe2\x96\x81"
     "b|<0x0A>",
     " a\xef\xbf\xbd\xef\xbf\xbd b\n"},
    {"{\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Fuse\"}, {\"type\": \"Strip\", "
     "\"content\": \"x\", \"start\": 2, \"stop\": 2}]}",
     "x|xxa|x|bx|xx", "xaxbx"},
    {"{\"type\": \"Strip\", \"content\": \"x\", \"start\": 1, \"stop\": 1}", "xxax|b|xxx", "xabx"},
    {"{\"type\": \"Metaspace\", \"replacement\": \"\xe2\x96\x81\", \"add_prefix_space\": true}",
     "\xe2\x96\x81"
     "a\xe2\x96\x81|\xe2\x96\x81"
     "b",
     "a b"},
    {"{\"type\": \"Metaspace\", \"replacement\": \"\xe2\x96\x81\", \"prepend_scheme\": \"never\"}",
     "\xe2\x96\x81"
     "a|\xe2\x96\x81"
     "b",
     " a b"},
    {"{\"type\": \"BPEDecoder\", \"suffix\": \"</w>\"}", "a|b</w>|c</w>", "ab c"},
    {"{\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Fuse\"}, {\"type\": \"Replace\", "
     "\"pattern\": {\"Regex\": \"ab\"}, \"content\": \"#\"}]}",
     "a|ba|b", "##"},
};

/* Feeds the tokens; what is certain after each is noted with a / behind it. */
static void decode(const char *json, const char *tokens, struct strbuf *out, struct strbuf *steps)
{
    struct err err = {0};
    struct decoder d = {0};
    struct decode_run *r = NULL;
    json_t *value = json_loads(json, JSON_DECODE_ANY, NULL);
    CHECK(value);
    CHECK_OK(decoder_add(&d, value, &err), err);
    CHECK_OK(decode_run_open(&r, &d, &err), err);
    for (const char *end; *tokens; tokens = *end ? end + 1 : end) {
        end = tokens + strcspn(tokens, "|");
        size_t before = out->len;
        CHECK_OK(decode_run_push(r, tokens, (size_t)(end - tokens), out, &err), err);
        strbuf_add(steps, strbuf_text(out) + before, out->len - before);
        strbuf_addc(steps, '/');
    }
    CHECK_OK(decode_run_finish(r, out, &err), err);
    decode_run_free(r);
    decoder_release(&d);
    json_decref(value);
}

TEST(decoders_give_the_texts_of_the_library)
{
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct strbuf out, steps;
        strbuf_init(&out);
        strbuf_init(&steps);
        decode(rows[i].json, rows[i].tokens, &out, &steps);
        EXPECT_MSG(strcmp(strbuf_text(&out), rows[i].want) == 0, "%s on %s: '%s', want '%s'",
                   rows[i].json, rows[i].tokens, strbuf_text(&out), rows[i].want);
        strbuf_release(&out);
        strbuf_release(&steps);
    }
}

static void check_steps(const char *json, const char *tokens, const char *want)
{
    struct strbuf out, steps;
    strbuf_init(&out);
    strbuf_init(&steps);
    decode(json, tokens, &out, &steps);
    EXPECT_STR(strbuf_text(&steps), want);
    strbuf_release(&out);
    strbuf_release(&steps);
}

TEST(text_comes_as_soon_as_it_can_no_longer_change)
{
    check_steps("{\"type\": \"ByteLevel\"}", "a|\xc3\xb0|\xc5\x81|\xc2\xa6|\xc4\xbb|b",
                "a////\xf0\x9f\xa6\x99/b/");
    check_steps("{\"type\": \"ByteFallback\"}", "a|<0xC3>|<0xA9>|b",
                "a///\xc3\xa9"
                "b/");
    check_steps(
        "{\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Fuse\"}, {\"type\": \"Strip\", "
        "\"content\": \"x\", \"start\": 1, \"stop\": 1}]}",
        "x|xa|x|b|x", "/xa//xb//");
    check_steps("{\"type\": \"BPEDecoder\", \"suffix\": \"</w>\"}", "a</w>|b|c</w>", "/a /b/");
    check_steps("null", "a|b", "a/ b/");
}

TEST(an_ill_formed_part_is_given_out_once_it_is_certain)
{
    // F0 9F then 41: the two bytes can no longer become a character
    check_steps("{\"type\": \"ByteLevel\"}", "\xc3\xb0\xc5\x81|A",
                "/\xef\xbf\xbd"
                "A/");
}

TEST(unknown_decoders_are_refused_by_name)
{
    static const char *const types[] = {"WordPiece", "CTC", "Other"};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        struct err err = {0};
        struct decoder d = {0};
        json_t *value = json_pack("{s:s}", "type", types[i]);
        CHECK_CODE(decoder_add(&d, value, &err), ERR_REFUSED, err);
        EXPECT(strstr(err.msg, types[i]) != NULL);
        decoder_release(&d);
        json_decref(value);
    }
}
