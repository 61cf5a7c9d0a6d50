/*
 * The bodies of /v1/chat/completions and /v1/completions, as vLLM writes them.
 */
#include <string.h>

#include "cmd/serve/format.h"

static void add_json_text(struct strbuf *out, const char *text)
{
    strbuf_add_json(out, text, strlen(text));
}

static void add_head(const struct generation *g, const char *object, struct strbuf *out)
{
    strbuf_addf(out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%llu,\"model\":", g->id, object,
                (unsigned long long)g->created);
    add_json_text(out, g->model);
}

static void add_usage(const struct generation *g, struct strbuf *out)
{
    uint32_t n_prompt = format_n_prompt_tokens(g), n_answer = format_n_completion_tokens(g);
    strbuf_addf(out,
                "{\"prompt_tokens\":%u,\"total_tokens\":%u,\"completion_tokens\":%u,"
                "\"prompt_tokens_details\":{\"cached_tokens\":%u}}",
                n_prompt, n_prompt + n_answer, n_answer, format_n_cached(g));
}

/* ,"finish_reason":…,"stop_reason":… ; the reason is the stop string, or the id of stop_token_ids.
 */
static void add_finish(const struct generation *g, const struct gen_choice *c, struct strbuf *out)
{
    const char *reason = format_finish_reason(c);
    if (!reason) {
        strbuf_adds(out, ",\"finish_reason\":null,\"stop_reason\":null");
        return;
    }
    strbuf_addf(out, ",\"finish_reason\":\"%s\",\"stop_reason\":", reason);
    if (c->stop_string)
        add_json_text(out, c->stop_string);
    else if (c->stop_id >= 0 && params_is_stop_id(&g->params, c->stop_id))
        strbuf_addf(out, "%d", c->stop_id);
    else
        strbuf_adds(out, "null");
}

// ---- log-probabilities --------------------------------------------------------------------------

static void add_bytes(const struct generation *g, int32_t id, struct strbuf *out)
{
    struct strbuf text;
    strbuf_init(&text);
    uint32_t one = (uint32_t)id;
    if (g->kit && g->kit->tokenizer)
        (void)tokenizer_decode(g->kit->tokenizer, &one, 1, 0, &text, NULL);
    strbuf_adds(out, ",\"bytes\":[");
    for (size_t i = 0; i < text.len; i++)
        strbuf_addf(out, "%s%u", i ? "," : "", (unsigned char)text.data[i]);
    strbuf_adds(out, "]");
    strbuf_release(&text);
}

static void add_chat_token(const struct generation *g, int32_t id, float logprob,
                           struct strbuf *out)
{
    strbuf_adds(out, "{\"token\":");
    format_token(out, g, id);
    strbuf_adds(out, ",\"logprob\":");
    format_logprob(out, logprob);
    add_bytes(g, id, out);
}

/* {"content":[{token, logprob, bytes, top_logprobs}…]} of tokens [from, to). */
static void add_chat_logprobs(const struct generation *g, const struct gen_choice *c, uint32_t from,
                              uint32_t to, struct strbuf *out)
{
    strbuf_adds(out, ",\"logprobs\":");
    if (!g->logprobs) {
        strbuf_adds(out, "null");
        return;
    }
    strbuf_adds(out, "{\"content\":[");
    for (uint32_t i = from; i < to; i++) {
        const struct gen_token *t = &c->tokens[i];
        if (i > from)
            strbuf_addc(out, ',');
        add_chat_token(g, t->id, t->logprob, out);
        strbuf_adds(out, ",\"top_logprobs\":[");
        for (uint32_t k = 0; k < t->n_top; k++) {
            const struct gen_top *top = &c->tops[t->top0 + k];
            if (k)
                strbuf_addc(out, ',');
            add_chat_token(g, top->id, top->logprob, out);
            strbuf_addc(out, '}');
        }
        strbuf_adds(out, "]}");
    }
    strbuf_adds(out, "]}");
}

/* The rows of a completion's logprobs: with echo the prompt's, then the answer's [from, to). */
struct logprob_rows {
    const struct generation *g;
    const struct gen_choice *c;
    uint32_t n_prompt, from, to;
};

static uint32_t rows_count(const struct logprob_rows *r)
{
    return r->n_prompt + r->to - r->from;
}

static struct gen_token rows_at(const struct logprob_rows *r, uint32_t i)
{
    if (i >= r->n_prompt)
        return r->c->tokens[r->from + i - r->n_prompt];
    struct gen_token t = r->c->prompt[i];
    t.id = r->g->prompts[r->c->prompt_idx].ids[i];
    return t;
}

