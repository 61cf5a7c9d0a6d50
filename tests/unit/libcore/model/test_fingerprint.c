#include <stdio.h>
#include <stdlib.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"
#include "libcore/format/safetensors_writer.h"
#include "libcore/model/fingerprint.h"
#include "tests/lib/test.h"

static void print_of(const char *folder, char hex[65])
{
    struct err err = {0};
    hex[0] = '\0';
    CHECK_OK(fingerprint_of_folder(folder, hex, &err), err);
}

/* A copy of a base in which one tensor may be left out, added, renamed or have one bit flipped. */
struct change {
    const char *flip; // tensor
    uint64_t at;      // byte
    const char *drop;
    const char *add_copy_of, *add_as;
    bool old_layout; // experts one by one, under block_sparse_moe
};

struct copy {
    struct checkpoint *from;
    struct safetensors_writer *to;
    const struct change *c;
    bool put; // second pass
};

static void emit(struct copy *k, const char *name, const struct tensor *t, uint64_t flip_at)
{
    struct err err = {0};
    if (!k->put) {
        CHECK_OK(safetensors_writer_declare(k->to, name, t->dtype, t->n_dims, t->shape, &err), err);
        return;
    }
    size_t n = tensor_n_bytes(t);
    char *data = malloc(n);
    memcpy(data, t->data, n);
    if (flip_at < n)
        data[flip_at] ^= 1;
    CHECK_OK(safetensors_writer_put(k->to, name, 0, data, n, &err), err);
    free(data);
}

/* "….mlp.experts.gate_up_proj" [E, 2F, D] as E w1 and w3 of [F, D], down_proj as w2. */
static void emit_single(struct copy *k, const char *name, const struct tensor *t)
{
    bool down = strstr(name, "down_proj") != NULL;
    int layer;
    CHECK(sscanf(name, "model.layers.%d.", &layer) == 1);
    for (uint64_t e = 0; e < t->shape[0]; e++) {
        uint64_t halves = down ? 1 : 2, rows = t->shape[1] / halves;
        for (uint64_t h = 0; h < halves; h++) {
            char single[200];
            struct tensor part = {t->dtype, 2, {rows, t->shape[2]}, NULL};
            part.data = (const char *)t->data + (e * halves + h) * tensor_n_bytes(&part);
            snprintf(single, sizeof single, "model.layers.%d.block_sparse_moe.experts.%d.%s.weight",
                     layer, (int)e,
                     down ? "w2"
                     : h  ? "w3"
                          : "w1");
            emit(k, single, &part, UINT64_MAX);
        }
    }
}

static void emit_all(struct copy *k)
{
    for (size_t i = 0; i < checkpoint_count(k->from); i++) {
        const struct checkpoint_tensor *t = checkpoint_at(k->from, i);
        const struct change *c = k->c;
        if (c->drop && strcmp(c->drop, t->name) == 0)
            continue;
        if (c->old_layout && strstr(t->name, ".mlp.experts.")) {
            emit_single(k, t->name, &t->value);
            continue;
        }
        char name[256];
        snprintf(name, sizeof name, "%s", t->name);
        char *mlp = c->old_layout ? strstr(name, ".mlp.gate.") : NULL;
        if (mlp)
            snprintf(name, sizeof name, "%.*s.block_sparse_moe.gate.weight", (int)(mlp - name),
                     t->name);
        emit(k, name, &t->value, c->flip && !strcmp(c->flip, t->name) ? c->at : UINT64_MAX);
        if (c->add_copy_of && strcmp(c->add_copy_of, t->name) == 0)
            emit(k, c->add_as, &t->value, UINT64_MAX);
    }
}

static const char *changed(const char *base, const struct change *c)
{
    static char folder[4300];
    static unsigned n;
    char from[4400], to[4400];
    struct err err = {0};
    struct copy k = {.c = c};
    snprintf(folder, sizeof folder, "%s/base%u", test_tmp(), n++);
    snprintf(from, sizeof from, "%s/config.json", base);
    snprintf(to, sizeof to, "%s/config.json", folder);
    if (file_make_folders(folder, &err) || file_copy(from, to, &err) ||
        checkpoint_open(&k.from, base, &err))
        test_fail(__FILE__, __LINE__, "%s", err.msg);
    snprintf(to, sizeof to, "%s/model.safetensors", folder);
    if (safetensors_writer_open(&k.to, to, &err))
        test_fail(__FILE__, __LINE__, "%s", err.msg);
    emit_all(&k);
    if (safetensors_writer_begin(k.to, &err))
        test_fail(__FILE__, __LINE__, "%s", err.msg);
    k.put = true;
    emit_all(&k);
    if (safetensors_writer_finish(k.to, &err))
        test_fail(__FILE__, __LINE__, "%s", err.msg);
    safetensors_writer_free(k.to);
    checkpoint_free(k.from);
    return folder;
}

static const char *tinytalk(void)
{
    static char path[4300];
    snprintf(path, sizeof path, "%s/examples/tinytalk/base", test_root());
    return path;
}

