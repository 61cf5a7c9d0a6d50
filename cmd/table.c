#include "cmd/table.h"

#include <stdbool.h>
#include <string.h>
#include <time.h>

#include "libcore/base/arena.h"

struct row {
    struct row *next;
    const char *cells[];
};

struct table {
    struct arena arena;
    const char **headings; // without the '>'
    bool *right;
    size_t *widths;
    size_t n_columns;
    struct row *first, **last;
};

/* Ranges that a terminal shows two columns wide, and ranges that take none. Coarse on purpose:
 * names and labels of people, not a text editor. Sources: EastAsianWidth.txt (W, F), combining
 * blocks. */
static const struct {
    uint32_t first, last;
    int width;
} widths[] = {
    {0x0300, 0x036F, 0},   {0x0483, 0x0489, 0}, {0x0591, 0x05BD, 0},   {0x0610, 0x061A, 0},
    {0x064B, 0x065F, 0},   {0x1100, 0x115F, 2}, {0x1AB0, 0x1AFF, 0},   {0x1DC0, 0x1DFF, 0},
    {0x200B, 0x200F, 0},   {0x20D0, 0x20FF, 0}, {0x2E80, 0x303E, 2},   {0x3041, 0x33FF, 2},
    {0x3400, 0x4DBF, 2},   {0x4E00, 0x9FFF, 2}, {0xA000, 0xA4CF, 2},   {0xAC00, 0xD7A3, 2},
    {0xF900, 0xFAFF, 2},   {0xFE00, 0xFE0F, 0}, {0xFE20, 0xFE2F, 0},   {0xFE30, 0xFE6F, 2},
    {0xFF00, 0xFF60, 2},   {0xFFE0, 0xFFE6, 2}, {0x1F300, 0x1F64F, 2}, {0x1F900, 0x1F9FF, 2},
    {0x20000, 0x3FFFD, 2},
};

static int width_of(uint32_t c)
{
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        if (c >= widths[i].first && c <= widths[i].last)
            return widths[i].width;
    }
    return 1;
}

/* Code point at *s, which moves on; a byte that starts nothing counts as one character. */
static uint32_t next_code_point(const unsigned char **s)
{
    unsigned char c = *(*s)++;
    int more = c >= 0xF0 ? 3 : c >= 0xE0 ? 2 : c >= 0xC0 ? 1 : 0;
    uint32_t value = more == 3 ? c & 7 : more == 2 ? c & 15 : more == 1 ? c & 31 : c;
    for (; more > 0 && (**s & 0xC0) == 0x80; more--)
        value = value << 6 | (*(*s)++ & 63);
    return value;
}

static size_t text_columns(const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t n = 0;
    while (*s >= 0x20 && *s < 0x7F) // most cells are nothing else
        s++;
    n = (size_t)(s - (const unsigned char *)text);
    while (*s)
        n += (size_t)width_of(next_code_point(&s));
    return n;
}

static struct table *fail(struct table *t)
{
    table_free(t);
    return NULL;
}

struct table *table_open(const char *const *headings)
{
    struct arena arena;
    arena_init(&arena);
    struct table *t = arena_alloc(&arena, sizeof *t);
    if (!t)
        return NULL;
    t->arena = arena;
    t->last = &t->first;
    while (headings[t->n_columns])
        t->n_columns++;
    t->headings = arena_array(&t->arena, t->n_columns, sizeof *t->headings);
    t->right = arena_array(&t->arena, t->n_columns, sizeof *t->right);
    t->widths = arena_array(&t->arena, t->n_columns, sizeof *t->widths);
    if (!t->headings || !t->right || !t->widths)
        return fail(t);
    for (size_t i = 0; i < t->n_columns; i++) {
        t->right[i] = headings[i][0] == '>';
        t->headings[i] = arena_strdup(&t->arena, headings[i] + t->right[i]);
        if (!t->headings[i])
            return fail(t);
        t->widths[i] = text_columns(t->headings[i]);
    }
    return t;
}

void table_free(struct table *t)
{
    if (!t)
        return;
    struct arena arena = t->arena; // t itself lies in it
    arena_release(&arena);
}

