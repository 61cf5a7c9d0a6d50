/*
 * op_access of CUDA. The kernels are fused wider than the ops of kernels/ops.h; an op runs the
 * kernels that hold it, on the step's own tables, with the rest of what they do switched off.
 * Buffers are float32 on the device: outputs as the kernels give them, inputs rounded to bf16 where
 * a kernel takes bf16. Conversions go by way of the host: nothing here is fast but layer_seconds.
 */
#include <string.h>

#include "kernels/cuda/cuda_impl.h"
#include "kernels/ops.h"
#include "libcore/base/sys.h"

struct op_session {
    struct device_model *m;
    struct cuda_run run;
    struct op_step view;
    struct step step; // the prepared one; its arrays are the caller's
};

#define TRY(call)                                                                                  \
    do {                                                                                           \
        int rc_ = (call);                                                                          \
        if (rc_)                                                                                   \
            return ERR_DEVICE;                                                                     \
    } while (0)

/* The session, on its card whichever the thread used last. */
static struct op_session *session_of(struct op_context *c)
{
    struct op_session *s = (struct op_session *)(void *)c;
    (void)cuda_choose(&s->m->be->base, NULL);
    return s;
}

static uint32_t rows_of(const struct op_session *s, enum op_space space)
{
    return space == OP_LOGIT_ROWS ? s->run.logits : s->run.rows;
}

// ---- buffers

static void *alloc(struct op_session *s, size_t n)
{
    void *p = NULL;
    if (cuda_choose(&s->m->be->base, NULL) || cudaMalloc(&p, (n + 1) * 4) != cudaSuccess)
        return NULL;
    cudaMemset(p, 0, (n + 1) * 4);
    return p;
}

static void free_buffer(struct op_session *s, void *buffer)
{
    cudaStreamSynchronize(s->m->compute);
    cudaFree(buffer);
}

static int read_values(struct op_session *s, const void *buffer, size_t at, float *values, size_t n)
{
    TRY(cuda_choose(&s->m->be->base, NULL));
    TRY(cudaStreamSynchronize(s->m->compute));
    TRY(cudaMemcpy(values, (const float *)buffer + at, n * 4, cudaMemcpyDeviceToHost));
    return 0;
}

static int write_values(struct op_session *s, void *buffer, size_t at, const float *values,
                        size_t n)
{
    TRY(cuda_choose(&s->m->be->base, NULL));
    TRY(cudaStreamSynchronize(s->m->compute));
    TRY(cudaMemcpy((float *)buffer + at, values, n * 4, cudaMemcpyHostToDevice));
    return 0;
}

/* n values of a buffer to bf16 at `to`, or from there. */
static int convert(struct op_session *s, float *buffer, void *narrow, size_t n, bool to_narrow)
{
    uint16_t *b = sys_malloc(n * 2 + 1);
    float *f = sys_malloc(n * 4 + 1);
    int rc = b && f ? (int)cudaStreamSynchronize(s->m->compute) : ERR_NO_MEMORY;
    if (rc == 0 && to_narrow) {
        rc = cudaMemcpy(f, buffer, n * 4, cudaMemcpyDeviceToHost);
        dtype_from_f32(DTYPE_BF16, f, b, n);
        rc = rc ? rc : (int)cudaMemcpy(narrow, b, n * 2, cudaMemcpyHostToDevice);
    } else if (rc == 0) {
        rc = cudaMemcpy(b, narrow, n * 2, cudaMemcpyDeviceToHost);
        dtype_to_f32(DTYPE_BF16, b, f, n);
        rc = rc ? rc : (int)cudaMemcpy(buffer, f, n * 4, cudaMemcpyHostToDevice);
    }
    sys_free(b);
    sys_free(f);
    return rc ? ERR_DEVICE : 0;
}

// ---- ops

static int op_begin(struct op_context *c, const struct op_step *v)
{
    struct op_session *s = session_of(c);
    (void)v;
    TRY(cuda_op_begin(s->m, &s->run));
    return 0;
}

static int op_embed(struct op_context *c, const struct op_step *v, void *x)
{
    struct op_session *s = session_of(c);
    (void)v;
    TRY(cuda_op_embed(s->m, &s->run, x));
    return 0;
}

/* The site's kernels with some kinds of adapters; *e completes its output. only_a: v alone, by
 * what was planned for that. */
