/* Loading: an adapter's image into the chunks of the pool, and the tables of its slot. */
#include <string.h>

#include "kernels/cuda/adapter_image.h"
#include "kernels/cuda/cuda_impl.h"
#include "libcore/base/sys.h"

static uint32_t round16(uint32_t n)
{
    return (n + 15) / 16 * 16;
}

/* The tables of a slot while they are made. */
struct tables {
    struct device_model *m;
    const uint32_t *chunks;
    struct cuda_image h;
    const struct cuda_record *records;
    uint64_t *pointers; // host copy of the table's content
    uint32_t n_pointers;
    struct cu_site *sites, *moe_sites;
    struct cu_embed_part embed;
    const float **norms;
    struct cuda_replaced *replaced;
    uint32_t n_replaced, vocab;
    const struct adapter_replacement *given;
    uint32_t n_given;
    uint32_t width16, groups[CUDA_LAYER_SITES];
};

static uint64_t device_address(const struct tables *t, uint64_t offset)
{
    return (uint64_t)(uintptr_t)t->m->pool +
           (uint64_t)t->chunks[offset / BACKEND_CHUNK_BYTES] * BACKEND_CHUNK_BYTES +
           offset % BACKEND_CHUNK_BYTES;
}

static const void *unit_address(const struct tables *t, const struct image_piece *p)
{
    return p->n_units ? (const void *)(uintptr_t)device_address(t, p->offset) : NULL;
}

/* Appends the addresses of a piece's units; gives where they will lie on the device. */
static const void *const *list_units(struct tables *t, const struct image_piece *p)
{
    if (p->n_units == 0)
        return NULL;
    uint64_t at = device_address(t, t->h.table.offset) + t->n_pointers * 8ull;
    for (uint32_t u = 0; u < p->n_units; u++)
        t->pointers[t->n_pointers++] = device_address(t, image_unit_offset(p, u));
    return (const void *const *)(uintptr_t)at;
}

static const struct device_weight *find_given(const struct tables *t, const struct cuda_record *r)
{
    for (uint32_t i = 0; i < t->n_given; i++) {
        const struct weight_place *p = &t->given[i].part->target->place;
        bool same = p->kind == (enum weight_kind)r->kind && p->layer == r->layer &&
                    (r->kind == WEIGHT_NORM ? p->norm == (enum norm)r->norm
                                            : p->site == (enum site)r->site && p->row0 == r->row0);
        if (same)
            return t->given[i].weight;
    }
    return NULL;
}

static struct cuda_replaced *add_replaced(struct tables *t, const struct cuda_record *r)
{
    struct cuda_replaced *to = &t->replaced[t->n_replaced++];
    *to = (struct cuda_replaced){.site = (enum site)r->site, .layer = r->layer, .row0 = r->row0};
    return to;
}

static int bind_embedding(struct tables *t, const struct cuda_record *r,
                          const struct device_weight *full)
{
    struct cu_embed_part *e = &t->embed;
    e->full = full ? full->matrix.data : NULL;
    e->full_rows = full ? full->matrix.n_rows : 0;
    e->rank = r->rank;
    e->a_rows = r->d_in;
    e->a = list_units(t, &r->a);
    e->b = list_units(t, &r->b);
    e->gain = unit_address(t, &r->gain);
    e->scale = r->scale;
    e->n_rows = r->n_rows;
    e->row_ids = unit_address(t, &r->row_ids);
    e->rows = list_units(t, &r->rows);
    if (r->n_rows && t->m->config->tied_embeddings) {
        struct cuda_replaced *head = add_replaced(t, r);
        head->site = SITE_HEAD;
        head->n_rows = r->n_rows;
        head->rows = e->rows;
        head->row_ids = e->row_ids;
    }
    return 0;
}

