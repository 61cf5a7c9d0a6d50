#include "libcore/format/peft.h"

#include <stdlib.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/peft_impl.h"
#include "libcore/format/pickle_tensors.h"

/* An adapter's header is small; 300,000 tensors would fit into this. */
enum { MAX_HEADER_BYTES = 32 << 20 };

static int no_memory(const char *path, struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
}

/* What the tensors lie in. */
struct backing {
    struct safetensors *file;
    char *copy; // NULL: the file is mapped
};

static void free_backing(void *p)
{
    struct backing *backing = p;
    safetensors_free(backing->file);
    sys_free(backing->copy);
    sys_free(backing);
}

static int open_copy(struct backing *backing, const char *path, struct err *err)
{
    size_t n;
    int rc = file_read(path, PTRDIFF_MAX, &backing->copy, &n, err);
    if (!rc && pickle_tensors_name(path)) {
        char *pickle = backing->copy;
        rc = pickle_tensors_read(&backing->copy, &n, pickle, n, path, err);
        sys_free(pickle);
    }
    return rc ? rc
              : safetensors_open_memory(&backing->file, backing->copy, n, path, MAX_HEADER_BYTES,
                                        err);
}

static int open_weights(struct adapter *a, const char *path, bool copy, struct err *err)
{
    struct backing *backing = sys_calloc(1, sizeof *backing);
    if (!backing)
        return no_memory(path, err);
    a->backing = backing;
    a->backing_free = free_backing;
    if (copy || pickle_tensors_name(path))
        return open_copy(backing, path, err);
    return safetensors_open(&backing->file, path, MAX_HEADER_BYTES, err);
}

static int check_value(struct peft_reader *r, const struct peft_entry *e)
{
    const struct safetensors_entry *t = e->tensor;
    if (e->name.part == PART_INERT)
        return 0;
    if (e->name.part == PART_REFUSED)
        return peft_refuse(r, t->name, "%s", e->name.why);
    if (!dtype_is_float(t->value.dtype))
        return peft_refuse(r, t->name, "%s is no type of weights; save it as float",
                           dtype_name(t->value.dtype));
    if (r->opt && r->opt->skip_values)
        return 0;
    uint64_t n = tensor_n_values(&t->value);
    size_t at = dtype_find_non_finite(t->value.dtype, t->value.data, (size_t)n);
    if (at == n)
        return 0;
    return err_set(r->err, ERR_CORRUPT, "%s:%s: NaN or Inf at index %zu of %llu",
                   safetensors_path(r->file), t->name, at, (unsigned long long)n);
}

static int compare_entries(const void *a, const void *b)
{
    const struct peft_entry *x = a, *y = b;
    int order = strcmp(x->name.module, y->name.module);
    if (!order)
        order = strcmp(x->name.parameter, y->name.parameter);
    if (!order)
        order = (int)x->name.depth - (int)y->name.depth;
    if (!order)
        order = (int)x->name.part - (int)y->name.part;
    return order ? order : strcmp(x->tensor->name, y->tensor->name);
}

/* Names of all tensors, their values looked at; entries sorted. */
static int read_entries(struct peft_reader *r)
{
    size_t n = safetensors_count(r->file);
    bool leaked = false, named = false, inert = false;
    r->entries = sys_calloc(n + 1, sizeof *r->entries);
    r->a->tensors = arena_array(&r->a->arena, n + 1, sizeof *r->a->tensors);
    if (!r->entries || !r->a->tensors)
        return no_memory(safetensors_path(r->file), r->err);
    for (size_t i = 0; i < n; i++) {
        struct peft_entry *e = &r->entries[r->n_entries++];
        e->tensor = safetensors_at(r->file, i);
        r->a->tensors[i].name = e->tensor->name;
        r->a->tensors[i].value = e->tensor->value;
        int rc = peft_name_parse(&e->name, e->tensor->name, &r->a->arena, r->err);
        if (!rc)
            rc = check_value(r, e);
        if (rc)
            return rc;
        leaked |= e->name.leaked;
        named |= e->name.named;
        inert |= e->name.part == PART_INERT;
    }
    r->a->n_tensors = n;
    qsort(r->entries, n, sizeof *r->entries, compare_entries);
    int rc = 0;
    if (leaked)
        rc = adapter_warn(r->a, r->err,
                          "tensor names carry a wrapper's prefix, which was taken off");
    if (!rc && named)
        rc =
            adapter_warn(r->a, r->err, "tensor names carry an adapter's name, which was taken off");
    if (!rc && inert)
        rc = adapter_warn(r->a, r->err, "tensors that serve training only were passed over");
    return rc;
}

