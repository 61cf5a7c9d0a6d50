#include "tests/lib/fake_backend.h"

#include <assert.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/lib/fake_impl.h"

/* Plain malloc: the engine's own calls to sys are counted by tests. */

// ---- violations ---------------------------------------------------------------------------------

static void violate(struct fake *f, const char *what, unsigned value)
{
    pthread_mutex_lock(&f->mutex);
    if (f->n_violations++ == 0)
        snprintf(f->violation, sizeof f->violation, "%.400s (%u)", what, value);
    pthread_mutex_unlock(&f->mutex);
}

unsigned fake_violations(struct fake_rig *rig, char *first, size_t n)
{
    struct fake *f = (struct fake *)rig->be;
    pthread_mutex_lock(&f->mutex);
    unsigned count = f->n_violations;
    snprintf(first, n, "%s", f->violation);
    pthread_mutex_unlock(&f->mutex);
    return count;
}

/* Counts a countdown down; true when it reaches 0 by this call. */
static bool fires(atomic_uint *countdown)
{
    unsigned n = atomic_load(countdown);
    while (n > 0 && !atomic_compare_exchange_weak(countdown, &n, n - 1))
        ;
    return n == 1;
}

// ---- pool and adapters --------------------------------------------------------------------------

static int fake_pool_open(struct backend *be, struct device_model *m, uint32_t n_chunks,
                          struct err *err)
{
    struct fake *f = (struct fake *)be;
    (void)m;
    f->pool = malloc((size_t)n_chunks * BACKEND_CHUNK_BYTES); // touched only where it is used
    f->n_chunks = n_chunks;
    return f->pool ? 0 : err_set(err, ERR_DEVICE, "fake: no memory for %u chunks", n_chunks);
}

static void fake_pool_free(struct backend *be, struct device_model *m)
{
    struct fake *f = (struct fake *)be;
    (void)m;
    free(f->pool);
    f->pool = NULL;
}

static uint64_t fake_page_bytes(struct backend *be, const struct device_model *m)
{
    (void)m;
    return BACKEND_CHUNK_BYTES / ((struct fake *)be)->opt.pages_per_chunk;
}

static uint64_t *kv_at(struct fake *f, uint32_t page, uint32_t offset)
{
    uint32_t per_chunk = f->opt.pages_per_chunk;
    uint8_t *chunk = f->pool + (size_t)(page / per_chunk) * BACKEND_CHUNK_BYTES;
    return (uint64_t *)(chunk + (size_t)(page % per_chunk) * (BACKEND_CHUNK_BYTES / per_chunk)) +
           offset;
}

static int fake_pack_size(struct backend *be, const struct device_model *m,
                          const struct bound_adapter *b, uint64_t *size, struct err *err)
{
    (void)be, (void)m;
    for (size_t i = 0; i < b->n_parts; i++) {
        if (tensor_present(&b->parts[i].module->magnitude) && !b->parts[i].gain)
            return err_set(err, ERR_INTERNAL, "fake: a gain is missing");
    }
    *size = (uint64_t)b->adapter->max_rank * FAKE_BYTES_PER_RANK;
    return 0;
}

static int fake_pack(struct backend *be, const struct device_model *m,
                     const struct bound_adapter *b, void *image, uint64_t size, struct err *err)
{
    (void)be, (void)m, (void)err;
    uint64_t hash = fake_hash_text(b->adapter->content_id);
    for (uint64_t at = 0; at < size; at += FAKE_BLOCK_BYTES) {
        uint64_t block = fake_mix(hash, at);
        memcpy((uint8_t *)image + at, &block, sizeof block);
    }
    return 0;
}

static int fake_load(struct backend *be, struct device_model *m, uint32_t slot, const void *image,
                     uint64_t size, const uint32_t *chunks, uint32_t n_chunks,
                     const struct adapter_replacement *replacements, uint32_t n_replacements,
                     struct err *err)
{
    struct fake *f = (struct fake *)be;
    (void)m;
    if (fires(&f->fail_upload))
        return err_set(err, ERR_DEVICE, "fake: the upload fails");
    if (n_chunks != (size + BACKEND_CHUNK_BYTES - 1) / BACKEND_CHUNK_BYTES || n_chunks > 8)
        violate(f, "wrong number of chunks", n_chunks);
    for (uint64_t at = 0; at < size; at += FAKE_BLOCK_BYTES) {
        uint8_t *chunk = f->pool + (size_t)chunks[at / BACKEND_CHUNK_BYTES] * BACKEND_CHUNK_BYTES;
        memcpy(chunk + at % BACKEND_CHUNK_BYTES, (const uint8_t *)image + at, sizeof(uint64_t));
    }
    struct fake_slot *s = &f->slots[slot];
    if (atomic_load(&s->state) != ADAPTER_EMPTY)
        violate(f, "load into a slot that is in use", slot);
    s->size = size;
    memcpy(s->chunks, chunks, n_chunks * sizeof *chunks);
    s->weight = n_replacements ? replacements[0].weight->signature : 0;
    s->polls_left = f->opt.load_polls;
    atomic_store(&s->state, s->polls_left ? ADAPTER_LOADING : ADAPTER_READY);
    return 0;
}

