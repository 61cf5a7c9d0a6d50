/*
 * Tensors of the file into modules of the canonical form. Every tensor gets a meaning or the
 * adapter is refused; every meaning is checked against the configuration and against its partners.
 */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/limits.h"
#include "libcore/base/sys.h"
#include "libcore/format/peft_impl.h"

int peft_refuse(struct peft_reader *r, const char *tensor, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    err_setv(r->err, ERR_REFUSED, fmt, args);
    va_end(args);
    err_prefix(r->err, "%s:%s", safetensors_path(r->file), tensor);
    return ERR_REFUSED;
}

static int no_memory(struct peft_reader *r)
{
    return err_set(r->err, ERR_NO_MEMORY, "%s: no memory", safetensors_path(r->file));
}

struct adapter_module *peft_module_add(struct peft_reader *r, const char *name,
                                       const char *parameter)
{
    struct adapter *a = r->a;
    if (a->n_modules == r->cap_modules) { // cap is the number of tensors: no more can come of them
        err_set(r->err, ERR_INTERNAL, "%s: more modules than tensors", safetensors_path(r->file));
        return NULL;
    }
    struct adapter_module *m = &a->modules[a->n_modules];
    memset(m, 0, sizeof *m);
    m->name = arena_strdup(&a->arena, name);
    m->parameter = arena_strdup(&a->arena, parameter);
    if (!m->name || !m->parameter) {
        no_memory(r);
        return NULL;
    }
    a->n_modules++;
    return m;
}

static int warn_overlap(struct peft_reader *r, const char *field, const char *key,
                        const char *other)
{
    if (!other)
        return 0;
    return adapter_warn(r->a, r->err,
                        "%s: more than one key matches %s (\"%s\" too); the first in the file "
                        "counts, as when PEFT loads it, but training may have used another order",
                        field, key, other);
}

int peft_module_scale(struct peft_reader *r, struct adapter_module *m, const char *key,
                      uint64_t shape_rank, const char *tensor)
{
    int64_t rank = 0;
    double alpha = 0;
    const char *other_rank = NULL, *other_alpha = NULL;
    int rc = peft_matcher_rank(r->matcher, key, &rank, &other_rank, r->err);
    if (!rc)
        rc = peft_matcher_alpha(r->matcher, key, &alpha, &other_alpha, r->err);
    if (rc)
        return rc;
    if (rank <= 0)
        return peft_refuse(r, tensor, "rank %lld for %s, it must be positive", (long long)rank,
                           key);
    if (rank > LIMIT_RANK)
        return peft_refuse(r, tensor, "rank %lld for %s, at most %d is computed; `resize` it first",
                           (long long)rank, key, LIMIT_RANK);
    if ((uint64_t)rank != shape_rank)
        return peft_refuse(r, tensor,
                           "the configuration gives rank %lld, the tensor has %llu; put its rank "
                           "into rank_pattern",
                           (long long)rank, (unsigned long long)shape_rank);
    m->rank = (uint32_t)rank;
    m->alpha = alpha;
    m->scale = r->config.rslora ? alpha / sqrt((double)rank) : alpha / (double)rank;
    rc = warn_overlap(r, "rank_pattern", key, other_rank);
    return rc ? rc : warn_overlap(r, "alpha_pattern", key, other_alpha);
}

/* ---- the parts of one module ---- */

enum { N_PARTS = PART_TOKENS + 1 };

struct parts {
    const char *module;
    const struct safetensors_entry *by_part[N_PARTS]; // NULL: not there
};

static const char *name_of(const struct parts *p, enum peft_part part)
{
    return p->by_part[part]->name;
}

static int collect(struct peft_reader *r, size_t begin, size_t end, struct parts *p)
{
    memset(p, 0, sizeof *p);
    p->module = r->entries[begin].name.module;
    for (size_t i = begin; i < end; i++) {
        const struct peft_entry *e = &r->entries[i];
        if (e->name.part == PART_INERT)
            continue;
        if (e->name.depth)
            return peft_refuse(r, e->tensor->name, "base_layer around it, which only experts have");
        if (p->by_part[e->name.part])
            return peft_refuse(r, e->tensor->name, "means the same as %s",
                               name_of(p, e->name.part));
        p->by_part[e->name.part] = e->tensor;
    }
    return 0;
}

