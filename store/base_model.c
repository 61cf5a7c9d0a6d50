#include "store/base_model.h"

#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/checkpoint.h"
#include "libcore/format/hub.h"
#include "libcore/format/peft.h"
#include "libcore/model/bind.h"
#include "libcore/model/fingerprint.h"
#include "libcore/model/float8.h"
#include "store/object.h"

/* "org/name" of a hub cache's snapshot, else the folder's own name. */
static char *name_of_folder(const char *folder, struct err *err)
{
    char *name = hub_name_of_path(folder);
    if (!name)
        name = peft_name_of_path(folder);
    if (!name)
        err_set(err, ERR_NO_MEMORY, "%s: no memory", folder);
    return name;
}

static uint64_t count_parameters(const struct checkpoint *c)
{
    uint64_t n = 0;
    for (size_t i = 0; i < checkpoint_count(c); i++)
        n += tensor_n_values(&checkpoint_at(c, i)->value);
    return n;
}

/* The fingerprint needs the weights' file, so it also proves that they open and have their shapes.
 */
static int take_fingerprint(struct base_model *b, struct err *err)
{
    struct checkpoint *c;
    int rc = checkpoint_open(&c, b->folder, err);
    if (rc)
        return rc;
    rc = fingerprint_compute(c, b->modules, &b->config, b->id, err);
    b->n_parameters = count_parameters(c);
    checkpoint_free(c);
    return rc;
}

int base_model_open_folder(struct base_model **out, const char *folder, struct err *err)
{
    *out = NULL;
    struct base_model *b = sys_calloc(1, sizeof *b);
    if (!b)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", folder);
    struct float8_config float8; // a base to merge into; serve says that it computes with none
    b->sampled = true;
    b->folder = file_real_path(folder, err);
    int rc = b->folder ? 0 : err ? err->code : ERR_FAIL;
    if (!rc) {
        b->name = name_of_folder(folder, err);
        rc = b->name ? config_read_stored(&b->config, &float8, b->folder, err) : ERR_NO_MEMORY;
    }
    if (!rc)
        rc = modules_open(&b->modules, &b->config, err);
    if (!rc)
        rc = take_fingerprint(b, err);
    if (rc) {
        base_model_free(b);
        return rc;
    }
    *out = b;
    return 0;
}

static bool has_digests(const json_t *manifest)
{
    for (size_t i = 0; i < manifest_n_files(manifest); i++) {
        struct manifest_file f;
        if (manifest_file_at(manifest, i, &f, NULL) != 0 || !*f.digest)
            return false;
    }
    return manifest_n_files(manifest) > 0;
}

static int rename_as_stored(struct base_model *b, struct store *s, const char *id, struct err *err)
{
    struct store_entry e;
    int rc = store_get(s, id, &e, err);
    if (rc)
        return rc;
    char *name = *e.name ? sys_strdup(e.name) : NULL;
    if (name) {
        sys_free(b->name);
        b->name = name;
    }
    store_entry_release(&e);
    return 0;
}

int base_model_open(struct base_model **out, struct store *s, const char *id, struct err *err)
{
    *out = NULL;
    char *folder;
    json_t *m;
    int rc = manifest_read(s, id, &m, err);
    if (rc)
        return rc;
    rc = store_base_folder(s, id, &folder, err);
    struct base_model *b = NULL;
    if (!rc)
        rc = base_model_open_folder(&b, folder, err);
    if (!rc && strcmp(b->id, id) != 0)
        rc = err_set(err, ERR_REFUSED,
                     "%s: fingerprint %.12s, wanted %.12s: the base changed since "
                     "it was imported",
                     folder, b->id, id);
    if (!rc) {
        b->sampled = !has_digests(m);
        rc = rename_as_stored(b, s, id, err);
    }
    sys_free(folder);
    json_decref(m);
    if (rc) {
        base_model_free(b);
        return rc;
    }
    *out = b;
    return 0;
}

void base_model_free(struct base_model *b)
{
    if (!b)
        return;
    modules_free(b->modules);
    config_release(&b->config);
    sys_free(b->name);
    sys_free(b->folder);
    sys_free(b);
}

int base_model_check_adapter(const struct base_model *b, const struct adapter *a, json_t *warnings,
                             struct err *err)
{
    struct bound_adapter *bound;
    int rc = bind_adapter(&bound, a, b->modules, &b->config, err);
    if (!rc && warnings && bound->warnings && json_array_extend(warnings, bound->warnings) != 0)
        rc = err_set(err, ERR_NO_MEMORY, "%s: no memory", b->name);
    bound_free(bound);
    return rc;
}
