/*
 * Steps through the port of a back end: two in flight with tokens read on the device, prompts cut
 * into chunks, rows alone and in a batch, pages of any size, and what is refused.
 * tiers: check asan tsan
 */
#include "tests/ops/ops_cases.h"

enum { MAX_NEW = 10, N_SEQUENCES = 3 };
/* Whole passes in bf16 over other paths: of the order of the fixtures' bound on a GPU. */
static const double LOGITS_BOUND = 4e-2;

/* One request that is run by hand. */
struct request {
    int32_t ids[64]; // prompt, then what was sampled
    uint32_t n_prompt, n_ids, page0;
    int32_t slot; // -1: base
};

static void make_requests(struct request *q)
{
    for (uint32_t i = 0; i < N_SEQUENCES; i++) {
        q[i] = (struct request){.n_prompt = 5 + 11 * i, .page0 = i, .slot = (int32_t)i - 1};
        q[i].n_ids = q[i].n_prompt;
        for (uint32_t j = 0; j < q[i].n_prompt; j++)
            q[i].ids[j] = (int32_t)((j * 31 + i * 7 + 3) % OPS_VOCAB);
    }
}

/* Puts n rows of a request from `position` on into the step; the last one is sampled if `sampled`.
 */
static void add_rows(struct ops_rig *r, struct step *s, const struct request *q, uint32_t position,
                     uint32_t n, bool sampled)
{
    uint32_t n_pages = (position + n + r->c->page_tokens - 1) / r->c->page_tokens;
    r->sequences[s->n_sequences++] =
        (struct step_sequence){s->n_rows, n, position, s->n_pages, n_pages, 0};
    for (uint32_t j = 0; j < n_pages; j++)
        r->pages[s->n_pages++] = j * OPS_SEQUENCES + q->page0;
    for (uint32_t j = 0; j < n; j++)
        r->tokens[s->n_rows + j] = q->ids[position + j];
    if (q->slot >= 0)
        r->segments[s->n_segments++] = (struct step_segment){s->n_rows, n, (uint32_t)q->slot, 1.0f};
    s->n_rows += n;
    if (!sampled)
        return;
    if (q->slot >= 0)
        r->head_segments[s->n_head_segments++] =
            (struct step_segment){s->n_logit_rows, 1, (uint32_t)q->slot, 1.0f};
    r->sampling[s->n_logit_rows] = (struct sample_params){
        .top_p = 1, .repetition_penalty = 1, .pending = -1, .target = -1, .n_top = 2};
    r->logit_rows[s->n_logit_rows++] = s->n_rows - 1;
}

static struct step empty_step(struct ops_rig *r, float *logits)
{
    return (struct step){.tokens = r->tokens,
                         .sequences = r->sequences,
                         .pages = r->pages,
                         .segments = r->segments,
                         .logit_rows = r->logit_rows,
                         .head_segments = r->head_segments,
                         .sampling = r->sampling,
                         .kinds = r->adapters[OPS_SLOTS - 1].bound.kinds,
                         .logits_out = logits};
}

static void run_step(struct ops_rig *r, const struct step *s, struct step_result *out)
{
    uint64_t ticket;
    struct err err = {0};
    CHECK_OK(r->be->ops->step_submit(r->be, r->dm, s, &ticket, &err), err);
    CHECK_OK(r->be->ops->step_result(r->be, r->dm, ticket, out, &err), err);
}

/* The logits of a request's last prompt position, the prompt cut into chunks of n rows. */
static void run_prompt(struct ops_rig *r, const struct request *q, uint32_t chunk, float *logits)
{
    for (uint32_t at = 0; at < q->n_prompt; at += chunk) {
        uint32_t n = q->n_prompt - at < chunk ? q->n_prompt - at : chunk;
        struct step s = empty_step(r, logits);
        struct step_result out;
        add_rows(r, &s, q, at, n, at + n == q->n_prompt);
        run_step(r, &s, &out);
        CHECK_INT(out.n_rows, s.n_logit_rows);
    }
}

static bool is_cpu(const struct ops_rig *r)
{
    return strcmp(r->be->ops->name, "cpu") == 0;
}

