#include <math.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "libcore/base/file.h"
#include "libcore/base/limits.h"
#include "libcore/base/sys.h"
#include "libcore/format/peft_impl.h"

enum {
    T_BOOL = 1,
    T_INT = 2,
    T_NUMBER = 4,
    T_STRING = 8,
    T_LIST = 16,
    T_DICT = 32,
    T_ANY = 63,
};

#define CONVERT                                                                                    \
    "save it again with path_initial_model_for_weight_conversion, which makes a plain LoRA of it"

/* Every field of PEFT 0.21's LoraConfig, and those that trainers and old versions add. Null is
 * always the default. Kept in step with docs/FORMATS.md (a test compares them). */
static const struct peft_field table[] = {
    // what changes numbers
    {"r", PEFT_FIELD_NUMERIC, T_INT, "rank; default 8"},
    {"lora_alpha", PEFT_FIELD_NUMERIC, T_NUMBER, "scale = alpha / r; default 8"},
    {"use_rslora", PEFT_FIELD_NUMERIC, T_BOOL, "scale = alpha / sqrt(r)"},
    {"use_dora", PEFT_FIELD_NUMERIC, T_BOOL, "magnitudes"},
    {"rank_pattern", PEFT_FIELD_NUMERIC, T_DICT, "rank by module, first regex that matches"},
    {"alpha_pattern", PEFT_FIELD_NUMERIC, T_DICT, "alpha by module, first regex that matches"},
    {"target_modules", PEFT_FIELD_NUMERIC, T_STRING | T_LIST, "which modules must have tensors"},
    {"exclude_modules", PEFT_FIELD_NUMERIC, T_STRING | T_LIST, "taken out of target_modules"},
    {"layers_to_transform", PEFT_FIELD_NUMERIC, T_INT | T_LIST, "narrows target_modules"},
    {"layers_pattern", PEFT_FIELD_NUMERIC, T_STRING | T_LIST, "where the layer's number stands"},
    {"modules_to_save", PEFT_FIELD_NUMERIC, T_STRING | T_LIST, "full replacements"},
    {"bias", PEFT_FIELD_NUMERIC, T_STRING, "none, all or lora_only: replaced biases"},
    {"lora_bias", PEFT_FIELD_NUMERIC, T_BOOL, "lora_B has a bias"},
    {"fan_in_fan_out", PEFT_FIELD_NUMERIC, T_BOOL, "the base stores [in, out]"},
    {"init_lora_weights", PEFT_FIELD_NUMERIC, T_BOOL | T_STRING, "some change the base: refused"},
    {"target_parameters", PEFT_FIELD_NUMERIC, T_LIST, "MoE experts"},
    {"trainable_token_indices", PEFT_FIELD_NUMERIC, T_LIST | T_DICT, "replaced rows"},
    {"ensure_weight_tying", PEFT_FIELD_NUMERIC, T_BOOL, "lm_head follows the embedding"},
    {"peft_type", PEFT_FIELD_NUMERIC, T_STRING, "LORA"},
    // what does not
    {"lora_dropout", PEFT_FIELD_INERT, T_ANY, "training only"},
    {"inference_mode", PEFT_FIELD_INERT, T_ANY, "training only"},
    {"task_type", PEFT_FIELD_INERT, T_ANY, "a label; heads of other tasks do not bind"},
    {"base_model_name_or_path", PEFT_FIELD_INERT, T_ANY, "a label; the fingerprint decides"},
    {"revision", PEFT_FIELD_INERT, T_ANY, "a label of the base"},
    {"peft_version", PEFT_FIELD_INERT, T_ANY, "a label"},
    {"auto_mapping", PEFT_FIELD_INERT, T_ANY, "class names"},
    {"name", PEFT_FIELD_INERT, T_ANY, "the adapter's name"},
    {"megatron_config", PEFT_FIELD_INERT, T_ANY, "training only"},
    {"megatron_core", PEFT_FIELD_INERT, T_ANY, "training only"},
    {"loftq_config", PEFT_FIELD_INERT, T_ANY, "initialisation; init_lora_weights decides"},
    {"eva_config", PEFT_FIELD_INERT, T_ANY, "initialisation"},
    {"corda_config", PEFT_FIELD_INERT, T_ANY, "initialisation; init_lora_weights decides"},
    {"lora_ga_config", PEFT_FIELD_INERT, T_ANY, "initialisation; init_lora_weights decides"},
    {"velora_config", PEFT_FIELD_INERT, T_ANY, "training only"},
    {"monteclora_config", PEFT_FIELD_INERT, T_ANY, "training only; the mean is plain LoRA"},
    {"qalora_group_size", PEFT_FIELD_INERT, T_ANY, "only with use_qalora"},
    {"merge_weights", PEFT_FIELD_INERT, T_ANY, "of PEFT before 0.3"},
    {"runtime_config", PEFT_FIELD_INERT, T_ANY, "not saved by PEFT itself"},
    // what is not computed here
    {"use_qalora", PEFT_FIELD_REFUSED, T_ANY,
     "QALoRA pools its input by groups; train with use_qalora=False"},
    {"alora_invocation_tokens", PEFT_FIELD_REFUSED, T_ANY,
     "aLoRA acts only after its invocation tokens; train a plain LoRA"},
    {"use_bdlora", PEFT_FIELD_REFUSED, T_ANY,
     "block-diagonal LoRA has other shapes; expand its factors to full ones and set it to null"},
    {"kasa_config", PEFT_FIELD_REFUSED, T_ANY,
     "KaSA changes the base weights; merge it with PEFT and import the merged model"},
    {"arrow_config", PEFT_FIELD_REFUSED, T_ANY,
     "Arrow routes between adapters; import the task adapters themselves"},
    {"layer_replication", PEFT_FIELD_REFUSED, T_ANY,
     "layer_replication builds a deeper model; save that model and train on it"},
    {"enable_lora", PEFT_FIELD_REFUSED, T_ANY,
     "merged linear layers of PEFT before 0.3; save it again with a later PEFT"},
};

