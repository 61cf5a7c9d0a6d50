/* Whole requests: one after the other with changing adapters, and many that are there at once. */
#include <string.h>

#include "cmd/bench/bench.h"
#include "libcore/base/thread.h"

// ---- switching

struct request {
    struct bench_plan prompt, token;
    uint32_t n_prompt, n_new;
};

/* One request by itself: its prompt, then its tokens, two steps in flight. */
static int run_request(struct bench_model *b, struct request *r, int slot, struct err *err)
{
    const struct backend_ops *ops = b->be->ops;
    struct step_result result;
    uint64_t ticket, previous = 0;
    int rc = 0;
    bench_plan_slot(&r->prompt, slot);
    bench_plan_slot(&r->token, slot);
    for (uint32_t i = 0; rc == 0 && i < r->n_new; i++) {
        struct bench_plan *p = i == 0 ? &r->prompt : &r->token;
        p->step.tokens = p->tokens[i > 0];
        if (i > 0)
            p->sequences[0].position0 = r->n_prompt + i - 1;
        rc = ops->step_submit(b->be, b->dm, &p->step, &ticket, err);
        if (rc == 0 && previous)
            rc = ops->step_result(b->be, b->dm, previous, &result, err);
        previous = ticket;
    }
    return rc ? rc : ops->step_result(b->be, b->dm, previous, &result, err);
}

enum switching { SWITCH_NONE, SWITCH_RESIDENT, SWITCH_LOADED, SWITCH_MODES };

static int run_requests(struct bench_model *b, struct request *r, enum switching how, uint32_t n,
                        double *tokens_s, struct err *err)
{
    uint64_t begin = thread_now_ns();
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < n; i++) {
        uint32_t slot = i % b->opt.n_adapters;
        if (how == SWITCH_LOADED) {
            b->be->ops->adapter_unload(b->be, b->dm, slot);
            rc = bench_load_slot(b, slot, NULL, err);
        }
        if (rc == 0)
            rc = run_request(b, r, how == SWITCH_NONE ? -1 : (int)slot, err);
    }
    *tokens_s = (double)n * r->n_new / ((double)(thread_now_ns() - begin) * 1e-9);
    return rc;
}

int bench_switch(struct bench_model *b, uint32_t n_prompt, uint32_t n_new, uint32_t n_requests,
                 uint32_t rounds, struct bench_switch_times *out, struct err *err)
{
    double rate[SWITCH_MODES][BENCH_MAX_ROUNDS], ratio[SWITCH_MODES][BENCH_MAX_ROUNDS];
    struct request r = {.n_prompt = n_prompt, .n_new = n_new};
    int rc = bench_plan_make(b, &r.prompt, 1, n_prompt, 0, err);
    if (rc == 0)
        rc = bench_plan_make(b, &r.token, 1, 1, n_prompt, err);
    for (uint32_t round = 0; rc == 0 && round <= rounds; round++) { // the first warms up
        for (int how = 0; rc == 0 && how < SWITCH_MODES; how++) {
            double tokens_s = 0;
            rc = run_requests(b, &r, (enum switching)how, round ? n_requests : 1, &tokens_s, err);
            if (round == 0)
                continue;
            rate[how][round - 1] = tokens_s;
            ratio[how][round - 1] = tokens_s / rate[0][round - 1];
        }
    }
    if (rc == 0)
        *out = (struct bench_switch_times){
            bench_median(rate[SWITCH_NONE], rounds), bench_median(rate[SWITCH_RESIDENT], rounds),
            bench_median(rate[SWITCH_LOADED], rounds), bench_median(ratio[SWITCH_RESIDENT], rounds),
            bench_median(ratio[SWITCH_LOADED], rounds)};
    bench_plan_release(&r.prompt);
    bench_plan_release(&r.token);
    return rc;
}

// ---- offline

/* Sequences [first, first + n) of n_all take the adapter i * n_adapters / n_all each. */
static uint32_t spread(struct bench_plan *p, uint32_t first, uint32_t n, uint32_t n_all,
                       uint32_t n_adapters)
{
    uint32_t rows = p->step.n_rows / p->step.n_sequences, n_segments = 0;
    for (uint32_t i = 0; n_adapters && i < n; i++) {
        uint32_t slot = (uint32_t)((uint64_t)(first + i) * n_adapters / n_all);
        struct step_segment *last = &p->segments[n_segments ? n_segments - 1 : 0];
        if (n_segments && last->slot == slot)
            last->n_rows += rows;
        else
            p->segments[n_segments++] = (struct step_segment){i * rows, rows, slot, 1.0f};
    }
    p->step.n_segments = p->n_distinct = n_segments;
    p->step.kinds = n_segments ? ADAPTER_LORA : 0;
    return n_segments;
}

