#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/checkpoint.h"
#include "libcore/format/generation_config.h"
#include "libcore/format/hub.h"
#include "libcore/format/safetensors_writer.h"
#include "tests/lib/test.h"

static const char *folder_of(const char *name)
{
    static char path[4200];
    struct err err = {0};
    snprintf(path, sizeof path, "%s/%s", test_tmp(), name);
    if (file_make_folders(path, &err) != 0)
        test_fail(__FILE__, __LINE__, "%s", err.msg);
    return path;
}

static void write_text(const char *folder, const char *name, const char *text)
{
    char path[4600];
    struct err err = {0};
    snprintf(path, sizeof path, "%s/%s", folder, name);
    CHECK_OK(file_write_atomic(path, text, strlen(text), &err), err);
}

static void write_shard(const char *folder, const char *file, const char *tensor)
{
    char path[4300];
    struct err err = {0};
    struct safetensors_writer *w;
    uint64_t shape[1] = {2};
    float v[2] = {1, 2};
    snprintf(path, sizeof path, "%s/%s", folder, file);
    CHECK_OK(safetensors_writer_open(&w, path, &err), err);
    CHECK_OK(safetensors_writer_declare(w, tensor, DTYPE_F32, 1, shape, &err), err);
    CHECK_OK(safetensors_writer_begin(w, &err), err);
    CHECK_OK(safetensors_writer_put(w, tensor, 0, v, sizeof v, &err), err);
    CHECK_OK(safetensors_writer_finish(w, &err), err);
    safetensors_writer_free(w);
}

TEST(single_file_checkpoint_is_listed)
{
    char folder[4200];
    struct err err = {0};
    struct checkpoint *c;
    snprintf(folder, sizeof folder, "%s/examples/tinytalk/base", test_root());
    CHECK(checkpoint_looks_like(folder));
    CHECK_OK(checkpoint_open(&c, folder, &err), err);
    const struct checkpoint_tensor *t = checkpoint_find(c, "model.embed_tokens.weight");
    CHECK(t != NULL);
    EXPECT_INT(t->value.dtype, DTYPE_BF16);
    EXPECT_INT(t->value.shape[0], 2048);
    EXPECT(checkpoint_find(c, "model.nothing") == NULL);
    EXPECT_INT(checkpoint_n_shards(c), 1);
    size_t n_weights = 0;
    for (size_t i = 0; i < checkpoint_n_files(c); i++) {
        const struct checkpoint_file *f = checkpoint_file_at(c, i);
        n_weights += f->weights;
        EXPECT(f->size > 0 && f->mtime_ns > 0);
    }
    EXPECT_INT(n_weights, 1);
    EXPECT_INT(checkpoint_n_files(c), 6);
    checkpoint_free(c);
}

TEST(sharded_checkpoint_is_one_table)
{
    const char *folder = folder_of("sharded");
    struct err err = {0};
    struct checkpoint *c;
    write_shard(folder, "model-00001-of-00002.safetensors", "b");
    write_shard(folder, "model-00002-of-00002.safetensors", "a");
    write_text(folder, "model.safetensors.index.json",
               "{\"metadata\":{},\"weight_map\":{\"b\":\"model-00001-of-00002.safetensors\","
               "\"a\":\"model-00002-of-00002.safetensors\"}}");
    CHECK_OK(checkpoint_open(&c, folder, &err), err);
    CHECK_INT(checkpoint_count(c), 2);
    EXPECT_STR(checkpoint_at(c, 0)->name, "a");
    EXPECT_INT(checkpoint_at(c, 0)->shard_idx, 1);
    EXPECT_INT(checkpoint_weight_bytes(c), 16);
    checkpoint_free(c);
}

static void refuse_index(const char *name, const char *index, int code, const char *word)
{
    const char *folder = folder_of(name);
    struct err err = {0};
    struct checkpoint *c;
    write_shard(folder, "one.safetensors", "a");
    write_shard(folder, "two.safetensors", "a");
    write_text(folder, "model.safetensors.index.json", index);
    int rc = checkpoint_open(&c, folder, &err);
    EXPECT_MSG(rc == code && strstr(err.msg, word), "%s: %d: %s", name, rc, err.msg);
    EXPECT(c == NULL);
}

