/* op_access of the CPU: activations are plain float32 memory. */
#include <string.h>

#include "kernels/cpu/cpu_impl.h"
#include "libcore/base/sys.h"

struct op_session {
    struct device_model *m;
    struct cpu_step *step;
};

static int open_session(struct backend *be, struct device_model *m, struct op_session **out,
                        struct err *err)
{
    (void)be;
    *out = sys_calloc(1, sizeof **out);
    if (!*out)
        return err_set(err, ERR_NO_MEMORY, "no memory for a session");
    (*out)->m = m;
    return 0;
}

static void close_session(struct op_session *s)
{
    sys_free(s);
}

static const struct op_table *session_ops(struct op_session *s)
{
    (void)s;
    return &cpu_ops;
}

static struct op_context *session_context(struct op_session *s)
{
    return (struct op_context *)(void *)s->m;
}

static int prepare(struct op_session *s, const struct step *step, const struct op_step **view,
                   struct err *err)
{
    int rc = cpu_step_prepare(s->m, step, &s->step, err);
    *view = &s->step->view;
    return rc;
}

static int results(struct op_session *s, struct step_result *out, struct err *err)
{
    (void)err;
    const struct cpu_results *r = &s->step->results;
    *out =
        (struct step_result){r->n_rows, r->ids, r->logprobs, r->ranks, r->top_ids, r->top_logprobs};
    return 0;
}

static void *alloc(struct op_session *s, size_t n_values)
{
    (void)s;
    return sys_calloc(n_values + 1, sizeof(float));
}

static void free_buffer(struct op_session *s, void *buffer)
{
    (void)s;
    sys_free(buffer);
}

static int write_values(struct op_session *s, void *buffer, size_t at, const float *values,
                        size_t n)
{
    (void)s;
    memcpy((float *)buffer + at, values, n * sizeof *values);
    return 0;
}

static int read_values(struct op_session *s, const void *buffer, size_t at, float *values, size_t n)
{
    (void)s;
    memcpy(values, (const float *)buffer + at, n * sizeof *values);
    return 0;
}

static void wait_done(struct op_session *s)
{
    (void)s; // an op returns when it is done
}

static size_t logits_stride(struct op_session *s)
{
    return s->m->vocab_stride;
}

static double epsilon(struct op_session *s)
{
    return strcmp(s->m->isa->name, "amx") == 0 ? 0x1p-22 : 0x1p-24;
}

static double read_bandwidth(struct op_session *s)
{
    return cpu_read_bandwidth(s->m->isa, s->m->pool);
}

static int run_site(struct op_session *s, uint32_t layer, enum site site, bool base, bool adapters,
                    const float *x, float *y)
{
    struct op_context *c = session_context(s);
    const struct op_step *v = &s->step->view;
    int rc = base ? cpu_ops.gemm(c, v, layer, site, OP_ROWS, x, y) : 0;
    if (rc == 0 && adapters)
        rc = cpu_ops.sgmv_shrink(c, v, layer, site, OP_ROWS, x);
    if (rc == 0 && adapters)
        rc = cpu_ops.sgmv_expand(c, v, layer, site, OP_ROWS, y);
    return rc;
}

static int layer_seconds(struct op_session *s, bool base, bool adapters, double *seconds,
                         struct err *err)
{
    static const enum site sites[] = {SITE_QKV, SITE_O, SITE_GATE_UP, SITE_DOWN};
    const struct model_config *c = s->m->config;
    size_t rows = s->step->view.row_bucket, n_in = 0, n_out = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t out, in;
        cpu_site_shape(c, sites[i], &out, &in);
        n_in = in > n_in ? in : n_in;
        n_out = out > n_out ? out : n_out;
    }
    float *x = alloc(s, rows * n_in), *y = alloc(s, rows * n_out);
    int rc = x && y ? 0 : err_set(err, ERR_NO_MEMORY, "no memory for %zu rows", rows);
    uint64_t begin = thread_now_ns();
    for (uint32_t layer = 0; rc == 0 && layer < c->n_layers; layer++) {
        for (int i = 0; rc == 0 && i < 4; i++)
            rc = run_site(s, layer, sites[i], base, adapters, x, y);
    }
    *seconds = (double)(thread_now_ns() - begin) * 1e-9 / c->n_layers;
    free_buffer(s, x);
    free_buffer(s, y);
    return rc;
}

const struct op_access cpu_op_access = {
    .open = open_session,
    .close = close_session,
    .ops = session_ops,
    .context = session_context,
    .prepare = prepare,
    .results = results,
    .alloc = alloc,
    .free = free_buffer,
    .write = write_values,
    .read = read_values,
    .wait = wait_done,
    .logits_stride = logits_stride,
    .epsilon = epsilon,
    .read_bandwidth = read_bandwidth,
    .layer_seconds = layer_seconds,
};
