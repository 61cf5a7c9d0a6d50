/* 16-bit results by float32 sums. */
#include <math.h>
#include <string.h>

#include "libcore/merge/values_impl.h"

static size_t count_changed16(const uint16_t *a, const void *b, size_t n)
{
    uint16_t old[VALUES_CHUNK];
    uint32_t changed = 0;
    if (!b)
        return n;
    memcpy(old, b, n * sizeof *old);
    for (size_t j = 0; j < n; j++)
        changed += a[j] != old[j];
    return changed;
}

/* Left halves of rows row0… as float32, scaled, and each row's window: a bound of the error of the
 * sum over k is (rank + 6) half ulps times |L row| |R column|. The floor covers factors so small
 * that float32 holds them inexactly. */
static void load_left(const struct values *v, struct values_scratch *s, size_t row0, size_t n_rows)
{
    float *left = s->left;
    for (size_t i = 0; i < n_rows; i++) {
        double square = 0;
        for (size_t t = 0; t < v->m.n_pairs; t++) {
            const struct values_pair *p = &v->m.pairs[t];
            size_t first = p->left.offset + (row0 + i) * p->left.row;
            for (size_t k = 0; k < p->rank; k++) {
                double x = p->factor * values_get(p->left.tensor, first + k * p->left.col);
                square += x * x;
                *left++ = (float)x;
            }
        }
        double norm = sqrt(square) * (1 + 0x1p-20) + 0x1p-120;
        s->window[i] = (float)(norm * (double)(v->rank + 6) * 0x1p-24 * 1.01);
    }
}

static int finish_narrow(const struct values *v, struct values_scratch *s,
                         const struct values_block *b, size_t i, size_t i_group, size_t j0,
                         size_t n, float *delta, struct err *err)
{
    const struct values_kernels *k = v->k;
    size_t idx = i * v->m.n_cols + j0;
    const void *source = values_ptr(b->source_dtype, b->source, idx);
    const void *base = b->base ? values_ptr(v->m.dtype, b->base, idx) : NULL;
    values_load(k, b->source_dtype, source, s->w, n);
    k->add(s->w, delta, v->norms + j0, s->window[i_group], n, s->v, s->slack);
    uint16_t any = v->m.dtype == DTYPE_BF16
                       ? k->round_bf16(s->v, s->slack, n, s->bits16, s->unsure16)
                       : k->round_f16(s->v, s->slack, n, s->bits16, s->unsure16);
    for (size_t j = 0; any && j < n; j++) {
        if (!s->unsure16[j])
            continue;
        double w;
        uint64_t bits = 0;
        dtype_to_f64(b->source_dtype, values_ptr(b->source_dtype, source, j), &w, 1);
        int rc = values_settle(v, b->row0 + i, j0 + j, w, 1, &bits, err);
        if (rc)
            return rc;
        s->bits16[j] = (uint16_t)bits;
    }
    const float *old = s->w;
    if (b->base != b->source) { // a replaced weight: what was to be added is v less the base
        memset(s->old, 0, n * sizeof *s->old);
        if (base)
            values_load(k, v->m.dtype, base, s->old, n);
        for (size_t j = 0; j < n; j++)
            delta[j] = s->v[j] - s->old[j];
        old = s->old;
    }
    struct values_sums sums;
    values_load(k, v->m.dtype, s->bits16, s->now, n);
    k->stats(old, delta, s->now, n, &sums);
    b->stats->base2 += (double)sums.base2;
    b->stats->delta2 += (double)sums.delta2;
    b->stats->lost2 += (double)sums.lost2;
    b->stats->n_changed += count_changed16(s->bits16, base, n);
    memcpy((char *)b->out + idx * 2, s->bits16, n * 2);
    return 0;
}

int values_block_narrow(const struct values *v, struct values_scratch *s,
                        const struct values_block *b, struct err *err)
{
    size_t n_cols = v->m.n_cols;
    for (size_t g = 0; g < b->n_rows; g += VALUES_GROUP) {
        size_t n_group = b->n_rows - g < VALUES_GROUP ? b->n_rows - g : VALUES_GROUP;
        load_left(v, s, b->row0 + g, n_group);
        for (size_t j0 = 0; j0 < n_cols; j0 += VALUES_CHUNK) {
            size_t n = n_cols - j0 < VALUES_CHUNK ? n_cols - j0 : VALUES_CHUNK;
            const float *packed = v->packed + j0 * v->rank;
            for (size_t i = 0; i < n_group; i += VALUES_ROWS) {
                size_t rows = n_group - i < VALUES_ROWS ? n_group - i : VALUES_ROWS;
                v->k->deltas((const float *)s->left + i * v->rank, rows, v->rank, packed,
                             values_padded(n) / VALUES_PANEL, s->delta);
                for (size_t r = 0; r < rows; r++) {
                    int rc = finish_narrow(v, s, b, g + i + r, i + r, j0, n,
                                           s->delta + r * VALUES_CHUNK, err);
                    if (rc)
                        return rc;
                }
            }
        }
    }
    return 0;
}