static int check_matrix(struct peft_reader *r, const struct safetensors_entry *t)
{
    if (t->value.n_dims > 2)
        return peft_refuse(r, t->name, "%u dimensions: convolutions are not computed here",
                           t->value.n_dims);
    if (t->value.n_dims < 2 || !t->value.shape[0] || !t->value.shape[1])
        return peft_refuse(r, t->name,
                           "not a matrix; were the shards gathered (ZeRO-3, FSDP) before saving?");
    return 0;
}

static int check_vector(struct peft_reader *r, const struct safetensors_entry *t, uint64_t n)
{
    if (t->value.n_dims == 1 && (!n || t->value.shape[0] == n))
        return 0;
    char got[96];
    return peft_refuse(r, t->name, "wanted [%llu], got %s", (unsigned long long)n,
                       tensor_shape_text(&t->value, got, sizeof got));
}

/* A and B of a module, linear or embedding: partners, matrices of one rank, scale. */
static int take_factors(struct peft_reader *r, const struct parts *p, bool embedding,
                        struct adapter_module *m)
{
    enum peft_part ia = embedding ? PART_EMBEDDING_A : PART_A;
    enum peft_part ib = embedding ? PART_EMBEDDING_B : PART_B;
    const struct safetensors_entry *a = p->by_part[ia], *b = p->by_part[ib];
    if (!a || !b)
        return peft_refuse(r, (a ? a : b)->name, "%s of the same module is missing", a ? "B" : "A");
    int rc = check_matrix(r, a);
    if (!rc)
        rc = check_matrix(r, b);
    if (rc)
        return rc;
    if (a->value.shape[0] != b->value.shape[1])
        return peft_refuse(r, b->name, "rank %llu, but A has rank %llu",
                           (unsigned long long)b->value.shape[1],
                           (unsigned long long)a->value.shape[0]);
    m->embedding = embedding;
    m->a = a->value;
    m->b = b->value;
    m->transposed = r->config.fan_in_fan_out && !embedding;
    const char *key = arena_printf(&r->a->arena, "%s.weight", p->module);
    if (!key)
        return no_memory(r);
    if (!peft_matcher_targets_parameter(r->matcher, key)) // targeted as a parameter: its own key
        key = p->module;
    return peft_module_scale(r, m, key, a->value.shape[0], a->name);
}

static int take_magnitude(struct peft_reader *r, const struct parts *p, struct adapter_module *m)
{
    const struct safetensors_entry *t = p->by_part[PART_MAGNITUDE];
    if (!t && !(m->rank && r->config.dora))
        return 0;
    if (!t)
        return peft_refuse(r, p->module, "use_dora, but the module has no lora_magnitude_vector");
    if (!r->config.dora)
        return peft_refuse(r, t->name, "a magnitude, but use_dora is not set");
    if (!m->rank)
        return peft_refuse(r, t->name, "a magnitude without A and B");
    m->magnitude = t->value;
    return check_vector(r, t, m->b.shape[0]);
}

static int take_biases(struct peft_reader *r, const struct parts *p, struct adapter_module *m)
{
    const struct safetensors_entry *lora = p->by_part[PART_LORA_BIAS];
    const struct safetensors_entry *bias = p->by_part[PART_BIAS];
    int rc = 0;
    if (lora && (!r->config.lora_bias || !m->rank))
        return peft_refuse(r, lora->name, "a bias of lora_B, but lora_bias is not set");
    if (!lora && r->config.lora_bias && m->rank)
        return peft_refuse(r, p->module,
                           m->embedding ? "lora_bias is not defined on embeddings"
                                        : "lora_bias, but the module has no lora_B.bias");
    if (lora) {
        m->lora_bias = lora->value;
        rc = check_vector(r, lora, m->b.shape[0]);
    }
    if (rc || !bias)
        return rc;
    m->bias = bias->value;
    return check_vector(r, bias, m->rank ? m->b.shape[0] : 0);
}

