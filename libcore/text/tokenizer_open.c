/* Opening a tokenizer: the small parts of tokenizer.json around the vocabulary. */
#include <jansson.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/text/json_fields.h"
#include "libcore/text/tokenizer_impl.h"

/* An optional string of the model; an empty one counts as none. */
static int read_model_text(const json_t *model, const char *name, char **out, struct err *err)
{
    const json_t *value = json_object_get(model, name);
    size_t n;
    if (!value || json_is_null(value))
        return 0;
    int rc = json_field_copy(model, name, out, &n, "model", err);
    if (!rc && strlen(*out) != n)
        rc = err_set(err, ERR_REFUSED, "model: %s holds a NUL", name);
    if (!rc && n == 0) {
        sys_free(*out);
        *out = NULL;
    }
    return rc;
}

static int read_model(struct tokenizer *t, const json_t *root, struct err *err)
{
    const json_t *model = json_object_get(root, "model");
    const json_t *type = json_object_get(model, "type"),
                 *dropout = json_object_get(model, "dropout");
    struct bpe *b = &t->bpe;
    if (type && (!json_is_string(type) || strcmp(json_string_value(type), "BPE") != 0))
        return err_set(err, ERR_REFUSED, "model type '%.40s' is not supported, only BPE",
                       json_is_string(type) ? json_string_value(type) : "?");
    if (dropout && !json_is_null(dropout) && json_number_value(dropout) != 0)
        return err_set(err, ERR_REFUSED, "model: dropout makes ids random and is not supported");
    if (!t->v->n_ids)
        return err_set(err, ERR_CORRUPT, "model: no vocab");
    b->v = t->v;
    int rc = read_model_text(model, "unk_token", &b->unk_token, err);
    if (!rc)
        rc = read_model_text(model, "continuing_subword_prefix", &b->prefix, err);
    if (!rc)
        rc = read_model_text(model, "end_of_word_suffix", &b->suffix, err);
    if (!rc)
        rc = json_field_bool(model, "fuse_unk", FIELD_OPTIONAL, &b->fuse_unk, "model", err);
    if (!rc)
        rc = json_field_bool(model, "byte_fallback", FIELD_OPTIONAL, &b->byte_fallback, "model",
                             err);
    if (!rc)
        rc = json_field_bool(model, "ignore_merges", FIELD_OPTIONAL, &b->ignore_merges, "model",
                             err);
    return rc;
}

static int read_version(const json_t *root, struct err *err)
{
    const json_t *version = json_object_get(root, "version");
    if (version && (!json_is_string(version) || strcmp(json_string_value(version), "1.0") != 0))
        return err_set(err, ERR_REFUSED, "version '%.40s' is not supported, only 1.0",
                       json_is_string(version) ? json_string_value(version) : "?");
    return 0;
}

static int read_parts(struct tokenizer *t, const json_t *root, struct err *err)
{
    int rc = read_version(root, err);
    if (!rc)
        rc = read_model(t, root, err);
    if (!rc)
        rc = normalizer_add(&t->normalizer, json_object_get(root, "normalizer"), err);
    if (!rc)
        rc = pre_tokenizer_add(&t->pre, json_object_get(root, "pre_tokenizer"), err);
    if (!rc)
        rc = decoder_add(&t->decoder, json_object_get(root, "decoder"), err);
    if (!rc)
        rc = post_processor_read(t, json_object_get(root, "post_processor"), err);
    // the last step of nearly every byte-level tokenizer is left to the model, which keeps words as
    // bytes
    if (!rc && t->pre.n && t->pre.steps[t->pre.n - 1].kind == PRE_BYTE_LEVEL_MAP) {
        t->pre.n--;
        t->bpe.byte_level = true;
    }
    return rc;
}

/* The library numbers a new token by its place, so that the order of the file is kept. */
static int read_added(struct tokenizer *t, struct err *err)
{
    added_begin(&t->added, t->v);
    for (uint32_t i = 0; i < t->v->n_added; i++) {
        const struct vocab_added *a = &t->v->added[i];
        int rc = added_add(&t->added, t->v, t->v->text + a->offset, a->len, a->id, a->flags, err);
        if (rc)
            return rc;
    }
    return 0;
}

static int prepare_added(struct tokenizer *t, struct err *err)
{
    struct encode_scratch *s;
    int rc = encode_scratch_open(&s, err);
    if (!rc)
        rc = added_prepare(&t->added, &t->normalizer, &s->normalize, err);
    encode_scratch_free(s);
    t->n_ids = t->v->n_ids;
    if (t->added.n && t->added.tokens[t->added.n - 1].id >= t->n_ids)
        t->n_ids = t->added.tokens[t->added.n - 1].id + 1;
    return rc;
}

static void find_roles(struct tokenizer *t)
{
    for (int i = 0; i < TOKENIZER_N_ROLES; i++) {
        const char *text = t->role_text[i];
        t->role_id[i] = text ? tokenizer_id_of(t, text, strlen(text)) : -1;
    }
    if (t->role_id[TOKENIZER_UNK] < 0 && t->bpe.unk_id != VOCAB_NONE)
        t->role_id[TOKENIZER_UNK] = t->bpe.unk_id;
}

static int open_parts(struct tokenizer *t, const char *path, const char *config_path,
                      struct err *err)
{
    struct tokenizer_config config;
    json_error_t e;
    json_t *root =
        json_loadb(t->v->rest, t->v->rest_len, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &e);
    int rc = root
                 ? read_parts(t, root, err)
                 : err_set(err, ERR_CORRUPT, "%s (without vocab, merges and added_tokens)", e.text);
    json_decref(root);
    if (!rc)
        rc = read_added(t, err);
    if (rc)
        return err_prefix_of(rc, path, err);
    bpe_prepare(&t->bpe);
    rc = tokenizer_config_read(t, config_path, &config, err);
    if (rc)
        return rc;
    rc = prepare_added(t, err);
    if (rc)
        return err_prefix_of(rc, path, err);
    find_roles(t);
    return post_processor_configure(t, &config, err);
}

int tokenizer_open(struct tokenizer **out, const char *folder, const char *cache_folder,
                   struct err *err)
{
    *out = NULL;
    char *path = file_join(folder, "tokenizer.json");
    char *config_path = file_join(folder, "tokenizer_config.json");
    struct tokenizer *t = path && config_path ? sys_calloc(1, sizeof *t) : NULL;
    int rc = t ? 0 : err_set(err, ERR_NO_MEMORY, "%s: out of memory", folder);
    if (t) {
        pthread_mutex_init(&t->lock, NULL);
        added_init(&t->added);
        rc = vocab_open(&t->v, path, cache_folder, err);
    }
    if (!rc)
        rc = open_parts(t, path, config_path, err);
    sys_free(path);
    sys_free(config_path);
    if (rc) {
        tokenizer_free(t);
        return rc;
    }
    *out = t;
    return 0;
}

void tokenizer_free(struct tokenizer *t)
{
    if (!t)
        return;
    for (struct encode_scratch *s = t->idle, *next; s; s = next) {
        next = s->next;
        encode_scratch_free(s);
    }
    pthread_mutex_destroy(&t->lock);
    for (int i = 0; i < TOKENIZER_N_ROLES; i++)
        sys_free(t->role_text[i]);
    token_ids_release(&t->before);
    token_ids_release(&t->after);
    decoder_release(&t->decoder);
    pre_tokenizer_release(&t->pre);
    normalizer_release(&t->normalizer);
    added_release(&t->added);
    bpe_release(&t->bpe);
    vocab_free(t->v);
    sys_free(t);
}
