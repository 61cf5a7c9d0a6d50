/*
 * Steps: the copy of a description, the thread that computes, the results.
 * step_submit fills one of two cpu_steps and wakes the compute thread, which runs them in order;
 * step_result waits and copies the results out, so that the next step may overwrite them.
 */
#include <string.h>

#include "kernels/cpu/cpu_impl.h"
#include "libcore/base/limits.h"
#include "libcore/base/sys.h"

// ---- memory
// --------------------------------------------------------------------------------------

static void *take(size_t n, size_t size, bool *failed)
{
    void *p = sys_calloc(n + 1, size);
    *failed |= !p;
    return p;
}

static void open_results(struct cpu_results *r, size_t n, bool *failed)
{
    r->ids = take(n, sizeof *r->ids, failed);
    r->ranks = take(n, sizeof *r->ranks, failed);
    r->logprobs = take(n, sizeof *r->logprobs, failed);
    r->top_ids = take(n * BACKEND_MAX_TOP, sizeof *r->top_ids, failed);
    r->top_logprobs = take(n * BACKEND_MAX_TOP, sizeof *r->top_logprobs, failed);
}

static void free_results(struct cpu_results *r)
{
    sys_free(r->ids);
    sys_free(r->ranks);
    sys_free(r->logprobs);
    sys_free(r->top_ids);
    sys_free(r->top_logprobs);
}

static void open_step(struct device_model *m, struct cpu_step *s, bool *failed)
{
    const struct step_limits *l = &m->limits;
    s->tokens = take(l->max_rows, sizeof *s->tokens, failed);
    s->row_sequence = take(l->max_rows, sizeof *s->row_sequence, failed);
    s->row_position = take(l->max_rows, sizeof *s->row_position, failed);
    s->owner = take(l->max_rows, sizeof *s->owner, failed);
    s->sequences = take(l->max_sequences, sizeof *s->sequences, failed);
    s->pages = take(l->max_pages, sizeof *s->pages, failed);
    s->logit_rows = take(l->max_logit_rows, sizeof *s->logit_rows, failed);
    s->head_owner = take(l->max_logit_rows, sizeof *s->head_owner, failed);
    s->sampling = take(l->max_logit_rows, sizeof *s->sampling, failed);
    s->segments = take(l->max_segments, sizeof *s->segments, failed);
    s->head_segments = take(l->max_segments, sizeof *s->head_segments, failed);
    s->biases = take(m->max_biases, sizeof *s->biases, failed);
    s->history = take(m->max_history, sizeof *s->history, failed);
    open_results(&s->results, l->max_logit_rows, failed);
}

static void free_step(struct cpu_step *s)
{
    void *all[] = {s->tokens,        s->row_sequence, s->row_position, s->owner,    s->sequences,
                   s->pages,         s->logit_rows,   s->head_owner,   s->sampling, s->segments,
                   s->head_segments, s->biases,       s->history};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        sys_free(all[i]);
    free_results(&s->results);
}

// ---- the compute thread
// --------------------------------------------------------------------------

const struct op_table cpu_ops = {
    .begin = cpu_begin,
    .embed = cpu_embed,
    .rms_norm = cpu_rms_norm,
    .gemm = cpu_gemm,
    .sgmv_shrink = cpu_sgmv_shrink,
    .sgmv_expand = cpu_sgmv_expand,
    .gain_bias = cpu_gain_bias,
    .rope_write = cpu_rope_write,
    .attention = cpu_attention,
    .activation = cpu_activation,
    .residual = cpu_residual,
    .moe = cpu_moe,
    .gather = cpu_gather,
    .sample = cpu_sample,
};

static void compute(struct device_model *m, struct cpu_step *s)
{
    s->results.n_rows = 0;
    int rc = sites_forward(&m->run, &s->view);
    if (rc == ERR_NO_MEMORY)
        err_set(&s->error, rc, "no memory for the shrunk rows of a step's adapters");
    else if (rc != 0)
        err_set(&s->error, rc, "a step failed (%d)", rc);
    if (rc != 0 || s->counts.n_logit_rows == 0)
        m->n_prev_ids = 0; // nothing was sampled that a later step could name
}

