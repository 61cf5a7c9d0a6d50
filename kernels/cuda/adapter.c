/*
 * The image of an adapter and the tables of a slot.
 *
 * image = header, one record a module, a place for the tables, then the data in units
 * (kernels/image.h): A   per site the rows of its modules stacked, 16 rows a unit, row-major, bf16
 *   B   512 outputs a unit, in the fragment order of expand.cuh, rank padded to 8, bf16
 *   experts: the same for each expert after the other, in smaller units where it has fewer rows
 *   embedding: A as [vocab][rank], 1024 tokens a unit; B as [dim][rank], 512 a unit
 *   gains and biases float32, a vector a unit; replaced rows bf16, a row a unit
 * The tables (struct cu_site and the arrays of pointers) depend on the chunks, so adapter_load
 * makes them and writes them to their place in the chunks.
 */
#include <string.h>

#include "kernels/cuda/cuda_impl.h"
#include "kernels/image.h"
#include "libcore/base/sys.h"

enum { IMAGE_MAGIC = 0x4C504355, A_GROUP = 16, EMBED_TOKENS = 1024 };

struct header {
    uint32_t magic, layout, n_records, kinds;
    uint64_t size, key;
    uint32_t width, n_pointers;
    struct image_piece table; // one unit: n_pointers addresses
};

struct record {
    uint32_t kind, site, norm, layer, row0, d_out, d_in, rank, n_rows, has_full;
    uint32_t site_rows, col0; // stacked A rows of the site; first of this module
    float scale;
    uint32_t embedding, n_experts; // n_experts 0: one matrix
    struct image_piece a;          // of the site's first record only
    struct image_piece b, gain, bias, lora_bias, row_ids, rows;
};

static uint32_t round8(uint32_t n)
{
    return (n + 7) / 8 * 8;
}

static uint32_t round16(uint32_t n)
{
    return (n + 15) / 16 * 16;
}

// ---- the plan

static bool same_site(const struct record *x, const struct record *y)
{
    return x->kind == WEIGHT_MATRIX && y->kind == WEIGHT_MATRIX && x->layer == y->layer &&
           x->site == y->site;
}

static struct record describe(const struct bound_part *p)
{
    const struct adapter_module *mod = p->module;
    const struct weight_place *place = &p->target->place;
    return (struct record){.kind = place->kind,
                           .site = place->site,
                           .norm = place->norm,
                           .layer = place->layer,
                           .row0 = place->row0,
                           .d_out = mod->embedding ? p->target->d_in : p->target->d_out,
                           .d_in = mod->embedding ? (uint32_t)(mod->rank ? mod->a.shape[1] : 0)
                                                  : p->target->d_in,
                           .rank = mod->rank,
                           .n_rows = mod->n_rows,
                           .has_full = tensor_present(&mod->full),
                           .scale = (float)mod->scale,
                           .embedding = mod->embedding,
                           .n_experts = mod->n_experts};
}

/* Rows of A and of B in a unit, and units of an expert. */
static uint32_t a_unit_rows(const struct record *r)
{
    return r->n_experts && r->site_rows < A_GROUP ? r->site_rows : A_GROUP;
}

static uint32_t b_unit_rows(const struct record *r)
{
    return r->n_experts && r->d_out < CU_B_BLOCK ? (r->d_out + 15) / 16 * 16 : CU_B_BLOCK;
}

static uint32_t n_a_units(const struct record *r)
{
    return (r->site_rows + A_GROUP - 1) / A_GROUP;
}

static uint32_t n_b_units(const struct record *r)
{
    return (r->d_out + CU_B_BLOCK - 1) / CU_B_BLOCK;
}

/* Columns of v: ranks of a site's modules side by side. */
static uint32_t stack_ranks(struct record *r, uint32_t n)
{
    uint32_t widest = 0;
    for (uint32_t i = 0; i < n;) {
        uint32_t rows = 0, end = i;
        for (; end < n && (end == i || same_site(&r[i], &r[end])); end++) {
            r[end].col0 = rows;
            rows += r[end].embedding ? 0 : r[end].rank;
        }
        for (; i < end; i++)
            r[i].site_rows = rows;
        widest = rows > widest ? rows : widest;
    }
    return widest;
}

