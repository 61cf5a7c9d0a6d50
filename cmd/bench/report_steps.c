/* decode, prefill and load. */
#include <stdio.h>
#include <string.h>

#include "cmd/bench/bench_report.h"
#include "cmd/cmd.h"
#include "cmd/table.h"

static void ranks_text(const struct bench_model *b, char *buf, size_t n)
{
    size_t at = 0;
    for (uint32_t i = 0; i < b->opt.n_ranks && at < n; i++)
        at += (size_t)snprintf(buf + at, n - at, "%s%u", i ? "," : "", b->opt.ranks[i]);
}

void bench_print_head(const struct bench_model *b)
{
    char ranks[96] = "";
    ranks_text(b, ranks, sizeof ranks);
    printf("%s on %s, rank %s, read bandwidth %.0f GB/s\n", b->opt.shape, b->device, ranks,
           b->read_bytes_s / 1e9);
}

json_t *bench_head_json(const struct bench_model *b)
{
    json_t *ranks = json_array();
    for (uint32_t i = 0; i < b->opt.n_ranks; i++)
        json_array_append_new(ranks, json_integer(b->opt.ranks[i]));
    return json_pack("{s:s, s:s, s:o, s:f}", "shape", b->opt.shape, "device", b->device, "ranks",
                     ranks, "read_gb_per_s", b->read_bytes_s / 1e9);
}

const char *bench_cell(char *buf, double value, int digits)
{
    if (value > 0)
        snprintf(buf, BENCH_CELL, "%.*f", digits, value);
    else
        snprintf(buf, BENCH_CELL, "-");
    return buf;
}

uint32_t bench_mixes_of(const struct bench_request *q, uint32_t n, struct bench_mix *mixes)
{
    if (q->n_mixes) {
        memcpy(mixes, q->mixes, q->n_mixes * sizeof *mixes);
        return q->n_mixes;
    }
    uint32_t most = n < q->model.n_adapters ? n : q->model.n_adapters, count = 0;
    mixes[count++] = (struct bench_mix){BENCH_NONE, 0};
    mixes[count++] = (struct bench_mix){BENCH_IDENTICAL, 0};
    if (most > 4)
        mixes[count++] = (struct bench_mix){BENCH_UNIFORM, 4};
    if (most > 1)
        mixes[count++] = (struct bench_mix){BENCH_DISTINCT, 0};
    return count;
}

uint32_t bench_largest(const struct bench_request *q)
{
    uint32_t most = 1;
    for (uint32_t i = 0; i < q->n_sizes; i++)
        most = q->sizes[i] > most ? q->sizes[i] : most;
    return most;
}

int bench_finish(const struct bench_request *q, const struct bench_model *b, struct table *t,
                 json_t *lines, const char *name, int rc)
{
    if (rc == 0 && q->json) {
        json_t *all = bench_head_json(b);
        json_object_set(all, name, lines);
        cmd_print_json(all);
    } else if (rc == 0) {
        table_print(t, stdout);
    }
    json_decref(lines);
    table_free(t);
    return rc;
}

// ---- decode, prefill

