/*
 * The bodies of /generate, as SGLang writes them: text and ids are cumulative in a stream.
 */
#include <string.h>

#include "cmd/serve/format.h"
#include "libcore/base/thread.h"

static void add_finish_reason(const struct gen_choice *c, struct strbuf *out)
{
    strbuf_adds(out, "\"finish_reason\":");
    switch (c->end) {
    case CHOICE_STOP:
        strbuf_adds(out, "{\"type\":\"stop\",\"matched\":");
        if (c->stop_string)
            strbuf_add_json(out, c->stop_string, strlen(c->stop_string));
        else
            strbuf_addf(out, "%d", c->stop_id);
        strbuf_addc(out, '}');
        return;
    case CHOICE_LENGTH:
        strbuf_addf(out, "{\"type\":\"length\",\"length\":%u}", c->n_tokens);
        return;
    case CHOICE_ABORT:
    case CHOICE_ERROR:
        strbuf_adds(out, "{\"type\":\"abort\"}");
        return;
    case CHOICE_RUNS:
        strbuf_adds(out, "null");
    }
}

/* [logprob, id, text or null] */
static void add_triple(const struct generation *g, bool known, float logprob, int32_t id,
                       struct strbuf *out)
{
    strbuf_addc(out, '[');
    if (known)
        format_logprob(out, logprob);
    else
        strbuf_adds(out, "null");
    strbuf_addf(out, ",%d,", id);
    if (g->text_in_logprobs)
        format_token(out, g, id);
    else
        strbuf_adds(out, "null");
    strbuf_addc(out, ']');
}

static void add_token_list(const struct generation *g, const struct gen_token *tokens, uint32_t n,
                           const int32_t *ids, struct strbuf *out)
{
    strbuf_addc(out, '[');
    for (uint32_t i = 0; i < n; i++) {
        strbuf_adds(out, i ? "," : "");
        add_triple(g, tokens[i].has_logprob, tokens[i].logprob, ids ? ids[i] : tokens[i].id, out);
    }
    strbuf_addc(out, ']');
}

static void add_top_list(const struct generation *g, const struct gen_choice *c,
                         const struct gen_token *tokens, uint32_t n, struct strbuf *out)
{
    strbuf_addc(out, '[');
    for (uint32_t i = 0; i < n; i++) {
        strbuf_adds(out, i ? "," : "");
        if (!tokens[i].has_logprob) {
            strbuf_adds(out, "null");
            continue;
        }
        strbuf_addc(out, '[');
        for (uint32_t k = 0; k < tokens[i].n_top; k++) {
            const struct gen_top *top = &c->tops[tokens[i].top0 + k];
            strbuf_adds(out, k ? "," : "");
            add_triple(g, true, top->logprob, top->id, out);
        }
        strbuf_addc(out, ']');
    }
    strbuf_addc(out, ']');
}

static void add_logprobs(const struct generation *g, const struct gen_choice *c, struct strbuf *out)
{
    if (!g->logprobs)
        return;
    const struct gen_prompt *p = &g->prompts[c->prompt_idx];
    size_t start = p->n;
    if (c->prompt && g->logprob_start >= 0 && (size_t)g->logprob_start < p->n)
        start = (size_t)g->logprob_start;
    const struct gen_token *prompt = c->prompt ? c->prompt + start : NULL;
    uint32_t n = prompt ? (uint32_t)(p->n - start) : 0;
    strbuf_adds(out, ",\"input_token_logprobs\":");
    add_token_list(g, prompt, n, p->ids + start, out);
    strbuf_adds(out, ",\"output_token_logprobs\":");
    add_token_list(g, c->tokens, c->n_tokens, NULL, out);
    if (g->n_top == 0)
        return;
    strbuf_adds(out, ",\"input_top_logprobs\":");
    add_top_list(g, c, prompt, n, out);
    strbuf_adds(out, ",\"output_top_logprobs\":");
    add_top_list(g, c, c->tokens, c->n_tokens, out);
}

/* The answer so far. output_ids end before an end id, as the text does, unless no_stop_trim. */
static void add_answer(const struct generation *g, const struct gen_choice *c, struct strbuf *out)
{
    strbuf_addc(out, '{');
    if (c->stream) {
        strbuf_adds(out, "\"text\":");
        strbuf_add_json(out, strbuf_text(&c->text), c->n_ready);
        strbuf_addc(out, ',');
    }
    bool trim = c->ended_by_token && !g->params.include_stop;
    strbuf_adds(out, "\"output_ids\":");
    format_ids(out, c->tokens, trim ? c->n_tokens - 1 : c->n_tokens);
    strbuf_addf(out, ",\"meta_info\":{\"id\":");
    strbuf_add_json(out, g->id, strlen(g->id));
    strbuf_addc(out, ',');
    add_finish_reason(c, out);
    strbuf_addf(out,
                ",\"prompt_tokens\":%zu,\"completion_tokens\":%u,\"cached_tokens\":%u,"
                "\"total_retractions\":%u,\"e2e_latency\":%.6f",
                g->prompts[c->prompt_idx].n, c->n_tokens, c->n_cached, c->n_preempted,
                (double)(thread_now_ns() - g->started_ns) * 1e-9);
    add_logprobs(g, c, out);
    strbuf_adds(out, "}");
}

static void sglang_body(const struct generation *g, struct strbuf *out)
{
    bool list = !g->one_prompt || g->params.n > 1;
    strbuf_adds(out, list ? "[" : "");
    for (size_t i = 0; i < g->n_choices; i++) {
        strbuf_adds(out, i ? "," : "");
        add_answer(g, &g->choices[i], out);
        strbuf_addc(out, '}');
    }
    strbuf_adds(out, list ? "]" : "");
}

static void sglang_chunk(const struct generation *g, const struct gen_choice *c, struct strbuf *out)
{
    bool ends = c->end != CHOICE_RUNS && !c->end_sent;
    if (c->n_tokens == c->n_tokens_sent && !ends)
        return;
    strbuf_adds(out, "data: ");
    add_answer(g, c, out);
    if (!g->one_prompt || g->params.n > 1)
        strbuf_addf(out, ",\"index\":%u", c->index);
    strbuf_adds(out, "}\n\n");
}

static void sglang_last(const struct generation *g, struct strbuf *out)
{
    (void)g;
    (void)out;
}

const struct format format_sglang = {ANSWER_SGLANG, sglang_body, sglang_chunk, sglang_last};
