/*
 * Memory that runs out at the n-th call: an error with a message, nothing leaked (VARIANT=asan).
 */
#include "libcore/merge/extract.h"
#include "libcore/merge/resize.h"
#include "tests/lib/fault.h"
#include "tests/unit/libcore/merge/combine_rig.h"

static const struct rig_module modules[] = {
    {"model.layers.0.mlp.experts", "down_proj", 10, 12, 2, 2, 1.5, false},
    {"model.layers.0.self_attn.q_proj", NULL, 16, 12, 3, 0, 2, false},
};
static const float trained[16] = {1, 2};

struct work {
    struct adapter *a, *b;
    struct combine_options combine;
    struct resize_options resize;
};

static int combine_once(void *arg, struct err *err)
{
    const struct work *w = arg;
    const struct combine_input inputs[] = {{w->a, 1, "a"}, {w->b, 0.3, "b"}};
    struct adapter *c;
    struct combine_report *r;
    int rc = combine_adapters(&c, &r, inputs, 2, &w->combine, err);
    adapter_free(c);
    combine_report_free(r);
    return rc;
}

static int resize_once(void *arg, struct err *err)
{
    const struct work *w = arg;
    struct adapter *c;
    struct combine_report *r;
    int rc = resize_adapter(&c, &r, w->a, &w->resize, err);
    adapter_free(c);
    combine_report_free(r);
    return rc;
}

TEST(every_allocation_of_combining_and_resizing_may_fail)
{
    static const char *const methods[] = {"cat", "linear", "slerp", "ties", "della"};
    struct work w = {rig_adapter(1, modules, 2), rig_adapter(2, modules, 2), {0}, {.n_threads = 1}};
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        w.combine = rig_options(methods[i], COMBINE_OWN);
        w.combine.n_threads = 1;
        if (w.combine.density > 0)
            w.combine.density = 0.5;
        EXPECT(test_each_fault(SYS_FAULT_MEM, false, combine_once, &w) > 10);
    }
    w.resize.rank = 2;
    EXPECT(test_each_fault(SYS_FAULT_MEM, false, resize_once, &w) > 10);
    adapter_free(w.a);
    adapter_free(w.b);
}

TEST(also_where_something_is_taken_over)
{
    const struct rig_module other = {"model.layers.1.self_attn.q_proj", NULL, 16, 12, 3, 0, 2, 0};
    struct work w = {rig_adapter(1, modules + 1, 1), rig_adapter(2, &other, 1), {0}, {0}};
    w.a->modules[0].bias = w.a->modules[0].lora_bias =
        (struct tensor){.dtype = DTYPE_F32, .n_dims = 1, .shape = {16}, .data = trained};
    w.combine = rig_options("cat", COMBINE_OWN);
    w.combine.n_threads = 1;
    w.resize = (struct resize_options){.rank = 2, .n_threads = 1};
    EXPECT(test_each_fault(SYS_FAULT_MEM, false, combine_once, &w) > 10);
    EXPECT(test_each_fault(SYS_FAULT_MEM, false, resize_once, &w) > 10);
    adapter_free(w.a);
    adapter_free(w.b);
}

static int extract_once(void *arg, struct err *err)
{
    const char *const *folders = arg;
    const struct extract_options opt = {.rank = 2, .n_threads = 1};
    struct adapter *a;
    struct extract_report *r;
    int rc = extract_adapter(&a, &r, folders[0], folders[1], &opt, err);
    adapter_free(a);
    extract_report_free(r);
    return rc == ERR_REFUSED ? 0 : rc; // nothing differs: all was read
}

TEST(every_call_of_an_extraction_may_fail)
{
    char base[4096];
    if (!test_fixtures()) {
        test_skip("no fixtures");
        return;
    }
    snprintf(base, sizeof base, "%s/archs/mistral", test_fixtures());
    const char *folders[] = {base, base};
    EXPECT(test_each_fault(SYS_FAULT_MEM, false, extract_once, folders) > 50);
}
