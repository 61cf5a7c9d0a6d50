/* Normalizers. The expected texts were made by the `tokenizers` library 0.23. */
#include <jansson.h>

#include "libcore/text/normalize.h"
#include "tests/lib/test.h"

static const struct {
    const char *json, *text, *want;
} rows[] = {
    {"{\"type\": \"NFC\"}",
     "e\xcc\x81 A\xcc\x8a \xe1\x84\x80\xe1\x85\xa1 \xe0\xa5\x98 \xe2\x84\xab",
     "\xc3\xa9 \xc3\x85 \xea\xb0\x80 \xe0\xa4\x95\xe0\xa4\xbc \xc3\x85"},
    {"{\"type\": \"NFD\"}", "\xc3\xa9\xea\xb0\x81",
     "e\xcc\x81\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8"},
    {"{\"type\": \"NFKC\"}", "\xef\xac\x81\xe2\x91\xa0\xe3\x8c\x80\xef\xbd\xb6\xef\xbe\x9e\xc2\xbd",
     "fi1\xe3\x82\xa2\xe3\x83\x91\xe3\x83\xbc\xe3\x83\x88\xe3\x82\xac"
     "1\xe2\x81\x84"
     "2"},
    {"{\"type\": \"NFKD\"}", "\xef\xac\x81\xc3\xa9", "fie\xcc\x81"},
    {"{\"type\": \"NFC\"}", "a\xe0\xa2\x98\xcc\xa3\xcc\x81", "a\xe0\xa2\x98\xcc\xa3\xcc\x81"},
    {"{\"type\": \"Lowercase\"}", "\xc3\x80\xce\x91\xce\xa3\xc4\xb0\xe1\xba\x9e\xc7\x85X",
     "\xc3\xa0\xce\xb1\xcf\x83i\xcc\x87\xc3\x9f\xc7\x86x"},
    {"{\"type\": \"Strip\", \"strip_left\": true, \"strip_right\": true}",
     "\xe3\x80\x80 a b\n\xc2\x85", "a b"},
    {"{\"type\": \"Strip\", \"strip_left\": false, \"strip_right\": true}", " a ", " a"},
    {"{\"type\": \"StripAccents\"}", "e\xcc\x81\xcc\x82x", "ex"},
    {"{\"type\": \"Nmt\"}",
     "a\x01\x09"
     "b\xe2\x80\x8b"
     "c\xef\xbb\xbf",
     "a b c "},
    {"{\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": \"\xe2\x96\x81\"}",
     " a  b",
     "\xe2\x96\x81"
     "a\xe2\x96\x81\xe2\x96\x81"
     "b"},
    {"{\"type\": \"Replace\", \"pattern\": {\"Regex\": \"\\\\d+\"}, \"content\": \"#\"}", "a12b3",
     "a#b#"},
    {"{\"type\": \"Prepend\", \"prepend\": \"\xe2\x96\x81\"}", "a",
     "\xe2\x96\x81"
     "a"},
    {"{\"type\": \"Prepend\", \"prepend\": \"\xe2\x96\x81\"}", "", ""},
    {"{\"type\": \"ByteLevel\"}", " \xc3\xa9\n", "\xc4\xa0\xc3\x83\xc2\xa9\xc4\x8a"},
    {"{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Prepend\", \"prepend\": \"_\"}, "
     "{\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": \"_\"}]}",
     "a b", "_a_b"},
};

static void run(const char *json, const char *text, bool *head, const char *want)
{
    struct err err = {0};
    struct normalizer z = {0};
    struct normalize_scratch s = {0};
    const char *out = "";
    size_t n = 0;
    json_t *value = json_loads(json, 0, NULL);
    CHECK(value);
    CHECK_OK(regex_scratch_open(&s.regex, &err), err);
    CHECK_OK(normalizer_add(&z, value, &err), err);
    CHECK_OK(normalizer_run(&z, &s, text, strlen(text), head, &out, &n, &err), err);
    EXPECT_MSG(n == strlen(want) && memcmp(out, want, n) == 0, "%s on '%s': '%.*s', want '%s'",
               json, text, (int)n, out, want);
    regex_scratch_free(s.regex);
    normalize_scratch_release(&s);
    normalizer_release(&z);
    json_decref(value);
}

TEST(normalizers_give_the_texts_of_the_library)
{
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        bool head = true;
        run(rows[i].json, rows[i].text, &head, rows[i].want);
    }
}

/* Half a million marks in the wrong order: a quadratic sort would take hours. */
TEST(a_long_run_of_marks_is_ordered_in_no_time)
{
    enum { N = 250000 };
    struct strbuf text, want;
    strbuf_init(&text);
    strbuf_init(&want);
    strbuf_addc(&text, 'x');
    strbuf_addc(&want, 'x');
    for (int i = 0; i < N; i++)
        strbuf_adds(&text, "\xcc\x81\xcc\xa3");
    for (int i = 0; i < 2 * N; i++)
        strbuf_adds(&want, i < N ? "\xcc\xa3" : "\xcc\x81");
    bool head = true;
    run("{\"type\": \"NFD\"}", strbuf_text(&text), &head, strbuf_text(&want));
    strbuf_release(&text);
    strbuf_release(&want);
}

TEST(the_head_is_lost_when_its_characters_go)
{
    bool head = true;
    run("{\"type\": \"Strip\", \"strip_left\": true, \"strip_right\": false}", " a", &head, "a");
    EXPECT(!head);
    head = true;
    run("{\"type\": \"Prepend\", \"prepend\": \"_\"}", "a", &head, "_a");
    EXPECT(head);
}

TEST(unknown_normalizers_are_refused_by_name)
{
    static const struct {
        const char *json, *says;
    } refused[] = {
        {"{\"type\": \"BertNormalizer\"}", "'BertNormalizer'"},
        {"{\"type\": \"Precompiled\"}", "'Precompiled'"},
        {"{}", "without a type"},
        {"{\"type\": \"Strip\"}", "strip_left"},
        {"{\"type\": \"Sequence\"}", "normalizers"},
        {"{\"type\": \"Replace\", \"content\": \"\", \"pattern\": {\"String\": \"\"}}",
         "empty pattern"},
        {"{\"type\": \"Replace\", \"content\": \"\", \"pattern\": {\"Regex\": \"[[a]]\"}}",
         "a set in a set"}};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        struct err err = {0};
        struct normalizer z = {0};
        json_t *value = json_loads(refused[i].json, 0, NULL);
        int rc = normalizer_add(&z, value, &err);
        EXPECT_MSG((rc == ERR_REFUSED || rc == ERR_CORRUPT) && strstr(err.msg, refused[i].says),
                   "%s gives %d: %s", refused[i].json, rc, err.msg);
        normalizer_release(&z);
        json_decref(value);
    }
}
