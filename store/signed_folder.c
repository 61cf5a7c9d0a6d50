#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/arena.h"
#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/adapter_file.h"
#include "store/signed.h"

enum { MAX_DEPTH = 32 };

/* The files of a folder, as the model-signing tools list them. */
struct tree {
    struct arena arena;
    struct signed_file *files;
    size_t n, cap;
    uint64_t bytes;
    char *bundle; // real path of the signature, which is no file of the model; NULL
};

static int no_memory(const char *path, struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
}

static void tree_release(struct tree *t)
{
    arena_release(&t->arena);
    sys_free(t->files);
    sys_free(t->bundle);
    *t = (struct tree){0};
}

static bool is_bundle(const struct tree *t, const char *path)
{
    char *real = t->bundle ? file_real_path(path, NULL) : NULL;
    bool same = real && strcmp(real, t->bundle) == 0;
    sys_free(real);
    return same;
}

static int add_file(struct tree *t, const char *path, const char *name, uint64_t size,
                    struct err *err)
{
    if (t->n >= LIMIT_SIGNED_FILES)
        return err_set(err, ERR_LIMIT, "%s: more than %d files", path, LIMIT_SIGNED_FILES);
    if (t->n == t->cap) {
        size_t cap = t->cap ? t->cap * 2 : 64;
        struct signed_file *more = sys_reallocarray(t->files, cap, sizeof *more);
        if (!more)
            return no_memory(path, err);
        t->files = more;
        t->cap = cap;
    }
    struct signed_file f = {.name = arena_strdup(&t->arena, name),
                            .path = arena_strdup(&t->arena, path)};
    if (!f.name || !f.path)
        return no_memory(path, err);
    t->files[t->n++] = f;
    t->bytes += size;
    return 0;
}

static bool is_git(const char *name)
{
    return strcmp(name, ".git") == 0 || strcmp(name, ".gitattributes") == 0 ||
           strcmp(name, ".github") == 0 || strcmp(name, ".gitignore") == 0;
}

static int walk(struct tree *t, const char *folder, const char *prefix, int depth, struct err *err);

/* Links to files are followed: what counts is their bytes. */
static int take_entry(struct tree *t, const char *path, const char *name, int depth,
                      struct err *err)
{
    struct stat link, st;
    if (sys_lstat(path, &link) != 0 || sys_stat(path, &st) != 0)
        return err_set_errno(err, errno, "%s: cannot be looked at", path);
    if (S_ISDIR(st.st_mode) && S_ISLNK(link.st_mode))
        return err_set(err, ERR_REFUSED, "%s: is a link to a folder", path);
    if (S_ISDIR(st.st_mode))
        return walk(t, path, name, depth + 1, err);
    if (!S_ISREG(st.st_mode))
        return err_set(err, ERR_REFUSED, "%s: is neither a file nor a folder", path);
    return is_bundle(t, path) ? 0 : add_file(t, path, name, (uint64_t)st.st_size, err);
}

static int walk(struct tree *t, const char *folder, const char *prefix, int depth, struct err *err)
{
    char **names = NULL;
    size_t n = 0;
    if (depth > MAX_DEPTH)
        return err_set(err, ERR_LIMIT, "%s: folders in each other, more than %d", folder,
                       MAX_DEPTH);
    int rc = file_list(folder, &names, &n, err);
    for (size_t i = 0; !rc && i < n; i++) {
        if (depth == 0 && is_git(names[i]))
            continue;
        char *path = file_join(folder, names[i]),
             *name = *prefix ? file_join(prefix, names[i]) : sys_strdup(names[i]);
        rc = path && name ? take_entry(t, path, name, depth, err) : no_memory(folder, err);
        sys_free(path);
        sys_free(name);
    }
    file_free_names(names, n);
    return rc;
}

