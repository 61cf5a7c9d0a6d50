/*
 * Steps: the description goes into one pinned block and one copy, the kernels (or a recorded graph)
 * follow on the compute stream, the results come back by one copy and an event.
 */
#include <string.h>

#include "kernels/cuda/cuda_impl.h"
#include "libcore/base/limits.h"
#include "libcore/base/sys.h"

// ---- memory

static size_t align256(size_t n)
{
    return (n + 255) / 256 * 256;
}

/* The arrays of a description of `rows` and `logits`, the pages last. */
static struct cuda_layout layout_of(const struct device_model *m, uint32_t rows, uint32_t logits)
{
    const struct step_limits *l = &m->limits;
    struct cuda_layout at;
    size_t end = 0, n_seq = rows < l->max_sequences ? rows : l->max_sequences;
#define PLACE(field, bytes) (at.field = end, end = align256(end + (bytes)))
    PLACE(counts, sizeof(struct cuda_counts));
    PLACE(tokens, rows * 4ull);
    PLACE(sequence, rows * 4ull);
    PLACE(position, rows * 4ull);
    PLACE(owner, rows * 4ull);
    PLACE(sequences, n_seq * sizeof(struct cu_sequence));
    PLACE(logit_rows, logits * 4ull);
    PLACE(head_owner, logits * 4ull);
    PLACE(segments, l->max_segments * sizeof(struct cu_segment));
    PLACE(head_segments, l->max_segments * sizeof(struct cu_segment));
    PLACE(columns, l->max_segments * 4ull);
    PLACE(head_columns, l->max_segments * 4ull);
    PLACE(sampling, logits * sizeof(struct cu_sample));
    PLACE(pages, l->max_pages * 4ull);
#undef PLACE
    return at;
}

static int open_flight(struct device_model *m, struct cuda_flight *f, struct err *err)
{
    int rc = cudaHostAlloc((void **)&f->meta, m->meta_bytes, cudaHostAllocDefault);
    rc = rc ? rc : (int)cudaHostAlloc((void **)&f->results, m->results_bytes, cudaHostAllocDefault);
    rc = rc ? rc : (int)cudaHostAlloc((void **)&f->extra, m->extra_bytes, cudaHostAllocDefault);
    rc = rc ? rc : (int)cudaEventCreateWithFlags(&f->done, cudaEventDisableTiming);
    return cuda_check(rc, "pinned memory for steps", err);
}

static int open_device(struct device_model *m, struct err *err)
{
    int rc = cudaMalloc((void **)&m->meta, m->meta_bytes);
    rc = rc ? rc : (int)cudaMalloc((void **)&m->extra, m->extra_bytes);
    rc = rc ? rc : (int)cudaMalloc((void **)&m->results, m->results_bytes);
    rc = rc ? rc : (int)cudaMalloc((void **)&m->tokens, m->limits.max_rows * 4ull);
    rc = rc ? rc : (int)cudaMalloc((void **)&m->prev_ids, m->limits.max_logit_rows * 4ull + 4);
    rc = rc ? rc : (int)cudaMemset(m->prev_ids, 0, m->limits.max_logit_rows * 4ull + 4);
    return cuda_check(rc, "memory for steps", err);
}

int cuda_steps_open(struct device_model *m, struct err *err)
{
    const struct step_limits *l = &m->limits;
    size_t n = l->max_logit_rows + 1ull;
    m->meta_bytes = layout_of(m, l->max_rows, l->max_logit_rows).pages + l->max_pages * 4ull + 256;
    m->results_bytes = n * (12 + 8 * BACKEND_MAX_TOP);
    m->max_biases = n * (LIMIT_LOGIT_BIAS + 64);
    m->max_history = (size_t)l->max_pages * l->page_tokens + l->max_logit_rows;
    // Four adapters a row on all rows; a segment may end with less than an item.
    m->max_items = 4ull * (l->max_rows / CU_SHRINK_ROWS + CU_SHRINK_FEW_ITEMS) + l->max_segments;
    m->max_blocks = l->max_rows / CU_QUERY_ROWS + l->max_sequences + 1ull;
    bool hopper = m->be->capability == 90 && !m->be->deterministic &&
                  cu_attention_hopper_takes(m->config->head_dim, l->page_tokens);
    m->query_rows = hopper ? CU_HOPPER_ROWS : CU_QUERY_ROWS;
    m->extra_bytes = m->max_biases * sizeof(struct cu_token_bias) + m->max_history * 4 +
                     (4 * m->max_items + 2 * m->max_blocks) * 4;
    m->ids = sys_calloc(n, sizeof *m->ids);
    m->ranks = sys_calloc(n, sizeof *m->ranks);
    m->logprobs = sys_calloc(n, sizeof *m->logprobs);
    m->top_ids = sys_calloc(n * BACKEND_MAX_TOP, sizeof *m->top_ids);
    m->top_logprobs = sys_calloc(n * BACKEND_MAX_TOP, sizeof *m->top_logprobs);
    if (!m->ids || !m->ranks || !m->logprobs || !m->top_ids || !m->top_logprobs)
        return err_set(err, ERR_NO_MEMORY, "no memory for the results of steps");
    int rc = open_device(m, err);
    for (int i = 0; rc == 0 && i < CUDA_IN_FLIGHT; i++)
        rc = open_flight(m, &m->flights[i], err);
    return rc;
}