static int run_kernels(struct op_session *s, uint32_t layer, enum site site, enum op_space space,
                       const void *x, int kinds, bool only_a, struct cu_expand *e)
{
    struct cuda_run run = s->run;
    uint32_t n, k;
    void *in = cuda_site_input(s->m, site);
    cuda_site_shape(s->m->config, site, &n, &k);
    run.kinds = run.kinds ? kinds : 0;
    run.only_a = only_a;
    if (only_a)
        TRY(cuda_op_begin(s->m, &run));
    if (x)
        TRY(convert(s, (float *)(uintptr_t)x, in, (size_t)rows_of(s, space) * k, true));
    return cuda_op_linear(s->m, &run, space == OP_LOGIT_ROWS, layer, site, in, e);
}

static int run_linear(struct op_session *s, uint32_t layer, enum site site, enum op_space space,
                      const void *x, int kinds, struct cu_expand *e)
{
    return run_kernels(s, layer, site, space, x, kinds, false, e);
}

static int op_gemm(struct op_context *c, const struct op_step *v, uint32_t layer, enum site site,
                   enum op_space space, const void *x, void *y)
{
    struct op_session *s = session_of(c);
    struct cu_expand e;
    (void)v;
    TRY(run_linear(s, layer, site, space, x, 0, &e));
    e.bias = NULL;
    e.kinds = 0;
    TRY(cu_logits(&e, y, e.n, s->m->compute));
    return 0;
}

/* v stays in the model's scratch; the products beside it are not looked at. */
static int op_shrink(struct op_context *c, const struct op_step *v, uint32_t layer, enum site site,
                     enum op_space space, const void *x)
{
    struct cu_expand e;
    (void)v;
    TRY(run_linear(session_of(c), layer, site, space, x, 1, &e));
    return 0;
}

/* y := complete(y), in place: every value is read and written by one thread. */
static int complete_in_place(struct op_session *s, struct cu_expand *e, void *y, int kinds)
{
    e->y = y;
    e->y16 = NULL;
    e->planes = NULL;
    e->kinds = kinds;
    TRY(cu_logits(e, y, e->n, s->m->compute));
    return 0;
}

static int op_expand(struct op_context *c, const struct op_step *v, uint32_t layer, enum site site,
                     enum op_space space, void *y)
{
    struct op_session *s = session_of(c);
    struct cu_expand e;
    (void)v;
    if (!s->run.kinds)
        return 0;
    // x is there from the shrink. v again, without the base: what layer_seconds measures alone.
    bool many = rows_of(s, space) > CU_SMALL_ROWS && space == OP_ROWS, only_a = many;
    uint32_t n, k;
    cuda_site_shape(s->m->config, site, &n, &k);
    if (rows_of(s, space) <= CU_SMALL_ROWS && !s->m->be->deterministic) {
        only_a = true;
        TRY(cudaMemsetAsync(s->m->v, 0, s->m->v_floats * 4, s->m->compute));
    }
    if (many)
        TRY(convert(s, y, s->m->y16, (size_t)rows_of(s, space) * n, true));
    TRY(run_kernels(s, layer, site, space, NULL, 1, only_a, &e));
    if (many)
        return convert(s, y, s->m->y16, (size_t)rows_of(s, space) * n, false);
    e.bias = NULL;
    return complete_in_place(s, &e, y, 1);
}

/* What finishes a value, with an empty v. */
static int op_gain_bias(struct op_context *c, const struct op_step *v, uint32_t layer,
                        enum site site, enum op_space space, void *y)
{
    struct op_session *s = session_of(c);
    struct cu_expand e;
    (void)v;
    TRY(run_linear(s, layer, site, space, NULL, 2, &e));
    TRY(cudaMemsetAsync(s->m->v, 0, s->m->v_floats * 4, s->m->compute));
    TRY(cudaMemsetAsync(s->m->v16, 0, s->m->v_floats * 2, s->m->compute));
    return complete_in_place(s, &e, y, s->run.kinds ? 2 : 0);
}

/* Norms of heads ride in rope: heads [first, first + n) of qkv as query heads, turned by nothing,
 * keys and values to a page that is thrown away. */