static struct cu_site *table_site(struct tables *t, const struct cuda_record *r)
{
    int moe = cuda_moe_site((enum site)r->site);
    if (r->site == SITE_HEAD)
        return &t->sites[t->m->config->n_layers * CUDA_LAYER_SITES];
    if (moe >= 0)
        return &t->moe_sites[r->layer * CUDA_MOE_SITES + (uint32_t)moe];
    return &t->sites[r->layer * CUDA_LAYER_SITES + (uint32_t)cuda_layer_site((enum site)r->site)];
}

static int bind_matrix(struct tables *t, const struct cuda_record *r,
                       const struct device_weight *full, struct err *err)
{
    struct cu_site *s = table_site(t, r);
    if (full)
        add_replaced(t, r)->full = full;
    if (full && r->site == SITE_HEAD)
        t->vocab = full->matrix.n_rows;
    if (r->rank == 0 && !r->gain.n_units && !r->bias.n_units && !r->lora_bias.n_units)
        return 0;
    if (s->n_parts == CU_MAX_PARTS)
        return err_set(err, ERR_CORRUPT, "adapter image: more than %d modules in a site",
                       CU_MAX_PARTS);
    s->n_rows = r->site_rows;
    s->n_groups = cuda_a_units(r);
    if (r->a.n_units)
        s->a = list_units(t, &r->a);
    const struct cu_part *before = s->n_parts ? &s->parts[s->n_parts - 1] : NULL;
    uint32_t col16 = before ? before->col16 + round16(before->rank) : 0;
    if (col16 + round16(r->rank) > t->width16)
        t->width16 = col16 + round16(r->rank);
    int ls = cuda_layer_site((enum site)r->site);
    if (ls >= 0 && s->n_groups > t->groups[ls])
        t->groups[ls] = s->n_groups;
    s->parts[s->n_parts++] = (struct cu_part){.col0 = r->col0,
                                              .col16 = col16,
                                              .rank = r->rank,
                                              .rank8 = cuda_round8(r->rank),
                                              .out0 = r->row0,
                                              .n_out = r->d_out,
                                              .scale = r->scale,
                                              .b = list_units(t, &r->b),
                                              .gain = unit_address(t, &r->gain),
                                              .bias = unit_address(t, &r->bias),
                                              .lora_bias = unit_address(t, &r->lora_bias)};
    return 0;
}

static bool record_fits(const struct tables *t, const struct cuda_record *r)
{
    const struct image_piece *pieces[] = {&r->a,         &r->b,       &r->gain, &r->bias,
                                          &r->lora_bias, &r->row_ids, &r->rows};
    for (size_t i = 0; i < sizeof pieces / sizeof pieces[0]; i++) {
        if (!image_piece_fits(pieces[i], t->h.size))
            return false;
    }
    return r->layer < t->m->config->n_layers && r->site < SITE_COUNT && r->norm < NORM_COUNT &&
           t->n_pointers + r->a.n_units + r->b.n_units + r->rows.n_units <= t->h.n_pointers;
}

static int bind_record(struct tables *t, const struct cuda_record *r, struct err *err)
{
    const struct device_weight *full = NULL;
    if (!record_fits(t, r))
        return err_set(err, ERR_CORRUPT, "adapter image: a record is out of bounds");
    if (r->has_full && !(full = find_given(t, r)))
        return err_set(err, ERR_INTERNAL, "adapter_load: layer %u site %u lacks its replacement",
                       r->layer, r->site);
    if (r->kind == WEIGHT_NORM) {
        uint32_t at = r->norm == NORM_FINAL ? t->m->config->n_layers * NORM_COUNT
                                            : r->layer * NORM_COUNT + r->norm;
        t->norms[at] = full ? full->vector : NULL;
        return 0;
    }
    if (r->site == SITE_EMBED)
        return bind_embedding(t, r, full);
    uint32_t want = cuda_moe_site((enum site)r->site) > 0 ? t->m->config->n_experts : 0;
    if (r->n_experts != want)
        return err_set(err, ERR_CORRUPT, "adapter image: %u experts, want %u", r->n_experts, want);
    return bind_matrix(t, r, full, err);
}

