/*
 * rig: a back end driven by hand, without the engine: opens a base, puts adapters into slots, and
 * runs many requests through the port in one mixed batch. For the tests of this folder (and
 * tests/ops), each of which is one program, so all of it is static inline.
 */
#ifndef TESTS_GOLDEN_RIG_H
#define TESTS_GOLDEN_RIG_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "libcore/base/sys.h"
#include "libcore/format/checkpoint.h"
#include "libcore/format/peft.h"
#include "libcore/model/load.h"

enum { RIG_SLOTS = 32, RIG_IDS = 256, RIG_REPLACEMENTS = 64 };

struct rig_adapter {
    struct adapter *adapter;
    struct bound_adapter *bound;
    struct adapter_replacement replacements[RIG_REPLACEMENTS];
    uint32_t n_replacements;
};

struct rig {
    struct backend *be;
    struct device_model *dm;
    struct model_config config;
    struct model_modules *modules;
    struct step_limits limits;
    uint32_t n_chunks, chunk_end; // adapters take chunks from the end, pages from the start
    uint32_t pages_per_chunk, n_pages, next_page;
    bool scatter;                                      // hand out pages in a scattered order
    int (*change)(struct adapter *a, struct err *err); // NULL, or what is done before binding
    uint32_t n_adapters;
    struct rig_adapter adapters[RIG_SLOTS];
};

struct rig_request {
    const int32_t *prompt;
    uint32_t n_prompt;
    int32_t slot;                   // -1: base
    float scale;                    // 0: 1
    uint32_t also;                  // 0, or 1 + the slot of a second adapter, below `slot`
    uint32_t max_new;               // 1…RIG_IDS
    const int32_t *forced;          // NULL, or the ids to go on with whatever was sampled
    int n_top;                      // of the first answer token
    float *logits;                  // NULL, or [max_new, vocab]: of every sampled position
    struct sample_params *sampling; // NULL: greedy
    // results
    int32_t ids[RIG_IDS];
    float logprobs[RIG_IDS];
    uint32_t n_ids;
    int32_t top_ids[BACKEND_MAX_TOP];
    float top_logprobs[BACKEND_MAX_TOP];
    // state
    uint32_t n_done; // positions in the pages
    uint32_t n_pages;
    uint32_t *pages;
};

/* --deterministic, for the rigs that are opened from now on. */
static bool rig_deterministic;

static inline const char *rig_device(void)
{
    const char *device = getenv("LORA_TEST_DEVICE");
    return device && *device ? device : "cpu";
}

/* bf16 arithmetic: issue bounds are 4e-2 for logits there, 1e-3 for float32. */
static inline bool rig_is_bf16(void)
{
    return strncmp(rig_device(), "cuda", 4) == 0;
}

static inline void rig_close(struct rig *r)
{
    if (!r->be)
        return;
    for (uint32_t i = 0; i < r->n_adapters; i++) {
        r->be->ops->adapter_unload(r->be, r->dm, i);
        for (uint32_t j = 0; j < r->adapters[i].n_replacements; j++)
            r->be->ops->replacement_free(r->be, r->adapters[i].replacements[j].weight);
        bound_free(r->adapters[i].bound);
        adapter_free(r->adapters[i].adapter);
    }
    if (r->dm) {
        r->be->ops->pool_free(r->be, r->dm);
        r->be->ops->model_free(r->be, r->dm);
    }
    r->be->ops->close(r->be);
    modules_free(r->modules);
    config_release(&r->config);
    r->be = NULL;
}

/* Room for n_pages pages and n_chunks chunks of adapters. limits: 0 fields get a default. */
static inline int rig_open_on(struct rig *r, const char *device, const char *folder,
                              const struct step_limits *limits, uint32_t n_pages, uint32_t n_chunks,
                              struct err *err)
{
    struct checkpoint *ckpt = NULL;
    struct backend_options opt = {.device = device, .deterministic = rig_deterministic};
    memset(r, 0, sizeof *r);
    r->limits = (struct step_limits){.max_rows = 512,
                                     .max_sequences = 256,
                                     .max_logit_rows = 256,
                                     .max_segments = 256,
                                     .max_slots = RIG_SLOTS,
                                     .max_pages = 4096,
                                     .page_tokens = 16};
    if (limits)
        r->limits = *limits;
    int rc = config_read(&r->config, folder, err);
    if (rc == 0)
        rc = modules_open(&r->modules, &r->config, err);
    if (rc == 0)
        rc = kernels_open(&r->be, &opt, NULL, 0, err);
    if (rc == 0)
        rc = r->be->ops->supports(r->be, &r->config, 0, err);
    if (rc == 0)
        rc = r->be->ops->model_open(r->be, &r->config, r->modules, &r->limits, &r->dm, err);
    if (rc == 0)
        rc = checkpoint_open(&ckpt, folder, err);
    if (rc == 0)
        rc = model_load(r->be, r->dm, ckpt, &r->config, r->modules, NULL, err);
    checkpoint_free(ckpt);
    if (rc != 0)
        return rc;
    r->pages_per_chunk = (uint32_t)(BACKEND_CHUNK_BYTES / r->be->ops->page_bytes(r->be, r->dm));
    r->n_pages = n_pages;
    r->n_chunks = (n_pages + r->pages_per_chunk - 1) / r->pages_per_chunk + n_chunks;
    r->chunk_end = r->n_chunks;
    return r->be->ops->pool_open(r->be, r->dm, r->n_chunks, err);
}

