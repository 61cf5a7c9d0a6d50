#include "libcore/merge/companions.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"

static const char INDEX[] = "model.safetensors.index.json";

static int no_memory(const char *where, struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "%s: no memory", where);
}

static int sync_file(const char *path, struct err *err)
{
    int fd = sys_open(path, O_RDONLY, 0);
    if (fd < 0)
        return err_set_errno(err, errno, "%s: cannot open", path);
    int rc = sys_fsync(fd) == 0 ? 0 : err_set_errno(err, errno, "%s: cannot sync", path);
    sys_close(fd);
    return rc;
}

static int copy_synced(const char *from, const char *folder, const char *name, struct err *err)
{
    char *to = file_join(folder, name);
    if (!to)
        return no_memory(folder, err);
    int rc = file_copy(from, to, err);
    if (!rc)
        rc = sync_file(to, err);
    sys_free(to);
    return rc;
}

int companions_write_json(const char *folder, const char *name, const json_t *value,
                          struct err *err)
{
    char *path = file_join(folder, name);
    char *text = json_dumps(value, JSON_INDENT(2) | JSON_ENCODE_ANY);
    size_t n = text ? strlen(text) : 0;
    char *line = text ? sys_malloc(n + 1) : NULL;
    int rc = path && line ? 0 : no_memory(folder, err);
    if (!rc) {
        memcpy(line, text, n);
        line[n] = '\n';
        rc = file_write_atomic(path, line, n + 1, err);
    }
    sys_free(line);
    free(text);
    sys_free(path);
    return rc;
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
    *out = json_loadb(text, n, 0, &je);
    sys_free(text);
    return *out ? 0 : err_set(err, ERR_CORRUPT, "%s: line %d: %s", path, je.line, je.text);
}

// ---- config.json --------------------------------------------------------------------------------

/* Sets a field in every object of the configuration that has it; else at the top. */
static int set_field(json_t *config, const char *key, json_t *value)
{
    json_t *inner = json_object_get(config, "text_config");
    int rc = 0;
    bool in_text = json_is_object(inner) && json_object_get(inner, key);
    if (in_text)
        rc = json_object_set(inner, key, value);
    if (!rc && (!in_text || json_object_get(config, key)))
        rc = json_object_set(config, key, value);
    json_decref(value);
    return rc;
}

static int write_config(const struct merge_plan *p, const char *from, const char *folder,
                        struct err *err)
{
    if (!p->untied && !p->n_vocab && !p->to_bf16)
        return copy_synced(from, folder, "config.json", err);
    json_t *config;
    int rc = load_json(from, &config, err);
    if (!rc && p->to_bf16) {
        json_object_del(config, "quantization_config");
        json_object_del(json_object_get(config, "text_config"), "quantization_config");
    }
    if (!rc && p->untied && set_field(config, "tie_word_embeddings", json_false()) != 0)
        rc = no_memory(from, err);
    if (!rc && p->untied && json_is_object(json_object_get(config, "text_config")) &&
        json_object_set_new(config, "tie_word_embeddings", json_false()) != 0)
        rc = no_memory(from, err); // transformers looks at the outer one
    if (!rc && p->n_vocab && set_field(config, "vocab_size", json_integer(p->n_vocab)) != 0)
        rc = no_memory(from, err);
    if (!rc)
        rc = companions_write_json(folder, "config.json", config, err);
    json_decref(config);
    return rc;
}

// ---- the index ----------------------------------------------------------------------------------

static int write_index(const struct merge_plan *p, const char *from, const char *folder,
                       struct err *err)
{
    bool same = true;
    json_int_t payload = 0;
    for (size_t s = 0; s < p->n_shards; s++) {
        same = same && p->shards[s].same_header;
        payload += (json_int_t)(p->shards[s].file_bytes - p->shards[s].header_bytes);
    }
    if (same)
        return copy_synced(from, folder, INDEX, err);
    json_t *index;
    int rc = load_json(from, &index, err);
    json_t *map = json_object_get(index, "weight_map");
    json_t *metadata = json_object_get(index, "metadata");
    for (size_t i = 0; !rc && i < p->n_tensors; i++) {
        const struct merge_tensor *t = &p->tensors[i];
        if (t->dropped)
            json_object_del(map, t->name);
        if (t->added &&
            json_object_set_new(map, t->name, json_string(p->shards[t->shard_idx].name)) != 0)
            rc = no_memory(from, err);
    }
    if (!rc && json_object_get(metadata, "total_size") &&
        json_object_set_new(metadata, "total_size", json_integer(payload)) != 0)
        rc = no_memory(from, err);
    if (!rc)
        rc = companions_write_json(folder, INDEX, index, err);
    json_decref(index);
    return rc;
}

// ---- the whole ----------------------------------------------------------------------------------

static const char *replacement(const struct merge_run *run, const char *name)
{
    for (size_t i = 0; i < run->n_companions; i++) {
        if (strcmp(run->companions[i].name, name) == 0)
            return run->companions[i].path;
    }
    return NULL;
}

static int write_one(const struct merge_plan *p, const struct merge_run *run, const char *folder,
                     const char *name, struct err *err)
{
    char *from = file_join(checkpoint_folder(p->base), name);
    if (!from)
        return no_memory(folder, err);
    int rc = 0;
    if (strcmp(name, "config.json") == 0)
        rc = write_config(p, from, folder, err);
    else if (strcmp(name, INDEX) == 0)
        rc = write_index(p, from, folder, err);
    else if (p->to_bf16 && strcmp(name, "hf_quant_config.json") == 0)
        rc = 0; // says what is no longer so
    else if (!replacement(run, name))
        rc = copy_synced(from, folder, name, err);
    sys_free(from);
    return rc;
}

int companions_write(const struct merge_plan *p, const struct merge_run *run, const char *folder,
                     struct err *err)
{
    int rc = 0;
    for (size_t i = 0; !rc && i < checkpoint_n_files(p->base); i++) {
        const struct checkpoint_file *f = checkpoint_file_at(p->base, i);
        if (!f->weights)
            rc = write_one(p, run, folder, f->name, err);
    }
    for (size_t i = 0; !rc && i < run->n_companions; i++)
        rc = copy_synced(run->companions[i].path, folder, run->companions[i].name, err);
    return rc;
}
