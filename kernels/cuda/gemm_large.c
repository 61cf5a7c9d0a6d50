/*
 * gemm_large: y[T, N] = x[T, K] W^T for many rows, through cuBLASLt.
 * Column-major to cuBLASLt: y^T (N x T) = W (K x N, transposed) x^T (K x T). The algorithm of a
 * shape is the fastest of the first candidates, timed at its first use on the operands themselves,
 * and kept.
 */
#include <stdio.h>

#include "kernels/cuda/cuda_impl.h"
#include "libcore/base/sys.h"

enum { MAX_SHAPES = 256, CANDIDATES = 8, REPEATS = 3 };

struct lt_shape {
    uint32_t n, k, t;
    bool wide;
    cublasLtMatmulAlgo_t algo;
};

struct lt_cache {
    struct lt_shape shapes[MAX_SHAPES];
    uint32_t n;
    cudaEvent_t begin, end;
};

int lt_open(struct device_model *m, struct err *err)
{
    m->lt_cache = sys_calloc(1, sizeof *m->lt_cache);
    if (!m->lt_cache)
        return err_set(err, ERR_NO_MEMORY, "no memory for the list of matrix shapes");
    int rc = cuda_check(cudaEventCreate(&m->lt_cache->begin), "an event", err);
    return rc ? rc : cuda_check(cudaEventCreate(&m->lt_cache->end), "an event", err);
}

void lt_free(struct device_model *m)
{
    if (!m->lt_cache)
        return;
    if (m->lt_cache->begin)
        cudaEventDestroy(m->lt_cache->begin);
    if (m->lt_cache->end)
        cudaEventDestroy(m->lt_cache->end);
    sys_free(m->lt_cache);
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

int lt_gemm(struct device_model *m, const void *w, const void *x, void *y, uint32_t t, uint32_t n,
            uint32_t k, bool wide, cudaStream_t stream)
{
    struct lt_cache *c = m->lt_cache;
    struct lt_shape *shape = NULL;
    uint32_t bucket = bucket_of(t);
    struct operands o = {0};
    for (uint32_t i = 0; i < c->n && !shape; i++) {
        struct lt_shape *s = &c->shapes[i];
        if (s->n == n && s->k == k && s->t == bucket && s->wide == wide)
            shape = s;
    }
    int rc = describe(&o, t, n, k, wide);
    if (rc == 0 && !shape) {
        shape = &c->shapes[c->n < MAX_SHAPES ? c->n++ : MAX_SHAPES - 1];
        *shape = (struct lt_shape){.n = n, .k = k, .t = bucket, .wide = wide};
        rc = choose(m, &o, shape, w, x, y, stream);
        if (rc)
            c->n--;
    }
    if (rc == 0)
        rc = multiply(m, &o, &shape->algo, w, x, y, stream);
    forget(&o);
    return rc;
}
