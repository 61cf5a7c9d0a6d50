/*
 * sample: one id a logit row, with the log-probabilities that were asked for.
 *
 * Raw logits (after the model's soft cap) give the log-probabilities. A copy is then changed: bias,
 * repetition, frequency and presence penalties. Temperature 0 takes the largest (the lowest id
 * among equals). Otherwise, on logits / temperature: min_p keeps p_i >= min_p * p_max; top_k keeps
 * the k largest (and what equals the k-th); top_p keeps, by falling probability among those, every
 * id whose predecessors sum to less than top_p; the draw is philox4x32's Gumbel-max (ops.h).
 * Nothing is sorted that need not be: thresholds are found by quickselect over the mass.
 */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu_impl.h"
#include "libcore/base/philox.h"

struct sample_run {
    struct device_model *m;
    const struct op_step *s;
    struct cpu_step *step;
    float *logits;
};

struct sampler {
    const struct sample_params *p;
    const struct isa_table *isa;
    uint32_t n_vocab;
    const float *raw;
    float *logits; // changed copy, then logits / temperature
    uint32_t *counts;
    uint32_t *ids; // candidates
    const int32_t *prev_ids;
    uint32_t n_prev;
};

// ---- penalties
// -----------------------------------------------------------------------------------

static bool has_penalty(const struct sample_params *p)
{
    return p->repetition_penalty != 1.0f || p->presence_penalty != 0.0f ||
           p->frequency_penalty != 0.0f;
}

enum { IN_PROMPT = 1u << 31 };

static void count_tokens(const struct sampler *s)
{
    const struct sample_params *p = s->p;
    for (uint32_t i = 0; i < p->n_history; i++) {
        uint32_t id = (uint32_t)p->history[i];
        if (id >= s->n_vocab)
            continue;
        if (i < p->n_prompt)
            s->counts[id] |= IN_PROMPT;
        else
            s->counts[id]++;
    }
    if (p->pending < 0 || (uint32_t)p->pending >= s->n_prev)
        return;
    uint32_t id = (uint32_t)s->prev_ids[p->pending];
    if (id < s->n_vocab)
        s->counts[id]++;
}

static void penalise(const struct sampler *s)
{
    const struct sample_params *p = s->p;
    for (uint32_t i = 0; i < s->n_vocab; i++) {
        if (s->counts[i] == 0)
            continue;
        float *l = &s->logits[i];
        *l = *l > 0 ? *l / p->repetition_penalty : *l * p->repetition_penalty;
        uint32_t n = s->counts[i] & ~IN_PROMPT;
        if (n > 0)
            *l -= p->frequency_penalty * (float)n + p->presence_penalty;
    }
}

static void change_logits(const struct sampler *s)
{
    memcpy(s->logits, s->raw, s->n_vocab * sizeof *s->logits);
    for (uint32_t i = 0; i < s->p->n_bias; i++) {
        uint32_t id = (uint32_t)s->p->bias[i].token;
        if (id < s->n_vocab)
            s->logits[id] += s->p->bias[i].bias;
    }
    if (!has_penalty(s->p))
        return;
    memset(s->counts, 0, s->n_vocab * sizeof *s->counts);
    count_tokens(s);
    penalise(s);
}

// ---- choosing
// ------------------------------------------------------------------------------------

static int32_t largest(const struct isa_table *isa, const float *logits, uint32_t n)
{
    float max = isa->max(logits, n);
    for (uint32_t i = 0; i < n; i++) {
        if (logits[i] == max)
            return (int32_t)i;
    }
    return 0; // all NaN
}

/* Falling logit, then rising id. */
static bool before(const float *l, uint32_t a, uint32_t b)
{
    return l[a] > l[b] || (l[a] == l[b] && a < b);
}

static void swap_ids(uint32_t *ids, uint32_t a, uint32_t b)
{
    uint32_t t = ids[a];
    ids[a] = ids[b];
    ids[b] = t;
}

