/* The list of work: which bytes of the result come from where, cut into blocks. */
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/merge/stream_impl.h"

/* Two passes: the first counts. */
struct lister {
    struct stream *s;
    const struct merge_work *w;
    struct values_stats *stats;
    bool counting;
};

static uint64_t base_offset(const struct merge_plan *p, const struct merge_tensor *t)
{
    const struct safetensors *base = checkpoint_shard(p->base, t->shard_idx);
    return safetensors_data_offset(base) + safetensors_find(base, t->base->name)->begin;
}

static struct stream_unit *last_unit(struct lister *l)
{
    return l->s->n_units && !l->counting ? &l->s->units[l->s->n_units - 1] : NULL;
}

static struct stream_unit *add_unit(struct lister *l, const struct stream_unit *u)
{
    if (!l->counting)
        l->s->units[l->s->n_units] = *u;
    l->s->n_units++;
    return l->counting ? NULL : &l->s->units[l->s->n_units - 1];
}

/* A run goes on while both sides are neighbours. In the counting pass every tensor is a run. */
static void list_copy(struct lister *l, uint32_t idx, uint64_t in, uint64_t out)
{
    const struct merge_tensor *t = &l->s->p->tensors[idx];
    uint64_t n = tensor_n_bytes(&t->stored);
    struct stream_unit *u = last_unit(l);
    if (u && u->copy && u->shard_idx == t->shard_idx && u->in_offset + u->n_bytes == in &&
        u->out_offset + u->n_bytes == out && u->n_bytes < STREAM_RUN_BYTES &&
        u->tensor_idx + u->n_tensors == idx) {
        u->n_bytes += n;
        u->n_tensors++;
        return;
    }
    add_unit(l, &(struct stream_unit){.tensor_idx = idx,
                                      .n_tensors = 1,
                                      .shard_idx = t->shard_idx,
                                      .in_shard_idx = t->shard_idx,
                                      .copy = true,
                                      .in_offset = in,
                                      .out_offset = out,
                                      .n_bytes = n});
}

size_t stream_block_rows(const struct merge_tensor *t)
{
    const struct tensor *x = &t->stored;
    size_t cols = (size_t)x->shape[x->n_dims - 1];
    size_t rows = STREAM_BLOCK_BYTES / (cols * (dtype_bits(x->dtype) / 8) + 1);
    size_t whole =
        t->scales && t->scales->layout.block_rows < x->shape[0] ? t->scales->layout.block_rows : 1;
    return rows > whole ? rows / whole * whole : whole;
}

/* The scales of an 8-bit weight, one block: the unit is that of the weight but for what it writes.
 */
static void list_scales(struct lister *l, uint32_t idx, uint64_t out)
{
    const struct merge_tensor *t = &l->s->p->tensors[idx], *weight = t->scales_of;
    add_unit(l, &(struct stream_unit){
                    .tensor_idx = idx,
                    .n_tensors = 1,
                    .shard_idx = t->shard_idx,
                    .in_shard_idx = weight->shard_idx,
                    .in_offset = base_offset(l->s->p, weight),
                    .out_offset = out,
                    .n_bytes = tensor_n_bytes(&t->stored),
                    .in_size = 1,
                    .out_size = 1,
                    .is_scales = true,
                    .n_rows = (size_t)weight->stored.shape[0],
                    .n_cols = (size_t)weight->stored.shape[1],
                    .n_base_rows = (size_t)weight->stored.shape[0],
                    .first_row = weight->place.expert >= 0 ? weight->place.row0 : 0,
                    .expert = weight->place.expert >= 0 ? (uint32_t)weight->place.expert : 0,
                    .block_rows = stream_block_rows(weight),
                });
}

/* A matrix, the matrices of a tensor of experts, or a vector. */
static void list_changed(struct lister *l, uint32_t idx, uint64_t in, uint64_t out)
{
    const struct merge_tensor *t = &l->s->p->tensors[idx];
    const struct tensor *x = &t->stored;
    size_t size = dtype_bits(x->dtype) / 8, in_size = dtype_bits(t->base->value.dtype) / 8;
    bool fused = x->n_dims == 3;
    size_t n_experts = fused ? (size_t)x->shape[0] : 1;
    size_t rows = x->n_dims == 1 ? 1 : (size_t)x->shape[x->n_dims - 2];
    size_t cols = (size_t)x->shape[x->n_dims - 1];
    size_t base_rows = x->n_dims == 2 ? (size_t)t->base->value.shape[0] : rows;
    for (size_t e = 0; e < n_experts; e++) {
        uint64_t n = (uint64_t)e * rows * cols;
        struct stream_unit u = {
            .tensor_idx = idx,
            .n_tensors = 1,
            .shard_idx = t->shard_idx,
            .in_shard_idx = t->shard_idx,
            .in_offset = in + n * in_size,
            .out_offset = out + n * size,
            .in_size = in_size,
            .out_size = size,
            .n_bytes = (uint64_t)rows * cols * size,
            .n_rows = rows,
            .n_cols = cols,
            .n_base_rows = base_rows,
            .first_row = t->place.expert >= 0 ? t->place.row0 : 0,
            .source_row = e * rows,
            .expert = t->place.expert >= 0 ? (uint32_t)t->place.expert : (uint32_t)e,
            .block_rows = stream_block_rows(t),
        };
        add_unit(l, &u);
    }
}

