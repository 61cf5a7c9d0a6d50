/* switch, offline and table: whole requests, and the classic table. */
#include <stdio.h>
#include <string.h>

#include "cmd/bench/bench_report.h"
#include "cmd/cmd.h"
#include "cmd/table.h"

static uint32_t max_u32(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

// ---- switch

static void switch_row(struct table *t, const char *what, double rate, double ratio)
{
    char cells[2][BENCH_CELL];
    table_row(t, (const char *[]){what, bench_cell(cells[0], rate, 1),
                                  bench_cell(cells[1], ratio, 3), NULL});
}

static void print_switch(const struct bench_switch_times *r)
{
    static const char *const headings[] = {"ONE REQUEST IN FLIGHT", ">TOKENS/S", ">÷ NONE", NULL};
    struct table *t = table_open(headings);
    if (!t)
        return;
    switch_row(t, "without LoRA", r->none, 1);
    switch_row(t, "another adapter each, resident", r->resident, r->resident_ratio);
    switch_row(t, "another adapter each, copied from the host", r->loaded, r->loaded_ratio);
    table_print(t, stdout);
    table_free(t);
}

int bench_report_switch(struct bench_request *q, struct err *err)
{
    struct bench_model b;
    struct bench_switch_times r;
    q->model.max_rows = q->n_prompt;
    q->model.max_sequences = 1;
    q->model.context = q->n_prompt + q->n_new;
    int rc = bench_open(&b, &q->model, err);
    if (rc == 0)
        rc = bench_switch(&b, q->n_prompt, q->n_new, q->n_requests, q->rounds, &r, err);
    if (rc == 0 && q->json) {
        json_t *all = bench_head_json(&b);
        json_object_set_new(all, "switch",
                            json_pack("{s:i, s:i, s:f, s:f, s:f, s:f, s:f}", "prompt",
                                      (int)q->n_prompt, "new", (int)q->n_new, "none", r.none,
                                      "resident", r.resident, "loaded", r.loaded, "resident_ratio",
                                      r.resident_ratio, "loaded_ratio", r.loaded_ratio));
        cmd_print_json(all);
    } else if (rc == 0) {
        bench_print_head(&b);
        printf("requests of %u tokens that get %u\n", q->n_prompt, q->n_new);
        print_switch(&r);
    }
    bench_close(&b);
    return rc;
}

// ---- offline

static json_t *offline_line(const struct bench_request *q, const struct bench_offline_times *r,
                            const struct bench_offline_times *none, struct table *t)
{
    double total = r->prefill + r->decode, tokens = (double)q->sizes[0] * q->n_new;
    double read = (double)q->sizes[0] * q->n_prompt;
    char cells[8][BENCH_CELL];
    snprintf(cells[0], BENCH_CELL, "%u", r->distinct);
    const char *row[] = {cells[0],
                         bench_cell(cells[1], tokens / total, 0),
                         bench_cell(cells[2], read / r->prefill, 0),
                         bench_cell(cells[3], tokens / r->decode, 0),
                         bench_cell(cells[4], (none->prefill + none->decode) / total, 3),
                         bench_cell(cells[5], r->predicted > 0 ? tokens / r->predicted : 0, 0),
                         bench_cell(cells[6], r->predicted / total, 3),
                         NULL};
    table_row(t, row);
    return json_pack("{s:i, s:f, s:f, s:f, s:f}", "adapters", (int)r->distinct, "seconds", total,
                     "prefill_seconds", r->prefill, "tokens_per_s", tokens / total,
                     "predicted_tokens_per_s", r->predicted > 0 ? tokens / r->predicted : 0.0);
}

int bench_report_offline(struct bench_request *q, struct err *err)
{
    static const char *const headings[] = {">ADAPTERS", ">TOKENS/S",   ">IN/S", ">OUT/S",
                                           ">÷ NONE",   ">BYTE MODEL", ">÷ IT", NULL};
    enum { STEP_TOKENS = 8192 };
    struct bench_model b;
    struct bench_offline_times none, r;
    uint64_t all = (uint64_t)q->sizes[0] * q->n_prompt;
    q->model.n_adapters = 1;
    for (uint32_t i = 0; i < q->n_counts; i++)
        q->model.n_adapters = max_u32(q->model.n_adapters, q->counts[i]);
    q->model.max_rows = max_u32(all < STEP_TOKENS ? (uint32_t)all : STEP_TOKENS, q->n_prompt);
    q->model.max_rows = max_u32(q->model.max_rows, q->sizes[0]);
    q->model.max_sequences = q->sizes[0];
    q->model.context = q->n_prompt + q->n_new;
    struct table *t = table_open(headings);
    json_t *lines = json_array();
    int rc = bench_open(&b, &q->model, err);
    if (rc == 0) // the first pass warms up
        rc = bench_offline(&b, q->sizes[0], q->n_prompt, 2, 1, NULL, &none, err);
    if (rc == 0)
        rc = bench_offline(&b, q->sizes[0], q->n_prompt, q->n_new, 0, NULL, &none, err);
    if (rc == 0)
        json_array_append_new(lines, offline_line(q, &none, &none, t));
    for (uint32_t i = 0; rc == 0 && i < q->n_counts && !cmd_interrupted(); i++) {
        if (q->counts[i] == 0)
            continue;
        rc = bench_offline(&b, q->sizes[0], q->n_prompt, q->n_new, q->counts[i], &none, &r, err);
        if (rc == 0)
            json_array_append_new(lines, offline_line(q, &r, &none, t));
    }
    if (rc == 0 && q->json) {
        json_t *out = bench_head_json(&b);
        json_object_set(out, "offline", lines);
        cmd_print_json(out);
    } else if (rc == 0) {
        bench_print_head(&b);
        printf("%u sequences, %u tokens in, %u out\n", q->sizes[0], q->n_prompt, q->n_new);
        table_print(t, stdout);
    }
    json_decref(lines);
    table_free(t);
    bench_close(&b);
    return rc;
}

// ---- the classic table

enum { TABLE_BARE, TABLE_UNUSED, TABLE_ONE, TABLE_SEVERAL, TABLE_DISTINCT, TABLE_CASES };

static const struct {
    const char *key, *what;
    struct bench_mix mix;
} table_cases[TABLE_CASES] = {
    {"none", "without LoRA", {BENCH_NONE, 0}},
    {"unused", "with room for adapters, none in the batch", {BENCH_NONE, 0}},
    {"one", "one adapter for all", {BENCH_IDENTICAL, 0}},
    {"several", "four adapters in one batch", {BENCH_UNIFORM, 4}},
    {"distinct", "an adapter for each sequence", {BENCH_DISTINCT, 0}},
};

/* Steps of a base that has no room for adapters, and of one that has them, in turns. */
static int time_table(struct bench_model *bare, struct bench_model *b,
                      const struct bench_request *q, double *rate, double *ratio, struct err *err)
{
    double times[TABLE_CASES][BENCH_MAX_ROUNDS], ratios[TABLE_CASES][BENCH_MAX_ROUNDS];
    struct bench_plan plans[2];
    int rc = bench_plan_make(bare, &plans[0], q->sizes[0], 1, q->context, err);
    int rc2 = bench_plan_make(b, &plans[1], q->sizes[0], 1, q->context, rc ? NULL : err);
    rc = rc ? rc : rc2;
    for (uint32_t round = 0; rc == 0 && round <= q->rounds; round++) {
        for (int i = 0; rc == 0 && i < TABLE_CASES; i++) {
            struct bench_model *m = i == TABLE_BARE ? bare : b;
            struct bench_plan *p = &plans[i != TABLE_BARE];
            double s = 0;
            rc = bench_plan_mix(m, p, &table_cases[i].mix, err);
            if (rc == 0)
                rc = bench_run(m, p, round || q->steps < 3 ? q->steps : 3, &s, err);
            if (round == 0)
                continue; // warms up
            times[i][round - 1] = s;
            ratios[i][round - 1] = times[TABLE_BARE][round - 1] / s;
        }
    }
    for (int i = 0; rc == 0 && i < TABLE_CASES; i++) {
        rate[i] = q->sizes[0] / bench_median(times[i], q->rounds);
        ratio[i] = bench_median(ratios[i], q->rounds);
    }
    bench_plan_release(&plans[0]);
    bench_plan_release(&plans[1]);
    return rc;
}

static void table_line(struct table *t, json_t *lines, const char *key, const char *what,
                       double rate, double ratio)
{
    char cells[2][BENCH_CELL];
    snprintf(cells[1], BENCH_CELL, "%.1f %%", ratio * 100);
    table_row(t, (const char *[]){what, bench_cell(cells[0], rate, 1), cells[1], NULL});
    json_array_append_new(
        lines, json_pack("{s:s, s:f, s:f}", "case", key, "tokens_per_s", rate, "ratio", ratio));
}

static void print_table(const struct bench_request *q, const struct bench_model *b,
                        const double *rate, const double *ratio, const struct bench_switch_times *s)
{
    static const char *const headings[] = {"THROUGHPUT", ">TOKENS/S", ">OF WITHOUT", NULL};
    struct table *t = table_open(headings);
    json_t *lines = json_array();
    if (!t || !lines) {
        table_free(t);
        json_decref(lines);
        return;
    }
    for (int i = 0; i < TABLE_CASES; i++)
        table_line(t, lines, table_cases[i].key, table_cases[i].what, rate[i], ratio[i]);
    table_line(t, lines, "single", "one request in flight, without LoRA", s->none, 1);
    table_line(t, lines, "switching", "  a new adapter for each (switching)", s->loaded,
               s->loaded_ratio);
    table_row(t, (const char *[]){"after merging the hot adapter", "-", "not built", NULL});
    json_array_append_new(lines, json_pack("{s:s, s:n, s:n, s:s}", "case", "premerged",
                                           "tokens_per_s", "ratio", "reason", "not built"));
    if (q->json) {
        json_t *all = bench_head_json(b);
        json_object_set_new(all, "sequences", json_integer(q->sizes[0]));
        json_object_set_new(all, "context", json_integer(q->context));
        json_object_set(all, "table", lines);
        cmd_print_json(all);
    } else {
        bench_print_head(b);
        printf("%u sequences, context %u; ratios are medians of %u interleaved rounds\n",
               q->sizes[0], q->context, q->rounds);
        table_print(t, stdout);
    }
    table_free(t);
    json_decref(lines);
}

int bench_report_table(struct bench_request *q, struct err *err)
{
    struct bench_model bare = {0}, b = {0};
    struct bench_switch_times s;
    double rate[TABLE_CASES], ratio[TABLE_CASES];
    q->model.max_rows = max_u32(q->sizes[0], q->n_prompt);
    q->model.max_sequences = q->sizes[0];
    q->model.context = max_u32(q->context, q->n_prompt + q->n_new);
    struct bench_options without = q->model;
    without.bare = true;
    int rc = bench_open(&bare, &without, err);
    if (rc == 0)
        rc = bench_open(&b, &q->model, err);
    if (rc == 0)
        rc = time_table(&bare, &b, q, rate, ratio, err);
    bench_close(&bare);
    if (rc == 0)
        rc = bench_switch(&b, q->n_prompt, q->n_new, q->n_requests, q->rounds, &s, err);
    if (rc == 0)
        print_table(q, &b, rate, ratio, &s);
    bench_close(&b);
    return rc;
}
