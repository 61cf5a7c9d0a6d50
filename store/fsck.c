#include "store/fsck.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "store/base_model.h"
#include "store/blob.h"
#include "store/fsck_impl.h"
#include "store/object.h"
#include "store/publish.h"
#include "store/refs.h"

void fsck_tell(struct fsck *f, enum fsck_severity severity, const char *fmt, ...)
{
    char text[ERR_MSG_BYTES];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    f->report->n_notes += severity == FSCK_NOTE;
    f->report->n_problems += severity == FSCK_PROBLEM;
    f->report->n_repaired += severity == FSCK_REPAIRED;
    if (f->found)
        f->found(f->arg, severity, text);
}

/* Failures that end fsck itself, as against what it is there to find. */
static bool is_fatal(int rc)
{
    return rc == ERR_NO_MEMORY || rc == ERR_INTERRUPTED || rc == ERR_LOCKED;
}

/* A finding as it stands in problem->msg; spoiled content is told apart from what is missing. */
static void tell_problem(struct fsck *f, const struct err *problem)
{
    f->report->corrupt =
        f->report->corrupt || problem->code == ERR_CORRUPT || problem->code == ERR_NOT_FOUND;
    fsck_tell(f, FSCK_PROBLEM, "%s", problem->msg);
}

/* What is missing may have been removed meanwhile, by an rm and a gc beside us. */
static bool is_gone(struct fsck *f, const char *id)
{
    struct store_entry e;
    if (store_get(f->s, id, &e, NULL) == ERR_NOT_FOUND)
        return true;
    store_entry_release(&e);
    return false;
}

// ---- blobs -------------------------------------------------------------------------------------

static int check_blob(struct fsck *f, const struct manifest_file *file, const char *owner)
{
    if (id_set_has(&f->checked, file->digest))
        return 0;
    int rc = id_set_add(&f->checked, file->digest, f->err);
    if (rc)
        return rc;
    f->report->n_blobs++;
    f->report->n_bytes += file->size;
    struct err problem = {0};
    rc = blob_check(f->s, file->digest, file->size,
                    f->opt->quick ? BLOB_CHECK_SIZE : BLOB_CHECK_DIGEST, &problem);
    if (is_fatal(rc))
        return err_set(f->err, rc, "%s", problem.msg);
    if (rc && !(rc == ERR_NOT_FOUND && is_gone(f, owner))) {
        err_prefix(&problem, "%.12s: %s", owner, file->path);
        if (f->opt->repair && rc == ERR_CORRUPT && (rc = fsck_set_aside(f, file->digest)) != 0)
            return rc;
        tell_problem(f, &problem);
    }
    if (f->opt->on_bytes && f->opt->on_bytes(f->opt->on_bytes_arg, file->size) != 0)
        return err_set(f->err, ERR_INTERRUPTED, "interrupted");
    return 0;
}

static int check_reference_digest(struct fsck *f, const char *folder,
                                  const struct manifest_file *file)
{
    struct digest got;
    char hex[DIGEST_HEX_CHARS + 1], *path = file_join(folder, file->path);
    struct err problem = {0};
    int rc = path ? digest_file(path, &got, NULL, &problem) : ERR_NO_MEMORY;
    if (!rc) {
        digest_hex(&got, hex);
        if (strcmp(hex, file->digest) != 0)
            rc = err_set(&problem, ERR_CORRUPT, "%s: digest %.12s, wanted %.12s", path, hex,
                         file->digest);
    }
    sys_free(path);
    if (is_fatal(rc))
        return err_set(f->err, rc, "no memory");
    if (rc)
        tell_problem(f, &problem);
    return 0;
}

/* A base by reference: its files' sizes and times, and unless quick its digests or fingerprint. */
static int check_reference(struct fsck *f, const json_t *m, const char *id)
{
    struct err problem = {0};
    int rc = object_check_reference(m, &problem);
    if (is_fatal(rc))
        return err_set(f->err, rc, "%s", problem.msg);
    if (rc) {
        fsck_tell(f, FSCK_PROBLEM, "base %.12s: %s", id, problem.msg);
        return 0;
    }
    if (f->opt->quick)
        return 0;
    const char *folder = json_string_value(json_object_get(m, "path"));
    struct manifest_file file;
    bool digests = manifest_file_at(m, 0, &file, NULL) == 0 && *file.digest;
    for (size_t i = 0; digests && !rc && i < manifest_n_files(m); i++) {
        if (manifest_file_at(m, i, &file, NULL) == 0)
            rc = check_reference_digest(f, folder, &file);
    }
    if (digests)
        return rc;
    struct base_model *b;
    rc = base_model_open_folder(&b, folder, &problem);
    if (!rc && strcmp(b->id, id) != 0)
        rc = err_set(&problem, ERR_REFUSED, "%s: fingerprint %.12s, wanted %.12s", folder, b->id,
                     id);
    base_model_free(b);
    if (is_fatal(rc))
        return err_set(f->err, rc, "%s", problem.msg);
    if (rc)
        fsck_tell(f, FSCK_PROBLEM, "base %.12s: %s", id, problem.msg);
    return 0;
}

