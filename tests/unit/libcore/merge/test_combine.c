/*
 * Every method against float64 on whole matrices, written plainly here.
 */
#include <stdio.h>
#include <stdlib.h>

#include "libcore/merge/svd.h"
#include "tests/unit/libcore/merge/combine_rig.h"

/* Two adapters with different ranks, scales and modules; an embedding; experts. */
static const struct rig_module modules_a[] = {
    {"model.embed_tokens", NULL, 24, 60, 3, 0, 0.5, true},
    {"model.layers.0.mlp.experts", "down_proj", 20, 26, 2, 3, 1.5, false},
    {"model.layers.0.self_attn.q_proj", NULL, 32, 24, 4, 0, 2, false},
    {"model.layers.1.self_attn.q_proj", NULL, 32, 24, 5, 0, 16 / 2.23606797749979, false},
};
static const struct rig_module modules_b[] = {
    {"model.embed_tokens", NULL, 24, 60, 2, 0, 1, true},
    {"model.layers.0.mlp.experts", "down_proj", 20, 26, 4, 3, 0.25, false},
    {"model.layers.0.self_attn.q_proj", NULL, 32, 24, 8, 0, 1, false},
    {"model.layers.0.self_attn.v_proj", NULL, 12, 24, 6, 0, 3, false},
};

struct pair {
    struct adapter *a, *b;
};

static struct pair make_pair(void)
{
    return (struct pair){rig_adapter(1, modules_a, 4), rig_adapter(2, modules_b, 4)};
}

static void free_pair(struct pair *p)
{
    adapter_free(p->a);
    adapter_free(p->b);
}

static int combine(struct adapter **out, const struct combine_options *o, const struct adapter *a,
                   double wa, const struct adapter *b, double wb, struct combine_report **report,
                   struct err *err)
{
    const struct combine_input inputs[] = {{a, wa, "a"}, {b, wb, "b"}};
    struct combine_report *r = NULL;
    int rc = combine_adapters(out, &r, inputs, b ? 2 : 1, o, err);
    if (report)
        *report = r;
    else
        combine_report_free(r);
    return rc;
}

// ---- plain rules on whole matrices -------------------------------------------------------------

struct place {
    const struct adapter_module *like;
    const char *ids[2]; // content ids of the terms
    double *x[2];       // their deltas
    double w[2];
    size_t n_terms, out, in;
    uint32_t expert;
};

static size_t rank_among(const double *x, size_t n, size_t i)
{
    size_t larger = 0; // as float32, equal ones by index
    float own = fabsf((float)x[i]);
    for (size_t k = 0; k < n; k++) {
        float other = fabsf((float)x[k]);
        larger += other > own || (other == own && k < i);
    }
    return larger;
}

static double pruned(const struct combine_options *o, const struct place *p, size_t t, size_t i)
{
    const struct blend_rule *r = &o->method->rule;
    double x = (float)p->x[t][i], d = o->density;
    size_t n = p->out * p->in, keep = (size_t)(d * (double)n), top = (size_t)(0.01 * (double)n);
    uint64_t stream = random_stream(p->ids[t], p->like->name, p->like->parameter, p->expert);
    if (d >= 1 || r->prune == BLEND_ALL)
        return x;
    if (r->prune == BLEND_RANDOM) {
        double f = r->rescale == BLEND_BY_PROBABILITY ? 1 / d : 1;
        return random_uniform(o->seed, stream, i) < d ? (float)(x * f) : 0;
    }
    if (r->prune == BLEND_DELLA) {
        size_t row = i / p->in * p->in, smaller = 0;
        for (size_t c = row; c < row + p->in; c++) {
            float a = fabsf((float)p->x[t][c]), b = fabsf((float)x);
            smaller += a < b || (a == b && c < i);
        }
        double e = fmin(0.15, fmin(d, 1 - d) / 2);
        double q = d - e + 2 * e * ((double)smaller / (double)(p->in - 1));
        double f = r->rescale == BLEND_BY_PROBABILITY ? 1 / q : 1;
        return random_uniform(o->seed, stream, i) < q ? (float)(x * f) : 0;
    }
    size_t rank = rank_among(p->x[t], n, i);
    if (r->prune == BLEND_MAGNITUDE)
        return rank < keep ? x : 0;
    top = top > n - keep ? n - keep : top;
    return rank >= top && rank < top + keep ? x : 0;
}

