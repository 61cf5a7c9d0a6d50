/*
 * Tokens that an adapter adds to the vocabulary: more rows of embedding and head than the base.
 * The fixture's adapter with saved embeddings gets such rows, each a copy or a multiple of a row
 * that it has, so that what must come out is known: a prompt with an added token gives what the
 * copied token gives, and the head's added row wins where it is the double of the winner. The same
 * again on the device that is tested, against the CPU, alone and among requests of the base.
 * tiers: check
 */
#include "tests/golden/rig.h"
#include "tests/lib/test.h"

enum { N_ADDED = 7, MAX_NEW = 6, N_PROMPT = 12, COPIED = 17, BATCH = 70 };

static int32_t winner; // the id whose head row the first added row doubles

static float value_at(const struct tensor *t, uint64_t i)
{
    float v;
    dtype_to_f32(t->dtype, (const char *)t->data + i * (dtype_bits(t->dtype) / 8), &v, 1);
    return v;
}

/* A matrix with N_ADDED more rows: row i is `factor` times row `of + i`. */
static int grow(struct adapter *a, struct tensor *t, uint32_t of, float factor, struct err *err)
{
    uint64_t n = t->shape[0], d = t->shape[1];
    float *values = arena_alloc(&a->arena, (n + N_ADDED) * d * sizeof *values);
    if (!values)
        return err_set(err, ERR_NO_MEMORY, "no memory for more rows");
    for (uint64_t i = 0; i < n * d; i++)
        values[i] = value_at(t, i);
    for (uint64_t i = 0; i < N_ADDED * d; i++)
        values[n * d + i] = factor * values[of * d + i];
    t->data = values;
    t->dtype = DTYPE_F32;
    t->shape[0] = n + N_ADDED;
    return 0;
}

static int add_tokens(struct adapter *a, struct err *err)
{
    int n = 0, rc = 0;
    for (size_t i = 0; rc == 0 && i < a->n_modules; i++) {
        struct adapter_module *m = &a->modules[i];
        if (!tensor_present(&m->full) || m->full.n_dims != 2)
            continue;
        bool head = strstr(m->name, "lm_head") != NULL;
        rc = grow(a, &m->full, head ? (uint32_t)winner : COPIED, head ? 2 : 1, err);
        n++;
    }
    return rc == 0 && n != 2 ? err_set(err, ERR_CORRUPT, "%d matrices, want two", n) : rc;
}

struct outcome {
    int32_t ids[MAX_NEW];
    float logprobs[MAX_NEW], *logits; // [MAX_NEW, vocab]
    int32_t top;
};

struct run {
    struct rig r;
    uint32_t vocab;
    int slot, plain; // with added rows, without
};

static int open_run(struct run *x, const char *base, bool added, struct err *err)
{
    char folder[4096], path[4200];
    snprintf(folder, sizeof folder, "%s/kinds/%s", test_fixtures(), base);
    snprintf(path, sizeof path, "%s/adapters/saved", folder);
    int rc = rig_open(&x->r, folder, NULL, 2048, 64, err);
    x->vocab = x->r.config.vocab_size;
    if (rc == 0)
        rc = x->plain = rig_add_adapter(&x->r, path, err);
    x->r.change = add_tokens;
    if (rc >= 0 && added)
        rc = x->slot = rig_add_adapter(&x->r, path, err);
    return rc < 0 ? rc : 0;
}

static void make_prompt(int32_t *prompt, uint32_t vocab, int32_t last)
{
    for (uint32_t i = 0; i < N_PROMPT; i++)
        prompt[i] = (int32_t)((i * 37 + 11) % vocab);
    prompt[N_PROMPT - 3] = last;
}

/* One request, `others` of the base before it in the same steps. */
static int ask(struct run *x, int slot, const int32_t *prompt, uint32_t others, struct outcome *o,
               struct err *err)
{
    struct rig_request *q = sys_calloc(others + 1, sizeof *q);
    if (!q)
        return err_set(err, ERR_NO_MEMORY, "no memory for requests");
    static const int32_t base_prompt[3] = {5, 6, 7};
    for (uint32_t i = 0; i < others; i++)
        q[i] = (struct rig_request){
            .prompt = base_prompt, .n_prompt = 3, .slot = -1, .max_new = MAX_NEW};
    q[others] = (struct rig_request){.prompt = prompt,
                                     .n_prompt = N_PROMPT,
                                     .slot = slot,
                                     .max_new = MAX_NEW,
                                     .n_top = 3,
                                     .logits = o->logits};
    int rc = rig_run(&x->r, q, others + 1, 512, NULL, err);
    memcpy(o->ids, q[others].ids, sizeof o->ids);
    memcpy(o->logprobs, q[others].logprobs, sizeof o->logprobs);
    o->top = q[others].top_ids[0];
    sys_free(q);
    return rc;
}

