/*
 * What an adapter has beside factors, and when it has a meaning in a combination.
 *   DoRA          g (W + s B A) x: no sum of factors is that; refused
 *   lora_bias     sum of w s b_B, in methods that only add
 *   replacements  (modules_to_save, biases, trainable tokens) F stands for F - W, which needs W;
 *                 w (F - W) is known without W where w = 1 and nobody else changes the same tensor
 *   a saved base layer   the base's own weight as its trainer had it: taken over when all who bring
 *                 it bring the same
 */
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/merge/combine_impl.h"

static bool only_adds(const struct combine_method *m)
{
    return m->path == COMBINE_STACK || (m->path == COMBINE_SUM && !m->normalize);
}

static int refuse(const struct combine_member *m, struct err *err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static int refuse(const struct combine_member *m, struct err *err, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    err_setv(err, ERR_REFUSED, fmt, args);
    va_end(args);
    return err_prefix(err, "%s:%s", m->input->label, m->module->name);
}

static const char *replacement_of(const struct adapter_module *m)
{
    if (tensor_present(&m->full) && !m->full_is_base)
        return "modules_to_save";
    if (tensor_present(&m->bias))
        return "a replaced bias";
    return m->n_rows ? "trainable tokens" : NULL;
}

static bool same_values(const struct tensor *a, const struct tensor *b)
{
    return a->dtype == b->dtype && tensor_same_shape(a, b) &&
           memcmp(a->data, b->data, tensor_n_bytes(a)) == 0;
}

static int check_replacement(const struct combine_member *members, size_t n, size_t i,
                             const struct combine_method *method, struct err *err)
{
    const struct combine_member *m = &members[i];
    const char *what = replacement_of(m->module);
    const char *advice = "merge the adapters into the base instead, then extract";
    if (!only_adds(method))
        return refuse(m, err, "%s: method %s has no meaning for it without the base; %s", what,
                      method->name, advice);
    if (m->input->weight != 1)
        return refuse(m, err, "%s at weight %g needs the base, wanted weight 1; %s", what,
                      m->input->weight, advice);
    for (size_t k = 0; k < n; k++) {
        if (k != i)
            return refuse(m, err, "%s, and %s changes the same module; %s", what,
                          members[k].input->label, advice);
    }
    return 0;
}

static int check_saved_base(const struct combine_member *members, size_t n, size_t i,
                            struct err *err)
{
    for (size_t k = 0; k < n; k++) {
        const struct adapter_module *other = members[k].module;
        if (tensor_present(&other->full) && !same_values(&members[i].module->full, &other->full))
            return refuse(&members[i], err,
                          "the base's weight that it saved is not the one that %s saved: their "
                          "bases differ, or one was trained; merge them into the base instead",
                          members[k].input->label);
    }
    return 0;
}

int combine_rest_check(const struct combine_member *members, size_t n,
                       const struct combine_options *opt, struct err *err)
{
    for (size_t i = 0; i < n; i++) {
        const struct adapter_module *m = members[i].module;
        int rc = 0;
        if (tensor_present(&m->magnitude))
            rc = refuse(&members[i], err,
                        "DoRA: no sum of factors is its effect; merge the adapters into the base "
                        "instead, then extract");
        else if (tensor_present(&m->lora_bias) && !only_adds(opt->method))
            rc = refuse(&members[i], err, "lora_bias: method %s has no meaning for it",
                        opt->method->name);
        else if (replacement_of(m))
            rc = check_replacement(members, n, i, opt->method, err);
        else if (tensor_present(&m->full))
            rc = check_saved_base(members, n, i, err);
        if (rc)
            return rc;
    }
    return 0;
}

// ---- into the result ---------------------------------------------------------------------------

/* sum of w s b_B; zeros where nobody has one, since lora_bias is a property of the whole adapter.
 */
static int add_lora_bias(struct adapter_builder *b, struct adapter_module *m,
                         const struct combine_member *members, size_t n, struct err *err)
{
    uint64_t out = m->b.shape[0];
    double *sum = sys_calloc(out, sizeof *sum), *one = sys_calloc(out, sizeof *one);
    float *values = sys_calloc(out, sizeof *values);
    int rc = sum && one && values ? 0 : err_set(err, ERR_NO_MEMORY, "lora_bias: no memory");
    for (size_t i = 0; !rc && i < n; i++) {
        const struct adapter_module *from = members[i].module;
        if (!tensor_present(&from->lora_bias))
            continue;
        dtype_to_f64(from->lora_bias.dtype, from->lora_bias.data, one, out);
        for (uint64_t k = 0; k < out; k++)
            sum[k] += members[i].input->weight * from->scale * one[k];
    }
    for (uint64_t k = 0; !rc && k < out; k++)
        values[k] = (float)sum[k];
    sys_free(sum);
    sys_free(one);
    if (rc) {
        sys_free(values);
        return rc;
    }
    return adapter_builder_tensor(b, &m->lora_bias, DTYPE_F32, 1, &out, values, err);
}

static int take_over(struct adapter_builder *b, struct adapter_module *m,
                     const struct adapter_module *from, struct err *err)
{
    int rc = adapter_builder_copy(b, &m->bias, &from->bias, err);
    if (!rc && !tensor_present(&m->full)) {
        rc = adapter_builder_copy(b, &m->full, &from->full, err);
        m->full_is_base = from->full_is_base;
    }
    if (!rc && from->n_rows) {
        rc = adapter_builder_copy(b, &m->rows, &from->rows, err);
        if (!rc)
            rc = adapter_builder_copy_ids(b, &m->row_ids, from->row_ids, from->n_rows, err);
        m->n_rows = from->n_rows;
    }
    return rc;
}

int combine_rest(struct adapter_builder *b, struct adapter_module *m,
                 const struct combine_member *members, size_t n, bool any_lora_bias,
                 size_t *n_taken_over, struct err *err)
{
    int rc = 0;
    if (any_lora_bias && m->rank)
        rc = add_lora_bias(b, m, members, n, err);
    bool any = false;
    for (size_t i = 0; !rc && i < n; i++) {
        const struct adapter_module *from = members[i].module;
        any |= replacement_of(from) || tensor_present(&from->full);
        rc = take_over(b, m, from, err);
    }
    *n_taken_over += any;
    return rc;
}
