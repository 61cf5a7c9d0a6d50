#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "store/import_pack_impl.h"
#include "store/signed.h"

// ---- the place ---------------------------------------------------------------------------------

/* A dry run writes nothing into a store. */
static int open_own_folder(struct landing *l, struct err *err)
{
    const char *tmp = getenv("TMPDIR");
    static unsigned counter;
    char name[64];
    snprintf(name, sizeof name, "lora-dry-run-%ld-%u", (long)getpid(),
             __atomic_add_fetch(&counter, 1, __ATOMIC_RELAXED));
    l->own_folder = file_join(tmp && *tmp ? tmp : "/tmp", name);
    if (!l->own_folder)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", l->path);
    // Nobody else's folder of that name is used, nor a link.
    return sys_mkdir(l->own_folder, 0700) == 0
               ? 0
               : err_set_errno(err, errno, "%s: cannot create", l->own_folder);
}

int landing_open(struct landing *l, struct store *s, const char *path,
                 const struct import_options *opt, import_row_fn *row, void *arg, struct err *err)
{
    *l = (struct landing){.s = s, .path = path, .opt = opt, .row = row, .arg = arg};
    l->notes = json_array();
    l->signatures = json_array();
    int rc = l->notes && l->signatures ? 0 : err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
    if (!rc)
        rc = opt->dry_run || !s ? open_own_folder(l, err) : work_open(&l->work, s, "import", err);
    l->files.folder = l->own_folder ? l->own_folder : l->work.folder;
    if (rc)
        landing_close(l);
    return rc;
}

void landing_close(struct landing *l)
{
    arrivals_release(&l->files);
    work_close(&l->work);
    if (l->own_folder)
        file_remove_tree(l->own_folder, NULL);
    sys_free(l->own_folder);
    json_decref(l->notes);
    json_decref(l->signatures);
    *l = (struct landing){0};
}

int landing_note(struct landing *l, struct err *err, const char *fmt, ...)
{
    char text[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    return json_array_append_new(l->notes, json_string(text)) == 0
               ? 0
               : err_set(err, ERR_NO_MEMORY, "%s: no memory", l->path);
}

// ---- one adapter -------------------------------------------------------------------------------

/* What the reader of adapters looks at, under names of ours: no name of a pack becomes a path. */
static int link_file(const char *folder, const char *name, const char *to, struct err *err)
{
    char *path = file_join(folder, name);
    int rc = path ? 0 : err_set(err, ERR_NO_MEMORY, "%s: no memory", name);
    if (!rc && sys_link(to, path) != 0)
        rc = err_set_errno(err, errno, "%s: cannot link", path);
    sys_free(path);
    return rc;
}

/* A file that an earlier adapter has too went into the store with it. */
static int link_arrival(const struct landing *l, const struct arrival *a, const char *folder,
                        const char *name, struct err *err)
{
    if (file_exists(a->path) || !l->s)
        return link_file(folder, name, a->path, err);
    char *blob = blob_path(l->s, a->digest, err);
    int rc = blob ? link_file(folder, name, blob, err) : ERR_NO_MEMORY;
    sys_free(blob);
    return rc;
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), k = strlen(end);
    return n >= k && strcmp(text + n - k, end) == 0;
}

const char *landing_reader_name(const char *name)
{
    static const char *const usual[] = {LANDED_CONFIG, LANDED_WEIGHTS, LANDED_MLX, LANDED_PICKLE};
    for (size_t i = 0; i < sizeof usual / sizeof *usual; i++) {
        if (strcmp(name, usual[i]) == 0)
            return usual[i];
    }
    return ends_with(name, ".safetensors") ? "weights.safetensors"
           : ends_with(name, ".gguf")      ? "weights.gguf"
                                           : NULL;
}

static int make_folder(const struct landing *l, const struct landed *a, const char *folder,
                       struct err *err)
{
    if (sys_mkdir(folder, 0777) != 0)
        return err_set_errno(err, errno, "%s: cannot create", folder);
    int rc = 0;
    for (size_t i = 0; !rc && i < a->n_files; i++) {
        const char *name = landing_reader_name(a->files[i].name);
        if (name)
            rc = link_arrival(l, a->files[i].arrival, folder, name, err);
    }
    return rc;
}

/* A file that two adapters share is moved into the store by the first that publishes it. */
static int fill_files(const struct landed *a, struct import_files *f, struct err *err)
{
    int rc = import_files_open(f, a->n_files, err);
    for (size_t i = 0; !rc && i < a->n_files; i++) {
        const struct arrival *from = a->files[i].arrival;
        rc = import_files_arrived(f, i, file_exists(from->path) ? from->path : NULL,
                                  a->files[i].name, from->digest, from->size, err);
        f->weights[i] = from->weights;
    }
    return rc;
}

