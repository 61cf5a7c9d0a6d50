#include <stdio.h>
#include <string.h>

#include "libcore/adapter/content_id.h"
#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/adapter_file.h"
#include "store/import_impl.h"
#include "store/signed.h"

struct job {
    struct store *s;
    const char *path;
    const struct import_options *opt;
    struct import_result *out;
    struct base_model *found_base;        // owned
    char *folder;                         // of the source files, for messages
    const struct import_arrived *arrived; // NULL: from a folder
    struct import_signatures found;       // in the folder
};

static const struct base_model *base_of(const struct job *j)
{
    return j->opt->base ? j->opt->base : j->found_base;
}

static int warn(struct job *j, struct err *err, const char *text)
{
    return json_array_append_new(j->out->warnings, json_string(text)) == 0
               ? 0
               : err_set(err, ERR_NO_MEMORY, "%s: no memory", j->path);
}

// ---- the base ----------------------------------------------------------------------------------

struct base_search {
    const char *wanted;
    char id[STORE_ID_CHARS + 1];
    size_t n; // different bases that match
};

static int match_base(void *arg, const struct store_entry *e)
{
    struct base_search *b = arg;
    bool match = strcmp(e->name, b->wanted) == 0 || strcmp(e->base_name, b->wanted) == 0 ||
                 strcmp(e->path, b->wanted) == 0;
    if (match && strcmp(b->id, e->id) != 0) {
        memcpy(b->id, e->id, sizeof b->id);
        b->n++;
    }
    return 0;
}

/* The one base of the store that the adapter names: by its name there, its hub name or its path.
 * Shapes are never guessed from: a base and its instruct version have the same. */
static int find_base(struct job *j, const struct adapter *a, struct err *err)
{
    if (!j->s || !j->opt->find_base || !a->base_name || !*a->base_name)
        return 0;
    struct base_search search = {.wanted = a->base_name};
    const struct store_query q = {.kinds = STORE_BASE};
    int rc = store_list(j->s, &q, match_base, &search, err);
    if (rc || search.n == 0)
        return rc;
    if (search.n > 1)
        return warn(j, err,
                    "several bases of the store have the name that it gives as its base: "
                    "none is recorded (--base says which)");
    rc = base_model_open(&j->found_base, j->s, search.id, err);
    // A base that moved away does not keep the adapter out.
    if (rc == ERR_NOT_FOUND || rc == ERR_REFUSED) {
        char text[ERR_MSG_BYTES + 64];
        snprintf(text, sizeof text, "its base is not recorded: %s", err ? err->msg : "");
        err_clear(err);
        return warn(j, err, text);
    }
    return rc;
}

static const char *packed_base(const struct job *j)
{
    const json_t *record = j->arrived ? j->arrived->record : NULL;
    const char *id =
        json_string_value(json_object_get(json_object_get(record, "base"), "fingerprint"));
    return id ? id : "";
}

/* The base that the pack says: checked against when the store has it, recorded either way. */
static int find_packed_base(struct job *j, struct err *err)
{
    struct digest d;
    const char *id = packed_base(j);
    if (!digest_parse(id, &d))
        return err_set(err, ERR_CORRUPT, "%s: its base's fingerprint is none", j->path);
    digest_hex(&d, j->out->base_id);
    struct store_entry e;
    if (!j->s || store_get(j->s, j->out->base_id, &e, NULL) != 0)
        return 0;
    store_entry_release(&e);
    int rc = base_model_open(&j->found_base, j->s, j->out->base_id, err);
    if (rc != ERR_NOT_FOUND && rc != ERR_REFUSED)
        return rc;
    err_clear(err); // it moved away: no reason to keep the adapter out
    return 0;
}

