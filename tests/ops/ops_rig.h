/*
 * ops_rig: a made-up model with made-up adapters on any back end, with float copies of everything,
 * so that a single op can be run there and computed again in double. For tests/ops alone.
 */
#ifndef TESTS_OPS_OPS_RIG_H
#define TESTS_OPS_OPS_RIG_H

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "kernels/ops.h"
#include "libcore/base/sys.h"
#include "libcore/model/load.h"
#include "tests/lib/test.h"

enum {
    OPS_SLOTS = 4,
    OPS_MAX_PARTS = 24,
    OPS_MAX_TENSORS = 8,
    OPS_VOCAB = 150,
    OPS_ROWS = 320,
    OPS_SEQUENCES = 128,
    OPS_SEGMENTS = 400,
    OPS_PAGE_CHUNKS = 24,
    OPS_CHUNKS = 152
};

/* One row of the table: a model's shape, its types, its rows. */
struct ops_case {
    const char *name;
    const char *config; // fields of config.json that differ from the default
    enum dtype weights, adapters;
    uint32_t ranks[OPS_SLOTS - 1]; // of slots 0…2; slot 3 is DoRA, biases, rows, full weights
    uint32_t n_decode, n_prefill;  // rows; the prefill rows are one sequence at position 5
    uint32_t page_tokens;
    uint32_t past; // 0, or positions before the prefill rows and the first decode row
    uint32_t cuts; // 0, or rows of a segment, and the adapters in turn: see ops_cut_rows()
};

struct ops_adapter {
    struct bound_adapter bound;
    struct bound_part parts[OPS_MAX_PARTS];
    struct adapter_module modules[OPS_MAX_PARTS];
    float *values[OPS_MAX_PARTS][OPS_MAX_TENSORS]; // a, b, magnitude, lora_bias, bias, full, rows
    uint32_t row_ids[3];
    struct adapter_replacement replacements[OPS_MAX_PARTS];
    uint32_t n_replacements;
};

enum { VALUE_A, VALUE_B, VALUE_GAIN, VALUE_LORA_BIAS, VALUE_BIAS, VALUE_FULL, VALUE_ROWS };

struct ops_rig {
    const struct ops_case *c;
    struct backend *be;
    struct device_model *dm;
    struct model_config config;
    struct model_modules *modules;
    const struct op_access *access;
    struct op_session *session;
    const struct op_table *ops;
    struct op_context *context;
    double bound;              // relative error allowed for an op's result, see ops_bound()
    enum dtype stored;         // what matrices are rounded to; DTYPE_NONE: kept
    float **weights, **biases; // [modules.n], as stored
    struct ops_adapter adapters[OPS_SLOTS];
    // the step
    struct step step;
    const struct op_step *view;
    uint32_t pages_per_sequence;
    int32_t tokens[OPS_ROWS];
    uint32_t logit_rows[OPS_SEQUENCES], pages[2048];
    struct step_sequence sequences[OPS_SEQUENCES];
    struct step_segment segments[OPS_SEGMENTS], head_segments[OPS_SEGMENTS];
    struct sample_params sampling[OPS_SEQUENCES];
    uint32_t next_chunk; // adapters take them from the end
    uint64_t state;      // of the generator
};

// ---- numbers
// -------------------------------------------------------------------------------------

static inline float ops_random(struct ops_rig *r)
{
    r->state = r->state * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(r->state >> 32) * 0x1p-31f;
}

/* n random values of type t: what is stored (the caller's to free), and as float32. */
static inline void *ops_values(struct ops_rig *r, enum dtype t, size_t n, float scale, float **out)
{
    float *f = sys_malloc((n + 1) * sizeof *f);
    void *stored = sys_malloc((n + 1) * sizeof *f);
    if (!f || !stored)
        abort();
    for (size_t i = 0; i < n; i++)
        f[i] = ops_random(r) * scale;
    dtype_from_f32(t, f, stored, n);
    dtype_to_f32(t, stored, f, n);
    *out = f;
    return stored;
}

/* What a matrix of these values is on the device. */
static inline void ops_round(const struct ops_rig *r, float *values, size_t n)
{
    uint16_t narrow;
    for (size_t i = 0; r->stored == DTYPE_BF16 && i < n; i++) {
        dtype_from_f32(DTYPE_BF16, values + i, &narrow, 1);
        dtype_to_f32(DTYPE_BF16, &narrow, values + i, 1);
    }
}

