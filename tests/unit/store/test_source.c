/* tiers: check asan tsan */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "store/blob.h"
#include "store/cache.h"
#include "store/import.h"
#include "tests/lib/test.h"
#include "tests/unit/store/fake.h"

static bool import_tinytalk(struct store *s, const char *name, char id[STORE_ID_CHARS + 1])
{
    char path[4300];
    snprintf(path, sizeof path, "%s/examples/tinytalk/adapters/%s", test_root(), name);
    struct import_result r;
    struct err err = {0};
    const struct import_options opt = {0};
    if (import_adapter(s, path, &opt, &r, &err) != 0) {
        test_fail(__FILE__, __LINE__, "%s: %s", name, err.msg);
        return false;
    }
    memcpy(id, r.id, STORE_ID_CHARS + 1);
    import_result_release(&r);
    return true;
}

TEST(the_source_gives_what_was_imported)
{
    struct store *s = fake_store(fake_store_path());
    CHECK(s);
    char id[STORE_ID_CHARS + 1];
    CHECK(import_tinytalk(s, "count-lora", id));
    struct adapter_source *source;
    struct err err = {0};
    CHECK_OK(store_source_open(&source, s, &err), err);
    store_close(s); // the source outlives it
    struct adapter *a;
    CHECK_OK(source->ops->get(source, id, &a, &err), err);
    EXPECT_STR(a->content_id, id);
    EXPECT_INT(a->min_rank, 2);
    EXPECT_INT(a->max_rank, 16);
    adapter_free(a);
    CHECK_CODE(source->ops->get(source, fake_id(5), &a, &err), ERR_NOT_FOUND, err);
    CHECK(a == NULL);
    source->ops->close(source);
}

TEST(the_source_refuses_spoiled_bytes)
{
    struct store *s = fake_store(fake_store_path());
    CHECK(s);
    char id[STORE_ID_CHARS + 1], *path;
    CHECK(import_tinytalk(s, "upper-lora", id));
    struct err err = {0};
    CHECK_OK(store_file(s, id, "adapter_model.safetensors", &path, &err), err);
    CHECK(chmod(path, 0644) == 0);
    int fd = open(path, O_WRONLY);
    CHECK(fd >= 0 && pwrite(fd, "!", 1, 100000) == 1);
    close(fd);
    sys_free(path);
    struct adapter_source *source;
    CHECK_OK(store_source_open(&source, s, &err), err);
    struct adapter *a;
    CHECK_CODE(source->ops->get(source, id, &a, &err), ERR_CORRUPT, err);
    CHECK(a == NULL);
    source->ops->close(source);
    store_close(s);
}

TEST(a_path_outside_is_served_and_watched)
{
    char folder[4300], from[4400], command[14000], id[STORE_ID_CHARS + 1];
    snprintf(folder, sizeof folder, "%s/outside", test_tmp());
    snprintf(from, sizeof from, "%s/examples/tinytalk/adapters", test_root());
    snprintf(command, sizeof command, "rm -rf '%s' && cp -r '%s/math-lora' '%s'", folder, from,
             folder);
    CHECK(system(command) == 0);
    struct adapter_source *source;
    struct err err = {0};
    CHECK_OK(store_source_open(&source, NULL, &err), err);
    CHECK(source->ops->pack_size == NULL);
    CHECK_OK(store_source_add_path(source, folder, id, &err), err);
    struct adapter *a;
    CHECK_OK(source->ops->get(source, id, &a, &err), err);
    EXPECT_STR(a->content_id, id);
    adapter_free(a);
    snprintf(command, sizeof command, "cp '%s'/title-lora/* '%s'/", from, folder);
    CHECK(system(command) == 0);
    CHECK_CODE(source->ops->get(source, id, &a, &err), ERR_REFUSED, err);
    CHECK_CODE(source->ops->get(source, fake_id(5), &a, &err), ERR_NOT_FOUND, err);
    source->ops->close(source);
}

struct reader {
    struct adapter_source *source;
    const char *ids;
    int failed;
};

static void *read_all(void *arg)
{
    struct reader *r = arg;
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < 3; i++) {
            struct adapter *a;
            struct err err = {0};
            if (r->source->ops->get(r->source, r->ids + i * (STORE_ID_CHARS + 1), &a, &err) != 0)
                r->failed++;
            adapter_free(a);
        }
    }
    return NULL;
}

TEST(many_threads_load_at_once)
{
    struct store *s = fake_store(fake_store_path());
    CHECK(s);
    char ids[3][STORE_ID_CHARS + 1];
    CHECK(import_tinytalk(s, "upper-lora", ids[0]) && import_tinytalk(s, "title-lora", ids[1]) &&
          import_tinytalk(s, "count-lora", ids[2]));
    struct adapter_source *source;
    struct err err = {0};
    CHECK_OK(store_source_open(&source, s, &err), err);
    struct reader readers[6];
    pthread_t threads[6];
    for (int i = 0; i < 6; i++) {
        readers[i] = (struct reader){source, ids[0], 0};
        CHECK(pthread_create(&threads[i], NULL, read_all, &readers[i]) == 0);
    }
    for (int i = 0; i < 6; i++) {
        pthread_join(threads[i], NULL);
        EXPECT_INT(readers[i].failed, 0);
    }
    source->ops->close(source);
    store_close(s);
}