static bool is_embedding_name(const char *module)
{
    return peft_entry_matches("embed_tokens", module) || peft_entry_matches("lm_head", module);
}

/* A weight in full: modules_to_save, or the embedding layer as the trainer's base had it. */
static int take_full(struct peft_reader *r, const struct parts *p, struct adapter_module *m)
{
    const struct safetensors_entry *full = p->by_part[PART_FULL];
    const struct safetensors_entry *saved = p->by_part[PART_SAVED_BASE];
    const struct safetensors_entry *t = full ? full : saved;
    if (!t)
        return 0;
    if (full && saved)
        return peft_refuse(r, full->name, "means the same as %s", saved->name);
    bool covered = peft_matcher_wraps(r->matcher, p->module);
    if (!covered && !is_embedding_name(p->module))
        return peft_refuse(r, t->name, "a whole weight, but no entry of modules_to_save covers it");
    if (covered && m->rank)
        return peft_refuse(r, t->name, "modules_to_save covers a module that has A and B");
    m->full = t->value;
    m->full_is_base = !covered;
    if (t->value.n_dims < 1 || t->value.n_dims > 2 || !tensor_n_values(&t->value))
        return peft_refuse(r, t->name, "neither a matrix nor a vector");
    return 0;
}

/* ---- trainable tokens ---- */

/* The configured ids for the module, or NULL. */
static const json_t *token_ids(struct peft_reader *r, const char *module)
{
    const json_t *field = json_object_get(r->config.root, "trainable_token_indices");
    if (json_is_array(field)) // a plain list means the input embedding
        return peft_entry_matches("lm_head", module) ? NULL : field;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)field, key, value)
    {
        if (peft_entry_matches(key, module))
            return value;
    }
    return NULL;
}

struct row {
    uint32_t id;
    uint32_t from; // row of the file's tensor
};

static int compare_rows(const void *a, const void *b)
{
    const struct row *x = a, *y = b;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Puts rows into ascending order of id; copies them when the file has another order. */
static int sort_tokens(struct peft_reader *r, const struct safetensors_entry *t, struct row *rows,
                       struct adapter_module *m)
{
    size_t n = m->n_rows, bytes = tensor_n_bytes(&t->value) / n;
    uint32_t *ids = arena_array(&r->a->arena, n, sizeof *ids);
    char *copy = NULL;
    if (!ids)
        return no_memory(r);
    qsort(rows, n, sizeof *rows, compare_rows);
    bool in_order = true;
    for (size_t i = 0; i < n; i++) {
        ids[i] = rows[i].id;
        in_order &= rows[i].from == i;
        if (i && ids[i] == ids[i - 1])
            return peft_refuse(r, t->name, "token %u is listed twice", ids[i]);
    }
    m->row_ids = ids;
    if (in_order)
        return 0;
    copy = arena_alloc(&r->a->arena, n * bytes);
    if (!copy)
        return no_memory(r);
    for (size_t i = 0; i < n; i++)
        memcpy(copy + i * bytes, tensor_row(&t->value, rows[i].from), bytes);
    m->rows.data = copy;
    return 0;
}

static int take_tokens(struct peft_reader *r, const struct parts *p, struct adapter_module *m)
{
    const struct safetensors_entry *t = p->by_part[PART_TOKENS];
    if (!t)
        return 0;
    const json_t *ids = token_ids(r, p->module);
    size_t n = json_array_size(ids);
    if (!n)
        return peft_refuse(r, t->name, "trainable_token_indices has no ids for %s", p->module);
    if (m->rank)
        return peft_refuse(r, t->name, "trainable tokens and A and B on one module");
    int rc = check_matrix(r, t);
    if (rc)
        return rc;
    if (t->value.shape[0] != n)
        return peft_refuse(r, t->name, "%llu rows, but trainable_token_indices lists %zu ids",
                           (unsigned long long)t->value.shape[0], n);
    struct row *rows = arena_array(&r->a->arena, n, sizeof *rows);
    if (!rows)
        return no_memory(r);
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(ids, i);
        if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > INT32_MAX)
            return peft_refuse(r, t->name, "trainable_token_indices: entry %zu is no token id", i);
        rows[i].id = (uint32_t)json_integer_value(v);
        rows[i].from = (uint32_t)i;
    }
    m->rows = t->value;
    m->n_rows = (uint32_t)n;
    return sort_tokens(r, t, rows, m);
}

