/* activation: out = act(gate) * up; residual: x += y; gather: the rows whose logits are wanted. */
#include <string.h>

#include "kernels/cpu/cpu_impl.h"

struct rows_run {
    struct device_model *m;
    const struct op_step *s;
    const float *from;
    float *to;
};

static void activate_rows(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    const struct rows_run *r = arg;
    (void)thread_idx;
    const struct isa_table *isa = r->m->isa;
    size_t d = r->m->config->d_ff;
    for (size_t row = begin; row < end; row++) {
        const float *gate = r->from + row * 2 * d;
        if (r->m->config->activation == ACTIVATION_SILU)
            isa->silu_mul(gate, gate + d, r->to + row * d, d);
        else
            isa->gelu_tanh_mul(gate, gate + d, r->to + row * d, d);
    }
}

int cpu_activation(struct op_context *c, const struct op_step *s, const void *gate_up, void *out)
{
    struct rows_run r = {cpu_context(c), s, gate_up, out};
    worker_pool_run(r.m->pool, s->counts->n_rows, 1, activate_rows, &r);
    return 0;
}

static void add_values(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    const struct rows_run *r = arg;
    (void)thread_idx;
    r->m->isa->add(r->to + begin, r->from + begin, end - begin);
}

int cpu_residual(struct op_context *c, const struct op_step *s, void *x, const void *y)
{
    struct rows_run r = {cpu_context(c), s, y, x};
    worker_pool_run(r.m->pool, (size_t)s->counts->n_rows * r.m->config->d_model, 8192, add_values,
                    &r);
    return 0;
}

int cpu_gather(struct op_context *c, const struct op_step *s, const void *x, void *h)
{
    size_t d = cpu_context(c)->config->d_model;
    for (uint32_t i = 0; i < s->counts->n_logit_rows; i++)
        memcpy((float *)h + i * d, (const float *)x + s->logit_rows[i] * d, d * sizeof(float));
    return 0;
}
