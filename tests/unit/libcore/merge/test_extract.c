/*
 * extract against bases whose weights were changed here, in float64.
 */
#include <stdio.h>
#include <stdlib.h>

#include "libcore/base/file.h"
#include "libcore/format/checkpoint.h"
#include "libcore/format/safetensors_writer.h"
#include "libcore/merge/extract.h"
#include "libcore/model/bind.h"
#include "tests/unit/libcore/merge/combine_rig.h"

enum { RANK = 3 };

/* What becomes of a tensor in the tuned model. */
enum change { COPY, LOW_RANK, ADD_ONE };
typedef enum change change_rule(const char *name);

/* The low-rank part of row i, column j of expert e. */
static double part(const char *name, size_t e, size_t i, size_t j)
{
    uint64_t s = random_stream(name, "", "", e);
    double sum = 0;
    for (uint64_t k = 0; k < RANK; k++)
        sum += 0.01 * random_normal(s, 2 * k, i) * random_normal(s, 2 * k + 1, j);
    return sum;
}

/* One expert's tensor of an older layout belongs to the fused one: its name, expert and first row.
 */
static void canonical(char *out, size_t n, const char *name, const struct tensor *t, size_t *expert,
                      size_t *row0)
{
    const char *at = strstr(name, ".experts.");
    int layer = 0, e = 0;
    snprintf(out, n, "%s", name);
    *expert = *row0 = 0;
    if (!at || sscanf(at, ".experts.%d.", &e) != 1 || sscanf(name, "model.layers.%d.", &layer) != 1)
        return;
    bool down = strstr(at, "w2") || strstr(at, "down_proj");
    snprintf(out, n, "model.layers.%d.mlp.experts.%s", layer, down ? "down_proj" : "gate_up_proj");
    *expert = (size_t)e;
    *row0 = strstr(at, "w3") || strstr(at, "up_proj") ? t->shape[0] : 0;
}

/* The tuned tensor in float32, so that the difference is what was added but for its rounding. */
static float *changed(const char *name, const struct tensor *t, enum change c)
{
    size_t n = tensor_n_values(t), cols = t->shape[t->n_dims - 1];
    size_t rows = t->n_dims > 1 ? t->shape[t->n_dims - 2] : 1;
    size_t expert, row0;
    char whole[512];
    canonical(whole, sizeof whole, name, t, &expert, &row0);
    float *v = malloc(n * sizeof *v);
    dtype_to_f32(t->dtype, t->data, v, n);
    for (size_t x = 0; x < n && c == LOW_RANK; x++)
        v[x] =
            (float)(v[x] + part(whole, expert + x / cols / rows, row0 + x / cols % rows, x % cols));
    if (c == ADD_ONE)
        v[n / 2] += 1;
    return v;
}

static void copy_base(const char *from, const char *to, change_rule *rule)
{
    char source[4096], target[4096];
    struct err err = {0};
    struct checkpoint *c;
    struct safetensors_writer *w;
    CHECK_OK(file_make_folders(to, &err), err);
    snprintf(source, sizeof source, "%s/config.json", from);
    snprintf(target, sizeof target, "%s/config.json", to);
    CHECK_OK(file_copy(source, target, &err), err);
    CHECK_OK(checkpoint_open(&c, from, &err), err);
    snprintf(target, sizeof target, "%s/model.safetensors", to);
    CHECK_OK(safetensors_writer_open(&w, target, &err), err);
    for (size_t i = 0; i < checkpoint_count(c); i++) {
        const struct checkpoint_tensor *t = checkpoint_at(c, i);
        CHECK_OK(safetensors_writer_declare(w, t->name, DTYPE_F32, t->value.n_dims, t->value.shape,
                                            &err),
                 err);
    }
    CHECK_OK(safetensors_writer_begin(w, &err), err);
    for (size_t i = 0; i < checkpoint_count(c); i++) {
        const struct checkpoint_tensor *t = checkpoint_at(c, i);
        float *v = changed(t->name, &t->value, rule(t->name));
        CHECK_OK(safetensors_writer_put(w, t->name, 0, v, 4 * tensor_n_values(&t->value), &err),
                 err);
        free(v);
    }
    CHECK_OK(safetensors_writer_finish(w, &err), err);
    safetensors_writer_free(w);
    checkpoint_free(c);
}