/* The pack's own list, or an image's references, say whose they are: then they must be. */
static int read_signatures(const struct landing *l, const struct landed *a,
                           struct import_signatures *all, struct err *err)
{
    int rc = 0;
    for (size_t i = 0; !rc && i < a->n_signatures; i++) {
        char where[600], shown[128];
        snprintf(where, sizeof where, "%.400s:%s", l->path,
                 archive_shown(a->signatures[i]->name, shown));
        rc = import_signatures_add(all, a->signatures[i]->path, where, err);
    }
    return rc;
}

static void put_where(const struct landing *l, const struct landed *a, struct strbuf *where)
{
    strbuf_addf(where, "%s%s%s", l->path, *a->where ? ":" : "", a->where);
}

int landing_judge(struct landing *l, const struct landed *a, struct err *err)
{
    if (!l->opt->required || !l->opt->required->n)
        return 0;
    struct import_signatures signatures = {0};
    struct signed_file *files = sys_calloc(a->n_files + 1, sizeof *files);
    json_t *ignored = json_array(); // told when it is imported
    struct strbuf where;
    strbuf_init(&where);
    put_where(l, a, &where);
    int rc = files && ignored && !where.failed
                 ? read_signatures(l, a, &signatures, err)
                 : err_set(err, ERR_NO_MEMORY, "%s: no memory", l->path);
    for (size_t i = 0; !rc && i < a->n_files; i++)
        files[i] = (struct signed_file){.name = a->files[i].name,
                                        .digest = a->files[i].arrival->digest,
                                        .path = a->files[i].arrival->path};
    if (!rc)
        rc = import_signatures_judge(&signatures, files, a->n_files, l->opt, strbuf_text(&where),
                                     ignored, err);
    strbuf_release(&where);
    json_decref(ignored);
    sys_free(files);
    import_signatures_release(&signatures);
    return rc;
}

int landing_adapter(struct landing *l, const struct landed *a, struct err *err)
{
    struct import_files f = {0};
    struct import_signatures signatures = {.strict = a->record && !a->from_image};
    struct import_result r;
    struct strbuf folder, where;
    strbuf_init(&folder);
    strbuf_init(&where);
    strbuf_addf(&folder, "%s/a%zu", l->files.folder, a->number);
    put_where(l, a, &where);
    int rc = folder.failed || where.failed ? err_set(err, ERR_NO_MEMORY, "%s: no memory", l->path)
                                           : make_folder(l, a, strbuf_text(&folder), err);
    if (!rc)
        rc = fill_files(a, &f, err);
    if (!rc)
        rc = read_signatures(l, a, &signatures, err);
    struct import_arrived in = {.where = strbuf_text(&where),
                                .folder = strbuf_text(&folder),
                                .files = &f,
                                .suggested = a->suggested,
                                .record = a->record,
                                .signatures = &signatures};
    if (!rc)
        rc = import_adapter_arrived(l->s, &in, l->opt, &r, err);
    if (!rc) {
        if (l->row)
            l->row(l->arg, strbuf_text(&where), &r);
        import_result_release(&r);
    }
    import_files_release(&f);
    import_signatures_release(&signatures);
    strbuf_release(&folder);
    strbuf_release(&where);
    return rc;
}

int landed_add(struct landed *a, const struct arrival *arrival, const char *name, struct err *err)
{
    struct landed_file *more = sys_reallocarray(a->files, a->n_files + 1, sizeof *more);
    if (!more)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", name);
    a->files = more;
    a->files[a->n_files++] = (struct landed_file){arrival, name};
    return 0;
}

int landed_sign(struct landed *a, const struct arrival *bundle, struct err *err)
{
    const struct arrival **more =
        sys_reallocarray(a->signatures, a->n_signatures + 1, sizeof *more);
    if (!more)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", bundle->name);
    a->signatures = more;
    a->signatures[a->n_signatures++] = bundle;
    return 0;
}

void landed_release(struct landed *a)
{
    sys_free(a->files);
    sys_free(a->signatures);
    a->files = NULL;
    a->signatures = NULL;
}

// ---- records -----------------------------------------------------------------------------------

const char *landing_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

