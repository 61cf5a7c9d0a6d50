/* Results by float64 sums: float32 bases, DoRA, float64 inputs. */
#include <math.h>
#include <string.h>

#include "libcore/merge/values_impl.h"

double values_left_row(const struct values *v, size_t row, double *left)
{
    double square = 0;
    size_t k_all = 0;
    for (size_t t = 0; t < v->m.n_pairs; t++) {
        const struct values_pair *p = &v->m.pairs[t];
        size_t first = p->left.offset + row * p->left.row;
        for (size_t k = 0; k < p->rank; k++, k_all++) {
            left[k_all] = p->factor * values_get(p->left.tensor, first + k * p->left.col);
            square += left[k_all] * left[k_all];
        }
    }
    return sqrt(square) * (1 + 0x1p-20);
}

/* The sums of one whole row into s->row; returns the row's |L|, for the window. */
double values_sum_row(const struct values *v, struct values_scratch *s, size_t row)
{
    double norm = values_left_row(v, row, s->left);
    for (size_t j0 = 0; j0 < v->m.n_cols; j0 += VALUES_CHUNK) {
        size_t n = v->m.n_cols - j0 < VALUES_CHUNK ? v->m.n_cols - j0 : VALUES_CHUNK;
        v->k->sums64(s->left, v->rank, v->right + j0, v->stride, n, s->row + j0);
    }
    s->row_sums = s->row;
    return norm;
}

void values_load_chunk(const struct values *v, struct values_scratch *s,
                       const struct values_block *b, size_t i, size_t j0, size_t n)
{
    const void *source = values_ptr(b->source_dtype, b->source, i * v->m.n_cols + j0);
    values_load64(v->k, b->source_dtype, source, s->w64, n);
    values_scale(v->m.source_scales, b->row0 + i, j0, n, s->w64);
}

/* DoRA: m[row] / ||W + f L R||. */
int values_row_gain(const struct values *v, struct values_scratch *s, const struct values_block *b,
                    size_t i, double *gain, struct err *err)
{
    double square = 0;
    for (size_t j0 = 0; j0 < v->m.n_cols; j0 += VALUES_CHUNK) {
        size_t n = v->m.n_cols - j0 < VALUES_CHUNK ? v->m.n_cols - j0 : VALUES_CHUNK;
        values_load_chunk(v, s, b, i, j0, n);
        square += v->k->squares64(s->w64, s->row_sums + j0, n);
    }
    *gain = values_get(v->m.magnitude, b->row0 + i) / sqrt(square);
    if (isfinite(*gain))
        return 0;
    return err_set(err, isfinite(square) ? ERR_REFUSED : ERR_CORRUPT,
                   "[%zu, :]: the row's norm is %g, DoRA divides by it", b->row0 + i, sqrt(square));
}

/* Rounds s->v64 +- s->slack64 to the stored type, into s->bits16 or s->bits. */
static int round_wide(const struct values *v, struct values_scratch *s, size_t row, size_t j0,
                      size_t n, const double *gain, size_t step, struct err *err)
{
    const struct values_kernels *k = v->k;
    bool is_f32 = v->m.dtype == DTYPE_F32;
    uint32_t any;
    if (is_f32) {
        any = k->round_f32(s->v64, s->slack64, n, s->bits, s->unsure);
    } else {
        k->narrow(s->v64, s->slack64, n, s->v, s->slack);
        any = v->m.dtype == DTYPE_BF16 ? k->round_bf16(s->v, s->slack, n, s->bits16, s->unsure16)
                                       : k->round_f16(s->v, s->slack, n, s->bits16, s->unsure16);
    }
    for (size_t j = 0; any && j < n; j++) {
        if (is_f32 ? !s->unsure[j] : !s->unsure16[j])
            continue;
        uint64_t bits = 0;
        int rc = values_settle(v, row, j0 + j, s->w64[j], gain[j * step], &bits, err);
        if (rc)
            return rc;
        s->bits[j] = (uint32_t)bits;
        s->bits16[j] = (uint16_t)bits;
    }
    return 0;
}

double values_window(const struct values *v, double norm)
{
    return norm * (double)(v->rank + 8) * 0x1p-53 * 1.01 + 0x1p-1000;
}

