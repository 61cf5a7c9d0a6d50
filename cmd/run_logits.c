#include "cmd/run_logits.h"

#include <unistd.h>

#include "libcore/base/limits.h"
#include "libcore/base/sys.h"

/* One adapter on the device. */
struct placed {
    struct adapter *adapter;
    struct bound_adapter *bound;
    struct adapter_replacement *replacements;
    uint32_t n_replacements;
    void *image;
    uint64_t size;
    uint32_t n_chunks;
    bool loaded;
};

struct bench {
    struct runtime *rt;
    struct placed placed[LIMIT_ADAPTERS_PER_REQUEST];
    struct step_segment segments[LIMIT_ADAPTERS_PER_REQUEST];
    size_t n_placed;
    unsigned kinds;
    uint32_t n_kv_chunks, n_pages;
    uint32_t *pages;
    bool pool;
};

static int load_replacements(struct bench *b, struct placed *p, struct err *err)
{
    struct backend *be = b->rt->be;
    p->replacements = sys_calloc(p->bound->n_parts + 1, sizeof *p->replacements);
    if (!p->replacements)
        return err_set(err, ERR_NO_MEMORY, "no memory for an adapter");
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < p->bound->n_parts; i++) {
        const struct bound_part *part = &p->bound->parts[i];
        if (!tensor_present(&part->module->full))
            continue;
        uint64_t n_bytes = 0;
        struct adapter_replacement *r = &p->replacements[p->n_replacements];
        r->part = part;
        rc = be->ops->replacement_load(be, b->rt->model, part, &r->weight, &n_bytes, err);
        p->n_replacements += rc == 0;
    }
    return rc;
}

/* Reads, binds and packs; nothing is on the device yet. */
static int pack(struct bench *b, struct placed *p, const struct run_adapter *a, struct err *err)
{
    struct runtime *rt = b->rt;
    struct backend *be = rt->be;
    int rc = rt->source->ops->get(rt->source, a->content_id, &p->adapter, err);
    if (rc == 0)
        rc = bind_adapter(&p->bound, p->adapter, rt->modules, &rt->config, err);
    if (rc == 0)
        rc = be->ops->supports(be, &rt->config, p->bound->kinds, err);
    if (rc == 0)
        rc = backend_set_gains(be, rt->model, p->bound, err);
    if (rc == 0)
        rc = be->ops->adapter_pack_size(be, rt->model, p->bound, &p->size, err);
    if (rc != 0)
        return rc;
    p->image = be->ops->host_alloc(be, p->size ? p->size : 1);
    if (!p->image)
        return err_set(err, ERR_NO_MEMORY, "no memory for an adapter");
    p->n_chunks = (uint32_t)((p->size + BACKEND_CHUNK_BYTES - 1) / BACKEND_CHUNK_BYTES);
    b->kinds |= p->bound->kinds;
    return be->ops->adapter_pack(be, rt->model, p->bound, p->image, p->size, err);
}

static int place(struct bench *b, uint32_t slot, uint32_t first_chunk, struct err *err)
{
    struct placed *p = &b->placed[slot];
    struct backend *be = b->rt->be;
    int rc = load_replacements(b, p, err);
    uint32_t *chunks = sys_calloc(p->n_chunks + 1, sizeof *chunks);
    if (rc == 0 && !chunks)
        rc = err_set(err, ERR_NO_MEMORY, "no memory for an adapter");
    for (uint32_t i = 0; rc == 0 && i < p->n_chunks; i++)
        chunks[i] = first_chunk + i;
    if (rc == 0)
        rc = be->ops->adapter_load(be, b->rt->model, slot, p->image, p->size, chunks, p->n_chunks,
                                   p->replacements, p->n_replacements, err);
    sys_free(chunks);
    p->loaded = rc == 0;
    while (rc == 0) {
        enum adapter_state state = be->ops->adapter_poll(be, b->rt->model, slot);
        if (state == ADAPTER_READY)
            break;
        if (state != ADAPTER_LOADING)
            return err_set(err, ERR_DEVICE, "an adapter could not be copied to the device");
        usleep(100);
    }
    return rc;
}

static int open_pool(struct bench *b, size_t longest, struct err *err)
{
    struct runtime *rt = b->rt;
    uint32_t per_page = rt->limits.page_tokens;
    uint64_t page_bytes = rt->be->ops->page_bytes(rt->be, rt->model);
    uint32_t per_chunk = (uint32_t)(BACKEND_CHUNK_BYTES / page_bytes);
    b->n_pages = (uint32_t)((longest + per_page - 1) / per_page);
    b->n_kv_chunks = (b->n_pages + per_chunk - 1) / per_chunk;
    b->pages = sys_calloc(b->n_pages, sizeof *b->pages);
    if (!b->pages)
        return err_set(err, ERR_NO_MEMORY, "no memory for %u pages", b->n_pages);
    uint32_t n_chunks = b->n_kv_chunks;
    for (uint32_t i = 0; i < b->n_pages; i++)
        b->pages[i] = i;
    for (size_t i = 0; i < b->n_placed; i++)
        n_chunks += b->placed[i].n_chunks;
    int rc = rt->be->ops->pool_open(rt->be, rt->model, n_chunks, err);
    b->pool = rc == 0;
    uint32_t chunk = b->n_kv_chunks;
    for (uint32_t i = 0; rc == 0 && i < b->n_placed; i++) {
        rc = place(b, i, chunk, err);
        chunk += b->placed[i].n_chunks;
    }
    return rc;
}