/* ||got - want|| / ||want|| */
static inline double ops_error(const float *got, const double *want, size_t n)
{
    double diff = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        diff += (got[i] - want[i]) * (got[i] - want[i]);
        norm += want[i] * want[i];
    }
    return norm > 0 ? sqrt(diff / norm) : sqrt(diff);
}

// ---- the model
// -----------------------------------------------------------------------------------

static inline int ops_load_module(struct ops_rig *r, size_t i, struct err *err)
{
    const struct model_module *mod = &r->modules->items[i];
    size_t n =
        (size_t)mod->d_out * (mod->d_in ? mod->d_in : 1) * (mod->n_experts ? mod->n_experts : 1);
    if (mod->tied)
        return 0;
    float scale = mod->d_in ? 1.7f / sqrtf((float)mod->d_in) : 1.0f;
    void *stored = ops_values(r, r->c->weights, n, scale, &r->weights[i]);
    if (mod->d_in)
        ops_round(r, r->weights[i], n);
    struct tensor t = {.dtype = r->c->weights, .data = stored};
    if (mod->n_experts)
        t.shape[t.n_dims++] = mod->n_experts;
    t.shape[t.n_dims++] = mod->d_out;
    if (mod->d_in)
        t.shape[t.n_dims++] = mod->d_in;
    int rc = r->be->ops->weight_load(r->be, r->dm, &mod->place, &t, err);
    sys_free(stored);
    if (rc != 0 || !mod->has_bias)
        return rc;
    stored = ops_values(r, r->c->weights, mod->d_out, 0.5f, &r->biases[i]);
    struct weight_place place = mod->place;
    place.kind = WEIGHT_BIAS;
    t = (struct tensor){.dtype = r->c->weights, .n_dims = 1, .shape = {mod->d_out}, .data = stored};
    rc = r->be->ops->weight_load(r->be, r->dm, &place, &t, err);
    sys_free(stored);
    return rc;
}

/* Devices with wide loads want round shapes. */
static inline void ops_round_shapes(json_t *config)
{
    static const char *const names[] = {"hidden_size", "intermediate_size", "head_dim"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        json_int_t n = json_integer_value(json_object_get(config, names[i]));
        json_object_set_new(config, names[i], json_integer((n + 15) / 16 * 16));
    }
}

static inline int ops_config(struct ops_rig *r, struct err *err)
{
    static const char base[] =
        "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":72,"
        "\"intermediate_size\":104,\"num_hidden_layers\":2,\"num_attention_heads\":4,"
        "\"num_key_value_heads\":2,\"head_dim\":24,\"vocab_size\":150,\"rms_norm_eps\":1e-5,"
        "\"max_position_embeddings\":512,\"rope_theta\":10000.0,\"hidden_act\":\"silu\","
        "\"tie_word_embeddings\":false}";
    json_error_t e;
    json_t *config = json_loads(base, 0, &e), *more = json_loads(r->c->config, 0, &e);
    if (!config || !more)
        return err_set(err, ERR_INTERNAL, "case %s: %s", r->c->name, e.text);
    json_object_update(config, more);
    if (strcmp(r->be->ops->name, "cpu") != 0)
        ops_round_shapes(config);
    json_object_set_new(config, "torch_dtype",
                        json_string(r->c->weights == DTYPE_BF16  ? "bfloat16"
                                    : r->c->weights == DTYPE_F16 ? "float16"
                                                                 : "float32"));
    int rc = config_from_json(&r->config, config, r->c->name, err);
    json_decref(config);
    json_decref(more);
    return rc;
}

// ---- adapters
// ------------------------------------------------------------------------------------

static inline void ops_tensor(struct ops_rig *r, struct ops_adapter *a, size_t part, int which,
                              struct tensor *t, enum dtype type, uint64_t rows, uint64_t cols,
                              float scale)
{
    uint64_t n = rows * (cols ? cols : 1);
    t->data = ops_values(r, type, n, scale, &a->values[part][which]);
    if (cols)
        ops_round(r, a->values[part][which], n);
    t->dtype = type;
    t->n_dims = cols ? 2 : 1;
    t->shape[0] = rows;
    t->shape[1] = cols;
}

