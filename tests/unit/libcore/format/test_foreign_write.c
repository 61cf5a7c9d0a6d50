/* What is written is read back as the same adapter, or refused by name; failing calls leave nothing
 * half done. */
#include <stdio.h>
#include <stdlib.h>

#include "libcore/adapter/bake.h"
#include "libcore/adapter/content_id.h"
#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/adapter_file.h"
#include "libcore/format/foreign_write.h"
#include "tests/lib/test.h"

static const struct gguf_target llama = {.architecture = "llama", .n_heads = 8, .n_kv_heads = 2};
static const struct peft_options heads = {.n_heads = 8, .n_kv_heads = 2};
enum target { KOHYA, MLX, GGUF, N_TARGETS };

static int write_target(const struct adapter *a, enum target t, const char *folder, struct err *err)
{
    return t == KOHYA ? kohya_write(a, folder, err)
           : t == MLX ? mlx_write(a, folder, err)
                      : gguf_lora_write(a, folder, &llama, err);
}

static struct adapter *read_golden(const char *name)
{
    struct adapter *a = NULL;
    struct err err = {0};
    char path[1024];
    snprintf(path, sizeof path, "%s/tests/golden/foreign/%s", test_root(), name);
    if (adapter_file_read(&a, path, NULL, &err) != 0 || content_id_compute(a, 1, &err) != 0)
        test_fail(__FILE__, __LINE__, "%s: %s", path, err.msg);
    return a;
}

static const char *fresh_folder(void)
{
    static char path[1024];
    static unsigned n;
    struct err err = {0};
    snprintf(path, sizeof path, "%s/out%u", test_tmp(), n++);
    file_make_folders(path, &err);
    return path;
}

static void expect_round_trip(const char *name, enum target t)
{
    struct adapter *a = read_golden(name), *back = NULL;
    struct err err = {0};
    CHECK(a);
    const char *folder = fresh_folder();
    CHECK_OK(write_target(a, t, folder, &err), err);
    CHECK_OK(adapter_file_read(&back, folder, &heads, &err), err);
    CHECK_OK(content_id_compute(back, 1, &err), err);
    EXPECT_STR(back->content_id, a->content_id);
    adapter_free(a);
    adapter_free(back);
}

TEST(what_is_written_comes_back)
{
    for (int t = 0; t < N_TARGETS; t++) {
        expect_round_trip("plain/peft", (enum target)t);
        expect_round_trip("unscaled/peft", (enum target)t);
    }
    expect_round_trip("mixed/peft", KOHYA);
    expect_round_trip("dora/peft", MLX);
}

static void expect_refused(const char *name, enum target t, const char *words)
{
    struct adapter *a = read_golden(name);
    struct err err = {0};
    CHECK(a);
    const char *folder = fresh_folder();
    CHECK_CODE(write_target(a, t, folder, &err), ERR_REFUSED, err);
    EXPECT_MSG(strstr(err.msg, words), "%s", err.msg);
    adapter_free(a);
}

TEST(what_cannot_be_said_is_refused_with_the_way_out)
{
    expect_refused("mixed/peft", MLX, "--bake-scale");
    expect_refused("mixed/peft", GGUF, "--bake-scale");
    expect_refused("dora/peft", KOHYA, "DoRA has no form in kohya");
    expect_refused("dora/peft", GGUF, "DoRA has no form in GGUF");
}

TEST(baking_keeps_the_product_and_makes_one_rank)
{
    struct adapter *a = read_golden("mixed/peft"), *baked = NULL;
    struct err err = {0};
    struct bake_report report;
    CHECK(a && a->min_rank < a->max_rank);
    CHECK_OK(adapter_bake(&baked, a, &report, &err), err);
    EXPECT_INT(report.n_modules, a->n_modules);
    EXPECT(report.n_rounded > 0 && report.max_error > 0 && report.max_error <= 0x1p-24);
    EXPECT_INT(baked->min_rank, a->max_rank);
    for (size_t k = 0; k < a->n_modules; k++) {
        const struct adapter_module *m = &a->modules[k], *n = &baked->modules[k];
        CHECK(n->scale == 1 && n->alpha == n->rank);
        for (uint64_t o = 0; o < m->b.shape[0]; o++) {
            const float *was = tensor_row(&m->b, o), *is = tensor_row(&n->b, o);
            for (uint32_t i = 0; i < n->rank; i++)
                EXPECT(is[i] == (i < m->rank ? (float)(m->scale * (double)was[i]) : 0.0f));
        }
        EXPECT(memcmp(n->a.data, m->a.data, tensor_n_bytes(&m->a)) == 0);
    }
    adapter_free(a);
    adapter_free(baked);
}

TEST(failing_calls_while_foreign_files_are_written)
{
    struct adapter *a = read_golden("unscaled/peft");
    CHECK(a);
    for (int t = 0; t <= N_TARGETS; t++) {
        for (uint64_t n = 1;; n++) {
            struct err err = {0};
            struct adapter *back = NULL, *baked = NULL;
            const char *folder = fresh_folder();
            sys_fault(SYS_FAULT_FAIL, SYS_FAULT_ALL, n);
            int rc = t == N_TARGETS ? adapter_bake(&baked, a, NULL, &err)
                                    : write_target(a, (enum target)t, folder, &err);
            bool hit = sys_fault_hit();
            sys_fault(SYS_FAULT_OFF, 0, 0);
            EXPECT_MSG(hit || !rc, "%d: %s", rc, err.msg);
            EXPECT_MSG(!rc || rc == ERR_NO_MEMORY || rc == ERR_IO, "%d: %s", rc, err.msg);
            if (!rc && t != N_TARGETS) // a call that did not matter
                CHECK_OK(adapter_file_read(&back, folder, &heads, &err), err);
            adapter_free(back);
            adapter_free(baked);
            if (!hit)
                break;
        }
    }
    adapter_free(a);
}
