/*
 * The image of an adapter and the tables of a slot.
 *
 * image = header, one record a part, then the data: A as rows, B as panels (isa/isa.h), vectors in
 * float32. Data is laid in units (a row of A, a panel of B, a whole vector) that never straddle two
 * chunks of 2 MiB (kernels/image.h), so the image goes into any chunks and the kernels find a unit
 * by struct cpu_piece. A and B keep the file's type when it is BF16, F16 or F32; others become F32.
 */
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu_impl.h"
#include "kernels/image.h"
#include "libcore/base/sys.h"

enum { IMAGE_MAGIC = 0x4C50414C };

struct image_header {
    uint32_t magic, layout, n_records, kinds;
    uint64_t size, key;
};

struct image_record {
    uint32_t kind, site, norm, layer, row0, d_out, d_in, rank, n_experts, a_dtype, b_dtype, n_rows;
    float scale;
    uint32_t has_full;
    struct image_piece a, b, gain, bias, lora_bias, row_ids, rows;
};

static void *unit_at(void *image, const struct image_piece *p, uint64_t u)
{
    return (char *)image + image_unit_offset(p, u);
}

// ---- the plan: records with the places of their data -------------------------------------------

/* How a stored type of A and B is kept. */
static enum dtype stored_dtype(enum dtype t)
{
    return t == DTYPE_BF16 || t == DTYPE_F16 ? t : DTYPE_F32;
}

static bool is_tied_rows(const struct device_model *m, const struct bound_part *p)
{
    return m->config->tied_embeddings && p->target->place.kind == WEIGHT_MATRIX &&
           p->target->place.site == SITE_EMBED && p->module->n_rows > 0;
}

static uint32_t count_records(const struct device_model *m, const struct bound_adapter *b)
{
    uint32_t n = 0;
    for (size_t i = 0; i < b->n_parts; i++)
        n += 1 + is_tied_rows(m, &b->parts[i]);
    return n;
}

static int plan_vector(uint64_t *end, struct image_piece *p, bool present, uint64_t n,
                       struct err *err)
{
    return image_place(end, p, n * sizeof(float), present, err);
}

static int plan_record(struct image_record *r, const struct bound_part *p, uint64_t *end,
                       struct err *err)
{
    const struct adapter_module *mod = p->module;
    const struct weight_place *place = &p->target->place;
    uint32_t n_experts = mod->n_experts ? mod->n_experts : 1;
    *r = (struct image_record){.kind = place->kind,
                               .site = place->site,
                               .norm = place->norm,
                               .layer = place->layer,
                               .row0 = place->row0,
                               .d_out = p->target->d_out,
                               .d_in = p->target->d_in,
                               .rank = mod->rank,
                               .n_experts = mod->n_experts,
                               .a_dtype = stored_dtype(mod->a.dtype),
                               .b_dtype = stored_dtype(mod->b.dtype),
                               .n_rows = mod->n_rows,
                               .scale = (float)mod->scale,
                               .has_full = tensor_present(&mod->full)};
    if (mod->embedding) { // A[r, vocab] becomes [vocab][r], B[dim, r] maps r to dim
        r->d_out = (uint32_t)p->target->d_in;
        r->d_in = (uint32_t)(mod->rank ? mod->a.shape[1] : 0);
    }
    int rc = 0;
    if (mod->rank > 0) {
        uint64_t a_unit = mod->embedding ? mod->rank : r->d_in;
        uint64_t n_units = mod->embedding ? r->d_in : (uint64_t)mod->rank * n_experts;
        uint64_t n_panels = (uint64_t)(r->d_out + ISA_PANEL - 1) / ISA_PANEL * n_experts;
        rc = image_place(end, &r->a, a_unit * dtype_bits((enum dtype)r->a_dtype) / 8, n_units, err);
        rc = rc ? rc
                : image_place(end, &r->b, isa_panel_bytes((enum dtype)r->b_dtype, mod->rank),
                              n_panels, err);
    }
    rc = rc ? rc : plan_vector(end, &r->gain, p->gain != NULL, r->d_out, err);
    rc = rc ? rc : plan_vector(end, &r->bias, tensor_present(&mod->bias), r->d_out, err);
    rc = rc ? rc : plan_vector(end, &r->lora_bias, tensor_present(&mod->lora_bias), r->d_out, err);
    rc = rc ? rc : plan_vector(end, &r->row_ids, mod->n_rows > 0, mod->n_rows, err);
    if (rc == 0 && mod->n_rows > 0)
        rc = image_place(end, &r->rows, mod->rows.shape[1] * sizeof(float), mod->n_rows, err);
    return rc;
}

