#include "store/import.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "libcore/format/checkpoint.h"
#include "libcore/format/adapter_file.h"
#include "libcore/format/pickle_tensors.h"
#include "store/archive.h"
#include "store/import_impl.h"

void import_result_release(struct import_result *r)
{
    json_decref(r->warnings);
    r->warnings = NULL;
}

static bool has_file(const char *folder, const char *name)
{
    char *path = file_join(folder, name);
    bool there = path && file_exists(path);
    sys_free(path);
    return there;
}

enum import_kind import_classify(const char *path)
{
    if (strcmp(path, "-") == 0)
        return IMPORT_PACK;
    if (!file_is_folder(path)) {
        if (archive_kind_of(path) != ARCHIVE_KIND_NONE)
            return IMPORT_PACK;
        return adapter_file_looks_like(path) ? IMPORT_ADAPTER : IMPORT_NOTHING;
    }
    if (has_file(path, "oci-layout"))
        return IMPORT_PACK;
    // A trainer's output may hold a whole model and an adapter: the adapter's configuration
    // decides.
    if (has_file(path, "adapter_config.json"))
        return IMPORT_ADAPTER;
    if (checkpoint_looks_like(path))
        return IMPORT_BASE;
    return adapter_file_looks_like(path) ? IMPORT_ADAPTER : IMPORT_FOLDERS;
}

static uint64_t bytes_of_adapter(const char *path)
{
    struct peft_files files;
    uint64_t total = 0, size;
    if (adapter_files_list(&files, path, NULL) != 0)
        return 0;
    for (size_t i = 0; i < files.n; i++)
        total += file_size(files.items[i].path, &size, NULL) == 0 ? size : 0;
    peft_files_release(&files);
    return total;
}

uint64_t import_bytes(const char *path, enum import_kind kind)
{
    struct checkpoint *c;
    uint64_t total = 0;
    if (kind == IMPORT_ADAPTER)
        return bytes_of_adapter(path);
    if (kind == IMPORT_PACK)
        return !file_is_folder(path) && file_size(path, &total, NULL) == 0 ? total : 0;
    if (kind != IMPORT_BASE || checkpoint_open(&c, path, NULL) != 0)
        return 0;
    for (size_t i = 0; i < checkpoint_n_files(c); i++)
        total += checkpoint_file_at(c, i)->size;
    checkpoint_free(c);
    return total;
}

// ---- folders of folders ------------------------------------------------------------------------

enum { MAX_DEPTH = 8 };

struct found {
    char **paths;
    size_t n, cap;
};

static int add_path(struct found *f, const char *path, struct err *err)
{
    if (f->n == f->cap) {
        size_t cap = f->cap ? f->cap * 2 : 16;
        char **more = sys_reallocarray(f->paths, cap, sizeof *more);
        if (!more)
            return err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
        f->paths = more;
        f->cap = cap;
    }
    f->paths[f->n] = sys_strdup(path);
    return f->paths[f->n++] ? 0 : err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
}

static int find_below(struct found *f, const char *folder, int depth, struct err *err)
{
    char **names;
    size_t n;
    int rc = file_list(folder, &names, &n, err);
    if (rc)
        return rc;
    for (size_t i = 0; !rc && i < n; i++) {
        char *path = names[i][0] == '.' ? NULL : file_join(folder, names[i]);
        if (!path)
            continue;
        enum import_kind kind = import_classify(path);
        // A lone .safetensors beside others is no adapter folder's business: only folders count.
        if (kind == IMPORT_FOLDERS && depth < MAX_DEPTH)
            rc = find_below(f, path, depth + 1, err);
        else if ((kind == IMPORT_ADAPTER || kind == IMPORT_BASE) && file_is_folder(path))
            rc = add_path(f, path, err);
        sys_free(path);
    }
    file_free_names(names, n);
    return rc;
}

