#include "cmd/run_prompt.h"

#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/limits.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"

static int read_ids(struct run_prompt *p, const json_t *list, const char *path, uint32_t vocab_size,
                    struct err *err)
{
    size_t n = json_array_size(list);
    if (n == 0)
        return err_set(err, ERR_USAGE, "%s: a prompt has no ids", path);
    p->ids = sys_reallocarray(NULL, n, sizeof *p->ids);
    if (!p->ids)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory for %zu ids", path, n);
    p->n = n;
    for (size_t i = 0; i < n; i++) {
        const json_t *item = json_array_get(list, i);
        json_int_t id = json_is_integer(item) ? json_integer_value(item) : -1;
        if (id < 0 || id >= (json_int_t)vocab_size)
            return err_set(err, ERR_USAGE, "%s: item %zu is no id from 0 to %u", path, i,
                           vocab_size - 1);
        p->ids[i] = (int32_t)id;
    }
    return 0;
}

static int read_all(struct run_prompt **out, size_t *n, const json_t *root, const char *path,
                    uint32_t vocab_size, struct err *err)
{
    bool many = json_is_array(json_array_get(root, 0));
    *n = many ? json_array_size(root) : 1;
    if (!json_is_array(root) || json_array_size(root) == 0)
        return err_set(err, ERR_USAGE, "%s: wanted a JSON list of ids, or a list of such lists",
                       path);
    *out = sys_calloc(*n, sizeof **out);
    if (!*out)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory for %zu prompts", path, *n);
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < *n; i++)
        rc = read_ids(&(*out)[i], many ? json_array_get(root, i) : root, path, vocab_size, err);
    return rc;
}

int run_prompts_read(struct run_prompt **out, size_t *n, const char *path, uint32_t vocab_size,
                     struct err *err)
{
    *out = NULL;
    *n = 0;
    char *text = NULL;
    size_t size = 0;
    int rc = file_read(path, LIMIT_BODY_BYTES, &text, &size, err);
    if (rc != 0)
        return rc;
    json_error_t why;
    json_t *root = json_loadb(text, size, 0, &why);
    sys_free(text);
    if (!root)
        return err_set(err, ERR_USAGE, "%s: %s (line %d)", path, why.text, why.line);
    rc = read_all(out, n, root, path, vocab_size, err);
    json_decref(root);
    if (rc != 0) {
        run_prompts_free(*out, *n);
        *out = NULL;
    }
    return rc;
}

void run_prompts_free(struct run_prompt *prompts, size_t n)
{
    for (size_t i = 0; prompts && i < n; i++)
        sys_free(prompts[i].ids);
    sys_free(prompts);
}

size_t run_adapter_parse(const char *text, float *scale)
{
    *scale = 1;
    const char *equals = strrchr(text, '=');
    if (!equals || !equals[1])
        return strlen(text);
    char *end;
    double v = strtod(equals + 1, &end);
    if (*end || !isfinite(v))
        return strlen(text); // the = belongs to the name
    *scale = (float)v;
    return (size_t)(equals - text);
}

int run_write_npy(const char *path, const float *data, size_t n, size_t width, bool force,
                  struct err *err)
{
    enum { HEADER_BYTES = 128 }; // magic, version, length, text, padded
    if (!force && file_exists(path))
        return err_set(err, ERR_EXISTS, "%s is there already (--force overwrites it)", path);
    char text[HEADER_BYTES - 10 + 1];
    int len = snprintf(text, sizeof text,
                       "{'descr': '<f4', 'fortran_order': False, 'shape': (%zu, %zu), }", n, width);
    memset(text + len, ' ', sizeof text - (size_t)len);
    text[HEADER_BYTES - 10 - 1] = '\n';
    struct strbuf out;
    strbuf_init(&out);
    strbuf_add(&out, "\x93NUMPY\x01\x00\x76\x00", 10);
    strbuf_add(&out, text, HEADER_BYTES - 10);
    strbuf_add(&out, data, n * width * sizeof *data);
    int rc = out.failed ? err_set(err, ERR_NO_MEMORY, "%s: no memory", path)
                        : file_write_atomic(path, out.data, out.len, err);
    strbuf_release(&out);
    return rc;
}
