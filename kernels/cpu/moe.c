/*
 * moe: y[row] = sum over the chosen experts e of p_e * down_e(act(gate_up_e h)).
 * Router (SITE_ROUTER, with its adapters), softmax over all experts, the n_experts_used largest
 * (the lower index among equals), renormalised when norm_topk. Rows are sorted by expert, so an
 * expert's matrices are read once a step, and only those of chosen experts. The threads share out
 * (expert, panel); adapters' expert parts are added expert by expert.
 */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu_impl.h"
#include "libcore/base/limits.h"
#include "libcore/base/sys.h"

enum { ADAPTER_ROWS = 16 };

/* One place: a row at one of its experts. Places are sorted by (expert, row). */
struct cpu_moe {
    float *router;    // [rows, n_experts]
    uint32_t *chosen; // [rows, used]: expert
    float *weight;    // [rows, used]: its share
    uint32_t *place;  // [rows, used]: where it went
    uint32_t *row;    // [places]
    uint32_t *first;  // [n_experts + 1]: places of an expert
    float *x, *y;     // [places, d_model]
    float *gate_up;   // [places, 2 d_expert]
    float *act;       // [places, d_expert]
};

static bool has_moe(const struct model_config *c)
{
    for (uint32_t i = 0; i < c->n_layers; i++) {
        if (c->layers[i].moe)
            return true;
    }
    return false;
}

uint64_t cpu_moe_floats(const struct model_config *c, uint64_t rows)
{
    if (!has_moe(c))
        return 0;
    uint64_t places = rows * c->n_experts_used;
    return rows * c->n_experts + 4 * places + c->n_experts + 1 +
           places * (2ull * c->d_model + 3ull * c->d_expert);
}

int cpu_moe_open(struct device_model *m, struct err *err)
{
    const struct model_config *c = m->config;
    if (!has_moe(c))
        return 0;
    struct cpu_moe *e = m->moe = sys_calloc(1, sizeof *e);
    size_t rows = m->limits.max_rows, places = rows * c->n_experts_used;
    if (e) {
        e->router = sys_malloc(rows * c->n_experts * sizeof *e->router);
        e->chosen = sys_malloc(places * sizeof *e->chosen);
        e->weight = sys_malloc(places * sizeof *e->weight);
        e->place = sys_malloc(places * sizeof *e->place);
        e->row = sys_malloc(places * sizeof *e->row);
        e->first = sys_malloc((c->n_experts + 1) * sizeof *e->first);
        e->x = sys_malloc(places * c->d_model * sizeof *e->x);
        e->y = sys_malloc(places * c->d_model * sizeof *e->y);
        e->gate_up = sys_malloc(places * 2 * c->d_expert * sizeof *e->gate_up);
        e->act = sys_malloc(places * c->d_expert * sizeof *e->act);
    }
    if (!e || !e->router || !e->chosen || !e->weight || !e->place || !e->row || !e->first ||
        !e->x || !e->y || !e->gate_up || !e->act)
        return err_set(err, ERR_NO_MEMORY, "no memory for the rows of %u experts", c->n_experts);
    return 0;
}

void cpu_moe_free(struct device_model *m)
{
    struct cpu_moe *e = m->moe;
    if (!e)
        return;
    void *all[] = {e->router, e->chosen, e->weight, e->place,   e->row,
                   e->first,  e->x,      e->y,      e->gate_up, e->act};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        sys_free(all[i]);
    sys_free(e);
    m->moe = NULL;
}

// ---- routing
// -------------------------------------------------------------------------------------