static int place_record(struct record *r, const struct bound_part *p, bool first, uint64_t *end,
                        uint32_t *n_pointers, struct err *err)
{
    const struct adapter_module *mod = p->module;
    uint64_t row_bytes = mod->n_rows ? mod->rows.shape[1] * 2 : 0;
    int rc = 0;
    if (r->rank && r->embedding) {
        rc = image_place(end, &r->a, (uint64_t)EMBED_TOKENS * r->rank * 2,
                         (r->d_in + EMBED_TOKENS - 1) / EMBED_TOKENS, err);
        rc = rc ? rc
                : image_place(end, &r->b, (uint64_t)CU_B_BLOCK * r->rank * 2,
                              (r->d_out + CU_B_BLOCK - 1) / CU_B_BLOCK, err);
    } else if (r->rank) {
        uint64_t n_experts = r->n_experts ? r->n_experts : 1;
        if (first)
            rc = image_place(end, &r->a, (uint64_t)a_unit_rows(r) * r->d_in * 2,
                             n_a_units(r) * n_experts, err);
        rc = rc ? rc
                : image_place(end, &r->b, (uint64_t)b_unit_rows(r) * round8(r->rank) * 2,
                              n_b_units(r) * n_experts, err);
    }
    rc = rc ? rc : image_place(end, &r->gain, r->d_out * 4ull, p->gain != NULL, err);
    rc = rc ? rc : image_place(end, &r->bias, r->d_out * 4ull, tensor_present(&mod->bias), err);
    rc =
        rc ? rc
           : image_place(end, &r->lora_bias, r->d_out * 4ull, tensor_present(&mod->lora_bias), err);
    rc = rc ? rc : image_place(end, &r->row_ids, mod->n_rows * 4ull, mod->n_rows > 0, err);
    rc = rc ? rc : image_place(end, &r->rows, row_bytes, mod->n_rows, err);
    *n_pointers += r->a.n_units + r->b.n_units + r->rows.n_units;
    return rc;
}

/* Header and records with every offset; *records is the caller's. */
static int make_plan(const struct bound_adapter *b, struct header *h, struct record **records,
                     struct err *err)
{
    uint32_t n = (uint32_t)b->n_parts;
    struct record *r = sys_calloc(n + 1, sizeof *r);
    *records = r;
    if (!r)
        return err_set(err, ERR_NO_MEMORY, "no memory to plan an adapter's image");
    for (uint32_t i = 0; i < n; i++) {
        r[i] = describe(&b->parts[i]);
        if (tensor_present(&b->parts[i].module->magnitude) && !b->parts[i].gain)
            return err_set(err, ERR_INTERNAL, "%s: packed before its gains were set",
                           b->parts[i].module->name);
    }
    *h = (struct header){.magic = IMAGE_MAGIC,
                         .layout = CUDA_LAYOUT_VERSION,
                         .n_records = n,
                         .kinds = b->kinds,
                         .key = segment_key(b),
                         .width = stack_ranks(r, n)};
    uint64_t end = sizeof *h + (uint64_t)n * sizeof *r;
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < n; i++) {
        // A of a site goes with the first of its modules that has a rank.
        bool first = true;
        for (uint32_t j = i; first && j > 0 && same_site(&r[j - 1], &r[i]); j--)
            first = r[j - 1].rank == 0;
        rc = place_record(&r[i], &b->parts[i], first, &end, &h->n_pointers, err);
    }
    if (rc == 0)
        rc = image_place(&end, &h->table, h->n_pointers * 8ull, h->n_pointers > 0, err);
    h->size = end;
    return rc;
}

int cuda_adapter_pack_size(struct backend *be, const struct device_model *m,
                           const struct bound_adapter *b, uint64_t *size, struct err *err)
{
    (void)be;
    (void)m;
    struct header h;
    struct record *records;
    int rc = make_plan(b, &h, &records, err);
    *size = h.size;
    sys_free(records);
    return rc;
}

// ---- writing

static void *unit_at(void *image, const struct image_piece *p, uint64_t u)
{
    return (char *)image + image_unit_offset(p, u);
}

/* Rows of A behind each other among the site's groups. */
static void write_a(void *image, const struct image_piece *a, const struct record *r,
                    const struct adapter_module *mod)
{
    uint32_t n_experts = r->n_experts ? r->n_experts : 1;
    for (uint32_t i = 0; i < n_experts * r->rank; i++) {
        uint32_t row = r->col0 + i % r->rank;
        char *group = unit_at(image, a, i / r->rank * n_a_units(r) + row / A_GROUP);
        cuda_to_bf16(&mod->a, (uint64_t)i * r->d_in, r->d_in,
                     (uint16_t *)(void *)(group + (size_t)(row % A_GROUP) * r->d_in * 2));
    }
}

/* Where B[out, i] lies in its block: tile of 16 outputs, piece of 8 ranks, lane, half. */
static size_t fragment(uint32_t out, uint32_t i, uint32_t rank8)
{
    uint32_t tile = out % CU_B_BLOCK / 16, row = out % 16, lane = row % 8 * 4 + i % 8 / 2;
    return (size_t)tile * rank8 * 16 + i / 8 * 128 + lane * 4 + row / 8 * 2 + i % 2;
}

