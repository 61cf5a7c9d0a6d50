/*
 * rope_write and attention against plain references: rows with a past in scattered pages, windows,
 * grouped heads; and moe.
 */
#include "tests/ops/ops_cases.h"

enum { MAX_POSITIONS = 1024, MAX_SEQUENCES = 32, STEP_ROWS = 64 };

/* What every sequence was given: qkv rows before rope, by position. */
struct past {
    float *rows[MAX_SEQUENCES][MAX_POSITIONS];
    size_t width;
};

static void past_release(struct past *p)
{
    for (int i = 0; i < MAX_SEQUENCES; i++)
        for (int j = 0; j < MAX_POSITIONS; j++)
            sys_free(p->rows[i][j]);
}

/* Runs rope_write over a step of random rows and notes them; the caller frees the buffer. */
static void *write_rows(struct ops_rig *r, const struct op_step *view, const struct step *step,
                        uint32_t sequence0, uint32_t layer, struct past *past)
{
    float *values;
    void *qkv = ops_activations(r, step->n_rows * past->width, &values);
    for (uint32_t i = 0; i < step->n_sequences; i++) {
        const struct step_sequence *s = &step->sequences[i];
        for (uint32_t j = 0; j < s->n_rows; j++) {
            float **to = &past->rows[sequence0 + i][s->position0 + j];
            sys_free(*to);
            *to = sys_malloc(past->width * sizeof **to);
            memcpy(*to, values + (s->row0 + j) * past->width, past->width * sizeof **to);
        }
    }
    sys_free(values);
    EXPECT_INT(r->ops->begin(r->context, view), 0);
    EXPECT_INT(r->ops->rope_write(r->context, view, layer, qkv), 0);
    return qkv;
}

/* Gives every sequence of the step its past, 64 rows at a time. */
static void write_past(struct ops_rig *r, uint32_t layer, struct past *past)
{
    int32_t tokens[STEP_ROWS] = {0};
    for (uint32_t i = 0; i < r->step.n_sequences; i++) {
        uint32_t end = r->sequences[i].position0;
        for (uint32_t at = 0; at < end; at += STEP_ROWS) {
            struct step_sequence seq = r->sequences[i];
            seq.row0 = seq.page0 = 0;
            seq.position0 = at;
            seq.n_rows = end - at < STEP_ROWS ? end - at : STEP_ROWS;
            struct step step = {.n_rows = seq.n_rows,
                                .tokens = tokens,
                                .sequences = &seq,
                                .n_sequences = 1,
                                .pages = r->pages + r->sequences[i].page0,
                                .n_pages = seq.n_pages};
            const struct op_step *view;
            struct err err = {0};
            CHECK_OK(r->access->prepare(r->session, &step, &view, &err), err);
            r->access->free(r->session, write_rows(r, view, &step, i, layer, past));
        }
    }
}

/* Head `head` of a row at a position, rotated. */
static void rotated(const struct ops_rig *r, uint32_t layer, const float *row, uint32_t head,
                    uint32_t position, double *out)
{
    const struct model_config *c = &r->config;
    uint32_t half = c->rotary_dim / 2;
    float inv_freq[64], scale;
    config_rope_table(c, c->layers[layer].rope_idx, 0, inv_freq, &scale);
    for (uint32_t d = 0; d < c->head_dim; d++)
        out[d] = row[head * c->head_dim + d];
    for (uint32_t d = 0; d < half; d++) {
        double angle = (double)((float)position * inv_freq[d]);
        double a = out[d], b = out[d + half];
        out[d] = (a * cos(angle) - b * sin(angle)) * scale;
        out[d + half] = (b * cos(angle) + a * sin(angle)) * scale;
    }
}

static void reference_attention(const struct ops_rig *r, uint32_t layer, const struct past *past,
                                uint32_t sequence, uint32_t position, uint32_t head, double *out)
{
    const struct model_config *c = &r->config;
    uint32_t hd = c->head_dim, kv = head / (c->n_heads / c->n_kv_heads);
    uint32_t window = c->layers[layer].window;
    uint32_t first = window && position + 1 > window ? position + 1 - window : 0;
    double q[64], k[64], score[MAX_POSITIONS], max = -INFINITY, sum = 0;
    rotated(r, layer, past->rows[sequence][position], head, position, q);
    for (uint32_t j = first; j <= position; j++) {
        rotated(r, layer, past->rows[sequence][j], c->n_heads + kv, j, k);
        score[j] = 0;
        for (uint32_t d = 0; d < hd; d++)
            score[j] += q[d] * k[d] * c->attention_scale;
        max = score[j] > max ? score[j] : max;
    }
    for (uint32_t d = 0; d < hd; d++)
        out[d] = 0;
    for (uint32_t j = first; j <= position; j++) {
        double p = exp(score[j] - max);
        const float *v = past->rows[sequence][j] + (c->n_heads + c->n_kv_heads + kv) * hd;
        sum += p;
        for (uint32_t d = 0; d < hd; d++)
            out[d] += p * v[d];
    }
    for (uint32_t d = 0; d < hd; d++)
        out[d] /= sum;
}

