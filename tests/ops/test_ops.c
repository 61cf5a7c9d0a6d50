/*
 * Every op of a back end against plain references in double, over one table of shapes and types.
 * LORA_TEST_DEVICE chooses the back end, LORA_CPU_ISA the instruction set of the CPU's (each must
 * pass: the references are the plain twins).
 */
#include "tests/ops/ops_cases.h"

// ---- products
// ------------------------------------------------------------------------------------

static double dot(const float *a, const float *b, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)a[i] * b[i];
    return sum;
}

/* y = W x of one row; what the owner replaces from its own. */
static void reference_gemm(const struct ops_rig *r, uint32_t layer, enum site site, bool owned,
                           const float *x, double *y)
{
    for (size_t m = 0; m < r->modules->n; m++) {
        const struct model_module *mod = &r->modules->items[m];
        bool tied = site == SITE_HEAD && r->config.tied_embeddings;
        if (mod->place.kind != WEIGHT_MATRIX || mod->place.layer != layer || mod->n_experts ||
            mod->place.site != (tied ? SITE_EMBED : site))
            continue;
        const struct ops_adapter *a = &r->adapters[OPS_SLOTS - 1];
        int part = owned ? ops_find_part(r, OPS_SLOTS - 1, m) : -1;
        const float *w =
            part >= 0 && a->values[part][VALUE_FULL] ? a->values[part][VALUE_FULL] : r->weights[m];
        for (uint32_t i = 0; i < mod->d_out; i++)
            y[mod->place.row0 + i] = dot(w + (size_t)i * mod->d_in, x, mod->d_in);
        for (uint32_t i = 0; tied && part >= 0 && i < 3; i++)
            y[a->row_ids[i]] =
                dot(a->values[part][VALUE_ROWS] + (size_t)i * mod->d_in, x, mod->d_in);
    }
}

/* y += sum of s B A x over the segments of one row. */
static void reference_low_rank(const struct ops_rig *r, uint32_t layer, enum site site,
                               enum op_space space, uint32_t row, const float *x, double *y)
{
    uint32_t n;
    const struct step_segment *g = ops_segments(r, space, &n);
    for (uint32_t j = 0; j < n; j++) {
        const struct ops_adapter *a = &r->adapters[g[j].slot];
        for (size_t p = 0; ops_covers(&g[j], row) && p < a->bound.n_parts; p++) {
            const struct model_module *mod = a->parts[p].target;
            uint32_t rank = a->modules[p].rank;
            if (mod->place.kind != WEIGHT_MATRIX || mod->place.layer != layer ||
                mod->place.site != site)
                continue;
            for (uint32_t i = 0; i < rank; i++) {
                double v = dot(a->values[p][VALUE_A] + (size_t)i * mod->d_in, x, mod->d_in);
                for (uint32_t o = 0; o < mod->d_out; o++)
                    y[mod->place.row0 + o] += g[j].scale * a->modules[p].scale * v *
                                              a->values[p][VALUE_B][(size_t)o * rank + i];
            }
        }
    }
}

/* y = g y + b + sum of s b_B of one row. */
static void reference_bias(const struct ops_rig *r, uint32_t layer, enum site site,
                           enum op_space space, uint32_t row, double *y)
{
    for (size_t m = 0; m < r->modules->n; m++) {
        const struct model_module *mod = &r->modules->items[m];
        if (mod->place.kind != WEIGHT_MATRIX || mod->place.layer != layer ||
            mod->place.site != site)
            continue;
        const struct ops_adapter *a = &r->adapters[OPS_SLOTS - 1];
        bool owned = ops_owned(r, space, row);
        int p = owned ? ops_find_part(r, OPS_SLOTS - 1, m) : -1;
        for (uint32_t i = 0; i < mod->d_out; i++) {
            double *v = &y[mod->place.row0 + i];
            if (p >= 0 && a->values[p][VALUE_GAIN])
                *v *= a->values[p][VALUE_GAIN][i];
            if (p >= 0 && a->values[p][VALUE_BIAS])
                *v += a->values[p][VALUE_BIAS][i];
            else if (r->biases[m])
                *v += r->biases[m][i];
            if (p >= 0 && a->values[p][VALUE_LORA_BIAS])
                *v += a->modules[p].scale * a->values[p][VALUE_LORA_BIAS][i];
        }
    }
}

