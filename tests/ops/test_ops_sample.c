/*
 * sample against plain references: greedy and ties, penalties with a pending token, bias, top_k,
 * top_p, min_p, the draw's distribution and determinism, log-probabilities, ranks and targets.
 */
#include "tests/ops/ops_cases.h"

enum { VOCAB = OPS_VOCAB };

/* Samples the case's logit rows from `logits` (one row for all); results go to *out. */
static void sample_with(struct ops_rig *r, const float *logits, const struct sample_params *p,
                        struct step_result *out)
{
    struct err err = {0};
    size_t stride = r->access->logits_stride(r->session), n = r->step.n_logit_rows;
    void *buffer = r->access->alloc(r->session, n * stride);
    for (size_t i = 0; i < n; i++) {
        r->sampling[i] = *p;
        r->sampling[i].counter = p->counter + i;
        r->access->write(r->session, buffer, i * stride, logits, VOCAB);
    }
    unsigned kinds = r->step.kinds;
    uint32_t n_segments = r->step.n_segments, n_head = r->step.n_head_segments;
    r->step.kinds = r->step.n_segments = r->step.n_head_segments = 0;
    CHECK_OK(r->access->prepare(r->session, &r->step, &r->view, &err), err);
    CHECK_INT(r->ops->begin(r->context, r->view), 0);
    CHECK_INT(r->ops->sample(r->context, r->view, buffer), 0);
    CHECK_OK(r->access->results(r->session, out, &err), err);
    r->access->free(r->session, buffer);
    r->step.kinds = kinds;
    r->step.n_segments = n_segments;
    r->step.n_head_segments = n_head;
}

static struct sample_params greedy(void)
{
    return (struct sample_params){
        .top_p = 1, .repetition_penalty = 1, .pending = -1, .target = -1, .n_top = 5};
}

static void fill(struct ops_rig *r, float *logits)
{
    for (int i = 0; i < VOCAB; i++)
        logits[i] = 4 * ops_random(r);
}

static double log_sum(const float *logits)
{
    double max = -INFINITY, sum = 0;
    for (int i = 0; i < VOCAB; i++)
        max = logits[i] > max ? logits[i] : max;
    for (int i = 0; i < VOCAB; i++)
        sum += exp(logits[i] - max);
    return max + log(sum);
}

static void check_greedy(struct ops_rig *r)
{
    float logits[VOCAB];
    struct step_result out;
    fill(r, logits);
    logits[70] = logits[31] = 9; // a tie: the lowest id
    struct sample_params p = greedy();
    sample_with(r, logits, &p, &out);
    CHECK_INT(out.n_rows, r->step.n_logit_rows);
    CHECK_INT(out.ids[0], 31);
    CHECK_INT(out.ranks[0], 1);
    EXPECT_NEAR(out.logprobs[0], 9 - log_sum(logits), 1e-5);
    CHECK_INT(out.top_ids[0], 31);
    CHECK_INT(out.top_ids[1], 70);
    for (int i = 0; i < 5; i++) {
        EXPECT_NEAR(out.top_logprobs[i], logits[out.top_ids[i]] - log_sum(logits), 1e-5);
        CHECK(i == 0 || out.top_logprobs[i] <= out.top_logprobs[i - 1]);
    }
    p.target = 12; // reports, samples nothing
    sample_with(r, logits, &p, &out);
    int larger = 0;
    for (int i = 0; i < VOCAB; i++)
        larger += logits[i] > logits[12];
    CHECK_INT(out.ids[0], 12);
    CHECK_INT(out.ranks[0], 1 + larger);
    EXPECT_NEAR(out.logprobs[0], logits[12] - log_sum(logits), 1e-5);
}

TEST(greedy_ties_log_probabilities_ranks_and_targets)
{
    for_cases(check_greedy);
}

static void check_penalties(struct ops_rig *r)
{
    float logits[VOCAB] = {0};
    struct step_result out;
    static const int32_t history[] = {5, 5, 6, 7, 7, 8}; // prompt 5 5 6, answer 7 7 8
    struct sample_params p = greedy();
    p.history = history;
    p.n_history = 6;
    p.n_prompt = 3;
    logits[7] = 3;
    logits[6] = 2.5f;
    logits[9] = 2;
    p.frequency_penalty = 0.3f; // 7: 3 - 0.6
    sample_with(r, logits, &p, &out);
    CHECK_INT(out.ids[0], 6);
    EXPECT_NEAR(out.logprobs[0], 2.5 - log_sum(logits), 1e-5); // of the raw logits
    p.presence_penalty = -1;                                   // 7: 3 - 0.6 + 1; the prompt is free
    sample_with(r, logits, &p, &out);
    CHECK_INT(out.ids[0], 7);
    p = greedy();
    p.history = history;
    p.n_history = 6;
    p.n_prompt = 3;
    p.repetition_penalty = 2; // 7 and 6 halved: prompt and answer
    sample_with(r, logits, &p, &out);
    CHECK_INT(out.ids[0], 9);
    for (int i = 0; i < VOCAB; i++)
        logits[i] = -1;
    logits[9] = -1.5f; // negative logits are multiplied: all seen ones fall to -2, 0 … 4 stay
    sample_with(r, logits, &p, &out);
    CHECK_INT(out.ids[0], 0);
    const struct token_bias bias[] = {{0, -INFINITY}, {1, -INFINITY}, {9, 3}};
    p.bias = bias;
    p.n_bias = 3;
    sample_with(r, logits, &p, &out);
    CHECK_INT(out.ids[0], 9);
    // What the previous step sampled (9) counts as the answer's newest token.
    p.n_bias = 0;
    p.n_history = 0;
    p.repetition_penalty = 1;
    p.presence_penalty = 5;
    p.n_history = 1;
    p.n_prompt = 1;
    p.pending = 0;
    logits[9] = 2;
    sample_with(r, logits, &p, &out);
    CHECK_INT(out.ids[0], 0);
}

