/* The timed steps of `lora bench`: decode, prefill, loads. */
#include <stdlib.h>
#include <string.h>

#include "cmd/bench/bench.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"

void bench_plan_release(struct bench_plan *p)
{
    void *all[] = {p->tokens[0],  p->tokens[1], p->sequences,     p->pages,
                   p->logit_rows, p->segments,  p->head_segments, p->sampling};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        sys_free(all[i]);
    memset(p, 0, sizeof *p);
}

static int allocate(struct bench_plan *p, uint32_t n_rows, uint32_t n_sequences, uint32_t n_pages,
                    struct err *err)
{
    p->tokens[0] = sys_calloc(n_rows, sizeof(int32_t));
    p->tokens[1] = sys_calloc(n_rows, sizeof(int32_t));
    p->sequences = sys_calloc(n_sequences, sizeof *p->sequences);
    p->pages = sys_calloc(n_pages, sizeof *p->pages);
    p->logit_rows = sys_calloc(n_sequences, sizeof *p->logit_rows);
    p->segments = sys_calloc(BENCH_MAX_SLOTS + 1, sizeof *p->segments);
    p->head_segments = sys_calloc(1, sizeof *p->head_segments);
    p->sampling = sys_calloc(n_sequences, sizeof *p->sampling);
    if (!p->tokens[0] || !p->tokens[1] || !p->sequences || !p->pages || !p->logit_rows ||
        !p->segments || !p->head_segments || !p->sampling)
        return err_set(err, ERR_NO_MEMORY, "no memory for a step");
    return 0;
}

int bench_plan_make(struct bench_model *b, struct bench_plan *p, uint32_t n_sequences,
                    uint32_t rows, uint32_t position0, struct err *err)
{
    uint32_t per = b->limits.max_pages / b->limits.max_sequences;
    memset(p, 0, sizeof *p);
    if (n_sequences > b->limits.max_sequences ||
        (uint64_t)n_sequences * rows > b->limits.max_rows ||
        (uint64_t)position0 + rows > (uint64_t)per * b->limits.page_tokens)
        return err_set(err, ERR_LIMIT,
                       "bench: %u sequences of %u tokens do not fit what was opened", n_sequences,
                       position0 + rows);
    int rc = allocate(p, n_sequences * rows, n_sequences, per * n_sequences, err);
    if (rc)
        return rc;
    for (uint32_t i = 0; i < n_sequences; i++) {
        p->sequences[i] = (struct step_sequence){i * rows, rows, position0, i * per, per, 0};
        p->logit_rows[i] = i * rows + rows - 1;
        p->sampling[i] = (struct sample_params){
            .top_p = 1, .repetition_penalty = 1, .pending = -1, .target = -1};
        for (uint32_t j = 0; j < rows; j++) {
            p->tokens[0][i * rows + j] = (int32_t)((i * rows + j) % b->config.vocab_size);
            p->tokens[1][i * rows + j] = ~(int32_t)i;
        }
    }
    for (uint32_t i = 0; i < per * n_sequences; i++)
        p->pages[i] = i;
    p->step = (struct step){.n_rows = n_sequences * rows,
                            .tokens = p->tokens[0],
                            .sequences = p->sequences,
                            .n_sequences = n_sequences,
                            .n_decode_rows = rows == 1 ? n_sequences : 0,
                            .pages = p->pages,
                            .n_pages = per * n_sequences,
                            .segments = p->segments,
                            .logit_rows = p->logit_rows,
                            .n_logit_rows = n_sequences,
                            .head_segments = p->head_segments,
                            .sampling = p->sampling};
    return 0;
}

int bench_plan_mix(struct bench_model *b, struct bench_plan *p, const struct bench_mix *mix,
                   struct err *err)
{
    uint32_t counts[BENCH_MAX_SLOTS], row = 0;
    p->n_distinct = bench_mix_counts(mix, p->step.n_rows, b->opt.n_adapters, counts);
    p->step.n_segments = p->n_distinct;
    p->step.kinds = p->n_distinct ? ADAPTER_LORA : 0;
    for (uint32_t i = 0; i < p->n_distinct; i++) {
        p->segments[i] = (struct step_segment){row, counts[i], i, 1.0f};
        row += counts[i];
    }
    if (mix->kind != BENCH_NONE && p->n_distinct == 0)
        return err_set(err, ERR_USAGE, "bench: a mix of adapters, but none are resident");
    return 0;
}