static double error_of(const float *got, const float *want)
{
    double exact[OPS_VOCAB];
    for (int i = 0; i < OPS_VOCAB; i++)
        exact[i] = want[i];
    return ops_error(got, exact, OPS_VOCAB);
}

/* On the CPU the same bits; elsewhere within the bound. */
static void expect_same(struct ops_rig *r, const char *what, const float *got, const float *want)
{
    if (is_cpu(r)) {
        EXPECT_MSG(memcmp(got, want, OPS_VOCAB * sizeof *got) == 0, "%s: %s: other bits",
                   r->c->name, what);
        return;
    }
    double error = error_of(got, want);
    EXPECT_MSG(error <= LOGITS_BOUND, "%s: %s: off by %.2e", r->c->name, what, error);
}

/* The same of n rows. With experts, not on the CPU, one row in twenty may be off: where a router's
 * logits are nearly the same, other roundings send the row to another expert. */
static void expect_rows_same(struct ops_rig *r, const char *what, const float *got,
                             const float *want, uint32_t n)
{
    uint32_t n_off = 0;
    for (uint32_t i = 0; i < n; i++, got += OPS_VOCAB, want += OPS_VOCAB) {
        if (is_cpu(r) || !r->config.n_experts)
            expect_same(r, what, got, want);
        else
            n_off += !(error_of(got, want) <= LOGITS_BOUND);
    }
    EXPECT_MSG(n_off <= n / 20, "%s: %s: %u of %u rows are off", r->c->name, what, n_off, n);
}

static void check_chunks(struct ops_rig *r)
{
    struct request q[N_SEQUENCES];
    float whole[OPS_VOCAB], cut[OPS_VOCAB], batch[N_SEQUENCES * OPS_VOCAB];
    make_requests(q);
    struct step s = empty_step(r, batch);
    struct step_result out;
    for (uint32_t i = 0; i < N_SEQUENCES; i++)
        add_rows(r, &s, &q[i], 0, q[i].n_prompt, true);
    run_step(r, &s, &out);
    for (uint32_t i = 0; i < N_SEQUENCES; i++) {
        run_prompt(r, &q[i], 64, whole);
        expect_same(r, "alone and in a batch", batch + i * OPS_VOCAB, whole);
        run_prompt(r, &q[i], 7, cut);
        expect_same(r, "in chunks of seven", cut, whole);
        run_prompt(r, &q[i], 1, cut);
        expect_same(r, "token by token", cut, whole);
    }
}

TEST(prompts_in_chunks_alone_and_in_a_batch_give_the_same_logits)
{
    for_cases(check_chunks);
}

/* More rows than the small kernels take, under adapters that only add. */
static void check_many_rows(struct ops_rig *r)
{
    struct request q[N_SEQUENCES];
    float few[OPS_VOCAB], many[N_SEQUENCES * OPS_VOCAB];
    for (uint32_t i = 0; i < N_SEQUENCES; i++) {
        q[i] = (struct request){.n_prompt = 40 + 7 * i, .page0 = i, .slot = (int32_t)i - 1};
        for (uint32_t j = 0; j < q[i].n_prompt; j++)
            q[i].ids[j] = (int32_t)((j * 29 + i * 11 + 2) % OPS_VOCAB);
    }
    struct step s = empty_step(r, many);
    struct step_result out;
    s.kinds = r->adapters[0].bound.kinds | r->adapters[1].bound.kinds;
    for (uint32_t i = 0; i < N_SEQUENCES; i++)
        add_rows(r, &s, &q[i], 0, q[i].n_prompt, true);
    run_step(r, &s, &out);
    for (uint32_t i = 0; i < N_SEQUENCES; i++) {
        run_prompt(r, &q[i], 16, few);
        expect_same(r, "many rows and few", many + i * OPS_VOCAB, few);
    }
}

TEST(many_rows_of_additive_adapters_give_the_logits_of_few)
{
    for_cases(check_many_rows);
}

/* Every row under three adapters at once, by a segment for each adapter or for each row and
 * adapter: more segments than lanes of a warp. */
