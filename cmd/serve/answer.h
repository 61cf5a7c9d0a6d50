/*
 * answer: JSON answers and the peers' error objects.
 */
#ifndef CMD_SERVE_ANSWER_H
#define CMD_SERVE_ANSWER_H

#include <jansson.h>

#include "cmd/serve/http.h"

/* Which peer's error object a route answers with. */
enum answer_style {
    ANSWER_OPENAI, // vLLM: {"error":{"message","type","param","code"}}
    ANSWER_SGLANG, // {"error":{"message"}}
};

/* Takes the reference of `body`; NULL (memory is out) becomes 500. */
void answer_json(struct http_exchange *x, unsigned status, json_t *body);
/* param: the field at fault, or NULL. 503 carries Retry-After. */
void answer_error(struct http_exchange *x, enum answer_style style, unsigned status,
                  const char *param, const char *message);
/* By err_http_status(err->code). */
void answer_err(struct http_exchange *x, enum answer_style style, const char *param,
                const struct err *err);
/* The error object alone, for streams that began already. Appends to out. */
void answer_error_object(struct strbuf *out, enum answer_style style, unsigned status,
                         const char *param, const char *message);
/* vLLM's name of a status: "BadRequestError", … */
const char *answer_error_type(unsigned status);

#endif
