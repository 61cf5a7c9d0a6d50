/*
 * MoE experts, in both spellings that PEFT has written.
 *
 * Fused (target_parameters, transformers 5): "….experts.lora_A.weight" is one of gate_up_proj and
 * down_proj, "….experts.base_layer.lora_A.weight" the other. Which one is the outer wrapper depends
 * on the order in which the model class registered its parameters, so shapes decide:
 * gate_up maps d_model to 2 d_expert, down maps d_expert to d_model.
 *
 * Single (transformers 4): "….experts.3.w1.lora_A.weight" and so on are put together as
 * transformers 5 fuses the weights: A of gate and up one above the other, B block-diagonal
 * (peft/utils/transformers_weight_conversion.py). The scale stays alpha / r of the single module.
 * PEFT 0.21 doubles r and alpha instead, the same number without use_rslora and sqrt(2) times it
 * with; the number that was trained is kept here.
 */
#include <stdlib.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/format/peft_impl.h"

static int no_memory(struct peft_reader *r)
{
    return err_set(r->err, ERR_NO_MEMORY, "%s: no memory", safetensors_path(r->file));
}

static int code_of(const struct peft_reader *r)
{
    return r->err ? r->err->code : ERR_NO_MEMORY;
}

bool peft_is_experts(const char *module)
{
    return peft_entry_matches("experts", module);
}

/* "….experts.<number>.<name>": points to the number, or NULL. */
static const char *expert_number(const char *module)
{
    static const char marker[] = ".experts.";
    const char *at = strstr(module, marker);
    if (!at)
        return NULL;
    at += sizeof marker - 1;
    size_t digits = strspn(at, "0123456789");
    return digits && digits < 6 && at[digits] == '.' ? at : NULL;
}

bool peft_is_one_expert(const char *module)
{
    return expert_number(module) != NULL;
}

size_t peft_experts_block_length(const char *module)
{
    const char *at = expert_number(module);
    return at ? (size_t)(at - module) - 1 : strlen(module);
}

/* ---- fused ---- */

struct pair {
    const struct safetensors_entry *a, *b;
};

static uint64_t d_in(const struct pair *p)
{
    return p->a->value.shape[1];
}

static uint64_t d_out(const struct pair *p)
{
    return p->b->value.shape[0];
}

static int collect_pairs(struct peft_reader *r, size_t begin, size_t end, struct pair pairs[2])
{
    for (size_t i = begin; i < end; i++) {
        const struct peft_entry *e = &r->entries[i];
        if (e->name.part != PART_A && e->name.part != PART_B)
            return peft_refuse(r, e->tensor->name, "only lora_A and lora_B are defined on experts");
        if (e->name.depth > 1)
            return peft_refuse(r, e->tensor->name, "more than two parameters of the experts");
        if (e->tensor->value.n_dims != 2 || !tensor_n_values(&e->tensor->value))
            return peft_refuse(r, e->tensor->name, "not a matrix");
        struct pair *p = &pairs[e->name.depth];
        const struct safetensors_entry **slot = e->name.part == PART_A ? &p->a : &p->b;
        if (*slot)
            return peft_refuse(r, e->tensor->name, "means the same as %s", (*slot)->name);
        *slot = e->tensor;
    }
    for (size_t i = 0; i < 2; i++) {
        const struct pair *p = &pairs[i];
        if (!p->a != !p->b)
            return peft_refuse(r, (p->a ? p->a : p->b)->name, "%s of the same experts is missing",
                               p->a ? "B" : "A");
        if (p->a && p->a->value.shape[0] != p->b->value.shape[1])
            return peft_refuse(r, p->b->name, "%llu columns, but A has %llu rows",
                               (unsigned long long)p->b->value.shape[1],
                               (unsigned long long)p->a->value.shape[0]);
    }
    return 0;
}

/* Whether x is gate_up and y is down, in the layout [experts, out, in] or (older PEFT on it) with
 * in and out exchanged. */
static bool fits(const struct pair *x, const struct pair *y)
{
    bool straight = d_in(x) == d_out(y) && d_out(x) == 2 * d_in(y);
    bool exchanged = d_out(x) == d_in(y) && d_in(x) == 2 * d_out(y);
    return straight || exchanged;
}

