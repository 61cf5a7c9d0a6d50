#include "libcore/merge/check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/base/thread.h"

/* One adapter's factors of the matrix in hand, as plain float64. */
struct factors {
    double *l, *r; // [n_rows, rank], [rank, n_cols]
    size_t rank;
    double factor;
};

struct checker {
    const struct merge_plan *p;
    const struct merge_tensor *t;
    const char *where;                          // "file:tensor"
    const char *base, *found;                   // of the matrix in hand
    const char *full;                           // NULL: the base is what is added to
    const struct checkpoint_tensor *new_scales; // of 8-bit floats in the result; NULL: none
    size_t n_rows, n_cols, n_base_rows, row0;
    struct factors *factors;
    double *gains; // by column, or NULL
    struct worker_pool *pool;
    struct slot {
        double *row;
        double delta2, off2;
        struct err err;
    } * slots;
};

static int no_memory(struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "merge check: no memory");
}

static double *as_doubles(const struct tensor *t)
{
    size_t n = (size_t)tensor_n_values(t);
    double *d = sys_malloc((n + 1) * sizeof *d);
    if (d)
        dtype_to_f64(t->dtype, t->data, d, n);
    return d;
}

// ---- factors, by the layouts of libcore/adapter/adapter.h ---------------------------------------

static int load_factors(struct checker *c, struct factors *f, const struct merge_term *term,
                        size_t first_row, size_t expert, struct err *err)
{
    const struct adapter_module *m = term->module;
    size_t r = f->rank = m->rank, n_experts = m->n_experts ? m->n_experts : 1;
    double *a = as_doubles(&m->a), *b = as_doubles(&m->b);
    f->factor = term->factor;
    f->l = sys_malloc((c->n_rows * r + 1) * sizeof *f->l);
    f->r = sys_malloc((r * c->n_cols + 1) * sizeof *f->r);
    bool ok = a && b && f->l && f->r;
    for (size_t k = 0; ok && k < r; k++) {
        for (size_t i = 0; i < c->n_rows; i++)
            f->l[i * r + k] = m->embedding ? a[k * (size_t)m->a.shape[1] + i]
                                           : b[((first_row + i) * r + k) * n_experts + expert];
        for (size_t j = 0; j < c->n_cols; j++)
            f->r[k * c->n_cols + j] =
                m->embedding ? b[j * r + k] : a[(expert * r + k) * c->n_cols + j];
    }
    sys_free(a);
    sys_free(b);
    return ok ? 0 : no_memory(err);
}

static void release_factors(struct checker *c)
{
    for (size_t i = 0; c->factors && i < c->t->n_terms; i++) {
        sys_free(c->factors[i].l);
        sys_free(c->factors[i].r);
    }
    sys_free(c->factors);
    sys_free(c->gains);
    c->factors = NULL;
    c->gains = NULL;
}

// ---- rows ---------------------------------------------------------------------------------------

static const char *row_at(const struct checker *c, const char *data, enum dtype t, size_t row)
{
    return data + row * c->n_cols * (dtype_bits(t) / 8);
}

static double value(const struct tensor *t, size_t i)
{
    double v;
    dtype_to_f64(t->dtype, (const char *)t->data + i * (dtype_bits(t->dtype) / 8), &v, 1);
    return v;
}

static size_t scale_idx(const struct checker *c, size_t row, size_t col)
{
    const struct float8_layout *l = &c->t->scales->layout;
    return row / l->block_rows * l->n_cols + col / l->block_cols;
}

/* Values of the base or the result; 8-bit floats with their scales. */
static void load_base(const struct checker *c, size_t row, size_t j0, size_t n, double *out)
{
    enum dtype t = c->t->base->value.dtype;
    dtype_to_f64(t, row_at(c, c->base, t, row) + j0 * (dtype_bits(t) / 8), out, n);
    for (size_t j = 0; c->t->scales && j < n; j++)
        out[j] *= c->t->scales->values[scale_idx(c, row, j0 + j)];
}

static double new_scale(const struct checker *c, size_t row, size_t col)
{
    return c->new_scales ? value(&c->new_scales->value, scale_idx(c, row, col)) : 1;
}

/* base (or what replaces it) + delta of one row, before any gain. */
static void sum_row(const struct checker *c, size_t row, double *out)
{
    const struct merge_tensor *t = c->t;
    if (c->full)
        dtype_to_f64(t->full->dtype, row_at(c, c->full, t->full->dtype, row), out, c->n_cols);
    else
        load_base(c, row, 0, c->n_cols, out);
    for (size_t a = 0; c->factors && a < t->n_terms; a++) {
        const struct factors *f = &c->factors[a];
        for (size_t k = 0; k < f->rank; k++) {
            double l = f->factor * f->l[row * f->rank + k];
            const double *r = f->r + k * c->n_cols;
            for (size_t j = 0; j < c->n_cols; j++)
                out[j] += l * r[j];
        }
    }
}

