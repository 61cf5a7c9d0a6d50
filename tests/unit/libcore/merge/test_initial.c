/* PiSSA and OLoRA against PEFT's own conversion (tests/golden/make_initial.py). */
#include <stdio.h>
#include <stdlib.h>

#include "libcore/format/adapter_file.h"
#include "libcore/format/checkpoint.h"
#include "libcore/format/safetensors.h"
#include "libcore/merge/factors.h"
#include "libcore/merge/initial.h"
#include "tests/lib/test.h"

static const char *ignored[] = {"init_lora_weights"};
static const struct peft_options raw = {.ignore_fields = ignored, .n_ignore_fields = 1};

static struct adapter *read_golden(const char *name, const struct peft_options *opt)
{
    struct adapter *a = NULL;
    struct err err = {0};
    char path[1024];
    snprintf(path, sizeof path, "%s/tests/golden/initial/%s", test_root(), name);
    if (adapter_file_read(&a, path, opt, &err) != 0)
        test_fail(__FILE__, __LINE__, "%s: %s", path, err.msg);
    return a;
}

static void base_folder(char *path, size_t n)
{
    snprintf(path, n, "%s/base", test_tinytalk());
}

/* s B A, dense, from what the adapter says. */
static double *delta(const struct adapter_module *m)
{
    size_t out = (size_t)m->b.shape[0], in = (size_t)m->a.shape[1];
    double *d = calloc(out * in, sizeof *d), *l = calloc(out * m->rank, sizeof *l),
           *r = calloc(in * m->rank, sizeof *r);
    factors_left(m, 0, m->scale, l);
    factors_right(m, 0, r);
    for (size_t k = 0; k < m->rank; k++) {
        for (size_t i = 0; i < out; i++) {
            for (size_t j = 0; j < in; j++)
                d[i * in + j] += l[k * out + i] * r[k * in + j];
        }
    }
    free(l);
    free(r);
    return d;
}

/* Up to what float32 in the trainer did, which the report estimates. */
static void expect_same_change(const struct adapter *got, const struct adapter *want,
                               double arithmetic)
{
    double total = 0;
    CHECK_INT(got->n_modules, want->n_modules);
    for (size_t k = 0; k < want->n_modules; k++) {
        const struct adapter_module *w = &want->modules[k], *g = adapter_find(got, w->name, NULL);
        CHECK(g && g->rank == w->rank);
        double *x = delta(g), *y = delta(w), off = 0, all = 0;
        for (size_t i = 0; i < w->b.shape[0] * w->a.shape[1]; i++) {
            off += (x[i] - y[i]) * (x[i] - y[i]);
            all += y[i] * y[i];
        }
        EXPECT_MSG(sqrt(off) <= 1e-3 * sqrt(all), "%s: off by %g of it", w->name, sqrt(off / all));
        total += off;
        free(x);
        free(y);
    }
    EXPECT_MSG(sqrt(total) <= arithmetic, "off by %g, said %g", sqrt(total), arithmetic);
}

static void expect_conversion(const char *name)
{
    char path[200], base[1024];
    struct err err = {0};
    struct initial_report report;
    struct adapter *got = NULL;
    base_folder(base, sizeof base);
    snprintf(path, sizeof path, "%s/raw", name);
    struct adapter *from = read_golden(path, &raw);
    snprintf(path, sizeof path, "%s/converted", name);
    struct adapter *want = read_golden(path, NULL);
    CHECK(from && want);
    CHECK_OK(initial_convert(&got, from, base, &report, &err), err);
    expect_same_change(got, want, report.arithmetic);
    EXPECT_INT(report.n_modules, 2);
    EXPECT(report.distance > 0 && report.distance < 0.2);
    EXPECT(report.rounding > 0 && report.arithmetic > 0 && report.arithmetic < report.rounding);
    adapter_free(got);
    adapter_free(from);
    adapter_free(want);
}

TEST(pissa_becomes_what_peft_makes_of_it)
{
    expect_conversion("pissa");
}

TEST(olora_becomes_what_peft_makes_of_it)
{
    expect_conversion("olora");
}

TEST(the_scale_of_rslora_is_kept)
{
    expect_conversion("pissa-rslora");
}

/* base + made and residual + trained, both as they are served; the report bounds what lies between.
 */
static void expect_bound(const char *name)
{
    char path[1024], base[1024];
    struct err err = {0};
    struct initial_report report;
    struct adapter *got = NULL;
    struct safetensors *residual = NULL;
    struct checkpoint *c = NULL;
    base_folder(base, sizeof base);
    snprintf(path, sizeof path, "%s/raw", name);
    struct adapter *from = read_golden(path, &raw);
    CHECK(from);
    snprintf(path, sizeof path, "%s/tests/golden/initial/%s/residual.safetensors", test_root(),
             name);
    CHECK_OK(safetensors_open(&residual, path, 0, &err), err);
    CHECK_OK(checkpoint_open(&c, base, &err), err);
    CHECK_OK(initial_convert(&got, from, base, &report, &err), err);
    double off = 0;
    for (size_t k = 0; k < got->n_modules; k++) {
        const struct adapter_module *m = &got->modules[k];
        snprintf(path, sizeof path, "%s.weight", m->name);
        const struct tensor *w = &checkpoint_find(c, path)->value,
                            *rest = &safetensors_find(residual, path)->value;
        double *made = delta(m), *trained = delta(adapter_find(from, m->name, NULL));
        for (size_t i = 0; i < tensor_n_values(w); i++) {
            double before, after;
            dtype_to_f64(w->dtype, (const char *)w->data + 2 * i, &before, 1);
            dtype_to_f64(rest->dtype, (const char *)rest->data + 2 * i, &after, 1);
            double d = before + made[i] - after - trained[i];
            off += d * d;
            EXPECT_MSG(fabs(d) <= 0x1p-8 * fabs(after) + 1e-5, "%s: value %zu off by %g of %g",
                       m->name, i, d, after);
        }
        free(made);
        free(trained);
    }
    EXPECT_MSG(sqrt(off) <= report.rounding + report.arithmetic, "off by %g, bound %g + %g",
               sqrt(off), report.rounding, report.arithmetic);
    EXPECT(sqrt(off) > report.rounding / 16); // the bound is no empty one
    checkpoint_free(c);
    safetensors_free(residual);
    adapter_free(got);
    adapter_free(from);
}

TEST(on_a_bf16_base_the_bound_that_is_reported_holds)
{
    expect_bound("pissa-bf16");
    expect_bound("olora-bf16");
}

TEST(an_adapter_of_another_base_is_refused)
{
    char base[1024];
    struct err err = {0};
    struct initial_report report;
    struct adapter *got = NULL, *from = read_golden("pissa/raw", &raw);
    CHECK(from);
    base_folder(base, sizeof base);
    // its module is another one's: the first layer's initialisation is no part of it
    for (size_t i = 0; i < from->n_modules; i++)
        from->modules[i].name =
            i ? "model.layers.0.self_attn.v_proj" : "model.layers.0.self_attn.k_proj";
    CHECK_CODE(initial_convert(&got, from, base, &report, &err), ERR_REFUSED, err);
    EXPECT(strstr(err.msg, "another base") && !got);
    adapter_free(from);
}

TEST(what_is_random_or_needs_data_is_refused)
{
    static const char *const inits[] = {"pissa_niter_16", "corda", "lora_ga", "loftq", "gaussian"};
    for (size_t i = 0; i < sizeof inits / sizeof *inits; i++)
        EXPECT(!initial_knows(inits[i]));
    EXPECT(initial_knows("PiSSA") && initial_knows("olora") && !initial_knows(NULL));
}