/* The adapter's delta of a module against what was added to the tensor of that name. */
static void compare(const struct adapter_module *m)
{
    char tensor[512];
    size_t out = m->b.shape[0], in = m->a.shape[1], experts = m->n_experts ? m->n_experts : 1;
    snprintf(tensor, sizeof tensor, "%s.%s", m->name, m->parameter);
    for (uint32_t e = 0; e < experts; e++) {
        double *got = rig_delta(m, e), *want = malloc(out * in * sizeof *want);
        for (size_t i = 0; i < out * in; i++)
            want[i] = part(tensor, e, i / in, i % in);
        double d = rig_distance(got, want, out * in);
        EXPECT_MSG(d < 1e-5, "%s: off by %g", tensor, d);
        free(got);
        free(want);
    }
}

static void fits(const char *base, const struct adapter *a)
{
    struct model_config config;
    struct model_modules *modules;
    struct bound_adapter *bound;
    struct err err = {0};
    CHECK_OK(config_read(&config, base, &err), err);
    CHECK_OK(modules_open(&modules, &config, &err), err);
    CHECK_OK(bind_adapter(&bound, a, modules, &config, &err), err);
    bound_free(bound);
    modules_free(modules);
    config_release(&config);
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);
    return n >= k && strcmp(s + n - k, end) == 0;
}

static enum change linears(const char *name)
{
    return ends_with(name, "_proj.weight") || strstr(name, ".w1.") || strstr(name, ".w2.") ||
                   strstr(name, ".w3.") || ends_with(name, ".gate_up_proj") ||
                   ends_with(name, ".down_proj")
               ? LOW_RANK
               : COPY;
}

static enum change others(const char *name)
{
    return ends_with(name, "norm.weight") || ends_with(name, "embed_tokens.weight") ||
                   ends_with(name, ".bias") || ends_with(name, "mlp.gate.weight")
               ? ADD_ONE
               : COPY;
}

static enum change none(const char *name)
{
    (void)name;
    return COPY;
}

static void tuned_folder(char *to, size_t n, const char *arch, const char *what)
{
    snprintf(to, n, "%s/%s-%s", test_tmp(), arch, what);
}

static void factors_of(const char *arch)
{
    char base[4096], tuned[4096];
    struct adapter *a;
    struct extract_report *r;
    struct err err = {0};
    const struct extract_options by_rank = {.rank = RANK, .n_threads = 2};
    const struct extract_options by_energy = {.energy = 0.999999, .n_threads = 1};
    snprintf(base, sizeof base, "%s/archs/%s", test_fixtures(), arch);
    tuned_folder(tuned, sizeof tuned, arch, "linears");
    copy_base(base, tuned, linears);
    CHECK_OK(extract_adapter(&a, &r, base, tuned, &by_rank, &err), err);
    CHECK(r->factors.n > 0 && r->factors.n == a->n_modules);
    CHECK_INT(r->factors.max_rank, RANK);
    CHECK_INT(r->n_saved + r->n_biases, 0);
    EXPECT(combine_loss(r->factors.discarded2, r->factors.total2) < 1e-4);
    for (size_t i = 0; i < a->n_modules; i++)
        compare(&a->modules[i]);
    fits(base, a);
    adapter_free(a);
    extract_report_free(r);
    CHECK_OK(extract_adapter(&a, &r, base, tuned, &by_energy, &err), err);
    CHECK_INT(r->factors.max_rank, RANK);
    adapter_free(a);
    extract_report_free(r);
}