static int open_tables(struct tables *t, const void *image, uint64_t size, uint32_t n_chunks,
                       struct err *err)
{
    struct device_model *m = t->m;
    if (size < sizeof t->h)
        return err_set(err, ERR_CORRUPT, "adapter image of %llu bytes", (unsigned long long)size);
    memcpy(&t->h, image, sizeof t->h);
    uint64_t records = (uint64_t)t->h.n_records * sizeof(struct cuda_record);
    if (t->h.magic != CUDA_IMAGE_MAGIC || t->h.layout != CUDA_LAYOUT_VERSION || t->h.size != size ||
        records > size - sizeof t->h || !image_piece_fits(&t->h.table, size) ||
        t->h.table.unit != t->h.n_pointers * 8ull)
        return err_set(err, ERR_CORRUPT, "adapter image: not one of this back end and version");
    if (n_chunks != (size + BACKEND_CHUNK_BYTES - 1) / BACKEND_CHUNK_BYTES)
        return err_set(err, ERR_INTERNAL, "adapter_load: %u chunks for %llu bytes", n_chunks,
                       (unsigned long long)size);
    for (uint32_t i = 0; i < n_chunks; i++) {
        if (t->chunks[i] >= m->n_chunks)
            return err_set(err, ERR_INTERNAL, "adapter_load: chunk %u of %u", t->chunks[i],
                           m->n_chunks);
    }
    t->records = (const struct cuda_record *)(const void *)((const char *)image + sizeof t->h);
    t->pointers = sys_calloc(t->h.n_pointers + 1, sizeof *t->pointers);
    t->sites = sys_calloc(m->site_stride, sizeof *t->sites);
    t->moe_sites = sys_calloc(m->moe.stride + 1, sizeof *t->moe_sites);
    t->norms = sys_calloc(m->norm_stride, sizeof *t->norms);
    t->replaced = sys_calloc(2 * t->h.n_records + 1, sizeof *t->replaced);
    if (!t->pointers || !t->sites || !t->moe_sites || !t->norms || !t->replaced)
        return err_set(err, ERR_NO_MEMORY, "no memory for the tables of an adapter");
    return 0;
}

/* The image's chunks, neighbours in one copy, then the tables. */
static int copy_all(struct tables *t, uint32_t slot, const void *image, uint32_t n_chunks,
                    struct err *err)
{
    struct device_model *m = t->m;
    cudaStream_t s = m->copy;
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < n_chunks;) {
        uint32_t n = 1;
        while (i + n < n_chunks && t->chunks[i + n] == t->chunks[i] + n)
            n++;
        uint64_t at = (uint64_t)i * BACKEND_CHUNK_BYTES, bytes = (uint64_t)n * BACKEND_CHUNK_BYTES;
        bytes = bytes < t->h.size - at ? bytes : t->h.size - at;
        rc = cudaMemcpyAsync(m->pool + (uint64_t)t->chunks[i] * BACKEND_CHUNK_BYTES,
                             (const char *)image + at, bytes, cudaMemcpyHostToDevice, s);
        i += n;
    }
    if (rc == 0 && t->n_pointers)
        rc = cudaMemcpyAsync((void *)(uintptr_t)device_address(t, t->h.table.offset), t->pointers,
                             t->n_pointers * 8ull, cudaMemcpyHostToDevice, s);
    if (rc == 0)
        rc = cudaMemcpyAsync(m->sites + (size_t)slot * m->site_stride, t->sites,
                             m->site_stride * sizeof *t->sites, cudaMemcpyHostToDevice, s);
    if (rc == 0 && m->moe.stride)
        rc = cudaMemcpyAsync(m->moe.sites + (size_t)slot * m->moe.stride, t->moe_sites,
                             m->moe.stride * sizeof *t->sites, cudaMemcpyHostToDevice, s);
    if (rc == 0)
        rc = cudaMemcpyAsync(m->embeds + slot, &t->embed, sizeof t->embed, cudaMemcpyHostToDevice,
                             s);
    if (rc == 0)
        rc = cudaMemcpyAsync(m->norm_table + (size_t)slot * m->norm_stride, t->norms,
                             m->norm_stride * sizeof *t->norms, cudaMemcpyHostToDevice, s);
    if (rc == 0)
        rc = cudaEventRecord(m->slots[slot].loaded, s);
    return cuda_check(rc, "copying an adapter", err);
}

