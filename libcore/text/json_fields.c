#include "libcore/text/json_fields.h"

#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/text/unicode.h"

int err_prefix_of(int rc, const char *owner, struct err *err)
{
    return rc && err ? err_prefix(err, "%s", owner) : rc;
}

static int wrong(const char *name, const char *wanted, const char *owner, struct err *err)
{
    return err_set(err, ERR_CORRUPT, "%s: %s must be %s", owner, name, wanted);
}

int json_field_bool(const json_t *object, const char *name, enum field_rule rule, bool *value,
                    const char *owner, struct err *err)
{
    const json_t *v = json_object_get(object, name);
    if (rule == FIELD_OPTIONAL && (!v || json_is_null(v)))
        return 0;
    if (!json_is_boolean(v))
        return wrong(name, "true or false", owner, err);
    *value = json_is_true(v);
    return 0;
}

int json_field_copy(const json_t *object, const char *name, char **text, size_t *n,
                    const char *owner, struct err *err)
{
    const json_t *v = json_object_get(object, name);
    if (!json_is_string(v))
        return wrong(name, "a string", owner, err);
    *n = json_string_length(v);
    *text = sys_malloc(*n + 1);
    if (!*text)
        return err_set(err, ERR_NO_MEMORY, "%s: out of memory", owner);
    memcpy(*text, json_string_value(v), *n);
    (*text)[*n] = '\0';
    return 0;
}

int json_field_char(const json_t *object, const char *name, uint32_t *c, const char *owner,
                    struct err *err)
{
    const json_t *v = json_object_get(object, name);
    size_t n = json_is_string(v) ? json_string_length(v) : 0, len = 0;
    if (n)
        *c = utf8_decode(json_string_value(v), &len);
    return n && len == n ? 0 : wrong(name, "one character", owner, err);
}

int json_field_size(const json_t *object, const char *name, enum field_rule rule, size_t *value,
                    const char *owner, struct err *err)
{
    const json_t *v = json_object_get(object, name);
    if (rule == FIELD_OPTIONAL && (!v || json_is_null(v)))
        return 0;
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return wrong(name, "a number from 0", owner, err);
    *value = (size_t)json_integer_value(v);
    return 0;
}
