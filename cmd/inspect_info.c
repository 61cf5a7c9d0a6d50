#include "cmd/inspect_info.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "libcore/adapter/capability.h"
#include "libcore/adapter/content_id.h"
#include "libcore/adapter/stats.h"
#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/adapter_file.h"
#include "libcore/model/bind.h"
#include "store/base_model.h"

static int no_memory(struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "no memory to describe it");
}

static void set(json_t *o, const char *key, json_t *value)
{
    json_object_set_new(o, key, value);
}

static json_t *text_or_null(const char *text)
{
    return text && *text ? json_string(text) : json_null();
}

// ---- an adapter's own facts --------------------------------------------------------------------

static const struct {
    unsigned bit;
    const char *name;
} kind_names[] = {
    {ADAPTER_LORA, "lora"},     {ADAPTER_DORA, "dora"},   {ADAPTER_LORA_BIAS, "lora_bias"},
    {ADAPTER_BIAS, "bias"},     {ADAPTER_EMBED, "embed"}, {ADAPTER_HEAD, "head"},
    {ADAPTER_TOKENS, "tokens"}, {ADAPTER_FULL, "full"},   {ADAPTER_EXPERTS, "experts"},
};

static json_t *kinds_json(unsigned kinds)
{
    json_t *list = json_array();
    for (size_t i = 0; i < sizeof kind_names / sizeof *kind_names; i++) {
        if (kinds & kind_names[i].bit)
            json_array_append_new(list, json_string(kind_names[i].name));
    }
    return list;
}

static const struct tensor *first_tensor(const struct adapter_module *m)
{
    const struct tensor *all[] = {&m->a, &m->full, &m->rows, &m->bias, &m->magnitude};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (tensor_present(all[i]))
            return all[i];
    }
    return NULL;
}

static json_t *module_json(const struct module_stats *ms, bool deep)
{
    const struct adapter_module *m = ms->module;
    const struct tensor *t = first_tensor(m);
    json_t *row =
        json_pack("{s:s, s:s, s:i, s:f, s:f, s:o, s:I, s:I, s:s}", "name", m->name, "parameter",
                  m->parameter ? m->parameter : "weight", "rank", (int)m->rank, "alpha", m->alpha,
                  "scale", m->scale, "kinds", kinds_json(adapter_module_kinds(m)), "parameters",
                  (json_int_t)ms->n_parameters, "bytes", (json_int_t)ms->n_bytes, "dtype",
                  t ? dtype_name(t->dtype) : "");
    if (!deep || !row)
        return row;
    set(row, "needs_base", json_boolean(ms->needs_base));
    set(row, "frobenius", ms->has_factors ? json_real(ms->frobenius) : json_null());
    set(row, "spectral", ms->has_factors ? json_real(ms->spectral) : json_null());
    set(row, "stable_rank", ms->has_factors ? json_real(ms->stable_rank) : json_null());
    return row;
}

static uint64_t tensor_sums(const struct adapter_module *m, uint64_t *bytes)
{
    const struct tensor *all[] = {&m->a,    &m->b,    &m->magnitude, &m->lora_bias,
                                  &m->bias, &m->full, &m->rows};
    uint64_t n = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (tensor_present(all[i])) {
            n += tensor_n_values(all[i]);
            *bytes += tensor_n_bytes(all[i]);
        }
    }
    return n;
}

static int add_modules(json_t *info, const struct adapter *a, bool deep, struct err *err)
{
    struct adapter_stats *stats = NULL;
    int rc = deep ? stats_compute(&stats, a, 0, err) : 0;
    json_t *list = json_array();
    for (size_t i = 0; !rc && i < a->n_modules; i++) {
        struct module_stats plain = {.module = &a->modules[i]};
        if (!deep)
            plain.n_parameters = tensor_sums(&a->modules[i], &plain.n_bytes);
        json_array_append_new(list, module_json(deep ? &stats->modules[i] : &plain, deep));
    }
    if (deep && !rc)
        set(info, "deep",
            json_pack("{s:f, s:f, s:s}", "frobenius", stats->frobenius, "max_spectral",
                      stats->max_spectral, "max_module",
                      a->n_modules ? a->modules[stats->max_module_idx].name : ""));
    set(info, "modules", list);
    stats_free(stats);
    return rc;
}