/* Moves what comes before a pivot to the front of ids[low, high); returns the pivot's place. */
static uint32_t partition(const float *l, uint32_t *ids, uint32_t low, uint32_t high)
{
    uint32_t mid = low + (high - low) / 2, last = high - 1;
    if (before(l, ids[mid], ids[low]))
        swap_ids(ids, mid, low);
    if (before(l, ids[last], ids[low]))
        swap_ids(ids, last, low);
    if (before(l, ids[mid], ids[last]))
        swap_ids(ids, mid, last); // the median is last
    uint32_t at = low, pivot = ids[last];
    for (uint32_t i = low; i < last; i++) {
        if (before(l, ids[i], pivot))
            swap_ids(ids, i, at++);
    }
    swap_ids(ids, at, last);
    return at;
}

/* Keeps the k largest and what equals the k-th. */
static uint32_t keep_top_k(const float *l, uint32_t *ids, uint32_t n, uint32_t k)
{
    if (k >= n)
        return n;
    uint32_t low = 0, high = n;
    while (high - low > 1) {
        uint32_t at = partition(l, ids, low, high);
        if (at + 1 == k)
            break;
        if (at + 1 < k)
            low = at + 1;
        else
            high = at;
    }
    float limit = l[ids[0]];
    for (uint32_t i = 0; i < k; i++)
        limit = l[ids[i]] < limit ? l[ids[i]] : limit;
    for (uint32_t i = k; i < n; i++) {
        if (l[ids[i]] == limit)
            swap_ids(ids, i, k++);
    }
    return k;
}

/* Keeps, by falling probability, every id whose predecessors hold less than `mass`. */
static uint32_t keep_top_p(const float *l, uint32_t *ids, uint32_t n, double max, double mass)
{
    uint32_t low = 0, high = n; // ids[0, low) are kept, ids[high, n) are not
    double kept = 0;
    while (high > low) {
        uint32_t at = partition(l, ids, low, high);
        double sum = kept;
        for (uint32_t i = low; i < at; i++)
            sum += exp(l[ids[i]] - max);
        if (sum < mass) { // the pivot is kept, and all before it
            kept = sum + exp(l[ids[at]] - max);
            low = at + 1;
        } else {
            high = at;
        }
    }
    return low > 0 ? low : 1;
}

/* The largest of l_i + Gumbel noise; only ids that could still win are hashed. */
static int32_t draw(const struct sample_params *p, const float *l, const uint32_t *ids, uint32_t n)
{
    const double largest_noise = 23.0; // -log(-log(1 - 2^-33)) = 22.9
    uint32_t key[2] = {(uint32_t)p->seed, (uint32_t)(p->seed >> 32)};
    double best = -INFINITY;
    uint32_t best_id = ids[0];
    for (uint32_t i = 0; i < n; i++) {
        uint32_t id = ids[i];
        if (l[id] == -INFINITY || l[id] + largest_noise < best)
            continue;
        uint32_t counter[4] = {id / 4, 0, (uint32_t)p->counter, (uint32_t)(p->counter >> 32)};
        uint32_t word[4];
        philox4x32(counter, key, word);
        double u = ((double)word[id % 4] + 0.5) * 0x1p-32;
        double value = l[id] - log(-log(u));
        if (value > best || (value == best && id < best_id)) {
            best = value;
            best_id = id;
        }
    }
    return (int32_t)best_id;
}

static int32_t choose_id(const struct sampler *s)
{
    const struct sample_params *p = s->p;
    float *l = s->logits;
    if (!(p->temperature > 0) && p->n_bias == 0 && !has_penalty(p))
        return largest(s->isa, s->raw, s->n_vocab);
    change_logits(s);
    int32_t greedy = largest(s->isa, l, s->n_vocab);
    if (!(p->temperature > 0))
        return greedy;
    for (uint32_t i = 0; i < s->n_vocab; i++)
        l[i] /= p->temperature;
    float max = l[greedy];
    float limit = p->min_p > 0 ? max + logf(p->min_p) : -INFINITY;
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_vocab; i++) {
        if (l[i] >= limit && l[i] > -INFINITY)
            s->ids[n++] = i;
    }
    if (n == 0)
        return greedy;
    if (p->top_k > 0)
        n = keep_top_k(l, s->ids, n, (uint32_t)p->top_k);
    if (p->top_p < 1.0f) {
        double total = 0;
        for (uint32_t i = 0; i < n; i++)
            total += exp((double)l[s->ids[i]] - max);
        n = keep_top_p(l, s->ids, n, max, p->top_p * total);
    }
    return draw(p, l, s->ids, n);
}

// ---- log-probabilities
// ---------------------------------------------------------------------------

