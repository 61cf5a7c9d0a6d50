#include "cmd/serve/metrics.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "cmd/serve/generation.h"
#include "cmd/serve/metrics_impl.h"
#include "libcore/base/log.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"

// The hot adapter's rule: that share of the tokens, in each of so many minutes in a row, and enough
// tokens to mean anything.
enum { HOT_PERCENT = 80, HOT_MINUTES = 3, HOT_MIN_TOKENS = 1000 };
static const uint64_t MINUTE_NS = 60000000000u;

const double metrics_second_bounds[METRICS_N_BOUNDS] = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08,
                                                        0.1,   0.25,  0.5,  0.75, 1,    2.5,  5,
                                                        7.5,   10,    20,   40,   80,   160};
const double metrics_token_bounds[METRICS_N_BOUNDS] = {1,   2,   5,    10,   20,   50,    100,
                                                       200, 500, 1000, 2000, 5000, 10000, 20000,
                                                       5e4, 1e5, 2e5,  5e5,  1e6,  2e6};

int metrics_open(struct metrics **out, struct err *err)
{
    *out = sys_calloc(1, sizeof **out);
    if (!*out)
        return err_set(err, ERR_NO_MEMORY, "no memory for metrics");
    pthread_mutex_init(&(*out)->mutex, NULL);
    (*out)->minute_began_ns = thread_now_ns();
    return 0;
}

void metrics_free(struct metrics *m)
{
    if (!m)
        return;
    pthread_mutex_destroy(&m->mutex);
    sys_free(m);
}

static void observe(struct histogram *h, const double *bounds, double v)
{
    unsigned i = 0;
    while (i < METRICS_N_BOUNDS && v > bounds[i])
        i++;
    h->counts[i]++;
    h->n++;
    h->sum += v;
}

/* Under mutex. The last row is everybody else's. */
static struct adapter_counter *counter_of(struct metrics *m, const char *label)
{
    for (unsigned i = 0; i < m->n_adapters; i++) {
        if (strcmp(m->adapters[i].label, label) == 0)
            return &m->adapters[i];
    }
    if (m->n_adapters == METRICS_MAX_ADAPTERS)
        return &m->adapters[METRICS_MAX_ADAPTERS - 1];
    struct adapter_counter *c = &m->adapters[m->n_adapters++];
    snprintf(c->label, sizeof c->label, "%s",
             m->n_adapters == METRICS_MAX_ADAPTERS ? "_other" : label);
    return c;
}

static double seconds(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (double)(to_ns - from_ns) * 1e-9 : 0;
}

/* Under mutex. */
static void count_choice(struct metrics *m, const struct generation *g, const struct gen_choice *c)
{
    uint64_t now = thread_now_ns();
    size_t n_uses = 0;
    const struct served_use *uses = generation_uses(g, c->prompt_idx, &n_uses);
    struct adapter_counter *a = counter_of(m, n_uses ? uses[0].served->label : "");
    a->n_requests++;
    a->n_failed += c->end == CHOICE_ERROR;
    a->n_prompt_tokens += g->prompts[c->prompt_idx].n;
    a->n_tokens += c->n_tokens;
    a->minute_tokens += c->n_tokens;
    m->by_end[c->end]++;
    m->n_prompt_tokens += g->prompts[c->prompt_idx].n;
    m->n_cached_tokens += c->n_cached;
    m->n_tokens += c->n_tokens;
    const double *s = metrics_second_bounds;
    observe(&m->prompt_tokens, metrics_token_bounds, (double)g->prompts[c->prompt_idx].n);
    observe(&m->answer_tokens, metrics_token_bounds, c->n_tokens);
    observe(&m->e2e, s, seconds(g->started_ns, now));
    if (c->admitted_ns && c->queued_ns)
        observe(&m->queue, s, seconds(c->queued_ns, c->admitted_ns));
    if (c->adapter_wait_ns)
        observe(&m->adapter_wait, s, (double)c->adapter_wait_ns * 1e-9);
    if (c->n_tokens == 0)
        return;
    observe(&m->ttft, s, seconds(g->started_ns, c->first_token_ns));
    if (c->admitted_ns) {
        observe(&m->prefill, s, seconds(c->admitted_ns, c->first_token_ns));
        observe(&m->inference, s, seconds(c->admitted_ns, c->last_token_ns));
    }
    observe(&m->decode, s, seconds(c->first_token_ns, c->last_token_ns));
    if (c->n_tokens > 1)
        observe(&m->tpot, s, seconds(c->first_token_ns, c->last_token_ns) / (c->n_tokens - 1));
}

