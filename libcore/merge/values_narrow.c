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

/* A row of one pair's L as float64, scaled. */
static void load_left_row(const struct values_pair *p, size_t row, double *dst)
{
    const struct tensor *t = p->left.tensor;
    size_t first = p->left.offset + row * p->left.row;
    if (p->left.col == 1) {
        dtype_to_f64(t->dtype, values_ptr(t->dtype, t->data, first), dst, p->rank);
    } else {
        for (size_t k = 0; k < p->rank; k++)
            dst[k] = values_get(t, first + k * p->left.col);
    }
    for (size_t k = 0; k < p->rank; k++)
        dst[k] *= p->factor;
}

/* Left halves of rows row0…, scaled, as float32 and as float64, and each row's window: the error of
 * its sums is at most so many half ulps times |L row| |R column|: one for each product of a sum and
 * for each sum of them, and some for the rounding of the factors. The floor covers factors so small
 * that float32 holds them inexactly. */
void values_load_left(const struct values *v, struct values_scratch *s, size_t row0, size_t n_rows)
{
    size_t n_sums = (v->rank + VALUES_TERMS - 1) / VALUES_TERMS;
    size_t n_terms = v->rank < VALUES_TERMS ? v->rank : VALUES_TERMS;
    double half_ulps = (double)(n_terms + n_sums + 6);
    for (size_t i = 0; i < n_rows; i++) {
        double *exact = s->exact_left + i * v->rank, square = 0;
        float *left = (float *)s->left + i * v->rank;
        for (size_t t = 0, k = 0; t < v->m.n_pairs; k += v->m.pairs[t++].rank)
            load_left_row(&v->m.pairs[t], row0 + i, exact + k);
        for (size_t k = 0; k < v->rank; k++) {
            square += exact[k] * exact[k];
            left[k] = (float)exact[k];
        }
        s->left_norm[i] = sqrt(square) * (1 + 0x1p-20) + 0x1p-120;
        s->window[i] = (float)(s->left_norm[i] * half_ulps * 0x1p-24 * 1.01);
    }
}

/* A value in doubt once more in float64, from what is packed already; what that leaves open goes
 * the long way. */
static int settle_narrow(const struct values *v, const struct values_scratch *s, size_t i_group,
                         size_t row, size_t j, double w, uint64_t *bits, struct err *err)
{
    const double *left = s->exact_left + i_group * v->rank;
    const float *right = v->packed + j / VALUES_PANEL * v->rank * VALUES_PANEL + j % VALUES_PANEL;
    double sum[4] = {0};
    size_t k = 0;
    for (; k + 4 <= v->rank; k += 4) {
        for (size_t t = 0; t < 4; t++)
            sum[t] += left[k + t] * (double)right[(k + t) * VALUES_PANEL];
    }
    for (; k < v->rank; k++)
        sum[0] += left[k] * (double)right[k * VALUES_PANEL];
    double x = w + ((sum[0] + sum[1]) + (sum[2] + sum[3]));
    double slack = s->left_norm[i_group] * (double)v->norms[j] * (double)(v->rank + 8) * 0x1p-53 +
                   fabs(x) * 0x1p-50 + 0x1p-1000;
    bool is_bf16 = v->m.dtype == DTYPE_BF16;
    uint16_t low = is_bf16 ? dtype_f64_to_bf16(x - slack) : dtype_f64_to_f16(x - slack);
    uint16_t high = is_bf16 ? dtype_f64_to_bf16(x + slack) : dtype_f64_to_f16(x + slack);
    *bits = low;
    if (low == high && isfinite(w) && values_finite_bits(v->m.dtype, low))
        return 0;
    return values_settle(v, row, j, w, 1, bits, err);
}

int values_finish_narrow(const struct values *v, struct values_scratch *s,
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
        int rc = settle_narrow(v, s, i_group, b->row0 + i, j0 + j, w, &bits, err);
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
        values_load_left(v, s, b->row0 + g, n_group);
        for (size_t j0 = 0; j0 < n_cols; j0 += VALUES_CHUNK) {
            size_t n = n_cols - j0 < VALUES_CHUNK ? n_cols - j0 : VALUES_CHUNK;
            const float *packed = v->packed + j0 * v->rank;
            for (size_t i = 0; i < n_group; i += VALUES_ROWS) {
                size_t rows = n_group - i < VALUES_ROWS ? n_group - i : VALUES_ROWS;
                v->k->deltas((const float *)s->left + i * v->rank, rows, v->rank, packed,
                             values_padded(n) / VALUES_PANEL, s->delta);
                for (size_t r = 0; r < rows; r++) {
                    int rc = values_finish_narrow(v, s, b, g + i + r, i + r, j0, n,
                                                  s->delta + r * VALUES_CHUNK, err);
                    if (rc)
                        return rc;
                }
            }
        }
    }
    return 0;
}