/* Bytes of A and B of the slots that the plan's segments name. */
static uint64_t segment_bytes(const struct bench_model *b, const struct bench_plan *p)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < p->step.n_segments; i++)
        bytes += bench_image(b, p->segments[i].slot)->ab_bytes;
    return bytes;
}

/* All prompts; *ab_bytes sums what the steps read of adapters. */
static int run_prompts(struct bench_model *b, uint32_t n_all, uint32_t n_prompt,
                       uint32_t n_adapters, double *seconds, uint64_t *ab_bytes, struct err *err)
{
    uint32_t at_once = b->limits.max_rows / n_prompt;
    uint32_t per = b->limits.max_pages / b->limits.max_sequences;
    int rc = 0;
    *seconds = 0;
    *ab_bytes = 0;
    for (uint32_t first = 0; rc == 0 && first < n_all; first += at_once) {
        uint32_t n = n_all - first < at_once ? n_all - first : at_once;
        struct bench_plan p;
        double one = 0;
        rc = bench_plan_make(b, &p, n, n_prompt, 0, err);
        for (uint32_t i = 0; rc == 0 && i < n * per; i++)
            p.pages[i] += first * per;
        if (rc == 0) {
            spread(&p, first, n, n_all, n_adapters);
            *ab_bytes += segment_bytes(b, &p);
            rc = bench_run(b, &p, 1, &one, err);
        }
        *seconds += one;
        bench_plan_release(&p);
    }
    return rc;
}

/* n_new tokens of every sequence; *bytes sums what the steps must read. */
static int run_tokens(struct bench_model *b, uint32_t n_all, uint32_t n_prompt, uint32_t n_new,
                      uint32_t n_adapters, double *seconds, double *bytes, struct err *err)
{
    const struct backend_ops *ops = b->be->ops;
    struct bench_plan p;
    struct step_result result;
    uint64_t ticket, previous = 0;
    int rc = bench_plan_make(b, &p, n_all, 1, n_prompt, err);
    if (rc == 0)
        spread(&p, 0, n_all, n_all, n_adapters);
    double fixed = rc ? 0 : (double)b->weight_bytes + (double)segment_bytes(b, &p);
    uint64_t begin = thread_now_ns();
    *bytes = 0;
    for (uint32_t i = 0; rc == 0 && i < n_new; i++) {
        p.step.tokens = p.tokens[i > 0];
        for (uint32_t j = 0; j < n_all; j++)
            p.sequences[j].position0 = n_prompt + i;
        *bytes += fixed + (double)n_all * (n_prompt + i + 1) * (double)b->kv_bytes_token;
        rc = ops->step_submit(b->be, b->dm, &p.step, &ticket, err);
        if (rc == 0 && previous)
            rc = ops->step_result(b->be, b->dm, previous, &result, err);
        previous = ticket;
    }
    if (rc == 0)
        rc = ops->step_result(b->be, b->dm, previous, &result, err);
    *seconds = (double)(thread_now_ns() - begin) * 1e-9;
    bench_plan_release(&p);
    return rc;
}

int bench_offline(struct bench_model *b, uint32_t n_sequences, uint32_t n_prompt, uint32_t n_new,
                  uint32_t n_adapters, const struct bench_offline_times *without,
                  struct bench_offline_times *out, struct err *err)
{
    double bytes = 0;
    uint64_t prompt_bytes = 0;
    *out = (struct bench_offline_times){.distinct = n_adapters};
    if (b->limits.max_rows < n_prompt || b->opt.n_adapters < n_adapters)
        return err_set(err, ERR_LIMIT, "bench: prompts of %u tokens, %u adapters: not opened so",
                       n_prompt, n_adapters);
    int rc = run_prompts(b, n_sequences, n_prompt, n_adapters, &out->prefill, &prompt_bytes, err);
    if (rc == 0)
        rc = run_tokens(b, n_sequences, n_prompt, n_new, n_adapters, &out->decode, &bytes, err);
    // A prompt is bound by arithmetic, which the byte model does not know: as without adapters.
    double prefill = without ? without->prefill : out->prefill;
    if (b->read_bytes_s > 0)
        out->predicted = prefill + ((double)prompt_bytes + bytes) / b->read_bytes_s;
    return rc;
}
