#include "libcore/format/checkpoint.h"

#include <errno.h>
#include <fnmatch.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/arena.h"
#include "libcore/base/file.h"
#include "libcore/base/sys.h"

static const char SINGLE[] = "model.safetensors";
static const char INDEX[] = "model.safetensors.index.json";

struct checkpoint {
    struct arena arena;
    const char *folder;
    struct safetensors **shards;
    const char **shard_names; // within the folder
    size_t n_shards;
    struct checkpoint_tensor *tensors; // sorted by name
    size_t n_tensors;
    uint64_t weight_bytes;
    struct checkpoint_file *files;
    size_t n_files;
};

static int no_memory(const char *where, struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "%s: no memory", where);
}

bool checkpoint_is_companion(const char *name)
{
    static const char *const names[] = {
        "config.json",
        "generation_config.json",
        INDEX,
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
        "preprocessor_config.json",
        "README.md",
        "LICENSE*",
        "USE_POLICY*",
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (fnmatch(names[i], name, 0) == 0)
            return true;
    }
    return false;
}

static bool exists_in(const char *folder, const char *name)
{
    char *path = file_join(folder, name);
    bool there = path && file_exists(path) && !file_is_folder(path);
    sys_free(path);
    return there;
}

/* The first file of the folder that matches one of the patterns, or NULL; the caller's. */
static char *first_match(const char *folder, const char *const *patterns, size_t n_patterns)
{
    char **names, *found = NULL;
    size_t n;
    if (file_list(folder, &names, &n, NULL) != 0)
        return NULL;
    for (size_t i = 0; i < n && !found; i++) {
        for (size_t k = 0; k < n_patterns && !found; k++) {
            if (fnmatch(patterns[k], names[i], 0) == 0)
                found = sys_strdup(names[i]);
        }
    }
    file_free_names(names, n);
    return found;
}

static char *find_pickle(const char *folder)
{
    static const char *const pickles[] = {"pytorch_model*.bin*", "*.pth", "*.pt", "model*.bin"};
    return first_match(folder, pickles, sizeof pickles / sizeof *pickles);
}

bool checkpoint_looks_like(const char *folder)
{
    if (!exists_in(folder, "config.json"))
        return false;
    if (exists_in(folder, SINGLE) || exists_in(folder, INDEX))
        return true;
    char *pickle = find_pickle(folder);
    sys_free(pickle);
    return pickle != NULL;
}

/* ---- shards ---- */

/* A shard's name from the index may not lead out of the folder: a plain file name it must be. */
static int check_shard_name(const char *index_path, const char *name, struct err *err)
{
    if (name[0] && !strchr(name, '/') && !strchr(name, '\\') && name[0] != '.')
        return 0;
    return err_set(err, ERR_CORRUPT,
                   "%s: weight_map names \"%.80s\", which is no file of the folder", index_path,
                   name);
}

static int open_shard(struct checkpoint *c, const char *name, struct err *err)
{
    char *path = file_join(c->folder, name);
    if (!path)
        return no_memory(c->folder, err);
    int rc = safetensors_open(&c->shards[c->n_shards], path, 0, err);
    sys_free(path);
    if (rc)
        return rc;
    c->shard_names[c->n_shards] = arena_strdup(&c->arena, name);
    if (!c->shard_names[c->n_shards++])
        return no_memory(c->folder, err);
    return 0;
}

static int reserve_shards(struct checkpoint *c, size_t n, struct err *err)
{
    c->shards = arena_array(&c->arena, n + 1, sizeof *c->shards);
    c->shard_names = arena_array(&c->arena, n + 1, sizeof *c->shard_names);
    return c->shards && c->shard_names ? 0 : no_memory(c->folder, err);
}

static int compare_strings(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The distinct file names of a weight_map, sorted. */
static int distinct_files(const json_t *map, const char *index_path, const char ***out, size_t *n,
                          struct err *err)
{
    size_t count = 0, kept = 0, size = json_object_size(map);
    const char **names = sys_reallocarray(NULL, size + 1, sizeof *names);
    if (!names)
        return no_memory(index_path, err);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)map, key, value)
    {
        int rc = json_is_string(value)
                     ? check_shard_name(index_path, json_string_value(value), err)
                     : err_set(err, ERR_CORRUPT, "%s:%s: a file name is wanted", index_path, key);
        if (rc) {
            sys_free(names);
            return rc;
        }
        names[count++] = json_string_value(value);
    }
    qsort(names, count, sizeof *names, compare_strings);
    for (size_t i = 0; i < count; i++) {
        if (!kept || strcmp(names[kept - 1], names[i]) != 0)
            names[kept++] = names[i];
    }
    *out = names;
    *n = kept;
    return 0;
}