TEST(penalties_bias_and_the_pending_token)
{
    for_cases(check_penalties);
}

/* Draws n_steps times the case's rows; counts[id]. */
static size_t draw_many(struct ops_rig *r, const float *logits, struct sample_params p,
                        size_t n_steps, uint32_t *counts)
{
    size_t total = 0;
    memset(counts, 0, VOCAB * sizeof *counts);
    for (size_t i = 0; i < n_steps; i++) {
        struct step_result out;
        p.counter = i * 64;
        sample_with(r, logits, &p, &out);
        for (uint32_t j = 0; j < out.n_rows; j++, total++)
            counts[out.ids[j]]++;
    }
    return total;
}

/* Every id's share lies within five standard deviations of its probability. */
static void expect_shares(const struct ops_rig *r, const char *what, const uint32_t *counts,
                          size_t n, const double *p)
{
    for (int i = 0; i < VOCAB; i++) {
        double want = p[i] * (double)n, deviation = sqrt(want * (1 - p[i])) + 1e-9;
        EXPECT_MSG(fabs(counts[i] - want) <= 5 * deviation + (p[i] > 0 ? 1 : 0),
                   "%s, %s: id %d drawn %u times of %zu, want %.1f", r->c->name, what, i, counts[i],
                   n, want);
    }
}

/* Probabilities of the ids that `keep` keeps. */
static void shares(const float *logits, double temperature, const bool *keep, double *p)
{
    double sum = 0;
    for (int i = 0; i < VOCAB; i++)
        sum += p[i] = keep[i] ? exp(logits[i] / temperature) : 0;
    for (int i = 0; i < VOCAB; i++)
        p[i] /= sum;
}

static void order_ids(const float *logits, int *ids)
{
    for (int i = 0; i < VOCAB; i++) {
        int at = i;
        while (at > 0 && logits[i] > logits[ids[at - 1]]) {
            ids[at] = ids[at - 1];
            at--;
        }
        ids[at] = i;
    }
}

static void check_draws(struct ops_rig *r)
{
    float logits[VOCAB];
    double p[VOCAB], mass = 0, all[VOCAB];
    bool keep[VOCAB];
    uint32_t counts[VOCAB], again[VOCAB];
    int ids[VOCAB];
    fill(r, logits);
    logits[40] = logits[41]; // equal ones are both kept or both cut by top_k
    order_ids(logits, ids);
    struct sample_params s = greedy();
    s.temperature = 1.5f;
    s.seed = 0x123456789abcdefu;
    memset(keep, 1, sizeof keep);
    shares(logits, 1.5, keep, all);
    size_t n = draw_many(r, logits, s, 400, counts);
    expect_shares(r, "plain", counts, n, all);
    draw_many(r, logits, s, 400, again);
    CHECK(memcmp(counts, again, sizeof counts) == 0);
    s.seed++;
    draw_many(r, logits, s, 400, again);
    CHECK(memcmp(counts, again, sizeof counts) != 0);
    s.top_k = 7;
    for (int i = 0; i < VOCAB; i++)
        keep[i] = logits[i] >= logits[ids[6]];
    shares(logits, 1.5, keep, p);
    n = draw_many(r, logits, s, 250, counts);
    expect_shares(r, "top_k", counts, n, p);
    s.top_k = 0;
    s.top_p = 0.6f;
    for (int i = 0; i < VOCAB; mass += all[ids[i++]])
        keep[ids[i]] = mass < 0.6;
    shares(logits, 1.5, keep, p);
    n = draw_many(r, logits, s, 250, counts);
    expect_shares(r, "top_p", counts, n, p);
    s.top_p = 1;
    s.min_p = 0.2f;
    for (int i = 0; i < VOCAB; i++)
        keep[i] = all[i] >= 0.2 * all[ids[0]];
    shares(logits, 1.5, keep, p);
    n = draw_many(r, logits, s, 250, counts);
    expect_shares(r, "min_p", counts, n, p);
    s.top_p = 0; // the most probable one is always kept
    s.min_p = 0;
    draw_many(r, logits, s, 1, counts);
    CHECK(counts[ids[0]] == r->step.n_logit_rows);
}

TEST(draws_follow_temperature_top_k_top_p_min_p_and_the_seed)
{
    for_cases(check_draws);
}