static int check_base(struct job *j, const struct adapter *a, struct err *err)
{
    int rc = 0;
    if (!j->opt->base)
        rc = *packed_base(j) ? find_packed_base(j, err) : find_base(j, a, err);
    const struct base_model *b = base_of(j);
    if (rc || !b)
        return rc;
    rc = base_model_check_adapter(b, a, j->out->warnings, err);
    if (rc)
        return err_prefix(err, "%s does not fit base %s", j->path, b->name), rc;
    memcpy(j->out->base_id, b->id, sizeof j->out->base_id);
    if (j->opt->base && a->base_name && *a->base_name && strcmp(a->base_name, b->name) != 0) {
        char text[512];
        snprintf(text, sizeof text,
                 "its configuration names base %.200s, it is recorded for %.200s", a->base_name,
                 b->name);
        rc = warn(j, err, text);
    }
    return rc;
}

// ---- reading -----------------------------------------------------------------------------------

static int read_adapter(struct job *j, const char *path, bool skip_values, struct adapter **a,
                        struct err *err)
{
    struct peft_options opt = {.ignore_fields = j->opt->ignore_fields,
                               .n_ignore_fields = j->opt->n_ignore_fields,
                               .skip_values = skip_values};
    const struct base_model *base = base_of(j);
    if (base) {
        opt.n_heads = base->config.n_heads;
        opt.n_kv_heads = base->config.n_kv_heads;
    }
    return adapter_file_read(a, path, &opt, err);
}

static int set_name(struct job *j, const struct adapter *a, struct err *err)
{
    if (j->arrived && j->arrived->record)
        return import_set_packed_name(j->out, j->opt, j->arrived->record, j->path, err);
    char *from_path = peft_name_of_path(j->arrived ? j->arrived->suggested : j->path);
    if (!from_path)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", j->path);
    const char *in_config = json_string_value(json_object_get(a->config, "name"));
    int rc = import_set_name(j->out, j->opt, in_config && *in_config ? in_config : from_path,
                             j->path, err);
    sys_free(from_path);
    return rc;
}

/* The same content may serve two bases, one and its fine-tuned version; the user should know. */
static int note_other_base(struct job *j, const char *id, struct err *err)
{
    json_t *m;
    if (!*j->out->base_id || manifest_read(j->s, id, &m, NULL) != 0)
        return 0;
    const char *was = json_string_value(json_object_get(json_object_get(m, "base"), "fingerprint"));
    int rc = 0;
    if (was && *was && strcmp(was, j->out->base_id) != 0) {
        char text[160];
        snprintf(text, sizeof text,
                 "this content was recorded for base %.12s, and is for %.12s too", was,
                 j->out->base_id);
        rc = warn(j, err, text);
    }
    json_decref(m);
    return rc;
}

/* Everything that headers tell, from the source itself, before any byte is copied. */
static int check_headers(struct job *j, struct err *err)
{
    struct adapter *a;
    int rc = read_adapter(j, j->path, !j->opt->dry_run, &a, err);
    if (rc)
        return rc;
    rc = set_name(j, a, err);
    if (!rc)
        rc = check_base(j, a, err);
    if (!rc && j->opt->dry_run) {
        rc = content_id_compute(a, 0, err);
        memcpy(j->out->id, a->content_id, sizeof j->out->id);
        if (!rc && a->warnings && json_array_extend(j->out->warnings, a->warnings) != 0)
            rc = err_set(err, ERR_NO_MEMORY, "%s: no memory", j->path);
    }
    adapter_free(a);
    return rc;
}

static int plan(struct job *j, struct peft_files *files, struct err *err)
{
    for (size_t i = 0; i < files->n; i++) {
        uint64_t size;
        int rc = file_size(files->items[i].path, &size, err);
        if (rc)
            return rc;
        j->out->bytes += size;
    }
    j->out->n_files = (uint32_t)files->n;
    j->out->state = PUBLISH_ADDED;
    if (!j->s)
        return 0;
    int rc = publish_check_name(j->s, j->out->name, j->out->tag, j->out->id, j->opt->force,
                                &j->out->state, err);
    struct store_entry e;
    if (!rc && j->out->state == PUBLISH_NAMED) {
        bool known = store_get(j->s, j->out->id, &e, NULL) == 0;
        if (known)
            store_entry_release(&e);
        j->out->state = known ? PUBLISH_NAMED : PUBLISH_ADDED;
    }
    return rc;
}

