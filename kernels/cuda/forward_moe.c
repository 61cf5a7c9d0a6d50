/*
 * A layer's mixture of experts: router -> which experts, which places -> their gate_up with the
 * activation -> their down -> the sum over a row's experts. Six launches, three more with adapters
 * (their A of router, gate_up and down; B rides in the products). All of it may be recorded.
 */
#include <string.h>

#include "kernels/cuda/cuda_impl.h"

enum { V_COLUMNS = 256, SMALL_TILE = 8 };

int cuda_moe_site(enum site site)
{
    return site == SITE_ROUTER            ? 0
           : site == SITE_EXPERTS_GATE_UP ? 1
           : site == SITE_EXPERTS_DOWN    ? 2
                                          : -1;
}

// ---- memory

struct wanted {
    void *to; // address of the pointer
    uint64_t bytes;
};

enum { N_WANTED = 13 };

/* Columns of v for the places of a small step: every rank there is. */
static uint64_t v_values(const struct model_config *c, const struct step_limits *l)
{
    uint64_t small = (uint64_t)CU_SMALL_ROWS * c->n_experts_used * LIMIT_RANK;
    uint64_t large = (uint64_t)l->max_rows * c->n_experts_used * V_COLUMNS;
    return small > large ? small : large;
}

static void list_wanted(struct cuda_moe *e, const struct model_config *c,
                        const struct step_limits *l, struct wanted w[N_WANTED])
{
    uint64_t rows = l->max_rows > CU_SMALL_ROWS ? l->max_rows : CU_SMALL_ROWS + 1;
    uint64_t places = rows * c->n_experts_used, blocks = rows / CU_ROUTE_ROWS + 1;
    uint64_t tiles = cu_route_tiles((uint32_t)rows, c->n_experts, c->n_experts_used, SMALL_TILE);
    const struct wanted all[N_WANTED] = {
        {&e->sites, (uint64_t)l->max_slots * c->n_layers * CUDA_MOE_SITES * sizeof *e->sites + 4},
        {&e->router, rows * c->n_experts * 4},
        {&e->chosen, places * 4},
        {&e->place, places * 4},
        {&e->place_row, places * 4},
        {&e->weight, places * 4},
        {&e->counts, blocks * c->n_experts * 4},
        {&e->tiles, tiles * sizeof *e->tiles},
        {&e->n_tiles, 4},
        {&e->act, places * c->d_expert * 2},
        {&e->y, places * c->d_model * 2},
        {&e->v, v_values(c, l) * 2},
        {&e->out, rows * c->d_model * 4}};
    memcpy(w, all, sizeof all);
}

uint64_t cuda_moe_bytes(const struct model_config *c, const struct step_limits *l)
{
    struct cuda_moe none;
    struct wanted w[N_WANTED];
    uint64_t sum = 0;
    if (!c->n_experts)
        return 0;
    list_wanted(&none, c, l, w);
    for (int i = 0; i < N_WANTED; i++)
        sum += w[i].bytes;
    return sum;
}

int cuda_moe_open(struct device_model *m, struct err *err)
{
    struct wanted w[N_WANTED];
    if (!m->config->n_experts)
        return 0;
    m->moe.stride = m->config->n_layers * CUDA_MOE_SITES;
    m->moe.v_values = v_values(m->config, &m->limits);
    list_wanted(&m->moe, m->config, &m->limits, w);
    int rc = 0;
    for (int i = 0; rc == 0 && i < N_WANTED; i++)
        rc = cuda_check(cudaMalloc((void **)w[i].to, w[i].bytes), "memory for experts", err);
    return rc ? rc : cuda_check(cudaMemset(m->moe.sites, 0, w[0].bytes), "clearing memory", err);
}

void cuda_moe_free(struct device_model *m)
{
    struct wanted w[N_WANTED];
    list_wanted(&m->moe, m->config, &m->limits, w);
    for (int i = 0; m->config->n_experts && i < N_WANTED; i++)
        cudaFree(*(void **)w[i].to);
}

bool cuda_moe_fits(const struct device_model *m, uint32_t rows, uint32_t v_width)
{
    uint64_t width = rows <= CU_SMALL_ROWS ? LIMIT_RANK : v_width;
    return !m->config->n_experts ||
           (v_width <= width && rows * m->config->n_experts_used * width <= m->moe.v_values);
}

// ---- the layer

/* Places of a tile: most experts' rows in one, so that their weights are read once. */
static uint32_t tile_for(const struct model_config *c, uint32_t t)
{
    uint32_t places = t * c->n_experts_used, each = places / c->n_experts;
    return each <= 4    ? SMALL_TILE
           : each <= 10 ? 16
           : each <= 24 ? 32
           : each < 96  ? 64
                        : CU_MAX_TILE;
}

