#include <stdio.h>
#include <stdlib.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/peft.h"
#include "libcore/model/bind.h"
#include "tests/lib/test.h"

struct base {
    struct model_config config;
    struct model_modules *modules;
    struct checkpoint *checkpoint;
};

static bool open_base(struct base *b, const char *folder)
{
    struct err err = {0};
    memset(b, 0, sizeof *b);
    if (config_read(&b->config, folder, &err) || modules_open(&b->modules, &b->config, &err) ||
        checkpoint_open(&b->checkpoint, folder, &err)) {
        test_fail(__FILE__, __LINE__, "%s: %s", folder, err.msg);
        return false;
    }
    return true;
}

static void close_base(struct base *b)
{
    checkpoint_free(b->checkpoint);
    modules_free(b->modules);
    config_release(&b->config);
}

struct outcome {
    unsigned kinds, kinds_kept; // before and after saved base layers were dropped
    uint32_t n_vocab;
    size_t n_parts, n_parts_kept, n_warnings;
};

static struct outcome bind_path(const struct base *b, const char *path)
{
    struct outcome o = {0};
    struct adapter *a;
    struct bound_adapter *bound = NULL;
    struct err err = {0};
    if (peft_read(&a, path, NULL, &err) || bind_adapter(&bound, a, b->modules, &b->config, &err)) {
        test_fail(__FILE__, __LINE__, "%s: %s", path, err.msg);
        adapter_free(a);
        return o;
    }
    o.kinds = bound->kinds;
    o.n_parts = bound->n_parts;
    o.n_vocab = bound->n_vocab;
    o.n_warnings = json_array_size(bound->warnings);
    if (bind_drop_saved_base(bound, b->modules, b->checkpoint, &err) != 0)
        test_fail(__FILE__, __LINE__, "%s: %s", path, err.msg);
    o.kinds_kept = bound->kinds;
    o.n_parts_kept = bound->n_parts;
    bound_free(bound);
    adapter_free(a);
    return o;
}

static size_t bind_folder(const char *base_folder, const char *adapters)
{
    struct base b;
    char **names = NULL;
    size_t n = 0;
    struct err err = {0};
    if (!open_base(&b, base_folder) || file_list(adapters, &names, &n, &err) != 0)
        return 0;
    for (size_t i = 0; i < n; i++) {
        char *path = file_join(adapters, names[i]);
        struct outcome o = bind_path(&b, path);
        EXPECT_MSG(o.n_warnings == 0, "%s: %zu warnings", path, o.n_warnings);
        sys_free(path);
    }
    file_free_names(names, n);
    close_base(&b);
    return n;
}

TEST(every_tinytalk_adapter_binds)
{
    char base[4200], adapters[4200];
    snprintf(base, sizeof base, "%s/examples/tinytalk/base", test_root());
    snprintf(adapters, sizeof adapters, "%s/examples/tinytalk/adapters", test_root());
    EXPECT_INT(bind_folder(base, adapters), 8);
}

TEST(every_fixture_binds_to_its_base)
{
    static const char *const bases[] = {
        "kinds/llama-tied", "kinds/llama-untied", "kinds/qwen2-bias", "archs/llama31-tied",
        "archs/mistral",    "archs/qwen2",        "archs/qwen3",      "archs/gemma3",
        "archs/phi3",       "archs/mixtral",      "archs/qwen3moe"};
    const char *fixtures = test_fixtures();
    size_t total = 0;
    if (!fixtures) {
        test_skip("no fixtures beside the checkout");
        return;
    }
    for (size_t i = 0; i < sizeof bases / sizeof *bases; i++) {
        char base[4400], adapters[4500];
        snprintf(base, sizeof base, "%s/%s", fixtures, bases[i]);
        snprintf(adapters, sizeof adapters, "%s/adapters", base);
        total += bind_folder(base, adapters);
    }
    EXPECT_INT(total, 45 + 22);
}
