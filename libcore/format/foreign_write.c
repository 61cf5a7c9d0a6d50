#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "libcore/format/foreign_write_impl.h"
#include "libcore/format/safetensors_writer.h"

/* ---- what every target asks ---- */

static const char *unsayable(const struct adapter_module *m, unsigned allowed)
{
    static const struct {
        unsigned kind;
        const char *what;
    } kinds[] = {
        {ADAPTER_EXPERTS, "LoRA on experts"},    {ADAPTER_DORA, "DoRA"},
        {ADAPTER_LORA_BIAS, "a bias of B"},      {ADAPTER_BIAS, "a replaced bias"},
        {ADAPTER_EMBED, "LoRA on embeddings"},   {ADAPTER_HEAD, "LoRA on lm_head"},
        {ADAPTER_TOKENS, "replaced token rows"}, {ADAPTER_FULL, "a full weight"},
    };
    unsigned has = adapter_module_kinds(m) & ~allowed;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (has & kinds[i].kind)
            return kinds[i].what;
    }
    return m->transposed ? "a weight stored [in, out]" : NULL;
}

int foreign_write_check(const struct adapter *a, const char *target, unsigned allowed,
                        struct err *err)
{
    for (size_t i = 0; i < a->n_modules; i++) {
        const struct adapter_module *m = &a->modules[i];
        const char *what = unsayable(m, allowed);
        if (what)
            return err_set(err, ERR_REFUSED, "%s: %s has no form in %s; --format peft keeps it",
                           m->name, what, target);
    }
    return a->max_rank ? 0 : err_set(err, ERR_REFUSED, "no A and B to write for %s", target);
}

int foreign_write_alpha(const struct adapter_module *m, const char *target, float *alpha,
                        struct err *err)
{
    *alpha = (float)(m->scale * m->rank);
    if ((double)*alpha / m->rank != m->scale)
        *alpha = (float)m->alpha;
    if (isfinite(*alpha) && *alpha != 0 && (double)*alpha / m->rank == m->scale)
        return 0;
    return err_set(
        err, ERR_REFUSED,
        "%s: scale %.17g at rank %u is no float32 alpha / rank, which is what %s can say; "
        "--bake-scale puts it into B",
        m->name, m->scale, m->rank, target);
}

/* ---- safetensors, a list of tensors at once ---- */

struct pending {
    const char *name;
    struct tensor value;
};

struct list {
    struct pending *items;
    size_t n;
    struct arena arena;
    struct err *err;
};

static int list_open(struct list *l, size_t cap, struct err *err)
{
    *l = (struct list){.err = err};
    arena_init(&l->arena);
    l->items = arena_array(&l->arena, cap + 1, sizeof *l->items);
    return l->items ? 0 : err_set(err, ERR_NO_MEMORY, "no memory for an export");
}

static int list_add(struct list *l, const char *module, const char *ending,
                    const struct tensor *value)
{
    struct pending *p = &l->items[l->n];
    p->name = arena_printf(&l->arena, "%s%s", module, ending);
    p->value = *value;
    if (!p->name || !value->data)
        return err_set(l->err, ERR_NO_MEMORY, "no memory for an export");
    l->n++;
    return 0;
}

/* metadata: key, value, key, value, NULL. */
static int list_write(struct list *l, const char *path, const char *const *metadata)
{
    struct safetensors_writer *w = NULL;
    int rc = safetensors_writer_open(&w, path, l->err);
    for (; !rc && *metadata; metadata += 2)
        rc = safetensors_writer_metadata(w, metadata[0], metadata[1], l->err);
    for (size_t i = 0; !rc && i < l->n; i++)
        rc = safetensors_writer_declare(w, l->items[i].name, l->items[i].value.dtype,
                                        l->items[i].value.n_dims, l->items[i].value.shape, l->err);
    if (!rc)
        rc = safetensors_writer_begin(w, l->err);
    for (size_t i = 0; !rc && i < l->n; i++)
        rc = safetensors_writer_put(w, l->items[i].name, 0, l->items[i].value.data,
                                    tensor_n_bytes(&l->items[i].value), l->err);
    if (!rc)
        rc = safetensors_writer_finish(w, l->err);
    safetensors_writer_free(w);
    return rc;
}

static int list_write_in(struct list *l, const char *folder, const char *name,
                         const char *const *metadata)
{
    char *path = file_join(folder, name);
    int rc = path ? list_write(l, path, metadata)
                  : err_set(l->err, ERR_NO_MEMORY, "%s: no memory", folder);
    sys_free(path);
    return rc;
}

struct tensor foreign_write_transposed(struct arena *arena, const struct tensor *t)
{
    struct tensor out = {t->dtype, 2, {t->shape[1], t->shape[0]}, NULL};
    size_t size = dtype_bits(t->dtype) / 8;
    char *to = arena_array(arena, (size_t)tensor_n_values(t) + 1, size);
    const char *from = t->data;
    out.data = to;
    for (uint64_t i = 0; to && i < t->shape[0]; i++) {
        for (uint64_t k = 0; k < t->shape[1]; k++, from += size)
            memcpy(to + (k * t->shape[0] + i) * size, from, size);
    }
    return out;
}

/* ---- kohya ---- */

