/* The table of cases that the ops tests run over, and what each of them needs. */
#ifndef TESTS_OPS_OPS_CASES_H
#define TESTS_OPS_OPS_CASES_H

#include "tests/ops/ops_rig.h"

static const struct ops_case ops_cases[] = {
    {"bf16", "{}", DTYPE_BF16, DTYPE_BF16, {8, 3, 16}, 5, 7, 8, 0, 0},
    {"f16 with f32 adapters", "{}", DTYPE_F16, DTYPE_F32, {1, 16, 7}, 7, 23, 16, 0, 0},
    {"f32 with f16 adapters", "{}", DTYPE_F32, DTYPE_F16, {64, 5, 2}, 4, 1, 4, 0, 0},
    {"qwen2: biases",
     "{\"architectures\":[\"Qwen2ForCausalLM\"],\"model_type\":\"qwen2\"}",
     DTYPE_BF16,
     DTYPE_BF16,
     {8, 3, 16},
     6,
     9,
     16,
     0,
     0},
    {"qwen3: q and k norms",
     "{\"architectures\":[\"Qwen3ForCausalLM\"],\"model_type\":\"qwen3\"}",
     DTYPE_BF16,
     DTYPE_F32,
     {4, 33, 16},
     5,
     3,
     2,
     0,
     0},
    {"gemma3: post norms, windows, tied",
     "{\"architectures\":[\"Gemma3ForCausalLM\"],\"model_type\":\"gemma3_text\",\"sliding_window\":"
     "6,"
     "\"query_pre_attn_scalar\":24,\"hidden_activation\":\"gelu_pytorch_tanh\","
     "\"layer_types\":[\"sliding_attention\",\"full_attention\"],\"tie_word_embeddings\":true,"
     "\"rope_local_base_freq\":5000.0}",
     DTYPE_BF16,
     DTYPE_BF16,
     {8, 3, 16},
     5,
     30,
     16,
     0,
     0},
    {"mixtral: experts",
     "{\"architectures\":[\"MixtralForCausalLM\"],\"model_type\":\"mixtral\","
     "\"num_local_experts\":5,\"num_experts_per_tok\":2}",
     DTYPE_BF16,
     DTYPE_BF16,
     {8, 3, 16},
     5,
     12,
     16,
     0,
     0},
    {"one row", "{}", DTYPE_BF16, DTYPE_BF16, {8, 3, 16}, 1, 0, 16, 0, 0},
    {"a hundred and ten rows", "{}", DTYPE_BF16, DTYPE_BF16, {8, 3, 40}, 20, 90, 64, 0, 0},
    {"wide inputs, forty rows",
     "{\"hidden_size\":1100,\"num_hidden_layers\":2}",
     DTYPE_BF16,
     DTYPE_BF16,
     {8, 3, 16},
     20,
     20,
     16,
     0,
     0},
    {"wide inputs, one row",
     "{\"hidden_size\":1100,\"num_hidden_layers\":2}",
     DTYPE_BF16,
     DTYPE_BF16,
     {8, 3, 16},
     1,
     0,
     16,
     0,
     0},
    {"twenty rows", "{}", DTYPE_BF16, DTYPE_BF16, {8, 3, 16}, 20, 33, 64, 0, 0},
    {"adapters of many chunks",
     "{\"hidden_size\":1100,\"num_hidden_layers\":2}",
     DTYPE_BF16,
     DTYPE_F32,
     {300, 1024, 16},
     4,
     2,
     16,
     0,
     0},
    {"a long past", "{}", DTYPE_BF16, DTYPE_BF16, {8, 3, 16}, 4, 6, 16, 700, 0},
    {"a long past in big pages, head of 64, windows",
     "{\"architectures\":[\"Gemma3ForCausalLM\"],\"model_type\":\"gemma3_text\",\"sliding_window\":"
     "70,"
     "\"query_pre_attn_scalar\":24,\"hidden_activation\":\"gelu_pytorch_tanh\",\"head_dim\":64,"
     "\"layer_types\":[\"sliding_attention\",\"full_attention\"],\"tie_word_embeddings\":true}",
     DTYPE_BF16,
     DTYPE_BF16,
     {8, 3, 16},
     4,
     6,
     64,
     320,
     0},
    {"sixty-five rows", "{}", DTYPE_BF16, DTYPE_BF16, {16, 16, 7}, 20, 45, 64, 0, 0},
    {"a row an adapter, a hundred and twenty-eight rows",
     "{}",
     DTYPE_BF16,
     DTYPE_BF16,
     {1, 7, 256},
     28,
     100,
     64,
     0,
     1},
    {"segments of thirteen rows, three hundred rows",
     "{\"hidden_size\":592}",
     DTYPE_BF16,
     DTYPE_BF16,
     {64, 16, 70},
     30,
     270,
     64,
     0,
     13},
};
enum { OPS_N_CASES = sizeof ops_cases / sizeof ops_cases[0] };