static void apply_gain(const struct checker *c, size_t row, double *out)
{
    double square = 0;
    if (!c->t->dora)
        return;
    for (size_t j = 0; j < c->n_cols; j++)
        square += out[j] * out[j];
    double g = c->gains ? 0 : value(&c->t->dora->magnitude, row) / sqrt(square);
    for (size_t j = 0; j < c->n_cols; j++)
        out[j] *= c->gains ? c->gains[j] : g;
}

/* Tokens that were trained: their rows as they are. */
static bool token_row(const struct checker *c, size_t row, double *out)
{
    const struct adapter_module *m = c->t->tokens;
    for (uint32_t i = 0; m && i < m->n_rows; i++) {
        if (m->row_ids[i] == row) {
            dtype_to_f64(m->rows.dtype, tensor_row(&m->rows, i), out, c->n_cols);
            return true;
        }
    }
    return false;
}

/* Stored is one of the two numbers between which the sum lies within float64's own error. */
static bool is_near(enum dtype t, const void *stored, double wanted)
{
    double low = wanted - fabs(wanted) * 1e-11 - 1e-300, high = wanted + fabs(wanted) * 1e-11;
    uint64_t a = 0, b = 0, got = 0;
    dtype_from_f64(t, &low, &a, 1);
    dtype_from_f64(t, &high, &b, 1);
    memcpy(&got, stored, dtype_bits(t) / 8);
    double va, vb, vg;
    dtype_to_f64(t, &a, &va, 1);
    dtype_to_f64(t, &b, &vb, 1);
    dtype_to_f64(t, &got, &vg, 1);
    // A sum of parts that cancel has an error of its parts' size, not of its own.
    return vg == va || vg == vb || fabs(vg - wanted) < 1e-13;
}

static void check_row(struct checker *c, struct slot *s, size_t row)
{
    enum dtype t = c->t->stored.dtype;
    double now[256], old[256];
    if (!token_row(c, row, s->row)) {
        sum_row(c, row, s->row);
        apply_gain(c, row, s->row);
    }
    size_t size = dtype_bits(t) / 8;
    for (size_t j0 = 0; j0 < c->n_cols; j0 += 256) {
        size_t n = c->n_cols - j0 < 256 ? c->n_cols - j0 : 256;
        const char *stored = row_at(c, c->found, t, row) + j0 * size;
        dtype_to_f64(t, stored, now, n);
        memset(old, 0, sizeof old);
        if (row < c->n_base_rows)
            load_base(c, row, j0, n, old);
        for (size_t j = 0; j < n; j++) {
            double wanted = s->row[j0 + j], scale = new_scale(c, row, j0 + j);
            now[j] *= scale;
            s->delta2 += (wanted - old[j]) * (wanted - old[j]);
            s->off2 += (now[j] - wanted) * (now[j] - wanted);
            if (!is_near(t, stored + j * size, scale > 0 ? wanted / scale : 0) && !s->err.code)
                err_set(&s->err, ERR_CORRUPT, "%s[%zu, %zu]: wanted %.9g, got %.9g", c->where,
                        row + c->row0, j0 + j, wanted, now[j]);
        }
    }
}

static void check_rows(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    struct checker *c = arg;
    for (size_t i = begin; i < end && !c->slots[thread_idx].err.code; i++)
        check_row(c, &c->slots[thread_idx], i);
}

// ---- tensors ------------------------------------------------------------------------------------

static int load_gains(struct checker *c, struct err *err)
{
    const struct adapter_module *m = c->t->dora;
    if (!m || !m->embedding)
        return 0;
    c->gains = sys_calloc(c->n_cols, sizeof *c->gains);
    if (!c->gains)
        return no_memory(err);
    for (size_t i = 0; i < c->n_rows; i++) {
        sum_row(c, i, c->slots[0].row);
        for (size_t j = 0; j < c->n_cols; j++)
            c->gains[j] += c->slots[0].row[j] * c->slots[0].row[j];
    }
    for (size_t j = 0; j < c->n_cols; j++)
        c->gains[j] = value(&m->magnitude, j) / sqrt(c->gains[j]);
    return 0;
}

/* One matrix; an expert's rows begin at first_row of its module. */
static int check_matrix(struct checker *c, size_t expert, size_t first_row, struct err *err)
{
    unsigned n_slots = worker_pool_size(c->pool);
    int rc = 0;
    c->factors = sys_calloc(c->t->n_terms + 1, sizeof *c->factors);
    if (!c->factors)
        rc = no_memory(err);
    for (size_t i = 0; !rc && i < c->t->n_terms; i++)
        rc = load_factors(c, &c->factors[i], &c->t->terms[i], first_row, expert, err);
    for (unsigned i = 0; !rc && i < n_slots; i++) {
        sys_free(c->slots[i].row);
        c->slots[i].row = sys_malloc(c->n_cols * sizeof(double));
        if (!c->slots[i].row)
            rc = no_memory(err);
    }
    if (!rc)
        rc = load_gains(c, err);
    if (!rc)
        worker_pool_run(c->pool, c->n_rows, 1, check_rows, c);
    for (unsigned i = 0; !rc && i < n_slots; i++) {
        if (c->slots[i].err.code && err)
            *err = c->slots[i].err;
        rc = c->slots[i].err.code;
    }
    release_factors(c);
    return rc;
}

