/*
 * The mixture of experts as one op against a plain reference in double: router with all that an
 * adapter may bring to it, the choice, the experts with their low ranks, the sum. Few experts and
 * many, one row and many (both routes of a GPU, all its tiles), odd ranks.
 * tiers: check asan tsan
 */
#include "tests/ops/ops_cases.h"

enum { MAX_EXPERTS = 64, MAX_USED = 8 };

#define QWEN3_MOE                                                                                  \
    "{\"architectures\":[\"Qwen3MoeForCausalLM\"],\"model_type\":\"qwen3_moe\","                   \
    "\"norm_topk_prob\":true,\"decoder_sparse_step\":1,\"mlp_only_layers\":[],"

#define MIXTRAL "{\"architectures\":[\"MixtralForCausalLM\"],\"model_type\":\"mixtral\","

static const struct ops_case cases[] = {
    {"five experts",
     MIXTRAL "\"num_local_experts\":5,\"num_experts_per_tok\":2}",
     DTYPE_BF16,
     DTYPE_BF16,
     {8, 3, 16},
     5,
     12,
     16,
     0,
     0},
    {"one row",
     MIXTRAL "\"num_local_experts\":3,\"num_experts_per_tok\":1}",
     DTYPE_BF16,
     DTYPE_BF16,
     {8, 3, 16},
     1,
     0,
     16,
     0,
     0},
    {"forty experts",
     QWEN3_MOE "\"num_experts\":40,\"num_experts_per_tok\":6,"
               "\"moe_intermediate_size\":48,\"hidden_size\":208}",
     DTYPE_BF16,
     DTYPE_F32,
     {1, 33, 20},
     20,
     40,
     16,
     0,
     0},
    {"many rows",
     QWEN3_MOE "\"num_experts\":64,\"num_experts_per_tok\":8,"
               "\"moe_intermediate_size\":32,\"hidden_size\":128}",
     DTYPE_BF16,
     DTYPE_BF16,
     {8, 70, 16},
     9,
     120,
     64,
     0,
     0},
    {"many rows of an expert",
     MIXTRAL "\"num_local_experts\":8,\"num_experts_per_tok\":4}",
     DTYPE_BF16,
     DTYPE_BF16,
     {8, 3, 16},
     6,
     100,
     64,
     0,
     0},
    {"all rows to both experts",
     MIXTRAL "\"num_local_experts\":2,\"num_experts_per_tok\":2}",
     DTYPE_BF16,
     DTYPE_BF16,
     {8, 3, 100},
     20,
     120,
     64,
     0,
     0},
};

