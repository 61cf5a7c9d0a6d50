#include "kernels/loaded.h"

#include "libcore/base/sys.h"

int loaded_init(struct loaded *l, const struct model_modules *modules, struct err *err)
{
    l->modules = modules;
    l->rows = sys_calloc(2 * modules->n + 1, sizeof *l->rows);
    return l->rows ? 0 : err_set(err, ERR_NO_MEMORY, "no memory to count %zu weights", modules->n);
}

void loaded_release(struct loaded *l)
{
    sys_free(l->rows);
    l->rows = NULL;
}

static bool lies_in(const struct weight_place *p, const struct model_module *mod)
{
    const struct weight_place *q = &mod->place;
    if (q->layer != p->layer)
        return false;
    if (p->kind == WEIGHT_NORM)
        return q->kind == WEIGHT_NORM && q->norm == p->norm;
    return q->kind == WEIGHT_MATRIX && q->site == p->site && p->row0 >= q->row0 &&
           p->row0 < q->row0 + mod->d_out;
}

void loaded_note(struct loaded *l, const struct weight_place *place, const struct tensor *src)
{
    uint64_t n = src->n_dims == 3 ? src->shape[0] * src->shape[1] : src->shape[0];
    for (size_t i = 0; i < l->modules->n; i++) {
        if (!lies_in(place, &l->modules->items[i]))
            continue;
        atomic_fetch_add(&l->rows[2 * i + (place->kind == WEIGHT_BIAS)], (uint32_t)n);
        return;
    }
}

int loaded_check(struct loaded *l, struct err *err)
{
    for (size_t i = 0; i < l->modules->n; i++) {
        const struct model_module *mod = &l->modules->items[i];
        uint32_t want = mod->d_out * (mod->n_experts ? mod->n_experts : 1);
        uint32_t got = atomic_load(&l->rows[2 * i]);
        if (!mod->tied && got != want)
            return err_set(err, ERR_CORRUPT, "%s.%s: the checkpoint lacks it (%u of %u rows)",
                           mod->name, mod->parameter, got, want);
        got = atomic_load(&l->rows[2 * i + 1]);
        if (mod->has_bias && got != mod->d_out)
            return err_set(err, ERR_CORRUPT, "%s.bias: the checkpoint lacks it (%u of %u values)",
                           mod->name, got, mod->d_out);
    }
    return 0;
}
