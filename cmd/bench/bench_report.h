/*
 * bench_report: one function a word of `lora bench`: opens what it needs, measures, prints a table
 * or one JSON object.
 */
#ifndef CMD_BENCH_BENCH_REPORT_H
#define CMD_BENCH_BENCH_REPORT_H

#include "cmd/bench/bench.h"
#include "cmd/table.h"

enum { BENCH_MAX_SIZES = 16 };

struct bench_request {
    struct bench_options model; // device, shape, ranks, adapters, threads, graphs
    uint32_t sizes[BENCH_MAX_SIZES], n_sizes;
    struct bench_mix mixes[BENCH_MAX_CASES];
    uint32_t n_mixes; // 0: what fits the size
    uint32_t counts[BENCH_MAX_SIZES], n_counts;
    uint32_t context, rounds, steps, n_prompt, n_new, n_requests;
    bool json;
};

int bench_report_decode(struct bench_request *q, struct err *err);
int bench_report_prefill(struct bench_request *q, struct err *err);
int bench_report_load(struct bench_request *q, struct err *err);
int bench_report_layer(struct bench_request *q, struct err *err);
int bench_report_sgmv(struct bench_request *q, struct err *err);
int bench_report_switch(struct bench_request *q, struct err *err);
int bench_report_offline(struct bench_request *q, struct err *err);
int bench_report_table(struct bench_request *q, struct err *err);

/* What stands over every result: shape, ranks, device, read bandwidth. */
void bench_print_head(const struct bench_model *b);
json_t *bench_head_json(const struct bench_model *b);
uint32_t bench_largest(const struct bench_request *q); // of the sizes
/* The mixes that n rows can have, none first: those that were asked for, else the usual ones. */
uint32_t bench_mixes_of(const struct bench_request *q, uint32_t n, struct bench_mix *mixes);
/* Prints the table, or the head's object with `lines` as `name`, when rc is 0; frees both. */
int bench_finish(const struct bench_request *q, const struct bench_model *b, struct table *t,
                 json_t *lines, const char *name, int rc);
/* A cell: a number with so many digits, "-" for one that is not known (<= 0). */
enum { BENCH_CELL = 32 };
const char *bench_cell(char *buf, double value, int digits);

#endif
