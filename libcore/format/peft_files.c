#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "libcore/format/hub.h"
#include "libcore/format/peft_impl.h"

static const char CONFIG[] = "adapter_config.json";
static const char WEIGHTS[] = "adapter_model.safetensors";
static const char PICKLE[] = "adapter_model.bin";

static int no_memory(const char *path, struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
}

/* 1: there, 0: not, or ERR_NO_MEMORY. */
static int has(const char *folder, const char *name)
{
    char *path = file_join(folder, name);
    if (!path)
        return ERR_NO_MEMORY;
    int there = file_exists(path) && !file_is_folder(path);
    sys_free(path);
    return there;
}

static bool ends_with(const char *s, const char *suffix)
{
    size_t n = strlen(s), k = strlen(suffix);
    return n >= k && strcmp(s + n - k, suffix) == 0;
}

void peft_place_release(struct peft_place *p)
{
    sys_free(p->folder);
    sys_free(p->config);
    sys_free(p->weights);
    memset(p, 0, sizeof *p);
}

/* ---- sub-folders of named adapters ---- */

/* Counts the sub-folders that hold adapters; the first one's path into *first, the names into sb.
 */
static int scan_subfolders(const char *folder, char **first, size_t *count, struct strbuf *sb,
                           struct err *err)
{
    char **names;
    size_t n;
    *count = 0;
    *first = NULL;
    int rc = file_list(folder, &names, &n, err);
    if (rc)
        return rc;
    for (size_t i = 0; !rc && i < n; i++) {
        char *path = file_join(folder, names[i]);
        int there = path ? has(path, CONFIG) : ERR_NO_MEMORY;
        if (there < 0)
            rc = no_memory(folder, err);
        if (there > 0) {
            strbuf_addf(sb, "%s%s", *count ? ", " : "", names[i]);
            if (++*count == 1) {
                *first = path;
                path = NULL;
            }
        }
        sys_free(path);
    }
    file_free_names(names, n);
    return rc;
}

/* The folder has no configuration of its own: exactly one sub-folder may stand in for it. */
static int find_in_subfolder(char **out, const char *folder, struct err *err)
{
    struct strbuf sb;
    char *first = NULL;
    size_t count = 0;
    strbuf_init(&sb);
    sb.max = 300;
    int rc = scan_subfolders(folder, &first, &count, &sb, err);
    if (!rc && count == 1) {
        *out = first;
        first = NULL;
    } else if (!rc && count > 1) {
        rc = err_set(err, ERR_NOT_FOUND, "%s: several adapters in it, name one: %s", folder,
                     strbuf_text(&sb));
    } else if (!rc) {
        rc = err_set(err, ERR_NOT_FOUND, "%s: no %s in it", folder, CONFIG);
    }
    sys_free(first);
    strbuf_release(&sb);
    return rc;
}

/* ---- places ---- */

/* safetensors before pickle, as PEFT itself prefers it. */
static int find_weights(struct peft_place *out, struct err *err)
{
    int there = has(out->folder, WEIGHTS), pickle = has(out->folder, PICKLE);
    if (there < 0 || pickle < 0)
        return no_memory(out->folder, err);
    out->weights = file_join(out->folder, there || !pickle ? WEIGHTS : PICKLE);
    if (!out->weights)
        return no_memory(out->folder, err);
    return there || pickle ? 0 : err_set(err, ERR_NOT_FOUND, "%s: not there", out->weights);
}

static int find_in_folder(struct peft_place *out, const char *path, struct err *err)
{
    int there = has(path, CONFIG), rc = 0;
    if (there < 0)
        return no_memory(path, err);
    if (there)
        out->folder = sys_strdup(path);
    else
        rc = find_in_subfolder(&out->folder, path, err);
    if (rc)
        return rc;
    out->config = out->folder ? file_join(out->folder, CONFIG) : NULL;
    return out->config ? find_weights(out, err) : no_memory(path, err);
}

static int find_beside(struct peft_place *out, const char *path, struct err *err)
{
    out->folder = file_dir_name(path);
    out->config = out->folder ? file_join(out->folder, CONFIG) : NULL;
    out->weights = sys_strdup(path);
    if (!out->config || !out->weights)
        return no_memory(path, err);
    if (!file_exists(out->config))
        return err_set(err, ERR_NOT_FOUND, "%s: no %s beside it", path, CONFIG);
    return 0;
}

int peft_place_find(struct peft_place *out, const char *path, struct err *err)
{
    memset(out, 0, sizeof *out);
    if (!file_exists(path))
        return err_set(err, ERR_NOT_FOUND, "%s: no such file or folder", path);
    int rc = file_is_folder(path) ? find_in_folder(out, path, err) : find_beside(out, path, err);
    if (rc)
        peft_place_release(out);
    return rc;
}

bool peft_looks_like(const char *path)
{
    if (file_is_folder(path))
        return has(path, CONFIG) > 0;
    if (!ends_with(path, ".safetensors"))
        return false;
    char *folder = file_dir_name(path);
    bool yes = folder && file_exists(path) && has(folder, CONFIG) > 0;
    sys_free(folder);
    return yes;
}

/* ---- names ---- */

static bool says_nothing(const char *name)
{
    static const char *const patterns[] = {
        "checkpoint-[0-9]*",
        "checkpoint",
        "final",
        "final_checkpoint",
        "adapter",
        "adapter_model",
        "default",
        "snapshots",
        "output",
        "outputs",
        "last-checkpoint",
        "lora",
        ".",
        "..",
        "",
        "best",
        "adapters",
        "checkpoints",
    };
    size_t hex = strspn(name, "0123456789abcdef");
    if (hex >= 12 && !name[hex]) // a snapshot's commit, a digest
        return true;
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        if (fnmatch(patterns[i], name, 0) == 0)
            return true;
    }
    return false;
}

