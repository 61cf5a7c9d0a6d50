/*
 * POST /v1/chat/completions and /v1/completions.
 */
#include <string.h>

#include "cmd/serve/api.h"
#include "libcore/base/sys.h"

// ---- fields that both routes have ---------------------------------------------------------------

/* What vLLM has and this server does not: refused by name unless it asks for nothing. */
static int refuse_fields(const json_t *body, struct request_error *e)
{
    static const char *const names[] = {"guided_json",
                                        "guided_regex",
                                        "guided_choice",
                                        "guided_grammar",
                                        "structured_outputs",
                                        "logits_processors",
                                        "suffix",
                                        "audio",
                                        "modalities",
                                        "prompt_embeds",
                                        "function_call",
                                        "functions",
                                        "prompt_logprobs",
                                        "truncate_prompt_tokens",
                                        "bad_words",
                                        "allowed_token_ids",
                                        "mm_processor_kwargs",
                                        "prediction",
                                        "length_penalty"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const json_t *v = field_get(body, names[i]);
        bool empty = !v || json_is_false(v) || (json_is_array(v) && json_array_size(v) == 0) ||
                     (json_is_string(v) && json_string_length(v) == 0) ||
                     (json_is_number(v) && json_number_value(v) == 1);
        if (!empty && !(strcmp(names[i], "modalities") == 0 && json_array_size(v) == 1 &&
                        json_string_value(json_array_get(v, 0)) &&
                        strcmp(json_string_value(json_array_get(v, 0)), "text") == 0))
            return request_fail(e, 400, names[i], "%s is not supported by this server.", names[i]);
    }
    bool beam = false;
    int64_t best_of = 1, n = 1;
    if (field_bool(body, "use_beam_search", &beam, e) != 0 ||
        field_int(body, "best_of", 1, INT32_MAX, &best_of, e) != 0 ||
        field_int(body, "n", 1, INT32_MAX, &n, e) != 0)
        return -1;
    if (beam)
        return request_fail(e, 400, "use_beam_search",
                            "Beam search is not supported by this "
                            "server.");
    if (best_of != 1 && best_of != n)
        return request_fail(e, 400, "best_of",
                            "best_of other than n is not supported by this "
                            "server.");
    const json_t *format = field_get(body, "response_format");
    const char *type = json_string_value(json_object_get(format, "type"));
    if (format && (!type || strcmp(type, "text") != 0))
        return request_fail(e, 400, "response_format",
                            "response_format '%.40s' is not supported "
                            "by this server; only 'text' is.",
                            type ? type : "?");
    return 0;
}

static int read_stream(struct generation *g, const json_t *body, struct request_error *e)
{
    if (field_bool(body, "stream", &g->stream, e) != 0)
        return -1;
    const json_t *options = field_get(body, "stream_options");
    if (!options)
        return 0;
    if (!g->stream)
        return request_fail(e, 400, "stream_options",
                            "Stream options can only be defined when "
                            "`stream=True`.");
    if (!json_is_object(options))
        return request_fail(e, 400, "stream_options", "stream_options must be an object.");
    if (field_bool(options, "include_usage", &g->include_usage, e) != 0 ||
        field_bool(options, "continuous_usage_stats", &g->continuous_usage, e) != 0)
        return -1;
    g->continuous_usage = g->continuous_usage && g->include_usage;
    return 0;
}

static int check_top(int64_t n, const char *name, struct request_error *e)
{
    if (n <= LIMIT_LOGPROBS)
        return 0;
    return request_fail(e, 400, name,
                        "Requested sample logprobs of %lld, which is greater than max "
                        "allowed: %d.",
                        (long long)n, LIMIT_LOGPROBS);
}

static int read_common(struct server *s, struct generation *g, const json_t *body,
                       struct request_error *e)
{
    if (refuse_fields(body, e) != 0 || api_choose_adapters(s, g, body, e) != 0 ||
        params_read(&g->params, body, s->rt->config.vocab_size, e) != 0 ||
        read_stream(g, body, e) != 0 ||
        field_bool(body, "return_tokens_as_token_ids", &g->ids_as_text, e) != 0 ||
        field_bool(body, "return_token_ids", &g->return_ids, e) != 0)
        return -1;
    return 0;
}

// ---- chat ---------------------------------------------------------------------------------------

static int read_chat_logprobs(struct generation *g, const json_t *body, struct request_error *e)
{
    int64_t n_top = 0;
    if (field_bool(body, "logprobs", &g->logprobs, e) != 0 ||
        field_int(body, "top_logprobs", 0, INT32_MAX, &n_top, e) != 0 ||
        check_top(n_top, "top_logprobs", e) != 0)
        return -1;
    if (n_top > 0 && !g->logprobs)
        return request_fail(e, 400, "top_logprobs",
                            "when using `top_logprobs`, `logprobs` must be "
                            "set to true.");
    g->n_top = (int)n_top;
    return 0;
}

