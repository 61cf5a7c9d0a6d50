#include "libcore/merge/factors.h"

#include <math.h>
#include <string.h>

#include "libcore/base/sys.h"

void factors_left(const struct adapter_module *m, uint32_t expert, double factor, double *left)
{
    size_t n_experts = m->n_experts ? m->n_experts : 1, r = m->rank, out = m->b.shape[0];
    size_t size = dtype_bits(m->b.dtype) / 8;
    const char *data = m->b.data;
    for (size_t i = 0; i < out; i++) {
        for (size_t k = 0; k < r; k++) {
            double v;
            dtype_to_f64(m->b.dtype, data + ((i * r + k) * n_experts + expert) * size, &v, 1);
            left[k * out + i] = factor * v;
        }
    }
}

void factors_right(const struct adapter_module *m, uint32_t expert, double *right)
{
    size_t n = (size_t)m->rank * m->a.shape[1];
    const char *data = m->a.data;
    dtype_to_f64(m->a.dtype, data + expert * n * (dtype_bits(m->a.dtype) / 8), right, n);
}

int factors_open(struct factors *f, uint32_t n_experts, uint32_t d_out, uint32_t d_in, uint32_t cap,
                 struct err *err)
{
    size_t e = n_experts ? n_experts : 1;
    cap = cap ? cap : 1;
    *f = (struct factors){.n_experts = n_experts, .d_out = d_out, .d_in = d_in, .cap = cap};
    f->a = sys_calloc(e * cap * d_in, sizeof *f->a);
    f->b = sys_calloc(e * cap * d_out, sizeof *f->b);
    if (f->a && f->b)
        return 0;
    factors_release(f);
    return err_set(err, ERR_NO_MEMORY, "factors of rank %u: no memory", cap);
}

void factors_release(struct factors *f)
{
    sys_free(f->a);
    sys_free(f->b);
    f->a = f->b = NULL;
}

void factors_put(struct factors *f, uint32_t expert, const struct svd *d, size_t k)
{
    size_t e = f->n_experts ? f->n_experts : 1;
    for (size_t j = 0; j < k; j++) {
        double root = sqrt(d->s[j]);
        float *a = f->a + (expert * (size_t)f->cap + j) * f->d_in;
        for (size_t i = 0; i < f->d_in; i++)
            a[i] = (float)(root * d->v[j * d->n + i]);
        for (size_t i = 0; i < f->d_out; i++)
            f->b[(i * f->cap + j) * e + expert] = (float)(root * d->u[j * d->m + i]);
    }
    if (k > f->rank)
        f->rank = (uint32_t)k;
}

void factors_compact(struct factors *f)
{
    size_t e = f->n_experts ? f->n_experts : 1;
    size_t r = f->rank ? f->rank : 1, cap = f->cap;
    f->rank = (uint32_t)r;
    if (r == cap)
        return;
    for (size_t i = 0; i < e; i++)
        memmove(f->a + i * r * f->d_in, f->a + i * cap * f->d_in, r * f->d_in * sizeof *f->a);
    for (size_t i = 0; i < f->d_out; i++)
        memmove(f->b + i * r * e, f->b + i * cap * e, r * e * sizeof *f->b);
    f->cap = (uint32_t)r;
}

int factors_take(struct factors *f, struct adapter_builder *b, struct adapter_module *m,
                 struct err *err)
{
    uint64_t e = f->n_experts ? f->n_experts : 1;
    const uint64_t a_shape[2] = {e * f->rank, f->d_in}, b_shape[2] = {f->d_out, f->rank * e};
    float *fa = f->a, *fb = f->b;
    f->a = f->b = NULL;
    int rc = adapter_builder_tensor(b, &m->a, DTYPE_F32, 2, a_shape, fa, err);
    if (rc) {
        sys_free(fb);
        return rc;
    }
    rc = adapter_builder_tensor(b, &m->b, DTYPE_F32, 2, b_shape, fb, err);
    m->rank = f->rank;
    m->alpha = f->rank;
    m->scale = 1;
    m->n_experts = f->n_experts;
    return rc;
}