static void add_top_map(const struct logprob_rows *r, const struct gen_token *t, struct strbuf *out)
{
    if (!t->has_logprob) {
        strbuf_adds(out, "null");
        return;
    }
    strbuf_addc(out, '{');
    bool chosen = false;
    for (uint32_t k = 0; k < t->n_top; k++) {
        const struct gen_top *top = &r->c->tops[t->top0 + k];
        if (k)
            strbuf_addc(out, ',');
        format_token(out, r->g, top->id);
        strbuf_addc(out, ':');
        format_logprob(out, top->logprob);
        chosen = chosen || top->id == t->id;
    }
    if (!chosen) { // the chosen one is always among them, as in vLLM
        if (t->n_top)
            strbuf_addc(out, ',');
        format_token(out, r->g, t->id);
        strbuf_addc(out, ':');
        format_logprob(out, t->logprob);
    }
    strbuf_addc(out, '}');
}

static size_t token_bytes(const struct generation *g, int32_t id)
{
    struct strbuf text;
    strbuf_init(&text);
    uint32_t one = (uint32_t)id;
    if (g->kit && g->kit->tokenizer)
        (void)tokenizer_decode(g->kit->tokenizer, &one, 1, 0, &text, NULL);
    size_t n = text.len;
    strbuf_release(&text);
    return n;
}

static void add_text_offsets(const struct logprob_rows *r, struct strbuf *out)
{
    const struct gen_prompt *prompt = &r->g->prompts[r->c->prompt_idx];
    size_t at = 0, n_prompt_text = r->g->echo && prompt->text ? strlen(prompt->text) : 0;
    for (uint32_t i = 0; i < rows_count(r); i++) {
        struct gen_token t = rows_at(r, i);
        size_t offset = i < r->n_prompt ? at : n_prompt_text + t.text_offset;
        strbuf_addf(out, "%s%zu", i ? "," : "", offset);
        if (i < r->n_prompt)
            at += token_bytes(r->g, t.id);
    }
}

static void add_text_logprobs(const struct generation *g, const struct gen_choice *c, uint32_t from,
                              uint32_t to, bool with_prompt, struct strbuf *out)
{
    strbuf_adds(out, ",\"logprobs\":");
    if (!g->logprobs) {
        strbuf_adds(out, "null");
        return;
    }
    bool prompt = with_prompt && g->echo && c->prompt;
    struct logprob_rows r = {g, c, prompt ? (uint32_t)g->prompts[c->prompt_idx].n : 0, from, to};
    strbuf_adds(out, "{\"text_offset\":[");
    add_text_offsets(&r, out);
    strbuf_adds(out, "],\"token_logprobs\":[");
    for (uint32_t i = 0; i < rows_count(&r); i++) {
        struct gen_token t = rows_at(&r, i);
        strbuf_adds(out, i ? "," : "");
        if (t.has_logprob)
            format_logprob(out, t.logprob);
        else
            strbuf_adds(out, "null");
    }
    strbuf_adds(out, "],\"tokens\":[");
    for (uint32_t i = 0; i < rows_count(&r); i++) {
        strbuf_adds(out, i ? "," : "");
        format_token(out, g, rows_at(&r, i).id);
    }
    strbuf_adds(out, "],\"top_logprobs\":[");
    for (uint32_t i = 0; i < rows_count(&r); i++) {
        struct gen_token t = rows_at(&r, i);
        strbuf_adds(out, i ? "," : "");
        add_top_map(&r, &t, out);
    }
    strbuf_adds(out, "]}");
}

// ---- chat ---------------------------------------------------------------------------------------

/* vLLM's return_token_ids. */
static void add_token_ids(const struct generation *g, const struct gen_choice *c, uint32_t from,
                          struct strbuf *out)
{
    if (!g->return_ids)
        return;
    strbuf_adds(out, ",\"token_ids\":");
    format_ids(out, c->tokens + from, c->n_tokens - from);
}

static void chat_body(const struct generation *g, struct strbuf *out)
{
    add_head(g, "chat.completion", out);
    strbuf_adds(out, ",\"choices\":[");
    for (size_t i = 0; i < g->n_choices; i++) {
        const struct gen_choice *c = &g->choices[i];
        strbuf_addf(out, "%s{\"index\":%u,\"message\":{\"role\":\"assistant\",\"content\":",
                    i ? "," : "", c->index);
        strbuf_add_json(out, strbuf_text(&c->text), c->text.len);
        strbuf_adds(out, ",\"refusal\":null,\"tool_calls\":[]}");
        add_chat_logprobs(g, c, 0, c->n_tokens, out);
        add_finish(g, c, out);
        add_token_ids(g, c, 0, out);
        strbuf_addc(out, '}');
    }
    strbuf_adds(out, "],\"service_tier\":null,\"system_fingerprint\":null,\"usage\":");
    add_usage(g, out);
    strbuf_adds(out, ",\"prompt_logprobs\":null}");
}

static void open_event(const struct generation *g, const char *object, uint32_t index,
                       struct strbuf *out)
{
    strbuf_adds(out, "data: ");
    add_head(g, object, out);
    strbuf_addf(out, ",\"choices\":[{\"index\":%u,", index);
}