static void site_shape(const struct ops_rig *r, uint32_t layer, enum site site, size_t *n_out,
                       size_t *n_in)
{
    *n_out = *n_in = 0;
    for (size_t m = 0; m < r->modules->n; m++) {
        const struct model_module *mod = &r->modules->items[m];
        if (mod->place.kind != WEIGHT_MATRIX || mod->place.layer != layer ||
            mod->place.site != site)
            continue;
        *n_out = mod->place.row0 + mod->d_out;
        *n_in = mod->d_in;
    }
}

/* One site: the product, then with A and B, then with gains and biases. */
static void check_site(struct ops_rig *r, uint32_t layer, enum site site, enum op_space space)
{
    size_t n_out, n_in, rows = ops_rows(r, space);
    site_shape(r, layer, site, &n_out, &n_in);
    if (n_out == 0)
        return;
    size_t stride = site == SITE_HEAD ? r->access->logits_stride(r->session) : n_out;
    float *x;
    void *in = ops_activations(r, rows * n_in, &x),
         *out = r->access->alloc(r->session, rows * stride);
    double *want = doubles(rows * n_out);
    for (uint32_t row = 0; row < rows; row++)
        reference_gemm(r, layer, site, ops_owned(r, space, row), x + row * n_in,
                       want + row * n_out);
    CHECK_INT(r->ops->gemm(r->context, r->view, layer, site, space, in, out), 0);
    expect_rows(r, "gemm", out, want, rows, n_out, stride);
    for (uint32_t row = 0; row < rows; row++)
        reference_low_rank(r, layer, site, space, row, x + row * n_in, want + row * n_out);
    CHECK_INT(r->ops->sgmv_shrink(r->context, r->view, layer, site, space, in), 0);
    CHECK_INT(r->ops->sgmv_expand(r->context, r->view, layer, site, space, out), 0);
    expect_rows(r, "sgmv", out, want, rows, n_out, stride);
    for (uint32_t row = 0; row < rows; row++)
        reference_bias(r, layer, site, space, row, want + row * n_out);
    CHECK_INT(r->ops->gain_bias(r->context, r->view, layer, site, space, out), 0);
    expect_rows(r, "gain_bias", out, want, rows, n_out, stride);
    r->access->free(r->session, in);
    r->access->free(r->session, out);
    sys_free(x);
    sys_free(want);
}

static void check_sites(struct ops_rig *r)
{
    for (uint32_t layer = 0; layer < 2; layer++) {
        check_site(r, layer, SITE_QKV, OP_ROWS);
        check_site(r, layer, SITE_O, OP_ROWS);
        check_site(r, layer, SITE_GATE_UP, OP_ROWS);
        check_site(r, layer, SITE_DOWN, OP_ROWS);
    }
    check_site(r, 0, SITE_HEAD, OP_LOGIT_ROWS);
}

TEST(gemm_sgmv_gain_and_bias_of_every_site)
{
    for_cases(check_sites);
}

// ---- embed, norms, rows
// --------------------------------------------------------------------------

static void check_embed(struct ops_rig *r)
{
    size_t d = r->config.d_model, rows = r->step.n_rows;
    size_t m = ops_module(r, 0, WEIGHT_MATRIX, SITE_EMBED, 0);
    double *want = doubles(rows * d);
    void *out = r->access->alloc(r->session, rows * d);
    for (uint32_t row = 0; row < rows; row++) {
        uint32_t token = (uint32_t)r->tokens[row];
        const float *e = r->weights[m] + token * d;
        const struct ops_adapter *owner = &r->adapters[OPS_SLOTS - 1];
        int p = ops_find_part(r, OPS_SLOTS - 1, m);
        for (int i = 0; i < 3 && ops_owned(r, OP_ROWS, row); i++) {
            if (owner->row_ids[i] == token)
                e = owner->values[p][VALUE_ROWS] + (size_t)i * d;
        }
        for (size_t k = 0; k < d; k++)
            want[row * d + k] = e[k];
        for (uint32_t j = 0; j < r->step.n_segments; j++) {
            const struct step_segment *g = &r->segments[j];
            const struct ops_adapter *a = &r->adapters[g->slot];
            p = ops_find_part(r, g->slot, m);
            uint32_t rank = a->modules[p].rank;
            for (uint32_t i = 0; ops_covers(g, row) && i < rank; i++) {
                double v = a->values[p][VALUE_A][(size_t)i * OPS_VOCAB + token];
                for (size_t k = 0; k < d; k++)
                    want[row * d + k] +=
                        g->scale * a->modules[p].scale * v * a->values[p][VALUE_B][k * rank + i];
            }
        }
        for (size_t k = 0; k < d; k++)
            want[row * d + k] *= r->config.embed_scale;
    }
    CHECK_INT(r->ops->begin(r->context, r->view), 0);
    CHECK_INT(r->ops->embed(r->context, r->view, out), 0);
    expect_rows(r, "embed", out, want, rows, d, d);
    r->access->free(r->session, out);
    sys_free(want);
}

