/*
 * What steps of many rows (T > CU_SMALL_ROWS) do in their own way. On Hopper gemm_prefill takes
 * additive adapters into the product, and the activation; shrink before it only where 64 rows have
 * more ranks than it takes. Elsewhere, in steps of fewer than OWN_ROWS rows and for shapes that it
 * does not take: shrink, cuBLASLt, expand_add (where y goes to x: before the product). What follows
 * is as without adapters, but for gains and biases. The head's B is left to cu_logits.
 */
#include "kernels/cuda/cuda_impl.h"

enum { OWN_ROWS = 512 }; // fewer leave the persistent tiles of gemm_prefill too few

/* Planes of v that shrink makes: work items for the card once over, within v; twice over where
 * items are small and two of them fit on a multiprocessor. */
static uint32_t shrink_planes(const struct device_model *m, const struct cuda_run *run, uint32_t t,
                              uint32_t k, uint32_t n_items)
{
    uint32_t ctas = (uint32_t)m->be->n_sms * (cu_shrink_rows(t) < CU_SHRINK_ROWS ? 2 : 1);
    uint32_t want = (ctas + n_items) / (n_items ? n_items : 1);
    uint32_t steps = (k + 127) / 128, room = (uint32_t)(m->v_floats / ((uint64_t)t * run->v_width));
    want = want < 8 ? want : 8;
    want = want < steps ? want : steps;
    want = want < room ? want : room;
    return want ? want : 1;
}

static bool takes_own(const struct device_model *m, enum site site, const struct cu_gemm *g)
{
    const struct model_config *c = m->config;
    return m->be->capability == 90 && site != SITE_HEAD && g->t >= OWN_ROWS && g->n % 32 == 0 &&
           g->k % 8 == 0 && c->n_heads * c->head_dim % 16 == 0 &&
           c->n_kv_heads * c->head_dim % 16 == 0 && c->d_ff % 16 == 0;
}

void cuda_count_groups(const struct device_model *m, const struct step *s, struct cuda_run *run)
{
    for (uint32_t row0 = 0; row0 < s->n_rows; row0 += 64) {
        uint32_t sum[CUDA_LAYER_SITES] = {0};
        for (uint32_t i = 0; i < s->n_segments; i++) {
            const struct step_segment *g = &s->segments[i];
            if (g->row0 >= row0 + 64 || g->row0 + g->n_rows <= row0)
                continue;
            for (int site = 0; site < CUDA_LAYER_SITES; site++)
                sum[site] += m->slots[g->slot].groups[site];
        }
        for (int site = 0; site < CUDA_LAYER_SITES; site++)
            run->groups[site] = sum[site] > run->groups[site] ? sum[site] : run->groups[site];
    }
}

/* Whether the product computes v, too. */
static bool makes_v(const struct device_model *m, const struct cuda_run *run, enum site site,
                    const struct cu_gemm *g)
{
    return takes_own(m, site, g) && run->kinds == 1 && run->v_width && m->be->n_sms >= 32 &&
           run->groups[cuda_layer_site(site)] <= CU_PREFILL_GROUPS;
}

static enum cu_epilogue activation_of(const struct device_model *m)
{
    return m->config->activation == ACTIVATION_GELU_TANH ? CU_GELU : CU_SILU;
}

static int own_product(struct device_model *m, const struct cuda_run *run, enum site site,
                       const struct cu_gemm *g, struct cu_expand *e)
{
    bool inside = run->kinds == 1 && run->v_width;
    bool glu = site == SITE_GATE_UP && (run->kinds == 0 || inside) && !run->replaces &&
               !run->single && !e->bias;
    struct cu_prefill p = {.w = g->w,
                           .x = g->x,
                           .y = glu ? m->act : m->y16,
                           .t = g->t,
                           .n = g->n,
                           .k = g->k,
                           .n_ctas = (uint32_t)m->be->n_sms,
                           .epilogue = glu ? activation_of(m) : CU_STORE};
    if (inside) {
        p.segments = g->segments;
        p.sites = g->sites;
        p.site_stride = g->site_stride;
        p.n_segments = g->n_segments;
        p.columns = g->columns;
        p.v16 = m->v16;
        p.v_width = run->v_width;
        if (makes_v(m, run, site, g)) {
            p.planes = m->v;
            p.max_planes = (uint32_t)(m->v_floats / ((uint64_t)g->t * run->v_width));
            p.ready = m->v_ready;
            p.epoch = ++m->v_epoch;
        }
        p.next_k = site == SITE_QKV       ? m->config->n_heads * m->config->head_dim
                   : site == SITE_GATE_UP ? m->config->d_ff
                                          : m->config->d_model;
        e->kinds = 0;
        e->segments = NULL;
    }
    e->y16 = p.y;
    return cu_gemm_prefill(&p, m->compute);
}

/* B v is in y, or where y goes. */
static void added(struct cu_expand *e)
{
    e->v = NULL;
    e->v16 = NULL;
    if (e->kinds == 1) {
        e->kinds = 0;
        e->segments = NULL;
    }
}

/* Whether the site's y goes to x and nowhere else: then B v may go there before the product, behind
 * the shrink, which lets it start early; and is not rounded. --deterministic: as with gains. */
static bool adds_to_x(const struct device_model *m, const struct cuda_run *run, enum site site,
                      const struct cu_expand *e)
{
    return (site == SITE_O || site == SITE_DOWN) && e->kinds == 1 && e->v16 && !run->single &&
           !m->config->post_norms && !m->be->deterministic;
}

int cuda_linear_large(struct device_model *m, const struct cuda_run *run,
                      const struct cuda_list *items, enum site site, struct cu_gemm *g, float *wide,
                      struct cu_expand *e)
{
    e->y = wide;
    e->y16 = wide ? NULL : m->y16;
    e->v_width = g->s_width = run->v_width;
    if (run->kinds && run->v_width && !makes_v(m, run, site, g)) {
        uint32_t planes = shrink_planes(m, run, g->t, g->k, items->n);
        e->v16 = m->v16;
        CUDA_TRY(cu_shrink(g, items->segment, items->row, items->n, planes, m->v16, m->compute));
    }
    if (run->only_a)
        return takes_own(m, site, g) ? cudaErrorNotSupported : 0;
    if (takes_own(m, site, g))
        return own_product(m, run, site, g, e);
    if (adds_to_x(m, run, site, e)) {
        CUDA_TRY(cu_expand_residual(e, run->step->n_segments, m->x, m->compute));
        added(e);
    }
    return lt_gemm(m, g->w, g->x, wide ? (void *)wide : m->y16, g->t, g->n, g->k, wide != NULL,
                   m->compute);
}

int cuda_add_adapters(struct device_model *m, const struct cuda_run *run, enum site site,
                      struct cu_expand *e)
{
    if (!e->kinds || !e->y16)
        return 0;
    bool gated = e->v16 && e->kinds == 1 && site == SITE_GATE_UP && !run->single && !e->bias &&
                 !m->be->deterministic;
    enum cu_epilogue epilogue = gated ? activation_of(m) : CU_STORE;
    if (e->v16)
        CUDA_TRY(cu_expand_add(e, run->step->n_segments, epilogue, m->act, m->compute));
    if (gated)
        e->y16 = m->act;
    added(e);
    return 0;
}

bool cuda_complete(const struct device_model *m, const struct cuda_run *run,
                   const struct cu_expand *e)
{
    return !m->be->deterministic && e->y16 && e->kinds == 0 && !run->replaces && e->n % 8 == 0;
}