static double *blend_reference(const struct combine_options *o, const struct place *p)
{
    const struct blend_rule *r = &o->method->rule;
    size_t n = p->out * p->in;
    double *x[2] = {NULL, NULL}, *m = calloc(n, sizeof *m);
    for (size_t t = 0; t < p->n_terms; t++) {
        double before = 0, after = 0;
        x[t] = calloc(n, sizeof *m);
        for (size_t i = 0; i < n; i++) {
            x[t][i] = pruned(o, p, t, i);
            before += fabs((float)p->x[t][i]);
            after += fabs(x[t][i]);
        }
        for (size_t i = 0; i < n && r->rescale == BLEND_BY_L1 && o->density < 1; i++)
            x[t][i] *= before / after;
    }
    for (size_t i = 0; i < n; i++) {
        double vote = 0, sum = 0, weight = 0;
        int count = 0;
        for (size_t t = 0; t < p->n_terms; t++)
            vote += (r->vote == BLEND_VOTE_PLAIN ? 1 : p->w[t]) * x[t][i];
        for (size_t t = 0; t < p->n_terms; t++) {
            double judged = (r->vote == BLEND_VOTE_PLAIN ? 1 : p->w[t]) * x[t][i];
            if (r->vote != BLEND_NO_VOTE && !(vote >= 0 ? judged > 0 : judged < 0))
                continue;
            sum += p->w[t] * x[t][i];
            weight += p->w[t];
            count++;
        }
        m[i] = r->divisor == BLEND_BY_COUNT && count           ? sum / count
               : r->divisor == BLEND_BY_WEIGHTS && weight != 0 ? sum / weight
                                                               : sum;
    }
    free(x[0]);
    free(x[1]);
    return m;
}

static double *sum_reference(const struct combine_options *o, const struct place *p)
{
    size_t n = p->out * p->in;
    double *m = calloc(n, sizeof *m), c[2] = {p->w[0], p->w[1]};
    if (o->method->path == COMBINE_SLERP && p->n_terms == 2) {
        double dot = 0;
        for (size_t i = 0; i < n; i++)
            dot += p->x[0][i] * p->x[1][i];
        double angle = acos(dot / rig_norm(p->x[0], n) / rig_norm(p->x[1], n));
        c[0] = sin(p->w[0] * angle) / sin(angle); // weights are 1 - t and t
        c[1] = sin(p->w[1] * angle) / sin(angle);
    }
    for (size_t t = 0; t < p->n_terms; t++) {
        for (size_t i = 0; i < n; i++)
            m[i] += c[t] * p->x[t][i];
    }
    return m;
}

/* The dense result for one module of the combination. */
static double *reference(const struct combine_options *o, const struct pair *pair, double wa,
                         double wb, const struct adapter_module *like, uint32_t expert)
{
    const struct adapter *adapters[] = {pair->a, pair->b};
    const double weights[] = {wa, wb};
    struct place p = {.like = like, .expert = expert};
    bool divide = o->method->normalize || o->method->path == COMBINE_SLERP;
    for (size_t i = 0; i < 2; i++) {
        const struct adapter_module *m = adapter_find(adapters[i], like->name, like->parameter);
        if (!m)
            continue;
        p.out = m->b.shape[0];
        p.in = m->a.shape[1];
        p.ids[p.n_terms] = adapters[i]->content_id;
        p.x[p.n_terms] = rig_delta(m, expert);
        p.w[p.n_terms++] = divide ? weights[i] / (wa + wb) : weights[i];
    }
    double *m = o->method->path == COMBINE_DENSE ? blend_reference(o, &p) : sum_reference(o, &p);
    free(p.x[0]);
    free(p.x[1]);
    return m;
}

