/*
 * Recorded steps against the same steps launched kernel by kernel, bit for bit: every number of
 * rows that is launched as it is, without adapters, with additive ones, with all kinds.
 */
#include "tests/ops/ops_cases.h"

enum { STEPS = 4, MAX_SEQUENCES = 64, POSITION0 = 20, N_TOP = BACKEND_MAX_TOP };

struct answers {
    uint32_t n;
    int32_t ids[STEPS * MAX_SEQUENCES], top_ids[STEPS * MAX_SEQUENCES * N_TOP];
    float logprobs[STEPS * MAX_SEQUENCES], top[STEPS * MAX_SEQUENCES * N_TOP];
};

/* Rows dealt over slots 0…most: equal stretches; slot -1 (the base) gets none. */
static void add_segments(struct ops_rig *r, struct step *s, uint32_t n_slots)
{
    for (uint32_t i = 0; i < n_slots; i++) {
        uint32_t begin = s->n_rows * i / n_slots, end = s->n_rows * (i + 1) / n_slots;
        if (end == begin)
            continue;
        struct step_segment g = {begin, end - begin, i, 1.0f};
        r->segments[s->n_segments++] = g;
        r->head_segments[s->n_head_segments++] = g;
    }
}

/* Four decode steps, each with what the one before sampled, two in flight. */
static void decode(struct ops_rig *r, uint32_t n, uint32_t n_slots, unsigned kinds,
                   struct answers *out)
{
    uint32_t per = 64 / r->c->page_tokens;
    uint64_t tickets[STEPS];
    struct err err = {0};
    for (int i = 0; i <= STEPS; i++) {
        struct step s = {.n_rows = n,
                         .tokens = r->tokens,
                         .sequences = r->sequences,
                         .n_sequences = n,
                         .n_decode_rows = n,
                         .pages = r->pages,
                         .n_pages = n * per,
                         .segments = r->segments,
                         .kinds = kinds,
                         .logit_rows = r->logit_rows,
                         .n_logit_rows = n,
                         .head_segments = r->head_segments,
                         .sampling = r->sampling};
        for (uint32_t j = 0; j < n; j++) {
            r->sequences[j] =
                (struct step_sequence){j, 1, POSITION0 + (uint32_t)i + j % 7, j * per, per, 0};
            r->tokens[j] = i ? ~(int32_t)j : (int32_t)(j * 31 % OPS_VOCAB);
            r->logit_rows[j] = j;
            r->sampling[j] = (struct sample_params){
                .top_p = 1, .repetition_penalty = 1, .pending = -1, .target = -1, .n_top = N_TOP};
        }
        for (uint32_t j = 0; j < n * per; j++)
            r->pages[j] = j;
        add_segments(r, &s, n_slots);
        if (i < STEPS)
            CHECK_OK(r->be->ops->step_submit(r->be, r->dm, &s, &tickets[i], &err), err);
        struct step_result got;
        if (i == 0)
            continue;
        CHECK_OK(r->be->ops->step_result(r->be, r->dm, tickets[i - 1], &got, &err), err);
        CHECK_INT(got.n_rows, n);
        memcpy(out->ids + out->n, got.ids, n * sizeof *got.ids);
        memcpy(out->logprobs + out->n, got.logprobs, n * sizeof *got.logprobs);
        memcpy(out->top_ids + out->n * N_TOP, got.top_ids, n * N_TOP * sizeof *got.top_ids);
        memcpy(out->top + out->n * N_TOP, got.top_logprobs, n * N_TOP * sizeof *got.top_logprobs);
        out->n += n;
    }
}

static void compare(const struct ops_rig *a, uint32_t n, uint32_t n_slots, const struct answers *x,
                    const struct answers *y)
{
    CHECK_INT(x->n, n * STEPS);
    CHECK_INT(y->n, x->n);
    EXPECT_MSG(
        memcmp(x->ids, y->ids, x->n * 4) == 0 && memcmp(x->logprobs, y->logprobs, x->n * 4) == 0 &&
            memcmp(x->top_ids, y->top_ids, x->n * N_TOP * 4) == 0 &&
            memcmp(x->top, y->top, x->n * N_TOP * 4) == 0,
        "%s: %u rows, %u adapters: a recorded step gives other bits", a->c->name, n, n_slots);
}

static void check_case(const struct ops_case *c)
{
    static const uint32_t rows[] = {1, 2, 4, 8, 12, 16, 24, 32, 64}; // launched as they are
    struct ops_rig *r[2] = {sys_calloc(1, sizeof **r), sys_calloc(1, sizeof **r)};
    struct answers *got[2] = {sys_calloc(1, sizeof **got), sys_calloc(1, sizeof **got)};
    struct err err = {0};
    CHECK(r[0] && r[1] && got[0] && got[1]);
    for (int plain = 0; plain < 2; plain++) {
        ops_no_graphs = plain;
        CHECK_OK(ops_open(r[plain], c, &err), err);
    }
    ops_no_graphs = false;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        for (uint32_t n_slots = 0; n_slots <= OPS_SLOTS; n_slots += n_slots ? 1 : 2) {
            unsigned kinds = 0;
            for (uint32_t slot = 0; slot < n_slots; slot++)
                kinds |= r[0]->adapters[slot].bound.kinds;
            for (int plain = 0; plain < 2; plain++) {
                got[plain]->n = 0;
                decode(r[plain], rows[i], n_slots, kinds, got[plain]);
            }
            compare(r[0], rows[i], n_slots, got[0], got[1]);
        }
    }
    for (int plain = 0; plain < 2; plain++) {
        ops_close(r[plain]);
        sys_free(r[plain]);
        sys_free(got[plain]);
    }
}

TEST(recorded_steps_give_the_bits_of_steps_launched_one_by_one)
{
    const char *device = getenv("LORA_TEST_DEVICE");
    if (!device || strncmp(device, "cuda", 4) != 0) {
        test_skip("only a GPU records its steps");
        return;
    }
    check_case(&ops_cases[0]); // bf16
    check_case(&ops_cases[3]); // biases
    check_case(&ops_cases[5]); // post norms, windows, tied
}