/* Biases and norms: term by term. */
static int check_vector(struct checker *c, struct err *err)
{
    const struct merge_tensor *t = c->t;
    struct slot *s = &c->slots[0];
    for (size_t j = 0; j < c->n_cols; j++) {
        const struct tensor base = {.dtype = t->stored.dtype, .data = c->base};
        const struct tensor found = {.dtype = t->stored.dtype, .data = c->found};
        double old = value(&base, j), now = value(&found, j);
        double wanted = t->full ? value(t->full, j) : old;
        for (size_t i = 0; t->place.kind == WEIGHT_BIAS && i < t->n_terms; i++)
            wanted += t->terms[i].factor * value(&t->terms[i].module->lora_bias, j);
        s->delta2 += (wanted - old) * (wanted - old);
        s->off2 += (now - wanted) * (now - wanted);
        if (!is_near(t->stored.dtype, c->found + j * (dtype_bits(t->stored.dtype) / 8), wanted))
            return err_set(err, ERR_CORRUPT, "%s[%zu]: wanted %.9g, got %.9g", c->where, j, wanted,
                           now);
    }
    return 0;
}

static int check_changed(struct checker *c, const struct checkpoint_tensor *found, struct err *err)
{
    const struct merge_tensor *t = c->t;
    const struct tensor *x = &t->stored;
    size_t n = x->n_dims == 3 ? (size_t)x->shape[0] : 1, size = dtype_bits(x->dtype) / 8;
    c->n_rows = x->n_dims == 1 ? 1 : (size_t)x->shape[x->n_dims - 2];
    c->n_cols = (size_t)x->shape[x->n_dims - 1];
    c->n_base_rows = x->n_dims == 2 ? (size_t)t->base->value.shape[0] : c->n_rows;
    for (size_t e = 0; e < n; e++) {
        size_t skip = e * c->n_rows * c->n_cols;
        c->base = (const char *)t->base->value.data + skip * (dtype_bits(t->base->value.dtype) / 8);
        c->found = (const char *)found->value.data + skip * size;
        c->full =
            t->full ? (const char *)t->full->data + skip * (dtype_bits(t->full->dtype) / 8) : NULL;
        c->row0 = e * c->n_rows;
        bool alone = t->place.expert >= 0; // one expert's own tensor
        int rc = x->n_dims == 1 ? check_vector(c, err)
                                : check_matrix(c, alone ? (size_t)t->place.expert : e,
                                               alone ? t->place.row0 : 0, err);
        if (rc)
            return rc;
    }
    return 0;
}

static int check_tensor(struct checker *c, const struct checkpoint *merged,
                        struct merge_check_result *out, struct err *err)
{
    const struct merge_tensor *t = c->t;
    const struct checkpoint_tensor *found = checkpoint_find(merged, t->name);
    bool keeps_scales = t->scales && t->scales->layout.scale && !t->converted;
    char got[96], want[96], where[512];
    snprintf(where, sizeof where, "%s:%s", c->p->shards[t->shard_idx].name, t->name);
    c->where = where;
    if (!found || found->value.dtype != t->stored.dtype ||
        !tensor_same_shape(&found->value, &t->stored))
        return err_set(err, ERR_CORRUPT, "%s: wanted %s of %s, got %s", where,
                       dtype_name(t->stored.dtype),
                       tensor_shape_text(&t->stored, want, sizeof want),
                       found ? tensor_shape_text(&found->value, got, sizeof got) : "nothing");
    if (t->scales_of) // judged with the weight that they are of
        return 0;
    c->new_scales = keeps_scales ? checkpoint_find(merged, t->scales->layout.scale->name) : NULL;
    if (t->touched || t->converted) {
        out->n_values += tensor_n_values(&t->stored);
        return check_changed(c, found, err);
    }
    out->n_equal++;
    return memcmp(found->value.data, t->base->value.data, tensor_n_bytes(&t->stored)) == 0
               ? 0
               : err_set(err, ERR_CORRUPT, "%s: differs from the base, which nothing changes here",
                         where);
}

int merge_check(const struct merge_plan *p, const char *folder, struct merge_check_result *out,
                struct err *err)
{
    struct checkpoint *merged = NULL;
    struct checker c = {.p = p};
    *out = (struct merge_check_result){0};
    int rc = checkpoint_open(&merged, folder, err);
    if (!rc)
        rc = worker_pool_open(&c.pool, 0, err);
    unsigned n_slots = rc ? 0 : worker_pool_size(c.pool);
    c.slots = sys_calloc(n_slots + 1, sizeof *c.slots);
    if (!rc && !c.slots)
        rc = no_memory(err);
    for (size_t i = 0; !rc && i < p->n_tensors; i++) {
        c.t = &p->tensors[i];
        if (c.t->dropped)
            continue;
        rc = check_tensor(&c, merged, out, err);
    }
    for (unsigned i = 0; c.slots && i < n_slots; i++) {
        out->delta2 += c.slots[i].delta2;
        out->off2 += c.slots[i].off2;
        sys_free(c.slots[i].row);
    }
    sys_free(c.slots);
    worker_pool_free(c.pool);
    checkpoint_free(merged);
    return rc;
}