// ---- objects -----------------------------------------------------------------------------------

static bool same_row(const struct store_entry *a, const struct store_entry *b)
{
    const char *const x[] = {a->id,   a->base_id, a->base_name, a->format,
                             a->arch, a->path,    a->dtype,     a->targets};
    const char *const y[] = {b->id,   b->base_id, b->base_name, b->format,
                             b->arch, b->path,    b->dtype,     b->targets};
    for (size_t i = 0; i < sizeof x / sizeof *x; i++) {
        if (strcmp(x[i], y[i]) != 0)
            return false;
    }
    return a->kind == b->kind && a->kinds == b->kinds && a->min_rank == b->min_rank &&
           a->max_rank == b->max_rank && a->n_parameters == b->n_parameters &&
           a->disk_bytes == b->disk_bytes && a->host_bytes == b->host_bytes &&
           a->device_bytes == b->device_bytes && a->created == b->created &&
           a->n_signatures == b->n_signatures;
}

static int compare_files(struct fsck *f, const json_t *m, const char *id, bool *same)
{
    for (size_t i = 0; *same && i < manifest_n_files(m); i++) {
        struct manifest_file file;
        char digest[STORE_ID_CHARS + 1];
        uint64_t size = 0;
        int rc = manifest_file_at(m, i, &file, f->err);
        if (!rc)
            rc = index_get_file(f->s->index, id, file.path, digest, &size, f->err);
        if (rc && rc != ERR_NOT_FOUND)
            return rc;
        *same = !rc && size == file.size && strcmp(digest, file.digest) == 0;
    }
    for (size_t i = 0; *same && i < manifest_n_signatures(m); i++) {
        char path[MANIFEST_SIGNATURE_PATH_BYTES], digest[STORE_ID_CHARS + 1];
        struct manifest_file file;
        uint64_t size = 0;
        int rc = manifest_signature_at(m, i, &file, path, f->err);
        if (!rc)
            rc = index_get_file(f->s->index, id, path, digest, &size, f->err);
        if (rc && rc != ERR_NOT_FOUND)
            return rc;
        *same = !rc && size == file.size;
    }
    return 0;
}

static int check_row(struct fsck *f, const json_t *m, const char *id)
{
    struct store_entry said, has;
    int rc = manifest_entry(m, &said, f->err);
    if (!rc)
        rc = store_get(f->s, id, &has, f->err);
    if (rc)
        return rc;
    bool same = same_row(&said, &has);
    f->report->n_adapters += has.kind == STORE_ADAPTER;
    f->report->n_bases += has.kind == STORE_BASE;
    store_entry_release(&has);
    rc = compare_files(f, m, id, &same);
    if (rc || same)
        return rc;
    if (!f->opt->repair) {
        bool begun = publish_is_rewriting(f->s, id);
        fsck_tell(f, begun ? FSCK_NOTE : FSCK_PROBLEM,
                  begun ? "%.12s: an interrupted command had begun to change its manifest"
                        : "index: what it says of %.12s is not what its manifest says",
                  id);
        return 0;
    }
    rc = fsck_reindex(f, m);
    if (!rc)
        fsck_tell(f, FSCK_REPAIRED, "index: %.12s was read again from its manifest", id);
    return rc;
}

