/*
 * tokenizer_fixture: a tokenizer from a JSON text, and ids as a text.
 */
#ifndef TESTS_UNIT_LIBCORE_TEXT_TOKENIZER_FIXTURE_H
#define TESTS_UNIT_LIBCORE_TEXT_TOKENIZER_FIXTURE_H

#include <stdio.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/text/tokenizer.h"
#include "tests/lib/test.h"

/* tokenizer.json and (unless NULL) tokenizer_config.json in a folder of their own. */
static inline const char *write_tokenizer(const char *json, const char *config)
{
    static char folder[1024];
    static int n;
    char path[1100];
    snprintf(folder, sizeof folder, "%s/t%d", test_tmp(), n++);
    file_make_folders(folder, NULL);
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    file_write_atomic(path, json, strlen(json), NULL);
    snprintf(path, sizeof path, "%s/tokenizer_config.json", folder);
    if (config)
        file_write_atomic(path, config, strlen(config), NULL);
    return folder;
}

/* "1 2 3", or what went wrong. The result is valid until the next call. */
static inline const char *encode_with(const struct tokenizer *t, const char *text, size_t n,
                                      unsigned flags)
{
    static char out[4096];
    struct err err = {0};
    struct token_ids ids;
    token_ids_init(&ids);
    out[0] = '\0';
    if (tokenizer_encode(t, text, n, flags, &ids, &err) != 0)
        snprintf(out, sizeof out, "%s: %s", err_name(err.code), err.msg);
    for (size_t i = 0, used = 0; !err.code && i < ids.n && used < sizeof out - 16; i++)
        used += (size_t)sprintf(out + used, "%s%u", i ? " " : "", ids.data[i]);
    token_ids_release(&ids);
    return out;
}

static inline const char *encode_by(const char *json, const char *config, const char *text,
                                    unsigned flags)
{
    static char failed[1024];
    struct err err = {0};
    struct tokenizer *t = NULL;
    if (tokenizer_open(&t, write_tokenizer(json, config), NULL, &err) != 0) {
        snprintf(failed, sizeof failed, "%s: %s", err_name(err.code), err.msg);
        return failed;
    }
    const char *out = encode_with(t, text, strlen(text), flags);
    tokenizer_free(t);
    return out;
}

#endif
