/* The sets of unicode.h. */
#include <stdlib.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/text/unicode.h"

void cp_set_init(struct cp_set *s)
{
    memset(s, 0, sizeof *s);
}

void cp_set_release(struct cp_set *s)
{
    sys_free(s->ranges);
    cp_set_init(s);
}

void cp_set_add(struct cp_set *s, uint32_t first, uint32_t last)
{
    if (s->failed)
        return;
    if (s->n && first == s->ranges[s->n - 1].last + 1) {
        s->ranges[s->n - 1].last = last;
        return;
    }
    if (s->n == s->cap) {
        size_t cap = s->cap ? s->cap * 2 : 8;
        struct cp_range *ranges = sys_reallocarray(s->ranges, cap, sizeof *ranges);
        if (!ranges) {
            s->failed = true;
            return;
        }
        s->ranges = ranges;
        s->cap = cap;
    }
    s->ranges[s->n++] = (struct cp_range){first, last};
}

void cp_set_add_set(struct cp_set *s, const struct cp_set *other)
{
    s->failed |= other->failed;
    for (size_t i = 0; i < other->n; i++)
        cp_set_add(s, other->ranges[i].first, other->ranges[i].last);
}

static int by_first(const void *a, const void *b)
{
    const struct cp_range *x = a, *y = b;
    return x->first < y->first ? -1 : x->first > y->first;
}

void cp_set_normalize(struct cp_set *s)
{
    if (s->failed || s->n < 2)
        return;
    qsort(s->ranges, s->n, sizeof *s->ranges, by_first);
    size_t k = 0;
    for (size_t i = 1; i < s->n; i++) {
        struct cp_range *last = &s->ranges[k];
        if (s->ranges[i].first <= last->last + 1) {
            if (s->ranges[i].last > last->last)
                last->last = s->ranges[i].last;
        } else {
            s->ranges[++k] = s->ranges[i];
        }
    }
    s->n = k + 1;
}

void cp_set_complement(struct cp_set *s)
{
    struct cp_set with;
    cp_set_init(&with);
    cp_set_add_set(&with, s);
    cp_set_add(&with, 0xD800, 0xDFFF);
    cp_set_normalize(&with);
    s->n = 0;
    s->failed |= with.failed;
    uint32_t next = 0;
    for (size_t i = 0; i < with.n; i++) {
        if (with.ranges[i].first > next)
            cp_set_add(s, next, with.ranges[i].first - 1);
        next = with.ranges[i].last + 1;
    }
    if (next <= UNICODE_MAX)
        cp_set_add(s, next, UNICODE_MAX);
    cp_set_release(&with);
}

bool cp_set_has(const struct cp_set *s, uint32_t c)
{
    size_t low = 0, high = s->n;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (s->ranges[mid].last < c)
            low = mid + 1;
        else
            high = mid;
    }
    return low < s->n && s->ranges[low].first <= c;
}

bool cp_set_equal(const struct cp_set *a, const struct cp_set *b)
{
    return a->n == b->n &&
           (a->n == 0 || memcmp(a->ranges, b->ranges, a->n * sizeof *a->ranges) == 0);
}
