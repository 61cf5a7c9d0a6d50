/*
 * What the families of routes share: from a parsed request to a submitted generation.
 */
#include "cmd/serve/api.h"

#include <stdio.h>
#include <string.h>

#include "libcore/base/sys.h"

json_t *api_body(struct http_exchange *x, enum answer_style style)
{
    size_t n = 0;
    const char *text = http_body(x, &n);
    json_t *body = NULL;
    struct request_error e = {0};
    if (fields_parse(&body, text, n, &e) != 0)
        api_fail(x, style, &e);
    return body;
}

void api_fail(struct http_exchange *x, enum answer_style style, const struct request_error *e)
{
    answer_error(x, style, e->status, *e->param ? e->param : NULL, e->message);
}

struct generation *api_open(struct server *s, struct http_exchange *x, const struct format *format,
                            const char *id_prefix)
{
    struct generation *g = generation_open(s->output, x);
    if (!g) {
        answer_error(x, format->style, 500, NULL, "no memory for the request");
        return NULL;
    }
    g->format = format;
    g->n_top = 0;
    g->logprob_start = -1;
    params_init(&g->params, &s->rt->generation);
    snprintf(g->id, sizeof g->id, "%s%s%016llx", id_prefix, s->boot,
             (unsigned long long)(atomic_fetch_add(&s->last_id, 1) + 1));
    http_set_user(x, generation_hold(g), generation_release);
    if (http_is_gone(x)) // it left before there was anything to tell
        output_gone(s->output, g);
    return g;
}

void api_abandon(struct generation *g, const struct request_error *e)
{
    api_fail(g->x, g->format->style, e);
    generation_detach(g);
    generation_release(g);
}

// ---- adapters -----------------------------------------------------------------------------------

int api_add_use(struct generation *g, struct served *served, float scale, const char *param,
                struct request_error *e)
{
    struct err err = {0};
    int rc = 0;
    if (g->n_uses == LIMIT_ADAPTERS_PER_REQUEST)
        rc = request_fail(e, 400, param, "At most %d adapters are allowed in one request.",
                          LIMIT_ADAPTERS_PER_REQUEST);
    else if (served_ready(served, &err) != 0)
        rc = request_fail(e, 400, param, "LoRA adapter '%s' was found but could not be loaded: %s",
                          served->label, err.msg);
    if (rc != 0) {
        served_release(served);
        return rc;
    }
    g->uses[g->n_uses++] = (struct served_use){served, scale};
    return 0;
}

int api_choose_kit(struct server *s, struct generation *g, struct request_error *e)
{
    struct text_kit *own = NULL;
    for (size_t i = 0; i < g->n_uses; i++) {
        struct text_kit *kit = g->uses[i].served->kit;
        if (kit == s->rt->kit)
            continue;
        if (own && own != kit)
            return request_fail(e, 400, "lora",
                                "Two adapters of this request bring different "
                                "tokenizers or chat templates.");
        own = kit;
    }
    struct text_kit *kit = own ? own : s->rt->kit;
    g->kit = kit ? text_kit_hold(kit) : NULL;
    return 0;
}

/* One item of "lora": {"id" | "name", "scale"}. */
static int add_lora_item(struct server *s, struct generation *g, const json_t *item,
                         struct request_error *e)
{
    double scale = 1;
    int64_t id = -1;
    const char *name = NULL;
    if (!json_is_object(item))
        return request_fail(e, 400, "lora",
                            "lora must be a list of {\"id\" or \"name\", "
                            "\"scale\"}.");
    if (field_int(item, "id", 0, INT32_MAX, &id, e) != 0 ||
        field_string(item, "name", &name, e) != 0 || field_double(item, "scale", &scale, e) != 0)
        return -1;
    if ((id < 0) == (name == NULL))
        return request_fail(e, 400, "lora", "Each item of lora needs either an id or a name.");
    if (!(scale >= -1e4 && scale <= 1e4))
        return request_fail(e, 400, "lora", "lora: the scale %g is out of range.", scale);
    struct served *served = NULL;
    struct err err = {0};
    int rc = name ? names_find_adapter(s->names, name, &served, &err)
                  : names_find_index(s->names, (size_t)id, &served, &err);
    if (rc != 0)
        return request_fail_err(e, "lora", &err);
    if (scale == 0) {
        served_release(served);
        return 0;
    }
    return api_add_use(g, served, (float)scale, "lora", e);
}

