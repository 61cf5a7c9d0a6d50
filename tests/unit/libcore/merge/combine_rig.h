/*
 * combine_rig: adapters made on the spot and their deltas in plain float64, for the tests of this
 * folder. All static inline: each test is one program.
 */
#ifndef TESTS_UNIT_LIBCORE_MERGE_COMBINE_RIG_H
#define TESTS_UNIT_LIBCORE_MERGE_COMBINE_RIG_H

#include <stdio.h>
#include <stdlib.h>

#include "libcore/adapter/builder.h"
#include "libcore/base/sys.h"
#include "libcore/merge/combine.h"
#include "libcore/merge/random.h"
#include "tests/lib/test.h"

struct rig_module {
    const char *name, *parameter;
    uint32_t d_out, d_in, rank, n_experts;
    double scale;
    bool embedding;
};

static inline float *rig_floats(size_t n, uint64_t seed, uint64_t stream)
{
    float *v = sys_malloc(n * sizeof *v);
    for (size_t i = 0; v && i < n; i++)
        v[i] = (float)random_normal(seed, stream, i);
    return v;
}

/* The content id is made of the seed, as a reader would make it of the bytes. */
static inline struct adapter *rig_adapter(uint64_t seed, const struct rig_module *modules, size_t n)
{
    struct adapter_builder *b;
    struct adapter *a = NULL;
    struct err err = {0};
    if (adapter_builder_open(&b, "rig", &err) != 0)
        abort();
    for (size_t i = 0; i < n; i++) {
        const struct rig_module *from = &modules[i];
        struct adapter_module *m = adapter_builder_module(b, from->name, from->parameter, &err);
        uint64_t e = from->n_experts ? from->n_experts : 1, r = from->rank;
        const uint64_t a_shape[2] = {e * r, from->d_in}, b_shape[2] = {from->d_out, r * e};
        adapter_builder_tensor(b, &m->a, DTYPE_F32, 2, a_shape,
                               rig_floats(e * r * from->d_in, seed, 2 * i), &err);
        adapter_builder_tensor(b, &m->b, DTYPE_F32, 2, b_shape,
                               rig_floats(e * r * from->d_out, seed, 2 * i + 1), &err);
        m->rank = from->rank;
        m->scale = from->scale;
        m->alpha = from->scale * from->rank;
        m->n_experts = from->n_experts;
        m->embedding = from->embedding;
    }
    if (adapter_builder_finish(b, &a, &err) != 0)
        abort();
    snprintf(a->content_id, sizeof a->content_id, "%064llx",
             (unsigned long long)random_stream("rig", "", "", seed));
    return a;
}

/* scale B A of one expert, [d_out, d_in] row by row. */
static inline double *rig_delta(const struct adapter_module *m, uint32_t expert)
{
    size_t out = m->b.shape[0], in = m->a.shape[1], r = m->rank;
    size_t experts = m->n_experts ? m->n_experts : 1;
    double *d = calloc(out * in, sizeof *d);
    double *a = malloc(tensor_n_values(&m->a) * sizeof *a);
    double *b = malloc(tensor_n_values(&m->b) * sizeof *b);
    dtype_to_f64(m->a.dtype, m->a.data, a, tensor_n_values(&m->a));
    dtype_to_f64(m->b.dtype, m->b.data, b, tensor_n_values(&m->b));
    for (size_t i = 0; i < out; i++) {
        for (size_t k = 0; k < r; k++) {
            for (size_t j = 0; j < in; j++)
                d[i * in + j] +=
                    m->scale * b[(i * r + k) * experts + expert] * a[(expert * r + k) * in + j];
        }
    }
    free(a);
    free(b);
    return d;
}

static inline double rig_norm(const double *d, size_t n)
{
    double s = 0;
    for (size_t i = 0; i < n; i++)
        s += d[i] * d[i];
    return sqrt(s);
}

/* || a - b || / || b || */
static inline double rig_distance(const double *a, const double *b, size_t n)
{
    double s = 0;
    for (size_t i = 0; i < n; i++)
        s += (a[i] - b[i]) * (a[i] - b[i]);
    double size = rig_norm(b, n);
    return size > 0 ? sqrt(s) / size : sqrt(s);
}

static inline struct combine_options rig_options(const char *method, enum combine_compat compat)
{
    struct combine_options o = {.epsilon = -1, .gamma = -1, .seed = 9, .n_threads = 2};
    struct err err = {0};
    if (combine_method_find(&o.method, method, compat, &err) != 0)
        test_fail(__FILE__, __LINE__, "%s", err.msg);
    else if (combine_takes_density(o.method))
        o.density = 1;
    return o;
}

/* Same tensors of A and B, bit for bit. */
static inline bool rig_same(const struct adapter *x, const struct adapter *y)
{
    if (x->n_modules != y->n_modules)
        return false;
    for (size_t i = 0; i < x->n_modules; i++) {
        const struct adapter_module *a = &x->modules[i], *b = &y->modules[i];
        if (strcmp(a->name, b->name) != 0 || !tensor_same_shape(&a->a, &b->a) ||
            !tensor_same_shape(&a->b, &b->b) || a->scale != b->scale ||
            memcmp(a->a.data, b->a.data, tensor_n_bytes(&a->a)) != 0 ||
            memcmp(a->b.data, b->b.data, tensor_n_bytes(&a->b)) != 0)
            return false;
    }
    return true;
}

#endif
