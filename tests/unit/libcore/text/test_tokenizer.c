/* The handle: added tokens, special tokens, configuration, streams, cache, threads, failures. */
#include <pthread.h>
#include <unistd.h>

#include "tests/lib/fault.h"
#include "tests/unit/libcore/text/tokenizer_fixture.h"

#define MODEL                                                                                      \
    "\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1, \"\\u2581\": 2, \"A\": 3}, "   \
    "\"merges\": []}"
#define ADDED(content, flags)                                                                      \
    "\"added_tokens\": [{\"id\": 4, \"content\": \"" content "\", \"special\": true" flags "}], "
#define REPLACE                                                                                    \
    "\"normalizer\": {\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": "      \
    "\"\\u2581\"}, "

TEST(special_tokens_are_found_in_the_text_unless_they_are_text)
{
    static const char json[] = "{" ADDED("<s>", "") MODEL "}";
    EXPECT_STR(encode_by(json, NULL, "a<s>b", 0), "0 4 1");
    EXPECT_STR(encode_by(json, NULL, "a<s>b", TOKENIZER_SPECIAL_AS_TEXT), "0 1");
    EXPECT_STR(encode_by(json, NULL, "<s><s>", 0), "4 4");
    EXPECT_STR(encode_by(json, NULL, "<s<s>", 0), "4");
}

TEST(the_longest_of_the_leftmost_added_tokens_wins)
{
    static const char json[] =
        "{\"added_tokens\": [{\"id\": 4, \"content\": \"<x\"}, {\"id\": 5, "
        "\"content\": \"<x>\"}, {\"id\": 6, \"content\": \"x>>\"}], " MODEL "}";
    EXPECT_STR(encode_by(json, NULL, "<x>>", 0), "5");
    EXPECT_STR(encode_by(json, NULL, "<xa", 0), "4 0");
    EXPECT_STR(encode_by(json, NULL, "ax>>", 0), "0 6");
}

TEST(added_tokens_take_the_spaces_beside_them)
{
    EXPECT_STR(encode_by("{" ADDED("<s>", "") REPLACE MODEL "}", NULL, "a <s> b", 0), "0 2 4 2 1");
    EXPECT_STR(
        encode_by("{" ADDED("<s>", ", \"lstrip\": true") REPLACE MODEL "}", NULL, "a <s> b", 0),
        "0 4 2 1");
    EXPECT_STR(
        encode_by("{" ADDED("<s>", ", \"rstrip\": true") REPLACE MODEL "}", NULL, "a <s> b", 0),
        "0 2 4 1");
    EXPECT_STR(encode_by("{" ADDED("<s>", ", \"lstrip\": true, \"rstrip\": true") REPLACE MODEL "}",
                         NULL, "a <s>  <s> b", 0),
               "0 4 4 1");
}

TEST(single_words_stand_alone)
{
    static const char json[] = "{" ADDED("ab", ", \"single_word\": true") MODEL "}";
    EXPECT_STR(encode_by(json, NULL, "ab", 0), "4");
    EXPECT_STR(encode_by(json, NULL, "ab ab", 0), "4 4");
    EXPECT_STR(encode_by(json, NULL, "aab", 0), "0 0 1");
    EXPECT_STR(encode_by(json, NULL, "ab\xc3\xa9", 0), "0 1");
}

TEST(normalized_tokens_are_looked_for_in_the_normalized_text)
{
    static const char json[] =
        "{" ADDED("AA", ", \"normalized\": true") "\"normalizer\": {\"type\": "
                                                  "\"Lowercase\"}, " MODEL "}";
    struct err err = {0};
    struct tokenizer *t = NULL;
    CHECK_OK(tokenizer_open(&t, write_tokenizer(json, NULL), NULL, &err), err);
    EXPECT_STR(encode_with(t, "aA", 2, 0), "4");
    size_t n = 0;
    const char *text = tokenizer_token_text(t, 4, &n);
    EXPECT(text && n == 2 && memcmp(text, "AA", 2) == 0);
    // the library decodes to the normalized form, which is then no special token
    struct strbuf out;
    strbuf_init(&out);
    uint32_t id = 4;
    CHECK_OK(tokenizer_decode(t, &id, 1, TOKENIZER_SKIP_SPECIAL, &out, &err), err);
    EXPECT_STR(strbuf_text(&out), "aa");
    strbuf_release(&out);
    tokenizer_free(t);
}

#define BOS_EOS                                                                                    \
    "\"added_tokens\": [{\"id\": 4, \"content\": \"<s>\", \"special\": true}, {\"id\": 5, "        \
    "\"content\": "                                                                                \
    "\"</s>\", \"special\": true}], "
