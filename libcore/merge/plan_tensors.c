/* What happens to each tensor of the base: terms, replacements, rows, gains; the tied pair. */
#include <string.h>

#include "libcore/merge/plan_impl.h"

/* Whose replacement or gain a tensor has, to name both in a refusal. */
struct owners {
    int full, tokens, dora; // adapter index, -1: none
};

static const struct bound_part *part_of(const struct merge_plan *p, size_t adapter_idx,
                                        const struct model_module *module)
{
    const struct bound_adapter *b = p->adapters[adapter_idx].bound;
    for (size_t i = 0; b && i < b->n_parts; i++) {
        if (b->parts[i].target == module)
            return &b->parts[i];
    }
    return NULL;
}

static const struct model_module *embedding(const struct merge_plan *p)
{
    return modules_find(p->modules, "model.embed_tokens", NULL);
}

static const struct model_module *head(const struct merge_plan *p)
{
    return modules_find(p->modules, "lm_head", NULL);
}

static int clash(struct planner *k, const struct merge_tensor *t, int first, size_t second,
                 const char *what)
{
    return plan_refuse(k,
                       "%s: %s %s it, and %s changes it too; merge one after the other, or "
                       "leave one out",
                       t->name, plan_adapter_name(k->p, (size_t)first), what,
                       plan_adapter_name(k->p, second));
}

/* One adapter's part in a matrix or norm. */
static int take_weight(struct planner *k, struct merge_tensor *t, struct owners *o, size_t idx,
                       const struct adapter_module *m, const struct adapter_module *tokens)
{
    bool others = t->n_terms || o->full >= 0 || o->tokens >= 0;
    bool has_full = tensor_present(&m->full), has_dora = tensor_present(&m->magnitude);
    bool has_rows = tokens && tokens->n_rows;
    if (!m->rank && !has_full && !has_rows)
        return 0;
    if (o->full >= 0)
        return clash(k, t, o->full, idx, "replaces");
    if (o->tokens >= 0)
        return clash(k, t, o->tokens, idx, "replaces rows of");
    if (o->dora >= 0)
        return clash(k, t, o->dora, idx, "is a DoRA adapter of");
    if (others && (has_full || has_dora || has_rows))
        return clash(k, t, (int)idx, t->terms[0].adapter_idx,
                     has_full   ? "replaces"
                     : has_dora ? "is a DoRA adapter of"
                                : "replaces rows of");
    if (m->rank)
        t->terms[t->n_terms++] =
            (struct merge_term){m, k->p->adapters[idx].weight * m->scale, (uint32_t)idx};
    if (has_full) {
        t->full = &m->full;
        o->full = (int)idx;
    }
    if (has_dora) {
        t->dora = m;
        o->dora = (int)idx;
    }
    if (has_rows) {
        t->tokens = tokens;
        o->tokens = (int)idx;
    }
    return 0;
}

static int take_bias(struct planner *k, struct merge_tensor *t, struct owners *o, size_t idx,
                     const struct adapter_module *m)
{
    bool has_full = tensor_present(&m->bias), has_term = tensor_present(&m->lora_bias);
    if (!has_full && !has_term)
        return 0;
    if (o->full >= 0)
        return clash(k, t, o->full, idx, "replaces");
    if (has_full && t->n_terms)
        return clash(k, t, (int)idx, t->terms[0].adapter_idx, "replaces");
    if (has_full) {
        t->full = &m->bias;
        o->full = (int)idx;
    }
    if (has_term)
        t->terms[t->n_terms++] =
            (struct merge_term){m, k->p->adapters[idx].weight * m->scale, (uint32_t)idx};
    return 0;
}

static int take_parts(struct planner *k, struct merge_tensor *t)
{
    struct merge_plan *p = k->p;
    static const struct adapter_module nothing = {0};
    struct owners o = {-1, -1, -1};
    t->terms = arena_array(&p->arena, p->n_adapters + 1, sizeof *t->terms);
    if (!t->terms)
        return plan_no_memory(k);
    for (size_t i = 0; i < p->n_adapters; i++) {
        const struct bound_part *part = part_of(p, i, t->module);
        const struct adapter_module *m = part ? part->module : &nothing, *tokens = m;
        // Trained tokens of a tied base are one part, on the embedding; they are the head's too.
        if (p->config.tied_embeddings && t->module == head(p)) {
            const struct bound_part *e = part_of(p, i, embedding(p));
            tokens = e ? e->module : NULL;
        }
        int rc = t->place.kind == WEIGHT_BIAS ? take_bias(k, t, &o, i, m)
                                              : take_weight(k, t, &o, i, m, tokens);
        if (rc)
            return rc;
    }
    t->touched = t->n_terms || t->full || t->tokens;
    return 0;
}

// ---- shapes and types ---------------------------------------------------------------------------

static int check_rows(struct planner *k, struct merge_tensor *t)
{
    uint64_t rows = t->full ? t->full->shape[0] : t->stored.shape[0];
    if (!t->full || t->stored.n_dims != 2 || rows == t->stored.shape[0])
        return 0;
    if (!k->opt->resize_embeddings)
        return plan_refuse(k,
                           "%s: the adapter brings %llu rows, the base has %llu; "
                           "--resize-embeddings makes the merged model that long",
                           t->name, (unsigned long long)rows,
                           (unsigned long long)t->stored.shape[0]);
    t->stored.shape[0] = rows;
    k->p->n_vocab = (uint32_t)rows;
    return 0;
}

