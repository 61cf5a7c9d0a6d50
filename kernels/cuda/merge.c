/*
 * merge: the merge slots of the math table. A lane is a stream with its own buffers, on the card
 * and pinned; what rows bring (left halves, windows) goes over in one piece, W and the result
 * straight from and to the caller's memory.
 */
#include <string.h>

#include "kernels/cuda/cuda_impl.h"
#include "kernels/cuda/merge_launch.h"
#include "libcore/base/sys.h"

struct device_merge {
    struct merge_matrix m; // right and norms are the card's
    float *right, *norms;
};

struct merge_lane {
    cudaStream_t stream;
    cudaEvent_t done;
    char *w, *out, *rows; // of the card
    char *host_rows;      // pinned
    char *sums;           // of the card
    char *host_sums;      // pinned
    size_t w_bytes, out_bytes, rows_bytes, host_rows_bytes, sums_bytes, host_sums_bytes;
};

// ---- matrices -----------------------------------------------------------------------------------

void cuda_merge_close(struct backend *be, struct device_merge *m)
{
    if (!m)
        return;
    (void)cuda_choose(be, NULL);
    cudaFree(m->right);
    cudaFree(m->norms);
    sys_free(m);
}

static int upload(const float *from, size_t n, float **to, struct err *err)
{
    int rc = cuda_check(cudaMalloc((void **)to, (n + 1) * sizeof *from), "memory for factors", err);
    return rc ? rc
              : cuda_check(cudaMemcpy(*to, from, n * sizeof *from, cudaMemcpyHostToDevice),
                           "copying factors", err);
}

int cuda_merge_open(struct backend *be, const struct merge_matrix *m, struct device_merge **out,
                    struct err *err)
{
    size_t n = (m->n_cols + MERGE_PANEL - 1) / MERGE_PANEL * MERGE_PANEL;
    struct device_merge *d = sys_calloc(1, sizeof *d);
    *out = NULL;
    if (!d)
        return err_set(err, ERR_NO_MEMORY, "no memory for factors");
    d->m = *m;
    int rc = cuda_choose(be, err);
    if (rc == 0)
        rc = upload(m->right, n * m->rank, &d->right, err);
    if (rc == 0)
        rc = upload(m->norms, n, &d->norms, err);
    if (rc != 0) {
        cuda_merge_close(be, d);
        return rc;
    }
    *out = d;
    return 0;
}

// ---- lanes --------------------------------------------------------------------------------------

void cuda_merge_lane_close(struct backend *be, struct merge_lane *lane)
{
    if (!lane || cuda_choose(be, NULL))
        return;
    cudaFree(lane->w);
    cudaFree(lane->out);
    cudaFree(lane->rows);
    cudaFree(lane->sums);
    cudaFreeHost(lane->host_rows);
    cudaFreeHost(lane->host_sums);
    if (lane->done)
        cudaEventDestroy(lane->done);
    if (lane->stream)
        cudaStreamDestroy(lane->stream);
    sys_free(lane);
}

int cuda_merge_lane_open(struct backend *be, struct merge_lane **out, struct err *err)
{
    struct merge_lane *lane = sys_calloc(1, sizeof *lane);
    *out = NULL;
    if (!lane)
        return err_set(err, ERR_NO_MEMORY, "no memory for a lane");
    int rc = cuda_choose(be, err);
    if (rc == 0)
        rc = cuda_check(cudaStreamCreateWithFlags(&lane->stream, cudaStreamNonBlocking),
                        "making a stream", err);
    if (rc == 0)
        rc = cuda_check(
            cudaEventCreateWithFlags(&lane->done, cudaEventBlockingSync | cudaEventDisableTiming),
            "making an event", err);
    if (rc != 0) {
        cuda_merge_lane_close(be, lane);
        return rc;
    }
    *out = lane;
    return 0;
}

/* Room for n bytes; what was there is lost. */
static int grow(char **p, size_t *have, size_t n, bool pinned, struct err *err)
{
    if (n <= *have)
        return 0;
    cudaError_t code;
    if (pinned) {
        cudaFreeHost(*p);
        code = cudaHostAlloc((void **)p, n, cudaHostAllocPortable);
    } else {
        cudaFree(*p);
        code = cudaMalloc((void **)p, n);
    }
    if (code != cudaSuccess)
        *p = NULL;
    *have = code == cudaSuccess ? n : 0;
    return cuda_check(code, "memory for rows", err);
}

