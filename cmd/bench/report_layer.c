/* layer and sgmv: the four products of a layer, and what A and B add to them. */
#include <stdio.h>
#include <string.h>

#include "cmd/bench/bench_report.h"
#include "cmd/cmd.h"

/* Rows beyond are prompts, bound by arithmetic and not by bytes. */
enum { LAYER_DECODE_ROWS = 512, LAYER_PROMPT = 2048 };

static void open_limits(struct bench_request *q)
{
    uint32_t most = bench_largest(q), decode = 0;
    for (uint32_t i = 0; i < q->n_sizes; i++)
        decode = q->sizes[i] <= LAYER_DECODE_ROWS && q->sizes[i] > decode ? q->sizes[i] : decode;
    uint32_t prompts = (most + LAYER_PROMPT - 1) / LAYER_PROMPT;
    q->model.max_rows = most;
    q->model.max_sequences = prompts > decode ? prompts : decode;
    // Without attention it is all one how prompts are cut: no more pages than the largest needs.
    q->model.context = (most + q->model.max_sequences - 1) / q->model.max_sequences;
}

static json_t *layer_json(uint32_t n, const char *mix, const struct bench_layer_times *l,
                          double base_floor)
{
    return json_pack("{s:i, s:s, s:i, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "n", (int)n, "mix", mix,
                     "adapters", (int)l->distinct, "layer_us", l->both * 1e6, "base_us",
                     l->base * 1e6, "added_us", l->distinct ? (l->both - l->base) * 1e6 : 0.0,
                     "alone_us", l->alone * 1e6, "floor_us", l->floor * 1e6, "ab_floor_us",
                     l->ab_floor * 1e6, "base_floor_us", base_floor * 1e6);
}

static double over(double a, double b)
{
    return b > 0 ? a / b : 0;
}

// ---- layer

static json_t *layer_line(const struct bench_model *b, uint32_t n, const struct bench_mix *mix,
                          const struct bench_layer_times *l, struct table *t)
{
    char name[BENCH_MIX_NAME], cells[9][BENCH_CELL];
    double added = l->distinct ? l->both - l->base : 0;
    double base_floor = b->read_bytes_s > 0 && n <= LAYER_DECODE_ROWS
                            ? (double)b->layer_bytes / b->read_bytes_s
                            : 0;
    bench_mix_name(mix, name);
    snprintf(cells[0], BENCH_CELL, "%u", n);
    snprintf(cells[1], BENCH_CELL, "%u", l->distinct);
    if (l->distinct)
        snprintf(cells[7], BENCH_CELL, "%.1f %%", 100 * added / l->base);
    else
        snprintf(cells[7], BENCH_CELL, "-");
    const char *row[] = {
        cells[0],
        name,
        cells[1],
        bench_cell(cells[2], l->both * 1e6, 1),
        cells[7],
        bench_cell(cells[3], added * 1e6, 1),
        bench_cell(cells[4], l->alone * 1e6, 1),
        bench_cell(cells[5], (l->distinct ? l->floor : base_floor) * 1e6, 1),
        bench_cell(cells[6], l->distinct ? over(added, l->floor) : over(l->both, base_floor), 2),
        bench_cell(cells[8], over(l->alone, l->floor), 2),
        NULL};
    table_row(t, row);
    return layer_json(n, name, l, base_floor);
}

int bench_report_layer(struct bench_request *q, struct err *err)
{
    static const char *const headings[] = {">N",        "MIX",       ">ADAPTERS", ">LAYER US",
                                           ">OVERHEAD", ">ADDED US", ">ALONE US", ">FLOOR US",
                                           ">× FLOOR",  ">ALONE ×",  NULL};
    struct bench_model b;
    open_limits(q);
    struct table *t = table_open(headings);
    json_t *lines = json_array();
    int rc = bench_open(&b, &q->model, err);
    if (rc == 0 && !q->json)
        bench_print_head(&b);
    for (uint32_t i = 0; rc == 0 && i < q->n_sizes && !cmd_interrupted(); i++) {
        struct bench_mix mixes[BENCH_MAX_CASES];
        struct bench_layer_times l[BENCH_MAX_CASES];
        uint32_t n = bench_mixes_of(q, q->sizes[i], mixes);
        rc = bench_layer(&b, q->sizes[i], mixes, n, q->rounds, l, err);
        for (uint32_t j = 0; rc == 0 && j < n; j++)
            json_array_append_new(lines, layer_line(&b, q->sizes[i], &mixes[j], &l[j], t));
    }
    rc = bench_finish(q, &b, t, lines, "layers", rc);
    bench_close(&b);
    return rc;
}

// ---- sgmv

/* The cases that other engines' kernels were measured in; any other size has one adapter and as
 * many as it can have. */
