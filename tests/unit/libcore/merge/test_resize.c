#include <stdlib.h>

#include "libcore/merge/resize.h"
#include "tests/unit/libcore/merge/combine_rig.h"

static const struct rig_module modules[] = {
    {"model.embed_tokens", NULL, 24, 60, 3, 0, 0.5, true},
    {"model.layers.0.mlp.experts", "down_proj", 20, 26, 4, 3, 1.5, false},
    {"model.layers.0.self_attn.q_proj", NULL, 32, 24, 8, 0, 2, false},
};

static double loss_of(const struct adapter_module *got, const struct adapter_module *from)
{
    double cut = 0, all = 0;
    for (uint32_t e = 0; e < (from->n_experts ? from->n_experts : 1); e++) {
        size_t n = from->b.shape[0] * from->a.shape[1];
        double *x = rig_delta(got, e), *y = rig_delta(from, e);
        for (size_t i = 0; i < n; i++) {
            cut += (x[i] - y[i]) * (x[i] - y[i]);
            all += y[i] * y[i];
        }
        free(x);
        free(y);
    }
    return sqrt(cut / all);
}

TEST(at_full_rank_no_byte_changes)
{
    struct adapter *a = rig_adapter(1, modules, 3), *out;
    struct combine_report *r;
    struct err err = {0};
    const struct resize_options by_rank = {.rank = 8}, by_energy = {.energy = 1};
    CHECK_OK(resize_adapter(&out, &r, a, &by_rank, &err), err);
    EXPECT(rig_same(a, out) && r->discarded2 == 0);
    combine_report_free(r);
    adapter_free(out);
    CHECK_OK(resize_adapter(&out, &r, a, &by_energy, &err), err);
    EXPECT(rig_same(a, out) && r->discarded2 == 0);
    combine_report_free(r);
    adapter_free(out);
    adapter_free(a);
}

TEST(the_loss_that_is_told_is_the_loss)
{
    struct adapter *a = rig_adapter(1, modules, 3), *out;
    struct combine_report *r;
    struct err err = {0};
    for (uint32_t rank = 1; rank < 8; rank += 2) {
        const struct resize_options opt = {.rank = rank, .n_threads = 2};
        CHECK_OK(resize_adapter(&out, &r, a, &opt, &err), err);
        CHECK_INT(r->n, 3);
        for (size_t i = 0; i < 3; i++) {
            const struct adapter_module *m = &out->modules[i], *from = &a->modules[i];
            CHECK_INT(m->rank, from->rank < rank ? from->rank : rank);
            EXPECT_NEAR(combine_loss(r->modules[i].discarded2, r->modules[i].total2),
                        loss_of(m, from), 1e-6);
        }
        combine_report_free(r);
        adapter_free(out);
    }
    adapter_free(a);
}

TEST(an_energy_is_kept_by_the_fewest_ranks)
{
    struct adapter *a = rig_adapter(1, modules, 3), *out, *less;
    struct combine_report *r;
    struct err err = {0};
    const struct resize_options opt = {.energy = 0.9};
    CHECK_OK(resize_adapter(&out, &r, a, &opt, &err), err);
    const struct adapter_module *q = &out->modules[2];
    EXPECT(q->rank < 8 && loss_of(q, &a->modules[2]) <= sqrt(0.1));
    combine_report_free(r);
    const struct resize_options one_less = {.rank = q->rank - 1};
    CHECK_OK(resize_adapter(&less, &r, a, &one_less, &err), err);
    EXPECT(loss_of(&less->modules[2], &a->modules[2]) > sqrt(0.1));
    combine_report_free(r);
    adapter_free(less);
    adapter_free(out);
    adapter_free(a);
}

TEST(a_sum_of_itself_goes_back_to_its_rank_without_loss)
{
    struct adapter *a = rig_adapter(1, modules, 3), *sum, *out;
    struct combine_options o = rig_options("cat", COMBINE_OWN);
    const struct combine_input inputs[] = {{a, 0.5, "a"}, {a, 0.25, "a"}};
    struct combine_report *r;
    struct err err = {0};
    CHECK_OK(combine_adapters(&sum, &r, inputs, 2, &o, &err), err);
    combine_report_free(r);
    const struct resize_options opt = {.energy = 1};
    CHECK_OK(resize_adapter(&out, &r, sum, &opt, &err), err);
    for (size_t i = 0; i < 3; i++) {
        // to float32's rounding of the two halves
        const struct resize_options exact = {.rank = a->modules[i].rank};
        struct adapter *cut;
        struct combine_report *told;
        CHECK_OK(resize_adapter(&cut, &told, sum, &exact, &err), err);
        EXPECT(loss_of(&cut->modules[i], &sum->modules[i]) < 1e-6);
        combine_report_free(told);
        adapter_free(cut);
    }
    combine_report_free(r);
    adapter_free(out);
    adapter_free(sum);
    adapter_free(a);
}

TEST(what_is_no_factor_stays_and_dora_is_refused)
{
    static const float trained[32] = {1, 2, 3};
    struct adapter *a = rig_adapter(1, modules, 3), *out;
    struct combine_report *r;
    struct err err = {0};
    const struct tensor vector = {.dtype = DTYPE_F32, .n_dims = 1, .shape = {32}, .data = trained};
    const struct resize_options opt = {.rank = 2}, nothing = {0}, too_much = {.energy = 2};
    a->modules[2].lora_bias = vector;
    a->modules[2].bias = vector;
    CHECK_OK(resize_adapter(&out, &r, a, &opt, &err), err);
    EXPECT_NEAR(((const float *)out->modules[2].lora_bias.data)[1], 2 * 2,
                1e-6); // scale 2 is in it
    EXPECT_NEAR(((const float *)out->modules[2].bias.data)[1], 2, 0);
    combine_report_free(r);
    adapter_free(out);
    CHECK_CODE(resize_adapter(&out, &r, a, &nothing, &err), ERR_USAGE, err);
    CHECK_CODE(resize_adapter(&out, &r, a, &too_much, &err), ERR_USAGE, err);
    a->modules[2].magnitude = vector;
    CHECK_CODE(resize_adapter(&out, &r, a, &opt, &err), ERR_REFUSED, err);
    adapter_free(a);
}