/* A single file is a model, too; the tools call it ".". */
static int tree_open(struct tree *t, const char *path, const char *bundle, struct err *err)
{
    uint64_t size;
    *t = (struct tree){0};
    arena_init(&t->arena);
    t->bundle = bundle ? file_real_path(bundle, NULL) : NULL;
    int rc =
        file_exists(path) ? 0 : err_set(err, ERR_NOT_FOUND, "%s: no such file or folder", path);
    if (!rc && file_is_folder(path)) {
        rc = walk(t, path, "", 0, err);
    } else if (!rc) {
        rc = file_size(path, &size, err);
        if (!rc)
            rc = add_file(t, path, ".", size, err);
    }
    if (!rc && t->n == 0)
        rc = err_set(err, ERR_NOT_FOUND, "%s: no file in it", path);
    if (rc)
        tree_release(t);
    return rc;
}

static char *bundle_path(const char *path, const struct signed_folder_options *opt, struct err *err)
{
    if (!opt->bundle && !file_is_folder(path)) {
        if (file_exists(path))
            err_set(err, ERR_USAGE, "%s: is a single file: its signature is to be named", path);
        else
            err_set(err, ERR_NOT_FOUND, "%s: no such file or folder", path);
        return NULL;
    }
    char *bundle = opt->bundle ? sys_strdup(opt->bundle) : file_join(path, BUNDLE_FILE);
    if (!bundle)
        no_memory(path, err);
    return bundle;
}

// ---- hashing -----------------------------------------------------------------------------------

/* Every file's digest, into the arena. */
static int hash_all(struct tree *t, const struct signed_folder_options *opt, struct err *err)
{
    for (size_t i = 0; i < t->n; i++) {
        struct digest d;
        char hex[DIGEST_HEX_CHARS + 1];
        uint64_t size = 0;
        int rc = digest_file(t->files[i].path, &d, &size, err);
        if (rc)
            return rc;
        digest_hex(&d, hex);
        t->files[i].digest = arena_strdup(&t->arena, hex);
        if (!t->files[i].digest)
            return no_memory(t->files[i].path, err);
        if (opt->on_bytes && (rc = opt->on_bytes(opt->on_bytes_arg, size)) != 0)
            return err_set(err, rc, "%s: interrupted", t->files[i].path);
    }
    return 0;
}

// ---- signing -----------------------------------------------------------------------------------

static int make_bundle(char **text, const struct tree *t, const char *path,
                       const struct sign_key *key, struct err *err)
{
    struct bundle_file *files = sys_calloc(t->n, sizeof *files);
    char *real = file_real_path(path, NULL);
    int rc = files && real ? 0 : no_memory(path, err);
    for (size_t i = 0; !rc && i < t->n; i++) {
        files[i].name = t->files[i].name;
        memcpy(files[i].digest, t->files[i].digest, sizeof files[i].digest);
        json_t *text_of_name = json_string(files[i].name); // not UTF-8: none
        if (!text_of_name)
            rc = err_set(err, ERR_REFUSED, "%s: a name that is no UTF-8 cannot be signed",
                         t->files[i].path);
        json_decref(text_of_name);
    }
    if (!rc)
        rc = bundle_make(text, key, file_base_name(real), files, t->n, err);
    sys_free(real);
    sys_free(files);
    return rc;
}

int signed_sign_folder(const char *path, const struct sign_key *key,
                       const struct signed_folder_options *opt, struct signed_report *out,
                       struct err *err)
{
    struct tree t = {0};
    char *text = NULL;
    *out = (struct signed_report){0};
    char *bundle = bundle_path(path, opt, err);
    int rc = bundle ? 0 : err ? err->code : ERR_FAIL;
    if (!rc && file_exists(bundle) && !opt->replace)
        rc = err_set(err, ERR_EXISTS, "%s: is there already", bundle);
    if (!rc)
        rc = tree_open(&t, path, bundle, err);
    if (!rc)
        rc = hash_all(&t, opt, err);
    if (!rc)
        rc = make_bundle(&text, &t, path, key, err);
    if (!rc)
        rc = file_write_atomic(bundle, text, strlen(text), err);
    if (!rc) {
        snprintf(out->key, sizeof out->key, "%s", sign_key_hint(key));
        out->n_files = t.n;
        out->n_bytes = t.bytes;
        out->n_signatures = 1;
    }
    sys_free(text);
    tree_release(&t);
    sys_free(bundle);
    return rc;
}