static void *compute_main(void *arg)
{
    struct device_model *m = arg;
    pthread_mutex_lock(&m->lock);
    for (;;) {
        while (!m->stop && m->n_computed == m->n_submitted)
            pthread_cond_wait(&m->changed, &m->lock);
        if (m->stop)
            break;
        struct cpu_step *s = &m->steps[m->n_computed % CPU_IN_FLIGHT];
        pthread_mutex_unlock(&m->lock);
        compute(m, s);
        pthread_mutex_lock(&m->lock);
        m->n_computed++;
        pthread_cond_broadcast(&m->changed);
    }
    pthread_mutex_unlock(&m->lock);
    return NULL;
}

int cpu_steps_open(struct device_model *m, struct err *err)
{
    bool failed = false;
    const struct step_limits *l = &m->limits;
    // A penalised row needs its tokens, all of which lie in pages of the step, but for the newest.
    m->max_history = (size_t)l->max_pages * l->page_tokens + l->max_logit_rows;
    m->max_biases = (size_t)l->max_logit_rows * (LIMIT_LOGIT_BIAS + 64);
    for (int i = 0; i < CPU_IN_FLIGHT; i++)
        open_step(m, &m->steps[i], &failed);
    open_results(&m->result, l->max_logit_rows, &failed);
    m->prev_ids = take(l->max_logit_rows, sizeof *m->prev_ids, &failed);
    if (failed)
        return err_set(err, ERR_NO_MEMORY, "no memory for the description of steps");
    m->run.ops = &cpu_ops;
    m->run.context = (struct op_context *)(void *)m;
    m->run.config = m->config;
    sites_init(&m->run);
    int rc = pthread_create(&m->thread, NULL, compute_main, m);
    if (rc != 0)
        return err_set_errno(err, rc, "cannot start the compute thread");
    m->thread_started = true;
    return 0;
}

void cpu_steps_free(struct device_model *m)
{
    if (m->thread_started) {
        pthread_mutex_lock(&m->lock);
        m->stop = true;
        pthread_cond_broadcast(&m->changed);
        pthread_mutex_unlock(&m->lock);
        pthread_join(m->thread, NULL);
    }
    for (int i = 0; i < CPU_IN_FLIGHT; i++)
        free_step(&m->steps[i]);
    free_results(&m->result);
    sys_free(m->prev_ids);
}

// ---- submit
// --------------------------------------------------------------------------------------

/* Fills owner[] and checks the slots: ready, and no other adapter where one may replace things. */
static int set_owners(struct device_model *m, const struct step_segment *g, uint32_t n,
                      uint32_t n_rows, unsigned kinds, int32_t *owner, struct err *err)
{
    memset(owner, 0xFF, n_rows * sizeof *owner);
    for (uint32_t j = 0; j < n; j++) {
        const struct cpu_slot *s = &m->slots[g[j].slot];
        if (atomic_load(&s->state) != ADAPTER_READY)
            return err_set(err, ERR_INTERNAL, "step: slot %u is not ready", g[j].slot);
        if (s->kinds & ~kinds)
            return err_set(err, ERR_INTERNAL, "step: kinds %#x lack slot %u's %#x", kinds,
                           g[j].slot, s->kinds);
        if (!(s->kinds & ~(unsigned)ADAPTER_ADDITIVE))
            continue;
        if (g[j].scale != 1.0f)
            return err_set(err, ERR_REFUSED,
                           "an adapter that replaces weights or norms them "
                           "(DoRA) has scale 1 only, got %g",
                           g[j].scale);
        for (uint32_t row = g[j].row0; row < g[j].row0 + g[j].n_rows; row++)
            owner[row] = (int32_t)j;
    }
    for (uint32_t j = 0; j < n; j++) {
        for (uint32_t row = g[j].row0; row < g[j].row0 + g[j].n_rows; row++) {
            if (owner[row] >= 0 && owner[row] != (int32_t)j)
                return err_set(err, ERR_REFUSED,
                               "an adapter that replaces weights or norms them "
                               "(DoRA) cannot be mixed with another");
        }
    }
    return 0;
}