int import_find(const char *folder, char ***paths, size_t *n, struct err *err)
{
    struct found f = {0};
    enum import_kind kind = import_classify(folder);
    bool holds_itself = has_file(folder, "adapter_config.json") || kind == IMPORT_BASE;
    int rc = holds_itself ? add_path(&f, folder, err) : find_below(&f, folder, 0, err);
    if (!rc && f.n == 0)
        rc = err_set(err, ERR_NOT_FOUND, "%s: no adapter and no base checkpoint in it or below",
                     folder);
    if (rc) {
        if (f.paths)
            file_free_names(f.paths, f.n);
        f = (struct found){0};
    }
    *paths = f.paths;
    *n = f.n;
    return rc;
}

// ---- what adapters and bases share -------------------------------------------------------------

int import_set_name(struct import_result *r, const struct import_options *opt,
                    const char *suggested, const char *path, struct err *err)
{
    const char *name = opt->name ? opt->name : suggested;
    char text[LIMIT_NAME_BYTES + STORE_TAG_BYTES + 3];
    bool has_tag = strchr(name, ':') != NULL;
    if (has_tag && opt->tag)
        return err_set(err, ERR_USAGE, "--name %s and --tag %s: the tag is given twice", name,
                       opt->tag);
    int n =
        snprintf(text, sizeof text, "%s%s%s", name, opt->tag ? ":" : "", opt->tag ? opt->tag : "");
    if (n >= (int)sizeof text)
        return err_set(err, ERR_USAGE, "'%.40s…': a name has 1 to %d characters", name,
                       LIMIT_NAME_BYTES);
    int rc = store_parse_name(text, r->name, r->tag, err);
    if (rc && !opt->name)
        err_set(err, rc, "%s: '%.80s' cannot be its name; give one with --name", path, name);
    return rc;
}

int import_set_packed_name(struct import_result *r, const struct import_options *opt,
                           const json_t *record, const char *where, struct err *err)
{
    char text[LIMIT_NAME_BYTES + STORE_TAG_BYTES + 2];
    const char *name = json_string_value(json_object_get(record, "name"));
    const char *tag = json_string_value(json_object_get(record, "tag"));
    bool tagged = tag && !opt->tag && !opt->name;
    snprintf(text, sizeof text, "%s%s%s", name ? name : "", tagged ? ":" : "", tagged ? tag : "");
    return import_set_name(r, opt, text, where, err);
}

/* Errors found in the work folder speak of the file that the user knows. */
void import_restore_paths(struct err *err, const char *work_folder, const char *folder)
{
    char *at = err ? strstr(err->msg, work_folder) : NULL;
    if (!at)
        return;
    struct strbuf sb;
    strbuf_init(&sb);
    strbuf_add(&sb, err->msg, (size_t)(at - err->msg));
    strbuf_adds(&sb, folder);
    strbuf_adds(&sb, at + strlen(work_folder));
    err_set(err, err->code, "%s", strbuf_text(&sb));
    strbuf_release(&sb);
}

// ---- several files at once ---------------------------------------------------------------------

int import_files_open(struct import_files *f, size_t n, struct err *err)
{
    f->n = n;
    f->copies = sys_calloc(n, sizeof *f->copies);
    f->names = sys_calloc(n, sizeof *f->names);
    f->sizes = sys_calloc(n, sizeof *f->sizes);
    f->weights = sys_calloc(n, sizeof *f->weights);
    f->published = sys_calloc(n, sizeof *f->published);
    if (!f->copies || !f->names || !f->sizes || !f->weights || !f->published)
        return err_set(err, ERR_NO_MEMORY, "no memory for %zu files", n);
    return 0;
}

void import_files_release(struct import_files *f)
{
    for (size_t i = 0; i < f->n; i++) {
        if (f->copies)
            blob_copy_free(f->copies[i]);
        if (f->published)
            sys_free(f->published[i].tmp);
        if (f->names)
            sys_free(f->names[i]);
    }
    sys_free(f->copies);
    sys_free(f->names);
    sys_free(f->sizes);
    sys_free(f->weights);
    sys_free(f->published);
    *f = (struct import_files){0};
}

