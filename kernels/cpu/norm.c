/*
 * rms_norm: h = x / sqrt(mean(x^2) + eps) * w. With `norm_plus_one` (Gemma) one was added to w when
 * it was loaded. NORM_Q and NORM_K work on the heads inside the output of SITE_QKV.
 */
#include "kernels/cpu/cpu_impl.h"

struct norm_run {
    struct device_model *m;
    struct cpu_rows rows;
    uint32_t layer;
    enum norm norm;
    const float *x, *base;
    float *h;
    size_t stride, first;
    uint32_t n_groups, width;
};

static const float *row_weights(const struct norm_run *r, size_t row)
{
    int32_t owner = r->rows.owner[row];
    if (owner < 0)
        return r->base;
    const struct cpu_slot *s = &r->m->slots[r->rows.segments[owner].slot];
    const struct device_weight *w = s->norms[r->layer * NORM_COUNT + (uint32_t)r->norm];
    return w ? w->vector : r->base;
}

static void norm_rows(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    const struct norm_run *r = arg;
    (void)thread_idx;
    for (size_t row = begin; row < end; row++) {
        const float *w = row_weights(r, row);
        for (uint32_t g = 0; g < r->n_groups; g++) {
            size_t at = row * r->stride + r->first + (size_t)g * r->width;
            r->m->isa->rms_norm(r->x + at, w, r->h + at, r->width, (float)r->m->config->rms_eps);
        }
    }
}

int cpu_rms_norm(struct op_context *c, const struct op_step *s, uint32_t layer, enum norm norm,
                 enum op_space space, const void *x, void *h)
{
    struct device_model *m = cpu_context(c);
    const struct model_config *config = m->config;
    struct norm_run r = {.m = m,
                         .rows = cpu_rows_of(s, space),
                         .layer = layer,
                         .norm = norm,
                         .x = x,
                         .h = h,
                         .stride = config->d_model,
                         .n_groups = 1,
                         .width = config->d_model};
    r.base = norm == NORM_FINAL ? m->final_norm : m->layers[layer].norms[norm];
    if (norm == NORM_Q || norm == NORM_K) {
        r.stride = m->qkv_rows;
        r.width = config->head_dim;
        r.n_groups = norm == NORM_Q ? config->n_heads : config->n_kv_heads;
        r.first = norm == NORM_Q ? 0 : (size_t)config->n_heads * config->head_dim;
        r.h = (float *)(uintptr_t)r.x;
    }
    worker_pool_run(m->pool, r.rows.n_rows, 4, norm_rows, &r);
    return 0;
}