const struct peft_field *peft_field_table(size_t *n)
{
    *n = sizeof table / sizeof *table;
    return table;
}

int peft_config_load(json_t **out, const char *path, struct err *err)
{
    char *text;
    size_t n;
    *out = NULL;
    int rc = file_read(path, LIMIT_CONFIG_BYTES, &text, &n, err);
    if (rc)
        return rc;
    json_error_t je;
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &je);
    sys_free(text);
    if (!root && json_error_code(&je) == json_error_out_of_memory)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
    if (!json_is_object(root)) {
        json_decref(root);
        return root ? err_set(err, ERR_CORRUPT, "%s: an object is wanted", path)
                    : err_set(err, ERR_CORRUPT, "%s: line %d: %s", path, je.line, je.text);
    }
    *out = root;
    return 0;
}

static bool is_empty(const json_t *v)
{
    return json_is_null(v) || json_is_false(v) || (json_is_array(v) && json_array_size(v) == 0) ||
           (json_is_object(v) && json_object_size(v) == 0) ||
           (json_is_string(v) && !json_string_value(v)[0]);
}

static bool type_fits(const json_t *v, unsigned types)
{
    return (json_is_boolean(v) && types & T_BOOL) || (json_is_integer(v) && types & T_INT) ||
           (json_is_number(v) && types & T_NUMBER) || (json_is_string(v) && types & T_STRING) ||
           (json_is_array(v) && types & T_LIST) || (json_is_object(v) && types & T_DICT);
}

static bool is_ignored(const struct peft_options *opt, const char *field)
{
    for (size_t i = 0; opt && i < opt->n_ignore_fields; i++) {
        if (strcmp(opt->ignore_fields[i], field) == 0)
            return true;
    }
    return false;
}

static const struct peft_field *find_field(const char *name)
{
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (strcmp(table[i].name, name) == 0)
            return &table[i];
    }
    return NULL;
}

static int check_field(const char *name, const json_t *value, const char *where,
                       const struct peft_options *opt, struct adapter *a, struct err *err)
{
    const struct peft_field *f = find_field(name);
    if (f && f->role == PEFT_FIELD_NUMERIC) {
        if (json_is_null(value) || type_fits(value, f->types))
            return 0;
        return err_set(err, ERR_REFUSED, "%s:%s: a value of another type than PEFT writes", where,
                       name);
    }
    if ((f && f->role == PEFT_FIELD_INERT) || is_empty(value))
        return 0;
    if (is_ignored(opt, name))
        return adapter_warn(a, err, "field %s was ignored by request", name);
    if (f)
        return err_set(err, ERR_REFUSED, "%s:%s: %s", where, name, f->why);
    return err_set(err, ERR_REFUSED,
                   "%s:%s: unknown field with a value; it may change the numbers. If it does not: "
                   "--ignore-field %s",
                   where, name, name);
}

static bool flag(const json_t *root, const char *name)
{
    return json_is_true(json_object_get(root, name));
}

static const char *text_of(const json_t *root, const char *name)
{
    return json_string_value(json_object_get(root, name));
}

static int check_type(const json_t *root, const char *where, struct err *err)
{
    const char *type = text_of(root, "peft_type");
    if (!type)
        return err_set(err, ERR_REFUSED, "%s:peft_type: missing; is this an adapter of PEFT?",
                       where);
    if (strcmp(type, "LORA") == 0)
        return 0;
    return err_set(
        err, ERR_REFUSED,
        "%s:peft_type: %.40s is not computed here, only LORA; where PEFT can, convert it "
        "to LoRA (peft.tuners.lora.conversion)",
        where, type);
}