void cuda_steps_free(struct device_model *m)
{
    for (uint32_t i = 0; i < m->n_graphs; i++)
        cudaGraphExecDestroy(m->graphs[i].exec);
    for (int i = 0; i < CUDA_IN_FLIGHT; i++) {
        struct cuda_flight *f = &m->flights[i];
        cudaFreeHost(f->meta);
        cudaFreeHost(f->results);
        cudaFreeHost(f->extra);
        if (f->done)
            cudaEventDestroy(f->done);
    }
    cudaFree(m->meta);
    cudaFree(m->extra);
    cudaFree(m->results);
    cudaFree(m->tokens);
    cudaFree(m->prev_ids);
    sys_free(m->ids);
    sys_free(m->ranks);
    sys_free(m->logprobs);
    sys_free(m->top_ids);
    sys_free(m->top_logprobs);
}

// ---- the description

/* owner[], and the checks of what may be mixed. */
static int set_owners(struct device_model *m, const struct step_segment *g, uint32_t n,
                      uint32_t n_rows, int32_t *owner, struct err *err)
{
    memset(owner, 0xFF, n_rows * sizeof *owner);
    for (uint32_t j = 0; j < n; j++) {
        struct cuda_slot *s = &m->slots[g[j].slot];
        if (cuda_adapter_poll(&m->be->base, m, g[j].slot) != ADAPTER_READY)
            return err_set(err, ERR_INTERNAL, "step: slot %u is not ready", g[j].slot);
        if (!(s->kinds & ~(unsigned)ADAPTER_ADDITIVE))
            continue;
        if (g[j].scale != 1.0f)
            return err_set(err, ERR_REFUSED,
                           "an adapter that replaces weights or norms them (DoRA) has "
                           "scale 1 only, got %g",
                           g[j].scale);
        for (uint32_t row = g[j].row0; row < g[j].row0 + g[j].n_rows; row++)
            owner[row] = (int32_t)j;
    }
    for (uint32_t j = 0; j < n; j++) {
        for (uint32_t row = g[j].row0; row < g[j].row0 + g[j].n_rows; row++) {
            if (owner[row] >= 0 && owner[row] != (int32_t)j)
                return err_set(err, ERR_REFUSED,
                               "an adapter that replaces weights or norms them (DoRA) "
                               "cannot be mixed with another");
        }
    }
    return 0;
}

/* First column of v of every segment, so that segments of the same row lie side by side. Among many
 * rows every module begins at a multiple of 16 columns. Returns the columns needed. */
static uint32_t set_columns(const struct device_model *m, const struct step_segment *g, uint32_t n,
                            bool many, uint32_t *columns)
{
    uint32_t widest = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = 0;
        for (uint32_t j = i; j-- > 0;) {
            const struct cuda_slot *other = &m->slots[g[j].slot];
            uint32_t end = columns[j] + (many ? other->width16 : other->width);
            bool meet = g[j].row0 + g[j].n_rows > g[i].row0 && g[i].row0 + g[i].n_rows > g[j].row0;
            if (meet && end > at)
                at = end;
        }
        columns[i] = at;
        at += many ? m->slots[g[i].slot].width16 : m->slots[g[i].slot].width;
        widest = at > widest ? at : widest;
    }
    return (widest + 15) & ~15u;
}