static void compare(const struct combine_options *o, double wa, double wb)
{
    struct pair p = make_pair();
    struct adapter *c;
    struct err err = {0};
    if (o->method->compat == COMBINE_PEFT) { // which does not combine experts
        free_pair(&p);
        p.a = rig_adapter(1, modules_a + 2, 2);
        p.b = rig_adapter(2, modules_b + 2, 2);
    }
    int rc = combine(&c, o, p.a, wa, p.b, wb, NULL, &err);
    EXPECT_MSG(rc == 0, "%s: %s", o->method->name, err.msg);
    for (size_t i = 0; rc == 0 && i < c->n_modules; i++) {
        const struct adapter_module *m = &c->modules[i];
        EXPECT(m->scale == 1 && m->alpha == m->rank);
        for (uint32_t e = 0; e < (m->n_experts ? m->n_experts : 1); e++) {
            double *want = reference(o, &p, wa, wb, m, e), *got = rig_delta(m, e);
            double d = rig_distance(got, want, m->b.shape[0] * m->a.shape[1]);
            EXPECT_MSG(d < 1e-6, "%s (%d): %s: off by %g", o->method->name, o->method->compat,
                       m->name, d);
            free(want);
            free(got);
        }
    }
    if (rc == 0)
        EXPECT(c->n_modules == (o->method->compat == COMBINE_PEFT ? 3 : 5));
    adapter_free(c);
    free_pair(&p);
}

TEST(every_method_is_what_float64_makes_of_whole_matrices)
{
    size_t n;
    const struct combine_method *table = combine_method_table(&n);
    for (size_t i = 0; i < n; i++) {
        if (table[i].path == COMBINE_FACTORS)
            continue; // no statement about deltas; see test_combine_peft.c
        struct combine_options o = rig_options(table[i].name, table[i].compat);
        if (table[i].path != COMBINE_STACK)
            o.rank = 64; // nothing is cut: the smaller side decides
        compare(&o, 0.7, 0.3);
        if (table[i].path != COMBINE_SLERP)
            compare(&o, 1.0, -0.5);
        if (combine_takes_density(&table[i])) {
            o.density = 0.4;
            compare(&o, 0.7, 0.3);
            compare(&o, 1.0, -0.5);
        }
    }
}

TEST(one_adapter_of_weight_1_comes_back_from_every_method)
{
    size_t n;
    const struct combine_method *table = combine_method_table(&n);
    struct pair p = make_pair();
    for (size_t i = 0; i < n; i++) {
        const struct rig_module plain = {"model.layers.0.mlp.up_proj", NULL, 40, 24, 4, 0, 2, 0};
        struct adapter *single = rig_adapter(7, &plain, 1);
        // PEFT does not combine experts
        const struct adapter *a = table[i].compat == COMBINE_PEFT ? single : p.a;
        struct combine_options o = rig_options(table[i].name, table[i].compat);
        struct adapter *c;
        struct err err = {0};
        int rc = combine(&c, &o, a, 1, NULL, 0, NULL, &err);
        EXPECT_MSG(rc == 0, "%s: %s", table[i].name, err.msg);
        for (size_t k = 0; rc == 0 && k < c->n_modules; k++) {
            const struct adapter_module *m = &c->modules[k], *from = &a->modules[k];
            CHECK_INT(m->rank, from->rank);
            for (uint32_t e = 0; e < (m->n_experts ? m->n_experts : 1); e++) {
                double *want = rig_delta(from, e), *got = rig_delta(m, e);
                double d = rig_distance(got, want, m->b.shape[0] * m->a.shape[1]);
                EXPECT_MSG(d < 1e-6, "%s (%d): %s: off by %g", table[i].name, table[i].compat,
                           m->name, d);
                free(want);
                free(got);
            }
        }
        adapter_free(c);
        adapter_free(single);
    }
    free_pair(&p);
}

TEST(order_and_threads_change_no_bit)
{
    size_t n;
    const struct combine_method *table = combine_method_table(&n);
    const struct rig_module one = {"model.layers.0.mlp.up_proj", NULL, 40, 24, 4, 0, 2, 0};
    struct pair p = make_pair(), equal = {rig_adapter(3, &one, 1), rig_adapter(4, &one, 1)};
    for (size_t i = 0; i < n; i++) {
        const struct pair *q = table[i].compat == COMBINE_PEFT ? &equal : &p;
        struct combine_options o = rig_options(table[i].name, table[i].compat);
        struct adapter *x, *y;
        struct err err = {0};
        if (o.density > 0)
            o.density = 0.5;
        CHECK_OK(combine(&x, &o, q->a, 0.7, q->b, 0.3, NULL, &err), err);
        o.n_threads = 1;
        CHECK_OK(combine(&y, &o, q->b, 0.3, q->a, 0.7, NULL, &err), err);
        EXPECT_MSG(rig_same(x, y), "%s", table[i].name);
        adapter_free(y);
        o.n_threads = 5;
        o.seed++;
        CHECK_OK(combine(&y, &o, q->a, 0.7, q->b, 0.3, NULL, &err), err);
        EXPECT_MSG(rig_same(x, y) == !combine_takes_seed(o.method), "%s: another seed",
                   table[i].name);
        adapter_free(x);
        adapter_free(y);
    }
    free_pair(&p);
    free_pair(&equal);
}

