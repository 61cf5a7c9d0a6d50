#include "libcore/engine/batch.h"

#include <assert.h>
#include <string.h>

#include "libcore/base/sys.h"

/* The newest segment of a slot, valid when its stamp is the present one. */
struct last_segment {
    uint64_t stamp;
    uint32_t idx;
};

struct segment_list {
    struct step_segment *items;
    uint32_t n;
    uint64_t stamp;
    struct last_segment *last; // by slot
};

struct batch {
    struct step_limits limits;
    struct step step;
    int32_t *tokens;
    struct step_sequence *sequences;
    uint32_t *pages, *logit_rows;
    struct sample_params *sampling;
    struct segment_list segments, head_segments;
    struct step_record records[BATCH_IN_FLIGHT];
};

static bool list_open(struct segment_list *l, const struct step_limits *limits)
{
    l->items = sys_calloc(limits->max_segments + 1, sizeof *l->items);
    l->last = sys_calloc(limits->max_slots + 1, sizeof *l->last);
    return l->items && l->last;
}

static bool record_open(struct step_record *r, const struct step_limits *limits, bool with_groups)
{
    r->sequences = sys_calloc(limits->max_sequences, sizeof *r->sequences);
    r->logits = sys_calloc(limits->max_logit_rows, sizeof *r->logits);
    if (with_groups)
        r->groups = sys_calloc(limits->max_slots + 1, sizeof *r->groups);
    return r->sequences && r->logits && (r->groups || !with_groups);
}

int batch_open(struct batch **out, const struct step_limits *limits, bool with_groups,
               struct err *err)
{
    *out = NULL;
    struct batch *b = sys_calloc(1, sizeof *b);
    if (!b)
        return err_set(err, ERR_NO_MEMORY, "batch: no memory");
    b->limits = *limits;
    b->tokens = sys_calloc(limits->max_rows, sizeof *b->tokens);
    b->sequences = sys_calloc(limits->max_sequences, sizeof *b->sequences);
    b->pages = sys_calloc(limits->max_pages, sizeof *b->pages);
    b->logit_rows = sys_calloc(limits->max_logit_rows, sizeof *b->logit_rows);
    b->sampling = sys_calloc(limits->max_logit_rows, sizeof *b->sampling);
    bool ok = b->tokens && b->sequences && b->pages && b->logit_rows && b->sampling &&
              list_open(&b->segments, limits) && list_open(&b->head_segments, limits);
    for (int i = 0; ok && i < BATCH_IN_FLIGHT; i++)
        ok = record_open(&b->records[i], limits, with_groups);
    if (!ok) {
        batch_free(b);
        return err_set(err, ERR_NO_MEMORY, "batch: no memory for steps of %u rows",
                       limits->max_rows);
    }
    b->step = (struct step){.tokens = b->tokens,
                            .sequences = b->sequences,
                            .pages = b->pages,
                            .segments = b->segments.items,
                            .logit_rows = b->logit_rows,
                            .head_segments = b->head_segments.items,
                            .sampling = b->sampling};
    *out = b;
    return 0;
}

static void list_release(struct segment_list *l)
{
    sys_free(l->items);
    sys_free(l->last);
}

void batch_free(struct batch *b)
{
    if (!b)
        return;
    for (int i = 0; i < BATCH_IN_FLIGHT; i++) {
        sys_free(b->records[i].sequences);
        sys_free(b->records[i].logits);
        sys_free(b->records[i].groups);
    }
    list_release(&b->segments);
    list_release(&b->head_segments);
    sys_free(b->tokens);
    sys_free(b->sequences);
    sys_free(b->pages);
    sys_free(b->logit_rows);
    sys_free(b->sampling);
    sys_free(b);
}

// ---- segments -----------------------------------------------------------------------------------

/* Rows [row0, row0 + n) of seq: lengthens a segment that ends at row0, or begins one. Uses come by
 * slot and rows rise, so the list is sorted by (row0, slot). */
static void add_segments(struct segment_list *l, const struct sequence *seq, uint32_t row0,
                         uint32_t n_rows)
{
    for (uint32_t i = 0; i < seq->n_uses; i++) {
        const struct sequence_use *use = &seq->uses[i];
        struct last_segment *last = &l->last[use->slot];
        struct step_segment *s = &l->items[last->idx];
        if (last->stamp == l->stamp && s->scale == use->scale && s->row0 + s->n_rows == row0) {
            s->n_rows += n_rows;
            continue;
        }
        l->items[l->n] = (struct step_segment){row0, n_rows, use->slot, use->scale};
        *last = (struct last_segment){l->stamp, l->n++};
    }
}

static void list_reset(struct segment_list *l)
{
    l->n = 0;
    l->stamp++;
}

// ---- logit rows ---------------------------------------------------------------------------------

static struct sample_params sampling_of(const struct sequence *seq)
{
    struct sample_params p = seq->sampling;
    uint32_t n_generated = seq->n_tokens - seq->n_prompt + seq->n_pending;
    p.counter = n_generated;
    p.bias = seq->bias;
    p.n_bias = seq->n_bias + (n_generated < seq->min_new ? seq->n_stop : 0);
    p.history = seq->tokens;
    p.n_history = seq->n_tokens;
    p.n_prompt = seq->n_prompt;
    p.pending = seq->n_pending ? (int32_t)seq->pending_row : -1;
    p.target = -1;
    return p;
}