int api_choose_adapters(struct server *s, struct generation *g, const json_t *body,
                        struct request_error *e)
{
    const char *model = NULL, *path = NULL;
    if (field_string(body, "model", &model, e) != 0 ||
        field_string(body, "lora_path", &path, e) != 0)
        return -1;
    g->model = sys_strdup(model && *model ? model : names_base(s->names));
    if (!g->model)
        return request_fail(e, 500, NULL, "no memory for the request");
    struct served *served = NULL;
    struct err err = {0};
    if (names_find_model(s->names, model, &served, &err) != 0)
        return request_fail_err(e, "model", &err);
    if (!served && path && names_find_adapter(s->names, path, &served, &err) != 0)
        return request_fail_err(e, "lora_path", &err);
    const json_t *lora = field_get(body, "lora");
    if (served && lora && json_array_size(lora) > 0) {
        served_release(served);
        return request_fail(e, 400, "lora",
                            "The model is an adapter already; with lora it must be "
                            "the base.");
    }
    if (served && api_add_use(g, served, 1, "model", e) != 0)
        return -1;
    if (lora && !json_is_array(lora))
        return request_fail(e, 400, "lora", "lora must be a list.");
    for (size_t i = 0; lora && i < json_array_size(lora); i++) {
        if (add_lora_item(s, g, json_array_get(lora, i), e) != 0)
            return -1;
    }
    return api_choose_kit(s, g, e);
}

// ---- prompts ------------------------------------------------------------------------------------

int api_add_prompt(struct generation *g, int32_t *ids, size_t n, char *text,
                   struct request_error *e)
{
    struct gen_prompt *prompts = NULL;
    if (g->n_prompts < LIMIT_CHOICES)
        prompts = sys_reallocarray(g->prompts, g->n_prompts + 1, sizeof *prompts);
    if (!prompts) {
        sys_free(ids);
        sys_free(text);
        if (g->n_prompts == LIMIT_CHOICES)
            return request_fail(e, 400, "prompt", "At most %d prompts are allowed in one request.",
                                LIMIT_CHOICES);
        return request_fail(e, 500, NULL, "no memory for a prompt");
    }
    g->prompts = prompts;
    g->prompts[g->n_prompts++] = (struct gen_prompt){ids, n, text};
    return 0;
}

int api_add_text_prompt(struct generation *g, const char *text, size_t n, bool add_special,
                        struct request_error *e)
{
    if (!g->kit || !g->kit->tokenizer)
        return request_fail(e, 400, "prompt", "There is no tokenizer here: send token ids.");
    struct token_ids ids;
    struct err err = {0};
    token_ids_init(&ids);
    int rc = tokenizer_encode(g->kit->tokenizer, text, n, add_special ? TOKENIZER_ADD_SPECIAL : 0,
                              &ids, &err);
    int32_t *copy = rc == 0 ? sys_reallocarray(NULL, ids.n ? ids.n : 1, sizeof *copy) : NULL;
    char *kept = copy ? sys_strndup(text, n) : NULL;
    if (rc == 0 && !kept)
        rc = err_set(&err, ERR_NO_MEMORY, "no memory for a prompt");
    for (size_t i = 0; rc == 0 && i < ids.n; i++)
        copy[i] = (int32_t)ids.data[i];
    size_t n_ids = ids.n;
    token_ids_release(&ids);
    if (rc != 0) {
        sys_free(copy);
        sys_free(kept);
        return request_fail_err(e, "prompt", &err);
    }
    return api_add_prompt(g, copy, n_ids, kept, e);
}

