/*
 * gemm_large: y[T, N] = x[T, K] W^T for many rows, through cuBLASLt.
 * Column-major to cuBLASLt: y^T (N x T) = W (K x N, transposed) x^T (K x T). The algorithm of a
 * shape and a bucket of rows is the fastest of the first candidates, timed on the model's own
 * operands: all of them at the start where the result may be kept on disk (by card, driver and
 * cuBLAS), else at their first use.
 */
#include <stdio.h>

#include "kernels/choices.h"
#include "kernels/cuda/cuda_impl.h"
#include "libcore/base/sys.h"

enum { MAX_SHAPES = 256, CANDIDATES = 8, REPEATS = 3 };

struct lt_shape {
    uint32_t n, k, t, wide;
    cublasLtMatmulAlgo_t algo; // good for one version of cuBLAS, which is in the key
};

struct lt_cache {
    struct choices choices; // of struct lt_shape
    bool tune;
    cudaEvent_t begin, end;
};

int lt_open(struct device_model *m, struct err *err)
{
    struct lt_cache *c = sys_calloc(1, sizeof *c);
    char key[256];
    int driver = 0, runtime = 0;
    m->lt_cache = c;
    if (!c)
        return err_set(err, ERR_NO_MEMORY, "no memory for the list of matrix shapes");
    int rc = cuda_check(cudaEventCreate(&c->begin), "an event", err);
    rc = rc ? rc : cuda_check(cudaEventCreate(&c->end), "an event", err);
    rc = rc ? rc : cuda_check(cudaDriverGetVersion(&driver), "the driver's version", err);
    rc = rc ? rc : cuda_check(cudaRuntimeGetVersion(&runtime), "the runtime's version", err);
    if (rc)
        return rc;
    snprintf(key, sizeof key, "cublaslt gpu=%s sm=%d sms=%d driver=%d runtime=%d cublas=%zu/%zu",
             m->be->name, m->be->capability, m->be->n_sms, driver, runtime, cublasLtGetVersion(),
             cublasLtGetCudartVersion());
    c->tune = m->be->cache_dir != NULL && !m->be->deterministic;
    return choices_open(&c->choices, m->be->cache_dir, "cublaslt", key, sizeof(struct lt_shape),
                        MAX_SHAPES, err);
}

void lt_free(struct device_model *m)
{
    struct lt_cache *c = m->lt_cache;
    if (!c)
        return;
    (void)choices_save(&c->choices, NULL); // measured again next time if it cannot be written
    choices_release(&c->choices);
    if (c->begin)
        cudaEventDestroy(c->begin);
    if (c->end)
        cudaEventDestroy(c->end);
    sys_free(c);
    m->lt_cache = NULL;
}

struct operands {
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t w, x, y;
};

static int describe(struct operands *o, uint32_t t, uint32_t n, uint32_t k, bool wide)
{
    cublasOperation_t transposed = CUBLAS_OP_T;
    if (cublasLtMatmulDescCreate(&o->op, CUBLAS_COMPUTE_32F, CUDA_R_32F) ||
        cublasLtMatmulDescSetAttribute(o->op, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                       sizeof transposed) ||
        cublasLtMatrixLayoutCreate(&o->w, CUDA_R_16BF, k, n, k) ||
        cublasLtMatrixLayoutCreate(&o->x, CUDA_R_16BF, k, t, k) ||
        cublasLtMatrixLayoutCreate(&o->y, wide ? CUDA_R_32F : CUDA_R_16BF, n, t, n))
        return cudaErrorUnknown;
    return 0;
}

static void forget(struct operands *o)
{
    cublasLtMatrixLayoutDestroy(o->w);
    cublasLtMatrixLayoutDestroy(o->x);
    cublasLtMatrixLayoutDestroy(o->y);
    cublasLtMatmulDescDestroy(o->op);
}

static int multiply(struct device_model *m, const struct operands *o,
                    const cublasLtMatmulAlgo_t *algo, const void *w, const void *x, void *y,
                    cudaStream_t stream)
{
    const float one = 1, zero = 0;
    cublasStatus_t s = cublasLtMatmul(m->be->lt, o->op, &one, w, o->w, x, o->x, &zero, y, o->y, y,
                                      o->y, algo, m->workspace, CUDA_WORKSPACE_BYTES, stream);
    return s == CUBLAS_STATUS_SUCCESS ? 0 : cudaErrorUnknown;
}

static float time_algo(struct device_model *m, const struct operands *o,
                       const cublasLtMatmulAlgo_t *algo, const void *w, const void *x, void *y,
                       cudaStream_t stream)
{
    struct lt_cache *c = m->lt_cache;
    float ms = 1e30f;
    if (multiply(m, o, algo, w, x, y, stream))
        return ms;
    cudaEventRecord(c->begin, stream);
    for (int i = 0; i < REPEATS; i++)
        multiply(m, o, algo, w, x, y, stream);
    cudaEventRecord(c->end, stream);
    if (cudaEventSynchronize(c->end) != cudaSuccess)
        return 1e30f;
    cudaEventElapsedTime(&ms, c->begin, c->end);
    return ms;
}

