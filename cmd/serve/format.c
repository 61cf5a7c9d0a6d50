#include "cmd/serve/format.h"

#include <math.h>
#include <string.h>

const char *format_finish_reason(const struct gen_choice *c)
{
    switch (c->end) {
    case CHOICE_STOP:
        return "stop";
    case CHOICE_LENGTH:
        return "length";
    case CHOICE_ABORT:
    case CHOICE_ERROR:
        return "abort";
    case CHOICE_RUNS:
        break;
    }
    return NULL;
}

void format_token(struct strbuf *out, const struct generation *g, int32_t id)
{
    if (g->ids_as_text || !g->kit || !g->kit->tokenizer) {
        strbuf_addf(out, "\"token_id:%d\"", id);
        return;
    }
    struct strbuf text;
    strbuf_init(&text);
    uint32_t one = (uint32_t)id;
    if (tokenizer_decode(g->kit->tokenizer, &one, 1, 0, &text, NULL) != 0)
        out->failed = true;
    strbuf_add_json(out, strbuf_text(&text), text.len);
    strbuf_release(&text);
}

void format_logprob(struct strbuf *out, float logprob)
{
    if (!(logprob > -9999.0f))
        logprob = -9999.0f;
    strbuf_addf(out, "%.9g", (double)logprob);
}

void format_ids(struct strbuf *out, const struct gen_token *tokens, uint32_t n)
{
    strbuf_addc(out, '[');
    for (uint32_t i = 0; i < n; i++)
        strbuf_addf(out, "%s%d", i ? "," : "", tokens[i].id);
    strbuf_addc(out, ']');
}

uint32_t format_n_prompt_tokens(const struct generation *g)
{
    size_t n = 0;
    for (size_t i = 0; i < g->n_prompts; i++)
        n += g->prompts[i].n;
    return (uint32_t)n;
}

uint32_t format_n_cached(const struct generation *g)
{
    uint32_t n = 0; // of each prompt's first choice: the others share its pages by design
    for (size_t i = 0; i < g->n_choices; i += g->params.n)
        n += g->choices[i].n_cached;
    return n;
}

uint32_t format_n_completion_tokens(const struct generation *g)
{
    uint32_t n = 0;
    for (size_t i = 0; i < g->n_choices; i++)
        n += g->choices[i].n_tokens;
    return n;
}
