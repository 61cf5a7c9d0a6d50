#include "tests/unit/store/fake.h"

#include <sys/file.h>

#include "libcore/base/file.h"
#include "store/fsck.h"

TEST(a_folder_without_a_store_says_no_store)
{
    struct store *s;
    struct err err = {0};
    CHECK_CODE(store_open(&s, fake_store_path(), NULL, &err), ERR_NO_STORE, err);
    CHECK(s == NULL);
}

TEST(a_full_folder_does_not_become_a_store)
{
    const char *path = fake_store_path();
    struct err err = {0};
    CHECK_OK(file_make_folders(path, &err), err);
    char file[4300];
    snprintf(file, sizeof file, "%s/letter.txt", path);
    CHECK_OK(file_write_atomic(file, "x", 1, &err), err);
    struct store *s;
    struct store_options opt = {.create = true};
    CHECK_CODE(store_open(&s, path, &opt, &err), ERR_REFUSED, err);
    CHECK(strstr(err.msg, "letter.txt"));
}

TEST(a_newer_format_is_refused)
{
    const char *path = fake_store_path();
    store_close(fake_store(path));
    char file[4300];
    struct err err = {0};
    snprintf(file, sizeof file, "%s/lora-store.json", path);
    CHECK_OK(file_write_atomic(file, "{\"format\":99}", 13, &err), err);
    struct store *s;
    CHECK_CODE(store_open(&s, path, NULL, &err), ERR_REFUSED, err);
    CHECK(strstr(err.msg, "99"));
}