static int check_type(struct planner *k, const struct merge_tensor *t)
{
    enum dtype d = t->stored.dtype;
    if (d == DTYPE_BF16 || d == DTYPE_F16 || d == DTYPE_F32 || d == DTYPE_F64 || dtype_is_float8(d))
        return 0;
    return plan_refuse(k,
                       "%s: the base stores %s here, which is not merged into; merge into the "
                       "16-bit original",
                       t->name, dtype_name(d));
}

static int add_tensor(struct planner *k, struct merge_tensor *t)
{
    struct merge_plan *p = k->p;
    uint32_t n_rows, n_cols;
    t->stored = t->base->value;
    t->stored.data = NULL;
    t->shard_idx = t->base->shard_idx;
    if (modules_place_tensor(p->modules, t->name, &t->module, &t->place, &n_rows, &n_cols, NULL)) {
        t->module = NULL;
        return 0;
    }
    int rc = take_parts(k, t);
    if (!rc && t->touched)
        rc = check_type(k, t);
    return rc ? rc : check_rows(k, t);
}

// ---- the tied pair ------------------------------------------------------------------------------

/* Whether two tensors of a tied pair come out equal: nothing but the same rows and the same whole
 * weights, or ensure_weight_tying's transposed factors at one scale. */
static bool same_changes(const struct merge_plan *p, const struct merge_tensor *e,
                         const struct merge_tensor *h)
{
    const void *e_full = e->full ? e->full->data : NULL, *h_full = h->full ? h->full->data : NULL;
    if (e_full != h_full || e->tokens != h->tokens || e->dora || h->dora ||
        e->n_terms != h->n_terms)
        return false;
    for (size_t i = 0; i < e->n_terms; i++) {
        const struct merge_term *x = &e->terms[i], *y = &h->terms[i];
        if (x->adapter_idx != y->adapter_idx || x->factor != y->factor ||
            !p->adapters[x->adapter_idx].adapter->ensure_weight_tying)
            return false;
    }
    return true;
}

static struct merge_tensor *find_tensor(struct merge_plan *p, const struct model_module *module)
{
    for (size_t i = 0; i < p->n_tensors; i++) {
        if (p->tensors[i].module == module && p->tensors[i].place.kind == WEIGHT_MATRIX)
            return &p->tensors[i];
    }
    return NULL;
}

/* A file's own spelling of the head beside that of its embedding. */
static const char *head_name(const char *embedding_name)
{
    return strncmp(embedding_name, "language_model.model.", 21) == 0
               ? "language_model.lm_head.weight"
               : "lm_head.weight";
}

static int plan_tied(struct planner *k)
{
    struct merge_plan *p = k->p;
    struct merge_tensor *e = find_tensor(p, embedding(p)), *h = find_tensor(p, head(p));
    if (!p->config.tied_embeddings || !e)
        return 0;
    struct merge_tensor made = {.name = head_name(e->name), .base = e->base, .added = true};
    if (!h) {
        int rc = add_tensor(k, &made);
        if (rc)
            return rc;
        made.place = head(p)->place; // whatever the name was
    }
    if (same_changes(p, e, h ? h : &made))
        return 0;
    p->untied = true;
    if (h)
        h->base = e->base; // a repeated head was never read
    else
        p->tensors[p->n_tensors++] = made;
    if (h || made.touched || e->touched)
        return plan_warn(k,
                         "embedding and lm_head are one tensor in the base and change differently: "
                         "lm_head gets its own, config.json says tie_word_embeddings: false");
    return 0;
}

// ---- everything is used -------------------------------------------------------------------------

static bool has_weight_part(const struct adapter_module *m)
{
    return m->rank || m->n_rows || tensor_present(&m->full);
}

static bool is_touched(const struct merge_plan *p, const struct model_module *module, bool bias)
{
    for (size_t i = 0; i < p->n_tensors; i++) {
        const struct merge_tensor *t = &p->tensors[i];
        if (t->module == module && (t->place.kind == WEIGHT_BIAS) == bias && t->touched)
            return true;
    }
    return false;
}

static int check_used(struct planner *k, size_t idx, const struct bound_part *part)
{
    struct merge_plan *p = k->p;
    const struct adapter_module *m = part->module;
    const struct model_module *target = part->target;
    if (target->tied && !p->untied) // what both ends have is the embedding's
        target = embedding(p);
    const char *unused = NULL;
    if (has_weight_part(m) && !is_touched(p, target, false))
        unused = "weight";
    else if ((tensor_present(&m->bias) || tensor_present(&m->lora_bias)) &&
             !is_touched(p, target, true))
        unused = "bias";
    if (!unused)
        return 0;
    return plan_refuse(k, "%s:%s: the base has no %s here for what the adapter changes",
                       plan_adapter_name(p, idx), m->name, unused);
}

int plan_tensors(struct planner *k)
{
    struct merge_plan *p = k->p;
    size_t n = checkpoint_count(p->base);
    p->tensors = arena_array(&p->arena, n + 1, sizeof *p->tensors);
    if (!p->tensors)
        return plan_no_memory(k);
    int rc = 0;
    for (size_t i = 0; !rc && i < n; i++) {
        struct merge_tensor *t = &p->tensors[p->n_tensors++];
        t->base = checkpoint_at(p->base, i);
        t->name = t->base->name;
        rc = add_tensor(k, t);
    }
    if (!rc)
        rc = plan_tied(k);
    for (size_t a = 0; !rc && a < p->n_adapters; a++) {
        const struct bound_adapter *b = p->adapters[a].bound;
        for (size_t i = 0; !rc && b && i < b->n_parts; i++)
            rc = check_used(k, a, &b->parts[i]);
    }
    return rc;
}
