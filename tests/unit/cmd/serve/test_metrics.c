/* The watch on hot adapters, and that its counters are bounded. */
#include <stdio.h>

#include "cmd/serve/metrics.h"
#include "libcore/base/thread.h"
#include "tests/lib/test.h"

static const uint64_t MINUTE = 60000000000u;

static struct metrics *open_metrics(uint64_t *now)
{
    struct metrics *m = NULL;
    struct err err = {0};
    if (metrics_open(&m, &err) != 0)
        test_fail(__FILE__, __LINE__, "%s", err.msg);
    *now = thread_now_ns();
    return m;
}

static const char *hot(struct metrics *m)
{
    static char name[256];
    metrics_hot_adapter(m, name, sizeof name);
    return name;
}

TEST(an_adapter_with_most_tokens_for_three_minutes_is_hot)
{
    uint64_t now;
    struct metrics *m = open_metrics(&now);
    CHECK(m);
    for (int minute = 0; minute < 3; minute++) {
        metrics_count_tokens(m, "sql", 9000);
        metrics_count_tokens(m, "", 900);
        EXPECT_STR(hot(m), "");
        metrics_tick_at(m, now += MINUTE + 1);
    }
    EXPECT_STR(hot(m), "sql");
    metrics_count_tokens(m, "sql", 100);
    metrics_count_tokens(m, "other", 9000);
    metrics_tick_at(m, now += MINUTE + 1);
    EXPECT_STR(hot(m), "");
    metrics_free(m);
}

TEST(neither_the_base_nor_a_quiet_adapter_is_hot)
{
    uint64_t now;
    struct metrics *m = open_metrics(&now);
    CHECK(m);
    for (int minute = 0; minute < 5; minute++) {
        metrics_count_tokens(m, "", 90000);
        metrics_count_tokens(m, "sql", 10);
        metrics_tick_at(m, now += MINUTE + 1);
    }
    EXPECT_STR(hot(m), "");
    for (int minute = 0; minute < 5; minute++) {
        metrics_count_tokens(m, "sql", 10); // alone, but hardly used
        metrics_tick_at(m, now += MINUTE + 1);
    }
    EXPECT_STR(hot(m), "");
    metrics_free(m);
}

TEST(a_minute_is_not_over_before_its_time)
{
    uint64_t now;
    struct metrics *m = open_metrics(&now);
    CHECK(m);
    for (int i = 0; i < 10; i++) {
        metrics_count_tokens(m, "sql", 9000);
        metrics_tick_at(m, now + 1000);
    }
    EXPECT_STR(hot(m), "");
    metrics_free(m);
}

TEST(thousands_of_names_share_the_last_counter)
{
    uint64_t now;
    struct metrics *m = open_metrics(&now);
    CHECK(m);
    for (int i = 0; i < 3 * METRICS_MAX_ADAPTERS; i++) {
        char name[32];
        snprintf(name, sizeof name, "adapter-%d", i);
        metrics_count_tokens(m, name, 1);
    }
    for (int minute = 0; minute < 3; minute++) {
        metrics_count_tokens(m, "one-more", 5000);
        metrics_tick_at(m, now += MINUTE + 1);
    }
    EXPECT_STR(hot(m), "_other");
    metrics_free(m);
}