/* Softmax over all in place, then the largest ones. */
static void route_row(const struct model_config *c, float *p, uint32_t *chosen, float *weight)
{
    float max = p[0], total = 0, kept = 0;
    for (uint32_t e = 1; e < c->n_experts; e++)
        max = p[e] > max ? p[e] : max;
    for (uint32_t e = 0; e < c->n_experts; e++)
        total += p[e] = expf(p[e] - max);
    for (uint32_t i = 0; i < c->n_experts_used; i++) {
        uint32_t best = 0;
        for (uint32_t e = 1; e < c->n_experts; e++)
            best = p[e] > p[best] ? e : best;
        chosen[i] = best;
        weight[i] = p[best] / total;
        kept += weight[i];
        p[best] = -1;
    }
    for (uint32_t i = 0; c->norm_topk && i < c->n_experts_used; i++)
        weight[i] /= kept;
}

/* Counting sort of the places by expert; stable, so an expert's rows ascend. */
static void sort_places(struct cpu_moe *e, const struct model_config *c, uint32_t n_rows)
{
    uint32_t used = c->n_experts_used, n = n_rows * used;
    memset(e->first, 0, (c->n_experts + 1) * sizeof *e->first);
    for (uint32_t i = 0; i < n; i++)
        e->first[e->chosen[i] + 1]++;
    for (uint32_t x = 0; x < c->n_experts; x++)
        e->first[x + 1] += e->first[x];
    for (uint32_t i = 0; i < n; i++) {
        e->place[i] = e->first[e->chosen[i]]++;
        e->row[e->place[i]] = i / used;
    }
    memmove(e->first + 1, e->first, c->n_experts * sizeof *e->first);
    e->first[0] = 0;
}

// ---- the experts' matrices
// -----------------------------------------------------------------------

struct expert_run {
    struct device_model *m;
    const struct op_step *s;
    uint32_t layer;
    enum site site;
    const struct cpu_matrix *w; // n_experts of them
    const float *x;
    float *y;
};

static void expert_panels(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    const struct expert_run *r = arg;
    const struct cpu_moe *e = r->m->moe;
    (void)thread_idx;
    size_t n_panels = (r->w->n_rows + ISA_PANEL - 1) / ISA_PANEL;
    size_t ldx = r->w->n_cols, ldy = r->w->n_rows;
    for (size_t i = begin; i < end;) {
        size_t expert = i / n_panels, p = i % n_panels;
        size_t n = n_panels - p < end - i ? n_panels - p : end - i;
        uint32_t first = e->first[expert], rows = e->first[expert + 1] - first;
        if (rows > 0)
            r->m->isa->gemm(r->w[expert].dtype, r->w[expert].data, r->w->n_rows, r->w->n_cols, p,
                            p + n, r->x + first * ldx, ldx, rows, r->y + first * ldy, ldy, false);
        i += n;
    }
}

/* y += s B_e A_e x for the places [first, first + n) of one expert. */
static void expert_low_rank(const struct expert_run *r, const struct cpu_part *p, uint32_t expert,
                            uint32_t first, uint32_t n, float scale, float *v)
{
    const struct isa_table *isa = r->m->isa;
    size_t ldx = r->w->n_cols, ldy = r->w->n_rows;
    uint32_t n_panels = (p->d_out + ISA_PANEL - 1) / ISA_PANEL, run;
    for (uint32_t row = 0; row < n; row += ADAPTER_ROWS) {
        uint32_t rows = n - row < ADAPTER_ROWS ? n - row : ADAPTER_ROWS;
        const float *x = r->x + (first + row) * ldx;
        float *y = r->y + (first + row) * ldy + p->row0;
        for (uint32_t i = 0; i < p->rank; i += run) {
            const char *a = cpu_piece_at(&p->a, expert * p->rank + i, &run);
            run = run < p->rank - i ? run : p->rank - i;
            isa->dots(p->a_dtype, a, p->a.unit, run, p->d_in, x, ldx, rows, v + i, p->rank);
        }
        for (uint32_t i = 0; i < rows * p->rank; i++)
            v[i] *= scale * p->scale;
        for (uint32_t u = 0; u < n_panels; u += run) {
            const char *b = cpu_piece_at(&p->b, expert * n_panels + u, &run);
            run = run < n_panels - u ? run : n_panels - u;
            isa->gemm(p->b_dtype, b, p->d_out - u * ISA_PANEL, p->rank, 0, run, v, p->rank, rows,
                      y + u * ISA_PANEL, ldy, true);
        }
    }
}

