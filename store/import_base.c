#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"
#include "libcore/format/checkpoint.h"
#include "store/import_impl.h"
#include "store/object.h"

struct job {
    struct store *s;
    const char *path;
    const struct import_options *opt;
    struct import_result *out;
    struct base_model *base;
    struct checkpoint *ckpt;
};

// ---- the manifest ------------------------------------------------------------------------------

static const char *dtype_text(const struct checkpoint *c)
{
    enum dtype first = DTYPE_NONE;
    for (size_t i = 0; i < checkpoint_count(c); i++) {
        enum dtype t = checkpoint_at(c, i)->value.dtype;
        if (first != DTYPE_NONE && t != first)
            return "mixed";
        first = t;
    }
    return first == DTYPE_NONE ? "" : dtype_name(first);
}

static int make_manifest(const struct job *j, json_t **out, struct err *err)
{
    const struct base_model *b = j->base;
    *out = json_pack("{s:i,s:s,s:s,s:s,s:s,s:s,s:I,s:{s:s,s:s},s:s,s:i,s:i,s:I,s:s,s:{s:I,s:I,s:I},"
                     "s:[]}",
                     "schema", 1, "kind", "base", "id", b->id, "name", j->out->name, "format",
                     "checkpoint", "source", b->folder, "created",
                     (json_int_t)(thread_unix_ns() / 1000000000u), "base", "fingerprint", "",
                     "name", b->name, "architecture", b->config.arch_name, "layers",
                     (int)b->config.n_layers, "modules", (int)b->modules->n, "parameters",
                     (json_int_t)b->n_parameters, "dtype", dtype_text(j->ckpt), "bytes", "disk",
                     (json_int_t)0, "host", (json_int_t)checkpoint_weight_bytes(j->ckpt), "device",
                     (json_int_t)(b->n_parameters * 2), "files");
    if (*out && !j->opt->copy)
        json_object_set_new(*out, "path", json_string(b->folder));
    return *out ? 0 : err_set(err, ERR_NO_MEMORY, "%s: no memory", j->path);
}

static int add_tensor(json_t *list, const struct safetensors_entry *e, const struct digest *d,
                      struct err *err)
{
    char hex[DIGEST_HEX_CHARS + 1];
    digest_hex(d, hex);
    json_t *shape = manifest_shape(&e->value);
    json_t *row = json_pack("{s:s,s:s,s:o,s:s}", "name", e->name, "dtype",
                            dtype_name(e->value.dtype), "shape", shape, "sha256", hex);
    return json_array_append_new(list, row) == 0
               ? 0
               : err_set(err, ERR_NO_MEMORY, "%s: no memory", e->name);
}

/* The tensors of a shard, as they were hashed when its bytes were read; of one whose header was too
 * long for that, now. */
static int add_tensors(json_t *list, const struct safetensors_stream *known, const char *path,
                       struct err *err)
{
    size_t n;
    const struct safetensors_part *parts = safetensors_stream_parts(known, &n);
    for (size_t i = 0; i < n; i++) {
        int rc = add_tensor(list, parts[i].entry, &parts[i].payload, err);
        if (rc)
            return rc;
    }
    struct safetensors *s;
    int rc = parts ? 0 : safetensors_open(&s, path, 0, err);
    if (rc || parts)
        return rc;
    for (size_t i = 0; !rc && i < safetensors_count(s); i++) {
        const struct safetensors_entry *e = safetensors_at(s, i);
        struct digest d;
        rc = digest_buffer(e->value.data, e->end - e->begin, &d, err);
        if (!rc)
            rc = add_tensor(list, e, &d, err);
    }
    safetensors_free(s);
    return rc;
}

// ---- by reference ------------------------------------------------------------------------------

static int hash_file(const struct job *j, size_t i, char hex[DIGEST_HEX_CHARS + 1], json_t *tensors,
                     struct err *err)
{
    const struct checkpoint_file *f = checkpoint_file_at(j->ckpt, i);
    struct safetensors_stream *known = NULL;
    struct digest d;
    char *path = file_join(j->base->folder, f->name);
    int rc = path ? safetensors_stream_file(&known, path, true, &d, err)
                  : err_set(err, ERR_NO_MEMORY, "%s: no memory", f->name);
    if (!rc)
        digest_hex(&d, hex);
    if (!rc && f->weights)
        rc = add_tensors(tensors, known, path, err);
    if (!rc && j->opt->on_bytes && j->opt->on_bytes(j->opt->on_bytes_arg, f->size) != 0)
        rc = err_set(err, ERR_INTERRUPTED, "%s: interrupted", j->path);
    safetensors_stream_free(known);
    sys_free(path);
    return rc;
}