static enum adapter_state fake_poll(struct backend *be, struct device_model *m, uint32_t slot)
{
    (void)m;
    struct fake_slot *s = &((struct fake *)be)->slots[slot];
    if (s->polls_left && --s->polls_left == 0)
        atomic_store(&s->state, ADAPTER_READY);
    return (enum adapter_state)atomic_load(&s->state);
}

static void fake_unload(struct backend *be, struct device_model *m, uint32_t slot)
{
    struct fake *f = (struct fake *)be;
    (void)m;
    pthread_mutex_lock(&f->mutex);
    bool used = f->slots[slot].n_steps > 0;
    pthread_mutex_unlock(&f->mutex);
    if (used)
        violate(f, "unload of a slot that a submitted step uses", slot);
    atomic_store(&f->slots[slot].state, ADAPTER_EMPTY);
}

static uint64_t slot_signature(struct fake *f, uint32_t slot)
{
    struct fake_slot *s = &f->slots[slot];
    if (atomic_load(&s->state) != ADAPTER_READY)
        violate(f, "a step uses a slot that is not ready", slot);
    uint64_t all = 0;
    for (uint64_t at = 0; at < s->size; at += FAKE_BLOCK_BYTES) {
        uint64_t block;
        const uint8_t *chunk =
            f->pool + (size_t)s->chunks[at / BACKEND_CHUNK_BYTES] * BACKEND_CHUNK_BYTES;
        memcpy(&block, chunk + at % BACKEND_CHUNK_BYTES, sizeof block);
        all = fake_mix(all, block);
    }
    return s->weight ? fake_mix(all, s->weight) : all;
}

static int fake_replacement_load(struct backend *be, struct device_model *m,
                                 const struct bound_part *part, struct device_weight **out,
                                 uint64_t *n_bytes, struct err *err)
{
    struct fake *f = (struct fake *)be;
    (void)m;
    *out = malloc(sizeof **out);
    if (!*out)
        return err_set(err, ERR_NO_MEMORY, "fake: no memory");
    // the tensor's first value says whose it is
    (*out)->signature = *(const uint64_t *)part->module->full.data;
    *n_bytes = tensor_n_bytes(&part->module->full);
    atomic_fetch_add(&f->n_weights, 1);
    return 0;
}

static void fake_replacement_free(struct backend *be, struct device_weight *w)
{
    atomic_fetch_sub(&((struct fake *)be)->n_weights, 1);
    free(w);
}

static int fake_row_norms(struct backend *be, struct device_model *m, const struct bound_part *part,
                          double *out, struct err *err)
{
    (void)be, (void)m, (void)err;
    for (uint32_t i = 0; i < part->target->d_out; i++)
        out[i] = 1;
    return 0;
}

static const struct backend_math fake_math = {.row_norms = fake_row_norms};

// ---- steps --------------------------------------------------------------------------------------

/* Neighbouring segments of one slot and scale must have been merged. */
static void check_merged(struct fake *f, const struct step_segment *g, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t j = i + 1; j < n && g[j].row0 <= g[i].row0 + g[i].n_rows; j++) {
            bool same = g[i].slot == g[j].slot && g[i].scale == g[j].scale;
            if (same)
                violate(f, "segments of one adapter touch or overlap", g[i].slot);
        }
    }
}

static void count_slots(struct fake *f, const struct fake_step *s, int by)
{
    pthread_mutex_lock(&f->mutex);
    for (uint32_t i = 0; i < s->step.n_segments; i++)
        f->slots[s->segments[i].slot].n_steps += by;
    pthread_mutex_unlock(&f->mutex);
}