static int norm_heads(struct op_session *s, uint32_t layer, enum norm norm, uint32_t first,
                      uint32_t n, float *qkv)
{
    struct device_model *m = s->m;
    const struct model_config *c = m->config;
    uint32_t rows = s->run.rows, hd = c->head_dim, width = (c->n_heads + 2 * c->n_kv_heads) * hd;
    size_t part = (size_t)rows * n * hd;
    struct cu_heads heads = cuda_heads(m, layer);
    heads.n_heads = n;
    heads.n_kv_heads = 1;
    heads.rotary_dim = 0;
    uint8_t *page = alloc(s, m->page_bytes / 4);
    uint32_t *table = alloc(s, m->limits.max_pages);
    float *in = alloc(s, (size_t)rows * width), *out = alloc(s, part);
    struct cu_pages pages = {page, m->page_bytes, 1, m->limits.page_tokens, table, 1, 1ull << 40};
    int rc = page && table && in && out ? 0 : ERR_NO_MEMORY;
    // Heads first … in front, so that they are the query heads.
    rc =
        rc ? rc
           : (int)cudaMemcpy2DAsync(in, width * 4ull, qkv + (size_t)first * hd, width * 4ull,
                                    (size_t)n * hd * 4, rows, cudaMemcpyDeviceToDevice, m->compute);
    rc = rc ? rc : cuda_op_rope(m, &s->run, &heads, in, width, &norm, m->trig, &pages);
    rc = rc ? rc : convert(s, out, m->q, part, false);
    rc =
        rc ? rc
           : (int)cudaMemcpy2DAsync(qkv + (size_t)first * hd, width * 4ull, out, (size_t)n * hd * 4,
                                    (size_t)n * hd * 4, rows, cudaMemcpyDeviceToDevice, m->compute);
    void *all[] = {page, table, in, out};
    for (int i = 0; i < 4; i++)
        free_buffer(s, all[i]);
    return rc ? ERR_DEVICE : 0;
}

static int op_norm(struct op_context *c, const struct op_step *v, uint32_t layer, enum norm norm,
                   enum op_space space, const void *x, void *h)
{
    struct op_session *s = session_of(c);
    struct device_model *m = s->m;
    const struct model_config *config = m->config;
    (void)v;
    if (norm == NORM_Q || norm == NORM_K)
        return norm_heads(s, layer, norm, norm == NORM_Q ? 0 : config->n_heads,
                          norm == NORM_Q ? config->n_heads : config->n_kv_heads, h);
    bool head = space == OP_LOGIT_ROWS;
    void *out = head ? m->head_h : m->h;
    TRY(cuda_op_norm(m, &s->run, head, layer, norm, (float *)(uintptr_t)x, out));
    return convert(s, h, out, (size_t)rows_of(s, space) * config->d_model, false);
}

static int op_rope(struct op_context *c, const struct op_step *v, uint32_t layer, void *qkv)
{
    struct op_session *s = session_of(c);
    struct device_model *m = s->m;
    struct cu_heads heads = cuda_heads(m, layer);
    uint32_t width = (heads.n_heads + 2 * heads.n_kv_heads) * heads.head_dim;
    const float *trig =
        m->trig + (size_t)m->config->layers[layer].rope_idx * s->run.rows * m->config->rotary_dim;
    (void)v;
    TRY(cuda_op_rope(m, &s->run, &heads, qkv, width, NULL, trig, NULL));
    return 0;
}

/* The queries are those that the last rope left in the model's scratch. */
static int op_attention(struct op_context *c, const struct op_step *v, uint32_t layer,
                        const void *qkv, void *out)
{
    struct op_session *s = session_of(c);
    struct cu_heads heads = cuda_heads(s->m, layer);
    (void)v;
    (void)qkv;
    TRY(cuda_op_attention(s->m, &s->run, &heads));
    return convert(s, out, s->m->attn, (size_t)s->run.rows * heads.n_heads * heads.head_dim, false);
}

static int op_activation(struct op_context *c, const struct op_step *v, const void *gate_up,
                         void *out)
{
    struct op_session *s = session_of(c);
    struct device_model *m = s->m;
    uint32_t d_ff = m->config->d_ff;
    struct cu_expand e = {.t = s->run.rows, .n = 2 * d_ff, .y = gate_up};
    (void)v;
    TRY(cu_activation(&e, d_ff, m->config->activation == ACTIVATION_GELU_TANH, m->act, m->compute));
    return convert(s, out, m->act, (size_t)s->run.rows * d_ff, false);
}

static int op_residual(struct op_context *c, const struct op_step *v, void *x, const void *y)
{
    struct op_session *s = session_of(c);
    struct cu_expand e = {.t = s->run.rows, .n = s->m->config->d_model, .y = y};
    (void)v;
    TRY(cu_residual(&e, x, NULL, s->m->compute));
    return 0;
}

