/*
 * vLLM's /v1/load_lora_adapter, /v1/unload_lora_adapter, /tokenize and /detokenize.
 */
#include <stdio.h>
#include <string.h>

#include "cmd/serve/api.h"
#include "libcore/base/sys.h"

// ---- load and unload ----------------------------------------------------------------------------

/* vLLM names these two differently from the other 400s. */
static void answer_invalid(struct http_exchange *x, const char *message)
{
    answer_json(x, 400,
                json_pack("{s:{s:s, s:s, s:n, s:i}}", "error", "message", message, "type",
                          "InvalidUserInput", "param", "code", 400));
}

static void answer_done(struct http_exchange *x, const char *name, const char *what)
{
    char text[LIMIT_NAME_BYTES + 64];
    snprintf(text, sizeof text, "Success: LoRA adapter '%.*s' %s successfully.", LIMIT_NAME_BYTES,
             name, what);
    http_answer_text(x, 200, text);
}

static void load(struct server *s, struct http_exchange *x, const json_t *body)
{
    struct request_error e = {0};
    const char *name = NULL, *path = NULL;
    bool in_place = false, pinned = false;
    if (field_string(body, "lora_name", &name, &e) != 0 ||
        field_string(body, "lora_path", &path, &e) != 0 ||
        field_bool(body, "load_inplace", &in_place, &e) != 0 ||
        field_bool(body, "pinned", &pinned, &e) != 0) {
        api_fail(x, ANSWER_OPENAI, &e);
        return;
    }
    if (!name || !*name || !path || !*path) {
        answer_invalid(x, "Both 'lora_name' and 'lora_path' must be provided.");
        return;
    }
    struct err err = {0};
    int rc = names_load(s->names, name, path, in_place, pinned, &err);
    if (rc == 0) {
        answer_done(x, name, "added");
    } else if (rc == ERR_EXISTS && strstr(err.msg, "already been loaded")) {
        char text[LIMIT_NAME_BYTES + 160];
        snprintf(text, sizeof text,
                 "The lora adapter '%.*s' has already been loaded. If you want "
                 "to load the adapter in place, set 'load_inplace' to True.",
                 LIMIT_NAME_BYTES, name);
        answer_invalid(x, text);
    } else if (rc == ERR_DENIED) {
        answer_error(x, ANSWER_OPENAI, 403, "lora_path", err.msg);
    } else {
        answer_err(x, ANSWER_OPENAI, "lora_path", &err);
    }
}

void api_vllm_load(struct server *s, struct http_exchange *x)
{
    json_t *body = api_body(x, ANSWER_OPENAI);
    if (body)
        load(s, x, body);
    json_decref(body);
}

void api_vllm_unload(struct server *s, struct http_exchange *x)
{
    json_t *body = api_body(x, ANSWER_OPENAI);
    if (!body)
        return;
    struct request_error e = {0};
    struct err err = {0};
    const char *name = NULL;
    if (field_string(body, "lora_name", &name, &e) != 0)
        api_fail(x, ANSWER_OPENAI, &e);
    else if (!name || !*name)
        answer_invalid(x, "'lora_name' needs to be provided to unload a LoRA adapter.");
    else if (names_unload(s->names, name, &err) != 0)
        answer_err(x, ANSWER_OPENAI, "lora_name", &err);
    else
        answer_done(x, name, "removed");
    json_decref(body);
}

// ---- tokenize -----------------------------------------------------------------------------------

/* The kit of the request's model, held; NULL with *e set. */
static struct text_kit *kit_of(struct server *s, const json_t *body, struct request_error *e)
{
    const char *model = NULL;
    if (field_string(body, "model", &model, e) != 0)
        return NULL;
    struct served *served = NULL;
    struct err err = {0};
    if (names_find_model(s->names, model, &served, &err) != 0) {
        request_fail_err(e, "model", &err);
        return NULL;
    }
    if (served && served_ready(served, &err) != 0) {
        request_fail_err(e, "model", &err);
        served_release(served);
        return NULL;
    }
    struct text_kit *kit = served ? served->kit : s->rt->kit;
    bool usable = kit && kit->tokenizer;
    if (usable)
        text_kit_hold(kit);
    else
        request_fail(e, 400, "model", "There is no tokenizer here.");
    served_release(served);
    return usable ? kit : NULL;
}

