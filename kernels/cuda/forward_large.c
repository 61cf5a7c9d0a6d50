/*
 * What steps of many rows (T > CU_SMALL_ROWS) do in their own way. On Hopper gemm_prefill takes
 * additive adapters into the product, and the activation; shrink before it only where 64 rows have
 * more ranks than it takes. Elsewhere, and for shapes that it does not take: shrink, cuBLASLt, and
 * the consumers apply B as in small steps.
 */
#include "kernels/cuda/cuda_impl.h"

enum { OWN_ROWS = 512 }; // fewer leave the persistent tiles of gemm_prefill too few

/* Planes of v that shrink makes: work items for the card once over, within v. Twice over was slower
 * on an H100: 27 to 23, 18 to 15, 22 to 19, 43 to 37 us for the sites of Llama-3.1-8B, 2048 rows.
 */
static uint32_t shrink_planes(const struct device_model *m, const struct cuda_run *run, uint32_t t,
                              uint32_t k, uint32_t n_items)
{
    uint32_t want = ((uint32_t)m->be->n_sms + n_items) / (n_items ? n_items : 1);
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
                           .epilogue = !glu                                            ? CU_STORE
                                       : m->config->activation == ACTIVATION_GELU_TANH ? CU_GELU
                                                                                       : CU_SILU};
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
        e->v_padded = 1;
        int rc = cu_shrink(g, items->segment, items->row, items->n, planes, m->v16, m->compute);
        if (rc)
            return rc;
    }
    if (run->only_a) {
        e->y16 = NULL;
        e->y = m->y;
        e->planes = m->planes[3];
        e->block_rows = CU_SMALL_ROWS;
        return takes_own(m, site, g) ? cudaErrorNotSupported : 0;
    }
    if (takes_own(m, site, g))
        return own_product(m, run, site, g, e);
    return lt_gemm(m, g->w, g->x, wide ? (void *)wide : m->y16, g->t, g->n, g->k, wide != NULL,
                   m->compute);
}

bool cuda_complete(const struct device_model *m, const struct cuda_run *run,
                   const struct cu_expand *e)
{
    return !m->be->deterministic && e->y16 && e->kinds == 0 && !run->replaces && e->n % 8 == 0;
}
