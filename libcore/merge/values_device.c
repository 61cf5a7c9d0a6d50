/*
 * 16-bit results by float32 sums, on a device: it makes the values and their statistics in the
 * order of additions that this folder has, and says which chunks hold a value that it cannot
 * decide. Those are made here.
 */
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/merge/values_impl.h"

static const struct backend_math *math_of(struct backend *be)
{
    return be->ops->math;
}

int values_device_open(struct values *v, struct err *err)
{
    struct backend *be = v->m.device;
    const struct backend_math *math = math_of(be);
    if (!math || !math->merge_delta || !math->sums)
        return err_set(err, ERR_REFUSED, "back end %s does not merge", be->ops->name);
    if (v->wide) {
        const struct merge_right r = {v->m.n_cols, v->rank, v->stride, v->right};
        return math->sums_open(be, &r, &v->sums_on_device, err);
    }
    const struct merge_matrix m = {.dtype = v->m.dtype,
                                   .n_cols = v->m.n_cols,
                                   .rank = v->rank,
                                   .right = v->packed,
                                   .norms = v->norms};
    return math->merge_open(be, &m, &v->on_device, err);
}

void values_device_close(struct values *v)
{
    if (v->on_device)
        math_of(v->m.device)->merge_close(v->m.device, v->on_device);
    if (v->sums_on_device)
        math_of(v->m.device)->sums_close(v->m.device, v->sums_on_device);
    v->on_device = NULL;
    v->sums_on_device = NULL;
}

void values_device_release(struct values_scratch *s)
{
    if (!s->device)
        return;
    math_of(s->device)->merge_lane_close(s->device, s->lane);
    s->device->ops->host_free(s->device, s->device_out);
    sys_free(s->sums);
    sys_free(s->group_left);
    s->group_left = NULL;
    s->group_left_bytes = 0;
    s->device = NULL;
    s->lane = NULL;
    s->device_out = NULL;
    s->sums = NULL;
    s->device_out_bytes = s->n_sums = 0;
}

bool values_on_device(const struct values *v, const struct values_block *b)
{
    return v->on_device && b->base == b->source && b->source_dtype == v->m.dtype;
}

static int reserve(struct values_scratch *s, struct backend *be, size_t bytes, size_t n_sums,
                   struct err *err)
{
    if (s->device != be) {
        values_device_release(s);
        int rc = math_of(be)->merge_lane_open(be, &s->lane, err);
        if (rc)
            return rc;
        s->device = be;
    }
    if (bytes > s->device_out_bytes) {
        be->ops->host_free(be, s->device_out);
        s->device_out = be->ops->host_alloc(be, bytes);
        s->device_out_bytes = s->device_out ? bytes : 0;
    }
    if (n_sums > s->n_sums) {
        sys_free(s->sums);
        s->sums = sys_reallocarray(NULL, n_sums, sizeof *s->sums);
        s->n_sums = s->sums ? n_sums : 0;
    }
    return s->device_out && s->sums ? 0 : err_set(err, ERR_NO_MEMORY, "no memory for rows");
}

/* The chunk that the device left open. */
static int chunk_here(const struct values *v, struct values_scratch *s,
                      const struct values_block *b, size_t i, size_t i_group, size_t j0, size_t n,
                      struct err *err)
{
    v->k->deltas((const float *)s->left + i_group * v->rank, 1, v->rank, v->packed + j0 * v->rank,
                 values_padded(n) / VALUES_PANEL, s->delta);
    return values_finish_narrow(v, s, b, i, i_group, j0, n, s->delta, err);
}

/* Statistics in the order of values_block_narrow(): chunk after chunk, its rows in order. */
static int take_group(const struct values *v, struct values_scratch *s,
                      const struct values_block *b, size_t g, size_t n_group, struct err *err)
{
    size_t n_cols = v->m.n_cols, n_chunks = (n_cols + VALUES_CHUNK - 1) / VALUES_CHUNK;
    for (size_t c = 0; c < n_chunks; c++) {
        size_t j0 = c * VALUES_CHUNK, n = n_cols - j0 < VALUES_CHUNK ? n_cols - j0 : VALUES_CHUNK;
        for (size_t i = 0; i < n_group; i++) {
            const struct merge_sums *sums = &s->sums[i * n_chunks + c];
            if (sums->n_changed == MERGE_OPEN) {
                int rc = chunk_here(v, s, b, g + i, i, j0, n, err);
                if (rc)
                    return rc;
                continue;
            }
            b->stats->base2 += (double)sums->base2;
            b->stats->delta2 += (double)sums->delta2;
            b->stats->lost2 += (double)sums->lost2;
            b->stats->n_changed += sums->n_changed;
            memcpy((char *)b->out + ((g + i) * n_cols + j0) * 2,
                   (const char *)s->device_out + (i * n_cols + j0) * 2, n * 2);
        }
    }
    return 0;
}

int values_block_device(const struct values *v, struct values_scratch *s,
                        const struct values_block *b, struct err *err)
{
    struct backend *be = v->m.device;
    size_t n_cols = v->m.n_cols, n_chunks = (n_cols + VALUES_CHUNK - 1) / VALUES_CHUNK;
    for (size_t g = 0; g < b->n_rows; g += VALUES_GROUP) {
        size_t n_group = b->n_rows - g < VALUES_GROUP ? b->n_rows - g : VALUES_GROUP;
        int rc = reserve(s, be, n_group * n_cols * 2, n_group * n_chunks, err);
        if (rc)
            return rc;
        values_load_left(v, s, b->row0 + g, n_group);
        const struct merge_rows rows = {.n_rows = n_group,
                                        .left = s->left,
                                        .left_exact = s->exact_left,
                                        .left_norms = s->left_norm,
                                        .windows = s->window,
                                        .w = (const char *)b->source + g * n_cols * 2,
                                        .out = s->device_out,
                                        .sums = s->sums};
        rc = math_of(be)->merge_delta(be, v->on_device, s->lane, &rows, err);
        if (!rc)
            rc = take_group(v, s, b, g, n_group, err);
        if (rc)
            return rc;
    }
    return 0;
}

int values_device_sums(const struct values *v, struct values_scratch *s, size_t row0, size_t n_rows,
                       const double **sums, struct err *err)
{
    struct backend *be = v->m.device;
    size_t left = n_rows * (v->rank + 1) * sizeof *s->group_left;
    int rc = reserve(s, be, n_rows * v->m.n_cols * sizeof **sums, 1, err);
    if (!rc && left > s->group_left_bytes) {
        sys_free(s->group_left);
        s->group_left = sys_malloc(left);
        s->group_left_bytes = s->group_left ? left : 0;
        rc = s->group_left ? 0 : err_set(err, ERR_NO_MEMORY, "no memory for rows");
    }
    if (rc)
        return rc;
    for (size_t i = 0; i < n_rows; i++)
        s->group_norms[i] = values_left_row(v, row0 + i, s->group_left + i * v->rank);
    *sums = s->device_out;
    return math_of(be)->sums(be, v->sums_on_device, s->lane, s->group_left, n_rows, s->device_out,
                             err);
}
