/* 8-bit floats: what they stand for is themselves times the scale of their block. */
#include <math.h>
#include <string.h>

#include "libcore/merge/values_impl.h"

void values_load64(const struct values_kernels *k, enum dtype t, const void *src, double *dst,
                   size_t n)
{
    if (t == DTYPE_F8_E4M3)
        k->load_e4m3(src, dst, n);
    else if (t == DTYPE_F8_E5M2)
        k->load_e5m2(src, dst, n);
    else
        dtype_to_f64(t, src, dst, n);
}

double values_scale_at(const struct values_scales *sc, size_t row, size_t j)
{
    return sc ? sc->values[row / sc->block_rows * sc->n_cols + j / sc->block_cols] : 1;
}

/* How many of n columns from j on have one scale. */
static size_t run_of(const struct values_scales *sc, size_t j, size_t n)
{
    size_t left = sc ? sc->block_cols - j % sc->block_cols : n;
    return left < n ? left : n;
}

void values_scale(const struct values_scales *sc, size_t row, size_t j0, size_t n, double *x)
{
    for (size_t j = 0, run; sc && j < n; j += run) {
        double f = values_scale_at(sc, row, j0 + j);
        run = run_of(sc, j0 + j, n - j);
        for (size_t i = j; i < j + run; i++)
            x[i] *= f;
    }
}

/* Of s->v64, into the row's peaks. */
static int chunk_peaks(const struct values *v, const struct values_scratch *s, size_t row,
                       size_t j0, size_t n, double *row_peaks, struct err *err)
{
    const struct values_scales *sc = v->m.stored_scales;
    for (size_t j = 0, run; j < n; j += run) {
        run = run_of(sc, j0 + j, n - j);
        if (v->k->peak64(s->v64 + j, run, &row_peaks[(j0 + j) / sc->block_cols]))
            continue;
        while (isfinite(s->v64[j]))
            j++;
        return values_not_finite(&v->m, row, j0 + j, s->w64[j], err);
    }
    return 0;
}

/* One value in doubt; one that does not fit is nothing yet where peaks are looked for. */
static int settle(const struct values *v, const struct values_block *b, size_t i, size_t j,
                  double w, double gain, uint8_t *out, struct err *err)
{
    uint64_t bits = 0;
    int rc = values_settle(v, b->row0 + i, j, w, gain, &bits, err);
    *out = (uint8_t)bits;
    if (rc != ERR_REFUSED || !b->peaks)
        return rc;
    if (err)
        err_clear(err);
    return 0;
}

int values_round_float8(const struct values *v, struct values_scratch *s,
                        const struct values_block *b, size_t i, size_t j0, size_t n,
                        const double *gain, size_t step, struct err *err)
{
    size_t row = b->row0 + i;
    const struct values_scales *sc = v->m.stored_scales;
    bool is_e4m3 = v->m.dtype == DTYPE_F8_E4M3;
    for (size_t j = 0, run; j < n; j += run) {
        double scale = values_scale_at(sc, row, j0 + j);
        run = run_of(sc, j0 + j, n - j);
        v->k->narrow_scaled(s->v64 + j, s->slack64 + j, scale > 0 ? 1 / scale : 0, run, s->v,
                            s->slack);
        uint8_t any = (is_e4m3 ? v->k->round_e4m3 : v->k->round_e5m2)(s->v, s->slack, run,
                                                                      s->bits8 + j, s->unsure8);
        for (size_t k = j; (any || scale == 0) && k < j + run; k++) {
            if (!s->unsure8[k - j] && scale > 0)
                continue;
            int rc = settle(v, b, i, j0 + k, s->w64[k], gain[k * step], &s->bits8[k], err);
            if (rc)
                return rc;
        }
    }
    if (!b->peaks)
        return 0;
    double *peaks = b->peaks + (row / sc->block_rows - b->first_peak_row) * sc->n_cols;
    return chunk_peaks(v, s, row, j0, n, peaks, err);
}

void values_store_scaled(const struct values *v, const struct values_block *b, size_t row,
                         size_t j0, const void *bits, const double *wanted, size_t n)
{
    const struct values_matrix *m = &v->m;
    enum dtype base_dtype = m->base_dtype == DTYPE_NONE ? m->dtype : m->base_dtype;
    double old[VALUES_CHUNK] = {0}, now[VALUES_CHUNK], base2 = 0, delta2 = 0, lost2 = 0;
    size_t idx = row * m->n_cols + j0, size = dtype_bits(m->dtype) / 8;
    if (b->base)
        values_load64(v->k, base_dtype, values_ptr(base_dtype, b->base, idx), old, n);
    values_scale(m->base_scales, b->row0 + row, j0, n, old);
    values_load64(v->k, m->dtype, bits, now, n);
    values_scale(m->stored_scales, b->row0 + row, j0, n, now);
    for (size_t j = 0; j < n; j++) {
        double lost = now[j] - wanted[j], d = wanted[j] - old[j];
        base2 += old[j] * old[j];
        delta2 += d * d;
        lost2 += lost * lost;
        b->stats->n_changed += !b->base || now[j] != old[j];
    }
    b->stats->base2 += base2;
    b->stats->delta2 += delta2;
    b->stats->lost2 += lost2;
    memcpy((char *)b->out + idx * size, bits, n * size);
}

// ---- what new scales are made from --------------------------------------------------------------

int values_peaks(const struct values *v, struct values_scratch *s, const struct values_block *b,
                 double *peaks, size_t first_row, struct err *err)
{
    const struct values_scales *sc = v->m.stored_scales;
    int rc = values_reserve(s, v, err);
    for (size_t i = 0; !rc && i < b->n_rows; i++) {
        double norm = values_sum_row(v, s, b->row0 + i), gain = 1;
        if (v->m.magnitude)
            rc = values_row_gain(v, s, b, i, &gain, err);
        double *row_peaks = peaks + ((b->row0 + i) / sc->block_rows - first_row) * sc->n_cols;
        for (size_t j0 = 0; !rc && j0 < v->m.n_cols; j0 += VALUES_CHUNK) {
            size_t n = v->m.n_cols - j0 < VALUES_CHUNK ? v->m.n_cols - j0 : VALUES_CHUNK;
            values_load_chunk(v, s, b, i, j0, n);
            v->k->gain64(s->w64, s->row_sums + j0, &gain, 0, v->norms64 + j0,
                         values_window(v, norm), n, s->v64, s->slack64);
            rc = chunk_peaks(v, s, b->row0 + i, j0, n, row_peaks, err);
        }
    }
    return rc;
}
