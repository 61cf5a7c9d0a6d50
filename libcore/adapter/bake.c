#include "libcore/adapter/bake.h"

#include <math.h>
#include <string.h>

#include "libcore/adapter/builder.h"
#include "libcore/base/sys.h"

struct baker {
    struct adapter_builder *b;
    const struct adapter *a;
    struct bake_report report;
    struct err *err;
};

static int no_memory(struct baker *k)
{
    return err_set(k->err, ERR_NO_MEMORY, "baking scales: no memory");
}

/* n scaled values at dst, and whether all are numbers of type t. */
static bool scale_values(enum dtype t, const void *src, double scale, double *dst, size_t n)
{
    uint64_t narrow;
    double back;
    bool exact = dtype_to_f64(t, src, dst, n);
    for (size_t i = 0; i < n; i++) {
        dst[i] *= scale;
        exact = exact && dtype_from_f64(t, &dst[i], &narrow, 1) &&
                dtype_to_f64(t, &narrow, &back, 1) && back == dst[i];
    }
    return exact;
}

static int note_rounding(struct baker *k, const char *module, const double *values, size_t n)
{
    k->report.n_rounded++;
    for (size_t i = 0; i < n; i++) {
        float v = (float)values[i];
        if (!isfinite(v))
            return err_set(k->err, ERR_REFUSED, "%s: scaled values of B pass float32", module);
        double error = values[i] != 0 ? fabs(((double)v - values[i]) / values[i]) : 0;
        if (error > k->report.max_error)
            k->report.max_error = error;
    }
    return 0;
}

/* [rows, n] times scale into [rows, wide], zeros behind. */
static int bake_rows(struct baker *k, struct tensor *out, const struct tensor *from,
                     const struct adapter_module *m, uint64_t n, uint64_t wide)
{
    uint64_t count = tensor_n_values(from), rows = n ? count / n : 0;
    double *values = sys_reallocarray(NULL, (size_t)count + 1, sizeof *values);
    if (!values)
        return no_memory(k);
    enum dtype t = from->dtype;
    int rc = 0;
    if (!scale_values(t, from->data, m->scale, values, (size_t)count)) {
        t = DTYPE_F32;
        rc = note_rounding(k, m->name, values, (size_t)count);
    }
    size_t size = dtype_bits(t) / 8;
    char *memory = rc ? NULL : sys_calloc((size_t)(rows * wide) + 1, size);
    for (uint64_t i = 0; memory && i < rows; i++)
        dtype_from_f64(t, values + i * n, memory + i * wide * size, (size_t)n);
    sys_free(values);
    if (rc || !memory)
        return rc ? rc : no_memory(k);
    uint64_t shape[2] = {rows, wide};
    if (from->n_dims == 1)
        shape[0] = wide;
    return adapter_builder_tensor(k->b, out, t, from->n_dims, shape, memory, k->err);
}

/* Each of the E blocks of r rows gets rows of zeros up to the wanted rank. */
static int pad_a(struct baker *k, struct tensor *out, const struct adapter_module *m, uint32_t rank,
                 uint64_t n_experts)
{
    size_t row = (size_t)m->a.shape[1] * (dtype_bits(m->a.dtype) / 8);
    char *memory = sys_calloc((size_t)n_experts * rank, row + 1);
    if (!memory)
        return no_memory(k);
    for (uint64_t e = 0; e < n_experts; e++)
        memcpy(memory + e * rank * row, (const char *)m->a.data + e * m->rank * row, m->rank * row);
    const uint64_t shape[2] = {n_experts * rank, m->a.shape[1]};
    return adapter_builder_tensor(k->b, out, m->a.dtype, 2, shape, memory, k->err);
}

static int bake_factors(struct baker *k, struct adapter_module *to, const struct adapter_module *m)
{
    uint64_t experts = m->n_experts ? m->n_experts : 1;
    uint32_t rank = k->a->max_rank;
    k->report.n_modules++;
    to->rank = rank;
    to->alpha = rank;
    to->scale = 1;
    int rc = pad_a(k, &to->a, m, rank, experts);
    if (!rc)
        rc = bake_rows(k, &to->b, &m->b, m, m->rank * experts, rank * experts);
    if (!rc && tensor_present(&m->lora_bias)) {
        uint64_t n = tensor_n_values(&m->lora_bias);
        rc = bake_rows(k, &to->lora_bias, &m->lora_bias, m, n, n);
    }
    return rc;
}

static int bake_module(struct baker *k, const struct adapter_module *m)
{
    struct adapter_module *to = adapter_builder_module(k->b, m->name, m->parameter, k->err);
    if (!to)
        return ERR_NO_MEMORY;
    to->embedding = m->embedding;
    to->transposed = m->transposed;
    to->n_experts = m->n_experts;
    to->full_is_base = m->full_is_base;
    to->n_rows = m->n_rows;
    int rc = m->rank ? bake_factors(k, to, m) : 0;
    if (!rc)
        rc = adapter_builder_copy(k->b, &to->magnitude, &m->magnitude, k->err);
    if (!rc)
        rc = adapter_builder_copy(k->b, &to->bias, &m->bias, k->err);
    if (!rc)
        rc = adapter_builder_copy(k->b, &to->full, &m->full, k->err);
    if (!rc)
        rc = adapter_builder_copy(k->b, &to->rows, &m->rows, k->err);
    if (!rc && m->n_rows)
        rc = adapter_builder_copy_ids(k->b, &to->row_ids, m->row_ids, m->n_rows, k->err);
    return rc;
}

int adapter_bake(struct adapter **out, const struct adapter *a, struct bake_report *report,
                 struct err *err)
{
    struct baker k = {.a = a, .err = err};
    *out = NULL;
    int rc = adapter_builder_open(&k.b, a->base_name, err);
    for (size_t i = 0; !rc && i < a->n_modules; i++)
        rc = bake_module(&k, &a->modules[i]);
    if (rc) {
        adapter_builder_free(k.b);
        return rc;
    }
    adapter_builder_adapter(k.b)->ensure_weight_tying = a->ensure_weight_tying;
    if (report)
        *report = k.report;
    return adapter_builder_finish(k.b, out, err);
}