/* Everything that is borrowed until step_submit returns. */
static void copy_step(struct fake *f, struct fake_step *to, const struct step *s)
{
    to->step = *s;
    memcpy(to->tokens, s->tokens, s->n_rows * sizeof *s->tokens);
    memcpy(to->sequences, s->sequences, s->n_sequences * sizeof *s->sequences);
    memcpy(to->pages, s->pages, s->n_pages * sizeof *s->pages);
    memcpy(to->segments, s->segments, s->n_segments * sizeof *s->segments);
    memcpy(to->head_segments, s->head_segments, s->n_head_segments * sizeof *s->head_segments);
    memcpy(to->logit_rows, s->logit_rows, s->n_logit_rows * sizeof *s->logit_rows);
    memcpy(to->sampling, s->sampling, s->n_logit_rows * sizeof *s->sampling);
    struct token_bias *bias = to->bias;
    for (uint32_t j = 0; j < s->n_logit_rows; j++) {
        struct sample_params *p = &to->sampling[j];
        to->history[j] = 0;
        if (fake_reads_history(p)) {
            for (uint32_t i = 0; i < p->n_history; i++)
                to->history[j] = fake_mix(to->history[j], (uint32_t)p->history[i]);
        }
        if (bias + p->n_bias > to->bias + FAKE_MAX_BIAS)
            violate(f, "more biases than the fake holds", p->n_bias);
        if (p->n_bias)
            memcpy(bias, p->bias, p->n_bias * sizeof *bias);
        p->bias = bias;
        bias += p->n_bias;
    }
}

static void run_rows(struct fake *f, struct fake_step *s)
{
    memset(f->effects, 0, s->step.n_rows * sizeof *f->effects);
    for (uint32_t i = 0; i < s->step.n_segments; i++) {
        const struct step_segment *g = &s->segments[i];
        uint64_t effect = fake_effect(slot_signature(f, g->slot), g->scale);
        for (uint32_t r = g->row0; r < g->row0 + g->n_rows; r++)
            f->effects[r] += effect;
    }
    for (uint32_t i = 0; i < s->step.n_sequences; i++) {
        const struct step_sequence *q = &s->sequences[i];
        for (uint32_t k = 0; k < q->n_rows; k++) {
            uint32_t position = q->position0 + k, row = q->row0 + k;
            int32_t token = s->tokens[row];
            if (token < 0) {
                if ((uint32_t)~token >= f->n_previous)
                    violate(f, "a row takes a token that the previous step did not sample", row);
                else
                    token = f->previous[~token];
            }
            uint32_t page = s->pages[q->page0 + position / f->limits.page_tokens];
            *kv_at(f, page, position % f->limits.page_tokens) =
                fake_row_value(token, position, q->rope_regime, f->effects[row]);
        }
    }
}

static uint64_t fold_context(struct fake *f, const struct fake_step *s, uint32_t row)
{
    uint32_t i = 0;
    while (row >= s->sequences[i].row0 + s->sequences[i].n_rows)
        i++;
    const struct step_sequence *q = &s->sequences[i];
    uint32_t end = q->position0 + (row - q->row0) + 1;
    uint64_t fold = 0;
    for (uint32_t p = 0; p < end; p++) {
        uint32_t page = s->pages[q->page0 + p / f->limits.page_tokens];
        fold = fake_mix(fold, *kv_at(f, page, p % f->limits.page_tokens));
    }
    return fold;
}

static uint64_t head_effects(struct fake *f, const struct fake_step *s, uint32_t j)
{
    uint64_t all = 0;
    for (uint32_t i = 0; i < s->step.n_head_segments; i++) {
        const struct step_segment *g = &s->head_segments[i];
        if (j >= g->row0 && j < g->row0 + g->n_rows)
            all += fake_effect(slot_signature(f, g->slot), g->scale);
    }
    return all;
}

static void run_logits(struct fake *f, struct fake_step *s)
{
    for (uint32_t j = 0; j < s->step.n_logit_rows; j++) {
        const struct sample_params *p = &s->sampling[j];
        uint64_t fold = fake_mix(fold_context(f, s, s->logit_rows[j]), head_effects(f, s, j));
        uint64_t history = s->history[j];
        if (fake_reads_history(p) && p->pending >= 0) {
            if ((uint32_t)p->pending >= f->n_previous)
                violate(f, "a history waits for a row that is not there", j);
            else
                history = fake_mix(history, (uint32_t)f->previous[p->pending]);
        }
        s->ids[j] = p->target >= 0 ? p->target : fake_draw(fold, history, p);
        s->logprobs[j] = fake_score_of(fold, s->ids[j]);
        s->ranks[j] = 1;
        for (int32_t t = 0; t < p->n_top; t++) {
            s->top_ids[j * BACKEND_MAX_TOP + t] = (s->ids[j] + t) % FAKE_VOCAB;
            s->top_logprobs[j * BACKEND_MAX_TOP + t] = s->logprobs[j] - (float)t;
        }
    }
}