static double dot(const float *a, const double *b, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* y = W x + sum of s B A x of one row at a module; of expert e where it has experts. */
static void reference_module(const struct ops_rig *r, size_t m, uint32_t e, uint32_t row,
                             const double *x, double *y)
{
    const struct model_module *mod = &r->modules->items[m];
    size_t d_in = mod->d_in, n_experts = mod->n_experts ? mod->n_experts : 1;
    const float *w = r->weights[m] + (size_t)e * mod->d_out * d_in;
    for (uint32_t o = 0; o < mod->d_out; o++)
        y[o] = dot(w + o * d_in, x, d_in);
    for (uint32_t j = 0; j < r->step.n_segments; j++) {
        const struct step_segment *g = &r->segments[j];
        int p = ops_covers(g, row) ? ops_find_part(r, g->slot, m) : -1;
        if (p < 0)
            continue;
        const struct ops_adapter *a = &r->adapters[g->slot];
        uint32_t rank = a->modules[p].rank;
        for (uint32_t i = 0; i < rank; i++) {
            double v = dot(a->values[p][VALUE_A] + (e * rank + i) * d_in, x, d_in);
            v *= g->scale * a->modules[p].scale;
            for (uint32_t o = 0; o < mod->d_out; o++)
                y[o] += v * a->values[p][VALUE_B][((size_t)o * rank + i) * n_experts + e];
        }
    }
}

/* What slot 3 brings to the router besides. */
static void reference_router_bias(const struct ops_rig *r, size_t m, uint32_t row, double *y)
{
    const struct ops_adapter *a = &r->adapters[OPS_SLOTS - 1];
    int p = ops_owned(r, OP_ROWS, row) ? ops_find_part(r, OPS_SLOTS - 1, m) : -1;
    for (uint32_t e = 0; p >= 0 && e < r->config.n_experts; e++) {
        if (a->values[p][VALUE_GAIN])
            y[e] *= a->values[p][VALUE_GAIN][e];
        if (a->values[p][VALUE_BIAS])
            y[e] += a->values[p][VALUE_BIAS][e];
        if (a->values[p][VALUE_LORA_BIAS])
            y[e] += a->modules[p].scale * a->values[p][VALUE_LORA_BIAS][e];
    }
}

/* The largest n_experts_used of the softmax and their shares; the gap to the next logit. */
static double reference_choice(const struct ops_rig *r, const double *logits, uint32_t *chosen,
                               double *share)
{
    const struct model_config *c = &r->config;
    bool taken[MAX_EXPERTS] = {0};
    double total = 0, kept = 0, next = -INFINITY;
    for (uint32_t e = 0; e < c->n_experts; e++)
        total += exp(logits[e] - logits[0]);
    for (uint32_t i = 0; i < c->n_experts_used; i++) {
        uint32_t best = MAX_EXPERTS;
        for (uint32_t e = 0; e < c->n_experts; e++) {
            if (!taken[e] && (best == MAX_EXPERTS || logits[e] > logits[best]))
                best = e;
        }
        taken[best] = true;
        chosen[i] = best;
        share[i] = exp(logits[best] - logits[0]) / total;
        kept += share[i];
    }
    for (uint32_t i = 0; c->norm_topk && i < c->n_experts_used; i++)
        share[i] /= kept;
    for (uint32_t e = 0; e < c->n_experts; e++)
        next = !taken[e] && logits[e] > next ? logits[e] : next;
    return logits[chosen[c->n_experts_used - 1]] - next;
}

/* One row's output. Gives the gap of its choice. */
static double reference_row(const struct ops_rig *r, uint32_t row, const float *h, double *y)
{
    const struct model_config *c = &r->config;
    size_t router = ops_module(r, 0, WEIGHT_MATRIX, SITE_ROUTER, 0);
    size_t gate_up = ops_module(r, 0, WEIGHT_MATRIX, SITE_EXPERTS_GATE_UP, 0);
    size_t down = ops_module(r, 0, WEIGHT_MATRIX, SITE_EXPERTS_DOWN, 0);
    double logits[MAX_EXPERTS], share[MAX_USED], *x = doubles(c->d_model);
    double *both = doubles(2 * c->d_expert), *act = doubles(c->d_expert),
           *out = doubles(c->d_model);
    uint32_t chosen[MAX_USED];
    for (uint32_t i = 0; i < c->d_model; i++)
        x[i] = h[i];
    reference_module(r, router, 0, row, x, logits);
    reference_router_bias(r, router, row, logits);
    double gap = reference_choice(r, logits, chosen, share);
    for (uint32_t k = 0; k < c->n_experts_used; k++) {
        reference_module(r, gate_up, chosen[k], row, x, both);
        for (uint32_t i = 0; i < c->d_expert; i++)
            act[i] = both[i] / (1 + exp(-both[i])) * both[c->d_expert + i];
        reference_module(r, down, chosen[k], row, act, out);
        for (uint32_t i = 0; i < c->d_model; i++)
            y[i] += share[k] * out[i];
    }
    sys_free(x);
    sys_free(both);
    sys_free(act);
    sys_free(out);
    return gap;
}

/* Rows whose choice hangs on less than rounding are not compared; they are few. */
static void check_moe(struct ops_rig *r)
{
    size_t d = r->config.d_model, rows = r->step.n_rows;
    bool narrow = r->access->epsilon(r->session) > 1e-4;
    double bound = narrow ? 2e-2 : r->bound, worst = 0, near = narrow ? 1e-2 : 1e-5;
    uint32_t n_near = 0;
    float *h, *got = sys_malloc((rows * d + 1) * sizeof *got);
    void *in = ops_activations(r, rows * d, &h), *out = r->access->alloc(r->session, rows * d);
    CHECK(got && out);
    CHECK_INT(r->ops->moe(r->context, r->view, 0, in, out), 0);
    r->access->read(r->session, out, 0, got, rows * d);
    for (uint32_t row = 0; row < rows; row++) {
        double *want = doubles(d), gap = reference_row(r, row, h + row * d, want);
        double error = ops_error(got + row * d, want, d);
        n_near += gap < near;
        worst = gap >= near && error > worst ? error : worst;
        EXPECT_MSG(gap < near || error <= bound, "%s, row %u: off by %.2e", r->c->name, row, error);
        sys_free(want);
    }
    EXPECT_MSG(n_near <= rows / 4, "%s: %u of %zu rows at near ties", r->c->name, n_near, rows);
    printf("# %s: %zu rows, %u at near ties, worst %.1e\n", r->c->name, rows, n_near, worst);
    r->access->free(r->session, in);
    r->access->free(r->session, out);
    sys_free(h);
    sys_free(got);
}

TEST(rows_through_their_experts)
{
    struct ops_rig *r = sys_calloc(1, sizeof *r);
    CHECK(r);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct err err = {0};
        int rc = ops_open(r, &cases[i], &err);
        if (rc == ERR_NOT_FOUND || rc == ERR_REFUSED) {
            test_skip("%s", err.msg);
            break;
        }
        CHECK_MSG(rc == 0, "%s: %s", cases[i].name, err.msg);
        check_moe(r);
        ops_close(r);
    }
    sys_free(r);
}