static void make_legal(char *name)
{
    for (char *p = name; *p; p++) {
        if (!isalnum((unsigned char)*p) && !strchr("._-", *p))
            *p = '-';
    }
}

/* The last component that says something; the very last one when none does. */
static char *speaking_component(const char *path)
{
    char *s = sys_strdup(path), *last = NULL;
    if (!s)
        return NULL;
    size_t n = strlen(s);
    while (n) {
        while (n && s[n - 1] == '/')
            s[--n] = '\0';
        const char *name = file_base_name(s);
        if (!last)
            last = sys_strdup(name);
        if (!last || !says_nothing(name)) {
            char *found = last ? sys_strdup(name) : NULL;
            sys_free(last);
            sys_free(s);
            return found;
        }
        n -= strlen(name);
        s[n] = '\0';
    }
    sys_free(s);
    return last;
}

/* The path with its folder resolved: links are named as they are, not as the blob they lead to. A
 * path that leads nowhere stays as it is. NULL: no memory. */
static char *resolved(const char *path)
{
    bool folder = file_is_folder(path);
    char *dir = folder ? sys_strdup(path) : file_dir_name(path);
    struct err err = {0};
    char *real = dir ? file_real_path(dir, &err) : NULL;
    char *out = NULL;
    if (real)
        out = folder ? sys_strdup(real) : file_join(real, file_base_name(path));
    else if (dir && err.code != ERR_NO_MEMORY)
        out = sys_strdup(path);
    sys_free(dir);
    sys_free(real);
    return out;
}

char *peft_name_of_path(const char *path)
{
    char *plain = resolved(path), *name = NULL;
    if (!plain)
        return NULL;
    char *hub = hub_name_of_path(path);
    if (!hub)
        hub = hub_name_of_path(plain);
    static const char *const endings[] = {".safetensors", ".gguf", ".bin", ".pt", ".pth"};
    for (size_t i = 0; i < sizeof endings / sizeof *endings && !file_is_folder(plain); i++) {
        if (ends_with(plain, endings[i]))
            plain[strlen(plain) - strlen(endings[i])] = '\0';
    }
    name = hub ? sys_strdup(file_base_name(hub)) : speaking_component(plain);
    sys_free(hub);
    sys_free(plain);
    if (name)
        make_legal(name);
    return name;
}

/* ---- the list of files ---- */

bool peft_companion_role(const char *name, enum peft_file_role *role)
{
    static const struct {
        const char *pattern;
        enum peft_file_role role;
    } companions[] = {
        {"tokenizer.json", PEFT_FILE_TOKENIZER},
        {"tokenizer_config.json", PEFT_FILE_TOKENIZER},
        {"tokenizer.model", PEFT_FILE_TOKENIZER},
        {"special_tokens_map.json", PEFT_FILE_TOKENIZER},
        {"added_tokens.json", PEFT_FILE_TOKENIZER},
        {"vocab.json", PEFT_FILE_TOKENIZER},
        {"merges.txt", PEFT_FILE_TOKENIZER},
        {"chat_template.jinja", PEFT_FILE_TEMPLATE},
        {"chat_template.json", PEFT_FILE_TEMPLATE},
        {"README.md", PEFT_FILE_DOC},
        {"LICENSE*", PEFT_FILE_DOC},
    };
    for (size_t i = 0; i < sizeof companions / sizeof *companions; i++) {
        if (fnmatch(companions[i].pattern, name, 0) == 0) {
            *role = companions[i].role;
            return true;
        }
    }
    return false;
}

bool peft_is_file_name(const char *name)
{
    enum peft_file_role role;
    return strcmp(name, CONFIG) == 0 || strcmp(name, PICKLE) == 0 ||
           ends_with(name, ".safetensors") || ends_with(name, ".gguf") ||
           peft_companion_role(name, &role);
}

static int add_file(struct peft_files *f, const char *folder, const char *name,
                    enum peft_file_role role, struct err *err)
{
    struct peft_file *item = &f->items[f->n++];
    item->name = arena_strdup(&f->arena, name);
    item->path = arena_printf(&f->arena, "%s/%s", folder, name);
    item->role = role;
    return item->name && item->path ? 0 : no_memory(folder, err);
}

int peft_files_list(struct peft_files *out, const char *path, struct err *err)
{
    struct peft_place place;
    char **names = NULL;
    size_t n = 0;
    memset(out, 0, sizeof *out);
    arena_init(&out->arena);
    int rc = peft_place_find(&place, path, err);
    if (rc)
        return rc;
    rc = file_list(place.folder, &names, &n, err);
    if (!rc && !(out->items = arena_array(&out->arena, n + 2, sizeof *out->items)))
        rc = no_memory(path, err);
    if (!rc)
        rc = add_file(out, place.folder, CONFIG, PEFT_FILE_CONFIG, err);
    if (!rc)
        rc = add_file(out, place.folder, file_base_name(place.weights), PEFT_FILE_WEIGHTS, err);
    for (size_t i = 0; !rc && i < n; i++) {
        enum peft_file_role role;
        if (peft_companion_role(names[i], &role))
            rc = add_file(out, place.folder, names[i], role, err);
    }
    file_free_names(names, n);
    peft_place_release(&place);
    if (rc)
        peft_files_release(out);
    return rc;
}

void peft_files_release(struct peft_files *f)
{
    arena_release(&f->arena);
    f->items = NULL;
    f->n = 0;
}