static int choose(struct device_model *m, const struct operands *o, struct lt_shape *shape,
                  const void *w, const void *x, void *y, cudaStream_t stream)
{
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t found[CANDIDATES];
    int n = 0;
    size_t workspace = CUDA_WORKSPACE_BYTES;
    if (cublasLtMatmulPreferenceCreate(&preference))
        return cudaErrorUnknown;
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                         &workspace, sizeof workspace);
    cublasStatus_t s = cublasLtMatmulAlgoGetHeuristic(m->be->lt, o->op, o->w, o->x, o->y, o->y,
                                                      preference, CANDIDATES, found, &n);
    cublasLtMatmulPreferenceDestroy(preference);
    if (s != CUBLAS_STATUS_SUCCESS || n == 0)
        return cudaErrorNotSupported;
    float best = 1e30f;
    shape->algo = found[0].algo;
    for (int i = 0; i < n && n > 1; i++) {
        float ms = time_algo(m, o, &found[i].algo, w, x, y, stream);
        if (ms >= best)
            continue;
        best = ms;
        shape->algo = found[i].algo;
    }
    return 0;
}

/* Rows that share an algorithm: timed once a bucket. */
static uint32_t bucket_of(uint32_t t)
{
    uint32_t b = 64;
    while (b < t)
        b *= 2;
    return b;
}

static size_t find_shape(const struct choices *c, uint32_t t, uint32_t n, uint32_t k, bool wide)
{
    size_t i = 0;
    for (; i < c->n; i++) {
        const struct lt_shape *s = choices_at(c, i);
        if (s->n == n && s->k == k && s->t == t && s->wide == wide)
            break;
    }
    return i;
}

/* The algorithm for t rows, measured if it is not known. */
static int algo_of(struct device_model *m, const struct operands *o, uint32_t t, uint32_t n,
                   uint32_t k, bool wide, const void *w, const void *x, void *y,
                   cudaStream_t stream, cublasLtMatmulAlgo_t *algo)
{
    struct choices *c = &m->lt_cache->choices;
    size_t i = find_shape(c, bucket_of(t), n, k, wide);
    if (i < c->n) {
        const struct lt_shape *known = choices_at(c, i);
        cublasLtMatmulHeuristicResult_t room;
        *algo = known->algo;
        if (cublasLtMatmulAlgoCheck(m->be->lt, o->op, o->w, o->x, o->y, o->y, algo, &room) ==
                CUBLAS_STATUS_SUCCESS &&
            room.workspaceSize <= CUDA_WORKSPACE_BYTES)
            return 0;
        choices_drop(c, i);
    }
    struct lt_shape shape = {.n = n, .k = k, .t = bucket_of(t), .wide = wide};
    int rc = choose(m, o, &shape, w, x, y, stream);
    if (rc == 0)
        choices_add(c, &shape);
    *algo = shape.algo;
    return rc;
}

int lt_gemm(struct device_model *m, const void *w, const void *x, void *y, uint32_t t, uint32_t n,
            uint32_t k, bool wide, cudaStream_t stream)
{
    struct operands o = {0};
    cublasLtMatmulAlgo_t algo;
    int rc = describe(&o, t, n, k, wide);
    if (rc == 0)
        rc = algo_of(m, &o, t, n, k, wide, w, x, y, stream, &algo);
    if (rc == 0)
        rc = multiply(m, &o, &algo, w, x, y, stream);
    forget(&o);
    return rc;
}

/* One site at every bucket of rows; the rows are what lies in the activations. */
static int tune_site(struct device_model *m, enum site site, uint32_t max_rows, struct err *err)
{
    bool head = site == SITE_HEAD;
    uint32_t n, k, ls = (uint32_t)cuda_layer_site(site);
    cuda_site_shape(m->config, site, &n, &k);
    const void *w = head ? m->head.data : m->layers[0].sites[ls].data;
    const void *x = head ? m->head_h : site == SITE_O ? m->attn : site == SITE_DOWN ? m->act : m->h;
    int rc = 0;
    for (uint32_t t = 2 * CU_SMALL_ROWS; rc == 0 && w && t / 2 < max_rows; t *= 2) {
        uint32_t rows = t < max_rows ? t : max_rows;
        if (find_shape(&m->lt_cache->choices, t, n, k, head) < m->lt_cache->choices.n)
            continue;
        rc = lt_gemm(m, w, x, head ? (void *)m->logits : m->y16, rows, n, k, head, m->compute);
    }
    return cuda_check(rc, "choosing algorithms for matrix products", err);
}

int lt_tune(struct device_model *m, struct err *err)
{
    static const enum site sites[] = {SITE_QKV, SITE_O, SITE_GATE_UP, SITE_DOWN, SITE_HEAD};
    struct lt_cache *c = m->lt_cache;
    int rc = 0;
    for (size_t i = 0; rc == 0 && c->tune && i < sizeof sites / sizeof sites[0]; i++)
        rc = tune_site(m, sites[i],
                       sites[i] == SITE_HEAD ? m->limits.max_logit_rows : m->limits.max_rows, err);
    if (rc == 0)
        rc = cuda_check(cudaStreamSynchronize(m->compute), "choosing algorithms", err);
    if (rc == 0)
        (void)choices_save(&c->choices, NULL); // a folder that cannot be written costs time alone
    return rc;
}
