#include "cmd/serve/fields.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "libcore/base/limits.h"
#include "libcore/base/sys.h"

int request_fail(struct request_error *e, unsigned status, const char *param, const char *fmt, ...)
{
    e->status = status;
    snprintf(e->param, sizeof e->param, "%s", param ? param : "");
    va_list args;
    va_start(args, fmt);
    vsnprintf(e->message, sizeof e->message, fmt, args);
    va_end(args);
    return -1;
}

int request_fail_err(struct request_error *e, const char *param, const struct err *err)
{
    return request_fail(e, (unsigned)err_http_status(err->code), param, "%s", err->msg);
}

static bool too_deep(const json_t *value, unsigned depth)
{
    if (depth > LIMIT_JSON_DEPTH)
        return true;
    const json_t *item;
    if (json_is_array(value)) {
        size_t i;
        json_array_foreach(value, i, item)
        {
            if (too_deep(item, depth + 1))
                return true;
        }
    } else if (json_is_object(value)) {
        for (void *it = json_object_iter((json_t *)value); it;
             it = json_object_iter_next((json_t *)value, it)) {
            if (too_deep(json_object_iter_value(it), depth + 1))
                return true;
        }
    }
    return false;
}

int fields_parse(json_t **out, const char *text, size_t n, struct request_error *e)
{
    json_error_t why;
    *out = json_loadb(text, n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &why);
    if (!*out)
        return request_fail(e, 400, NULL,
                            "The request body is not valid JSON: %s (line %d, column "
                            "%d)",
                            why.text, why.line, why.column);
    int rc = 0;
    if (!json_is_object(*out))
        rc = request_fail(e, 400, NULL, "The request body must be a JSON object.");
    else if (too_deep(*out, 0))
        rc = request_fail(e, 400, NULL, "The request body is nested deeper than %d levels.",
                          LIMIT_JSON_DEPTH);
    if (rc != 0) {
        json_decref(*out);
        *out = NULL;
    }
    return rc;
}

json_t *field_get(const json_t *object, const char *name)
{
    json_t *value = json_object_get(object, name);
    return value && !json_is_null(value) ? value : NULL;
}

int field_bool(const json_t *object, const char *name, bool *out, struct request_error *e)
{
    const json_t *value = field_get(object, name);
    if (!value)
        return 0;
    if (!json_is_boolean(value))
        return request_fail(e, 400, name, "%s must be true or false.", name);
    *out = json_is_true(value);
    return 0;
}

int field_int(const json_t *object, const char *name, int64_t min, int64_t max, int64_t *out,
              struct request_error *e)
{
    const json_t *value = field_get(object, name);
    if (!value)
        return 0;
    double real = json_is_real(value) ? json_real_value(value) : 0;
    bool whole = json_is_integer(value) ||
                 (json_is_real(value) && real > -9e15 && real < 9e15 && real == (int64_t)real);
    if (!whole)
        return request_fail(e, 400, name, "%s must be an integer.", name);
    int64_t got = json_is_integer(value) ? json_integer_value(value) : (int64_t)real;
    if (got < min)
        return request_fail(e, 400, name, "%s must be at least %lld, got %lld.", name,
                            (long long)min, (long long)got);
    if (got > max)
        return request_fail(e, 400, name, "%s must be at most %lld, got %lld.", name,
                            (long long)max, (long long)got);
    *out = got;
    return 0;
}

int field_double(const json_t *object, const char *name, double *out, struct request_error *e)
{
    const json_t *value = field_get(object, name);
    if (!value)
        return 0;
    if (!json_is_number(value))
        return request_fail(e, 400, name, "%s must be a number.", name);
    *out = json_number_value(value);
    return 0;
}

int field_string(const json_t *object, const char *name, const char **out, struct request_error *e)
{
    const json_t *value = field_get(object, name);
    if (!value)
        return 0;
    if (!json_is_string(value) || strlen(json_string_value(value)) != json_string_length(value))
        return request_fail(e, 400, name, "%s must be a string.", name);
    *out = json_string_value(value);
    return 0;
}

int field_ids(const json_t *array, const char *name, uint32_t vocab_size, int32_t **out, size_t *n,
              struct request_error *e)
{
    size_t size = json_array_size(array);
    int32_t *ids = sys_reallocarray(NULL, size ? size : 1, sizeof *ids);
    if (!ids)
        return request_fail(e, 500, name, "no memory for %zu token ids", size);
    for (size_t i = 0; i < size; i++) {
        const json_t *item = json_array_get(array, i);
        json_int_t id = json_is_integer(item) ? json_integer_value(item) : -1;
        if (id < 0 || id >= (json_int_t)vocab_size) {
            sys_free(ids);
            if (!json_is_integer(item))
                return request_fail(e, 400, name, "%s must hold integers only.", name);
            return request_fail(e, 400, name, "Token id %lld is out of vocabulary.", (long long)id);
        }
        ids[i] = (int32_t)id;
    }
    *out = ids;
    *n = size;
    return 0;
}