/* The text that the request means, and whether special tokens are added to it. */
static int text_of(const struct text_kit *kit, const json_t *body, struct strbuf *text,
                   bool *add_special, struct request_error *e)
{
    const json_t *prompt = field_get(body, "prompt");
    if (!prompt)
        prompt = field_get(body, "content"); // llama.cpp's word
    *add_special = prompt != NULL;
    if (field_bool(body, "add_special_tokens", add_special, e) != 0)
        return -1;
    if (prompt && !json_is_string(prompt))
        return request_fail(e, 400, "prompt", "prompt must be a string.");
    if (!prompt)
        return api_render_chat(kit, body, true, text, e);
    strbuf_add(text, json_string_value(prompt), json_string_length(prompt));
    return text->failed ? request_fail(e, 500, NULL, "no memory for the prompt") : 0;
}

static json_t *token_texts(const struct text_kit *kit, const struct token_ids *ids)
{
    json_t *list = json_array();
    for (size_t i = 0; i < ids->n; i++) {
        size_t n = 0;
        const char *text = tokenizer_token_text(kit->tokenizer, ids->data[i], &n);
        json_t *item = text ? json_stringn(text, n) : NULL;
        json_array_append_new(list, item ? item : json_null());
    }
    return list;
}

static void tokenize(struct server *s, struct http_exchange *x, const struct text_kit *kit,
                     const json_t *body, struct request_error *e)
{
    struct strbuf text;
    struct token_ids ids;
    struct err err = {0};
    bool add_special = false, strs = false;
    strbuf_init(&text);
    token_ids_init(&ids);
    int rc = field_bool(body, "return_token_strs", &strs, e);
    if (rc == 0)
        rc = text_of(kit, body, &text, &add_special, e);
    if (rc == 0 && tokenizer_encode(kit->tokenizer, strbuf_text(&text), text.len,
                                    add_special ? TOKENIZER_ADD_SPECIAL : 0, &ids, &err) != 0)
        rc = request_fail_err(e, "prompt", &err);
    if (rc == 0) {
        json_t *tokens = json_array();
        for (size_t i = 0; i < ids.n; i++)
            json_array_append_new(tokens, json_integer(ids.data[i]));
        answer_json(x, 200,
                    json_pack("{s:I, s:I, s:o, s:o}", "count", (json_int_t)ids.n, "max_model_len",
                              (json_int_t)s->rt->context_length, "tokens", tokens, "token_strs",
                              strs ? token_texts(kit, &ids) : json_null()));
    } else {
        api_fail(x, ANSWER_OPENAI, e);
    }
    token_ids_release(&ids);
    strbuf_release(&text);
}

void api_tokenize(struct server *s, struct http_exchange *x)
{
    json_t *body = api_body(x, ANSWER_OPENAI);
    if (!body)
        return;
    struct request_error e = {0};
    struct text_kit *kit = kit_of(s, body, &e);
    if (kit)
        tokenize(s, x, kit, body, &e);
    else
        api_fail(x, ANSWER_OPENAI, &e);
    text_kit_release(kit);
    json_decref(body);
}

static void detokenize(struct server *s, struct http_exchange *x, const struct text_kit *kit,
                       const json_t *body, struct request_error *e)
{
    const json_t *tokens = field_get(body, "tokens");
    int32_t *ids = NULL;
    size_t n = 0;
    bool skip = false;
    int rc = field_bool(body, "skip_special_tokens", &skip, e);
    if (rc == 0 && !json_is_array(tokens))
        rc = request_fail(e, 400, "tokens", "tokens must be a list of integers.");
    if (rc == 0)
        rc = field_ids(tokens, "tokens", s->rt->config.vocab_size, &ids, &n, e);
    struct strbuf text;
    strbuf_init(&text);
    struct err err = {0};
    if (rc == 0 && tokenizer_decode(kit->tokenizer, (const uint32_t *)ids, n,
                                    skip ? TOKENIZER_SKIP_SPECIAL : 0, &text, &err) != 0)
        rc = request_fail_err(e, "tokens", &err);
    if (rc == 0)
        answer_json(x, 200,
                    json_pack("{s:o}", "prompt", json_stringn(strbuf_text(&text), text.len)));
    else
        api_fail(x, ANSWER_OPENAI, e);
    strbuf_release(&text);
    sys_free(ids);
}

void api_detokenize(struct server *s, struct http_exchange *x)
{
    json_t *body = api_body(x, ANSWER_OPENAI);
    if (!body)
        return;
    struct request_error e = {0};
    struct text_kit *kit = kit_of(s, body, &e);
    if (kit)
        detokenize(s, x, kit, body, &e);
    else
        api_fail(x, ANSWER_OPENAI, &e);
    text_kit_release(kit);
    json_decref(body);
}