static inline int rig_open(struct rig *r, const char *folder, const struct step_limits *limits,
                           uint32_t n_pages, uint32_t n_chunks, struct err *err)
{
    return rig_open_on(r, rig_device(), folder, limits, n_pages, n_chunks, err);
}

/* Reads, binds, packs and loads the adapter at `path`; its slot, or a negative code. */
static inline int rig_add_adapter(struct rig *r, const char *path, struct err *err)
{
    const struct backend_ops *ops = r->be->ops;
    struct rig_adapter *a = &r->adapters[r->n_adapters];
    uint64_t size = 0, bytes;
    void *image = NULL;
    if (r->n_adapters == RIG_SLOTS)
        return err_set(err, ERR_LIMIT, "the rig has %d slots", RIG_SLOTS);
    int rc = peft_read(&a->adapter, path, NULL, err);
    if (rc == 0 && r->change)
        rc = r->change(a->adapter, err);
    if (rc == 0)
        rc = bind_adapter(&a->bound, a->adapter, r->modules, &r->config, err);
    if (rc == 0)
        rc = backend_set_gains(r->be, r->dm, a->bound, err);
    if (rc == 0)
        rc = ops->adapter_pack_size(r->be, r->dm, a->bound, &size, err);
    if (rc == 0 && !(image = ops->host_alloc(r->be, size)))
        rc = err_set(err, ERR_NO_MEMORY, "no memory for an image");
    if (rc == 0)
        rc = ops->adapter_pack(r->be, r->dm, a->bound, image, size, err);
    for (size_t i = 0; rc == 0 && i < a->bound->n_parts; i++) {
        const struct bound_part *p = &a->bound->parts[i];
        struct adapter_replacement *to = &a->replacements[a->n_replacements];
        if (!tensor_present(&p->module->full))
            continue;
        if (a->n_replacements == RIG_REPLACEMENTS)
            rc = err_set(err, ERR_LIMIT, "the rig has no room for so many replacements");
        else
            rc = ops->replacement_load(r->be, r->dm, p, &to->weight, &bytes, err);
        to->part = p;
        a->n_replacements += rc == 0;
    }
    uint32_t chunks[64];
    uint32_t n = (uint32_t)((size + BACKEND_CHUNK_BYTES - 1) / BACKEND_CHUNK_BYTES);
    for (uint32_t i = 0; rc == 0 && i < n; i++)
        chunks[i] = --r->chunk_end;
    uint32_t slot = r->n_adapters++;
    if (rc == 0)
        rc = ops->adapter_load(r->be, r->dm, slot, image, size, chunks, n, a->replacements,
                               a->n_replacements, err);
    enum adapter_state state = ADAPTER_LOADING;
    while (rc == 0 && state == ADAPTER_LOADING)
        state = ops->adapter_poll(r->be, r->dm, slot);
    if (rc == 0 && state != ADAPTER_READY)
        rc = err_set(err, ERR_DEVICE, "%s: the load failed", path);
    ops->host_free(r->be, image);
    return rc ? rc : (int)slot;
}

/* ---- requests ---- */

static inline uint32_t rig_page(struct rig *r)
{
    uint32_t i = r->next_page++;
    if (!r->scatter)
        return i;
    uint32_t odd = r->n_pages | 1; // every page once, far apart
    uint32_t page = (uint32_t)((uint64_t)i * (odd / 2 + 1) % odd);
    return page < r->n_pages ? page : rig_page(r);
}

static inline int32_t rig_token(const struct rig_request *q, uint32_t position)
{
    if (position < q->n_prompt)
        return q->prompt[position];
    uint32_t i = position - q->n_prompt;
    return q->forced ? q->forced[i] : q->ids[i];
}

