/* The CUDA back end's table: opening, what it is, what it supports. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda_impl.h"
#include "libcore/base/sys.h"

int cuda_check(int code, const char *what, struct err *err)
{
    if (code == cudaSuccess)
        return 0;
    return err_set(err, ERR_DEVICE, "cuda: %s: %s", what, cudaGetErrorString((cudaError_t)code));
}

int cuda_choose(struct backend *be, struct err *err)
{
    return cuda_check(cudaSetDevice(((struct cuda_backend *)be)->device), "choosing the card", err);
}

/* "cuda" or "cuda:N". */
static int device_of(const char *name, int *device, struct err *err)
{
    char *end;
    *device = 0;
    if (!name || strcmp(name, "cuda") == 0 || strcmp(name, "auto") == 0)
        return 0;
    long n = strncmp(name, "cuda:", 5) == 0 ? strtol(name + 5, &end, 10) : -1;
    if (n < 0 || n > 1023 || end == name + 5 || *end)
        return err_set(err, ERR_USAGE, "device \"%s\" is not one: want cuda:N", name);
    *device = (int)n;
    return 0;
}

static void close_backend(struct backend *base)
{
    struct cuda_backend *be = (struct cuda_backend *)base;
    if (!be)
        return;
    (void)cuda_choose(base, NULL);
    if (be->lt)
        cublasLtDestroy(be->lt);
    sys_free(be->cache_dir);
    sys_free(be);
}

