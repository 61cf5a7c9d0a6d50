/*
 * 8-bit floats. Where all values of a scale's block fit at the old scale it stays; else it is the
 * least at which they do, and the block's values are rounded at that. A band of rows that has its
 * scales to itself is made at the old ones and looked through in one pass, and made again when one
 * of them has to change. A scale of many bands, as that of a whole tensor, waits for all of them:
 * threads look through band after band together. Each band is looked through once.
 */
#include <errno.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/merge/stream_impl.h"

enum { BAND_TO_DO, BAND_IN_HAND, BAND_DONE };

int stream_peaks_open(struct stream *s, uint32_t tensor_idx, size_t band_rows, struct err *err)
{
    const struct merge_tensor *t = &s->p->tensors[tensor_idx];
    const struct float8_layout *l = &t->scales->layout;
    struct stream_peaks *p = s->peaks[tensor_idx] = sys_calloc(1, sizeof *p);
    if (!p)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory for scales", t->name);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, NULL);
    p->band_rows = band_rows;
    p->n_bands = ((size_t)t->stored.shape[0] + band_rows - 1) / band_rows;
    p->bands = sys_calloc(p->n_bands, sizeof *p->bands);
    p->peaks = sys_calloc(l->n_rows * l->n_cols, sizeof *p->peaks);
    p->scales = sys_calloc(l->n_rows * l->n_cols, sizeof *p->scales);
    p->ready = sys_calloc(l->n_rows, sizeof *p->ready);
    if (!p->bands || !p->peaks || !p->scales || !p->ready)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory for scales", t->name);
    memcpy(p->scales, t->scales->values, l->n_rows * l->n_cols * sizeof *p->scales);
    return 0;
}

void stream_peaks_free(struct stream_peaks *p)
{
    if (!p)
        return;
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->changed);
    sys_free(p->bands);
    sys_free(p->peaks);
    sys_free(p->scales);
    sys_free(p->ready);
    sys_free(p);
}

/* Rows [row0, row0 + n) of the base into `rows`, or what replaces them. */
static int load_rows(struct stream *s, const struct stream_unit *u, size_t row0, size_t n,
                     void *rows, struct values_block *b, struct err *err)
{
    const struct merge_tensor *t = stream_weight(s, u);
    b->row0 = row0;
    b->n_rows = n;
    b->base = b->source = rows;
    b->source_dtype = t->base->value.dtype;
    if (t->full) {
        b->source_dtype = t->full->dtype;
        b->source = (const char *)t->full->data +
                    (u->source_row + row0) * u->n_cols * (dtype_bits(t->full->dtype) / 8);
    }
    return stream_read(s, u, row0 * u->n_cols * u->in_size, rows, n * u->n_cols * u->in_size, err);
}

