/* How the rows of a step are spread over adapters. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/bench/bench.h"

static int parse_one(const char *word, size_t len, struct bench_mix *out, struct err *err)
{
    static const struct {
        const char *name;
        enum bench_mix_kind kind;
    } names[] = {{"none", BENCH_NONE},
                 {"identical", BENCH_IDENTICAL},
                 {"distinct", BENCH_DISTINCT},
                 {"zipf", BENCH_ZIPF}};
    *out = (struct bench_mix){BENCH_NONE, 0};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strlen(names[i].name) != len || memcmp(names[i].name, word, len) != 0)
            continue;
        out->kind = names[i].kind;
        return 0;
    }
    int used = 0;
    unsigned n;
    if (sscanf(word, "uniform:%u%n", &n, &used) == 1 && (size_t)used == len && n > 0) {
        *out = (struct bench_mix){BENCH_UNIFORM, n};
        return 0;
    }
    return err_set(err, ERR_USAGE,
                   "--mix %.*s: not known; want none, identical, uniform:N, distinct or zipf",
                   (int)(len < 60 ? len : 60), word);
}

int bench_parse_mixes(const char *text, struct bench_mix *out, uint32_t *n, struct err *err)
{
    out[0] = (struct bench_mix){BENCH_NONE, 0};
    *n = 1;
    for (const char *p = text; *p;) {
        size_t len = strcspn(p, ",");
        struct bench_mix mix;
        int rc = parse_one(p, len, &mix, err);
        if (rc)
            return rc;
        if (mix.kind != BENCH_NONE && *n == BENCH_MAX_CASES)
            return err_set(err, ERR_USAGE, "--mix: at most %d", BENCH_MAX_CASES - 1);
        if (mix.kind != BENCH_NONE)
            out[(*n)++] = mix;
        p += len + (p[len] == ',');
    }
    return 0;
}

void bench_mix_name(const struct bench_mix *m, char *buf)
{
    static const char *const names[] = {"none", "identical", "uniform", "distinct", "zipf"};
    if (m->kind == BENCH_UNIFORM)
        snprintf(buf, BENCH_MIX_NAME, "uniform:%u", m->n);
    else
        snprintf(buf, BENCH_MIX_NAME, "%s", names[m->kind]);
}

static int by_count(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x < y) - (x > y);
}

/* n_rows draws from 1/k over n adapters; the most used first. */
static uint32_t draw_zipf(uint32_t n_rows, uint32_t n, uint32_t *counts)
{
    double sum = 0;
    uint64_t state = 42;
    uint32_t used = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += 1.0 / (i + 1);
    for (uint32_t row = 0; row < n_rows; row++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        double at = (double)(state >> 11) * 0x1p-53 * sum;
        uint32_t i = 0;
        for (; i + 1 < n && at >= 1.0 / (i + 1); i++)
            at -= 1.0 / (i + 1);
        used += counts[i]++ == 0;
    }
    qsort(counts, n, sizeof *counts, by_count);
    return used;
}

uint32_t bench_mix_counts(const struct bench_mix *m, uint32_t n_rows, uint32_t n_adapters,
                          uint32_t *counts)
{
    memset(counts, 0, n_adapters * sizeof *counts);
    if (m->kind == BENCH_NONE || n_adapters == 0)
        return 0;
    if (m->kind == BENCH_ZIPF)
        return draw_zipf(n_rows, n_adapters, counts);
    uint32_t n = m->kind == BENCH_IDENTICAL ? 1 : m->kind == BENCH_UNIFORM ? m->n : n_rows;
    n = n < n_adapters ? n : n_adapters;
    n = n < n_rows ? n : n_rows;
    for (uint32_t i = 0; i < n; i++)
        counts[i] = (uint32_t)((uint64_t)n_rows * (i + 1) / n - (uint64_t)n_rows * i / n);
    return n;
}
