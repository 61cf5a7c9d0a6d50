#include "cmd/table.h"

#include <stdlib.h>
#include <time.h>

#include "tests/lib/fault.h"
#include "tests/lib/test.h"

static char *printed(const struct table *t)
{
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    table_print(t, out);
    fclose(out);
    return text;
}

TEST(columns_line_up_left_and_right)
{
    struct table *t = table_open((const char *[]){"NAME", ">BYTES", "AGE", NULL});
    table_row(t, (const char *[]){"a", "1", "now"});
    table_row(t, (const char *[]){"longer", "123456", "x"});
    table_row(t, (const char *[]){"b", "", ""});
    char *text = printed(t);
    EXPECT_STR(text, "NAME     BYTES  AGE\n"
                     "a            1  now\n"
                     "longer  123456  x\n"
                     "b\n");
    free(text);
    table_free(t);
    table_free(NULL);
}

TEST(widths_count_what_a_terminal_shows)
{
    struct table *t = table_open((const char *[]){"N", "X", NULL});
    table_row(t, (const char *[]){"é€", "1"});         // two columns
    table_row(t, (const char *[]){"日本", "2"});       // four
    table_row(t, (const char *[]){"e\xCC\x81x", "3"}); // a combining accent: two
    table_row(t, (const char *[]){"\xFFz", "4"});      // a byte that is nothing counts one
    char *text = printed(t);
    EXPECT_STR(text, "N     X\n"
                     "é€    1\n"
                     "日本  2\n"
                     "e\xCC\x81x    3\n"
                     "\xFFz    4\n");
    free(text);
    table_free(t);
}

TEST(bytes_and_counts_have_three_digits)
{
    char buf[TABLE_CELL_BYTES];
    EXPECT_STR(table_bytes(buf, 0), "0 B");
    EXPECT_STR(table_bytes(buf, 999), "999 B");
    EXPECT_STR(table_bytes(buf, 1000), "1.0 kB");
    EXPECT_STR(table_bytes(buf, 1234567), "1.2 MB");
    EXPECT_STR(table_bytes(buf, 99949), "99.9 kB");
    EXPECT_STR(table_bytes(buf, 99951), "100 kB");
    EXPECT_STR(table_bytes(buf, 999499), "999 kB");
    EXPECT_STR(table_bytes(buf, 999500), "1.0 MB");
    EXPECT_STR(table_bytes(buf, UINT64_MAX), "18.4 EB");
    EXPECT_STR(table_count(buf, 12), "12");
    EXPECT_STR(table_count(buf, 41943040), "41.9 M");
}

TEST(ages_have_one_unit)
{
    char buf[TABLE_CELL_BYTES];
    uint64_t now = (uint64_t)time(NULL);
    EXPECT_STR(table_age(buf, now + 100), "0 s ago");
    EXPECT_STR(table_age(buf, now - 3 * 60), "3 min ago");
    EXPECT_STR(table_age(buf, now - 5 * 3600 - 60), "5 h ago");
    EXPECT_STR(table_age(buf, now - 2 * 86400 - 60), "2 d ago");
    EXPECT_STR(table_age(buf, now - 400 * 86400), "1 y ago");
}

static int fill(void *arg, struct err *err)
{
    (void)arg;
    struct table *t = table_open((const char *[]){"A", "B", NULL});
    int rc = t ? 0 : err_set(err, ERR_NO_MEMORY, "no memory");
    for (int i = 0; i < 2000; i++)
        table_row(t, (const char *[]){"some text that fills the blocks", "b"});
    table_free(t);
    return rc;
}

TEST(a_table_without_memory_is_harmless)
{
    EXPECT(test_each_fault(SYS_FAULT_MEM, true, fill, NULL) >= 3);
}