static void check_segments(struct ops_rig *r)
{
    enum { ROWS = 16, ADAPTERS = 3 };
    struct request q = {.n_prompt = ROWS, .page0 = 0, .slot = -1};
    struct step_segment few[ADAPTERS], many[ROWS * ADAPTERS];
    float by_few[OPS_VOCAB], by_many[OPS_VOCAB];
    unsigned kinds = 0;
    for (uint32_t j = 0; j < ROWS; j++)
        q.ids[j] = (int32_t)((j * 37 + 5) % OPS_VOCAB);
    for (uint32_t a = 0; a < ADAPTERS; a++) {
        kinds |= r->adapters[a].bound.kinds;
        few[a] = (struct step_segment){0, ROWS, a, 0.5f + (float)a};
        for (uint32_t j = 0; j < ROWS; j++)
            many[j * ADAPTERS + a] = (struct step_segment){j, 1, a, 0.5f + (float)a};
    }
    for (int pass = 0; pass < 2; pass++) {
        struct step s = empty_step(r, pass ? by_many : by_few);
        struct step_result out;
        add_rows(r, &s, &q, 0, ROWS, true);
        s.kinds = kinds;
        s.segments = pass ? many : few;
        s.n_segments = pass ? ROWS * ADAPTERS : ADAPTERS;
        run_step(r, &s, &out);
    }
    expect_same(r, "a segment a row", by_many, by_few);
}

TEST(rows_under_several_adapters_may_be_cut_into_any_segments)
{
    for_cases(check_segments);
}

enum { MANY_DECODE = 100, DECODE_PROMPT = 3 };

/* Steps of at most `per_step` sequences: the rows of their prompts but for the last (mix < 0), or
 * that last one, decoded under adapters in turn, `mix` rows of each; 0: all under the same. */
static void run_many(struct ops_rig *r, const struct request *q, uint32_t per_step, int mix,
                     float *logits)
{
    for (uint32_t at = 0; at < MANY_DECODE; at += per_step) {
        uint32_t n = MANY_DECODE - at < per_step ? MANY_DECODE - at : per_step;
        struct step s = empty_step(r, logits ? logits + at * OPS_VOCAB : NULL);
        struct step_result out;
        s.kinds = r->adapters[0].bound.kinds;
        for (uint32_t i = at; i < at + n; i++) {
            struct request one = q[i];
            if (mix >= 0)
                one.slot = mix ? (int32_t)i / mix % 4 - 1 : 1;
            add_rows(r, &s, &one, mix < 0 ? 0 : DECODE_PROMPT - 1, mix < 0 ? DECODE_PROMPT - 1 : 1,
                     mix >= 0);
        }
        s.n_decode_rows = mix < 0 ? 0 : n;
        run_step(r, &s, &out);
    }
}

/* More decoding rows of additive adapters at once than the small kernels take. */
static void check_many_decode(struct ops_rig *r)
{
    static const int mixes[] = {0, 1, 7, 40};
    struct request *q = sys_calloc(MANY_DECODE, sizeof *q);
    float *few = sys_malloc(MANY_DECODE * OPS_VOCAB * sizeof *few);
    float *many = sys_malloc(MANY_DECODE * OPS_VOCAB * sizeof *many);
    CHECK(q && few && many);
    for (uint32_t i = 0; i < MANY_DECODE; i++) {
        q[i] = (struct request){.n_prompt = DECODE_PROMPT, .page0 = i, .slot = -1};
        for (uint32_t j = 0; j < DECODE_PROMPT; j++)
            q[i].ids[j] = (int32_t)((j * 41 + i * 13 + 7) % OPS_VOCAB);
    }
    run_many(r, q, 32, -1, NULL);
    for (size_t m = 0; m < sizeof mixes / sizeof mixes[0]; m++) {
        run_many(r, q, 50, mixes[m], few);
        run_many(r, q, MANY_DECODE, mixes[m], many);
        expect_rows_same(r, "many decoding rows and few", many, few, MANY_DECODE);
    }
    sys_free(q);
    sys_free(few);
    sys_free(many);
}

TEST(many_decoding_rows_of_additive_adapters_give_the_logits_of_few)
{
    for_cases(check_many_decode);
}