static void run_step(struct fake *f, struct fake_step *s)
{
    if (f->opt.step_us)
        usleep(f->opt.step_us);
    if (f->opt.no_model) {
        for (uint32_t j = 0; j < s->step.n_logit_rows; j++)
            s->ids[j] = (int32_t)j % FAKE_VOCAB;
    } else {
        run_rows(f, s);
        run_logits(f, s);
    }
    f->n_previous = s->step.n_logit_rows;
    memcpy(f->previous, s->ids, f->n_previous * sizeof *f->previous);
}

static void *step_thread(void *arg)
{
    struct fake *f = arg;
    pthread_mutex_lock(&f->mutex);
    for (;;) {
        while (f->n_done == f->n_submitted && !f->stop)
            pthread_cond_wait(&f->work, &f->mutex);
        if (f->n_done == f->n_submitted)
            break;
        struct fake_step *s = &f->steps[(f->n_done + 1) % FAKE_STEPS];
        pthread_mutex_unlock(&f->mutex);
        run_step(f, s);
        pthread_mutex_lock(&f->mutex);
        f->n_done++;
        pthread_cond_broadcast(&f->done);
    }
    pthread_mutex_unlock(&f->mutex);
    return NULL;
}

static int fake_submit(struct backend *be, struct device_model *m, const struct step *step,
                       uint64_t *ticket, struct err *err)
{
    struct fake *f = (struct fake *)be;
    (void)m;
    int rc = backend_check_step(step, &f->limits, FAKE_VOCAB, err);
    if (rc) {
        violate(f, err->msg, 0);
        return rc;
    }
    if (fires(&f->fail_submit))
        return err_set(err, ERR_DEVICE, "fake: the submit fails");
    check_merged(f, step->segments, step->n_segments);
    check_merged(f, step->head_segments, step->n_head_segments);
    if (f->n_submitted - f->n_taken >= 2)
        violate(f, "more than two steps in flight", 0);
    struct fake_step *s = &f->steps[(f->n_submitted + 1) % FAKE_STEPS];
    copy_step(f, s, step);
    count_slots(f, s, 1);
    pthread_mutex_lock(&f->mutex);
    *ticket = ++f->n_submitted;
    pthread_cond_signal(&f->work);
    pthread_mutex_unlock(&f->mutex);
    if (!f->opt.threaded) {
        run_step(f, s);
        f->n_done++;
    }
    return 0;
}

/* A failed step leaves nonsense in the pages that it was to write. */
static void spoil(struct fake *f, const struct fake_step *s)
{
    pthread_mutex_lock(&f->mutex);
    while (f->n_done < f->n_submitted)
        pthread_cond_wait(&f->done, &f->mutex);
    pthread_mutex_unlock(&f->mutex);
    for (uint32_t i = 0; i < s->step.n_sequences; i++) {
        const struct step_sequence *q = &s->sequences[i];
        for (uint32_t p = q->position0; p < q->position0 + q->n_rows; p++)
            *kv_at(f, s->pages[q->page0 + p / f->limits.page_tokens], p % f->limits.page_tokens) =
                1;
    }
}

static int fake_result(struct backend *be, struct device_model *m, uint64_t ticket,
                       struct step_result *out, struct err *err)
{
    struct fake *f = (struct fake *)be;
    (void)m;
    if (ticket != f->n_taken + 1)
        violate(f, "results are taken out of order", (unsigned)ticket);
    pthread_mutex_lock(&f->mutex);
    while (f->n_done < ticket)
        pthread_cond_wait(&f->done, &f->mutex);
    pthread_mutex_unlock(&f->mutex);
    f->n_taken = ticket;
    struct fake_step *s = &f->steps[ticket % FAKE_STEPS];
    count_slots(f, s, -1);
    if (fires(&f->fail_result)) {
        spoil(f, s);
        return err_set(err, ERR_DEVICE, "fake: the step fails");
    }
    *out = (struct step_result){.n_rows = s->step.n_logit_rows,
                                .ids = s->ids,
                                .logprobs = s->logprobs,
                                .ranks = s->ranks,
                                .top_ids = s->top_ids,
                                .top_logprobs = s->top_logprobs};
    return 0;
}

// ---- the table ----------------------------------------------------------------------------------

static int fake_info(struct backend *be, struct backend_info *out, struct err *err)
{
    (void)be, (void)err;
    *out = (struct backend_info){.name = "fake", .device = "fake", .n_devices = 1};
    return 0;
}

