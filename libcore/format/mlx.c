/*
 * MLX-LM's adapters: adapters.safetensors and an adapter_config.json of its own
 *   {"fine_tune_type": "lora" | "dora", "lora_parameters": {"rank", "scale", "dropout", "keys"}}.
 * lora_a is [in, r] and lora_b [r, out]: the transposes of PEFT's. `scale` multiplies the product
 * directly, whatever the rank. Experts: lora_a [E, r, in], lora_b [E, out, r], not transposed.
 * DoRA's m are the rows' magnitudes. Source: mlx-lm tuner/lora.py, tuner/dora.py, tuner/utils.py.
 */
#include <math.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/foreign_impl.h"
#include "libcore/format/peft_impl.h"

struct mlx_config {
    json_t *root;
    double scale;
    bool dora;
};

static int refuse_field(const char *path, const char *field, const char *why, struct err *err)
{
    return err_set(err, ERR_REFUSED, "%s: %s: %s", path, field, why);
}

static int read_config(struct mlx_config *c, const char *path, struct err *err)
{
    int rc = peft_config_load(&c->root, path, err);
    if (rc == ERR_NOT_FOUND)
        return err_set(err, rc, "%s: not there: it has the scale of MLX's weights", path);
    if (rc)
        return rc;
    const json_t *parameters = json_object_get(c->root, "lora_parameters");
    const char *type = json_string_value(json_object_get(c->root, "fine_tune_type"));
    if (type && strcmp(type, "lora") != 0 && strcmp(type, "dora") != 0)
        return refuse_field(path, "fine_tune_type",
                            "only lora and dora; for a full fine-tune use `lora extract`", err);
    c->dora = type && strcmp(type, "dora") == 0;
    const json_t *scale = json_object_get(parameters, "scale");
    if (!json_is_number(scale))
        return refuse_field(path, "lora_parameters.scale",
                            "not there, and without it the numbers are not known", err);
    // mlx-lm before 0.1 multiplied by alpha / rank as well, later versions pass over alpha.
    if (json_object_get(parameters, "alpha"))
        return refuse_field(path, "lora_parameters.alpha",
                            "versions of mlx-lm differ on whether it counts; take it out when "
                            "`scale` is the whole factor",
                            err);
    c->scale = json_number_value(scale);
    return isfinite(c->scale) ? 0 : refuse_field(path, "lora_parameters.scale", "not finite", err);
}

static int add_tensor(struct foreign *f, const struct mlx_config *c,
                      const struct safetensors_entry *e)
{
    const char *dot = strrchr(e->name, '.');
    size_t n = dot ? (size_t)(dot - e->name) : 0;
    if (dot && strcmp(dot, ".lora_a") == 0)
        return foreign_add(f, e->name, n, FOREIGN_A, &e->value);
    if (dot && strcmp(dot, ".lora_b") == 0)
        return foreign_add(f, e->name, n, FOREIGN_B, &e->value);
    if (dot && strcmp(dot, ".m") == 0 && c->dora)
        return foreign_add(f, e->name, n, FOREIGN_MAGNITUDE, &e->value);
    return foreign_refuse(f, e->name, "no name of an MLX LoRA file (.lora_a, .lora_b%s)",
                          c->dora ? ", .m" : "");
}

static int take_transposed(struct foreign *f, struct foreign_module *m)
{
    const struct tensor *a = &m->parts[FOREIGN_A], *b = &m->parts[FOREIGN_B];
    char text[128];
    if (a->n_dims != 2 || b->n_dims != 2 || a->shape[1] != b->shape[0] || a->shape[1] == 0)
        return foreign_refuse(f, m->key, "lora_a is %s and does not go with its lora_b",
                              tensor_shape_text(a, text, sizeof text));
    m->rank = a->shape[1];
    m->a = image_view_transposed(a);
    m->b = image_view_transposed(b);
    return 0;
}

static struct tensor slice(const struct tensor *t, uint64_t i)
{
    struct tensor s = {.dtype = t->dtype, .n_dims = 2, .shape = {t->shape[1], t->shape[2]}};
    s.data = tensor_row(t, i);
    return s;
}

/* "….mlp.switch_mlp.gate_proj" of all experts into one module an expert, whose names PEFT's reader
 * knows from older checkpoints. */
static int split_experts(struct foreign *f, size_t index)
{
    static const char marker[] = "switch_mlp.";
    struct foreign_module all = f->modules[index];
    const struct tensor *a = &all.parts[FOREIGN_A], *b = &all.parts[FOREIGN_B];
    const char *at = strstr(all.name, marker), *leaf = at + sizeof marker - 1;
    if (a->n_dims != 3 || b->n_dims != 3 || a->shape[0] != b->shape[0] || a->shape[0] == 0 ||
        a->shape[1] != b->shape[2] || a->shape[1] == 0)
        return foreign_refuse(f, all.key, "lora_a and lora_b of experts do not go together");
    if (tensor_present(&all.parts[FOREIGN_MAGNITUDE]))
        return foreign_refuse(f, all.key, "DoRA on experts is not computed");
    if (strstr(all.name, "block_sparse_moe"))
        leaf = *leaf == 'g' ? "w1" : *leaf == 'd' ? "w2" : "w3";
    for (uint64_t e = 0; e < a->shape[0]; e++) {
        struct foreign_module m = {.key = all.key, .scale = all.scale, .rank = a->shape[1]};
        m.name = arena_printf(&f->img.arena, "%.*sexperts.%llu.%s", (int)(at - all.name), all.name,
                              (unsigned long long)e, leaf);
        m.parts[FOREIGN_A] = slice(a, e);
        m.parts[FOREIGN_B] = slice(b, e);
        m.a = image_view_of(&m.parts[FOREIGN_A]);
        m.b = image_view_of(&m.parts[FOREIGN_B]);
        if (!m.name)
            return foreign_no_memory(f);
        int rc = 0;
        if (e == 0)
            f->modules[index] = m;
        else
            rc = foreign_add_module(f, &m);
        if (rc)
            return rc;
    }
    return 0;
}

static int read_modules(struct foreign *f, const struct mlx_config *c)
{
    int rc = foreign_group(f);
    size_t n = f->n_modules; // experts are added behind
    for (size_t i = 0; !rc && i < n; i++) {
        struct foreign_module *m = &f->modules[i];
        m->scale = c->scale;
        rc = foreign_name(f, m->key, '.', &m->name);
        if (!rc && !m->name)
            rc = foreign_refuse(f, m->key, "no module of a causal language model known here");
        if (rc)
            break;
        m->embedding = strcmp(m->name, "model.embed_tokens") == 0;
        rc = strstr(m->name, "switch_mlp.") ? split_experts(f, i) : take_transposed(f, m);
    }
    return rc;
}

int mlx_read(struct adapter **out, const char *weights, const char *config, const char *path,
             const struct peft_options *opt, struct err *err)
{
    struct foreign f;
    struct mlx_config c = {0};
    struct safetensors *file = NULL;
    *out = NULL;
    int rc = foreign_init(&f, weights, "mlx", opt, err);
    if (!rc)
        rc = read_config(&c, config, err);
    if (!rc)
        rc = safetensors_open(&file, weights, 0, err);
    f.base_name = json_string_value(json_object_get(c.root, "model"));
    for (size_t i = 0; !rc && i < safetensors_count(file); i++)
        rc = add_tensor(&f, &c, safetensors_at(file, i));
    if (!rc)
        rc = read_modules(&f, &c);
    if (!rc)
        rc = foreign_build(&f, out, path);
    json_decref(c.root);
    foreign_release(&f);
    safetensors_free(file);
    return rc;
}