TEST(linear_weights_and_experts_become_what_was_added)
{
    static const char *const archs[] = {"llama31-tied", "mistral", "gemma3",  "qwen2",
                                        "qwen3",        "phi3",    "mixtral", "qwen3moe"};
    if (!test_fixtures()) {
        test_skip("no fixtures");
        return;
    }
    for (size_t i = 0; i < sizeof archs / sizeof *archs; i++)
        factors_of(archs[i]);
}

TEST(what_is_no_linear_weight_is_kept_whole)
{
    static const char *const archs[] = {"llama31-tied", "qwen2", "mixtral"};
    if (!test_fixtures()) {
        test_skip("no fixtures");
        return;
    }
    for (size_t k = 0; k < sizeof archs / sizeof *archs; k++) {
        char base[4096], tuned[4096], name[512];
        struct adapter *a;
        struct extract_report *r;
        struct checkpoint *c;
        struct err err = {0};
        const struct extract_options opt = {.rank = 4};
        size_t n_whole = 0, n_biases = 0;
        snprintf(base, sizeof base, "%s/archs/%s", test_fixtures(), archs[k]);
        tuned_folder(tuned, sizeof tuned, archs[k], "others");
        copy_base(base, tuned, others);
        CHECK_OK(extract_adapter(&a, &r, base, tuned, &opt, &err), err);
        CHECK_OK(checkpoint_open(&c, tuned, &err), err);
        for (size_t i = 0; i < checkpoint_count(c); i++) {
            const struct checkpoint_tensor *t = checkpoint_at(c, i);
            if (others(t->name) == COPY)
                continue;
            bool bias = ends_with(t->name, ".bias");
            snprintf(name, sizeof name, "%.*s", (int)(strrchr(t->name, '.') - t->name), t->name);
            const struct adapter_module *m = adapter_find(a, name, NULL);
            const struct tensor *got = m ? bias ? &m->bias : &m->full : NULL;
            EXPECT_MSG(got && tensor_same_shape(got, &t->value) &&
                           memcmp(got->data, t->value.data, tensor_n_bytes(got)) == 0,
                       "%s: %s", archs[k], t->name);
            n_biases += bias;
            n_whole += !bias;
        }
        CHECK(n_whole > 0);
        CHECK_INT(r->n_saved, n_whole);
        CHECK_INT(r->n_biases, n_biases);
        CHECK_INT(r->factors.n, 0);
        EXPECT_MSG(a->ensure_weight_tying == !checkpoint_find(c, "lm_head.weight"), "%s", archs[k]);
        fits(base, a);
        adapter_free(a);
        extract_report_free(r);
        checkpoint_free(c);
    }
}

TEST(what_cannot_be_extracted_is_refused)
{
    char base[4096], other[4096], tuned[4096];
    struct adapter *a;
    struct extract_report *r;
    struct err err = {0};
    const struct extract_options opt = {.rank = 4}, nothing = {0};
    if (!test_fixtures()) {
        test_skip("no fixtures");
        return;
    }
    snprintf(base, sizeof base, "%s/archs/mistral", test_fixtures());
    snprintf(other, sizeof other, "%s/archs/qwen3", test_fixtures());
    tuned_folder(tuned, sizeof tuned, "mistral", "same");
    copy_base(base, tuned, none);
    CHECK_CODE(extract_adapter(&a, &r, base, tuned, &opt, &err), ERR_REFUSED, err);
    CHECK(strstr(err.msg, "nothing to extract") != NULL);
    CHECK_CODE(extract_adapter(&a, &r, base, other, &opt, &err), ERR_REFUSED, err);
    CHECK_CODE(extract_adapter(&a, &r, base, base, &nothing, &err), ERR_USAGE, err);
    CHECK_CODE(extract_adapter(&a, &r, base, "/nowhere", &opt, &err), ERR_NOT_FOUND, err);
    CHECK(a == NULL && r == NULL);
}