#define TEMPLATE(items)                                                                            \
    "\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [" items                   \
    "], \"pair\": [], "                                                                            \
    "\"special_tokens\": {\"<s>\": {\"id\": \"<s>\", \"ids\": [4], \"tokens\": [\"<s>\"]}}}, "
#define S "{\"SpecialToken\": {\"id\": \"<s>\", \"type_id\": 0}}"
#define A "{\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}"

TEST(the_post_processor_adds_what_is_around_a_text)
{
    static const char json[] = "{" BOS_EOS TEMPLATE(S ", " A) MODEL "}";
    EXPECT_STR(encode_by(json, NULL, "a", 0), "0");
    EXPECT_STR(encode_by(json, NULL, "a", TOKENIZER_ADD_SPECIAL), "4 0");
    EXPECT_STR(encode_by(json, NULL, "", TOKENIZER_ADD_SPECIAL), "4");
    EXPECT_STR(encode_by("{" BOS_EOS TEMPLATE(S ", " A ", " S ", " S) MODEL "}", NULL, "a",
                         TOKENIZER_ADD_SPECIAL),
               "4 0 4 4");
    EXPECT_STR(
        encode_by(
            "{" BOS_EOS "\"post_processor\": {\"type\": \"Sequence\", \"processors\": "
            "[{\"type\": \"ByteLevel\"}, {\"type\": \"RobertaProcessing\", \"cls\": [\"<s>\", 4], "
            "\"sep\": [\"</s>\", 5]}]}, " MODEL "}",
            NULL, "a", TOKENIZER_ADD_SPECIAL),
        "4 0 5");
}