/* A and B of `rank`. Slot 3 (`owner`) has everything that replaces things too. */
static inline void ops_part(struct ops_rig *r, struct ops_adapter *a,
                            const struct model_module *target, uint32_t rank, bool owner)
{
    size_t i = a->bound.n_parts++;
    struct adapter_module *m = &a->modules[i];
    enum dtype t = r->c->adapters;
    bool embed = target->place.site == SITE_EMBED && target->place.kind == WEIGHT_MATRIX;
    *m = (struct adapter_module){.name = target->name,
                                 .parameter = target->parameter,
                                 .embedding = embed,
                                 .n_experts = target->n_experts,
                                 .scale = 1.5 / sqrt(rank ? rank : 1)};
    a->parts[i] = (struct bound_part){m, target, NULL};
    if (target->place.kind == WEIGHT_NORM) {
        ops_tensor(r, a, i, VALUE_FULL, &m->full, t, target->d_out, 0, 1);
        return;
    }
    uint32_t e = target->n_experts ? target->n_experts : 1;
    // Wide inputs must not make the model so steep that rounding alone decides what it says.
    float a_scale = target->d_in > 128 ? 0.3f * sqrtf(128.0f / (float)target->d_in) : 0.3f;
    m->rank = rank;
    ops_tensor(r, a, i, VALUE_A, &m->a, t, (uint64_t)rank * e, embed ? target->d_out : target->d_in,
               embed ? 0.3f : a_scale);
    ops_tensor(r, a, i, VALUE_B, &m->b, t, embed ? target->d_in : target->d_out, (uint64_t)rank * e,
               0.3f);
    if (!owner || target->n_experts) // lora_bias is additive
        return;
    if (embed) {
        static const uint32_t ids[] = {3, 17, 149};
        memcpy(a->row_ids, ids, sizeof ids);
        ops_tensor(r, a, i, VALUE_ROWS, &m->rows, t, 3, target->d_in, 1);
        m->row_ids = a->row_ids;
        m->n_rows = 3;
        return;
    }
    struct tensor gain = {0}; // not every module has everything
    if (i % 3 != 0)
        ops_tensor(r, a, i, VALUE_GAIN, &gain, DTYPE_F32, target->d_out, 0, 1);
    a->parts[i].gain = (float *)(uintptr_t)gain.data;
    if (i % 2 == 0)
        ops_tensor(r, a, i, VALUE_BIAS, &m->bias, t, target->d_out, 0, 1);
    ops_tensor(r, a, i, VALUE_LORA_BIAS, &m->lora_bias, t, target->d_out, 0, 1);
    if (target->place.site == SITE_O || target->place.site == SITE_HEAD || target->place.row0 > 0)
        ops_tensor(r, a, i, VALUE_FULL, &m->full, t, target->d_out, target->d_in, 0.2f);
}

static inline int ops_add_adapter(struct ops_rig *r, uint32_t slot, struct err *err)
{
    const struct backend_ops *ops = r->be->ops;
    struct ops_adapter *a = &r->adapters[slot];
    bool owner = slot == OPS_SLOTS - 1;
    a->bound.parts = a->parts;
    for (size_t i = 0; i < r->modules->n && a->bound.n_parts < OPS_MAX_PARTS; i++) {
        const struct model_module *m = &r->modules->items[i];
        bool norm = m->place.kind == WEIGHT_NORM;
        if (m->place.layer == 0 && !m->tied && (!norm || owner))
            ops_part(r, a, m, owner ? 5 : r->c->ranks[slot], owner);
    }
    a->bound.kinds = ADAPTER_LORA | ADAPTER_EMBED | ADAPTER_HEAD | ADAPTER_EXPERTS;
    if (owner)
        a->bound.kinds |=
            ADAPTER_DORA | ADAPTER_BIAS | ADAPTER_LORA_BIAS | ADAPTER_TOKENS | ADAPTER_FULL;
    uint64_t size, bytes;
    int rc = ops->adapter_pack_size(r->be, r->dm, &a->bound, &size, err);
    void *image = rc == 0 ? ops->host_alloc(r->be, size) : NULL;
    if (rc == 0)
        rc = ops->adapter_pack(r->be, r->dm, &a->bound, image, size, err);
    for (size_t i = 0; rc == 0 && i < a->bound.n_parts; i++) {
        struct adapter_replacement *to = &a->replacements[a->n_replacements];
        if (!tensor_present(&a->modules[i].full))
            continue;
        to->part = &a->parts[i];
        rc = ops->replacement_load(r->be, r->dm, to->part, &to->weight, &bytes, err);
        a->n_replacements += rc == 0;
    }
    uint32_t chunks[OPS_CHUNKS], n = (uint32_t)((size - 1) / BACKEND_CHUNK_BYTES + 1);
    if (rc == 0 && n > r->next_chunk - OPS_PAGE_CHUNKS)
        rc = err_set(err, ERR_LIMIT, "%s: too many chunks", r->c->name);
    for (uint32_t i = 0; rc == 0 && i < n; i++)
        chunks[i] = --r->next_chunk; // never side by side in order
    if (rc == 0)
        rc = ops->adapter_load(r->be, r->dm, slot, image, size, chunks, n, a->replacements,
                               a->n_replacements, err);
    while (rc == 0 && ops->adapter_poll(r->be, r->dm, slot) == ADAPTER_LOADING) {
    }
    ops->host_free(r->be, image);
    return rc;
}

