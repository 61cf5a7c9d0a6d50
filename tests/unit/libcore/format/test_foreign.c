/* Every foreign form of an adapter is the adapter: tests/golden/foreign was made by other software.
 */
#include <dirent.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "libcore/adapter/content_id.h"
#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/adapter_file.h"
#include "tests/lib/test.h"

static const char *golden(const char *name)
{
    static char paths[4][1024];
    static unsigned turn;
    char *path = paths[turn++ % 4];
    snprintf(path, sizeof paths[0], "%s/tests/golden/foreign/%s", test_root(), name);
    return path;
}

/* tinytalk's heads: for GGUF. */
static const struct peft_options tinytalk = {.n_heads = 8, .n_kv_heads = 2};

static void expect_same(const char *set, const char *name, const char *format)
{
    struct adapter *want = NULL, *got = NULL;
    struct err err = {0};
    char path[200];
    snprintf(path, sizeof path, "%s/peft", set);
    CHECK_OK(adapter_file_read(&want, golden(path), NULL, &err), err);
    CHECK_OK(content_id_compute(want, 1, &err), err);
    snprintf(path, sizeof path, "%s/%s", set, name);
    EXPECT_MSG(adapter_file_looks_like(golden(path)), "%s is not recognised", path);
    int rc = adapter_file_read(&got, golden(path), &tinytalk, &err);
    if (!rc)
        rc = content_id_compute(got, 1, &err);
    EXPECT_MSG(rc == 0, "%s: %s", path, err.msg);
    if (!rc) {
        EXPECT_MSG(strcmp(got->content_id, want->content_id) == 0, "%s: another content", path);
        EXPECT_STR(got->format, format);
        EXPECT_INT(got->n_modules, want->n_modules);
        EXPECT_INT(got->kinds, want->kinds);
    }
    adapter_free(got);
    adapter_free(want);
}

TEST(every_form_has_the_content_id_of_its_peft_form)
{
    expect_same("plain", "bin", "peft");
    expect_same("plain", "bin-old", "peft");
    expect_same("plain", "bin-views", "peft");
    expect_same("plain", "bin/adapter_model.bin", "peft");
    expect_same("plain", "kohya.safetensors", "kohya");
    expect_same("plain", "diffusers.safetensors", "diffusers");
    expect_same("plain", "mlx", "mlx");
    expect_same("plain", "mlx/adapters.safetensors", "mlx");
    expect_same("plain", "llama.gguf", "gguf");
}

TEST(no_alpha_is_a_scale_of_one)
{
    expect_same("unscaled", "kohya.safetensors", "kohya");
    expect_same("unscaled", "diffusers.safetensors", "diffusers");
    expect_same("unscaled", "alpha0.gguf", "gguf");
    expect_same("unscaled", "noalpha.gguf", "gguf");
}

TEST(alpha_by_module_dora_and_q8_0)
{
    expect_same("mixed", "kohya.safetensors", "kohya");
    expect_same("dora", "kohya.safetensors", "kohya");
    expect_same("dora", "mlx", "mlx");
    expect_same("q8", "q8.gguf", "gguf");
}

TEST(gguf_of_llama_without_the_base_is_refused)
{
    struct adapter *a;
    struct err err = {0};
    CHECK_CODE(adapter_file_read(&a, golden("plain/llama.gguf"), NULL, &err), ERR_REFUSED, err);
    EXPECT(strstr(err.msg, "--base") && !a);
}

/* Each file of expected.json with what its message must hold. */
static void expect_refusals(const char *folder, int code)
{
    json_error_t e;
    char path[200];
    const char *name;
    json_t *words;
    snprintf(path, sizeof path, "%s/expected.json", folder);
    json_t *expected = json_load_file(golden(path), 0, &e);
    CHECK(json_object_size(expected) > 0);
    json_object_foreach(expected, name, words)
    {
        struct adapter *a = NULL;
        struct err err = {0};
        char file[200];
        snprintf(file, sizeof file, "%s/%s", folder, name);
        int rc = adapter_file_read(&a, golden(file), &tinytalk, &err);
        EXPECT_MSG(rc == code, "%s gives %d: %s", name, rc, err.msg);
        EXPECT_MSG(strstr(err.msg, json_string_value(words)), "%s: '%s' lacks '%s'", name, err.msg,
                   json_string_value(words));
        EXPECT(!a);
    }
    json_decref(expected);
}

TEST(what_cannot_be_had_is_refused_by_name)
{
    expect_refusals("refuse", ERR_REFUSED);
}

TEST(hostile_pickles_are_corrupt_and_have_no_effect)
{
    const char *mark = "/tmp/lora-hostile-was-here";
    unlink(mark);
    struct err err = {0};
    struct adapter *a = NULL;
    // Beside a sound configuration, so that it is the pickle that is refused.
    CHECK_OK(adapter_file_read(&a, golden("plain/bin"), NULL, &err), err);
    adapter_free(a);
    expect_refusals("hostile", ERR_CORRUPT);
    EXPECT(!file_exists(mark));
}

TEST(files_of_an_adapter_in_each_form)
{
    static const struct {
        const char *path;
        size_t n;
        const char *weights;
    } cases[] = {
        {"plain/bin", 2, "adapter_model.bin"},
        {"plain/kohya.safetensors", 1, "kohya.safetensors"},
        {"plain/llama.gguf", 1, "llama.gguf"},
        {"plain/mlx", 2, "adapters.safetensors"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct peft_files f;
        struct err err = {0};
        CHECK_OK(adapter_files_list(&f, golden(cases[i].path), &err), err);
        EXPECT_INT(f.n, cases[i].n);
        EXPECT_STR(f.items[f.n - 1].name, cases[i].weights);
        peft_files_release(&f);
    }
}

TEST(failing_calls_while_foreign_files_are_read)
{
    static const char *const names[] = {"plain/bin", "plain/bin-old", "mixed/kohya.safetensors",
                                        "dora/mlx", "q8/q8.gguf"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        for (uint64_t n = 1;; n++) {
            struct adapter *a = NULL;
            struct err err = {0};
            sys_fault(SYS_FAULT_FAIL, SYS_FAULT_ALL, n);
            int rc = adapter_file_read(&a, golden(names[i]), &tinytalk, &err);
            bool hit = sys_fault_hit();
            sys_fault(SYS_FAULT_OFF, 0, 0);
            EXPECT_MSG(!rc == !!a, "%s: call %llu", names[i], (unsigned long long)n);
            EXPECT_MSG(!rc || rc == ERR_NO_MEMORY || rc == ERR_IO || rc == ERR_NOT_FOUND,
                       "%s: call %llu gives %d: %s", names[i], (unsigned long long)n, rc, err.msg);
            adapter_free(a);
            if (!hit)
                break;
        }
    }
}
