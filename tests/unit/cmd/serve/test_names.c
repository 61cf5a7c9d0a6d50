/* What a model's name means, without an engine: words, references, reloads, holders. */
#include <stdio.h>
#include <unistd.h>

#include "cmd/serve/names.h"
#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "store/store.h"
#include "tests/lib/test.h"

static struct adapter_source *source;
static const char *const base_names[] = {"tiny", "org/tiny-base"};

static struct names *open_names(const char *root)
{
    struct names *n = NULL;
    struct err err = {0};
    const struct names_options opt = {.base_fingerprint = "",
                                      .served_names = base_names,
                                      .n_served_names = 2,
                                      .adapter_root = root};
    struct names_options with_source = opt;
    if (store_source_open(&source, NULL, &err) != 0)
        test_fail(__FILE__, __LINE__, "%s", err.msg);
    with_source.source = source;
    if (names_open(&n, &with_source, &err) != 0)
        test_fail(__FILE__, __LINE__, "%s", err.msg);
    return n;
}

static void close_names(struct names *n)
{
    names_free(n);
    source->ops->close(source);
}

static char *adapter_path(const char *name)
{
    static char path[1024];
    snprintf(path, sizeof path, "%s/examples/tinytalk/adapters/%s", test_root(), name);
    return path;
}

static int offer(struct names *n, const char *word, struct err *err)
{
    return names_offer_words(n, &word, 1, err);
}

/* "base", the served adapter's label, or "none". */
static const char *meaning(struct names *n, const char *model)
{
    static char label[256];
    struct served *s = NULL;
    struct err err = {0};
    if (names_find_model(n, model, &s, &err) != 0)
        return "none";
    snprintf(label, sizeof label, "%s", s ? s->label : "base");
    served_release(s);
    return label;
}

TEST(a_model_is_an_offered_name_the_base_or_base_and_adapter)
{
    struct names *n = open_names(NULL);
    struct err err = {0};
    char word[1200];
    snprintf(word, sizeof word, "up=%s", adapter_path("upper-lora"));
    CHECK_OK(offer(n, word, &err), err);
    EXPECT_STR(meaning(n, "up"), "up");
    EXPECT_STR(meaning(n, "up:latest"), "up");
    EXPECT_STR(meaning(n, "tiny"), "base");
    EXPECT_STR(meaning(n, "org/tiny-base"), "base");
    EXPECT_STR(meaning(n, "tiny:up"), "up");
    EXPECT_STR(meaning(n, "org/tiny-base:up"), "up");
    EXPECT_STR(meaning(n, "tiny:"), "base");
    EXPECT_STR(meaning(n, ""), "base");
    EXPECT_STR(meaning(n, NULL), "base");
    EXPECT_STR(meaning(n, "tiny:none"), "none");
    EXPECT_STR(meaning(n, "other:up"), "none");
    EXPECT_STR(meaning(n, "u"), "none");
    EXPECT_STR(meaning(n, "upper"), "none");
    close_names(n);
}

TEST(words_may_be_json_or_a_path_alone)
{
    struct names *n = open_names(NULL);
    struct err err = {0};
    char word[1400];
    snprintf(word, sizeof word, "{\"lora_name\":\"a\",\"lora_path\":\"%s\",\"pinned\":true}",
             adapter_path("upper-lora"));
    CHECK_OK(offer(n, word, &err), err);
    snprintf(word, sizeof word, "{\"name\":\"b\",\"path\":\"%s\"}", adapter_path("title-lora"));
    CHECK_OK(offer(n, word, &err), err);
    CHECK_OK(offer(n, adapter_path("sort-lora"), &err), err);
    EXPECT_STR(meaning(n, "a"), "a");
    EXPECT_STR(meaning(n, "b"), "b");
    EXPECT_STR(meaning(n, "sort-lora"), "sort-lora");
    EXPECT_INT(names_count(n), 3);
    EXPECT_INT(offer(n, "{\"lora_name\":\"a\"}", &err), ERR_USAGE);
    EXPECT_INT(offer(n, "{broken", &err), ERR_USAGE);
    EXPECT_INT(offer(n, "a=./nowhere", &err), ERR_NOT_FOUND);
    EXPECT_INT(offer(n, "bad name=./x", &err), ERR_USAGE);
    close_names(n);
}

