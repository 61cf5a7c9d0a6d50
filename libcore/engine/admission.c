#include <assert.h>

#include "libcore/base/thread.h"
#include "libcore/engine/scheduler_impl.h"

/* How far behind the head of a client's line somebody is sought whose adapters are there. */
enum { LOOK_AHEAD = 16 };

enum verdict {
    ADMITTED,
    NOT_YET, // it waits for something of its own; others may pass
    NO_ROOM  // pages or segments are short: nobody else is let in before it
};

void scheduler_end_urgency(struct scheduler *s)
{
    s->urgent = NULL;
    s->urgent_only = false;
    adapter_pool_make_room(s->opt.adapters, NULL, 0, 0);
}

// ---- adapters -----------------------------------------------------------------------------------

/* Adapters of seq that no running sequence uses yet. */
static uint32_t n_new_adapters(const struct sequence *seq)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < seq->n_uses; i++)
        n += adapter_pool_n_running(seq->uses[i].entry) == 0;
    return n;
}

/* seq cannot run because the adapters of others fill the device or the step. After a while (at once
 * when nothing else runs) some of them have to drain for it. */
static void hold_up(struct scheduler *s, struct sequence *seq, uint32_t n_distinct_over)
{
    if (seq->blocked_step == 0)
        seq->blocked_step = s->step;
    bool alone = s->n_running == 0 && !s->in_flight;
    bool starved = alone || s->step - seq->blocked_step >= SCHEDULER_BYPASS_STEPS;
    if (!starved || (s->urgent && s->urgent != seq))
        return;
    struct adapter_entry *entries[LIMIT_ADAPTERS_PER_REQUEST];
    for (uint32_t i = 0; i < seq->n_uses; i++)
        entries[i] = seq->uses[i].entry;
    s->urgent = seq;
    s->urgent_only =
        !adapter_pool_make_room(s->opt.adapters, entries, seq->n_uses, n_distinct_over);
    if (!adapter_pool_never_fits(s->opt.adapters, entries, seq->n_uses))
        return;
    struct err err = {0};
    err_set(&err, ERR_LIMIT,
            "the %u adapters of this request do not fit the adapter memory "
            "together",
            seq->n_uses);
    s->opt.fail(s->opt.user, seq, &err);
}

/* A scale or a mix that only additive kinds have; known at submit unless the kinds were not. */
static bool is_computable(const struct sequence *seq)
{
    for (uint32_t i = 0; i < seq->n_uses; i++) {
        bool plain = seq->n_uses == 1 && seq->uses[i].scale == 1;
        if (!plain && (adapter_pool_kinds(seq->uses[i].entry) & ~(unsigned)ADAPTER_ADDITIVE))
            return false;
    }
    return true;
}

static bool all_ready(const struct sequence *seq)
{
    for (uint32_t i = 0; i < seq->n_uses; i++) {
        if (!adapter_pool_is_ready(seq->uses[i].entry))
            return false;
    }
    return true;
}

static bool adapters_are_there(struct scheduler *s, struct sequence *seq)
{
    bool there = true, lacks_room = false;
    for (uint32_t i = 0; i < seq->n_uses; i++) {
        struct adapter_entry *e = seq->uses[i].entry;
        if (!adapter_pool_is_ready(e)) {
            there = false;
            lacks_room |= adapter_pool_lacks_room(e);
        } else if (adapter_pool_is_draining(e)) {
            there = false;
        }
    }
    if (lacks_room)
        hold_up(s, seq, 0);
    if (!there)
        return false;
    uint32_t n_new = n_new_adapters(seq);
    if (n_new && s->urgent && s->urgent != seq && all_ready(s->urgent))
        return false; // the place that is cleared in the step is not for this one
    uint32_t n_distinct = adapter_pool_n_distinct(s->opt.adapters) + n_new;
    if (n_distinct > s->opt.max_step_adapters) {
        hold_up(s, seq, n_distinct - s->opt.max_step_adapters);
        return false;
    }
    return true;
}

static void refuse_mix(struct scheduler *s, struct sequence *seq)
{
    struct err err = {0};
    err_set(&err, ERR_REFUSED,
            "a scale other than 1, or several adapters in one request, need "
            "adapters that only add (no DoRA, no replaced weights)");
    s->opt.fail(s->opt.user, seq, &err);
}

// ---- segments -----------------------------------------------------------------------------------

/* Segments of a step are at most two runs (decode, prefill) an adapter of each distinct set. */
static bool segments_fit(const struct scheduler *s, const struct sequence *seq)
{
    uint64_t max = s->opt.limits.max_segments;
    if (2 * ((uint64_t)s->n_uses_running + seq->n_uses) <= max)
        return true;
    uint64_t n = 2 * (uint64_t)seq->n_uses;
    for (uint32_t i = 0; i < s->n_running; i++) {
        const struct sequence *r = s->running[i];
        if (i == 0 || !sequence_same_set(r, s->running[i - 1]))
            n += 2 * (uint64_t)r->n_uses;
    }
    return n <= max;
}

// ---- pages --------------------------------------------------------------------------------------