static void close_event(const struct generation *g, struct strbuf *out)
{
    strbuf_adds(out, "}]");
    if (g->include_usage && !g->continuous_usage)
        strbuf_adds(out, ",\"usage\":null");
    if (g->continuous_usage) {
        strbuf_adds(out, ",\"usage\":");
        add_usage(g, out);
    }
    strbuf_adds(out, "}\n\n");
}

static void chat_chunk(const struct generation *g, const struct gen_choice *c, struct strbuf *out)
{
    static const char OBJECT[] = "chat.completion.chunk";
    if (!c->started) {
        open_event(g, OBJECT, c->index, out);
        strbuf_adds(out, "\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
                         "\"finish_reason\":null");
        close_event(g, out);
    }
    bool ends = c->end != CHOICE_RUNS && !c->end_sent;
    bool tokens = g->logprobs && c->n_tokens > c->n_tokens_sent;
    if (c->n_ready == c->n_sent && !ends && !tokens)
        return;
    open_event(g, OBJECT, c->index, out);
    strbuf_adds(out, "\"delta\":{");
    if (c->n_ready > c->n_sent || !ends || tokens) {
        strbuf_adds(out, "\"content\":");
        strbuf_add_json(out, strbuf_text(&c->text) + c->n_sent, c->n_ready - c->n_sent);
    }
    strbuf_addc(out, '}');
    add_chat_logprobs(g, c, c->n_tokens_sent, c->n_tokens, out);
    add_finish(g, c, out);
    add_token_ids(g, c, c->n_tokens_sent, out);
    close_event(g, out);
}

static void add_usage_event(const struct generation *g, const char *object, struct strbuf *out)
{
    if (!g->include_usage)
        return;
    strbuf_adds(out, "data: ");
    add_head(g, object, out);
    strbuf_adds(out, ",\"choices\":[],\"usage\":");
    add_usage(g, out);
    strbuf_adds(out, "}\n\n");
}

static void chat_last(const struct generation *g, struct strbuf *out)
{
    add_usage_event(g, "chat.completion.chunk", out);
}

const struct format format_chat = {ANSWER_OPENAI, chat_body, chat_chunk, chat_last};

// ---- completions --------------------------------------------------------------------------------

static void add_text(const struct generation *g, const struct gen_choice *c, size_t from, size_t to,
                     bool with_prompt, struct strbuf *out)
{
    const struct gen_prompt *prompt = &g->prompts[c->prompt_idx];
    struct strbuf text;
    strbuf_init(&text);
    if (with_prompt && g->echo && prompt->text)
        strbuf_adds(&text, prompt->text);
    strbuf_add(&text, strbuf_text(&c->text) + from, to - from);
    strbuf_adds(out, "\"text\":");
    strbuf_add_json(out, strbuf_text(&text), text.len);
    out->failed = out->failed || text.failed;
    strbuf_release(&text);
}

static void completion_body(const struct generation *g, struct strbuf *out)
{
    add_head(g, "text_completion", out);
    strbuf_adds(out, ",\"choices\":[");
    for (size_t i = 0; i < g->n_choices; i++) {
        const struct gen_choice *c = &g->choices[i];
        strbuf_addf(out, "%s{\"index\":%u,", i ? "," : "", c->index);
        add_text(g, c, 0, c->text.len, true, out);
        add_text_logprobs(g, c, 0, c->n_tokens, true, out);
        add_finish(g, c, out);
        strbuf_adds(out, ",\"prompt_logprobs\":null");
        add_token_ids(g, c, 0, out);
        strbuf_addc(out, '}');
    }
    strbuf_adds(out, "],\"service_tier\":null,\"system_fingerprint\":null,\"usage\":");
    add_usage(g, out);
    strbuf_addc(out, '}');
}

static void completion_chunk(const struct generation *g, const struct gen_choice *c,
                             struct strbuf *out)
{
    bool first = !c->started, ends = c->end != CHOICE_RUNS && !c->end_sent;
    bool tokens = g->logprobs && c->n_tokens > c->n_tokens_sent;
    if (c->n_ready == c->n_sent && !ends && !tokens && !(first && g->echo))
        return;
    open_event(g, "text_completion", c->index, out);
    add_text(g, c, c->n_sent, c->n_ready, first, out);
    add_text_logprobs(g, c, c->n_tokens_sent, c->n_tokens, first, out);
    add_finish(g, c, out);
    add_token_ids(g, c, c->n_tokens_sent, out);
    close_event(g, out);
}

static void completion_last(const struct generation *g, struct strbuf *out)
{
    add_usage_event(g, "text_completion", out);
}

const struct format format_completion = {ANSWER_OPENAI, completion_body, completion_chunk,
                                         completion_last};
