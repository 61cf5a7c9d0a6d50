#include "libcore/merge/estimate.h"

#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/base/thread.h"
#include "libcore/merge/values.h"

enum { ROWS = 192, COLS = 2048, LOW_RANK = 8, HIGH_RANK = 64 };

/* Seconds for one value of type t with factors of this rank. */
static double measure(enum dtype t, uint32_t rank)
{
    size_t n = (size_t)ROWS * COLS;
    float *a = sys_calloc((size_t)rank * COLS, sizeof *a);
    float *b = sys_calloc((size_t)rank * ROWS, sizeof *b);
    float *w = sys_malloc(n * sizeof *w);
    void *stored = sys_malloc(n * sizeof(double));
    struct values *v = NULL;
    struct values_scratch *s = NULL;
    double seconds = -1;
    if (!a || !b || !w || !stored)
        goto out;
    for (size_t i = 0; i < n; i++)
        w[i] = (float)(i * 2654435761u % 65536) * 1e-6f;
    for (size_t i = 0; i < (size_t)rank * COLS; i++)
        a[i] = (float)(i * 40503u % 4096) * 1e-5f;
    for (size_t i = 0; i < (size_t)rank * ROWS; i++)
        b[i] = (float)(i * 30011u % 4096) * 1e-5f;
    dtype_from_f32(t, w, stored, n);
    struct tensor left = {DTYPE_F32, 2, {ROWS, rank}, b}, right = {DTYPE_F32, 2, {rank, COLS}, a};
    struct values_pair p = {{&left, 0, rank, 1}, {&right, 0, COLS, 1}, rank, 1.0};
    struct values_matrix m = {
        .dtype = t, .source_dtype = t, .n_rows = ROWS, .n_cols = COLS, .pairs = &p, .n_pairs = 1};
    struct values_stats stats;
    struct values_block block = {.n_rows = ROWS,
                                 .source = stored,
                                 .source_dtype = t,
                                 .base = stored,
                                 .out = stored,
                                 .stats = &stats};
    if (values_prepare(&v, &m, NULL) != 0 || values_scratch_open(&s, NULL) != 0)
        goto out;
    for (int i = 0; i < 2; i++) { // the first one warms up
        uint64_t start = thread_now_ns();
        if (values_block(v, s, &block, NULL) != 0)
            goto out;
        seconds = (double)(thread_now_ns() - start) * 1e-9 / (double)n;
    }
out:
    values_scratch_free(s);
    values_free(v);
    sys_free(a);
    sys_free(b);
    sys_free(w);
    sys_free(stored);
    return seconds;
}

static enum dtype touched_type(const struct merge_plan *p)
{
    for (size_t i = 0; i < p->n_tensors; i++) {
        if (p->tensors[i].touched && p->tensors[i].n_terms)
            return p->tensors[i].stored.dtype;
    }
    return DTYPE_NONE;
}

double estimate_compute_seconds(const struct merge_plan *p, unsigned n_threads)
{
    enum dtype t = touched_type(p);
    if (t == DTYPE_NONE)
        return 0;
    double low = measure(t, LOW_RANK), high = measure(t, HIGH_RANK);
    double slope = (high - low) / (HIGH_RANK - LOW_RANK), seconds = 0;
    if (low < 0 || high < 0)
        return -1;
    for (size_t i = 0; i < p->n_tensors; i++) {
        const struct merge_tensor *x = &p->tensors[i];
        double rank = 0;
        for (size_t k = 0; k < x->n_terms; k++)
            rank += x->terms[k].module->rank;
        if (x->touched)
            seconds += (double)tensor_n_values(&x->stored) * (low + slope * (rank - LOW_RANK));
    }
    return seconds / (n_threads ? n_threads : thread_n_processors());
}