/* Every tensor of the map must lie in the shard that the map says. */
static int check_map(const struct checkpoint *c, const json_t *map, const char *index_path,
                     struct err *err)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)map, key, value)
    {
        size_t i = 0;
        while (strcmp(c->shard_names[i], json_string_value(value)) != 0)
            i++;
        if (!safetensors_find(c->shards[i], key))
            return err_set(err, ERR_CORRUPT, "%s:%s: not in %s, where weight_map puts it",
                           index_path, key, c->shard_names[i]);
    }
    return 0;
}

static int load_json(const char *path, json_t **out, struct err *err)
{
    char *text;
    size_t n;
    *out = NULL;
    int rc = file_read(path, LIMIT_CONFIG_BYTES, &text, &n, err);
    if (rc)
        return rc;
    json_error_t je;
    *out = json_loadb(text, n, JSON_REJECT_DUPLICATES, &je);
    sys_free(text);
    if (!*out)
        return err_set(err, ERR_CORRUPT, "%s: line %d: %s", path, je.line, je.text);
    return 0;
}

static int open_indexed(struct checkpoint *c, const char *index_path, struct err *err)
{
    json_t *index = NULL;
    const char **names = NULL;
    size_t n = 0;
    int rc = load_json(index_path, &index, err);
    const json_t *map = json_object_get(index, "weight_map");
    if (!rc && (!json_is_object(map) || json_object_size(map) == 0))
        rc = err_set(err, ERR_CORRUPT, "%s:weight_map: an object with tensors is wanted",
                     index_path);
    if (!rc)
        rc = distinct_files(map, index_path, &names, &n, err);
    if (!rc)
        rc = reserve_shards(c, n, err);
    for (size_t i = 0; !rc && i < n; i++) {
        rc = open_shard(c, names[i], err);
        if (rc == ERR_NOT_FOUND)
            rc = err_set(err, ERR_CORRUPT, "%s: weight_map names %s, which is not there",
                         index_path, names[i]);
    }
    if (!rc)
        rc = check_map(c, map, index_path, err);
    sys_free(names);
    json_decref(index);
    return rc;
}

static int no_weights(const char *folder, struct err *err)
{
    char *pickle = find_pickle(folder);
    if (!pickle)
        return err_set(err, ERR_NOT_FOUND, "%s: no %s and no %s", folder, SINGLE, INDEX);
    int rc = err_set(err, ERR_REFUSED,
                     "%s/%s: pickle weights run code when read; convert them to safetensors "
                     "(transformers: save_pretrained(…, safe_serialization=True))",
                     folder, pickle);
    sys_free(pickle);
    return rc;
}

static int open_shards(struct checkpoint *c, struct err *err)
{
    const char *single = arena_printf(&c->arena, "%s/%s", c->folder, SINGLE);
    const char *index = arena_printf(&c->arena, "%s/%s", c->folder, INDEX);
    if (!single || !index)
        return no_memory(c->folder, err);
    if (file_exists(single)) {
        int rc = reserve_shards(c, 1, err);
        return rc ? rc : open_shard(c, SINGLE, err);
    }
    return file_exists(index) ? open_indexed(c, index, err) : no_weights(c->folder, err);
}

/* ---- the table of tensors ---- */

static int compare_tensors(const void *a, const void *b)
{
    return strcmp(((const struct checkpoint_tensor *)a)->name,
                  ((const struct checkpoint_tensor *)b)->name);
}