TEST(a_rank_is_the_best_of_that_rank_and_its_loss_is_told)
{
    struct pair p = make_pair();
    struct combine_options o = rig_options("svd", COMBINE_OWN);
    struct combine_report *r;
    struct adapter *c;
    struct err err = {0};
    o.rank = 3;
    CHECK_OK(combine(&c, &o, p.a, 0.7, p.b, 0.3, &r, &err), err);
    CHECK_INT(r->max_rank, 3);
    CHECK_INT(r->n, c->n_modules);
    for (size_t i = 0; i < c->n_modules; i++) {
        const struct adapter_module *m = &c->modules[i];
        if (m->n_experts)
            continue;
        size_t out = m->b.shape[0], in = m->a.shape[1];
        double *want = reference(&o, &p, 0.7, 0.3, m, 0), *got = rig_delta(m, 0);
        double loss = rig_distance(got, want, out * in);
        double *columns = calloc(out * in, sizeof *columns), tail = 0, all = 0;
        for (size_t k = 0; k < out * in; k++)
            columns[k % in * out + k / in] = want[k];
        struct svd d;
        CHECK_OK(svd_dense(&d, columns, out, in, &err), err);
        for (size_t k = 0; k < d.k; k++) {
            tail += k >= 3 ? d.s[k] * d.s[k] : 0;
            all += d.s[k] * d.s[k];
        }
        EXPECT_NEAR(loss, sqrt(tail / all), 1e-6);
        EXPECT_NEAR(combine_loss(r->modules[i].discarded2, r->modules[i].total2), loss, 1e-6);
        svd_release(&d);
        free(columns);
        free(want);
        free(got);
    }
    EXPECT(combine_loss(r->discarded2, r->total2) > 0.01);
    combine_report_free(r);
    adapter_free(c);
    free_pair(&p);
}

TEST(cat_keeps_every_rank_and_linear_only_those_that_are_there)
{
    struct pair p = make_pair();
    struct combine_options cat = rig_options("cat", COMBINE_OWN);
    struct combine_options linear = rig_options("linear", COMBINE_OWN);
    struct adapter *c;
    struct err err = {0};
    CHECK_OK(combine(&c, &cat, p.a, 1, p.b, 1, NULL, &err), err);
    CHECK_INT(adapter_find(c, "model.layers.0.self_attn.q_proj", NULL)->rank, 12);
    CHECK_INT(adapter_find(c, "model.layers.0.self_attn.v_proj", NULL)->rank, 6);
    adapter_free(c);
    // an adapter and itself: the sum has its rank
    CHECK_OK(combine(&c, &linear, p.a, 0.5, p.a, 0.25, NULL, &err), err);
    for (size_t i = 0; i < c->n_modules; i++)
        CHECK_INT(c->modules[i].rank, p.a->modules[i].rank);
    adapter_free(c);
    // and taken away from itself nothing is left: a pair of zeros
    CHECK_OK(combine(&c, &linear, p.a, 1, p.a, -1, NULL, &err), err);
    CHECK_INT(c->modules[0].rank, 1);
    double *d = rig_delta(&c->modules[0], 0);
    EXPECT(rig_norm(d, 24 * 60) == 0);
    free(d);
    adapter_free(c);
    free_pair(&p);
}

// ---- refusals ----------------------------------------------------------------------------------

static void refused(const struct combine_options *o, const struct adapter *a, double wa,
                    const struct adapter *b, double wb, int code, const char *word)
{
    struct adapter *c;
    struct err err = {0};
    int rc = combine(&c, o, a, wa, b, wb, NULL, &err);
    EXPECT_MSG(rc == code, "%d: %s", rc, err.msg);
    EXPECT_MSG(strstr(err.msg, word) != NULL, "wanted \"%s\": %s", word, err.msg);
    EXPECT(c == NULL);
    adapter_free(c);
}