static int fake_supports(struct backend *be, const struct model_config *config, unsigned kinds,
                         struct err *err)
{
    (void)be, (void)config;
    return kinds & ADAPTER_EXPERTS ? err_set(err, ERR_REFUSED, "fake: no experts") : 0;
}

static void *fake_host_alloc(struct backend *be, size_t n)
{
    atomic_fetch_add(&((struct fake *)be)->n_images, 1);
    return malloc(n);
}

static void fake_host_free(struct backend *be, void *p)
{
    atomic_fetch_sub(&((struct fake *)be)->n_images, 1);
    free(p);
}

static void step_alloc(struct fake_step *s, const struct step_limits *l)
{
    s->tokens = calloc(l->max_rows, sizeof *s->tokens);
    s->sequences = calloc(l->max_sequences, sizeof *s->sequences);
    s->pages = calloc(l->max_pages, sizeof *s->pages);
    s->segments = calloc(l->max_segments + 1, sizeof *s->segments);
    s->head_segments = calloc(l->max_segments + 1, sizeof *s->head_segments);
    s->logit_rows = calloc(l->max_logit_rows, sizeof *s->logit_rows);
    s->sampling = calloc(l->max_logit_rows, sizeof *s->sampling);
    s->history = calloc(l->max_logit_rows, sizeof *s->history);
    s->bias = calloc(FAKE_MAX_BIAS, sizeof *s->bias);
    s->ids = calloc(l->max_logit_rows, sizeof *s->ids);
    s->logprobs = calloc(l->max_logit_rows, sizeof *s->logprobs);
    s->ranks = calloc(l->max_logit_rows, sizeof *s->ranks);
    s->top_ids = calloc(l->max_logit_rows, BACKEND_MAX_TOP * sizeof *s->top_ids);
    s->top_logprobs = calloc(l->max_logit_rows, BACKEND_MAX_TOP * sizeof *s->top_logprobs);
}

static void step_release(struct fake_step *s)
{
    void *all[] = {s->tokens,   s->sequences, s->pages,   s->segments,    s->head_segments,
                   s->sampling, s->history,   s->bias,    s->ids,         s->logit_rows,
                   s->logprobs, s->ranks,     s->top_ids, s->top_logprobs};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

static const struct backend_ops fake_ops = {
    .abi = BACKEND_ABI,
    .name = "fake",
    .pack_layout_version = 1,
    .info = fake_info,
    .supports = fake_supports,
    .host_alloc = fake_host_alloc,
    .host_free = fake_host_free,
    .replacement_load = fake_replacement_load,
    .replacement_free = fake_replacement_free,
    .pool_open = fake_pool_open,
    .pool_free = fake_pool_free,
    .page_bytes = fake_page_bytes,
    .adapter_pack_size = fake_pack_size,
    .adapter_pack = fake_pack,
    .adapter_load = fake_load,
    .adapter_poll = fake_poll,
    .adapter_unload = fake_unload,
    .step_submit = fake_submit,
    .step_result = fake_result,
    .math = &fake_math,
};

struct fake *fake_new(const struct fake_options *opt, const struct step_limits *limits)
{
    struct fake *f = calloc(1, sizeof *f);
    if (!f)
        abort();
    f->base.ops = &fake_ops;
    f->opt = *opt;
    f->limits = *limits;
    pthread_mutex_init(&f->mutex, NULL);
    pthread_cond_init(&f->work, NULL);
    pthread_cond_init(&f->done, NULL);
    for (int i = 0; i < FAKE_STEPS; i++)
        step_alloc(&f->steps[i], limits);
    f->slots = calloc(limits->max_slots + 1, sizeof *f->slots);
    f->effects = calloc(limits->max_rows, sizeof *f->effects);
    f->previous = calloc(limits->max_logit_rows, sizeof *f->previous);
    if (opt->threaded && pthread_create(&f->thread, NULL, step_thread, f))
        abort();
    return f;
}

void fake_delete(struct fake *f)
{
    pthread_mutex_lock(&f->mutex);
    f->stop = true;
    pthread_cond_broadcast(&f->work);
    pthread_mutex_unlock(&f->mutex);
    if (f->opt.threaded)
        pthread_join(f->thread, NULL);
    for (int i = 0; i < FAKE_STEPS; i++)
        step_release(&f->steps[i]);
    pthread_cond_destroy(&f->work);
    pthread_cond_destroy(&f->done);
    pthread_mutex_destroy(&f->mutex);
    free(f->slots);
    free(f->effects);
    free(f->previous);
    free(f);
}
