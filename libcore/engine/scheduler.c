#include "libcore/engine/scheduler.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/engine/scheduler_impl.h"

int scheduler_open(struct scheduler **out, const struct scheduler_options *opt, struct err *err)
{
    *out = NULL;
    struct scheduler *s = sys_calloc(1, sizeof *s);
    if (!s)
        return err_set(err, ERR_NO_MEMORY, "scheduler: no memory");
    s->opt = *opt;
    s->running = sys_calloc(opt->max_running, sizeof *s->running);
    s->by_age = sys_calloc(opt->max_running, sizeof *s->by_age);
    if (!s->running || !s->by_age) {
        scheduler_free(s);
        return err_set(err, ERR_NO_MEMORY, "scheduler: no memory for %u sequences",
                       opt->max_running);
    }
    *out = s;
    return 0;
}

void scheduler_free(struct scheduler *s)
{
    if (!s)
        return;
    sys_free(s->running);
    sys_free(s->by_age);
    sys_free(s);
}

uint32_t scheduler_pages_for(const struct scheduler *s, uint32_t n_positions)
{
    uint32_t page_tokens = s->opt.limits.page_tokens;
    return (n_positions + page_tokens - 1) / page_tokens;
}

// ---- the sets -----------------------------------------------------------------------------------

void scheduler_add(struct scheduler *s, struct sequence *seq)
{
    if (!seq->space_interned) {
        seq->space = prefix_cache_intern(s->opt.prefix, seq->space);
        seq->space_interned = true;
        seq->chain = prefix_space_root(seq->space);
    }
    if (seq->n_uses == 0)
        seq->fair.client = &s->base_client;
    else
        seq->fair.client =
            seq->n_uses > 1 ? &s->mixed_client : adapter_pool_client(seq->uses[0].entry);
    seq->fair.key = (int64_t)s->step - (int64_t)seq->priority * FAIR_AGE_STEPS;
    seq->state = SEQUENCE_WAITING;
    fair_add(&s->waiting, seq);
}

static void insert(struct sequence **list, uint32_t n, struct sequence *seq,
                   bool (*before)(const struct sequence *a, const struct sequence *b))
{
    uint32_t at = n;
    while (at > 0 && before(seq, list[at - 1]))
        at--;
    memmove(&list[at + 1], &list[at], (n - at) * sizeof *list);
    list[at] = seq;
}

static void erase(struct sequence **list, uint32_t n, const struct sequence *seq)
{
    uint32_t at = 0;
    while (list[at] != seq)
        at++;
    memmove(&list[at], &list[at + 1], (n - at - 1) * sizeof *list);
}

static bool rows_before(const struct sequence *a, const struct sequence *b)
{
    return sequence_compare_rows(a, b) < 0;
}

void scheduler_enter_running(struct scheduler *s, struct sequence *seq)
{
    insert(s->running, s->n_running, seq, rows_before);
    insert(s->by_age, s->n_running, seq, fair_before);
    s->n_running++;
    s->n_uses_running += seq->n_uses;
    seq->fair.client->n_running++;
    seq->state = SEQUENCE_RUNNING;
}

static void leave_running(struct scheduler *s, struct sequence *seq)
{
    erase(s->running, s->n_running, seq);
    erase(s->by_age, s->n_running, seq);
    s->n_running--;
    s->n_uses_running -= seq->n_uses;
    seq->fair.client->n_running--;
    s->budget += seq->plan_rows;
    seq->plan_rows = 0;
}

/* The last page first, so that of a chain the tail is evicted before the head. */
void scheduler_give_pages(struct scheduler *s, struct sequence *seq)
{
    s->n_table_entries -= seq->n_pages;
    while (seq->n_pages > 0)
        kv_cache_unref(s->opt.kv, seq->pages[--seq->n_pages]);
    seq->n_known_pages = 0;
    seq->n_computed = 0;
    seq->chain = prefix_space_root(seq->space);
}

void scheduler_remove(struct scheduler *s, struct sequence *seq)
{
    bool was_running = seq->state == SEQUENCE_RUNNING;
    if (was_running) {
        leave_running(s, seq);
        scheduler_give_pages(s, seq);
    } else {
        assert(seq->state == SEQUENCE_WAITING);
        fair_remove(&s->waiting, seq);
    }
    if (s->urgent == seq)
        scheduler_end_urgency(s);
    for (uint32_t i = 0; i < seq->n_uses; i++)
        adapter_pool_release(s->opt.adapters, seq->uses[i].entry, was_running);
    prefix_cache_release(s->opt.prefix, seq->space);
    seq->space = NULL;
    seq->state = SEQUENCE_DONE;
}

static void preempt(struct scheduler *s, struct sequence *seq)
{
    leave_running(s, seq);
    scheduler_give_pages(s, seq);
    for (uint32_t i = 0; i < seq->n_uses; i++)
        adapter_pool_pause(s->opt.adapters, seq->uses[i].entry);
    seq->n_preempted++;
    seq->preempted_plan = s->n_plans;
    seq->state = SEQUENCE_WAITING;
    fair_add(&s->waiting, seq); // with its old key: before those that came later
    s->stats.n_preemptions++;
}

// ---- pages --------------------------------------------------------------------------------------

static bool take_page(struct scheduler *s, struct sequence *seq)
{
    if (s->n_table_entries >= s->opt.limits.max_pages)
        return false;
    uint32_t page;
    while (!kv_cache_take(s->opt.kv, &page)) {
        if (!adapter_pool_evict_idle(s->opt.adapters))
            return false;
    }
    seq->pages[seq->n_pages++] = page;
    s->n_table_entries++;
    return true;
}