// ---- writing -----------------------------------------------------------------------------------

static json_t *ignored_json(const struct import_options *opt)
{
    json_t *list = json_array();
    for (size_t i = 0; i < opt->n_ignore_fields; i++)
        json_array_append_new(list, json_string(opt->ignore_fields[i]));
    return list;
}

/* What a pack says of an adapter and its files do not: other bases, where it came from. */
static int keep_record(struct job *j, json_t *manifest, struct err *err)
{
    static const char *const kept[] = {"lineage", "recipe"};
    const json_t *record = j->arrived->record;
    int failed = 0;
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
        json_t *value = json_object_get(record, kept[i]);
        if (value)
            failed |= json_object_set(manifest, kept[i], value);
    }
    json_t *also = json_object_get(json_object_get(record, "base"), "also");
    if (json_is_array(also) && !j->opt->base)
        failed |= json_object_set(json_object_get(manifest, "base"), "also", also);
    return failed ? err_set(err, ERR_NO_MEMORY, "%s: no memory", j->path) : 0;
}

static int make_manifest(struct job *j, const struct adapter *a, json_t **out, struct err *err)
{
    json_t *ignored = ignored_json(j->opt);
    char *source = file_real_path(j->path, NULL);
    struct manifest_origin origin = {.name = j->out->name,
                                     .source = j->opt->source ? j->opt->source
                                               : source       ? source
                                                              : j->path,
                                     .lineage = j->opt->lineage,
                                     .base_id = j->out->base_id,
                                     .ignored = ignored,
                                     .warnings = j->out->warnings};
    int rc = manifest_of_adapter(out, a, &origin, err);
    // What its files alone do not say and reading them again needs.
    if (!rc && strcmp(a->format, "gguf") == 0 && base_of(j) &&
        json_object_set_new(*out, "base_heads",
                            json_pack("[i, i]", (int)base_of(j)->config.n_heads,
                                      (int)base_of(j)->config.n_kv_heads)) != 0)
        rc = err_set(err, ERR_NO_MEMORY, "%s: no memory", j->path);
    sys_free(source);
    json_decref(ignored);
    return rc || !j->arrived ? rc : keep_record(j, *out, err);
}

/* Content that the store has already may have been spoiled there since: then it is put again. Read
 * file by file: nothing is mapped. */
static bool stored_copy_is_spoiled(struct store *s, const char *id)
{
    json_t *m;
    bool spoiled = false;
    if (manifest_read(s, id, &m, NULL) != 0)
        return false;
    for (size_t i = 0; !spoiled && i < manifest_n_files(m); i++) {
        struct manifest_file f;
        spoiled = manifest_file_at(m, i, &f, NULL) != 0 ||
                  blob_check(s, f.digest, f.size, BLOB_CHECK_DIGEST, NULL) == ERR_CORRUPT;
    }
    json_decref(m);
    return spoiled;
}

/* Its files, all in the work folder and hashed, against the signatures that came with them. */
static int judge_files(struct job *j, struct import_signatures *all, const struct import_files *f,
                       struct err *err)
{
    struct signed_file *files = sys_calloc(f->n, sizeof *files);
    if (!files)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", j->path);
    for (size_t i = 0; i < f->n; i++)
        files[i] = (struct signed_file){
            .name = f->names[i], .digest = f->published[i].digest, .path = f->published[i].tmp};
    int rc = import_signatures_judge(all, files, f->n, j->opt, j->path, j->out->warnings, err);
    j->out->n_signatures = import_signatures_n(all);
    sys_free(files);
    return rc;
}