static void list_tensor(struct lister *l, uint32_t idx)
{
    const struct merge_plan *p = l->s->p;
    const struct merge_tensor *t = &p->tensors[idx];
    if (merge_work_done(l->w, idx, &l->stats[idx]))
        return;
    l->stats[idx] = (struct values_stats){.n_values = tensor_n_values(&t->stored)};
    if (tensor_n_bytes(&t->stored) == 0 || t->dropped)
        return;
    uint64_t in = base_offset(p, t), out = p->shards[t->shard_idx].header_bytes + t->begin;
    if (t->touched && t->scales_of)
        list_scales(l, idx, out);
    else if (t->touched || t->converted)
        list_changed(l, idx, in, out);
    else
        list_copy(l, idx, in, out);
}

static void list_all(struct lister *l)
{
    const struct merge_plan *p = l->s->p;
    l->s->n_units = 0;
    for (size_t s = 0; s < p->n_shards; s++) {
        for (size_t i = 0; i < p->shards[s].n_tensors; i++)
            list_tensor(l, p->shards[s].tensors[i]);
    }
}

// ---- blocks -------------------------------------------------------------------------------------

/* Of a matrix: whole rows, and none that has base rows and rows beyond them. */
static size_t rows_of_block(const struct stream_unit *u, size_t row)
{
    size_t stop = row < u->n_base_rows && u->n_base_rows < u->n_rows ? u->n_base_rows : u->n_rows;
    return stop - row < u->block_rows ? stop - row : u->block_rows;
}

static void cut_unit(struct stream *s, uint32_t unit_idx, bool counting)
{
    struct stream_unit *u = &s->units[unit_idx];
    uint64_t offset = 0;
    u->first_block = (uint32_t)s->n_blocks;
    for (size_t row = 0; offset < u->n_bytes;) {
        struct stream_block b = {.unit_idx = unit_idx, .row0 = row, .offset = offset};
        uint64_t left = u->n_bytes - offset;
        if (u->is_scales) {
            b.n_bytes = left;
        } else if (u->copy) {
            b.n_bytes = left < STREAM_BLOCK_BYTES ? left : STREAM_BLOCK_BYTES;
        } else {
            b.n_rows = rows_of_block(u, row);
            b.n_bytes = u->n_bytes / u->n_rows * b.n_rows;
        }
        row += b.n_rows;
        offset += b.n_bytes;
        if (!counting)
            s->blocks[s->n_blocks] = b;
        s->n_blocks++;
    }
    u->n_blocks = u->n_blocks_left = (uint32_t)s->n_blocks - u->first_block;
}

static int no_memory(struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "merge: no memory for the list of blocks");
}

int stream_list(struct stream *s, const struct merge_work *w, struct values_stats *stats,
                struct err *err)
{
    struct lister l = {s, w, stats, true};
    list_all(&l);
    s->units = sys_calloc(s->n_units + 1, sizeof *s->units);
    if (!s->units)
        return no_memory(err);
    l.counting = false;
    list_all(&l);
    for (size_t i = 0; i < s->n_units; i++)
        pthread_mutex_init(&s->units[i].lock, NULL);
    for (int counting = 1; counting >= 0; counting--) {
        s->n_blocks = 0;
        for (uint32_t i = 0; i < s->n_units; i++)
            cut_unit(s, i, counting);
        if (!counting)
            break;
        s->blocks = sys_calloc(s->n_blocks + 1, sizeof *s->blocks);
        s->block_stats = sys_calloc(s->n_blocks + 1, sizeof *s->block_stats);
        if (!s->blocks || !s->block_stats)
            return no_memory(err);
    }
    s->peaks = sys_calloc(s->p->n_tensors + 1, sizeof *s->peaks);
    if (!s->peaks)
        return no_memory(err);
    for (uint32_t i = 0; i < s->p->n_tensors; i++) {
        const struct merge_tensor *t = &s->p->tensors[i];
        bool may_change = t->touched && t->scales && t->scales->layout.scale && !s->p->to_bf16;
        int rc = may_change ? stream_peaks_open(s, i, stream_block_rows(t), err) : 0;
        if (rc)
            return rc;
    }
    return 0;
}

void stream_list_release(struct stream *s)
{
    for (size_t i = 0; s->units && i < s->n_units; i++) {
        stream_unit_release(&s->units[i]);
        pthread_mutex_destroy(&s->units[i].lock);
    }
    for (size_t i = 0; s->peaks && i < s->p->n_tensors; i++)
        stream_peaks_free(s->peaks[i]);
    sys_free(s->peaks);
    sys_free(s->units);
    sys_free(s->blocks);
    sys_free(s->block_stats);
}
