/*
 * An adapter as PEFT saves it. One that came from PEFT keeps names, types and bytes of its tensors
 * and its own configuration. One that was made here gets PEFT's names, and a configuration in which
 * every module that differs has its own anchored pattern.
 */
#include <ctype.h>
#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "libcore/format/peft_impl.h"
#include "libcore/format/safetensors_writer.h"

struct out_tensor {
    char *name;
    struct tensor value;
};

struct writer {
    const struct adapter *a;
    const char *folder;
    struct arena arena;
    struct out_tensor *items;
    size_t n, cap;
    bool keep; // the file's own tensors and configuration
    struct err *err;
};

static int no_memory(struct writer *w)
{
    return err_set(w->err, ERR_NO_MEMORY, "%s: no memory", w->folder);
}

static int add(struct writer *w, const struct tensor *value, const char *fmt, const char *a,
               const char *b)
{
    if (!tensor_present(value))
        return 0;
    if (w->n == w->cap) {
        size_t cap = w->cap ? 2 * w->cap : 64;
        void *p = sys_reallocarray(w->items, cap, sizeof *w->items);
        if (!p)
            return no_memory(w);
        w->items = p;
        w->cap = cap;
    }
    struct strbuf sb;
    strbuf_init(&sb);
    strbuf_adds(&sb, "base_model.model.");
    for (const char *p = fmt; *p; p++) { // "@" is the module, "#" the second text
        if (*p == '@')
            strbuf_adds(&sb, a);
        else if (*p == '#')
            strbuf_adds(&sb, b);
        else
            strbuf_addc(&sb, *p);
    }
    struct out_tensor *t = &w->items[w->n];
    t->name = sb.failed ? NULL : arena_strdup(&w->arena, sb.data);
    strbuf_release(&sb);
    t->value = *value;
    if (!t->name)
        return no_memory(w);
    w->n++;
    return 0;
}

/* ---- tensors of an adapter that was made here ---- */

/* PEFT wraps gate_up_proj first: it is the inner one when down_proj has tensors too. */
static bool is_inner(const struct writer *w, const struct adapter_module *m)
{
    if (strcmp(m->parameter, "gate_up_proj") != 0)
        return false;
    const struct adapter_module *down = adapter_find(w->a, m->name, "down_proj");
    return down && down->rank;
}

static int add_module(struct writer *w, const struct adapter_module *m)
{
    const char *wrap = m->rank && (!m->n_experts || is_inner(w, m)) ? ".base_layer" : "";
    const char *factor = m->n_experts ? wrap : "";
    int rc;
    if (m->embedding) {
        rc = add(w, &m->a, "@.lora_embedding_A", m->name, "");
        if (!rc)
            rc = add(w, &m->b, "@.lora_embedding_B", m->name, "");
    } else {
        rc = add(w, &m->a, "@#.lora_A.weight", m->name, factor);
        if (!rc)
            rc = add(w, &m->b, "@#.lora_B.weight", m->name, factor);
    }
    if (!rc)
        rc = add(w, &m->magnitude, "@.lora_magnitude_vector", m->name, "");
    if (!rc)
        rc = add(w, &m->lora_bias, "@.lora_B.bias", m->name, "");
    if (!rc)
        rc = add(w, &m->bias, "@#.bias", m->name, wrap);
    if (!rc)
        rc = add(w, &m->rows, "@.token_adapter.trainable_tokens_delta", m->name, "");
    if (rc)
        return rc;
    if (strcmp(m->parameter, "weight") != 0 && !m->rank)
        return add(w, &m->full, "@.#", m->name, m->parameter);
    return add(w, &m->full, "@#.weight", m->name, wrap);
}

static int collect_tensors(struct writer *w)
{
    const struct adapter *a = w->a;
    for (size_t i = 0; i < a->n_modules && !w->keep; i++) {
        int rc = add_module(w, &a->modules[i]);
        if (rc)
            return rc;
    }
    return 0;
}