int cuda_adapter_load(struct backend *be, struct device_model *m, uint32_t slot, const void *image,
                      uint64_t size, const uint32_t *chunks, uint32_t n_chunks,
                      const struct adapter_replacement *replacements, uint32_t n_replacements,
                      struct err *err)
{
    if (slot >= m->limits.max_slots || atomic_load(&m->slots[slot].state) != ADAPTER_EMPTY)
        return err_set(err, ERR_INTERNAL, "adapter_load: slot %u of %u is not free", slot,
                       m->limits.max_slots);
    struct cuda_slot *s = &m->slots[slot];
    struct tables t = {.m = m, .chunks = chunks, .given = replacements, .n_given = n_replacements};
    int rc = cuda_choose(be, err);
    rc = rc ? rc : open_tables(&t, image, size, n_chunks, err);
    for (uint32_t i = 0; rc == 0 && i < t.h.n_records; i++)
        rc = bind_record(&t, &t.records[i], err);
    if (rc == 0 && !s->loaded)
        rc = cuda_check(cudaEventCreateWithFlags(&s->loaded, cudaEventDisableTiming), "an event",
                        err);
    if (rc == 0) {
        s->kinds = t.h.kinds;
        s->key = t.h.key;
        s->width = t.h.width;
        s->vocab = t.vocab;
        s->embed_rows = t.embed.full_rows;
        s->width16 = t.width16;
        memcpy(s->groups, t.groups, sizeof s->groups);
        s->replaced = t.replaced;
        s->n_replaced = t.n_replaced;
        t.replaced = NULL;
        rc = copy_all(&t, slot, image, n_chunks, err);
        atomic_store(&s->state, rc ? ADAPTER_FAILED : ADAPTER_LOADING);
    }
    sys_free(t.pointers);
    sys_free(t.sites);
    sys_free(t.moe_sites);
    sys_free(t.norms);
    sys_free(t.replaced);
    if (rc)
        cuda_adapter_unload(be, m, slot);
    return rc;
}

enum adapter_state cuda_adapter_poll(struct backend *be, struct device_model *m, uint32_t slot)
{
    if (slot >= m->limits.max_slots)
        return ADAPTER_EMPTY;
    struct cuda_slot *s = &m->slots[slot];
    int state = atomic_load(&s->state);
    if (state != ADAPTER_LOADING)
        return (enum adapter_state)state;
    if (cuda_choose(be, NULL))
        return ADAPTER_FAILED;
    cudaError_t e = cudaEventQuery(s->loaded);
    if (e == cudaErrorNotReady)
        return ADAPTER_LOADING;
    state = e == cudaSuccess ? ADAPTER_READY : ADAPTER_FAILED;
    atomic_store(&s->state, state);
    return (enum adapter_state)state;
}

void cuda_adapter_unload(struct backend *be, struct device_model *m, uint32_t slot)
{
    struct cuda_slot *s = &m->slots[slot];
    (void)cuda_choose(be, NULL);
    if (s->loaded)
        cudaEventSynchronize(s->loaded);
    sys_free(s->replaced);
    s->replaced = NULL;
    s->n_replaced = 0;
    atomic_store(&s->state, ADAPTER_EMPTY);
}