/* LORA_OPS_CASES=0,3: only those cases, for tools that make every case slow. */
static inline bool ops_case_wanted(int i)
{
    const char *list = getenv("LORA_OPS_CASES");
    for (const char *p = list; p && *p; p += strcspn(p, ","), p += *p == ',') {
        if (atoi(p) == i)
            return true;
    }
    return !list || !*list;
}

/* Runs `body` for every case that the back end computes. */
static inline void for_cases(void (*body)(struct ops_rig *r))
{
    int n_refused = 0;
    struct ops_rig *r = sys_calloc(1, sizeof *r);
    CHECK(r);
    for (int i = 0; i < OPS_N_CASES; i++) {
        struct err err = {0};
        if (!ops_case_wanted(i))
            continue;
        int rc = ops_open(r, &ops_cases[i], &err);
        if (rc == ERR_NOT_FOUND) {
            test_skip("%s", err.msg);
            break;
        }
        n_refused += rc == ERR_REFUSED;
        if (rc == ERR_REFUSED) {
            printf("# left out, %s: %s\n", ops_cases[i].name, err.msg);
            continue;
        }
        CHECK_MSG(rc == 0, "%s: %s", ops_cases[i].name, err.msg);
        body(r);
        ops_close(r);
    }
    CHECK_MSG(n_refused <= 2, "%d of %d cases are not computed", n_refused, OPS_N_CASES);
    sys_free(r);
}

/* Relative error allowed, by what an op gives on this back end. Where matrices are bf16, so is all
 * that goes into products, and what comes out of a large one; sums are float32. */
static inline double ops_bound(const struct ops_rig *r, const char *what)
{
    static const char *const exact[] = {"embed", "residual", "gather"};
    bool large = r->step.n_rows > 64;
    if (r->stored == DTYPE_NONE)
        return r->bound;
    for (size_t i = 0; i < sizeof exact / sizeof exact[0]; i++) {
        if (strcmp(what, exact[i]) == 0)
            return 64 * 0x1p-24;
    }
    if (strcmp(what, "gemm") == 0 && !large)
        return 64 * 0x1p-24;
    return strcmp(what, "attention") == 0 || strcmp(what, "moe") == 0 ? 0x1p-7 : 0x1p-8;
}

/* Compares a device buffer of rows of `width`, `stride` apart, with `want`. */
static inline void expect_rows(struct ops_rig *r, const char *what, const void *buffer,
                               const double *want, size_t n_rows, size_t width, size_t stride)
{
    float *got = sys_malloc((n_rows * width + 1) * sizeof *got);
    for (size_t i = 0; i < n_rows; i++)
        r->access->read(r->session, buffer, i * stride, got + i * width, width);
    double error = ops_error(got, want, n_rows * width);
    double bound = ops_bound(r, what);
    EXPECT_MSG(error <= bound, "%s, %s: off by %.2e, bound %.2e", r->c->name, what, error, bound);
    sys_free(got);
}

static inline double *doubles(size_t n)
{
    double *d = sys_calloc(n + 1, sizeof *d);
    if (!d)
        abort();
    return d;
}

#endif