// ---- submission ---------------------------------------------------------------------------------

/* End ids: the tokenizer's, generation_config.json's (else config.json's), the request's own. */
static int collect_stop_ids(struct server *s, struct generation *g, struct request_error *e)
{
    const struct runtime *rt = s->rt;
    bool own = rt->generation.n_eos > 0;
    size_t n_eos = own ? rt->generation.n_eos : rt->config.n_eos;
    const int32_t *eos = own ? rt->generation.eos_ids : rt->config.eos_ids;
    g->stop_ids = sys_reallocarray(NULL, n_eos + 1 + g->params.n_stop_ids, sizeof *g->stop_ids);
    if (!g->stop_ids)
        return request_fail(e, 500, NULL, "no memory for the request");
    for (size_t i = 0; i < g->params.n_stop_ids; i++)
        g->stop_ids[g->n_stop_ids++] = g->params.stop_ids[i];
    if (g->params.ignore_eos)
        return 0;
    for (size_t i = 0; i < n_eos; i++)
        g->stop_ids[g->n_stop_ids++] = eos[i];
    int64_t role =
        g->kit && g->kit->tokenizer ? tokenizer_role_id(g->kit->tokenizer, TOKENIZER_EOS) : -1;
    if (role >= 0 && role < (int64_t)rt->config.vocab_size)
        g->stop_ids[g->n_stop_ids++] = (int32_t)role;
    return 0;
}

/* Every prompt must leave room for an answer; without max_tokens the context is the bound. */
static int check_lengths(struct server *s, struct generation *g, struct request_error *e)
{
    uint32_t context = s->rt->context_length;
    uint32_t longest = 0;
    for (size_t i = 0; i < g->n_prompts; i++) {
        size_t n = g->prompts[i].n;
        if (n == 0)
            return request_fail(e, 400, "prompt", "The prompt is empty: it has no tokens.");
        bool room = g->params.has_max && g->params.max_new_tokens == 0 ? n <= context : n < context;
        if (!room)
            return request_fail(e, 400, "prompt",
                                "This model's maximum context length is %u tokens. However, your "
                                "request has %zu input tokens. Please reduce the length of the "
                                "input.",
                                context, n);
        longest = n > longest ? (uint32_t)n : longest;
    }
    uint32_t room = context - longest;
    if (!g->params.has_max)
        g->params.max_new_tokens = room;
    if (g->params.max_new_tokens > room)
        return request_fail(
            e, 400, "max_tokens",
            "'max_tokens' or 'max_completion_tokens' is too large: %u. This model's "
            "maximum context length is %u tokens and your request has %u input "
            "tokens (%u > %u - %u).",
            g->params.max_new_tokens, context, longest, g->params.max_new_tokens, context, longest);
    if (g->params.max_new_tokens == 0 && !g->prompt_logprobs)
        return request_fail(e, 400, "max_tokens", "max_tokens must be at least 1, got 0.");
    return 0;
}

static int prepare(struct server *s, struct generation *g, struct request_error *e)
{
    if (check_lengths(s, g, e) != 0 || collect_stop_ids(s, g, e) != 0)
        return -1;
    if (g->params.n_stops && (!g->kit || !g->kit->tokenizer))
        return request_fail(e, 400, "stop", "stop needs a tokenizer, and there is none here.");
    if (!g->params.has_seed)
        g->params.sampling.seed = atomic_fetch_add(&s->seed, g->params.n);
    if (s->opt->request_timeout_s > 0)
        g->deadline_ns = g->started_ns + (uint64_t)(s->opt->request_timeout_s * 1e9);
    return generation_layout(g, e);
}

void api_start(struct server *s, struct generation *g)
{
    struct request_error e = {0};
    if (prepare(s, g, &e) != 0 || generation_submit(g, s->rt->engine, &e) != 0) {
        api_abandon(g, &e);
        return;
    }
    generation_release(g);
}
