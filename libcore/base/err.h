/*
 * err: how every failure travels, and what it means to a shell and to an HTTP client.
 *
 * What can fail returns int: 0, or a negative enum err_code, with `struct err *err` as its last
 * parameter (may be NULL where the caller does not care). The message is set where the failure is
 * found, in one line: what, where (`file:tensor`), wanted and got. It is passed upward unchanged;
 * only the command adds the next step to take. Libraries never print and never exit.
 * Thread rule: a struct err lives on one thread's stack.
 */
#ifndef LIBCORE_BASE_ERR_H
#define LIBCORE_BASE_ERR_H

#include <stdarg.h>

enum err_code {
    ERR_OK = 0,
    ERR_FAIL = -1,         // anything that has no better name
    ERR_NO_MEMORY = -2,    // host memory
    ERR_IO = -3,           // the system refused to read, write, sync, rename, …
    ERR_USAGE = -4,        // the caller's words are off (bad flag, bad name, bad JSON field)
    ERR_NOT_FOUND = -5,    // a name, file, id or tensor that is not there
    ERR_EXISTS = -6,       // would overwrite
    ERR_REFUSED = -7,      // sound input that is mismatched or not computable here
    ERR_CORRUPT = -8,      // a file breaks its own format: hole, duplicate key, NaN, wrong digest
    ERR_PARTIAL = -9,      // some inputs failed, the others were done
    ERR_NO_STORE = -10,    // there is no store at that place
    ERR_LOCKED = -11,      // somebody else holds it
    ERR_INTERRUPTED = -12, // SIGINT or SIGTERM
    ERR_LIMIT = -13,       // a bound of limits.h or of an option is passed
    ERR_DEVICE = -14,      // the device or its driver failed
    ERR_BUSY = -15,        // a queue is full; later it may work
    ERR_TIMEOUT = -16,     // a deadline passed
    ERR_DENIED = -17,      // no or wrong key, or a path outside the allowed root
    ERR_CANCELLED = -18,   // the caller took it back
    ERR_INTERNAL = -19     // our own mistake, found at run time
};

enum { ERR_MSG_BYTES = 512 };

struct err {
    int code; // 0 or an enum err_code
    char msg[ERR_MSG_BYTES];
};

/* Sets code and message (truncated with … at the end when too long); err may be NULL. Returns code.
 */
int err_set(struct err *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
int err_setv(struct err *err, int code, const char *fmt, va_list args);

/* Like err_set with ERR_IO (ENOENT: ERR_NOT_FOUND, ENOMEM: ERR_NO_MEMORY, EEXIST: ERR_EXISTS) and
 * ": strerror(errno_value)" appended. Returns the code it chose. */
int err_set_errno(struct err *err, int errno_value, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "prefix: " before the message that is there already. Returns err->code. */
int err_prefix(struct err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Empties it. Needed only to use one struct for several calls. */
void err_clear(struct err *err);

/* The short name of a code ("corrupt", "not_found", …), static; used in JSON errors. */
const char *err_name(int code);

/* The one table from codes to exit status: 0 ok, 1 failure, 2 usage, 3 partial, 4 refused,
 * 5 corrupt, 10 no store, 11 locked, 130 interrupted. */
int err_exit_status(int code);

/* The one table from codes to HTTP status: 400 usage/limit/refused/corrupt, 401 denied,
 * 404 not found, 409 exists, 499 cancelled, 503 busy, 504 timeout, 500 the rest. */
int err_http_status(int code);

#endif
