#include "cmd/serve/answer.h"

#include <stdlib.h>
#include <string.h>

#include "libcore/base/sys.h"

static const char JSON_TYPE[] = "application/json";

static int append_text(const char *text, size_t n, void *data)
{
    struct strbuf *out = data;
    strbuf_add(out, text, n);
    return out->failed ? -1 : 0;
}

void answer_json(struct http_exchange *x, unsigned status, json_t *body)
{
    struct strbuf out;
    strbuf_init(&out);
    if (!body || json_dump_callback(body, append_text, &out, JSON_COMPACT | JSON_ENCODE_ANY) != 0)
        out.failed = true;
    json_decref(body);
    http_answer(x, status, JSON_TYPE, &out);
}

const char *answer_error_type(unsigned status)
{
    switch (status) {
    case 400:
        return "BadRequestError";
    case 401:
        return "AuthenticationError";
    case 403:
        return "PermissionDeniedError";
    case 404:
        return "NotFoundError";
    case 409:
        return "ConflictError";
    case 413:
        return "RequestTooLargeError";
    case 503:
        return "ServiceUnavailableError";
    case 504:
        return "TimeoutError";
    default:
        return "InternalServerError";
    }
}

void answer_error_object(struct strbuf *out, enum answer_style style, unsigned status,
                         const char *param, const char *message)
{
    strbuf_adds(out, "{\"error\":{\"message\":");
    strbuf_add_json(out, message, strlen(message));
    if (style == ANSWER_OPENAI) {
        strbuf_addf(out, ",\"type\":\"%s\",\"param\":", answer_error_type(status));
        if (param)
            strbuf_add_json(out, param, strlen(param));
        else
            strbuf_adds(out, "null");
        strbuf_addf(out, ",\"code\":%u", status);
    }
    strbuf_adds(out, "}}");
}

void answer_error(struct http_exchange *x, enum answer_style style, unsigned status,
                  const char *param, const char *message)
{
    struct strbuf out;
    strbuf_init(&out);
    answer_error_object(&out, style, status, param, message);
    if (status == 503)
        http_add_header(x, "Retry-After", "1");
    if (status == 401)
        http_add_header(x, "WWW-Authenticate", "Bearer");
    http_answer(x, status, JSON_TYPE, &out);
}

void answer_err(struct http_exchange *x, enum answer_style style, const char *param,
                const struct err *err)
{
    answer_error(x, style, (unsigned)err_http_status(err->code), param, err->msg);
}