/* Files, several at once. */
struct hash_job {
    const struct job *job;
    char (*hex)[DIGEST_HEX_CHARS + 1]; // one a file of the checkpoint
    json_t **tensors;                  // one a file: which thread ends first is not to be seen
    struct err *errs;                  // one a thread
    size_t n;
    atomic_size_t next; // file that nobody has in hand
};

static void hash_some(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    struct hash_job *h = arg;
    struct err *err = &h->errs[thread_idx];
    (void)begin, (void)end; // files differ in size: whoever is free takes the next
    for (size_t i; !err->code && (i = atomic_fetch_add(&h->next, 1)) < h->n;) {
        h->tensors[i] = json_array();
        if (!h->tensors[i])
            err_set(err, ERR_NO_MEMORY, "%s: no memory", h->job->path);
        else
            hash_file(h->job, i, h->hex[i], h->tensors[i], err);
    }
}

static int join_tensors(const struct hash_job *h, size_t n, json_t *manifest, struct err *err)
{
    json_t *all = json_array();
    bool failed = !all;
    for (size_t i = 0; !failed && i < n; i++)
        failed = json_array_extend(all, h->tensors[i]) != 0;
    if (!failed)
        failed = json_object_set(manifest, "tensors", all) != 0;
    json_decref(all);
    return failed ? err_set(err, ERR_NO_MEMORY, "%s: no memory", h->job->path) : 0;
}

static int hash_all(const struct job *j, json_t *manifest, char (*hex)[DIGEST_HEX_CHARS + 1],
                    struct err *err)
{
    size_t n = checkpoint_n_files(j->ckpt);
    struct worker_pool *pool;
    int rc = worker_pool_open(&pool, 0, err);
    if (rc)
        return rc;
    unsigned n_threads = worker_pool_size(pool);
    struct hash_job h = {.job = j,
                         .hex = hex,
                         .tensors = sys_calloc(n, sizeof *h.tensors),
                         .errs = sys_calloc(n_threads, sizeof *h.errs),
                         .n = n};
    if (!h.tensors || !h.errs)
        rc = err_set(err, ERR_NO_MEMORY, "%s: no memory", j->path);
    else
        worker_pool_run(pool, n_threads, 1, hash_some, &h);
    worker_pool_free(pool);
    for (unsigned i = 0; h.errs && i < n_threads && !rc; i++)
        rc = h.errs[i].code ? err_set(err, h.errs[i].code, "%s", h.errs[i].msg) : 0;
    if (!rc)
        rc = join_tensors(&h, n, manifest, err);
    for (size_t i = 0; h.tensors && i < n; i++)
        json_decref(h.tensors[i]);
    sys_free(h.tensors);
    sys_free(h.errs);
    return rc;
}

static int add_references(const struct job *j, json_t *manifest, struct err *err)
{
    size_t n = checkpoint_n_files(j->ckpt);
    char(*hex)[DIGEST_HEX_CHARS + 1] = sys_calloc(n, sizeof *hex);
    int rc = hex ? 0 : err_set(err, ERR_NO_MEMORY, "%s: no memory", j->path);
    if (!rc && j->opt->deep)
        rc = hash_all(j, manifest, hex, err);
    for (size_t i = 0; !rc && i < n; i++) {
        const struct checkpoint_file *f = checkpoint_file_at(j->ckpt, i);
        j->out->bytes += f->size;
        rc = manifest_add_file(manifest, f->name, hex[i], f->size, f->mtime_ns, err);
    }
    sys_free(hex);
    return rc;
}

// ---- as a copy ---------------------------------------------------------------------------------

static int start_file(const struct job *j, struct import_files *f, size_t i,
                      const char *work_folder, struct err *err)
{
    const struct checkpoint_file *file = checkpoint_file_at(j->ckpt, i);
    char *from = file_join(j->base->folder, file->name);
    int rc = from ? import_files_start(f, i, from, work_folder, file->name, true, j->opt, err)
                  : err_set(err, ERR_NO_MEMORY, "%s: no memory", file->name);
    sys_free(from);
    return rc;
}

/* The next file is begun before this one is waited for: its bytes come while the last of this one's
 * are hashed and synced. */