static int check_tokens(const struct device_model *m, const struct step *step,
                        const struct step_segment *segments, const int32_t *owner, struct err *err)
{
    for (uint32_t i = 0; i < step->n_rows; i++) {
        if (step->tokens[i] < (int32_t)m->config->vocab_size)
            continue;
        unsigned n = 0;
        const struct cpu_part *p =
            owner[i] < 0 ? NULL : cpu_slot_parts(m, segments[owner[i]].slot, 0, SITE_EMBED, &n);
        if (n == 0 || !p->full || (uint32_t)step->tokens[i] >= p->full->matrix.n_rows)
            return err_set(err, ERR_USAGE, "token id %d is outside the vocabulary of %u",
                           step->tokens[i], m->config->vocab_size);
    }
    return 0;
}

static int copy_sampling(struct device_model *m, struct cpu_step *to, const struct step *step,
                         struct err *err)
{
    size_t n_history = 0, n_biases = 0;
    for (uint32_t i = 0; i < step->n_logit_rows; i++) {
        struct sample_params *p = &to->sampling[i];
        *p = step->sampling[i];
        bool penalised = p->repetition_penalty != 1.0f || p->presence_penalty != 0.0f ||
                         p->frequency_penalty != 0.0f;
        if (p->target >= 0 || !penalised)
            p->n_history = 0;
        if (p->target >= 0)
            p->n_bias = 0;
        if (n_history + p->n_history > m->max_history || n_biases + p->n_bias > m->max_biases)
            return err_set(err, ERR_LIMIT, "step: %zu history tokens and %zu biases are too many",
                           n_history + p->n_history, n_biases + p->n_bias);
        if (p->n_history)
            memcpy(to->history + n_history, p->history, p->n_history * sizeof *p->history);
        if (p->n_bias)
            memcpy(to->biases + n_biases, p->bias, p->n_bias * sizeof *p->bias);
        p->history = to->history + n_history;
        p->bias = to->biases + n_biases;
        n_history += p->n_history;
        n_biases += p->n_bias;
    }
    return 0;
}

#define COPY(field, n) memcpy(to->field, step->field, (n) * sizeof *to->field)

static int copy_step(struct device_model *m, struct cpu_step *to, const struct step *step,
                     struct err *err)
{
    const uint64_t *keys = &m->slots[0].key;
    if (step->n_segments)
        COPY(segments, step->n_segments);
    if (step->n_head_segments)
        COPY(head_segments, step->n_head_segments);
    segment_sort(to->segments, step->n_segments, keys, sizeof *m->slots);
    segment_sort(to->head_segments, step->n_head_segments, keys, sizeof *m->slots);
    int rc =
        set_owners(m, to->segments, step->n_segments, step->n_rows, step->kinds, to->owner, err);
    if (rc == 0)
        rc = set_owners(m, to->head_segments, step->n_head_segments, step->n_logit_rows,
                        step->kinds, to->head_owner, err);
    if (rc == 0)
        rc = check_tokens(m, step, to->segments, to->owner, err);
    if (rc == 0)
        rc = copy_sampling(m, to, step, err);
    if (rc != 0)
        return rc;
    COPY(tokens, step->n_rows);
    COPY(sequences, step->n_sequences);
    if (step->n_pages)
        COPY(pages, step->n_pages);
    if (step->n_logit_rows)
        COPY(logit_rows, step->n_logit_rows);
    for (uint32_t i = 0; i < step->n_sequences; i++) {
        const struct step_sequence *seq = &step->sequences[i];
        for (uint32_t j = 0; j < seq->n_rows; j++) {
            to->row_sequence[seq->row0 + j] = i;
            to->row_position[seq->row0 + j] = seq->position0 + j;
        }
    }
    to->counts = (struct op_counts){step->n_rows,     step->n_decode_rows, step->n_sequences,
                                    step->n_segments, step->n_logit_rows,  step->n_head_segments};
    to->view = (struct op_step){.row_bucket = step->n_rows,
                                .logit_bucket = step->n_logit_rows,
                                .kinds = step->n_segments ? step->kinds : 0,
                                .weight_set = step->weight_set,
                                .counts = &to->counts,
                                .tokens = to->tokens,
                                .row_sequence = to->row_sequence,
                                .row_position = to->row_position,
                                .sequences = to->sequences,
                                .pages = to->pages,
                                .logit_rows = to->logit_rows,
                                .rows = {to->segments, to->owner},
                                .logits = {to->head_segments, to->head_owner}};
    to->logits_out = step->logits_out;
    err_clear(&to->error);
    return 0;
}

