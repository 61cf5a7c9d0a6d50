/*
 * How fast the ops are: time, bytes a second and their ratio to what a plain read reaches in the
 * same run, operations a second. LORA_TEST_PERF=1 measures one layer of the shape of Llama-3.2-1B;
 * without it a small layer passes once, so that the measuring itself does not rot.
 */
#include "libcore/base/thread.h"
#include "tests/ops/ops_cases.h"

enum { MAX_TRIES = 200, MIN_TRIES = 5 };

static bool measuring(void)
{
    const char *v = getenv("LORA_TEST_PERF");
    return v && *v && *v != '0';
}

struct perf {
    struct ops_rig *r;
    double read; // bytes a second
};

static int compare_times(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Median seconds of body, over half a second at most. */
static double seconds(struct perf *p, void (*body)(struct perf *p, void *arg), void *arg)
{
    uint64_t times[MAX_TRIES], begin = thread_now_ns();
    int n = 0, most = measuring() ? MAX_TRIES : 1;
    for (; n < most && (n < MIN_TRIES || thread_now_ns() - begin < 500000000u); n++) {
        uint64_t start = thread_now_ns();
        body(p, arg);
        p->r->access->wait(p->r->session);
        times[n] = thread_now_ns() - start;
    }
    qsort(times, (size_t)n, sizeof *times, compare_times);
    return (double)times[n / 2] * 1e-9;
}

static void report(struct perf *p, const char *what, double s, double bytes, double flops)
{
    EXPECT(s > 0 && isfinite(s));
    if (measuring())
        printf("# %-34s %3u rows  %9.1f us  %6.1f GB/s (%.2f of read)  %7.1f GFLOP/s\n", what,
               p->r->step.n_rows, s * 1e6, bytes / s * 1e-9, bytes / s / p->read, flops / s * 1e-9);
}

struct site_run {
    enum site site;
    enum op_space space;
    void *x, *y;
};

static void run_gemm(struct perf *p, void *arg)
{
    struct site_run *a = arg;
    p->r->ops->gemm(p->r->context, p->r->view, 0, a->site, a->space, a->x, a->y);
}

static void run_sgmv(struct perf *p, void *arg)
{
    struct site_run *a = arg;
    p->r->ops->sgmv_shrink(p->r->context, p->r->view, 0, a->site, a->space, a->x);
    p->r->ops->sgmv_expand(p->r->context, p->r->view, 0, a->site, a->space, a->y);
}

/* The base's product without replacements, then A and B of the step's segments. */
static void measure_site(struct perf *p, enum site site, const char *name)
{
    struct ops_rig *r = p->r;
    double n_out = 0, n_in = 0, adapters = 0, adapter_flops = 0;
    for (size_t m = 0; m < r->modules->n; m++) {
        const struct model_module *mod = &r->modules->items[m];
        if (mod->place.kind != WEIGHT_MATRIX || mod->place.layer != 0 || mod->place.site != site)
            continue;
        n_out += mod->d_out;
        n_in = mod->d_in;
        for (uint32_t j = 0; j < r->step.n_segments; j++) {
            const struct step_segment *g = &r->segments[j];
            double values =
                (double)r->adapters[g->slot].modules[0].rank * ((double)mod->d_out + mod->d_in);
            adapters += values * dtype_bits(r->c->adapters) / 8;
            adapter_flops += 2 * values * g->n_rows;
        }
    }
    float *x;
    char what[64];
    double rows = r->step.n_rows;
    struct site_run a = {site, OP_ROWS, NULL, NULL};
    a.x = ops_activations(r, (size_t)(rows * n_in), &x);
    a.y = r->access->alloc(r->session, (size_t)(rows * n_out));
    double bytes = n_out * n_in * dtype_bits(r->c->weights) / 8 + rows * (n_out + n_in) * 4;
    snprintf(what, sizeof what, "gemm %s %.0f x %.0f", name, n_out, n_in);
    report(p, what, seconds(p, run_gemm, &a), bytes, 2 * rows * n_out * n_in);
    snprintf(what, sizeof what, "sgmv %s, %u segments", name, r->step.n_segments);
    if (r->step.n_segments)
        report(p, what, seconds(p, run_sgmv, &a), adapters, adapter_flops);
    r->access->free(r->session, a.x);
    r->access->free(r->session, a.y);
    sys_free(x);
}

static void run_attention(struct perf *p, void *arg)
{
    struct site_run *a = arg;
    p->r->ops->attention(p->r->context, p->r->view, 0, a->x, a->y);
}

static void measure_attention(struct perf *p)
{
    struct ops_rig *r = p->r;
    const struct model_config *c = &r->config;
    size_t width = (c->n_heads + 2 * (size_t)c->n_kv_heads) * c->head_dim;
    float *x;
    double keys = 0, bytes = 0;
    struct site_run a = {SITE_QKV, OP_ROWS, NULL, NULL};
    a.x = ops_activations(r, r->step.n_rows * width, &x);
    a.y = r->access->alloc(r->session, r->step.n_rows * width);
    for (uint32_t i = 0; i < r->step.n_sequences; i++) {
        const struct step_sequence *s = &r->sequences[i];
        bytes += 2.0 * (s->position0 + s->n_rows) * c->n_kv_heads * c->head_dim * 4;
        keys += (s->position0 + (s->n_rows + 1) / 2.0) * s->n_rows;
    }
    p->r->ops->begin(r->context, r->view);
    p->r->ops->rope_write(r->context, r->view, 0, a.x);
    report(p, "attention", seconds(p, run_attention, &a), bytes,
           4 * keys * c->n_heads * c->head_dim);
    r->access->free(r->session, a.x);
    r->access->free(r->session, a.y);
    sys_free(x);
}

static void measure_case(const struct ops_case *c)
{
    struct err err = {0};
    struct perf p = {.r = sys_calloc(1, sizeof *p.r)};
    CHECK(p.r);
    int rc = ops_open(p.r, c, &err);
    if (rc == ERR_NOT_FOUND) {
        test_skip("%s", err.msg);
        return;
    }
    CHECK_MSG(rc == 0, "%s: %s", c->name, err.msg);
    if (measuring() && strcmp(p.r->be->ops->name, "cpu") != 0) {
        test_skip("single ops convert by way of the host here: lora bench layer measures");
        ops_close(p.r);
        sys_free(p.r);
        return;
    }
    struct op_step view = *p.r->view;
    view.kinds = ADAPTER_LORA; // what is replaced is not measured
    p.r->view = &view;
    p.read = measuring() ? p.r->access->read_bandwidth(p.r->session) : 1;
    struct backend_info info;
    if (measuring() && p.r->be->ops->info(p.r->be, &info, NULL) == 0)
        printf("# %s: %s, read %.1f GB/s\n", c->name, info.device, p.read * 1e-9);
    measure_site(&p, SITE_QKV, "qkv");
    measure_site(&p, SITE_O, "o");
    measure_site(&p, SITE_GATE_UP, "gate_up");
    measure_site(&p, SITE_DOWN, "down");
    measure_attention(&p);
    ops_close(p.r);
    sys_free(p.r);
}

#define LLAMA_1B                                                                                   \
    "{\"hidden_size\":2048,\"intermediate_size\":8192,\"num_attention_heads\":32,"                 \
    "\"num_key_value_heads\":8,\"head_dim\":64,\"num_hidden_layers\":1}"

TEST(perf_of_one_layer)
{
    static const uint32_t rows[] = {1, 4, 16, 64};
    if (!measuring()) {
        measure_case(&ops_cases[0]);
        return;
    }
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct ops_case c = {"llama-3.2-1b", LLAMA_1B, DTYPE_BF16, DTYPE_BF16, {16, 16, 16},
                             rows[i],        0,        16,         0,          0};
        measure_case(&c);
    }
    struct ops_case prefill = {"llama-3.2-1b, prefill at 448",
                               LLAMA_1B,
                               DTYPE_BF16,
                               DTYPE_BF16,
                               {16, 16, 16},
                               0,
                               64,
                               16,
                               448,
                               0};
    measure_case(&prefill);
}