/* The n most probable by insertion; n is small. */
static void find_top(const float *l, uint32_t n_vocab, int n, int32_t *ids)
{
    int have = 0;
    for (uint32_t i = 0; i < n_vocab; i++) {
        if (have == n && !(l[i] > l[ids[n - 1]]))
            continue;
        int at = have < n ? have++ : n - 1;
        while (at > 0 && l[i] > l[ids[at - 1]]) {
            ids[at] = ids[at - 1];
            at--;
        }
        ids[at] = (int32_t)i;
    }
    for (; have < n; have++)
        ids[have] = 0;
}

static void report(const struct sampler *s, struct cpu_results *out, size_t row, int32_t id)
{
    const struct sample_params *p = s->p;
    float max = s->isa->max(s->raw, s->n_vocab);
    double log_sum = max + log(s->isa->sum_exp(s->raw, max, s->n_vocab));
    float l = (uint32_t)id < s->n_vocab ? s->raw[id] : -INFINITY;
    out->ids[row] = id;
    out->logprobs[row] = (float)(l - log_sum);
    int n = p->n_top;
    int32_t *top = out->top_ids + row * BACKEND_MAX_TOP;
    out->ranks[row] = 0;
    if (n <= 0 && p->target < 0)
        return;
    int32_t rank = 1;
    for (uint32_t i = 0; i < s->n_vocab; i++)
        rank += s->raw[i] > l;
    out->ranks[row] = rank;
    if (n > 0)
        find_top(s->raw, s->n_vocab, n, top);
    for (int i = 0; i < n; i++)
        out->top_logprobs[row * BACKEND_MAX_TOP + i] = (float)(s->raw[top[i]] - log_sum);
}

// ---- rows
// ----------------------------------------------------------------------------------------

/* The row's vocabulary: its owner's head may have more rows (added tokens). */
static uint32_t row_vocab(const struct sample_run *r, size_t row)
{
    int32_t owner = r->s->logits.owner[row];
    unsigned n = 0;
    const struct cpu_part *p =
        owner < 0 ? NULL : cpu_slot_parts(r->m, r->s->logits.items[owner].slot, 0, SITE_HEAD, &n);
    for (unsigned i = 0; i < n; i++) {
        if (p[i].full)
            return p[i].full->matrix.n_rows;
    }
    return r->m->config->vocab_size;
}

static void sample_rows(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    const struct sample_run *r = arg;
    struct device_model *m = r->m;
    float *scratch = m->thread_scratch + thread_idx * m->thread_floats;
    float cap = (float)m->config->logit_softcap;
    for (size_t row = begin; row < end; row++) {
        float *raw = r->logits + row * m->vocab_stride;
        struct sampler s = {.p = &r->step->sampling[row],
                            .isa = m->isa,
                            .n_vocab = row_vocab(r, row),
                            .raw = raw,
                            .logits = scratch,
                            .counts = (uint32_t *)(void *)(scratch + m->max_vocab),
                            .ids = (uint32_t *)(void *)(scratch + 2 * m->max_vocab),
                            .prev_ids = m->prev_ids,
                            .n_prev = m->n_prev_ids};
        for (uint32_t i = 0; cap > 0 && i < s.n_vocab; i++)
            raw[i] = cap * tanhf(raw[i] / cap);
        if (r->step->logits_out)
            memcpy(r->step->logits_out + row * m->config->vocab_size, raw,
                   m->config->vocab_size * sizeof *raw);
        int32_t id = s.p->target;
        if (id < 0)
            id = choose_id(&s);
        report(&s, &r->step->results, row, id);
    }
}

int cpu_sample(struct op_context *c, const struct op_step *s, void *logits)
{
    struct device_model *m = cpu_context(c);
    struct cpu_step *step =
        (struct cpu_step *)(void *)((char *)(uintptr_t)s - offsetof(struct cpu_step, view));
    struct sample_run r = {m, s, step, logits};
    worker_pool_run(m->pool, s->counts->n_logit_rows, 1, sample_rows, &r);
    step->results.n_rows = s->counts->n_logit_rows;
    memcpy(m->prev_ids, step->results.ids, step->results.n_rows * sizeof *m->prev_ids);
    m->n_prev_ids = step->results.n_rows;
    return 0;
}