TEST(packs_are_kept_by_key_and_checked)
{
    struct store *s = fake_store(fake_store_path());
    CHECK(s);
    struct adapter_source *source;
    struct err err = {0};
    CHECK_OK(store_source_open(&source, s, &err), err);
    const char *id = fake_id(1);
    uint64_t size = 0;
    char got[6] = "";
    CHECK_CODE(source->ops->pack_size(source, id, "cpu 1", &size, &err), ERR_NOT_FOUND, err);
    CHECK_OK(source->ops->pack_write(source, id, "cpu 1", "bytes", 5, &err), err);
    CHECK_OK(source->ops->pack_size(source, id, "cpu 1", &size, &err), err);
    EXPECT_INT(size, 5);
    CHECK_OK(source->ops->pack_read(source, id, "cpu 1", got, 5, &err), err);
    EXPECT_STR(got, "bytes");
    CHECK_CODE(source->ops->pack_size(source, id, "cpu 2", &size, &err), ERR_NOT_FOUND, err);
    CHECK_CODE(source->ops->pack_read(source, id, "cpu 1", got, 4, &err), ERR_CORRUPT, err);
    // It was taken for spoiled, and is made again.
    CHECK_OK(source->ops->pack_write(source, id, "cpu 1", "bytes", 5, &err), err);
    char command[5000];
    snprintf(command, sizeof command,
             "for f in '%s'/cache/packs/*/*; do"
             " printf X | dd of=\"$f\" bs=1 seek=82 conv=notrunc 2>/dev/null; done",
             store_path(s));
    CHECK(system(command) == 0);
    CHECK_CODE(source->ops->pack_read(source, id, "cpu 1", got, 5, &err), ERR_CORRUPT, err);
    CHECK_CODE(source->ops->pack_size(source, id, "cpu 1", &size, &err), ERR_NOT_FOUND, err);
    source->ops->close(source);
    store_close(s);
}

TEST(the_cache_keeps_what_was_used_last)
{
    struct store *s = fake_store(fake_store_path());
    CHECK(s);
    struct err err = {0};
    char *data = calloc(1, 1000);
    struct id_set keep = {0};
    for (unsigned i = 0; i < 10; i++) {
        char key[16];
        snprintf(key, sizeof key, "key %u", i);
        CHECK_OK(cache_pack_write(store_path(s), fake_id(1), key, data, 1000, 1 << 30, &err), err);
        usleep(12000); // file times have a grain
    }
    CHECK_OK(cache_pack_read(store_path(s), fake_id(1), "key 0", data, 1000, &err), err);
    CHECK_OK(id_set_add(&keep, fake_id(1), &err), err);
    CHECK_OK(cache_sweep(s, &keep, 4000, false, NULL, NULL, &err), err);
    uint64_t size;
    EXPECT_INT(cache_pack_size(store_path(s), fake_id(1), "key 0", &size, &err), 0);
    EXPECT_INT(cache_pack_size(store_path(s), fake_id(1), "key 9", &size, &err), 0);
    EXPECT_INT(cache_pack_size(store_path(s), fake_id(1), "key 1", &size, &err), ERR_NOT_FOUND);
    id_set_release(&keep);
    CHECK_OK(cache_sweep(s, &keep, 4000, false, NULL, NULL, &err), err);
    EXPECT_INT(cache_pack_size(store_path(s), fake_id(1), "key 0", &size, &err), ERR_NOT_FOUND);
    free(data);
    store_close(s);
}

TEST(a_base_that_changed_is_refused)
{
    char folder[4300], command[14000];
    snprintf(folder, sizeof folder, "%s/base", test_tmp());
    snprintf(command, sizeof command, "rm -rf '%s' && cp -r '%s/examples/tinytalk/base' '%s'",
             folder, test_root(), folder);
    CHECK(system(command) == 0);
    struct store *s = fake_store(fake_store_path());
    CHECK(s);
    struct import_result r;
    struct err err = {0};
    struct import_options opt = {.name = "b"};
    CHECK_OK(import_base(s, folder, &opt, &r, &err), err);
    char *found;
    CHECK_OK(store_base_folder(s, r.id, &found, &err), err);
    EXPECT(strstr(found, "/base") != NULL);
    sys_free(found);
    snprintf(command, sizeof command, "touch -d 2001-01-01 '%s/model.safetensors'", folder);
    CHECK(system(command) == 0);
    CHECK_CODE(store_base_folder(s, r.id, &found, &err), ERR_REFUSED, err);
    CHECK_MSG(strstr(err.msg, "model.safetensors"), "%s", err.msg);
    // The same bytes with another time: importing it again says that it is still the one.
    import_result_release(&r);
    CHECK_OK(import_base(s, folder, &opt, &r, &err), err);
    CHECK_OK(store_base_folder(s, r.id, &found, &err), err);
    sys_free(found);
    // A copy stands on its own.
    import_result_release(&r);
    opt.copy = true;
    CHECK_OK(import_base(s, folder, &opt, &r, &err), err);
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    CHECK(system(command) == 0);
    CHECK_OK(store_base_folder(s, r.id, &found, &err), err);
    struct base_model *b;
    CHECK_OK(base_model_open(&b, s, r.id, &err), err);
    EXPECT(!b->sampled);
    base_model_free(b);
    sys_free(found);
    import_result_release(&r);
    store_close(s);
}
