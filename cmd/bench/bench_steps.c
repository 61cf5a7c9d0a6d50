/* The timed steps of `lora bench`: decode, prefill, loads. */
#include <stdlib.h>
#include <string.h>

#include "cmd/bench/bench.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"

enum { MAX_ROUNDS = 64 };

struct plan {
    struct step step;
    int32_t *tokens[2]; // literal, and "what the previous step sampled"
    struct step_sequence *sequences;
    uint32_t *pages, *logit_rows;
    struct step_segment *segments, *head_segments;
    struct sample_params *sampling;
};

static void release(struct plan *p)
{
    void *all[] = {p->tokens[0],  p->tokens[1], p->sequences,     p->pages,
                   p->logit_rows, p->segments,  p->head_segments, p->sampling};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        sys_free(all[i]);
}

static int allocate(struct plan *p, uint32_t n_rows, uint32_t n_sequences, uint32_t n_pages,
                    struct err *err)
{
    p->tokens[0] = sys_calloc(n_rows, sizeof(int32_t));
    p->tokens[1] = sys_calloc(n_rows, sizeof(int32_t));
    p->sequences = sys_calloc(n_sequences, sizeof *p->sequences);
    p->pages = sys_calloc(n_pages, sizeof *p->pages);
    p->logit_rows = sys_calloc(n_sequences, sizeof *p->logit_rows);
    p->segments = sys_calloc(n_rows, sizeof *p->segments);
    p->head_segments = sys_calloc(n_sequences, sizeof *p->head_segments);
    p->sampling = sys_calloc(n_sequences, sizeof *p->sampling);
    if (!p->tokens[0] || !p->tokens[1] || !p->sequences || !p->pages || !p->logit_rows ||
        !p->segments || !p->head_segments || !p->sampling)
        return err_set(err, ERR_NO_MEMORY, "no memory for a step");
    return 0;
}

/* n_sequences of `rows` rows each from `position0` on. */
static int make_plan(struct bench_model *b, struct plan *p, uint32_t n_sequences, uint32_t rows,
                     uint32_t position0, struct err *err)
{
    uint32_t per = (position0 + rows + b->limits.page_tokens - 1) / b->limits.page_tokens;
    memset(p, 0, sizeof *p);
    if (n_sequences > b->limits.max_sequences || n_sequences * rows > b->limits.max_rows ||
        per * n_sequences > b->n_pages)
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

/* Rows in equal stretches over n adapters. */
static void set_mix(struct plan *p, uint32_t n)
{
    uint32_t rows = p->step.n_rows;
    p->step.n_segments = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t begin = (uint32_t)((uint64_t)rows * i / n);
        uint32_t end = (uint32_t)((uint64_t)rows * (i + 1) / n);
        if (end > begin)
            p->segments[p->step.n_segments++] = (struct step_segment){begin, end - begin, i, 1.0f};
    }
    p->step.kinds = n ? ADAPTER_LORA : 0;
}

/* `steps` steps, two in flight; seconds a step. */
static int run_steps(struct bench_model *b, struct plan *p, uint32_t steps, double *seconds,
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

static double median(double *v, uint32_t n)
{
    qsort(v, n, sizeof *v, by_value);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

static int time_mixes(struct bench_model *b, struct plan *p, const struct bench_mix *mixes,
                      uint32_t n_mixes, uint32_t rounds, uint32_t steps, double *out, double *ratio,
                      struct err *err)
{
    double times[BENCH_MAX_CASES][MAX_ROUNDS], ratios[BENCH_MAX_CASES][MAX_ROUNDS];
    int rc = 0;
    rounds = rounds < MAX_ROUNDS ? rounds : MAX_ROUNDS;
    for (uint32_t round = 0; rc == 0 && round <= rounds; round++) { // the first warms up
        for (uint32_t i = 0; rc == 0 && i < n_mixes; i++) {
            double seconds;
            set_mix(p, mixes[i].n_adapters);
            rc = run_steps(b, p, round ? steps : 3, &seconds, err);
            if (round == 0)
                continue;
            times[i][round - 1] = seconds;
            ratios[i][round - 1] = seconds / times[0][round - 1];
        }
    }
    for (uint32_t i = 0; rc == 0 && i < n_mixes; i++) {
        out[i] = median(times[i], rounds);
        ratio[i] = median(ratios[i], rounds);
    }
    return rc;
}

int bench_decode(struct bench_model *b, uint32_t n_sequences, uint32_t context,
                 const struct bench_mix *mixes, uint32_t n_mixes, uint32_t rounds, uint32_t steps,
                 double *out, double *ratio, struct err *err)
{
    struct plan p;
    int rc = make_plan(b, &p, n_sequences, 1, context, err);
    if (rc == 0)
        rc = time_mixes(b, &p, mixes, n_mixes, rounds, steps, out, ratio, err);
    release(&p);
    return rc;
}

int bench_prefill(struct bench_model *b, uint32_t n_tokens, const struct bench_mix *mixes,
                  uint32_t n_mixes, uint32_t rounds, uint32_t steps, double *out, double *ratio,
                  struct err *err)
{
    struct plan p;
    uint32_t n = (n_tokens + b->opt.context - 1) / b->opt.context;
    int rc = make_plan(b, &p, n, n_tokens / n, 0, err);
    if (rc == 0)
        rc = time_mixes(b, &p, mixes, n_mixes, rounds, steps, out, ratio, err);
    release(&p);
    return rc;
}

int bench_load(struct bench_model *b, uint32_t rounds, double *out, struct err *err)
{
    double times[MAX_ROUNDS];
    uint32_t *chunks = sys_malloc((b->image_chunks + 1) * sizeof *chunks);
    int rc = chunks ? 0 : err_set(err, ERR_NO_MEMORY, "no memory for a list of chunks");
    rounds = rounds < MAX_ROUNDS ? rounds : MAX_ROUNDS;
    for (uint32_t i = 0; rc == 0 && i < b->image_chunks; i++)
        chunks[i] = b->first_adapter_chunk + i;
    for (uint32_t i = 0; rc == 0 && i < rounds; i++) {
        b->be->ops->adapter_unload(b->be, b->dm, 0);
        uint64_t begin = thread_now_ns();
        rc = b->be->ops->adapter_load(b->be, b->dm, 0, b->image, b->image_bytes, chunks,
                                      b->image_chunks, NULL, 0, err);
        while (rc == 0 && b->be->ops->adapter_poll(b->be, b->dm, 0) == ADAPTER_LOADING)
            ;
        times[i] = (double)(thread_now_ns() - begin) / 1e9;
    }
    if (rc == 0)
        *out = median(times, rounds);
    sys_free(chunks);
    return rc;
}
