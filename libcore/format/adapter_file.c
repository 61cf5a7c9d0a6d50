#include "libcore/format/adapter_file.h"

#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/foreign_impl.h"
#include "libcore/format/peft_impl.h"
#include "libcore/format/pickle_tensors.h"

static const char CONFIG[] = "adapter_config.json";
static const char MLX_WEIGHTS[] = "adapters.safetensors";

enum form { FORM_PEFT, FORM_MLX, FORM_LONE, FORM_GGUF };

struct place {
    enum form form; // FORM_PEFT: peft.h finds its own files
    char *folder;   // of the file; of a folder: itself
    char *weights, *config;
    bool whole_folder; // what else lies there belongs to the adapter
};

static int no_memory(const char *path, struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
}

static void place_release(struct place *p)
{
    sys_free(p->folder);
    sys_free(p->weights);
    sys_free(p->config);
}

static bool ends_with(const char *s, const char *ending)
{
    size_t n = strlen(s), k = strlen(ending);
    return n > k && strcmp(s + n - k, ending) == 0;
}

static bool has(const char *folder, const char *name)
{
    char *path = file_join(folder, name);
    bool there = path && file_exists(path) && !file_is_folder(path);
    sys_free(path);
    return there;
}

/* A folder's only .safetensors or .gguf file, NULL when there is none, or several, or when the
 * folder holds a model. */
static int find_lone(const char *folder, char **out, struct err *err)
{
    char **names;
    size_t n, count = 0, at = 0;
    *out = NULL;
    if (has(folder, "config.json"))
        return 0;
    int rc = file_list(folder, &names, &n, err);
    if (rc)
        return rc;
    for (size_t i = 0; i < n; i++) {
        if (!ends_with(names[i], ".safetensors") && !ends_with(names[i], ".gguf"))
            continue;
        count++;
        at = i;
    }
    if (count == 1 && strcmp(names[at], "model.safetensors") != 0) {
        *out = file_join(folder, names[at]);
        rc = *out ? 0 : no_memory(folder, err);
    }
    file_free_names(names, n);
    return rc;
}

static int find_in_folder(struct place *p, const char *path, struct err *err)
{
    p->folder = sys_strdup(path);
    p->whole_folder = true;
    if (!p->folder)
        return no_memory(path, err);
    if (has(path, MLX_WEIGHTS) && !has(path, "adapter_model.safetensors") &&
        !has(path, "adapter_model.bin")) {
        p->form = FORM_MLX;
        p->weights = file_join(path, MLX_WEIGHTS);
        p->config = file_join(path, CONFIG);
        return p->weights && p->config ? 0 : no_memory(path, err);
    }
    if (has(path, CONFIG))
        return 0;
    int rc = find_lone(path, &p->weights, err);
    if (!rc && p->weights)
        p->form = ends_with(p->weights, ".gguf") ? FORM_GGUF : FORM_LONE;
    return rc;
}

static int find_file(struct place *p, const char *path, struct err *err)
{
    p->folder = file_dir_name(path);
    p->weights = sys_strdup(path);
    p->config = p->folder ? file_join(p->folder, CONFIG) : NULL;
    if (!p->weights || !p->config)
        return no_memory(path, err);
    if (ends_with(path, ".gguf"))
        p->form = FORM_GGUF;
    else if (strcmp(file_base_name(path), MLX_WEIGHTS) == 0)
        p->form = FORM_MLX;
    else if (ends_with(path, ".safetensors") && !file_exists(p->config))
        p->form = FORM_LONE;
    return 0;
}

static int place_find(struct place *p, const char *path, struct err *err)
{
    memset(p, 0, sizeof *p);
    if (!file_exists(path))
        return err_set(err, ERR_NOT_FOUND, "%s: no such file or folder", path);
    int rc = file_is_folder(path) ? find_in_folder(p, path, err) : find_file(p, path, err);
    if (rc)
        place_release(p);
    return rc;
}

int adapter_file_read(struct adapter **out, const char *path, const struct peft_options *opt,
                      struct err *err)
{
    struct place p;
    struct err own;
    *out = NULL;
    err = err ? err : &own;
    int rc = place_find(&p, path, err);
    if (rc)
        return rc;
    switch (p.form) {
    case FORM_PEFT:
        rc = peft_read(out, path, opt, err);
        break;
    case FORM_MLX:
        rc = mlx_read(out, p.weights, p.config, path, opt, err);
        break;
    case FORM_LONE:
        rc = kohya_read(out, p.weights, path, opt, err);
        break;
    case FORM_GGUF:
        rc = gguf_lora_read(out, p.weights, path, opt, err);
        break;
    }
    place_release(&p);
    return rc;
}

bool adapter_file_looks_like(const char *path)
{
    if (!file_is_folder(path)) {
        if (!file_exists(path))
            return false;
        if (ends_with(path, ".safetensors") || ends_with(path, ".gguf"))
            return true;
        char *folder = pickle_tensors_name(path) ? file_dir_name(path) : NULL;
        bool yes = folder && has(folder, CONFIG);
        sys_free(folder);
        return yes;
    }
    if (has(path, CONFIG) || has(path, MLX_WEIGHTS))
        return true;
    char *lone;
    if (find_lone(path, &lone, NULL) != 0)
        return false;
    bool yes = lone != NULL;
    sys_free(lone);
    return yes;
}

/* ---- the list of files ---- */

static int add_file(struct peft_files *f, const char *folder, const char *name,
                    enum peft_file_role role, struct err *err)
{
    struct peft_file *item = &f->items[f->n++];
    item->name = arena_strdup(&f->arena, name);
    item->path = arena_printf(&f->arena, "%s/%s", folder, name);
    item->role = role;
    return item->name && item->path ? 0 : no_memory(folder, err);
}

static int list_files(struct peft_files *out, const struct place *p, struct err *err)
{
    char **names;
    size_t n;
    int rc = file_list(p->folder, &names, &n, err);
    if (rc)
        return rc;
    if (!(out->items = arena_array(&out->arena, n + 2, sizeof *out->items)))
        rc = no_memory(p->folder, err);
    if (!rc && p->form == FORM_MLX)
        rc = add_file(out, p->folder, CONFIG, PEFT_FILE_CONFIG, err);
    if (!rc)
        rc = add_file(out, p->folder, file_base_name(p->weights), PEFT_FILE_WEIGHTS, err);
    for (size_t i = 0; !rc && p->whole_folder && i < n; i++) {
        enum peft_file_role role;
        if (peft_companion_role(names[i], &role))
            rc = add_file(out, p->folder, names[i], role, err);
    }
    file_free_names(names, n);
    return rc;
}

int adapter_files_list(struct peft_files *out, const char *path, struct err *err)
{
    struct place p;
    memset(out, 0, sizeof *out);
    int rc = place_find(&p, path, err);
    if (rc)
        return rc;
    if (p.form == FORM_PEFT) {
        place_release(&p);
        return peft_files_list(out, path, err);
    }
    arena_init(&out->arena);
    rc = list_files(out, &p, err);
    place_release(&p);
    if (rc)
        peft_files_release(out);
    return rc;
}
