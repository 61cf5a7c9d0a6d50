/*
 * SGLang's POST /generate, /load_lora_adapter, /unload_lora_adapter and GET /health_generate.
 */
#include <stdio.h>
#include <string.h>

#include "cmd/serve/api.h"
#include "libcore/base/sys.h"

// ---- which adapter ------------------------------------------------------------------------------

static void add_name(void *arg, const struct offered *o)
{
    struct strbuf *text = arg;
    strbuf_addf(text, "%s%s", text->len ? ", " : "", o->name);
}

static int unknown_adapter(struct server *s, const char *name, struct request_error *e)
{
    struct strbuf text;
    strbuf_init(&text);
    names_each(s->names, add_name, &text);
    request_fail(e, 400, "lora_path",
                 "The following requested LoRA adapters are not loaded: "
                 "%.100s\nLoaded adapters: {%.300s}.",
                 name, strbuf_text(&text));
    strbuf_release(&text);
    return -1;
}

/* One name into *use; null and the base's name leave it empty. */
static int find_use(struct server *s, const json_t *value, struct served_use *use,
                    struct request_error *e)
{
    *use = (struct served_use){NULL, 1};
    const char *name = json_string_value(value);
    if (!value || json_is_null(value))
        return 0;
    if (!name)
        return request_fail(e, 400, "lora_path",
                            "lora_path must be a string, null, or a list of "
                            "these.");
    struct err err = {0};
    struct served *served = NULL;
    if (names_find_model(s->names, name, &served, &err) != 0)
        return unknown_adapter(s, name, e);
    if (served && served_ready(served, &err) != 0) {
        served_release(served);
        return request_fail(e, 400, "lora_path", "%s", err.msg);
    }
    use->served = served;
    return 0;
}

/* lora_path stands at the top level or in sampling_params; a list runs parallel to the prompts. */
static int choose(struct server *s, struct generation *g, const json_t *path, size_t n_prompts,
                  struct request_error *e)
{
    if (!json_is_array(path)) {
        struct served_use use;
        if (find_use(s, path, &use, e) != 0)
            return -1;
        if (use.served)
            g->uses[g->n_uses++] = use;
        return api_choose_kit(s, g, e);
    }
    if (json_array_size(path) != n_prompts)
        return request_fail(e, 400, "lora_path", "lora_path has %zu items for %zu prompts.",
                            json_array_size(path), n_prompts);
    g->prompt_uses = sys_calloc(n_prompts ? n_prompts : 1, sizeof *g->prompt_uses);
    if (!g->prompt_uses)
        return request_fail(e, 500, NULL, "no memory for the request");
    for (size_t i = 0; i < n_prompts; i++) {
        if (find_use(s, json_array_get(path, i), &g->prompt_uses[i], e) != 0)
            return -1;
        const struct served *served = g->prompt_uses[i].served;
        if (served && served->kit != s->rt->kit && n_prompts > 1)
            return request_fail(e, 400, "lora_path",
                                "The adapter '%s' brings its own tokenizer: "
                                "send its prompts in requests of their own.",
                                served->label);
    }
    const struct served *only = n_prompts == 1 ? g->prompt_uses[0].served : NULL;
    struct text_kit *kit = only ? only->kit : s->rt->kit;
    g->kit = kit ? text_kit_hold(kit) : NULL;
    return 0;
}

// ---- prompts ------------------------------------------------------------------------------------

static int add_item(struct server *s, struct generation *g, const json_t *item,
                    struct request_error *e)
{
    if (json_is_string(item))
        return api_add_text_prompt(g, json_string_value(item), json_string_length(item), true, e);
    if (!json_is_array(item))
        return request_fail(e, 400, "input_ids",
                            "The prompt must be a text, a list of ids, or a "
                            "list of either.");
    int32_t *ids = NULL;
    size_t n = 0;
    if (field_ids(item, "input_ids", s->rt->config.vocab_size, &ids, &n, e) != 0)
        return -1;
    return api_add_prompt(g, ids, n, NULL, e);
}

/* text or input_ids, one or a list: *many says which. */
static const json_t *find_prompts(const json_t *body, bool *many, struct request_error *e)
{
    const json_t *text = field_get(body, "text"), *ids = field_get(body, "input_ids");
    *many = false;
    if (field_get(body, "input_embeds") || field_get(body, "image_data")) {
        request_fail(e, 400, "input_embeds",
                     "input_embeds and images are not supported by this "
                     "server.");
        return NULL;
    }
    if (!text == !ids) {
        request_fail(e, 400, "text", "Either text or input_ids should be provided.");
        return NULL;
    }
    if (text) {
        *many = json_is_array(text);
        return text;
    }
    *many = json_is_array(json_array_get(ids, 0));
    return ids;
}

// ---- the rest of the body -----------------------------------------------------------------------

static int read_params(struct server *s, struct generation *g, const json_t *sampling,
                       struct request_error *e)
{
    static const char *const refused[] = {"regex", "json_schema", "ebnf", "structural_tag",
                                          "custom_params"};
    g->params.has_max = true; // SGLang's default
    g->params.max_new_tokens = 128;
    if (!sampling)
        return 0;
    if (!json_is_object(sampling))
        return request_fail(e, 400, "sampling_params",
                            "sampling_params must be an object, the same "
                            "for all prompts.");
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        if (field_get(sampling, refused[i]))
            return request_fail(e, 400, refused[i], "%s is not supported by this server.",
                                refused[i]);
    }
    return params_read(&g->params, sampling, s->rt->config.vocab_size, e);
}