// ---- the step
// ------------------------------------------------------------------------------------

/* Rows [begin, end) in segments of `cuts`, slots 0…2 in turn, every fifth with a second adapter. */
static inline void ops_cut_rows(struct ops_rig *r, uint32_t begin, uint32_t end)
{
    struct step *s = &r->step;
    for (uint32_t row = begin, i = 0; row < end; row += r->c->cuts, i++) {
        uint32_t n = end - row < r->c->cuts ? end - row : r->c->cuts;
        float scale = 0.5f * (float)(1 + i % 4);
        if (i % 5 == 4) // in the order of slots
            r->segments[s->n_segments++] = (struct step_segment){row, n, i % 2, -0.5f};
        r->segments[s->n_segments++] = (struct step_segment){row, n, i % 5 == 4 ? 2 : i % 3, scale};
    }
}

/* The segments of logit rows: those of the rows that they are. */
static inline void ops_head_segments(struct ops_rig *r)
{
    struct step *s = &r->step;
    for (uint32_t j = 0; j < s->n_logit_rows; j++) {
        for (uint32_t i = 0; i < s->n_segments; i++) {
            const struct step_segment *g = &r->segments[i];
            if (r->logit_rows[j] >= g->row0 && r->logit_rows[j] < g->row0 + g->n_rows)
                r->head_segments[s->n_head_segments++] =
                    (struct step_segment){j, 1, g->slot, g->scale};
        }
    }
}

/* n_decode sequences of one row, then one of n_prefill rows at position 5. Rows 1 and 2 have two
 * adapters; row 0 none; the last decode row has slot 3; the prefill rows slot 1. */
static inline int ops_make_step(struct ops_rig *r, struct err *err)
{
    struct step *s = &r->step;
    uint32_t nd = r->c->n_decode, rows = nd + r->c->n_prefill;
    *s = (struct step){.n_rows = rows,
                       .tokens = r->tokens,
                       .sequences = r->sequences,
                       .n_decode_rows = nd,
                       .pages = r->pages,
                       .segments = r->segments,
                       .kinds = r->adapters[OPS_SLOTS - 1].bound.kinds,
                       .logit_rows = r->logit_rows,
                       .head_segments = r->head_segments,
                       .sampling = r->sampling};
    uint32_t positions = rows > 120 ? 384 : rows > 64 ? 128 : 64;
    r->pages_per_sequence = (positions + r->c->past) / r->c->page_tokens;
    for (uint32_t i = 0; i < rows; i++)
        r->tokens[i] = i % 5 == 2 ? 17 : (int32_t)((i * 37 + 3) % OPS_VOCAB);
    for (uint32_t i = 0; i < nd + (r->c->n_prefill > 0); i++) {
        uint32_t n_rows = i < nd ? 1 : r->c->n_prefill, position = i < nd ? 3 + 9 * i % 40 : 5;
        if (r->c->past && (i == 0 || i == nd))
            position = r->c->past + i;
        r->sequences[s->n_sequences++] =
            (struct step_sequence){i, n_rows, position, s->n_pages, r->pages_per_sequence, 0};
        for (uint32_t j = 0; j < r->pages_per_sequence; j++)
            r->pages[s->n_pages++] = (j * 7 + i * 13) % r->pages_per_sequence * 40 + i; // scattered
        r->logit_rows[s->n_logit_rows] = i + n_rows - 1;
        r->sampling[s->n_logit_rows++] = (struct sample_params){
            .top_p = 1, .repetition_penalty = 1, .pending = -1, .target = -1, .n_top = 3};
    }
    struct step_segment *g = r->segments;
    if (r->c->cuts) {
        ops_cut_rows(r, 1, nd - 1);
        g[s->n_segments++] = (struct step_segment){nd - 1, 1, 3, 1.0f};
        ops_cut_rows(r, nd, rows);
        ops_head_segments(r);
        return r->access->prepare(r->session, s, &r->view, err);
    }
    if (nd >= 4) {
        g[s->n_segments++] = (struct step_segment){1, nd - 2, 0, 1.0f};
        g[s->n_segments++] = (struct step_segment){1, 2, 2, -0.5f};
        g[s->n_segments++] = (struct step_segment){nd - 1, 1, 3, 1.0f};
    }
    memcpy(r->head_segments, g, s->n_segments * sizeof *g); // logit row i is row i there
    s->n_head_segments = s->n_segments;
    if (r->c->n_prefill) {
        g[s->n_segments++] = (struct step_segment){nd, r->c->n_prefill, 1, 2.0f};
        r->head_segments[s->n_head_segments++] = (struct step_segment){nd, 1, 1, 2.0f};
    }
    return r->access->prepare(r->session, s, &r->view, err);
}

