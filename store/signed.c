#include "store/signed.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/adapter_file.h"
#include "libcore/format/peft.h"
#include "store/arrive.h"
#include "store/blob.h"
#include "store/publish.h"

static int no_memory(const char *where, struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "%s: no memory", where);
}

// ---- comparing ---------------------------------------------------------------------------------

static int hash_range(const char *path, uint64_t start, uint64_t end, struct digest *out,
                      struct err *err)
{
    enum { STEP_BYTES = 1 << 20 };
    struct digest_state *d = NULL;
    char *buf = sys_malloc(STEP_BYTES);
    int fd = sys_open(path, O_RDONLY, 0);
    int rc = fd < 0 ? err_set_errno(err, errno, "%s: cannot open", path) : 0;
    if (!rc && !buf)
        rc = no_memory(path, err);
    if (!rc)
        rc = digest_open(&d, err);
    for (uint64_t at = start; !rc && at < end;) {
        size_t n = end - at < STEP_BYTES ? (size_t)(end - at) : STEP_BYTES;
        rc = file_pread_all(fd, buf, n, at, path, err);
        if (!rc)
            rc = digest_update(d, buf, n, err);
        at += n;
    }
    if (!rc)
        rc = digest_final(d, out, err);
    digest_free(d);
    if (fd >= 0)
        sys_close(fd);
    sys_free(buf);
    return rc;
}

static int differs(const char *where, const char *name, const char *got, const char *wanted,
                   struct err *err)
{
    return err_set(err, ERR_CORRUPT,
                   "%s: %s is not what was signed: its digest is %.12s, wanted %.12s", where, name,
                   got, wanted);
}

/* Shards must follow each other from the first byte to the last. */
static int compare_shards(const struct bundle_resource *r, size_t n, const struct signed_file *f,
                          const char *where, struct err *err)
{
    uint64_t size, at = 0;
    char hex[DIGEST_HEX_CHARS + 1];
    struct digest d;
    int rc = file_size(f->path, &size, err);
    if (!rc && (r[0].start != 0 || r[n - 1].end != size))
        return err_set(err, ERR_CORRUPT, "%s: %s has %llu bytes, %llu are signed", where, f->name,
                       (unsigned long long)size, (unsigned long long)r[n - 1].end);
    for (size_t i = 0; !rc && i < n; i++) {
        if (r[i].start != at)
            return err_set(err, ERR_CORRUPT, "%s: %s: byte %llu is not signed", where, f->name,
                           (unsigned long long)at);
        at = r[i].end;
        rc = hash_range(f->path, r[i].start, r[i].end, &d, err);
        if (rc)
            return rc;
        digest_hex(&d, hex);
        if (strcmp(hex, r[i].digest) != 0)
            return differs(where, f->name, hex, r[i].digest, err);
    }
    return rc;
}

static bool is_weights(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot && (strcmp(dot, ".safetensors") == 0 || strcmp(dot, ".bin") == 0 ||
                   strcmp(dot, ".gguf") == 0);
}

static bool is_text_for_people(const char *name)
{
    return strcmp(name, "README.md") == 0 || strncmp(name, "LICENSE", 7) == 0;
}

static bool may_be_unsigned(const struct bundle *b, const struct signed_file *f,
                            enum signed_scope scope)
{
    if (scope == SIGNED_ADAPTER)
        return is_text_for_people(f->name) && bundle_ignores(b, f->name);
    return scope == SIGNED_FOLDER_LOOSE || bundle_ignores(b, f->name);
}

static int compare_file(const struct bundle *b, const struct signed_file *f,
                        enum signed_scope scope, const char *where, struct err *err)
{
    size_t n;
    uint64_t size = 1;
    const struct bundle_resource *r = bundle_find(b, f->name, &n);
    if (!r && may_be_unsigned(b, f, scope))
        return 0;
    // Nothing of an empty file lies in any shard.
    bool shards = b->n_resources && b->resources[0].end != 0;
    if (!r && shards && file_size(f->path, &size, NULL) == 0 && size == 0)
        return 0;
    if (!r)
        return err_set(err, ERR_REFUSED, "%s: %s is not signed", where, f->name);
    if (r->end)
        return compare_shards(r, n, f, where, err);
    char hex[DIGEST_HEX_CHARS + 1];
    struct digest d;
    if (f->digest) {
        snprintf(hex, sizeof hex, "%.64s", f->digest);
    } else {
        int rc = digest_file(f->path, &d, NULL, err);
        if (rc)
            return rc;
        digest_hex(&d, hex);
    }
    return strcmp(hex, r->digest) == 0 ? 0 : differs(where, f->name, hex, r->digest, err);
}