static int copy_sampling(struct device_model *m, struct cuda_flight *f, const struct step *step,
                         struct cu_sample *to, size_t *n_biases, size_t *n_history, struct err *err)
{
    struct cu_token_bias *biases = (struct cu_token_bias *)(void *)f->extra;
    int32_t *history = (int32_t *)(void *)(f->extra + m->max_biases * sizeof *biases);
    *n_biases = *n_history = 0;
    f->wants_top = false;
    for (uint32_t i = 0; i < step->n_logit_rows; i++) {
        const struct sample_params *p = &step->sampling[i];
        bool penalised = p->repetition_penalty != 1.0f || p->presence_penalty != 0.0f ||
                         p->frequency_penalty != 0.0f;
        uint32_t n_hist = p->target < 0 && penalised ? p->n_history : 0;
        uint32_t n_bias = p->target < 0 ? p->n_bias : 0;
        if (*n_biases + n_bias > m->max_biases || *n_history + n_hist > m->max_history)
            return err_set(err, ERR_LIMIT, "step: too many biases or history tokens");
        to[i] = (struct cu_sample){p->temperature,
                                   p->top_p,
                                   p->min_p,
                                   p->top_k,
                                   p->repetition_penalty,
                                   p->presence_penalty,
                                   p->frequency_penalty,
                                   n_bias,
                                   (uint32_t)*n_biases,
                                   n_hist,
                                   (uint32_t)*n_history,
                                   p->n_prompt,
                                   p->pending,
                                   p->n_top,
                                   p->target,
                                   m->config->vocab_size,
                                   p->seed,
                                   p->counter};
        for (uint32_t j = 0; j < n_bias; j++)
            biases[*n_biases + j] = (struct cu_token_bias){p->bias[j].token, p->bias[j].bias};
        if (n_hist)
            memcpy(history + *n_history, p->history, n_hist * sizeof *history);
        *n_biases += n_bias;
        *n_history += n_hist;
        f->wants_top |= p->n_top > 0;
    }
    return 0;
}

/* Rows to be launched for a step that is recorded; 0: it is not. */
static uint32_t graph_rows(const struct device_model *m, const struct step *s)
{
    static const uint32_t buckets[] = {1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64};
    if (m->be->no_graphs || m->be->deterministic || s->n_decode_rows != s->n_rows ||
        s->n_logit_rows != s->n_rows || s->logits_out ||
        (s->n_segments && s->kinds & (ADAPTER_FULL | ADAPTER_TOKENS)))
        return 0;
    for (size_t i = 0; i < sizeof buckets / sizeof buckets[0]; i++) {
        if (buckets[i] >= s->n_rows)
            return buckets[i] <= m->limits.max_rows && buckets[i] <= m->limits.max_logit_rows &&
                           buckets[i] <= m->limits.max_sequences
                       ? buckets[i]
                       : 0;
    }
    return 0;
}

/* Tokens beyond the base's vocabulary are those of the row's adapter. */
static int check_tokens(const struct device_model *m, const struct step *s,
                        const struct step_segment *segments, const int32_t *owner, struct err *err)
{
    for (uint32_t i = 0; i < s->n_rows; i++) {
        if (s->tokens[i] < (int32_t)m->config->vocab_size)
            continue;
        uint32_t rows = owner[i] < 0 ? 0 : m->slots[segments[owner[i]].slot].embed_rows;
        if ((uint32_t)s->tokens[i] >= rows)
            return err_set(err, ERR_USAGE, "token id %d is outside the vocabulary of %u",
                           s->tokens[i], m->config->vocab_size);
    }
    return 0;
}

/* A logit row has the vocabulary of its owner's head. */
static void set_vocabularies(const struct device_model *m, const struct step *s,
                             const struct step_segment *head_segments, const int32_t *head_owner,
                             struct cu_sample *sampling, struct cuda_run *run)
{
    run->stride = m->config->vocab_size;
    for (uint32_t i = 0; i < s->n_logit_rows; i++) {
        if (head_owner[i] < 0)
            continue;
        uint32_t own = m->slots[head_segments[head_owner[i]].slot].vocab;
        sampling[i].vocab = own ? own : m->config->vocab_size;
        if (own > run->stride)
            run->stride = m->max_vocab;
    }
}