static inline void ops_close(struct ops_rig *r)
{
    if (r->session)
        r->access->close(r->session);
    for (uint32_t slot = 0; slot < OPS_SLOTS; slot++) {
        struct ops_adapter *a = &r->adapters[slot];
        r->be->ops->adapter_unload(r->be, r->dm, slot);
        for (uint32_t i = 0; i < a->n_replacements; i++)
            r->be->ops->replacement_free(r->be, a->replacements[i].weight);
        for (size_t i = 0; i < a->bound.n_parts; i++) {
            struct adapter_module *m = &a->modules[i];
            const void *stored[] = {m->a.data,    m->b.data,    m->lora_bias.data, m->bias.data,
                                    m->full.data, m->rows.data, a->parts[i].gain};
            for (size_t j = 0; j < sizeof stored / sizeof stored[0]; j++)
                sys_free((void *)(uintptr_t)stored[j]);
            for (int j = 0; j < OPS_MAX_TENSORS; j++)
                sys_free(a->values[i][j]);
        }
    }
    for (size_t i = 0; i < r->modules->n; i++) {
        sys_free(r->weights[i]);
        sys_free(r->biases[i]);
    }
    sys_free(r->weights);
    sys_free(r->biases);
    r->be->ops->pool_free(r->be, r->dm);
    r->be->ops->model_free(r->be, r->dm);
    r->be->ops->close(r->be);
    modules_free(r->modules);
    config_release(&r->config);
}

/* Opens the next ones so that every step is launched kernel by kernel. */
static bool ops_no_graphs;

static inline int ops_open_backend(struct ops_rig *r, struct err *err)
{
    const char *device = getenv("LORA_TEST_DEVICE");
    struct backend_options opt = {.device = device && *device ? device : "cpu",
                                  .no_graphs = ops_no_graphs};
    struct backend_info info;
    unsigned kinds = ADAPTER_LORA | ADAPTER_EMBED | ADAPTER_HEAD | ADAPTER_DORA | ADAPTER_BIAS |
                     ADAPTER_LORA_BIAS | ADAPTER_TOKENS | ADAPTER_FULL;
    int rc = kernels_open(&r->be, &opt, NULL, 0, err);
    if (rc == 0)
        rc = r->be->ops->info(r->be, &info, err);
    if (rc != 0)
        return rc;
    r->stored = info.weight_dtype;
    r->access = r->be->ops->op_access;
    if (!r->access)
        return err_set(err, ERR_NOT_FOUND, "%s shows no single ops", r->be->ops->name);
    rc = ops_config(r, err);
    if (rc == 0)
        rc = r->be->ops->supports(r->be, &r->config,
                                  kinds | (r->config.n_experts ? ADAPTER_EXPERTS : 0), err);
    return rc ? rc : modules_open(&r->modules, &r->config, err);
}

/* ERR_NOT_FOUND: this back end shows no single ops; ERR_REFUSED: it does not compute this model.
 * Both leave nothing open. */