TEST(names_are_checked)
{
    char name[LIMIT_NAME_BYTES + 1], tag[STORE_TAG_BYTES + 1];
    struct err err = {0};
    CHECK_OK(store_parse_name("org/My.model-1", name, tag, &err), err);
    EXPECT_STR(name, "org/My.model-1");
    EXPECT_STR(tag, "latest");
    CHECK_OK(store_parse_name("a:v1.2", name, tag, &err), err);
    EXPECT_STR(name, "a");
    EXPECT_STR(tag, "v1.2");
    static const char *const wrong[] = {"",   "/a",    "a/", "a//b", "../a", "a/./b", "a b",
                                        "a:", "a:b:c", "-a", "ä",    "a:.x", "a:x/y", "a\tb"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        EXPECT_MSG(store_parse_name(wrong[i], name, tag, &err) == ERR_USAGE, "'%s' is taken",
                   wrong[i]);
    char longest[LIMIT_NAME_BYTES + 2];
    memset(longest, 'a', sizeof longest);
    longest[LIMIT_NAME_BYTES] = '\0';
    EXPECT_INT(store_parse_name(longest, name, tag, &err), 0);
    longest[LIMIT_NAME_BYTES] = 'a';
    longest[LIMIT_NAME_BYTES + 1] = '\0';
    EXPECT_INT(store_parse_name(longest, name, tag, &err), ERR_USAGE);
}

static int count_row(void *arg, const struct store_entry *e)
{
    (void)e;
    ++*(int *)arg;
    return 0;
}

static int n_rows(struct store *s, const struct store_query *q)
{
    int n = 0;
    struct err err = {0};
    EXPECT_MSG(store_list(s, q, count_row, &n, &err) == 0, "%s", err.msg);
    return n;
}

TEST(what_is_published_is_found_by_name_prefix_and_digest)
{
    struct store *s = fake_store(fake_store_path());
    CHECK(s);
    struct err err = {0};
    enum publish_state state;
    const char *id = fake_id(1);
    CHECK_OK(fake_publish(s, id, "", "org/one", "hello", false, &state, &err), err);
    EXPECT_INT(state, PUBLISH_ADDED);
    struct store_resolved r;
    CHECK_OK(store_resolve(s, "org/one", STORE_ANY, &r, &err), err);
    EXPECT_STR(r.id, id);
    EXPECT_INT(r.kind, STORE_ADAPTER);
    char prefix[9];
    snprintf(prefix, sizeof prefix, "%.8s", id);
    CHECK_OK(store_resolve(s, prefix, STORE_ANY, &r, &err), err);
    EXPECT_STR(r.name, "org/one");
    // sha256 of "hello"
    CHECK_OK(store_resolve(s, "sha256:2cf24dba5f", STORE_ANY, &r, &err), err);
    EXPECT_STR(r.id, id);
    CHECK_CODE(store_resolve(s, "2cf24", STORE_ANY, &r, &err), ERR_NOT_FOUND, err);
    CHECK_CODE(store_resolve(s, "org/one", STORE_BASE, &r, &err), ERR_NOT_FOUND, err);
    CHECK(strstr(err.msg, "is an adapter, wanted a base"));
    CHECK_CODE(store_resolve(s, "org/one:v2", STORE_ANY, &r, &err), ERR_NOT_FOUND, err);
    CHECK_MSG(strstr(err.msg, "org/one:latest"), "%s", err.msg);
    // The bytes lie where their digest says, read-only.
    char *path =
        blob_path(s, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824", &err);
    struct stat st;
    CHECK(path && stat(path, &st) == 0);
    EXPECT_INT(st.st_mode & 0777, 0444);
    EXPECT_INT(st.st_size, 5);
    sys_free(path);
    store_close(s);
}

TEST(a_name_wins_over_a_prefix_and_ambiguity_lists_candidates)
{
    struct store *s = fake_store(fake_store_path());
    CHECK(s);
    struct err err = {0};
    enum publish_state state;
    // Two ids with one long common beginning.
    char a[65], b[65];
    snprintf(a, sizeof a, "%s", fake_id(1));
    memcpy(b, a, sizeof b);
    b[20] = b[20] == '0' ? '1' : '0';
    CHECK_OK(fake_publish(s, a, "", "first", "A", false, &state, &err), err);
    CHECK_OK(fake_publish(s, b, "", "second", "B", false, &state, &err), err);
    char prefix[13];
    snprintf(prefix, sizeof prefix, "%.12s", a);
    struct store_resolved r;
    CHECK_CODE(store_resolve(s, prefix, STORE_ANY, &r, &err), ERR_USAGE, err);
    CHECK_MSG(strstr(err.msg, "ambiguous") && strstr(err.msg, ", "), "%s", err.msg);
    bool same;
    CHECK_OK(store_tag(s, prefix, "latest", b, false, &same, &err), err);
    CHECK_OK(store_resolve(s, prefix, STORE_ANY, &r, &err), err);
    EXPECT_STR(r.id, b);
    store_close(s);
}

TEST(the_same_content_twice_is_the_same_and_another_needs_force)
{
    struct store *s = fake_store(fake_store_path());
    CHECK(s);
    struct err err = {0};
    enum publish_state state;
    CHECK_OK(fake_publish(s, fake_id(1), "", "x", "one", false, &state, &err), err);
    CHECK_OK(fake_publish(s, fake_id(1), "", "x", "one", false, &state, &err), err);
    EXPECT_INT(state, PUBLISH_SAME);
    CHECK_OK(fake_publish(s, fake_id(1), "", "y", "one", false, &state, &err), err);
    EXPECT_INT(state, PUBLISH_NAMED);
    CHECK_CODE(fake_publish(s, fake_id(2), "", "x", "two", false, &state, &err), ERR_EXISTS, err);
    CHECK_OK(fake_publish(s, fake_id(2), "", "x", "two", true, &state, &err), err);
    EXPECT_INT(state, PUBLISH_REPLACED);
    json_t *history;
    CHECK_OK(store_tag_history(s, "x", "latest", &history, &err), err);
    EXPECT_INT(json_array_size(history), 2);
    EXPECT_STR(json_string_value(json_object_get(json_array_get(history, 1), "id")), fake_id(1));
    json_decref(history);
    char id[STORE_ID_CHARS + 1];
    CHECK_OK(store_tag_undo(s, "x", "latest", id, &err), err);
    EXPECT_STR(id, fake_id(1));
    CHECK_OK(store_untag(s, "x", "latest", id, &err), err);
    struct store_resolved r;
    CHECK_CODE(store_resolve(s, "x", STORE_ANY, &r, &err), ERR_NOT_FOUND, err);
    CHECK_OK(store_tag_undo(s, "x", "latest", id, &err), err);
    CHECK_OK(store_resolve(s, "x", STORE_ANY, &r, &err), err);
    EXPECT_STR(r.id, fake_id(1));
    EXPECT_INT(n_rows(s, &(struct store_query){0}), 2);
    store_close(s);
}

TEST(content_is_recorded_for_every_base_that_it_was_imported_for)
{
    const char *path = fake_store_path();
    struct store *s = fake_store(path);
    CHECK(s);
    struct err err = {0};
    enum publish_state state;
    char base[65], other[65], third[65], id[65];
    snprintf(base, sizeof base, "%s", fake_id(100));
    snprintf(other, sizeof other, "%s", fake_id(101));
    snprintf(third, sizeof third, "%s", fake_id(102));
    snprintf(id, sizeof id, "%s", fake_id(1));
    CHECK_OK(fake_publish(s, id, "", "x", "one", false, &state, &err), err);
    EXPECT_INT(n_rows(s, &(struct store_query){.base_id = base}), 0);
    EXPECT_INT(n_rows(s, &(struct store_query){.base_id = base, .or_unknown_base = true}), 1);
    EXPECT_INT(store_check_base(s, id, base, &err), 0);
    CHECK_OK(fake_publish(s, id, base, "x", "one", false, &state, &err), err);
    CHECK_CODE(store_check_base(s, id, other, &err), ERR_REFUSED, err);
    CHECK_OK(fake_publish(s, id, other, "y", "one", false, &state, &err), err);
    CHECK_OK(fake_publish(s, id, base, "x", "one", false, &state, &err), err);
    // A rebuilt index knows both, too.
    for (int round = 0; round < 2; round++) {
        EXPECT_INT(n_rows(s, &(struct store_query){.base_id = base}), 2);
        EXPECT_INT(n_rows(s, &(struct store_query){.base_id = other}), 2);
        EXPECT_INT(store_check_base(s, id, base, &err), 0);
        EXPECT_INT(store_check_base(s, id, other, &err), 0);
        CHECK_CODE(store_check_base(s, id, third, &err), ERR_REFUSED, err);
        EXPECT_INT(n_rows(s, &(struct store_query){.base_id = third, .or_unknown_base = true}), 0);
        if (round == 1)
            break;
        store_close(s);
        char command[5000];
        snprintf(command, sizeof command, "rm '%s'/index.db*", path);
        CHECK(system(command) == 0);
        struct fsck_report report;
        const struct fsck_options opt = {.repair = true};
        CHECK_OK(store_fsck(path, &opt, &report, NULL, NULL, &err), err);
        EXPECT_INT(report.n_problems, 0);
        s = fake_store(path);
        CHECK(s);
    }
    store_close(s);
}

static int keep_entry(void *arg, const struct store_entry *e)
{
    snprintf(arg, 256, "%s %s %s %u-%u %s", e->name, e->tags, e->targets, e->min_rank, e->max_rank,
             e->dtype);
    return 0;
}

TEST(tags_of_one_name_come_in_one_row)
{
    struct store *s = fake_store(fake_store_path());
    CHECK(s);
    struct err err = {0};
    enum publish_state state;
    bool same;
    CHECK_OK(fake_publish(s, fake_id(1), "", "x", "one", false, &state, &err), err);
    CHECK_OK(store_tag(s, "x", "v1", fake_id(1), false, &same, &err), err);
    EXPECT_INT(n_rows(s, &(struct store_query){0}), 1);
    char text[256] = "";
    CHECK_OK(store_list(s, &(struct store_query){0}, keep_entry, text, &err), err);
    EXPECT_STR(text, "x latest,v1 q_proj,v_proj 8-16 F32");
    EXPECT_INT(n_rows(s, &(struct store_query){.tag = "v1"}), 1);
    EXPECT_INT(n_rows(s, &(struct store_query){.tag = "v2"}), 0);
    store_close(s);
}

TEST(a_locked_store_says_who_holds_it)
{
    const char *path = fake_store_path();
    struct store *holder = fake_store(path), *s;
    CHECK(holder);
    struct err err = {0};
    struct store_options opt = {.lock_timeout_ms = 60};
    CHECK_OK(store_open(&s, path, &opt, &err), err);
    CHECK_OK(store_lock(holder, "gc", &err), err);
    enum publish_state state;
    CHECK_CODE(fake_publish(s, fake_id(1), "", "x", "one", false, &state, &err), ERR_LOCKED, err);
    CHECK_MSG(strstr(err.msg, "`gc`"), "%s", err.msg);
    char pid[32];
    snprintf(pid, sizeof pid, "pid %ld", (long)getpid());
    CHECK_MSG(strstr(err.msg, pid), "%s", err.msg);
    EXPECT_INT(n_rows(s, &(struct store_query){0}), 0); // reading does not wait
    store_unlock(holder);
    CHECK_OK(fake_publish(s, fake_id(1), "", "x", "one", false, &state, &err), err);
    store_close(s);
    store_close(holder);
}

static int count_lease(void *arg, const char *name, const json_t *lease)
{
    (void)name;
    *(int *)arg += 1 + (int)json_array_size(json_object_get(lease, "ids"));
    return 0;
}

TEST(a_lease_lives_as_long_as_its_holder)
{
    struct store *s = fake_store(fake_store_path());
    CHECK(s);
    struct err err = {0};
    enum publish_state state;
    CHECK_OK(fake_publish(s, fake_id(1), "", "x", "one", false, &state, &err), err);
    struct lease *l;
    const char *missing = fake_id(9);
    CHECK_CODE(lease_open(&l, s, "serve", &missing, 1, &err), ERR_NOT_FOUND, err);
    CHECK_OK(lease_open(&l, s, "serve", NULL, 0, &err), err);
    CHECK_OK(lease_add(l, s, fake_id(1), &err), err);
    int n = 0;
    CHECK_OK(lease_each(s, true, count_lease, &n, &err), err);
    EXPECT_INT(n, 2);
    // A dead one: a file that nobody holds.
    char stale[4400];
    snprintf(stale, sizeof stale, "%s/leases/serve-1-2-3", store_path(s));
    CHECK_OK(file_write_atomic(stale, "{}", 2, &err), err);
    n = 0;
    CHECK_OK(lease_each(s, true, count_lease, &n, &err), err);
    EXPECT_INT(n, 2);
    EXPECT(!file_exists(stale));
    lease_close(l);
    n = 0;
    CHECK_OK(lease_each(s, true, count_lease, &n, &err), err);
    EXPECT_INT(n, 0);
    store_close(s);
}

TEST(a_lost_file_of_known_content_comes_back_with_the_next_import)
{
    struct store *s = fake_store(fake_store_path());
    CHECK(s);
    struct err err = {0};
    enum publish_state state;
    CHECK_OK(fake_publish(s, fake_id(1), "", "x", "hello", false, &state, &err), err);
    static const char hello[] = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    char *path = blob_path(s, hello, &err);
    CHECK(path && unlink(path) == 0);
    sys_free(path);
    CHECK_CODE(blob_check(s, hello, 5, BLOB_CHECK_SIZE, &err), ERR_NOT_FOUND, err);
    CHECK_OK(fake_publish(s, fake_id(1), "", "x", "hello", false, &state, &err), err);
    CHECK_OK(blob_check(s, hello, 5, BLOB_CHECK_DIGEST, &err), err);
    store_close(s);
}

TEST(a_spoiled_blob_is_seen)
{
    struct store *s = fake_store(fake_store_path());
    CHECK(s);
    struct err err = {0};
    enum publish_state state;
    CHECK_OK(fake_publish(s, fake_id(1), "", "x", "hello", false, &state, &err), err);
    static const char hello[] = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    char *path = blob_path(s, hello, &err);
    CHECK(path && chmod(path, 0644) == 0);
    CHECK_OK(file_write_atomic(path, "hallo", 5, &err), err);
    CHECK_OK(blob_check(s, hello, 5, BLOB_CHECK_SIZE, &err), err);
    CHECK_CODE(blob_check(s, hello, 5, BLOB_CHECK_DIGEST, &err), ERR_CORRUPT, err);
    sys_free(path);
    store_close(s);
}