// ---- checking ----------------------------------------------------------------------------------

/* The bundle's text parsed, and who of the keys signed it. */
static int open_bundle(struct bundle *b, const char *path, const struct sign_keys *keys,
                       struct signed_report *out, struct err *err)
{
    char *text = NULL;
    size_t n = 0;
    *b = (struct bundle){0};
    int rc = file_read(path, LIMIT_SIGNATURE_BYTES, &text, &n, err);
    if (!rc)
        rc = bundle_parse(b, text, n, path, err);
    const struct sign_key *key = rc ? NULL : bundle_signer(b, keys, path, err);
    if (!rc && !key)
        rc = err && err->code ? err->code : ERR_REFUSED;
    if (!rc) {
        snprintf(out->key, sizeof out->key, "%s", sign_key_hint(key));
        out->n_signatures = 1;
    }
    sys_free(text);
    return rc;
}

int signed_check_folder(const char *path, const struct sign_keys *keys,
                        const struct signed_folder_options *opt, struct signed_report *out,
                        struct err *err)
{
    struct tree t = {0};
    struct bundle b = {0};
    *out = (struct signed_report){0};
    char *bundle = bundle_path(path, opt, err);
    int rc = bundle ? 0 : err ? err->code : ERR_FAIL;
    if (!rc && !file_exists(path))
        rc = err_set(err, ERR_NOT_FOUND, "%s: no such file or folder", path);
    if (!rc && !file_exists(bundle))
        rc = err_set(err, opt->bundle ? ERR_NOT_FOUND : ERR_REFUSED, "%s: %s",
                     opt->bundle ? bundle : path,
                     opt->bundle ? "no such file" : "is not signed: it has no " BUNDLE_FILE);
    if (!rc)
        rc = open_bundle(&b, bundle, keys, out, err);
    if (!rc)
        rc = tree_open(&t, path, bundle, err);
    if (!rc && b.resources[0].end == 0) // shards are hashed when they are compared
        rc = hash_all(&t, opt, err);
    if (!rc)
        rc = signed_compare(&b, t.files, t.n, opt->loose ? SIGNED_FOLDER_LOOSE : SIGNED_FOLDER,
                            path, err);
    if (!rc) {
        out->n_files = t.n;
        out->n_bytes = t.bytes;
    }
    bundle_release(&b);
    tree_release(&t);
    sys_free(bundle);
    return rc;
}

// ---- an adapter outside the store --------------------------------------------------------------

static int compare_adapter(const struct bundle *b, const struct peft_files *files, const char *path,
                           struct err *err)
{
    struct signed_file *all = sys_calloc(files->n, sizeof *all);
    if (!all)
        return no_memory(path, err);
    for (size_t i = 0; i < files->n; i++)
        all[i] = (struct signed_file){.name = files->items[i].name, .path = files->items[i].path};
    int rc = signed_compare(b, all, files->n, SIGNED_ADAPTER, path, err);
    sys_free(all);
    return rc;
}

int signed_check_adapter_path(const char *path, const struct sign_keys *keys,
                              struct signed_report *out, struct err *err)
{
    struct peft_files files;
    struct bundle b = {0};
    *out = (struct signed_report){0};
    int rc = adapter_files_list(&files, path, err);
    if (rc)
        return rc;
    char *folder = file_dir_name(files.items[0].path);
    char *bundle = folder ? file_join(folder, BUNDLE_FILE) : NULL;
    if (!bundle)
        rc = no_memory(path, err);
    else if (!file_exists(bundle))
        rc = err_set(err, ERR_REFUSED, "%s: is not signed: it has no " BUNDLE_FILE, path);
    if (!rc)
        rc = open_bundle(&b, bundle, keys, out, err);
    if (!rc)
        rc = compare_adapter(&b, &files, path, err);
    out->n_files = files.n;
    bundle_release(&b);
    sys_free(bundle);
    sys_free(folder);
    peft_files_release(&files);
    return rc;
}