// ---- rows ---------------------------------------------------------------------------------------

/* What rows bring, in one piece: float64 first, so that all is aligned. */
struct layout {
    size_t exact, norms, left, windows, n_bytes;
};

static struct layout layout_of(size_t n_rows, size_t rank)
{
    struct layout at = {0};
    at.norms = n_rows * rank * sizeof(double);
    at.left = at.norms + n_rows * sizeof(double);
    at.windows = at.left + n_rows * rank * sizeof(float);
    at.n_bytes = at.windows + n_rows * sizeof(float);
    return at;
}

static int reserve(struct merge_lane *lane, const struct layout *at, size_t w_bytes,
                   size_t sums_bytes, struct err *err)
{
    int rc = grow(&lane->w, &lane->w_bytes, w_bytes, false, err);
    if (rc == 0)
        rc = grow(&lane->out, &lane->out_bytes, w_bytes, false, err);
    if (rc == 0)
        rc = grow(&lane->rows, &lane->rows_bytes, at->n_bytes, false, err);
    if (rc == 0)
        rc = grow(&lane->host_rows, &lane->host_rows_bytes, at->n_bytes, true, err);
    if (rc == 0)
        rc = grow(&lane->sums, &lane->sums_bytes, sums_bytes, false, err);
    return rc ? rc : grow(&lane->host_sums, &lane->host_sums_bytes, sums_bytes, true, err);
}

static void fill_rows(char *to, const struct layout *at, const struct merge_rows *r, size_t rank)
{
    memcpy(to + at->exact, r->left_exact, r->n_rows * rank * sizeof *r->left_exact);
    memcpy(to + at->norms, r->left_norms, r->n_rows * sizeof *r->left_norms);
    memcpy(to + at->left, r->left, r->n_rows * rank * sizeof *r->left);
    memcpy(to + at->windows, r->windows, r->n_rows * sizeof *r->windows);
}

int cuda_merge_delta(struct backend *be, const struct device_merge *d, struct merge_lane *lane,
                     const struct merge_rows *r, struct err *err)
{
    const struct merge_matrix *m = &d->m;
    size_t w_bytes = r->n_rows * m->n_cols * 2;
    size_t n_sums = r->n_rows * ((m->n_cols + MERGE_CHUNK - 1) / MERGE_CHUNK);
    struct layout at = layout_of(r->n_rows, m->rank);
    int rc = cuda_choose(be, err);
    if (rc == 0)
        rc = reserve(lane, &at, w_bytes, n_sums * sizeof *r->sums, err);
    if (rc != 0)
        return rc;
    fill_rows(lane->host_rows, &at, r, m->rank);
    const struct cu_merge job = {.is_bf16 = m->dtype == DTYPE_BF16,
                                 .n_rows = (uint32_t)r->n_rows,
                                 .n_cols = (uint32_t)m->n_cols,
                                 .rank = (uint32_t)m->rank,
                                 .right = d->right,
                                 .norms = d->norms,
                                 .left = (const float *)(lane->rows + at.left),
                                 .windows = (const float *)(lane->rows + at.windows),
                                 .left_exact = (const double *)(lane->rows + at.exact),
                                 .left_norms = (const double *)(lane->rows + at.norms),
                                 .w = (const uint16_t *)lane->w,
                                 .out = (uint16_t *)lane->out,
                                 .sums = (struct cu_merge_sums *)lane->sums};
    cudaStream_t s = lane->stream;
    int code = cudaMemcpyAsync(lane->rows, lane->host_rows, at.n_bytes, cudaMemcpyHostToDevice, s);
    if (!code)
        code = cudaMemcpyAsync(lane->w, r->w, w_bytes, cudaMemcpyHostToDevice, s);
    if (!code)
        code = cu_merge_delta(&job, s);
    if (!code)
        code = cudaMemcpyAsync(r->out, lane->out, w_bytes, cudaMemcpyDeviceToHost, s);
    if (!code)
        code = cudaMemcpyAsync(lane->host_sums, lane->sums, n_sums * sizeof *r->sums,
                               cudaMemcpyDeviceToHost, s);
    if (!code)
        code = cudaEventRecord(lane->done, s);
    if (!code)
        code = cudaEventSynchronize(lane->done);
    rc = cuda_check(code, "merging rows", err);
    if (rc == 0)
        memcpy(r->sums, lane->host_sums, n_sums * sizeof *r->sums);
    return rc;
}