static int copy_file(const struct job *j, struct import_files *f, size_t i, const char *work_folder,
                     json_t *manifest, json_t *tensors, struct err *err)
{
    int rc = i + 1 < f->n ? start_file(j, f, i + 1, work_folder, err) : 0;
    if (!rc)
        rc = import_files_finish(f, i, manifest, &j->out->bytes, err);
    if (!rc && checkpoint_file_at(j->ckpt, i)->weights)
        rc = add_tensors(tensors, blob_copy_weights(f->copies[i]), f->published[i].tmp, err);
    return rc;
}

/* The copy may differ from what was looked at before, if somebody writes to the source: its own
 * fingerprint must be the one that it is filed under. */
static int check_copy(const struct job *j, const char *work_folder, struct err *err)
{
    struct base_model *copy;
    int rc = base_model_open_folder(&copy, work_folder, err);
    if (!rc && strcmp(copy->id, j->base->id) != 0)
        rc = err_set(err, ERR_REFUSED, "%s: changed while it was copied", j->path);
    base_model_free(copy);
    return rc;
}

static int copy_files(const struct job *j, struct import_files *f, const char *work_folder,
                      json_t *manifest, struct err *err)
{
    json_t *tensors = json_array();
    int rc = tensors ? import_files_open(f, checkpoint_n_files(j->ckpt), err)
                     : err_set(err, ERR_NO_MEMORY, "%s: no memory", j->path);
    if (!rc && f->n)
        rc = start_file(j, f, 0, work_folder, err);
    for (size_t i = 0; !rc && i < f->n; i++)
        rc = copy_file(j, f, i, work_folder, manifest, tensors, err);
    if (!rc)
        rc = check_copy(j, work_folder, err);
    if (!rc)
        json_object_set(manifest, "tensors", tensors);
    json_decref(tensors);
    if (rc)
        import_restore_paths(err, work_folder, j->base->folder);
    return rc;
}

// ---- publishing --------------------------------------------------------------------------------

static bool has_digest(const json_t *manifest)
{
    struct manifest_file f;
    return manifest_file_at(manifest, 0, &f, NULL) == 0 && *f.digest;
}

/* A base that is known may have moved, or be known by reference and now come as a copy. */
static bool supersedes(const struct job *j)
{
    json_t *old;
    if (manifest_read(j->s, j->base->id, &old, NULL) != 0)
        return false;
    bool result = false;
    if (object_is_reference(old)) {
        const char *path = json_string_value(json_object_get(old, "path"));
        result = j->opt->copy || strcmp(path, j->base->folder) != 0 ||
                 (j->opt->deep && !has_digest(old)) || object_check_reference(old, NULL) != 0;
    }
    json_decref(old);
    return result;
}

static int publish_base(const struct job *j, json_t *manifest, const struct import_files *f,
                        struct err *err)
{
    int rc = manifest_seal(manifest, err);
    if (rc)
        return rc;
    struct publish p = {.id = j->base->id,
                        .manifest = manifest,
                        .files = f->published,
                        .n_files = f->n,
                        .name = j->out->name,
                        .tag = j->out->tag,
                        .force = j->opt->force,
                        .rewrite = supersedes(j)};
    return publish(j->s, &p, &j->out->state, err);
}

static int import_into(const struct job *j, struct err *err)
{
    json_t *manifest;
    struct import_files f = {0};
    struct work w = {0};
    int rc = make_manifest(j, &manifest, err);
    if (!rc && j->opt->copy) {
        rc = work_open(&w, j->s, "import", err);
        if (!rc)
            rc = copy_files(j, &f, w.folder, manifest, err);
    } else if (!rc) {
        rc = add_references(j, manifest, err);
    }
    if (!rc)
        rc = publish_base(j, manifest, &f, err);
    import_files_release(&f);
    work_close(&w);
    json_decref(manifest);
    return rc;
}