static int add_kohya(struct list *l, const struct adapter_module *m)
{
    float *alpha = arena_alloc(&l->arena, sizeof *alpha);
    char *key = arena_printf(&l->arena, "lora_te_%s", m->name);
    if (!alpha || !key)
        return err_set(l->err, ERR_NO_MEMORY, "no memory for an export");
    for (char *p = key; *p; p++)
        *p = *p == '.' ? '_' : *p;
    const struct tensor scalar = {.dtype = DTYPE_F32, .data = alpha};
    int rc = foreign_write_alpha(m, "kohya", alpha, l->err);
    if (!rc)
        rc = list_add(l, key, ".lora_down.weight", &m->a);
    if (!rc)
        rc = list_add(l, key, ".lora_up.weight", &m->b);
    return rc ? rc : list_add(l, key, ".alpha", &scalar);
}

int kohya_write(const struct adapter *a, const char *folder, struct err *err)
{
    static const char *const metadata[] = {"ss_network_module", "networks.lora", NULL};
    struct list l;
    int rc = foreign_write_check(a, "kohya", ADAPTER_LORA | ADAPTER_HEAD, err);
    if (rc)
        return rc;
    rc = list_open(&l, 3 * a->n_modules, err);
    for (size_t i = 0; !rc && i < a->n_modules; i++)
        rc = add_kohya(&l, &a->modules[i]);
    if (!rc)
        rc = list_write_in(&l, folder, "adapter.safetensors", metadata);
    arena_release(&l.arena);
    return rc;
}

/* ---- MLX ---- */

/* One rank, one scale, and DoRA everywhere or nowhere. */
static int check_mlx(const struct adapter *a, bool *dora, struct err *err)
{
    const struct adapter_module *first = &a->modules[0];
    *dora = (a->kinds & ADAPTER_DORA) != 0;
    for (size_t i = 0; i < a->n_modules; i++) {
        const struct adapter_module *m = &a->modules[i];
        if (m->rank != first->rank || m->scale != first->scale)
            return err_set(err, ERR_REFUSED,
                           "%s: rank %u and scale %.17g, but %s has %u and %.17g, and MLX has one "
                           "for all; --bake-scale makes them one",
                           m->name, m->rank, m->scale, first->name, first->rank, first->scale);
        if (*dora && (!tensor_present(&m->magnitude) || m->embedding))
            return err_set(err, ERR_REFUSED, "%s: MLX has DoRA on every linear module or on none",
                           m->name);
    }
    return 0;
}

static int add_mlx(struct list *l, const struct adapter_module *m)
{
    struct tensor a = foreign_write_transposed(&l->arena, &m->a),
                  b = foreign_write_transposed(&l->arena, &m->b);
    int rc = list_add(l, m->name, ".lora_a", &a);
    if (!rc)
        rc = list_add(l, m->name, ".lora_b", &b);
    return rc || !tensor_present(&m->magnitude) ? rc : list_add(l, m->name, ".m", &m->magnitude);
}

/* "model.layers.3.self_attn.q_proj" is the key "self_attn.q_proj" of every layer. */
static json_t *mlx_keys(const struct adapter *a)
{
    static const char layers[] = "model.layers.";
    json_t *seen = json_object(), *keys = json_array();
    const char *key;
    json_t *value;
    for (size_t i = 0; i < a->n_modules; i++) {
        const char *name = a->modules[i].name;
        const char *dot = strncmp(name, layers, sizeof layers - 1) == 0
                              ? strchr(name + sizeof layers - 1, '.')
                              : NULL;
        json_object_set_new(seen, dot ? dot + 1 : name, json_true());
    }
    json_object_foreach(seen, key, value)
    {
        json_array_append_new(keys, json_string(key));
    }
    json_decref(seen);
    return keys;
}

static int write_mlx_config(const struct adapter *a, const char *folder, bool dora, struct err *err)
{
    json_t *config = json_pack("{s:s, s:i, s:s?, s:{s:i, s:f, s:f, s:o}}", "fine_tune_type",
                               dora ? "dora" : "lora", "num_layers", -1, "model", a->base_name,
                               "lora_parameters", "rank", (int)a->max_rank, "scale",
                               a->modules[0].scale, "dropout", 0.0, "keys", mlx_keys(a));
    char *text = config
                     ? json_dumps(config, JSON_INDENT(4) | JSON_SORT_KEYS | JSON_REAL_PRECISION(17))
                     : NULL;
    char *path = file_join(folder, "adapter_config.json");
    int rc = text && path ? file_write_atomic(path, text, strlen(text), err)
                          : err_set(err, ERR_NO_MEMORY, "%s: no memory", folder);
    free(text);
    sys_free(path);
    json_decref(config);
    return rc;
}

int mlx_write(const struct adapter *a, const char *folder, struct err *err)
{
    static const char *const none[] = {NULL};
    bool dora = false;
    struct list l;
    int rc = foreign_write_check(a, "MLX",
                                 ADAPTER_LORA | ADAPTER_HEAD | ADAPTER_EMBED | ADAPTER_DORA, err);
    if (!rc)
        rc = check_mlx(a, &dora, err);
    if (rc)
        return rc;
    rc = list_open(&l, 3 * a->n_modules, err);
    for (size_t i = 0; !rc && i < a->n_modules; i++)
        rc = add_mlx(&l, &a->modules[i]);
    if (!rc)
        rc = list_write_in(&l, folder, "adapters.safetensors", none);
    arena_release(&l.arena);
    return rc ? rc : write_mlx_config(a, folder, dora, err);
}
