/* Weights in 8-bit floats: their scales, and what goes when they become BF16. */
#include <string.h>

#include "libcore/base/arena.h"
#include "libcore/merge/plan_impl.h"

static uint32_t index_of(const struct merge_plan *p, const struct checkpoint_tensor *t)
{
    for (uint32_t i = 0; i < p->n_tensors; i++) {
        if (p->tensors[i].base == t && !p->tensors[i].added)
            return i;
    }
    return UINT32_MAX;
}

static int load_scales(struct planner *k, struct merge_scales *s)
{
    const struct float8_layout *l = &s->layout;
    size_t n = l->n_rows * l->n_cols;
    double *values = arena_array(&k->p->arena, n, sizeof *values);
    if (!values)
        return plan_no_memory(k);
    values[0] = 1;
    if (l->scale)
        dtype_to_f64(l->scale->value.dtype, l->scale->value.data, values, n);
    s->values = values;
    s->tensor_idx = l->scale ? index_of(k->p, l->scale) : 0;
    return 0;
}

/* What has no meaning on 8-bit floats, or is not done. */
static int check_kinds(struct planner *k, const struct merge_tensor *t)
{
    const char *what = NULL;
    if (t->tokens)
        what = "trained tokens";
    else if (t->dora && t->dora->embedding)
        what = "DoRA on an embedding";
    else if (!tensor_same_shape(&t->stored, &t->base->value) || t->added)
        what = "another shape";
    return what ? plan_refuse(k,
                              "%s: %s of %s is not merged into 8-bit floats; merge into the "
                              "16-bit original",
                              t->name, what, dtype_name(t->base->value.dtype))
                : 0;
}

static int find_scales(struct planner *k, struct merge_tensor *t)
{
    struct merge_plan *p = k->p;
    struct merge_scales *s = arena_alloc(&p->arena, sizeof *s);
    if (!s)
        return plan_no_memory(k);
    int rc = check_kinds(k, t);
    if (!rc)
        rc = float8_find(&s->layout, &p->float8, p->base, t->base, k->err);
    if (rc == ERR_REFUSED && k->survey) {
        char msg[ERR_MSG_BYTES];
        memcpy(msg, k->err->msg, sizeof msg);
        t->touched = false;
        return plan_refuse(k, "%s", msg);
    }
    if (!rc)
        rc = load_scales(k, s);
    if (rc)
        return rc;
    t->scales = s;
    if (p->to_bf16) {
        t->stored.dtype = DTYPE_BF16;
        t->converted = true;
    } else if (s->layout.scale) {
        p->tensors[s->tensor_idx].scales_of = t;
        p->tensors[s->tensor_idx].touched = true;
    }
    return 0;
}

int plan_float8(struct planner *k)
{
    struct merge_plan *p = k->p;
    bool any = false;
    for (size_t i = 0; i < p->n_tensors; i++)
        any = any || dtype_is_float8(p->tensors[i].base->value.dtype);
    p->to_bf16 = any && k->opt->float8 == MERGE_FLOAT8_BF16;
    for (size_t i = 0; any && i < p->n_tensors; i++) {
        struct merge_tensor *t = &p->tensors[i];
        bool is_float8 = dtype_is_float8(t->base->value.dtype);
        int rc = is_float8 && (t->touched || p->to_bf16) ? find_scales(k, t) : 0;
        if (rc)
            return rc;
        if (p->to_bf16 && !is_float8 && !t->module && float8_is_beside(p->base, t->name)) {
            t->dropped = true;
            p->n_dropped++;
        }
    }
    for (size_t i = 0; i < p->n_tensors; i++)
        p->n_touched += p->tensors[i].touched;
    return 0;
}
