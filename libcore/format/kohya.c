/*
 * kohya's LoRA files (sd-scripts, ComfyUI, LyCORIS) and diffusers' ones: one .safetensors without a
 * configuration. Names, not a header field, tell them apart.
 *   kohya      lora_te_model_layers_0_self_attn_q_proj.lora_down.weight, .lora_up.weight, .alpha
 *   diffusers  transformer.model.layers.0.self_attn.q_proj.lora_A.weight, .lora_B.weight
 * Scale: alpha / rank, by module. Without alpha: 1. kohya says "alpha is the rank then", ComfyUI
 * "the scale is 1 then"; it is the same number. An alpha of 0 is not: kohya reads it as the rank,
 * ComfyUI as 0. diffusers without alpha takes the rank of whichever module comes first for all
 * (huggingface/diffusers#14409): the same number again, unless ranks differ, which is refused.
 */
#include <math.h>
#include <string.h>

#include "libcore/format/foreign_impl.h"

static const struct ending {
    const char *text;
    enum foreign_part part; // FOREIGN_N_PARTS: refused
    const char *why;
} endings[] = {
    {".lora_down.weight", FOREIGN_A, NULL},
    {".lora_up.weight", FOREIGN_B, NULL},
    {".lora_A.weight", FOREIGN_A, NULL},
    {".lora_B.weight", FOREIGN_B, NULL},
    {".lora_A.default.weight", FOREIGN_A, NULL},
    {".lora_B.default.weight", FOREIGN_B, NULL},
    {".lora.down.weight", FOREIGN_A, NULL},
    {".lora.up.weight", FOREIGN_B, NULL},
    {"_lora.down.weight", FOREIGN_A, NULL},
    {"_lora.up.weight", FOREIGN_B, NULL},
    {".lora_linear_layer.down.weight", FOREIGN_A, NULL},
    {".lora_linear_layer.up.weight", FOREIGN_B, NULL},
    {".alpha", FOREIGN_ALPHA, NULL},
    {".dora_scale", FOREIGN_MAGNITUDE, NULL},
    {".lora_magnitude_vector", FOREIGN_MAGNITUDE, NULL},
    {".lora_magnitude_vector.weight", FOREIGN_MAGNITUDE, NULL},
    {".lora_mid.weight", FOREIGN_N_PARTS, "LoCon's third factor (Tucker) is not computed"},
    {".reshape_weight", FOREIGN_N_PARTS, "a reshaped weight is not computed"},
    {".diff", FOREIGN_N_PARTS, "a whole difference of weights: `lora extract` makes an adapter"},
    {".diff_b", FOREIGN_N_PARTS, "a difference of biases is not computed"},
    {".w_norm", FOREIGN_N_PARTS, "a trained norm is not computed"},
    {".b_norm", FOREIGN_N_PARTS, "a trained norm is not computed"},
};

static const char *const kohya_prefixes[] = {"lora_te1_",  "lora_te2_", "lora_te3_",
                                             "lora_te_",   "lora_llm_", "lora_transformer_",
                                             "lora_unet_", "lycoris_"};
static const char *const dotted_prefixes[] = {
    "transformer.",    "text_encoder.",  "text_encoder_2.", "text_encoder_3.",
    "text_encoder_4.", "text_encoders.", "unet.",           "diffusion_model."};

static bool ends_with(const char *s, size_t n, const char *ending)
{
    size_t k = strlen(ending);
    return n > k && memcmp(s + n - k, ending, k) == 0;
}

static int add_tensor(struct foreign *f, const struct safetensors_entry *e)
{
    size_t n = strlen(e->name);
    const struct ending *best = NULL;
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        if (ends_with(e->name, n, endings[i].text) &&
            (!best || strlen(endings[i].text) > strlen(best->text)))
            best = &endings[i];
    }
    if (strstr(e->name, ".hada_"))
        return foreign_refuse(f, e->name, "LoHa (Hadamard products) is not computed");
    if (strstr(e->name, ".lokr_"))
        return foreign_refuse(f, e->name, "LoKr (Kronecker products) is not computed");
    if (strncmp(e->name, "base_model.", 11) == 0)
        return foreign_refuse(f, e->name,
                              "a PEFT file: its adapter_config.json must lie beside it");
    if (!best)
        return foreign_refuse(f, e->name, "no name of a kohya or diffusers LoRA file");
    if (best->part == FOREIGN_N_PARTS)
        return foreign_refuse(f, e->name, "%s", best->why);
    return foreign_add(f, e->name, n - strlen(best->text), best->part, &e->value);
}

static const char *skip_prefix(const char *key, const char *const *prefixes, size_t n,
                               size_t *length)
{
    for (size_t i = 0; i < n; i++) {
        size_t k = strlen(prefixes[i]);
        if (strncmp(key, prefixes[i], k) == 0) {
            *length = k;
            return key + k;
        }
    }
    *length = 0;
    return key;
}

#define N(list) (sizeof(list) / sizeof *(list))

/* The name in the base; *prefix the part of the pipeline that the file says, with its dot. */
static int set_name(struct foreign *f, struct foreign_module *m, size_t *prefix)
{
    bool dotted = strchr(m->key, '.') != NULL;
    const char *rest = dotted ? skip_prefix(m->key, dotted_prefixes, N(dotted_prefixes), prefix)
                              : skip_prefix(m->key, kohya_prefixes, N(kohya_prefixes), prefix);
    int rc = foreign_name(f, rest, dotted ? '.' : '_', &m->name);
    if (!rc && !m->name)
        rc = foreign_refuse(f, m->key,
                            "no module of a causal language model that is known here (a part of "
                            "an image model?)");
    m->embedding = !rc && strcmp(m->name, "model.embed_tokens") == 0;
    if (m->embedding)
        rc = foreign_refuse(f, m->key, "LoRA on embeddings has no settled form in these files");
    if (dotted)
        f->format = "diffusers";
    return rc;
}

