/* The image of an adapter: what lies where in it, and writing it. */
#include <string.h>

#include "kernels/cuda/adapter_image.h"
#include "kernels/cuda/cuda_impl.h"
#include "libcore/base/sys.h"

enum { EMBED_TOKENS = 1024 };

// ---- the plan

static bool same_site(const struct cuda_record *x, const struct cuda_record *y)
{
    return x->kind == WEIGHT_MATRIX && y->kind == WEIGHT_MATRIX && x->layer == y->layer &&
           x->site == y->site;
}

static struct cuda_record describe(const struct bound_part *p)
{
    const struct adapter_module *mod = p->module;
    const struct weight_place *place = &p->target->place;
    return (struct cuda_record){.kind = place->kind,
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
static uint32_t a_unit_rows(const struct cuda_record *r)
{
    return r->n_experts && r->site_rows < CUDA_A_GROUP ? r->site_rows : CUDA_A_GROUP;
}

static uint32_t b_unit_rows(const struct cuda_record *r)
{
    return r->n_experts && r->d_out < CU_B_BLOCK ? (r->d_out + 15) / 16 * 16 : CU_B_BLOCK;
}

static uint32_t n_b_units(const struct cuda_record *r)
{
    return (r->d_out + CU_B_BLOCK - 1) / CU_B_BLOCK;
}

/* Columns of v: ranks of a site's modules side by side. */
static uint32_t stack_ranks(struct cuda_record *r, uint32_t n)
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

static int place_record(struct cuda_record *r, const struct bound_part *p, bool first,
                        uint64_t *end, uint32_t *n_pointers, struct err *err)
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
                             cuda_a_units(r) * n_experts, err);
        rc = rc ? rc
                : image_place(end, &r->b, (uint64_t)b_unit_rows(r) * cuda_round8(r->rank) * 2,
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
static int make_plan(const struct bound_adapter *b, struct cuda_image *h,
                     struct cuda_record **records, struct err *err)
{
    uint32_t n = (uint32_t)b->n_parts;
    struct cuda_record *r = sys_calloc(n + 1, sizeof *r);
    *records = r;
    if (!r)
        return err_set(err, ERR_NO_MEMORY, "no memory to plan an adapter's image");
    for (uint32_t i = 0; i < n; i++) {
        r[i] = describe(&b->parts[i]);
        if (tensor_present(&b->parts[i].module->magnitude) && !b->parts[i].gain)
            return err_set(err, ERR_INTERNAL, "%s: packed before its gains were set",
                           b->parts[i].module->name);
    }
    *h = (struct cuda_image){.magic = CUDA_IMAGE_MAGIC,
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
    struct cuda_image h;
    struct cuda_record *records;
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
static void write_a(void *image, const struct image_piece *a, const struct cuda_record *r,
                    const struct adapter_module *mod)
{
    uint32_t n_experts = r->n_experts ? r->n_experts : 1;
    for (uint32_t i = 0; i < n_experts * r->rank; i++) {
        uint32_t row = r->col0 + i % r->rank;
        char *group = unit_at(image, a, i / r->rank * cuda_a_units(r) + row / CUDA_A_GROUP);
        cuda_to_bf16(&mod->a, (uint64_t)i * r->d_in, r->d_in,
                     (uint16_t *)(void *)(group + (size_t)(row % CUDA_A_GROUP) * r->d_in * 2));
    }
}

/* Where B[out, i] lies in its block: tile of 16 outputs, piece of 8 ranks, lane, half. */
static size_t fragment(uint32_t out, uint32_t i, uint32_t rank8)
{
    uint32_t tile = out % CU_B_BLOCK / 16, row = out % 16, lane = row % 8 * 4 + i % 8 / 2;
    return (size_t)tile * rank8 * 16 + i / 8 * 128 + lane * 4 + row / 8 * 2 + i % 2;
}

/* B[out, rank * experts], the expert fastest. */
static void write_expert_b(void *image, const struct cuda_record *r,
                           const struct adapter_module *mod)
{
    uint16_t values[CU_MAX_EXPERTS];
    for (uint32_t out = 0; out < r->d_out; out++) {
        for (uint32_t i = 0; i < r->rank; i++) {
            size_t at = fragment(out, i, cuda_round8(r->rank));
            cuda_to_bf16(&mod->b, ((uint64_t)out * r->rank + i) * r->n_experts, r->n_experts,
                         values);
            for (uint32_t e = 0; e < r->n_experts; e++) {
                uint16_t *block = unit_at(image, &r->b, e * n_b_units(r) + out / CU_B_BLOCK);
                block[at] = values[e];
            }
        }
    }
}

static void write_b(void *image, const struct cuda_record *r, const struct adapter_module *mod)
{
    uint32_t rank8 = cuda_round8(r->rank);
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
static void write_embedding(void *image, const struct cuda_record *r,
                            const struct adapter_module *mod)
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

static void write_record(void *image, const struct cuda_record *r, const struct image_piece *a,
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
    struct cuda_image h;
    struct cuda_record *r;
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