static int build_table(struct checkpoint *c, struct err *err)
{
    size_t n = 0;
    for (size_t s = 0; s < c->n_shards; s++)
        n += safetensors_count(c->shards[s]);
    c->tensors = arena_array(&c->arena, n + 1, sizeof *c->tensors);
    if (!c->tensors)
        return no_memory(c->folder, err);
    for (size_t s = 0; s < c->n_shards; s++) {
        for (size_t i = 0; i < safetensors_count(c->shards[s]); i++) {
            const struct safetensors_entry *e = safetensors_at(c->shards[s], i);
            struct checkpoint_tensor *t = &c->tensors[c->n_tensors++];
            t->name = e->name;
            t->value = e->value;
            t->shard_idx = (uint32_t)s;
            c->weight_bytes += e->end - e->begin;
        }
    }
    qsort(c->tensors, n, sizeof *c->tensors, compare_tensors);
    for (size_t i = 1; i < n; i++) {
        const struct checkpoint_tensor *t = &c->tensors[i];
        if (strcmp(t[-1].name, t->name) == 0)
            return err_set(err, ERR_CORRUPT, "%s:%s: both in %s and in %s", c->folder, t->name,
                           c->shard_names[t[-1].shard_idx], c->shard_names[t->shard_idx]);
    }
    return 0;
}

/* ---- the list of files ---- */

static bool is_shard(const struct checkpoint *c, const char *name)
{
    for (size_t i = 0; i < c->n_shards; i++) {
        if (strcmp(c->shard_names[i], name) == 0)
            return true;
    }
    return false;
}

static int add_file(struct checkpoint *c, const char *name, bool weights, struct err *err)
{
    struct stat st;
    char *path = file_join(c->folder, name);
    if (!path)
        return no_memory(c->folder, err);
    int rc = 0;
    if (sys_stat(path, &st) != 0)
        rc = err_set_errno(err, errno, "%s: cannot stat", path);
    sys_free(path);
    if (rc || !S_ISREG(st.st_mode))
        return rc;
    struct checkpoint_file *f = &c->files[c->n_files];
    f->name = arena_strdup(&c->arena, name);
    if (!f->name)
        return no_memory(c->folder, err);
    f->size = (uint64_t)st.st_size;
    f->mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
    f->weights = weights;
    c->n_files++;
    return 0;
}

static int list_files(struct checkpoint *c, struct err *err)
{
    char **names;
    size_t n;
    int rc = file_list(c->folder, &names, &n, err);
    if (rc)
        return rc;
    c->files = arena_array(&c->arena, n + 1, sizeof *c->files);
    if (!c->files)
        rc = no_memory(c->folder, err);
    for (size_t i = 0; !rc && i < n; i++) {
        bool weights = is_shard(c, names[i]);
        if (weights || checkpoint_is_companion(names[i]))
            rc = add_file(c, names[i], weights, err);
    }
    file_free_names(names, n);
    return rc;
}

int checkpoint_open(struct checkpoint **out, const char *folder, struct err *err)
{
    *out = NULL;
    if (!file_is_folder(folder))
        return err_set(err, ERR_NOT_FOUND, "%s: no such folder", folder);
    struct checkpoint *c = sys_calloc(1, sizeof *c);
    if (!c)
        return no_memory(folder, err);
    arena_init(&c->arena);
    c->folder = arena_strdup(&c->arena, folder);
    int rc = c->folder ? open_shards(c, err) : no_memory(folder, err);
    if (!rc)
        rc = build_table(c, err);
    if (!rc)
        rc = list_files(c, err);
    if (rc) {
        checkpoint_free(c);
        return rc;
    }
    *out = c;
    return 0;
}

void checkpoint_free(struct checkpoint *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < c->n_shards; i++)
        safetensors_free(c->shards[i]);
    arena_release(&c->arena);
    sys_free(c);
}

const char *checkpoint_folder(const struct checkpoint *c)
{
    return c->folder;
}

size_t checkpoint_count(const struct checkpoint *c)
{
    return c->n_tensors;
}

const struct checkpoint_tensor *checkpoint_at(const struct checkpoint *c, size_t i)
{
    return &c->tensors[i];
}

const struct checkpoint_tensor *checkpoint_find(const struct checkpoint *c, const char *name)
{
    struct checkpoint_tensor key = {.name = name};
    return bsearch(&key, c->tensors, c->n_tensors, sizeof *c->tensors, compare_tensors);
}

uint64_t checkpoint_weight_bytes(const struct checkpoint *c)
{
    return c->weight_bytes;
}

size_t checkpoint_n_shards(const struct checkpoint *c)
{
    return c->n_shards;
}

const struct safetensors *checkpoint_shard(const struct checkpoint *c, size_t i)
{
    return c->shards[i];
}

size_t checkpoint_n_files(const struct checkpoint *c)
{
    return c->n_files;
}

const struct checkpoint_file *checkpoint_file_at(const struct checkpoint *c, size_t i)
{
    return &c->files[i];
}