static int write_tensors(struct writer *w, struct safetensors_writer *out)
{
    const struct adapter *a = w->a;
    size_t n = w->keep ? a->n_tensors : w->n;
    int rc = safetensors_writer_metadata(out, "format", "pt", w->err);
    for (size_t i = 0; !rc && i < n; i++) {
        const char *name = w->keep ? a->tensors[i].name : w->items[i].name;
        const struct tensor *t = w->keep ? &a->tensors[i].value : &w->items[i].value;
        rc = safetensors_writer_declare(out, name, t->dtype, t->n_dims, t->shape, w->err);
    }
    if (!rc)
        rc = safetensors_writer_begin(out, w->err);
    for (size_t i = 0; !rc && i < n; i++) {
        const char *name = w->keep ? a->tensors[i].name : w->items[i].name;
        const struct tensor *t = w->keep ? &a->tensors[i].value : &w->items[i].value;
        rc = safetensors_writer_put(out, name, 0, t->data, tensor_n_bytes(t), w->err);
    }
    return rc ? rc : safetensors_writer_finish(out, w->err);
}

static int write_weights(struct writer *w)
{
    char *path = file_join(w->folder, "adapter_model.safetensors");
    struct safetensors_writer *out = NULL;
    int rc = path ? collect_tensors(w) : no_memory(w);
    if (!rc)
        rc = safetensors_writer_open(&out, path, w->err);
    if (!rc)
        rc = write_tensors(w, out);
    safetensors_writer_free(out);
    sys_free(path);
    return rc;
}

/* ---- configuration of an adapter that was made here ---- */

/* A number as PEFT would write it: whole when it is whole. */
static json_t *number(double v)
{
    return v == floor(v) && fabs(v) < 1e15 ? json_integer((json_int_t)v) : json_real(v);
}

/* "^model\.layers\.0\.q_proj": matches this module alone. */
static int put_pattern(json_t *dict, const struct adapter_module *m, json_t *value)
{
    struct strbuf sb;
    strbuf_init(&sb);
    strbuf_addc(&sb, '^');
    for (const char *p = m->name; *p; p++) {
        if (!isalnum((unsigned char)*p) && *p != '_')
            strbuf_addc(&sb, '\\');
        strbuf_addc(&sb, *p);
    }
    if (m->n_experts)
        strbuf_addf(&sb, "\\.%s", m->parameter);
    int rc = sb.failed || !value || json_object_set(dict, sb.data, value) ? ERR_NO_MEMORY : 0;
    strbuf_release(&sb);
    json_decref(value);
    return rc;
}

static int append(json_t *list, const char *text)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        if (strcmp(json_string_value(json_array_get(list, i)), text) == 0)
            return 0;
    }
    return json_array_append_new(list, json_string(text)) ? ERR_NO_MEMORY : 0;
}

static json_t *id_list(const struct adapter_module *m)
{
    json_t *ids = json_array();
    for (uint32_t i = 0; i < m->n_rows; i++)
        json_array_append_new(ids, json_integer(m->row_ids[i]));
    return ids;
}

struct made_config {
    json_t *targets, *parameters, *ranks, *alphas, *saved, *tokens;
    bool dora, lora_bias, bias, transposed;
    uint32_t rank;
    double alpha;
};

/* The alpha for which PEFT, without use_rslora, has the module's scale: alpha / r. */
static double alpha_of(const struct adapter_module *m)
{
    double alpha = m->scale * m->rank;
    if (!m->rank || alpha / m->rank == m->scale)
        return alpha;
    if (m->alpha / m->rank == m->scale)
        return m->alpha;
    double up = nextafter(alpha, INFINITY), down = nextafter(alpha, -INFINITY);
    return up / m->rank == m->scale ? up : down / m->rank == m->scale ? down : alpha;
}

static int describe(struct made_config *c, const struct adapter_module *m)
{
    int rc = 0;
    double alpha = alpha_of(m);
    if (m->rank && !c->rank) {
        c->rank = m->rank;
        c->alpha = alpha;
    }
    if (m->rank && m->rank != c->rank)
        rc = put_pattern(c->ranks, m, json_integer(m->rank));
    if (!rc && m->rank && alpha != c->alpha)
        rc = put_pattern(c->alphas, m, number(alpha));
    if (!rc && m->rank && m->n_experts)
        rc = append(c->parameters, m->parameter);
    else if (!rc && m->rank)
        rc = append(c->targets, m->name);
    if (!rc && tensor_present(&m->full) && !m->full_is_base)
        rc = append(c->saved, m->name);
    if (!rc && m->n_rows)
        rc = json_object_set_new(c->tokens, m->name, id_list(m)) ? ERR_NO_MEMORY : 0;
    c->dora |= tensor_present(&m->magnitude);
    c->lora_bias |= tensor_present(&m->lora_bias);
    c->bias |= tensor_present(&m->bias);
    c->transposed |= m->transposed;
    return rc;
}