static bool is_there(const struct signed_file *files, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++) {
        if (strcmp(files[i].name, name) == 0)
            return true;
    }
    return false;
}

/* Weights that are no adapter's (an optimizer's), logs, subfolders: an import leaves them behind.
 * The weights that it takes must be signed, so that none can stand in for them. */
static bool is_missed(const char *name)
{
    return !strchr(name, '/') && peft_is_file_name(name) && !is_weights(name) &&
           !is_text_for_people(name);
}

/* The first file that is signed, wanted and not there, or NULL. */
static const char *find_missing(const struct bundle *b, const struct signed_file *files, size_t n,
                                enum signed_scope scope)
{
    for (size_t i = 0; i < b->n_resources; i++) {
        const char *name = b->resources[i].name;
        if (i && strcmp(name, b->resources[i - 1].name) == 0)
            continue;
        if (scope == SIGNED_ADAPTER && !is_missed(name))
            continue;
        if (!is_there(files, n, name))
            return name;
    }
    return NULL;
}

int signed_compare(const struct bundle *b, const struct signed_file *files, size_t n,
                   enum signed_scope scope, const char *where, struct err *err)
{
    for (size_t i = 0; i < n; i++) {
        int rc = compare_file(b, &files[i], scope, where, err);
        if (rc)
            return rc;
    }
    const char *missing = find_missing(b, files, n, scope);
    return missing ? err_set(err, ERR_CORRUPT, "%s: %s is signed and not there", where, missing)
                   : 0;
}

// ---- the files of an adapter of the store ------------------------------------------------------

struct object_files {
    struct signed_file *files;
    char **paths;
    json_t *manifest;
    size_t n;
};

static void object_files_release(struct object_files *o)
{
    for (size_t i = 0; o->paths && i < o->n; i++)
        sys_free(o->paths[i]);
    sys_free(o->paths);
    sys_free(o->files);
    json_decref(o->manifest);
    *o = (struct object_files){0};
}

/* Names and digests are the manifest's, which *out keeps. */
static int object_files_open(struct object_files *out, struct store *s, const char *id,
                             struct err *err)
{
    *out = (struct object_files){0};
    int rc = manifest_read(s, id, &out->manifest, err);
    size_t n = manifest_n_files(out->manifest);
    const char *kind = json_string_value(json_object_get(out->manifest, "kind"));
    if (!rc && (!kind || strcmp(kind, "adapter") != 0))
        rc = err_set(err, ERR_REFUSED,
                     "%.12s: is a base; a base's folder can be signed, its entry "
                     "in the store not",
                     id);
    if (!rc) {
        out->files = sys_calloc(n + 1, sizeof *out->files);
        out->paths = sys_calloc(n + 1, sizeof *out->paths);
        rc = out->files && out->paths ? 0 : no_memory(id, err);
    }
    for (size_t i = 0; !rc && i < n; i++) {
        struct manifest_file f;
        rc = manifest_file_at(out->manifest, i, &f, err);
        if (!rc && !(out->paths[i] = blob_path(s, f.digest, err)))
            rc = ERR_NO_MEMORY;
        if (!rc)
            out->files[out->n++] =
                (struct signed_file){.name = f.path, .digest = f.digest, .path = out->paths[i]};
    }
    if (rc)
        object_files_release(out);
    return rc;
}

static int check_bytes(struct store *s, const struct object_files *o, const char *where,
                       enum signed_depth depth, struct signed_report *out, struct err *err)
{
    for (size_t i = 0; i < o->n; i++) {
        struct manifest_file f;
        int rc = manifest_file_at(o->manifest, i, &f, err);
        // A content id says nothing of templates and tokenizers.
        bool read = depth == SIGNED_BYTES || !is_weights(f.path);
        if (!rc)
            rc = blob_check(s, f.digest, f.size, read ? BLOB_CHECK_DIGEST : BLOB_CHECK_SIZE, err);
        if (rc)
            return err_prefix(err, "%s: %s is not what was signed", where, f.path), rc;
        out->n_bytes += read ? f.size : 0;
    }
    return 0;
}

