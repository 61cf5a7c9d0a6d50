/*
 * format: how a peer writes answers. One table a route family.
 * All of it runs on the output thread.
 */
#ifndef CMD_SERVE_FORMAT_H
#define CMD_SERVE_FORMAT_H

#include "cmd/serve/generation.h"

struct format {
    enum answer_style style;
    /* The whole body of an answer that is not streamed. */
    void (*body)(const struct generation *g, struct strbuf *out);
    /* Server-sent events for what is new in a choice: text up to n_ready, tokens, its end. */
    void (*chunk)(const struct generation *g, const struct gen_choice *c, struct strbuf *out);
    /* After the last choice: usage. "data: [DONE]" follows by itself. */
    void (*last)(const struct generation *g, struct strbuf *out);
};

extern const struct format format_chat, format_completion, format_sglang;

/* "stop", "length", "abort", or NULL while it runs. */
const char *format_finish_reason(const struct gen_choice *c);
/* A token's own text, as a JSON string. */
void format_token(struct strbuf *out, const struct generation *g, int32_t id);
/* A log-probability as JSON: never below -9999, the peers' bound. */
void format_logprob(struct strbuf *out, float logprob);
void format_ids(struct strbuf *out, const struct gen_token *tokens, uint32_t n);
uint32_t format_n_prompt_tokens(const struct generation *g);
uint32_t format_n_cached(const struct generation *g);
uint32_t format_n_completion_tokens(const struct generation *g);

#endif