TEST(numbers_that_a_method_does_not_take_are_usage_errors)
{
    struct pair p = make_pair();
    struct combine_options o = rig_options("cat", COMBINE_OWN);
    const struct combine_method *m;
    struct err err = {0};
    o.rank = 4;
    refused(&o, p.a, 1, p.b, 1, ERR_USAGE, "--method svd --rank 4");
    o = rig_options("linear", COMBINE_OWN);
    o.density = 0.5;
    refused(&o, p.a, 1, p.b, 1, ERR_USAGE, "takes no --density");
    o.density = 0;
    refused(&o, p.a, 0, p.b, 1, ERR_USAGE, "not 0");
    refused(&o, p.a, NAN, p.b, 1, ERR_USAGE, "weight");
    o = rig_options("ties", COMBINE_OWN);
    o.density = 0;
    refused(&o, p.a, 1, p.b, 1, ERR_USAGE, "--density is missing");
    o.density = 1.5;
    refused(&o, p.a, 1, p.b, 1, ERR_USAGE, "(0, 1]");
    o = rig_options("slerp", COMBINE_OWN);
    refused(&o, p.a, 1, p.b, -1, ERR_USAGE, "above 0");
    o = rig_options("della", COMBINE_OWN);
    o.density = 0.9;
    o.epsilon = 0.2;
    refused(&o, p.a, 1, p.b, 1, ERR_USAGE, "epsilon");
    CHECK_CODE(combine_method_find(&m, "tie", COMBINE_OWN, &err), ERR_USAGE, err);
    CHECK(strstr(err.msg, "ties") != NULL);
    CHECK_CODE(combine_method_find(&m, "slerp", COMBINE_MERGEKIT, &err), ERR_USAGE, err);
    CHECK_CODE(combine_method_find(&m, "ties_svd", COMBINE_OWN, &err), ERR_USAGE, err);
    free_pair(&p);
}

static struct adapter *with_extra(uint64_t seed, size_t module_idx,
                                  void (*change)(struct adapter_module *m))
{
    struct adapter *a = rig_adapter(seed, modules_a, 4);
    change(&a->modules[module_idx]);
    adapter_finish(a);
    return a;
}

static const float numbers[64 * 64];
static const float trained[64] = {1, 2, 3};

static void make_dora(struct adapter_module *m)
{
    m->magnitude = (struct tensor){.dtype = DTYPE_F32, .n_dims = 1, .shape = {32}, .data = numbers};
}

static void make_bias(struct adapter_module *m)
{
    m->bias = (struct tensor){.dtype = DTYPE_F32, .n_dims = 1, .shape = {32}, .data = trained};
}

static void make_lora_bias(struct adapter_module *m)
{
    m->lora_bias = (struct tensor){.dtype = DTYPE_F32, .n_dims = 1, .shape = {32}, .data = trained};
}

static void make_saved_base(struct adapter_module *m)
{
    m->full = (struct tensor){.dtype = DTYPE_F32, .n_dims = 2, .shape = {60, 24}, .data = numbers};
    m->full_is_base = true;
}

static float other_numbers[60 * 24] = {1};

static void make_other_saved_base(struct adapter_module *m)
{
    make_saved_base(m);
    m->full.data = other_numbers;
}

TEST(what_has_no_sum_is_refused_by_name)
{
    struct pair p = make_pair();
    struct combine_options cat = rig_options("cat", COMBINE_OWN);
    struct combine_options ties = rig_options("ties", COMBINE_OWN);
    struct adapter *dora = with_extra(5, 2, make_dora), *bias = with_extra(6, 3, make_bias);
    struct adapter *lora_bias = with_extra(8, 2, make_lora_bias);
    struct adapter *saved = with_extra(9, 0, make_saved_base);
    struct adapter *other = with_extra(10, 0, make_other_saved_base);
    refused(&cat, dora, 1, p.b, 1, ERR_REFUSED, "DoRA");
    refused(&cat, bias, 0.5, p.b, 1, ERR_REFUSED, "weight 0.5");
    refused(&cat, bias, 1, p.a, 1, ERR_REFUSED, "changes the same module");
    refused(&ties, bias, 1, p.b, 1, ERR_REFUSED, "no meaning");
    refused(&ties, lora_bias, 1, p.b, 1, ERR_REFUSED, "lora_bias");
    refused(&cat, lora_bias, 1, p.b, 1, ERR_REFUSED, "lora_bias: PEFT has no adapter of both");
    refused(&cat, saved, 1, other, 1, ERR_REFUSED, "bases differ");
    adapter_free(dora), adapter_free(bias), adapter_free(lora_bias), adapter_free(saved);
    adapter_free(other);
    free_pair(&p);
}