struct rig_step {
    struct step step;
    int32_t *tokens;
    struct step_sequence *sequences;
    uint32_t *pages, *logit_rows;
    struct step_segment *segments, *head_segments;
    struct sample_params *sampling;
    uint32_t *request; // of a sequence
    float *logits;
};

/* Lengthens a segment of the slot that ends at row0, or begins one. */
static inline void rig_add_slot(struct step_segment *list, uint32_t *n, uint32_t row0,
                                uint32_t n_rows, uint32_t slot, float scale)
{
    for (uint32_t i = 0; i < *n; i++) {
        if (list[i].slot != slot || list[i].scale != scale || list[i].row0 + list[i].n_rows != row0)
            continue;
        list[i].n_rows += n_rows;
        return;
    }
    list[(*n)++] = (struct step_segment){row0, n_rows, slot, scale};
}

static inline void rig_add_segment(struct step_segment *list, uint32_t *n, uint32_t row0,
                                   uint32_t n_rows, const struct rig_request *q)
{
    float scale = q->scale != 0 ? q->scale : 1.0f;
    if (q->also)
        rig_add_slot(list, n, row0, n_rows, q->also - 1, scale);
    rig_add_slot(list, n, row0, n_rows, (uint32_t)q->slot, scale);
}

static inline void rig_add(struct rig *r, struct rig_step *s, struct rig_request *q, uint32_t idx,
                           uint32_t n_rows)
{
    struct step *st = &s->step;
    uint32_t known = q->n_prompt + q->n_ids, end = q->n_done + n_rows;
    while (q->n_pages * r->limits.page_tokens < end)
        q->pages[q->n_pages++] = rig_page(r);
    struct step_sequence *seq = &s->sequences[st->n_sequences];
    *seq = (struct step_sequence){
        st->n_rows,  n_rows,     q->n_done,
        st->n_pages, q->n_pages, config_rope_regime(&r->config, q->n_prompt + q->max_new)};
    s->request[st->n_sequences++] = idx;
    memcpy(s->pages + st->n_pages, q->pages, q->n_pages * sizeof *s->pages);
    st->n_pages += q->n_pages;
    for (uint32_t i = 0; i < n_rows; i++)
        s->tokens[st->n_rows + i] = rig_token(q, q->n_done + i);
    if (q->slot >= 0)
        rig_add_segment(s->segments, &st->n_segments, st->n_rows, n_rows, q);
    st->n_rows += n_rows;
    if (end != known)
        return;
    if (q->slot >= 0)
        rig_add_segment(s->head_segments, &st->n_head_segments, st->n_logit_rows, 1, q);
    struct sample_params p = {.top_p = 1, .repetition_penalty = 1, .pending = -1, .target = -1};
    if (q->sampling)
        p = *q->sampling;
    p.n_top = q->n_ids == 0 ? q->n_top : 0;
    s->sampling[st->n_logit_rows] = p;
    s->logit_rows[st->n_logit_rows++] = st->n_rows - 1;
}

/* Decode rows first, then prefill, each by slot. */
static inline void rig_plan(struct rig *r, struct rig_step *s, struct rig_request *q, uint32_t n,
                            uint32_t max_rows)
{
    for (int prefill = 0; prefill < 2; prefill++) {
        for (int32_t slot = -1; slot < (int32_t)r->n_adapters; slot++) {
            for (uint32_t i = 0; i < n; i++) {
                uint32_t known = q[i].n_prompt + q[i].n_ids, rows = known - q[i].n_done;
                uint32_t left = max_rows - s->step.n_rows;
                if (q[i].slot != slot || q[i].n_ids == q[i].max_new || (rows > 1) != prefill ||
                    left == 0 || s->step.n_sequences == r->limits.max_sequences ||
                    s->step.n_logit_rows == r->limits.max_logit_rows)
                    continue;
                rig_add(r, s, &q[i], i, rows < left ? rows : left);
            }
        }
        if (!prefill)
            s->step.n_decode_rows = s->step.n_rows;
    }
}

static inline void rig_take(const struct rig *r, const struct rig_step *s, struct rig_request *q,
                            const struct step_result *out)
{
    uint32_t row = 0;
    for (uint32_t i = 0; i < s->step.n_sequences; i++) {
        struct rig_request *one = &q[s->request[i]];
        one->n_done += s->step.sequences[i].n_rows;
        if (one->n_done != one->n_prompt + one->n_ids)
            continue;
        if (one->logits)
            memcpy(one->logits + (size_t)one->n_ids * r->config.vocab_size,
                   s->logits + (size_t)row * r->config.vocab_size,
                   r->config.vocab_size * sizeof *s->logits);
        if (one->n_ids == 0) {
            memcpy(one->top_ids, out->top_ids + (size_t)row * BACKEND_MAX_TOP, sizeof one->top_ids);
            memcpy(one->top_logprobs, out->top_logprobs + (size_t)row * BACKEND_MAX_TOP,
                   sizeof one->top_logprobs);
        }
        one->logprobs[one->n_ids] = out->logprobs[row];
        one->ids[one->n_ids++] = out->ids[row];
        row++;
    }
}