TEST(pages_of_any_size_give_the_same_logits)
{
    static const uint32_t sizes[] = {1, 2, 8, 16, 32, 64};
    float first[OPS_VOCAB], logits[OPS_VOCAB];
    struct ops_rig *r = sys_calloc(1, sizeof *r);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        struct ops_case c = ops_cases[0];
        struct request q[N_SEQUENCES];
        struct err err = {0};
        c.page_tokens = sizes[i];
        c.n_prefill = 0;
        int rc = ops_open(r, &c, &err);
        CHECK_MSG(rc == 0 || rc == ERR_NOT_FOUND, "%s", err.msg);
        make_requests(q);
        run_prompt(r, &q[2], 9, i == 0 ? first : logits);
        if (i > 0)
            expect_same(r, "other pages", logits, first);
        ops_close(r);
    }
    sys_free(r);
}

// ---- two in flight
// -------------------------------------------------------------------------------

/* MAX_NEW tokens of every request with a presence penalty; each result is known before the next
 * step is planned. */
static void run_known(struct ops_rig *r, struct request *q)
{
    for (uint32_t n = 0; n < MAX_NEW; n++) {
        struct step s = empty_step(r, NULL);
        struct step_result out;
        for (uint32_t i = 0; i < N_SEQUENCES; i++) {
            uint32_t at = n == 0 ? 0 : q[i].n_ids - 1;
            add_rows(r, &s, &q[i], at, q[i].n_ids - at, true);
            struct sample_params *p = &r->sampling[i];
            p->presence_penalty = 3;
            p->history = q[i].ids;
            p->n_history = q[i].n_ids;
            p->n_prompt = q[i].n_prompt;
        }
        s.n_decode_rows = n == 0 ? 0 : N_SEQUENCES;
        run_step(r, &s, &out);
        for (uint32_t i = 0; i < N_SEQUENCES; i++)
            q[i].ids[q[i].n_ids++] = out.ids[i];
    }
}

/* The same with step n + 1 submitted before step n's result is fetched. */
static void run_ahead(struct ops_rig *r, struct request *q)
{
    uint64_t tickets[MAX_NEW];
    struct err err = {0};
    for (uint32_t n = 0; n <= MAX_NEW; n++) {
        struct step s = empty_step(r, NULL);
        for (uint32_t i = 0; n < MAX_NEW && i < N_SEQUENCES; i++) {
            uint32_t position = n == 0 ? 0 : q[i].n_prompt + n - 1;
            uint32_t rows = n == 0 ? q[i].n_prompt : 1;
            add_rows(r, &s, &q[i], position, rows, true);
            if (n > 0)
                r->tokens[s.n_rows - 1] = ~(int32_t)i;
            struct sample_params *p = &r->sampling[i];
            p->presence_penalty = 3;
            p->history = q[i].ids;
            p->n_history = q[i].n_ids;
            p->n_prompt = q[i].n_prompt;
            p->pending = n == 0 ? -1 : (int32_t)i;
        }
        s.n_decode_rows = n == 0 ? 0 : N_SEQUENCES;
        if (n < MAX_NEW)
            CHECK_OK(r->be->ops->step_submit(r->be, r->dm, &s, &tickets[n], &err), err);
        if (n == 0)
            continue;
        struct step_result out;
        CHECK_OK(r->be->ops->step_result(r->be, r->dm, tickets[n - 1], &out, &err), err);
        for (uint32_t i = 0; i < N_SEQUENCES; i++)
            q[i].ids[q[i].n_ids++] = out.ids[i];
    }
}

static void check_ahead(struct ops_rig *r)
{
    struct request known[N_SEQUENCES], ahead[N_SEQUENCES];
    make_requests(known);
    make_requests(ahead);
    run_known(r, known);
    run_ahead(r, ahead);
    for (uint32_t i = 0; i < N_SEQUENCES; i++) {
        CHECK_INT(ahead[i].n_ids, known[i].n_prompt + MAX_NEW);
        CHECK(memcmp(ahead[i].ids, known[i].ids, sizeof known[i].ids) == 0);
    }
}

