#include "libcore/format/generation_config.h"

#include <jansson.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/limits.h"
#include "libcore/base/sys.h"

struct reader {
    const json_t *root;
    const char *path;
    struct err *err;
    int rc;
};

static void wrong(struct reader *r, const char *field, const char *wanted)
{
    if (!r->rc)
        r->rc = err_set(r->err, ERR_CORRUPT, "%s:%s: %s is wanted", r->path, field, wanted);
}

/* null counts as absent, as transformers writes it for what was not set. */
static const json_t *field(const struct reader *r, const char *name)
{
    const json_t *v = json_object_get(r->root, name);
    return json_is_null(v) ? NULL : v;
}

static bool number(struct reader *r, const char *name, double *out)
{
    const json_t *v = field(r, name);
    if (!v)
        return false;
    if (!json_is_number(v)) {
        wrong(r, name, "a number");
        return false;
    }
    *out = json_number_value(v);
    return true;
}

static bool whole(struct reader *r, const char *name, int64_t low, int64_t high, int64_t *out)
{
    const json_t *v = field(r, name);
    if (!v)
        return false;
    if (!json_is_integer(v) || json_integer_value(v) < low || json_integer_value(v) > high) {
        wrong(r, name, "a whole number in range");
        return false;
    }
    *out = json_integer_value(v);
    return true;
}

static bool flag(struct reader *r, const char *name, bool *out)
{
    const json_t *v = field(r, name);
    if (!v)
        return false;
    if (!json_is_boolean(v)) {
        wrong(r, name, "true or false");
        return false;
    }
    *out = json_is_true(v);
    return true;
}

static int32_t token(struct reader *r, const char *name)
{
    const json_t *v = field(r, name);
    int64_t id = -1;
    if (json_is_array(v)) // some files list several; the first is the one that is put
        v = json_array_get(v, 0);
    if (!v)
        return -1;
    if (!json_is_integer(v) || (id = json_integer_value(v)) < 0 || id > INT32_MAX) {
        wrong(r, name, "a token id");
        return -1;
    }
    return (int32_t)id;
}

static void add_eos(struct reader *r, struct generation_config *g, const json_t *v)
{
    json_int_t id = json_integer_value(v);
    if (!json_is_integer(v) || id < 0 || id > INT32_MAX || g->n_eos == GENERATION_MAX_EOS) {
        wrong(r, "eos_token_id", "a token id or a list of at most 64");
        return;
    }
    g->eos_ids[g->n_eos++] = (int32_t)id;
}

static void read_eos(struct reader *r, struct generation_config *g)
{
    const json_t *v = field(r, "eos_token_id");
    if (!json_is_array(v)) {
        if (v)
            add_eos(r, g, v);
        return;
    }
    for (size_t i = 0; i < json_array_size(v) && !r->rc; i++)
        add_eos(r, g, json_array_get(v, i));
}

static void read_all(struct reader *r, struct generation_config *g)
{
    int64_t v;
    read_eos(r, g);
    g->bos_id = token(r, "bos_token_id");
    g->pad_id = token(r, "pad_token_id");
    g->has_do_sample = flag(r, "do_sample", &g->do_sample);
    g->has_temperature = number(r, "temperature", &g->temperature);
    g->has_top_p = number(r, "top_p", &g->top_p);
    g->has_min_p = number(r, "min_p", &g->min_p);
    g->has_repetition_penalty = number(r, "repetition_penalty", &g->repetition_penalty);
    if ((g->has_top_k = whole(r, "top_k", 0, INT32_MAX, &v)))
        g->top_k = (int32_t)v;
    if ((g->has_max_new_tokens = whole(r, "max_new_tokens", 1, UINT32_MAX, &v)))
        g->max_new_tokens = (uint32_t)v;
    if ((g->has_max_length = whole(r, "max_length", 1, UINT32_MAX, &v)))
        g->max_length = (uint32_t)v;
}

static int parse(struct generation_config *out, const char *path, struct err *err)
{
    char *text;
    size_t n;
    int rc = file_read(path, LIMIT_CONFIG_BYTES, &text, &n, err);
    if (rc)
        return rc;
    json_error_t je;
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &je);
    sys_free(text);
    if (!json_is_object(root)) {
        json_decref(root);
        return err_set(err, ERR_CORRUPT, "%s: %s", path, root ? "an object is wanted" : je.text);
    }
    struct reader r = {root, path, err, 0};
    out->present = true;
    read_all(&r, out);
    json_decref(root);
    return r.rc;
}

int generation_config_read(struct generation_config *out, const char *folder, struct err *err)
{
    memset(out, 0, sizeof *out);
    out->bos_id = out->pad_id = -1;
    char *path = file_join(folder, "generation_config.json");
    if (!path)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", folder);
    int rc = file_exists(path) ? parse(out, path, err) : 0;
    sys_free(path);
    return rc;
}
