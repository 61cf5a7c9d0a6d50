/*
 * The math table on the card: row norms of W + s B A for DoRA's gains, on the weights as they lie
 * there (bf16), with A and B in float32.
 */
#include "kernels/cuda/cuda_impl.h"
#include "libcore/base/sys.h"

static int upload(const struct tensor *t, float **out, struct err *err)
{
    uint64_t n = tensor_n_values(t);
    float *host = sys_malloc(n * sizeof *host + 1);
    *out = NULL;
    if (!host)
        return err_set(err, ERR_NO_MEMORY, "no memory for row norms");
    dtype_to_f32(t->dtype, t->data, host, n);
    int rc =
        cuda_check(cudaMalloc((void **)out, n * sizeof *host + 4), "memory for row norms", err);
    rc = rc ? rc
            : cuda_check(cudaMemcpy(*out, host, n * sizeof *host, cudaMemcpyHostToDevice),
                         "copying an adapter", err);
    sys_free(host);
    return rc;
}

static int row_norms(struct backend *be, struct device_model *m, const struct bound_part *part,
                     double *out, struct err *err)
{
    const struct weight_place *p = &part->target->place;
    if (p->kind != WEIGHT_MATRIX || part->module->n_experts)
        return err_set(err, ERR_REFUSED, "%s: no row norms of this weight", part->module->name);
    const struct cuda_matrix *w = cuda_site_matrix(m, p->site, p->layer);
    bool embedding = p->site == SITE_EMBED;
    uint32_t n = embedding ? w->n_cols : part->target->d_out, rank = part->module->rank;
    float *a = NULL, *b = NULL;
    double *norms = NULL;
    int rc = cuda_choose(be, err);
    if (rc == 0 && rank)
        rc = upload(&part->module->a, &a, err);
    if (rc == 0 && rank)
        rc = upload(&part->module->b, &b, err);
    if (rc == 0)
        rc =
            cuda_check(cudaMalloc((void **)&norms, n * sizeof *norms), "memory for row norms", err);
    if (rc == 0)
        rc = cuda_check(cu_row_norms(w->data, p->row0, n, w->n_rows, w->n_cols, embedding, a, b,
                                     rank, (float)part->module->scale, norms, m->copy),
                        "row norms", err);
    if (rc == 0)
        rc = cuda_check(cudaStreamSynchronize(m->copy), "row norms", err);
    if (rc == 0)
        rc = cuda_check(cudaMemcpy(out, norms, n * sizeof *norms, cudaMemcpyDeviceToHost),
                        "row norms", err);
    cudaFree(a);
    cudaFree(b);
    cudaFree(norms);
    return rc;
}

const struct backend_math cuda_math = {.row_norms = row_norms,
                                       .matmul = cuda_matmul,
                                       .merge_open = cuda_merge_open,
                                       .merge_close = cuda_merge_close,
                                       .merge_lane_open = cuda_merge_lane_open,
                                       .merge_lane_close = cuda_merge_lane_close,
                                       .merge_delta = cuda_merge_delta,
                                       .sums_open = cuda_sums_open,
                                       .sums_close = cuda_sums_close,
                                       .sums = cuda_sums};
