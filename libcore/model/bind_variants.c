#include <math.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/format/peft_match.h"
#include "libcore/model/bind_impl.h"

/* ---- tied ends ---- */

/* dst[j][i] = src[i][j]; in the arena. */
static bool transpose(struct arena *arena, const struct tensor *src, struct tensor *dst)
{
    size_t rows = (size_t)src->shape[0], cols = (size_t)src->shape[1];
    size_t size = dtype_bits(src->dtype) / 8;
    char *data = arena_array(arena, rows * cols, size);
    if (!data)
        return false;
    for (size_t i = 0; i < rows; i++) {
        for (size_t j = 0; j < cols; j++)
            memcpy(data + (j * rows + i) * size, (const char *)src->data + (i * cols + j) * size,
                   size);
    }
    *dst = (struct tensor){src->dtype, 2, {cols, rows}, data};
    return true;
}

/* Scale of lm_head, whose own key may match a pattern. */
static int head_scale(struct binder *k, struct adapter_module *head)
{
    struct peft_matcher *matcher;
    const char *other;
    int rc = peft_matcher_open(&matcher, k->a->config, "adapter_config.json", k->err);
    if (rc)
        return rc;
    rc = peft_matcher_alpha(matcher, "lm_head", &head->alpha, &other, k->err);
    peft_matcher_free(matcher);
    bool rslora = json_is_true(json_object_get(k->a->config, "use_rslora"));
    head->scale = rslora ? head->alpha / sqrt((double)head->rank) : head->alpha / head->rank;
    return rc;
}

/* ensure_weight_tying: A_head = B_embedding^T, B_head = A_embedding^T (tuners/lora/model.py). */
static int tie_factors(struct binder *k, const struct adapter_module *embed)
{
    struct adapter_module *head = arena_alloc(&k->b->arena, sizeof *head);
    if (!head)
        return bind_no_memory(k);
    if (tensor_present(&embed->magnitude))
        return bind_refuse(k, embed->name, "ensure_weight_tying together with use_dora");
    head->name = "lm_head";
    head->parameter = "weight";
    head->rank = embed->rank;
    if (!transpose(&k->b->arena, &embed->b, &head->a) ||
        !transpose(&k->b->arena, &embed->a, &head->b))
        return bind_no_memory(k);
    int rc = head_scale(k, head);
    return rc ? rc : bind_add(k, head, k->head);
}

/* Gives the weight `from` of one end to the other end, in its part or in a new one. */
static int share_full(struct binder *k, const struct adapter_module *from,
                      const struct model_module *to)
{
    struct bound_part *part = bind_find(k->b, to);
    struct adapter_module *copy;
    if (part) {
        if (tensor_present(&part->module->full))
            return 0; // it has its own
        copy = bind_copy(k, part->module);
    } else {
        copy = arena_alloc(&k->b->arena, sizeof *copy);
    }
    if (!copy)
        return bind_no_memory(k);
    copy->name = to->name;
    copy->parameter = "weight";
    copy->full = from->full;
    copy->full_is_base = from->full_is_base;
    if (!part)
        return bind_add(k, copy, to);
    part->module = copy;
    return 0;
}

int bind_tied(struct binder *k)
{
    struct bound_part *embed = bind_find(k->b, k->embed), *head = bind_find(k->b, k->head);
    const struct adapter_module *e = embed ? embed->module : NULL;
    const struct adapter_module *h = head ? head->module : NULL;
    if (h && h->n_rows)
        return bind_refuse(k, h->name,
                           "trainable tokens of its own in a base with tied embeddings");
    if (e && e->n_rows && h && (h->rank || (tensor_present(&h->full) && !h->full_is_base)))
        return bind_refuse(
            k, h->name,
            "trained by itself, while trainable tokens of the tied embedding replace "
            "its rows");
    int rc = 0;
    if (k->a->ensure_weight_tying && e && e->rank && !(h && h->rank))
        rc = tie_factors(k, e);
    bool share = e && tensor_present(&e->full) && (e->full_is_base || k->a->ensure_weight_tying);
    if (!rc && share)
        rc = share_full(k, e, k->head);
    if (!rc && h && tensor_present(&h->full) && h->full_is_base)
        rc = share_full(k, h, k->embed);
    return rc;
}

/* ---- experts ---- */

/* A[E r, out] and B[in, r E] into A[E r, in] and B[out, r E]:
 * A'[e r + i][j] = B[j][i E + e], B'[o][i E + e] = A[e r + i][o]. */