static void copy_segments(const struct device_model *m, struct step_segment *to,
                          const struct step_segment *from, uint32_t n)
{
    if (n)
        memcpy(to, from, n * sizeof *to);
    if (m->be->deterministic)
        segment_sort(to, n, &m->slots[0].key, sizeof m->slots[0]);
}

static int fill_meta(struct device_model *m, struct cuda_flight *f, const struct step *s,
                     struct cuda_run *run, struct err *err)
{
    uint8_t *b = f->meta;
    const struct cuda_layout *at = &run->at;
#define AT(type, field) ((type *)(void *)(b + at->field))
    *AT(struct cuda_counts, counts) =
        (struct cuda_counts){s->n_rows,     s->n_decode_rows, s->n_sequences,
                             s->n_segments, s->n_logit_rows,  s->n_head_segments};
    memcpy(AT(int32_t, tokens), s->tokens, s->n_rows * 4ull);
    _Static_assert(sizeof(struct cu_sequence) == sizeof(struct step_sequence), "the same record");
    _Static_assert(sizeof(struct cu_segment) == sizeof(struct step_segment), "the same record");
    memcpy(AT(struct cu_sequence, sequences), s->sequences, s->n_sequences * sizeof *s->sequences);
    for (uint32_t i = 0; i < s->n_sequences; i++) {
        const struct step_sequence *q = &s->sequences[i];
        for (uint32_t j = 0; j < q->n_rows; j++) {
            AT(uint32_t, sequence)[q->row0 + j] = i;
            AT(uint32_t, position)[q->row0 + j] = q->position0 + j;
        }
    }
    struct step_segment *segments = AT(struct step_segment, segments);
    struct step_segment *head_segments = AT(struct step_segment, head_segments);
    copy_segments(m, segments, s->segments, s->n_segments);
    copy_segments(m, head_segments, s->head_segments, s->n_head_segments);
    if (s->n_logit_rows)
        memcpy(AT(char, logit_rows), s->logit_rows, s->n_logit_rows * 4ull);
    // Rows of the bucket beyond the real ones gather row 0: what they give is not looked at.
    for (uint32_t i = s->n_logit_rows; i < run->logits; i++) {
        AT(uint32_t, logit_rows)[i] = 0;
        AT(int32_t, head_owner)[i] = -1;
    }
    for (uint32_t i = s->n_rows; i < run->rows; i++)
        AT(int32_t, owner)[i] = -1;
    if (s->n_pages)
        memcpy(AT(char, pages), s->pages, s->n_pages * 4ull);
    int rc = set_owners(m, segments, s->n_segments, s->n_rows, AT(int32_t, owner), err);
    rc = rc ? rc
            : set_owners(m, head_segments, s->n_head_segments, s->n_logit_rows,
                         AT(int32_t, head_owner), err);
    if (rc)
        return rc;
    rc = check_tokens(m, s, segments, AT(int32_t, owner), err);
    if (rc)
        return rc;
    set_vocabularies(m, s, head_segments, AT(int32_t, head_owner), AT(struct cu_sample, sampling),
                     run);
    if (s->n_segments > CU_MAX_SEGMENTS || s->n_head_segments > CU_MAX_SEGMENTS)
        return err_set(err, ERR_LIMIT, "step: %u segments, cuda holds %d", s->n_segments,
                       CU_MAX_SEGMENTS);
    uint32_t width =
        set_columns(m, segments, s->n_segments, run->rows > CU_SMALL_ROWS, AT(uint32_t, columns));
    uint32_t head = set_columns(m, head_segments, s->n_head_segments, run->logits > CU_SMALL_ROWS,
                                AT(uint32_t, head_columns));
    run->v_width = width > head ? width : head;
    uint32_t most = run->rows > run->logits ? run->rows : run->logits;
    bool small = most <= CU_SMALL_ROWS;
    if (!cuda_moe_fits(m, run->rows, run->v_width) ||
        (small ? run->v_width > m->v_width_small : (uint64_t)most * run->v_width > m->v_floats))
        return err_set(err, ERR_LIMIT,
                       "step: the adapters of one row have rank %u in all, more than cuda "
                       "holds",
                       run->v_width);
#undef AT
    return 0;
}