static void add_dtypes(json_t *info, const struct adapter *a)
{
    json_t *dtypes = json_object();
    for (size_t i = 0; i < a->n_tensors; i++) {
        const char *name = dtype_name(a->tensors[i].value.dtype);
        json_int_t n = json_integer_value(json_object_get(dtypes, name));
        set(dtypes, name, json_integer(n + (json_int_t)tensor_n_bytes(&a->tensors[i].value)));
    }
    set(info, "dtypes", dtypes);
}

// ---- what will be said of it -------------------------------------------------------------------

/* Opens the base's architecture alone, binds and asks the CPU back end: no weight is read. */
static int ask_base(const struct adapter *a, const char *folder, struct err *err)
{
    struct model_config config;
    struct model_modules *modules = NULL;
    struct bound_adapter *bound = NULL;
    struct backend *be = NULL;
    int rc = config_read(&config, folder, err);
    if (rc)
        return rc;
    rc = modules_open(&modules, &config, err);
    if (!rc)
        rc = bind_adapter(&bound, a, modules, &config, err);
    const struct backend_options opt = {.device = "cpu", .n_threads = 1};
    char note[256];
    if (!rc)
        rc = kernels_open(&be, &opt, note, sizeof note, err);
    if (!rc)
        rc = be->ops->supports(be, &config, bound->kinds, err);
    if (be)
        be->ops->close(be);
    bound_free(bound);
    modules_free(modules);
    config_release(&config);
    return rc;
}

static void add_capability(json_t *info, const struct adapter *a, const char *base_folder)
{
    json_t *all = json_object();
    for (int use = 0; use < CAPABILITY_COUNT; use++) {
        struct capability c = {.ok = true};
        struct err why = {0};
        capability_of(a, (enum capability_use)use, ~0u, &c);
        const char *text = c.why;
        if (c.ok && base_folder && (use == CAPABILITY_SERVE || use == CAPABILITY_SCALE) &&
            ask_base(a, base_folder, &why) != 0) {
            c.ok = false;
            text = why.msg;
        }
        json_t *row = json_pack("{s:b, s:s}", "ok", c.ok, "why", text);
        set(all, capability_use_name((enum capability_use)use), row);
    }
    set(info, "capability", all);
}

/* The recorded base: its name, and what share of its parameters the adapter is. */
static int add_base(json_t *info, struct store *s, const char *base_id, const char *base_name,
                    const struct adapter *a, struct err *err)
{
    struct store_entry e = {0};
    char *folder = NULL;
    int rc = s && *base_id ? store_get(s, base_id, &e, err) : ERR_NOT_FOUND;
    if (rc == ERR_NOT_FOUND) {
        err_clear(err);
        set(info, "base",
            json_pack("{s:o, s:o, s:b}", "id", text_or_null(base_id), "name",
                      text_or_null(base_name), "in_store", 0));
        add_capability(info, a, NULL);
        return 0;
    }
    if (rc)
        return rc;
    struct err gone = {0};
    store_base_folder(s, base_id, &folder, &gone);
    json_t *base = json_pack("{s:s, s:s, s:b}", "id", e.id, "name", e.name, "in_store", 1);
    if (!folder)
        set(base, "problem", json_string(gone.msg));
    set(info, "base", base);
    set(info, "base_parameters", json_integer((json_int_t)e.n_parameters));
    if (e.n_parameters)
        set(info, "share", json_real((double)a->n_parameters / (double)e.n_parameters));
    add_capability(info, a, folder);
    sys_free(folder);
    store_entry_release(&e);
    return 0;
}

// ---- adapters ----------------------------------------------------------------------------------

static uint64_t host_bytes(const struct adapter *a)
{
    uint64_t n = 0;
    for (size_t i = 0; i < a->n_tensors; i++)
        n += tensor_n_bytes(&a->tensors[i].value);
    return n;
}