static void add_logit(struct batch *b, struct step_record *r, struct sequence *seq, uint32_t row,
                      const struct batch_logit *logit)
{
    uint32_t j = r->n_logits++;
    r->logits[j] = *logit;
    b->logit_rows[j] = row;
    if (logit->sampled)
        b->sampling[j] = sampling_of(seq);
    else
        b->sampling[j] = (struct sample_params){.top_p = 1,
                                                .repetition_penalty = 1,
                                                .pending = -1,
                                                .n_top = seq->sampling.n_top,
                                                .target = seq->tokens[logit->position]};
    add_segments(&b->head_segments, seq, j, 1);
}

/* Scores of prompt tokens, then the row that samples. */
static void add_logits(struct batch *b, struct step_record *r, struct sequence *seq, uint32_t row0)
{
    uint32_t end = seq->n_computed + seq->plan_rows;
    for (uint32_t p = seq->n_computed; seq->prompt_logprobs && p < end; p++) {
        if (p + 1 < seq->n_scored || p + 1 >= seq->n_prompt)
            continue;
        struct batch_logit logit = {seq, false, p + 1};
        add_logit(b, r, seq, row0 + p - seq->n_computed, &logit);
        seq->n_scored = p + 2;
    }
    if (seq->max_new && end == seq->n_tokens + seq->n_pending) {
        struct batch_logit logit = {seq, true, end};
        add_logit(b, r, seq, row0 + seq->plan_rows - 1, &logit);
    }
}

// ---- rows ---------------------------------------------------------------------------------------

static void count_group(struct step_record *r, const char *content_id, uint32_t n_rows)
{
    uint32_t i = 0;
    while (i < r->n_groups && strcmp(r->groups[i].content_id, content_id) != 0)
        i++;
    if (i == r->n_groups) {
        r->n_groups++;
        r->groups[i].n_rows = 0;
        memcpy(r->groups[i].content_id, content_id, strlen(content_id) + 1);
    }
    r->groups[i].n_rows += n_rows;
}

static void count_groups(struct step_record *r, const struct sequence *seq)
{
    if (!r->groups)
        return;
    if (seq->n_uses == 0)
        count_group(r, "", seq->plan_rows);
    for (uint32_t i = 0; i < seq->n_uses; i++)
        count_group(r, adapter_pool_id(seq->uses[i].entry), seq->plan_rows);
}

static void add_rows(struct batch *b, struct step_record *r, struct sequence *seq)
{
    uint32_t row0 = r->n_rows, n = seq->plan_rows;
    assert(row0 + n <= b->limits.max_rows);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t position = seq->n_computed + i;
        b->tokens[row0 + i] =
            position < seq->n_tokens ? seq->tokens[position] : ~(int32_t)seq->pending_row;
    }
    uint32_t n_pages = (seq->n_computed + n + b->limits.page_tokens - 1) / b->limits.page_tokens;
    memcpy(&b->pages[b->step.n_pages], seq->pages, n_pages * sizeof *b->pages);
    b->sequences[r->n_sequences] = (struct step_sequence){.row0 = row0,
                                                          .n_rows = n,
                                                          .position0 = seq->n_computed,
                                                          .page0 = b->step.n_pages,
                                                          .n_pages = n_pages,
                                                          .rope_regime = seq->rope_regime};
    b->step.n_pages += n_pages;
    add_segments(&b->segments, seq, row0, n);
    for (uint32_t i = 0; i < seq->n_uses; i++)
        b->step.kinds |= adapter_pool_kinds(seq->uses[i].entry);
    add_logits(b, r, seq, row0);
    count_groups(r, seq);
    r->sequences[r->n_sequences++] = seq;
    r->n_rows += n;
}

const struct step *batch_build(struct batch *b, const struct scheduler *s, uint64_t number,
                               struct step_record **record)
{
    struct step_record *r = &b->records[number % BATCH_IN_FLIGHT];
    *r = (struct step_record){
        .number = number, .sequences = r->sequences, .logits = r->logits, .groups = r->groups};
    b->step.n_pages = 0;
    b->step.kinds = 0;
    list_reset(&b->segments);
    list_reset(&b->head_segments);
    uint32_t n_running;
    struct sequence *const *running = scheduler_running(s, &n_running);
    for (uint32_t i = 0; i < n_running; i++) {
        if (running[i]->plan_rows == 1)
            add_rows(b, r, running[i]);
    }
    r->n_decode_rows = r->n_rows;
    for (uint32_t i = 0; i < n_running; i++) {
        if (running[i]->plan_rows > 1)
            add_rows(b, r, running[i]);
    }
    r->n_prefill_rows = r->n_rows - r->n_decode_rows;
    b->step.n_rows = r->n_rows;
    b->step.n_sequences = r->n_sequences;
    b->step.n_decode_rows = r->n_decode_rows;
    b->step.n_segments = b->segments.n;
    b->step.n_logit_rows = r->n_logits;
    b->step.n_head_segments = b->head_segments.n;
    *record = r;
    return &b->step;
}

void batch_submitted(struct batch *b, struct scheduler *s, struct step_record *r)
{
    (void)b;
    for (uint32_t j = 0; j < r->n_logits; j++) {
        if (!r->logits[j].sampled)
            continue;
        r->logits[j].seq->pending_row = j;
        r->logits[j].seq->n_pending++;
    }
    for (uint32_t i = 0; i < r->n_sequences; i++) {
        r->sequences[i]->n_inflight++;
        scheduler_submitted(s, r->sequences[i], r->number);
    }
}