/* Distinct slots in a step, the base counted as one. */
static inline uint32_t rig_groups(const struct rig_step *s, const struct rig_request *q)
{
    bool seen[RIG_SLOTS + 1] = {0};
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->step.n_sequences; i++) {
        bool *at = &seen[q[s->request[i]].slot + 1];
        n += !*at;
        *at = true;
    }
    return n;
}

/* Plans and submits the next step; *ticket 0: nothing was left. */
static inline int rig_submit(struct rig *r, struct rig_step *s, struct rig_request *q, uint32_t n,
                             uint32_t max_rows, uint64_t *ticket, struct err *err)
{
    s->step = (struct step){.tokens = s->tokens,
                            .sequences = s->sequences,
                            .pages = s->pages,
                            .segments = s->segments,
                            .logit_rows = s->logit_rows,
                            .head_segments = s->head_segments,
                            .sampling = s->sampling};
    for (uint32_t i = 0; i < r->n_adapters; i++)
        s->step.kinds |= r->adapters[i].bound->kinds;
    for (uint32_t i = 0; i < n; i++) { // a step that gives logits is never recorded
        if (q[i].logits)
            s->step.logits_out = s->logits;
    }
    *ticket = 0;
    rig_plan(r, s, q, n, max_rows);
    return s->step.n_rows ? r->be->ops->step_submit(r->be, r->dm, &s->step, ticket, err) : 0;
}

static inline int rig_fetch(struct rig *r, const struct rig_step *s, struct rig_request *q,
                            uint64_t ticket, uint32_t *n_groups, struct err *err)
{
    struct step_result out;
    int rc = r->be->ops->step_result(r->be, r->dm, ticket, &out, err);
    if (rc != 0)
        return rc;
    uint32_t groups = rig_groups(s, q);
    if (n_groups && groups > *n_groups)
        *n_groups = groups;
    rig_take(r, s, q, &out);
    return 0;
}

/* All requests from their start; rig_end() frees. */
static inline void rig_begin(struct rig *r, struct rig_step *s, struct rig_request *q, uint32_t n)
{
    const struct step_limits *l = &r->limits;
    *s = (struct rig_step){
        .tokens = sys_calloc(l->max_rows, sizeof *s->tokens),
        .sequences = sys_calloc(l->max_sequences, sizeof *s->sequences),
        .pages = sys_calloc(l->max_pages, sizeof *s->pages),
        .logit_rows = sys_calloc(l->max_logit_rows, sizeof *s->logit_rows),
        .segments = sys_calloc(l->max_segments, sizeof *s->segments),
        .head_segments = sys_calloc(l->max_segments, sizeof *s->head_segments),
        .sampling = sys_calloc(l->max_logit_rows, sizeof *s->sampling),
        .request = sys_calloc(l->max_sequences, sizeof *s->request),
        .logits = sys_calloc((size_t)l->max_logit_rows * r->config.vocab_size, sizeof *s->logits)};
    for (uint32_t i = 0; i < n; i++) {
        q[i].n_ids = q[i].n_done = q[i].n_pages = 0;
        q[i].pages =
            sys_calloc((q[i].n_prompt + q[i].max_new) / l->page_tokens + 1, sizeof *q[i].pages);
    }
    r->next_page = 0;
}

static inline void rig_end(struct rig_step *s, struct rig_request *q, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        sys_free(q[i].pages);
    void *all[] = {s->tokens,        s->sequences, s->pages,   s->logit_rows, s->segments,
                   s->head_segments, s->sampling,  s->request, s->logits};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        sys_free(all[i]);
}

/* Runs all requests to the end, as many rows as fit in every step. n_groups (may be NULL) gets the
 * largest number of distinct adapters and base in one step. */
static inline int rig_run(struct rig *r, struct rig_request *q, uint32_t n, uint32_t max_rows,
                          uint32_t *n_groups, struct err *err)
{
    struct rig_step s;
    uint64_t ticket;
    int rc;
    rig_begin(r, &s, q, n);
    do {
        rc = rig_submit(r, &s, q, n, max_rows, &ticket, err);
        if (rc == 0 && ticket)
            rc = rig_fetch(r, &s, q, ticket, n_groups, err);
    } while (rc == 0 && ticket);
    rig_end(&s, q, n);
    return rc;
}

#endif