TEST(steps_planned_ahead_sample_what_steps_one_by_one_do)
{
    for_cases(check_ahead);
}

// ---- refusals
// ------------------------------------------------------------------------------------

static int submit(struct ops_rig *r, const struct step *s, struct err *err)
{
    uint64_t ticket;
    err_clear(err);
    return r->be->ops->step_submit(r->be, r->dm, s, &ticket, err);
}

/* A sound step with one thing wrong: its code and a word of its message. */
#define REFUSED(change, code, word)                                                                \
    do {                                                                                           \
        struct step s = empty_step(r, NULL);                                                       \
        add_rows(r, &s, &q[2], 0, 4, true);                                                        \
        add_rows(r, &s, &q[0], 0, 4, true);                                                        \
        change;                                                                                    \
        CHECK_CODE(submit(r, &s, &err), code, err);                                                \
        CHECK_MSG(strstr(err.msg, word), "'%s' lacks '%s'", err.msg, word);                        \
    } while (0)

static void check_refusals(struct ops_rig *r)
{
    struct request q[N_SEQUENCES];
    struct err err = {0};
    make_requests(q);
    REFUSED(s.n_rows = OPS_ROWS + 1, ERR_INTERNAL, "n_rows");
    REFUSED(s.n_rows = 7, ERR_INTERNAL, "sequences");
    REFUSED(r->sequences[1].row0 = 3, ERR_INTERNAL, "sequences[1]");
    REFUSED(r->sequences[1].position0 = 62, ERR_INTERNAL, "pages");
    REFUSED(r->pages[1] = 1u << 30, ERR_INTERNAL, "page");
    REFUSED(s.n_decode_rows = 1, ERR_INTERNAL, "decode");
    REFUSED(r->segments[0].slot = OPS_SLOTS, ERR_INTERNAL, "slot");
    REFUSED(r->segments[0].n_rows = 9, ERR_INTERNAL, "segments[0]");
    REFUSED(r->logit_rows[1] = r->logit_rows[0], ERR_INTERNAL, "logit_rows[1]");
    REFUSED(r->sampling[0].n_top = BACKEND_MAX_TOP + 1, ERR_INTERNAL, "n_top");
    REFUSED(r->tokens[2] = OPS_VOCAB, ERR_USAGE, "outside the vocabulary");
    REFUSED(s.kinds = ADAPTER_LORA, ERR_INTERNAL, "kinds");
    REFUSED(s.weight_set = 1, ERR_REFUSED, "weight set");
    REFUSED((r->segments[0].slot = 3, r->segments[0].scale = 0.5f), ERR_REFUSED, "scale");
    REFUSED((r->segments[0].slot = 1, r->segments[1] = (struct step_segment){1, 2, 3, 1.0f},
             s.n_segments = 2),
            ERR_REFUSED, "mixed");
    uint64_t tickets[3];
    struct step s = empty_step(r, NULL);
    struct step_result out;
    add_rows(r, &s, &q[0], 0, 4, true);
    const struct backend_ops *ops = r->be->ops;
    CHECK_OK(ops->step_submit(r->be, r->dm, &s, &tickets[0], &err), err);
    CHECK_OK(ops->step_submit(r->be, r->dm, &s, &tickets[1], &err), err);
    CHECK_CODE(ops->step_submit(r->be, r->dm, &s, &tickets[2], &err), ERR_INTERNAL, err);
    CHECK_CODE(ops->step_result(r->be, r->dm, tickets[1], &out, &err), ERR_INTERNAL, err);
    CHECK_OK(ops->step_result(r->be, r->dm, tickets[0], &out, &err), err);
    CHECK_OK(ops->step_result(r->be, r->dm, tickets[1], &out, &err), err);
    CHECK_INT(tickets[1], tickets[0] + 1);
}

TEST(unsound_steps_are_refused_by_name)
{
    struct ops_rig *r = sys_calloc(1, sizeof *r);
    struct err err = {0};
    CHECK_OK(ops_open(r, &ops_cases[0], &err), err);
    check_refusals(r);
    ops_close(r);
    sys_free(r);
}