/* The same rows under a tied head. */
static struct image_record tied_record(const struct image_record *r)
{
    struct image_record t = {.kind = WEIGHT_MATRIX,
                             .site = SITE_HEAD,
                             .d_out = r->d_out,
                             .d_in = r->d_in,
                             .n_rows = r->n_rows,
                             .row_ids = r->row_ids,
                             .rows = r->rows};
    return t;
}

static int compare_records(const void *a, const void *b)
{
    const struct image_record *x = a, *y = b;
    if (x->kind != y->kind)
        return x->kind < y->kind ? -1 : 1;
    if (x->layer != y->layer)
        return x->layer < y->layer ? -1 : 1;
    if (x->site != y->site)
        return x->site < y->site ? -1 : 1;
    return x->row0 < y->row0 ? -1 : x->row0 > y->row0;
}

/* Every record with its offsets; *records is the caller's, *size the whole image. */
static int make_plan(const struct device_model *m, const struct bound_adapter *b,
                     struct image_record **records, uint64_t *size, struct err *err)
{
    uint32_t n = count_records(m, b), at = 0;
    struct image_record *r = sys_calloc(n + 1, sizeof *r);
    *records = r;
    if (!r)
        return err_set(err, ERR_NO_MEMORY, "no memory to plan an adapter's image");
    uint64_t end = sizeof(struct image_header) + (uint64_t)n * sizeof *r;
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < b->n_parts; i++) {
        const struct bound_part *p = &b->parts[i];
        bool needs_gain = tensor_present(&p->module->magnitude);
        if (needs_gain && !p->gain)
            return err_set(err, ERR_INTERNAL, "%s: packed before its gains were set",
                           p->module->name);
        rc = plan_record(&r[at++], p, &end, err);
        if (is_tied_rows(m, p)) {
            r[at] = tied_record(&r[at - 1]);
            at++;
        }
    }
    *size = end;
    return rc;
}

int cpu_adapter_pack_size(struct backend *be, const struct device_model *m,
                          const struct bound_adapter *b, uint64_t *size, struct err *err)
{
    (void)be;
    struct image_record *records;
    int rc = make_plan(m, b, &records, size, err);
    sys_free(records);
    return rc;
}

// ---- writing -----------------------------------------------------------------------------------

/* Value (i, j) of a float tensor [., n_cols], as the stored type `t`, to dst. */
static void copy_value(const struct tensor *src, uint64_t idx, enum dtype t, void *dst)
{
    size_t bytes = dtype_bits(src->dtype) / 8;
    const char *from = (const char *)src->data + idx * bytes;
    if (src->dtype == t)
        memcpy(dst, from, bytes);
    else
        dtype_to_f32(src->dtype, from, dst, 1);
}

static void copy_values(const struct tensor *src, uint64_t idx, uint64_t n, enum dtype t, void *dst)
{
    size_t bytes = dtype_bits(src->dtype) / 8;
    const char *from = (const char *)src->data + idx * bytes;
    if (src->dtype == t)
        memcpy(dst, from, n * bytes);
    else
        dtype_to_f32(src->dtype, from, dst, n);
}

static void write_a(void *image, const struct image_record *r, const struct adapter_module *mod)
{
    enum dtype t = (enum dtype)r->a_dtype;
    size_t bytes = dtype_bits(t) / 8;
    if (!mod->embedding) {
        for (uint32_t u = 0; u < r->a.n_units; u++)
            copy_values(&mod->a, (uint64_t)u * r->d_in, r->d_in, t, unit_at(image, &r->a, u));
        return;
    }
    for (uint32_t u = 0; u < r->a.n_units; u++) {
        char *to = unit_at(image, &r->a, u);
        for (uint32_t i = 0; i < r->rank; i++)
            copy_value(&mod->a, (uint64_t)i * r->d_in + u, t, to + i * bytes);
    }
}