TEST(what_is_known_without_the_base_is_taken_over)
{
    struct pair p = make_pair();
    struct combine_options o = rig_options("linear", COMBINE_OWN);
    struct adapter *bias = with_extra(6, 3, make_bias), *saved = with_extra(9, 0, make_saved_base);
    struct adapter *c;
    struct combine_report *r;
    struct err err = {0};
    CHECK_OK(combine(&c, &o, bias, 1, p.b, 0.5, &r, &err), err);
    const struct adapter_module *m = adapter_find(c, "model.layers.1.self_attn.q_proj", NULL);
    CHECK(tensor_present(&m->bias) && memcmp(m->bias.data, trained, 32 * sizeof *trained) == 0);
    CHECK_INT(r->n_taken_over, 1);
    combine_report_free(r);
    adapter_free(c);
    CHECK_OK(combine(&c, &o, saved, 0.7, p.b, 0.5, NULL, &err), err);
    m = adapter_find(c, "model.embed_tokens", NULL);
    CHECK(tensor_present(&m->full) && m->full_is_base && m->rank == 5);
    adapter_free(c);
    adapter_free(bias);
    adapter_free(saved);
    free_pair(&p);
}

TEST(biases_of_b_add_up_with_their_scales)
{
    const struct rig_module one[] = {{"model.layers.0.mlp.up_proj", NULL, 32, 24, 4, 0, 2, 0},
                                     {"model.layers.1.mlp.up_proj", NULL, 32, 24, 4, 0, 2, 0}};
    struct adapter *a = rig_adapter(3, one, 2), *b = rig_adapter(4, one, 2), *c;
    struct combine_options o = rig_options("linear", COMBINE_OWN);
    struct err err = {0};
    make_lora_bias(&a->modules[0]);
    make_lora_bias(&b->modules[0]);
    CHECK_OK(combine(&c, &o, a, 0.5, b, -2, NULL, &err), err);
    const float *sum = c->modules[0].lora_bias.data, *none = c->modules[1].lora_bias.data;
    CHECK(sum && none);
    EXPECT_NEAR(sum[1], (0.5 - 2) * 2 * 2, 1e-6);
    EXPECT(none[1] == 0); // lora_bias is the whole adapter's property
    adapter_free(a), adapter_free(b), adapter_free(c);
}

TEST(adapters_of_different_bases_are_refused)
{
    const struct rig_module one = {"model.layers.0.self_attn.q_proj", NULL, 30, 24, 4, 0, 2, 0};
    const struct rig_module spelled = {
        "model.language_model.layers.0.mlp.up_proj", NULL, 9, 9, 2, 0, 1, 0};
    struct pair p = make_pair();
    struct adapter *other = rig_adapter(3, &one, 1), *vision = rig_adapter(4, &spelled, 1);
    struct combine_options o = rig_options("cat", COMBINE_OWN);
    refused(&o, p.a, 1, other, 1, ERR_REFUSED, "different bases");
    refused(&o, p.a, 1, vision, 1, ERR_REFUSED, "two ways");
    struct combine_options peft = rig_options("linear", COMBINE_PEFT);
    refused(&peft, p.a, 1, p.b, 1, ERR_REFUSED, "target_parameters");
    adapter_free(other);
    adapter_free(vision);
    free_pair(&p);
}

static bool always(void)
{
    return true;
}

TEST(it_can_be_interrupted)
{
    struct pair p = make_pair();
    struct combine_options o = rig_options("linear", COMBINE_OWN);
    o.stop = always;
    refused(&o, p.a, 1, p.b, 1, ERR_INTERRUPTED, "interrupted");
    free_pair(&p);
}
