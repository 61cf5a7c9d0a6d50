/*
 * lora bench: decode steps, prefill and adapter loads on this machine, with a synthetic base and
 * adapters of a given shape; every line with its bytes, their floor and the ratio to it.
 */
#include <stdio.h>
#include <string.h>

#include "cmd/bench/bench.h"
#include "cmd/cmd.h"
#include "cmd/table.h"

static struct {
    const char *device, *shape, *sequences;
    int64_t rank, context, adapters, rounds, steps, threads;
    bool no_graphs;
} o = {.device = "auto",
       .shape = "llama-3.1-8b",
       .sequences = "1,8,32,64",
       .rank = 16,
       .context = 512,
       .adapters = 64,
       .rounds = 7,
       .steps = 20};

static const struct option table[] = {
    {.long_name = "device",
     .type = OPTION_STRING,
     .value = &o.device,
     .value_name = "DEVICE",
     .help = "auto, cpu or cuda:N."},
    {.long_name = "shape",
     .type = OPTION_STRING,
     .value = &o.shape,
     .value_name = "NAME",
     .help = "The base's shape: llama-3.1-8b, llama-3.2-1b, qwen2.5-7b, small."},
    {.long_name = "rank",
     .type = OPTION_INT,
     .value = &o.rank,
     .min = 1,
     .max = 1024,
     .value_name = "R",
     .help = "Rank of the synthetic adapters, on all linear modules."},
    {.long_name = "adapters",
     .type = OPTION_INT,
     .value = &o.adapters,
     .min = 1,
     .max = BENCH_MAX_SLOTS,
     .value_name = "N",
     .help = "Adapters that are resident, the most that a mix may use."},
    {.long_name = "sequences",
     .type = OPTION_STRING,
     .value = &o.sequences,
     .value_name = "LIST",
     .help = "Sequences of a decode step, or tokens of a prefill: 1,8,32."},
    {.long_name = "context",
     .type = OPTION_INT,
     .value = &o.context,
     .min = 1,
     .max = 1 << 20,
     .value_name = "N",
     .help = "Tokens behind every decoding sequence; the longest sequence of a prefill."},
    {.long_name = "rounds",
     .type = OPTION_INT,
     .value = &o.rounds,
     .min = 1,
     .max = 64,
     .value_name = "N",
     .help = "Interleaved runs; the medians are printed."},
    {.long_name = "steps",
     .type = OPTION_INT,
     .value = &o.steps,
     .min = 1,
     .max = 10000,
     .value_name = "N",
     .help = "Steps of a run."},
    {.long_name = "threads",
     .type = OPTION_INT,
     .value = &o.threads,
     .min = 0,
     .max = 1024,
     .value_name = "N",
     .help = "CPU threads; 0: all."},
    {.long_name = "no-cuda-graphs",
     .type = OPTION_FLAG,
     .value = &o.no_graphs,
     .help = "Launches kernel by kernel, for comparison."},
    {0}};

enum { MAX_SIZES = 16 };

static int parse_sizes(const char *text, uint32_t *sizes, uint32_t *n, struct err *err)
{
    *n = 0;
    for (const char *p = text; *p;) {
        unsigned v;
        int used;
        if (*n == MAX_SIZES || sscanf(p, "%u%n", &v, &used) != 1 || v == 0 || v > 65536)
            return err_set(err, ERR_USAGE, "--sequences %s: want numbers of 1…65536, as 1,8,32",
                           text);
        sizes[(*n)++] = v;
        p += used + (p[used] == ',');
        if (p[-1] != ',' && *p)
            return err_set(err, ERR_USAGE, "--sequences %s: want numbers, as 1,8,32", text);
    }
    return *n ? 0 : err_set(err, ERR_USAGE, "--sequences is empty");
}

/* The mixes that n rows can have: none, one, four, all different. */
static uint32_t list_mixes(struct bench_mix *mixes, uint32_t n)
{
    uint32_t most = n < (uint32_t)o.adapters ? n : (uint32_t)o.adapters, count = 0;
    mixes[count++] = (struct bench_mix){"none", 0};
    mixes[count++] = (struct bench_mix){"one", 1};
    if (most > 4)
        mixes[count++] = (struct bench_mix){"four", 4};
    if (most > 1)
        mixes[count++] = (struct bench_mix){"distinct", most};
    return count;
}

static json_t *print_line(const struct bench_model *b, bool prefill, uint32_t n,
                          const struct bench_mix *mix, double seconds, double ratio,
                          struct table *t)
{
    double floor = prefill ? 0 : bench_floor(b, mix->n_adapters, (uint64_t)n * (uint64_t)o.context);
    char cells[8][32];
    snprintf(cells[0], sizeof cells[0], "%u", n);
    snprintf(cells[1], sizeof cells[1], "%s", mix->name);
    snprintf(cells[2], sizeof cells[2], "%u", mix->n_adapters);
    snprintf(cells[3], sizeof cells[3], "%.3f", seconds * 1e3);
    snprintf(cells[4], sizeof cells[4], "%.0f", n / seconds);
    snprintf(cells[5], sizeof cells[5], "%.3f", ratio);
    snprintf(cells[6], sizeof cells[6], floor > 0 ? "%.3f" : "-", floor * 1e3);
    snprintf(cells[7], sizeof cells[7], floor > 0 ? "%.2f" : "-", floor > 0 ? seconds / floor : 0);
    const char *row[9];
    for (int i = 0; i < 8; i++)
        row[i] = cells[i];
    row[8] = NULL;
    table_row(t, row);
    return json_pack("{s:i, s:s, s:i, s:f, s:f, s:f, s:f}", "n", (int)n, "mix", mix->name,
                     "adapters", (int)mix->n_adapters, "ms", seconds * 1e3, "tokens_per_s",
                     n / seconds, "ratio", ratio, "floor_ms", floor * 1e3);
}