/* B's panels; experts: B[out, r * E] with the expert fastest becomes E matrices [out, r]. */
static void write_b(void *image, const struct image_record *r, const struct adapter_module *mod)
{
    enum dtype t = (enum dtype)r->b_dtype;
    size_t bytes = dtype_bits(t) / 8;
    uint32_t n_experts = r->n_experts ? r->n_experts : 1;
    uint32_t n_panels = (r->d_out + ISA_PANEL - 1) / ISA_PANEL;
    for (uint32_t u = 0; u < r->b.n_units; u++)
        memset(unit_at(image, &r->b, u), 0, r->b.unit);
    for (uint32_t e = 0; e < n_experts; e++) {
        for (uint32_t o = 0; o < r->d_out; o++) {
            char *panel = unit_at(image, &r->b, e * n_panels + o / ISA_PANEL);
            for (uint32_t i = 0; i < r->rank; i++) {
                char value[4];
                copy_value(&mod->b, ((uint64_t)o * r->rank + i) * n_experts + e, t, value);
                size_t at = t == DTYPE_F32 ? i * ISA_PANEL + o % ISA_PANEL
                                           : (i / 2 * ISA_PANEL + o % ISA_PANEL) * 2 + i % 2;
                memcpy(panel + at * bytes, value, bytes);
            }
        }
    }
}

static void write_record(void *image, const struct image_record *r, const struct bound_part *p)
{
    const struct adapter_module *mod = p->module;
    if (r->rank > 0) {
        write_a(image, r, mod);
        write_b(image, r, mod);
    }
    if (r->gain.n_units)
        memcpy(unit_at(image, &r->gain, 0), p->gain, r->d_out * sizeof(float));
    if (r->bias.n_units)
        copy_values(&mod->bias, 0, r->d_out, DTYPE_F32, unit_at(image, &r->bias, 0));
    if (r->lora_bias.n_units)
        copy_values(&mod->lora_bias, 0, r->d_out, DTYPE_F32, unit_at(image, &r->lora_bias, 0));
    if (r->row_ids.n_units)
        memcpy(unit_at(image, &r->row_ids, 0), mod->row_ids, r->n_rows * sizeof(uint32_t));
    for (uint32_t u = 0; u < r->rows.n_units; u++) {
        uint64_t dim = r->rows.unit / sizeof(float);
        copy_values(&mod->rows, u * dim, dim, DTYPE_F32, unit_at(image, &r->rows, u));
    }
}

int cpu_adapter_pack(struct backend *be, const struct device_model *m,
                     const struct bound_adapter *b, void *image, uint64_t size, struct err *err)
{
    (void)be;
    struct image_record *records;
    uint64_t wanted = 0;
    int rc = make_plan(m, b, &records, &wanted, err);
    if (rc == 0 && wanted != size)
        rc = err_set(err, ERR_INTERNAL, "adapter_pack: image of %llu bytes, want %llu",
                     (unsigned long long)size, (unsigned long long)wanted);
    if (rc == 0) {
        uint32_t n = count_records(m, b), at = 0;
        for (size_t i = 0; i < b->n_parts; i++) {
            write_record(image, &records[at], &b->parts[i]);
            at += 1 + is_tied_rows(m, &b->parts[i]);
        }
        qsort(records, n, sizeof *records, compare_records);
        struct image_header h = {IMAGE_MAGIC, CPU_LAYOUT_VERSION, n, b->kinds,
                                 size,        segment_key(b)};
        memcpy(image, &h, sizeof h);
        memcpy((char *)image + sizeof h, records, n * sizeof *records);
    }
    sys_free(records);
    return rc;
}

// ---- loading -----------------------------------------------------------------------------------

/* A piece in the slot's chunks, checked against the image's size. */
static int bind_piece(const struct cpu_slot *s, const struct image_piece *p, uint64_t size,
                      struct cpu_piece *out)
{
    *out = (struct cpu_piece){0};
    if (p->n_units == 0)
        return 0;
    if (!image_piece_fits(p, size))
        return ERR_CORRUPT;
    uint64_t chunk = p->offset / BACKEND_CHUNK_BYTES;
    uint64_t n_first = (BACKEND_CHUNK_BYTES - p->offset % BACKEND_CHUNK_BYTES) / p->unit;
    *out = (struct cpu_piece){.first = s->chunks[chunk] + p->offset % BACKEND_CHUNK_BYTES,
                              .rest = s->chunks + chunk + 1,
                              .n_first = (uint32_t)(n_first < p->n_units ? n_first : p->n_units),
                              .per_chunk = (uint32_t)(BACKEND_CHUNK_BYTES / p->unit),
                              .n_units = p->n_units,
                              .unit = p->unit};
    return 0;
}

