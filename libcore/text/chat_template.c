#include "libcore/text/chat_template.h"

#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/limits.h"
#include "libcore/base/sys.h"
#include "libcore/text/jinja.h"

struct named_template {
    char *name; // "default", "tool_use", …
    struct jinja_template *jinja;
};

struct chat_template {
    struct named_template *templates;
    size_t n;
    json_t *tokens; // {"bos_token": "<s>", …}
};

static int no_memory(struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "no memory for a chat template");
}

void chat_template_free(struct chat_template *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->n; i++) {
        jinja_free(t->templates[i].jinja);
        sys_free(t->templates[i].name);
    }
    sys_free(t->templates);
    json_decref(t->tokens);
    sys_free(t);
}

static int template_alloc(struct chat_template **out, struct err *err)
{
    *out = sys_calloc(1, sizeof **out);
    if (!*out)
        return no_memory(err);
    (*out)->tokens = json_object();
    return (*out)->tokens ? 0 : no_memory(err);
}

/* where: stands before the line numbers of errors. */
static int add_template(struct chat_template *t, const char *name, const char *where,
                        const char *text, size_t len, struct err *err)
{
    struct named_template *templates =
        sys_reallocarray(t->templates, t->n + 1, sizeof *t->templates);
    if (!templates)
        return no_memory(err);
    t->templates = templates;
    struct named_template *one = &templates[t->n];
    *one = (struct named_template){.name = sys_strdup(name)};
    if (!one->name)
        return no_memory(err);
    t->n++;
    return jinja_compile(&one->jinja, where, text, len, err);
}

/* ---- files ---- */
static int add_template_file(struct chat_template *t, const char *name, const char *path,
                             struct err *err)
{
    char *text;
    size_t len;
    int rc = file_read(path, LIMIT_TEMPLATE_BYTES, &text, &len, err);
    if (rc)
        return rc;
    rc = add_template(t, name, path, text, len, err);
    sys_free(text);
    return rc;
}

/* *out is NULL when the file is not there. Integers are read as reals: a model_max_length of 1e30
 * is usual, and none of them matters here. */
static int read_json(json_t **out, const char *folder, const char *file, struct err *err)
{
    char *path = file_join(folder, file), *text = NULL;
    size_t len;
    json_error_t why;
    *out = NULL;
    if (!path)
        return no_memory(err);
    int rc = file_exists(path) ? file_read(path, LIMIT_CONFIG_BYTES, &text, &len, err) : 0;
    if (!rc && text) {
        *out = json_loadb(text, len, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &why);
        if (!*out)
            rc = err_set(err, ERR_CORRUPT, "%s:%d: %s", path, why.line, why.text);
        else if (!json_is_object(*out))
            rc = err_set(err, ERR_CORRUPT, "%s: not a JSON object", path);
    }
    if (rc) {
        json_decref(*out);
        *out = NULL;
    }
    sys_free(text);
    sys_free(path);
    return rc;
}

/* ---- special tokens ---- */

/* A token is its text, or an object that has it as "content". */
static json_t *token_text(json_t *token)
{
    json_t *text = json_is_object(token) ? json_object_get(token, "content") : token;
    return json_is_string(text) ? text : NULL;
}

static int add_token(struct chat_template *t, const char *name, json_t *token, struct err *err)
{
    json_t *text = token_text(token);
    if (!text || json_object_get(t->tokens, name))
        return 0;
    return json_object_set(t->tokens, name, text) ? no_memory(err) : 0;
}

static int add_token_list(struct chat_template *t, const char *name, json_t *tokens,
                          struct err *err)
{
    size_t i;
    json_t *token;
    if (json_array_size(tokens) == 0 || json_object_get(t->tokens, name))
        return 0;
    json_t *list = json_array();
    json_array_foreach(tokens, i, token)
    {
        json_t *text = token_text(token);
        if (text && json_array_append(list, text))
            break;
    }
    return json_object_set_new(t->tokens, name, list) ? no_memory(err) : 0;
}

static int add_tokens_of(struct chat_template *t, json_t *config, struct err *err)
{
    static const char *const names[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                        "pad_token", "cls_token", "mask_token"};
    json_t *extra = json_object_get(config, "extra_special_tokens"), *token;
    const char *name;
    int rc = 0;
    for (size_t i = 0; !rc && i < sizeof names / sizeof *names; i++)
        rc = add_token(t, names[i], json_object_get(config, names[i]), err);
    if (!rc)
        rc = add_token_list(t, "additional_special_tokens",
                            json_object_get(config, "additional_special_tokens"), err);
    json_object_foreach(extra, name, token)
    {
        if (!rc)
            rc = add_token(t, name, token, err);
    }
    return rc;
}

/* Tokens of the folder's files; *config (tokenizer_config.json, or NULL) is the caller's then. */
static int read_tokens(struct chat_template *t, const char *folder, json_t **config,
                       struct err *err)
{
    json_t *map = NULL;
    int rc = read_json(config, folder, "tokenizer_config.json", err);
    if (!rc && *config)
        rc = add_tokens_of(t, *config, err);
    if (!rc)
        rc = read_json(&map, folder, "special_tokens_map.json", err);
    if (!rc && map)
        rc = add_tokens_of(t, map, err);
    json_decref(map);
    return rc;
}

/* ---- where templates are ---- */