static int publish_all(struct job *j, const struct import_signatures *all,
                       const struct import_files *f, const json_t *manifest, struct err *err)
{
    bool left_out = false;
    struct publish_file *files = NULL;
    struct publish p = {.id = j->out->id,
                        .manifest = manifest,
                        .name = j->out->name,
                        .tag = j->out->tag,
                        .force = j->opt->force,
                        .must_be_signed = j->opt->required && j->opt->required->n,
                        .left_out = &left_out};
    p.rewrite = stored_copy_is_spoiled(j->s, j->out->id);
    int rc = import_signatures_list(all, f, &files, &p.n_files, err);
    p.files = files;
    if (!rc)
        rc = publish(j->s, &p, &j->out->state, err);
    if (!rc && left_out)
        rc = warn(j, err,
                  "the store has this content in other files, which are signed: they stay, and the "
                  "signature of these was not kept");
    sys_free(files);
    return rc;
}

static int publish_files(struct job *j, const struct adapter *a, struct import_files *f,
                         const char *folder, struct err *err)
{
    json_t *manifest = NULL;
    struct import_signatures *all = j->arrived ? j->arrived->signatures : &j->found;
    memcpy(j->out->id, a->content_id, sizeof j->out->id);
    int rc = make_manifest(j, a, &manifest, err);
    for (size_t i = 0; !rc && i < f->n; i++)
        rc = import_files_finish(f, i, manifest, &j->out->bytes, err);
    if (!rc)
        rc = manifest_seal(manifest, err);
    if (!rc)
        rc = judge_files(j, all, f, err);
    if (!rc)
        rc = import_signatures_keep(all, folder, manifest, err);
    if (!rc)
        rc = publish_all(j, all, f, manifest, err);
    json_decref(manifest);
    return rc;
}

/* An adapter whose files lie in the work folder, with its content id. What was learnt of the
 * tensors while they came is used; where it does not suffice all values are read. */
static int read_arrived(struct job *j, const char *folder, const struct import_files *f,
                        struct adapter **a, struct err *err)
{
    int rc = read_adapter(j, folder, true, a, err);
    if (!rc && !import_files_know(f, *a)) {
        adapter_free(*a);
        rc = read_adapter(j, folder, false, a, err);
    }
    return rc;
}

/* The copy in the work folder is what is looked at, hashed and kept: whatever happens to the source
 * meanwhile. */
static int read_copy(struct job *j, const char *work_folder, struct import_files *f,
                     struct err *err)
{
    int rc = import_files_wait(f, err);
    struct adapter *a = NULL;
    if (!rc)
        rc = read_arrived(j, work_folder, f, &a, err);
    if (!rc)
        rc = content_id_compute(a, 0, err);
    if (!rc && a->warnings && json_array_size(a->warnings))
        json_array_extend(j->out->warnings, a->warnings);
    if (!rc)
        rc = note_other_base(j, a->content_id, err);
    if (!rc)
        rc = publish_files(j, a, f, work_folder, err);
    adapter_free(a);
    if (rc)
        import_restore_paths(err, work_folder, j->folder);
    return rc;
}

static int import_into(struct job *j, struct peft_files *files, struct err *err)
{
    struct work w;
    int rc = work_open(&w, j->s, "import", err);
    if (rc)
        return rc;
    struct import_files f = {0};
    j->out->n_files = (uint32_t)files->n;
    rc = import_files_open(&f, files->n, err);
    for (size_t i = 0; !rc && i < files->n; i++)
        rc = import_files_start(&f, i, files->items[i].path, w.folder, files->items[i].name, false,
                                j->opt, err);
    if (!rc)
        rc = read_copy(j, w.folder, &f, err);
    import_files_release(&f);
    work_close(&w);
    return rc;
}

/* The model-signing tools leave it in the folder. */
static int find_signature(struct job *j, struct err *err)
{
    char *path = file_join(j->folder, BUNDLE_FILE);
    if (!path)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", j->path);
    int rc = file_exists(path) && !file_is_folder(path)
                 ? import_signatures_add(&j->found, path, path, err)
                 : 0;
    sys_free(path);
    return rc;
}

