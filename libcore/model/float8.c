#include "libcore/model/float8.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/limits.h"
#include "libcore/base/sys.h"

// ---- quantization_config ------------------------------------------------------------------------

static const char *text_of(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

static int refuse(const char *where, const char *method, const char *field, const char *got,
                  struct err *err)
{
    return err_set(err, ERR_REFUSED,
                   "%s: quantization_config of %s with %s \"%s\" is not read here; use the "
                   "unquantized checkpoint",
                   where, method, field, got);
}

/* [rows, columns] of a block of scales. */
static int read_block(struct float8_config *c, const json_t *size, const char *where,
                      struct err *err)
{
    if (!size || json_is_null(size))
        return 0;
    json_int_t rows = json_integer_value(json_array_get(size, 0)),
               cols = json_integer_value(json_array_get(size, 1));
    if (json_array_size(size) != 2 || rows < 1 || cols < 1 || rows > 1 << 20 || cols > 1 << 20)
        return err_set(err, ERR_CORRUPT,
                       "%s: quantization_config: a block of scales is no pair of sizes", where);
    c->block_rows = (uint32_t)rows;
    c->block_cols = (uint32_t)cols;
    return 0;
}

static int read_fp8(struct float8_config *c, const json_t *q, const char *where, struct err *err)
{
    const char *format = text_of(q, "fmt"), *scale = text_of(q, "scale_fmt");
    if (*format && strcmp(format, "e4m3") != 0 && strcmp(format, "e5m2") != 0)
        return refuse(where, c->method, "fmt", format, err);
    if (*scale && strcmp(scale, "ue8m0") != 0 && strcmp(scale, "float") != 0)
        return refuse(where, c->method, "scale_fmt", scale, err);
    c->power_of_two = strcmp(scale, "ue8m0") == 0;
    return read_block(c, json_object_get(q, "weight_block_size"), where, err);
}

static bool is_set(const json_t *v)
{
    return v && !json_is_null(v) && !(json_is_object(v) && json_object_size(v) == 0) &&
           !(json_is_array(v) && json_array_size(v) == 0);
}

static int read_group(struct float8_config *c, const json_t *weights, const char *where,
                      struct err *err)
{
    const char *type = text_of(weights, "type"), *strategy = text_of(weights, "strategy");
    json_int_t bits = json_integer_value(json_object_get(weights, "num_bits"));
    char got[32];
    snprintf(got, sizeof got, "%s%d", type, (int)bits);
    if (strcmp(type, "float") != 0 || bits != 8)
        return refuse(where, c->method, "weights of type", got, err);
    if (strcmp(strategy, "tensor") != 0 && strcmp(strategy, "channel") != 0 &&
        strcmp(strategy, "block") != 0)
        return refuse(where, c->method, "strategy", strategy, err);
    if (json_is_false(json_object_get(weights, "symmetric")))
        return refuse(where, c->method, "symmetric", "false", err);
    return read_block(c, json_object_get(weights, "block_structure"), where, err);
}

static int read_compressed(struct float8_config *c, const json_t *q, const char *where,
                           struct err *err)
{
    static const char *const more[] = {"sparsity_config", "transform_config"};
    const char *format = text_of(q, "format"), *key;
    json_t *group;
    if (strcmp(format, "float-quantized") != 0 && strcmp(format, "naive-quantized") != 0)
        return refuse(where, c->method, "format", format, err);
    for (size_t i = 0; i < sizeof more / sizeof more[0]; i++) {
        const json_t *v = json_object_get(q, more[i]);
        if (is_set(v) && strcmp(text_of(v, "format"), "dense") != 0)
            return refuse(where, c->method, more[i], "set", err);
    }
    json_object_foreach(json_object_get(q, "config_groups"), key, group)
    {
        const char *own = text_of(group, "format");
        if (*own && strcmp(own, "float-quantized") != 0 && strcmp(own, "naive-quantized") != 0)
            return refuse(where, c->method, "format", own, err);
        int rc = read_group(c, json_object_get(group, "weights"), where, err);
        if (rc)
            return rc;
    }
    return 0;
}

int float8_config_read(struct float8_config *out, const json_t *config, const char *where,
                       struct err *err)
{
    const json_t *q = json_object_get(config, "quantization_config");
    *out = (struct float8_config){0};
    if (!q || json_is_null(q))
        q = json_object_get(json_object_get(config, "text_config"), "quantization_config");
    if (!q || json_is_null(q))
        return 0;
    const char *method = text_of(q, "quant_method");
    snprintf(out->method, sizeof out->method, "%s", *method ? method : "unknown");
    if (strcmp(method, "fp8") == 0)
        return read_fp8(out, q, where, err);
    if (strcmp(method, "compressed-tensors") == 0)
        return read_compressed(out, q, where, err);
    if (strcmp(method, "fbgemm_fp8") == 0)
        return 0;
    if (strcmp(method, "modelopt") == 0 && strcmp(text_of(q, "quant_algo"), "FP8") == 0)
        return 0;
    if (strcmp(method, "modelopt") == 0)
        return refuse(where, method, "quant_algo", text_of(q, "quant_algo"), err);
    return err_set(err, ERR_REFUSED,
                   "%s: quantization_config.quant_method \"%s\": of quantized bases only 8-bit "
                   "floats are read (fp8, compressed-tensors, fbgemm_fp8, modelopt FP8); use the "
                   "unquantized checkpoint",
                   where, out->method);
}

int config_read_stored(struct model_config *out, struct float8_config *float8, const char *folder,
                       struct err *err)
{
    char *path = file_join(folder, "config.json"), *text = NULL;
    size_t size = 0;
    json_t *root = NULL;
    json_error_t where;
    memset(out, 0, sizeof *out);
    *float8 = (struct float8_config){0};
    int rc = path ? file_read(path, LIMIT_CONFIG_BYTES, &text, &size, err)
                  : err_set(err, ERR_NO_MEMORY, "%s: no memory", folder);
    if (!rc) {
        root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &where);
        rc = root ? float8_config_read(float8, root, path, err)
                  : err_set(err, ERR_CORRUPT, "%s:%d: %s", path, where.line, where.text);
    }
    if (!rc) {
        json_object_del(root, "quantization_config");
        json_object_del(json_object_get(root, "text_config"), "quantization_config");
        rc = config_from_json(out, root, path, err);
    }
    json_decref(root);
    sys_free(text);
    sys_free(path);
    return rc;
}