/* The rows of the step whose owner replaces the router. */
static int replace_router(struct device_model *m, const struct cuda_run *run, uint32_t layer)
{
    const struct model_config *c = m->config;
    for (uint32_t i = 0; i < run->step->n_segments; i++) {
        const struct step_segment *s = &run->step->segments[i];
        const struct cuda_slot *slot = &m->slots[s->slot];
        for (uint32_t j = 0; j < slot->n_replaced; j++) {
            const struct cuda_replaced *p = &slot->replaced[j];
            if (p->site != SITE_ROUTER || p->layer != layer)
                continue;
            struct cu_replace r = {.x = m->h,
                                   .w = p->full->matrix.data,
                                   .n_out = p->full->matrix.n_rows,
                                   .k = c->d_model,
                                   .row0 = s->row0,
                                   .n_rows = s->n_rows,
                                   .y = {.t = run->rows, .n = c->n_experts, .y = m->moe.router}};
            CUDA_TRY(cu_replace_rows(&r, m->compute));
        }
    }
    return 0;
}

static int route(struct device_model *m, const struct cuda_run *run, const struct cu_rows *r,
                 const struct cu_grouped *router, uint32_t tile)
{
    struct cuda_moe *e = &m->moe;
    struct cu_route to = {.logits = e->router,
                          .t = run->rows,
                          .n_rows = r->n_rows,
                          .n_experts = m->config->n_experts,
                          .n_used = m->config->n_experts_used,
                          .norm_topk = m->config->norm_topk,
                          .tile = tile,
                          .kinds = run->kinds,
                          .segments = r->segments,
                          .n_segments = r->n_segments,
                          .owner = r->owner,
                          .sites = router->sites,
                          .site_stride = e->stride,
                          .chosen = e->chosen,
                          .place = e->place,
                          .weight = e->weight,
                          .place_row = e->place_row,
                          .tiles = e->tiles,
                          .n_tiles = e->n_tiles,
                          .counts = e->counts};
    return cu_route_rows(&to, m->compute);
}

static int product(const struct cu_grouped *g, enum cu_store store, void *y, cudaStream_t stream)
{
    CUDA_TRY(cu_grouped_shrink(g, stream));
    return cu_grouped_gemm(g, store, y, stream);
}

int cuda_moe_forward(struct device_model *m, const struct cuda_run *run, const struct cu_rows *r,
                     const uint32_t *columns, uint32_t layer, struct cu_expand *out)
{
    const struct model_config *c = m->config;
    const struct cuda_layer *l = &m->layers[layer];
    struct cuda_moe *e = &m->moe;
    uint32_t t = run->rows, rows_tile = t <= 128 ? SMALL_TILE : 16;
    bool gelu = c->activation == ACTIVATION_GELU_TANH;
    struct cu_grouped g = {.w = l->router.data,
                           .x = m->h,
                           .n = c->n_experts,
                           .k = c->d_model,
                           .n_rows = r->n_rows,
                           .tile = rows_tile,
                           .tile_bound = (t + rows_tile - 1) / rows_tile,
                           .segments = r->segments,
                           .n_segments = r->n_segments,
                           .columns = columns,
                           .sites = e->sites + layer * CUDA_MOE_SITES,
                           .site_stride = e->stride,
                           .v = e->v,
                           .v_width = t <= CU_SMALL_ROWS ? LIMIT_RANK : run->v_width};
    CUDA_TRY(product(&g, CU_STORE_F32, e->router, m->compute));
    if (run->replaces)
        CUDA_TRY(replace_router(m, run, layer));
    uint32_t tile = tile_for(c, t);
    CUDA_TRY(route(m, run, r, &g, tile));
    g.tile = tile;
    g.tiles = e->tiles;
    g.n_tiles = e->n_tiles;
    g.tile_bound = cu_route_tiles(t, c->n_experts, c->n_experts_used, tile);
    g.row = g.x_row = e->place_row;
    g.w = l->experts[0].data;
    g.n = 2 * c->d_expert;
    g.sites++;
    CUDA_TRY(product(&g, gelu ? CU_STORE_GELU : CU_STORE_SILU, e->act, m->compute));
    g.w = l->experts[1].data;
    g.x = e->act;
    g.x_row = NULL;
    g.n = c->d_model;
    g.k = c->d_expert;
    g.sites++;
    CUDA_TRY(product(&g, CU_STORE_BF16, e->y, m->compute));
    *out = (struct cu_expand){.t = t, .n = c->d_model, .y = e->out};
    return cu_moe_combine(e->y, e->place, e->weight, r->n_rows, t, c->n_experts_used, c->d_model,
                          e->out, m->compute);
}