TEST(fingerprint_is_of_contents_not_of_files)
{
    char a[65], b[65];
    struct change none = {0};
    print_of(tinytalk(), a);
    EXPECT_INT(strlen(a), 64);
    print_of(changed(tinytalk(), &none), b);
    EXPECT_STR(b, a);
    struct change rotary = {.add_copy_of = "model.norm.weight",
                            .add_as = "model.layers.0.self_attn.rotary_emb.inv_freq"};
    print_of(changed(tinytalk(), &rotary), b); // of old files: no weight of the model
    EXPECT_STR(b, a);
}

TEST(fingerprint_sees_every_bit_of_a_norm_and_the_samples_of_a_matrix)
{
    char a[65], b[65];
    print_of(tinytalk(), a);
    struct change norm = {.flip = "model.layers.3.input_layernorm.weight", .at = 311};
    print_of(changed(tinytalk(), &norm), b);
    EXPECT(strcmp(a, b) != 0);
    struct change first = {.flip = "model.embed_tokens.weight", .at = 0};
    print_of(changed(tinytalk(), &first), b);
    EXPECT(strcmp(a, b) != 0);
    struct change last = {.flip = "model.embed_tokens.weight", .at = 2048 * 256 * 2 - 1};
    print_of(changed(tinytalk(), &last), b);
    EXPECT(strcmp(a, b) != 0);
    struct change between = {.flip = "model.embed_tokens.weight",
                             .at = 6000}; // between two samples
    print_of(changed(tinytalk(), &between), b);
    EXPECT_STR(b, a);
}

TEST(missing_weight_has_no_fingerprint)
{
    char hex[65];
    struct err err = {0};
    struct change drop = {.drop = "model.layers.2.mlp.up_proj.weight"};
    CHECK_CODE(fingerprint_of_folder(changed(tinytalk(), &drop), hex, &err), ERR_REFUSED, err);
    EXPECT_MSG(strstr(err.msg, "model.layers.2.mlp.up_proj.weight"), "%s", err.msg);
}

TEST(old_layouts_have_the_same_fingerprint)
{
    char a[65], b[65], base[4400];
    if (!test_fixtures()) {
        test_skip("no fixtures beside the checkout");
        return;
    }
    snprintf(base, sizeof base, "%s/archs/mixtral", test_fixtures());
    struct change old = {.old_layout = true};
    print_of(base, a);
    print_of(changed(base, &old), b);
    EXPECT_STR(b, a);
    snprintf(base, sizeof base, "%s/archs/llama31-tied", test_fixtures());
    struct change head = {.add_copy_of = "model.embed_tokens.weight", .add_as = "lm_head.weight"};
    print_of(base, a);
    print_of(changed(base, &head), b); // a tied head that was saved all the same
    EXPECT_STR(b, a);
}

TEST(fixtures_differ_from_one_another)
{
    static const char *const bases[] = {"archs/mistral",    "archs/qwen2",       "archs/qwen3",
                                        "archs/gemma3",     "archs/phi3",        "archs/qwen3moe",
                                        "kinds/llama-tied", "kinds/llama-untied"};
    char hex[8][65], path[4400];
    if (!test_fixtures()) {
        test_skip("no fixtures beside the checkout");
        return;
    }
    for (size_t i = 0; i < 8; i++) {
        snprintf(path, sizeof path, "%s/%s", test_fixtures(), bases[i]);
        print_of(path, hex[i]);
        for (size_t k = 0; k < i; k++)
            EXPECT(strcmp(hex[i], hex[k]) != 0);
    }
}

TEST(tensor_digests_are_those_of_the_payloads)
{
    struct checkpoint *c;
    struct err err = {0};
    CHECK_OK(checkpoint_open(&c, tinytalk(), &err), err);
    struct digest *d = calloc(checkpoint_count(c), sizeof *d), want;
    CHECK_OK(fingerprint_tensors(c, 2, d, &err), err);
    for (size_t i = 0; i < checkpoint_count(c); i++) {
        const struct tensor *t = &checkpoint_at(c, i)->value;
        CHECK_OK(digest_buffer(t->data, tensor_n_bytes(t), &want, &err), err);
        EXPECT(digest_equal(&d[i], &want));
    }
    free(d);
    checkpoint_free(c);
}

TEST(every_failed_call_of_the_fingerprint_is_an_error)
{
    struct model_config config;
    struct model_modules *m;
    struct checkpoint *c;
    struct err err = {0};
    char want[65], hex[65];
    CHECK_OK(config_read(&config, tinytalk(), &err), err);
    CHECK_OK(modules_open(&m, &config, &err), err);
    CHECK_OK(checkpoint_open(&c, tinytalk(), &err), err);
    CHECK_OK(fingerprint_compute(c, m, &config, want, &err), err);
    for (uint64_t n = 1; n < 10000; n++) {
        sys_fault(SYS_FAULT_FAIL, SYS_FAULT_ALL, n);
        int rc = fingerprint_compute(c, m, &config, hex, &err);
        bool hit = sys_fault_hit();
        sys_fault(SYS_FAULT_OFF, 0, 0);
        // a failed close of a file that was only read loses nothing
        EXPECT_MSG(rc != 0 || strcmp(hex, want) == 0, "call %u: another fingerprint", (unsigned)n);
        if (!hit) {
            EXPECT(rc == 0 && n > 100);
            break;
        }
    }
    checkpoint_free(c);
    modules_free(m);
    config_release(&config);
}
