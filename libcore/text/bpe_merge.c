/* Merging: the pair of the lowest rank first, the leftmost of equals. A short word scans its pairs
 * for the lowest (everything is in one cache line or two); a long one keeps them in a heap. */
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/text/bpe_impl.h"

enum { SCAN_MOST = 24 };

static void look_up(const struct vocab *v, struct bpe_symbol *left, const struct bpe_symbol *right)
{
    const struct vocab_merge *m = vocab_find_merge(v, left->id, right->id);
    left->rank = m ? m->rank : VOCAB_NONE;
    left->product = m ? m->product : VOCAB_NONE;
}

static void merge_by_scan(const struct vocab *v, struct bpe_scratch *s)
{
    struct bpe_symbol *y = s->symbols;
    for (size_t i = 0; i + 1 < s->n; i++)
        look_up(v, &y[i], &y[i + 1]);
    while (s->n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < s->n; i++) {
            if (y[i].rank < y[best].rank)
                best = i;
        }
        if (y[best].rank == VOCAB_NONE)
            break;
        y[best].id = y[best].product;
        s->n--;
        memmove(&y[best + 1], &y[best + 2], (s->n - best - 1) * sizeof *y);
        if (best + 1 < s->n)
            look_up(v, &y[best], &y[best + 1]);
        if (best > 0)
            look_up(v, &y[best - 1], &y[best]);
    }
}

/* ---- the heap ---- */

static bool before(const struct bpe_candidate *a, const struct bpe_candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->pos < b->pos;
}

static void sink(struct bpe_scratch *s, size_t i)
{
    struct bpe_candidate *h = s->heap, moved = h[i];
    for (size_t child = 2 * i + 1; child < s->n_heap; child = 2 * i + 1) {
        if (child + 1 < s->n_heap && before(&h[child + 1], &h[child]))
            child++;
        if (!before(&h[child], &moved))
            break;
        h[i] = h[child];
        i = child;
    }
    h[i] = moved;
}

static void rise(struct bpe_scratch *s, size_t i)
{
    struct bpe_candidate *h = s->heap, moved = h[i];
    while (i > 0 && before(&moved, &h[(i - 1) / 2])) {
        h[i] = h[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    h[i] = moved;
}

static int heap_reserve(struct bpe_scratch *s, size_t n, struct err *err)
{
    if (n <= s->cap_heap)
        return 0;
    struct bpe_candidate *heap = sys_reallocarray(s->heap, n + n / 2, sizeof *heap);
    if (!heap)
        return err_set(err, ERR_NO_MEMORY, "tokenizer: out of memory");
    s->heap = heap;
    s->cap_heap = n + n / 2;
    return 0;
}

static int offer(const struct vocab *v, struct bpe_scratch *s, uint32_t pos, struct err *err)
{
    struct bpe_symbol *y = s->symbols;
    const struct vocab_merge *m = vocab_find_merge(v, y[pos].id, y[y[pos].next].id);
    if (!m)
        return 0;
    int rc = heap_reserve(s, s->n_heap + 1, err);
    if (rc)
        return rc;
    s->heap[s->n_heap++] = (struct bpe_candidate){m->rank, pos, m->product};
    rise(s, s->n_heap - 1);
    return 0;
}

static void link_all(const struct vocab *v, struct bpe_scratch *s)
{
    struct bpe_symbol *y = s->symbols;
    s->n_heap = 0;
    for (size_t i = 0; i < s->n; i++) {
        y[i].prev = i ? (uint32_t)i - 1 : VOCAB_NONE;
        y[i].next = i + 1 < s->n ? (uint32_t)i + 1 : VOCAB_NONE;
        const struct vocab_merge *m =
            i + 1 < s->n ? vocab_find_merge(v, y[i].id, y[i + 1].id) : NULL;
        if (m)
            s->heap[s->n_heap++] = (struct bpe_candidate){m->rank, (uint32_t)i, m->product};
    }
    for (size_t i = s->n_heap / 2; i-- > 0;)
        sink(s, i);
}

/* A candidate is stale when its symbol is gone, or what now stands there has another product. */
static bool is_stale(const struct vocab *v, const struct bpe_symbol *y,
                     const struct bpe_candidate *c)
{
    if (y[c->pos].id == VOCAB_NONE || y[c->pos].next == VOCAB_NONE)
        return true;
    const struct vocab_merge *m = vocab_find_merge(v, y[c->pos].id, y[y[c->pos].next].id);
    return !m || m->product != c->product;
}

static int merge_by_heap(const struct vocab *v, struct bpe_scratch *s, struct err *err)
{
    int rc = heap_reserve(s, s->n, err);
    if (rc)
        return rc;
    struct bpe_symbol *y = s->symbols;
    link_all(v, s);
    while (s->n_heap) {
        struct bpe_candidate top = s->heap[0];
        s->heap[0] = s->heap[--s->n_heap];
        if (s->n_heap)
            sink(s, 0);
        if (is_stale(v, y, &top))
            continue;
        uint32_t right = y[top.pos].next;
        y[top.pos].id = top.product;
        y[top.pos].next = y[right].next;
        y[right].id = VOCAB_NONE;
        if (y[right].next != VOCAB_NONE)
            y[y[right].next].prev = top.pos;
        if (y[top.pos].prev != VOCAB_NONE)
            rc = offer(v, s, y[top.pos].prev, err);
        if (!rc && y[top.pos].next != VOCAB_NONE)
            rc = offer(v, s, top.pos, err);
        if (rc)
            return rc;
    }
    size_t k = 0;
    for (size_t i = 0; i < s->n; i++) {
        if (y[i].id != VOCAB_NONE)
            y[k++].id = y[i].id;
    }
    s->n = k;
    return 0;
}

int bpe_merge(const struct vocab *v, struct bpe_scratch *s, struct err *err)
{
    if (s->n < 2)
        return 0;
    if (s->n > SCAN_MOST)
        return merge_by_heap(v, s, err);
    merge_by_scan(v, s);
    return 0;
}