static void check_attention(struct ops_rig *r)
{
    const struct model_config *c = &r->config;
    struct past *past = sys_calloc(1, sizeof *past);
    size_t width = (size_t)c->n_heads * c->head_dim;
    past->width = width + 2 * (size_t)c->n_kv_heads * c->head_dim;
    for (uint32_t layer = 0; layer < 2; layer++) {
        struct err err = {0};
        write_past(r, layer, past);
        CHECK_OK(r->access->prepare(r->session, &r->step, &r->view, &err), err);
        void *qkv = write_rows(r, r->view, &r->step, 0, layer, past);
        void *out = r->access->alloc(r->session, r->step.n_rows * width);
        double *want = doubles(r->step.n_rows * width);
        for (uint32_t i = 0; i < r->step.n_sequences; i++) {
            const struct step_sequence *s = &r->sequences[i];
            for (uint32_t j = 0; j < s->n_rows; j++)
                for (uint32_t h = 0; h < c->n_heads; h++)
                    reference_attention(r, layer, past, i, s->position0 + j, h,
                                        want + (s->row0 + j) * width + h * c->head_dim);
        }
        CHECK_INT(r->ops->attention(r->context, r->view, layer, qkv, out), 0);
        expect_rows(r, "attention", out, want, r->step.n_rows, width, width);
        r->access->free(r->session, qkv);
        r->access->free(r->session, out);
        sys_free(want);
    }
    past_release(past);
    sys_free(past);
}

TEST(rope_and_attention_over_scattered_pages)
{
    for_cases(check_attention);
}

static void check_head_norms(struct ops_rig *r)
{
    const struct model_config *c = &r->config;
    size_t hd = c->head_dim, width = (c->n_heads + 2 * c->n_kv_heads) * hd;
    if (!c->qk_norm)
        return;
    float *x;
    void *qkv = ops_activations(r, r->step.n_rows * width, &x);
    double *want = doubles(r->step.n_rows * width);
    for (uint32_t row = 0; row < r->step.n_rows; row++) {
        for (uint32_t h = 0; h < c->n_heads + 2 * c->n_kv_heads; h++) {
            const float *from = x + row * width + h * hd;
            size_t m = ops_module(r, 0, WEIGHT_NORM, h < c->n_heads ? NORM_Q : NORM_K, 0);
            int p = ops_owned(r, OP_ROWS, row) ? ops_find_part(r, OPS_SLOTS - 1, m) : -1;
            const float *w =
                p >= 0 ? r->adapters[OPS_SLOTS - 1].values[p][VALUE_FULL] : r->weights[m];
            double sum = 0;
            for (size_t d = 0; d < hd; d++)
                sum += (double)from[d] * from[d];
            double scale = 1 / sqrt(sum / (double)hd + c->rms_eps);
            for (size_t d = 0; d < hd; d++)
                want[row * width + h * hd + d] =
                    h < c->n_heads + c->n_kv_heads
                        ? from[d] * scale * (w[d] + (c->norm_plus_one ? 1 : 0))
                        : from[d];
        }
    }
    CHECK_INT(r->ops->rms_norm(r->context, r->view, 0, NORM_Q, OP_ROWS, qkv, qkv), 0);
    CHECK_INT(r->ops->rms_norm(r->context, r->view, 0, NORM_K, OP_ROWS, qkv, qkv), 0);
    expect_rows(r, "q and k norms", qkv, want, r->step.n_rows, width, width);
    r->access->free(r->session, qkv);
    sys_free(x);
    sys_free(want);
}

TEST(q_and_k_norms_leave_v_alone)
{
    for_cases(check_head_norms);
}

// ---- moe
// -----------------------------------------------------------------------------------------

/* y = (W + sum s B A) x of one expert's matrix for one row. */
static void expert_product(const struct ops_rig *r, size_t m, uint32_t expert, uint32_t row,
                           const double *x, double *y)
{
    const struct model_module *mod = &r->modules->items[m];
    uint32_t n_experts = mod->n_experts;
    const float *w = r->weights[m] + (size_t)expert * mod->d_out * mod->d_in;
    for (uint32_t o = 0; o < mod->d_out; o++) {
        y[o] = 0;
        for (uint32_t k = 0; k < mod->d_in; k++)
            y[o] += w[(size_t)o * mod->d_in + k] * x[k];
    }
    for (uint32_t j = 0; j < r->step.n_segments; j++) {
        const struct step_segment *g = &r->segments[j];
        const struct ops_adapter *a = &r->adapters[g->slot];
        int p = ops_covers(g, row) ? ops_find_part(r, g->slot, m) : -1;
        uint32_t rank = p >= 0 ? a->modules[p].rank : 0;
        for (uint32_t i = 0; i < rank; i++) {
            const float *ai = a->values[p][VALUE_A] + (size_t)(expert * rank + i) * mod->d_in;
            double v = 0;
            for (uint32_t k = 0; k < mod->d_in; k++)
                v += ai[k] * x[k];
            for (uint32_t o = 0; o < mod->d_out; o++)
                y[o] += g->scale * a->modules[p].scale * v *
                        a->values[p][VALUE_B][((size_t)o * rank + i) * n_experts + expert];
        }
    }
}

