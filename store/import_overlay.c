#include <stdio.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "libcore/format/checkpoint.h"
#include "store/import_pack_impl.h"
#include "store/overlay.h"

/*
 * A base that travels as an overlay: its files are built in the work folder from the pack's parts
 * and the base that it lies over, each checked by its digest, and published like a copied base.
 */
struct building {
    struct landing *l;
    const json_t *record, *files;
    const char *folder; // of the record, in the pack
    struct base_model *found;
    const struct base_model *base;
    struct checkpoint *checkpoint; // of that base
};

static int no_memory(const struct building *b, struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "%s: no memory", b->l->path);
}

// ---- checking ----------------------------------------------------------------------------------

bool landing_is_overlay_name(const char *name)
{
    if (strncmp(name, LANDED_BASES, strlen(LANDED_BASES)) != 0)
        return false;
    const char *base = file_base_name(name), *dot = strrchr(base, '.');
    return checkpoint_is_companion(base) ||
           (dot && (strcmp(dot, ".safetensors") == 0 || strcmp(dot, ".header") == 0));
}

/* A name that may become a file of a checkpoint's folder. */
static int check_name(const struct building *b, const char *name, struct err *err)
{
    const char *clean = NULL, *dot = strrchr(name, '.');
    int rc = archive_check_name(b->l->path, name, &clean, err);
    bool known = checkpoint_is_companion(name) || (dot && strcmp(dot, ".safetensors") == 0);
    if (!rc && (clean != name || strchr(name, '/') || !known))
        rc = err_set(err, ERR_REFUSED, "%s:" LANDED_BASES "%s/%.200s: is no file of a checkpoint",
                     b->l->path, b->folder, name);
    return rc;
}

static int find_part(void *arg, const json_t *part, const char **path, struct err *err)
{
    struct building *b = arg;
    struct strbuf name;
    strbuf_init(&name);
    strbuf_addf(&name, LANDED_BASES "%s/%s", b->folder, landing_text(part, "path"));
    const struct arrival *a = name.failed ? NULL : arrivals_find(&b->l->files, strbuf_text(&name));
    int rc =
        name.failed ? no_memory(b, err)
        : a         ? landing_check_arrival(b->l, part, a, err)
            : err_set(err, ERR_CORRUPT, "%s:%.300s: is missing", b->l->path, strbuf_text(&name));
    strbuf_release(&name);
    *path = a ? a->path : NULL;
    return rc;
}

static int check_file(struct building *b, const json_t *file, struct err *err)
{
    struct digest d;
    const char *path;
    const json_t *size = json_object_get(file, "size"), *parts = json_object_get(file, "parts");
    const char *from = landing_text(file, "from");
    size_t n = json_array_size(parts), least = strcmp(from, "base") != 0;
    if (!digest_parse(landing_text(file, "sha256"), &d) || !json_is_integer(size) ||
        json_integer_value(size) < 0 || n < least || n > 2)
        return err_set(err, ERR_CORRUPT, "%s:" LANDED_BASES "%s: its list of files is off",
                       b->l->path, b->folder);
    int rc = check_name(b, landing_text(file, "path"), err);
    for (size_t i = 0; !rc && i < n; i++)
        rc = find_part(b, json_array_get(parts, i), &path, err);
    return rc;
}

static int open_base(struct building *b, struct err *err)
{
    const json_t *overlay = json_object_get(b->record, "overlay");
    const char *of = landing_text(overlay, "of"), *name = landing_text(overlay, "of_name");
    const struct import_options *opt = b->l->opt;
    struct digest d;
    if (!digest_parse(of, &d) || strlen(of) != DIGEST_HEX_CHARS)
        return err_set(err, ERR_CORRUPT, "%s:" LANDED_BASES "%s: its base's fingerprint is none",
                       b->l->path, b->folder);
    if (opt->base && strcmp(opt->base->id, of) != 0)
        return err_set(err, ERR_REFUSED, "%s: lies over base %.100s (%.12s), %s is %.12s",
                       b->l->path, name, of, opt->base->name, opt->base->id);
    struct store_entry e;
    b->base = opt->base;
    if (b->base)
        return 0;
    if (!b->l->s || store_get(b->l->s, of, &e, NULL) != 0)
        return err_set(err, ERR_NOT_FOUND,
                       "%s: lies over base %.100s (%.12s), which is not in the store", b->l->path,
                       name, of);
    store_entry_release(&e);
    int rc = base_model_open(&b->found, b->l->s, of, err);
    b->base = b->found;
    return rc;
}