/* Why no card is found, in words that say what to do. */
static int no_card(int code, struct err *err)
{
    int driver = 0, runtime = 0;
    (void)cudaGetLastError();
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (code == cudaErrorInsufficientDriver && driver == 0)
        return err_set(err, ERR_DEVICE, "cuda: this machine has no NVIDIA driver");
    if (code == cudaErrorInsufficientDriver)
        return err_set(err, ERR_DEVICE,
                       "cuda: the driver is for CUDA %d.%d, want %d.%d: update the driver",
                       driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    if (code == cudaErrorNoDevice || code == cudaSuccess)
        return err_set(err, ERR_DEVICE, "cuda: this machine has a driver but no card");
    return cuda_check(code, "looking for a card", err);
}

static int read_card(struct cuda_backend *be, struct err *err)
{
    int n = 0, rc = cudaGetDeviceCount(&n);
    if (rc || n == 0)
        return no_card(rc, err);
    if (be->device >= n)
        return err_set(err, ERR_DEVICE, "cuda: there is no card %d, this machine has %d",
                       be->device, n);
    struct cudaDeviceProp p;
    rc = cuda_check(cudaGetDeviceProperties(&p, be->device), "reading the card", err);
    if (rc)
        return rc;
    be->capability = p.major * 10 + p.minor;
    be->n_sms = p.multiProcessorCount;
    be->shared_bytes = (uint32_t)p.sharedMemPerBlockOptin;
    snprintf(be->name, sizeof be->name, "%.90s", p.name);
    if (be->capability < 80)
        return err_set(err, ERR_DEVICE,
                       "cuda: %s has compute capability %d.%d, want 8.0 or later (bf16)", p.name,
                       p.major, p.minor);
    if (be->n_sms > CU_MAX_CTAS)
        be->n_sms = CU_MAX_CTAS;
    rc = cuda_choose(&be->base, err);
    // One split between L1 and shared memory for all kernels: a change of it would keep the next
    // GEMM from coming to stand beside the running kernel (gemm_small.cu).
    return rc ? rc
              : cuda_check(cudaDeviceSetCacheConfig(cudaFuncCachePreferShared), "choosing the card",
                           err);
}

static int open_backend(struct backend **out, const struct backend_options *opt, struct err *err)
{
    *out = NULL;
    struct cuda_backend *be = sys_calloc(1, sizeof *be);
    if (!be)
        return err_set(err, ERR_NO_MEMORY, "no memory for the CUDA back end");
    extern const struct backend_ops backend_cuda_ops;
    be->base.ops = &backend_cuda_ops;
    be->no_graphs = opt->no_graphs;
    be->deterministic = opt->deterministic;
    be->cache_dir = opt->cache_dir ? sys_strdup(opt->cache_dir) : NULL;
    int rc = device_of(opt->device, &be->device, err);
    if (rc == 0)
        rc = read_card(be, err);
    if (rc == 0 && cublasLtCreate(&be->lt) != CUBLAS_STATUS_SUCCESS)
        rc = err_set(err, ERR_DEVICE, "cuda: cuBLASLt does not open");
    if (rc != 0) {
        close_backend(&be->base);
        return rc;
    }
    *out = &be->base;
    return 0;
}

static int info(struct backend *base, struct backend_info *out, struct err *err)
{
    struct cuda_backend *be = (struct cuda_backend *)base;
    *out = (struct backend_info){.adapter_dtype = DTYPE_BF16,
                                 .weight_dtype = DTYPE_BF16,
                                 .kv_dtype = DTYPE_BF16,
                                 .n_devices = 1};
    snprintf(out->name, sizeof out->name, "cuda");
    snprintf(out->device, sizeof out->device, "%s", be->name);
    size_t free_bytes = 0, total = 0;
    int rc = cuda_choose(base, err);
    if (rc == 0)
        rc = cuda_check(cudaMemGetInfo(&free_bytes, &total), "reading its memory", err);
    out->memory_free = free_bytes;
    out->memory_total = total;
    return rc;
}

static int supports(struct backend *be, const struct model_config *c, unsigned kinds,
                    struct err *err)
{
    const struct cuda_backend *card = (const struct cuda_backend *)be;
    (void)kinds; // every kind is computed
    if (c->n_experts > CU_MAX_EXPERTS || c->n_experts_used > CU_MAX_EXPERTS_USED ||
        c->d_expert % 16)
        return err_set(
            err, ERR_REFUSED,
            "%u experts of size %u, %u a token: cuda wants at most %d, a multiple of 16, "
            "at most %d",
            c->n_experts, c->d_expert, c->n_experts_used, CU_MAX_EXPERTS, CU_MAX_EXPERTS_USED);
    if (c->dtype != DTYPE_BF16 && c->dtype != DTYPE_F16 && c->dtype != DTYPE_F32)
        return err_set(err, ERR_REFUSED, "dtype: weights of type %s are not computed on cuda",
                       dtype_name(c->dtype));
    if (c->head_dim % 16 || c->head_dim > 256 || c->d_model % 8 || c->d_ff % 16)
        return err_set(err, ERR_REFUSED,
                       "head_dim %u, hidden_size %u, intermediate_size %u: cuda wants "
                       "multiples of 16, 8 and 16, and head_dim up to 256",
                       c->head_dim, c->d_model, c->d_ff);
    if (c->head_dim > 128 && card->shared_bytes < CUDA_WIDE_HEAD_BYTES)
        return err_set(err, ERR_REFUSED,
                       "head_dim %u: attention over it wants %d KB of shared memory a block, %s "
                       "has %u; use another card or --device cpu",
                       c->head_dim, CUDA_WIDE_HEAD_BYTES >> 10, card->name,
                       card->shared_bytes >> 10);
    uint32_t group = c->n_heads / c->n_kv_heads;
    if (group > (c->head_dim > 128 ? 8u : 16u) || c->d_model > 8192)
        return err_set(err, ERR_REFUSED,
                       "%u query heads a key head, hidden_size %u: more than cuda "
                       "computes here",
                       group, c->d_model);
    return 0;
}

/* The best of a few passes over 1 GiB, far more than the L2 holds. */
static int read_bandwidth(struct backend *base, double *bytes_per_s, struct err *err)
{
    size_t n = 1ull << 30;
    void *p = NULL;
    cudaEvent_t begin = NULL, end = NULL;
    *bytes_per_s = 0;
    int rc = cuda_choose(base, err);
    if (rc)
        return rc;
    rc = cudaMalloc(&p, n);
    rc = rc ? rc : (int)cudaMemset(p, 0, n);
    rc = rc ? rc : (int)cudaEventCreate(&begin);
    rc = rc ? rc : (int)cudaEventCreate(&end);
    for (int i = 0; rc == 0 && i < 8; i++) {
        float ms = 0;
        cudaEventRecord(begin, 0);
        rc = cu_read(p, n, 0);
        cudaEventRecord(end, 0);
        rc = rc ? rc : (int)cudaEventSynchronize(end);
        cudaEventElapsedTime(&ms, begin, end);
        if (ms > 0 && (double)n / (ms / 1e3) > *bytes_per_s)
            *bytes_per_s = (double)n / (ms / 1e3);
    }
    if (begin)
        cudaEventDestroy(begin);
    if (end)
        cudaEventDestroy(end);
    cudaFree(p);
    return cuda_check(rc, "measuring the read bandwidth", err);
}

static void *host_alloc(struct backend *be, size_t n)
{
    void *p = NULL;
    int rc = cuda_choose(be, NULL);
    rc = rc ? rc : (int)cudaHostAlloc(&p, n ? n : 1, cudaHostAllocPortable);
    return rc ? NULL : p;
}

static void host_free(struct backend *be, void *p)
{
    (void)cuda_choose(be, NULL);
    cudaFreeHost(p);
}

__attribute__((visibility("default"))) const struct backend_ops backend_cuda_ops = {
    .abi = BACKEND_ABI,
    .name = "cuda",
    .pack_layout_version = CUDA_LAYOUT_VERSION,
    .open = open_backend,
    .close = close_backend,
    .info = info,
    .supports = supports,
    .host_alloc = host_alloc,
    .host_free = host_free,
    .model_open = cuda_model_open,
    .model_free = cuda_model_free,
    .model_bytes = cuda_model_bytes,
    .weight_load = cuda_weight_load,
    .weight_read = cuda_weight_read,
    .model_ready = cuda_model_ready,
    .replacement_load = cuda_replacement_load,
    .replacement_free = cuda_replacement_free,
    .pool_open = cuda_pool_open,
    .pool_free = cuda_pool_free,
    .page_bytes = cuda_page_bytes,
    .adapter_pack_size = cuda_adapter_pack_size,
    .adapter_pack = cuda_adapter_pack,
    .adapter_load = cuda_adapter_load,
    .adapter_poll = cuda_adapter_poll,
    .adapter_unload = cuda_adapter_unload,
    .step_submit = cuda_step_submit,
    .step_result = cuda_step_result,
    .read_bandwidth = read_bandwidth,
    .math = &cuda_math,
    .op_access = &cuda_op_access,
};