static int run_sizes(struct cmd_context *ctx, struct bench_model *b, bool prefill,
                     const uint32_t *sizes, uint32_t n_sizes, struct err *err)
{
    static const char *const headings[] = {">N",      "MIX",       ">ADAPTERS", ">MS", ">TOKENS/S",
                                           ">÷ NONE", ">FLOOR MS", ">÷ FLOOR",  NULL};
    struct table *t = table_open(headings);
    json_t *lines = json_array();
    int rc = t && lines ? 0 : err_set(err, ERR_NO_MEMORY, "no memory for a table");
    for (uint32_t i = 0; rc == 0 && i < n_sizes && !cmd_interrupted(); i++) {
        struct bench_mix mixes[BENCH_MAX_CASES];
        double seconds[BENCH_MAX_CASES], ratio[BENCH_MAX_CASES];
        uint32_t n = list_mixes(mixes, sizes[i]);
        rc = prefill ? bench_prefill(b, sizes[i], mixes, n, (uint32_t)o.rounds, (uint32_t)o.steps,
                                     seconds, ratio, err)
                     : bench_decode(b, sizes[i], (uint32_t)o.context, mixes, n, (uint32_t)o.rounds,
                                    (uint32_t)o.steps, seconds, ratio, err);
        for (uint32_t j = 0; rc == 0 && j < n; j++)
            json_array_append_new(
                lines, print_line(b, prefill, sizes[i], &mixes[j], seconds[j], ratio[j], t));
    }
    if (rc == 0 && ctx->json)
        cmd_print_json(json_pack("{s:s, s:f, s:O}", "shape", o.shape, "read_gb_per_s",
                                 b->read_bytes_s / 1e9, "steps", lines));
    else if (rc == 0)
        table_print(t, stdout);
    json_decref(lines);
    table_free(t);
    return rc;
}

static int run_load(struct cmd_context *ctx, struct bench_model *b, struct err *err)
{
    double seconds;
    int rc = bench_load(b, (uint32_t)o.rounds, &seconds, err);
    if (rc)
        return rc;
    double mb = (double)b->image_bytes / 1e6, rate = mb / 1e3 / seconds;
    if (ctx->json)
        cmd_print_json(
            json_pack("{s:f, s:f, s:f}", "mb", mb, "ms", seconds * 1e3, "gb_per_s", rate));
    else
        printf("adapter of %.1f MB, host to device: %.3f ms, %.1f GB/s\n", mb, seconds * 1e3, rate);
    return 0;
}

static int open_bench(struct bench_model *b, bool prefill, const uint32_t *sizes, uint32_t n_sizes,
                      struct err *err)
{
    uint32_t most = 1;
    for (uint32_t i = 0; i < n_sizes; i++)
        most = sizes[i] > most ? sizes[i] : most;
    uint32_t context = (uint32_t)o.context;
    struct bench_options opt = {.device = o.device,
                                .shape = o.shape,
                                .rank = (uint32_t)o.rank,
                                .n_adapters = (uint32_t)o.adapters,
                                .max_rows = most,
                                .max_sequences = prefill ? (most + context - 1) / context : most,
                                .context = context,
                                .n_threads = (unsigned)o.threads,
                                .no_graphs = o.no_graphs};
    return bench_open(b, &opt, err);
}

static int run(struct cmd_context *ctx, struct err *err)
{
    const char *what = ctx->args[0];
    bool prefill = strcmp(what, "prefill") == 0, load = strcmp(what, "load") == 0;
    uint32_t sizes[MAX_SIZES], n_sizes = 0;
    struct bench_model b;
    if (!prefill && !load && strcmp(what, "decode") != 0)
        return err_set(err, ERR_USAGE, "bench %s: not known; want decode, prefill or load", what);
    int rc = parse_sizes(o.sequences, sizes, &n_sizes, err);
    if (rc)
        return rc;
    rc = open_bench(&b, prefill, sizes, load ? 1 : n_sizes, err);
    if (rc == 0 && !ctx->json)
        printf("%s, rank %u, read bandwidth %.0f GB/s\n", o.shape, (unsigned)o.rank,
               b.read_bytes_s / 1e9);
    if (rc == 0)
        rc = load ? run_load(ctx, &b, err) : run_sizes(ctx, &b, prefill, sizes, n_sizes, err);
    bench_close(&b);
    return rc;
}

const struct command command_bench = {
    .name = "bench",
    .arguments = "decode|prefill|load",
    .summary = "measure steps and loads on this machine, with synthetic models",
    .description =
        "Builds a base and adapters of a shape out of random numbers and times them through "
        "the back end: decode steps, prefill steps, adapter loads. A line gives the mix of "
        "adapters, the time, the ratio to the same step without adapters, and for decode the "
        "time that its bytes take at the read bandwidth measured in the same run.",
    .examples = "lora bench decode --shape small --device cpu --adapters 8\n"
                "lora bench prefill --sequences 2048,8192 --context 2048",
    .min_args = 1,
    .max_args = 1,
    .options = table,
    .run = run,
};