static int copy_async(struct device_model *m, void *to, const void *from, size_t n, struct err *err)
{
    if (n == 0)
        return 0;
    return cuda_check(cudaMemcpyAsync(to, from, n, cudaMemcpyHostToDevice, m->compute),
                      "copying a step", err);
}

/* Items of at most `per` rows of ranges; *n of them at `first` and `second`. */
static uint32_t list_items(uint32_t *first, uint32_t *second, uint32_t n, uint32_t index,
                           uint32_t rows, uint32_t per)
{
    for (uint32_t at = 0; at < rows; at += per) {
        first[n] = index;
        second[n] = at;
        n++;
    }
    return n;
}

/* Shrink's items in a step (or of logits) of t rows. */
static int list_shrink(const struct device_model *m, const struct step_segment *g, uint32_t n,
                       uint32_t t, uint32_t *segment, uint32_t *row, uint32_t *n_items,
                       struct err *err)
{
    uint32_t per = cu_shrink_rows(t);
    for (uint32_t i = 0; i < n && t > CU_SMALL_ROWS; i++) {
        if (*n_items + g[i].n_rows / per + 1 > m->max_items)
            return err_set(err, ERR_LIMIT,
                           "step: its rows have more adapters in all than cuda holds");
        *n_items = list_items(segment, row, *n_items, i, g[i].n_rows, per);
    }
    return 0;
}

/* The work lists of what is not recorded; they lie behind biases and history. */
static int fill_lists(struct device_model *m, struct cuda_flight *f, const struct step *s,
                      struct cuda_run *run, struct err *err)
{
    size_t offset = m->max_biases * sizeof(struct cu_token_bias) + m->max_history * 4;
    uint32_t *base = (uint32_t *)(void *)(f->extra + offset);
    uint32_t *rows[4] = {base, base + m->max_items, base + 2 * m->max_items,
                         base + 3 * m->max_items};
    uint32_t *blocks[2] = {base + 4 * m->max_items, base + 4 * m->max_items + m->max_blocks};
    uint32_t n = 0, n_head = 0, n_blocks = 0;
    if (run->rows > CU_SMALL_ROWS)
        cuda_count_groups(m, s, run);
    int rc = list_shrink(m, s->segments, s->n_segments, run->rows, rows[0], rows[1], &n, err);
    rc = rc ? rc
            : list_shrink(m, s->head_segments, s->n_head_segments, run->logits, rows[2], rows[3],
                          &n_head, err);
    if (rc)
        return rc;
    for (uint32_t i = run->n_decode; i < s->n_sequences; i++) // decode rows: one a sequence
        n_blocks =
            list_items(blocks[0], blocks[1], n_blocks, i, s->sequences[i].n_rows, m->query_rows);
    const uint32_t *device = (const uint32_t *)(const void *)(m->extra + offset);
    run->shrink = (struct cuda_list){device, device + m->max_items, n};
    run->head_shrink =
        (struct cuda_list){device + 2 * m->max_items, device + 3 * m->max_items, n_head};
    run->blocks = (struct cuda_list){device + 4 * m->max_items,
                                     device + 4 * m->max_items + m->max_blocks, n_blocks};
    if (n + n_head + n_blocks == 0)
        return 0;
    return copy_async(m, m->extra + offset, base, (4 * m->max_items + 2 * m->max_blocks) * 4, err);
}

// ---- graphs

static int record(struct device_model *m, const struct cuda_run *run, cudaGraphExec_t *out)
{
    cudaGraph_t graph = NULL;
    int rc = cudaStreamBeginCapture(m->compute, cudaStreamCaptureModeThreadLocal);
    if (rc)
        return rc;
    int failed = cuda_forward(m, run);
    rc = cudaStreamEndCapture(m->compute, &graph);
    rc = failed ? failed : rc;
    if (rc == 0)
        rc = cudaGraphInstantiate(out, graph, 0);
    if (graph)
        cudaGraphDestroy(graph);
    return rc;
}

static int launch_recorded(struct device_model *m, const struct cuda_run *run)
{
    for (uint32_t i = 0; i < m->n_graphs; i++) {
        if (m->graphs[i].rows == run->rows && m->graphs[i].kinds == run->kinds)
            return cudaGraphLaunch(m->graphs[i].exec, m->compute);
    }
    if (m->n_graphs == CUDA_MAX_GRAPHS)
        return cuda_forward(m, run);
    struct cuda_graph *g = &m->graphs[m->n_graphs];
    int rc = record(m, run, &g->exec);
    if (rc)
        return rc;
    g->rows = run->rows;
    g->kinds = run->kinds;
    m->n_graphs++;
    return cudaGraphLaunch(g->exec, m->compute);
}

