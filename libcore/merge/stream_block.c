/* One block: its base rows, the terms of the plan, replaced rows. */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/merge/stream_impl.h"

int stream_read(const struct stream *s, const struct stream_unit *u, uint64_t offset, void *buffer,
                uint64_t n, struct err *err)
{
    return file_pread_all(s->in_fds[u->in_shard_idx], buffer, n, u->in_offset + offset,
                          safetensors_path(s->p->shards[u->in_shard_idx].base), err);
}

static const struct merge_tensor *tensor_of(const struct stream *s, const struct stream_unit *u)
{
    return &s->p->tensors[u->tensor_idx];
}

static int named(const struct stream *s, const struct stream_unit *u, int rc, struct err *err)
{
    return rc && err
               ? err_prefix(err, "%s:%s", s->p->shards[u->shard_idx].name, tensor_of(s, u)->name)
               : rc;
}

static size_t row_bytes(const struct stream *s, const struct stream_unit *u)
{
    return u->n_cols * (dtype_bits(tensor_of(s, u)->stored.dtype) / 8);
}

// ---- what a unit's blocks share -----------------------------------------------------------------

/* The adapter's tensors as L and R of this unit (libcore/adapter/adapter.h has the layouts). */
static struct values_pair pair_of(const struct stream_unit *u, const struct merge_term *term)
{
    const struct adapter_module *m = term->module;
    size_t r = m->rank, n = m->n_experts ? m->n_experts : 1;
    size_t in = (size_t)m->a.shape[1];
    struct values_pair p = {.rank = m->rank, .factor = term->factor};
    if (m->embedding) { // (B A)^T: A[r, vocab], B[dim, r]
        p.left = (struct values_view){&m->a, u->first_row, 1, in};
        p.right = (struct values_view){&m->b, 0, 1, r};
        return p;
    }
    p.left = (struct values_view){&m->b, u->first_row * r * n + u->expert, r * n, n};
    p.right = (struct values_view){&m->a, u->expert * r * in, in, 1};
    return p;
}

/* DoRA on an embedding: m[dim] / ||column of E + s (B A)^T||, over all rows. */
static int column_gains(struct stream *s, struct stream_worker *w, struct stream_unit *u,
                        void *buffer, struct err *err)
{
    const struct merge_tensor *t = tensor_of(s, u);
    size_t size = dtype_bits(t->stored.dtype) / 8;
    double *m = u->column_gains = sys_calloc(u->n_cols, sizeof *m);
    int rc = m ? 0 : err_set(err, ERR_NO_MEMORY, "no memory for column norms");
    for (size_t i = 0; !rc && i < u->n_rows; i += u->block_rows) {
        size_t n = u->n_rows - i < u->block_rows ? u->n_rows - i : u->block_rows;
        rc = stream_read(s, u, i * u->n_cols * size, buffer, n * u->n_cols * size, err);
        if (!rc)
            rc = values_add_column_squares(u->values, w->scratch, i, n, buffer, m, err);
    }
    for (size_t j = 0; !rc && j < u->n_cols; j++) {
        double magnitude;
        const struct tensor *v = &t->dora->magnitude;
        dtype_to_f64(v->dtype, (const char *)v->data + j * (dtype_bits(v->dtype) / 8), &magnitude,
                     1);
        m[j] = magnitude / sqrt(m[j]);
        if (!isfinite(m[j]))
            rc = err_set(err, ERR_REFUSED, "[:, %zu]: the column's norm is 0, DoRA divides by it",
                         j);
    }
    return rc;
}

/* 8-bit floats come with scales, and may have others in the result. */
static void set_float8(const struct stream *s, struct stream_unit *u, const struct merge_tensor *t,
                       struct values_matrix *m)
{
    const struct float8_layout *l = &t->scales->layout;
    const struct stream_peaks *peaks = s->peaks[t - s->p->tensors];
    u->scales = (struct values_scales){l->block_rows, l->block_cols, l->n_cols, t->scales->values};
    u->new_scales = u->scales;
    if (peaks)
        u->new_scales.values = peaks->scales;
    m->base_dtype = t->base->value.dtype;
    m->base_scales = &u->scales;
    m->source_scales = t->full ? NULL : &u->scales;
    m->stored_scales = t->converted ? NULL : &u->new_scales;
}

static int prepare(struct stream *s, struct stream_worker *w, struct stream_unit *u, void *buffer,
                   struct err *err)
{
    const struct merge_tensor *t = stream_weight(s, u);
    if ((!t->n_terms && !t->scales) || (t->module && t->place.kind != WEIGHT_MATRIX))
        return 0;
    u->pairs = sys_calloc(t->n_terms + 1, sizeof *u->pairs);
    if (!u->pairs)
        return err_set(err, ERR_NO_MEMORY, "no memory for factors");
    for (size_t i = 0; i < t->n_terms; i++)
        u->pairs[i] = pair_of(u, &t->terms[i]);
    struct values_matrix m = {
        .dtype = t->stored.dtype,
        .source_dtype = t->full ? t->full->dtype : t->base->value.dtype,
        .n_rows = u->n_rows,
        .n_cols = u->n_cols,
        .pairs = u->pairs,
        .n_pairs = t->n_terms,
        .magnitude = t->dora ? &t->dora->magnitude : NULL,
        .device = s->device,
    };
    if (t->scales)
        set_float8(s, u, t, &m);
    int rc = values_prepare(&u->values, &m, err);
    if (rc || !t->dora || !t->dora->embedding)
        return rc;
    rc = column_gains(s, w, u, buffer, err);
    if (rc)
        return rc;
    values_free(u->values); // once more, knowing the gains
    m.by_column = true;
    m.column_gains = u->column_gains;
    return values_prepare(&u->values, &m, err);
}