static int targeted(struct peft_reader *r, const char *module, const char *parameter, bool *yes)
{
    const char *key = arena_printf(&r->a->arena, "%s.%s", module, parameter);
    if (!key)
        return no_memory(r);
    *yes = peft_matcher_targets_parameter(r->matcher, key);
    return 0;
}

/* Which pair is which parameter: *gate_up and *down, NULL for the one that is not there. */
static int tell_apart(struct peft_reader *r, const char *module, const struct pair pairs[2],
                      const struct pair **gate_up, const struct pair **down)
{
    bool want_gate_up = false, want_down = false;
    int rc = targeted(r, module, "gate_up_proj", &want_gate_up);
    if (!rc)
        rc = targeted(r, module, "down_proj", &want_down);
    if (rc)
        return rc;
    const struct pair *only = pairs[0].a ? &pairs[0] : &pairs[1];
    *gate_up = *down = NULL;
    if (pairs[0].a && pairs[1].a) {
        bool inner_first = fits(&pairs[1], &pairs[0]);
        if (!inner_first && !fits(&pairs[0], &pairs[1]))
            return peft_refuse(r, pairs[0].a->name, "shapes of neither gate_up_proj nor down_proj");
        *gate_up = &pairs[inner_first];
        *down = &pairs[!inner_first];
    } else if (want_gate_up != want_down) {
        *(want_gate_up ? gate_up : down) = only;
    }
    if ((*gate_up != NULL) == want_gate_up && (*down != NULL) == want_down)
        return 0;
    return peft_refuse(r, only->a->name,
                       "target_parameters names %s%s of %s, the file has tensors for %s",
                       want_gate_up ? "gate_up_proj " : "", want_down ? "down_proj" : "", module,
                       pairs[0].a && pairs[1].a ? "two parameters" : "one parameter");
}

static int add_fused(struct peft_reader *r, const char *module, const char *parameter,
                     const struct pair *p, uint32_t *n_experts)
{
    if (!p)
        return 0;
    struct adapter_module *m = peft_module_add(r, module, parameter);
    const char *key = arena_printf(&r->a->arena, "%s.%s", module, parameter), *other;
    if (!m || !key)
        return m ? no_memory(r) : code_of(r);
    int64_t rank = 0;
    int rc = peft_matcher_rank(r->matcher, key, &rank, &other, r->err);
    if (rc)
        return rc;
    uint64_t rows = p->a->value.shape[0];
    if (rank <= 0 || rows % (uint64_t)rank || rows / (uint64_t)rank > UINT16_MAX)
        return peft_refuse(r, p->a->name, "%llu rows are no multiple of the rank %lld",
                           (unsigned long long)rows, (long long)rank);
    m->n_experts = (uint32_t)(rows / (uint64_t)rank);
    if (*n_experts && *n_experts != m->n_experts)
        return peft_refuse(r, p->a->name, "%u experts at rank %lld, the other parameter has %u",
                           m->n_experts, (long long)rank, *n_experts);
    *n_experts = m->n_experts;
    m->a = p->a->value;
    m->b = p->b->value;
    return peft_module_scale(r, m, key, (uint64_t)rank, p->a->name);
}

int peft_experts_fused(struct peft_reader *r, size_t begin, size_t end)
{
    struct pair pairs[2] = {{NULL, NULL}, {NULL, NULL}};
    const struct pair *gate_up = NULL, *down = NULL;
    const char *module = r->entries[begin].name.module;
    uint32_t n_experts = 0;
    int rc = collect_pairs(r, begin, end, pairs);
    if (!rc)
        rc = tell_apart(r, module, pairs, &gate_up, &down);
    if (!rc)
        rc = add_fused(r, module, "gate_up_proj", gate_up, &n_experts);
    return rc ? rc : add_fused(r, module, "down_proj", down, &n_experts);
}

/* ---- single experts ---- */

enum projection { PROJ_GATE, PROJ_UP, PROJ_DOWN, N_PROJ };

struct block {
    struct pair *pairs; // [n_experts][N_PROJ]
    size_t n_experts;
    const char *name; // "model.layers.0.mlp.experts"
    double scale[N_PROJ];
    uint64_t rank[N_PROJ]; // 0: no expert has the projection
};