int landing_check_file(const struct landing *l, const json_t *file, const char *where,
                       struct err *err)
{
    struct digest d;
    const char *path = landing_text(file, "path"), *clean, *base = file_base_name(path);
    json_t *size = json_object_get(file, "size");
    if (!digest_parse(landing_text(file, "sha256"), &d) || !json_is_integer(size) ||
        json_integer_value(size) < 0)
        return err_set(err, ERR_CORRUPT, "%s:%s: its list of files is off", l->path, where);
    if (json_is_true(json_object_get(file, "unpack"))) // a tar: its entries are looked at
        return 0;
    int rc = archive_check_name(l->path, path, &clean, err);
    if (!rc && (clean != path || !peft_is_file_name(base)))
        rc = err_set(err, ERR_REFUSED, "%s:%s/%s: is no file of an adapter", l->path, where, base);
    return rc;
}

int landing_check_arrival(const struct landing *l, const json_t *file, const struct arrival *a,
                          struct err *err)
{
    uint64_t size = (uint64_t)json_integer_value(json_object_get(file, "size"));
    const char *wanted = landing_text(file, "sha256");
    char shown[128];
    if (a->size != size)
        return err_set(err, ERR_CORRUPT, "%s:%s: %llu bytes, wanted %llu", l->path,
                       archive_shown(a->name, shown), (unsigned long long)a->size,
                       (unsigned long long)size);
    if (strcmp(a->digest, wanted) != 0)
        return err_set(err, ERR_CORRUPT, "%s:%s: its digest is %.12s, wanted %.12s", l->path,
                       archive_shown(a->name, shown), a->digest, wanted);
    return 0;
}

int landing_add_signature(struct landing *l, const json_t *signature, struct err *err)
{
    return json_array_append(l->signatures, (json_t *)signature) == 0
               ? 0
               : err_set(err, ERR_NO_MEMORY, "%s: no memory", l->path);
}

// ---- images ------------------------------------------------------------------------------------

enum { MAX_DEPTH = 3 };

struct image {
    struct landing *l;
    const struct landing_blobs *blobs;
    json_t *adapters; // array of {"where", "files", "record"?}: everything is fetched first
};

/* A layer; in `files` what it is, or what is in it. */
static int take_layer(struct image *x, json_t *file, json_t *files, const char *where,
                      struct err *err)
{
    const struct arrival *a;
    int rc = landing_check_file(x->l, file, where, err);
    if (!rc)
        rc = x->blobs->get(x->blobs->arg, landing_text(file, "sha256"),
                           (uint64_t)json_integer_value(json_object_get(file, "size")),
                           landing_text(file, "path"), &a, err);
    if (!rc)
        rc = landing_check_arrival(x->l, file, a, err);
    if (!rc && json_is_true(json_object_get(file, "unpack"))) {
        char layer[700];
        snprintf(layer, sizeof layer, "%.400s:%.200s", x->l->path, landing_text(file, "path"));
        return landing_unpack(x->l, a, layer, files, err);
    }
    if (!rc && json_array_append(files, file) != 0)
        rc = err_set(err, ERR_NO_MEMORY, "%s: no memory", x->l->path);
    return rc;
}

static int take_manifest(struct image *x, json_t *manifest, const char *digest, const char *where,
                         struct err *err)
{
    size_t i;
    json_t *file, *files = json_array();
    int rc = files ? 0 : err_set(err, ERR_NO_MEMORY, "%s: no memory", x->l->path);
    json_array_foreach(json_object_get(manifest, "files"), i, file)
    {
        rc = rc ? rc : take_layer(x, file, files, where, err);
    }
    if (!rc && (json_object_set(manifest, "files", files) != 0 ||
                json_object_set_new(manifest, "where", json_string(where)) != 0 ||
                json_object_set_new(manifest, "digest", json_string(digest)) != 0 ||
                json_array_append(x->adapters, manifest) != 0))
        rc = err_set(err, ERR_NO_MEMORY, "%s: no memory", x->l->path);
    json_decref(files);
    return rc;
}

/* A reference to another manifest of the image: kept until that one lands. */
static int take_signature(struct image *x, const json_t *signature, const char *where,
                          struct err *err)
{
    const struct arrival *a;
    uint64_t size = (uint64_t)json_integer_value(json_object_get(signature, "size"));
    if (size > LIMIT_SIGNATURE_BYTES)
        return err_set(err, ERR_LIMIT, "%s:%s: a signature of %llu bytes, at most %d are read",
                       x->l->path, where, (unsigned long long)size, LIMIT_SIGNATURE_BYTES);
    int rc =
        x->blobs->get(x->blobs->arg, landing_text(signature, "sha256"), size, "signature", &a, err);
    if (!rc)
        rc = landing_check_arrival(x->l, signature, a, err);
    return rc ? rc : landing_add_signature(x->l, signature, err);
}

