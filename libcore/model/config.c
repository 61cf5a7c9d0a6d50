#include "libcore/model/config.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/limits.h"
#include "libcore/base/sys.h"
#include "libcore/model/arch.h"

static const struct arch_entry *const entries[] = {
    &arch_llama,  &arch_mistral, &arch_qwen2,   &arch_qwen3,
    &arch_gemma3, &arch_phi3,    &arch_mixtral, &arch_qwen3_moe,
};

const struct arch_entry *arch_by_id(enum arch a)
{
    for (size_t i = 0; i < sizeof entries / sizeof entries[0]; i++) {
        if (entries[i]->arch == a)
            return entries[i];
    }
    return NULL;
}

const char *config_arch_name(enum arch a)
{
    const struct arch_entry *e = arch_by_id(a);
    return e ? e->model_type : "unknown";
}

/* ---- typed fields ---- */

void config_fail(struct config_reader *r, int code, const char *fmt, ...)
{
    if (r->code)
        return;
    va_list args;
    va_start(args, fmt);
    r->code = err_setv(r->err, code, fmt, args);
    va_end(args);
}

static const json_t *field_of(struct config_reader *r, const char *field)
{
    const json_t *v = r->code ? NULL : json_object_get(r->root, field);
    return v && !json_is_null(v) ? v : NULL;
}

uint32_t config_u32(struct config_reader *r, const char *field, uint32_t fallback)
{
    const json_t *v = field_of(r, field);
    if (!v)
        return fallback;
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > INT32_MAX) {
        config_fail(r, ERR_CORRUPT, "%s: %s is no whole number of 0…2147483647", r->where, field);
        return fallback;
    }
    return (uint32_t)json_integer_value(v);
}

double config_number(struct config_reader *r, const char *field, double fallback)
{
    const json_t *v = field_of(r, field);
    if (!v)
        return fallback;
    if (!json_is_number(v) || !isfinite(json_number_value(v))) {
        config_fail(r, ERR_CORRUPT, "%s: %s is no number", r->where, field);
        return fallback;
    }
    return json_number_value(v);
}

bool config_bool(struct config_reader *r, const char *field, bool fallback)
{
    const json_t *v = field_of(r, field);
    if (!v)
        return fallback;
    if (!json_is_boolean(v)) {
        config_fail(r, ERR_CORRUPT, "%s: %s is neither true nor false", r->where, field);
        return fallback;
    }
    return json_is_true(v);
}

const char *config_string(struct config_reader *r, const char *field, const char *fallback)
{
    const json_t *v = field_of(r, field);
    if (!v)
        return fallback;
    if (!json_is_string(v)) {
        config_fail(r, ERR_CORRUPT, "%s: %s is no string", r->where, field);
        return fallback;
    }
    return json_string_value(v);
}

/* ---- the parts ---- */

static const struct arch_entry *find_entry(struct config_reader *r)
{
    const char *type = config_string(r, "model_type", "");
    const json_t *classes = field_of(r, "architectures");
    const char *class_name = json_string_value(json_array_get(classes, 0));
    for (size_t i = 0; i < sizeof entries / sizeof entries[0]; i++) {
        const struct arch_entry *e = entries[i];
        if (class_name && (strcmp(class_name, e->class_name) == 0 ||
                           (e->alias && strcmp(class_name, e->alias) == 0)))
            return e;
        if (!class_name && strcmp(type, e->model_type) == 0)
            return e;
    }
    config_fail(
        r, ERR_REFUSED,
        "%s: architecture \"%s\" (model_type \"%s\") is not computed here; known: Llama, "
        "Mistral, Qwen2, Qwen3, Gemma3, Phi3, Mixtral, Qwen3-MoE for causal language models",
        r->where, class_name ? class_name : "", type);
    return NULL;
}

static void refuse_quantized(struct config_reader *r)
{
    const json_t *q = field_of(r, "quantization_config");
    if (!q)
        return;
    const char *method = json_string_value(json_object_get(q, "quant_method"));
    config_fail(
        r, ERR_REFUSED,
        "%s: quantization_config.quant_method \"%s\": quantized bases are not computed here; "
        "use the unquantized checkpoint",
        r->where, method ? method : "unknown");
}

static void read_ids(struct model_config *c, struct config_reader *r)
{
    const json_t *bos = field_of(r, "bos_token_id"), *pad = field_of(r, "pad_token_id");
    c->bos_id = json_is_integer(bos) ? (int32_t)json_integer_value(bos) : -1;
    c->pad_id = json_is_integer(pad) ? (int32_t)json_integer_value(pad) : -1;
    const json_t *eos = field_of(r, "eos_token_id");
    size_t n = json_is_array(eos) ? json_array_size(eos) : json_is_integer(eos) ? 1 : 0;
    c->eos_ids = arena_array(&c->arena, n ? n : 1, sizeof *c->eos_ids);
    if (!c->eos_ids) {
        config_fail(r, ERR_NO_MEMORY, "%s: out of memory", r->where);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_is_array(eos) ? json_array_get(eos, i) : eos;
        c->eos_ids[c->n_eos++] = (int32_t)json_integer_value(v);
    }
}