/* First place of an expert whose row is not below `row`. */
static uint32_t lower_place(const struct cpu_moe *e, uint32_t expert, uint32_t row)
{
    uint32_t low = e->first[expert], high = e->first[expert + 1];
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (e->row[mid] < row)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static void expert_adapters(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    const struct expert_run *r = arg;
    struct device_model *m = r->m;
    float *v = m->thread_scratch + thread_idx * m->thread_floats;
    for (uint32_t expert = (uint32_t)begin; expert < end; expert++) {
        for (uint32_t j = 0; j < r->s->counts->n_segments; j++) {
            const struct step_segment *g = &r->s->rows.items[j];
            unsigned n;
            const struct cpu_part *p = cpu_slot_parts(m, g->slot, r->layer, r->site, &n);
            uint32_t first = lower_place(m->moe, expert, g->row0);
            uint32_t last = lower_place(m->moe, expert, g->row0 + g->n_rows);
            for (unsigned i = 0; i < n && first < last; i++)
                expert_low_rank(r, &p[i], expert, first, last - first, g->scale, v);
        }
    }
}

static void run_experts(struct device_model *m, const struct op_step *s, uint32_t layer,
                        enum site site, const float *x, float *y)
{
    const struct cpu_matrix *w = m->layers[layer].experts[site == SITE_EXPERTS_DOWN];
    struct expert_run r = {m, s, layer, site, w, x, y};
    size_t n_panels = (w->n_rows + ISA_PANEL - 1) / ISA_PANEL;
    worker_pool_run(m->pool, m->config->n_experts * n_panels, 1, expert_panels, &r);
    if (s->kinds & ADAPTER_EXPERTS)
        worker_pool_run(m->pool, m->config->n_experts, 1, expert_adapters, &r);
}

// ---- the site
// ------------------------------------------------------------------------------------

static void activate_places(struct device_model *m, uint32_t n)
{
    const struct cpu_moe *e = m->moe;
    size_t d = m->config->d_expert;
    for (uint32_t i = 0; i < n; i++) {
        const float *gate = e->gate_up + i * 2 * d;
        if (m->config->activation == ACTIVATION_SILU)
            m->isa->silu_mul(gate, gate + d, e->act + i * d, d);
        else
            m->isa->gelu_tanh_mul(gate, gate + d, e->act + i * d, d);
    }
}

int cpu_moe(struct op_context *ctx, const struct op_step *s, uint32_t layer, const void *h, void *y)
{
    struct device_model *m = cpu_context(ctx);
    const struct model_config *c = m->config;
    struct cpu_moe *e = m->moe;
    uint32_t n_rows = s->counts->n_rows, used = c->n_experts_used;
    size_t d = c->d_model;
    int rc = sites_linear(&m->run, s, layer, SITE_ROUTER, OP_ROWS, h, e->router);
    if (rc != 0)
        return rc;
    for (uint32_t row = 0; row < n_rows; row++)
        route_row(c, e->router + (size_t)row * c->n_experts, e->chosen + row * used,
                  e->weight + row * used);
    sort_places(e, c, n_rows);
    for (uint32_t i = 0; i < n_rows * used; i++)
        memcpy(e->x + i * d, (const float *)h + e->row[i] * d, d * sizeof(float));
    run_experts(m, s, layer, SITE_EXPERTS_GATE_UP, e->x, e->gate_up);
    activate_places(m, n_rows * used);
    run_experts(m, s, layer, SITE_EXPERTS_DOWN, e->act, e->y);
    for (uint32_t row = 0; row < n_rows; row++) {
        float *to = (float *)y + row * d;
        memset(to, 0, d * sizeof *to);
        for (uint32_t i = 0; i < used; i++)
            m->isa->axpy(to, e->y + e->place[row * used + i] * d, e->weight[row * used + i], d);
    }
    return 0;
}