TEST(index_must_stay_in_the_folder_and_tell_the_truth)
{
    refuse_index("i1", "{\"weight_map\":{\"a\":\"../one.safetensors\"}}", ERR_CORRUPT,
                 "no file of the folder");
    refuse_index("i2", "{\"weight_map\":{\"a\":\"/etc/passwd\"}}", ERR_CORRUPT,
                 "no file of the folder");
    refuse_index("i3", "{\"weight_map\":{\"a\":\"three.safetensors\"}}", ERR_CORRUPT, "not there");
    refuse_index("i4", "{\"weight_map\":{\"b\":\"one.safetensors\"}}", ERR_CORRUPT,
                 "weight_map puts");
    refuse_index("i5", "{\"weight_map\":{\"a\":\"one.safetensors\",\"a\":\"two.safetensors\"}}",
                 ERR_CORRUPT, "duplicate");
    refuse_index("i6", "{\"weight_map\":{\"a\":1}}", ERR_CORRUPT, "file name");
    refuse_index("i7", "{\"weight_map\":{}}", ERR_CORRUPT, "weight_map");
    refuse_index("i8", "{", ERR_CORRUPT, "line 1");
}

TEST(tensor_in_two_shards_is_corrupt)
{
    const char *folder = folder_of("two");
    struct err err = {0};
    struct checkpoint *c;
    write_shard(folder, "one.safetensors", "a");
    char path[4300];
    snprintf(path, sizeof path, "%s/two.safetensors", folder);
    struct safetensors_writer *w;
    uint64_t shape[1] = {2};
    float v[2] = {1, 2};
    CHECK_OK(safetensors_writer_open(&w, path, &err), err);
    CHECK_OK(safetensors_writer_declare(w, "a", DTYPE_F32, 1, shape, &err), err);
    CHECK_OK(safetensors_writer_declare(w, "b", DTYPE_F32, 1, shape, &err), err);
    CHECK_OK(safetensors_writer_begin(w, &err), err);
    CHECK_OK(safetensors_writer_put(w, "a", 0, v, 8, &err), err);
    CHECK_OK(safetensors_writer_put(w, "b", 0, v, 8, &err), err);
    CHECK_OK(safetensors_writer_finish(w, &err), err);
    safetensors_writer_free(w);
    write_text(folder, "model.safetensors.index.json",
               "{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}");
    CHECK_CODE(checkpoint_open(&c, folder, &err), ERR_CORRUPT, err);
    EXPECT(strstr(err.msg, "both in"));
}

TEST(pickle_checkpoint_is_refused_by_name)
{
    const char *folder = folder_of("pickled");
    struct err err = {0};
    struct checkpoint *c;
    write_text(folder, "config.json", "{}");
    write_text(folder, "pytorch_model-00001-of-00002.bin", "PK\003\004");
    EXPECT(checkpoint_looks_like(folder));
    CHECK_CODE(checkpoint_open(&c, folder, &err), ERR_REFUSED, err);
    EXPECT(strstr(err.msg, "pytorch_model-00001-of-00002.bin") && strstr(err.msg, "pickle"));
    const char *empty = folder_of("empty");
    EXPECT(!checkpoint_looks_like(empty));
    CHECK_CODE(checkpoint_open(&c, empty, &err), ERR_NOT_FOUND, err);
    CHECK_CODE(checkpoint_open(&c, "/nowhere/at/all", &err), ERR_NOT_FOUND, err);
}

TEST(generation_config_fields_are_read)
{
    const char *folder = folder_of("generation");
    struct generation_config g;
    struct err err = {0};
    CHECK_OK(generation_config_read(&g, folder, &err), err);
    EXPECT(!g.present && g.n_eos == 0 && g.bos_id == -1);
    write_text(folder, "generation_config.json",
               "{\"eos_token_id\":[128001,128008],\"bos_token_id\":5,\"pad_token_id\":null,"
               "\"temperature\":0.6,\"top_p\":0.9,\"do_sample\":true,\"top_k\":20,"
               "\"repetition_penalty\":1.05,\"unknown\":{}}");
    CHECK_OK(generation_config_read(&g, folder, &err), err);
    EXPECT_INT(g.n_eos, 2);
    EXPECT_INT(g.eos_ids[1], 128008);
    EXPECT_INT(g.bos_id, 5);
    EXPECT_INT(g.pad_id, -1);
    EXPECT(g.has_temperature && g.has_top_p && g.has_do_sample && g.do_sample && !g.has_min_p);
    EXPECT_INT(g.top_k, 20);
    EXPECT_NEAR(g.repetition_penalty, 1.05, 1e-12);
    write_text(folder, "generation_config.json", "{\"temperature\":\"hot\"}");
    CHECK_CODE(generation_config_read(&g, folder, &err), ERR_CORRUPT, err);
    EXPECT(strstr(err.msg, ":temperature:"));
    write_text(folder, "generation_config.json", "{\"eos_token_id\":[-1]}");
    CHECK_CODE(generation_config_read(&g, folder, &err), ERR_CORRUPT, err);
}