static int set_magnitude(struct foreign *f, struct foreign_module *m)
{
    const struct tensor *t = &m->parts[FOREIGN_MAGNITUDE];
    char text[64];
    uint64_t out = m->parts[FOREIGN_B].shape[0];
    if (!tensor_present(t) || (t->n_dims == 1 && t->shape[0] == out) ||
        (t->n_dims == 2 && t->shape[0] == out && t->shape[1] == 1))
        return 0;
    return foreign_refuse(f, m->key,
                          "dora_scale is %s: magnitudes of columns, as LyCORIS trains them; only "
                          "those of rows ([%llu, 1]) are computed",
                          tensor_shape_text(t, text, sizeof text), (unsigned long long)out);
}

/* ---- scale ---- */

struct metadata { // of diffusers: "transformer.lora_alpha" and the like; NULL: none
    json_t *root;
};

static const json_t *field(const struct metadata *d, const char *prefix, size_t n, const char *name)
{
    char key[128];
    if (n + strlen(name) >= sizeof key)
        return NULL;
    memcpy(key, prefix, n);
    strcpy(key + n, name);
    return json_object_get(d->root, key);
}

static int scale_by_metadata(struct foreign *f, struct foreign_module *m, const struct metadata *d,
                             size_t prefix, bool *found)
{
    static const char *const patterns[] = {"alpha_pattern", "modules_to_save", "bias"};
    const json_t *alpha = field(d, m->key, prefix, "lora_alpha");
    *found = alpha != NULL;
    if (!alpha)
        return 0;
    if (!json_is_number(alpha))
        return foreign_refuse(f, m->key, "lora_alpha of lora_adapter_metadata is no number");
    for (size_t i = 0; i < N(patterns); i++) {
        const json_t *v = field(d, m->key, prefix, patterns[i]);
        bool none = json_is_string(v) && strcmp(json_string_value(v), "none") == 0;
        if (json_object_size(v) || json_array_size(v) || (json_is_string(v) && !none))
            return foreign_refuse(f, m->key,
                                  "%s in lora_adapter_metadata is not read here; import it as a "
                                  "PEFT folder",
                                  patterns[i]);
    }
    double a = json_number_value(alpha), r = (double)m->rank;
    m->scale = json_is_true(field(d, m->key, prefix, "use_rslora")) ? a / sqrt(r) : a / r;
    return 0;
}

static int set_scale(struct foreign *f, struct foreign_module *m, const struct metadata *d,
                     size_t prefix)
{
    const struct tensor *alpha = &m->parts[FOREIGN_ALPHA];
    double value = 0;
    bool found = false;
    m->scale = 1;
    if (!tensor_present(alpha)) {
        int rc = scale_by_metadata(f, m, d, prefix, &found);
        if (rc || found || m->rank == f->modules[0].rank || !strchr(m->key, '.'))
            return rc;
        return foreign_refuse(f, m->key,
                              "ranks differ and there is no alpha: diffusers would scale by the "
                              "order of the keys; add .alpha tensors");
    }
    int rc = foreign_scalar(f, m->key, alpha, &value);
    if (!rc && value == 0)
        rc = foreign_refuse(f, m->key,
                            "alpha is 0, which kohya reads as the rank and ComfyUI as 0; set it");
    m->scale = value / (double)m->rank;
    return rc;
}

static int read_modules(struct foreign *f, const struct metadata *d)
{
    int rc = foreign_group(f);
    for (size_t i = 0; !rc && i < f->n_modules; i++) {
        struct foreign_module *m = &f->modules[i];
        size_t prefix = 0;
        rc = set_name(f, m, &prefix);
        if (!rc)
            rc = foreign_take_factors(f, m);
        if (!rc)
            rc = set_magnitude(f, m);
        if (!rc)
            rc = set_scale(f, m, d, prefix);
    }
    return rc;
}

static int read_metadata(struct foreign *f, const struct safetensors *file, struct metadata *d)
{
    const char *text = safetensors_metadata(file, "lora_adapter_metadata");
    json_error_t e;
    d->root = text ? json_loads(text, JSON_REJECT_DUPLICATES, &e) : NULL;
    if (text && !json_is_object(d->root))
        return err_set(f->err, ERR_CORRUPT, "%s: lora_adapter_metadata is no JSON object", f->path);
    return 0;
}

int kohya_read(struct adapter **out, const char *weights, const char *path,
               const struct peft_options *opt, struct err *err)
{
    struct foreign f;
    struct metadata d = {0};
    struct safetensors *file = NULL;
    *out = NULL;
    int rc = foreign_init(&f, weights, "kohya", opt, err);
    if (!rc)
        rc = safetensors_open(&file, weights, 0, err);
    if (!rc)
        rc = read_metadata(&f, file, &d);
    for (size_t i = 0; !rc && i < safetensors_count(file); i++)
        rc = add_tensor(&f, safetensors_at(file, i));
    if (!rc)
        rc = read_modules(&f, &d);
    if (!rc)
        rc = foreign_build(&f, out, path);
    json_decref(d.root);
    foreign_release(&f);
    safetensors_free(file);
    return rc;
}
