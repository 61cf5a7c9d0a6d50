#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>

#include "libcore/adapter/content_id.h"
#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/peft.h"
#include "tests/lib/test.h"

static struct adapter *read_at(const char *fmt, const char *a, const char *b)
{
    static char path[9000];
    struct adapter *out;
    struct err err = {0};
    snprintf(path, sizeof path, fmt, a, b);
    if (peft_read(&out, path, NULL, &err) != 0)
        test_fail(__FILE__, __LINE__, "%s: %s", path, err.msg);
    return out;
}

/* Reads every adapter of folder/adapters. */
static size_t read_all(const char *folder)
{
    char adapters[4400];
    char **names;
    size_t n;
    struct err err = {0};
    snprintf(adapters, sizeof adapters, "%s/adapters", folder);
    if (file_list(adapters, &names, &n, &err) != 0) {
        test_fail(__FILE__, __LINE__, "%s", err.msg);
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        struct adapter *a = read_at("%s/%s", adapters, names[i]);
        if (a) {
            EXPECT_STR(a->name, names[i]);
            EXPECT(a->n_modules > 0 && a->n_parameters > 0);
        }
        adapter_free(a);
    }
    file_free_names(names, n);
    return n;
}

TEST(every_fixture_is_read)
{
    char path[4300];
    const char *fixtures = test_fixtures();
    if (!fixtures) {
        test_skip("no fixtures beside the checkout");
        return;
    }
    static const char *const groups[] = {"kinds", "archs"};
    size_t total = 0;
    for (size_t g = 0; g < 2; g++) {
        char **names;
        size_t n;
        struct err err = {0};
        snprintf(path, sizeof path, "%s/%s", fixtures, groups[g]);
        CHECK_OK(file_list(path, &names, &n, &err), err);
        for (size_t i = 0; i < n; i++) {
            snprintf(path, sizeof path, "%s/%s/%s", fixtures, groups[g], names[i]);
            if (file_is_folder(path))
                total += read_all(path);
        }
        file_free_names(names, n);
    }
    EXPECT_INT(total, 45 + 22);
}

TEST(refused_fixtures_say_the_field)
{
    const char *fixtures = test_fixtures();
    if (!fixtures) {
        test_skip("no fixtures beside the checkout");
        return;
    }
    static const char *const bases[] = {"llama-tied", "llama-untied", "qwen2-bias"};
    for (size_t i = 0; i < 3; i++) {
        char path[4300];
        struct adapter *a;
        struct err err = {0};
        snprintf(path, sizeof path, "%s/kinds/%s/refuse/pissa-raw", fixtures, bases[i]);
        CHECK_CODE(peft_read(&a, path, NULL, &err), ERR_REFUSED, err);
        EXPECT(a == NULL && strstr(err.msg, "init_lora_weights: pissa"));
    }
}