static enum projection projection_of(const char *name)
{
    static const char *const names[N_PROJ][2] = {
        {"w1", "gate_proj"}, {"w3", "up_proj"}, {"w2", "down_proj"}};
    for (int p = 0; p < N_PROJ; p++) {
        if (strcmp(name, names[p][0]) == 0 || strcmp(name, names[p][1]) == 0)
            return (enum projection)p;
    }
    return N_PROJ;
}

static int place_single(struct peft_reader *r, const struct peft_entry *e, struct block *b)
{
    const char *number = expert_number(e->name.module);
    char *rest;
    unsigned long expert = strtoul(number, &rest, 10);
    enum projection p = projection_of(rest + 1);
    if (p == N_PROJ)
        return peft_refuse(r, e->tensor->name, "no projection of an expert (w1, w2, w3)");
    if (e->name.part != PART_A && e->name.part != PART_B)
        return peft_refuse(r, e->tensor->name, "only lora_A and lora_B are defined on experts");
    if (e->name.depth || e->tensor->value.n_dims != 2 || !tensor_n_values(&e->tensor->value))
        return peft_refuse(r, e->tensor->name, "not a matrix of one expert");
    struct pair *pair = &b->pairs[expert * N_PROJ + p];
    const struct safetensors_entry **slot = e->name.part == PART_A ? &pair->a : &pair->b;
    if (*slot)
        return peft_refuse(r, e->tensor->name, "means the same as %s", (*slot)->name);
    *slot = e->tensor;
    return 0;
}

/* Scale and rank of one expert's projection against those of the expert before it. */
static int check_single(struct peft_reader *r, struct block *b, size_t expert, int p,
                        const char *module)
{
    const struct pair *pair = &b->pairs[expert * N_PROJ + (size_t)p];
    const struct pair *first = &b->pairs[p];
    if (!pair->a || !pair->b) {
        const struct pair *some = pair->a || pair->b ? pair : first;
        return peft_refuse(r, (some->a ? some->a : some->b)->name,
                           "expert %zu lacks a part that others have", expert);
    }
    if (pair->a->value.shape[0] != pair->b->value.shape[1] ||
        !tensor_same_shape(&pair->a->value, &first->a->value) ||
        !tensor_same_shape(&pair->b->value, &first->b->value) ||
        pair->a->value.dtype != first->a->value.dtype ||
        pair->b->value.dtype != first->b->value.dtype)
        return peft_refuse(r, pair->a->name, "shape or type differs from expert 0's");
    struct adapter_module m = {0};
    int rc = peft_module_scale(r, &m, module, pair->a->value.shape[0], pair->a->name);
    if (rc)
        return rc;
    if (expert && m.scale != b->scale[p])
        return peft_refuse(r, pair->a->name,
                           "scale %g, but expert 0 has %g; one scale for all "
                           "experts can be had",
                           m.scale, b->scale[p]);
    b->scale[p] = m.scale;
    b->rank[p] = m.rank;
    return 0;
}

static int check_block(struct peft_reader *r, struct block *b, size_t begin, size_t end)
{
    for (size_t i = begin; i < end; i++) {
        if (r->entries[i].name.part != PART_A)
            continue;
        const char *module = r->entries[i].name.module;
        char *rest;
        unsigned long expert = strtoul(expert_number(module), &rest, 10);
        int p = projection_of(rest + 1);
        if (!b->pairs[p].a || !b->pairs[p].b)
            return peft_refuse(r, r->entries[i].tensor->name, "expert 0 lacks this projection");
        if (expert == 0) {
            int rc = check_single(r, b, 0, p, module);
            if (rc)
                return rc;
        }
    }
    for (size_t i = begin; i < end; i++) {
        const char *module = r->entries[i].name.module;
        char *rest;
        unsigned long expert = strtoul(expert_number(module), &rest, 10);
        if (r->entries[i].name.part != PART_A || expert == 0)
            continue;
        int rc = check_single(r, b, expert, projection_of(rest + 1), module);
        if (rc)
            return rc;
    }
    return 0;
}

/* Every expert has what expert 0 has. */
static int check_complete(struct peft_reader *r, const struct block *b)
{
    for (size_t i = 0; i < b->n_experts * N_PROJ; i++) {
        const struct pair *pair = &b->pairs[i], *first = &b->pairs[i % N_PROJ];
        if (first->a && !(pair->a && pair->b))
            return peft_refuse(r, first->a->name, "expert %zu has no such tensors", i / N_PROJ);
    }
    return 0;
}