// ---- float64 sums -------------------------------------------------------------------------------

struct device_sums {
    size_t n_cols, rank;
    double *right; // of the card, rows without gaps
};

void cuda_sums_close(struct backend *be, struct device_sums *s)
{
    if (!s)
        return;
    (void)cuda_choose(be, NULL);
    cudaFree(s->right);
    sys_free(s);
}

int cuda_sums_open(struct backend *be, const struct merge_right *r, struct device_sums **out,
                   struct err *err)
{
    struct device_sums *d = sys_calloc(1, sizeof *d);
    size_t row = r->n_cols * sizeof *r->right;
    *out = NULL;
    if (!d)
        return err_set(err, ERR_NO_MEMORY, "no memory for factors");
    d->n_cols = r->n_cols;
    d->rank = r->rank;
    int rc = cuda_choose(be, err);
    if (rc == 0)
        rc = cuda_check(cudaMalloc((void **)&d->right, r->rank * row + 8), "memory for factors",
                        err);
    if (rc == 0)
        rc = cuda_check(cudaMemcpy2DAsync(d->right, row, r->right, r->stride * sizeof *r->right,
                                          row, r->rank, cudaMemcpyHostToDevice, 0),
                        "copying factors", err);
    if (rc == 0)
        rc = cuda_check(cudaStreamSynchronize(0), "copying factors", err);
    if (rc != 0) {
        cuda_sums_close(be, d);
        return rc;
    }
    *out = d;
    return 0;
}

int cuda_sums(struct backend *be, const struct device_sums *d, struct merge_lane *lane,
              const double *left, size_t n_rows, double *sums, struct err *err)
{
    size_t left_bytes = n_rows * d->rank * sizeof *left, bytes = n_rows * d->n_cols * sizeof *sums;
    int rc = cuda_choose(be, err);
    if (rc == 0)
        rc = grow(&lane->rows, &lane->rows_bytes, left_bytes, false, err);
    if (rc == 0)
        rc = grow(&lane->host_rows, &lane->host_rows_bytes, left_bytes, true, err);
    if (rc == 0)
        rc = grow(&lane->out, &lane->out_bytes, bytes, false, err);
    if (rc != 0)
        return rc;
    memcpy(lane->host_rows, left, left_bytes);
    cudaStream_t s = lane->stream;
    int code = cudaMemcpyAsync(lane->rows, lane->host_rows, left_bytes, cudaMemcpyHostToDevice, s);
    if (!code)
        code = cu_sums64((const double *)lane->rows, d->right, (double *)lane->out,
                         (uint32_t)n_rows, (uint32_t)d->n_cols, (uint32_t)d->rank, s);
    if (!code)
        code = cudaMemcpyAsync(sums, lane->out, bytes, cudaMemcpyDeviceToHost, s);
    if (!code)
        code = cudaEventRecord(lane->done, s);
    if (!code)
        code = cudaEventSynchronize(lane->done);
    return cuda_check(code, "summing rows", err);
}

// ---- product ------------------------------------------------------------------------------------

int cuda_matmul(struct backend *be, const float *a, const float *b, float *c, size_t m, size_t n,
                size_t k, float scale, bool add, struct err *err)
{
    float *da = NULL, *db = NULL, *dc = NULL;
    if (m > UINT32_MAX || n > UINT32_MAX || k > UINT32_MAX)
        return err_set(err, ERR_LIMIT, "a product of %zu x %zu x %zu is too large", m, n, k);
    int rc = cuda_choose(be, err);
    if (rc == 0)
        rc = upload(a, m * k, &da, err);
    if (rc == 0)
        rc = upload(b, k * n, &db, err);
    if (rc == 0)
        rc = upload(c, m * n, &dc, err);
    if (rc == 0)
        rc = cuda_check(cu_matmul(da, db, dc, (uint32_t)m, (uint32_t)n, (uint32_t)k, scale, add, 0),
                        "a product", err);
    if (rc == 0)
        rc = cuda_check(cudaMemcpy(c, dc, m * n * sizeof *c, cudaMemcpyDeviceToHost), "a product",
                        err);
    cudaFree(da);
    cudaFree(db);
    cudaFree(dc);
    return rc;
}
