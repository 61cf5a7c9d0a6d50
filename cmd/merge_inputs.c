#include "cmd/merge_inputs.h"

#include <stdlib.h>
#include <string.h>

#include "libcore/adapter/content_id.h"
#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/adapter_file.h"

static int no_memory(const char *what, struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "%s: no memory", what);
}

// ---- reading ------------------------------------------------------------------------------------

static int read_path(struct merge_input *in, const char *path, struct err *err)
{
    const struct peft_options opt = {.copy = true};
    in->path = file_real_path(path, err);
    int rc = in->path ? adapter_file_read(&in->adapter, path, &opt, err)
             : err    ? err->code
                      : ERR_FAIL;
    return rc ? rc : content_id_compute(in->adapter, 0, err);
}

static int read_stored(struct merge_inputs *all, struct merge_input *in, const char *id,
                       struct err *err)
{
    struct adapter_source *source;
    struct store_entry e;
    int rc = all->lease ? lease_add(all->lease, all->store, id, err)
                        : lease_open(&all->lease, all->store, "merge", &id, 1, err);
    if (!rc)
        rc = store_source_open(&source, all->store, err);
    if (rc)
        return rc;
    rc = source->ops->get(source, id, &in->adapter, err);
    source->ops->close(source);
    if (!rc)
        rc = store_get(all->store, id, &e, err);
    if (rc)
        return rc;
    snprintf(in->base_id, sizeof in->base_id, "%s", e.base_id);
    store_entry_release(&e);
    return 0;
}

static int read_ref(struct merge_inputs *all, struct merge_input *in, const char *ref,
                    struct err *err)
{
    struct model_ref r = {0};
    int rc = model_ref_resolve(&r, all->store, ref, STORE_ADAPTER, err);
    if (!rc)
        rc = r.in_store ? read_stored(all, in, r.id, err) : read_path(in, r.path, err);
    if (!rc) {
        in->name = r.in_store && *r.name ? sys_strdup(r.name) : sys_strdup(ref);
        if (!in->name)
            rc = no_memory(ref, err);
    }
    model_ref_release(&r);
    return rc;
}

/* "REF=0.5": what stands behind the last = is a weight if it is a number. */
static char *split_weight(const char *word, double *weight)
{
    const char *at = strrchr(word, '=');
    char *end = NULL;
    *weight = 1;
    if (at && at[1]) {
        double w = strtod(at + 1, &end);
        if (end && !*end) {
            *weight = w;
            return sys_strndup(word, (size_t)(at - word));
        }
    }
    return sys_strdup(word);
}

static int reserve(struct merge_inputs *out, struct store *s, size_t n, struct err *err)
{
    memset(out, 0, sizeof *out);
    out->store = s;
    out->items = sys_calloc(n + 1, sizeof *out->items);
    return out->items ? 0 : no_memory("merge", err);
}

int merge_inputs_read(struct merge_inputs *out, struct store *s, char *const *words, size_t n,
                      struct err *err)
{
    int rc = reserve(out, s, n, err);
    for (size_t i = 0; !rc && i < n; i++) {
        struct merge_input *in = &out->items[out->n++];
        char *ref = split_weight(words[i], &in->weight);
        const char *equals = ref ? strrchr(ref, '=') : NULL;
        if (equals && !file_exists(ref)) // names have no =, so this was to be a weight
            rc = err_set(err, ERR_USAGE, "%s: '%s' is no weight; wanted REF=NUMBER", words[i],
                         equals + 1);
        else
            rc = ref ? read_ref(out, in, ref, err) : no_memory(words[i], err);
        sys_free(ref);
    }
    return rc;
}

static int read_recipe_row(struct merge_inputs *out, const struct recipe_adapter *row,
                           struct err *err)
{
    struct merge_input *in = &out->items[out->n++];
    const char *name = row->name ? row->name : row->id;
    in->weight = row->weight;
    in->name = sys_strdup(name);
    if (!in->name)
        return no_memory(name, err);
    struct store_entry e;
    bool stored = out->store && store_get(out->store, row->id, &e, NULL) == 0;
    if (stored)
        store_entry_release(&e);
    if (!stored && !row->path)
        return err_set(err, ERR_NOT_FOUND, "%s (%.12s): not in the store", name, row->id);
    int rc = stored ? read_stored(out, in, row->id, err) : read_path(in, row->path, err);
    if (!rc && strcmp(in->adapter->content_id, row->id) != 0)
        rc = err_set(err, ERR_REFUSED, "%s: content id %.12s, the recipe wants %.12s: it changed",
                     row->path ? row->path : name, in->adapter->content_id, row->id);
    return rc;
}