static int check_tools(const json_t *body, struct request_error *e)
{
    const json_t *choice = field_get(body, "tool_choice");
    if (!choice)
        return 0;
    const char *name = json_string_value(choice);
    if (name && (strcmp(name, "none") == 0 || strcmp(name, "auto") == 0))
        return 0;
    return request_fail(e, 400, "tool_choice",
                        "tool_choice other than 'none' and 'auto' is not "
                        "supported by this server.");
}

static int read_chat(struct server *s, struct generation *g, const json_t *body,
                     struct request_error *e)
{
    bool add_special = false, echo = false;
    if (read_common(s, g, body, e) != 0 || read_chat_logprobs(g, body, e) != 0 ||
        check_tools(body, e) != 0 || field_bool(body, "add_special_tokens", &add_special, e) != 0 ||
        field_bool(body, "echo", &echo, e) != 0)
        return -1;
    if (echo)
        return request_fail(e, 400, "echo",
                            "echo is not supported on chat completions by this "
                            "server.");
    struct strbuf text;
    strbuf_init(&text);
    int rc = api_render_chat(g->kit, body, true, &text, e);
    if (rc == 0)
        rc = api_add_text_prompt(g, strbuf_text(&text), text.len, add_special, e);
    strbuf_release(&text);
    return rc;
}

static void run(struct server *s, struct http_exchange *x, const struct format *format,
                const char *prefix,
                int (*read)(struct server *s, struct generation *g, const json_t *body,
                            struct request_error *e))
{
    json_t *body = api_body(x, format->style);
    struct generation *g = body ? api_open(s, x, format, prefix) : NULL;
    struct request_error e = {0};
    if (g && read(s, g, body, &e) != 0)
        api_abandon(g, &e);
    else if (g)
        api_start(s, g);
    json_decref(body);
}

void api_chat(struct server *s, struct http_exchange *x)
{
    run(s, x, &format_chat, "chatcmpl-", read_chat);
}

// ---- completions --------------------------------------------------------------------------------

static int add_ids(struct server *s, struct generation *g, const json_t *list,
                   struct request_error *e)
{
    int32_t *ids = NULL;
    size_t n = 0;
    if (field_ids(list, "prompt", s->rt->config.vocab_size, &ids, &n, e) != 0)
        return -1;
    char *text = NULL;
    if (g->echo && g->kit && g->kit->tokenizer) {
        struct strbuf decoded;
        strbuf_init(&decoded);
        struct err err = {0};
        int rc =
            tokenizer_decode(g->kit->tokenizer, (const uint32_t *)ids, n,
                             g->params.skip_special ? TOKENIZER_SKIP_SPECIAL : 0, &decoded, &err);
        text = rc == 0 ? strbuf_take(&decoded, NULL) : NULL;
        strbuf_release(&decoded);
    }
    return api_add_prompt(g, ids, n, text, e);
}

/* Text, ids, a list of texts, or a list of lists of ids. */
static int read_prompts(struct server *s, struct generation *g, const json_t *body,
                        struct request_error *e)
{
    const json_t *prompt = field_get(body, "prompt");
    bool add_special = true;
    if (field_bool(body, "add_special_tokens", &add_special, e) != 0)
        return -1;
    g->one_prompt = json_is_string(prompt);
    if (json_is_string(prompt))
        return api_add_text_prompt(g, json_string_value(prompt), json_string_length(prompt),
                                   add_special, e);
    if (!json_is_array(prompt) || json_array_size(prompt) == 0)
        return request_fail(e, 400, "prompt",
                            "prompt must be a string, a list of token ids, or a "
                            "list of either.");
    if (json_is_integer(json_array_get(prompt, 0)))
        return add_ids(s, g, prompt, e);
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < json_array_size(prompt); i++) {
        const json_t *item = json_array_get(prompt, i);
        if (json_is_string(item))
            rc = api_add_text_prompt(g, json_string_value(item), json_string_length(item),
                                     add_special, e);
        else if (json_is_array(item))
            rc = add_ids(s, g, item, e);
        else
            rc = request_fail(e, 400, "prompt",
                              "prompt must be a string, a list of token ids, or a "
                              "list of either.");
    }
    return rc;
}

static int read_completion(struct server *s, struct generation *g, const json_t *body,
                           struct request_error *e)
{
    int64_t n_top = -1;
    g->params.has_max = true; // OpenAI's default
    g->params.max_new_tokens = 16;
    if (read_common(s, g, body, e) != 0 || field_bool(body, "echo", &g->echo, e) != 0 ||
        field_int(body, "logprobs", 0, INT32_MAX, &n_top, e) != 0 ||
        check_top(n_top, "logprobs", e) != 0)
        return -1;
    g->logprobs = n_top >= 0;
    g->n_top = n_top > 0 ? (int)n_top : 0;
    g->prompt_logprobs = g->echo && (g->logprobs || g->params.max_new_tokens == 0);
    return read_prompts(s, g, body, e);
}

void api_completions(struct server *s, struct http_exchange *x)
{
    run(s, x, &format_completion, "cmpl-", read_completion);
}