static int check_init(const json_t *root, const char *where, struct err *err)
{
    static const char *const harmless[] = {"gaussian", "orthogonal", "eva", "mica", "default"};
    static const char *const moved[] = {"pissa", "olora", "corda", "lora_ga", "loftq"};
    const char *init = text_of(root, "init_lora_weights");
    if (!init)
        return 0;
    for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++) {
        if (strcasecmp(init, harmless[i]) == 0)
            return 0;
    }
    for (size_t i = 0; i < sizeof moved / sizeof *moved; i++) {
        if (strncasecmp(init, moved[i], strlen(moved[i])) == 0)
            return err_set(
                err, ERR_REFUSED,
                "%s:init_lora_weights: %.40s changed the base weights in training; " CONVERT, where,
                init);
    }
    return err_set(err, ERR_REFUSED,
                   "%s:init_lora_weights: \"%.40s\" is not known; whether it changed the base "
                   "cannot be told",
                   where, init);
}

static int check_rank_and_alpha(const json_t *root, const char *where, struct err *err)
{
    const json_t *r = json_object_get(root, "r"), *alpha = json_object_get(root, "lora_alpha");
    json_int_t rank = json_is_integer(r) ? json_integer_value(r) : 8;
    if (rank <= 0)
        return err_set(err, ERR_REFUSED, "%s:r: %lld is no rank, it must be positive", where,
                       (long long)rank);
    if (rank > LIMIT_RANK)
        return err_set(err, ERR_REFUSED, "%s:r: %lld, at most %d is computed; `resize` it first",
                       where, (long long)rank, LIMIT_RANK);
    if (json_is_number(alpha) && !isfinite(json_number_value(alpha)))
        return err_set(err, ERR_CORRUPT, "%s:lora_alpha: not finite", where);
    return 0;
}

static int check_combinations(const json_t *root, const char *where, struct err *err)
{
    const char *bias = text_of(root, "bias");
    if (bias && strcmp(bias, "none") != 0 && strcmp(bias, "all") != 0 &&
        strcmp(bias, "lora_only") != 0)
        return err_set(err, ERR_REFUSED, "%s:bias: \"%.40s\"; none, all or lora_only is wanted",
                       where, bias);
    bool parameters = json_array_size(json_object_get(root, "target_parameters")) > 0;
    if (flag(root, "use_dora") && flag(root, "lora_bias"))
        return err_set(err, ERR_REFUSED, "%s:lora_bias: not defined together with use_dora", where);
    if (flag(root, "use_dora") && parameters)
        return err_set(err, ERR_REFUSED,
                       "%s:use_dora: not defined on target_parameters; train without one of them",
                       where);
    if (flag(root, "lora_bias") && parameters)
        return err_set(err, ERR_REFUSED, "%s:lora_bias: not defined on target_parameters", where);
    if (flag(root, "fan_in_fan_out") && parameters)
        return err_set(err, ERR_REFUSED, "%s:fan_in_fan_out: not defined on target_parameters",
                       where);
    return 0;
}

static int check_list_types(const json_t *root, const char *where, struct err *err)
{
    static const char *const lists[] = {"target_modules", "exclude_modules", "layers_pattern",
                                        "modules_to_save", "target_parameters"};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        const json_t *list = json_object_get(root, lists[i]);
        for (size_t k = 0; json_is_array(list) && k < json_array_size(list); k++) {
            if (!json_is_string(json_array_get(list, k)))
                return err_set(err, ERR_REFUSED, "%s:%s: a list of strings is wanted", where,
                               lists[i]);
        }
    }
    const json_t *layers = json_object_get(root, "layers_to_transform");
    for (size_t k = 0; json_is_array(layers) && k < json_array_size(layers); k++) {
        if (!json_is_integer(json_array_get(layers, k)))
            return err_set(err, ERR_REFUSED, "%s:layers_to_transform: whole numbers are wanted",
                           where);
    }
    return 0;
}

int peft_config_check(struct peft_config *out, const json_t *root, const char *where,
                      const struct peft_options *opt, struct adapter *a, struct err *err)
{
    int rc = check_type(root, where, err);
    if (!rc && !is_ignored(opt, "init_lora_weights"))
        rc = check_init(root, where, err);
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)root, name, value)
    {
        if (!rc)
            rc = check_field(name, value, where, opt, a, err);
    }
    if (!rc)
        rc = check_rank_and_alpha(root, where, err);
    if (!rc)
        rc = check_combinations(root, where, err);
    if (!rc)
        rc = check_list_types(root, where, err);
    if (rc)
        return rc;
    out->root = root;
    out->where = where;
    out->rslora = flag(root, "use_rslora");
    out->dora = flag(root, "use_dora");
    out->lora_bias = flag(root, "lora_bias");
    out->fan_in_fan_out = flag(root, "fan_in_fan_out");
    a->ensure_weight_tying = flag(root, "ensure_weight_tying");
    return 0;
}