static void read_dtype(struct model_config *c, struct config_reader *r)
{
    const char *name = config_string(r, "dtype", config_string(r, "torch_dtype", "float32"));
    c->dtype = strcmp(name, "bfloat16") == 0  ? DTYPE_BF16
               : strcmp(name, "float16") == 0 ? DTYPE_F16
               : strcmp(name, "float32") == 0 ? DTYPE_F32
               : strcmp(name, "float64") == 0 ? DTYPE_F64
                                              : DTYPE_NONE;
    if (c->dtype == DTYPE_NONE)
        config_fail(r, ERR_REFUSED,
                    "%s: dtype \"%s\" is not computed here; known: bfloat16, float16, "
                    "float32",
                    r->where, name);
}

static void read_activation(struct model_config *c, struct config_reader *r)
{
    const char *name =
        config_string(r, "hidden_act", config_string(r, "hidden_activation", "silu"));
    if (strcmp(name, "silu") == 0 || strcmp(name, "swish") == 0)
        c->activation = ACTIVATION_SILU;
    else if (strcmp(name, "gelu_pytorch_tanh") == 0 || strcmp(name, "gelu_tanh") == 0)
        c->activation = ACTIVATION_GELU_TANH;
    else
        config_fail(r, ERR_REFUSED,
                    "%s: hidden_act \"%s\" is not computed here; known: silu, "
                    "gelu_pytorch_tanh",
                    r->where, name);
}

static void read_shapes(struct model_config *c, struct config_reader *r)
{
    c->vocab_size = config_u32(r, "vocab_size", c->vocab_size);
    c->d_model = config_u32(r, "hidden_size", c->d_model);
    c->n_layers = config_u32(r, "num_hidden_layers", c->n_layers);
    c->n_heads = config_u32(r, "num_attention_heads", c->n_heads);
    c->n_kv_heads =
        config_u32(r, "num_key_value_heads", c->n_kv_heads ? c->n_kv_heads : c->n_heads);
    c->d_ff = config_u32(r, "intermediate_size", c->d_ff);
    c->max_positions = config_u32(r, "max_position_embeddings", c->max_positions);
    uint32_t by_width = c->n_heads ? c->d_model / c->n_heads : 0;
    c->head_dim = config_u32(r, "head_dim", c->head_dim ? c->head_dim : by_width);
    c->rms_eps = config_number(r, "rms_norm_eps", c->rms_eps);
    c->tied_embeddings = config_bool(r, "tie_word_embeddings", c->tied_embeddings);
}

static void check_shapes(const struct model_config *c, struct config_reader *r)
{
    const struct {
        const char *field;
        uint32_t value, max;
    } must[] = {
        {"vocab_size", c->vocab_size, 1u << 24},
        {"hidden_size", c->d_model, 1u << 20},
        {"num_hidden_layers", c->n_layers, 4096},
        {"num_attention_heads", c->n_heads, 4096},
        {"num_key_value_heads", c->n_kv_heads, 4096},
        {"head_dim", c->head_dim, 1024},
        {"intermediate_size", c->d_ff, 1u << 22},
        {"max_position_embeddings", c->max_positions, 1u << 28},
    };
    for (size_t i = 0; i < sizeof must / sizeof must[0]; i++) {
        if (must[i].value == 0 || must[i].value > must[i].max)
            config_fail(r, ERR_CORRUPT, "%s: %s is %u, want 1…%u", r->where, must[i].field,
                        must[i].value, must[i].max);
    }
    if (!r->code && c->n_heads % c->n_kv_heads != 0)
        config_fail(r, ERR_CORRUPT,
                    "%s: num_attention_heads %u is no multiple of "
                    "num_key_value_heads %u",
                    r->where, c->n_heads, c->n_kv_heads);
    if (!r->code && (c->rotary_dim % 2 != 0 || c->rotary_dim > c->head_dim || c->rotary_dim == 0))
        config_fail(r, ERR_CORRUPT,
                    "%s: rotary dimension %u of head_dim %u is not even or too large", r->where,
                    c->rotary_dim, c->head_dim);
    if (!r->code && c->n_experts && (c->n_experts_used == 0 || c->n_experts_used > c->n_experts))
        config_fail(r, ERR_CORRUPT, "%s: num_experts_per_tok is %u, want 1…%u", r->where,
                    c->n_experts_used, c->n_experts);
}