TEST(the_configuration_says_whether_bos_and_eos_are_added)
{
    static const char with[] = "{" BOS_EOS TEMPLATE(S ", " A) MODEL "}",
                      without[] = "{" BOS_EOS MODEL "}";
    static const char roles[] =
        "{\"bos_token\": {\"content\": \"<s>\", \"lstrip\": false}, \"eos_token\": "
        "\"</s>\", \"pad_token\": null";
    char config[512];
    struct {
        const char *json, *said, *want;
    } rows[] = {{with, "}", "4 0"},
                {with, ", \"add_bos_token\": false}", "0"},
                {with, ", \"add_bos_token\": true, \"add_eos_token\": true}", "4 0 5"},
                {without, "}", "0"},
                {without, ", \"add_bos_token\": true}", "4 0"},
                {without, ", \"add_bos_token\": null, \"add_eos_token\": true}", "0 5"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        snprintf(config, sizeof config, "%s%s", roles, rows[i].said);
        EXPECT_STR(encode_by(rows[i].json, config, "a", TOKENIZER_ADD_SPECIAL), rows[i].want);
    }
}

TEST(roles_and_added_tokens_of_the_configuration_are_known)
{
    static const char config[] = "{\"chat_template\": \"{{ x }}\", \"added_tokens_decoder\": "
                                 "{\"4\": {\"content\": \"<s>\", \"special\": "
                                 "true}, \"5\": {\"content\": \"<new>\", \"lstrip\": true, "
                                 "\"special\": true}}, \"eos_token\": \"<new>\", "
                                 "\"bos_token\": \"<nowhere>\"}";
    struct err err = {0};
    struct tokenizer *t = NULL;
    CHECK_OK(
        tokenizer_open(&t, write_tokenizer("{" ADDED("<s>", "") MODEL "}", config), NULL, &err),
        err);
    EXPECT_STR(encode_with(t, "a <new>", 7, 0), "0 5");
    EXPECT_INT(tokenizer_role_id(t, TOKENIZER_EOS), 5);
    EXPECT_STR(tokenizer_role_text(t, TOKENIZER_EOS), "<new>");
    EXPECT_INT(tokenizer_role_id(t, TOKENIZER_BOS), -1);
    EXPECT_STR(tokenizer_role_text(t, TOKENIZER_BOS), "<nowhere>");
    EXPECT(tokenizer_role_text(t, TOKENIZER_PAD) == NULL);
    EXPECT_INT(tokenizer_vocab_size(t), 6);
    EXPECT_INT(tokenizer_id_of(t, "<s>", 3), 4);
    EXPECT_INT(tokenizer_id_of(t, "b", 1), 1);
    EXPECT_INT(tokenizer_id_of(t, "bb", 2), -1);
    EXPECT(tokenizer_is_special(t, 4) && tokenizer_is_special(t, 5) && !tokenizer_is_special(t, 0));
    size_t n;
    EXPECT(tokenizer_token_text(t, 6, &n) == NULL);
    tokenizer_free(t);
}

TEST(a_role_is_special_although_no_list_has_it)
{
    static const char config[] = "{\"eos_token\": \"b\", \"pad_token\": \"[PAD]\"}";
    struct err err = {0};
    struct tokenizer *t = NULL;
    CHECK_OK(
        tokenizer_open(&t, write_tokenizer("{" ADDED("<s>", "") MODEL "}", config), NULL, &err),
        err);
    EXPECT(tokenizer_is_special(t, 1) && tokenizer_role_id(t, TOKENIZER_EOS) == 1);
    EXPECT_STR(encode_with(t, "abba", 4, 0), "0 1 1 0");
    EXPECT_INT(tokenizer_role_id(t, TOKENIZER_PAD), -1);
    EXPECT_INT(tokenizer_vocab_size(t), 5);
    tokenizer_free(t);
}

TEST(of_two_entries_for_one_token_the_later_counts)
{
    static const char json[] = "{\"added_tokens\": [{\"id\": 0, \"content\": \"a\", \"special\": "
                               "true}, {\"id\": 4, \"content\": "
                               "\"<s>\"}, {\"id\": 0, \"content\": \"a\", \"lstrip\": true}, "
                               "{\"id\": 4, \"content\": \"<s>\", "
                               "\"special\": true}], " REPLACE MODEL "}";
    struct err err = {0};
    struct tokenizer *t = NULL;
    CHECK_OK(tokenizer_open(&t, write_tokenizer(json, NULL), NULL, &err), err);
    EXPECT(!tokenizer_is_special(t, 0) && tokenizer_is_special(t, 4));
    EXPECT_STR(encode_with(t, "b a", 3, 0), "1 0");
    tokenizer_free(t);
}

TEST(what_is_not_known_is_refused_by_name)
{
    static const struct {
        const char *json, *says;
    } rows[] = {
        {"{\"model\": {\"type\": \"Unigram\", \"vocab\": [[\"a\", 0.0]]}}", "model type 'Unigram'"},
        {"{\"model\": {\"type\": \"WordPiece\", \"vocab\": {\"a\": 0}}}", "model type 'WordPiece'"},
        {"{\"model\": {\"type\": \"BPE\", \"dropout\": 0.1, \"vocab\": {\"a\": 0}, \"merges\": "
         "[]}}",
         "dropout"},
        {"{\"version\": \"2.0\", " MODEL "}", "version '2.0'"},
        {"{\"normalizer\": {\"type\": \"BertNormalizer\"}, " MODEL "}",
         "normalizer 'BertNormalizer'"},
        {"{\"pre_tokenizer\": {\"type\": \"Other\"}, " MODEL "}", "pre-tokenizer 'Other'"},
        {"{\"decoder\": {\"type\": \"WordPiece\"}, " MODEL "}", "decoder 'WordPiece'"},
        {"{\"post_processor\": {\"type\": \"Other\"}, " MODEL "}", "post_processor 'Other'"},
        {"{" BOS_EOS TEMPLATE(A ", " A) MODEL "}", "stands 2 times"},
        {"{\"added_tokens\": [{\"id\": 9, \"content\": \"<s>\"}], " MODEL "}", "has id 9"},
        {"{\"added_tokens\": [{\"id\": 9, \"content\": \"a\"}], " MODEL "}", "has id 9"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *got = encode_by(rows[i].json, NULL, "", 0);
        EXPECT_MSG(strncmp(got, "refused: ", 9) == 0 && strstr(got, rows[i].says) &&
                       strstr(got, "tokenizer.json: "),
                   "%s gives %s", rows[i].json, got);
    }
    EXPECT(strncmp(encode_by("{\"added_tokens\": [{\"content\": \"a\"}], " MODEL "}", NULL, "", 0),
                   "corrupt: ", 9) == 0);
    EXPECT(strncmp(encode_by("{" MODEL "}", "{\"bos_token\": ", "", 0), "corrupt: ", 9) == 0);
}

TEST(a_folder_without_a_tokenizer_is_not_found)
{
    struct err err = {0};
    struct tokenizer *t = NULL;
    CHECK_CODE(tokenizer_open(&t, test_tmp(), NULL, &err), ERR_NOT_FOUND, err);
    EXPECT(t == NULL && strstr(err.msg, "tokenizer.json") != NULL);
}

TEST(bytes_that_are_no_text_become_replacement_characters)
{
    static const char json[] =
        "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"\\ufffd\": 1, \"\\u0000\": "
        "2}, \"merges\": []}}";
    struct err err = {0};
    struct tokenizer *t = NULL;
    CHECK_OK(tokenizer_open(&t, write_tokenizer(json, NULL), NULL, &err), err);
    EXPECT_STR(encode_with(t,
                           "a\xff\xc3"
                           "a\0\xe4\xbd",
                           7, 0),
               "0 1 1 0 2 1");
    tokenizer_free(t);
}

TEST(a_stream_gives_whole_characters_and_leaves_special_tokens_out)
{
    struct err err = {0};
    struct tokenizer *t = NULL;
    char *folder = file_join(test_tinytalk(), "base");
    CHECK_OK(tokenizer_open(&t, folder, NULL, &err), err);
    static const char text[] = "x\xf0\x9f\xa6\x99y";
    struct token_ids ids;
    struct token_stream *s = NULL;
    struct strbuf out;
    token_ids_init(&ids);
    strbuf_init(&out);
    CHECK_OK(tokenizer_encode(t, text, sizeof text - 1, 0, &ids, &err), err);
    CHECK(ids.n >= 4); // the llama is several byte tokens
    CHECK_OK(token_stream_open(&s, t, TOKENIZER_SKIP_SPECIAL, &err), err);
    for (size_t i = 0; i < ids.n; i++) {
        CHECK_OK(token_stream_feed(s, 1, &out, &err), err); // <|im_start|>
        CHECK_OK(token_stream_feed(s, ids.data[i], &out, &err), err);
        EXPECT(out.len == 1 || out.len == 5 || out.len == 6);
    }
    CHECK_OK(token_stream_feed(s, ids.data[1], &out, &err), err); // a first byte that stays alone
    CHECK_OK(token_stream_feed(s, 1000000, &out, &err), err);     // no token: nothing
    EXPECT_INT(out.len, 6);
    CHECK_OK(token_stream_finish(s, &out, &err), err);
    EXPECT_STR(strbuf_text(&out), "x\xf0\x9f\xa6\x99y\xef\xbf\xbd");
    token_stream_free(s);
    strbuf_release(&out);
    token_ids_release(&ids);
    tokenizer_free(t);
    sys_free(folder);
}

/* ---- the cache ---- */

TEST(a_changed_file_is_not_taken_from_the_cache)
{
    char cache[1024], folder[1024], path[1100];
    struct err err = {0};
    struct tokenizer *t = NULL;
    snprintf(cache, sizeof cache, "%s/cache", test_tmp());
    snprintf(folder, sizeof folder, "%s", write_tokenizer("{" MODEL "}", NULL));
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    usleep(150000); // a file that has just changed is not kept
    for (int round = 0; round < 2; round++) {
        CHECK_OK(tokenizer_open(&t, folder, cache, &err), err);
        EXPECT_STR(encode_with(t, "ab", 2, 0), "0 1");
        tokenizer_free(t);
        char **names = NULL;
        size_t n = 0;
        CHECK_OK(file_list(cache, &names, &n, &err), err);
        EXPECT_INT(n, 1);
        file_free_names(names, n);
    }
    static const char other[] =
        "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 1, \"b\": 0, \"\\u2581\": 2, \"A\": "
        "3}, \"merges\": []}}";
    CHECK_OK(file_write_atomic(path, other, sizeof other - 1, &err), err);
    CHECK_OK(tokenizer_open(&t, folder, cache, &err), err);
    EXPECT_STR(encode_with(t, "ab", 2, 0), "1 0");
    tokenizer_free(t);
}

TEST(a_cache_that_cannot_be_written_is_no_error)
{
    struct err err = {0};
    struct tokenizer *t = NULL;
    char folder[1024];
    snprintf(folder, sizeof folder, "%s", write_tokenizer("{" MODEL "}", NULL));
    usleep(150000);
    CHECK_OK(tokenizer_open(&t, folder, "/proc/self/nothing", &err), err);
    tokenizer_free(t);
}

/* ---- threads ---- */

struct work {
    const struct tokenizer *t;
    int wrong;
};

static void *encode_much(void *arg)
{
    struct work *w = arg;
    static const char *const texts[] = {"upper: a b", "The quick brown fox\n",
                                        "\xe4\xbd\xa0\xe5\xa5\xbd <|im_end|> 12345", "don't  stop"};
    struct err err = {0};
    for (int round = 0; round < 200; round++) {
        struct token_ids ids;
        struct strbuf out;
        token_ids_init(&ids);
        strbuf_init(&out);
        const char *text = texts[round % 4];
        if (tokenizer_encode(w->t, text, strlen(text), 0, &ids, &err) != 0 ||
            tokenizer_decode(w->t, ids.data, ids.n, 0, &out, &err) != 0 ||
            strcmp(strbuf_text(&out), text) != 0)
            w->wrong++;
        strbuf_release(&out);
        token_ids_release(&ids);
    }
    return NULL;
}

TEST(many_threads_share_a_tokenizer)
{
    struct err err = {0};
    struct tokenizer *t = NULL;
    char *folder = file_join(test_tinytalk(), "base");
    CHECK_OK(tokenizer_open(&t, folder, NULL, &err), err);
    pthread_t threads[4];
    struct work work[4];
    for (int i = 0; i < 4; i++) {
        work[i] = (struct work){.t = t};
        CHECK(pthread_create(&threads[i], NULL, encode_much, &work[i]) == 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        EXPECT_INT(work[i].wrong, 0);
    }
    tokenizer_free(t);
    sys_free(folder);
}

/* ---- failing calls ---- */

static int open_encode_decode(void *arg, struct err *err)
{
    struct tokenizer *t = NULL;
    struct token_ids ids;
    struct strbuf out;
    token_ids_init(&ids);
    strbuf_init(&out);
    int rc = tokenizer_open(&t, arg, NULL, err);
    if (!rc)
        rc = tokenizer_encode(t, "a <s> bAa\xff", 10, TOKENIZER_ADD_SPECIAL, &ids, err);
    if (!rc)
        rc = tokenizer_decode(t, ids.data, ids.n, 0, &out, err);
    if (!rc && out.len == 0)
        rc = err_set(err, ERR_INTERNAL, "no text");
    strbuf_release(&out);
    token_ids_release(&ids);
    tokenizer_free(t);
    return rc;
}

TEST(every_failing_call_comes_out_as_an_error)
{
    static const char json[] = "{" ADDED(
        "<s>",
        ", \"normalized\": true") "\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": "
                                  "[{\"type\": "
                                  "\"NFC\"}, {\"type\": \"Replace\", \"pattern\": {\"Regex\": \" "
                                  "+\"}, \"content\": \"\\u2581\"}]}, "
                                  "\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": "
                                  "[{\"type\": \"Split\", \"pattern\": {\"String\": "
                                  "\"b\"}, \"behavior\": \"MergedWithNext\", \"invert\": false}, "
                                  "{\"type\": \"Metaspace\", \"replacement\": "
                                  "\"\\u2581\"}]}, \"decoder\": {\"type\": \"Sequence\", "
                                  "\"decoders\": [{\"type\": \"Replace\", \"pattern\": "
                                  "{\"Regex\": \"\\u2581\"}, \"content\": \" \"}, {\"type\": "
                                  "\"ByteFallback\"}, {\"type\": \"Fuse\"}]}, " MODEL "}";
    char folder[1024];
    snprintf(folder, sizeof folder, "%s",
             write_tokenizer(json, "{\"bos_token\": \"<s>\", \"add_bos_token\": true}"));
    // the cache of words does without memory, jansson and PCRE2 have their own
    uint64_t n = test_each_fault(SYS_FAULT_ALL, true, open_encode_decode, folder);
    EXPECT_MSG(n > 40, "only %llu calls", (unsigned long long)n);
}

struct cached {
    const char *folder, *cache;
};

static int open_with_cache(void *arg, struct err *err)
{
    const struct cached *c = arg;
    struct tokenizer *t = NULL;
    int rc = tokenizer_open(&t, c->folder, c->cache, err);
    if (!rc && strcmp(encode_with(t, "ab", 2, 0), "0 1") != 0)
        rc = err_set(err, ERR_INTERNAL, "other ids");
    tokenizer_free(t);
    return rc;
}

TEST(the_cache_survives_every_failing_call)
{
    char folder[1024], cache[1024];
    snprintf(folder, sizeof folder, "%s", write_tokenizer("{" MODEL "}", NULL));
    snprintf(cache, sizeof cache, "%s/failing", test_tmp());
    usleep(150000);
    struct cached c = {folder, cache};
    struct err err = {0};
    for (int round = 0; round < 2; round++) { // while it is made, and while it is there
        uint64_t n = test_each_fault(SYS_FAULT_ALL, true, open_with_cache, &c);
        EXPECT_MSG(n > 10, "only %llu calls", (unsigned long long)n);
        CHECK_OK(open_with_cache(&c, &err), err);
    }
}
