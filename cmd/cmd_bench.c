/*
 * lora bench: decode steps, prefill, single layers, whole requests and adapter loads on this
 * machine, with a synthetic base and adapters of a given shape; lines with their bytes, their floor
 * and the ratio to it.
 */
#include <stdio.h>
#include <string.h>

#include "cmd/bench/bench_report.h"
#include "cmd/cmd.h"

static struct {
    const char *device, *shape, *sequences, *mix, *ranks, *counts;
    int64_t rank, context, adapters, rounds, steps, threads, prompt, new_tokens, requests;
    bool no_graphs, deterministic;
} o = {.device = "auto",
       .shape = "llama-3.1-8b",
       .counts = "1,4,32,256",
       .rank = 16,
       .context = 512,
       .adapters = 64,
       .rounds = 7,
       .steps = 20,
       .requests = 4};

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
    {.long_name = "ranks",
     .type = OPTION_STRING,
     .value = &o.ranks,
     .value_name = "LIST",
     .help = "Mixed ranks instead, dealt over the adapters: 8,16,64."},
    {.long_name = "adapters",
     .type = OPTION_INT,
     .value = &o.adapters,
     .min = 1,
     .max = BENCH_MAX_SLOTS,
     .value_name = "N",
     .help = "Adapters that are resident, the most that a mix may use."},
    {.long_name = "mix",
     .type = OPTION_STRING,
     .value = &o.mix,
     .value_name = "LIST",
     .help = "How rows are spread over adapters: identical, uniform:N, distinct, zipf. Default: "
             "what fits the size."},
    {.long_name = "sequences",
     .type = OPTION_STRING,
     .value = &o.sequences,
     .value_name = "LIST",
     .help = "Sequences of a decode step, rows of a layer, or tokens of a prefill: 1,8,32."},
    {.long_name = "context",
     .type = OPTION_INT,
     .value = &o.context,
     .min = 1,
     .max = 1 << 20,
     .value_name = "N",
     .help = "Tokens behind every decoding sequence; the longest sequence of a prefill."},
    {.long_name = "prompt",
     .type = OPTION_INT,
     .value = &o.prompt,
     .min = 0,
     .max = 1 << 16,
     .value_name = "N",
     .help = "switch, table, offline: tokens of a request's prompt (512; table 128)."},
    {.long_name = "new",
     .type = OPTION_INT,
     .value = &o.new_tokens,
     .min = 0,
     .max = 1 << 16,
     .value_name = "N",
     .help = "switch, table, offline: tokens that a request gets (64; offline 256)."},
    {.long_name = "requests",
     .type = OPTION_INT,
     .value = &o.requests,
     .min = 1,
     .max = 10000,
     .value_name = "N",
     .help = "switch, table: requests of a run."},
    {.long_name = "counts",
     .type = OPTION_STRING,
     .value = &o.counts,
     .value_name = "LIST",
     .help = "offline: numbers of adapters, beside none."},
    {.long_name = "rounds",
     .type = OPTION_INT,
     .value = &o.rounds,
     .min = 1,
     .max = BENCH_MAX_ROUNDS,
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
    {.long_name = "deterministic",
     .type = OPTION_FLAG,
     .value = &o.deterministic,
     .help = "Kernels whose order of summation does not depend on the batch."},
    {0}};

static int parse_list(const char *option, const char *text, uint32_t most, uint32_t max,
                      uint32_t *out, uint32_t *n, struct err *err)
{
    *n = 0;
    for (const char *p = text; *p;) {
        unsigned v;
        int used;
        if (*n == max || sscanf(p, "%u%n", &v, &used) != 1 || v == 0 || v > most)
            return err_set(err, ERR_USAGE, "--%s %s: want at most %u numbers of 1…%u, as 1,8,32",
                           option, text, max, most);
        out[(*n)++] = v;
        p += used + (p[used] == ',');
        if (p[-1] != ',' && *p)
            return err_set(err, ERR_USAGE, "--%s %s: want numbers, as 1,8,32", option, text);
    }
    return *n ? 0 : err_set(err, ERR_USAGE, "--%s is empty", option);
}