// ---- adding ------------------------------------------------------------------------------------

/* Into a work folder, as a file that may be renamed into its place. */
static int write_bundle(const char *folder, const char *text, size_t n, char **path,
                        char hex[DIGEST_HEX_CHARS + 1], struct err *err)
{
    struct arriving *to = NULL;
    struct digest d;
    *path = file_join(folder, BUNDLE_FILE);
    int rc = *path ? arriving_open(&to, *path, n, BUNDLE_FILE, err) : no_memory(folder, err);
    if (!rc)
        rc = arriving_write(to, text, n, err);
    if (!rc)
        rc = arriving_finish(to, &d, err);
    arriving_free(to);
    if (!rc)
        digest_hex(&d, hex);
    return rc;
}

static int keep_bundle(struct store *s, const char *id, const struct object_files *o,
                       const char *text, size_t n, const char *key, bool *same,
                       struct signed_report *out, struct err *err)
{
    struct work w;
    char *path = NULL;
    int rc = work_open(&w, s, "sign", err);
    if (rc)
        return rc;
    rc = write_bundle(w.folder, text, n, &path, out->signature, err);
    if (!rc)
        rc = publish_signature(s, id, json_object_get(o->manifest, "files"), path, out->signature,
                               n, key, same, err);
    if (!rc) {
        snprintf(out->key, sizeof out->key, "%.64s", key);
        out->n_files = o->n;
        out->n_signatures = manifest_n_signatures(o->manifest) + !*same;
    }
    sys_free(path);
    work_close(&w);
    return rc;
}

static int find_own(const struct object_files *o, const struct sign_key *key,
                    struct signed_report *out)
{
    for (size_t i = 0; i < manifest_n_signatures(o->manifest); i++) {
        char path[MANIFEST_SIGNATURE_PATH_BYTES];
        struct manifest_file f;
        if (strcmp(manifest_signature_key(o->manifest, i), sign_key_hint(key)) != 0 ||
            manifest_signature_at(o->manifest, i, &f, path, NULL) != 0)
            continue;
        snprintf(out->signature, sizeof out->signature, "%.64s", f.digest);
        return 1;
    }
    return 0;
}

/* What is signed is what is there: the bytes, not what was once recorded of them. */
static int sign_files(struct store *s, const char *id, const char *model,
                      const struct sign_key *key, const struct object_files *o, bool *same,
                      struct signed_report *out, struct err *err)
{
    char *text = NULL;
    struct bundle_file *files = sys_calloc(o->n + 1, sizeof *files);
    int rc = files ? check_bytes(s, o, model, SIGNED_BYTES, out, err) : no_memory(model, err);
    for (size_t i = 0; !rc && i < o->n; i++) {
        files[i].name = o->files[i].name;
        snprintf(files[i].digest, sizeof files[i].digest, "%.64s", o->files[i].digest);
    }
    if (!rc)
        rc = bundle_make(&text, key, file_base_name(model), files, o->n, err);
    if (!rc)
        rc = keep_bundle(s, id, o, text, strlen(text), sign_key_hint(key), same, out, err);
    sys_free(text);
    sys_free(files);
    return rc;
}

int signed_sign(struct store *s, const char *id, const char *model, const struct sign_key *key,
                bool again, bool *same, struct signed_report *out, struct err *err)
{
    struct object_files o;
    *out = (struct signed_report){0};
    int rc = object_files_open(&o, s, id, err);
    if (rc)
        return rc;
    snprintf(out->key, sizeof out->key, "%s", sign_key_hint(key));
    out->n_files = o.n;
    out->n_signatures = manifest_n_signatures(o.manifest);
    *same = !again && find_own(&o, key, out);
    if (!*same)
        rc = sign_files(s, id, model, key, &o, same, out, err);
    object_files_release(&o);
    return rc;
}