void metrics_count_generation(struct metrics *m, const struct generation *g)
{
    pthread_mutex_lock(&m->mutex);
    for (size_t i = 0; i < g->n_choices; i++)
        count_choice(m, g, &g->choices[i]);
    pthread_mutex_unlock(&m->mutex);
}

void metrics_count_http(struct metrics *m, unsigned status)
{
    pthread_mutex_lock(&m->mutex);
    m->by_status[status >= 100 && status < 600 ? status / 100 : 0]++;
    pthread_mutex_unlock(&m->mutex);
}

void metrics_count_tokens(struct metrics *m, const char *label, uint64_t n_tokens)
{
    pthread_mutex_lock(&m->mutex);
    struct adapter_counter *c = counter_of(m, label);
    c->n_tokens += n_tokens;
    c->minute_tokens += n_tokens;
    pthread_mutex_unlock(&m->mutex);
}

// ---- the hot adapter ----------------------------------------------------------------------------

/* Under mutex: which adapter had most of the minute's tokens, or NULL; starts a new minute. */
static struct adapter_counter *close_minute(struct metrics *m)
{
    uint64_t all = 0;
    struct adapter_counter *most = NULL;
    for (unsigned i = 0; i < m->n_adapters; i++) {
        struct adapter_counter *c = &m->adapters[i];
        all += c->minute_tokens;
        if (*c->label && (!most || c->minute_tokens > most->minute_tokens))
            most = c;
    }
    bool hot = most && all >= HOT_MIN_TOKENS && most->minute_tokens * 100 >= all * HOT_PERCENT;
    for (unsigned i = 0; i < m->n_adapters; i++)
        m->adapters[i].minute_tokens = 0;
    return hot ? most : NULL;
}

void metrics_tick_at(struct metrics *m, uint64_t now_ns)
{
    char hot[LIMIT_NAME_BYTES + 1] = "";
    pthread_mutex_lock(&m->mutex);
    if (now_ns - m->minute_began_ns >= MINUTE_NS) {
        m->minute_began_ns = now_ns;
        struct adapter_counter *c = close_minute(m);
        m->hot_minutes = c && strcmp(c->label, m->hot) == 0 ? m->hot_minutes + 1 : c ? 1 : 0;
        snprintf(m->hot, sizeof m->hot, "%s", c ? c->label : "");
        if (m->hot_minutes == HOT_MINUTES)
            snprintf(hot, sizeof hot, "%s", m->hot);
    }
    pthread_mutex_unlock(&m->mutex);
    if (*hot)
        log_info("metrics",
                 "one adapter has had most of the tokens adapter=%s minutes=%d "
                 "percent>=%d try=\"--premerge %s\"",
                 hot, HOT_MINUTES, HOT_PERCENT, hot);
}

void metrics_tick(struct metrics *m)
{
    metrics_tick_at(m, thread_now_ns());
}

void metrics_hot_adapter(struct metrics *m, char *buf, size_t n)
{
    pthread_mutex_lock(&m->mutex);
    snprintf(buf, n, "%s", m->hot_minutes >= HOT_MINUTES ? m->hot : "");
    pthread_mutex_unlock(&m->mutex);
}
