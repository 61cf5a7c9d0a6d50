#include "libcore/base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "libcore/base/strbuf.h"

static atomic_int level_now = LOG_LEVEL_WARN;
static atomic_int format_now = LOG_FORMAT_TEXT;

static const char *const level_names[] = {"debug", "info", "warn", "error", "off"};

void log_set_level(enum log_level level)
{
    atomic_store_explicit(&level_now, (int)level, memory_order_relaxed);
}

void log_set_format(enum log_format format)
{
    atomic_store_explicit(&format_now, (int)format, memory_order_relaxed);
}

bool log_level_parse(const char *text, enum log_level *out)
{
    for (int i = 0; i <= LOG_LEVEL_OFF; i++) {
        if (strcmp(text, level_names[i]) == 0) {
            *out = (enum log_level)i;
            return true;
        }
    }
    if (strcmp(text, "warning") == 0) { // the peers' spelling
        *out = LOG_LEVEL_WARN;
        return true;
    }
    return false;
}

bool log_enabled(enum log_level level)
{
    return (int)level >= atomic_load_explicit(&level_now, memory_order_relaxed);
}

/* "2026-01-31T12:00:00.123Z" */
static void add_time(struct strbuf *sb)
{
    struct timespec ts;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &tm);
    char text[32];
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &tm);
    strbuf_addf(sb, "%s.%03ldZ", text, ts.tv_nsec / 1000000);
}

/* A log line is one line: what a name or a path brings in must not start a second one. */
static void add_one_line(struct strbuf *sb, const char *text)
{
    for (; *text; text++) {
        if ((unsigned char)*text < 0x20 || *text == 0x7F)
            strbuf_addf(sb, "\\x%02x", (unsigned char)*text);
        else
            strbuf_addc(sb, *text);
    }
}

void log_write(enum log_level level, const char *module, const char *fmt, ...)
{
    if (!log_enabled(level))
        return;
    struct strbuf message, line;
    strbuf_init(&message);
    strbuf_init(&line);
    va_list args;
    va_start(args, fmt);
    strbuf_addv(&message, fmt, args);
    va_end(args);
    if (atomic_load_explicit(&format_now, memory_order_relaxed) == LOG_FORMAT_JSON) {
        strbuf_adds(&line, "{\"time\":\"");
        add_time(&line);
        strbuf_addf(&line, "\",\"level\":\"%s\",\"module\":\"%s\",\"message\":", level_names[level],
                    module);
        strbuf_add_json(&line, strbuf_text(&message), message.len);
        strbuf_adds(&line, "}\n");
    } else {
        add_time(&line);
        strbuf_addf(&line, " %-5s %s: ", level_names[level], module);
        add_one_line(&line, strbuf_text(&message));
        strbuf_addc(&line, '\n');
    }
    // One write, so that lines of several threads do not mix. What stderr refuses is lost.
    if (!line.failed && write(STDERR_FILENO, line.data, line.len) < 0) {
    }
    strbuf_release(&message);
    strbuf_release(&line);
}