static int take_image(struct image *x, const char *text, size_t n, const char *where, int depth,
                      struct err *err);

static int take_descriptor(struct image *x, const json_t *d, int depth, struct err *err)
{
    const struct arrival *a;
    uint64_t size = (uint64_t)json_integer_value(json_object_get(d, "size"));
    const char *digest = landing_text(d, "sha256");
    if (size > LIMIT_OCI_MANIFEST_BYTES)
        return err_set(err, ERR_LIMIT, "%s:%.12s: a manifest of %llu bytes, at most %d are read",
                       x->l->path, digest, (unsigned long long)size, LIMIT_OCI_MANIFEST_BYTES);
    int rc = x->blobs->get(x->blobs->arg, digest, size, "manifest", &a, err);
    if (!rc)
        rc = landing_check_arrival(x->l, d, a, err);
    char *text = NULL;
    size_t n = 0;
    if (!rc)
        rc = file_read(a->path, LIMIT_OCI_MANIFEST_BYTES, &text, &n, err);
    char where[24];
    snprintf(where, sizeof where, "%.12s", digest);
    if (!rc)
        rc = take_image(x, text, n, where, depth + 1, err);
    sys_free(text);
    return rc;
}

static int take_image(struct image *x, const char *text, size_t n, const char *where, int depth,
                      struct err *err)
{
    enum oci_kind kind;
    json_t *value = NULL, *d;
    size_t i;
    struct digest own;
    char full[600], hex[DIGEST_HEX_CHARS + 1];
    snprintf(full, sizeof full, "%.400s:%.150s", x->l->path, where);
    if (depth > MAX_DEPTH)
        return err_set(err, ERR_REFUSED, "%s: an index in an index in an index", full);
    int rc = digest_buffer(text, n, &own, err);
    if (!rc)
        rc = oci_parse(text, n, full, &kind, &value, err);
    if (!rc)
        digest_hex(&own, hex);
    if (!rc && kind == OCI_KIND_MANIFEST)
        rc = take_manifest(x, value, hex, where, err);
    else if (!rc && kind == OCI_KIND_SIGNATURE)
        rc = take_signature(x, value, where, err);
    else if (!rc && kind == OCI_KIND_INDEX)
        json_array_foreach(value, i, d)
        {
            rc = rc ? rc : take_descriptor(x, d, depth, err);
        }
    json_decref(value);
    return rc;
}

static int land_one(struct image *x, const json_t *adapter, size_t number, bool publish,
                    struct err *err)
{
    const json_t *record = json_object_get(adapter, "record");
    struct landed a = {.where = landing_text(adapter, "where"),
                       .record = record,
                       .number = number,
                       .from_image = true,
                       .suggested = landing_text(adapter, "name")};
    size_t i;
    json_t *file;
    int rc = 0;
    json_array_foreach(json_object_get(adapter, "files"), i, file)
    {
        const struct arrival *from =
            arrivals_find_digest(&x->l->files, landing_text(file, "sha256"));
        if (!rc)
            rc = landed_add(&a, from, landing_text(file, "path"), err);
    }
    json_array_foreach(x->l->signatures, i, file)
    {
        const struct arrival *from =
            arrivals_find_digest(&x->l->files, landing_text(file, "sha256"));
        bool its = strcmp(landing_text(file, "subject"), landing_text(adapter, "digest")) == 0;
        if (!rc && its && from)
            rc = landed_sign(&a, from, err);
    }
    if (!rc)
        rc = publish ? landing_adapter(x->l, &a, err) : landing_judge(x->l, &a, err);
    landed_release(&a);
    return rc;
}

int landing_image(struct landing *l, const char *text, size_t n, const char *where,
                  const struct landing_blobs *blobs, struct err *err)
{
    struct image x = {l, blobs, json_array()};
    int rc = x.adapters ? take_image(&x, text, n, where, 0, err)
                        : err_set(err, ERR_NO_MEMORY, "%s: no memory", l->path);
    size_t n_adapters = json_array_size(x.adapters);
    if (!rc && n_adapters == 0)
        rc = err_set(err, ERR_NOT_FOUND, "%s: no adapter in it", l->path);
    if (!rc && n_adapters > 1 && l->opt->name)
        rc = err_set(err, ERR_USAGE, "--name is for one adapter, %s has %zu", l->path, n_adapters);
    for (size_t i = 0; !rc && i < 2 * n_adapters; i++)
        rc = land_one(&x, json_array_get(x.adapters, i % n_adapters), i % n_adapters,
                      i >= n_adapters, err);
    json_decref(x.adapters);
    return rc;
}