/* The address of a piece of one unit; NULL when there is none or *rc tells an error. */
static const void *bind_vector(const struct cpu_slot *s, const struct image_piece *p, uint64_t size,
                               int *rc)
{
    struct cpu_piece piece;
    int failed = bind_piece(s, p, size, &piece);
    *rc = *rc ? *rc : failed;
    return piece.first;
}

static int bind_record(const struct cpu_slot *s, const struct image_record *r, uint64_t size,
                       struct cpu_part *out)
{
    *out = (struct cpu_part){.kind = (enum weight_kind)r->kind,
                             .site = (enum site)r->site,
                             .norm = (enum norm)r->norm,
                             .layer = r->layer,
                             .row0 = r->row0,
                             .d_out = r->d_out,
                             .d_in = r->d_in,
                             .rank = r->rank,
                             .n_experts = r->n_experts,
                             .scale = r->scale,
                             .a_dtype = (enum dtype)r->a_dtype,
                             .b_dtype = (enum dtype)r->b_dtype,
                             .n_rows = r->n_rows};
    int rc = bind_piece(s, &r->a, size, &out->a);
    rc = rc ? rc : bind_piece(s, &r->b, size, &out->b);
    rc = rc ? rc : bind_piece(s, &r->rows, size, &out->rows);
    out->gain = bind_vector(s, &r->gain, size, &rc);
    out->bias = bind_vector(s, &r->bias, size, &rc);
    out->lora_bias = bind_vector(s, &r->lora_bias, size, &rc);
    out->row_ids = bind_vector(s, &r->row_ids, size, &rc);
    return rc;
}

static const struct device_weight *
find_replacement(const struct image_record *r, const struct adapter_replacement *list, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        const struct weight_place *p = &list[i].part->target->place;
        bool same = p->kind == (enum weight_kind)r->kind && p->layer == r->layer &&
                    (r->kind == WEIGHT_NORM ? p->norm == (enum norm)r->norm
                                            : p->site == (enum site)r->site && p->row0 == r->row0);
        if (same)
            return list[i].weight;
    }
    return NULL;
}

static void index_part(struct device_model *m, struct cpu_slot *s, uint32_t i)
{
    const struct cpu_part *p = &s->parts[i];
    (void)m;
    if (p->kind == WEIGHT_NORM) {
        s->norms[p->layer * NORM_COUNT + (uint32_t)p->norm] = p->full;
        return;
    }
    uint32_t at = p->layer * SITE_COUNT + (uint32_t)p->site;
    if (s->site_n[at]++ == 0)
        s->site_first[at] = i + 1;
}

static int fill_slot(struct device_model *m, struct cpu_slot *s, const char *image, uint64_t size,
                     const struct adapter_replacement *replacements, uint32_t n_replacements,
                     struct err *err)
{
    for (uint32_t i = 0; i < s->n_parts; i++) {
        struct image_record r;
        memcpy(&r, image + sizeof(struct image_header) + i * sizeof r, sizeof r);
        if (r.layer >= m->config->n_layers || r.site >= SITE_COUNT || r.norm >= NORM_COUNT ||
            bind_record(s, &r, size, &s->parts[i]) != 0)
            return err_set(err, ERR_CORRUPT, "adapter image: record %u is out of bounds", i);
        if (r.has_full) {
            s->parts[i].full = find_replacement(&r, replacements, n_replacements);
            if (!s->parts[i].full)
                return err_set(err, ERR_INTERNAL,
                               "adapter_load: layer %u site %u lacks its "
                               "replacement",
                               r.layer, r.site);
        }
        index_part(m, s, i);
    }
    return 0;
}

static int allocate_slot(const struct device_model *m, struct cpu_slot *s, uint32_t n_chunks,
                         struct err *err)
{
    size_t n_layers = m->config->n_layers;
    s->parts = sys_calloc(s->n_parts + 1, sizeof *s->parts);
    s->site_first = sys_calloc(n_layers * SITE_COUNT, sizeof *s->site_first);
    s->site_n = sys_calloc(n_layers * SITE_COUNT, sizeof *s->site_n);
    s->norms = sys_calloc(n_layers * NORM_COUNT, sizeof *s->norms);
    s->chunks = sys_calloc(n_chunks + 1, sizeof *s->chunks);
    if (!s->parts || !s->site_first || !s->site_n || !s->norms || !s->chunks)
        return err_set(err, ERR_NO_MEMORY, "no memory for the tables of an adapter");
    return 0;
}