int merge_inputs_of_recipe(struct merge_inputs *out, struct store *s, const struct recipe *r,
                           struct err *err)
{
    int rc = reserve(out, s, r->n_adapters, err);
    for (size_t i = 0; !rc && i < r->n_adapters; i++)
        rc = read_recipe_row(out, &r->adapters[i], err);
    return rc;
}

// ---- the base -----------------------------------------------------------------------------------

static int use_base(struct merge_inputs *in, const char *ref, struct err *err)
{
    struct model_ref r = {0};
    int rc = model_ref_resolve(&r, in->store, ref, STORE_BASE, err);
    if (!rc && r.in_store) {
        const char *id = r.id;
        memcpy(in->base_id, r.id, sizeof in->base_id);
        rc = store_base_folder(in->store, r.id, &in->base_folder, err);
        if (!rc)
            rc = in->lease ? lease_add(in->lease, in->store, id, err)
                           : lease_open(&in->lease, in->store, "merge", &id, 1, err);
    } else if (!rc) {
        in->base_folder = file_real_path(r.path, err);
        rc = in->base_folder ? 0 : err ? err->code : ERR_FAIL;
    }
    if (!rc) {
        in->base_name = sys_strdup(r.in_store && *r.name ? r.name : ref);
        if (!in->base_name)
            rc = no_memory(ref, err);
    }
    model_ref_release(&r);
    return rc;
}

/* The one fingerprint that the adapters record, "" when none does. */
static int recorded_base(const struct merge_inputs *in, const char **id, struct err *err)
{
    *id = "";
    for (size_t i = 0; i < in->n; i++) {
        const char *one = in->items[i].base_id;
        if (!*one || strcmp(one, *id) == 0)
            continue;
        if (**id)
            return err_set(err, ERR_REFUSED, "%s is for base %.12s, another for %.12s",
                           in->items[i].name, one, *id);
        *id = one;
    }
    return 0;
}

int merge_inputs_base(struct merge_inputs *in, const char *ref, struct err *err)
{
    const char *id;
    int rc = recorded_base(in, &id, err);
    if (rc)
        return rc;
    if (ref)
        return use_base(in, ref, err);
    if (*id && use_base(in, id, err) == 0)
        return 0;
    for (size_t i = 0; i < in->n; i++) {
        const char *name = in->items[i].adapter->base_name;
        if (name && *name && use_base(in, name, NULL) == 0)
            return 0;
    }
    cmd_hint("--base REF names it");
    const char *name = in->n ? in->items[0].adapter->base_name : NULL;
    return err_set(err, ERR_NOT_FOUND, "the base %s is neither in the store nor in the local cache",
                   name && *name ? name : "(none is recorded)");
}

int merge_inputs_check_base(const struct merge_inputs *in, const char *fingerprint, struct err *err)
{
    if (*in->base_id && strcmp(in->base_id, fingerprint) != 0)
        return err_set(err, ERR_REFUSED,
                       "%s: fingerprint %.12s, the store recorded %.12s: the base changed since it "
                       "was imported",
                       in->base_folder, fingerprint, in->base_id);
    for (size_t i = 0; i < in->n; i++) {
        const struct merge_input *x = &in->items[i];
        if (*x->base_id && strcmp(x->base_id, fingerprint) != 0)
            return err_set(err, ERR_REFUSED, "%s is for base %.12s, %s is %.12s", x->name,
                           x->base_id, in->base_name, fingerprint);
    }
    return 0;
}

void merge_inputs_release(struct merge_inputs *in)
{
    for (size_t i = 0; in->items && i < in->n; i++) {
        adapter_free(in->items[i].adapter);
        sys_free(in->items[i].name);
        sys_free(in->items[i].path);
    }
    sys_free(in->items);
    sys_free(in->base_folder);
    sys_free(in->base_name);
    lease_close(in->lease);
    memset(in, 0, sizeof *in);
}
