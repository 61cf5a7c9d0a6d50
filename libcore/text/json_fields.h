/*
 * json_fields: typed members of the objects in tokenizer.json, with messages that name the owner.
 * For libcore/text only.
 */
#ifndef LIBCORE_TEXT_JSON_FIELDS_H
#define LIBCORE_TEXT_JSON_FIELDS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/err.h"

enum field_rule { FIELD_NEEDED, FIELD_OPTIONAL }; // OPTIONAL: absent or null leaves *value as it is

int json_field_bool(const json_t *object, const char *name, enum field_rule rule, bool *value,
                    const char *owner, struct err *err);
/* A string that must be there, copied with a NUL behind it; *text is the caller's (sys_free). */
int json_field_copy(const json_t *object, const char *name, char **text, size_t *n,
                    const char *owner, struct err *err);
/* A string of exactly one character. */
int json_field_char(const json_t *object, const char *name, uint32_t *c, const char *owner,
                    struct err *err);
int json_field_size(const json_t *object, const char *name, enum field_rule rule, size_t *value,
                    const char *owner, struct err *err);

/* Puts "owner: " before the message of a failed call; returns rc. */
int err_prefix_of(int rc, const char *owner, struct err *err);

#endif