static int check_image(const struct device_model *m, const void *image, uint64_t size,
                       const uint32_t *chunks, uint32_t n_chunks, struct image_header *h,
                       struct err *err)
{
    if (size < sizeof *h)
        return err_set(err, ERR_CORRUPT, "adapter image of %llu bytes", (unsigned long long)size);
    memcpy(h, image, sizeof *h);
    uint64_t records = (uint64_t)h->n_records * sizeof(struct image_record);
    if (h->magic != IMAGE_MAGIC || h->layout != CPU_LAYOUT_VERSION || h->size != size ||
        records > size - sizeof *h)
        return err_set(err, ERR_CORRUPT, "adapter image: not one of this back end and version");
    if (n_chunks != (size + BACKEND_CHUNK_BYTES - 1) / BACKEND_CHUNK_BYTES)
        return err_set(err, ERR_INTERNAL, "adapter_load: %u chunks for %llu bytes", n_chunks,
                       (unsigned long long)size);
    for (uint32_t i = 0; i < n_chunks; i++) {
        if (chunks[i] >= m->n_chunks)
            return err_set(err, ERR_INTERNAL, "adapter_load: chunk %u of %u", chunks[i],
                           m->n_chunks);
    }
    return 0;
}

int cpu_adapter_load(struct backend *be, struct device_model *m, uint32_t slot, const void *image,
                     uint64_t size, const uint32_t *chunks, uint32_t n_chunks,
                     const struct adapter_replacement *replacements, uint32_t n_replacements,
                     struct err *err)
{
    struct image_header h;
    if (slot >= m->limits.max_slots)
        return err_set(err, ERR_INTERNAL, "adapter_load: slot %u of %u", slot, m->limits.max_slots);
    struct cpu_slot *s = &m->slots[slot];
    if (atomic_load(&s->state) != ADAPTER_EMPTY)
        return err_set(err, ERR_INTERNAL, "adapter_load: slot %u is in use", slot);
    int rc = check_image(m, image, size, chunks, n_chunks, &h, err);
    if (rc != 0)
        return rc;
    atomic_store(&s->state, ADAPTER_LOADING);
    s->n_parts = h.n_records;
    s->kinds = h.kinds;
    s->key = h.key;
    rc = allocate_slot(m, s, n_chunks, err);
    for (uint32_t i = 0; rc == 0 && i < n_chunks; i++) {
        uint64_t at = (uint64_t)i * BACKEND_CHUNK_BYTES;
        s->chunks[i] = m->chunks + (uint64_t)chunks[i] * BACKEND_CHUNK_BYTES;
        memcpy(s->chunks[i], (const char *)image + at,
               size - at < BACKEND_CHUNK_BYTES ? size - at : BACKEND_CHUNK_BYTES);
    }
    if (rc == 0)
        rc = fill_slot(m, s, image, size, replacements, n_replacements, err);
    if (rc != 0) {
        cpu_adapter_unload(be, m, slot);
        return rc;
    }
    atomic_store(&s->state, ADAPTER_READY);
    return 0;
}

enum adapter_state cpu_adapter_poll(struct backend *be, struct device_model *m, uint32_t slot)
{
    (void)be;
    return slot < m->limits.max_slots ? (enum adapter_state)atomic_load(&m->slots[slot].state)
                                      : ADAPTER_EMPTY;
}

void cpu_adapter_unload(struct backend *be, struct device_model *m, uint32_t slot)
{
    (void)be;
    struct cpu_slot *s = &m->slots[slot];
    sys_free(s->parts);
    sys_free(s->site_first);
    sys_free(s->site_n);
    sys_free(s->norms);
    sys_free(s->chunks);
    s->parts = NULL;
    s->site_first = NULL;
    s->site_n = NULL;
    s->norms = NULL;
    s->chunks = NULL;
    s->n_parts = 0;
    atomic_store(&s->state, ADAPTER_EMPTY);
}
