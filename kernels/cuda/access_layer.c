/*
 * The time of a layer's four products with what completes them, or of A and B alone: recorded once
 * and replayed, every layer of the model behind the other.
 *
 * A and B alone: the product's kernel has no blocks of the base, only chunks of A; what completes
 * it finds no planes and adds B v to what is there, or, for gate and up, makes the activation of
 * it. Beyond CU_SMALL_ROWS rows: shrink and expand_add. Two launches a site, with what two launches
 * cost when nothing hides them: up to CU_SMALL_ROWS rows A and B ride in launches that the base
 * needs anyway.
 */
#include "kernels/cuda/cuda_impl.h"
#include "kernels/ops.h"

void *cuda_site_input(struct device_model *m, enum site site)
{
    return site == SITE_HEAD   ? m->head_h
           : site == SITE_O    ? m->attn
           : site == SITE_DOWN ? m->act
                               : m->h;
}

/* The four sites of every layer with what completes them; qkv goes to a buffer of its own. */
static int queue_layers(struct device_model *m, const struct cuda_run *run, float *qkv)
{
    static const enum site sites[] = {SITE_QKV, SITE_O, SITE_GATE_UP, SITE_DOWN};
    const struct model_config *c = m->config;
    uint64_t words = (run->rows + 127) / 128 * 2 * CU_PREFILL_SHARES;
    // A replay has the epochs of the one before it.
    if (run->rows > CU_SMALL_ROWS)
        CUDA_TRY(cudaMemsetAsync(m->v_ready, 0, words * 4, m->compute));
    for (uint32_t layer = 0; layer < c->n_layers; layer++) {
        for (int i = 0; i < 4; i++) {
            struct cu_expand e;
            float *x = sites[i] == SITE_QKV ? qkv : m->x;
            CUDA_TRY(
                cuda_op_linear(m, run, false, layer, sites[i], cuda_site_input(m, sites[i]), &e));
            if (run->only_a && run->rows > CU_SMALL_ROWS)
                continue;
            if (sites[i] == SITE_GATE_UP)
                CUDA_TRY(cu_activation(&e, c->d_ff, 0, m->act, m->compute));
            else
                CUDA_TRY(cu_residual(&e, x, x == qkv && !run->only_a ? qkv : NULL, m->compute));
        }
    }
    return 0;
}

static int record_layers(struct device_model *m, const struct cuda_run *run, float *qkv,
                         cudaGraphExec_t *out)
{
    cudaGraph_t graph = NULL;
    int rc = cudaStreamBeginCapture(m->compute, cudaStreamCaptureModeThreadLocal);
    if (rc)
        return rc;
    int failed = queue_layers(m, run, qkv);
    rc = cudaStreamEndCapture(m->compute, &graph);
    rc = failed ? failed : rc;
    rc = rc ? rc : (int)cudaGraphInstantiate(out, graph, 0);
    if (graph)
        cudaGraphDestroy(graph);
    return rc;
}

enum { LAYER_REPLAYS = 5 };

/* Milliseconds of one replay, the first of them left out. */
static int time_graph(cudaStream_t stream, cudaGraphExec_t graph, float *ms)
{
    cudaEvent_t begin = NULL, end = NULL;
    int rc = cudaEventCreate(&begin);
    rc = rc ? rc : (int)cudaEventCreate(&end);
    for (int i = 0; rc == 0 && i <= LAYER_REPLAYS; i++) {
        if (i == 1)
            rc = cudaEventRecord(begin, stream);
        rc = rc ? rc : (int)cudaGraphLaunch(graph, stream);
    }
    rc = rc ? rc : (int)cudaEventRecord(end, stream);
    rc = rc ? rc : (int)cudaEventSynchronize(end);
    rc = rc ? rc : (int)cudaEventElapsedTime(ms, begin, end);
    if (begin)
        cudaEventDestroy(begin);
    if (end)
        cudaEventDestroy(end);
    *ms /= LAYER_REPLAYS;
    return rc;
}

int cuda_layer_seconds(struct device_model *m, const struct cuda_run *prepared, bool base,
                       bool adapters, double *seconds, struct err *err)
{
    const struct model_config *c = m->config;
    cudaGraphExec_t graph = NULL;
    struct cuda_run run = *prepared;
    float ms = 0, *qkv = NULL;
    run.kinds = adapters ? run.kinds : 0;
    run.only_a = !base;
    if (!base && (m->be->deterministic || !run.kinds))
        return err_set(err, ERR_REFUSED, "A and B alone: not in this mode, or there are none");
    int rc = (int)cudaMalloc((void **)&qkv,
                             (size_t)run.rows * (c->n_heads + 2 * c->n_kv_heads) * c->head_dim * 4);
    rc = rc ? rc : cuda_op_begin(m, &run);     // plans
    rc = rc ? rc : queue_layers(m, &run, qkv); // algorithms are chosen, kernels loaded
    if (!base && rc == cudaErrorNotSupported) {
        cudaFree(qkv);
        return err_set(err, ERR_REFUSED, "B rides in products of %u rows", run.rows);
    }
    rc = rc ? rc : (int)cudaStreamSynchronize(m->compute);
    rc = rc ? rc : record_layers(m, &run, qkv, &graph);
    rc = rc ? rc : time_graph(m->compute, graph, &ms);
    *seconds = ms / 1e3 / c->n_layers;
    if (graph)
        cudaGraphExecDestroy(graph);
    cudaStreamSynchronize(m->compute);
    cudaFree(qkv);
    return cuda_check(rc, "timing a layer", err);
}