static json_t *adapter_json(const struct adapter *a)
{
    char kinds[160];
    return json_pack("{s:s, s:s, s:s, s:I, s:[i,i], s:o, s:s, s:o, s:o}", "kind", "adapter", "id",
                     a->content_id, "format", a->format ? a->format : "", "parameters",
                     (json_int_t)a->n_parameters, "rank", (int)a->min_rank, (int)a->max_rank,
                     "kinds", kinds_json(a->kinds), "kinds_text",
                     adapter_kinds_text(a->kinds, kinds, sizeof kinds), "warnings",
                     a->warnings ? json_deep_copy(a->warnings) : json_array(), "config",
                     a->config ? json_deep_copy(a->config) : json_null());
}

static void copy_fields(json_t *info, const json_t *manifest)
{
    static const char *const fields[] = {"files",          "source",  "created",
                                         "ignored_fields", "layers",  "targets",
                                         "warnings",       "lineage", "signatures"};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        json_t *value = json_object_get(manifest, fields[i]);
        if (value)
            set(info, fields[i], json_deep_copy(value));
    }
    json_t *bytes = json_object_get(manifest, "bytes");
    set(info, "tiers", bytes ? json_deep_copy(bytes) : json_null());
}

/* Files of an adapter outside the store; their digests only when all bytes are read anyway. */
static int add_outside_files(json_t *info, const char *path, const struct adapter *a, bool deep,
                             struct err *err)
{
    struct peft_files files;
    int rc = adapter_files_list(&files, path, err);
    if (rc)
        return rc;
    json_t *list = json_array();
    uint64_t total = 0;
    for (size_t i = 0; !rc && i < files.n; i++) {
        uint64_t size = 0;
        struct digest d;
        char hex[DIGEST_HEX_CHARS + 1] = "";
        rc = deep ? digest_file(files.items[i].path, &d, &size, err)
                  : file_size(files.items[i].path, &size, err);
        if (!rc && deep)
            digest_hex(&d, hex);
        total += size;
        json_array_append_new(list,
                              json_pack("{s:s, s:o, s:I}", "path", files.items[i].name, "sha256",
                                        text_or_null(hex), "size", (json_int_t)size));
    }
    peft_files_release(&files);
    set(info, "files", list);
    set(info, "tiers",
        json_pack("{s:I, s:I, s:I}", "disk", (json_int_t)total, "host", (json_int_t)host_bytes(a),
                  "device", (json_int_t)(a->n_parameters * 2)));
    return rc;
}

static int read_adapter(struct store *s, const struct model_ref *ref, struct adapter **a,
                        struct err *err)
{
    if (!ref->in_store) {
        int rc = adapter_file_read(a, ref->path, NULL, err);
        return rc ? rc : content_id_compute(*a, 0, err);
    }
    struct adapter_source *source;
    int rc = store_source_open(&source, s, err);
    if (rc)
        return rc;
    rc = source->ops->get(source, ref->id, a, err);
    source->ops->close(source);
    return rc;
}

static int add_stored(json_t *info, struct store *s, const struct model_ref *ref,
                      const struct adapter *a, struct err *err)
{
    json_t *m, *names;
    int rc = store_manifest(s, ref->id, &m, err);
    if (rc)
        return rc;
    copy_fields(info, m);
    const json_t *base = json_object_get(m, "base");
    const char *base_id = json_string_value(json_object_get(base, "fingerprint"));
    rc = add_base(info, s, base_id ? base_id : "", a->base_name, a, err);
    if (!rc)
        rc = store_names(s, ref->id, &names, err);
    if (!rc)
        set(info, "names", names);
    json_decref(m);
    return rc;
}

int inspect_adapter(json_t **out, struct store *s, const struct model_ref *ref, bool deep,
                    struct err *err)
{
    *out = NULL;
    struct adapter *a = NULL;
    int rc = read_adapter(s, ref, &a, err);
    json_t *info = rc ? NULL : adapter_json(a);
    if (!rc && !info)
        rc = no_memory(err);
    if (!rc && ref->in_store) {
        rc = add_stored(info, s, ref, a, err);
    } else if (!rc) {
        set(info, "names", json_array());
        set(info, "path", json_string(ref->path));
        rc = add_outside_files(info, ref->path, a, deep, err);
        if (!rc)
            rc = add_base(info, s, "", a->base_name, a, err);
    }
    if (!rc) {
        add_dtypes(info, a);
        rc = add_modules(info, a, deep, err);
    }
    adapter_free(a);
    if (rc)
        json_decref(info);
    else
        *out = info;
    return rc;
}