static int check_pages(const struct device_model *m, const struct step *step, struct err *err)
{
    uint32_t n = m->n_chunks * m->pages_per_chunk;
    for (uint32_t i = 0; i < step->n_pages; i++) {
        if (step->pages[i] >= n)
            return err_set(err, ERR_INTERNAL, "step: page %u of %u", step->pages[i], n);
    }
    return 0;
}

static int check_step(struct device_model *m, const struct step *step, struct err *err)
{
    int rc = backend_check_step(
        step, &m->limits, step->kinds & ADAPTER_FULL ? m->max_vocab : m->config->vocab_size, err);
    if (rc == 0)
        rc = check_pages(m, step, err);
    if (rc == 0 && step->weight_set != 0)
        rc = err_set(err, ERR_REFUSED, "step: no weight set %u here", step->weight_set);
    return rc;
}

int cpu_step_prepare(struct device_model *m, const struct step *step, struct cpu_step **out,
                     struct err *err)
{
    int rc = check_step(m, step, err);
    *out = &m->steps[m->n_submitted % CPU_IN_FLIGHT];
    return rc ? rc : copy_step(m, *out, step, err);
}

int cpu_step_submit(struct backend *be, struct device_model *m, const struct step *step,
                    uint64_t *ticket, struct err *err)
{
    (void)be;
    int rc = check_step(m, step, err);
    if (rc != 0)
        return rc;
    pthread_mutex_lock(&m->lock);
    while (m->n_submitted - m->n_computed >= CPU_IN_FLIGHT)
        pthread_cond_wait(&m->changed, &m->lock);
    bool unfetched = m->n_submitted - m->n_fetched >= CPU_IN_FLIGHT;
    pthread_mutex_unlock(&m->lock);
    if (unfetched)
        return err_set(err, ERR_INTERNAL, "step: a third one before the first one's result");
    rc = copy_step(m, &m->steps[m->n_submitted % CPU_IN_FLIGHT], step, err);
    if (rc != 0)
        return rc;
    pthread_mutex_lock(&m->lock);
    *ticket = ++m->n_submitted;
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
    return 0;
}

int cpu_step_result(struct backend *be, struct device_model *m, uint64_t ticket,
                    struct step_result *out, struct err *err)
{
    (void)be;
    pthread_mutex_lock(&m->lock);
    if (ticket != m->n_fetched + 1 || ticket > m->n_submitted) {
        pthread_mutex_unlock(&m->lock);
        return err_set(err, ERR_INTERNAL, "step_result: ticket %llu out of order",
                       (unsigned long long)ticket);
    }
    while (m->n_computed < ticket)
        pthread_cond_wait(&m->changed, &m->lock);
    m->n_fetched = ticket;
    pthread_mutex_unlock(&m->lock);
    struct cpu_step *s = &m->steps[(ticket - 1) % CPU_IN_FLIGHT];
    if (s->error.code != 0) {
        if (err)
            *err = s->error;
        return s->error.code;
    }
    size_t n = s->results.n_rows;
    memcpy(m->result.ids, s->results.ids, n * sizeof *m->result.ids);
    memcpy(m->result.ranks, s->results.ranks, n * sizeof *m->result.ranks);
    memcpy(m->result.logprobs, s->results.logprobs, n * sizeof *m->result.logprobs);
    memcpy(m->result.top_ids, s->results.top_ids, n * BACKEND_MAX_TOP * sizeof *m->result.top_ids);
    memcpy(m->result.top_logprobs, s->results.top_logprobs,
           n * BACKEND_MAX_TOP * sizeof *m->result.top_logprobs);
    *out = (struct step_result){.n_rows = (uint32_t)n,
                                .ids = m->result.ids,
                                .logprobs = m->result.logprobs,
                                .ranks = m->result.ranks,
                                .top_ids = m->result.top_ids,
                                .top_logprobs = m->result.top_logprobs};
    return 0;
}