static bool exchange(struct arena *arena, struct adapter_module *m)
{
    size_t n_experts = m->n_experts, rank = m->rank, n = n_experts * rank;
    size_t out = (size_t)m->a.shape[1], in = (size_t)m->b.shape[0];
    size_t a_size = dtype_bits(m->a.dtype) / 8, b_size = dtype_bits(m->b.dtype) / 8;
    char *a = arena_array(arena, n * in, b_size), *b = arena_array(arena, out * n, a_size);
    if (!a || !b)
        return false;
    for (size_t e = 0; e < n_experts; e++) {
        for (size_t i = 0; i < rank; i++) {
            size_t slow = e * rank + i, fast = i * n_experts + e;
            for (size_t j = 0; j < in; j++)
                memcpy(a + (slow * in + j) * b_size,
                       (const char *)m->b.data + (j * n + fast) * b_size, b_size);
            for (size_t o = 0; o < out; o++)
                memcpy(b + (o * n + fast) * a_size,
                       (const char *)m->a.data + (slow * out + o) * a_size, a_size);
        }
    }
    struct tensor new_a = {m->b.dtype, 2, {n, in}, a}, new_b = {m->a.dtype, 2, {out, n}, b};
    m->a = new_a;
    m->b = new_b;
    return true;
}

const struct adapter_module *bind_experts_oriented(struct binder *k, const struct adapter_module *m,
                                                   const struct model_module *t)
{
    if (m->n_experts != t->n_experts) {
        bind_refuse(k, m->name, "%s: the base has %u experts, the adapter %u", m->parameter,
                    t->n_experts, m->n_experts);
        return NULL;
    }
    bool straight = m->a.shape[1] == t->d_in && m->b.shape[0] == t->d_out;
    if (straight || m->a.shape[1] != t->d_out || m->b.shape[0] != t->d_in)
        return m; // right, or wrong both ways round: the check of shapes says so
    struct adapter_module *copy = bind_copy(k, m);
    if (!copy)
        return NULL;
    if (!exchange(&k->b->arena, copy)) {
        bind_no_memory(k);
        return NULL;
    }
    return copy;
}

/* ---- saved base layers ---- */

/* The base's tensor for a module; a tied head's is the embedding's. */
static const struct checkpoint_tensor *base_tensor(const struct model_modules *m,
                                                   const struct checkpoint *base,
                                                   const struct model_module *target)
{
    if (target->tied)
        target = modules_find(m, "model.embed_tokens", NULL);
    for (size_t i = 0; i < checkpoint_count(base); i++) {
        const struct checkpoint_tensor *t = checkpoint_at(base, i);
        const struct model_module *module;
        struct weight_place place;
        uint32_t n_rows, n_cols;
        if (modules_place_tensor(m, t->name, &module, &place, &n_rows, &n_cols, NULL) == 0 &&
            module == target && place.kind != WEIGHT_BIAS)
            return t;
    }
    return NULL;
}

/* Value by value: types may differ, as PEFT saves in the trainer's. */
static bool same_values(const struct tensor *a, const struct tensor *b)
{
    if (!tensor_same_shape(a, b) || !dtype_is_float(a->dtype) || !dtype_is_float(b->dtype))
        return false;
    if (a->dtype == b->dtype)
        return memcmp(a->data, b->data, tensor_n_bytes(a)) == 0;
    double x[512], y[512];
    size_t n = (size_t)tensor_n_values(a), a_size = dtype_bits(a->dtype) / 8,
           b_size = dtype_bits(b->dtype) / 8;
    for (size_t at = 0; at < n; at += 512) {
        size_t count = n - at < 512 ? n - at : 512;
        dtype_to_f64(a->dtype, (const char *)a->data + at * a_size, x, count);
        dtype_to_f64(b->dtype, (const char *)b->data + at * b_size, y, count);
        for (size_t i = 0; i < count; i++) {
            if (x[i] != y[i])
                return false;
        }
    }
    return true;
}

static bool is_empty(const struct adapter_module *m)
{
    return !m->rank && !m->n_rows && !tensor_present(&m->full) && !tensor_present(&m->bias);
}

int bind_drop_saved_base(struct bound_adapter *b, const struct model_modules *m,
                         const struct checkpoint *base, struct err *err)
{
    struct err own = {0};
    struct binder k = {.b = b, .a = b->adapter, .m = m, .err = err ? err : &own};
    size_t kept = 0;
    for (size_t i = 0; i < b->n_parts; i++) {
        struct bound_part part = b->parts[i];
        if (tensor_present(&part.module->full) && part.module->full_is_base) {
            const struct checkpoint_tensor *t = base_tensor(m, base, part.target);
            if (t && same_values(&part.module->full, &t->value)) {
                struct adapter_module *copy = bind_copy(&k, part.module);
                if (!copy)
                    return ERR_NO_MEMORY;
                copy->full = (struct tensor){0};
                copy->full_is_base = false;
                part.module = copy;
            } else if (tensor_present(&part.module->magnitude)) {
                return bind_refuse(&k, part.module->name,
                                   "the saved base layer differs from the base, under a DoRA "
                                   "magnitude");
            }
        }
        if (!is_empty(part.module))
            b->parts[kept++] = part;
    }
    b->n_parts = kept;
    bind_set_kinds(b);
    return 0;
}