/* Pages for positions up to n_positions, at the cost of newer sequences. False: seq itself was the
 * newest and waits again. */
bool scheduler_need_pages(struct scheduler *s, struct sequence *seq, uint32_t n_positions)
{
    uint32_t want = scheduler_pages_for(s, n_positions);
    while (seq->n_pages < want) {
        if (take_page(s, seq))
            continue;
        struct sequence *newest = s->by_age[s->n_running - 1];
        preempt(s, newest);
        if (newest == seq)
            return false;
    }
    return true;
}

void scheduler_note_tokens(struct scheduler *s, struct sequence *seq)
{
    if (s->opt.no_prefix_cache || seq->state != SEQUENCE_RUNNING)
        return;
    uint32_t page_tokens = s->opt.limits.page_tokens;
    uint32_t n = seq->n_computed < seq->n_tokens ? seq->n_computed : seq->n_tokens;
    while ((uint64_t)(seq->n_known_pages + 1) * page_tokens <= n) {
        uint32_t i = seq->n_known_pages++;
        seq->chain = prefix_cache_insert(s->opt.prefix, seq->space, seq->chain,
                                         &seq->tokens[(size_t)i * page_tokens], seq->pages[i]);
    }
}

// ---- the plan -----------------------------------------------------------------------------------

/* Rows of seq from n_computed on that fit the budget and the logit rows it may have. */
static uint32_t prefill_rows(struct scheduler *s, const struct sequence *seq, uint32_t *n_extra)
{
    uint32_t n = sequence_n_todo(seq);
    if (n > s->budget)
        n = s->budget;
    *n_extra = 0;
    if (!seq->prompt_logprobs)
        return n;
    // row p scores position p + 1; every row from the first unscored one on costs a logit row
    uint32_t first = seq->n_scored - 1 > seq->n_computed ? seq->n_scored - 1 : seq->n_computed;
    uint32_t n_free = first - seq->n_computed, allowed = n_free + 1 + s->n_extra_logits;
    if (n > allowed)
        n = allowed;
    *n_extra = n > n_free + 1 ? n - n_free - 1 : 0;
    return n;
}

void scheduler_plan_prefill(struct scheduler *s, struct sequence *seq)
{
    uint32_t n_extra, n = prefill_rows(s, seq, &n_extra);
    if (n == 0 || !scheduler_need_pages(s, seq, seq->n_computed + n))
        return;
    seq->plan_rows = n;
    s->budget -= n;
    s->n_extra_logits -= n_extra;
}

/* Preempting shortens by_age from its end only, so indices before it stay what they are. */
static void plan_running(struct scheduler *s, bool decodes)
{
    for (uint32_t i = 0; i < s->n_running; i++) {
        struct sequence *seq = s->by_age[i];
        uint32_t todo = sequence_n_todo(seq);
        if (todo == 0 || (todo == 1) != decodes)
            continue;
        if (decodes && seq->max_new && sequence_n_left(seq) == 0)
            continue; // its last token is on its way
        scheduler_plan_prefill(s, seq);
    }
}

uint32_t scheduler_plan(struct scheduler *s, uint64_t step, bool in_flight)
{
    s->step = step;
    s->in_flight = in_flight;
    s->n_plans++;
    s->budget = s->opt.max_step_tokens;
    s->n_extra_logits = s->opt.limits.max_logit_rows - s->opt.max_running;
    for (uint32_t i = 0; i < s->n_running; i++)
        s->running[i]->plan_rows = 0;
    plan_running(s, true);
    plan_running(s, false);
    scheduler_admit(s);
    return s->opt.max_step_tokens - s->budget;
}

void scheduler_submitted(struct scheduler *s, struct sequence *seq, uint64_t step)
{
    uint32_t n_rows = seq->plan_rows;
    seq->plan_rows = 0;
    seq->n_computed += n_rows;
    if (seq->n_computed > seq->n_charged) { // what is computed again costs its client nothing
        uint32_t n = seq->n_computed - seq->n_charged;
        bool decode = seq->n_computed > seq->n_prompt;
        seq->fair.client->vtime += (uint64_t)n * (decode ? FAIR_DECODE_COST : FAIR_PREFILL_COST);
        seq->n_charged = seq->n_computed;
    }
    for (uint32_t i = 0; i < seq->n_uses; i++)
        adapter_pool_used(seq->uses[i].entry, step, n_rows);
    scheduler_note_tokens(s, seq);
}

// ---- looking ------------------------------------------------------------------------------------

bool scheduler_is_urgent(const struct scheduler *s)
{
    return s->urgent != NULL;
}

struct sequence *const *scheduler_running(const struct scheduler *s, uint32_t *n)
{
    *n = s->n_running;
    return s->running;
}

void scheduler_each_waiting(struct scheduler *s, void (*visit)(void *user, struct sequence *seq),
                            void *user)
{
    struct fair_client *next_client;
    for (struct fair_client *c = s->waiting.clients; c; c = next_client) {
        next_client = c->next; // removing c's last sequence takes c off the list
        struct sequence *next;
        for (struct sequence *seq = c->first; seq; seq = next) {
            next = seq->fair.next;
            visit(user, seq);
        }
    }
}

void scheduler_stats(const struct scheduler *s, struct scheduler_stats *out)
{
    *out = s->stats;
    out->n_running = s->n_running;
    out->n_waiting = s->waiting.n_waiting;
}