int stream_prepare(struct stream *s, struct stream_worker *w, struct stream_unit *u, void *buffer,
                   struct err *err)
{
    pthread_mutex_lock(&u->lock);
    if (!u->prepared) {
        u->prepare_rc = prepare(s, w, u, buffer, err);
        u->prepared = true;
    } else if (u->prepare_rc) {
        err_set(err, u->prepare_rc, "its factors could not be prepared"); // the first one said why
    }
    int rc = u->prepare_rc;
    pthread_mutex_unlock(&u->lock);
    return rc;
}

void stream_unit_release(struct stream_unit *u)
{
    values_free(u->values);
    sys_free(u->pairs);
    sys_free(u->column_gains);
    u->values = NULL;
    u->pairs = NULL;
    u->column_gains = NULL;
}

// ---- rows ---------------------------------------------------------------------------------------

/* Rows [row, row + n) of the unit, which lie at `rows` of the block's buffer. */
static int compute_rows(struct stream *s, struct stream_worker *w, struct stream_unit *u,
                        size_t row, size_t n, void *rows, struct values_stats *total,
                        struct err *err)
{
    const struct merge_tensor *t = tensor_of(s, u);
    struct values_stats stats;
    struct values_block b = {.row0 = row,
                             .n_rows = n,
                             .source = rows,
                             .source_dtype = t->stored.dtype,
                             .base = row < u->n_base_rows ? rows : NULL,
                             .out = rows,
                             .stats = &stats};
    if (t->full) {
        size_t idx = (u->source_row + row) * u->n_cols;
        b.source = (const char *)t->full->data + idx * (dtype_bits(t->full->dtype) / 8);
        b.source_dtype = t->full->dtype;
    }
    int rc = u->values ? values_block(u->values, w->scratch, &b, err)
                       : values_replace(t->stored.dtype, n, u->n_cols, &b, err);
    values_stats_add(total, &stats);
    return rc;
}

static int replace_row(struct stream *s, struct stream_unit *u, size_t row, size_t token_idx,
                       void *rows, struct values_stats *total, struct err *err)
{
    const struct merge_tensor *t = tensor_of(s, u);
    struct values_stats stats;
    struct values_block b = {.n_rows = 1,
                             .source = tensor_row(&t->tokens->rows, token_idx),
                             .source_dtype = t->tokens->rows.dtype,
                             .base = row < u->n_base_rows ? rows : NULL,
                             .out = rows,
                             .stats = &stats};
    int rc = values_replace(t->stored.dtype, 1, u->n_cols, &b, err);
    values_stats_add(total, &stats);
    return rc;
}

/* Trained tokens cut the block into runs of other rows. */
static int compute_matrix(struct stream *s, struct stream_worker *w, struct stream_unit *u,
                          const struct stream_block *b, char *buffer, struct values_stats *total,
                          struct err *err)
{
    const struct adapter_module *tokens = tensor_of(s, u)->tokens;
    size_t row = b->row0, end = b->row0 + b->n_rows, next = 0, size = row_bytes(s, u);
    size_t n_tokens = tokens ? tokens->n_rows : 0;
    while (next < n_tokens && tokens->row_ids[next] < row)
        next++;
    int rc = 0;
    while (!rc && row < end) {
        size_t stop = next < n_tokens && tokens->row_ids[next] < end ? tokens->row_ids[next] : end;
        char *at = buffer + (row - b->row0) * size;
        if (stop > row) {
            rc = compute_rows(s, w, u, row, stop - row, at, total, err);
            row = stop;
        } else {
            rc = replace_row(s, u, row, next++, at, total, err);
            row++;
        }
    }
    return rc;
}

static int compute_vector(struct stream *s, struct stream_unit *u, void *buffer,
                          struct values_stats *total, struct err *err)
{
    const struct merge_tensor *t = tensor_of(s, u);
    struct values_block b = {.n_rows = 1,
                             .source = t->full ? t->full->data : buffer,
                             .source_dtype = t->full ? t->full->dtype : t->stored.dtype,
                             .base = buffer,
                             .out = buffer,
                             .stats = total};
    if (t->place.kind != WEIGHT_BIAS || !t->n_terms)
        return values_replace(t->stored.dtype, 1, u->n_cols, &b, err);
    struct values_vector *terms = sys_calloc(t->n_terms, sizeof *terms);
    if (!terms)
        return err_set(err, ERR_NO_MEMORY, "no memory for %zu terms", t->n_terms);
    for (size_t i = 0; i < t->n_terms; i++)
        terms[i] = (struct values_vector){&t->terms[i].module->lora_bias, t->terms[i].factor};
    int rc = values_vector(t->stored.dtype, u->n_cols, terms, t->n_terms, &b, err);
    sys_free(terms);
    return rc;
}

int stream_compute(struct stream *s, struct stream_worker *w, size_t block_idx, void *buffer,
                   struct err *err)
{
    const struct stream_block *b = &s->blocks[block_idx];
    struct stream_unit *u = &s->units[b->unit_idx];
    struct values_stats *total = &s->block_stats[block_idx];
    if (u->copy)
        return stream_read(s, u, b->offset, buffer, b->n_bytes, err);
    int rc = stream_prepare(s, w, u, buffer, err);
    if (!rc && stream_weight(s, u)->scales)
        return named(s, u, stream_compute_float8(s, w, u, b, buffer, total, err), err);
    if (!rc && b->row0 < u->n_base_rows)
        rc = stream_read(s, u, b->offset, buffer, b->n_bytes, err);
    if (!rc)
        rc = tensor_of(s, u)->stored.n_dims == 1 ? compute_vector(s, u, buffer, total, err)
                                                 : compute_matrix(s, w, u, b, buffer, total, err);
    return named(s, u, rc, err);
}