/* The words of bench, with what each measures if it is not told. */
static const struct word {
    const char *name;
    int (*report)(struct bench_request *q, struct err *err);
    const char *sizes;
    uint32_t prompt, new_tokens;
} words[] = {
    {"table", bench_report_table, "32", 128, 64},
    {"decode", bench_report_decode, "1,8,32,64", 0, 0},
    {"prefill", bench_report_prefill, "2048", 0, 0},
    {"layer", bench_report_layer, "1,8,32,64", 0, 0},
    {"sgmv", bench_report_sgmv, "1,8,32,64,128,256,2048,8192", 0, 0},
    {"load", bench_report_load, "1", 0, 0},
    {"switch", bench_report_switch, "1", 512, 64},
    {"offline", bench_report_offline, "256", 512, 256},
};

static int fill_request(struct bench_request *q, const struct word *w, bool json, struct err *err)
{
    struct bench_options *m = &q->model;
    *q = (struct bench_request){.context = (uint32_t)o.context,
                                .rounds = (uint32_t)o.rounds,
                                .steps = (uint32_t)o.steps,
                                .n_prompt = o.prompt ? (uint32_t)o.prompt : w->prompt,
                                .n_new = o.new_tokens ? (uint32_t)o.new_tokens : w->new_tokens,
                                .n_requests = (uint32_t)o.requests,
                                .json = json};
    *m = (struct bench_options){.device = o.device,
                                .shape = o.shape,
                                .ranks = {(uint32_t)o.rank},
                                .n_ranks = 1,
                                .n_adapters = (uint32_t)o.adapters,
                                .n_threads = (unsigned)o.threads,
                                .no_graphs = o.no_graphs,
                                .deterministic = o.deterministic};
    int rc = parse_list("sequences", o.sequences ? o.sequences : w->sizes, 65536, BENCH_MAX_SIZES,
                        q->sizes, &q->n_sizes, err);
    if (rc == 0)
        rc = parse_list("counts", o.counts, BENCH_MAX_SLOTS, BENCH_MAX_SIZES, q->counts,
                        &q->n_counts, err);
    if (rc == 0 && o.ranks)
        rc = parse_list("ranks", o.ranks, 1024, BENCH_MAX_RANKS, m->ranks, &m->n_ranks, err);
    if (rc == 0 && o.mix)
        rc = bench_parse_mixes(o.mix, q->mixes, &q->n_mixes, err);
    return rc;
}

static int run(struct cmd_context *ctx, struct err *err)
{
    struct bench_request q;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (strcmp(words[i].name, ctx->args[0]) != 0)
            continue;
        int rc = fill_request(&q, &words[i], ctx->json, err);
        return rc ? rc : words[i].report(&q, err);
    }
    return err_set(err, ERR_USAGE,
                   "bench %s: not known; want table, decode, prefill, layer, sgmv, load, switch "
                   "or offline",
                   ctx->args[0]);
}

const struct command command_bench = {
    .name = "bench",
    .arguments = "table|decode|prefill|layer|sgmv|load|switch|offline",
    .summary = "measure steps and loads on this machine, with synthetic models",
    .description =
        "Builds a base and adapters of a shape out of random numbers and times them through "
        "the back end. table: the classic comparison of throughputs. decode, prefill: steps by "
        "size and mix of adapters, with the ratio to the same step without adapters and the "
        "time that the bytes take at the read bandwidth measured in the same run. layer: the "
        "four products of one layer alone. sgmv: what A and B cost in them, in the cases that "
        "other engines' kernels were measured in. load: an adapter from host to device. switch: "
        "one "
        "request in flight, another adapter each. offline: many requests at once, beside what "
        "the byte model predicts. Ratios are medians of interleaved runs of one process.",
    .examples = "lora bench table --shape small --device cpu\n"
                "lora bench decode --sequences 32 --mix identical,uniform:4,distinct,zipf\n"
                "lora bench prefill --sequences 2048,8192 --context 2048",
    .min_args = 1,
    .max_args = 1,
    .options = table,
    .run = run,
};