/* What was built (store/import_overlay.c): digests and tensors are known. */
static int publish_arrived(const struct job *j, const struct import_arrived *in, struct err *err)
{
    json_t *manifest = NULL, *tensors = json_array();
    const json_t *recipe = json_object_get(in->record, "recipe");
    int rc = tensors ? make_manifest(j, &manifest, err)
                     : err_set(err, ERR_NO_MEMORY, "%s: no memory", j->path);
    for (size_t i = 0; !rc && i < in->files->n; i++) {
        rc = import_files_finish(in->files, i, manifest, &j->out->bytes, err);
        if (!rc && checkpoint_file_at(j->ckpt, i)->weights)
            rc = add_tensors(tensors, in->files->weights[i], in->files->published[i].tmp, err);
    }
    if (!rc && (json_object_set(manifest, "tensors", tensors) != 0 ||
                json_object_set_new(manifest, "source", json_string(in->where)) != 0 ||
                (recipe && json_object_set(manifest, "recipe", (json_t *)recipe) != 0)))
        rc = err_set(err, ERR_NO_MEMORY, "%s: no memory", j->path);
    if (!rc)
        rc = publish_base(j, manifest, in->files, err);
    json_decref(tensors);
    json_decref(manifest);
    return rc;
}

static int plan(const struct job *j, struct err *err)
{
    for (size_t i = 0; i < checkpoint_n_files(j->ckpt); i++)
        j->out->bytes += checkpoint_file_at(j->ckpt, i)->size;
    j->out->state = PUBLISH_ADDED;
    return j->s ? publish_check_name(j->s, j->out->name, j->out->tag, j->out->id, j->opt->force,
                                     &j->out->state, err)
                : 0;
}

int import_base(struct store *s, const char *path, const struct import_options *opt,
                struct import_result *out, struct err *err)
{
    memset(out, 0, sizeof *out);
    struct job j = {.s = s, .path = path, .opt = opt, .out = out};
    out->kind = STORE_BASE;
    out->by_reference = !opt->copy;
    out->warnings = json_array();
    int rc = out->warnings ? base_model_open_folder(&j.base, path, err)
                           : err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
    if (!rc)
        rc = checkpoint_open(&j.ckpt, j.base->folder, err);
    if (!rc)
        rc = import_set_name(out, opt, j.base->name, path, err);
    if (!rc) {
        memcpy(out->id, j.base->id, sizeof out->id);
        out->n_files = (uint32_t)checkpoint_n_files(j.ckpt);
        rc = opt->dry_run ? plan(&j, err) : import_into(&j, err);
    }
    checkpoint_free(j.ckpt);
    base_model_free(j.base);
    if (rc)
        import_result_release(out);
    return rc;
}

/* The files are the checkpoint's, in its order: nothing else may lie in its folder. */
static bool same_files(const struct checkpoint *c, const struct import_files *f)
{
    bool same = checkpoint_n_files(c) == f->n;
    for (size_t i = 0; same && i < f->n; i++)
        same = strcmp(checkpoint_file_at(c, i)->name, f->names[i]) == 0;
    return same;
}

int import_base_arrived(struct store *s, const struct import_arrived *in,
                        const struct import_options *opt, struct import_result *out,
                        struct err *err)
{
    memset(out, 0, sizeof *out);
    struct import_options as_copy = *opt;
    struct job j = {.s = s, .path = in->where, .opt = &as_copy, .out = out};
    const char *wanted = json_string_value(json_object_get(in->record, "id"));
    as_copy.copy = true;
    out->kind = STORE_BASE;
    out->n_files = (uint32_t)in->files->n;
    out->warnings = json_array();
    int rc = out->warnings ? base_model_open_folder(&j.base, in->folder, err)
                           : err_set(err, ERR_NO_MEMORY, "%s: no memory", in->where);
    if (rc == ERR_NOT_FOUND) // what a checkpoint needs and the pack has not
        rc = err_set(err, ERR_CORRUPT, "%s", err ? err->msg : "");
    if (!rc && (!wanted || strcmp(wanted, j.base->id) != 0))
        rc = err_set(err, ERR_CORRUPT, "%s: its fingerprint is %.12s, its pack says %.12s",
                     in->where, j.base->id, wanted ? wanted : "nothing");
    if (!rc)
        rc = checkpoint_open(&j.ckpt, j.base->folder, err);
    if (!rc && !same_files(j.ckpt, in->files))
        rc = err_set(err, ERR_CORRUPT, "%s: its files are not those of a checkpoint", in->where);
    if (!rc)
        rc = import_set_packed_name(out, opt, in->record, in->where, err);
    if (!rc) {
        memcpy(out->id, j.base->id, sizeof out->id);
        rc = opt->dry_run ? plan(&j, err) : publish_arrived(&j, in, err);
    }
    checkpoint_free(j.ckpt);
    base_model_free(j.base);
    if (rc) {
        import_restore_paths(err, in->folder, in->where);
        import_result_release(out);
    }
    return rc;
}