TEST(two_names_of_one_content_share_its_identity)
{
    struct names *n = open_names(NULL);
    struct err err = {0};
    char word[1200];
    struct served *a = NULL, *b = NULL;
    snprintf(word, sizeof word, "a=%s", adapter_path("upper-lora"));
    CHECK_OK(offer(n, word, &err), err);
    word[0] = 'b';
    CHECK_OK(offer(n, word, &err), err);
    CHECK_OK(names_find_adapter(n, "a", &a, &err), err);
    CHECK_OK(names_find_adapter(n, "b", &b, &err), err);
    EXPECT(a == b);
    CHECK_OK(names_unload(n, "a", &err), err);
    EXPECT_STR(meaning(n, "a"), "none");
    EXPECT_STR(meaning(n, "b"), "a"); // the label stays the first name
    EXPECT_INT(names_unload(n, "a", &err), ERR_NOT_FOUND);
    served_release(a);
    served_release(b);
    close_names(n);
}

TEST(what_is_unloaded_lives_on_for_its_holders)
{
    struct names *n = open_names(NULL);
    struct err err = {0};
    char word[1200];
    struct served *held = NULL;
    snprintf(word, sizeof word, "a=%s", adapter_path("upper-lora"));
    CHECK_OK(offer(n, word, &err), err);
    CHECK_OK(names_find_adapter(n, "a", &held, &err), err);
    CHECK_OK(names_unload(n, "a", &err), err);
    EXPECT_STR(held->label, "a");
    EXPECT_INT(strlen(held->content_id), 64);
    served_release(held);
    close_names(n);
}

TEST(a_word_read_again_points_at_the_new_content)
{
    struct err err = {0};
    char *link = file_join(test_tmp(), "link");
    char word[1400];
    struct served *before = NULL, *after = NULL;
    struct names *n = open_names(NULL);
    CHECK_INT(symlink(adapter_path("upper-lora"), link), 0);
    snprintf(word, sizeof word, "a=%s", link);
    CHECK_OK(offer(n, word, &err), err);
    CHECK_OK(names_find_adapter(n, "a", &before, &err), err);
    sys_unlink(link);
    CHECK_INT(symlink(adapter_path("title-lora"), link), 0);
    CHECK_OK(names_reload(n, &err), err);
    CHECK_OK(names_find_adapter(n, "a", &after, &err), err);
    EXPECT(strcmp(before->content_id, after->content_id) != 0);
    sys_unlink(link);
    CHECK_OK(names_reload(n, &err), err); // what is gone stays as it was
    EXPECT_STR(meaning(n, "a"), "a");
    served_release(before);
    served_release(after);
    close_names(n);
    sys_free(link);
}

TEST(requests_load_paths_below_the_root_alone)
{
    struct err err = {0};
    char root[1100];
    snprintf(root, sizeof root, "%s/examples/tinytalk/adapters", test_root());
    struct names *n = open_names(root);
    EXPECT_INT(names_load(n, "a", "upper-lora", false, false, &err), 0);
    EXPECT_INT(names_load(n, "a", "upper-lora", false, false, &err), ERR_EXISTS);
    EXPECT_INT(names_load(n, "a", "title-lora", true, false, &err), 0);
    EXPECT_INT(names_load(n, "b", adapter_path("sort-lora"), false, false, &err), 0);
    EXPECT_INT(names_load(n, "c", "../base", false, false, &err), ERR_DENIED);
    EXPECT_INT(names_load(n, "c", "/etc", false, false, &err), ERR_DENIED);
    EXPECT_INT(names_load(n, "c", "none", false, false, &err), ERR_NOT_FOUND);
    EXPECT_INT(names_load(n, "tiny", "sort-lora", false, false, &err), ERR_EXISTS);
    close_names(n);
    n = open_names(NULL);
    EXPECT_INT(names_load(n, "a", adapter_path("sort-lora"), false, false, &err), ERR_DENIED);
    close_names(n);
}
