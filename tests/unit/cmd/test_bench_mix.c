/* How `lora bench` spreads rows over adapters. */
#include <string.h>

#include "cmd/bench/bench.h"
#include "tests/lib/test.h"

static uint32_t sum(const uint32_t *counts, uint32_t n)
{
    uint32_t s = 0;
    for (uint32_t i = 0; i < n; i++)
        s += counts[i];
    return s;
}

TEST(mixes_are_read_and_none_always_stands_first)
{
    struct bench_mix m[BENCH_MAX_CASES];
    struct err err = {0};
    uint32_t n;
    char name[BENCH_MIX_NAME];
    CHECK_OK(bench_parse_mixes("identical,uniform:4,none,distinct,zipf", m, &n, &err), err);
    CHECK_INT(n, 5);
    static const char *const names[] = {"none", "identical", "uniform:4", "distinct", "zipf"};
    for (uint32_t i = 0; i < n; i++) {
        bench_mix_name(&m[i], name);
        CHECK_STR(name, names[i]);
    }
    CHECK_CODE(bench_parse_mixes("uniform:0", m, &n, &err), ERR_USAGE, err);
    CHECK_CODE(bench_parse_mixes("uniform:4x", m, &n, &err), ERR_USAGE, err);
    CHECK_CODE(bench_parse_mixes("distinctly", m, &n, &err), ERR_USAGE, err);
    CHECK_CODE(bench_parse_mixes("zipf,zipf,zipf,zipf,zipf,zipf,zipf,zipf", m, &n, &err), ERR_USAGE,
               err);
}

TEST(every_row_gets_one_adapter_and_the_first_ones_are_used)
{
    const struct bench_mix none = {BENCH_NONE, 0}, one = {BENCH_IDENTICAL, 0},
                           four = {BENCH_UNIFORM, 4}, all = {BENCH_DISTINCT, 0},
                           zipf = {BENCH_ZIPF, 0};
    uint32_t counts[64], again[64];
    CHECK_INT(bench_mix_counts(&none, 32, 64, counts), 0);
    CHECK_INT(bench_mix_counts(&one, 32, 64, counts), 1);
    CHECK_INT(counts[0], 32);
    CHECK_INT(bench_mix_counts(&four, 30, 64, counts), 4);
    CHECK_INT(sum(counts, 64), 30);
    CHECK(counts[0] >= 7 && counts[3] >= 7 && counts[4] == 0);
    CHECK_INT(bench_mix_counts(&four, 3, 64, counts), 3); // no more than rows
    CHECK_INT(bench_mix_counts(&all, 32, 64, counts), 32);
    CHECK_INT(bench_mix_counts(&all, 32, 8, counts), 8);
    CHECK_INT(sum(counts, 8), 32);
    uint32_t used = bench_mix_counts(&zipf, 32, 64, counts);
    CHECK(used > 4 && used < 32); // some popular, a tail
    CHECK_INT(sum(counts, used), 32);
    for (uint32_t i = 1; i < used; i++)
        CHECK(counts[i] > 0 && counts[i] <= counts[i - 1]);
    CHECK_INT(bench_mix_counts(&zipf, 32, 64, again), used);
    CHECK(memcmp(counts, again, sizeof counts) == 0);
}