/* One fused module of one or two projections (gate above up); see the top of the file. */
static int fuse(struct peft_reader *r, const struct block *b, const char *parameter,
                enum projection first, enum projection last)
{
    uint64_t rank = 0, half = 0, width = 0;
    const struct pair *sample = NULL;
    for (int p = (int)first; p <= (int)last; p++) {
        rank += b->rank[p];
        if (!b->rank[p])
            continue;
        const struct pair *pair = &b->pairs[p];
        if (sample && (d_in(sample) != d_in(pair) || d_out(sample) != d_out(pair) ||
                       sample->a->value.dtype != pair->a->value.dtype ||
                       sample->b->value.dtype != pair->b->value.dtype))
            return peft_refuse(r, pair->a->name, "gate and up differ in shape or type");
        if (sample && b->scale[first] != b->scale[p])
            return peft_refuse(r, pair->a->name, "gate and up have different scales");
        sample = pair;
        half = d_out(pair);
        width = d_in(pair);
    }
    if (!sample)
        return 0;
    struct adapter_module *m = peft_module_add(r, b->name, parameter);
    if (!m)
        return code_of(r);
    size_t n = b->n_experts, a_size = dtype_bits(sample->a->value.dtype) / 8,
           b_size = dtype_bits(sample->b->value.dtype) / 8;
    size_t rows = (size_t)half * (1 + last - first);
    char *a_data = arena_array(&r->a->arena, n * rank * width, a_size);
    char *b_data = arena_array(&r->a->arena, rows * rank * n, b_size);
    if (!a_data || !b_data)
        return no_memory(r);
    for (size_t e = 0; e < n; e++) {
        uint64_t k0 = 0;
        for (int p = (int)first; p <= (int)last; k0 += b->rank[p], p++) {
            const struct pair *pair = &b->pairs[e * N_PROJ + (size_t)p];
            if (!b->rank[p])
                continue;
            memcpy(a_data + (e * rank + k0) * width * a_size, pair->a->value.data,
                   b->rank[p] * width * a_size);
            const char *from = pair->b->value.data;
            size_t row0 = (size_t)half * (size_t)(p - (int)first);
            for (size_t o = 0; o < half; o++) {
                for (size_t k = 0; k < b->rank[p]; k++, from += b_size)
                    memcpy(b_data + ((row0 + o) * rank * n + (k0 + k) * n + e) * b_size, from,
                           b_size);
            }
        }
    }
    m->n_experts = (uint32_t)n;
    m->rank = (uint32_t)rank;
    m->scale = b->scale[b->rank[first] ? first : last];
    m->alpha = m->scale * (double)rank;
    m->a = (struct tensor){sample->a->value.dtype, 2, {n * rank, width}, a_data};
    m->b = (struct tensor){sample->b->value.dtype, 2, {rows, rank * n}, b_data};
    return 0;
}

int peft_experts_single(struct peft_reader *r, size_t begin, size_t end)
{
    struct block b = {0};
    const char *module = r->entries[begin].name.module;
    for (size_t i = begin; i < end; i++) {
        size_t e = strtoul(expert_number(r->entries[i].name.module), NULL, 10);
        b.n_experts = e >= b.n_experts ? e + 1 : b.n_experts;
    }
    if (b.n_experts > end - begin) // each expert that is there has two tensors at least
        return peft_refuse(r, r->entries[begin].tensor->name,
                           "experts are missing: %zu of them, "
                           "%zu tensors",
                           b.n_experts, end - begin);
    b.name = arena_strndup(&r->a->arena, module, peft_experts_block_length(module));
    b.pairs = sys_calloc(b.n_experts * N_PROJ, sizeof *b.pairs);
    int rc = b.name && b.pairs ? 0 : no_memory(r);
    for (size_t i = begin; !rc && i < end; i++) {
        if (r->entries[i].name.part != PART_INERT)
            rc = place_single(r, &r->entries[i], &b);
    }
    if (!rc)
        rc = check_block(r, &b, begin, end);
    if (!rc)
        rc = check_complete(r, &b);
    if (!rc)
        rc = fuse(r, &b, "gate_up_proj", PROJ_GATE, PROJ_UP);
    if (!rc)
        rc = fuse(r, &b, "down_proj", PROJ_DOWN, PROJ_DOWN);
    sys_free(b.pairs);
    return rc;
}