/* Rows [from, from + n_rows) of the prompt; the last piece gives logits. */
static int run_piece(struct bench *b, const struct run_prompt *p, uint32_t from, uint32_t n_rows,
                     float *logits, struct err *err)
{
    struct runtime *rt = b->rt;
    struct step_segment rows[LIMIT_ADAPTERS_PER_REQUEST], head[LIMIT_ADAPTERS_PER_REQUEST];
    for (size_t i = 0; i < b->n_placed; i++) {
        rows[i] = head[i] = b->segments[i];
        rows[i].n_rows = n_rows;
        head[i].n_rows = 1;
    }
    bool last = from + n_rows == p->n;
    uint32_t last_row = n_rows - 1;
    const struct step_sequence sequence = {
        .n_rows = n_rows,
        .position0 = from,
        .n_pages = (from + n_rows + rt->limits.page_tokens - 1) / rt->limits.page_tokens,
        .rope_regime = config_rope_regime(&rt->config, (uint32_t)p->n),
    };
    const struct sample_params greedy = {
        .top_p = 1, .repetition_penalty = 1, .pending = -1, .target = -1};
    const struct step step = {
        .n_rows = n_rows,
        .tokens = p->ids + from,
        .sequences = &sequence,
        .n_sequences = 1,
        .n_decode_rows = n_rows == 1,
        .pages = b->pages,
        .n_pages = sequence.n_pages,
        .segments = rows,
        .n_segments = (uint32_t)b->n_placed,
        .kinds = b->kinds,
        .logit_rows = &last_row,
        .n_logit_rows = last,
        .head_segments = head,
        .n_head_segments = last ? (uint32_t)b->n_placed : 0,
        .sampling = &greedy,
        .logits_out = last ? logits : NULL,
    };
    uint64_t ticket = 0;
    struct step_result result;
    int rc = rt->be->ops->step_submit(rt->be, rt->model, &step, &ticket, err);
    return rc == 0 ? rt->be->ops->step_result(rt->be, rt->model, ticket, &result, err) : rc;
}

static int run_prompt(struct bench *b, const struct run_prompt *p, float *logits, struct err *err)
{
    int rc = 0;
    for (size_t from = 0; rc == 0 && from < p->n;) {
        size_t n = p->n - from < b->rt->limits.max_rows ? p->n - from : b->rt->limits.max_rows;
        rc = run_piece(b, p, (uint32_t)from, (uint32_t)n, logits, err);
        from += n;
    }
    return rc;
}

static void close_bench(struct bench *b)
{
    struct backend *be = b->rt->be;
    for (uint32_t i = 0; i < b->n_placed; i++) {
        struct placed *p = &b->placed[i];
        if (p->loaded)
            be->ops->adapter_unload(be, b->rt->model, i);
        for (uint32_t k = 0; k < p->n_replacements; k++)
            be->ops->replacement_free(be, p->replacements[k].weight);
        if (p->image)
            be->ops->host_free(be, p->image);
        sys_free(p->replacements);
        bound_free(p->bound);
        adapter_free(p->adapter);
    }
    if (b->pool)
        be->ops->pool_free(be, b->rt->model);
    sys_free(b->pages);
}

static int check_prompts(const struct runtime *rt, const struct run_prompt *prompts, size_t n,
                         size_t *longest, struct err *err)
{
    *longest = 1;
    for (size_t i = 0; i < n; i++) {
        if (prompts[i].n > rt->context_length)
            return err_set(err, ERR_LIMIT, "prompt %zu has %zu ids, more than the context of %u", i,
                           prompts[i].n, rt->context_length);
        *longest = prompts[i].n > *longest ? prompts[i].n : *longest;
    }
    return 0;
}

int run_logits(struct runtime *rt, const struct run_adapter *adapters, size_t n_adapters,
               const struct run_prompt *prompts, size_t n, float *out, struct err *err)
{
    struct bench b = {.rt = rt};
    size_t longest = 0;
    int rc = check_prompts(rt, prompts, n, &longest, err);
    for (size_t i = 0; rc == 0 && i < n_adapters; i++) {
        b.n_placed = i + 1;
        b.segments[i] = (struct step_segment){.slot = (uint32_t)i, .scale = adapters[i].scale};
        rc = pack(&b, &b.placed[i], &adapters[i], err);
        bool plain = adapters[i].scale == 1 && n_adapters == 1;
        if (rc == 0 && !plain && (b.kinds & ~(unsigned)ADAPTER_ADDITIVE))
            rc = err_set(err, ERR_REFUSED,
                         "a scale other than 1, or several adapters, need purely "
                         "additive kinds");
    }
    if (rc == 0)
        rc = open_pool(&b, longest, err);
    for (size_t i = 0; rc == 0 && i < n; i++)
        rc = run_prompt(&b, &prompts[i], out + i * rt->config.vocab_size, err);
    close_bench(&b);
    return rc;
}