// ---- building ----------------------------------------------------------------------------------

static int build_file(struct building *b, const char *folder, size_t i, struct import_files *f,
                      struct safetensors_stream **weights, struct err *err)
{
    const struct overlay_target target = {b->checkpoint, find_part, b};
    const json_t *file = json_array_get(b->files, i);
    const char *name = landing_text(file, "path");
    char *to = file_join(folder, name);
    int rc = to ? overlay_file(&target, file, to, weights, err) : no_memory(b, err);
    f->weights[i] = *weights;
    if (!rc)
        rc = import_files_arrived(f, i, to, name, landing_text(file, "sha256"),
                                  (uint64_t)json_integer_value(json_object_get(file, "size")), err);
    sys_free(to);
    return rc;
}

static int build_all(struct building *b, const char *folder, struct import_files *f,
                     struct safetensors_stream **weights, struct err *err)
{
    size_t n = json_array_size(b->files);
    int rc = sys_mkdir(folder, 0777) == 0 ? checkpoint_open(&b->checkpoint, b->base->folder, err)
                                          : err_set(err, ERR_IO, "%s: cannot create", folder);
    for (size_t i = 0; !rc && i < n; i++)
        rc = build_file(b, folder, i, f, &weights[i], err);
    if (rc)
        err_prefix(err, "%s:" LANDED_BASES "%s", b->l->path, b->folder);
    return rc;
}

static int import_built(struct building *b, const char *folder, struct import_files *f,
                        struct err *err)
{
    struct import_result r;
    struct strbuf where;
    strbuf_init(&where);
    strbuf_addf(&where, "%s:" LANDED_BASES "%s", b->l->path, b->folder);
    const struct import_arrived in = {
        .where = strbuf_text(&where), .folder = folder, .files = f, .record = b->record};
    int rc =
        where.failed ? no_memory(b, err) : import_base_arrived(b->l->s, &in, b->l->opt, &r, err);
    if (!rc) {
        if (b->l->row)
            b->l->row(b->l->arg, strbuf_text(&where), &r);
        import_result_release(&r);
    }
    strbuf_release(&where);
    return rc;
}

static int build(struct building *b, size_t number, struct err *err)
{
    size_t n = json_array_size(b->files);
    struct import_files f = {0};
    struct safetensors_stream **weights = sys_calloc(n + 1, sizeof *weights);
    struct strbuf folder;
    strbuf_init(&folder);
    strbuf_addf(&folder, "%s/b%zu", b->l->files.folder, number);
    int rc = weights && !folder.failed ? import_files_open(&f, n, err) : no_memory(b, err);
    if (!rc)
        rc = build_all(b, strbuf_text(&folder), &f, weights, err);
    if (!rc)
        rc = import_built(b, strbuf_text(&folder), &f, err);
    import_files_release(&f);
    for (size_t i = 0; weights && i < n; i++)
        safetensors_stream_free(weights[i]);
    sys_free(weights);
    strbuf_release(&folder);
    return rc;
}

int landing_overlay(struct landing *l, const json_t *record, size_t number, bool publish,
                    struct err *err)
{
    struct building b = {.l = l,
                         .record = record,
                         .files = json_object_get(json_object_get(record, "overlay"), "files"),
                         .folder = landing_text(record, "folder")};
    const char *clean;
    size_t i;
    json_t *file;
    int rc = archive_check_name(l->path, b.folder, &clean, err);
    if (!rc && json_array_size(b.files) == 0)
        rc = err_set(err, ERR_CORRUPT, "%s:" LANDED_BASES "%s: has no files", l->path, b.folder);
    const char *before = "";
    json_array_foreach(b.files, i, file)
    {
        const char *name = landing_text(file, "path");
        rc = rc ? rc : check_file(&b, file, err);
        if (!rc && strcmp(before, name) >= 0)
            rc = err_set(err, ERR_CORRUPT, "%s:" LANDED_BASES "%s: its files are not in order",
                         l->path, b.folder);
        before = name;
    }
    if (!rc)
        rc = open_base(&b, err);
    if (!rc && publish)
        rc = build(&b, number, err);
    checkpoint_free(b.checkpoint);
    base_model_free(b.found);
    return rc;
}