// ---- names --------------------------------------------------------------------------------------

static const char *const scale_suffixes[] = {"_scale_inv", "_scale"};
static const char *const unread_suffixes[] = {"_zero_point", "_scale_2", "_g_idx", "_packed"};

static const struct checkpoint_tensor *beside(const struct checkpoint *c, const char *weight,
                                              const char *suffix)
{
    char name[512];
    int n = snprintf(name, sizeof name, "%s%s", weight, suffix);
    return n > 0 && (size_t)n < sizeof name ? checkpoint_find(c, name) : NULL;
}

/* Whether `name` is that of an 8-bit weight with `suffix` behind, or ends in `last` where the
 * weight's name ends in "weight". */
static bool belongs(const struct checkpoint *c, const char *name, const char *suffix,
                    const char *instead)
{
    char weight[512];
    size_t n = strlen(name), m = strlen(suffix);
    if (n <= m || n - m + strlen(instead) >= sizeof weight || strcmp(name + n - m, suffix) != 0)
        return false;
    snprintf(weight, sizeof weight, "%.*s%s", (int)(n - m), name, instead);
    const struct checkpoint_tensor *t = checkpoint_find(c, weight);
    return t && dtype_is_float8(t->value.dtype);
}

bool float8_is_beside(const struct checkpoint *base, const char *name)
{
    return belongs(base, name, "_scale_inv", "") || belongs(base, name, "_scale", "") ||
           belongs(base, name, ".input_scale", ".weight") ||
           belongs(base, name, ".activation_scale", ".weight");
}

// ---- layouts ------------------------------------------------------------------------------------

static int check_values(const struct checkpoint_tensor *scale, struct err *err)
{
    const struct tensor *t = &scale->value;
    size_t n = (size_t)tensor_n_values(t), size = dtype_bits(t->dtype) / 8;
    for (size_t i = 0; i < n; i++) {
        double v;
        dtype_to_f64(t->dtype, (const char *)t->data + i * size, &v, 1);
        if (!isfinite(v) || v < 0)
            return err_set(err, ERR_CORRUPT, "%s[%zu]: a scale of %g", scale->name, i, v);
    }
    return 0;
}