/* Takes known pages of the prompt; leaves at least one token to compute. */
static void match_prefix(struct scheduler *s, struct sequence *seq)
{
    assert(seq->n_pages == 0 && seq->n_computed == 0);
    if (s->opt.no_prefix_cache || seq->prompt_logprobs)
        return;
    uint32_t max = (seq->n_tokens - 1) / s->opt.limits.page_tokens;
    seq->n_pages =
        prefix_cache_match(s->opt.prefix, seq->space, seq->tokens, max, seq->pages, &seq->chain);
    seq->n_known_pages = seq->n_pages;
    seq->n_computed = seq->n_pages * s->opt.limits.page_tokens;
    s->n_table_entries += seq->n_pages;
}

static uint64_t n_available(struct scheduler *s)
{
    uint64_t n = kv_cache_n_available(s->opt.kv);
    uint64_t room = kv_cache_n_pages(s->opt.kv) - kv_cache_n_referenced(s->opt.kv);
    if (n < room)
        n += (uint64_t)adapter_pool_n_idle_chunks(s->opt.adapters) *
             kv_cache_pages_per_chunk(s->opt.kv);
    return n < room ? n : room;
}

/* Whether pages for all known tokens and the next one are there; with them come the prefix hits. */
static bool pages_are_there(struct scheduler *s, struct sequence *seq)
{
    uint32_t want = scheduler_pages_for(s, seq->n_tokens + (seq->max_new ? 1 : 0));
    if (seq->max_new && seq->n_tokens == seq->n_prompt + seq->max_new - 1)
        want = scheduler_pages_for(s, seq->n_tokens); // its last token is never read back
    uint64_t table_room = s->opt.limits.max_pages - s->n_table_entries;
    // without the hits, that is: what it asked for last time, cheaper than to look them up again
    if (want > table_room || (s->n_running && seq->blocked_pages > n_available(s)))
        return false;
    match_prefix(s, seq);
    uint32_t missing = want - seq->n_pages;
    if (missing <= n_available(s))
        return true;
    seq->blocked_pages = missing;
    scheduler_give_pages(s, seq);
    return false;
}

// ---- admission ----------------------------------------------------------------------------------

static void enter(struct scheduler *s, struct sequence *seq)
{
    struct fair_client *client = seq->fair.client;
    fair_admitted(&s->waiting, client);
    fair_remove(&s->waiting, seq);
    if (s->urgent == seq)
        scheduler_end_urgency(s);
    seq->blocked_step = 0;
    seq->blocked_pages = 0;
    for (uint32_t i = 0; i < seq->n_uses; i++) {
        struct sequence_use use = seq->uses[i];
        adapter_pool_start(s->opt.adapters, use.entry);
        use.slot = adapter_pool_slot(use.entry);
        uint64_t ready_ns = adapter_pool_ready_ns(use.entry);
        if (!seq->admitted && ready_ns > seq->queued_ns + seq->adapter_wait_ns)
            seq->adapter_wait_ns = ready_ns - seq->queued_ns;
        uint32_t at = i;
        for (; at > 0 && use.slot < seq->uses[at - 1].slot; at--)
            seq->uses[at] = seq->uses[at - 1];
        seq->uses[at] = use;
    }
    if (!seq->admitted) {
        seq->admitted = true;
        s->stats.n_first_admissions++;
        seq->admitted_ns = thread_now_ns();
        seq->n_cached = seq->n_computed;
        seq->n_charged = seq->n_computed;
    }
    if (!s->opt.no_prefix_cache && !seq->prompt_logprobs) {
        s->stats.prefix_queries_tokens += seq->n_tokens;
        s->stats.prefix_hit_tokens += seq->n_computed;
    }
    scheduler_enter_running(s, seq);
    scheduler_plan_prefill(s, seq);
}

static enum verdict try_admit(struct scheduler *s, struct sequence *seq)
{
    if (seq->n_pending || seq->preempted_plan == s->n_plans)
        return NOT_YET; // its newest token is still on its way, or it has just given way
    if (s->urgent_only && s->urgent != seq)
        return NOT_YET;
    if (!adapters_are_there(s, seq))
        return NOT_YET;
    if (!is_computable(seq)) {
        refuse_mix(s, seq);
        return NOT_YET;
    }
    if (!segments_fit(s, seq) || !pages_are_there(s, seq))
        return NO_ROOM;
    enter(s, seq);
    return ADMITTED;
}

static enum verdict admit_from(struct scheduler *s, struct fair_client *client)
{
    struct sequence *next;
    bool alone = s->n_running == 0 && !s->in_flight; // then somebody must be found
    uint32_t n = 0;
    for (struct sequence *seq = client->first; seq && (alone || n < LOOK_AHEAD); seq = next, n++) {
        next = seq->fair.next;
        enum verdict v = try_admit(s, seq);
        if (v != NOT_YET)
            return v;
    }
    return NOT_YET;
}

void scheduler_admit(struct scheduler *s)
{
    fair_begin(&s->waiting);
    while (s->budget > 0 && s->n_running < s->opt.max_running) {
        struct fair_client *client = fair_next(&s->waiting, s->step);
        if (!client)
            return;
        switch (admit_from(s, client)) {
        case ADMITTED:
            break;
        case NOT_YET:
            fair_skip(&s->waiting, client);
            break;
        case NO_ROOM:
            return;
        }
    }
}
