/*
 * api: the handlers of the route table. Each runs on a worker thread (those marked "always" on the
 * HTTP thread) and answers, or queues a generation that answers later.
 */
#ifndef CMD_SERVE_API_H
#define CMD_SERVE_API_H

#include "cmd/serve/fields.h"
#include "cmd/serve/format.h"
#include "cmd/serve/server.h"

#define API_HANDLER(name) void name(struct server *s, struct http_exchange *x)
API_HANDLER(api_health);  // always
API_HANDLER(api_version); // always
API_HANDLER(api_metrics);
API_HANDLER(api_models);
API_HANDLER(api_model);
API_HANDLER(api_chat);
API_HANDLER(api_completions);
API_HANDLER(api_vllm_load);
API_HANDLER(api_vllm_unload);
API_HANDLER(api_tokenize);
API_HANDLER(api_detokenize);
API_HANDLER(api_generate);
API_HANDLER(api_health_generate);
API_HANDLER(api_sglang_load);
API_HANDLER(api_sglang_unload);
API_HANDLER(api_model_info);
API_HANDLER(api_server_info);
API_HANDLER(api_flush_cache);

// ---- shared by the families ----

/* The body as an object, or the error was answered and NULL comes back. */
json_t *api_body(struct http_exchange *x, enum answer_style style);
void api_fail(struct http_exchange *x, enum answer_style style, const struct request_error *e);

/* A generation for this exchange with defaults set; NULL: 500 was answered. */
struct generation *api_open(struct server *s, struct http_exchange *x, const struct format *format,
                            const char *id_prefix);
/* Whose adapter: fills g->uses from `model`, "lora_path" and "lora", and g->kit. */
int api_choose_adapters(struct server *s, struct generation *g, const json_t *body,
                        struct request_error *e);
/* The kit of the adapters in use, readied; sets g->kit. */
int api_choose_kit(struct server *s, struct generation *g, struct request_error *e);
/* Readies, holds and adds one adapter. Takes the reference of `served`. */
int api_add_use(struct generation *g, struct served *served, float scale, const char *param,
                struct request_error *e);
/* Adds a prompt of ids (taken) and its text (taken, may be NULL). */
int api_add_prompt(struct generation *g, int32_t *ids, size_t n, char *text,
                   struct request_error *e);
/* Tokenises text into a prompt. */
int api_add_text_prompt(struct generation *g, const char *text, size_t n, bool add_special,
                        struct request_error *e);
/* Lengths against the context, stop ids, seed, deadline, layout, submission. Answers an error
 * itself; takes the caller's reference. */
void api_start(struct server *s, struct generation *g);
/* After a failure before api_start. */
void api_abandon(struct generation *g, const struct request_error *e);

/* The chat template over a request's messages: appends to *out. */
int api_render_chat(const struct text_kit *kit, const json_t *body, bool default_generation_prompt,
                    struct strbuf *out, struct request_error *e);

#endif