/* B[out, rank * experts], the expert fastest. */
static void write_expert_b(void *image, const struct record *r, const struct adapter_module *mod)
{
    uint16_t values[CU_MAX_EXPERTS];
    for (uint32_t out = 0; out < r->d_out; out++) {
        for (uint32_t i = 0; i < r->rank; i++) {
            size_t at = fragment(out, i, round8(r->rank));
            cuda_to_bf16(&mod->b, ((uint64_t)out * r->rank + i) * r->n_experts, r->n_experts,
                         values);
            for (uint32_t e = 0; e < r->n_experts; e++) {
                uint16_t *block = unit_at(image, &r->b, e * n_b_units(r) + out / CU_B_BLOCK);
                block[at] = values[e];
            }
        }
    }
}

static void write_b(void *image, const struct record *r, const struct adapter_module *mod)
{
    uint32_t rank8 = round8(r->rank);
    for (uint32_t u = 0; u < r->b.n_units; u++)
        memset(unit_at(image, &r->b, u), 0, r->b.unit);
    if (r->n_experts) {
        write_expert_b(image, r, mod);
        return;
    }
    uint16_t row[LIMIT_RANK];
    for (uint32_t out = 0; out < r->d_out; out++) {
        uint16_t *block = unit_at(image, &r->b, out / CU_B_BLOCK);
        cuda_to_bf16(&mod->b, (uint64_t)out * r->rank, r->rank, row);
        for (uint32_t i = 0; i < r->rank; i++)
            block[fragment(out, i, rank8)] = row[i];
    }
}

/* A[r, vocab] becomes [vocab][r]; B[dim, r] stays. */
static void write_embedding(void *image, const struct record *r, const struct adapter_module *mod)
{
    for (uint32_t i = 0; i < r->rank; i++) {
        for (uint32_t t0 = 0; t0 < r->d_in; t0 += EMBED_TOKENS) {
            uint16_t values[EMBED_TOKENS], *unit = unit_at(image, &r->a, t0 / EMBED_TOKENS);
            uint32_t n = r->d_in - t0 < EMBED_TOKENS ? r->d_in - t0 : EMBED_TOKENS;
            cuda_to_bf16(&mod->a, (uint64_t)i * r->d_in + t0, n, values);
            for (uint32_t t = 0; t < n; t++)
                unit[(size_t)t * r->rank + i] = values[t];
        }
    }
    for (uint32_t d = 0; d < r->d_out; d++) {
        uint16_t *unit = unit_at(image, &r->b, d / CU_B_BLOCK);
        cuda_to_bf16(&mod->b, (uint64_t)d * r->rank, r->rank,
                     unit + (size_t)(d % CU_B_BLOCK) * r->rank);
    }
}

static void write_vector(void *image, const struct image_piece *p, const struct tensor *src)
{
    if (p->n_units)
        dtype_to_f32(src->dtype, src->data, unit_at(image, p, 0), p->unit / 4);
}

static void write_record(void *image, const struct record *r, const struct image_piece *a,
                         const struct bound_part *p)
{
    const struct adapter_module *mod = p->module;
    if (r->rank && r->embedding) {
        write_embedding(image, r, mod);
    } else if (r->rank) {
        write_a(image, a, r, mod);
        write_b(image, r, mod);
    }
    if (r->gain.n_units)
        memcpy(unit_at(image, &r->gain, 0), p->gain, r->gain.unit);
    write_vector(image, &r->bias, &mod->bias);
    write_vector(image, &r->lora_bias, &mod->lora_bias);
    if (r->row_ids.n_units)
        memcpy(unit_at(image, &r->row_ids, 0), mod->row_ids, r->row_ids.unit);
    for (uint32_t u = 0; u < r->rows.n_units; u++)
        cuda_to_bf16(&mod->rows, (uint64_t)u * (r->rows.unit / 2), r->rows.unit / 2,
                     unit_at(image, &r->rows, u));
}

int cuda_adapter_pack(struct backend *be, const struct device_model *m,
                      const struct bound_adapter *b, void *image, uint64_t size, struct err *err)
{
    (void)be;
    (void)m;
    struct header h;
    struct record *r;
    int rc = make_plan(b, &h, &r, err);
    if (rc == 0 && h.size != size)
        rc = err_set(err, ERR_INTERNAL, "adapter_pack: image of %llu bytes, want %llu",
                     (unsigned long long)size, (unsigned long long)h.size);
    if (rc == 0) {
        const struct image_piece *a = NULL;
        memset(image, 0, size);
        for (uint32_t i = 0; i < h.n_records; i++) {
            if (i == 0 || !same_site(&r[i - 1], &r[i]))
                a = NULL;
            if (r[i].a.n_units)
                a = &r[i].a;
            write_record(image, &r[i], a, &b->parts[i]);
        }
        memcpy(image, &h, sizeof h);
        memcpy((char *)image + sizeof h, r, h.n_records * sizeof *r);
    }
    sys_free(r);
    return rc;
}