// ---- bases -------------------------------------------------------------------------------------

static json_t *config_json(const struct model_config *c)
{
    return json_pack("{s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:b}", "vocab_size",
                     (int)c->vocab_size, "hidden_size", (int)c->d_model, "layers", (int)c->n_layers,
                     "heads", (int)c->n_heads, "kv_heads", (int)c->n_kv_heads, "head_dim",
                     (int)c->head_dim, "intermediate_size", (int)c->d_ff, "max_positions",
                     (int)c->max_positions, "tied_embeddings", c->tied_embeddings);
}

static int count_adapter(void *arg, const struct store_entry *e)
{
    (void)e;
    ++*(json_int_t *)arg;
    return 0;
}

static int add_stored_base(json_t *info, struct store *s, const char *id, struct err *err)
{
    json_t *m, *names = NULL;
    json_int_t n = 0;
    const struct store_query q = {.kinds = STORE_ADAPTER, .base_id = id};
    int rc = store_manifest(s, id, &m, err);
    if (rc)
        return rc;
    copy_fields(info, m);
    json_t *first = json_array_get(json_object_get(m, "files"), 0);
    const char *digest = json_string_value(json_object_get(first, "sha256"));
    bool copy = !json_object_get(m, "path");
    set(info, "by_reference", json_boolean(!copy));
    set(info, "verified", json_string(digest && *digest ? "digests" : "sampled"));
    rc = store_names(s, id, &names, err);
    if (!rc)
        set(info, "names", names);
    if (!rc)
        rc = store_list(s, &q, count_adapter, &n, err);
    set(info, "adapters", json_integer(n));
    json_decref(m);
    return rc;
}

/* With --deep, every digest that was recorded is compared. */
static int check_digests(json_t *info, const char *folder, struct err *err)
{
    size_t i;
    json_t *file;
    json_array_foreach(json_object_get(info, "files"), i, file)
    {
        const char *name = json_string_value(json_object_get(file, "path"));
        const char *want = json_string_value(json_object_get(file, "sha256"));
        char *path = name ? file_join(folder, name) : NULL;
        char hex[DIGEST_HEX_CHARS + 1];
        struct digest d;
        if (!path)
            return no_memory(err);
        int rc = digest_file(path, &d, NULL, err);
        if (!rc) {
            digest_hex(&d, hex);
            if (want && *want && strcmp(want, hex) != 0)
                rc = err_set(err, ERR_CORRUPT, "%s: digest %.12s, wanted %.12s", path, hex, want);
            set(file, "sha256", json_string(hex));
        }
        sys_free(path);
        if (rc)
            return rc;
    }
    return 0;
}

int inspect_base(json_t **out, struct store *s, const struct model_ref *ref, bool deep,
                 struct err *err)
{
    *out = NULL;
    struct base_model *b;
    int rc = ref->in_store ? base_model_open(&b, s, ref->id, err)
                           : base_model_open_folder(&b, ref->path, err);
    if (rc)
        return rc;
    json_t *info = json_pack("{s:s, s:s, s:[], s:s, s:s, s:s, s:I, s:o}", "kind", "base", "id",
                             b->id, "names", "architecture", b->config.arch_name, "path", b->folder,
                             "dtype", dtype_name(b->config.dtype), "parameters",
                             (json_int_t)b->n_parameters, "config", config_json(&b->config));
    rc = info ? 0 : no_memory(err);
    if (!rc && ref->in_store)
        rc = add_stored_base(info, s, ref->id, err);
    if (!rc && deep)
        rc = check_digests(info, b->folder, err);
    base_model_free(b);
    if (rc)
        json_decref(info);
    else
        *out = info;
    return rc;
}
