#include "libcore/base/err.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const struct {
    int code;
    const char *name;
    int exit_status;
    int http_status;
} table[] = {
    {ERR_OK, "ok", 0, 200},
    {ERR_FAIL, "failure", 1, 500},
    {ERR_NO_MEMORY, "no_memory", 1, 500},
    {ERR_IO, "io", 1, 500},
    {ERR_USAGE, "usage", 2, 400},
    {ERR_NOT_FOUND, "not_found", 1, 404},
    {ERR_EXISTS, "exists", 4, 409},
    {ERR_REFUSED, "refused", 4, 400},
    {ERR_CORRUPT, "corrupt", 5, 400},
    {ERR_PARTIAL, "partial", 3, 500},
    {ERR_NO_STORE, "no_store", 10, 500},
    {ERR_LOCKED, "locked", 11, 500},
    {ERR_INTERRUPTED, "interrupted", 130, 503},
    {ERR_LIMIT, "limit", 1, 400},
    {ERR_DEVICE, "device", 1, 500},
    {ERR_BUSY, "busy", 1, 503},
    {ERR_TIMEOUT, "timeout", 1, 504},
    {ERR_DENIED, "denied", 1, 401},
    {ERR_CANCELLED, "cancelled", 1, 499},
    {ERR_INTERNAL, "internal", 1, 500},
};

static size_t row_of(int code)
{
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (table[i].code == code)
            return i;
    }
    return 1;
}

/* Marks a message that did not fit, without cutting a UTF-8 sequence in two. */
static void mark_truncated(char *msg)
{
    size_t end = ERR_MSG_BYTES - 4;
    while (end > 0 && ((unsigned char)msg[end] & 0xC0) == 0x80)
        end--;
    memcpy(msg + end, "…", sizeof "…");
}

int err_setv(struct err *err, int code, const char *fmt, va_list args)
{
    if (!err)
        return code;
    char msg[ERR_MSG_BYTES] = ""; // an argument may be err->msg itself
    int n = vsnprintf(msg, sizeof msg, fmt, args);
    if (n >= (int)sizeof msg)
        mark_truncated(msg);
    // A message is one line, whatever a name in it holds.
    for (char *p = msg; *p; p++) {
        if ((unsigned char)*p < 0x20 || *p == 0x7F)
            *p = ' ';
    }
    err->code = code;
    memcpy(err->msg, msg, sizeof msg);
    return code;
}

int err_set(struct err *err, int code, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    err_setv(err, code, fmt, args);
    va_end(args);
    return code;
}

static int code_of_errno(int errno_value)
{
    switch (errno_value) {
    case ENOENT:
        return ERR_NOT_FOUND;
    case ENOMEM:
        return ERR_NO_MEMORY;
    case EEXIST:
        return ERR_EXISTS;
    default:
        return ERR_IO;
    }
}

int err_set_errno(struct err *err, int errno_value, const char *fmt, ...)
{
    int code = code_of_errno(errno_value);
    if (!err)
        return code;
    char what[ERR_MSG_BYTES];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    return err_set(err, code, "%s: %s", what, strerror(errno_value));
}

int err_prefix(struct err *err, const char *fmt, ...)
{
    if (!err)
        return ERR_FAIL;
    char prefix[ERR_MSG_BYTES];
    va_list args;
    va_start(args, fmt);
    vsnprintf(prefix, sizeof prefix, fmt, args);
    va_end(args);
    return err_set(err, err->code, "%s: %s", prefix, err->msg);
}

void err_clear(struct err *err)
{
    if (!err)
        return;
    err->code = 0;
    err->msg[0] = '\0';
}

const char *err_name(int code)
{
    return table[row_of(code)].name;
}

int err_exit_status(int code)
{
    return table[row_of(code)].exit_status;
}

int err_http_status(int code)
{
    return table[row_of(code)].http_status;
}