static inline int ops_open(struct ops_rig *r, const struct ops_case *c, struct err *err)
{
    struct step_limits limits = {OPS_ROWS,  OPS_SEQUENCES, OPS_SEQUENCES, OPS_SEGMENTS,
                                 OPS_SLOTS, 2048,          c->page_tokens};
    memset(r, 0, sizeof *r);
    r->c = c;
    r->state = 88172645463325252u;
    int rc = ops_open_backend(r, err);
    if (rc != 0) {
        config_release(&r->config);
        if (r->be)
            r->be->ops->close(r->be);
        return rc;
    }
    r->weights = sys_calloc(r->modules->n, sizeof *r->weights);
    r->biases = sys_calloc(r->modules->n, sizeof *r->biases);
    rc = r->be->ops->model_open(r->be, &r->config, r->modules, &limits, &r->dm, err);
    for (size_t i = 0; rc == 0 && i < r->modules->n; i++)
        rc = ops_load_module(r, i, err);
    if (rc == 0)
        rc = r->be->ops->model_ready(r->be, r->dm, err);
    if (rc == 0)
        rc = r->be->ops->pool_open(r->be, r->dm, OPS_CHUNKS, err);
    r->next_chunk = OPS_CHUNKS;
    for (uint32_t slot = 0; rc == 0 && slot < OPS_SLOTS; slot++)
        rc = ops_add_adapter(r, slot, err);
    if (rc == 0)
        rc = r->access->open(r->be, r->dm, &r->session, err);
    if (rc != 0)
        return rc;
    r->ops = r->access->ops(r->session);
    r->context = r->access->context(r->session);
    r->bound = 64 * r->access->epsilon(r->session);
    return ops_make_step(r, err);
}

// ---- finding things
// ------------------------------------------------------------------------------

static inline size_t ops_module(const struct ops_rig *r, uint32_t layer, enum weight_kind kind,
                                int site_or_norm, uint32_t row)
{
    for (size_t i = 0; i < r->modules->n; i++) {
        const struct weight_place *p = &r->modules->items[i].place;
        if (p->layer == layer && p->kind == kind &&
            (kind == WEIGHT_NORM ? (int)p->norm == site_or_norm
                                 : (int)p->site == site_or_norm && row >= p->row0 &&
                                       row < p->row0 + r->modules->items[i].d_out))
            return i;
    }
    abort();
}

/* The part of a slot on a module, or -1. */
static inline int ops_find_part(const struct ops_rig *r, uint32_t slot, size_t module)
{
    const struct ops_adapter *a = &r->adapters[slot];
    for (size_t i = 0; i < a->bound.n_parts; i++) {
        if (a->parts[i].target == &r->modules->items[module])
            return (int)i;
    }
    return -1;
}

/* The segments of a row space, and the one of slot 3 that covers a row, or -1. */
static inline const struct step_segment *ops_segments(const struct ops_rig *r, enum op_space space,
                                                      uint32_t *n)
{
    *n = space == OP_ROWS ? r->step.n_segments : r->step.n_head_segments;
    return space == OP_ROWS ? r->segments : r->head_segments;
}

static inline bool ops_covers(const struct step_segment *g, uint32_t row)
{
    return row >= g->row0 && row < g->row0 + g->n_rows;
}

static inline bool ops_owned(const struct ops_rig *r, enum op_space space, uint32_t row)
{
    uint32_t n;
    const struct step_segment *g = ops_segments(r, space, &n);
    for (uint32_t i = 0; i < n; i++) {
        if (g[i].slot == OPS_SLOTS - 1 && ops_covers(&g[i], row))
            return true;
    }
    return false;
}

static inline uint32_t ops_rows(const struct ops_rig *r, enum op_space space)
{
    return space == OP_ROWS ? r->step.n_rows : r->step.n_logit_rows;
}

/* A buffer of n random activations on the device and what it holds, as float32. */
static inline void *ops_activations(struct ops_rig *r, size_t n, float **values)
{
    void *buffer = r->access->alloc(r->session, n);
    *values = sys_malloc((n + 1) * sizeof **values);
    if (!buffer || !*values)
        abort();
    for (size_t i = 0; i < n; i++)
        (*values)[i] = ops_random(r);
    ops_round(r, *values, n); // what goes into a product is of the matrices' type
    r->access->write(r->session, buffer, 0, *values, n);
    r->access->read(r->session, buffer, 0, *values, n);
    return buffer;
}

#endif