int signed_attach(struct store *s, const char *id, const char *bundle_path, bool *same,
                  struct signed_report *out, struct err *err)
{
    struct object_files o;
    struct bundle b = {0};
    char *text = NULL;
    size_t n = 0;
    *out = (struct signed_report){0};
    int rc = object_files_open(&o, s, id, err);
    if (!rc)
        rc = file_read(bundle_path, LIMIT_SIGNATURE_BYTES, &text, &n, err);
    if (!rc)
        rc = bundle_parse(&b, text, n, bundle_path, err);
    if (!rc)
        rc = signed_compare(&b, o.files, o.n, SIGNED_ADAPTER, bundle_path, err);
    if (!rc)
        rc = keep_bundle(s, id, &o, text, n, b.hint, same, out, err);
    bundle_release(&b);
    sys_free(text);
    object_files_release(&o);
    return rc;
}

// ---- checking ----------------------------------------------------------------------------------

/* A signature of the store: its blob is checked, parsed, its signer looked for, its files compared.
 */
static int check_text(const struct object_files *o, const char *text, size_t n, const char *where,
                      const char *bundle_where, const struct sign_keys *keys,
                      struct signed_report *out, struct err *err)
{
    struct bundle b;
    int rc = bundle_parse(&b, text, n, bundle_where, err);
    const struct sign_key *key = rc ? NULL : bundle_signer(&b, keys, where, err);
    if (!rc && !key)
        rc = err && err->code ? err->code : ERR_REFUSED;
    if (!rc)
        rc = signed_compare(&b, o->files, o->n, SIGNED_ADAPTER, where, err);
    if (!rc)
        snprintf(out->key, sizeof out->key, "%s", sign_key_hint(key));
    bundle_release(&b);
    return rc;
}

/* Signature i of the manifest, its digest checked. */
static int read_bundle(const struct store *s, const json_t *manifest, size_t i, char **text,
                       size_t *n, char digest[DIGEST_HEX_CHARS + 1], struct err *err)
{
    char name[MANIFEST_SIGNATURE_PATH_BYTES], *path = NULL;
    struct manifest_file f;
    *text = NULL;
    int rc = manifest_signature_at(manifest, i, &f, name, err);
    if (!rc)
        rc = blob_check(s, f.digest, f.size, BLOB_CHECK_DIGEST, err);
    if (!rc && !(path = blob_path(s, f.digest, err)))
        rc = ERR_NO_MEMORY;
    if (!rc)
        rc = file_read(path, LIMIT_SIGNATURE_BYTES, text, n, err);
    if (!rc)
        snprintf(digest, DIGEST_HEX_CHARS + 1, "%.64s", f.digest);
    sys_free(path);
    return rc;
}

static int check_one(struct store *s, const struct object_files *o, size_t i, const char *where,
                     const struct sign_keys *keys, struct signed_report *out, struct err *err)
{
    char *text, digest[DIGEST_HEX_CHARS + 1], bundle_where[300];
    size_t n = 0;
    int rc = read_bundle(s, o->manifest, i, &text, &n, digest, err);
    if (!rc) {
        snprintf(bundle_where, sizeof bundle_where, "%.250s: signature %.12s", where, digest);
        rc = check_text(o, text, n, where, bundle_where, keys, out, err);
    }
    if (!rc)
        memcpy(out->signature, digest, sizeof out->signature);
    sys_free(text);
    return rc;
}

/* What is worth saying of several signatures that do not hold: damage before strangers. */
static bool is_worse(int rc, int than)
{
    return than == 0 || (rc == ERR_CORRUPT && than == ERR_REFUSED);
}

static int check_any(struct store *s, const struct object_files *o, const char *where,
                     const struct sign_keys *keys, struct signed_report *out, struct err *err)
{
    size_t n = manifest_n_signatures(o->manifest);
    struct err worst = {0};
    int rc = 0;
    if (n == 0)
        return err_set(err, ERR_REFUSED, "%s: is not signed", where);
    for (size_t i = 0; i < n; i++) {
        struct err own = {0};
        int one = check_one(s, o, i, where, keys, out, &own);
        if (!one)
            return 0;
        if (is_worse(one, rc)) {
            rc = one;
            worst = own;
        }
    }
    return err_set(err, rc, "%s", worst.msg);
}