void bench_plan_slot(struct bench_plan *p, int slot)
{
    p->n_distinct = p->step.n_segments = slot >= 0;
    p->step.kinds = slot >= 0 ? ADAPTER_LORA : 0;
    if (slot >= 0)
        p->segments[0] = (struct step_segment){0, p->step.n_rows, (uint32_t)slot, 1.0f};
}

int bench_run(struct bench_model *b, struct bench_plan *p, uint32_t steps, double *seconds,
              struct err *err)
{
    const struct backend_ops *ops = b->be->ops;
    struct step_result result;
    uint64_t ticket, previous = 0, begin = thread_now_ns();
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < steps; i++) {
        p->step.tokens = p->tokens[i > 0 && p->step.n_decode_rows > 0];
        rc = ops->step_submit(b->be, b->dm, &p->step, &ticket, err);
        if (rc == 0 && previous)
            rc = ops->step_result(b->be, b->dm, previous, &result, err);
        previous = ticket;
    }
    if (rc == 0)
        rc = ops->step_result(b->be, b->dm, previous, &result, err);
    *seconds = (double)(thread_now_ns() - begin) / 1e9 / steps;
    return rc;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *v, uint32_t n)
{
    qsort(v, n, sizeof *v, by_value);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

static int time_mixes(struct bench_model *b, struct bench_plan *p, const struct bench_mix *mixes,
                      uint32_t n_mixes, uint32_t rounds, uint32_t steps, struct bench_times *out,
                      struct err *err)
{
    double times[BENCH_MAX_CASES][BENCH_MAX_ROUNDS], ratios[BENCH_MAX_CASES][BENCH_MAX_ROUNDS];
    int rc = 0;
    for (uint32_t round = 0; rc == 0 && round <= rounds; round++) { // the first warms up
        for (uint32_t i = 0; rc == 0 && i < n_mixes; i++) {
            double seconds = 0;
            rc = bench_plan_mix(b, p, &mixes[i], err);
            if (rc == 0)
                rc = bench_run(b, p, round || steps < 3 ? steps : 3, &seconds, err);
            out->distinct[i] = p->n_distinct;
            if (round == 0)
                continue;
            times[i][round - 1] = seconds;
            ratios[i][round - 1] = seconds / times[0][round - 1];
        }
    }
    for (uint32_t i = 0; rc == 0 && i < n_mixes; i++) {
        out->seconds[i] = bench_median(times[i], rounds);
        out->ratio[i] = bench_median(ratios[i], rounds);
    }
    return rc;
}

int bench_decode(struct bench_model *b, uint32_t n_sequences, uint32_t context,
                 const struct bench_mix *mixes, uint32_t n_mixes, uint32_t rounds, uint32_t steps,
                 struct bench_times *out, struct err *err)
{
    struct bench_plan p;
    int rc = bench_plan_make(b, &p, n_sequences, 1, context, err);
    if (rc == 0)
        rc = time_mixes(b, &p, mixes, n_mixes, rounds, steps, out, err);
    bench_plan_release(&p);
    return rc;
}

int bench_prefill(struct bench_model *b, uint32_t n_tokens, const struct bench_mix *mixes,
                  uint32_t n_mixes, uint32_t rounds, uint32_t steps, struct bench_times *out,
                  struct err *err)
{
    struct bench_plan p;
    uint32_t n = (n_tokens + b->opt.context - 1) / b->opt.context;
    int rc = bench_plan_make(b, &p, n, n_tokens / n, 0, err);
    if (rc == 0)
        rc = time_mixes(b, &p, mixes, n_mixes, rounds, steps, out, err);
    bench_plan_release(&p);
    return rc;
}

int bench_load(struct bench_model *b, uint32_t rounds, double *out, struct err *err)
{
    double times[BENCH_MAX_ROUNDS];
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < rounds; i++) {
        b->be->ops->adapter_unload(b->be, b->dm, 0);
        rc = bench_load_slot(b, 0, &times[i], err);
    }
    if (rc == 0)
        *out = bench_median(times, rounds);
    return rc;
}