/* For a dry run; without a signature, and none wanted, nothing is read. */
static int judge_in_place(struct job *j, const struct peft_files *files, struct err *err)
{
    struct signed_file *all = sys_calloc(files->n, sizeof *all);
    if (!all)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", j->path);
    for (size_t i = 0; i < files->n; i++)
        all[i] = (struct signed_file){.name = files->items[i].name, .path = files->items[i].path};
    int rc =
        import_signatures_judge(&j->found, all, files->n, j->opt, j->path, j->out->warnings, err);
    j->out->n_signatures = import_signatures_n(&j->found);
    sys_free(all);
    return rc;
}

int import_adapter(struct store *s, const char *path, const struct import_options *opt,
                   struct import_result *out, struct err *err)
{
    memset(out, 0, sizeof *out);
    struct job j = {.s = s, .path = path, .opt = opt, .out = out};
    struct peft_files files = {0};
    out->kind = STORE_ADAPTER;
    out->warnings = json_array();
    int rc = out->warnings ? adapter_files_list(&files, path, err)
                           : err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
    if (!rc) {
        j.folder = file_dir_name(files.items[0].path);
        rc = j.folder ? check_headers(&j, err) : err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
    }
    if (!rc)
        rc = find_signature(&j, err);
    if (!rc && opt->dry_run)
        rc = judge_in_place(&j, &files, err);
    if (!rc)
        rc = opt->dry_run ? plan(&j, &files, err) : import_into(&j, &files, err);
    import_signatures_release(&j.found);
    peft_files_release(&files);
    base_model_free(j.found_base);
    sys_free(j.folder);
    if (rc)
        import_result_release(out);
    return rc;
}

// ---- from a pack -------------------------------------------------------------------------------

static int check_id(struct job *j, const struct adapter *a, struct err *err)
{
    const char *wanted = json_string_value(json_object_get(j->arrived->record, "id"));
    memcpy(j->out->id, a->content_id, sizeof j->out->id);
    if (!j->arrived->record || (wanted && strcmp(wanted, a->content_id) == 0))
        return 0;
    return err_set(err, ERR_CORRUPT, "%s: its content id is %.12s, its pack says %.12s", j->path,
                   a->content_id, wanted ? wanted : "nothing");
}

static int plan_arrived(struct job *j, struct err *err)
{
    int rc = judge_files(j, j->arrived->signatures, j->arrived->files, err);
    if (rc)
        return rc;
    j->out->state = PUBLISH_ADDED;
    for (size_t i = 0; i < j->arrived->files->n; i++)
        j->out->bytes += j->arrived->files->sizes[i];
    if (!j->s)
        return 0;
    struct peft_files none = {0};
    uint32_t n_files = j->out->n_files;
    rc = plan(j, &none, err);
    j->out->n_files = n_files;
    return rc;
}

int import_adapter_arrived(struct store *s, const struct import_arrived *in,
                           const struct import_options *opt, struct import_result *out,
                           struct err *err)
{
    memset(out, 0, sizeof *out);
    struct job j = {.s = s, .path = in->where, .opt = opt, .out = out, .arrived = in};
    struct adapter *a = NULL;
    out->kind = STORE_ADAPTER;
    out->n_files = (uint32_t)in->files->n;
    out->warnings = json_array();
    int rc = out->warnings ? read_arrived(&j, in->folder, in->files, &a, err)
                           : err_set(err, ERR_NO_MEMORY, "%s: no memory", in->where);
    if (!rc)
        rc = set_name(&j, a, err);
    if (!rc)
        rc = check_base(&j, a, err);
    if (!rc)
        rc = content_id_compute(a, 0, err);
    if (!rc)
        rc = check_id(&j, a, err);
    if (!rc && a->warnings && json_array_extend(out->warnings, a->warnings) != 0)
        rc = err_set(err, ERR_NO_MEMORY, "%s: no memory", in->where);
    if (!rc && s)
        rc = note_other_base(&j, a->content_id, err);
    if (!rc)
        rc =
            opt->dry_run ? plan_arrived(&j, err) : publish_files(&j, a, in->files, in->folder, err);
    if (rc)
        import_restore_paths(err, in->folder, in->where);
    adapter_free(a);
    base_model_free(j.found_base);
    if (rc)
        import_result_release(out);
    return rc;
}