static int check_object(struct fsck *f, const char *id)
{
    json_t *m;
    struct err problem = {0};
    int rc = manifest_read(f->s, id, &m, &problem);
    if (is_fatal(rc))
        return err_set(f->err, rc, "%s", problem.msg);
    if (rc) {
        if (!(rc == ERR_NOT_FOUND && is_gone(f, id)))
            tell_problem(f, &problem);
        return 0;
    }
    rc = check_row(f, m, id);
    if (rc == ERR_NOT_FOUND && is_gone(f, id)) {
        err_clear(f->err);
        json_decref(m);
        return 0;
    }
    if (rc == ERR_CORRUPT) { // the manifest itself is off
        tell_problem(f, f->err);
        err_clear(f->err);
        rc = 0;
    }
    bool reference = object_is_reference(m);
    for (size_t i = 0; !rc && !reference && i < manifest_n_files(m); i++) {
        struct manifest_file file;
        if (manifest_file_at(m, i, &file, NULL) != 0)
            continue;
        rc = id_set_add(&f->blobs, file.digest, f->err);
        if (!rc)
            rc = check_blob(f, &file, id);
    }
    for (size_t i = 0; !rc && i < manifest_n_signatures(m); i++) {
        char path[MANIFEST_SIGNATURE_PATH_BYTES];
        struct manifest_file file;
        if (manifest_signature_at(m, i, &file, path, NULL) != 0)
            continue;
        rc = id_set_add(&f->blobs, file.digest, f->err);
        if (!rc)
            rc = check_blob(f, &file, id);
    }
    if (!rc && reference)
        rc = check_reference(f, m, id);
    json_decref(m);
    return rc;
}

static int collect_object(void *arg, const char *id, enum store_kind kind)
{
    (void)kind;
    struct fsck *f = arg;
    return id_set_add(&f->objects, id, f->err);
}

// ---- names -------------------------------------------------------------------------------------

struct ref_list {
    struct fsck *f;
    json_t *rows; // [name, tag, id]
};

static int collect_ref(void *arg, const char *name, const char *tag, const char *id)
{
    struct ref_list *l = arg;
    l->f->report->n_names++;
    return json_array_append_new(l->rows, json_pack("[s,s,s]", name, tag, id)) == 0
               ? 0
               : err_set(l->f->err, ERR_NO_MEMORY, "no memory for the names");
}

/* The index names an object that it does not have: the manifest may still be there. */
static int check_target(struct fsck *f, const char *name, const char *tag, const char *id)
{
    // One that was imported after the objects were listed is there, too.
    if (id_set_has(&f->objects, id) || !is_gone(f, id))
        return 0;
    json_t *m = NULL;
    if (f->opt->repair && manifest_read(f->s, id, &m, NULL) == 0) {
        int rc = fsck_reindex(f, m);
        json_decref(m);
        if (!rc)
            rc = id_set_add(&f->objects, id, f->err);
        if (!rc)
            fsck_tell(f, FSCK_REPAIRED, "index: %.12s was read again from its manifest", id);
        return rc ? rc : check_object(f, id);
    }
    f->report->corrupt = true;
    fsck_tell(f, FSCK_PROBLEM, "%s:%s: names %.12s, which is not there", name, tag, id);
    return 0;
}

static int check_ref_file(struct fsck *f, const char *name, const char *tag, const char *id)
{
    json_t *root;
    struct err problem = {0};
    int rc = refs_read(f->s, name, tag, &root, &problem);
    if (is_fatal(rc))
        return err_set(f->err, rc, "%s", problem.msg);
    const char *says = json_string_value(json_object_get(root, "id"));
    bool same = !rc && says && strcmp(says, id) == 0;
    json_decref(root);
    if (same)
        return 0;
    // A ref file is written before the index commits: one that differs is an interrupted command.
    enum fsck_severity severity = rc ? FSCK_PROBLEM : FSCK_NOTE;
    if (f->opt->repair) {
        rc = refs_write(f->s, name, tag, id, "repair", f->err);
        if (!rc)
            fsck_tell(f, FSCK_REPAIRED, "%s:%s: its ref file was written again", name, tag);
        return rc;
    }
    if (severity == FSCK_PROBLEM)
        fsck_tell(f, severity, "%s:%s: its ref file is lost or spoiled: %s", name, tag,
                  problem.msg);
    else
        fsck_tell(f, severity, "%s:%s: an interrupted command had begun to change it", name, tag);
    return 0;
}

static int check_refs(struct fsck *f)
{
    struct ref_list l = {f, json_array()};
    int rc = l.rows ? index_each_ref(f->s->index, collect_ref, &l, f->err)
                    : err_set(f->err, ERR_NO_MEMORY, "no memory for the names");
    size_t i;
    json_t *row;
    json_array_foreach(l.rows, i, row)
    {
        const char *name = json_string_value(json_array_get(row, 0));
        const char *tag = json_string_value(json_array_get(row, 1));
        const char *id = json_string_value(json_array_get(row, 2));
        if (!rc)
            rc = check_target(f, name, tag, id);
        if (!rc)
            rc = check_ref_file(f, name, tag, id);
    }
    json_decref(l.rows);
    return rc;
}