static int op_moe(struct op_context *c, const struct op_step *v, uint32_t layer, const void *h,
                  void *y)
{
    struct op_session *s = session_of(c);
    struct device_model *m = s->m;
    size_t n = (size_t)s->run.rows * m->config->d_model;
    struct cu_expand e;
    (void)v;
    TRY(convert(s, (float *)(uintptr_t)h, m->h, n, true));
    TRY(cuda_op_moe(m, &s->run, layer, &e));
    TRY(cu_logits(&e, y, e.n, m->compute));
    return 0;
}

/* The gather itself rides in the final norm's row list; here rows are copied. */
static int op_gather(struct op_context *c, const struct op_step *v, const void *x, void *h)
{
    struct op_session *s = session_of(c);
    size_t d = s->m->config->d_model;
    (void)v;
    for (uint32_t i = 0; i < s->step.n_logit_rows; i++)
        TRY(cudaMemcpyAsync((float *)h + i * d, (const float *)x + s->step.logit_rows[i] * d, d * 4,
                            cudaMemcpyDeviceToDevice, s->m->compute));
    return 0;
}

static int op_sample(struct op_context *c, const struct op_step *v, void *logits)
{
    struct op_session *s = session_of(c);
    (void)v;
    TRY(cudaMemcpyAsync(s->m->logits, logits, (size_t)s->run.logits * s->m->config->vocab_size * 4,
                        cudaMemcpyDeviceToDevice, s->m->compute));
    TRY(cuda_op_sample(s->m, &s->run));
    return 0;
}

static const struct op_table table = {
    .begin = op_begin,
    .embed = op_embed,
    .rms_norm = op_norm,
    .gemm = op_gemm,
    .sgmv_shrink = op_shrink,
    .sgmv_expand = op_expand,
    .gain_bias = op_gain_bias,
    .rope_write = op_rope,
    .attention = op_attention,
    .activation = op_activation,
    .residual = op_residual,
    .moe = op_moe,
    .gather = op_gather,
    .sample = op_sample,
};

// ---- sessions

static int open_session(struct backend *be, struct device_model *m, struct op_session **out,
                        struct err *err)
{
    *out = sys_calloc(1, sizeof **out);
    if (!*out)
        return err_set(err, ERR_NO_MEMORY, "no memory for a session");
    (*out)->m = m;
    int rc = cuda_choose(be, err);
    return rc ? rc : cuda_only_a_open(m, err);
}

static void close_session(struct op_session *s)
{
    cudaStreamSynchronize(s->m->compute);
    cuda_only_a_close(s->m);
    sys_free(s);
}

static const struct op_table *session_ops(struct op_session *s)
{
    (void)s;
    return &table;
}

static struct op_context *session_context(struct op_session *s)
{
    return (struct op_context *)(void *)s;
}

static int prepare(struct op_session *s, const struct step *step, const struct op_step **view,
                   struct err *err)
{
    s->step = *step;
    int rc = cuda_step_prepare(s->m, &s->step, &s->run, err);
    rc = rc ? rc : cuda_check(cuda_op_begin(s->m, &s->run), "preparing a step", err);
    s->view = (struct op_step){
        .row_bucket = step->n_rows, .logit_bucket = step->n_logit_rows, .kinds = step->kinds};
    *view = &s->view;
    return rc;
}

static int results(struct op_session *s, struct step_result *out, struct err *err)
{
    return cuda_step_results(s->m, &s->run, out, err);
}

static void wait_done(struct op_session *s)
{
    cudaStreamSynchronize(s->m->compute);
}

static size_t logits_stride(struct op_session *s)
{
    return s->m->config->vocab_size;
}

static double epsilon(struct op_session *s)
{
    (void)s;
    return 0x1p-9;
}

static double read_bandwidth(struct op_session *s)
{
    double bytes_per_s = 0;
    struct backend *be = &s->m->be->base;
    return be->ops->read_bandwidth(be, &bytes_per_s, NULL) == 0 ? bytes_per_s : 0;
}

static int layer_seconds(struct op_session *s, bool base, bool adapters, double *seconds,
                         struct err *err)
{
    int rc = cuda_choose(&s->m->be->base, err);
    return rc ? rc : cuda_layer_seconds(s->m, &s->run, base, adapters, seconds, err);
}

const struct op_access cuda_op_access = {
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