static void reference_moe(const struct ops_rig *r, uint32_t row, const float *h, double *router,
                          double *y)
{
    const struct model_config *c = &r->config;
    size_t up = ops_module(r, 0, WEIGHT_MATRIX, SITE_EXPERTS_GATE_UP, 0);
    size_t down = ops_module(r, 0, WEIGHT_MATRIX, SITE_EXPERTS_DOWN, 0);
    double x[256], gate_up[512], act[256], out[256], total = 0;
    for (uint32_t k = 0; k < c->d_model; k++) {
        x[k] = h[k];
        y[k] = 0;
    }
    bool chosen[16] = {0};
    for (uint32_t i = 0; i < c->n_experts_used; i++) {
        uint32_t best = c->n_experts;
        for (uint32_t e = 0; e < c->n_experts; e++)
            if (!chosen[e] && (best == c->n_experts || router[e] > router[best]))
                best = e;
        chosen[best] = true;
        total += exp(router[best]);
    }
    for (uint32_t e = 0; e < c->n_experts; e++) {
        if (!chosen[e])
            continue;
        expert_product(r, up, e, row, x, gate_up);
        for (uint32_t k = 0; k < c->d_expert; k++)
            act[k] = gate_up[k] / (1 + exp(-gate_up[k])) * gate_up[c->d_expert + k];
        expert_product(r, down, e, row, act, out);
        for (uint32_t k = 0; k < c->d_model; k++)
            y[k] += exp(router[e]) / total * out[k];
    }
}

static void check_moe(struct ops_rig *r)
{
    const struct model_config *c = &r->config;
    size_t d = c->d_model, rows = r->step.n_rows;
    if (!c->layers[0].moe)
        return;
    size_t m = ops_module(r, 0, WEIGHT_MATRIX, SITE_ROUTER, 0);
    float *h;
    void *in = ops_activations(r, rows * d, &h), *out = r->access->alloc(r->session, rows * d);
    double *want = doubles(rows * d);
    if (!r->ops->moe) {
        printf("# left out: %s shows no single mixture\n", r->be->ops->name);
        return;
    }
    CHECK(c->norm_topk); // what reference_moe computes
    for (uint32_t row = 0; row < rows; row++) {
        double router[16];
        for (uint32_t e = 0; e < c->n_experts; e++) {
            router[e] = 0;
            for (size_t k = 0; k < d; k++)
                router[e] += (double)r->weights[m][e * d + k] * h[row * d + k];
        }
        for (uint32_t j = 0; j < r->step.n_segments; j++) {
            const struct step_segment *g = &r->segments[j];
            const struct ops_adapter *a = &r->adapters[g->slot];
            int p = ops_covers(g, row) ? ops_find_part(r, g->slot, m) : -1;
            uint32_t rank = p >= 0 ? a->modules[p].rank : 0;
            for (uint32_t i = 0; i < rank; i++) {
                double v = 0;
                for (size_t k = 0; k < d; k++)
                    v += (double)a->values[p][VALUE_A][i * d + k] * h[row * d + k];
                for (uint32_t e = 0; e < c->n_experts; e++)
                    router[e] += g->scale * a->modules[p].scale * v *
                                 a->values[p][VALUE_B][(size_t)e * rank + i];
            }
        }
        for (uint32_t e = 0; ops_owned(r, OP_ROWS, row) && e < c->n_experts; e++) {
            int p = ops_find_part(r, OPS_SLOTS - 1, m);
            const struct ops_adapter *a = &r->adapters[OPS_SLOTS - 1];
            if (a->values[p][VALUE_GAIN])
                router[e] *= a->values[p][VALUE_GAIN][e];
            if (a->values[p][VALUE_BIAS])
                router[e] += a->values[p][VALUE_BIAS][e];
            router[e] += a->modules[p].scale * a->values[p][VALUE_LORA_BIAS][e];
        }
        reference_moe(r, row, h + row * d, router, want + row * d);
    }
    CHECK_INT(r->ops->moe(r->context, r->view, 0, in, out), 0);
    expect_rows(r, "moe", out, want, rows, d, d);
    r->access->free(r->session, in);
    r->access->free(r->session, out);
    sys_free(h);
    sys_free(want);
}

TEST(mixture_of_experts_with_adapters_on_router_and_experts)
{
    for_cases(check_moe);
}