/* Ref files that the index has no name for. */
static int check_stray_ref(void *arg, const char *name, const char *tag, const json_t *root,
                           const struct err *problem)
{
    struct fsck *f = arg;
    char id[STORE_ID_CHARS + 1];
    int rc = index_get_ref(f->s->index, name, tag, id, f->err);
    if (rc != ERR_NOT_FOUND)
        return rc;
    err_clear(f->err);
    if (!problem && json_is_null(json_object_get(root, "id")))
        return 0; // removed: only its history is left
    if (!f->opt->repair) {
        fsck_tell(f, FSCK_NOTE, "%s:%s: an interrupted command had begun to make it", name, tag);
        return 0;
    }
    rc = refs_write(f->s, name, tag, NULL, "repair", f->err);
    if (!rc)
        fsck_tell(f, FSCK_REPAIRED, "%s:%s: a ref file of an interrupted command was closed", name,
                  tag);
    return rc;
}

// ---- what belongs to nothing -------------------------------------------------------------------

static int check_stray_blob(void *arg, const struct blob_stat *b)
{
    struct fsck *f = arg;
    struct digest d;
    if (!digest_parse(b->name, &d) || strncmp(b->name, b->folder, 2) != 0)
        fsck_tell(f, FSCK_NOTE, "blobs/sha256/%s/%s: is no blob", b->folder, b->name);
    else if (!id_set_has(&f->blobs, b->name))
        fsck_tell(f, FSCK_NOTE, "blob %.12s: belongs to nothing; gc removes it", b->name);
    return 0;
}

static int check_strays(struct fsck *f)
{
    int rc = refs_each(f->s, check_stray_ref, f, f->err);
    if (!rc)
        rc = blob_each(f->s, check_stray_blob, f, f->err);
    char *folder = rc ? NULL : store_join(f->s, "manifests", NULL, f->err), **names = NULL;
    size_t n = 0;
    if (!rc)
        rc = folder ? file_list(folder, &names, &n, f->err) : ERR_NO_MEMORY;
    for (size_t i = 0; !rc && i < n; i++) {
        char id[STORE_ID_CHARS + 1];
        snprintf(id, sizeof id, "%.64s", names[i]);
        if (!id_set_has(&f->objects, id))
            fsck_tell(f, FSCK_NOTE, "manifest %.12s: belongs to nothing; gc removes it", id);
    }
    file_free_names(names, n);
    sys_free(folder);
    return rc;
}

// ---- all of it ---------------------------------------------------------------------------------

/* 0 when there is a sound index to compare with (after a rebuild, perhaps); 1 when there is none.
 */
static int check_index(struct fsck *f)
{
    struct err problem = {0};
    int rc = f->s->index ? index_check(f->s->index, f->opt->quick, &problem) : ERR_CORRUPT;
    if (!rc || is_fatal(rc))
        return rc ? err_set(f->err, rc, "%s", problem.msg) : 0;
    if (f->opt->repair) {
        rc = fsck_rebuild_index(f);
        return rc;
    }
    f->report->corrupt = true;
    fsck_tell(f, FSCK_PROBLEM, "index.db: missing or broken%s%s; --repair rebuilds it",
              problem.msg[0] ? ": " : "", problem.msg);
    return 1;
}

static int check_all(struct fsck *f)
{
    int rc = check_index(f);
    if (rc)
        return rc == 1 ? 0 : rc;
    rc = index_each_object(f->s->index, collect_object, f, f->err);
    for (size_t i = 0, n = f->objects.n; !rc && i < n; i++) {
        char id[STORE_ID_CHARS + 1];
        memcpy(id, f->objects.ids[i], sizeof id);
        rc = check_object(f, id);
    }
    if (!rc)
        rc = check_refs(f);
    return rc ? rc : check_strays(f);
}

int store_fsck(const char *path, const struct fsck_options *opt, struct fsck_report *report,
               void (*found)(void *arg, enum fsck_severity severity, const char *text), void *arg,
               struct err *err)
{
    struct err own;
    if (!err)
        err = &own;
    err_clear(err);
    *report = (struct fsck_report){0};
    struct fsck f = {.opt = opt, .report = report, .found = found, .arg = arg, .err = err};
    struct store_options store_opt = {.lock_timeout_ms = opt->lock_timeout_ms};
    int rc = store_open_for_repair(&f.s, path, &store_opt, err);
    if (!rc && opt->repair)
        rc = store_lock(f.s, "fsck", err);
    if (!rc) {
        rc = opt->repair && f.s->index ? publish_recover(f.s, err) : 0;
        if (!rc)
            rc = check_all(&f);
        if (opt->repair)
            store_unlock(f.s);
    }
    id_set_release(&f.objects);
    id_set_release(&f.blobs);
    id_set_release(&f.checked);
    store_close(f.s);
    return rc;
}