static int read_logprobs(struct generation *g, const json_t *body, struct request_error *e)
{
    int64_t n_top = 0;
    if (field_bool(body, "return_logprob", &g->logprobs, e) != 0 ||
        field_bool(body, "return_text_in_logprobs", &g->text_in_logprobs, e) != 0 ||
        field_int(body, "logprob_start_len", -1, INT32_MAX, &g->logprob_start, e) != 0 ||
        field_int(body, "top_logprobs_num", 0, LIMIT_LOGPROBS, &n_top, e) != 0)
        return -1;
    g->n_top = g->logprobs ? (int)n_top : 0;
    g->prompt_logprobs = g->logprobs && g->logprob_start >= 0;
    return 0;
}

static int read_rid(struct generation *g, const json_t *body, struct request_error *e)
{
    const char *rid = NULL;
    if (json_is_array(field_get(body, "rid")))
        return 0; // a list of ids for a batch: ours are given back
    if (field_string(body, "rid", &rid, e) != 0)
        return -1;
    if (rid)
        snprintf(g->id, sizeof g->id, "%s", rid);
    return 0;
}

static int read_generate(struct server *s, struct generation *g, const json_t *body,
                         struct request_error *e)
{
    bool many = false;
    const json_t *prompts = find_prompts(body, &many, e);
    if (!prompts)
        return -1;
    const json_t *sampling = field_get(body, "sampling_params");
    json_t *path = field_get(body, "lora_path");
    if (!path)
        path = field_get(sampling, "lora_path");
    size_t n = many ? json_array_size(prompts) : 1;
    if (field_bool(body, "stream", &g->stream, e) != 0 || read_rid(g, body, e) != 0 ||
        read_params(s, g, sampling, e) != 0 || read_logprobs(g, body, e) != 0 ||
        choose(s, g, path, n, e) != 0)
        return -1;
    g->one_prompt = !many;
    g->model = sys_strdup(json_is_string(path) ? json_string_value(path) : names_base(s->names));
    int rc = g->model ? 0 : request_fail(e, 500, NULL, "no memory for the request");
    for (size_t i = 0; rc == 0 && i < n; i++)
        rc = add_item(s, g, many ? json_array_get(prompts, i) : prompts, e);
    return rc;
}

void api_generate(struct server *s, struct http_exchange *x)
{
    json_t *body = api_body(x, ANSWER_SGLANG);
    struct generation *g = body ? api_open(s, x, &format_sglang, "") : NULL;
    struct request_error e = {0};
    if (g && read_generate(s, g, body, &e) != 0)
        api_abandon(g, &e);
    else if (g)
        api_start(s, g);
    json_decref(body);
}

/* One token through the whole machine. */
void api_health_generate(struct server *s, struct http_exchange *x)
{
    struct generation *g = api_open(s, x, &format_sglang, "health-");
    if (!g)
        return;
    struct request_error e = {0};
    int32_t *ids = sys_calloc(1, sizeof *ids);
    g->one_prompt = true;
    g->params.has_max = true;
    g->params.max_new_tokens = 1;
    g->params.sampling.temperature = 0;
    g->kit = s->rt->kit ? text_kit_hold(s->rt->kit) : NULL;
    g->model = sys_strdup(names_base(s->names));
    int rc = ids && g->model ? 0 : request_fail(&e, 500, NULL, "no memory");
    if (rc == 0)
        rc = api_add_prompt(g, ids, 1, NULL, &e);
    else
        sys_free(ids);
    if (rc == 0)
        api_start(s, g);
    else
        api_abandon(g, &e);
}

// ---- load and unload ----------------------------------------------------------------------------

static void add_loaded(void *arg, const struct offered *o)
{
    json_object_set_new(arg, o->name, json_string(o->root));
}

static void answer_loaded(struct server *s, struct http_exchange *x, const struct err *err)
{
    json_t *loaded = json_object();
    names_each(s->names, add_loaded, loaded);
    unsigned status = err->code == 0 ? 200 : err->code == ERR_DENIED ? 403 : 400;
    answer_json(x, status,
                json_pack("{s:b, s:s, s:o}", "success", err->code == 0, "error_message", err->msg,
                          "loaded_adapters", loaded));
}

void api_sglang_load(struct server *s, struct http_exchange *x)
{
    json_t *body = api_body(x, ANSWER_SGLANG);
    if (!body)
        return;
    struct err err = {0};
    struct request_error e = {0};
    const char *name = NULL, *path = NULL;
    bool pinned = false;
    if (field_string(body, "lora_name", &name, &e) != 0 ||
        field_string(body, "lora_path", &path, &e) != 0 ||
        field_bool(body, "pinned", &pinned, &e) != 0)
        err_set(&err, ERR_USAGE, "%s", e.message);
    else if (!name || !path)
        err_set(&err, ERR_USAGE, "Both lora_name and lora_path must be provided.");
    else if (names_load(s->names, name, path, false, pinned, &err) == ERR_EXISTS)
        err_set(&err, ERR_EXISTS, "LoRA with name %s already exists", name);
    answer_loaded(s, x, &err);
    json_decref(body);
}

void api_sglang_unload(struct server *s, struct http_exchange *x)
{
    json_t *body = api_body(x, ANSWER_SGLANG);
    if (!body)
        return;
    struct err err = {0};
    struct request_error e = {0};
    const char *name = NULL;
    if (field_string(body, "lora_name", &name, &e) != 0)
        err_set(&err, ERR_USAGE, "%s", e.message);
    else if (!name)
        err_set(&err, ERR_USAGE, "lora_name must be provided.");
    else if (names_unload(s->names, name, &err) != 0)
        err_set(&err, ERR_NOT_FOUND, "LoRA with name %s does not exist", name);
    answer_loaded(s, x, &err);
    json_decref(body);
}