static int layout_of(struct float8_layout *out, const struct float8_config *c,
                     const struct tensor *w, const struct tensor *s)
{
    size_t rows = (size_t)w->shape[0], cols = (size_t)w->shape[1];
    size_t n = (size_t)tensor_n_values(s);
    bool column = s->n_dims == 1 || (s->n_dims == 2 && s->shape[1] == 1);
    if (n == 1) {
        *out = (struct float8_layout){NULL, rows, cols, 1, 1};
        return 0;
    }
    if (column && s->shape[0] == rows) {
        *out = (struct float8_layout){NULL, 1, cols, rows, 1};
        return 0;
    }
    if (!c->block_rows || s->n_dims != 2)
        return ERR_REFUSED;
    *out = (struct float8_layout){.block_rows = c->block_rows,
                                  .block_cols = c->block_cols,
                                  .n_rows = (rows - 1) / c->block_rows + 1,
                                  .n_cols = (cols - 1) / c->block_cols + 1};
    return s->shape[0] == out->n_rows && s->shape[1] == out->n_cols ? 0 : ERR_REFUSED;
}

int float8_find(struct float8_layout *out, const struct float8_config *config,
                const struct checkpoint *base, const struct checkpoint_tensor *weight,
                struct err *err)
{
    const struct checkpoint_tensor *scale = NULL;
    const struct tensor *w = &weight->value;
    char got[96], shape[96];
    for (size_t i = 0; i < sizeof unread_suffixes / sizeof unread_suffixes[0]; i++) {
        const struct checkpoint_tensor *t = beside(base, weight->name, unread_suffixes[i]);
        if (t)
            return err_set(err, ERR_REFUSED, "%s: an 8-bit weight with such a tensor is not read",
                           t->name);
    }
    if (w->n_dims != 2 || !w->shape[0] || !w->shape[1])
        return err_set(err, ERR_REFUSED, "%s: %s of %s, only matrices of 8-bit floats are read",
                       weight->name, dtype_name(w->dtype), tensor_shape_text(w, got, sizeof got));
    for (size_t i = 0; i < 2; i++) {
        const struct checkpoint_tensor *t = beside(base, weight->name, scale_suffixes[i]);
        if (t && scale)
            return err_set(err, ERR_REFUSED, "%s: both %s and %s are there", weight->name,
                           scale->name, t->name);
        scale = t ? t : scale;
    }
    if (!scale && *config->method)
        return err_set(err, ERR_REFUSED, "%s: %s without scales in a checkpoint of method %s",
                       weight->name, dtype_name(w->dtype), config->method);
    *out = (struct float8_layout){NULL, (size_t)w->shape[0], (size_t)w->shape[1], 1, 1};
    if (!scale)
        return 0;
    const struct tensor *s = &scale->value;
    if (s->dtype != DTYPE_F32 && s->dtype != DTYPE_BF16 && s->dtype != DTYPE_F16)
        return err_set(err, ERR_REFUSED, "%s: scales of type %s are not read; F32, BF16, F16 are",
                       scale->name, dtype_name(s->dtype));
    if (layout_of(out, config, w, s) != 0)
        return err_set(err, ERR_REFUSED,
                       "%s: %s for a weight of %s is neither one scale, nor one a row, nor one a "
                       "block of %ux%u",
                       scale->name, tensor_shape_text(s, got, sizeof got),
                       tensor_shape_text(w, shape, sizeof shape), config->block_rows,
                       config->block_cols);
    out->scale = scale;
    return check_values(scale, err);
}

// ---- new scales ---------------------------------------------------------------------------------

static double largest(enum dtype t)
{
    return t == DTYPE_F8_E4M3 ? 448 : 57344;
}

/* The middle between the largest value and what would come after it: e4m3's goes down to 448 (whose
 * last bit is even), e5m2's up to infinity. The margin is wider than peak's own rounding error. */
bool float8_fits(enum dtype t, double peak, double scale)
{
    return peak * (1 + 0x1p-40) < (t == DTYPE_F8_E4M3 ? 464 : 61440) * scale || peak == 0;
}

double float8_scale_for(enum dtype t, double peak, enum dtype stored, bool power_of_two)
{
    double wanted = peak * (1 + 0x1p-50) / largest(t), v = 0;
    uint32_t bits = 0;
    if (power_of_two) {
        int exponent;
        double fraction = frexp(wanted, &exponent);
        wanted = ldexp(1, fraction == 0.5 ? exponent - 1 : exponent);
    }
    dtype_from_f64(stored, &wanted, &bits, 1);
    dtype_to_f64(stored, &bits, &v, 1);
    if (v < wanted) { // positive: the next one up
        bits++;
        dtype_to_f64(stored, &bits, &v, 1);
    }
    return v;
}