TEST(embed_with_low_rank_and_replaced_rows)
{
    for_cases(check_embed);
}

static const float *norm_weights(const struct ops_rig *r, uint32_t layer, enum norm norm,
                                 enum op_space space, uint32_t row)
{
    size_t m = ops_module(r, layer, WEIGHT_NORM, (int)norm, 0);
    int p = ops_owned(r, space, row) ? ops_find_part(r, OPS_SLOTS - 1, m) : -1;
    return p >= 0 ? r->adapters[OPS_SLOTS - 1].values[p][VALUE_FULL] : r->weights[m];
}

static void reference_norm(const struct ops_rig *r, const float *w, const float *x, size_t n,
                           double *out)
{
    double sum = 0;
    for (size_t k = 0; k < n; k++)
        sum += (double)x[k] * x[k];
    double scale = 1 / sqrt(sum / (double)n + r->config.rms_eps);
    for (size_t k = 0; k < n; k++)
        out[k] = x[k] * scale * (w[k] + (r->config.norm_plus_one ? 1 : 0));
}

static void check_norms(struct ops_rig *r)
{
    static const enum norm norms[] = {NORM_ATTN, NORM_MLP, NORM_FINAL};
    size_t d = r->config.d_model;
    for (int i = 0; i < 3; i++) {
        enum op_space space = norms[i] == NORM_FINAL ? OP_LOGIT_ROWS : OP_ROWS;
        size_t rows = ops_rows(r, space);
        float *x;
        void *in = ops_activations(r, rows * d, &x), *out = r->access->alloc(r->session, rows * d);
        double *want = doubles(rows * d);
        for (uint32_t row = 0; row < rows; row++)
            reference_norm(r, norm_weights(r, 0, norms[i], space, row), x + row * d, d,
                           want + row * d);
        CHECK_INT(r->ops->rms_norm(r->context, r->view, 0, norms[i], space, in, out), 0);
        expect_rows(r, "rms_norm", out, want, rows, d, d);
        r->access->free(r->session, in);
        r->access->free(r->session, out);
        sys_free(x);
        sys_free(want);
    }
}

TEST(rms_norm_with_replaced_weights)
{
    for_cases(check_norms);
}

static double activation(const struct ops_rig *r, double g)
{
    if (r->config.activation == ACTIVATION_SILU)
        return g / (1 + exp(-g));
    return 0.5 * g * (1 + tanh(0.7978845608028654 * (g + 0.044715 * g * g * g)));
}

static void check_rows(struct ops_rig *r)
{
    size_t d = r->config.d_model, f = r->config.d_ff, rows = r->step.n_rows;
    float *gate, *x, *y;
    void *in = ops_activations(r, rows * 2 * f, &gate),
         *out = r->access->alloc(r->session, rows * f);
    void *bx = ops_activations(r, rows * d, &x), *by = ops_activations(r, rows * d, &y);
    double *want = doubles(rows * (f + d));
    if (!r->config.layers[0].moe) {
        for (size_t i = 0; i < rows * f; i++) {
            size_t row = i / f, k = i % f;
            want[i] = activation(r, 4.0 * gate[row * 2 * f + k]) * gate[row * 2 * f + f + k];
            gate[row * 2 * f + k] *= 4;
        }
        r->access->write(r->session, in, 0, gate, rows * 2 * f);
        CHECK_INT(r->ops->activation(r->context, r->view, in, out), 0);
        expect_rows(r, "activation", out, want, rows, f, f);
    }
    for (size_t i = 0; i < rows * d; i++)
        want[i] = (double)x[i] + y[i];
    CHECK_INT(r->ops->residual(r->context, r->view, bx, by), 0);
    expect_rows(r, "residual", bx, want, rows, d, d);
    CHECK_INT(r->ops->gather(r->context, r->view, by, bx), 0);
    for (size_t i = 0; i < r->step.n_logit_rows; i++)
        for (size_t k = 0; k < d; k++)
            want[i * d + k] = y[r->logit_rows[i] * d + k];
    expect_rows(r, "gather", bx, want, r->step.n_logit_rows, d, d);
    void *buffers[] = {in, out, bx, by};
    for (int i = 0; i < 4; i++)
        r->access->free(r->session, buffers[i]);
    sys_free(gate);
    sys_free(x);
    sys_free(y);
    sys_free(want);
}

TEST(activation_residual_and_gather)
{
    for_cases(check_rows);
}