void config_set_windows(struct model_config *c, struct config_reader *r, uint32_t window)
{
    if (r->code)
        return;
    const json_t *types = field_of(r, "layer_types");
    if (types && json_array_size(types) != c->n_layers) {
        config_fail(r, ERR_CORRUPT, "%s: layer_types has %zu entries, want %u", r->where,
                    json_array_size(types), c->n_layers);
        return;
    }
    for (uint32_t i = 0; i < c->n_layers; i++) {
        const char *type = json_string_value(json_array_get(types, i));
        if (type && strcmp(type, "sliding_attention") == 0)
            c->layers[i].window = window;
        else if (type && strcmp(type, "full_attention") == 0)
            c->layers[i].window = 0;
        else if (type)
            config_fail(r, ERR_REFUSED,
                        "%s: layer_types[%u] \"%s\" is not computed here; known: "
                        "full_attention, sliding_attention",
                        r->where, i, type);
        else
            c->layers[i].window = window;
    }
}

static void read_ropes(struct model_config *c, struct config_reader *r)
{
    double theta = config_number(r, "rope_theta", c->rope[0].theta);
    const json_t *description = field_of(r, "rope_parameters");
    if (!description)
        description = field_of(r, "rope_scaling");
    double partial = config_number(r, "partial_rotary_factor", 1.0);
    const json_t *inner = json_object_get(description, "partial_rotary_factor");
    if (json_is_number(inner))
        partial = json_number_value(inner);
    c->rotary_dim = (uint32_t)(c->head_dim * partial);
    const json_t *full = json_object_get(description, "full_attention");
    config_read_rope(c, r, full ? full : description, theta, &c->rope[0]);
}

/* The text part of a multimodal checkpoint's configuration, or the whole. */
static const json_t *text_part(const json_t *config)
{
    const json_t *text = json_object_get(config, "text_config");
    return json_is_object(text) ? text : config;
}

static void read_all(struct model_config *c, struct config_reader *r)
{
    const struct arch_entry *e = find_entry(r);
    if (!e)
        return;
    refuse_quantized(r);
    const json_t *whole = r->root;
    r->root = text_part(whole);
    c->arch = e->arch;
    c->arch_name = e->class_name;
    c->model_type = e->model_type;
    c->embed_scale = 1;
    c->rms_eps = 1e-6;
    c->rope[0].theta = 10000;
    c->max_positions = 2048;
    if (e->arch == ARCH_GEMMA3) { // the hub's gemma3 files leave these out
        c->vocab_size = 262208;
        c->n_heads = 8;
        c->n_kv_heads = 4;
        c->head_dim = 256;
        c->max_positions = 131072;
        c->rope[0].theta = 1000000;
        c->tied_embeddings = true;
    }
    refuse_quantized(r);
    read_shapes(c, r);
    read_dtype(c, r);
    read_activation(c, r);
    read_ropes(c, r);
    read_ids(c, r);
    if (r->code)
        return;
    c->attention_scale = c->head_dim ? 1.0 / sqrt((double)c->head_dim) : 0;
    c->layers = arena_array(&c->arena, c->n_layers ? c->n_layers : 1, sizeof *c->layers);
    if (!c->layers) {
        config_fail(r, ERR_NO_MEMORY, "%s: out of memory", r->where);
        return;
    }
    e->read(c, r);
    check_shapes(c, r);
}

int config_from_json(struct model_config *out, const json_t *config, const char *where,
                     struct err *err)
{
    memset(out, 0, sizeof *out);
    arena_init(&out->arena);
    struct config_reader r = {config, where, err, 0};
    if (!json_is_object(config))
        config_fail(&r, ERR_CORRUPT, "%s: not a JSON object", where);
    else
        read_all(out, &r);
    if (r.code)
        config_release(out);
    return r.code;
}

int config_read(struct model_config *out, const char *folder, struct err *err)
{
    memset(out, 0, sizeof *out);
    char *path = file_join(folder, "config.json"), *text = NULL;
    size_t size = 0;
    json_t *root = NULL;
    int code;
    if (!path) {
        code = err_set(err, ERR_NO_MEMORY, "%s: out of memory", folder);
        goto out;
    }
    code = file_read(path, LIMIT_CONFIG_BYTES, &text, &size, err);
    if (code)
        goto out;
    json_error_t where;
    root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &where);
    if (!root) {
        code = err_set(err, ERR_CORRUPT, "%s:%d: %s", path, where.line, where.text);
        goto out;
    }
    code = config_from_json(out, root, path, err);
out:
    json_decref(root);
    sys_free(text);
    sys_free(path);
    return code;
}

void config_release(struct model_config *c)
{
    arena_release(&c->arena);
    memset(c, 0, sizeof *c);
}