/* additional_chat_templates/NAME.jinja */
static int add_additional(struct chat_template *t, const char *folder, struct err *err)
{
    char *sub = file_join(folder, "additional_chat_templates"), **names = NULL;
    size_t n = 0;
    if (!sub)
        return no_memory(err);
    int rc = file_is_folder(sub) ? file_list(sub, &names, &n, err) : 0;
    for (size_t i = 0; !rc && i < n; i++) {
        size_t len = strlen(names[i]);
        if (len <= 6 || strcmp(names[i] + len - 6, ".jinja") != 0)
            continue;
        char *path = file_join(sub, names[i]), *name = sys_strndup(names[i], len - 6);
        rc = path && name ? add_template_file(t, name, path, err) : no_memory(err);
        sys_free(path);
        sys_free(name);
    }
    file_free_names(names, n);
    sys_free(sub);
    return rc;
}

static int add_from_folder(struct chat_template *t, const char *folder, struct err *err)
{
    char *path = file_join(folder, "chat_template.jinja");
    int rc = path ? 0 : no_memory(err);
    if (!rc && file_exists(path))
        rc = add_template_file(t, "default", path, err);
    if (!rc)
        rc = add_additional(t, folder, err);
    sys_free(path);
    return rc;
}

/* `chat_template` of a JSON file: a text, a list of {name, template}, or an object of texts. */
static int add_from_json(struct chat_template *t, const json_t *config, const char *file,
                         struct err *err)
{
    json_t *value = json_object_get(config, "chat_template"), *item;
    const char *key;
    size_t i;
    int rc = 0;
    if (!value || json_is_null(value))
        return 0;
    if (json_is_string(value))
        return add_template(t, "default", file, json_string_value(value), json_string_length(value),
                            err);
    if (!json_is_array(value) && !json_is_object(value))
        return err_set(err, ERR_CORRUPT, "%s: chat_template is neither text nor a list", file);
    json_array_foreach(value, i, item)
    {
        json_t *name = json_object_get(item, "name"), *text = json_object_get(item, "template");
        if (!json_is_string(name) || !json_is_string(text))
            return err_set(err, ERR_CORRUPT, "%s: chat_template[%zu] lacks name or template", file,
                           i);
        rc = add_template(t, json_string_value(name), file, json_string_value(text),
                          json_string_length(text), err);
        if (rc)
            return rc;
    }
    json_object_foreach(value, key, item)
    {
        if (!rc && json_is_string(item))
            rc = add_template(t, key, file, json_string_value(item), json_string_length(item), err);
    }
    return rc;
}

static int add_from_processor(struct chat_template *t, const char *folder, struct err *err)
{
    json_t *json;
    int rc = read_json(&json, folder, "chat_template.json", err);
    if (!rc && json)
        rc = add_from_json(t, json, "chat_template.json", err);
    json_decref(json);
    return rc;
}

static int open_folder(struct chat_template *t, const char *folder, struct err *err)
{
    json_t *config = NULL;
    int rc = read_tokens(t, folder, &config, err);
    if (!rc)
        rc = add_from_folder(t, folder, err);
    if (!rc && !t->n && config)
        rc = add_from_json(t, config, "tokenizer_config.json", err);
    if (!rc && !t->n)
        rc = add_from_processor(t, folder, err);
    if (!rc && !t->n)
        rc = err_set(err, ERR_NOT_FOUND,
                     "%s: no chat template (chat_template.jinja, or chat_template in "
                     "tokenizer_config.json)",
                     folder);
    json_decref(config);
    return rc;
}

/* ---- opening ---- */
static int finish(struct chat_template **out, struct chat_template *t, int rc)
{
    if (rc) {
        chat_template_free(t);
        t = NULL;
    }
    *out = t;
    return rc;
}

int chat_template_open(struct chat_template **out, const char *folder, struct err *err)
{
    struct chat_template *t;
    int rc = template_alloc(&t, err);
    return finish(out, t, rc ? rc : open_folder(t, folder, err));
}

int chat_template_open_file(struct chat_template **out, const char *file, const char *folder,
                            struct err *err)
{
    struct chat_template *t;
    json_t *config = NULL;
    int rc = template_alloc(&t, err);
    if (!rc && folder)
        rc = read_tokens(t, folder, &config, err);
    json_decref(config);
    return finish(out, t, rc ? rc : add_template_file(t, "default", file, err));
}

int chat_template_open_text(struct chat_template **out, const char *text, size_t n,
                            const struct chat_template *like, struct err *err)
{
    struct chat_template *t;
    int rc = template_alloc(&t, err);
    if (!rc && like && json_object_update(t->tokens, like->tokens))
        rc = no_memory(err);
    return finish(out, t, rc ? rc : add_template(t, "default", "chat_template", text, n, err));
}

/* ---- rendering ---- */
static const struct jinja_template *find(const struct chat_template *t, const char *name)
{
    for (size_t i = 0; i < t->n; i++)
        if (strcmp(t->templates[i].name, name) == 0)
            return t->templates[i].jinja;
    return NULL;
}

static int choose(const struct chat_template *t, const json_t *context,
                  const struct jinja_template **out, struct err *err)
{
    const json_t *tools = json_object_get(context, "tools");
    *out = tools && !json_is_null(tools) ? find(t, "tool_use") : NULL;
    if (!*out)
        *out = find(t, "default");
    if (*out)
        return 0;
    return err_set(err, ERR_REFUSED, "the model has %zu chat templates, and none is named default",
                   t->n);
}

int chat_template_render(const struct chat_template *t, const json_t *context, int64_t now_unix,
                         struct strbuf *out, struct err *err)
{
    const struct jinja_template *jinja;
    char *text = NULL;
    size_t len;
    int rc = choose(t, context, &jinja, err);
    if (!rc)
        rc = jinja_render(jinja, context, t->tokens, now_unix, &text, &len, err);
    if (rc)
        return rc;
    strbuf_add(out, text, len);
    sys_free(text);
    return out->failed ? no_memory(err) : 0;
}

const char *chat_template_token(const struct chat_template *t, const char *name)
{
    return json_string_value(json_object_get(t->tokens, name));
}
