#include "libcore/merge/values.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/merge/values_impl.h"

void values_stats_add(struct values_stats *to, const struct values_stats *from)
{
    to->n_values += from->n_values;
    to->n_changed += from->n_changed;
    to->base2 += from->base2;
    to->delta2 += from->delta2;
    to->lost2 += from->lost2;
}

// ---- instruction sets ---------------------------------------------------------------------------

static size_t all_kernels(const struct values_kernels **out)
{
    size_t n = 0;
    out[n++] = &values_plain;
#if defined(__x86_64__)
    if (values_avx2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        out[n++] = values_avx2;
    if (n == 2 && values_avx512 && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        out[n++] = values_avx512;
#endif
    return n;
}

static _Atomic(const struct values_kernels *) chosen;

size_t values_kernel_names(const char **names, size_t max)
{
    const struct values_kernels *all[3];
    size_t n = all_kernels(all);
    for (size_t i = 0; i < n && i < max; i++)
        names[i] = all[i]->name;
    return n < max ? n : max;
}

bool values_use(const char *name)
{
    const struct values_kernels *all[3];
    size_t n = all_kernels(all);
    for (size_t i = n; i-- > 0;) {
        if (name && strcmp(all[i]->name, name) != 0)
            continue;
        atomic_store(&chosen, all[i]);
        return true;
    }
    return false;
}

static const struct values_kernels *kernels(void)
{
    const struct values_kernels *k = atomic_load(&chosen);
    if (!k) {
        values_use(NULL);
        k = atomic_load(&chosen);
    }
    return k;
}

// ---- preparing ----------------------------------------------------------------------------------

static size_t total_rank(const struct values_matrix *m)
{
    size_t rank = 0;
    for (size_t t = 0; t < m->n_pairs; t++)
        rank += m->pairs[t].rank;
    return rank;
}

/* float32 sums are good for 16-bit results of inputs that float32 holds. */
static bool needs_wide(const struct values_matrix *m)
{
    if ((m->dtype != DTYPE_BF16 && m->dtype != DTYPE_F16) || m->magnitude ||
        m->source_dtype == DTYPE_F64 || m->source_scales || m->base_dtype != DTYPE_NONE)
        return true;
    for (size_t t = 0; t < m->n_pairs; t++) {
        if (m->pairs[t].left.tensor->dtype == DTYPE_F64 ||
            m->pairs[t].right.tensor->dtype == DTYPE_F64)
            return true;
    }
    return false;
}

size_t values_padded(size_t n_cols)
{
    return (n_cols + VALUES_PANEL - 1) / VALUES_PANEL * VALUES_PANEL;
}

uint64_t values_prepared_bytes(const struct values_matrix *m)
{
    uint64_t size = needs_wide(m) ? sizeof(double) : sizeof(float);
    return (total_rank(m) + 1) * values_padded(m->n_cols) * size;
}

/* Values (k, j0…) of R as float64. */
static void load_right(const struct values_view *v, size_t k, size_t j0, size_t n, double *dst)
{
    size_t size = dtype_bits(v->tensor->dtype) / 8, first = v->offset + k * v->row + j0 * v->col;
    if (v->col == 1) {
        dtype_to_f64(v->tensor->dtype, (const char *)v->tensor->data + first * size, dst, n);
        return;
    }
    for (size_t j = 0; j < n; j++)
        dst[j] = values_get(v->tensor, first + j * v->col);
}

/* Packs one row of R (number k of all pairs together) and adds its squares to the norms. */
static void pack_row(struct values *v, const struct values_pair *p, size_t k, size_t k_all)
{
    double part[VALUES_PANEL];
    for (size_t j0 = 0; j0 < v->m.n_cols; j0 += VALUES_PANEL) {
        size_t n = v->m.n_cols - j0 < VALUES_PANEL ? v->m.n_cols - j0 : VALUES_PANEL;
        load_right(&p->right, k, j0, n, part);
        for (size_t j = 0; j < n; j++) {
            v->norms64[j0 + j] += part[j] * part[j];
            if (v->wide)
                v->right[k_all * v->stride + j0 + j] = part[j];
            else
                v->packed[(j0 / VALUES_PANEL * v->rank + k_all) * VALUES_PANEL + j] =
                    (float)part[j];
        }
    }
}

static void pack(struct values *v)
{
    size_t k_all = 0;
    for (size_t t = 0; t < v->m.n_pairs; t++) {
        for (size_t k = 0; k < v->m.pairs[t].rank; k++)
            pack_row(v, &v->m.pairs[t], k, k_all++);
    }
    for (size_t j = 0; j < v->stride; j++) {
        v->norms64[j] = sqrt(v->norms64[j]) * (1 + 0x1p-20);
        if (!v->wide)
            v->norms[j] = (float)v->norms64[j] * (1 + 0x1p-20f);
    }
}

static int check_types(const struct values_matrix *m, struct err *err)
{
    for (size_t t = 0; t < m->n_pairs; t++) {
        const struct values_pair *p = &m->pairs[t];
        if (!dtype_is_float(p->left.tensor->dtype) || !dtype_is_float(p->right.tensor->dtype))
            return err_set(err, ERR_REFUSED, "factors of type %s are no numbers to add",
                           dtype_name(p->left.tensor->dtype));
    }
    if (m->dtype == DTYPE_BF16 || m->dtype == DTYPE_F16 || m->dtype == DTYPE_F32 ||
        m->dtype == DTYPE_F64 || dtype_is_float8(m->dtype))
        return 0;
    return err_set(err, ERR_REFUSED, "weights of type %s cannot be merged into",
                   dtype_name(m->dtype));
}

int values_prepare(struct values **out, const struct values_matrix *m, struct err *err)
{
    *out = NULL;
    int rc = check_types(m, err);
    if (rc)
        return rc;
    struct values *v = sys_calloc(1, sizeof *v);
    if (!v)
        return err_set(err, ERR_NO_MEMORY, "no memory for factors");
    v->m = *m;
    v->k = kernels();
    v->wide = needs_wide(m);
    v->rank = total_rank(m);
    v->stride = values_padded(m->n_cols);
    v->n_panels = v->stride / VALUES_PANEL;
    size_t n = v->rank * v->stride;
    if (v->wide) {
        v->right = sys_calloc(n + 1, sizeof *v->right);
    } else {
        v->packed = sys_calloc(n + 1, sizeof *v->packed);
        v->norms = sys_calloc(v->stride + 1, sizeof *v->norms);
    }
    v->norms64 = sys_calloc(v->stride + 1, sizeof *v->norms64);
    if (!v->norms64 || (v->wide ? !v->right : !v->packed || !v->norms)) {
        values_free(v);
        return err_set(err, ERR_NO_MEMORY, "no memory for factors of %zu values", n);
    }
    pack(v);
    if (!v->wide) {
        sys_free(v->norms64);
        v->norms64 = NULL;
    }
    if (m->device && v->rank)
        rc = values_device_open(v, err);
    if (rc) {
        values_free(v);
        return rc;
    }
    *out = v;
    return 0;
}

void values_free(struct values *v)
{
    if (!v)
        return;
    values_device_close(v);
    sys_free(v->packed);
    sys_free(v->norms);
    sys_free(v->right);
    sys_free(v->norms64);
    sys_free(v);
}

int values_scratch_open(struct values_scratch **out, struct err *err)
{
    *out = sys_calloc(1, sizeof **out);
    return *out ? 0 : err_set(err, ERR_NO_MEMORY, "no memory for scratch");
}

void values_scratch_free(struct values_scratch *s)
{
    if (!s)
        return;
    values_device_release(s);
    sys_free(s->left);
    sys_free(s->exact_left);
    sys_free(s->row);
    sys_free(s);
}

int values_reserve(struct values_scratch *s, const struct values *v, struct err *err)
{
    size_t left =
        v->wide ? (v->rank + 1) * sizeof(double) : VALUES_GROUP * (v->rank + 1) * sizeof(float);
    if (left > s->left_bytes) {
        sys_free(s->left);
        s->left = sys_malloc(left);
        s->left_bytes = s->left ? left : 0;
    }
    size_t exact = VALUES_GROUP * (v->rank + 1) * sizeof(double);
    if (!v->wide && exact > s->exact_left_bytes) {
        sys_free(s->exact_left);
        s->exact_left = sys_malloc(exact);
        s->exact_left_bytes = s->exact_left ? exact : 0;
    }
    if (v->wide && s->row_n < v->m.n_cols) {
        sys_free(s->row);
        s->row = sys_reallocarray(NULL, v->m.n_cols, sizeof *s->row);
        s->row_n = s->row ? v->m.n_cols : 0;
    }
    return s->left && (v->wide ? s->row : s->exact_left)
               ? 0
               : err_set(err, ERR_NO_MEMORY, "no memory for scratch");
}

// ---- what both ways share -----------------------------------------------------------------------

const void *values_ptr(enum dtype t, const void *data, size_t idx)
{
    return (const char *)data + idx * (dtype_bits(t) / 8);
}

void values_load(const struct values_kernels *k, enum dtype t, const void *src, float *dst,
                 size_t n)
{
    if (t == DTYPE_BF16 && (uintptr_t)src % 2 == 0)
        k->load_bf16(src, dst, n);
    else if (t == DTYPE_F16 && (uintptr_t)src % 2 == 0)
        k->load_f16(src, dst, n);
    else
        dtype_to_f32(t, src, dst, n);
}

int values_not_finite(const struct values_matrix *m, size_t i, size_t j, double w, struct err *err)
{
    if (!isfinite(w))
        return err_set(err, ERR_CORRUPT, "[%zu, %zu]: the base has %s here", i, j,
                       isnan(w) ? "NaN" : "Inf");
    return err_set(err, ERR_REFUSED, "[%zu, %zu]: the sum is beyond what %s holds", i, j,
                   dtype_name(m->dtype));
}

bool values_finite_bits(enum dtype t, uint64_t bits)
{
    return dtype_find_non_finite(t, &bits, 1) == 1; // little-endian: the low bytes are the value
}

/* One value in doubt. */
int values_settle(const struct values *v, size_t i, size_t j, double w, double gain, uint64_t *bits,
                  struct err *err)
{
    if (isfinite(w)) {
        *bits = values_exact(&v->m, i, j, w, gain);
        if (values_finite_bits(v->m.dtype, *bits))
            return 0;
    }
    return values_not_finite(&v->m, i, j, w, err);
}

static size_t count_changed(const void *a, const void *b, size_t size, size_t n)
{
    size_t changed = 0;
    if (!b)
        return n;
    for (size_t j = 0; j < n; j++)
        changed += memcmp((const char *)a + j * size, (const char *)b + j * size, size) != 0;
    return changed;
}

/* base, wanted and stored values of a chunk into the statistics; all float64. */
static void count_wide(struct values_stats *st, const double *old, const double *wanted,
                       const double *now, size_t n)
{
    double base2 = 0, delta2 = 0, lost2 = 0;
    for (size_t j = 0; j < n; j++) {
        double lost = now[j] - wanted[j], d = wanted[j] - old[j];
        base2 += old[j] * old[j];
        delta2 += d * d;
        lost2 += lost * lost;
    }
    st->base2 += base2;
    st->delta2 += delta2;
    st->lost2 += lost2;
}

void values_store(const struct values_block *b, enum dtype t, size_t idx, const void *bits,
                  const double *wanted, size_t n)
{
    double old[VALUES_CHUNK] = {0}, now[VALUES_CHUNK];
    size_t size = dtype_bits(t) / 8;
    const void *base = b->base ? values_ptr(t, b->base, idx) : NULL;
    if (base)
        dtype_to_f64(t, base, old, n);
    dtype_to_f64(t, bits, now, n);
    count_wide(b->stats, old, wanted, now, n);
    b->stats->n_changed += count_changed(bits, base, size, n);
    memcpy((char *)b->out + idx * size, bits, n * size);
}

// ---- blocks ----

int values_block(const struct values *v, struct values_scratch *s, const struct values_block *b,
                 struct err *err)
{
    int rc = values_reserve(s, v, err);
    if (rc)
        return rc;
    *b->stats = (struct values_stats){.n_values = b->n_rows * v->m.n_cols};
    if (values_on_device(v, b))
        return values_block_device(v, s, b, err);
    return v->wide ? values_block_wide(v, s, b, err) : values_block_narrow(v, s, b, err);
}

// ---- without pairs ------------------------------------------------------------------------------

static int check_finite(enum dtype t, const void *bits, enum dtype source_dtype, const void *source,
                        size_t n, size_t idx, size_t n_cols, struct err *err)
{
    size_t j = dtype_find_non_finite(t, bits, n);
    if (j == n)
        return 0;
    double w;
    dtype_to_f64(source_dtype, values_ptr(source_dtype, source, j), &w, 1);
    struct values_matrix m = {.dtype = t};
    return values_not_finite(&m, (idx + j) / n_cols, (idx + j) % n_cols, w, err);
}

int values_replace(enum dtype dtype, size_t n_rows, size_t n_cols, const struct values_block *b,
                   struct err *err)
{
    double wanted[VALUES_CHUNK];
    uint64_t bits[VALUES_CHUNK];
    size_t total = n_rows * n_cols;
    *b->stats = (struct values_stats){.n_values = total};
    for (size_t idx = 0; idx < total; idx += VALUES_CHUNK) {
        size_t n = total - idx < VALUES_CHUNK ? total - idx : VALUES_CHUNK;
        const void *source = values_ptr(b->source_dtype, b->source, idx);
        if (!dtype_to_f64(b->source_dtype, source, wanted, n) ||
            !dtype_from_f64(dtype, wanted, bits, n))
            return err_set(err, ERR_REFUSED, "%s cannot be stored as %s",
                           dtype_name(b->source_dtype), dtype_name(dtype));
        int rc = check_finite(dtype, bits, b->source_dtype, source, n, idx, n_cols, err);
        if (rc)
            return rc;
        values_store(b, dtype, idx, bits, wanted, n);
    }
    return 0;
}

int values_vector(enum dtype dtype, size_t n, const struct values_vector *terms, size_t n_terms,
                  const struct values_block *b, struct err *err)
{
    double *x = sys_calloc(2 * n_terms + 1, sizeof *x), *y = x ? x + n_terms : NULL;
    if (!x)
        return err_set(err, ERR_NO_MEMORY, "no memory for %zu terms", n_terms);
    *b->stats = (struct values_stats){.n_values = n};
    struct values_matrix m = {.dtype = dtype};
    int rc = 0;
    for (size_t j = 0; !rc && j < n; j++) {
        double w, wanted;
        dtype_to_f64(b->source_dtype, values_ptr(b->source_dtype, b->source, j), &w, 1);
        wanted = w;
        for (size_t t = 0; t < n_terms; t++) {
            x[t] = terms[t].factor;
            y[t] = values_get(terms[t].tensor, j);
            wanted += x[t] * y[t];
        }
        uint64_t bits = values_exact_sum(dtype, w, x, y, n_terms);
        if (!isfinite(w) || !values_finite_bits(dtype, bits))
            rc = values_not_finite(&m, j, 0, w, err);
        else
            values_store(b, dtype, j, &bits, &wanted, 1);
    }
    sys_free(x);
    return rc;
}