/* Peaks of a band, or that it failed. */
static void publish(struct stream_peaks *p, size_t band, const double *peaks, size_t first,
                    size_t n, int rc)
{
    pthread_mutex_lock(&p->lock);
    for (size_t i = 0; !rc && i < n; i++) {
        double *to = &p->peaks[first + i];
        *to = peaks[i] > *to ? peaks[i] : *to;
    }
    p->bands[band] = rc ? BAND_TO_DO : BAND_DONE;
    p->failed = p->failed || rc;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

/* The peaks of one band, into the shared ones. A scale of several bands has the largest of all,
 * in whatever order they come. */
static int look_through(struct stream *s, struct stream_worker *w, struct stream_unit *u,
                        struct stream_peaks *p, size_t band, void *buffer, struct err *err)
{
    const struct merge_tensor *t = stream_weight(s, u);
    const struct float8_layout *l = &t->scales->layout;
    size_t row0 = band * p->band_rows, first = row0 / l->block_rows;
    size_t n = u->n_rows - row0 < p->band_rows ? u->n_rows - row0 : p->band_rows;
    size_t n_peaks = ((row0 + n - 1) / l->block_rows - first + 1) * l->n_cols;
    double *peaks = sys_calloc(n_peaks, sizeof *peaks);
    if (!peaks)
        return err_set(err, ERR_NO_MEMORY, "no memory for scales");
    struct values_block b = {0};
    int rc = load_rows(s, u, row0, n, buffer, &b, err);
    if (!rc)
        rc = values_peaks(u->values, w->scratch, &b, peaks, first, err);
    publish(p, band, peaks, first * l->n_cols, n_peaks, rc);
    sys_free(peaks);
    return rc;
}

/* A band in [first, end) to be done, or end when all are, or waits. Locked. */
static size_t next_band(struct stream_peaks *p, size_t first, size_t end)
{
    for (;;) {
        bool waiting = false;
        for (size_t i = first; i < end; i++) {
            if (p->bands[i] == BAND_TO_DO)
                return i;
            waiting = waiting || p->bands[i] != BAND_DONE;
        }
        if (!waiting || p->failed)
            return end;
        pthread_cond_wait(&p->changed, &p->lock);
    }
}

/* Locked: the scales of row `i` of scales, whose bands are done. */
static void decide_scales(const struct stream *s, const struct merge_tensor *t,
                          struct stream_peaks *p, size_t i)
{
    const struct float8_layout *l = &t->scales->layout;
    for (size_t j = 0; !p->ready[i] && j < l->n_cols; j++) {
        size_t idx = i * l->n_cols + j;
        double old = t->scales->values[idx];
        p->scales[idx] = float8_fits(t->stored.dtype, p->peaks[idx], old)
                             ? old
                             : float8_scale_for(t->stored.dtype, p->peaks[idx],
                                                l->scale->value.dtype, s->p->float8.power_of_two);
    }
    p->ready[i] = 1;
}

/* The result's scales of rows [row0, row0 + n) are there after this. Uses the buffer. */
static int need_scales(struct stream *s, struct stream_worker *w, struct stream_unit *u,
                       size_t row0, size_t n, void *buffer, struct err *err)
{
    const struct merge_tensor *t = stream_weight(s, u);
    struct stream_peaks *p = s->peaks[t - s->p->tensors];
    size_t block = t->scales->layout.block_rows, first = row0 / block,
           last = (row0 + n - 1) / block;
    size_t end_row = (last + 1) * block < u->n_rows ? (last + 1) * block : u->n_rows;
    size_t band0 = first * block / p->band_rows, end = (end_row - 1) / p->band_rows + 1;
    int rc = 0;
    pthread_mutex_lock(&p->lock);
    for (size_t band; !rc && (band = next_band(p, band0, end)) < end;) {
        p->bands[band] = BAND_IN_HAND;
        pthread_mutex_unlock(&p->lock);
        rc = look_through(s, w, u, p, band, buffer, err);
        pthread_mutex_lock(&p->lock);
    }
    if (!rc && p->failed)
        rc = err_set(err, ERR_IO, "its scales could not be made"); // the first one said why
    for (size_t i = first; !rc && i <= last; i++)
        decide_scales(s, t, p, i);
    pthread_mutex_unlock(&p->lock);
    return rc;
}

/* The scales themselves, as a tensor of the result. */
static int compute_scales(struct stream *s, struct stream_worker *w, struct stream_unit *u,
                          const struct stream_block *b, char *buffer, struct values_stats *stats,
                          struct err *err)
{
    const struct merge_tensor *t = stream_weight(s, u);
    const struct float8_layout *l = &t->scales->layout;
    const struct stream_peaks *p = s->peaks[t - s->p->tensors];
    size_t n = l->n_rows * l->n_cols, size = dtype_bits(l->scale->value.dtype) / 8;
    int rc = need_scales(s, w, u, 0, u->n_rows, buffer, err);
    if (rc)
        return rc;
    memcpy(buffer, l->scale->value.data, b->n_bytes);
    *stats = (struct values_stats){.n_values = n};
    for (size_t i = 0; i < n; i++) {
        double old = t->scales->values[i], now = p->scales[i];
        stats->base2 += old * old;
        stats->delta2 += (now - old) * (now - old);
        if (now == old)
            continue;
        stats->n_changed++;
        if (!dtype_from_f64(l->scale->value.dtype, &now, buffer + i * size, 1) ||
            dtype_find_non_finite(l->scale->value.dtype, buffer + i * size, 1) == 0)
            return err_set(err, ERR_REFUSED,
                           "[%zu]: the scale that the sum needs is beyond what "
                           "%s holds",
                           i, dtype_name(l->scale->value.dtype));
    }
    return 0;
}

/* Makes the block at the old scales and looks through it meanwhile, if nobody has looked through
 * its band. *made: it is what is to be written. */
static int try_old_scales(struct stream *s, struct stream_worker *w, struct stream_unit *u,
                          const struct stream_block *b, char *buffer, struct values_stats *stats,
                          bool *made, struct err *err)
{
    const struct merge_tensor *t = stream_weight(s, u);
    const struct float8_layout *l = &t->scales->layout;
    struct stream_peaks *p = s->peaks[u->tensor_idx];
    size_t band = b->row0 / p->band_rows, first = b->row0 / l->block_rows;
    size_t n = ((b->row0 + b->n_rows - 1) / l->block_rows - first + 1) * l->n_cols;
    if (l->block_rows > p->band_rows)
        return 0;
    pthread_mutex_lock(&p->lock);
    bool mine = p->bands[band] == BAND_TO_DO;
    p->bands[band] = mine ? BAND_IN_HAND : p->bands[band];
    pthread_mutex_unlock(&p->lock);
    if (!mine)
        return 0;
    double *peaks = sys_calloc(n, sizeof *peaks);
    struct values_block block = {
        .out = buffer, .stats = stats, .peaks = peaks, .first_peak_row = first};
    int rc = peaks ? load_rows(s, u, b->row0, b->n_rows, buffer, &block, err)
                   : err_set(err, ERR_NO_MEMORY, "no memory for scales");
    if (!rc)
        rc = values_block(u->values, w->scratch, &block, err);
    publish(p, band, peaks, first * l->n_cols, n, rc);
    sys_free(peaks);
    if (!rc)
        rc = need_scales(s, w, u, b->row0, b->n_rows, buffer, err);
    const double *old = t->scales->values + first * l->n_cols;
    *made = !rc && memcmp(p->scales + first * l->n_cols, old, n * sizeof *old) == 0;
    return rc;
}

int stream_compute_float8(struct stream *s, struct stream_worker *w, struct stream_unit *u,
                          const struct stream_block *b, char *buffer, struct values_stats *stats,
                          struct err *err)
{
    if (u->is_scales)
        return compute_scales(s, w, u, b, buffer, stats, err);
    struct values_block block = {.out = buffer, .stats = stats};
    bool made = false;
    int rc = 0;
    if (s->peaks[u->tensor_idx]) {
        rc = try_old_scales(s, w, u, b, buffer, stats, &made, err);
        if (!rc && !made)
            rc = need_scales(s, w, u, b->row0, b->n_rows, buffer, err);
    }
    if (rc || made)
        return rc;
    // What is smaller than its result lies at the buffer's end and is used up in order.
    size_t n = b->n_rows * u->n_cols;
    rc = load_rows(s, u, b->row0, b->n_rows, buffer + n * (u->out_size - u->in_size), &block, err);
    return rc ? rc : values_block(u->values, w->scratch, &block, err);
}
