/*
 * log: one line an event on stderr: time (UTC), level, module, message key=value …; text or JSON.
 * Never prompt text, never keys. Thread-safe: a line is written by one write().
 */
#ifndef LIBCORE_BASE_LOG_H
#define LIBCORE_BASE_LOG_H

#include <stdbool.h>

enum log_level { LOG_LEVEL_DEBUG, LOG_LEVEL_INFO, LOG_LEVEL_WARN, LOG_LEVEL_ERROR, LOG_LEVEL_OFF };
enum log_format { LOG_FORMAT_TEXT, LOG_FORMAT_JSON };

void log_set_level(enum log_level level); // default LOG_LEVEL_WARN; serve sets INFO
void log_set_format(enum log_format format);
bool log_level_parse(const char *text, enum log_level *out);
bool log_enabled(enum log_level level);

/* module: the file's name, "scheduler". fmt gives "what happened key=value key=value". */
void log_write(enum log_level level, const char *module, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#define log_debug(module, ...)                                                                     \
    do {                                                                                           \
        if (log_enabled(LOG_LEVEL_DEBUG))                                                          \
            log_write(LOG_LEVEL_DEBUG, module, __VA_ARGS__);                                       \
    } while (0)
#define log_info(module, ...)  log_write(LOG_LEVEL_INFO, module, __VA_ARGS__)
#define log_warn(module, ...)  log_write(LOG_LEVEL_WARN, module, __VA_ARGS__)
#define log_error(module, ...) log_write(LOG_LEVEL_ERROR, module, __VA_ARGS__)

#endif
