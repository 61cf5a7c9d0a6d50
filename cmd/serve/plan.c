#include "cmd/serve/plan.h"

#include <string.h>

#include "libcore/base/limits.h"

enum {
    PAGE_TOKENS = 16,
    MAX_SLOTS = 512,
    MAX_PAGE_ENTRIES = 4 << 20,
    MIN_LOGIT_ROWS = 64,
    /* Rows of a step on the CPU: more would cost scratch memory and gain no speed. */
    CPU_STEP_TOKENS = 2048,
    CPU_KV_TOKENS = 65536,
};
static const uint64_t GIB = 1ull << 30, MIN_POOL = 16ull * BACKEND_CHUNK_BYTES,
                      CPU_MIN_ADAPTERS = 128ull << 20;

static uint32_t min_u32(uint64_t a, uint64_t b)
{
    return (uint32_t)(a < b ? a : b);
}

static bool on_cpu(const struct runtime *rt)
{
    return strcmp(rt->info.name, "cpu") == 0;
}

static uint64_t token_bytes(const struct runtime *rt)
{
    const struct model_config *c = &rt->config;
    uint64_t values = 2ull * c->n_layers * c->n_kv_heads * c->head_dim;
    unsigned bits = rt->info.kv_dtype == DTYPE_NONE ? 32 : dtype_bits(rt->info.kv_dtype);
    return values * bits / 8;
}

static int choose_limits(struct runtime *rt, struct err *err)
{
    const struct model_options *o = &rt->opt;
    rt->context_length = rt->config.max_positions;
    if (o->context_length > rt->config.max_positions)
        return err_set(err, ERR_USAGE, "--context-length %lld is more than the model's %u",
                       (long long)o->context_length, rt->config.max_positions);
    if (o->context_length > 0)
        rt->context_length = (uint32_t)o->context_length;
    uint64_t bytes = token_bytes(rt);
    rt->plan.token_bytes = bytes;
    rt->plan.page_tokens = PAGE_TOKENS;
    while (rt->plan.page_tokens > 1 && bytes * rt->plan.page_tokens > BACKEND_CHUNK_BYTES)
        rt->plan.page_tokens /= 2;
    uint32_t page_tokens = rt->plan.page_tokens;
    uint64_t running = (uint64_t)o->max_running;
    uint64_t rows = (uint64_t)o->max_step_tokens;
    if (rows > CPU_STEP_TOKENS && on_cpu(rt))
        rows = CPU_STEP_TOKENS;
    uint64_t sequence_pages = (rt->context_length + page_tokens - 1) / page_tokens;
    rt->limits = (struct step_limits){
        .max_rows = min_u32(rows, LIMIT_STEP_TOKENS),
        .max_sequences = min_u32(running, LIMIT_SEQUENCES),
        .max_logit_rows = min_u32(running > MIN_LOGIT_ROWS ? running : MIN_LOGIT_ROWS, rows),
        .max_segments = min_u32(running * LIMIT_ADAPTERS_PER_REQUEST, 1 << 16),
        .max_slots = MAX_SLOTS,
        .max_pages = min_u32(running * sequence_pages, MAX_PAGE_ENTRIES),
        .page_tokens = page_tokens,
    };
    return 0;
}

/* On a device of its own: all that is left is the pool. On the CPU, where memory is everybody's: KV
 * pages for what the sequences can use, up to a bound but four full contexts at least, and some
 * room for adapters; at most half of what is free. */
static uint64_t pool_bytes(const struct runtime *rt, uint64_t left)
{
    if (!on_cpu(rt))
        return left;
    uint64_t tokens = (uint64_t)rt->limits.max_sequences * rt->context_length;
    uint64_t least = 4ull * rt->context_length;
    if (tokens > CPU_KV_TOKENS)
        tokens = CPU_KV_TOKENS > least ? CPU_KV_TOKENS : least;
    uint64_t adapters = rt->opt.adapter_bytes;
    if (adapters == 0)
        adapters = rt->plan.weights / 4;
    if (rt->opt.adapter_bytes == 0 && adapters < CPU_MIN_ADAPTERS)
        adapters = CPU_MIN_ADAPTERS;
    if (rt->opt.adapter_bytes == 0 && adapters > 2 * GIB)
        adapters = 2 * GIB;
    uint64_t wanted = tokens * rt->plan.token_bytes + adapters;
    return wanted < left / 2 ? wanted : left / 2;
}

int plan_make(struct runtime *rt, struct err *err)
{
    int rc = choose_limits(rt, err);
    struct plan *p = &rt->plan;
    if (rc == 0)
        rc = rt->be->ops->model_bytes(rt->be, &rt->config, &rt->limits, &p->weights, &p->scratch,
                                      err);
    if (rc != 0)
        return rc;
    p->memory_total = rt->info.memory_total;
    p->memory_free = rt->info.memory_free;
    p->budget = (uint64_t)((double)p->memory_free * rt->opt.memory_utilization);
    uint64_t needed = p->weights + p->scratch + MIN_POOL;
    if (p->budget < needed)
        return err_set(err, ERR_LIMIT,
                       "%s: weights, scratch and the smallest pool need %llu MB; "
                       "%.0f %% of the free memory of %s are %llu MB",
                       rt->base.name ? rt->base.name : "the model",
                       (unsigned long long)(needed >> 20), rt->opt.memory_utilization * 100,
                       rt->info.device, (unsigned long long)(p->budget >> 20));
    uint64_t left = p->budget - p->weights - p->scratch;
    p->host_cache = rt->opt.host_cache_bytes;
    if (p->host_cache == 0)
        p->host_cache = left / 8 < 4 * GIB ? left / 8 : 4 * GIB;
    p->pool = pool_bytes(rt, left);
    p->pool -= p->pool % BACKEND_CHUNK_BYTES;
    if (p->pool < MIN_POOL)
        p->pool = MIN_POOL;
    p->adapter_cap = rt->opt.adapter_bytes;
    return 0;
}

uint64_t plan_kv_tokens(const struct runtime *rt)
{
    const struct plan *p = &rt->plan;
    uint64_t page_bytes = p->token_bytes * p->page_tokens;
    uint64_t pages = p->pool / BACKEND_CHUNK_BYTES * (BACKEND_CHUNK_BYTES / page_bytes);
    uint64_t tokens = pages * p->page_tokens;
    uint64_t cap = (uint64_t)rt->opt.max_kv_tokens;
    return cap && cap < tokens ? cap : tokens;
}