static const struct {
    uint32_t n;
    struct bench_mix mix;
} sgmv_cases[] = {
    {1, {BENCH_IDENTICAL, 0}},    {8, {BENCH_IDENTICAL, 0}},    {8, {BENCH_DISTINCT, 0}},
    {32, {BENCH_IDENTICAL, 0}},   {32, {BENCH_UNIFORM, 4}},     {32, {BENCH_DISTINCT, 0}},
    {32, {BENCH_ZIPF, 0}},        {64, {BENCH_IDENTICAL, 0}},   {64, {BENCH_DISTINCT, 0}},
    {128, {BENCH_IDENTICAL, 0}},  {128, {BENCH_UNIFORM, 32}},   {256, {BENCH_UNIFORM, 4}},
    {256, {BENCH_DISTINCT, 0}},   {2048, {BENCH_IDENTICAL, 0}}, {2048, {BENCH_UNIFORM, 4}},
    {8192, {BENCH_IDENTICAL, 0}}, {8192, {BENCH_UNIFORM, 32}},
};

/* none, then the cases of n rows for which there are adapters enough. */
static uint32_t sgmv_mixes(const struct bench_request *q, uint32_t n, struct bench_mix *mixes)
{
    uint32_t count = 1;
    if (q->n_mixes)
        return bench_mixes_of(q, n, mixes);
    mixes[0] = (struct bench_mix){BENCH_NONE, 0};
    for (size_t i = 0; i < sizeof sgmv_cases / sizeof *sgmv_cases; i++) {
        const struct bench_mix *mix = &sgmv_cases[i].mix;
        uint32_t needs = mix->kind == BENCH_DISTINCT ? n : mix->n;
        if (sgmv_cases[i].n == n && needs <= q->model.n_adapters)
            mixes[count++] = *mix;
    }
    return count > 1 ? count : bench_mixes_of(q, n, mixes);
}

static json_t *sgmv_line(uint32_t n, const struct bench_mix *mix, const struct bench_layer_times *l,
                         struct table *t)
{
    char name[BENCH_MIX_NAME], cells[12][BENCH_CELL];
    double added = l->both - l->base;
    bench_mix_name(mix, name);
    snprintf(cells[0], BENCH_CELL, "%u", n);
    snprintf(cells[1], BENCH_CELL, "%u", l->distinct);
    table_row(t, (const char *[]){cells[0], name, cells[1], bench_cell(cells[2], l->floor * 1e6, 1),
                                  bench_cell(cells[3], l->alone * 1e6, 1),
                                  bench_cell(cells[4], over(l->alone, l->floor), 2),
                                  bench_cell(cells[5], added * 1e6, 1),
                                  bench_cell(cells[6], over(added, l->floor), 2),
                                  bench_cell(cells[7], l->ab_floor * 1e6, 1),
                                  bench_cell(cells[8], over(l->alone, l->ab_floor), 2),
                                  bench_cell(cells[9], over(added, l->ab_floor), 2),
                                  bench_cell(cells[10], l->both * 1e6, 1), NULL});
    json_t *line = layer_json(n, name, l, 0);
    json_object_del(line, "base_floor_us");
    return line;
}

int bench_report_sgmv(struct bench_request *q, struct err *err)
{
    static const char *const headings[] = {
        ">N",       "MIX",     ">ADAPTERS", ">FLOOR US", ">ALONE US", ">÷ FLOOR", ">ADDED US",
        ">÷ FLOOR", ">A,B US", ">ALONE ÷",  ">ADDED ÷",  ">LAYER US", NULL};
    struct bench_model b;
    open_limits(q);
    struct table *t = table_open(headings);
    json_t *lines = json_array();
    int rc = bench_open(&b, &q->model, err);
    if (rc == 0 && !q->json) {
        bench_print_head(&b);
        printf("ALONE: A and B launched by themselves; ADDED: the layer with them less the layer "
               "without, in turns\nFLOOR: bytes of A, B, one read of x, a read and a write of y; "
               "A,B: of A and B only\n");
    }
    for (uint32_t i = 0; rc == 0 && i < q->n_sizes && !cmd_interrupted(); i++) {
        struct bench_mix mixes[BENCH_MAX_CASES];
        struct bench_layer_times l[BENCH_MAX_CASES];
        uint32_t n = sgmv_mixes(q, q->sizes[i], mixes);
        rc = bench_layer(&b, q->sizes[i], mixes, n, q->rounds, l, err);
        for (uint32_t j = 1; rc == 0 && j < n; j++)
            json_array_append_new(lines, sgmv_line(q->sizes[i], &mixes[j], &l[j], t));
    }
    rc = bench_finish(q, &b, t, lines, "sgmv", rc);
    bench_close(&b);
    return rc;
}