static void expect_hub(const char *id, int code, const char *ends)
{
    char *path;
    struct err err = {0};
    int rc = hub_find(&path, id, &err);
    EXPECT_MSG(rc == code, "%s: %d: %s", id, rc, err.msg);
    if (!rc) {
        size_t n = strlen(path), m = strlen(ends);
        EXPECT_MSG(n > m && strcmp(path + n - m, ends) == 0, "%s: %s", id, path);
    }
    sys_free(path);
}

TEST(hub_ids_resolve_in_the_local_cache)
{
    char home[4200];
    struct err err = {0};
    snprintf(home, sizeof home, "%s", folder_of("hf"));
    unsetenv("HF_HUB_CACHE");
    unsetenv("HUGGINGFACE_HUB_CACHE");
    setenv("HF_HOME", home, 1);
    folder_of("hf/hub/models--org--name/snapshots/0123456789abcdef");
    folder_of("hf/hub/models--org--name/snapshots/fedcba9876543210");
    folder_of("hf/hub/models--org--name/refs/pr");
    char repo[4300];
    snprintf(repo, sizeof repo, "%s/hub/models--org--name/refs", home);
    write_text(repo, "main", "0123456789abcdef\n");
    write_text(repo, "pr/1", "fedcba9876543210");
    write_text(repo, "evil", "../../../etc");
    expect_hub("org/name", 0, "/0123456789abcdef");
    expect_hub("org/name@main", 0, "/0123456789abcdef");
    expect_hub("org/name@pr/1", 0, "/fedcba9876543210");
    expect_hub("org/name@fedcba", 0, "/fedcba9876543210");
    expect_hub("org/name@fedcba9876543210", 0, "/fedcba9876543210");
    expect_hub("org/name@evil", ERR_NOT_FOUND, "");
    expect_hub("org/name@fed", ERR_NOT_FOUND, "");
    expect_hub("org/other", ERR_NOT_FOUND, "");
    expect_hub("org/name@../x", ERR_USAGE, "");
    expect_hub("../name", ERR_USAGE, "");
    expect_hub("name", ERR_USAGE, "");
    expect_hub("a/b/c", ERR_USAGE, "");
    folder_of("hf/hub/models--a--b/snapshots/111111111");
    expect_hub("a/b", 0, "/111111111"); // no refs/main: the only one
    folder_of("hf/hub/models--a--b/snapshots/222222222");
    expect_hub("a/b", ERR_NOT_FOUND, "");
    char *path;
    CHECK_OK(hub_find(&path, "org/name", &err), err);
    char *name = hub_name_of_path(path);
    EXPECT_STR(name, "org/name");
    sys_free(name);
    sys_free(path);
    EXPECT(hub_name_of_path("/home/me/model") == NULL);
    unsetenv("HF_HOME");
}

TEST(every_failed_call_of_checkpoint_open_is_an_error_and_no_leak)
{
    char folder[4200];
    snprintf(folder, sizeof folder, "%s/sharded", test_tmp());
    if (!file_exists(folder))
        return; // made by the test above, when it is chosen
    for (uint64_t n = 1; n < 1000; n++) {
        struct checkpoint *c;
        struct err err = {0};
        sys_fault(SYS_FAULT_FAIL, SYS_FAULT_MEM, n);
        int rc = checkpoint_open(&c, folder, &err);
        bool hit = sys_fault_hit();
        sys_fault(SYS_FAULT_OFF, 0, 0);
        checkpoint_free(c);
        if (!hit) {
            CHECK_OK(rc, err);
            return;
        }
        EXPECT_MSG(rc != 0 && err.msg[0], "allocation %llu: %d", (unsigned long long)n, rc);
    }
}