/* float64 bases: every value in twofold float64. */
static int exact_chunk(const struct values *v, struct values_scratch *s,
                       const struct values_block *b, size_t i, size_t j0, size_t n,
                       const double *gain, size_t step, struct err *err)
{
    uint64_t bits[VALUES_CHUNK];
    for (size_t j = 0; j < n; j++) {
        int rc = values_settle(v, b->row0 + i, j0 + j, s->w64[j], gain[j * step], &bits[j], err);
        if (rc)
            return rc;
    }
    values_store(b, DTYPE_F64, i * v->m.n_cols + j0, bits, s->v64, n);
    return 0;
}

static int finish_wide(const struct values *v, struct values_scratch *s,
                       const struct values_block *b, size_t i, double norm, const double *gain,
                       bool by_column, struct err *err)
{
    size_t step = by_column ? 1 : 0, row = b->row0 + i;
    enum dtype t = v->m.dtype;
    for (size_t j0 = 0; j0 < v->m.n_cols; j0 += VALUES_CHUNK) {
        size_t n = v->m.n_cols - j0 < VALUES_CHUNK ? v->m.n_cols - j0 : VALUES_CHUNK;
        size_t idx = i * v->m.n_cols + j0;
        const double *g = by_column ? gain + j0 : gain;
        values_load_chunk(v, s, b, i, j0, n);
        v->k->gain64(s->w64, s->row_sums + j0, g, step, v->norms64 + j0, values_window(v, norm), n,
                     s->v64, s->slack64);
        int rc = t == DTYPE_F64       ? exact_chunk(v, s, b, i, j0, n, g, step, err)
                 : dtype_is_float8(t) ? values_round_float8(v, s, b, i, j0, n, g, step, err)
                                      : round_wide(v, s, row, j0, n, g, step, err);
        if (rc)
            return rc;
        const void *bits = t == DTYPE_F32       ? (const void *)s->bits
                           : dtype_is_float8(t) ? (const void *)s->bits8
                                                : (const void *)s->bits16;
        if (v->m.stored_scales || v->m.base_scales || v->m.base_dtype != DTYPE_NONE)
            values_store_scaled(v, b, i, j0, bits, s->v64, n);
        else if (t != DTYPE_F64)
            values_store(b, t, idx, bits, s->v64, n);
    }
    return 0;
}

/* The row whose sums are there. */
static int finish_row(const struct values *v, struct values_scratch *s,
                      const struct values_block *b, size_t i, double norm, struct err *err)
{
    double gain = 1;
    bool by_column = v->m.magnitude && v->m.by_column;
    int rc = v->m.magnitude && !by_column ? values_row_gain(v, s, b, i, &gain, err) : 0;
    return rc ? rc
              : finish_wide(v, s, b, i, norm, by_column ? v->m.column_gains : &gain, by_column,
                            err);
}

int values_block_wide(const struct values *v, struct values_scratch *s,
                      const struct values_block *b, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; !rc && i < b->n_rows && !v->sums_on_device; i++) {
        double norm = values_sum_row(v, s, b->row0 + i);
        rc = finish_row(v, s, b, i, norm, err);
    }
    for (size_t g = 0; !rc && g < b->n_rows && v->sums_on_device; g += VALUES_GROUP) {
        size_t n = b->n_rows - g < VALUES_GROUP ? b->n_rows - g : VALUES_GROUP;
        const double *sums = NULL;
        rc = values_device_sums(v, s, b->row0 + g, n, &sums, err);
        for (size_t i = 0; !rc && i < n; i++) {
            s->row_sums = sums + i * v->m.n_cols;
            rc = finish_row(v, s, b, g + i, s->group_norms[i], err);
        }
    }
    return rc;
}

int values_add_column_squares(const struct values *v, struct values_scratch *s, size_t row0,
                              size_t n_rows, const void *source, double *sums, struct err *err)
{
    int rc = values_reserve(s, v, err);
    for (size_t i = 0; !rc && i < n_rows; i++) {
        values_sum_row(v, s, row0 + i);
        for (size_t j0 = 0; j0 < v->m.n_cols; j0 += VALUES_CHUNK) {
            size_t n = v->m.n_cols - j0 < VALUES_CHUNK ? v->m.n_cols - j0 : VALUES_CHUNK;
            dtype_to_f64(v->m.source_dtype,
                         values_ptr(v->m.source_dtype, source, i * v->m.n_cols + j0), s->w64, n);
            for (size_t j = 0; j < n; j++) {
                double x = s->w64[j] + s->row_sums[j0 + j];
                sums[j0 + j] += x * x;
            }
        }
    }
    return rc;
}