// ---- loading

/* The tables of a slot while they are made. */
struct tables {
    struct device_model *m;
    const uint32_t *chunks;
    struct header h;
    const struct record *records;
    uint64_t *pointers; // host copy of the table's content
    uint32_t n_pointers;
    struct cu_site *sites, *moe_sites;
    struct cu_embed_part embed;
    const float **norms;
    struct cuda_replaced *replaced;
    uint32_t n_replaced, vocab;
    const struct adapter_replacement *given;
    uint32_t n_given;
    uint32_t width16;
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

static const struct device_weight *find_given(const struct tables *t, const struct record *r)
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

static struct cuda_replaced *add_replaced(struct tables *t, const struct record *r)
{
    struct cuda_replaced *to = &t->replaced[t->n_replaced++];
    *to = (struct cuda_replaced){.site = (enum site)r->site, .layer = r->layer, .row0 = r->row0};
    return to;
}

static int bind_embedding(struct tables *t, const struct record *r,
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

static struct cu_site *table_site(struct tables *t, const struct record *r)
{
    int moe = cuda_moe_site((enum site)r->site);
    if (r->site == SITE_HEAD)
        return &t->sites[t->m->config->n_layers * CUDA_LAYER_SITES];
    if (moe >= 0)
        return &t->moe_sites[r->layer * CUDA_MOE_SITES + (uint32_t)moe];
    return &t->sites[r->layer * CUDA_LAYER_SITES + (uint32_t)cuda_layer_site((enum site)r->site)];
}

static int bind_matrix(struct tables *t, const struct record *r, const struct device_weight *full,
                       struct err *err)
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
    s->n_groups = n_a_units(r);
    if (r->a.n_units)
        s->a = list_units(t, &r->a);
    const struct cu_part *before = s->n_parts ? &s->parts[s->n_parts - 1] : NULL;
    uint32_t col16 = before ? before->col16 + round16(before->rank) : 0;
    if (col16 + round16(r->rank) > t->width16)
        t->width16 = col16 + round16(r->rank);
    s->parts[s->n_parts++] = (struct cu_part){.col0 = r->col0,
                                              .col16 = col16,
                                              .rank = r->rank,
                                              .rank8 = round8(r->rank),
                                              .out0 = r->row0,
                                              .n_out = r->d_out,
                                              .scale = r->scale,
                                              .b = list_units(t, &r->b),
                                              .gain = unit_address(t, &r->gain),
                                              .bias = unit_address(t, &r->bias),
                                              .lora_bias = unit_address(t, &r->lora_bias)};
    return 0;
}

static bool record_fits(const struct tables *t, const struct record *r)
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

static int bind_record(struct tables *t, const struct record *r, struct err *err)
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
    uint64_t records = (uint64_t)t->h.n_records * sizeof(struct record);
    if (t->h.magic != IMAGE_MAGIC || t->h.layout != CUDA_LAYOUT_VERSION || t->h.size != size ||
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
    t->records = (const struct record *)(const void *)((const char *)image + sizeof t->h);
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
    (void)be;
    if (slot >= m->limits.max_slots || atomic_load(&m->slots[slot].state) != ADAPTER_EMPTY)
        return err_set(err, ERR_INTERNAL, "adapter_load: slot %u of %u is not free", slot,
                       m->limits.max_slots);
    struct cuda_slot *s = &m->slots[slot];
    struct tables t = {.m = m, .chunks = chunks, .given = replacements, .n_given = n_replacements};
    int rc = cuda_check(cudaSetDevice(m->be->device), "choosing the card", err);
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
    (void)be;
    if (slot >= m->limits.max_slots)
        return ADAPTER_EMPTY;
    struct cuda_slot *s = &m->slots[slot];
    int state = atomic_load(&s->state);
    if (state != ADAPTER_LOADING)
        return (enum adapter_state)state;
    cudaError_t e = cudaEventQuery(s->loaded);
    if (e == cudaErrorNotReady)
        return ADAPTER_LOADING;
    state = e == cudaSuccess ? ADAPTER_READY : ADAPTER_FAILED;
    atomic_store(&s->state, state);
    return (enum adapter_state)state;
}

void cuda_adapter_unload(struct backend *be, struct device_model *m, uint32_t slot)
{
    (void)be;
    struct cuda_slot *s = &m->slots[slot];
    if (s->loaded)
        cudaEventSynchronize(s->loaded);
    sys_free(s->replaced);
    s->replaced = NULL;
    s->n_replaced = 0;
    atomic_store(&s->state, ADAPTER_EMPTY);
}