static int check_any(struct peft_reader *r)
{
    if (r->a->n_modules)
        return 0;
    return err_set(r->err, ERR_REFUSED, "%s: no tensor of an adapter in it",
                   safetensors_path(r->file));
}

static int read_modules(struct adapter *a, const struct safetensors *file, const char *config_path,
                        const struct peft_options *opt, struct err *err)
{
    struct peft_reader r = {.a = a, .opt = opt, .file = file, .err = err};
    int rc = peft_config_check(&r.config, a->config, config_path, opt, a, err);
    if (!rc)
        rc = peft_matcher_open(&r.matcher, a->config, config_path, err);
    if (!rc)
        rc = read_entries(&r);
    if (!rc)
        rc = peft_modules_build(&r);
    if (!rc)
        rc = check_any(&r);
    if (!rc && safetensors_warning(file))
        rc = adapter_warn(a, err, "%s", safetensors_warning(file));
    sys_free(r.entries);
    peft_matcher_free(r.matcher);
    return rc;
}

static int set_names(struct adapter *a, const char *path, struct err *err)
{
    const char *name = json_string_value(json_object_get(a->config, "name"));
    char *of_path = NULL;
    if (!name || !name[0])
        name = of_path = peft_name_of_path(path);
    a->base_name = json_string_value(json_object_get(a->config, "base_model_name_or_path"));
    a->name = name ? arena_strdup(&a->arena, name) : NULL;
    a->format = "peft";
    sys_free(of_path);
    return a->name ? 0 : no_memory(path, err);
}

static int read_place(struct adapter *a, const struct peft_place *place, const char *path,
                      const struct peft_options *opt, struct err *err)
{
    struct err own;
    err = err ? err : &own; // rooms below read its code
    int rc = peft_config_load(&a->config, place->config, err);
    if (!rc)
        rc = set_names(a, path, err);
    if (!rc)
        rc = open_weights(a, place->weights, opt && opt->copy, err);
    if (!rc)
        rc = read_modules(a, ((struct backing *)a->backing)->file, place->config, opt, err);
    if (!rc)
        adapter_finish(a);
    return rc;
}

static int read_image(struct adapter *a, const char *path, const struct peft_image *image,
                      const struct peft_options *opt, struct err *err)
{
    struct err own;
    err = err ? err : &own;
    a->config = image->config;
    struct backing *backing = sys_calloc(1, sizeof *backing);
    if (!backing) {
        sys_free(image->bytes);
        return no_memory(path, err);
    }
    a->backing = backing;
    a->backing_free = free_backing;
    backing->copy = image->bytes;
    int rc = set_names(a, path, err);
    a->format = image->format;
    if (!rc)
        rc = safetensors_open_memory(&backing->file, image->bytes, image->n, image->weights,
                                     MAX_HEADER_BYTES, err);
    if (!rc && json_array_extend(a->warnings, (json_t *)image->warnings) != 0)
        rc = no_memory(path, err);
    if (!rc)
        rc = read_modules(a, backing->file, image->weights, opt, err);
    if (!rc)
        adapter_finish(a);
    return rc;
}

int peft_read_image(struct adapter **out, const char *path, const struct peft_image *image,
                    const struct peft_options *opt, struct err *err)
{
    struct adapter *a = NULL;
    *out = NULL;
    int rc = adapter_open(&a, err);
    if (rc) {
        json_decref(image->config);
        sys_free(image->bytes);
        return rc;
    }
    rc = read_image(a, path, image, opt, err);
    if (rc) {
        adapter_free(a);
        return rc;
    }
    *out = a;
    return 0;
}

int peft_read(struct adapter **out, const char *path, const struct peft_options *opt,
              struct err *err)
{
    struct peft_place place;
    struct adapter *a = NULL;
    *out = NULL;
    int rc = peft_place_find(&place, path, err);
    if (rc)
        return rc;
    rc = adapter_open(&a, err);
    if (!rc)
        rc = read_place(a, &place, path, opt, err);
    peft_place_release(&place);
    if (rc) {
        adapter_free(a);
        return rc;
    }
    *out = a;
    return 0;
}