// ---- submit and result

static int check_step(struct device_model *m, const struct step *step, struct err *err)
{
    int rc = backend_check_step(
        step, &m->limits, step->kinds & ADAPTER_FULL ? m->max_vocab : m->config->vocab_size, err);
    uint32_t n_pages = m->n_chunks * m->pages_per_chunk;
    for (uint32_t i = 0; rc == 0 && i < step->n_pages; i++) {
        if (step->pages[i] >= n_pages)
            rc = err_set(err, ERR_INTERNAL, "step: page %u of %u", step->pages[i], n_pages);
    }
    for (uint32_t i = 0; rc == 0 && i < step->n_segments; i++) {
        const struct step_segment *g = &step->segments[i];
        if (m->slots[g->slot].kinds & ~step->kinds)
            rc = err_set(err, ERR_INTERNAL, "step: kinds %#x lack slot %u's %#x", step->kinds,
                         g->slot, m->slots[g->slot].kinds);
    }
    if (rc == 0 && step->weight_set != 0)
        rc = err_set(err, ERR_REFUSED, "step: no weight set %u here", step->weight_set);
    if (rc == 0 && m->n_submitted - m->n_fetched >= CUDA_IN_FLIGHT)
        rc = err_set(err, ERR_INTERNAL, "step: a third one before the first one's result");
    return rc ? rc : cuda_choose(&m->be->base, err);
}

static int queue_copies(struct device_model *m, struct cuda_flight *f, const struct step *step,
                        struct cuda_run *run, struct err *err)
{
    size_t n_biases, n_history, bias_bytes = m->max_biases * sizeof(struct cu_token_bias);
    int rc = copy_sampling(m, f, step, (struct cu_sample *)(void *)(f->meta + run->at.sampling),
                           &n_biases, &n_history, err);
    rc = rc ? rc : fill_meta(m, f, step, run, err);
    rc = rc ? rc : copy_async(m, m->meta, f->meta, run->at.pages + step->n_pages * 4ull, err);
    rc = rc ? rc : copy_async(m, m->extra, f->extra, n_biases * sizeof(struct cu_token_bias), err);
    rc = rc ? rc : copy_async(m, m->extra + bias_bytes, f->extra + bias_bytes, n_history * 4, err);
    return rc;
}

static int queue_results(struct device_model *m, struct cuda_flight *f, const struct step *step,
                         const struct cuda_run *run, struct err *err)
{
    size_t bytes = (size_t)run->logits * (f->wants_top ? 12 + 8 * BACKEND_MAX_TOP : 12);
    int rc = 0;
    if (bytes)
        rc = cudaMemcpyAsync(f->results, m->results, bytes, cudaMemcpyDeviceToHost, m->compute);
    if (rc == 0 && step->logits_out && step->n_logit_rows)
        rc = cudaMemcpy2DAsync(step->logits_out, m->config->vocab_size * 4ull, m->logits,
                               run->stride * 4ull, m->config->vocab_size * 4ull, step->n_logit_rows,
                               cudaMemcpyDeviceToHost, m->compute);
    if (rc == 0)
        rc = cudaEventRecord(f->done, m->compute);
    return cuda_check(rc, "queueing a step's results", err);
}