static json_t *list_or_null(json_t *v)
{
    bool some = json_is_array(v) ? json_array_size(v) > 0 : json_object_size(v) > 0;
    return some ? v : json_null();
}

static json_t *assemble(const struct adapter *a, const struct made_config *c)
{
    return json_pack("{s:s, s:s, s:s?, s:b, s:i, s:o, s:f, s:O, s:O, s:O, s:O, s:O, s:O, s:s, s:b, "
                     "s:b, s:b, s:b, s:b, s:b}",
                     "peft_type", "LORA", "task_type", "CAUSAL_LM", "base_model_name_or_path",
                     a->base_name, "inference_mode", 1, "r", (int)(c->rank ? c->rank : 8),
                     "lora_alpha", number(c->rank ? c->alpha : 8), "lora_dropout", 0.0,
                     "target_modules", c->targets, "target_parameters", list_or_null(c->parameters),
                     "rank_pattern", c->ranks, "alpha_pattern", c->alphas, "modules_to_save",
                     list_or_null(c->saved), "trainable_token_indices", list_or_null(c->tokens),
                     "bias", c->bias ? "all" : "none", "use_rslora", 0, "use_dora", (int)c->dora,
                     "lora_bias", (int)c->lora_bias, "fan_in_fan_out", (int)c->transposed,
                     "ensure_weight_tying", (int)a->ensure_weight_tying, "init_lora_weights", 1);
}

static json_t *make_config(const struct adapter *a)
{
    struct made_config c = {.targets = json_array(),
                            .parameters = json_array(),
                            .ranks = json_object(),
                            .alphas = json_object(),
                            .saved = json_array(),
                            .tokens = json_object()};
    bool ok = c.targets && c.parameters && c.ranks && c.alphas && c.saved && c.tokens;
    for (size_t i = 0; ok && i < a->n_modules; i++)
        ok = describe(&c, &a->modules[i]) == 0;
    json_t *config = ok ? assemble(a, &c) : NULL;
    json_decref(c.targets);
    json_decref(c.parameters);
    json_decref(c.ranks);
    json_decref(c.alphas);
    json_decref(c.saved);
    json_decref(c.tokens);
    return config;
}

/* ---- the text ---- */

/* Digits that every real number in the tree needs to come back as itself: 15 to 17. */
static int precision_of(const json_t *v)
{
    int most = 15;
    const char *key;
    json_t *item;
    size_t i;
    if (json_is_real(v)) {
        char text[64];
        for (most = 15; most < 17; most++) {
            snprintf(text, sizeof text, "%.*g", most, json_real_value(v));
            if (strtod(text, NULL) == json_real_value(v))
                break;
        }
    }
    if (json_is_array(v)) {
        json_array_foreach(v, i, item)
        {
            int n = precision_of(item);
            most = n > most ? n : most;
        }
    }
    json_object_foreach((json_t *)v, key, item)
    {
        int n = precision_of(item);
        most = n > most ? n : most;
    }
    return most;
}

static int dump_chunk(const char *buffer, size_t size, void *data)
{
    struct strbuf *sb = data;
    strbuf_add(sb, buffer, size);
    return sb->failed ? -1 : 0;
}

static int write_config(struct writer *w)
{
    json_t *config = w->keep ? json_incref(w->a->config) : make_config(w->a);
    char *path = file_join(w->folder, "adapter_config.json");
    struct strbuf sb;
    strbuf_init(&sb);
    int rc = config && path ? 0 : no_memory(w);
    if (!rc && json_dump_callback(config, dump_chunk, &sb,
                                  JSON_INDENT(2) | JSON_SORT_KEYS | JSON_ENSURE_ASCII |
                                      JSON_REAL_PRECISION(precision_of(config))) != 0)
        rc = no_memory(w);
    if (!rc)
        rc = file_write_atomic(path, sb.data, sb.len, w->err);
    strbuf_release(&sb);
    sys_free(path);
    json_decref(config);
    return rc;
}

int peft_write(const struct adapter *a, const char *folder, struct err *err)
{
    struct writer w = {.a = a, .folder = folder, .err = err};
    w.keep = a->n_tensors && a->config && a->format && strcmp(a->format, "peft") == 0;
    arena_init(&w.arena);
    int rc = write_weights(&w);
    if (!rc) // last, so that a folder with a configuration is a whole adapter
        rc = write_config(&w);
    sys_free(w.items);
    arena_release(&w.arena);
    return rc;
}