void table_row(struct table *t, const char *const *cells)
{
    if (!t)
        return;
    struct row *r = arena_alloc(&t->arena, sizeof *r + t->n_columns * sizeof *r->cells);
    if (!r)
        return;
    for (size_t i = 0; i < t->n_columns; i++) {
        const char *copy = arena_strdup(&t->arena, cells[i] ? cells[i] : "");
        r->cells[i] = copy ? copy : "";
        size_t width = text_columns(r->cells[i]);
        if (width > t->widths[i])
            t->widths[i] = width;
    }
    *t->last = r;
    t->last = &r->next;
}

static void print_blanks(size_t n, FILE *out)
{
    static const char blanks[] = "                                                                ";
    for (size_t part; n; n -= part) {
        part = n < sizeof blanks - 1 ? n : sizeof blanks - 1;
        fwrite(blanks, 1, part, out);
    }
}

static void print_cells(const struct table *t, const char *const *cells, FILE *out)
{
    size_t n = t->n_columns;
    while (n > 0 && !cells[n - 1][0])
        n--; // no blanks at a line's end
    for (size_t i = 0; i < n; i++) {
        bool last = i + 1 == n;
        size_t pad = t->widths[i] - text_columns(cells[i]);
        if (t->right[i])
            print_blanks(pad, out);
        fputs(cells[i], out);
        if (!last)
            print_blanks((t->right[i] ? 0 : pad) + 2, out);
    }
    fputc('\n', out);
}

void table_print(const struct table *t, FILE *out)
{
    if (!t)
        return;
    print_cells(t, t->headings, out);
    for (const struct row *r = t->first; r; r = r->next)
        print_cells(t, r->cells, out);
}

/* Writes n and gives what follows. By hand, like all that stands below: a long listing formats tens
 * of thousands of these, and printf takes its time. */
static char *put_number(char *p, uint64_t n)
{
    char digits[20];
    size_t i = sizeof digits;
    do {
        digits[--i] = (char)('0' + n % 10);
        n /= 10;
    } while (n);
    memcpy(p, digits + i, sizeof digits - i);
    return p + (sizeof digits - i);
}

static char *put_text(char *p, const char *text)
{
    size_t n = strlen(text);
    memcpy(p, text, n + 1);
    return p + n;
}

/* Three digits at most: "999", "1.2 K", "41.9 M", "120 G". */
static const char *scaled(char *buf, uint64_t n, const char *unit)
{
    static const char *const prefixes[] = {"", "k", "M", "G", "T", "P", "E"};
    if (n < 1000) {
        put_text(put_text(put_number(buf, n), *unit ? " " : ""), unit);
        return buf;
    }
    uint64_t one = 1; // of the prefix
    size_t p = 0;
    while (n / one >= 1000 || (n - n / one * one >= one / 2 && n / one == 999 && one > 1)) {
        one *= 1000;
        p++;
    }
    uint64_t whole = n / one,
             tenths = (n % one) / (one / 10) + ((n % one) % (one / 10) >= one / 20);
    if (tenths == 10) {
        whole++;
        tenths = 0;
    }
    char *p_end = buf;
    if (whole < 100) {
        p_end = put_text(put_number(p_end, whole), ".");
        p_end = put_number(p_end, tenths);
    } else {
        p_end = put_number(p_end, n / one + (n % one >= one / 2));
    }
    put_text(put_text(put_text(p_end, " "), prefixes[p]), unit);
    return buf;
}

const char *table_bytes(char *buf, uint64_t bytes)
{
    return scaled(buf, bytes, "B");
}

const char *table_count(char *buf, uint64_t n)
{
    return scaled(buf, n, "");
}

const char *table_age(char *buf, uint64_t unix_seconds_then)
{
    static const struct {
        uint64_t seconds;
        const char *unit;
    } units[] = {{365 * 86400, "y"}, {30 * 86400, "mo"}, {86400, "d"}, {3600, "h"}, {60, "min"}};
    uint64_t now = (uint64_t)time(NULL);
    uint64_t age = now > unix_seconds_then ? now - unix_seconds_then : 0;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        if (age >= units[i].seconds) {
            char *p = put_text(put_number(buf, age / units[i].seconds), " ");
            put_text(put_text(p, units[i].unit), " ago");
            return buf;
        }
    }
    put_text(put_number(buf, age), " s ago");
    return buf;
}
