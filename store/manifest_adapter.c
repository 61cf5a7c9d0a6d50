#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"
#include "store/manifest.h"

static int no_memory(struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "no memory for a manifest");
}

/* "model.layers.11.mlp.up_proj" -> 11; -1 when no part of the name is a number. */
static long layer_of(const char *name)
{
    for (const char *p = name; p; p = strchr(p, '.')) {
        p += *p == '.';
        char *end;
        if (isdigit((unsigned char)*p)) {
            long n = strtol(p, &end, 10);
            if (*end == '.' || !*end)
                return n;
        }
    }
    return -1;
}

static const char *target_of(const struct adapter_module *m)
{
    if (m->n_experts)
        return m->parameter;
    const char *dot = strrchr(m->name, '.');
    return dot ? dot + 1 : m->name;
}

static int compare_texts(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* "k_proj,q_proj": the distinct last parts of module names. */
static int targets_text(const struct adapter *a, struct strbuf *out, struct err *err)
{
    const char **all = sys_calloc(a->n_modules, sizeof *all);
    if (!all)
        return no_memory(err);
    for (size_t i = 0; i < a->n_modules; i++)
        all[i] = target_of(&a->modules[i]);
    qsort(all, a->n_modules, sizeof *all, compare_texts);
    for (size_t i = 0; i < a->n_modules; i++) {
        if (i == 0 || strcmp(all[i], all[i - 1]) != 0)
            strbuf_addf(out, "%s%s", out->len ? "," : "", all[i]);
    }
    sys_free(all);
    return out->failed ? no_memory(err) : 0;
}

static int compare_longs(const void *a, const void *b)
{
    long x = *(const long *)a, y = *(const long *)b;
    return (x > y) - (x < y);
}

static int count_layers(const struct adapter *a, uint32_t *n_layers, struct err *err)
{
    long *all = sys_calloc(a->n_modules, sizeof *all);
    if (!all)
        return no_memory(err);
    size_t n = 0;
    for (size_t i = 0; i < a->n_modules; i++) {
        long layer = layer_of(a->modules[i].name);
        if (layer >= 0)
            all[n++] = layer;
    }
    qsort(all, n, sizeof *all, compare_longs);
    *n_layers = 0;
    for (size_t i = 0; i < n; i++)
        *n_layers += i == 0 || all[i] != all[i - 1];
    sys_free(all);
    return 0;
}

static const char *dtype_text(const struct adapter *a)
{
    for (size_t i = 1; i < a->n_tensors; i++) {
        if (a->tensors[i].value.dtype != a->tensors[0].value.dtype)
            return "mixed";
    }
    return a->n_tensors ? dtype_name(a->tensors[0].value.dtype) : "";
}

json_t *manifest_shape(const struct tensor *t)
{
    json_t *shape = json_array();
    for (uint32_t d = 0; d < t->n_dims; d++)
        json_array_append_new(shape, json_integer((json_int_t)t->shape[d]));
    if (json_array_size(shape) == t->n_dims)
        return shape;
    json_decref(shape);
    return NULL;
}

static json_t *tensors_json(const struct adapter *a, uint64_t *host_bytes)
{
    json_t *list = json_array();
    *host_bytes = 0;
    for (size_t i = 0; list && i < a->n_tensors; i++) {
        const struct adapter_tensor *t = &a->tensors[i];
        char hex[DIGEST_HEX_CHARS + 1];
        digest_hex(&t->payload, hex);
        json_t *shape = manifest_shape(&t->value);
        *host_bytes += tensor_n_bytes(&t->value);
        json_array_append_new(list,
                              json_pack("{s:s,s:s,s:o,s:s}", "name", t->name, "dtype",
                                        dtype_name(t->value.dtype), "shape", shape, "sha256", hex));
    }
    // What memory did not suffice for must not be missing without a word.
    if (json_array_size(list) != a->n_tensors) {
        json_decref(list);
        return NULL;
    }
    return list;
}

static json_t *kept_warnings(const struct adapter *a, const struct manifest_origin *origin)
{
    const json_t *list = origin->warnings ? origin->warnings : a->warnings;
    return list ? json_deep_copy(list) : json_array();
}

int manifest_of_adapter(json_t **out, const struct adapter *a, const struct manifest_origin *origin,
                        struct err *err)
{
    *out = NULL;
    struct strbuf targets;
    strbuf_init(&targets);
    uint32_t n_layers = 0;
    int rc = targets_text(a, &targets, err);
    if (!rc)
        rc = count_layers(a, &n_layers, err);
    if (!rc) {
        uint64_t host_bytes;
        char kinds[160];
        json_t *tensors = tensors_json(a, &host_bytes);
        json_t *m =
            json_pack("{s:i,s:s,s:s,s:s,s:s,s:s,s:I}", "schema", 1, "kind", "adapter", "id",
                      a->content_id, "name", origin->name ? origin->name : "", "format",
                      a->format ? a->format : "", "source", origin->source ? origin->source : "",
                      "created", (json_int_t)(thread_unix_ns() / 1000000000u));
        json_t *more = json_pack(
            "{s:{s:s,s:s},s:i,s:s,s:[i,i],s:i,s:i,s:I,s:s,s:s,s:{s:I,s:I,s:I},s:O,s:o,s:O,s:o,s:[]"
            "}",
            "base", "fingerprint", origin->base_id ? origin->base_id : "", "name",
            a->base_name ? a->base_name : "", "kinds", (int)a->kinds, "kinds_text",
            adapter_kinds_text(a->kinds, kinds, sizeof kinds), "rank", (int)a->min_rank,
            (int)a->max_rank, "layers", (int)n_layers, "modules", (int)a->n_modules, "parameters",
            (json_int_t)a->n_parameters, "targets", strbuf_text(&targets), "dtype", dtype_text(a),
            "bytes", "disk", (json_int_t)0, "host", (json_int_t)host_bytes, "device",
            (json_int_t)(a->n_parameters * 2), "config", a->config ? a->config : json_null(),
            "warnings", kept_warnings(a, origin), "ignored_fields",
            origin->ignored ? origin->ignored : json_null(), "tensors", tensors, "files");
        if (!m || !more || json_object_update(m, more) != 0)
            rc = no_memory(err);
        if (!rc && origin->lineage &&
            json_object_set_new(m, "lineage", json_deep_copy(origin->lineage)) != 0)
            rc = no_memory(err);
        json_decref(more);
        if (rc)
            json_decref(m);
        else
            *out = m;
    }
    strbuf_release(&targets);
    return rc;
}