int cuda_step_submit(struct backend *be, struct device_model *m, const struct step *step,
                     uint64_t *ticket, struct err *err)
{
    (void)be;
    int rc = check_step(m, step, err);
    if (rc)
        return rc;
    struct cuda_flight *f = &m->flights[m->n_submitted % CUDA_IN_FLIGHT];
    unsigned kinds = step->n_segments || step->n_head_segments ? step->kinds : 0;
    uint32_t bucket = graph_rows(m, step);
    struct cuda_run run = {
        .rows = bucket ? bucket : cuda_fixed_rows(m->be, step->n_rows),
        .logits = bucket ? bucket : cuda_fixed_rows(m->be, step->n_logit_rows),
        .n_decode = bucket                 ? bucket
                    : m->be->deterministic ? 0
                                           : step->n_decode_rows,
        .kinds = !kinds                                                             ? 0
                 : kinds & ~(unsigned)ADAPTER_ADDITIVE || kinds & ADAPTER_LORA_BIAS ? 2
                                                                                    : 1,
        .replaces = kinds & (ADAPTER_FULL | ADAPTER_TOKENS),
        .meta = m->meta,
        .step = bucket ? NULL : step};
    run.at = layout_of(m, run.rows, run.logits);
    rc = queue_copies(m, f, step, &run, err);
    if (rc == 0 && !bucket)
        rc = fill_lists(m, f, step, &run, err);
    if (rc == 0)
        rc = cuda_check(bucket ? launch_recorded(m, &run) : cuda_forward(m, &run), "running a step",
                        err);
    if (rc == 0)
        rc = queue_results(m, f, step, &run, err);
    if (rc)
        return rc;
    f->n_logit_rows = step->n_logit_rows;
    f->logit_bucket = run.logits;
    *ticket = ++m->n_submitted;
    return 0;
}

/* What the device wrote for a step, in the arrays that are handed out. */
static struct step_result read_results(struct device_model *m, const struct cuda_flight *f)
{
    size_t n = f->n_logit_rows, l = f->logit_bucket, top = n * BACKEND_MAX_TOP * 4;
    memcpy(m->ids, f->results, n * 4);
    memcpy(m->ranks, f->results + 4 * l, n * 4);
    memcpy(m->logprobs, f->results + 8 * l, n * 4);
    if (f->wants_top) {
        memcpy(m->top_ids, f->results + 12 * l, top);
        memcpy(m->top_logprobs, f->results + (12 + 4 * BACKEND_MAX_TOP) * l, top);
    }
    return (struct step_result){.n_rows = (uint32_t)n,
                                .ids = m->ids,
                                .logprobs = m->logprobs,
                                .ranks = m->ranks,
                                .top_ids = m->top_ids,
                                .top_logprobs = m->top_logprobs};
}

int cuda_step_result(struct backend *be, struct device_model *m, uint64_t ticket,
                     struct step_result *out, struct err *err)
{
    if (ticket != m->n_fetched + 1 || ticket > m->n_submitted)
        return err_set(err, ERR_INTERNAL, "step_result: ticket %llu out of order",
                       (unsigned long long)ticket);
    struct cuda_flight *f = &m->flights[(ticket - 1) % CUDA_IN_FLIGHT];
    m->n_fetched = ticket;
    int rc = cuda_choose(be, err);
    rc = rc ? rc : cuda_check(cudaEventSynchronize(f->done), "a step", err);
    if (rc)
        return rc;
    *out = read_results(m, f);
    return 0;
}

// ---- single ops, for access.c

int cuda_step_prepare(struct device_model *m, const struct step *step, struct cuda_run *run,
                      struct err *err)
{
    int rc = check_step(m, step, err);
    if (rc)
        return rc;
    struct cuda_flight *f = &m->flights[0];
    unsigned kinds = step->n_segments || step->n_head_segments ? step->kinds : 0;
    *run = (struct cuda_run){
        .rows = step->n_rows,
        .logits = step->n_logit_rows,
        .n_decode = step->n_decode_rows,
        .kinds = !kinds                                                             ? 0
                 : kinds & ~(unsigned)ADAPTER_ADDITIVE || kinds & ADAPTER_LORA_BIAS ? 2
                                                                                    : 1,
        .replaces = kinds & (ADAPTER_FULL | ADAPTER_TOKENS),
        .meta = m->meta,
        .step = step};
    run->at = layout_of(m, run->rows, run->logits);
    rc = cuda_check(cudaStreamSynchronize(m->compute), "waiting", err);
    rc = rc ? rc : queue_copies(m, f, step, run, err);
    rc = rc ? rc : fill_lists(m, f, step, run, err);
    f->n_logit_rows = step->n_logit_rows;
    f->logit_bucket = run->logits;
    return rc;
}

int cuda_step_results(struct device_model *m, const struct cuda_run *run, struct step_result *out,
                      struct err *err)
{
    struct cuda_flight *f = &m->flights[0];
    int rc = queue_results(m, f, run->step, run, err);
    rc = rc ? rc : cuda_check(cudaEventSynchronize(f->done), "a step", err);
    if (rc == 0)
        *out = read_results(m, f);
    return rc;
}
