/* The activations and tables of a model, allocated once for its step limits. */
#include "kernels/cpu/cpu_impl.h"
#include "libcore/base/limits.h"
#include "libcore/base/sys.h"

/* The shrunk rows v are not here: what could be (rows * modules * adapters a request * largest
 * rank) is far more than what steps have, so v grows to the largest step seen (sgmv_shrink.c). */
static uint64_t row_floats(const struct model_config *c)
{
    uint64_t q_dim = (uint64_t)c->n_heads * c->head_dim;
    uint64_t kv_dim = (uint64_t)c->n_kv_heads * c->head_dim;
    return 3ull * c->d_model + 2 * q_dim + 2 * kv_dim + 3ull * c->d_ff + 2 * c->rotary_dim;
}

static uint64_t thread_floats_of(const struct model_config *c)
{
    uint64_t vocab = 2ull * (c->vocab_size + LIMIT_ADDED_TOKENS) * 2;
    uint64_t attend = (2ull * ISA_ATTEND_QUERIES + ISA_ATTEND_KEYS) * c->head_dim;
    uint64_t row = 2ull * (c->d_model + c->head_dim + c->d_ff) + 16 * LIMIT_RANK;
    return (vocab + attend + row + 63) / 16 * 16;
}

/* Floats of the shared packed activations: the widest input of a site. */
static uint64_t packed_floats(const struct model_config *c)
{
    uint64_t k = (uint64_t)c->n_heads * c->head_dim;
    k = k > c->d_model ? k : c->d_model;
    k = k > c->d_ff ? k : c->d_ff;
    return isa_units(CPU_PACK_ROWS, k) * ISA_UNIT_BYTES / sizeof(float);
}

uint64_t cpu_scratch_bytes(const struct model_config *c, const struct step_limits *l,
                           unsigned n_threads)
{
    uint64_t floats = l->max_rows * row_floats(c);
    floats += (uint64_t)l->max_logit_rows * (c->vocab_size + LIMIT_ADDED_TOKENS + c->d_model);
    floats += n_threads * thread_floats_of(c) + cpu_moe_floats(c, l->max_rows) + packed_floats(c);
    return floats * sizeof(float);
}

static int take(void *out, uint64_t n, struct err *err)
{
    float *p = sys_aligned_alloc(CPU_ALIGN, (n * sizeof *p / CPU_ALIGN + 1) * CPU_ALIGN);
    *(float **)out = p;
    if (!p)
        return err_set(err, ERR_NO_MEMORY, "no memory for activations (%llu floats)",
                       (unsigned long long)n);
    return 0;
}

int cpu_scratch_open(struct device_model *m, struct err *err)
{
    const struct model_config *c = m->config;
    const struct step_limits *l = &m->limits;
    struct site_buffers *b = &m->run.buf;
    uint64_t rows = l->max_rows, q_dim = (uint64_t)c->n_heads * c->head_dim;
    m->thread_floats = thread_floats_of(c);
    const struct {
        void *to;
        uint64_t n;
    } wanted[] = {
        {&b->x, rows * c->d_model},
        {&b->h, rows * c->d_model},
        {&b->y, rows * c->d_model},
        {&b->qkv, rows * m->qkv_rows},
        {&b->attn, rows * q_dim},
        {&b->gate_up, rows * 2 * c->d_ff},
        {&b->act, rows * c->d_ff},
        {&b->head_h, (uint64_t)l->max_logit_rows * c->d_model},
        {&b->logits, (uint64_t)l->max_logit_rows * m->vocab_stride},
        {&m->packed, packed_floats(c)},
        {&m->trig, rows * m->n_ropes * c->rotary_dim},
        {&m->v_first, (uint64_t)(l->max_segments + 1) * CPU_SITE_PARTS * 2},
        {&m->seq_first, l->max_sequences + 1},
        {&m->thread_scratch, m->thread_floats * worker_pool_size(m->pool)},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        int rc = take(wanted[i].to, wanted[i].n, err);
        if (rc != 0)
            return rc;
    }
    return cpu_moe_open(m, err);
}

void cpu_scratch_free(struct device_model *m)
{
    cpu_moe_free(m);
    struct site_buffers *b = &m->run.buf;
    void *all[] = {
        b->x,      b->h,      b->y,      b->qkv,  b->attn,    b->gate_up,   b->act,
        b->head_h, b->logits, m->packed, m->trig, m->v_first, m->seq_first, m->thread_scratch,
        m->v};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        sys_free(all[i]);
}