static double distance(const float *a, const float *b, size_t n)
{
    double diff = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        diff += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        norm += (double)b[i] * b[i];
    }
    return sqrt(diff / norm);
}

/* The answer with an added token in the prompt, on whatever device is asked for. */
static int answer(const char *base, uint32_t others, struct outcome *o, struct err *err)
{
    int32_t prompt[N_PROMPT];
    struct run x = {0};
    int rc = open_run(&x, base, false, err);
    make_prompt(prompt, x.vocab, COPIED);
    o->logits = sys_realloc(o->logits, (size_t)MAX_NEW * x.vocab * sizeof *o->logits);
    if (rc == 0)
        rc = ask(&x, x.plain, prompt, 0, o, err);
    rig_close(&x.r);
    if (rc)
        return rc;
    winner = o->ids[0] < (int32_t)x.vocab - N_ADDED ? o->ids[0] : 0;
    rc = open_run(&x, base, true, err);
    make_prompt(prompt, x.vocab, (int32_t)x.vocab);
    if (rc == 0)
        rc = ask(&x, x.slot, prompt, others, o, err);
    if (rc == 0 && o->ids[0] < (int32_t)x.vocab)
        rc = err_set(err, ERR_INTERNAL, "%s: id %d, no added one, though its logit is doubled",
                     base, o->ids[0]);
    rig_close(&x.r);
    return rc;
}

static void check_base(const char *base)
{
    struct run x = {0};
    struct err err = {0};
    int32_t copied[N_PROMPT], added[N_PROMPT];
    struct outcome want = {0}, got = {0};
    if (!test_fixtures()) {
        test_skip("no fixtures");
        return;
    }
    winner = 3;
    CHECK_OK(open_run(&x, base, true, &err), err);
    size_t n = (size_t)MAX_NEW * x.vocab;
    want.logits = sys_calloc(n, sizeof *want.logits);
    got.logits = sys_calloc(n, sizeof *got.logits);
    make_prompt(copied, x.vocab, COPIED);
    make_prompt(added, x.vocab, (int32_t)x.vocab);
    EXPECT_INT(ask(&x, x.plain, copied, 0, &want, &err), 0);
    EXPECT_INT(ask(&x, x.slot, added, 0, &got, &err), 0);
    EXPECT_MSG(memcmp(want.logits, got.logits, x.vocab * sizeof *got.logits) == 0,
               "%s: an added token does not give what the token gives that it copies", base);
    EXPECT_INT(ask(&x, x.plain, added, 0, &got, &err), ERR_USAGE); // not this adapter's token
    added[0] = (int32_t)(x.vocab + N_ADDED);
    EXPECT_INT(ask(&x, x.slot, added, 0, &got, &err), ERR_USAGE);
    rig_close(&x.r);
    sys_free(want.logits);
    sys_free(got.logits);
}

TEST(an_added_token_is_its_row)
{
    check_base("llama-untied");
    check_base("llama-tied");
}

/* `others` requests of the base beside: rows and logit rows of both paths of a GPU. */
static void check_answer(const char *base, uint32_t others)
{
    struct outcome want = {0}, got = {0};
    struct err err = {0};
    char device[64];
    if (!test_fixtures()) {
        test_skip("no fixtures");
        return;
    }
    snprintf(device, sizeof device, "%s", rig_device());
    setenv("LORA_TEST_DEVICE", "cpu", 1);
    CHECK_OK(answer(base, 0, &want, &err), err);
    setenv("LORA_TEST_DEVICE", device, 1);
    CHECK_OK(answer(base, others, &got, &err), err);
    double bound = rig_is_bf16() ? 4e-2 : 1e-5;
    EXPECT_INT(got.ids[0], want.ids[0]);
    EXPECT_INT(got.top, want.top);
    EXPECT_NEAR(got.logprobs[0], want.logprobs[0], rig_is_bf16() ? 0.05 : 1e-3);
    double off = distance(got.logits, want.logits, 384);
    EXPECT_MSG(off <= bound, "%s, %u others: logits off by %.2e", base, others, off);
    sys_free(want.logits);
    sys_free(got.logits);
}

TEST(an_added_token_wins_with_the_double_of_the_winning_logit)
{
    check_answer("llama-untied", 0);
    check_answer("llama-tied", 0);
}

TEST(the_same_among_many_requests_of_the_base)
{
    check_answer("llama-untied", BATCH);
    check_answer("llama-tied", 5);
}
