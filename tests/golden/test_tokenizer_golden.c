/* Ids and texts of five published tokenizers against the `tokenizers` library (made by
 * ../shared/fixtures/make_tokenizer_golden.py): 400 texts each, with and without special tokens,
 * decoded at once and as a stream, without a cache and from it. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/text/tokenizer.h"
#include "tests/lib/test.h"

/* Runs a shell command; true when it succeeded. */
static bool shell(const char *fmt, const char *a, const char *b)
{
    char line[4096];
    snprintf(line, sizeof line, fmt, a, b);
    return system(line) == 0;
}

static json_t *expected(void)
{
    char out[1024];
    snprintf(out, sizeof out, "%s/expected.json", test_tmp());
    if (!file_exists(out) &&
        !shell("gzip -dc '%s/tokenizers-expected.json.gz' > '%s'", test_fixtures(), out))
        return NULL;
    return json_load_file(out, JSON_ALLOW_NUL, NULL);
}

static bool unpack(void)
{
    char done[1024];
    snprintf(done, sizeof done, "%s/tok", test_tmp());
    return file_exists(done) ||
           shell("tar -C '%s' -xJf '%s/tokenizers.tar.xz'", test_tmp(), test_fixtures());
}

static bool same_ids(const struct token_ids *ids, const json_t *want)
{
    bool same = ids->n == json_array_size(want);
    for (size_t i = 0; same && i < ids->n; i++)
        same = (json_int_t)ids->data[i] == json_integer_value(json_array_get(want, i));
    return same;
}

static bool same_text(const struct strbuf *text, const json_t *want)
{
    return text->len == json_string_length(want) &&
           memcmp(strbuf_text(text), json_string_value(want), text->len) == 0;
}

static void check_row(const struct tokenizer *t, const char *name, size_t i, const json_t *text,
                      const json_t *row)
{
    struct err err = {0};
    struct token_ids ids, special;
    struct strbuf whole, streamed;
    struct token_stream *stream = NULL;
    const char *s = json_string_value(text);
    size_t n = json_string_length(text);
    token_ids_init(&ids);
    token_ids_init(&special);
    strbuf_init(&whole);
    strbuf_init(&streamed);
    int rc = tokenizer_encode(t, s, n, 0, &ids, &err);
    if (!rc)
        rc = tokenizer_encode(t, s, n, TOKENIZER_ADD_SPECIAL, &special, &err);
    if (!rc)
        rc = tokenizer_decode(t, ids.data, ids.n, 0, &whole, &err);
    if (!rc)
        rc = token_stream_open(&stream, t, 0, &err);
    for (size_t k = 0; !rc && k < ids.n; k++) {
        rc = token_stream_feed(stream, ids.data[k], &streamed, &err);
        // never more than the whole text has, whatever comes
        EXPECT_MSG(streamed.len <= whole.len &&
                       memcmp(strbuf_text(&streamed), strbuf_text(&whole), streamed.len) == 0,
                   "%s text %zu: the stream leaves the text at id %zu", name, i, k);
    }
    if (!rc)
        rc = token_stream_finish(stream, &streamed, &err);
    EXPECT_MSG(rc == 0, "%s text %zu: %s", name, i, err.msg);
    EXPECT_MSG(same_ids(&ids, json_array_get(row, 0)), "%s text %zu: ids differ", name, i);
    EXPECT_MSG(same_ids(&special, json_array_get(row, 1)), "%s text %zu: with special tokens", name,
               i);
    EXPECT_MSG(same_text(&whole, json_array_get(row, 2)), "%s text %zu: decoded", name, i);
    EXPECT_MSG(same_text(&streamed, json_array_get(row, 2)), "%s text %zu: streamed", name, i);
    token_stream_free(stream);
    strbuf_release(&whole);
    strbuf_release(&streamed);
    token_ids_release(&ids);
    token_ids_release(&special);
}

static void check_tokenizer(const char *name, const char *folder, const char *cache)
{
    struct err err = {0};
    struct tokenizer *t = NULL;
    json_t *all = expected();
    EXPECT_MSG(all != NULL, "tokenizers-expected.json.gz cannot be read");
    const json_t *texts = json_object_get(all, "texts"), *rows = json_object_get(all, name);
    int rc = tokenizer_open(&t, folder, cache, &err);
    EXPECT_MSG(rc == 0, "%s: %s", name, err.msg);
    // the fixture holds 397 different texts of the 400
    EXPECT_MSG(json_array_size(texts) >= 390 && json_array_size(rows) == json_array_size(texts),
               "%s: %zu texts, %zu rows", name, json_array_size(texts), json_array_size(rows));
    for (size_t i = 0; !rc && i < json_array_size(texts); i++)
        check_row(t, name, i, json_array_get(texts, i), json_array_get(rows, i));
    tokenizer_free(t);
    json_decref(all);
}

static void check_published(const char *name)
{
    if (!test_fixtures()) {
        test_skip("no fixtures");
        return;
    }
    CHECK_MSG(unpack(), "tokenizers.tar.xz cannot be unpacked");
    char *folder = file_join(test_tmp(), "tok"), *own = file_join(folder, name);
    char *cache = file_join(test_tmp(), "cache");
    check_tokenizer(name, own, NULL);
    check_tokenizer(name, own, cache); // writes it
    check_tokenizer(name, own, cache); // maps it
    char **files = NULL;
    size_t n = 0;
    EXPECT(file_list(cache, &files, &n, NULL) == 0 && n > 0);
    file_free_names(files, n);
    sys_free(cache);
    sys_free(own);
    sys_free(folder);
}

TEST(llama2_gives_the_ids_and_texts_of_the_library)
{
    check_published("llama2");
}

TEST(llama3_1_gives_the_ids_and_texts_of_the_library)
{
    check_published("llama3_1");
}

TEST(qwen3_gives_the_ids_and_texts_of_the_library)
{
    check_published("qwen3");
}

TEST(gemma3_gives_the_ids_and_texts_of_the_library)
{
    check_published("gemma3");
}

TEST(tinytalk_gives_the_ids_and_texts_of_the_library)
{
    if (!test_fixtures()) {
        test_skip("no fixtures");
        return;
    }
    char *folder = file_join(test_tinytalk(), "base");
    check_tokenizer("tinytalk", folder, NULL);
    sys_free(folder);
}
