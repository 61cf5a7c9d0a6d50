/*
 * fields: typed reading of a request's JSON object, and what is wrong with a request.
 * An absent field and null leave *out as it is. Everything else that is not of the wanted type or
 * range is an error that names the field.
 */
#ifndef CMD_SERVE_FIELDS_H
#define CMD_SERVE_FIELDS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "libcore/base/err.h"

struct request_error {
    unsigned status; // HTTP; 0: none yet
    char param[48];  // the field at fault, or ""
    char message[ERR_MSG_BYTES];
};

/* Sets everything; always returns -1. param may be NULL. */
int request_fail(struct request_error *e, unsigned status, const char *param, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* From an engine's or a library's error: the status is err_http_status(). Returns -1. */
int request_fail_err(struct request_error *e, const char *param, const struct err *err);

/* Parses a body: an object with distinct keys, bounded depth. 0 or -1. *out is the caller's. */
int fields_parse(json_t **out, const char *text, size_t n, struct request_error *e);

/* The value, or NULL when absent or null. */
json_t *field_get(const json_t *object, const char *name);
int field_bool(const json_t *object, const char *name, bool *out, struct request_error *e);
int field_int(const json_t *object, const char *name, int64_t min, int64_t max, int64_t *out,
              struct request_error *e);
int field_double(const json_t *object, const char *name, double *out, struct request_error *e);
/* Borrowed from the object; without NULs inside. */
int field_string(const json_t *object, const char *name, const char **out, struct request_error *e);
/* A JSON array of token ids into memory that is the caller's (sys_free). */
int field_ids(const json_t *array, const char *name, uint32_t vocab_size, int32_t **out, size_t *n,
              struct request_error *e);

#endif
