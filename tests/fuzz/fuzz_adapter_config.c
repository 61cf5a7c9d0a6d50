/* Any JSON object as adapter_config.json: checked, compiled and asked, or refused with words. */
#include <stdint.h>
#include <stdlib.h>

#include "libcore/format/peft_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const modules[] = {"model.layers.0.self_attn.q_proj",
                                      "model.layers.11.mlp.up_proj", "lm_head",
                                      "model.embed_tokens", "x"};

static void expect_words(int rc, const struct err *err)
{
    if (rc && (err->code != rc || !err->msg[0]))
        abort();
}

static void ask(struct peft_matcher *m)
{
    for (size_t i = 0; i < sizeof modules / sizeof *modules; i++) {
        struct err err = {0};
        const char *other;
        int64_t rank;
        double alpha;
        bool yes;
        expect_words(peft_matcher_rank(m, modules[i], &rank, &other, &err), &err);
        expect_words(peft_matcher_alpha(m, modules[i], &alpha, &other, &err), &err);
        expect_words(peft_matcher_targets(m, modules[i], true, &yes, &err), &err);
        (void)peft_matcher_saves(m, modules[i]);
        (void)peft_matcher_wraps(m, modules[i]);
        (void)peft_matcher_targets_parameter(m, modules[i]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_t *root = json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES, NULL);
    struct peft_config config;
    struct peft_matcher *m;
    struct adapter *a;
    struct err err = {0};
    if (json_is_object(root) && adapter_open(&a, &err) == 0) {
        int rc = peft_config_check(&config, root, "input", NULL, a, &err);
        expect_words(rc, &err);
        if (!rc) {
            rc = peft_matcher_open(&m, root, "input", &err);
            expect_words(rc, &err);
            if (!rc)
                ask(m);
            peft_matcher_free(m);
        }
        adapter_free(a);
    }
    json_decref(root);
    return 0;
}
