/* Shards of the result: the base's files, headers and places, but where shapes or tensors change.
 */
#include <stdlib.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/merge/plan_impl.h"

struct place {
    uint64_t begin; // in the base's payload; added tensors come last
    uint32_t idx;
};

static int by_begin(const void *a, const void *b)
{
    const struct place *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->idx < y->idx ? -1 : x->idx > y->idx; // empty tensors: by name
}

static uint64_t base_begin(const struct merge_plan *p, const struct merge_tensor *t)
{
    const struct safetensors *s = checkpoint_shard(p->base, t->shard_idx);
    return t->added ? UINT64_MAX : safetensors_find(s, t->name)->begin;
}

/* The shard's tensors in the order of its payload. */
static int order_tensors(struct planner *k, uint32_t shard_idx)
{
    struct merge_plan *p = k->p;
    struct merge_shard *shard = &p->shards[shard_idx];
    struct place *places = arena_array(&p->arena, p->n_tensors + 1, sizeof *places);
    if (!places)
        return plan_no_memory(k);
    size_t n = 0;
    for (uint32_t i = 0; i < p->n_tensors; i++) {
        if (p->tensors[i].shard_idx == shard_idx && !p->tensors[i].dropped)
            places[n++] = (struct place){base_begin(p, &p->tensors[i]), i};
    }
    qsort(places, n, sizeof *places, by_begin);
    shard->tensors = arena_array(&p->arena, n + 1, sizeof *shard->tensors);
    if (!shard->tensors)
        return plan_no_memory(k);
    for (size_t i = 0; i < n; i++)
        shard->tensors[i] = places[i].idx;
    shard->n_tensors = n;
    return 0;
}

/* Gives the tensors their places; whether they are those of the base. */
static bool place_tensors(struct merge_plan *p, struct merge_shard *shard, uint64_t *payload)
{
    bool same = true;
    *payload = 0;
    for (size_t i = 0; i < shard->n_tensors; i++) {
        struct merge_tensor *t = &p->tensors[shard->tensors[i]];
        t->begin = *payload;
        *payload += tensor_n_bytes(&t->stored);
        same = same && !t->added && !t->converted && tensor_same_shape(&t->stored, &t->base->value);
    }
    return same && shard->n_tensors == safetensors_count(shard->base);
}

static void write_metadata(struct strbuf *sb, const struct safetensors *base)
{
    size_t n = safetensors_n_metadata(base);
    for (size_t i = 0; i < n; i++) {
        const struct safetensors_metadata *m = safetensors_metadata_at(base, i);
        strbuf_adds(sb, i ? "," : "\"__metadata__\":{");
        strbuf_add_json(sb, m->key, strlen(m->key));
        strbuf_addc(sb, ':');
        strbuf_add_json(sb, m->value, strlen(m->value));
    }
    if (n)
        strbuf_adds(sb, "},");
}

static void write_entries(struct strbuf *sb, const struct merge_plan *p,
                          const struct merge_shard *shard)
{
    for (size_t i = 0; i < shard->n_tensors; i++) {
        const struct merge_tensor *t = &p->tensors[shard->tensors[i]];
        if (i)
            strbuf_addc(sb, ',');
        strbuf_add_json(sb, t->name, strlen(t->name));
        strbuf_addf(sb, ":{\"dtype\":\"%s\",\"shape\":[", dtype_name(t->stored.dtype));
        for (uint32_t d = 0; d < t->stored.n_dims; d++)
            strbuf_addf(sb, d ? ",%llu" : "%llu", (unsigned long long)t->stored.shape[d]);
        strbuf_addf(sb, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)t->begin,
                    (unsigned long long)(t->begin + tensor_n_bytes(&t->stored)));
    }
}

/* Length word and JSON, padded so that the payload is aligned; into the plan's arena. */
static int new_header(struct planner *k, struct merge_shard *shard)
{
    struct merge_plan *p = k->p;
    struct strbuf sb;
    strbuf_init(&sb);
    strbuf_add(&sb, "\0\0\0\0\0\0\0", 8);
    strbuf_addc(&sb, '{');
    write_metadata(&sb, shard->base);
    write_entries(&sb, p, shard);
    strbuf_addc(&sb, '}');
    while (sb.len % 8 && !sb.failed)
        strbuf_addc(&sb, ' ');
    char *header = sb.failed ? NULL : arena_alloc(&p->arena, sb.len);
    if (header) {
        memcpy(header, sb.data, sb.len);
        for (int i = 0; i < 8; i++)
            header[i] = (char)((sb.len - 8) >> 8 * i);
        shard->header = header;
        shard->header_bytes = sb.len;
    }
    strbuf_release(&sb);
    return header ? 0 : plan_no_memory(k);
}

/* The base's own header: the bytes before the first payload byte of its mapping. */
static void old_header(struct merge_shard *shard)
{
    uint64_t n = safetensors_data_offset(shard->base);
    const struct safetensors_entry *any = safetensors_at(shard->base, 0);
    shard->header = (const char *)any->value.data - any->begin - n;
    shard->header_bytes = n;
}

int plan_layout(struct planner *k)
{
    struct merge_plan *p = k->p;
    p->n_shards = checkpoint_n_shards(p->base);
    p->shards = arena_array(&p->arena, p->n_shards + 1, sizeof *p->shards);
    if (!p->shards)
        return plan_no_memory(k);
    for (uint32_t s = 0; s < p->n_shards; s++) {
        struct merge_shard *shard = &p->shards[s];
        shard->base = checkpoint_shard(p->base, s);
        shard->name = file_base_name(safetensors_path(shard->base));
        int rc = order_tensors(k, s);
        if (rc)
            return rc;
        uint64_t payload;
        shard->same_header = place_tensors(p, shard, &payload) && shard->n_tensors > 0;
        if (shard->same_header)
            old_header(shard);
        else
            rc = new_header(k, shard);
        if (rc)
            return rc;
        shard->file_bytes = shard->header_bytes + payload;
    }
    return 0;
}