static json_t *step_line(const struct bench_request *q, const struct bench_model *b, bool prefill,
                         uint32_t n, const struct bench_mix *mix, const struct bench_times *r,
                         uint32_t i, struct table *t)
{
    char name[BENCH_MIX_NAME], cells[9][BENCH_CELL];
    double s = r->seconds[i];
    double floor = prefill ? 0 : bench_floor(b, r->distinct[i], (uint64_t)n * q->context);
    double extra = b->read_bytes_s > 0 && r->distinct[i]
                       ? (double)bench_ab_bytes(b, r->distinct[i]) / b->read_bytes_s
                       : 0;
    double added = r->distinct[i] ? s - r->seconds[0] : 0;
    bench_mix_name(mix, name);
    snprintf(cells[0], BENCH_CELL, "%u", n);
    snprintf(cells[1], BENCH_CELL, "%u", r->distinct[i]);
    const char *row[] = {cells[0],
                         name,
                         cells[1],
                         bench_cell(cells[2], s * 1e3, 3),
                         bench_cell(cells[3], n / s, 0),
                         bench_cell(cells[4], r->ratio[i], 3),
                         bench_cell(cells[5], floor * 1e3, 3),
                         bench_cell(cells[6], floor > 0 ? s / floor : 0, 2),
                         bench_cell(cells[7], extra * 1e3, 3),
                         bench_cell(cells[8], !prefill && extra > 0 ? added / extra : 0, 2),
                         NULL};
    table_row(t, row);
    return json_pack("{s:i, s:s, s:i, s:f, s:f, s:f, s:f, s:f, s:f}", "n", (int)n, "mix", name,
                     "adapters", (int)r->distinct[i], "ms", s * 1e3, "tokens_per_s", n / s, "ratio",
                     r->ratio[i], "floor_ms", floor * 1e3, "adapters_floor_ms", extra * 1e3,
                     "added_ms", added * 1e3);
}

static int report_steps(struct bench_request *q, bool prefill, struct err *err)
{
    static const char *const headings[] = {">N",         "MIX",         ">ADAPTERS", ">MS",
                                           ">TOKENS/S",  ">÷ NONE",     ">FLOOR MS", ">÷ FLOOR",
                                           ">A,B FLOOR", ">ADDED ÷ IT", NULL};
    struct bench_model b;
    uint32_t most = bench_largest(q);
    q->model.max_rows = most;
    q->model.max_sequences = prefill ? (most + q->context - 1) / q->context : most;
    q->model.context = q->context;
    struct table *t = table_open(headings);
    json_t *lines = json_array();
    int rc = bench_open(&b, &q->model, err);
    if (rc == 0 && !q->json)
        bench_print_head(&b);
    for (uint32_t i = 0; rc == 0 && i < q->n_sizes && !cmd_interrupted(); i++) {
        struct bench_mix mixes[BENCH_MAX_CASES];
        struct bench_times r;
        uint32_t n = bench_mixes_of(q, q->sizes[i], mixes);
        rc = prefill ? bench_prefill(&b, q->sizes[i], mixes, n, q->rounds, q->steps, &r, err)
                     : bench_decode(&b, q->sizes[i], q->context, mixes, n, q->rounds, q->steps, &r,
                                    err);
        for (uint32_t j = 0; rc == 0 && j < n; j++)
            json_array_append_new(lines,
                                  step_line(q, &b, prefill, q->sizes[i], &mixes[j], &r, j, t));
    }
    rc = bench_finish(q, &b, t, lines, "steps", rc);
    bench_close(&b);
    return rc;
}

int bench_report_decode(struct bench_request *q, struct err *err)
{
    return report_steps(q, false, err);
}

int bench_report_prefill(struct bench_request *q, struct err *err)
{
    return report_steps(q, true, err);
}

// ---- load

int bench_report_load(struct bench_request *q, struct err *err)
{
    struct bench_model b;
    double seconds = 0;
    q->model.max_rows = q->model.max_sequences = 1;
    q->model.context = 1;
    int rc = bench_open(&b, &q->model, err);
    if (rc == 0)
        rc = bench_load(&b, q->rounds, &seconds, err);
    double mb = (double)b.images[0].bytes / 1e6, rate = seconds > 0 ? mb / 1e3 / seconds : 0;
    if (rc == 0 && q->json) {
        json_t *all = bench_head_json(&b);
        json_object_set_new(all, "mb", json_real(mb));
        json_object_set_new(all, "ms", json_real(seconds * 1e3));
        json_object_set_new(all, "gb_per_s", json_real(rate));
        cmd_print_json(all);
    } else if (rc == 0) {
        bench_print_head(&b);
        printf("adapter of %.1f MB, host to device: %.3f ms, %.1f GB/s\n", mb, seconds * 1e3, rate);
    }
    bench_close(&b);
    return rc;
}