/* ---- groups ---- */

static int build_plain(struct peft_reader *r, size_t begin, size_t end)
{
    struct parts p;
    int rc = collect(r, begin, end, &p);
    if (rc)
        return rc;
    bool linear = p.by_part[PART_A] || p.by_part[PART_B];
    bool embedding = p.by_part[PART_EMBEDDING_A] || p.by_part[PART_EMBEDDING_B];
    if (linear && embedding)
        return peft_refuse(r, p.module, "both lora_A/B and lora_embedding_A/B");
    bool any = false;
    for (size_t i = 0; i < N_PARTS; i++)
        any |= p.by_part[i] != NULL;
    if (!any) // nothing but inert tensors
        return 0;
    struct adapter_module *m = peft_module_add(r, p.module, "weight");
    if (!m)
        return r->err ? r->err->code : ERR_NO_MEMORY;
    if (linear || embedding)
        rc = take_factors(r, &p, embedding, m);
    if (!rc)
        rc = take_magnitude(r, &p, m);
    if (!rc)
        rc = take_biases(r, &p, m);
    if (!rc)
        rc = take_full(r, &p, m);
    return rc ? rc : take_tokens(r, &p, m);
}

/* A parameter that is no ".weight": only a module of modules_to_save has such. */
static int build_parameter(struct peft_reader *r, const struct peft_entry *e)
{
    if (!peft_matcher_wraps(r->matcher, e->name.module))
        return peft_refuse(r, e->tensor->name, "no tensor that PEFT writes for a LoRA adapter");
    struct adapter_module *m = peft_module_add(r, e->name.module, e->name.parameter);
    if (!m)
        return r->err ? r->err->code : ERR_NO_MEMORY;
    m->full = e->tensor->value;
    return 0;
}

static bool same_module(const struct peft_entry *a, const struct peft_entry *b)
{
    return strcmp(a->name.module, b->name.module) == 0 &&
           strcmp(a->name.parameter, b->name.parameter) == 0;
}

static size_t group_end(const struct peft_reader *r, size_t begin)
{
    const struct peft_entry *first = &r->entries[begin];
    size_t end = begin + 1;
    if (peft_is_one_expert(first->name.module)) { // the whole block of experts at once
        size_t n = peft_experts_block_length(first->name.module);
        while (end < r->n_entries && peft_is_one_expert(r->entries[end].name.module) &&
               strncmp(r->entries[end].name.module, first->name.module, n + 1) == 0)
            end++;
        return end;
    }
    while (end < r->n_entries && same_module(first, &r->entries[end]))
        end++;
    return end;
}

static int build_group(struct peft_reader *r, size_t begin, size_t end)
{
    const struct peft_entry *first = &r->entries[begin];
    if (strcmp(first->name.parameter, "weight") != 0)
        return end - begin == 1 ? build_parameter(r, first)
                                : peft_refuse(r, first->tensor->name, "comes twice");
    if (peft_is_one_expert(first->name.module))
        return peft_experts_single(r, begin, end);
    if (peft_is_experts(first->name.module))
        return peft_experts_fused(r, begin, end);
    return build_plain(r, begin, end);
}

int peft_modules_build(struct peft_reader *r)
{
    struct adapter *a = r->a;
    r->cap_modules = r->n_entries;
    a->modules = arena_array(&a->arena, r->n_entries + 1, sizeof *a->modules);
    if (!a->modules)
        return no_memory(r);
    for (size_t begin = 0, end; begin < r->n_entries; begin = end) {
        end = group_end(r, begin);
        int rc = build_group(r, begin, end);
        if (rc)
            return rc;
    }
    return 0;
}