int signed_check(struct store *s, const char *id, const char *where, const struct sign_keys *keys,
                 enum signed_depth depth, struct signed_report *out, struct err *err)
{
    struct object_files o;
    *out = (struct signed_report){0};
    int rc = object_files_open(&o, s, id, err);
    if (rc)
        return rc;
    out->n_signatures = manifest_n_signatures(o.manifest);
    out->n_files = o.n;
    rc = check_any(s, &o, where, keys, out, err);
    if (!rc)
        rc = check_bytes(s, &o, where, depth, out, err);
    object_files_release(&o);
    return rc;
}

int signed_check_bundle(struct store *s, const char *id, const char *bundle_path,
                        const struct sign_keys *keys, struct signed_report *out, struct err *err)
{
    struct object_files o;
    char *text = NULL;
    size_t n = 0;
    *out = (struct signed_report){0};
    int rc = object_files_open(&o, s, id, err);
    if (!rc)
        rc = file_read(bundle_path, LIMIT_SIGNATURE_BYTES, &text, &n, err);
    if (!rc) {
        out->n_signatures = 1;
        out->n_files = o.n;
        rc = check_text(&o, text, n, bundle_path, bundle_path, keys, out, err);
    }
    if (!rc)
        rc = check_bytes(s, &o, bundle_path, SIGNED_BYTES, out, err);
    sys_free(text);
    object_files_release(&o);
    return rc;
}

// ---- giving away -------------------------------------------------------------------------------

/* Whether signature i can be read and lists nothing besides the adapter's files; that it is of
 * these files was seen when it was kept. */
static bool lists_no_more(const struct store *s, const struct object_files *o, size_t i)
{
    struct bundle b = {0};
    char *text, digest[DIGEST_HEX_CHARS + 1];
    size_t n = 0;
    bool found = read_bundle(s, o->manifest, i, &text, &n, digest, NULL) == 0 &&
                 bundle_parse(&b, text, n, digest, NULL) == 0 &&
                 !find_missing(&b, o->files, o->n, SIGNED_FOLDER);
    bundle_release(&b);
    sys_free(text);
    return found;
}

int signed_pick(struct store *s, const char *id, const char *key, char digest[DIGEST_HEX_CHARS + 1],
                struct err *err)
{
    struct object_files o;
    bool found = false;
    *digest = '\0';
    int rc = object_files_open(&o, s, id, err);
    for (size_t i = 0; !rc && !found && i < manifest_n_signatures(o.manifest); i++) {
        char path[MANIFEST_SIGNATURE_PATH_BYTES];
        struct manifest_file f;
        if (key && strcmp(manifest_signature_key(o.manifest, i), key) != 0)
            continue;
        rc = manifest_signature_at(o.manifest, i, &f, path, err);
        found = !rc && lists_no_more(s, &o, i);
        if (!rc && (found || !*digest))
            snprintf(digest, DIGEST_HEX_CHARS + 1, "%.64s", f.digest);
    }
    object_files_release(&o);
    return rc;
}

static int find_signature(const json_t *manifest, const char *digest, size_t *i, struct err *err)
{
    for (*i = 0; *i < manifest_n_signatures(manifest); ++*i) {
        char name[MANIFEST_SIGNATURE_PATH_BYTES];
        struct manifest_file f;
        if (manifest_signature_at(manifest, *i, &f, name, NULL) == 0 &&
            strcmp(f.digest, digest) == 0)
            return 0;
    }
    return err_set(err, ERR_NOT_FOUND, "%.12s: has no such signature",
                   json_string_value(json_object_get(manifest, "id")));
}

int signed_write(struct store *s, const char *id, const char *digest, const char *path,
                 bool replace, struct err *err)
{
    json_t *m;
    char *text = NULL, got[DIGEST_HEX_CHARS + 1];
    size_t n = 0, i = 0;
    if (!replace && file_exists(path))
        return err_set(err, ERR_EXISTS, "%s: is there already", path);
    int rc = manifest_read(s, id, &m, err);
    if (!rc)
        rc = find_signature(m, digest, &i, err);
    if (!rc)
        rc = read_bundle(s, m, i, &text, &n, got, err);
    if (!rc)
        rc = file_write_atomic(path, text, n, err);
    sys_free(text);
    json_decref(m);
    return rc;
}