int import_files_start(struct import_files *f, size_t i, const char *from, const char *work_folder,
                       const char *name, bool skip_values, const struct import_options *opt,
                       struct err *err)
{
    f->names[i] = sys_strdup(name);
    f->published[i].tmp = file_join(work_folder, name);
    if (!f->names[i] || !f->published[i].tmp)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", from);
    char *parent = strchr(name, '/') ? file_dir_name(f->published[i].tmp) : NULL;
    int rc = parent ? file_make_folders(parent, err) : 0;
    sys_free(parent);
    return rc ? rc
              : blob_copy_open(&f->copies[i], from, f->published[i].tmp, skip_values, opt->on_bytes,
                               opt->on_bytes_arg, err);
}

int import_files_arrived(struct import_files *f, size_t i, const char *tmp, const char *name,
                         const char *digest, uint64_t size, struct err *err)
{
    f->names[i] = sys_strdup(name);
    f->published[i].tmp = tmp ? sys_strdup(tmp) : NULL;
    f->sizes[i] = size;
    snprintf(f->published[i].digest, sizeof f->published[i].digest, "%s", digest);
    return f->names[i] && (!tmp || f->published[i].tmp)
               ? 0
               : err_set(err, ERR_NO_MEMORY, "%s: no memory", name);
}

int import_files_wait(struct import_files *f, struct err *err)
{
    struct digest d;
    int rc = 0;
    for (size_t i = 0; !rc && i < f->n; i++) {
        if (!f->copies[i])
            continue;
        rc = blob_copy_finish(f->copies[i], &d, err);
        f->weights[i] = blob_copy_weights(f->copies[i]);
    }
    return rc;
}

static const struct safetensors_part *find_part(const struct import_files *f,
                                                const struct adapter_tensor *t)
{
    for (size_t i = 0; i < f->n; i++) {
        const struct safetensors_part *p = safetensors_stream_find(f->weights[i], t->name);
        // Two files may have a tensor of that name: then neither is taken.
        for (size_t k = i + 1; p && k < f->n; k++) {
            if (safetensors_stream_find(f->weights[k], t->name))
                return NULL;
        }
        if (p)
            return p;
    }
    return NULL;
}

bool import_files_know(const struct import_files *f, struct adapter *a)
{
    // Other formats are brought into PEFT's names and shapes: their bytes are others.
    if (strcmp(a->format, "peft") != 0)
        return false;
    for (size_t i = 0; i < f->n; i++) {
        if (pickle_tensors_name(f->names[i])) // the tensors may be its
            return false;
    }
    for (size_t i = 0; i < a->n_tensors; i++) {
        struct adapter_tensor *t = &a->tensors[i];
        const struct safetensors_part *p = find_part(f, t);
        if (!p || !p->finite || p->entry->value.dtype != t->value.dtype ||
            !tensor_same_shape(&p->entry->value, &t->value))
            return false;
        t->payload = p->payload;
        t->payload_known = true;
    }
    return true;
}

int import_files_finish(struct import_files *f, size_t i, json_t *manifest, uint64_t *bytes,
                        struct err *err)
{
    if (!f->copies[i]) {
        *bytes += f->sizes[i];
        return manifest_add_file(manifest, f->names[i], f->published[i].digest, f->sizes[i], 0,
                                 err);
    }
    struct digest d;
    int rc = blob_copy_finish(f->copies[i], &d, err);
    if (rc)
        return rc;
    digest_hex(&d, f->published[i].digest);
    uint64_t size = blob_copy_size(f->copies[i]);
    *bytes += size;
    return manifest_add_file(manifest, f->names[i], f->published[i].digest, size, 0, err);
}
